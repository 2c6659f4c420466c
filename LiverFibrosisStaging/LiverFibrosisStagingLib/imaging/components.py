"""Connected components of masks."""

import numpy as np
import SimpleITK as sitk


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
    """The largest component of a mask, bool, and those of at least this share of its size.

    The mask itself, not a copy, if it has no others.
    """
    search = sitk.ConnectedComponentImageFilter()
    image = search.Execute(sitk.GetImageFromArray(inside.view(np.uint8)))
    if search.GetObjectCount() <= 1:
        return inside
    numbers = sitk.GetArrayViewFromImage(image)
    sizes = _sizes(numbers)
    return (sizes >= share * max(1, sizes.max()))[numbers]
