"""Location maps of a cohort: weights, tests, patterns and reference distributions."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("joblib")
pytest.importorskip("tqdm")
from staged_cohorts import staged_cohort

from evaluation import cohort_maps
from LiverFibrosisStagingLib.card import MAX_WEIGHT

REGIONS = ("liver", "liver_surface", "liver_core", "spleen", "rest")


@pytest.fixture(scope="module")
def cohort():
    return staged_cohort()


def case_with(**weights):
    """One case whose regions have the given mean weights."""
    case = staged_cohort(counts=(1, 0, 0, 0, 0), twice=0)[0]
    measurements = {
        region: {"mean": mean, "share": 0.1, "volume_ml": 100.0} for region, mean in weights.items()
    }
    return replace(case, measurements=measurements)


def test_patterns_are_those_of_the_paper():
    healthy = case_with(liver=1.0, liver_surface=2.0, liver_core=0.5, spleen=0.4, rest=0.8)
    cirrhosis = case_with(liver=1.5, liver_surface=1.2, liver_core=1.8, spleen=1.6, rest=0.8)
    assert cohort_maps.surface_over_core(healthy) == 4.0
    assert cohort_maps.surface_over_core(cirrhosis) < 1
    assert cohort_maps.organs_over_rest(healthy) == 0.5
    assert cohort_maps.organs_over_rest(cirrhosis) == 2.0
    only_liver = case_with(liver=1.5, liver_surface=1.2, liver_core=1.8, spleen=0.5, rest=0.8)
    assert cohort_maps.organs_over_rest(only_liver) < 1, "both organs must have a higher weight"


def test_missing_measurements_are_nan():
    no_spleen = case_with(liver=1.5, liver_surface=1.2, liver_core=1.8, rest=0.8)
    assert np.isnan(cohort_maps.organs_over_rest(no_spleen))
    assert not any(map(len, cohort_maps.grouped([no_spleen])["spleen"].values()))
    empty = case_with(**dict.fromkeys(REGIONS, 0.0))
    assert cohort_maps.is_empty(empty) and np.isnan(cohort_maps.surface_over_core(empty))
    assert not any(map(len, cohort_maps.grouped([empty])["liver"].values()))
    found = cohort_maps.analyse([empty, no_spleen])
    assert found["empty_maps"] == 1
    assert found["patterns"]["organs_over_rest"]["by_histology"]["F0"]["cases"] == 0


def test_mann_whitney_equals_counting_pairs(cohort):
    f0, f4 = (cohort_maps.grouped(cohort)["liver"][stage] for stage in ("F0", "F4"))
    wins = (f4[:, None] > f0[None]).sum() + 0.5 * (f4[:, None] == f0[None]).sum()
    found = cohort_maps.analyse(cohort)["f0_against_f4"]
    assert found["liver"]["u"] == wins
    assert found["liver"]["higher_in_f4"] == pytest.approx(wins / len(f0) / len(f4))
    assert found["liver"]["p"] < 0.001 < found["rest"]["p"]


def test_groups_of_fig_5_are_by_predicted_stage(cohort):
    found = cohort_maps.analyse(cohort)["weights_by_predicted_stage"]["liver"]
    for stage in (0, 4):
        values = [c.measurements["liver"]["mean"] for c in cohort if c.predicted == stage]
        described = found[f"F{stage}"]
        assert described["cases"] == len(values) != sum(c.stage == stage for c in cohort)
        assert described["median"] == pytest.approx(np.median(values))


def test_pattern_frequencies_have_exact_intervals(cohort):
    f4 = [case for case in cohort if case.stage == 4]
    one = cohort_maps.analyse(cohort)["patterns"]["organs_over_rest"]["by_histology"]["F4"]
    shown = sum(
        min(c.measurements["liver_core"]["mean"], c.measurements["spleen"]["mean"])
        > c.measurements["rest"]["mean"]
        for c in f4
    )
    assert (one["shown"], one["cases"]) == (shown, len(f4))
    from scipy.stats import beta

    low = beta.ppf(0.025, shown, len(f4) - shown + 1)
    assert one["low"] == pytest.approx(low) and one["low"] < one["frequency"] < one["high"]


def test_reference_is_by_predicted_stage_and_needs_five_cases(cohort):
    few = [case for case in cohort if case.predicted == 2][:4]
    cohort = [case for case in cohort if case.predicted != 2] + few
    found = cohort_maps.reference(cohort, "a simulated cohort")
    counts = np.bincount([case.predicted for case in cohort], minlength=5)
    assert set(found["stages"]) == {f"F{s}" for s in range(5) if counts[s] >= 5} != set()
    assert found["percentiles"] == [2.5, 25, 50, 75, 97.5]
    f4 = found["stages"]["F4"]
    assert f4["cases"] == counts[4] and set(f4) == {"cases", "joint", *REGIONS}
    values = [c.measurements["spleen"]["mean"] for c in cohort if c.predicted == 4]
    assert f4["spleen"] == pytest.approx(np.percentile(values, [2.5, 25, 50, 75, 97.5]), abs=1e-4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def simulated(cases, rng):
    """Skewed weights [regions, cases], correlated as those of organs that overlap."""
    mixed = rng.normal(size=(5, 3)) @ rng.normal(size=(3, cases)) + rng.normal(size=(5, cases))
    return np.exp(mixed * np.array([0.1, 0.2, 0.3, 0.5, 0.2])[:, None])


def outside(bounds, weights):
    """Share of the cases with any region outside of the bounds."""
    low, high = np.array(list(bounds.values())).T[..., None]
    return ((weights < low) | (weights > high)).any(axis=0).mean()


@pytest.mark.parametrize("count", [20, 50, 200])
def test_five_percent_of_further_cases_are_outside_the_joint_bounds(count):
    """The share has a standard error of 0.7 % for 50 cohorts of 20 cases, and less for larger."""
    rng = np.random.default_rng(count)
    further, own, alone = [], [], []
    for _ in range(50):
        both = simulated(count + 1000, rng)
        weights, others = dict(zip(REGIONS, both[:, :count])), both[:, count:]
        bounds = cohort_maps.joint_bounds(weights)
        further.append(outside(bounds, others))
        own.append(outside(bounds, both[:, :count]))
        each = np.percentile(both[:, :count], (2.5, 97.5), axis=1).T
        alone.append(outside(dict(zip(REGIONS, each)), others))
    assert 0.03 < np.mean(further) < 0.065
    assert np.mean(own) < 0.055
    assert np.mean(alone) > 0.12, "each region by itself leaves out more"


def test_joint_bounds_by_hand():
    """Ten cases of one region: the limit is the most distant case's, by the quartiles of others."""
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 30])
    (low, high) = cohort_maps.joint_bounds({"rest": values})["rest"]
    limit = (30 - 5) / 2  # of 1 to 9, the median is 5 and the upper quartile 7
    assert (low, high) == pytest.approx((0, 5.5 + limit * (7.75 - 5.5)))


def test_joint_bounds_of_nearly_equal_weights_are_those_a_model_file_may_have():
    """As of a hardly trained network, whose maps hardly differ."""
    bounds = cohort_maps.joint_bounds({"rest": np.array([1.0, 1, 1, 1, 1.1, 1.1])})["rest"]
    assert bounds == [0.9, MAX_WEIGHT]


def test_reference_without_spleen_masks_has_no_spleen():
    stages = cohort_maps.reference(staged_cohort(spleens=False), "no spleens")["stages"]
    assert stages
    assert all("spleen" not in {*stage, *stage["joint"]} for stage in stages.values())


def test_rows_have_every_region(cohort):
    row = cohort_maps.rows(cohort)[0]
    assert {f"{r}_{what}" for r in REGIONS for what in ("mean", "share", "volume_ml")} < set(row)
    assert (row["stage"], row["name"]) == ("F0", "case000")
