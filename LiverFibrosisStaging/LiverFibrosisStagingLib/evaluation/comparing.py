"""DeLong's comparison of two AUCs and interval of one, and Mann and Whitney's test."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import mannwhitneyu, norm, rankdata


class DeLong(NamedTuple):
    """AUCs of two scores on the same cases, their difference with its 95 % interval, and p."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def delong(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, patient: np.ndarray | None = None
) -> DeLong:
    """Compare the AUCs of two scores [n] of the same cases; `truth` is bool [n].

    DeLong et al. 1988, Biometrics 44:837-845, by midranks (Sun and Xu 2014, IEEE Signal Processing
    Letters 21:1389-1393). patient: whose case it is, [n], for several cases of a patient, which are
    then not treated as independent: the placements are summed by patient as in Obuchowski 1997,
    Biometrics 53:567-578, which for one case per patient is DeLong's variance. None: all cases are
    independent. Raises ValueError if a class has cases of fewer than two patients.
    """
    areas, covariance = _areas(np.asarray(truth, bool), np.array([first, second]), patient)
    difference = areas[0] - areas[1]
    error = np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    if error > 1e-12:
        p = 2 * norm.sf(abs(difference) / error)
    else:  # both scores rank every case equally
        p = 1.0 if abs(difference) < 1e-12 else 0.0
    reach = norm.ppf(0.975) * error
    return DeLong(*map(float, (*areas, difference, difference - reach, difference + reach, p)))


def auc_interval(
    truth: np.ndarray, score: np.ndarray, patient: np.ndarray
) -> tuple[float, float] | None:
    """95 % interval of the AUC of a score [n]: normal, on the scale of its logit.

    With the variance of `delong`; Pepe 2003, The Statistical Evaluation of Medical Tests for
    Classification and Prediction. None if it is not defined: the AUC is 0 or 1, its
    variance is 0, or a class has cases of fewer than two patients.
    """
    if min(len(np.unique(patient[one])) for one in (truth, ~truth)) < 2:
        return None
    (area,), ((variance,),) = _areas(truth, score[None], patient)
    if not 0 < area < 1 or variance < 1e-24:
        return None
    reach = norm.ppf(0.975) * np.sqrt(variance) / (area * (1 - area))
    return float(expit(logit(area) - reach)), float(expit(logit(area) + reach))


def f0_against_f4(f0: np.ndarray, f4: np.ndarray) -> dict[str, float] | None:
    """Two-sided Mann-Whitney U test (Mann and Whitney 1947, as SciPy computes it) of the values of
    cases predicted as F0 and as F4; None if a group is empty.

    `higher_in_f4`: probability that a value of F4 exceeds one of F0; ties count half.
    """
    if not len(f0) or not len(f4):
        return None
    test = mannwhitneyu(f4, f0, alternative="two-sided")
    return {
        "u": float(test.statistic),
        "p": float(test.pvalue),
        "higher_in_f4": float(test.statistic / (len(f0) * len(f4))),
    }


def p_value(p: float) -> str:
    """A p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _areas(
    truth: np.ndarray, scores: np.ndarray, patient: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of scores [k, n], and their covariance [k, k]; see `delong`."""
    index = np.arange(len(truth))
    if patient is not None:
        index = np.unique(patient, return_inverse=True)[1]
    if min(len(np.unique(index[truth])), len(np.unique(index[~truth]))) < 2:
        raise ValueError("DeLong's comparison needs two cases or more of each class.")
    positive, negative = scores[:, truth], scores[:, ~truth]
    m, n = positive.shape[1], negative.shape[1]
    rank = rankdata(np.hstack([positive, negative]), axis=1)
    # For each case, the share of the other class that is ranked correctly; ties count half.
    above = (rank[:, :m] - rankdata(positive, axis=1)) / n
    below = 1 - (rank[:, m:] - rankdata(negative, axis=1)) / m
    areas = above.mean(axis=1, keepdims=True)
    x, y = _by_patient(above - areas, index[truth]), _by_patient(below - areas, index[~truth])
    x, y = (np.pad(one, ((0, 0), (0, 1 + index.max() - one.shape[1]))) for one in (x, y))
    of_x, of_y, of_both = (
        count / (count - 1)
        for count in (len(np.unique(part)) for part in (index[truth], index[~truth], index))
    )
    shared = of_both * (x @ y.T) / (m * n)
    covariance = of_x * (x @ x.T) / m**2 + of_y * (y @ y.T) / n**2 + shared + shared.T
    return areas[:, 0], covariance


def _by_patient(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Sums [scores, patients] of values [scores, cases]."""
    return np.array([np.bincount(index, weights=one) for one in values])
