"""The MS study on the reference cohort of 130: every published analysis equals R."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_sodium.group.ms import MsParams, analyse
from bids_sodium.group.results import Study

SHARED = Path(os.environ.get("BIDS_SODIUM_TEST_DATA", Path(__file__).parents[4] / "shared"))
CASE = SHARED / "reference" / "stats" / "ms_cohort130"
pytestmark = pytest.mark.skipif(not CASE.is_dir(), reason=f"no reference case at {CASE}")

TISSUES = {
    "tsc_cgm": "CGM",
    "tsc_dgm": "DGM",
    "tsc_nawm": "NAWM",
    "tsc_t2les": "T2lesion",
    "tsc_t1iso": "T1iso",
    "tsc_t1hypo": "T1hypo",
}
HERE = {"tsc_t2les": "tsc_t2lesion"}  # their name for a column: ours


def long_form(data: pd.DataFrame) -> pd.DataFrame:
    """One row a tissue, as ``group_tsc.tsv`` has it."""
    rows = data.melt(
        id_vars=[c for c in data if c not in TISSUES],
        value_vars=list(TISSUES),
        var_name="tissue",
        value_name="tsc_mmol_l",
    )
    rows["tissue"] = rows["tissue"].map(TISSUES)
    return rows.dropna(subset=["tsc_mmol_l"]).assign(method="gtm", session_id="n/a")


def expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CASE / f"expected_{name}.json").read_text())
    return found


def as_list(value: Any) -> list[Any]:
    return [] if value in (None, {}) else value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def study() -> Study:
    data = pd.read_csv(CASE / "data.tsv", sep="\t", na_values="n/a", keep_default_na=False)
    params = MsParams(n_resamples=200, selection_resamples=5, penalised_repeats=0)
    return analyse(long_form(data), params, np.random.default_rng(0))


@pytest.fixture(scope="module")
def labels() -> dict[str, str]:
    from bids_sodium.group import ms

    return {name: ms.label(HERE.get(name, name)) for name in expected_names()}


def expected_names() -> list[str]:
    return sorted({c["dep"] for c in expected("group_comparisons")["comparisons"]} | {"edss"})


def test_47_group_comparisons(study: Study, labels: dict[str, str]) -> None:
    results = study["comparisons"].results
    cases = expected("group_comparisons")["comparisons"]
    assert len(cases) == 47
    assert len(results[results["model"] != "rank sum"]) == 47
    for case in cases:
        pair = f"{case['a']} - {case['b']}".replace("RRMS+SPMS", "MS")
        row = results[(results["outcome"] == labels[case["dep"]]) & (results["term"] == pair)]
        assert len(row) == 1, case
        got = row.iloc[0]
        np.testing.assert_allclose(
            got[["estimate", "se", "ci_low", "ci_high", "p", "df"]].to_numpy(float),
            [case[k] for k in ("diff", "se", "lo", "hi", "p", "df")],
            rtol=1e-8,
        )
        assert float(got["note"].split("HC3 SE ")[1].split(";")[0]) == pytest.approx(case["hc3_se"], rel=1e-3)
        means = study["comparisons"].data["adjusted_means"]
        means = means[(means["variable"] == HERE.get(case["dep"], case["dep"])) & (means["pair"] == pair)]
        np.testing.assert_allclose(means["adjusted_mean"], [case["adj_mean_a"], case["adj_mean_b"]], rtol=1e-8)


def test_joint_models(study: Study, labels: dict[str, str]) -> None:
    results = study["joint"].results
    for case in expected("group_comparisons")["joint_models"]:
        rows = results[results["outcome"] == labels[case["dep"]]].set_index("term")
        for name, estimate, se, p in zip(case["term"], case["est"], case["se"], case["p"], strict=True):
            if name in {"gCIS", "gRRMS", "gSPMS"}:
                got = rows.loc[f"{name[1:]} - HC"]
                np.testing.assert_allclose(got[["estimate", "se", "p"]].to_numpy(float), [estimate, se, p], rtol=1e-8)
        assert rows.loc["group", "statistic"] == pytest.approx(case["anova_typeII"][0], rel=1e-8)
        assert rows["r2"].iloc[0] == pytest.approx(case["r2"], rel=1e-8)


def test_edss_rank_sums(study: Study) -> None:
    results = study["comparisons"].results
    rows = results[results["model"] == "rank sum"]
    for case in expected("edss_ranksum")["rank_sum"]:
        pair = f"{case['a']} - {case['b']}".replace("RRMS+SPMS", "MS")
        got = rows[rows["term"] == pair].iloc[0]
        assert got["statistic"] == case["U"]
        assert got["p"] == pytest.approx(case["p_exact_ties"], rel=1e-8)
        assert f"p {case['p_asymp_nocc_SPSS']:.4g}" in got["note"]
        assert f"superiority {case['prob_superiority']:.3f}" in got["note"]


def test_20_backward_eliminations(study: Study) -> None:
    from bids_sodium.group import ms

    models = expected("backward")["models"]
    assert len(models) == 20
    table = study["regressions"]
    summary = table.data["models"].set_index(["subset", "outcome"])
    path = table.data["path"]
    for key, case in models.items():
        subset = {"all": "patients", "ms": "MS"}[key.split("_", 1)[0]]
        outcome = case["dep"]
        here = summary.loc[subset, outcome]
        assert here["n"] == case["n"]
        assert here["entered"] == ", ".join(as_list(case["entered"])), key
        assert here["retained"] == ", ".join(as_list(case["retained"])), key
        seen = case["diagnostics"]
        assert here["cook_participant"] == seen["cook_argmax"]
        for name in ("cook_max", "leverage_max", "shapiro_W", "shapiro_p", "bp_koenker", "bp_p", "dffits_max"):
            ours = {"shapiro_W": "shapiro_w", "bp_koenker": "koenker", "bp_p": "koenker_p"}.get(name, name)
            assert here[ours] == pytest.approx(seen[name], rel=1e-7), (key, name)
        robust = table.data["robust"]
        robust = robust[(robust["subset"] == subset) & (robust["outcome"] == outcome)].set_index("term")
        for term, value in seen["hc3_se"].items():
            if term != "(Intercept)":
                assert robust.loc[term, "se_hc3"] == pytest.approx(value, rel=1e-8)
        final = case["final"]
        assert here["r2"] == pytest.approx(final["r2"], rel=1e-8)
        assert here["adjusted_r2"] == pytest.approx(final["adj_r2"], rel=1e-8)
        rows = table.results
        rows = rows[(rows["subset"] == subset) & (rows["outcome"] == ms.label(outcome))]
        kept = rows[rows["model"] == "backward elimination"].set_index("term")
        assert list(kept.index) == final["term"][1:]
        columns = ["estimate", "se", "statistic", "p", "ci_low", "ci_high"]
        want = np.column_stack([final[k][1:] for k in ("est", "se", "t", "p", "lo", "hi")])
        np.testing.assert_allclose(kept[columns].to_numpy(float), want, rtol=1e-8)
        again = rows[rows["model"] == "re-test of an omitted term"].set_index("term")
        for test in as_list(case["omitted_retest"]):
            np.testing.assert_allclose(
                again.loc[test["var"], ["estimate", "p"]].to_numpy(float), [test["beta"], test["p"]], rtol=1e-8
            )
        steps = path[(path["subset"] == subset) & (path["outcome"] == outcome)]
        assert steps["step"].nunique() == len(as_list(case["steps"]))
        for number, step in enumerate(as_list(case["steps"]), start=1):
            at = steps[steps["step"] == number]
            assert at["term"].tolist() == as_list(step["in_model"])
            np.testing.assert_allclose(at["p"], as_list(step["p"]), rtol=1e-8)
            assert at.loc[at["removed"] == 1, "term"].tolist() == as_list(step["removed"])


def test_univariable_screen(study: Study) -> None:
    from bids_sodium.group import ms

    rows = study["univariable"].results.set_index(["subset", "outcome", "term"])
    for key, case in expected("backward")["models"].items():
        subset = {"all": "patients", "ms": "MS"}[key.split("_", 1)[0]]
        for test in case["univariable"]:
            got = rows.loc[(subset, ms.label(case["dep"]), test["var"])]
            np.testing.assert_allclose(
                got[["estimate", "se", "p"]].to_numpy(float), [test["beta"], test["se"], test["p"]], rtol=1e-8
            )


def test_lesion_mixed_model(study: Study) -> None:
    case = expected("extra")["lesion_mixed"]
    rows = study["lesions"].results
    rows = rows[rows["model"].str.contains("x SPMS")].set_index("term")
    terms = [
        "T1iso - NAWM, in RRMS", "T1hypo - NAWM, in RRMS", "SPMS - RRMS, in NAWM", "wmf",
        "T1iso - NAWM, SPMS - RRMS", "T1hypo - NAWM, SPMS - RRMS",
    ]  # fmt: skip
    want = list(case["est"].values())[1:]
    np.testing.assert_allclose(rows.loc[terms, "estimate"].to_numpy(float), want, rtol=1e-6)
    for term, se, df in zip(terms, case["se"][1:], case["df"][1:], strict=True):
        assert f"Satterthwaite: SE {se:.4g}, df {df:.4g}" in rows.loc[term, "note"]


def test_paired_lesion_differences(study: Study) -> None:
    """With everyone complete the within-patient difference of the mixed model is the paired one."""
    case = expected("group_comparisons")
    rows = study["lesions"].results.set_index("term")
    for term, key in (("T2lesion - NAWM", "paired_lesion_vs_nawm"), ("T1hypo - T1iso", "paired_hypo_vs_iso")):
        want = case[key]
        got = rows.loc[term]
        np.testing.assert_allclose(
            got[["estimate", "ci_low", "ci_high"]].to_numpy(float), [want["diff"], want["lo"], want["hi"]], rtol=1e-6
        )
        assert got["p"] == pytest.approx(want["p"], rel=1e-4)


def test_table_2_prints_the_moments(study: Study) -> None:
    layout = study["table2"].data["layout"].set_index("variable")
    assert layout.loc["TSC cortical grey matter (mmol/L)", "SPMS"].startswith("45.45 (3.69)")
    assert layout.loc["n"].to_dict() == {"HC": "34", "CIS": "18", "MS": "78", "RRMS": "65", "SPMS": "13"}


def test_proportional_odds(study: Study) -> None:
    case = expected("extra")["polr"]
    rows = study["ordinal"].results
    got = rows[rows["subset"] == "patients"].set_index("term")
    assert got.loc["tsc_cgm", "estimate"] == pytest.approx(case["coef"]["tsc_cgm"], rel=1e-4)
    assert got.loc["gmf", "estimate"] == pytest.approx(100 * case["coef"]["gmf100"], rel=1e-4)
    assert got.loc["tsc_cgm", "se"] == pytest.approx(case["se"]["tsc_cgm"], rel=1e-3)
    assert got.loc["tsc_cgm", "p"] == pytest.approx(case["p_LR"], rel=1e-3)
