"""Time and memory of the group statistics: ``python tests/bench/group.py [bca] [stroke] [study] [consortium]``.

One thread: BCa beside a loop of statsmodels, the whole stroke study on 15 and 1000 patients and the whole MS study on
130 participants with all 10 000 resamples, and a consortium of 10 000 participants at 50 sites. Of several turns the
best counts.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bids_sodium.group import stroke
from bids_sodium.group.ms import MsParams, analyse
from bids_sodium.simulate.cohort import Cohort, MsCohortParams, ms_cohort, stroke_cohort
from bids_sodium.simulate.consortium import ConsortiumParams, consortium
from bids_sodium.simulate.fate import fate_cells, rater_table
from bids_sodium.stats.harmonization import combat
from bids_sodium.stats.regression import bca


def best(work: Callable[[], Any], turns: int = 3) -> tuple[float, float]:
    """Return the least wall and CPU time of some turns, in s."""
    wall, cpu = [], []
    for _ in range(turns):
        at, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - at)
        cpu.append(time.process_time() - used)
    return min(wall), min(cpu)


def report(what: str, seconds: tuple[float, float], more: str = "") -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {seconds[0]:.2f} s wall, {seconds[1]:.2f} s CPU, peak {peak:.2f} GiB {more}", flush=True)


def of_bca() -> None:
    """10 000 resamples of 96 rows and 4 coefficients."""
    import statsmodels.api as sm

    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(96), rng.normal(size=(96, 3))])
    y = X @ [1.0, 0.5, -0.3, 0.0] + rng.normal(size=96)
    ours = best(lambda: bca(X, y, rng=np.random.default_rng(1)))
    report("BCa, 10 000 x n = 96", ours)

    def loop() -> None:
        draws = np.random.default_rng(1)
        for _ in range(1000):
            rows = draws.integers(0, 96, 96)
            sm.OLS(y[rows], X[rows]).fit()

    peer = best(loop, 1)
    report("statsmodels loop, 1000 of 10 000", peer, f"ratio for 10 000: {10 * peer[1] / ours[1]:.0f}")


def of_stroke() -> None:
    """Everything on the paper's 15 patients and on 1000, with tables of cells and raters: 10 000 draws."""
    for n in (15, 1000):
        cohort = stroke_cohort(np.random.default_rng(3), n)
        cells = fate_cells(np.random.default_rng(5), cohort)
        raters = rater_table(np.random.default_rng(1), cohort)

        def whole(cohort: Cohort = cohort, cells: Any = cells, raters: Any = raters) -> None:
            stroke.analyse(cohort.table, rng=np.random.default_rng(0), cells=cells, raters=raters)

        report(f"stroke study, {n} patients", best(whole, 1))


def of_study() -> None:
    """Everything on 130 participants: all tables, both subsets, 10 000 draws."""
    table = ms_cohort(np.random.default_rng(5)).table
    report("MS study, 130 participants", best(lambda: analyse(table, MsParams(), np.random.default_rng(0)), 1))


def of_consortium() -> None:
    """10 000 participants at 50 sites."""
    rng = np.random.default_rng(5)
    sites = tuple(f"S{i:02d}" for i in range(50))
    shift = tuple(float(v) for v in rng.normal(0.0, 2.0, 50))
    cohort = ms_cohort(rng, (2500, 1500, 4500, 1500), params=MsCohortParams(sites=sites, site_shift_mmol_l=shift))
    table = cohort.table
    report("made", (0.0, 0.0), f"{len(table)} rows")
    Y = rng.normal(40.0, 3.0, (10_000, 120))
    site = np.resize(sites, 10_000)
    report("ComBat, 10 000 x 120 features x 50 sites", best(lambda: combat(Y, site), 1))
    report("MS study, 10 000 participants", best(lambda: analyse(table, MsParams(), np.random.default_rng(0)), 1))
    one = table[table["method"] == "glm"]
    wide = consortium(type(cohort)(table=one, truth=cohort.truth), rng, ConsortiumParams(n_regions=20))
    params = MsParams(disability=("edss",), cognition=())
    report("with 20 regions, one score", best(lambda: analyse(wide.table, params, np.random.default_rng(0)), 1))


PARTS = {"bca": of_bca, "stroke": of_stroke, "study": of_study, "consortium": of_consortium}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    chosen = parser.parse_args().parts or list(PARTS)
    for name in chosen:
        PARTS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
