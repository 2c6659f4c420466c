"""Resampling onto another grid; between grids with parallel axes, one axis after the other.

Linear and nearest-neighbour interpolation are then products of interpolations along single axes.
Only the rows and columns below the new grid are read, two slices at a time, so that a long scan
needs no copy. Other grids are left to SimpleITK, in slabs, with the same result but for rounding:
values extend half a voxel beyond the outermost centres.
"""

import operator
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from .voxels import Voxels

_SLAB_SLICES = 32
_DIGITS = 9  # of places in voxels, so that rounding errors decide nothing at borders


class _Places(NamedTuple):
    """Places of a grid's voxels along one axis, in voxels of the image that is resampled.

    at: float64 [n], rising, within the image; nearest: the voxels nearest to them, intp [n];
    inside: bool [n].
    """

    at: np.ndarray
    nearest: np.ndarray
    inside: np.ndarray


def linear(
    image: sitk.Image | Voxels,
    reference: sitk.Image,
    outside: float = 0.0,
    factors: Sequence[int] = (1, 1, 1),
    cancel: CancelToken | None = None,
) -> np.ndarray:
    """Linear interpolation on the reference grid, `outside` beyond the image; float32.

    factors: along x, y and z, of blocks of voxels that are averaged before, as sitk.BinShrink does:
    whole numbers stay whole. The axes are those of the reference, or the image's own if they are
    not parallel. cancel: asked before each slice. Raises Cancelled.
    """
    made = np.empty(reference.GetSize()[::-1], np.float32)
    for number, plane in enumerate(planes(image, reference, outside, factors)):
        check_cancel(cancel)
        made[number] = plane
    return made


def planes(
    image: sitk.Image | Voxels,
    reference: sitk.Image | Voxels,
    outside: float = 0.0,
    factors: Sequence[int] = (1, 1, 1),
) -> Iterator[np.ndarray]:
    """The slices of `linear`, float32 [row, column], one after the other."""
    stored, grid = Voxels.of(image), Voxels.of(reference)
    source = stored.along(grid.direction)
    if source is None:
        yield from _oblique(stored, grid, outside, np.array(factors))
        return
    along, rows, columns = _places(source, grid, np.array(factors))
    blocks = [int(factor) for factor in factors[::-1]]
    beside = ~rows.inside[:, None] | ~columns.inside
    edged = bool(beside.any())
    known: dict[int, np.ndarray] = {}

    def plane(number: int) -> np.ndarray:
        if number not in known:
            slab = source.array[number * blocks[0] : (number + 1) * blocks[0]]
            known[number] = _in_plane(slab, blocks, rows.at, columns.at)
        return known[number]

    last = source.array.shape[0] // blocks[0] - 1
    for at, inside in zip(along.at, along.inside):
        if not inside or beside.all():
            yield np.full(beside.shape, outside, np.float32)
            continue
        first = int(at)
        for old in [old for old in known if old not in (first, first + 1)]:
            del known[old]
        made = plane(min(first + 1, last)) - plane(first)
        made *= np.float32(at - first)
        made += plane(first)
        if edged:
            made[beside] = outside
        yield made


def nearest(mask: sitk.Image | Voxels, reference: sitk.Image) -> np.ndarray:
    """Where on the reference grid the nearest voxel of a mask is not 0; bool, False beyond it."""
    stored, grid = Voxels.of(mask), Voxels.of(reference)
    source = stored.along(grid.direction)
    if source is None:
        corners = np.array(list(np.ndindex(2, 2, 2))).T * (grid.size[:, None] - 1)
        image = _part(stored, grid.places(corners), np.ones(3, int))
        none = sitk.Transform()
        found = sitk.Resample(image, reference, none, sitk.sitkNearestNeighbor, 0)
        return sitk.GetArrayViewFromImage(found) != 0
    along = _places(source, grid, np.ones(3, int))
    # As it lies in memory: whole lines are copied first, and voxels taken from those alone.
    order = np.argsort(np.abs(source.array.strides))[::-1]
    first, second, third = (along[axis].nearest for axis in order)
    lines = source.array.transpose(order)[np.ix_(first, second)]
    found = (lines.take(third, 2) != 0).transpose(np.argsort(order))
    for axis, each in enumerate(along):
        if not each.inside.all():
            np.moveaxis(found, axis, 0)[~each.inside] = False
    return np.ascontiguousarray(found)


