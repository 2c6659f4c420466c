"""A measure of several trainings of the same kind, which differ in their seed.

The interval over patients of one training tells what other patients would change, not what another
training would. Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks"
(MLSys), names both as sources of variance that a comparison has to include.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from LiverFibrosisStagingLib.evaluation.measures import (
    MIN_PATIENTS,
    TAIL,
    Interval,
    Measure,
    interval,
)


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
