"""From Grad-CAM maps of patches to one location map of the patient.

The maps are merged on one scale and divided by their mean over the body, so that 1 is average
attention. It is an assumption that the liver weights of Yin et al. 2021 (median 0.58 in F0, 1.43 in
F4) are relative to the same: the paper does not say to what.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from .errors import CancelToken, check_cancel
from .imaging.grid import WorkingGrid, box_grid, box_on_ct
from .imaging.resampling import linear, nearest, planes
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
    merged = np.divide(total, count, out=total)
    merged[~inside] = 0
    body_mean = float(merged[inside].mean(dtype=np.float64)) if inside.any() else 0.0
    if body_mean > 0:
        merged /= body_mean
    relative = sitk.GetImageFromArray(merged)
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
    return linear(image, reference)


@dataclass(frozen=True, eq=False)
class MapOnCt:
    """A location map in the voxels of a CT, computed whenever it is needed: a long scan has too
    many to keep. Only a box of the CT, which contains the map, is computed, a few slices at a time.

    location, body: on the working grid. ct: the CT. first, size: of the box (i, j, k). maximum:
    over the CT's voxels. strongest: index (i, j, k) in the CT of the first voxel with the maximum;
    None for an empty map.
    """

    location: LocationMap
    body: sitk.Image
    ct: sitk.Image
    first: tuple[int, int, int]
    size: tuple[int, int, int]
    maximum: float = 0.0
    strongest: tuple[int, int, int] | None = None

    def slabs(self) -> Iterator[tuple[int, np.ndarray]]:
        """The slices of the box: index of the first in the CT, and their values float32 [slice,
        row, column], 0 outside the body.
        """
        first, count = self.first[2], self.size[2]
        return ((at, self._slab(at)) for at in range(first, first + count, SLAB_SLICES))

    def bands(self, values: np.ndarray) -> np.ndarray:
        """Labels uint8 of values of this map: n for values above n - 1 and up to n tenths of the
        maximum; 0 where they are 0.
        """
        labels = np.zeros(values.shape, np.uint8)
        if self.maximum > 0:
            for band, value in zip(labels, values):  # without a second float copy
                band[:] = np.minimum(np.ceil(value * (BAND_COUNT / self.maximum)), BAND_COUNT)
        return labels

    def relative_in_box(self, cancel: CancelToken | None = None) -> np.ndarray:
        """Attention relative to its mean over the body, float32 [slice, row, column].

        Raises Cancelled.
        """
        return self._in_box(np.float32, lambda values: values, cancel)

    def bands_in_box(self) -> np.ndarray:
        """The `bands`, uint8 [slice, row, column]."""
        return self._in_box(np.uint8, self.bands)

    def box_image(self, values: np.ndarray) -> sitk.Image:
        """Values of the box as an image at its place."""
        image = sitk.GetImageFromArray(values)
        image.SetOrigin(self.ct.TransformIndexToPhysicalPoint(self.first))
        image.SetSpacing(self.ct.GetSpacing())
        image.SetDirection(self.ct.GetDirection())
        return image

    def whole_image(self, values: np.ndarray) -> sitk.Image:
        """Values of the box as an image on the CT's grid, 0 elsewhere."""
        box = self.box_image(values)
        image = sitk.Image(self.ct.GetSize(), box.GetPixelID())
        image.CopyInformation(self.ct)
        image[tuple(slice(f, f + n) for f, n in zip(self.first, self.size))] = box
        return image

    def _in_box(
        self,
        dtype: type[np.generic],
        values_of: Callable[[np.ndarray], np.ndarray],
        cancel: CancelToken | None = None,
    ) -> np.ndarray:
        made = np.empty(self.size[::-1], dtype)
        for at, values in self.slabs():
            check_cancel(cancel)
            made[at - self.first[2] :][: len(values)] = values_of(values)
        return made

    def _slab(self, at: int) -> np.ndarray:
        columns, rows, slices = self.size
        count = min(SLAB_SLICES, self.first[2] + slices - at)
        part = box_grid(self.ct, (*self.first[:2], at), (columns, rows, count))
        inside = nearest(self.body, part)
        values = np.empty((count, rows, columns), np.float32)
        found = planes(self.location.relative, part)
        for value, plane, within in zip(values, found, inside):
            np.multiply(plane, within, out=value)
        return values

    def _with_maximum(self) -> "MapOnCt":
        """The same with `maximum` and `strongest`.

        A value is not above those of the voxels of the working grid around it. So the highest value
        around the working grid's maximum is a limit: the maximum is it, or lies beside a voxel of
        the working grid that reaches it.
        """
        weights = sitk.GetArrayViewFromImage(self.location.relative)
        limit, strongest = float(weights.max()), None
        for _ in range(2):
            where = (weights > 0) & (weights >= limit * (1 - 1e-5))  # interpolation rounds
            if not where.any():
                return self
            first, size = box_on_ct(where, self.location.relative, self.ct)
            limit = 0.0
            for at, values in replace(self, first=tuple(first), size=tuple(size)).slabs():
                index = np.unravel_index(values.argmax(), values.shape)
                if values[index] > limit:
                    limit = float(values[index])
                    strongest = tuple(np.add(index[::-1], (*first[:2], at)).tolist())
        return replace(self, maximum=limit, strongest=strongest)


def on_ct(location: LocationMap, grid: WorkingGrid, ct: sitk.Image) -> MapOnCt:
    """The location map in the CT's voxels; `location` is on the working grid `grid` of the CT."""
    inside = sitk.GetArrayViewFromImage(grid.body) > 0
    if not inside.any():
        return MapOnCt(location, grid.body, ct, (0, 0, 0), (1, 1, 1))
    first, size = box_on_ct(inside, grid.body, ct)
    return MapOnCt(location, grid.body, ct, tuple(first), tuple(size))._with_maximum()
