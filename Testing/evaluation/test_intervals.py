"""How often the intervals contain the true value, by simulation."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from LiverFibrosisStagingLib.evaluation import measures
from LiverFibrosisStagingLib.evaluation.cohort import binary_measures
from LiverFibrosisStagingLib.evaluation.comparing import auc_interval

RUNS = 300


def covered(found: dict, true: float) -> bool:
    return found["low"] <= true <= found["high"]


@pytest.mark.parametrize(
    ("cases", "positive", "shift"), [(120, 50, 1.5), (60, 12, 1.5), (60, 12, 2.5)]
)
def test_intervals_cover_the_true_values(cases, positive, shift):
    """AUCs 95 %, within the error of the simulations; shares less exactly, being counts."""
    rng, cut = np.random.default_rng(0), 0.75
    truth, patient = np.arange(cases) < positive, np.arange(cases)
    right = norm.sf(cut - shift), norm.cdf(cut)  # sensitivity and specificity
    true = {
        "auc": norm.cdf(shift / np.sqrt(2)),
        "sensitivity": right[0],
        "specificity": right[1],
        "accuracy": (positive * right[0] + (cases - positive) * right[1]) / cases,
    }
    hits = dict.fromkeys(true, 0)
    for seed in range(RUNS):
        score = rng.normal(truth * shift, 1)
        weights = measures.draw_patients(patient, 300, seed)
        found = binary_measures(truth, score, score >= cut, patient, weights)
        for name, value in true.items():
            hits[name] += covered(found[name], value)
    assert binom.ppf(0.001, RUNS, 0.94) <= hits["auc"] <= binom.ppf(0.999, RUNS, 0.97), hits
    assert min(hits.values()) >= binom.ppf(0.001, RUNS, 0.92), hits


def test_patients_with_several_cts_widen_the_interval():
    """Four equal CTs of each of 40 patients: as independent cases the interval is half as wide."""
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(40), 4)
    hits = naive = 0
    for seed in range(RUNS):
        right = np.repeat(rng.random(40) < 0.7, 4).astype(float)
        for who in (patient, np.arange(160)):
            weights = measures.draw_patients(who, 200, seed)
            found = measures.interval(lambda w, r=right: measures.mean(r, w), weights)
            hits += covered(found, 0.7) and who is patient
            naive += covered(found, 0.7) and who is not patient
    assert hits >= binom.ppf(0.001, RUNS, 0.93)
    assert naive < 0.8 * RUNS


def test_the_logit_interval_of_an_auc_by_hand_and_by_patient():
    truth, score = np.array([1, 1, 1, 0, 0], bool), np.array([3.0, 2.0, 0.5, 1.0, 0.0])
    above, below = np.array([1, 1, 0.5]), np.array([2 / 3, 1])  # placements; the AUC is 5/6
    variance = above.var(ddof=1) / 3 + below.var(ddof=1) / 2
    reach = 1.959964 * np.sqrt(variance) / (5 / 36)
    ends = [1 / (1 + np.exp(-(np.log(5) + sign * reach))) for sign in (-1, 1)]
    assert auc_interval(truth, score, np.arange(5)) == pytest.approx(ends, abs=1e-6)
    twice = auc_interval(np.tile(truth, 2), np.tile(score, 2), np.tile(np.arange(5), 2))
    assert twice == pytest.approx(ends, abs=1e-6)
    assert auc_interval(truth, truth.astype(float), np.arange(5)) is None


def test_a_share_of_all_cases_has_the_exact_lower_end():
    truth, score = np.arange(20) < 8, np.arange(20)[::-1].astype(float)
    weights = measures.draw_patients(np.arange(20), 50, 0)
    found = binary_measures(truth, score, truth, np.arange(20), weights)
    for name, count in (("auc", 8), ("sensitivity", 8), ("specificity", 12), ("accuracy", 20)):
        assert found[name] == pytest.approx({"value": 1, "low": 0.025 ** (1 / count), "high": 1})
    wrong = binary_measures(truth, -score, ~truth, np.arange(20), weights)
    assert wrong["sensitivity"] == pytest.approx(
        {"value": 0, "low": 0, "high": 1 - 0.025 ** (1 / 8)}
    )


def test_fewer_than_five_patients_have_no_interval():
    truth = np.arange(30) < 8
    patient = np.r_[np.arange(8) // 2, np.arange(8, 30)]  # four patients with two cases each
    score = np.random.default_rng(0).normal(truth, 1)
    weights = measures.draw_patients(patient, 50, 0)
    found = binary_measures(truth, score, score > 0, patient, weights)
    for name in ("auc", "sensitivity"):
        assert found[name]["value"] is not None
        assert found[name]["low"] is None and found[name]["high"] is None
    assert found["specificity"]["low"] is not None
