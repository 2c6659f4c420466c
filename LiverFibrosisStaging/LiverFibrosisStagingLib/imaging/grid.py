"""From a CT to the network's input: the working grid and its patches of consecutive slices.

Arrays are [slice, row, column]; spacings that belong to arrays are in the same order, in mm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .resampling import linear, nearest

AIR_HU = -1024.0
BODY_THRESHOLD_HU = -250.0
OPENING_MM = 4.0  # thicker than a scanner table's shell
COARSE_MM = 6.0  # fine enough to find the middle of the body
CUT_WARNING_MM = 10.0  # up to this, only skin and fat are cut off


@dataclass(frozen=True)
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
    are repeated. fill's distance is measured along each axis.
    """
    ct, liver = reorient_to_lps(ct), reorient_to_lps(liver)
    spleen = None if spleen is None else reorient_to_lps(spleen)
    if field == "organs":
        box = _extent(liver) if spleen is None else _extent(liver, spleen)
        extent, centre = box[2], box[:2].mean(axis=1)
        half = np.array([patch_size[2] * spacing[2], patch_size[1] * spacing[1]]) / 2
        what, cut_mm = "Liver and spleen are", float((np.ptp(box[:2], axis=1) / 2 - half).max())
    else:
        extent = _extent(liver)[2]
        centre, cut_mm = _body_centre(ct, extent, patch_size, spacing)
        what = "The body is"
    reference, padded, about_slices = _reference_grid(ct, extent, centre, spacing, patch_size)
    hu = resample_ct(ct, reference)
    pad = [0, 0, padded[0]], [0, 0, padded[1]]

    smooth = sitk.SmoothingRecursiveGaussian(hu, smoothing_mm) if smoothing_mm else hu
    organs = [nearest(mask, reference) for mask in (liver, spleen) if mask is not None]
    if liver_hu is not None:
        inside = sitk.GetArrayViewFromImage(smooth)[sitk.GetArrayViewFromImage(organs[0]) > 0]
        smooth = smooth + (liver_hu - float(np.median(inside)))
    volume = sitk.IntensityWindowing(smooth, *window, 0.0, 1.0)
    if fill is None:
        volume = sitk.ZeroFluxNeumannPad(volume, *pad)
    else:
        beyond_mm, fill_hu = fill
        low, high = window
        filled = float(np.clip((fill_hu - low) / (high - low), 0, 1))
        radius = [round(beyond_mm / step) for step in spacing[::-1]]
        near = sitk.BinaryDilate(sitk.Or(organs[0], organs[-1]), radius, sitk.sitkBox)
        volume = sitk.ConstantPad(sitk.Mask(volume, near, filled), *pad, filled)
    warnings = [*about_slices] if fill is None else []
    if cut_mm > CUT_WARNING_MM:
        warnings.append(
            f"{what} wider than the network's field of view: {cut_mm:.0f} mm are cut off."
        )
    body, *organs = (
        _from_zero(sitk.ConstantPad(mask, *pad, 0)) for mask in (body_mask(hu, OPENING_MM), *organs)
    )
    return WorkingGrid(
        volume=_from_zero(volume),
        body=body,
        liver=organs[0],
        spleen=organs[1] if len(organs) > 1 else None,
        starts=patch_starts(volume.GetSize()[2], patch_size[0], overlap),
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


def straightened(image: sitk.Image) -> sitk.Image:
    """The image with axes along x, y and z from 0, as if its header had not been rotated."""
    straight = sitk.Image(image)
    straight.SetOrigin((0.0, 0.0, 0.0))
    straight.SetDirection(np.eye(3).ravel().tolist())
    return straight


def _extent(mask: sitk.Image, *others: sitk.Image) -> np.ndarray:
    """Lower and upper end of one or more masks along x, y and z, LPS mm [3, 2].

    A thousandth of its volume is left out at either end: single voxels do not shift the patches,
    and an oblique grid gives the same ends as an axial one.
    """
    every = 2  # a quarter of the voxels of each slice is enough
    first, *more = (
        sitk.GetArrayViewFromImage(each)[:, ::every, ::every] != 0 for each in (mask, *others)
    )
    for each in more:
        first |= each
    k, j, i = np.nonzero(first)
    step = np.array(mask.GetDirection()).reshape(3, 3) * np.array(mask.GetSpacing())
    places = np.array(mask.GetOrigin())[:, None] + step @ np.stack([every * i, every * j, k])
    ends = np.quantile(places, [0.001, 0.999], axis=1).T
    return ends + np.abs(np.diag(step))[:, None] / 2 * [-1, 1]


def bounds(ct: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner (x, y, z) of the box around the CT's voxels, LPS mm."""
    size = ct.GetSize()
    corners = [
        ct.TransformContinuousIndexToPhysicalPoint([c * n - 0.5 for c, n in zip(corner, size)])
        for corner in np.ndindex(2, 2, 2)
    ]
    return np.min(corners, axis=0), np.max(corners, axis=0)


def body_bounds(ct: sitk.Image, margin_mm: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """Corners, as in `bounds`, of the part of a CT that contains the patient."""
    low, high = bounds(ct)
    coarse, body = coarse_body(ct, low, high)
    box = bounding_box(body)
    if box is None:
        return low, high
    ends = np.array([(part.start, part.stop - 1) for part in box[::-1]])
    first, last = np.array(coarse.GetOrigin()) + COARSE_MM * ends.T
    return np.maximum(first - margin_mm, low), np.minimum(last + margin_mm, high)


def bounding_box(where: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box [slice, row, column] with all non-zero voxels; None if all are 0."""
    box: tuple[slice, ...] = ()
    for axis in range(3):
        # Each axis is searched in the box that the axes before it have left.
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(where[box].any(axis=others))
        if not inside.size:
            return None
        box += (slice(int(inside[0]), int(inside[-1]) + 1),)
    return box


def widened(box: tuple[slice, ...], margin: Sequence[int]) -> tuple[slice, ...]:
    """A box with this many more voxels at both ends of each axis, as far as the array goes."""
    return tuple(slice(max(b.start - m, 0), b.stop + m) for b, m in zip(box, margin))


def paste(array: np.ndarray, image: sitk.Image, box: tuple[slice, slice, slice]) -> None:
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


def coarse_body(ct: sitk.Image, low: np.ndarray, high: np.ndarray) -> tuple[sitk.Image, np.ndarray]:
    """A grid of COARSE_MM between two corners, and the body mask on it."""
    step = np.full(3, COARSE_MM)
    size = np.maximum(np.floor((high - low) / step), 1)
    coarse = lps_grid((low + high) / 2, size, step)
    hu = linear(ct, coarse, AIR_HU)
    return coarse, sitk.GetArrayFromImage(body_mask(hu, COARSE_MM)) > 0


def lps_grid(centre: np.ndarray, size: np.ndarray, spacing: np.ndarray) -> sitk.Image:
    """An empty image with LPS axes; centre, size and spacing in the order x, y, z."""
    grid = sitk.Image([int(n) for n in size], sitk.sitkUInt8)
    grid.SetSpacing([float(s) for s in spacing])
    grid.SetOrigin([float(o) for o in centre - (size - 1) / 2 * spacing])
    return grid


def _body_centre(
    ct: sitk.Image,
    extent: np.ndarray,
    patch_size: tuple[int, int, int],
    spacing: tuple[float, float, float],
) -> tuple[np.ndarray, float]:
    """Centre of the body (x, y) at the liver's level, and how many mm the patch cuts off."""
    low, high = bounds(ct)
    low[2], high[2] = max(low[2], extent[0]), min(high[2], extent[1])
    coarse, body = coarse_body(ct, low, high)
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
    ct: sitk.Image,
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


def slices_in(ct: sitk.Image, step: float) -> int:
    """Slices of `step` mm along the body that the scan has room for, at least one."""
    low, high = bounds(ct)
    return max(1, math.floor((high[2] - low[2]) / step + 1e-3))


def resample_ct(ct: sitk.Image, reference: sitk.Image, outside: float = AIR_HU) -> sitk.Image:
    """HU as float32 on the reference grid: block means along coarser axes, then linear."""
    factors = [
        max(1, min(int(wanted / found + 1e-3), count))
        for wanted, found, count in zip(reference.GetSpacing(), ct.GetSpacing(), ct.GetSize())
    ]
    return linear(ct, reference, outside, factors)


def body_mask(hu: sitk.Image, opening_mm: float) -> sitk.Image:
    """The body including lungs and bowel gas, without the table and the surrounding air."""
    radius = [int(opening_mm / s + 1e-3) for s in hu.GetSpacing()[:2]]
    dense = sitk.BinaryThreshold(hu, BODY_THRESHOLD_HU, 1e6)
    if min(radius) > 0:  # a coarse grid has no table to remove, and ITK crashes on a radius of 0
        dense = sitk.GrayscaleMorphologicalOpening(dense, [*radius, 0], sitk.sitkBox)
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(dense)) == 1
    # One closed slice at either end, since the scan's first and last slice cut the lungs open.
    closed = sitk.ConstantPad(largest, [0, 0, 1], [0, 0, 1], 1)
    return sitk.BinaryFillhole(closed)[:, :, 1:-1]


def _from_zero(image: sitk.Image) -> sitk.Image:
    """The image with a start index of 0; padding makes it negative."""
    return sitk.RegionOfInterest(image, image.GetSize())
