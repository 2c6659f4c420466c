"""Calibration of probabilities."""

import numpy as np
from scipy.optimize import minimize_scalar

from LiverFibrosisStagingLib.stages import STAGES, softmax, stage_bounds


def fit_temperature(logits: np.ndarray, stage: np.ndarray) -> float:
    """Temperature with the maximum likelihood of `stage`, int [n] or [n, 2], of `logits` [n, 5].

    Guo et al. 2017, "On calibration of modern neural networks", section 4.2. The likelihood of a
    range, from `stage[:, 0]` to `stage[:, 1]`, is the sum of its stages' probabilities. Limited to
    0.05..20, because the optimum is 0 if all predictions are correct.
    """
    lowest, highest = (one[:, None] for one in stage_bounds(stage))
    possible = (lowest <= np.arange(len(STAGES))) & (np.arange(len(STAGES)) <= highest)

    def loss(log_temperature: float) -> float:
        chosen = (softmax(logits, np.exp(log_temperature)) * possible).sum(axis=1)
        return float(-np.log(np.maximum(chosen, 1e-300)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log((0.05, 20.0)), method="bounded").x))
