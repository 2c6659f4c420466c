"""Agreement of an ensemble's members, as a measure of uncertainty.

Members trained on different data disagree most on inputs unlike their training data
(Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation using deep
ensembles").
"""

from typing import Any

import numpy as np

from .stages import STAGES, group_scores, median_stage

MIN_AGREEMENT = 0.8  # if fewer members predict the stage, a warning is given


def spread(members: np.ndarray, stage: str) -> dict[str, Any]:
    """Agreement of an ensemble, as in staging.json.

    members: probabilities float64 [members, 5]; stage: the ensemble's. `agreeing`: number of
    members that predict that stage; `range`: lowest and highest probability among the members for
    each stage and group.
    """
    scores = [group_scores(row) for row in members]
    by_name = {name: members[:, index] for index, name in enumerate(STAGES)}
    by_name |= {name: np.array([one[name] for one in scores]) for name in scores[0]}
    return {
        "members": len(members),
        "agreeing": int((median_stage(members) == STAGES.index(stage)).sum()),
        "range": {name: [float(v.min()), float(v.max())] for name, v in by_name.items()},
    }


def disagreement(found: dict[str, Any], stage: str) -> list[str]:
    """A warning if too few members predict `stage`; `found`: the result of `spread`."""
    agreeing, members = found["agreeing"], found["members"]
    if agreeing >= MIN_AGREEMENT * members:
        return []
    return [f"The networks disagree: only {agreeing} of {members} predict {stage}."]
