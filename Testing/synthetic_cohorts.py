"""Cohorts for fine-tuning without CTs: means of maps and signs that depend on the stage."""

import numpy as np

from finetuning.cohort import Cohort
from LiverFibrosisStagingLib.signs.measure import UNITS
from LiverFibrosisStagingLib.stages import StageRange
from painted.maps import NAMES


def synthetic(count, seed=0, effect=1.0, ranges=False, per_patient=1):
    """Stages 0..4; the spleen's map and two signs rise with the stage, by `effect` SD a stage."""
    rng = np.random.default_rng(seed)
    stage = np.arange(count) % 5
    known = [StageRange(s, s) for s in stage]
    if ranges:  # as Ishak groups, and cirrhosis yes or no for one case in five
        coarse = {0: (0, 0), 1: (1, 2), 2: (1, 2), 3: (3, 3), 4: (4, 4)}
        known = [StageRange(*coarse[s]) for s in stage]
        known = [StageRange(0, 3) if i % 5 == 3 and i % 2 else k for i, k in enumerate(known)]
    means = rng.normal(1, 0.2, (count, len(NAMES)))
    means[:, NAMES.index("spleen")] += 0.2 * effect * (stage - 2)
    means[:, NAMES.index("coarse parenchyma")] += 0.1 * effect * (stage - 2)
    signs = rng.normal(0, 1, (count, len(UNITS)))
    signs[:, :2] += effect * stage[:, None] / 2
    signs[rng.random(signs.shape) < 0.1] = np.nan
    signs[:, 5] = np.nan  # never measurable
    return Cohort(
        means=np.float32(means),
        case=np.arange(count),
        signs=signs,
        lowest=np.array([k.lowest for k in known]),
        highest=np.array([k.highest for k in known]),
        patient=np.array([f"p{i // per_patient}" for i in range(count)]),
    ), stage
