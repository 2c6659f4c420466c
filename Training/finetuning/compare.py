"""The comparison on a cohort: AUCs with intervals, differences, variance between trainings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.trainings import REPEATS, areas_of, over_trainings
from finetuning.cohort import Cohort
from finetuning.methods import METHODS, NETWORKS, SHIPPED, TUNED, OutOfFold
from LiverFibrosisStagingLib.evaluation.measures import (
    MIN_PATIENTS,
    Interval,
    auc,
    confusion,
    draw_patients,
    interval,
    quadratic_kappa,
)
from LiverFibrosisStagingLib.evaluation.tables import group_title
from LiverFibrosisStagingLib.stages import GROUPS, decided, exact, median_stage, softmax


def compare(cohort: Cohort, found: Sequence[OutOfFold], seed: int = 0) -> dict[str, Any]:
    """Measures of each method, as JSON.

    found: the predictions of trainings with different seeds.

    Per group: patients and cases of each class that the cut-off decides; AUC with its interval over
    patients; SD between seeds; interval over patients and seeds (`evaluation.trainings`); the
    difference of fine-tuned and start network, with the interval over both. Kappas are those of the
    first training.
    """
    groups = {}
    for group, first in GROUPS.items():
        known, truth = decided(cohort.stages, first)
        patient = cohort.patient[known]
        counts = [len(set(patient[side])) for side in (truth, ~truth)]
        measured: dict[str, Any] = {
            "cases": [int(truth.sum()), int((~truth).sum())],
            "patients": counts,
            "methods": {},
            "fine_tuned_minus_start": None,
        }
        groups[group] = measured
        if min(counts) == 0:
            continue
        weights = draw_patients(patient, REPEATS, seed)
        for name in METHODS:
            scores = [each.scores[name][group][known] for each in found if name in each.scores]
            if scores and all(np.isfinite(each).all() for each in scores):
                measured["methods"][name] = areas_of(
                    truth, scores, weights, min(counts), seed
                ).area()
        pairs = [
            tuple(each.scores[name][group][known] for name in (TUNED, SHIPPED)) for each in found
        ]
        measured["fine_tuned_minus_start"] = _difference(truth, pairs, weights, min(counts), seed)
    return {"groups": groups, "kappa": _kappas(cohort, found[0], seed)}


def _difference(
    truth: np.ndarray,
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray,
    patients: int,
    seed: int,
) -> Interval:
    """Difference in AUC of two methods, each pair of scores from one training."""
    measures = [
        lambda w, one=one, other=other: auc(truth, one, w) - auc(truth, other, w)
        for one, other in scores
    ]
    return over_trainings(measures, weights, patients, seed, share=False).both


def _kappas(cohort: Cohort, found: OutOfFold, seed: int) -> dict[str, dict[str, float | None]]:
    """Quadratic kappa of the networks on the cases with one known stage."""
    known, stage = exact(cohort.stages)
    if len(set(stage)) < 2:
        return {}
    patient = cohort.patient[known]
    weights = draw_patients(patient, REPEATS, seed)
    kappas = {}
    for name in NETWORKS:
        if name in found.logits:
            predicted = median_stage(softmax(found.logits[name][known]))

            def kappa(w: np.ndarray, predicted: np.ndarray = predicted) -> np.ndarray:
                return quadratic_kappa(confusion(stage, predicted, w))

            kappas[name] = interval(kappa, weights, len(set(patient)))
    return kappas


def sentences(found: dict[str, Any]) -> list[str]:
    """In words, for each group, whether the fine-tuned network is better than the start network."""
    said = []
    for group, measured in found["groups"].items():
        title, difference = group_title(group), measured["fine_tuned_minus_start"]
        if difference is None or min(measured["patients"]) < MIN_PATIENTS:
            one, other = measured["patients"]
            said.append(
                f"{title}: {one} patients with and {other} without it are too few for a comparison "
                f"(at least {MIN_PATIENTS} of each)."
            )
            continue
        by = f"{difference['value']:+.2f} [{difference['low']:.2f}, {difference['high']:.2f}]"
        about = f"difference in AUC {by}"
        if difference["low"] > 0:
            said.append(
                f"{title}: the fine-tuned network is better than the start network ({about})."
            )
        elif difference["high"] < 0:
            said.append(
                f"{title}: the fine-tuned network is worse than the start network ({about}); use "
                "the start network."
            )
        else:
            said.append(
                f"{title}: the fine-tuned network is not better than the start network beyond the "
                f"interval ({about})."
            )
    return said


def table(found: dict[str, Any]) -> list[list[str]]:
    """The comparison, header first."""
    lines = [
        [
            "Method",
            *(f"AUC {group_title(group)} [95 % interval]" for group in found["groups"]),
            "SD between seeds",
            "Quadratic kappa",
        ]
    ]
    for name in METHODS:
        measured = [each["methods"].get(name) for each in found["groups"].values()]
        if not any(measured):
            continue
        spreads = [each["sd_between_seeds"] for each in measured if each]
        spreads = [f"{value:.3f}" for value in spreads if value is not None]
        lines.append(
            [
                name,
                *(
                    "-" if each is None else _text(each.get("auc_with_seeds", each["auc"]))
                    for each in measured
                ),
                " / ".join(spreads) or "-",
                _text(found["kappa"].get(name)),
            ]
        )
    return lines


def _text(one: dict[str, float | None] | None) -> str:
    if one is None or one["value"] is None:
        return "-"
    value = f"{one['value']:.2f}"
    return value if one["low"] is None else f"{value} [{one['low']:.2f}, {one['high']:.2f}]"
