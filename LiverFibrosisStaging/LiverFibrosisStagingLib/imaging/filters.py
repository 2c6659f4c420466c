"""Filters of arrays along their axes, [slice, row, column] or of any other number of axes."""

from collections.abc import Sequence

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
        single = sitk.GetImageFromArray(np.eye(length, dtype=np.float32))
        single.SetSpacing((step, step))
        answers = sitk.GetArrayFromImage(sitk.RecursiveGaussian(single, sigma, direction=0))
        found = np.moveaxis(times(np.moveaxis(found, axis, -1), answers[:, part]), -1, axis)
    return np.ascontiguousarray(found)


def times(lines: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The matrix product of lines [..., n] and a matrix [n, m], float32 [..., m]."""
    matrix = np.ascontiguousarray(matrix)
    rows = lines.reshape(-1, len(matrix))
    made = np.empty((len(rows), matrix.shape[1]), np.float32)
    some = max(1, _ONE_THREAD // max(1, matrix.size))
    # All in one call, as a stack of products that are small enough, and what is left.
    count, rest = divmod(len(rows), some)
    stacked, target = (
        each[: count * some].reshape(count, some, each.shape[1]) for each in (rows, made)
    )
    np.matmul(stacked, matrix, out=target)
    np.matmul(rows[len(rows) - rest :], matrix, out=made[len(rows) - rest :])
    return made.reshape(*lines.shape[:-1], matrix.shape[1])


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
