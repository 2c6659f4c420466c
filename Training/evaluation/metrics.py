"""Performance measures with 95 % intervals.

Yin et al. 2021, "Evaluation metrics" and Table 2: AUC, sensitivity, specificity and accuracy for
significant (F2-F4) and advanced (F3-F4) fibrosis and cirrhosis (F4), micro- and macro-averaged ROC.
Added: confusion matrix, quadratic-weighted kappa, calibration, DeLong's comparison of two models.

Thresholds and temperature are never chosen on the cases they are evaluated on. In cross-validation
the operating points (Youden's index) and the temperature of a fold are determined on the
out-of-fold predictions of the other folds; for a test cohort they are taken from the model.

Every measure is a function of case weights [repeats, cases]. Weights of 1 give its value; for the
bootstrap over patients, a case is weighted with the number of times its patient was drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_curve

from common.calibration import fit_temperature
from evaluation.staged import Staged
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, median_stage, softmax

TEST = -1  # fold number of the cases of a test cohort
BINS = 10  # of equal width, for reliability and expected calibration error
INTERVAL = "95 % percentile interval, bootstrap over patients"

# Table 2 of Yin et al. 2021: value, lower and upper end of the 95 % interval.
PAPER_TABLE_2 = {
    "significant": {
        "auc": (0.92, 0.86, 0.97),
        "specificity": (0.917, 0.820, 0.968),
        "sensitivity": (0.830, 0.717, 0.947),
        "accuracy": (0.883, 0.815, 0.945),
    },
    "advanced": {
        "auc": (0.89, 0.83, 0.96),
        "specificity": (0.882, 0.778, 0.956),
        "sensitivity": (0.795, 0.682, 0.925),
        "accuracy": (0.852, 0.770, 0.920),
    },
    "cirrhosis": {
        "auc": (0.88, 0.79, 0.94),
        "specificity": (0.865, 0.789, 0.944),
        "sensitivity": (0.751, 0.565, 0.867),
        "accuracy": (0.833, 0.762, 0.900),
    },
}

Measure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for n cases.

    patient, name: str [n]. stage: int [n], 0..4 by histology. fold: int [n], the fold that tests
    the case, or -1 for a test cohort. logits: float64 [n, 5], before temperature scaling.
    """

    patient: np.ndarray
    name: np.ndarray
    stage: np.ndarray
    fold: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, staged: Sequence[Staged], folds: Mapping[str, int] | None = None) -> "Predictions":
        """Predictions of staged cases. folds: case name -> fold; None for a test cohort."""
        return cls(
            patient=np.array([case.patient for case in staged]),
            name=np.array([case.name for case in staged]),
            stage=np.array([case.stage for case in staged], int),
            fold=np.array([TEST if folds is None else folds[case.name] for case in staged], int),
            logits=np.array([case.logits for case in staged], np.float64).reshape(-1, len(STAGES)),
        )


class Calibrated(NamedTuple):
    """Calibrated probabilities [n, 5], and group -> whether each case is positive [n]."""

    probabilities: np.ndarray
    positive: dict[str, np.ndarray]


class DeLong(NamedTuple):
    """Two models' AUCs on the same cases, their difference with its 95 % interval, and p."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def cross_validated(predictions: Predictions, repeats: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Measures of out-of-fold predictions, as written to metrics.json.

    `temperature` and `operating_points` are those of the exported model, from all folds. The
    measures are computed with those in `folds`, each determined without its own fold. Raises
    ValueError for fewer than two folds.
    """
    calibrated, folds = calibrate_folds(predictions)
    temperature = fit_temperature(predictions.logits, predictions.stage)
    exported = group_probabilities(softmax(predictions.logits, temperature))
    found = _measures(predictions, calibrated, repeats, seed)
    return {
        "evaluation": f"{len(folds)}-fold cross-validation, out-of-fold predictions pooled",
        "temperature": temperature,
        "operating_points": {
            name: youden(predictions.stage >= GROUPS[name], exported[name]) for name in GROUPS
        },
        **found,
        "folds": folds,
    }


