"""What is measured on the validation cases, and whether a network has improved.

One patient in eight validates, so in most cohorts a stage has a few cases or none. Therefore each
stage counts the same, and the measure is the mean of the last validations: one that happens to be
good decides nothing.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score

from LiverFibrosisStagingLib.stages import STAGES, exact, median_stage, softmax

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SMOOTHED = 3  # validations
FEW = 3  # cases of a stage


def measures(logits: np.ndarray, stages: np.ndarray, loss: Loss) -> dict[str, float]:
    """`loss`, `balanced` (mean over the strata of their mean losses) and quadratic `kappa`.

    logits [n, 5]. stages [n], or [n, 2] with lowest and highest: a stratum is the cases of the same
    stage or range. kappa is that of the cases whose stage is known exactly; 0, as by chance, if
    there are none or it is undefined.
    """
    given, truth = torch.from_numpy(logits), torch.from_numpy(stages)
    strata, which = np.unique(stages, axis=0, return_inverse=True)
    parts = [torch.from_numpy(which.ravel() == number) for number in range(len(strata))]
    found = {
        "loss": float(loss(given, truth)),
        "balanced": float(np.mean([float(loss(given[part], truth[part])) for part in parts])),
        "kappa": 0.0,
    }
    known, exactly = exact(stages)
    predicted = [median_stage(row) for row in softmax(logits[known])]
    # Undefined if all cases are of one stage and predicted as that stage.
    if len(exactly) and len({*exactly.tolist(), *predicted}) > 1:
        labels = range(len(STAGES))
        found["kappa"] = float(
            cohen_kappa_score(exactly, predicted, labels=labels, weights="quadratic")
        )
    return found


def criterion(found: dict[str, float], stop_on: str) -> list[float]:
    """What is to become small, as a list to be compared in order.

    Kappa often takes the same value twice, so the balanced loss decides between equal ones.
    """
    return [-found["kappa"], found["balanced"]] if stop_on == "kappa" else [found[stop_on]]


def improved(values: Sequence[Sequence[float]], lowest: Sequence[float]) -> list[float] | None:
    """The mean of the last criteria if it is lower than the lowest so far, else None.

    The first validations, whose mean is incomplete, always count as an improvement.
    """
    smoothed = np.mean(values[-SMOOTHED:], axis=0).tolist()
    return smoothed if len(values) <= SMOOTHED or smoothed < list(lowest) else None


def few(training: np.ndarray, validation: np.ndarray) -> str | None:
    """A sentence on the stages that are trained on but have few validation cases; None if none."""
    counts = np.bincount(exact(validation)[1], minlength=len(STAGES))
    present = np.unique(exact(training)[1])
    listed = [f"{counts[stage]} {STAGES[stage]}" for stage in present if counts[stage] < FEW]
    if not listed:
        return None
    return (
        f"{len(validation)} cases for validation, among them {', '.join(listed)}: with fewer than "
        f"{FEW} of a stage, when to stop depends on chance."
    )
