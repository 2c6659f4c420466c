"""Corrections of an automatic outline of liver and spleen, listed in a recipe of bodies.

Each correction is {"organ": "liver" or "spleen", "slices": [first, last], "inside": polygon or
null, "hu": [low, high] or null}. Without "hu" the organ is removed within the polygon; with it, the
organ grows there over connected voxels with these HU after smoothing. A polygon is a list of [row,
column] of the CT, null the whole slice; slices count from the lowest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.path import Path as Polygon
from scipy import ndimage

from LiverFibrosisStagingLib.imaging.organs import LIVER_LABEL, SPLEEN_LABEL

LABELS = {"liver": LIVER_LABEL, "spleen": SPLEEN_LABEL}
SMOOTHING_VOXELS = (0.0, 1.5, 1.5)


def corrected(
    ct: sitk.Image, labels: sitk.Image, corrections: Sequence[dict[str, Any]]
) -> sitk.Image:
    """The label image after the corrections, each organ one part without holes and single spikes.

    ct and labels are axial and on one grid.
    """
    hu = ndimage.gaussian_filter(
        sitk.GetArrayViewFromImage(ct).astype(np.float32), SMOOTHING_VOXELS
    )
    found = sitk.GetArrayFromImage(labels)
    for correction in corrections:
        label = LABELS[correction["organ"]]
        first, last = correction["slices"]
        part = slice(first, last + 1)
        inside = _polygon(correction.get("inside"), found.shape[1:])
        if correction.get("hu") is None:
            found[part][(found[part] == label) & inside] = 0
            continue
        low, high = correction["hu"]
        like = (hu[part] > low) & (hu[part] < high) & inside & (found[part] == 0)
        like = ndimage.binary_opening(like, np.ones((1, 5, 5)))
        parts, _ = ndimage.label(like | (found[part] == label))
        near = np.unique(parts[found[part] == label])
        found[part][like & np.isin(parts, near)] = label
    result = np.zeros_like(found)
    for label in LABELS.values():
        result[_one_part(found == label) & (result == 0)] = label
    corrected_labels = sitk.GetImageFromArray(result)
    corrected_labels.CopyInformation(labels)
    return corrected_labels


def _polygon(points: Sequence[Sequence[float]] | None, shape: tuple[int, int]) -> np.ndarray:
    if points is None:
        return np.ones(shape, bool)
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return Polygon(points).contains_points(where.reshape(-1, 2)).reshape(shape)


def _one_part(organ: np.ndarray) -> np.ndarray:
    """The largest part, opened, closed and filled slice by slice."""
    disk = np.hypot(*np.mgrid[-3:4, -3:4]) <= 3
    opened = ndimage.binary_opening(organ, disk[None])
    parts, count = ndimage.label(opened)
    if count == 0:
        return opened
    sizes = ndimage.sum_labels(opened, parts, range(1, count + 1))
    closed = ndimage.binary_closing(parts == 1 + np.argmax(sizes), disk[None])
    return np.stack([ndimage.binary_fill_holes(part) for part in closed])
