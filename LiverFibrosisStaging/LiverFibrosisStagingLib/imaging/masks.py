"""Liver and spleen masks given by the user: one file each, or one label image for both."""

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, StagingError
from .grid import bounding_box, box_grid, box_on_ct, paste
from .organs import LIVER_LABEL, SPLEEN_LABEL
from .reading import read_mask
from .resampling import nearest


def read_organ(path: str | Path, cancel: CancelToken | None = None) -> sitk.Image:
    """Read a mask; FILE:LABEL selects a label of a label image, FILE:LABEL+LABEL several.

    For example liver.nii.gz:5, or lits.nii.gz:1+2 for the liver with its tumours. Raises
    StagingError for an image without any of the labels, and as `read_mask` does; and Cancelled.
    """
    file, labels = file_and_labels(path)
    mask = read_mask(file, cancel)
    if not labels:
        return mask
    box = bounding_box(sitk.GetArrayViewFromImage(mask))
    selected = None if box is None else _inside(mask, box, labels)
    if selected is None or not selected.any():
        which = " or ".join(map(str, labels))
        raise StagingError(f"The mask {file} has no voxel with the label {which}.")
    return _mask_image(selected, box, mask)


def file_and_labels(path: str | Path) -> tuple[Path, tuple[int, ...]]:
    """Split FILE:LABEL or FILE:LABEL+LABEL; no labels if only a file is given."""
    match = re.fullmatch(r"(.+):(\d{1,20}(?:\+\d{1,20})*)", str(path), re.DOTALL)
    if match is None:
        return Path(path), ()
    return Path(match[1]), tuple(map(int, match[2].split("+")))


def organ_masks(
    ct: sitk.Image, liver: sitk.Image, spleen: sitk.Image | None
) -> tuple[sitk.Image, sitk.Image | None, tuple[str, ...]]:
    """Liver and spleen as uint8 masks on the CT's grid, and warnings.

    A mask image with one non-zero value is that organ's mask. An image with exactly the labels 1
    and 2 is liver and spleen; the latter is used unless `spleen` is given. A mask on another grid
    is resampled (nearest neighbour) if it covers the same space. A mask that is already as needed
    is returned itself, not a copy. Raises StagingError for an empty mask, other labels, or a mask
    outside the scan.
    """
    warnings: list[str] = []
    given = _given(liver, "liver")
    liver = _on_grid(given, ct, "liver", warnings)
    if spleen is not None:
        given = _given(spleen, "spleen")
    if spleen is not None or len(given.labels) == 2:
        spleen = _on_grid(given, ct, "spleen", warnings)
    return liver, spleen, tuple(warnings)


class _Given(NamedTuple):
    """A mask with its labels, either one or LIVER_LABEL and SPLEEN_LABEL, and the box of both."""

    mask: sitk.Image
    labels: list[int]
    box: tuple[slice, slice, slice]


def _given(mask: sitk.Image, organ: str) -> _Given:
    """Raises StagingError, as `organ_masks` does."""
    if mask.GetDimension() != 3 or mask.GetNumberOfComponentsPerPixel() != 1:
        raise StagingError(
            f"The {organ} mask has {mask.GetDimension()} dimensions and "
            f"{mask.GetNumberOfComponentsPerPixel()} values per voxel; a 3-D image with one value "
            "per voxel is needed."
        )
    values = sitk.GetArrayViewFromImage(mask)
    box = bounding_box(values)
    if box is None:
        raise StagingError(f"The {organ} mask is empty: all its voxels are 0.")
    part = values[box]
    if part.dtype.kind == "u" and part.max() == 1:
        return _Given(mask, [1], box)
    # Every label is at the first voxel of a row or differs from the voxel before: few to sort.
    found = np.unique(
        np.concatenate([part[..., 0].ravel(), part[..., 1:][part[..., 1:] != part[..., :-1]]])
    )
    found = found[found != 0]
    labels = [int(value) for value in found[:10]]
    if len(found) > 1 and labels != [LIVER_LABEL, SPLEEN_LABEL]:
        raise StagingError(
            f"The {organ} mask contains several labels ({', '.join(map(str, labels))}); select one "
            f"with FILE:LABEL, or give a label image with {LIVER_LABEL} liver and {SPLEEN_LABEL} "
            "spleen."
        )
    return _Given(mask, labels, box)


