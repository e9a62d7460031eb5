"""Clinical tables of the group level: what joins, what is left out and said, what stops."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from bids_sodium.bidsio.files import write_table
from bids_sodium.bidsio.gather import gather, group_table
from bids_sodium.core.errors import DataError
from bids_sodium.core.tables import QC, TISSUE_TSC
from bids_sodium.group.rows import persons


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Return output and dataset of two participants."""
    output, raw = tmp_path / "out", tmp_path / "raw"
    for name in ("sub-01", "sub-02"):
        ids = {"participant_id": name, "session_id": "n/a"}
        row = {**ids, "tissue": "CGM", "method": "glm", "tsc_mmol_l": 40.0, "tsc_se": 0.5, "sd_mmol_l": 3.0,
               "n_voxels": 900, "volume_ml": 500.0, "csf_excluded_fraction": 0.0}  # fmt: skip
        folder = output / name / "anat"
        write_table(folder / f"{name}_acq-23Na_desc-tissue_tsc.tsv", [row], TISSUE_TSC)
        measures = {"gmf": 0.45, "csf_sensitivity_CGM": -0.08}
        quality = [{**ids, "measure": m, "value": v, "unit": "1", "se": "n/a", "note": ""} for m, v in measures.items()]
        write_table(folder / f"{name}_acq-23Na_desc-qc_tsc.tsv", quality, QC)
    put(raw / "participants.tsv", participant_id=["sub-01", "sub-02"], group=["HC", "RRMS"], sex=[1, 2])
    return output, raw


def put(path: Path, **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, sep="\t", index=False, na_rep="n/a")


def test_everything_that_is_known_stands_beside_every_row(places: tuple[Path, Path]) -> None:
    output, raw = places
    put(raw / "phenotype" / "edss.tsv", participant_id=["sub-02"], edss=[2.5])
    table, _, left_out = gather(output, raw)
    assert left_out == []
    rows = table.set_index("participant_id")
    assert rows["gmf"].tolist() == [0.45, 0.45]
    assert rows["csf_sensitivity_cgm"].tolist() == [-0.08, -0.08]
    assert "csf_sensitivity_dgm" not in rows
    assert rows["edss"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"subject": ["sub-01"], "edss": [1.0]}, "no column participant_id, found subject, edss"),
        ({"participant_id": ["sub-01", "sub-01"], "edss": [1.0, 2.0]}, "sub-01 has 2 rows"),
        (
            {"participant_id": ["sub-02", "sub-01", "sub-02", "sub-01", "sub-02"], "edss": [1.0] * 5},
            "sub-02 has 3 rows (2 have several)",
        ),
        (
            {"participant_id": ["01", "02", "03"], "edss": [1.0, 2.0, 3.0]},
            "none of its 3 participants (the first is 01) is among the 2 with outputs (the first is sub-01)",
        ),
    ],
)
def test_a_phenotype_table_that_does_not_join_is_left_out_and_the_others_join(
    places: tuple[Path, Path], columns: dict[str, list[object]], words: str
) -> None:
    output, raw = places
    put(raw / "phenotype" / "edss.tsv", **columns)
    put(raw / "phenotype" / "sdmt.tsv", participant_id=["sub-02"], z_sdmt=[-1.0])
    table, _, left_out = group_table(output, raw)
    assert [name for name, _ in left_out] == ["phenotype/edss.tsv"]
    assert words in left_out[0][1]
    assert "edss" not in table
    assert table["z_sdmt"].notna().sum() == 1


def test_participants_that_do_not_join_stop(places: tuple[Path, Path]) -> None:
    output, raw = places
    put(raw / "participants.tsv", id=["sub-01"])
    with pytest.raises(DataError, match="no column participant_id"):
        gather(output, raw)


@pytest.mark.parametrize(
    "levels", [{"1": "male", "2": "female"}, {"1": {"Description": "male"}, "2": {"Description": "female"}}]
)
def test_codes_of_the_sex_are_read_through_the_sidecar(places: tuple[Path, Path], levels: dict[str, object]) -> None:
    output, raw = places
    without = persons(gather(output, raw)[0], method="auto")
    assert "sexn" not in without.table
    assert any("the values 1 (1 of 2), 2 (1 of 2) are not known" in note for note in without.notes)
    (raw / "participants.json").write_text(json.dumps({"sex": {"Levels": levels}}))
    assert persons(gather(output, raw)[0], method="auto").table["sexn"].tolist() == [0.0, 1.0]
