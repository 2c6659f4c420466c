"""Filters of arrays along their axes, [slice, row, column] or of any other number of axes."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import SimpleITK as sitk

_FEWEST = 4  # voxels along an axis that sitk.RecursiveGaussian needs
# Multiplications of a matrix product that OpenBLAS leaves to one thread. More threads are hardly
# faster here, but keep all cores busy, waiting for more, while other steps need them.
_ONE_THREAD = 2**18


def gaussian(
    array: np.ndarray,
    sigma_mm: Sequence[float],
    spacing_mm: Sequence[float],
    keep: Sequence[slice] | None = None,
) -> np.ndarray:
    """sitk.RecursiveGaussian along each axis, float32; only the part `keep` of the result.

    A sigma of 0, or fewer than 4 voxels, leaves an axis as it is. The filter is linear, so along
    one axis it is a matrix: its answers to single voxels. Matrix products take a fifth of the
    filter's time.
    """
    found = np.asarray(array, np.float32)
    parts = [slice(None)] * found.ndim if keep is None else keep
    kept = [len(range(*part.indices(n))) / n for part, n in zip(parts, found.shape)]
    for axis in np.argsort(kept, kind="stable"):
        part, sigma, step = parts[axis], sigma_mm[axis], spacing_mm[axis]
        length = found.shape[axis]
        if not sigma or length < _FEWEST:
            found = found[(slice(None),) * axis + (part,)]
            continue
        found = times(found, _answers(length, float(sigma), float(step))[:, part], axis)
    return np.ascontiguousarray(found)


@lru_cache(maxsize=3)
def _answers(length: int, sigma_mm: float, step_mm: float) -> np.ndarray:
    """A Gaussian's answers [from, to] to single voxels; kept, since some smooth twice."""
    single = sitk.GetImageFromArray(np.eye(length, dtype=np.float32))
    single.SetSpacing((step_mm, step_mm))
    return sitk.GetArrayFromImage(sitk.RecursiveGaussian(single, sigma_mm, direction=0))


def times(array: np.ndarray, matrix: np.ndarray, axis: int = -1) -> np.ndarray:
    """The product with a matrix [n, m] along an axis of n voxels, float32, with m voxels there."""
    axis %= array.ndim
    shape = (*array.shape[:axis], matrix.shape[1], *array.shape[axis + 1 :])
    made = np.empty(shape, np.float32)
    some = max(1, _ONE_THREAD // max(1, matrix.size))
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    planes, target = (each.reshape(before, each.shape[axis], after) for each in (array, made))
    if after != 1:  # without a copy of the array in another order
        across = np.ascontiguousarray(matrix.T)
        for first in range(0, after, some):
            part = slice(first, first + some)
            np.matmul(across, planes[..., part], out=target[..., part])
        return made
    matrix = np.ascontiguousarray(matrix)
    lines, target = planes[..., 0], target[..., 0]
    # All in one call, as a stack of products that are small enough, and what is left.
    count, rest = divmod(before, some)
    stacked, found = (
        each[: count * some].reshape(count, some, each.shape[1]) for each in (lines, target)
    )
    np.matmul(stacked, matrix, out=found)
    np.matmul(lines[before - rest :], matrix, out=target[before - rest :])
    return made


def dilated(inside: np.ndarray, radius: Sequence[int]) -> np.ndarray:
    """A mask (bool) with all voxels up to these distances in voxels along the axes."""
    for axis, reach in enumerate(radius):
        wider = inside.copy()
        old, new = np.moveaxis(inside, axis, 0), np.moveaxis(wider, axis, 0)
        for distance in range(1, min(reach, len(old) - 1) + 1):
            new[distance:] |= old[:-distance]
            new[:-distance] |= old[distance:]
        inside = wider
    return inside


def opened(inside: np.ndarray, radius: Sequence[int]) -> np.ndarray:
    """A mask (bool) without the parts into which a box of this radius does not fit.

    Everything beyond the array counts as inside, as in sitk.GrayscaleMorphologicalOpening.
    """
    padded = np.pad(inside, [(reach, reach) for reach in radius], constant_values=True)
    found = dilated(~dilated(~padded, radius), radius)
    return found[tuple(slice(reach, reach + n) for reach, n in zip(radius, inside.shape))]
