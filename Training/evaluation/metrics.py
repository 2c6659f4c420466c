"""Performance measures with 95 % intervals.

Yin et al. 2021, "Evaluation metrics" and Table 2: AUC, sensitivity, specificity and accuracy for
significant (F2-F4) and advanced (F3-F4) fibrosis and cirrhosis (F4), micro- and macro-averaged ROC.
The measures are those of the library, `LiverFibrosisStagingLib.evaluation`; this module determines
and applies temperature and operating points.

Stages that are known as ranges count in the groups that they decide only.

Thresholds and temperature are never chosen on the cases they are evaluated on. In cross-validation
the operating points (Youden's index) and the temperature of a fold are determined on the
out-of-fold predictions of the other folds; for a test cohort they are taken from the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from common.calibration import fit_temperature
from evaluation.staged import Staged
from LiverFibrosisStagingLib.evaluation.cohort import cohort_measures
from LiverFibrosisStagingLib.evaluation.measures import (
    auc,
    best_point,
    group_probabilities,
    number,
)
from LiverFibrosisStagingLib.stages import (
    GROUPS,
    STAGES,
    decided,
    median_stage,
    softmax,
    stage_array,
)

TEST = -1  # fold number of the cases of a test cohort


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for n cases.

    patient, name: str [n]. stage: 0..4 by histology, int [n], or [n, 2] with lowest and highest if
    some are ranges (`stages.stage_array`). fold: int [n], the fold that tests the case, or TEST.
    logits: float64 [n, 5], before temperature scaling.
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
            stage=stage_array([case.stages for case in staged]),
            fold=np.array([TEST if folds is None else folds[case.name] for case in staged], int),
            logits=np.array([case.logits for case in staged], np.float64).reshape(-1, len(STAGES)),
        )


class Calibrated(NamedTuple):
    """Calibrated probabilities [n, 5], and group -> whether each case is positive [n]."""

    probabilities: np.ndarray
    positive: dict[str, np.ndarray]


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
            name: best_point(predictions.stage, exported[name], first)
            for name, first in GROUPS.items()
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
            points[name] = best_point(predictions.stage[other], chosen[name], first)
            positive[name][own] = scores[name] >= points[name]
            known, truth = decided(predictions.stage[own], first)
            ones = np.ones((1, len(truth)))
            aucs[name] = number(auc(truth, scores[name][known], ones)[0])
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


def _measures(
    predictions: Predictions, calibrated: Calibrated, repeats: int, seed: int
) -> dict[str, Any]:
    """The measures of cross-validation and test."""
    return cohort_measures(
        predictions.stage,
        calibrated.probabilities,
        median_stage(calibrated.probabilities),
        calibrated.positive,
        predictions.patient,
        repeats,
        seed,
    )
