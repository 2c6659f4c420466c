"""Cross-validation folds: split by patient, with the stages and ranges of stages balanced."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from cases.manifest import Case
from LiverFibrosisStagingLib.stages import StageRange

VALIDATION_PART = 8  # one in so many of the patients that are not tested on is for validation


class Fold(NamedTuple):
    """Indices of the cases for training, for validation (early stopping) and for testing."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split(cases: Sequence[Case], folds: int = 5, seed: int = 0) -> list[Fold]:
    """Those of the manifest, or `folds` by `StratifiedGroupKFold`, for the cases' testing.

    All scans of a patient are in the same part of a fold; `requirements` checks this for the
    manifest's folds.
    """
    every, found = np.arange(len(cases)), []
    tests = [[i for i in every if cases[i].fold == name] for name in fold_names(cases)]
    given = [(np.setdiff1d(every, test), np.array(test)) for test in tests]
    for rest, test in given or _parts(cases, every, folds, seed):
        train, validation = _parts(cases, rest, VALIDATION_PART, seed)[0]
        found.append(Fold(train.tolist(), validation.tolist(), test.tolist()))
    return found


def fold_names(cases: Sequence[Case]) -> list[str]:
    """The names of the manifest's folds, numbers in their order; none if it has no folds."""
    names = {case.fold for case in cases if case.fold}
    return sorted(names, key=lambda name: (int(name) if name.isdecimal() else len(cases), name))


def _parts(
    cases: Sequence[Case], among: np.ndarray, parts: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    stages = _strata([cases[i].stages for i in among], parts)
    patients = [cases[i].patient for i in among]
    most = max(Counter(stages).values())
    if most < 2:  # nothing to balance
        stages, most = [""] * len(among), len(among)
    # In very small cohorts the most frequent stage may have fewer cases than there are parts.
    parts = min(parts, len(set(patients)), most)
    return grouped_parts(among, stages, patients, parts, seed)


def grouped_parts(
    among: np.ndarray, strata: Sequence[Any], patients: Sequence[str], parts: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rest and each part of `among`, by patient, with the `strata` [n] in equal shares."""
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # stages with fewer cases than parts are usual
        warnings.filterwarnings("ignore", "The least populated class")
        found = list(splitter.split(among, strata, patients))
    return [(among[rest], among[part]) for rest, part in found]


def _strata(ranges: Sequence[StageRange], parts: int) -> list[str]:
    """The class of each case, by which the folds are balanced.

    A stage or a range of stages is a class. A range that fewer cases have than there are parts
    cannot be balanced; it joins the frequent class with the nearest ends, if there is any.
    """
    counts = Counter(ranges)
    frequent = sorted(one for one, count in counts.items() if count >= parts)

    def distance(one: StageRange, other: StageRange) -> int:
        return abs(one.lowest - other.lowest) + abs(one.highest - other.highest)

    of = {
        one: one
        if one.exact is not None or one in frequent
        else min(frequent, key=lambda other, one=one: distance(one, other), default=one)
        for one in counts
    }
    return [str(of[one]) for one in ranges]
