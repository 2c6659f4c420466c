"""Resampling onto another grid; between grids with parallel axes, one axis after the other.

Linear and nearest-neighbour interpolation are then products of interpolations along single axes.
Only the rows and columns below the new grid are read, two slices at a time, so that a long scan
needs no copy. Other grids are left to SimpleITK, with the same result but for rounding: values
extend half a voxel beyond the outermost centres.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

_PARALLEL = 1e-8  # largest deviation of the axes' cosines from 0 or 1
_SLAB_SLICES = 32
_DIGITS = 9  # of places in voxels, so that rounding errors decide nothing at borders


class _Places(NamedTuple):
    """Places of a grid's voxels along one axis, in voxels of the image that is resampled.

    at: float64 [n], within the image; inside: bool [n].
    """

    at: np.ndarray
    inside: np.ndarray


def linear(
    image: sitk.Image,
    reference: sitk.Image,
    outside: float = 0.0,
    factors: Sequence[int] = (1, 1, 1),
) -> sitk.Image:
    """Linear interpolation as float32 on the reference grid, `outside` beyond the image.

    factors: along x, y and z, of blocks of voxels that are averaged before, as sitk.BinShrink does:
    whole numbers stay whole.
    """
    made = np.empty(reference.GetSize()[::-1], np.float32)
    for number, plane in enumerate(planes(image, reference, outside, factors)):
        made[number] = plane
    return _image(made, reference)


def planes(
    image: sitk.Image,
    reference: sitk.Image,
    outside: float = 0.0,
    factors: Sequence[int] = (1, 1, 1),
) -> Iterator[np.ndarray]:
    """The slices of `linear`, float32 [row, column], one after the other."""
    steps = np.array(factors)
    shrunk = np.array(image.GetSize()) // steps
    places = _places(image, reference, steps, shrunk)
    if places is None:
        if max(factors) > 1:
            image = sitk.BinShrink(image, [int(step) for step in steps])
        yield from _oblique(image, reference, outside)
        return
    order, (along, rows, columns) = places
    source = sitk.GetArrayViewFromImage(image).transpose(order)
    blocks = [int(steps[2 - axis]) for axis in order]
    beside = ~rows.inside[:, None] | ~columns.inside
    edged = bool(beside.any())
    known: dict[int, np.ndarray] = {}

    def plane(number: int) -> np.ndarray:
        if number not in known:
            slab = source[number * blocks[0] : (number + 1) * blocks[0]]
            known[number] = _in_plane(slab, blocks, rows.at, columns.at)
        return known[number]

    last = source.shape[0] // blocks[0] - 1
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


def nearest(mask: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """A mask, uint8, 1 where the nearest voxel of `mask` is not 0; 0 beyond it."""
    places = _places(mask, reference, np.ones(3, int), np.array(mask.GetSize()))
    if places is None:
        none = sitk.Transform()
        return sitk.Resample(mask, reference, none, sitk.sitkNearestNeighbor, 0) != 0
    order, along = places
    found = sitk.GetArrayViewFromImage(mask).transpose(order)
    index = [np.floor(each.at + 0.5).astype(np.intp) for each in along]
    # The axes with the fewest new voxels first.
    for axis in sorted(range(3), key=lambda axis: len(index[axis]) / found.shape[axis]):
        found = found.take(index[axis], axis)
    found = (found != 0).view(np.uint8)
    for axis, each in enumerate(along):
        if not each.inside.all():
            np.moveaxis(found, axis, 0)[~each.inside] = 0
    return _image(found, reference)


def _oblique(image: sitk.Image, reference: sitk.Image, outside: float) -> Iterator[np.ndarray]:
    """`planes` by SimpleITK, a few at a time."""
    columns, rows, slices = reference.GetSize()
    for first in range(0, slices, _SLAB_SLICES):
        part = sitk.Image((columns, rows, min(_SLAB_SLICES, slices - first)), sitk.sitkUInt8)
        part.SetSpacing(reference.GetSpacing())
        part.SetDirection(reference.GetDirection())
        part.SetOrigin(reference.TransformIndexToPhysicalPoint((0, 0, first)))
        none = sitk.Transform()
        found = sitk.Resample(image, part, none, sitk.sitkLinear, outside, sitk.sitkFloat32)
        yield from sitk.GetArrayFromImage(found)


def _places(
    image: sitk.Image, reference: sitk.Image, steps: np.ndarray, shrunk: np.ndarray
) -> tuple[tuple[int, ...], list[_Places]] | None:
    """The image's array axes in the order of the reference's, and the places along each.

    steps, shrunk: block and number of blocks along x, y, z. None if the axes are not parallel.
    """
    turned = np.array(image.GetDirection()).reshape(3, 3).T @ np.array(
        reference.GetDirection()
    ).reshape(3, 3)
    exact = np.rint(turned)
    if np.abs(turned - exact).max() > _PARALLEL or not (np.abs(exact).sum(axis=0) == 1).all():
        return None
    start = (
        np.array(image.TransformPhysicalPointToContinuousIndex(reference.GetOrigin()))
        - (steps - 1) / 2
    ) / steps
    order, found = [], []
    for axis in (2, 1, 0):
        own = int(np.abs(exact[:, axis]).argmax())
        step = exact[own, axis] * reference.GetSpacing()[axis] / image.GetSpacing()[own]
        at = np.round(
            start[own] + step / steps[own] * np.arange(reference.GetSize()[axis]), _DIGITS
        )
        inside = (at >= -0.5) & (at < shrunk[own] - 0.5)
        order.append(2 - own)
        found.append(_Places(at.clip(0, shrunk[own] - 1), inside))
    return tuple(order), found


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
    total = part.sum(axis=0, dtype=kind if whole else np.float64)
    total = sum(total[k::high] for k in range(high))
    total = sum(total[:, k::wide] for k in range(wide))
    count = len(slab) * high * wide
    return (2 * total + count) // (2 * count) if whole else total / count


def _between(part: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation at these places along an axis, float32."""
    first = at.astype(np.intp)
    share = np.expand_dims((at - first).astype(np.float32), 1 - axis)
    low = part.take(first, axis).astype(np.float32)
    high = part.take(np.minimum(first + 1, part.shape[axis] - 1), axis).astype(np.float32)
    high -= low
    high *= share
    high += low
    return high


def _image(array: np.ndarray, reference: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(reference)
    return image