def _on_grid(given: _Given, ct: sitk.Image, organ: str, warnings: list[str]) -> sitk.Image:
    """The organ's voxels as uint8 on the CT's grid."""
    mask, labels, box = given
    as_needed = labels == [1] and mask.GetPixelID() == sitk.sitkUInt8
    if as_needed and not mask.GetMetaDataKeys() and _geometry(mask) == _geometry(ct):
        return mask
    part = _inside(mask, box, labels[:1] if organ == "liver" else labels[-1:])
    if same_grid(mask, ct):
        return _mask_image(part, box, ct)
    # Only the parts of both grids that the organ covers.
    cut = sitk.GetImageFromArray(part)
    cut.SetSpacing(mask.GetSpacing())
    cut.SetDirection(mask.GetDirection())
    cut.SetOrigin(mask.TransformIndexToPhysicalPoint([along.start for along in box[::-1]]))
    first, size = box_on_ct(part, cut, ct)
    grid = box_grid(ct, first, size)
    found = nearest(cut, grid)
    kept = _volume_ml(found, grid) / _volume_ml(part, mask)
    if kept < 0.05:
        raise StagingError(
            f"The {organ} mask lies outside the CT: it belongs to another scan, or its orientation "
            "was lost."
        )
    beyond = f"; {100 * (1 - kept):.0f} % of it lies outside the CT" if kept < 0.98 else ""
    warnings.append(f"The {organ} mask is on another grid than the CT and was resampled{beyond}.")
    covered = tuple(slice(start, start + count) for start, count in zip(first, size))[::-1]
    return _mask_image(found.view(np.uint8), covered, ct)


def _geometry(image: sitk.Image) -> tuple[tuple[float, ...], ...]:
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def _inside(mask: sitk.Image, box: tuple[slice, slice, slice], labels: Sequence[int]) -> np.ndarray:
    """1 where a mask has one of the labels within a box, uint8; for floats, where it is > 0.5."""
    part = sitk.GetArrayViewFromImage(mask)[box]
    if part.dtype.kind == "f":
        return (part > 0.5).view(np.uint8)
    # Compared in numpy: SimpleITK wraps labels that do not fit the pixel type (261 becomes 5).
    inside = part == labels[0]
    for label in labels[1:]:
        inside |= part == label
    return inside.view(np.uint8)


def _mask_image(part: np.ndarray, box: tuple[slice, slice, slice], grid: sitk.Image) -> sitk.Image:
    """A uint8 mask on a grid, 0 outside of a box."""
    found = empty_mask(grid)
    paste(part, found, box)
    return found


def empty_mask(grid: sitk.Image) -> sitk.Image:
    """A uint8 mask on a grid, all 0."""
    found = sitk.Image(grid.GetSize(), sitk.sitkUInt8)
    found.CopyInformation(grid)
    return found


def volume_ml(mask: sitk.Image) -> float:
    """Volume of a mask's non-zero voxels."""
    return _volume_ml(sitk.GetArrayViewFromImage(mask), mask)


def _volume_ml(inside: np.ndarray, grid: sitk.Image) -> float:
    """Volume of the non-zero voxels on a grid."""
    return float(np.count_nonzero(inside) * (math.prod(grid.GetSpacing()) / 1000.0))


def voxels_sha256(liver: sitk.Image, spleen: sitk.Image | None) -> str:
    """Hash of the masks' sizes, pixel types and voxels; the same mask in another type differs."""
    found = hashlib.sha256()
    for mask in (liver, spleen):
        if mask is not None:
            found.update(repr((mask.GetSize(), mask.GetPixelIDTypeAsString())).encode())
            found.update(sitk.GetArrayViewFromImage(mask))
    return found.hexdigest()


