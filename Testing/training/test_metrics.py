"""Measures of a cross-validation and of a test cohort against scikit-learn; calibration by fold."""

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
from LiverFibrosisStagingLib.evaluation.measures import expected_calibration_error, youden
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


def test_a_known_temperature_is_recovered():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6000, 5))
    cumulative = softmax(logits).cumsum(axis=1)
    stage = (rng.random((6000, 1)) > cumulative[:, :-1]).sum(axis=1)  # drawn from the softmax
    assert metrics.fit_temperature(logits, stage) == pytest.approx(1, abs=0.05)
    assert metrics.fit_temperature(3 * logits, stage) == pytest.approx(3, abs=0.15)
    score = softmax(logits)[:, 2:].sum(axis=1)
    assert expected_calibration_error(stage >= 2, score) < 0.03
    overconfident = softmax(3 * logits)[:, 2:].sum(axis=1)
    assert expected_calibration_error(stage >= 2, overconfident) > 0.06


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
    cut = youden(predictions.stage >= 4, score)
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
