"""How well the stages are told apart, with 95 % intervals, in the paper's terms.

Yin et al. 2021, "Evaluation metrics" and Table 2: AUC, sensitivity, specificity and accuracy for
significant (F2-F4) and advanced (F3-F4) fibrosis and cirrhosis (F4), micro- and macro-averaged ROC.
Added: confusion matrix, quadratic-weighted kappa, calibration, DeLong's comparison of two models.

Nothing is chosen on the cases that it is measured on. In cross-validation the operating points
(Youden's index) and the temperature of a fold come from the other folds' out-of-fold predictions;
on a test cohort they come with the model.

Every measure is a function of case weights [repeats, cases]: weights of one give its value, and a
bootstrap over patients is the same sum with each case counted as often as its patient was drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_curve

from evaluation.staged import Staged
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, softmax

TEST = -1  # the fold of a case that no fold holds
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
    """What the networks said of n cases: one line each in every array.

    patient, name: str [n]. stage: int [n], 0..4 by histology. fold: int [n], the fold that held the
    case out, or -1 for a test case. logits: float64 [n, 5], before any temperature.
    """

    patient: np.ndarray
    name: np.ndarray
    stage: np.ndarray
    fold: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, staged: Sequence[Staged], folds: Mapping[str, int] | None = None) -> "Predictions":
        """Of staged cases; `folds` gives the fold of each case's name, None: a test cohort."""
        return cls(
            patient=np.array([case.patient for case in staged]),
            name=np.array([case.name for case in staged]),
            stage=np.array([case.stage for case in staged], int),
            fold=np.array([TEST if folds is None else folds[case.name] for case in staged], int),
            logits=np.array([case.logits for case in staged], np.float64).reshape(-1, len(STAGES)),
        )


class Judged(NamedTuple):
    """Calibrated probabilities [n, 5], and group -> whether each case is called positive [n]."""

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

    `temperature` and `operating_points` are those to export: of all folds together. Those that the
    measures themselves are taken at stand in `folds`, each chosen without its own fold.
    Raises ValueError where fewer than two folds are there.
    """
    judged, folds = judge_folds(predictions)
    temperature = fit_temperature(predictions.logits, predictions.stage)
    exported = group_probabilities(softmax(predictions.logits, temperature))
    found = _measures(predictions, judged, repeats, seed)
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

    temperature, operating_points (group -> probability from which a case is positive): the model's.
    """
    judged = judge(predictions, temperature, operating_points)
    return {
        "evaluation": "test cohort",
        "temperature": float(temperature),
        "operating_points": {name: float(operating_points[name]) for name in GROUPS},
        **_measures(predictions, judged, repeats, seed),
    }


def judge(
    predictions: Predictions, temperature: float, operating_points: Mapping[str, float]
) -> Judged:
    """Predictions at a given temperature and given operating points."""
    probabilities = softmax(predictions.logits, temperature)
    scores = group_probabilities(probabilities)
    return Judged(probabilities, {name: scores[name] >= operating_points[name] for name in GROUPS})


def judge_folds(predictions: Predictions) -> tuple[Judged, list[dict[str, Any]]]:
    """Each fold at the temperature and the operating points that the other folds chose.

    Also returns what each fold was judged with, and its own AUCs (None where it lacks a class).
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
    return Judged(probabilities, positive), about


def group_probabilities(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Probability [n] of each clinical group, of stage probabilities [n, 5]."""
    return {name: probabilities[:, first:].sum(axis=1) for name, first in GROUPS.items()}


def fit_temperature(logits: np.ndarray, stage: np.ndarray) -> float:
    """Temperature that makes the likelihood of `stage` [n] under `logits` [n, 5] greatest.

    Guo et al. 2017, "On calibration of modern neural networks", section 4.2. Bounded to 0.05..20:
    where every case is right, the best temperature is 0.
    """

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits, np.exp(log_temperature))[np.arange(len(stage)), stage]
        return float(-np.log(np.maximum(chosen, 1e-300)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log((0.05, 20.0)), method="bounded").x))


def youden(truth: np.ndarray, score: np.ndarray) -> float:
    """Score from which a case is called positive: greatest sensitivity + specificity (Youden 1950).

    Halfway to the next lower score that was seen; 0.5 where `truth` holds one class only.
    """
    if truth.all() or not truth.any():
        return 0.5
    false_positives, true_positives, thresholds = roc_curve(truth, score, drop_intermediate=False)
    best = 1 + int((true_positives - false_positives)[1:].argmax())  # the first is infinite
    return float(thresholds[best : best + 2].mean())


