"""A measure of several trainings of the same kind, which differ in their seed.

The interval over patients of one training tells what other patients would change, not what another
training would. Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks"
(MLSys), names both as sources of variance that a comparison has to include.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.metrics import Predictions, calibrate_folds
from evaluation.staged import Staged
from LiverFibrosisStagingLib.evaluation.measures import (
    MIN_PATIENTS,
    TAIL,
    Interval,
    Measure,
    auc,
    draw_patients,
    group_probabilities,
    interval,
)
from LiverFibrosisStagingLib.evaluation.tables import group_title
from LiverFibrosisStagingLib.stages import GROUPS, decided

REPEATS = 2000  # of the bootstrap


class Trainings(NamedTuple):
    """first: value of the first training, interval over patients. values: of each training.

    both: mean of the trainings, interval over patients and trainings; as `first` with one training.
    """

    first: Interval
    values: list[float]
    both: Interval

    @property
    def spread(self) -> float | None:
        """Standard deviation between the trainings; None with one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def area(self) -> dict[str, Any]:
        """As JSON, for an AUC; `auc_with_seeds` with several trainings only."""
        found = {"auc": self.first, "seeds": self.values, "sd_between_seeds": self.spread}
        return found if len(self.values) == 1 else found | {"auc_with_seeds": self.both}


def over_trainings(
    measures: Sequence[Measure], weights: np.ndarray, patients: int, seed: int, share: bool = True
) -> Trainings:
    """The measure of each training and its intervals, over bootstrap `weights` [repeats, cases].

    patients: as for `interval`, those of the smaller class. share: whether the measure has the
    limits 0 and 1, as an AUC, but not a difference of two.

    For the interval over both, each repeat draws patients and one of the trainings.
    """
    ones = np.ones((1, weights.shape[1]))
    values = [float(measure(ones)[0]) for measure in measures]
    enough = patients >= MIN_PATIENTS
    first = interval(measures[0], weights, patients if share or not enough else None)
    if len(measures) == 1:
        return Trainings(first, values, first)
    both = first | {"value": float(np.mean(values))}
    if enough and len({*values}) > 1:
        drawn = np.random.default_rng(seed).integers(len(values), size=len(weights))
        repeated = [measure(weights[drawn == one]) for one, measure in enumerate(measures)]
        low, high = np.nanquantile(np.concatenate(repeated), (TAIL, 1 - TAIL))
        both |= {"low": float(low), "high": float(high)}
    return Trainings(first, values, both)


def areas_by_group(
    trainings: Sequence[Sequence[Staged]], fold_of: Mapping[str, int], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """AUCs of several cross-validations in the same folds, by group, as JSON.

    trainings: the cases of each, in the same order, staged out of fold; fold_of: case name -> fold.
    Groups of which a class has no case are left out.
    """
    predictions = [Predictions.of(staged, fold_of) for staged in trainings]
    scores = [group_probabilities(calibrate_folds(each)[0].probabilities) for each in predictions]
    found = {}
    for group, first in GROUPS.items():
        known, truth = decided(predictions[0].stage, first)
        patient = predictions[0].patient[known]
        fewest = min(len({*patient[side]}) for side in (truth, ~truth))
        if fewest:
            weights = draw_patients(patient, REPEATS, seed)
            areas = areas_of(truth, [each[group][known] for each in scores], weights, fewest, seed)
            found[group] = {
                "seeds": areas.values,
                "sd_between_seeds": areas.spread,
                "auc_with_seeds": areas.both,
            }
    return found


def areas_of(
    truth: np.ndarray, scores: Sequence[np.ndarray], weights: np.ndarray, patients: int, seed: int
) -> Trainings:
    """AUCs of the scores [n] of each training; other arguments as for `over_trainings`."""
    measures = [lambda w, each=each: auc(truth, each, w) for each in scores]
    return over_trainings(measures, weights, patients, seed)


def trainings_table(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """`areas_by_group`, header first."""
    lines = [["", "AUC of each training", "SD between trainings", "Mean AUC [95 % interval]"]]
    for group, one in found.items():
        both = one["auc_with_seeds"]
        ends = "" if both["low"] is None else f" [{both['low']:.2f}, {both['high']:.2f}]"
        lines.append(
            [
                group_title(group),
                ", ".join(f"{value:.3f}" for value in one["seeds"]),
                f"{one['sd_between_seeds']:.3f}",
                f"{both['value']:.2f}{ends}",
            ]
        )
    return lines