def _oblique(
    source: Voxels, grid: Voxels, outside: float, steps: np.ndarray
) -> Iterator[np.ndarray]:
    """`planes` by SimpleITK, a few at a time, from the part of the image around them."""
    columns, rows, slices = grid.size
    for first in range(0, slices, _SLAB_SLICES):
        count = min(_SLAB_SLICES, slices - first)
        part = sitk.Image([int(columns), int(rows), int(count)], sitk.sitkUInt8)
        part.SetSpacing(grid.spacing.tolist())
        part.SetDirection(grid.direction.ravel().tolist())
        part.SetOrigin(grid.places(np.array([[0], [0], [first]])).ravel().tolist())
        corners = np.array(list(np.ndindex(2, 2, 2))).T * (grid.size[:, None] - 1)
        corners[2] = first + corners[2].clip(max=count - 1)
        image = _part(source, grid.places(corners), steps)
        if steps.max() > 1:
            image = sitk.BinShrink(image, steps.tolist())
        none = sitk.Transform()
        found = sitk.Resample(image, part, none, sitk.sitkLinear, outside, sitk.sitkFloat32)
        yield from sitk.GetArrayFromImage(found)


def _part(source: Voxels, places: np.ndarray, steps: np.ndarray) -> sitk.Image:
    """A copy of the part around places [3, n], in whole blocks of so many voxels."""
    blocks = source.size // steps
    within = source.indices(places) / steps[:, None]
    # One more block on each side for the interpolation.
    low = np.clip(np.floor(within.min(axis=1)).astype(int) - 1, 0, blocks - 1)
    high = np.clip(np.ceil(within.max(axis=1)).astype(int) + 1, low, blocks - 1)
    return source.part(low * steps, (high + 1) * steps - 1)


def _places(source: Voxels, grid: Voxels, steps: np.ndarray) -> list[_Places]:
    """Places of a grid with parallel axes in the image, along slices, rows and columns.

    steps: blocks of voxels along x, y, z that are one voxel.
    """
    own = source.spacing * steps
    start = source.indices(grid.origin[:, None])[:, 0]
    found = []
    for axis in (2, 1, 0):
        count = source.size[axis] // steps[axis]
        first = (start[axis] - (steps[axis] - 1) / 2) / steps[axis]
        at = np.round(first + grid.spacing[axis] / own[axis] * np.arange(grid.size[axis]), _DIGITS)
        within = at.clip(0, count - 1)
        # A place in the middle of two voxels belongs to the one farther towards LPS, so that
        # nothing depends on the sense of the axes.
        along = grid.direction[:, axis]
        if along[np.abs(along).argmax()] > 0:
            voxel = np.floor(within + 0.5)
            inside = (at >= -0.5) & (at < count - 0.5)
        else:
            voxel = np.ceil(within - 0.5)
            inside = (at > -0.5) & (at <= count - 0.5)
        found.append(_Places(within, voxel.astype(np.intp), inside))
    return found


def _in_plane(
    slab: np.ndarray, blocks: Sequence[int], rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """A slab of one block of slices, averaged and interpolated, float32 [row, column]."""
    y, x = (
        slice(int(at.min()), min(int(at.max()) + 2, length // block))
        for at, length, block in zip((rows, columns), slab.shape[1:], blocks[1:])
    )
    part = _means(slab, blocks, y, x)
    return _between(_between(part, rows - y.start, 0), columns - x.start, 1)


def _means(slab: np.ndarray, blocks: Sequence[int], y: slice, x: slice) -> np.ndarray:
    """Means of the blocks in these rows and columns of blocks; one plane."""
    _, high, wide = blocks
    if len(slab) == high == wide == 1:
        return slab[0, y, x]
    whole = slab.dtype.kind in "iu"
    kind = np.int64 if slab.dtype.itemsize > 2 else np.int32
    part = slab[:, y.start * high : y.stop * high, x.start * wide : x.stop * wide]
    rows = part.reshape(len(slab), -1, high, part.shape[2])
    total = rows.sum(axis=(0, 2), dtype=kind if whole else np.float64)
    total = reduce(operator.add, (total[:, k::wide] for k in range(wide)))
    count = len(slab) * high * wide
    return (total + count // 2) // count if whole else total / count


def _between(part: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation at these places along an axis, float32."""
    first = at.astype(np.intp)
    share = np.expand_dims((at - first).astype(np.float32), 1 - axis)
    part = part.astype(np.float32, copy=False)
    low = part.take(first, axis)
    high = part.take(np.minimum(first + 1, part.shape[axis] - 1), axis)
    high -= low
    high *= share
    high += low
    return high
