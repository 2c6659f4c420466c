"""Calibration of probabilities."""

import numpy as np
from scipy.optimize import minimize_scalar

from LiverFibrosisStagingLib.stages import softmax


def fit_temperature(logits: np.ndarray, stage: np.ndarray) -> float:
    """Temperature with the maximum likelihood of `stage` [n] given `logits` [n, 5].

    Guo et al. 2017, "On calibration of modern neural networks", section 4.2. Limited to 0.05..20,
    because the optimum is 0 if all predictions are correct.
    """

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits, np.exp(log_temperature))[np.arange(len(stage)), stage]
        return float(-np.log(np.maximum(chosen, 1e-300)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log((0.05, 20.0)), method="bounded").x))
