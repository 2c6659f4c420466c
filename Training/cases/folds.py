"""Cross-validation folds: split by patient, with the stages balanced."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from cases.manifest import Case

VALIDATION_PART = 8  # one in so many of the patients that are not tested on is for validation


class Fold(NamedTuple):
    """Indices of the cases for training, for validation (early stopping) and for testing."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split(cases: Sequence[Case], folds: int = 5, seed: int = 0) -> list[Fold]:
    """Folds by `StratifiedGroupKFold`; all scans of a patient are in the same part of a fold."""
    found = []
    for rest, test in _parts(cases, np.arange(len(cases)), folds, seed):
        train, validation = _parts(cases, rest, VALIDATION_PART, seed)[0]
        found.append(Fold(train.tolist(), validation.tolist(), test.tolist()))
    return found


def _parts(
    cases: Sequence[Case], among: np.ndarray, parts: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    stages = [cases[i].stage for i in among]
    patients = [cases[i].patient for i in among]
    # In very small cohorts the most frequent stage may have fewer cases than there are parts.
    parts = min(parts, len(set(patients)), max(np.bincount(stages)))
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    return [(among[rest], among[part]) for rest, part in splitter.split(among, stages, patients)]
