"""Measures against scikit-learn and plain sums over cases and pairs."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, cohen_kappa_score, roc_auc_score

from LiverFibrosisStagingLib.evaluation import measures
from LiverFibrosisStagingLib.evaluation.cohort import cohort_measures
from LiverFibrosisStagingLib.stages import GROUPS, median_stage, softmax


class Cohort(NamedTuple):
    stage: np.ndarray
    logits: np.ndarray
    patient: np.ndarray


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """120 cases, the last 20 of them second CTs."""
    rng = np.random.default_rng(4)
    stage = rng.integers(0, 5, 120)
    severity = stage + rng.normal(0, 1, 120)
    logits = -((np.arange(5) - severity[:, None]) ** 2) / 2
    return Cohort(stage, logits, np.r_[np.arange(100), np.arange(20)])


def ones(count: int) -> np.ndarray:
    return np.ones((1, count))


def test_weighted_measures_equal_those_of_repeated_cases(cohort):
    rng = np.random.default_rng(0)
    weights = measures.draw_patients(cohort.patient, 3, seed=1)
    stage, score = cohort.stage, rng.normal(cohort.stage, 2).round(1)  # with ties
    predicted = cohort.logits.argmax(axis=1)  # any labels do
    areas = measures.auc(stage >= 3, score, weights)
    kappas = measures.quadratic_kappa(measures.confusion(stage, predicted, weights))
    for count, area, kappa in zip(weights.astype(int), areas, kappas):
        again = np.repeat(np.arange(len(stage)), count)
        assert area == pytest.approx(roc_auc_score(stage[again] >= 3, score[again]))
        expected = cohen_kappa_score(stage[again], predicted[again], weights="quadratic")
        assert kappa == pytest.approx(expected)


def test_both_scans_of_a_patient_are_drawn_together():
    weights = measures.draw_patients(np.array(["a", "b", "a", "c"]), 200, seed=0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert set(weights[:, 0]) == {0, 1, 2, 3}


def test_youden_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    truth = np.arange(60) < 25
    score = truth + rng.normal(0, 1, 60)

    def index(cut):
        return (score[truth] >= cut).mean() + (score[~truth] < cut).mean()

    assert index(measures.youden(truth, score)) == max(map(index, np.append(score, np.inf)))
    assert measures.youden(np.ones(4, bool), np.arange(4.0)) == 0.5


def test_measures_of_a_cohort_equal_those_of_scikit_learn(cohort):
    probabilities = softmax(cohort.logits)
    scores = measures.group_probabilities(probabilities)
    predicted = median_stage(probabilities)
    positive = {name: score >= 0.4 for name, score in scores.items()}
    found = cohort_measures(cohort.stage, probabilities, predicted, positive, cohort.patient, 20)
    kappa = cohen_kappa_score(cohort.stage, predicted, weights="quadratic")
    assert found["stages"]["quadratic_kappa"]["value"] == pytest.approx(kappa)
    assert (found["cases"], found["patients"]) == (120, 100)
    for name, first in GROUPS.items():
        truth, score, group = cohort.stage >= first, scores[name], found["groups"][name]
        assert group["auc"]["value"] == pytest.approx(roc_auc_score(truth, score))
        brier = brier_score_loss(truth, np.clip(score, 0, 1))
        assert group["brier"]["value"] == pytest.approx(brier)
        observed, mean = calibration_curve(truth, np.clip(score, 0, 1), n_bins=10)
        assert [one["frequency"] for one in group["reliability"]] == pytest.approx(observed)
        assert [one["probability"] for one in group["reliability"]] == pytest.approx(mean)


def test_obuchowski_by_brute_force_over_pairs(cohort):
    score = cohort.stage + np.random.default_rng(1).normal(0, 2, 120).round(1)  # with ties
    lost = pairs = 0.0
    for a, b in combinations(range(120), 2):
        low, high = sorted((a, b), key=lambda case: cohort.stage[case])
        apart = cohort.stage[high] - cohort.stage[low]
        if apart:
            wrong = float(score[low] > score[high]) + 0.5 * float(score[low] == score[high])
            lost += apart / 4 * wrong
            pairs += 1
    found = measures.obuchowski(cohort.stage, score, ones(120))[0]
    assert found == pytest.approx(1 - lost / pairs)


def test_obuchowski_as_the_weighted_mean_of_pairwise_areas():
    """By its equation: stages 0, 1 and 4 with 2, 1 and 2 cases."""
    stage, score = np.array([0, 0, 1, 4, 4]), np.array([0.1, 0.5, 0.3, 0.2, 0.9])
    # Areas: 1 against 0: 1/2; 4 against 0: (1 + 0 + 1 + 1)/4; 4 against 1: 1/2. Pairs: 2, 4, 2.
    expected = 1 - (2 / 8 * 0.25 * 0.5 + 4 / 8 * 1.0 * 0.25 + 2 / 8 * 0.75 * 0.5)
    assert measures.obuchowski(stage, score, ones(5))[0] == pytest.approx(expected)
    # A case drawn twice counts as two.
    again = measures.obuchowski(np.append(stage, 4), np.append(score, 0.2), ones(6))
    weighted = measures.obuchowski(stage, score, np.array([[1.0, 1, 1, 2, 1]]))
    assert weighted == pytest.approx(again)
    assert np.isnan(measures.obuchowski(np.array([2, 2]), np.array([0.1, 0.2]), ones(2))[0])


def test_net_benefit_by_hand():
    truth = np.array([True, True, False, False, False])
    probability = np.array([0.9, 0.4, 0.5, 0.2, 0.1])
    found = measures.net_benefit(truth, probability, np.array([0.3, 0.5, 0.95]))
    # 0.3: 2 true, 1 false positive; 0.5: 1 and 1; 0.95: none.
    assert found == pytest.approx([2 / 5 - 1 / 5 * 3 / 7, 1 / 5 - 1 / 5, 0])
    everyone = measures.net_benefit(truth, np.ones(5), np.array([0.4]))
    assert everyone == pytest.approx([0.4 - 0.6 * 2 / 3])


def test_calibration_line_is_recovered_and_equals_the_likelihoods_maximum():
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 1.5, 20000)
    truth = rng.random(20000) < 1 / (1 + np.exp(-logit))
    extreme = 1 / (1 + np.exp(-2 * logit))
    line = measures.calibration_line(truth, extreme)
    assert line.slope == pytest.approx(0.5, abs=0.02)
    assert line.intercept == pytest.approx(0, abs=0.06)
    low = measures.calibration_line(truth, 1 / (1 + np.exp(1 - logit)))
    assert (low.intercept, low.slope) == pytest.approx((1, 1), abs=0.05)
    few, x = truth[:200], logit[:200]
    fitted = LogisticRegression(C=1e12, tol=1e-10, max_iter=5000).fit(x[:, None], few)
    found = measures.calibration_line(few, 1 / (1 + np.exp(-x)))
    assert found.slope == pytest.approx(fitted.coef_[0, 0], rel=1e-4)
    separated = measures.calibration_line(np.arange(6) > 2, np.arange(1, 7) / 10)
    assert separated.slope is None and separated.intercept is not None
    assert measures.calibration_line(np.ones(4, bool), np.full(4, 0.5)) == (None, None)


def test_what_is_not_defined_is_none():
    probabilities = np.full((3, 5), 0.2)
    stage = np.array([2, 2, 2])
    positive = dict.fromkeys(GROUPS, np.ones(3, bool))
    found = cohort_measures(stage, probabilities, stage, positive, np.arange(3), 20)
    nothing = {"value": None, "low": None, "high": None}
    assert found["groups"]["cirrhosis"]["auc"] == nothing
    assert found["groups"]["cirrhosis"]["sensitivity"] == nothing
    assert found["groups"]["cirrhosis"]["specificity"]["value"] == 0
    assert found["groups"]["cirrhosis"]["calibration"] == {"intercept": None, "slope": None}
    assert found["stages"]["obuchowski"] == nothing
    assert found["stages"]["quadratic_kappa"] == nothing
    assert found["stages"]["macro_auc"] == nothing
