"""The measures of a cohort as one dictionary, as it is written to metrics.json."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..report.summary import REGION_NAMES
from ..stages import GROUPS, STAGES, StageRange, decided, exact, stage_bounds
from .comparing import auc_interval, f0_against_f4
from .measures import (
    INTERVAL,
    MIN_PATIENTS,
    Interval,
    Measure,
    auc,
    calibration_line,
    confusion,
    draw_patients,
    expected_calibration_error,
    group_probabilities,
    interval,
    macro_auc,
    mean,
    micro_auc,
    obuchowski,
    quadratic_kappa,
    ratio,
    reliability,
)

SMALL = 20  # patients in a class


def cohort_measures(
    stage: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    positive: Mapping[str, np.ndarray],
    patient: np.ndarray,
    repeats: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures of staged cases: by group (`groups`), and over all stages (`stages`).

    stage: 0..4 by histology, int [n], or [n, 2] with lowest and highest where it is known as a
    range. A group is measured on the `cases` whose range decides whether they belong to it, without
    those that are `undecided`; the measures over all stages on the `cases` with one stage.

    predicted: int [n], 0..4, as staged. probabilities: float64 [n, 5]. positive: group -> whether
    each case is positive at the operating point, bool [n]. patient: whose case it is, [n];
    intervals are by resampling the patients of the measured cases. What is not defined is None.
    """
    scores = group_probabilities(probabilities)
    groups = {}
    for name, first in GROUPS.items():
        known, truth = decided(stage, first)
        weights = draw_patients(patient[known], repeats, seed)
        of_group = scores[name][known], positive[name][known], patient[known], weights
        groups[name] = {
            **_group_measures(truth, *of_group),
            "cases": int(known.sum()),
            "undecided": int((~known).sum()),
        }
    known, one = exact(stage)
    weights = draw_patients(patient[known], repeats, seed)
    return {
        "cases": len(patient),
        "patients": len(np.unique(patient)),
        "cases_by_stage": cases_by_stage(stage),
        "interval": f"{INTERVAL}, {repeats} repeats",
        "groups": groups,
        "stages": _stage_measures(one, probabilities[known], predicted[known], weights)
        | {"cases": int(known.sum())},
    }


def cases_by_stage(stage: np.ndarray) -> dict[str, int]:
    """Number of cases of each stage, and of each range of stages that occurs, by name."""
    counts = Counter(str(StageRange(*one)) for one in np.transpose(stage_bounds(stage)))
    return {name: counts.pop(name, 0) for name in STAGES} | dict(sorted(counts.items()))


def _group_measures(
    truth: np.ndarray,
    score: np.ndarray,
    positive: np.ndarray,
    patient: np.ndarray,
    weights: np.ndarray,
) -> dict[str, Any]:
    """Measures of the cases that decide a group; arguments as for `binary_measures`."""
    squares = (score - truth) ** 2
    return {
        **binary_measures(truth, score, positive, patient, weights),
        "brier": interval(lambda w: mean(squares, w), weights),
        "positive_cases": int(truth.sum()),
        "calibration": calibration_line(truth, score)._asdict(),
        "expected_calibration_error": expected_calibration_error(truth, score),
        "reliability": reliability(truth, score),
    }


def _stage_measures(
    stage: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """Measures of the cases with one stage, int [n]."""

    def of_counts(measure: Measure) -> Interval:
        return interval(lambda w: measure(confusion(stage, predicted, w)), weights)

    one_hot = np.equal.outer(stage, np.arange(len(STAGES)))
    squares = ((probabilities - one_hot) ** 2).sum(axis=1)
    confidence = probabilities[np.arange(len(stage)), predicted]
    expected = probabilities @ np.arange(len(STAGES))
    return {
        "macro_auc": interval(lambda w: macro_auc(stage, probabilities, w), weights),
        "micro_auc": interval(lambda w: micro_auc(stage, probabilities, w), weights),
        "auc": {
            STAGES[s]: interval(lambda w, s=s: auc(stage == s, probabilities[:, s], w), weights)
            for s in np.unique(stage)
        },
        "obuchowski": interval(lambda w: obuchowski(stage, expected, w), weights),
        "accuracy": of_counts(lambda c: ratio(c.trace(axis1=1, axis2=2), c.sum(axis=(1, 2)))),
        "quadratic_kappa": of_counts(quadratic_kappa),
        "brier": interval(lambda w: mean(squares, w), weights),
        "expected_calibration_error": expected_calibration_error(stage == predicted, confidence),
        "confusion": confusion(stage, predicted, np.ones((1, len(stage))))[0].astype(int).tolist(),
    }


def binary_measures(
    truth: np.ndarray,
    score: np.ndarray,
    positive: np.ndarray,
    patient: np.ndarray,
    weights: np.ndarray,
) -> dict[str, Interval]:
    """AUC of a score [n], and sensitivity, specificity and accuracy of the positive cases.

    truth, positive: bool [n]. weights: of `draw_patients`, for the intervals. With fewer than SMALL
    patients in a class, for which percentile intervals of an AUC are too short, that of the AUC is
    `comparing.auc_interval`.
    """
    right = (truth == positive).astype(float)
    with_it, without = (len(np.unique(patient[one])) for one in (truth, ~truth))
    smaller = min(with_it, without)
    area = interval(lambda w: auc(truth, score, w), weights, smaller)
    if MIN_PATIENTS <= smaller < SMALL and (ends := auc_interval(truth, score, patient)):
        area["low"], area["high"] = ends
    return {
        "auc": area,
        "sensitivity": interval(lambda w: mean(right, w * truth), weights, with_it),
        "specificity": interval(lambda w: mean(right, w * ~truth), weights, without),
        "accuracy": interval(lambda w: mean(right, w), weights, len(np.unique(patient))),
    }


def weights_by_stage(
    by_region: Mapping[str, np.ndarray], predicted: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Region -> predicted stage -> weights; by_region: weights [n], NaN where not measured."""
    return {
        region: {
            name: values[(predicted == s) & np.isfinite(values)] for s, name in enumerate(STAGES)
        }
        for region, values in by_region.items()
    }


def describe_weights(grouped: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Median and quartiles of `weights_by_stage`, and F0 against F4 by Mann and Whitney's test.

    The paper tests the liver; the other regions are exploratory. Cases are treated as independent,
    including two scans of a patient.
    """
    return {
        "weights_by_predicted_stage": {
            region: {name: _quartiles(values) for name, values in by_stage.items()}
            for region, by_stage in grouped.items()
        },
        "f0_against_f4": {
            region: f0_against_f4(by_stage["F0"], by_stage["F4"])
            for region, by_stage in grouped.items()
        },
    }


def relative_weights(measurements: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Region -> mean weight [n], of cases with their regions' mean weights.

    NaN where a region was not measured, and for a map that is 0 everywhere.
    """
    empty = np.array([not any(one.values()) for one in measurements], bool)
    return {
        region: np.where(empty, np.nan, [one.get(region, np.nan) for one in measurements])
        for region in REGION_NAMES
    }


def _quartiles(values: np.ndarray) -> dict[str, float | int | None]:
    if not len(values):
        return {"cases": 0, "median": None, "lower_quartile": None, "upper_quartile": None}
    lower, median, upper = map(float, np.percentile(values, (25, 50, 75)))
    return {
        "cases": len(values),
        "median": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
    }
