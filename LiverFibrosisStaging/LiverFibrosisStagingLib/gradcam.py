"""Grad-CAM from feature maps and their gradient (Selvaraju et al. 2017, equations 1 and 2)."""

import numpy as np


def grad_cam(features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Location map [N, spatial...] = ReLU(sum_k alpha_k A^k), alpha_k = mean over Z of dy/dA^k.

    features, gradient: [N, K, spatial...], the target layer's maps A^k and dy/dA^k. The map is not
    normalised: maps of several patches must stay on one scale until they are merged.
    """
    axes = tuple(range(2, features.ndim))
    alpha = gradient.mean(axis=axes)
    return np.maximum(np.einsum("nk,nk...->n...", alpha, features), 0)
