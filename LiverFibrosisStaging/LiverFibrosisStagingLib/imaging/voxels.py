"""Voxels of an image along other axes, as a view: a scan is reordered and flipped without a copy.

Arrays are [slice, row, column]; geometry is in the order x, y, z, in mm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

PARALLEL = 1e-8  # largest deviation of the axes' cosines from 0 or 1


@dataclass(frozen=True, eq=False)
class Voxels:
    """array: view of the image's voxels; spacing, origin [3], direction [3, 3]: its geometry.

    origin: centre of the first voxel; direction: the axes in its columns, as in SimpleITK. image:
    owns the memory of the array.
    """

    image: sitk.Image
    array: np.ndarray
    spacing: np.ndarray
    origin: np.ndarray
    direction: np.ndarray

    @classmethod
    def of(cls, image: sitk.Image | Voxels) -> Voxels:
        """The voxels in the order in which they are stored."""
        if isinstance(image, Voxels):
            return image
        return cls(
            image=image,
            array=sitk.GetArrayViewFromImage(image),
            spacing=np.array(image.GetSpacing()),
            origin=np.array(image.GetOrigin()),
            direction=np.array(image.GetDirection()).reshape(3, 3),
        )

    @property
    def size(self) -> np.ndarray:
        """Voxels along x, y and z."""
        return np.array(self.array.shape[::-1])

    def along(self, direction: np.ndarray) -> Voxels | None:
        """The voxels with their axes in the order and sense of others; None if not parallel."""
        turned = self.direction.T @ direction
        exact = np.rint(turned)
        if np.abs(turned - exact).max() > PARALLEL or not (np.abs(exact).sum(axis=0) == 1).all():
            return None
        return self._reordered(exact)

    def lps(self) -> Voxels:
        """The voxels with axes in the order and sense closest to LPS, as DICOMOrient chooses them.

        Afterwards nothing depends on the order in which the voxels were stored.
        """
        probe = sitk.Image([1, 1, 1], sitk.sitkUInt8)
        probe.SetDirection(self.direction.ravel().tolist())
        wanted = np.array(sitk.DICOMOrient(probe, "LPS").GetDirection()).reshape(3, 3)
        return self._reordered(np.rint(self.direction.T @ wanted))

    def _reordered(self, turned: np.ndarray) -> Voxels:
        """turned: a signed permutation; its columns are the new axes, in terms of the old ones."""
        own = np.abs(turned).argmax(axis=0)
        signs = turned[own, range(3)]
        array = self.array.transpose([2 - axis for axis in own[::-1]])
        first = np.zeros((3, 1))
        first[own[signs < 0], 0] = (self.size - 1)[own[signs < 0]]
        return replace(
            self,
            array=array[tuple(slice(None, None, int(sign)) for sign in signs[::-1])],
            spacing=self.spacing[own],
            origin=self.places(first)[:, 0],
            direction=self.direction[:, own] * signs,
        )

    def straight(self) -> Voxels:
        """The voxels with axes along x, y and z from 0, as if no header had been rotated."""
        return replace(self, origin=np.zeros(3), direction=np.eye(3))

    def places(self, index: np.ndarray) -> np.ndarray:
        """Places [3, n] of voxels with these indices along x, y and z [3, n]."""
        return self.origin[:, None] + (self.direction * self.spacing) @ index

    def indices(self, places: np.ndarray) -> np.ndarray:
        """Indices [3, n] along x, y and z, with fractions, of places [3, n]."""
        inverse = np.linalg.inv(self.direction * self.spacing)
        return inverse @ (places - self.origin[:, None])

    def part(self, first: np.ndarray, last: np.ndarray) -> sitk.Image:
        """A copy of the voxels from first to last, both included, along x, y and z."""
        box = tuple(slice(low, high + 1) for low, high in zip(first[::-1], last[::-1]))
        made = sitk.GetImageFromArray(np.ascontiguousarray(self.array[box]))
        made.SetSpacing(self.spacing.tolist())
        made.SetOrigin(self.places(first[:, None])[:, 0].tolist())
        made.SetDirection(self.direction.ravel().tolist())
        return made
