"""The slices of the overview: sampled along the patient's axes, with the map on the CT.

Radiological convention: the patient's right is on the picture's left; anterior (coronal: head) is
up. Physical points are in LPS millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..imaging.components import largest
from ..imaging.filters import opened
from ..imaging.grid import AIR_HU, BODY_THRESHOLD_HU, bounding_box, lps_grid
from ..imaging.resampling import linear, nearest
from .colors import color_slice
from .drawing import Color

if TYPE_CHECKING:
    from ..location_map import MapOnCt

WINDOW_HU = (-125.0, 225.0)
LEVELS = 6
# Cool colours, unlike those of the bands.
LIVER_COLOR: Color = (0.10, 0.62, 1.0)
SPLEEN_COLOR: Color = (0.40, 1.0, 0.62)

_COARSE_MM = 4.0
_MARGIN_MM = 8.0
# Not 0.5: midway between two voxels, rounding would depend on the array's direction.
INSIDE = 0.47


@dataclass(frozen=True)
class Slices:
    """The images and the positions of the slices (LPS mm).

    low, high: corners of the box around the body at the liver's level, and around the scan along
    the body; liver_z: the liver's extent; levels: z of the axial slices, cranial first; coronal: y.
    """

    ct: sitk.Image
    location_map: MapOnCt
    liver: sitk.Image
    spleen: sitk.Image | None
    low: np.ndarray
    high: np.ndarray
    liver_z: tuple[float, float]
    levels: tuple[float, ...]
    coronal: float

    @classmethod
    def of(
        cls, ct: sitk.Image, location_map: MapOnCt, liver: sitk.Image, spleen: sitk.Image | None
    ) -> Slices:
        """Choose the slices on a coarse copy in patient axes, whatever the image's orientation."""
        liver, spleen = _binary(liver), None if spleen is None else _binary(spleen)
        centre = np.array(
            ct.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in ct.GetSize()])
        )
        step = np.abs(np.array(ct.GetDirection()).reshape(3, 3)) * np.array(ct.GetSpacing())
        half = step @ np.array(ct.GetSize()) / 2
        size = np.ceil(2 * half / _COARSE_MM - 1e-3).astype(int)
        first = centre - (size - 1) * _COARSE_MM / 2

        whole = Plane(first, size, np.full(3, _COARSE_MM))
        coarse = whole.beside(liver)  # what lies far above or below does not matter
        inside = coarse.sample(liver) > INSIDE
        if inside.any():
            body = _body(coarse, ct)
        else:  # a mask of a few voxels
            coarse, body = whole, _body(whole, ct)
            inside = body if body.any() else np.ones_like(body)
        slices = np.flatnonzero(inside.any(axis=(1, 2)))
        shown = (body | inside)[slices[0] : slices[-1] + 1]
        rows = np.flatnonzero(shown.any(axis=(0, 2)))
        columns = np.flatnonzero(shown.any(axis=(0, 1)))

        low = first + _COARSE_MM * np.array([columns[0], rows[0], 0.0])
        high = first + _COARSE_MM * np.array([columns[-1], rows[-1], size[2] - 1.0])
        low[:2] -= _MARGIN_MM
        high[:2] += _MARGIN_MM
        bottom, top = coarse.first[2] + _COARSE_MM * slices[[0, -1]]

        def on_voxels(axis: int, value: float) -> float:
            """The nearest plane of voxels, so that a slice of the CT is not interpolated."""
            point = centre.copy()
            point[axis] = value + 1e-3  # same choice between two planes in any orientation
            index = [
                min(max(round(i), 0), n - 1)
                for i, n in zip(ct.TransformPhysicalPointToContinuousIndex(point), ct.GetSize())
            ]
            return round(ct.TransformIndexToPhysicalPoint(index)[axis], 3)

        wanted = top - (np.arange(LEVELS) + 0.5) / LEVELS * (top - bottom)
        most_liver = int(inside.sum(axis=(0, 2)).argmax())
        return cls(
            ct=ct,
            location_map=location_map,
            liver=liver,
            spleen=spleen,
            low=low,
            high=high,
            liver_z=(float(bottom), float(top)),
            levels=tuple(dict.fromkeys(on_voxels(2, z) for z in wanted)),
            coronal=on_voxels(1, first[1] + _COARSE_MM * most_liver),
        )

    def axial(self, z: float, mm: float) -> np.ndarray:
        """RGB of the axial slice at z with pixels of `mm`."""
        columns, rows = np.maximum(1, np.rint((self.high - self.low)[:2] / mm)).astype(int)
        plane = Plane(
            np.array([*self.low[:2] + mm / 2, z]),
            np.array([columns, rows, 1]),
            np.array([mm, mm, 1.0]),
        )
        return self._color(plane, np.s_[0])

    def coronal_slice(self, bottom: float, top: float, mm: float) -> np.ndarray:
        """RGB of the coronal slice between two z."""
        columns = max(1, round((self.high - self.low)[0] / mm))
        plane = Plane(
            np.array([self.low[0] + mm / 2, self.coronal, bottom + mm / 2]),
            np.array([columns, 1, max(1, round((top - bottom) / mm))]),
            np.array([mm, 1.0, mm]),
        )
        return self._color(plane, np.s_[::-1, 0])

    def weights(self, plane: Plane) -> np.ndarray:
        """The location map at the points, float32 [z, y, x], 0 outside the body.

        Interpolated from its working grid: on the CT's grid it would take 1 GB for a long scan.
        """
        inside = plane.inside(self.location_map.body)
        return plane.sample(self.location_map.location.relative) * inside

    def _color(self, plane: Plane, view: tuple | int) -> np.ndarray:
        low, high = WINDOW_HU
        hu = plane.sample(self.ct, outside=AIR_HU)[view]
        labels = self.location_map.bands(self.weights(plane))[view]
        picture = color_slice(labels, np.clip((hu - low) / (high - low), 0.0, 1.0))
        for mask, color in ((self.spleen, SPLEEN_COLOR), (self.liver, LIVER_COLOR)):
            if mask is not None:
                line = _boundary(plane.sample(mask)[view] > INSIDE)
                picture[line] = 0.1 * picture[line] + 0.9 * np.array(color, np.float32)
        return picture