def delong(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> DeLong:
    """Compare the AUCs of two scores [n] of the same cases; `truth` is bool [n].

    DeLong et al. 1988, Biometrics 44:837-845, by midranks (Sun and Xu 2014, IEEE Signal Processing
    Letters 21:1389-1393). Cases count as independent, also two of one patient. Raises ValueError
    where a class has fewer than two cases.
    """
    truth = np.asarray(truth, bool)
    scores = np.array([first, second], np.float64)
    positive, negative = scores[:, truth], scores[:, ~truth]
    m, n = positive.shape[1], negative.shape[1]
    if min(m, n) < 2:
        raise ValueError("DeLong's comparison needs two cases or more of each class.")
    rank = rankdata(np.hstack([positive, negative]), axis=1)
    # Share of the other class that each case is on the right side of, ties counted half.
    above = (rank[:, :m] - rankdata(positive, axis=1)) / n
    below = 1 - (rank[:, m:] - rankdata(negative, axis=1)) / m
    areas = above.mean(axis=1)
    covariance = np.cov(above) / m + np.cov(below) / n
    difference = areas[0] - areas[1]
    error = np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    if error > 1e-12:
        p = 2 * norm.sf(abs(difference) / error)
    else:  # the two order the classes alike, case by case
        p = 1.0 if abs(difference) < 1e-12 else 0.0
    reach = norm.ppf(0.975) * error
    return DeLong(*map(float, (*areas, difference, difference - reach, difference + reach, p)))


def draw_patients(patient: np.ndarray, repeats: int, seed: int) -> np.ndarray:
    """How often each case stands in each bootstrap cohort, float64 [repeats, n].

    Patients are drawn with replacement; the scans of one patient come and go together.
    """
    patients, index = np.unique(patient, return_inverse=True)
    rng = np.random.default_rng(seed)
    count = len(patients)
    return rng.multinomial(count, np.full(count, 1 / count), size=repeats)[:, index].astype(float)


def interval(measure: Measure, weights: np.ndarray) -> dict[str, float | None]:
    """Value and 95 % percentile interval of a measure over bootstrap `weights` [repeats, n].

    Repeats in which it is not defined (a class was not drawn) are left out; None where all are.
    """
    value = measure(np.ones((1, weights.shape[1])))[0]
    repeated = measure(weights)
    repeated = repeated[np.isfinite(repeated)]
    low, high = np.quantile(repeated, (0.025, 0.975)) if len(repeated) else (np.nan, np.nan)
    return {"value": _number(value), "low": _number(low), "high": _number(high)}


def auc(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve [repeats] of weighted cases; NaN where a class has no weight.

    The chance that a positive case scores above a negative one, ties counted half.
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
    """AUC [repeats] of all (case, stage) pairs as one set of yes or no questions."""
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
    """Mean probability, observed frequency and cases of every bin of probability that is used."""
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

    Without interval: a bootstrap cohort's error lies above the cohort's own.
    """
    gaps = np.bincount(_bins(probability), weights=truth - probability)
    return float(np.abs(gaps).sum() / len(truth))


def _bins(probability: np.ndarray) -> np.ndarray:
    return np.minimum((probability * BINS).astype(int), BINS - 1)


def _measures(predictions: Predictions, judged: Judged, repeats: int, seed: int) -> dict[str, Any]:
    """What cross-validation and test have in common."""
    stage, probabilities = predictions.stage, judged.probabilities
    predicted = predictions.logits.argmax(axis=1)
    weights = draw_patients(predictions.patient, repeats, seed)
    scores = group_probabilities(probabilities)
    groups = {}
    for name, first in GROUPS.items():
        truth = stage >= first
        groups[name] = {
            **_binary(truth, scores[name], judged.positive[name], weights),
            "positive_cases": int(truth.sum()),
            "expected_calibration_error": expected_calibration_error(truth, scores[name]),
            "reliability": reliability(truth, scores[name]),
        }

    def of_counts(measure: Measure) -> dict[str, float | None]:
        return interval(lambda w: measure(confusion(stage, predicted, w)), weights)

    one_hot = np.equal.outer(stage, np.arange(len(STAGES)))
    squares = ((probabilities - one_hot) ** 2).sum(axis=1)
    confidence = probabilities.max(axis=1)
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
                stage == probabilities.argmax(axis=1), confidence
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
