"""From Grad-CAM maps of patches to one location map of the patient.

The maps are merged on one scale and divided by their mean over the body, so that 1 is average
attention. It is an assumption that the liver weights of Yin et al. 2021 (median 0.58 in F0, 1.43 in
F4) are relative to the same: the paper does not say to what.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .imaging.grid import WorkingGrid, bounding_box, box_on_ct, paste
from .imaging.resampling import linear, nearest
from .report.colors import BAND_COUNT

SLAB_SLICES = 32  # slices of the CT that are resampled at once


@dataclass(frozen=True)
class LocationMap:
    """A location map on the working grid.

    relative: float32 image, attention relative to its mean over the body, 0 outside the body.
    body_mean: that mean; relative times body_mean is the raw Grad-CAM.
    """

    relative: sitk.Image
    body_mean: float


def merge_patches(
    maps: Sequence[np.ndarray], grid: WorkingGrid, patch_size: tuple[int, int, int]
) -> LocationMap:
    """Merge raw maps [slice, row, column], one for each of `grid.starts`, into one location map.

    Each is interpolated linearly from the target layer's resolution to the patch's voxels; maps of
    overlapping patches are averaged. `patch_size` is (slices, rows, columns).
    """
    total = np.zeros(grid.volume.GetSize()[::-1], np.float32)
    count = np.zeros((total.shape[0], 1, 1), np.float32)
    for start, raw in zip(grid.starts, maps):
        total[start : start + patch_size[0]] += enlarge(raw, patch_size)
        count[start : start + patch_size[0]] += 1
    inside = sitk.GetArrayViewFromImage(grid.body) > 0
    merged = np.where(inside, total / count, 0)
    body_mean = float(merged[inside].mean(dtype=np.float64)) if inside.any() else 0.0
    if body_mean > 0:
        merged /= body_mean
    relative = sitk.GetImageFromArray(merged.astype(np.float32))
    relative.CopyInformation(grid.volume)
    return LocationMap(relative, body_mean)


def enlarge(raw: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Interpolate a map to `size` voxels over the same field of view, extrapolating its edges."""
    image = sitk.GetImageFromArray(np.asarray(raw, np.float32))
    # A map voxel corresponds to a block of patch voxels, with the same centre.
    step = [n / m for n, m in zip(size[::-1], image.GetSize())]
    image.SetSpacing(step)
    image.SetOrigin([(s - 1) / 2 for s in step])
    reference = sitk.Image(size[::-1], sitk.sitkUInt8)
    return sitk.GetArrayFromImage(linear(image, reference))


def on_ct(
    location: LocationMap, grid: WorkingGrid, ct: sitk.Image
) -> tuple[sitk.Image, sitk.Image]:
    """The location map (float32) and its label map (uint8) on the CT's own grid.

    The label map has ten bands: label n for values above n - 1 and up to n tenths of this case's
    maximum; 0 outside the body, and where the map is 0.
    """
    relative = sitk.Image(ct.GetSize(), sitk.sitkFloat32)
    relative.CopyInformation(ct)
    inside = sitk.GetArrayViewFromImage(grid.body) > 0
    if inside.any():
        # Only the part of the CT covered by the map, and a few slices at a time: a float copy of a
        # CT of 500 slices takes half a gigabyte.
        (x, y, z), (columns, rows, slices) = box_on_ct(inside, grid.body, ct)
        for first in range(z, z + slices, SLAB_SLICES):
            last = min(first + SLAB_SLICES, z + slices)
            part = sitk.Image((columns, rows, last - first), sitk.sitkUInt8)
            part.SetOrigin(ct.TransformIndexToPhysicalPoint((x, y, first)))
            part.SetSpacing(ct.GetSpacing())
            part.SetDirection(ct.GetDirection())
            values = sitk.Mask(linear(location.relative, part), nearest(grid.body, part))
            relative[x : x + columns, y : y + rows, first:last] = values
    return relative, band_labels(relative)


def band_labels(relative: sitk.Image) -> sitk.Image:
    """Labels 1 to 10 for ten bands of 10 % of the map's maximum, 0 where the map is 0."""
    values = sitk.GetArrayViewFromImage(relative)
    labels = sitk.Image(relative.GetSize(), sitk.sitkUInt8)
    labels.CopyInformation(relative)
    box = bounding_box(values)
    highest = float(values[box].max()) if box is not None else 0.0
    if highest > 0:
        inside = values[box]
        found = np.empty(inside.shape, np.uint8)
        for band, value in zip(found, inside):  # without a second float copy
            band[:] = np.minimum(np.ceil(value * (BAND_COUNT / highest)), BAND_COUNT)
        paste(found, labels, box)
    return labels
