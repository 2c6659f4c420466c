"""Location maps from a layer's feature maps and their gradient: one function per method.

features, gradient: [N, K, spatial...], the target layer's maps A^k and dy/dA^k of the explained
score y. Each method returns [N, spatial...] = ReLU(sum_k w^k A^k); they differ only in the weights
w. Maps are not normalised, so that the maps of several patches can be merged on one scale.
"""

from collections.abc import Callable

import numpy as np


def weighted(features: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """ReLU(sum_k alpha_k A^k), with one weight per map: alpha [N, K]."""
    flat = features.reshape(*features.shape[:2], -1)
    total = (alpha.astype(features.dtype, copy=False)[:, None] @ flat)[:, 0]
    return np.maximum(total, 0).reshape(len(features), *features.shape[2:])


def grad_cam(features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Grad-CAM: alpha_k = mean of dy/dA^k over the voxels (Selvaraju 2017, equations 1 and 2)."""
    return weighted(features, gradient.mean(axis=_voxels(features)))


def grad_cam_plus_plus(features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Grad-CAM++: alpha_k = sum a ReLU(dy/dA^k), a = g^2 / (2 g^2 + (sum A^k) g^3), g = dy/dA^k.

    Chattopadhay 2018, equations 5 and 19. That is their approximation: the class score is exp(y),
    and y is taken to be linear in A, so that its higher derivatives are powers of the first. The
    factor exp(y), common to all weights of a case, is left out, as it overflows and only scales.
    """
    axes = _voxels(features)
    squared = gradient**2
    total = features.sum(axis=axes, keepdims=True)
    divisor = 2 * squared + total * squared * gradient
    share = np.divide(squared, divisor, out=np.zeros_like(squared), where=divisor != 0)
    return weighted(features, (share * np.maximum(gradient, 0)).sum(axis=axes))


def hires_cam(features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """HiResCAM: ReLU(sum_k dy/dA^k A^k), voxel by voxel (Draelos and Carin 2020, equation 4)."""
    return np.maximum(np.einsum("nk...,nk...->n...", gradient, features), 0)


def layer_cam(features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """LayerCAM: ReLU(sum_k ReLU(dy/dA^k) A^k), voxel by voxel (Jiang 2021, equations 5 to 7)."""
    return hires_cam(features, np.maximum(gradient, 0))


def xgrad_cam(features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """XGrad-CAM: alpha_k = sum over voxels of dy/dA^k A^k / sum A^k (Fu 2020, equation 8).

    A map that sums to zero gets the weight 0.
    """
    axes = _voxels(features)
    total = features.sum(axis=axes)
    products = (gradient * features).sum(axis=axes)
    alpha = np.divide(products, total, out=np.zeros_like(products), where=total != 0)
    return weighted(features, alpha)


def _voxels(features: np.ndarray) -> tuple[int, ...]:
    return tuple(range(2, features.ndim))


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "gradcam": grad_cam,
    "gradcam++": grad_cam_plus_plus,
    "hirescam": hires_cam,
    "layercam": layer_cam,
    "xgradcam": xgrad_cam,
}
