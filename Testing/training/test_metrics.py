"""Performance measures against scikit-learn, a plain bootstrap and simulations."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("joblib")
pytest.importorskip("tqdm")
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    recall_score,
    roc_auc_score,
)
from staged_cohorts import staged_cohort

from evaluation import metrics
from evaluation.metrics import Predictions
from LiverFibrosisStagingLib.stages import GROUPS, softmax


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    cases = staged_cohort()
    return Predictions.of(cases, {case.name: n % 5 for n, case in enumerate(cases)})


@pytest.fixture(scope="module")
def test_cohort() -> Predictions:
    return Predictions.of(staged_cohort(seed=5))


POINTS = {"significant": 0.4, "advanced": 0.3, "cirrhosis": 0.2}


def test_measures_equal_those_of_scikit_learn(test_cohort):
    found = metrics.tested(test_cohort, 1.3, POINTS, repeats=50)
    stage, probabilities = test_cohort.stage, softmax(test_cohort.logits, 1.3)
    for name, first in GROUPS.items():
        truth, score = stage >= first, probabilities[:, first:].sum(axis=1)
        positive, ours = score >= POINTS[name], found["groups"][name]
        expected = {
            "auc": roc_auc_score(truth, score),
            "sensitivity": recall_score(truth, positive),
            "specificity": recall_score(~truth, ~positive),
            "accuracy": accuracy_score(truth, positive),
            "brier": brier_score_loss(truth, np.clip(score, 0, 1)),
        }
        for key, value in expected.items():
            assert ours[key]["value"] == pytest.approx(value, abs=1e-12), (name, key)
            assert ours[key]["low"] <= value <= ours[key]["high"]
    # The median: the first stage with a cumulative probability of one half.
    stages, predicted = found["stages"], (probabilities.cumsum(axis=1) >= 0.5).argmax(axis=1)
    assert stages["confusion"] == confusion_matrix(stage, predicted, labels=range(5)).tolist()
    kappa = cohen_kappa_score(stage, predicted, weights="quadratic")
    assert stages["quadratic_kappa"]["value"] == pytest.approx(kappa)
    one_against_all = roc_auc_score(stage, probabilities, multi_class="ovr", average="macro")
    assert stages["macro_auc"]["value"] == pytest.approx(one_against_all)
    micro = roc_auc_score(np.eye(5)[stage], probabilities, average="micro")
    assert stages["micro_auc"]["value"] == pytest.approx(micro)
    assert (found["cases"], found["patients"]) == (252, 250)


def test_weighted_measures_equal_those_of_repeated_cases(test_cohort):
    rng = np.random.default_rng(0)
    weights = metrics.draw_patients(test_cohort.patient, 3, seed=1)
    stage, score = test_cohort.stage, rng.normal(test_cohort.stage, 2).round(1)  # with ties
    predicted = test_cohort.logits.argmax(axis=1)  # any labels do
    areas = metrics.auc(stage >= 3, score, weights)
    kappas = metrics.quadratic_kappa(metrics.confusion(stage, predicted, weights))
    for count, area, kappa in zip(weights.astype(int), areas, kappas):
        again = np.repeat(np.arange(len(stage)), count)
        assert area == pytest.approx(roc_auc_score(stage[again] >= 3, score[again]))
        expected = cohen_kappa_score(stage[again], predicted[again], weights="quadratic")
        assert kappa == pytest.approx(expected)


def test_both_scans_of_a_patient_are_drawn_together():
    weights = metrics.draw_patients(np.array(["a", "b", "a", "c"]), 200, seed=0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert set(weights[:, 0]) == {0, 1, 2, 3}


def test_bootstrap_intervals_cover_the_truth():
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    shift, cut = 1.5, 0.75
    truth = np.arange(120) < 50
    aucs, sensitivities = [], []
    for seed in range(300):
        score = rng.normal(truth * shift, 1)
        weights = metrics.draw_patients(np.arange(120), 300, seed)
        area = metrics.interval(lambda w, s=score: metrics.auc(truth, s, w), weights)
        share = metrics.interval(
            lambda w, s=score: metrics._mean((s >= cut).astype(float), w * truth), weights
        )
        aucs.append(area["low"] <= norm.cdf(shift / np.sqrt(2)) <= area["high"])
        sensitivities.append(share["low"] <= norm.sf(cut - shift) <= share["high"])
    # 95 %, within the error of 300 simulations; percentile intervals are known to be too short.
    assert 0.90 <= np.mean(aucs) <= 0.985
    assert 0.90 <= np.mean(sensitivities) <= 0.985


def test_delong_agrees_with_scikit_learn_and_the_bootstrap():
    rng = np.random.default_rng(3)
    truth = np.arange(200) < 80
    shared = rng.normal(0, 0.7, 200)
    first = (truth * 1.6 + shared + rng.normal(0, 0.7, 200)).round(1)  # with ties
    second = (truth * 1.2 + shared + rng.normal(0, 0.7, 200)).round(1)
    found = metrics.delong(truth, first, second)
    assert found.first == pytest.approx(roc_auc_score(truth, first))
    assert found.second == pytest.approx(roc_auc_score(truth, second))
    assert found.difference == pytest.approx(found.first - found.second)
    # Stratified samples, because DeLong's variance is for fixed class sizes.
    again = np.hstack(
        [
            rng.multinomial(80, np.full(80, 1 / 80), 4000),
            rng.multinomial(120, np.full(120, 1 / 120), 4000),
        ]
    ).astype(float)
    differences = metrics.auc(truth, first, again) - metrics.auc(truth, second, again)
    error = (found.high - found.low) / (2 * 1.959964)
    assert error == pytest.approx(differences.std(), rel=0.08)
    swapped = metrics.delong(truth, second, first)
    assert swapped.p == pytest.approx(found.p)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_delong_has_its_nominal_level_and_detects_a_difference():
    rng = np.random.default_rng(0)
    truth = np.arange(150) < 60
    ps = []
    for _ in range(400):
        shared = truth + rng.normal(0, 0.6, 150)
        first, second = shared + rng.normal(0, 0.8, (2, 150))
        ps.append(metrics.delong(truth, first, second).p)
    assert 0.025 <= np.mean(np.array(ps) < 0.05) <= 0.08
    good, bad = truth + rng.normal(0, 0.4, 150), rng.normal(0, 1, 150)
    assert metrics.delong(truth, good, bad).p < 1e-4
    same = metrics.delong(truth, good, 3 * good)
    assert (same.difference, same.p) == (0, 1)
    with pytest.raises(ValueError, match="two cases"):
        metrics.delong(np.arange(150) < 1, good, bad)


def test_a_known_temperature_is_recovered():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6000, 5))
    cumulative = softmax(logits).cumsum(axis=1)
    stage = (rng.random((6000, 1)) > cumulative[:, :-1]).sum(axis=1)  # drawn from the softmax
    assert metrics.fit_temperature(logits, stage) == pytest.approx(1, abs=0.05)
    assert metrics.fit_temperature(3 * logits, stage) == pytest.approx(3, abs=0.15)
    score = softmax(logits)[:, 2:].sum(axis=1)
    assert metrics.expected_calibration_error(stage >= 2, score) < 0.03
    overconfident = softmax(3 * logits)[:, 2:].sum(axis=1)
    assert metrics.expected_calibration_error(stage >= 2, overconfident) > 0.06


def test_youden_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    truth = np.arange(60) < 25
    score = truth + rng.normal(0, 1, 60)

    def index(cut):
        return (score[truth] >= cut).mean() + (score[~truth] < cut).mean()

    assert index(metrics.youden(truth, score)) == max(map(index, np.append(score, np.inf)))
    assert metrics.youden(np.ones(4, bool), np.arange(4.0)) == 0.5


def test_a_folds_calibration_does_not_depend_on_its_own_stages(predictions):
    fold = predictions.fold == 2
    inverted = Predictions(
        **{**vars(predictions), "stage": np.where(fold, 4 - predictions.stage, predictions.stage)}
    )
    before, about = metrics.calibrate_folds(predictions)
    after, about_inverted = metrics.calibrate_folds(inverted)
    assert about[2]["operating_points"] == about_inverted[2]["operating_points"]
    assert about[2]["temperature"] == about_inverted[2]["temperature"]
    assert (before.probabilities[fold] == after.probabilities[fold]).all()
    assert all((before.positive[n][fold] == after.positive[n][fold]).all() for n in GROUPS)
    assert about[0]["temperature"] != about_inverted[0]["temperature"]


def test_the_exported_calibration_is_from_all_folds(predictions):
    found = metrics.cross_validated(predictions, repeats=50)
    whole = metrics.fit_temperature(predictions.logits, predictions.stage)
    assert found["temperature"] == whole
    score = softmax(predictions.logits, whole)[:, 4]
    cut = metrics.youden(predictions.stage >= 4, score)
    assert found["operating_points"]["cirrhosis"] == pytest.approx(cut)
    assert [fold["cases"] for fold in found["folds"]] == [51, 51, 50, 50, 50]
    with pytest.raises(ValueError, match="two folds"):
        metrics.cross_validated(Predictions.of(staged_cohort()))


def test_shuffled_stages_give_aucs_at_chance_level(predictions):
    stage = np.random.default_rng(0).permutation(predictions.stage)
    found = metrics.cross_validated(Predictions(**{**vars(predictions), "stage": stage}), 200)
    for group in found["groups"].values():
        assert group["auc"]["low"] < 0.5 < group["auc"]["high"]


def test_measures_without_a_class_are_none():
    cohort = Predictions.of(staged_cohort(counts=(6, 2, 1, 0, 0), twice=0))
    found = metrics.tested(cohort, 1.0, POINTS, repeats=20)
    assert found["groups"]["cirrhosis"]["auc"] == {"value": None, "low": None, "high": None}
    assert found["groups"]["cirrhosis"]["sensitivity"]["value"] is None
    assert found["groups"]["significant"]["auc"]["value"] is not None
