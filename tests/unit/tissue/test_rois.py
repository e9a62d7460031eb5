"""Set algebra of regions, consensus and agreement of raters, the volume rule."""

from __future__ import annotations

import numpy as np
import pytest

from bids_sodium.core.errors import ConfigError, DataError, GeometryError
from bids_sodium.tissue.rois import RoiParams, agreement, combine, consensus, names_in, screen

RNG = np.random.default_rng(0)
MASKS = {name: RNG.random((6, 5, 4)) < 0.5 for name in ("ionic", "necrosis", "cytotoxic")}
I, N, C = MASKS["ionic"], MASKS["necrosis"], MASKS["cytotoxic"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("ionic", I),
        ("ionic & necrosis", I & N),
        ("necrosis-ionic", N & ~I),
        ("ionic|necrosis", I | N),
        ("(ionic | necrosis) & cytotoxic", (I | N) & C),
        ("ionic | necrosis & cytotoxic", I | (N & C)),
        ("ionic - necrosis - cytotoxic", I & ~N & ~C),
        ("ionic - (necrosis - cytotoxic)", I & ~(N & ~C)),
        ("ionic & necrosis - cytotoxic", I & N & ~C),
        ("ionic | necrosis - cytotoxic", I | (N & ~C)),
        ("((ionic))", I),
    ],
)
def test_expression_means_what_sets_mean(expression: str, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(combine(MASKS, expression), expected)


@pytest.mark.parametrize("expression", RoiParams().expressions)
def test_default_expressions_can_be_read(expression: str) -> None:
    assert set(names_in(expression)) <= set(MASKS)
    assert combine(MASKS, expression).dtype == np.bool_


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("ionik & necrosis", ["unknown region 'ionik'", "did you mean 'ionic'"]),
        ("ionic &", ["expected a name", "the end"]),
        ("(ionic", ["expected ')'"]),
        ("ionic necrosis", ["'necrosis' at character 7"]),
        ("", ["expected a name", "the end"]),
        ("ionic + necrosis", ["'+' at character 7"]),
        ("ionic & __import__", ["'_' at character 9"]),
        ("ionic)", ["')' at character 6"]),
    ],
)
def test_wrong_expression_is_explained(expression: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        combine(MASKS, expression)
    for word in words:
        assert word in str(caught.value)


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(GeometryError, match="different shapes"):
        combine({"a": np.ones((2, 2, 2)), "b": np.ones((2, 2, 3))}, "a & b")


def test_result_does_not_share_memory_with_the_mask() -> None:
    assert not np.shares_memory(combine(MASKS, "ionic"), I)


def ball(radius: float, centre: float = 15.0) -> np.ndarray:
    x, y, z = np.indices((31, 31, 31))
    return (x - centre) ** 2 + (y - 15) ** 2 + (z - 15) ** 2 <= radius**2


def test_average_lies_half_way_between_the_raters() -> None:
    mean = consensus([ball(6.0), ball(10.0)])
    radius = (3 * mean.sum() / (4 * np.pi)) ** (1 / 3)
    assert radius == pytest.approx(8.0, abs=0.15)


def test_consensus_rules_are_ordered() -> None:
    raters = [ball(7, 13), ball(7, 15), ball(7, 17)]
    least, mid, most = (consensus(raters, rule=rule) for rule in ("intersection", "majority", "union"))
    assert least.sum() < mid.sum() < most.sum()
    assert (least <= mid).all()
    assert (mid <= most).all()


def test_consensus_of_one_is_itself() -> None:
    np.testing.assert_array_equal(consensus([I]), I)
    np.testing.assert_array_equal(consensus([I, I, I]), I)


def test_empty_rater_leaves_the_decision_to_the_majority() -> None:
    empty = np.zeros((31, 31, 31), bool)
    assert not consensus([ball(5), empty]).any()
    np.testing.assert_array_equal(consensus([ball(5), ball(5), empty]), ball(5))


def test_consensus_refuses_nothing_and_unknown_rules() -> None:
    with pytest.raises(DataError, match="no rater"):
        consensus([])
    with pytest.raises(DataError, match="unknown consensus rule"):
        consensus([I, N], rule="mean")  # type: ignore[arg-type]


def test_agreement_of_shifted_balls() -> None:
    result = agreement(ball(8, 14), ball(8, 16), voxel_mm=(2.0, 2.0, 2.0))
    assert result.hausdorff95_mm == pytest.approx(4.0, abs=0.6)
    assert result.volume_a_ml == pytest.approx(ball(8).sum() * 0.008)
    assert result.volume_difference_ml == 0.0
    assert 0.7 < result.dice < 0.9


def test_agreement_with_nothing_has_no_distance() -> None:
    empty = np.zeros((31, 31, 31), bool)
    assert agreement(ball(5), empty).dice == 0.0
    assert np.isnan(agreement(ball(5), empty).hausdorff95_mm)
    assert np.isnan(agreement(empty, empty).dice)


def test_one_millilitre_rule() -> None:
    thousand = np.ones((10, 10, 10), bool)
    assert screen(thousand, 0.001).kept
    less = thousand.copy()
    less[0, 0, 0] = False
    verdict = screen(less, 0.001)
    assert not verdict.kept
    assert verdict.reason == "volume 0.999 mL is below 1 mL"
    assert screen(~thousand, 0.001).reason == "the region is empty"
    assert screen(less, 0.001, RoiParams(minimum_ml=0.5)).kept


def test_staple_trusts_the_raters_who_agree() -> None:
    rng = np.random.default_rng(0)
    truth = ball(8.0)
    edge = ball(9.5) & ~ball(6.5)
    good = [truth ^ (edge & (rng.random(truth.shape) < 0.05)) for _ in range(2)]
    careless = [truth ^ (edge & (rng.random(truth.shape) < 0.4)) for _ in range(3)]

    def wrong(rule: str) -> int:
        return int((consensus([*good, *careless], rule=rule) ^ truth).sum())

    assert wrong("staple") < wrong("majority")
    assert wrong("staple") < 0.5 * min(int((mask ^ truth).sum()) for mask in careless)
    np.testing.assert_array_equal(consensus([I, I, I], rule="staple"), I)
    empty = np.zeros_like(I)
    assert not consensus([empty, empty, empty], rule="staple").any()
