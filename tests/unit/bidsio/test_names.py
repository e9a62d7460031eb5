from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_sodium.bidsio.names import ORDER, build, is_sodium_label, output, parse
from bids_sodium.core.errors import DataError, InternalError

VALUES = st.text("abcXYZ019+", min_size=1, max_size=8)
WORDS = st.text("abcXYZ019", min_size=1, max_size=8)


@given(
    st.dictionaries(st.sampled_from(ORDER), VALUES, min_size=1),
    WORDS,
    st.sampled_from([".nii.gz", ".nii", ".json", ".tsv", ""]),
)
def test_parse_undoes_build(entities: dict[str, str], suffix: str, extension: str) -> None:
    name = parse(build(entities, suffix, extension))
    assert name.entities == entities
    assert (name.suffix, name.extension) == (suffix, extension)


@given(st.permutations(["sub", "ses", "acq", "run", "space", "from", "to", "mode", "label", "desc"]))
def test_order_of_entities_does_not_depend_on_the_caller(keys: list[str]) -> None:
    assert build(dict.fromkeys(keys, "1"), "x", "") == (
        "sub-1_ses-1_acq-1_run-1_space-1_from-1_to-1_mode-1_label-1_desc-1_x"
    )


def test_order_is_the_one_of_the_bids_schema() -> None:
    schema = pytest.importorskip("bidsschematools.schema").load_schema()
    official = [schema.objects.entities[long].name for long in schema.rules.entities]
    assert [key for key in ORDER if key not in {"from", "to", "mode"}] == official


@pytest.mark.parametrize(
    "name", ["sub-01_PDw_acq-1", "sub-01_sub-02_PDw.nii", "sub_PDw", "sub-_PDw", "-1_PDw", "sub-01_"]
)
def test_a_name_that_is_not_bids_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="sub-01_acq-23Na_PDw"):
        parse(name)


@pytest.mark.parametrize("entities", [{"subject": "01"}, {"sub": "0_1"}, {"sub": ""}, {"sub": "a/b"}])
def test_a_name_that_would_not_be_bids_is_not_built(entities: dict[str, str]) -> None:
    with pytest.raises(InternalError):
        build(entities, "PDw", ".nii.gz")


def test_output_leaves_out_what_is_none_and_the_session_where_there_is_none() -> None:
    unit = SimpleNamespace(participant_id="sub-01", session_id=None)
    path = output(unit, suffix="xfm", extension=".txt", from_="na", to="T1w", mode="image", desc=None)
    assert path == "sub-01/anat/sub-01_from-na_to-T1w_mode-image_xfm.txt"
    assert output(unit, datatype="", suffix="sessions", extension="tsv") == "sub-01/sub-01_sessions.tsv"


@pytest.mark.parametrize(
    ("label", "sodium"),
    [
        ("23Na", True),
        ("23na", True),
        ("Na", True),
        ("DANa", True),
        ("Sodium3D", True),
        ("Nav", False),
        ("final", False),
    ],
)
def test_labels_that_say_sodium(label: str, sodium: bool) -> None:
    assert is_sodium_label(label) is sodium
