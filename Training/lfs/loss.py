"""Losses of known stages, exact or as ranges, which can be mixed in one batch.

A range F_a..F_b is an interval-censored ordinal observation: all that is known is that the stage
is one of a..b, so its likelihood is P(a <= stage <= b), the difference of two cumulative
probabilities (Turnbull 1976, J R Stat Soc B 38:290-295, for censored intervals; McCullagh 1980, J R
Stat Soc B 42:109-142, for cumulative probabilities of ordered classes). Under a softmax it is the
sum of the probabilities of a..b: the stages of the range become one class. Both losses are cross
entropies over the classes that remain. They do not depend on how a range's probability is divided
among its stages, and are 0 where nothing is known.
"""

from typing import Literal

import torch
from torch.nn import functional

_NEVER = -1e4  # logit of a stage whose probability is counted in another class; exp of it is 0


def range_loss(
    logits: torch.Tensor, stages: torch.Tensor, reduction: Literal["mean", "none"] = "mean"
) -> torch.Tensor:
    """-log P(lowest <= stage <= highest); plain cross-entropy for exact stages.

    logits [..., N, C]; stages int [N], or [N, 2] with lowest and highest. reduction: the mean, or
    the loss [..., N] of each case.
    """
    found = logits.logsumexp(dim=-1) - _inside(logits, *_bounds(stages))
    return found if reduction == "none" else found.mean()


def ordinal_loss(logits: torch.Tensor, stages: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against soft labels proportional to exp(-2 d^2), d the distance in stages.

    Soft ordinal labels (Diaz and Marathe, CVPR 2019). Of a range, d is the distance to its nearer
    end, and 0 for the range as one class: so the wrong side of a range costs as much as that of an
    exact stage at its end, and a range of one stage is that stage. Arguments as for `range_loss`.
    """
    lowest, highest = _bounds(stages)
    merged = _merged(logits, lowest, highest)
    stage = torch.arange(logits.shape[1], device=logits.device)
    ends = torch.where(stage <= lowest[:, None], lowest[:, None], highest[:, None])
    soft = (-2.0 * (stage - ends) ** 2).masked_fill(_others(stage, lowest, highest), -torch.inf)
    return functional.cross_entropy(merged, torch.softmax(soft, dim=1).to(merged.dtype))


def _merged(logits: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """Logits [N, C] with each range's probability at its lowest stage, and none at its others."""
    stage = torch.arange(logits.shape[1], device=logits.device)
    whole = _inside(logits, lowest, highest)[:, None]
    merged = torch.where(stage == lowest[:, None], whole, logits)
    return merged.masked_fill(_others(stage, lowest, highest), _NEVER)


def _inside(logits: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """Logit [..., N] of each range as one class, from logits [..., N, C]."""
    stage = torch.arange(logits.shape[-1], device=logits.device)
    outside = (stage < lowest[:, None]) | (stage > highest[:, None])
    return logits.masked_fill(outside, -torch.inf).logsumexp(dim=-1)


def _others(stage: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """The stages [N, C] of each range but its lowest."""
    return (stage > lowest[:, None]) & (stage <= highest[:, None])


def _bounds(stages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (stages, stages) if stages.ndim == 1 else (stages[:, 0], stages[:, 1])
