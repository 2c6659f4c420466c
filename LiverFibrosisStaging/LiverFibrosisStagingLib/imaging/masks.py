"""Liver and spleen masks given by the user: one file each, or one label image for both."""

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import StagingError
from .organs import LIVER_LABEL, SPLEEN_LABEL
from .reading import read_mask


def read_organ(path: str | Path) -> sitk.Image:
    """Read a mask; FILE:LABEL selects a label of a label image, FILE:LABEL+LABEL several.

    For example liver.nii.gz:5, or lits.nii.gz:1+2 for the liver with its tumours. Raises
    StagingError for an image without any of the labels, and as `read_mask` does.
    """
    file, labels = file_and_labels(path)
    mask = read_mask(file)
    if not labels:
        return mask
    # Compared in numpy: SimpleITK wraps labels that do not fit the pixel type (261 becomes 5).
    selected = np.isin(sitk.GetArrayViewFromImage(mask), labels)
    if not selected.any():
        which = " or ".join(map(str, labels))
        raise StagingError(f"The mask {file} has no voxel with the label {which}.")
    found = sitk.GetImageFromArray(selected.astype(np.uint8))
    found.CopyInformation(mask)
    return found


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
    is resampled (nearest neighbour) if it covers the same space. Raises StagingError for an empty
    mask, other labels, or a mask outside the scan.
    """
    warnings: list[str] = []
    labels = _labels(liver, "liver")
    both = labels == [LIVER_LABEL, SPLEEN_LABEL]
    if spleen is None and both:
        spleen = liver
    liver = _on_grid(liver, LIVER_LABEL if both else labels[0], ct, "liver", warnings)
    if spleen is not None:
        labels = _labels(spleen, "spleen")
        label = SPLEEN_LABEL if labels == [LIVER_LABEL, SPLEEN_LABEL] else labels[0]
        spleen = _on_grid(spleen, label, ct, "spleen", warnings)
    return liver, spleen, tuple(warnings)


def _labels(mask: sitk.Image, organ: str) -> list[int]:
    if mask.GetDimension() != 3 or mask.GetNumberOfComponentsPerPixel() != 1:
        raise StagingError(
            f"The {organ} mask has {mask.GetDimension()} dimensions and "
            f"{mask.GetNumberOfComponentsPerPixel()} values per voxel; a 3-D image with one value "
            "per voxel is needed."
        )
    values = sitk.GetArrayViewFromImage(mask)
    found = np.unique(values[values != 0])
    if not len(found):
        raise StagingError(f"The {organ} mask is empty: all its voxels are 0.")
    labels = [int(value) for value in found[:10]]
    if len(found) > 1 and labels != [LIVER_LABEL, SPLEEN_LABEL]:
        raise StagingError(
            f"The {organ} mask contains several labels ({', '.join(map(str, labels))}); select one "
            f"with FILE:LABEL, or give a label image with {LIVER_LABEL} liver and {SPLEEN_LABEL} "
            "spleen."
        )
    return labels


def _on_grid(
    mask: sitk.Image, label: int, ct: sitk.Image, organ: str, warnings: list[str]
) -> sitk.Image:
    binary = mask == label if mask.GetPixelID() < sitk.sitkFloat32 else mask > 0.5
    if same_grid(binary, ct):
        binary.CopyInformation(ct)
        return binary
    resampled = sitk.Resample(binary, ct, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    kept = volume_ml(resampled) / volume_ml(binary)
    if kept < 0.05:
        raise StagingError(
            f"The {organ} mask lies outside the CT: it belongs to another scan, or its orientation "
            "was lost."
        )
    cut = f"; {100 * (1 - kept):.0f} % of it lies outside the CT" if kept < 0.98 else ""
    warnings.append(f"The {organ} mask is on another grid than the CT and was resampled{cut}.")
    return resampled


def volume_ml(mask: sitk.Image) -> float:
    """Volume of a mask's non-zero voxels."""
    each = math.prod(mask.GetSpacing()) / 1000.0
    return float(np.count_nonzero(sitk.GetArrayViewFromImage(mask)) * each)


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


def eroded(inside: sitk.Image, depth_mm: float) -> np.ndarray:
    """Where a mask is deeper than `depth_mm`: bool, [slice, row, column].

    inside: 0 outside, non-zero inside. Depth is the distance in mm from a voxel's centre to the
    centre of the nearest voxel outside, with the image's spacing along each axis. The edge of the
    image is not a surface: nothing is known to lie outside of it.
    """
    within = sitk.GetArrayViewFromImage(inside) != 0
    steps = np.array(inside.GetSpacing()[::-1])
    square = depth_mm**2 * (1 + 1e-6)  # a voxel at this depth is not deeper
    reach = (math.sqrt(square) / steps).astype(int)
    # Eight voxels of a row in one byte; by how many voxels to both sides are inside.
    rows = [np.packbits(within, axis=2)]
    for _ in range(reach[2]):
        wider = within.copy()
        wider[..., 1:] &= within[..., :-1]
        wider[..., :-1] &= within[..., 1:]
        within = wider
        rows.append(np.packbits(within, axis=2))
    kept = np.full_like(rows[0], 255)
    for up in range(reach[0] + 1):
        disk = np.full_like(kept, 255)
        for along in range(reach[1] + 1):
            left = square - (up * steps[0]) ** 2 - (along * steps[1]) ** 2
            if left >= 0:
                row = rows[int(math.sqrt(left) / steps[2])]
                _narrow(disk, row, along, 1)
        _narrow(kept, disk, up, 0)
    return np.unpackbits(kept, axis=2, count=within.shape[2]).view(bool)


def _narrow(kept: np.ndarray, other: np.ndarray, distance: int, axis: int) -> None:
    """Keep the bits that are also set in `other` at this distance along an axis, both ways."""
    kept, other = np.moveaxis(kept, axis, 0), np.moveaxis(other, axis, 0)
    kept[distance:] &= other[: max(len(other) - distance, 0)]
    kept[: max(len(other) - distance, 0)] &= other[distance:]


def components(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the connected components of a mask, 0 outside; their sizes in voxels, the first 0.

    inside: bool, of two or three dimensions.
    """
    image = sitk.GetImageFromArray(inside.view(np.uint8))
    numbers = sitk.GetArrayFromImage(sitk.ConnectedComponent(image))
    return numbers, _sizes(numbers)


def _sizes(numbers: np.ndarray) -> np.ndarray:
    """Voxels of each component, 0 for the first number, of the background."""
    sizes = np.bincount(numbers[numbers > 0], minlength=1)
    sizes[0] = 0
    return sizes


def largest(inside: np.ndarray, share: float = 1.0) -> np.ndarray:
    """The largest component of a mask, bool, and those of at least this share of its size."""
    image = sitk.ConnectedComponent(sitk.GetImageFromArray(inside.view(np.uint8)))
    numbers = sitk.GetArrayViewFromImage(image)
    if numbers.max() == 1:
        return numbers > 0
    sizes = _sizes(numbers)
    return (sizes >= share * max(1, sizes.max()))[numbers]
