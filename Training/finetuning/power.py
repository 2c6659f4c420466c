"""How wide the interval of an AUC is with so many patients, and how it grows with their number."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from finetuning.cohort import Cohort
from finetuning.fit import Tuning
from finetuning.methods import ANEW, TUNED, Fold, OutOfFold, cross_validate
from LiverFibrosisStagingLib.evaluation.measures import auc
from LiverFibrosisStagingLib.evaluation.tables import group_title
from LiverFibrosisStagingLib.stages import GROUPS, decided
from painted.network import SignNetwork

PATIENTS = (25, 50, 100, 200)
AREAS = (0.7, 0.8, 0.9)
FRACTIONS = (0.25, 0.5, 0.75)  # of the training part


def standard_error(area: float, positive: int, negative: int) -> float:
    """Of an AUC, with so many independent cases of each class.

    Hanley and McNeil 1982, Radiology 143:29-36, equation 1, with Q1 and Q2 of exponential
    distributions (equation 2).
    """
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positive - 1) * (q1 - area**2) + (negative - 1) * (q2 - area**2)
    return float(np.sqrt(variance / (positive * negative)))


def expected_interval(area: float, positive: int, negative: int) -> tuple[float, float]:
    """The 95 % interval to expect around an AUC, limited to 0..1."""
    reach = norm.ppf(0.975) * standard_error(area, positive, negative)
    return max(0.0, area - reach), min(1.0, area + reach)


def power_table(cohort: Cohort) -> list[list[str]]:
    """Expected intervals for this cohort's share of each class, header first."""
    lines = [
        ["Cut-off", "Patients", "With", "Without", *(f"AUC {area:.2f}" for area in AREAS)],
    ]
    for group, first in GROUPS.items():
        own = _classes(cohort, first)
        if 0 in own:
            continue
        sizes = [
            (round(count * own[0] / sum(own)), round(count * own[1] / sum(own)))
            for count in PATIENTS
        ]
        for row, (positive, negative) in enumerate([own, *sizes]):
            ends = ["-"] * len(AREAS)
            if min(positive, negative) >= 2:
                ends = [
                    "{:.2f} to {:.2f}".format(*expected_interval(area, positive, negative))
                    for area in AREAS
                ]
            total = f"{positive + negative}" + ("" if row else " (this cohort)")
            lines.append([group_title(group), total, str(positive), str(negative), *ends])
    return lines


def power_sentences(cohort: Cohort) -> list[str]:
    """What an AUC of 0.80 in this cohort would be worth, by group."""
    said = []
    for group, first in GROUPS.items():
        positive, negative = _classes(cohort, first)
        if min(positive, negative) >= 2:
            low, high = expected_interval(0.8, positive, negative)
            said.append(
                f"{group_title(group)}: with {positive} patients with it and {negative} without, "
                f"an AUC of 0.80 has an interval of about {low:.2f} to {high:.2f}."
            )
    return said


def _classes(cohort: Cohort, first: int) -> tuple[int, int]:
    """Patients with and without `first` or a later stage, of those for which it is known."""
    known, truth = decided(cohort.stages, first)
    patient = cohort.patient[known]
    return len(set(patient[truth])), len(set(patient[~truth]))


def learning_curve(
    cohort: Cohort,
    starts: Sequence[SignNetwork],
    folds: Sequence[Fold],
    tuning: Tuning,
    draws: int,
    whole: OutOfFold,
) -> list[dict[str, float | str]]:
    """AUCs of networks trained on a part of each fold's patients, tested on the same cases.

    whole: the predictions of those trained on all of them. A row for each method, group, share of
    the patients and draw; the patients of a draw are a random part with the same shares of the
    known stages.
    """
    rows = []
    for share in FRACTIONS:
        for draw in range(draws):
            parts = [Fold(_part(cohort, train, share, draw), test) for train, test in folds]
            found, _ = cross_validate(cohort, starts, parts, tuning, (TUNED, ANEW))
            rows += _curve_rows(cohort, found, parts, share, draw)
    return [*rows, *_curve_rows(cohort, whole, folds, 1.0, 0)]


def _curve_rows(
    cohort: Cohort, found: OutOfFold, folds: Sequence[Fold], share: float, draw: int
) -> list[dict[str, float | str]]:
    """The rows of one share of the patients and draw."""
    patients = np.mean([len(set(cohort.patient[train])) for train, _ in folds])
    rows = []
    for name in (TUNED, ANEW):
        for group, first in GROUPS.items():
            known, truth = decided(cohort.stages, first)
            ones = np.ones((1, len(truth)))
            area = float(auc(truth, found.scores[name][group][known], ones)[0])
            rows.append(
                {
                    "method": name,
                    "group": group,
                    "share": share,
                    "patients": round(float(patients), 1),
                    "draw": draw,
                    "auc": area,
                }
            )
    return rows


def _part(cohort: Cohort, train: np.ndarray, share: float, draw: int) -> np.ndarray:
    """Cases of a share of the patients."""
    rng = np.random.default_rng([draw, round(100 * share)])
    first = {cohort.patient[i]: (cohort.lowest[i], cohort.highest[i]) for i in train}
    kept: set[str] = set()
    for label in sorted(set(first.values())):
        own = [patient for patient, known in first.items() if known == label]
        kept.update(rng.permutation(own)[: max(1, round(share * len(own)))])
    return train[[cohort.patient[i] in kept for i in train]]
