"""Fibrosis stages, the three clinical groups, and the score that a location map explains.

Stages follow Bedossa and Poynard 1996 (METAVIR), as in Yin et al. 2021, "Reference standard
generation"; the groups are those of the paper's Table 2.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .errors import StagingError

STAGES = ("F0", "F1", "F2", "F3", "F4")

# Group name -> its first stage.
GROUPS = {"significant": 2, "advanced": 3, "cirrhosis": 4}

RESEARCH_USE = "Research use only. Not a medical device; not for diagnosis."


class StageRange(NamedTuple):
    """The stages, 0..4, that a reference standard leaves possible, from `lowest` to `highest`.

    Equal if it names one stage. An Ishak group is a range; "no cirrhosis" is F0 to F3; F0 to F4
    says nothing.
    """

    lowest: int
    highest: int

    @classmethod
    def of(cls, text: str) -> "StageRange":
        """The range written as "F2", "F1-F2" or "1-2". Raises ValueError for any other text."""
        found = re.fullmatch(r"F?([0-4])(?:\s*[-\u2013]\s*F?([0-4]))?", text.strip().upper())
        if found is None or int(found[1]) > int(found[2] or found[1]):
            raise ValueError(text)
        return cls(int(found[1]), int(found[2] or found[1]))

    @property
    def exact(self) -> int | None:
        """The stage, if there is only one."""
        return self.lowest if self.lowest == self.highest else None

    def decides(self, first: int) -> bool | None:
        """Whether the stage is `first` (1..4) or later; None if the range leaves it open."""
        if self.lowest >= first:
            return True
        return False if self.highest < first else None

    def __str__(self) -> str:
        names = dict.fromkeys((STAGES[self.lowest], STAGES[self.highest]))
        return "-".join(names)


ANY_STAGE = StageRange(0, len(STAGES) - 1)


def stage_array(ranges: Sequence[StageRange]) -> np.ndarray:
    """The known stages of n cases: int [n] if all are exact, else [n, 2], lowest and highest.

    All functions that take the known stages of cases take both forms.
    """
    bounds = np.array(ranges, int).reshape(-1, 2)
    return bounds[:, 0] if (bounds[:, 0] == bounds[:, 1]).all() else bounds


def stage_bounds(stages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest possible stage, int [n] each, of `stages` [n] or [n, 2]."""
    return (stages, stages) if stages.ndim == 1 else (stages[:, 0], stages[:, 1])


def decided(stages: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `stages` [n] or [n, 2] decide whether the stage is `first` or later, bool [n].

    And whether it is, bool [decided cases]. A case that does not decide it can't be scored.
    """
    lowest, highest = stage_bounds(stages)
    known = (lowest >= first) | (highest < first)
    return known, lowest[known] >= first


def exact(stages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `stages` [n] or [n, 2] are one stage, bool [n]; and these stages, int [exact]."""
    lowest, highest = stage_bounds(stages)
    known = lowest == highest
    return known, lowest[known]


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, float64 [..., C], of `logits` [..., C] divided by the temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def median_stage(probabilities: np.ndarray) -> np.ndarray:
    """The predicted stage, int [...], of `probabilities` [..., 5]: the median of the distribution.

    It is the first stage with a cumulative probability of at least one half. The stages are
    ordinal, and the median minimises the expected number of stages by which a prediction is off; it
    belongs to a group exactly if the group's score (`group_scores`) is above one half.
    """
    later = [probabilities[..., first:].sum(axis=-1) > 0.5 for first in range(1, len(STAGES))]
    return np.sum(later, axis=0)


def group_scores(probabilities: np.ndarray) -> dict[str, float]:
    """Probability of significant (F2-F4), advanced (F3-F4) fibrosis and cirrhosis (F4)."""
    return {name: float(probabilities[first:].sum()) for name, first in GROUPS.items()}


class AtPoint(NamedTuple):
    """A group's operating point, 0 to 1, and whether the group's score is at or above it."""

    point: float
    positive: bool


def at_points(
    scores: Mapping[str, float], points: Mapping[str, float]
) -> dict[str, AtPoint | None]:
    """The scores of GROUPS at a model's operating points; None for a group without a point."""
    return {
        name: AtPoint(points[name], scores[name] >= points[name]) if name in points else None
        for name in GROUPS
    }


def expected_stage(probabilities: np.ndarray) -> float:
    """Mean of the stages' distribution, 0 (F0) to 4 (F4); `probabilities` is [5]."""
    return float(probabilities @ np.arange(len(STAGES)))


def explained_stages(explain: str, predicted: int) -> tuple[int, ...]:
    """Indices of the stages whose score is explained.

    `explain` is "F0".."F4", "predicted", "expected", "significant", "advanced" or "cirrhosis";
    `predicted` is the index of the predicted stage. All five stages stand for the expected stage.
    Raises StagingError for any other name.
    """
    if explain == "predicted":
        return (predicted,)
    if explain == EXPECTED:
        return tuple(range(len(STAGES)))
    if explain in STAGES:
        return (STAGES.index(explain),)
    if explain in GROUPS:
        return tuple(range(GROUPS[explain], len(STAGES)))
    raise StagingError(f"Cannot explain {explain!r}; expected one of {', '.join(EXPLAIN_CHOICES)}.")


# The mean of the stages' distribution: its map shows what speaks for more fibrosis against less.
EXPECTED = "expected"
EXPLAIN_CHOICES = ("predicted", EXPECTED, *STAGES, *GROUPS)


def explained_score(logits: np.ndarray, members: tuple[int, ...]) -> float:
    """The explained score y of `logits` [C]; `score_gradient` is its gradient."""
    logits = np.asarray(logits, np.float64)
    inside = list(members)
    if len(inside) == 1:
        return float(logits[inside[0]])
    outside = [index for index in range(len(logits)) if index not in members]
    if not outside:
        return expected_stage(softmax(logits))
    return float(np.logaddexp.reduce(logits[inside]) - np.logaddexp.reduce(logits[outside]))


def score_gradient(logits: np.ndarray, members: tuple[int, ...]) -> np.ndarray:
    """Gradient dy/dlogits, float64 [C], of the explained score y; `logits` is [C].

    One stage: y is its logit. A group: y is the log-sum-exp of its logits minus that of the others,
    i.e. the log-odds of the group, so that the gradient is softmax within the group, minus softmax
    within the rest. All stages: y is the expected stage, sum k p_k, with the gradient p_k (k - y).
    Grad-CAM (Selvaraju 2017, section 3) uses the score before the softmax.
    """
    logits = np.asarray(logits, np.float64)
    gradient = np.zeros_like(logits)
    inside = list(members)
    if len(inside) == 1:
        gradient[inside] = 1.0
        return gradient
    outside = [index for index in range(len(logits)) if index not in members]
    if not outside:
        probabilities = softmax(logits)
        index = np.arange(len(logits))
        return probabilities * (index - probabilities @ index)
    gradient[inside] = softmax(logits[inside])
    gradient[outside] = -softmax(logits[outside])
    return gradient
