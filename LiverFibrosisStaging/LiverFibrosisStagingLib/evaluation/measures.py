"""Measures of agreement with a reference standard, and their 95 % intervals.

A measure is a function of case weights [repeats, cases]. Weights of 1 give its value; for the
bootstrap over patients, a case is weighted with the number of times its patient was drawn. A
measure that is not defined, because a class has no case, is NaN.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from ..stages import GROUPS, STAGES, decided

BINS = 10  # of equal width, for reliability and expected calibration error
INTERVAL = "95 % percentile interval, bootstrap over patients"
MIN_PATIENTS = 5  # fewer have too few different bootstrap samples for an interval
TAIL = 0.025
_LARGEST = 1_000_000  # weights that a measure is given at once, which bounds the memory

Measure = Callable[[np.ndarray], np.ndarray]
Interval = dict[str, float | None]
UNDEFINED: Interval = {"value": None, "low": None, "high": None}


class CalibrationLine(NamedTuple):
    """Logistic calibration (Cox 1958, Biometrika 45:562-565); None if not defined.

    intercept: a in logit P(Y = 1) = a + logit(p), "calibration in the large", 0 if the mean
    prediction is right. slope: b in logit P(Y = 1) = c + b logit(p), below 1 if the predictions are
    too extreme.
    """

    intercept: float | None
    slope: float | None


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


def best_point(stage: np.ndarray, score: np.ndarray, first: int) -> float:
    """`youden` for the stages from `first` on, of the cases whose `stage` [n] or [n, 2] decides."""
    known, truth = decided(stage, first)
    return youden(truth, score[known])


def draw_patients(patient: np.ndarray, repeats: int, seed: int) -> np.ndarray:
    """How often each case is in each bootstrap sample, float64 [repeats, n].

    Patients are drawn with replacement, each with all scans.
    """
    patients, index = np.unique(patient, return_inverse=True)
    rng = np.random.default_rng(seed)
    count = len(patients)
    if not count:
        return np.empty((repeats, 0))
    return rng.multinomial(count, np.full(count, 1 / count), size=repeats)[:, index].astype(float)


def interval(measure: Measure, weights: np.ndarray, patients: int | None = None) -> Interval:
    """Value and 95 % percentile interval of a measure over bootstrap `weights` [repeats, n].

    Repeats in which it is undefined (a class was not drawn) are ignored; None if all are, or if
    there is no case.

    patients: how many independent patients a share or an AUC rests on, those of the smaller class
    for an AUC. With fewer than MIN_PATIENTS there is no interval. If the value is 0 or 1, all
    bootstrap samples equal it; the other end is then the exact one, 0.025^(1/patients) from there
    (Clopper and Pearson 1934). For an AUC that holds because as many pairs of a positive and a
    negative case are disjoint, and so are independently in the right order.
    """
    if not weights.shape[1]:
        return dict(UNDEFINED)
    value = measure(np.ones((1, weights.shape[1])))[0]
    if patients is not None and patients < MIN_PATIENTS:
        return {"value": number(value), "low": None, "high": None}
    parts = np.array_split(weights, 1 + weights.size // _LARGEST)
    repeated = np.concatenate([measure(part) for part in parts])
    repeated = repeated[np.isfinite(repeated)]
    low, high = np.quantile(repeated, (TAIL, 1 - TAIL)) if len(repeated) else (np.nan, np.nan)
    if patients is not None and low == high and value in (0.0, 1.0):
        reach = 1 - TAIL ** (1 / patients)
        low, high = (1 - reach, 1.0) if value == 1 else (0.0, reach)
    return {"value": number(value), "low": number(low), "high": number(high)}


def auc(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve [repeats] of weighted cases; NaN if a class has no weight.

    The probability that a positive case scores higher than a negative one; ties count half.
    """
    won, pairs = _ordered_pairs(truth, ~truth, score, weights)
    return ratio(won, pairs)


