"""How far the members of an ensemble agree: the uncertainty that a result reports.

Members trained from different data disagree most where none of them has seen the like
(Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation using deep
ensembles").
"""

from typing import Any

import numpy as np

from .stages import STAGES, group_scores

ENOUGH = 0.8  # of the members must say the same, or the reader is told


def spread(members: np.ndarray, stage: str) -> dict[str, Any]:
    """What staging.json says of an ensemble.

    members: probabilities float64 [members, 5]; stage: the ensemble's. `agreeing` is how many
    members find that stage the most probable, `range` the lowest and highest probability that a
    member gives to each stage and group.
    """
    scores = [group_scores(row) for row in members]
    by_name = {name: members[:, index] for index, name in enumerate(STAGES)}
    by_name |= {name: np.array([one[name] for one in scores]) for name in scores[0]}
    return {
        "members": len(members),
        "agreeing": int((members.argmax(axis=1) == STAGES.index(stage)).sum()),
        "range": {name: [float(v.min()), float(v.max())] for name, v in by_name.items()},
    }


def disagreement(found: dict[str, Any], stage: str) -> list[str]:
    """A sentence where too few members say the same; `found` is what `spread` gave."""
    agreeing, members = found["agreeing"], found["members"]
    if agreeing >= ENOUGH * members:
        return []
    return [f"The networks disagree: only {agreeing} of {members} say {stage}."]
