"""Connected components of masks, and their holes."""

import numpy as np
import SimpleITK as sitk


def components(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the connected components of a mask, 0 outside; their sizes in voxels, the first 0.

    inside: bool, of two or three dimensions.
    """
    image = sitk.GetImageFromArray(inside.view(np.uint8))
    numbers = sitk.GetArrayFromImage(sitk.ConnectedComponent(image))
    return numbers, np.bincount(numbers[inside], minlength=1)


def largest(inside: np.ndarray, share: float = 1.0) -> np.ndarray:
    """The largest component of a mask, bool, and those of at least this share of its size.

    The mask itself, not a copy, if it has no others.
    """
    search = sitk.ConnectedComponentImageFilter()
    image = search.Execute(sitk.GetImageFromArray(inside.view(np.uint8)))
    if search.GetObjectCount() <= 1:
        return inside
    numbers = sitk.GetArrayViewFromImage(image)[inside]
    sizes = np.bincount(numbers)
    kept = np.zeros_like(inside)
    kept[inside] = (sizes >= share * sizes.max())[numbers]
    return kept


def filled(inside: np.ndarray, ends: bool = True) -> np.ndarray:
    """A mask, bool, with its holes: what is not connected with the space around the array.

    inside: bool, of two or three dimensions. ends: if not, of three: there is no such space beyond
    the first and the last slice, where a hole may be open.
    """
    beyond = [int(ends), *[1] * (inside.ndim - 1)]
    outside = np.pad(~inside, [(n, n) for n in beyond], constant_values=True)
    image = sitk.ConnectedComponent(sitk.GetImageFromArray(outside.view(np.uint8)))
    numbers = sitk.GetArrayViewFromImage(image)
    return numbers[tuple(slice(n, -n or None) for n in beyond)] != numbers.flat[0]