def macro_auc(stage: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean [repeats] of the AUCs of each stage that occurs against all others."""
    occurring = np.unique(stage)
    return np.mean([auc(stage == s, probabilities[:, s], weights) for s in occurring], axis=0)


def micro_auc(stage: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC [repeats] over all pairs of case and stage, as one binary classification."""
    truth = np.equal.outer(stage, np.arange(len(STAGES)))
    return auc(truth.ravel(), probabilities.ravel(), weights.repeat(len(STAGES), axis=1))


def obuchowski(stage: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Obuchowski's measure [repeats] of a score for the ordinal stages; NaN if only one occurs.

    1 - sum_{i<j} w_ij L_ij (1 - AUC_ij), where AUC_ij is the area for stage j against stage i,
    w_ij = n_i n_j / sum_{k<l} n_k n_l the share of such pairs among all pairs of different stages,
    and L_ij = (j - i) / 4 the penalty for a pair in the wrong order, as for METAVIR stages in
    Lambert 2008. Obuchowski 2005, Academic Radiology 12:1198-1204; Obuchowski 2006, Statistics in
    Medicine 25:481-493; Lambert et al. 2008, Clinical Chemistry 54:1372-1378. With w_ij from the
    cases themselves, the value depends on their distribution of stages.
    """
    lost, total = np.zeros(len(weights)), np.zeros(len(weights))
    occurring = np.unique(stage)
    for place, lower in enumerate(occurring):
        for higher in occurring[place + 1 :]:
            won, pairs = _ordered_pairs(stage == higher, stage == lower, score, weights)
            lost += (higher - lower) / (len(STAGES) - 1) * (pairs - won)
            total += pairs
    return 1 - ratio(lost, total)


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
    return 1 - ratio((penalty * counts).sum(axis=(1, 2)), (penalty * expected).sum(axis=(1, 2)))


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


def expected_calibration_error(truth: np.ndarray, probability: np.ndarray) -> float | None:
    """Mean over cases of |observed frequency - mean probability| of the case's bin (Naeini 2015).

    Without an interval, because the error is biased upwards in bootstrap samples. None if there is
    no case.
    """
    if not len(truth):
        return None
    gaps = np.bincount(_bins(probability), weights=truth - probability)
    return float(np.abs(gaps).sum() / len(truth))


def calibration_line(truth: np.ndarray, probability: np.ndarray) -> CalibrationLine:
    """Intercept and slope of the logistic calibration of probabilities [n].

    Probabilities are limited to 1e-6 .. 1 - 1e-6, the resolution of the table. The slope is not
    defined if a probability separates the classes completely or all are equal.
    """
    truth = np.asarray(truth, bool)
    if truth.all() or not truth.any():
        return CalibrationLine(None, None)
    x = logit(np.clip(probability, 1e-6, 1 - 1e-6))
    shift = 1 + float(np.abs(x).max()) + np.log(len(x))  # moves every case beyond the frequency
    intercept = brentq(lambda a: float(expit(a + x).sum() - truth.sum()), -shift, shift)
    overlap = x[truth].min() < x[~truth].max() and x[~truth].min() < x[truth].max()
    if not overlap:
        return CalibrationLine(float(intercept), None)
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(x[:, None], truth)
    return CalibrationLine(float(intercept), float(fitted.coef_[0, 0]))


def net_benefit(truth: np.ndarray, probability: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Net benefit [thresholds] of treating the cases with at least the threshold's probability.

    TP / n - FP / n * t / (1 - t) at the threshold t, 0 < t < 1; Vickers and Elkin 2006, Medical
    Decision Making 26:565-574. With probabilities of 1 it is the benefit of treating all cases; of
    treating none it is 0.
    """
    treated = probability[None, :] >= thresholds[:, None]
    right, wrong = (treated & truth).mean(axis=1), (treated & ~truth).mean(axis=1)
    return right - wrong * thresholds / (1 - thresholds)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean [repeats] of values [n]; NaN where the weights are 0."""
    return ratio(weights @ values, weights.sum(axis=1))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient [repeats]; NaN where the divisor is not above 0."""
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def number(value: float) -> float | None:
    """A float for JSON; None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def _ordered_pairs(
    above: np.ndarray, below: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight [repeats] of the pairs in which the case of `above` scores higher, and of all pairs.

    above, below: bool [n], the members of two classes. Ties count half.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)
    higher = np.add.reduceat((weights * above)[:, order], starts, axis=1)
    lower = np.add.reduceat((weights * below)[:, order], starts, axis=1)
    passed = np.cumsum(lower, axis=1) - lower / 2
    return (higher * passed).sum(axis=1), higher.sum(axis=1) * lower.sum(axis=1)


def _bins(probability: np.ndarray) -> np.ndarray:
    return np.minimum((probability * BINS).astype(int), BINS - 1)
