"""Placing among published groups: percentiles against scipy, and the sentences."""

import numpy as np
import pytest
from scipy import stats

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.signs.measure import MeasuredSigns, Measurement, SteatosisHint
from LiverFibrosisStagingLib.signs.placing import (
    distribution,
    percentile,
    place,
    place_signs,
    strips,
)
from LiverFibrosisStagingLib.signs.published import published_signs

GROUPS = published_signs().groups


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g.sign.key}-{g.source.key}-{g.group}")
def test_percentiles_are_those_of_the_distribution_with_this_mean_and_sd(group):
    if group.sign.shape == "normal":
        expected = stats.norm(group.mean, group.sd)
    else:
        sigma = np.sqrt(np.log1p((group.sd / group.mean) ** 2))
        expected = stats.lognorm(s=sigma, scale=group.mean / np.exp(sigma**2 / 2))
    assert (expected.mean(), expected.std()) == pytest.approx((group.mean, group.sd))
    for value in group.mean * np.array([0.05, 0.5, 0.9, 1.0, 1.4, 3.0, 20.0]):
        assert percentile(group, value) == pytest.approx(100 * expected.cdf(value), abs=1e-9)
        assert distribution(group).density(value) == pytest.approx(expected.pdf(value), rel=1e-9)
    for share in (0.05, 0.5, 0.95):
        assert distribution(group).quantile(share) == pytest.approx(expected.ppf(share))


def test_skewed_groups_have_their_median_below_the_mean():
    spleen = next(g for g in GROUPS if (g.sign.key, g.group) == ("spleen_volume_ml", "F3"))
    assert percentile(spleen, spleen.mean) > 60
    nodularity = next(g for g in GROUPS if g.sign.key == "nodularity_mm10")
    assert percentile(nodularity, nodularity.mean) == pytest.approx(50)


@pytest.mark.parametrize(
    ("key", "value", "sentences"),
    [
        (
            "spleen_volume_ml",
            720,
            [
                "Spleen 720 mL: above 95 % of F0 to F2, within the range of F3 to F4.",
                "Spleen 720 mL: above the 95 % interval of healthy donors (81 to 322 mL).",
            ],
        ),
        (
            "spleen_volume_ml",
            200,
            [
                "Spleen 200 mL: below 95 % of F4, within the range of F0 to F3.",
                "Spleen 200 mL: within the 95 % interval of healthy donors (81 to 322 mL).",
            ],
        ),
        (
            "spleen_volume_ml",
            3000,
            [
                "Spleen 3000 mL: above 95 % of F0 to F4.",
                "Spleen 3000 mL: above the 95 % interval of healthy donors (81 to 322 mL).",
            ],
        ),
        (
            "liver_volume_ml",
            600,
            [
                "Liver 600 mL: below 95 % of F0 and F4.",
                "Liver 600 mL: below the 95 % interval of healthy donors (824 to 1700 mL).",
            ],
        ),
        (
            "lsvr",
            0.4,
            [
                "Liver segmental volume ratio 0.40: above 95 % of F0 to F1, within the range of "
                "F2 to F4.",
                "Liver segmental volume ratio 0.40: above 95 % of patients without cirrhosis, "
                "within the range of patients with cirrhosis.",
            ],
        ),
        (
            "spleen_liver_ratio",
            0.5,
            [
                "Spleen-to-liver ratio 0.500: above the 95 % interval of healthy donors "
                "(0.073 to 0.253).",
            ],
        ),
    ],
)
def test_sentences(key, value, sentences):
    assert [placement.sentence for placement in place(key, value)] == sentences


@pytest.mark.parametrize(
    ("value", "where"), [(322.4, "within"), (322.6, "above"), (80.6, "within"), (80.4, "below")]
)
def test_limits_are_compared_as_they_are_written(value, where):
    (_, donors) = place("spleen_volume_ml", value)
    assert f" mL: {where} the 95 % interval" in donors.sentence


def test_neighbouring_stages_are_a_range_and_others_are_named():
    # The SD of F2 is so large that 100 mL is within its range only.
    (stages, _) = place("spleen_volume_ml", 100)
    assert "below 95 % of F0 to F1 and F3 to F4, within the range of F2." in stages.sentence


def test_a_placement_holds_every_group_of_its_source():
    stages, donors = place("spleen_volume_ml", 500)
    assert [each.group.group for each in stages.percentiles] == ["F0", "F1", "F2", "F3", "F4"]
    assert {each.group.source for each in stages.percentiles} == {stages.source}
    assert donors.percentiles == () and donors.interval.high == 322
    assert stages.interval is None


def test_nodularity_and_signs_without_groups_are_not_placed():
    assert place("nodularity_mm10", 3.0) == ()
    assert place("liver_mean_hu", 100.0) == ()


@pytest.mark.parametrize("value", [0.0, -3.0, float("nan"), float("inf")])
def test_values_that_no_volume_has_are_refused(value):
    with pytest.raises(StagingError, match="a number above 0 is needed"):
        place("spleen_volume_ml", value)


def test_a_ratio_that_is_not_a_number_and_an_unknown_sign_are_refused():
    with pytest.raises(StagingError, match="a number is needed"):
        place("spleen_liver_ratio", float("nan"))
    with pytest.raises(StagingError, match="No sign is called"):
        place("spleen", 100)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (580, ("at least 580 mL: above 95 % of F0.", "at least 580 mL: above the 95 %")),
        (
            200,
            ("at least 200 mL: not placed, since only part", "at least 200 mL: not placed, since"),
        ),
    ],
)
def test_an_organ_that_is_cut_off_is_placed_by_what_it_exceeds(value, words):
    placed = place("spleen_volume_ml", value, at_least=True)
    assert all(each.at_least for each in placed)
    for placement, text in zip(placed, words, strict=True):
        assert placement.sentence.startswith(f"Spleen {text}")


@pytest.fixture
def measured():
    return MeasuredSigns(
        (
            Measurement("spleen_volume_ml", None, "cut off", at_least=580.0),
            Measurement("liver_volume_ml", 1500.0),
            Measurement("lsvr", None, "Segments are needed."),
            Measurement("nodularity_mm10", 2.9),
            Measurement("nodularity_edge_mm", 900.0),
        ),
        SteatosisHint(False, None, ""),
    )


def test_all_signs_are_placed_lower_bounds_included(measured):
    expected = [*place("spleen_volume_ml", 580.0, at_least=True), *place("liver_volume_ml", 1500.0)]
    assert list(place_signs(measured)) == expected


def test_strips_hold_what_a_report_draws(measured):
    found = strips(measured)
    drawn = [(s.sign.key, s.source.key, len(s.groups), s.interval is not None) for s in found]
    assert drawn == [
        ("spleen_volume_ml", "pickhardt_2017", 5, False),
        ("spleen_volume_ml", "kim_2021", 0, True),
        ("liver_volume_ml", "pickhardt_2017", 2, False),
        ("liver_volume_ml", "kim_2021", 0, True),
        ("lsvr", "pickhardt_2017", 5, False),
        ("lsvr", "furusato_hunt_2016", 2, False),
        ("nodularity_mm10", "nodularity_hcv", 0, False),
    ]
    assert [strip.placement for strip in found if strip.placement] == list(place_signs(measured))
    lsvr = next(strip for strip in found if strip.sign.key == "lsvr")
    assert lsvr.placement is None and lsvr.measurement.reason == "Segments are needed."
    assert found[-1].placement is None and "another program" in found[-1].sign.remark
    for strip in found:
        for group, curve in strip.groups:
            assert curve == distribution(group)
