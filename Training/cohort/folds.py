"""Who is learned from and who is held out: five folds by patient, stages balanced."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from cohort.manifest import Case

VALIDATION_PART = 8  # one in so many of the learning patients only decides when to stop


class Fold(NamedTuple):
    """Indices of cases: to learn from, to decide when to stop, and held out to be judged on."""

    learned: list[int]
    validated: list[int]
    held: list[int]


def split(cases: Sequence[Case], folds: int = 5, seed: int = 0) -> list[Fold]:
    """Folds by `StratifiedGroupKFold` on the patient: all scans of one stand in the same part."""
    found = []
    for rest, held in _parts(cases, np.arange(len(cases)), folds, seed):
        learned, validated = _parts(cases, rest, VALIDATION_PART, seed)[0]
        found.append(Fold(learned.tolist(), validated.tolist(), held.tolist()))
    return found


def _parts(
    cases: Sequence[Case], among: np.ndarray, parts: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    stages = [cases[i].stage for i in among]
    patients = [cases[i].patient for i in among]
    # No more parts than the most frequent stage has cases, which only a toy cohort would ask for.
    parts = min(parts, len(set(patients)), max(np.bincount(stages)))
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    return [(among[kept], among[held]) for kept, held in splitter.split(among, stages, patients)]
