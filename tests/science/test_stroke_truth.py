"""Regions of a simulated stroke read their true change, and the prognosis finds what tissue was made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from bids_sodium.core.constants import relaxation_of
from bids_sodium.core.data import Volume
from bids_sodium.group._stroke_prognosis import prognosis
from bids_sodium.group.results import Analysis, Ledger
from bids_sodium.group.rows import scans
from bids_sodium.group.stroke import StrokeParams
from bids_sodium.recon.solvers import Linear, ReconstructionParams, phase_corrected_real, reconstruct
from bids_sodium.simulate.acquire import simulate_kspace
from bids_sodium.simulate.brain import AnatomyParams, draw_anatomy, draw_stroke_lesion, stroke_head
from bids_sodium.simulate.cohort import Cohort, stroke_cohort
from bids_sodium.simulate.dataset import PROTOCOLS
from bids_sodium.simulate.fate import FateParams, fate_cells
from bids_sodium.spatial.transforms import Affine
from bids_sodium.steps import extract
from bids_sodium.steps._model import SOLID, Scan, scan_model
from bids_sodium.steps._parts import fitted_parts
from bids_sodium.steps._regions import _corrected_row, _verdict
from bids_sodium.steps._scene import Scene
from bids_sodium.steps._tissues import WholeBrain
from bids_sodium.tissue.partialvolume import PartialVolumeParams


@pytest.mark.slow
def test_changes_of_regions_are_those_of_the_head() -> None:
    """Given masks and the true place of everything, without noise; 6 mm, so that it takes half a minute."""
    chosen = PROTOCOLS["stroke-sloppy"]
    rng = np.random.default_rng(3)
    anatomy = draw_anatomy(rng, AnatomyParams(voxel_mm=2.0))
    lesion = draw_stroke_lesion(anatomy, rng)
    head = stroke_head(anatomy, lesion, 40.0)
    grid, timing = anatomy.grid, {"te_ms": chosen.te_ms, "tr_ms": chosen.tr_ms, "flip_deg": chosen.flip_deg}
    kspace = simulate_kspace(
        head.fractions, head.mmol_l, trajectory=chosen.acquired(), grid=chosen.grid, snr=1e6, rng=rng, vials=(),
        gain=10.0, **timing,
    )  # fmt: skip
    params = ReconstructionParams()
    solution = reconstruct(kspace, chosen.grid, params, operator=Linear(kspace.trajectory, chosen.grid, params))
    to_mmol_l = 1 / (10.0 * relaxation_of("GM").signal_fraction(**timing))
    image = Volume(phase_corrected_real(solution.image, chosen.grid).astype(np.float64) * to_mmol_l, chosen.grid)
    assert anatomy.mni_mm is not None
    points = anatomy.mni_mm.reshape(-1, 3)
    homologue = cKDTree(points).query(points * [-1.0, 1.0, 1.0])[1]

    def flipped(data: np.ndarray) -> np.ndarray:
        return data.reshape(-1)[homologue].reshape(grid.shape)

    masks = {**head.masks, "necrosis": anatomy.parenchyma * lesion.necrosis >= 0.5}
    every = np.logical_or.reduce(list(masks.values()))
    csf = np.asarray(head.fractions["CSF"].data, dtype=np.float32)
    tissues = {name: np.asarray(anatomy.fractions[name]) for name in ("CGM", "DGM", "NAWM", "CSF")}
    bare = {name: np.where(every, np.float32(0.0), data) for name, data in tissues.items()}
    scene = Scene(
        whole=grid,
        box=(slice(None), slice(None), slice(None)),
        masks=masks,
        mirrored={name: flipped(mask) for name, mask in masks.items()},
        lesion=every,
        csf=np.where(every, np.float32(0.0), csf),
        csf_there=flipped(csf),
        mirror=Affine.identity("T1w", "T1w"),
        other_times=frozenset({"necrosis"}),
        tissue_there={name: flipped(bare[name]) for name in SOLID},
    )
    known = {name: Volume(data.astype(np.float32), grid) for name, data in bare.items()}
    known |= {"L": Volume(every.astype(np.float32), grid), "soft": head.fractions["soft"]}
    scan = Scan(
        image=image, smooth=image, kspace=kspace, fits_samples=False, reconstruction=params, offset_hz=0.0, protocol={},
        timing=timing, vials=[], to_mmol_l=to_mmol_l, sigma=1.0, fwhm_mm=10.0,
    )  # fmt: skip
    settings = extract.Params(participant_id="sub-01")
    whole = scan_model(known, np.eye(4), scan, PartialVolumeParams(methods=("gtm",)), target_error_mm=0.1)
    fit = whole.corrected("gtm", settings.partialvolume)
    brain = WholeBrain(whole.pose, dict(zip(fit.names, fit.mmol_l.tolist(), strict=True)))
    parts = fitted_parts(scene, known, np.eye(4), scan, settings, target_error_mm=0.1, brain=brain)
    assert parts is not None
    assert head.sodium_change_percent is not None
    for name in ("ionic", "cytotoxic", "necrosis", "ionic&necrosis", "cytotoxic&necrosis"):
        verdict = _verdict(scene, name, settings)
        true = float(head.sodium_change_percent[verdict.ipsi].mean())
        row = _corrected_row(name, name, verdict, parts)
        assert row["kept"] == 1
        # the point spread is 10 mm wide: a plain mean reads 69 % for 86 %
        assert float(row["percent_change"]) == pytest.approx(true, abs=2.5), name  # type: ignore[arg-type]
    for name in settings.regions.expressions:
        verdict = _verdict(scene, name, settings)
        row = _corrected_row(name, name, verdict, parts)
        true = float(head.sodium_change_percent[verdict.ipsi].mean())
        assert abs(float(row["percent_change"]) - true) < 1.96 * float(row["percent_se"]), name  # type: ignore[arg-type]
        if verdict.kept:  # thinner than the point spread as some are
            assert float(row["percent_change"]) == pytest.approx(true, abs=7.0), name  # type: ignore[arg-type]


def predicted(cohort: Cohort, cells: pd.DataFrame) -> Analysis:
    p = StrokeParams()
    view = scans(cohort.table, method="auto", early_h=p.early_h, late_h=p.late_h, minimum_ml=p.minimum_ml)
    return prognosis(replace(view, cells=cells), p, np.random.default_rng(0), Ledger("prognosis", "Prognosis"))


def test_prognosis_finds_what_tissue_was_made_from() -> None:
    cohort = stroke_cohort(np.random.default_rng(8), n=25, complete=True)
    truth = FateParams(most_cells=40)
    cells = fate_cells(np.random.default_rng(9), cohort, truth)
    found = predicted(cohort, cells)
    rows = found.results
    odds = rows[rows["model"] == "mixed logistic, sodium + ADC"].set_index("term")
    for term, slope in (("sodium change", truth.per_na), ("ADC change", truth.per_adc)):
        (name,) = (t for t in odds.index if t.startswith(term))
        spread = float(name.rpartition("SD of ")[2])
        log_se = odds.loc[name, "se"] / odds.loc[name, "estimate"]
        assert abs(np.log(odds.loc[name, "estimate"]) - slope * spread) < 3.5 * log_se + 0.02
    area = rows[(rows["term"] == "AUC") & (rows["subset"] == "all scans")].set_index("model")["estimate"]
    assert area["sodium + ADC"] > max(area["sodium"], area["ADC"])
    slope = rows[(rows["term"] == "calibration slope") & (rows["model"] == "sodium + ADC")].iloc[0]
    assert slope["ci_low"] < 1.0 < slope["ci_high"]
    patients = found.data["patients"]
    both = patients[(patients["model"] == "sodium + ADC") & (patients["subset"] == "all scans")]
    assert np.corrcoef(both["predicted_ml"], both["observed_ml"])[0, 1] > 0.8


def test_tissue_without_a_law_is_not_predicted() -> None:
    """No effect of either contrast: areas of left-out patients lie at a half as often as they say."""
    none = FateParams(per_na=0.0, per_adc=0.0, most_cells=30)
    outside = 0
    for seed in range(12):
        cohort = stroke_cohort(np.random.default_rng(50 + seed), n=10, complete=True)
        cells = fate_cells(np.random.default_rng(seed), cohort, replace(none, patient_sd=0.4))
        rows = predicted(cohort, cells).results
        within = rows[(rows["term"] == "AUC within a patient") & (rows["subset"] == "all scans")]
        both = within[within["model"] == "sodium + ADC"].iloc[0]
        outside += not both["ci_low"] <= 0.5 <= both["ci_high"]
    assert outside <= 3