def same_grid(image: sitk.Image, other: sitk.Image) -> bool:
    """Whether two images have the same size, and corners within a twentieth of a voxel."""
    if image.GetSize() != other.GetSize():
        return False
    last = [n - 1 for n in image.GetSize()]
    corners = ([0, 0, 0], [last[0], 0, 0], [0, last[1], 0], [0, 0, last[2]])
    apart = [
        np.subtract(
            image.TransformIndexToPhysicalPoint(corner), other.TransformIndexToPhysicalPoint(corner)
        )
        for corner in corners
    ]
    return float(np.abs(apart).max()) < 0.05 * min(other.GetSpacing())


def eroded(inside: np.ndarray, depth_mm: float, spacing: Sequence[float]) -> np.ndarray:
    """Where a mask is deeper than `depth_mm`: bool, [slice, row, column].

    inside: [slice, row, column], 0 outside, non-zero inside; spacing: mm, in the same order. Depth
    is the distance in mm from a voxel's centre to the centre of the nearest voxel outside. The edge
    of the array is not a surface: nothing is known to lie outside of it.
    """
    steps = np.array(spacing)
    square = depth_mm**2 * (1 + 1e-6)  # a voxel at this depth is not deeper
    reach = (math.sqrt(square) / steps).astype(int)
    # Eight voxels of a row in one byte; by how many voxels to both sides are inside. Beyond the
    # rows' ends, all are.
    rows = [np.ascontiguousarray(np.packbits(inside, axis=2))]
    rows[0][..., -1] |= 255 >> (inside.shape[2] - 1) % 8 + 1
    for _ in range(reach[2]):
        rows.append(_narrower(rows[-1]))
    kept = np.full_like(rows[0], 255)
    for up in range(reach[0] + 1):
        disk = np.full_like(kept, 255)
        for along in range(reach[1] + 1):
            left = square - (up * steps[0]) ** 2 - (along * steps[1]) ** 2
            if left >= 0:
                row = rows[int(math.sqrt(left) / steps[2])]
                _narrow(disk, row, along, 1)
        _narrow(kept, disk, up, 0)
    return np.unpackbits(kept, axis=2, count=inside.shape[2]).view(bool)


def eroded_by_ball(inside: np.ndarray, radius: Sequence[int]) -> np.ndarray:
    """A mask eroded by an ellipsoid, as by sitk.BinaryErode with sitkBall, in less time.

    inside: bool, [slice, row, column]; radius: in voxels along each axis. Beyond the array, all is
    inside.
    """
    return eroded(inside, 1.0, [1 / (reach + 0.5) for reach in radius])


def dilated_by_ball(inside: np.ndarray, radius: Sequence[int]) -> np.ndarray:
    """A mask dilated by an ellipsoid, as by sitk.BinaryDilate; see `eroded_by_ball`."""
    return ~eroded_by_ball(~inside, radius)


def _narrower(rows: np.ndarray) -> np.ndarray:
    """The bits of packed rows whose neighbours in the row are set too."""
    # Shifted as if they were one row, in half the time; then each row's ends are set right.
    before, after, one = rows >> 1, rows << 1, rows.reshape(-1)
    before.reshape(-1)[1:] |= one[:-1] << 7
    before[..., 0] |= 128
    after.reshape(-1)[:-1] |= one[1:] >> 7
    after[..., -1] |= 1
    return rows & before & after


def _narrow(kept: np.ndarray, other: np.ndarray, distance: int, axis: int) -> None:
    """Keep the bits that are also set in `other` at this distance along an axis, both ways."""
    kept, other = np.moveaxis(kept, axis, 0), np.moveaxis(other, axis, 0)
    kept[distance:] &= other[: max(len(other) - distance, 0)]
    kept[: max(len(other) - distance, 0)] &= other[distance:]
