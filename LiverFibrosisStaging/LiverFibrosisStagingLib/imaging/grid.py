"""From a CT to the network's input: the working grid and its patches of consecutive slices.

Arrays are [slice, row, column]; spacings that belong to arrays are in the same order, in mm.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from .components import filled, largest
from .filters import dilated, gaussian, opened
from .resampling import linear, nearest
from .voxels import PARALLEL, Voxels

AIR_HU = -1024.0
BODY_THRESHOLD_HU = -250.0
OPENING_MM = 4.0  # thicker than a scanner table's shell
COARSE_MM = 6.0  # fine enough to find the middle of the body
CUT_WARNING_MM = 10.0  # up to this, only skin and fat are cut off

Box = tuple[slice, slice, slice]


class Part(NamedTuple):
    """Voxels of an organ, bool, within a box [slice, row, column] of a grid; none elsewhere."""

    inside: np.ndarray
    box: Box


@dataclass(frozen=True, eq=False)
class WorkingGrid:
    """A CT in the model's geometry: LPS axes, the model's spacing and in-plane size.

    volume: float32 image, 0..1; body, liver, spleen: uint8 masks on the same grid (spleen may be
    None); starts: first slice of each patch; channels: of the network's input.
    """

    volume: sitk.Image
    body: sitk.Image
    liver: sitk.Image
    spleen: sitk.Image | None
    starts: tuple[int, ...]
    warnings: tuple[str, ...]
    channels: tuple[str, ...] = ("ct",)


def working_grid(
    ct: sitk.Image,
    liver: sitk.Image,
    spleen: sitk.Image | None = None,
    *,
    spacing: tuple[float, float, float],
    patch_size: tuple[int, int, int],
    window: tuple[float, float] = (-125.0, 225.0),
    overlap: float = 0.5,
    smoothing_mm: float = 0.0,
    channels: tuple[str, ...] = ("ct",),
    field: str = "body",
    fill: tuple[float, float] | None = None,
    liver_hu: float | None = None,
    cancel: CancelToken | None = None,
) -> WorkingGrid:
    """Resample a CT and its masks (on the CT's grid) to the model's geometry.

    Any orientation, oblique ones included, is resampled onto LPS axes. In plane the patch is
    centred on the body; along the body the patches cover the slices that contain liver (Yin et al.
    2021, "Algorithm scheme": 32 consecutive slices, soft tissue window -125..225 HU scaled to
    0..1).

    ct: scalar 3-D image in HU; liver, spleen: masks, non-zero inside. spacing: (slice, row,
    column) mm; patch_size: (slices, rows, columns) voxels; overlap: minimum overlap of neighbouring
    patches, as a fraction; smoothing_mm: sigma of a Gaussian over the working grid, which reduces
    differences in noise between kernels, slice thicknesses and oblique grids. channels, field, fill
    (mm, HU) and liver_hu: as in `card.Card`. With field "organs" the patch is centred on liver and
    spleen. With a fill, slices beyond the scan are filled too; otherwise its first and last slices
    are repeated. fill's distance is measured along each axis. cancel: asked before each slice.
    Raises Cancelled.
    """
    scan = Voxels.of(ct).lps()
    organs = [Voxels.of(mask).lps() for mask in (liver, spleen) if mask is not None]
    if field == "organs":
        box = _extent(*organs)
        extent, centre = box[2], box[:2].mean(axis=1)
        half = np.array([patch_size[2] * spacing[2], patch_size[1] * spacing[1]]) / 2
        what, cut_mm = "Liver and spleen are", float((np.ptp(box[:2], axis=1) / 2 - half).max())
    else:
        extent = _extent(organs[0])[2]
        centre, cut_mm = _body_centre(scan, extent, patch_size, spacing, cancel)
        what = "The body is"
    reference, padded, about_slices = _reference_grid(scan, extent, centre, spacing, patch_size)
    hu = resample_ct(scan, reference, cancel=cancel)
    inside = [nearest(mask, reference) for mask in organs]
    check_cancel(cancel)
    body = body_mask(hu, spacing, OPENING_MM)

    check_cancel(cancel)
    if smoothing_mm:
        hu = gaussian(hu, [smoothing_mm] * 3, spacing)
    if liver_hu is not None:
        hu += np.float32(liver_hu - float(np.median(hu[inside[0]])))
    low, high = window
    hu -= low
    hu /= high - low
    volume = hu.clip(0, 1, out=hu)
    if fill is None:
        volume = np.pad(volume, [padded, (0, 0), (0, 0)], "edge")
    else:
        beyond_mm, fill_hu = fill
        filled = float(np.clip((fill_hu - low) / (high - low), 0, 1))
        radius = [round(beyond_mm / step) for step in spacing]
        volume[~dilated(np.logical_or.reduce(inside), radius)] = filled
        volume = np.pad(volume, [padded, (0, 0), (0, 0)], constant_values=filled)
    warnings = [*about_slices] if fill is None else []
    if cut_mm > CUT_WARNING_MM:
        warnings.append(
            f"{what} wider than the network's field of view: {cut_mm:.0f} mm are cut off."
        )

    def on_grid(values: np.ndarray) -> sitk.Image:
        made = sitk.GetImageFromArray(values)
        made.SetSpacing(reference.GetSpacing())
        made.SetOrigin(reference.TransformIndexToPhysicalPoint([0, 0, -padded[0]]))
        return made

    masks = [np.pad(m.view(np.uint8), [padded, (0, 0), (0, 0)]) for m in (body, *inside)]
    return WorkingGrid(
        volume=on_grid(volume),
        body=on_grid(masks[0]),
        liver=on_grid(masks[1]),
        spleen=on_grid(masks[2]) if len(masks) > 2 else None,
        starts=patch_starts(len(volume), patch_size[0], overlap),
        warnings=tuple(warnings),
        channels=channels,
    )


def patch_starts(length: int, patch: int, overlap: float) -> tuple[int, ...]:
    """First slices of the smallest set of patches covering `length` slices with this overlap."""
    if length <= patch:
        return (0,)
    step = patch * (1.0 - overlap)
    count = math.ceil((length - patch) / step - 1e-6) + 1
    return tuple(int(round(start)) for start in np.linspace(0, length - patch, count))


def patch_array(grid: WorkingGrid, start: int, slices: int) -> np.ndarray:
    """Network input float32 [1, channels, slices, rows, columns] of the patch from `start` on."""
    found = {"ct": grid.volume, "liver": grid.liver, "spleen": grid.spleen}
    patch = np.zeros((len(grid.channels), slices, *grid.volume.GetSize()[1::-1]), np.float32)
    for channel, name in zip(patch, grid.channels):
        if found[name] is not None:
            channel[:] = sitk.GetArrayViewFromImage(found[name])[start : start + slices]
    return patch[None]


def reorient_to_lps(image: sitk.Image) -> sitk.Image:
    """Permute and flip the axes to the orientation closest to LPS, without interpolation.

    Afterwards nothing depends on the order in which the voxels were stored.
    """
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    return image if orientation(image.GetDirection()) == "LPS" else sitk.DICOMOrient(image, "LPS")


def _extent(mask: Voxels, *others: Voxels) -> np.ndarray:
    """Lower and upper end of one or more masks along x, y and z, LPS mm [3, 2].

    A thousandth of its volume is left out at either end: single voxels do not shift the patches,
    and an oblique grid gives the same ends as an axial one.
    """
    every = 2  # a quarter of the voxels of each slice is enough
    boxes = [bounding_box(each.array) for each in (mask, *others)]
    limits = [[(part.start, part.stop) for part in box] for box in boxes if box is not None]
    first = np.min(limits, axis=0)[:, 0] // every * every
    box = tuple(map(slice, first, np.max(limits, axis=0)[:, 1]))
    # Whole rows are compared: every second voxel of a row takes twice as long.
    rows = (each.array[box][:, ::every] != 0 for each in (mask, *others))
    inside = np.ascontiguousarray(reduce(operator.ior, rows)[..., ::every])
    at = [
        part.start + step * np.arange(n)
        for part, step, n in zip(box, (1, every, every), inside.shape)
    ]
    ends = []
    for axis, origin in enumerate(mask.origin):
        # Voxels with the same place along this axis are counted: without rotation, whole slices.
        steps = (mask.direction[axis] * mask.spacing)[::-1]
        related = [k for k in range(3) if abs(mask.direction[axis, 2 - k]) > PARALLEL]
        counts = inside.sum(axis=tuple(k for k in range(3) if k not in related), dtype=np.int32)
        places = origin + sum(np.ix_(*(steps[k] * at[k] for k in related)))
        half = abs(steps[2 - axis]) / 2
        there = counts > 0
        low, high = _quantiles(places[there], counts[there], (0.001, 0.999))
        ends.append((low - half, high + half))
    return np.array(ends)


def _quantiles(values: np.ndarray, counts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """np.quantile of values that occur `counts` times each; values, counts: [n]."""
    order = values.argsort()
    values, reached = values[order], counts[order].cumsum()
    place = np.array(shares) * (reached[-1] - 1)
    low, high = (
        values[reached.searchsorted(each, "right")] for each in (np.floor(place), np.ceil(place))
    )
    return low + (high - low) * (place % 1)


def bounds(ct: sitk.Image | Voxels) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner (x, y, z) of the box around the CT's voxels, LPS mm."""
    voxels = Voxels.of(ct)
    corners = voxels.places(np.array(list(np.ndindex(2, 2, 2))).T * voxels.size[:, None] - 0.5)
    return corners.min(axis=1), corners.max(axis=1)


def body_bounds(
    ct: sitk.Image | Voxels, margin_mm: float = 12.0, cancel: CancelToken | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Corners, as in `bounds`, of the part of a CT that contains the patient."""
    low, high = bounds(ct)
    coarse, body = coarse_body(ct, low, high, cancel)
    box = bounding_box(body)
    if box is None:
        return low, high
    ends = np.array([(part.start, part.stop - 1) for part in box[::-1]])
    first, last = np.array(coarse.GetOrigin()) + COARSE_MM * ends.T
    return np.maximum(first - margin_mm, low), np.minimum(last + margin_mm, high)


def bounding_box(where: np.ndarray) -> Box | None:
    """The smallest box [slice, row, column] with all non-zero voxels; None if all are 0."""
    # Searched as it lies in memory: backwards, as flipped axes are, takes five times as long.
    steps = [-1 if stride < 0 else 1 for stride in where.strides]
    stored = where[tuple(slice(None, None, step) for step in steps)]
    levels = np.flatnonzero(stored.any(axis=(1, 2)))
    if not levels.size:
        return None
    # What is left is read once for both other axes.
    plane = stored[levels[0] : levels[-1] + 1].any(axis=0)
    found = (levels, *(np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0)))
    ends = [(int(inside[0]), int(inside[-1]) + 1) for inside in found]
    first, second, third = (
        slice(*end) if step > 0 else slice(length - end[1], length - end[0])
        for end, step, length in zip(ends, steps, where.shape)
    )
    return first, second, third


def widened(box: tuple[slice, ...], margin: Sequence[int]) -> tuple[slice, ...]:
    """A box with this many more voxels at both ends of each axis, as far as the array goes."""
    return tuple(slice(max(b.start - m, 0), b.stop + m) for b, m in zip(box, margin))


def paste(array: np.ndarray, image: sitk.Image, box: Box) -> None:
    """Write an array [slice, row, column] into a box of an image, without a copy of the image."""
    image[tuple(box[::-1])] = sitk.GetImageFromArray(array)


def box_on_ct(where: np.ndarray, grid: sitk.Image, ct: sitk.Image) -> tuple[list[int], list[int]]:
    """First voxel and size of the part of the CT that covers the non-zero voxels on the grid."""
    ends = [(part.start - 1.0, float(part.stop)) for part in bounding_box(where)[::-1]]
    corners = [
        ct.TransformPhysicalPointToContinuousIndex(
            grid.TransformContinuousIndexToPhysicalPoint([e[c] for e, c in zip(ends, corner)])
        )
        for corner in np.ndindex(2, 2, 2)
    ]
    limits = np.array(ct.GetSize())
    first = np.clip(np.floor(np.min(corners, axis=0)), 0, limits - 1).astype(int)
    last = np.clip(np.ceil(np.max(corners, axis=0)), first, limits - 1).astype(int)
    return first.tolist(), (last - first + 1).tolist()


def box_grid(ct: sitk.Image, first: Sequence[int], size: Sequence[int]) -> sitk.Image:
    """An empty image in place of a box of a CT: first voxel and size along i, j, k."""
    grid = sitk.Image(list(size), sitk.sitkUInt8)
    grid.SetOrigin(ct.TransformIndexToPhysicalPoint(first))
    grid.SetSpacing(ct.GetSpacing())
    grid.SetDirection(ct.GetDirection())
    return grid


def coarse_body(
    ct: sitk.Image | Voxels,
    low: np.ndarray,
    high: np.ndarray,
    cancel: CancelToken | None = None,
) -> tuple[sitk.Image, np.ndarray]:
    """A grid of COARSE_MM between two corners, and the body mask on it."""
    step = np.full(3, COARSE_MM)
    size = np.maximum(np.floor((high - low) / step), 1)
    coarse = lps_grid((low + high) / 2, size, step)
    return coarse, body_mask(linear(ct, coarse, AIR_HU, cancel=cancel), step, COARSE_MM)


def lps_grid(centre: np.ndarray, size: np.ndarray, spacing: np.ndarray) -> sitk.Image:
    """An empty image with LPS axes; centre, size and spacing in the order x, y, z."""
    grid = sitk.Image([int(n) for n in size], sitk.sitkUInt8)
    grid.SetSpacing([float(s) for s in spacing])
    grid.SetOrigin([float(o) for o in centre - (size - 1) / 2 * spacing])
    return grid


def _body_centre(
    ct: Voxels,
    extent: np.ndarray,
    patch_size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    cancel: CancelToken | None,
) -> tuple[np.ndarray, float]:
    """Centre of the body (x, y) at the liver's level, and how many mm the patch cuts off."""
    low, high = bounds(ct)
    low[2], high[2] = max(low[2], extent[0]), min(high[2], extent[1])
    coarse, body = coarse_body(ct, low, high, cancel)
    if not body.any():
        return ((low + high) / 2)[:2], 0.0
    _, j, i = np.nonzero(body)
    first = np.array(coarse.GetOrigin()[:2])
    columns = first[0] + COARSE_MM * i
    rows = first[1] + COARSE_MM * j
    centre = np.array([columns.mean(), rows.mean()])
    reach = np.array([np.abs(columns - centre[0]).max(), np.abs(rows - centre[1]).max()])
    half = np.array([patch_size[2] * spacing[2], patch_size[1] * spacing[1]]) / 2
    return centre, float((reach - half).max())


def _reference_grid(
    ct: Voxels,
    extent: np.ndarray,
    centre: np.ndarray,
    spacing: tuple[float, float, float],
    patch_size: tuple[int, int, int],
) -> tuple[sitk.Image, tuple[int, int], list[str]]:
    """The empty working grid inside the scan, the slices to pad at either end, and warnings."""
    low, high = bounds(ct)
    step, slices = spacing[0], patch_size[0]
    # The tolerance keeps rounding errors from adding a slice.
    liver_slices = math.ceil((extent[1] - extent[0]) / step - 1e-3)
    available = slices_in(ct, step)
    wanted = max(liver_slices, slices)
    count = min(wanted, available)
    half = count * step / 2
    middle = (extent[0] + extent[1]) / 2
    middle = min(max(middle, low[2] + half), max(high[2] - half, low[2] + half))
    grid = lps_grid(
        np.array([*centre, middle]),
        np.array([patch_size[2], patch_size[1], count]),
        np.array(spacing[::-1]),
    )
    missing = max(0, slices - count)
    warnings = []
    if missing:
        warnings.append(
            f"The scan spans {count} slices of {step:g} mm; the network needs {slices}, so the "
            "first and last slices were repeated. The result is less reliable."
        )
    elif liver_slices < slices:
        warnings.append(
            f"The liver spans {liver_slices} slices of {step:g} mm; the network needs {slices}, so "
            "slices without liver were included."
        )
    return grid, (missing // 2, missing - missing // 2), warnings


def slices_in(ct: sitk.Image | Voxels, step: float) -> int:
    """Slices of `step` mm along the body that the scan has room for, at least one."""
    low, high = bounds(ct)
    return max(1, math.floor((high[2] - low[2]) / step + 1e-3))


def resample_ct(
    ct: sitk.Image | Voxels,
    reference: sitk.Image,
    outside: float = AIR_HU,
    cancel: CancelToken | None = None,
) -> np.ndarray:
    """HU on the reference grid, float32: block means along coarser axes, then linear.

    An oblique CT has its axes in the order of the reference's, as from `Voxels.lps`.
    """
    stored = Voxels.of(ct)
    voxels = stored.along(Voxels.of(reference).direction) or stored
    factors = [
        max(1, min(int(wanted / found + 1e-3), int(count)))
        for wanted, found, count in zip(reference.GetSpacing(), voxels.spacing, voxels.size)
    ]
    return linear(voxels, reference, outside, factors, cancel)


def body_mask(hu: np.ndarray, spacing: Sequence[float], opening_mm: float) -> np.ndarray:
    """The body including lungs and bowel gas, without the table and the surrounding air; bool.

    hu: [slice, row, column]; spacing: in the same order, mm.
    """
    radius = [int(opening_mm / step + 1e-3) for step in spacing[1:]]
    body = opened(hu >= BODY_THRESHOLD_HU, [0, *radius])  # a coarse grid has no table to remove
    box = bounding_box(body)
    if box is None:
        return body
    part = body[:, box[1], box[2]]
    part[:] = filled(largest(part), ends=False)  # the first and last slice cut the lungs open
    return body