@dataclass(frozen=True)
class Plane:
    """Sampling points along the patient's axes: first point, count and step (x, y, z), LPS mm."""

    first: np.ndarray
    size: np.ndarray
    step: np.ndarray

    def beside(self, mask: sitk.Image) -> Plane:
        """The points at the levels (z) of a mask; all of them if it is empty."""
        box = bounding_box(sitk.GetArrayViewFromImage(mask))
        if box is None:
            return self
        ends = [(part.start - 1.0, float(part.stop)) for part in box[::-1]]
        z = [
            mask.TransformContinuousIndexToPhysicalPoint([e[c] for e, c in zip(ends, corner)])[2]
            for corner in np.ndindex(2, 2, 2)
        ]
        levels = (np.array([min(z), max(z)]) - self.first[2]) / self.step[2]
        last = self.size[2] - 1
        low, high = (int(np.clip(level, 0, last)) for level in (levels[0], levels[1] + 1))
        first = np.array([*self.first[:2], self.first[2] + low * self.step[2]])
        return Plane(first, np.array([*self.size[:2], high - low + 1]), self.step)

    def sample(self, image: sitk.Image, outside: float = 0.0) -> np.ndarray:
        """Values of `image` at the points, interpolated, float32 [z, y, x]."""
        return linear(image, self._grid(), outside)

    def inside(self, mask: sitk.Image) -> np.ndarray:
        """Where the voxel of a mask nearest to the point is not 0, bool [z, y, x]."""
        return nearest(mask, self._grid())

    def _grid(self) -> sitk.Image:
        return lps_grid(self.first + (self.size - 1) / 2 * self.step, self.size, self.step)


def _binary(mask: sitk.Image) -> sitk.Image:
    """A mask with 1 inside; itself if it has that."""
    is_binary = mask.GetPixelID() == sitk.sitkUInt8 and sitk.GetArrayViewFromImage(mask).max() <= 1
    return mask if is_binary else mask != 0


def _body(coarse: Plane, ct: sitk.Image) -> np.ndarray:
    """The body at the points: the largest part after opening, which detaches the table."""
    dense = coarse.sample(ct, outside=AIR_HU) > BODY_THRESHOLD_HU
    return largest(opened(dense, (0, 1, 1)))


def _boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask [row, column] that touch its outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