def tested(
    predictions: Predictions,
    temperature: float,
    operating_points: Mapping[str, float],
    repeats: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures on a test cohort, as written to metrics.json.

    temperature, operating_points (group -> lowest probability of a positive case): of the model.
    """
    calibrated = calibrate(predictions, temperature, operating_points)
    return {
        "evaluation": "test cohort",
        "temperature": float(temperature),
        "operating_points": {name: float(operating_points[name]) for name in GROUPS},
        **_measures(predictions, calibrated, repeats, seed),
    }


def calibrate(
    predictions: Predictions, temperature: float, operating_points: Mapping[str, float]
) -> Calibrated:
    """Apply a temperature and operating points to predictions."""
    probabilities = softmax(predictions.logits, temperature)
    scores = group_probabilities(probabilities)
    return Calibrated(
        probabilities, {name: scores[name] >= operating_points[name] for name in GROUPS}
    )


def calibrate_folds(predictions: Predictions) -> tuple[Calibrated, list[dict[str, Any]]]:
    """Apply to each fold the temperature and operating points determined on the other folds.

    Also returns temperature, operating points and AUCs of each fold (None if it lacks a class).
    """
    folds = np.unique(predictions.fold)
    if len(folds) < 2:
        raise ValueError("Cross-validation needs predictions of two folds or more.")
    probabilities = np.zeros_like(predictions.logits)
    positive = {name: np.zeros(len(predictions.stage), bool) for name in GROUPS}
    about = []
    for fold in folds:
        own, other = predictions.fold == fold, predictions.fold != fold
        temperature = fit_temperature(predictions.logits[other], predictions.stage[other])
        probabilities[own] = softmax(predictions.logits[own], temperature)
        chosen = group_probabilities(softmax(predictions.logits[other], temperature))
        scores = group_probabilities(probabilities[own])
        points, aucs = {}, {}
        for name, first in GROUPS.items():
            points[name] = youden(predictions.stage[other] >= first, chosen[name])
            positive[name][own] = scores[name] >= points[name]
            ones = np.ones((1, int(own.sum())))
            aucs[name] = _number(auc(predictions.stage[own] >= first, scores[name], ones)[0])
        about.append(
            {
                "fold": int(fold),
                "cases": int(own.sum()),
                "temperature": temperature,
                "operating_points": points,
                "auc": aucs,
            }
        )
    return Calibrated(probabilities, positive), about


def group_probabilities(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Group -> its probability [n], from the stages' probabilities [n, 5]."""
    return {name: probabilities[:, first:].sum(axis=1) for name, first in GROUPS.items()}


def youden(truth: np.ndarray, score: np.ndarray) -> float:
    """Lowest score of a positive case, by maximum sensitivity + specificity (Youden 1950).

    Halfway between that score and the next lower one that occurs; 0.5 if `truth` has one class.
    """
    if truth.all() or not truth.any():
        return 0.5
    false_positives, true_positives, thresholds = roc_curve(truth, score, drop_intermediate=False)
    best = 1 + int((true_positives - false_positives)[1:].argmax())  # the first is infinite
    return float(thresholds[best : best + 2].mean())


def delong(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> DeLong:
    """Compare the AUCs of two scores [n] of the same cases; `truth` is bool [n].

    DeLong et al. 1988, Biometrics 44:837-845, by midranks (Sun and Xu 2014, IEEE Signal Processing
    Letters 21:1389-1393). Cases are treated as independent, including two scans of a patient.
    Raises ValueError if a class has fewer than two cases.
    """
    truth = np.asarray(truth, bool)
    scores = np.array([first, second], np.float64)
    positive, negative = scores[:, truth], scores[:, ~truth]
    m, n = positive.shape[1], negative.shape[1]
    if min(m, n) < 2:
        raise ValueError("DeLong's comparison needs two cases or more of each class.")
    rank = rankdata(np.hstack([positive, negative]), axis=1)
    # For each case, the share of the other class that is ranked correctly; ties count half.
    above = (rank[:, :m] - rankdata(positive, axis=1)) / n
    below = 1 - (rank[:, m:] - rankdata(negative, axis=1)) / m
    areas = above.mean(axis=1)
    covariance = np.cov(above) / m + np.cov(below) / n
    difference = areas[0] - areas[1]
    error = np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    if error > 1e-12:
        p = 2 * norm.sf(abs(difference) / error)
    else:  # both scores rank every case equally
        p = 1.0 if abs(difference) < 1e-12 else 0.0
    reach = norm.ppf(0.975) * error
    return DeLong(*map(float, (*areas, difference, difference - reach, difference + reach, p)))


def draw_patients(patient: np.ndarray, repeats: int, seed: int) -> np.ndarray:
    """How often each case is in each bootstrap sample, float64 [repeats, n].

    Patients are drawn with replacement, each with all scans.
    """
    patients, index = np.unique(patient, return_inverse=True)
    rng = np.random.default_rng(seed)
    count = len(patients)
    return rng.multinomial(count, np.full(count, 1 / count), size=repeats)[:, index].astype(float)


def interval(measure: Measure, weights: np.ndarray) -> dict[str, float | None]:
    """Value and 95 % percentile interval of a measure over bootstrap `weights` [repeats, n].

    Repeats in which it is undefined (a class was not drawn) are ignored; None if all are.
    """
    value = measure(np.ones((1, weights.shape[1])))[0]
    repeated = measure(weights)
    repeated = repeated[np.isfinite(repeated)]
    low, high = np.quantile(repeated, (0.025, 0.975)) if len(repeated) else (np.nan, np.nan)
    return {"value": _number(value), "low": _number(low), "high": _number(high)}


def auc(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve [repeats] of weighted cases; NaN if a class has no weight.

    The probability that a positive case scores higher than a negative one; ties count half.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)
    positive = np.add.reduceat((weights * truth)[:, order], starts, axis=1)
    negative = np.add.reduceat((weights * ~truth)[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _ratio((positive * below).sum(axis=1), pairs)


def macro_auc(stage: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean [repeats] of the AUCs of each stage that occurs against all others."""
    occurring = np.unique(stage)
    return np.mean([auc(stage == s, probabilities[:, s], weights) for s in occurring], axis=0)


def micro_auc(stage: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC [repeats] over all pairs of case and stage, as one binary classification."""
    truth = np.equal.outer(stage, np.arange(len(STAGES)))
    return auc(truth.ravel(), probabilities.ravel(), weights.repeat(len(STAGES), axis=1))


def confusion(stage: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted counts [repeats, 5, 5]: rows by histology, columns by prediction."""
    count = len(STAGES)
    cell = np.equal.outer(stage * count + predicted, np.arange(count * count))
    return (weights @ cell).reshape(-1, count, count)


def quadratic_kappa(counts: np.ndarray) -> np.ndarray:
    """Cohen's kappa [repeats] with quadratic weights (Cohen 1968) of counts [repeats, 5, 5]."""
    stages = np.arange(counts.shape[-1])
    penalty = np.subtract.outer(stages, stages) ** 2
    rows, columns = counts.sum(axis=2), counts.sum(axis=1)
    expected = rows[:, :, None] * columns[:, None, :] / counts.sum(axis=(1, 2))[:, None, None]
    return 1 - _ratio((penalty * counts).sum(axis=(1, 2)), (penalty * expected).sum(axis=(1, 2)))


def reliability(truth: np.ndarray, probability: np.ndarray) -> list[dict[str, float | int]]:
    """Mean probability, observed frequency and number of cases of every non-empty bin."""
    bins = _bins(probability)
    return [
        {
            "probability": float(probability[bins == b].mean()),
            "frequency": float(truth[bins == b].mean()),
            "cases": int((bins == b).sum()),
        }
        for b in np.unique(bins)
    ]


def expected_calibration_error(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean over cases of |observed frequency - mean probability| of the case's bin (Naeini 2015).

    Without an interval, because the error is biased upwards in bootstrap samples.
    """
    gaps = np.bincount(_bins(probability), weights=truth - probability)
    return float(np.abs(gaps).sum() / len(truth))


def _bins(probability: np.ndarray) -> np.ndarray:
    return np.minimum((probability * BINS).astype(int), BINS - 1)


def _measures(
    predictions: Predictions, calibrated: Calibrated, repeats: int, seed: int
) -> dict[str, Any]:
    """The measures of cross-validation and test."""
    stage, probabilities = predictions.stage, calibrated.probabilities
    predicted = median_stage(probabilities)
    weights = draw_patients(predictions.patient, repeats, seed)
    scores = group_probabilities(probabilities)
    groups = {}
    for name, first in GROUPS.items():
        truth = stage >= first
        groups[name] = {
            **_binary(truth, scores[name], calibrated.positive[name], weights),
            "positive_cases": int(truth.sum()),
            "expected_calibration_error": expected_calibration_error(truth, scores[name]),
            "reliability": reliability(truth, scores[name]),
        }

    def of_counts(measure: Measure) -> dict[str, float | None]:
        return interval(lambda w: measure(confusion(stage, predicted, w)), weights)

    one_hot = np.equal.outer(stage, np.arange(len(STAGES)))
    squares = ((probabilities - one_hot) ** 2).sum(axis=1)
    confidence = probabilities[np.arange(len(stage)), predicted]
    return {
        "cases": len(stage),
        "patients": len(np.unique(predictions.patient)),
        "cases_by_stage": dict(zip(STAGES, np.bincount(stage, minlength=len(STAGES)).tolist())),
        "interval": f"{INTERVAL}, {repeats} repeats",
        "groups": groups,
        "stages": {
            "macro_auc": interval(lambda w: macro_auc(stage, probabilities, w), weights),
            "micro_auc": interval(lambda w: micro_auc(stage, probabilities, w), weights),
            "auc": {
                STAGES[s]: interval(lambda w, s=s: auc(stage == s, probabilities[:, s], w), weights)
                for s in np.unique(stage)
            },
            "accuracy": of_counts(lambda c: c.trace(axis1=1, axis2=2) / c.sum(axis=(1, 2))),
            "quadratic_kappa": of_counts(quadratic_kappa),
            "brier": interval(lambda w: _mean(squares, w), weights),
            "expected_calibration_error": expected_calibration_error(
                stage == predicted, confidence
            ),
            "confusion": confusion(stage, predicted, np.ones((1, len(stage))))[0]
            .astype(int)
            .tolist(),
        },
    }


def _binary(
    truth: np.ndarray, score: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> dict[str, dict[str, float | None]]:
    right = (truth == positive).astype(float)
    squares = (score - truth) ** 2
    return {
        "auc": interval(lambda w: auc(truth, score, w), weights),
        "sensitivity": interval(lambda w: _mean(right, w * truth), weights),
        "specificity": interval(lambda w: _mean(right, w * ~truth), weights),
        "accuracy": interval(lambda w: _mean(right, w), weights),
        "brier": interval(lambda w: _mean(squares, w), weights),
    }


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ values, weights.sum(axis=1))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
