"""Augmentation of CTs with liver and spleen masks: differences between patients and scanners.

Body shape and position; size and position of liver and spleen; tumours; organs beside them that are
filled with contrast agent, fluid or gas; contrast phase, noise, kernel, slice thickness and field
of view. No flips, because the liver is on the right side.

Volumes are float32 [1, slices, rows, columns], 0..1 in the window; labels of the same shape hold
the index of `CLASSES`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    MapTransform,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
)
from monai.transforms.utils import create_rotate
from torch.nn import functional

from LiverFibrosisStagingLib.imaging.segmentation import CLASSES

LIVER, SPLEEN = CLASSES.index("liver"), CLASSES.index("spleen")
BOTH = ("volume", "labels")
Pair = tuple[torch.Tensor, torch.Tensor]


def augmentation(patch_size: tuple[int, int, int], window: tuple[float, float]) -> Compose:
    """Takes an item with `volume` and `labels` of any size; gives a patch of `patch_size`."""
    hu = 1.0 / (window[1] - window[0])
    return Compose(
        [
            Deform(patch_size),
            Hearts(hu, window),
            Alike(),
            Neighbours(hu),
            Tumours(hu),
            Contrast(hu, (40.0 - window[0]) * hu),
            ThickSlices(),
            RandGaussianSmoothd(("volume",), (0.3, 0.8), (0.3, 0.8), (0.3, 0.8), prob=0.3),
            RandGaussianNoised(("volume",), prob=0.5, std=0.06),
            FieldOfView(),
            Surroundings(),
        ]
    )


class _OfBoth(MapTransform, RandomizableTransform):
    """A random change of `volume`, and of `labels` if organs are moved or cut off."""

    def __init__(self, prob: float) -> None:
        MapTransform.__init__(self, BOTH)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        self.randomize(None)
        if not self._do_transform:
            return data
        volume, labels = (torch.as_tensor(data[key]).clone() for key in BOTH)
        volume, labels = self.changed(volume, labels)
        return {**data, "volume": volume, "labels": labels}

    @abstractmethod
    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:
        """Both after the change, which may be in place."""

    def waves(self, size: Sequence[int], length: float, channels: int = 1) -> torch.Tensor:
        """Random fields [channels, *size] with values of about +-1, smooth over `length` voxels."""
        points = [int(np.ceil(n / length)) + 1 for n in size]
        drawn = torch.from_numpy(self.R.normal(0, 1, (1, channels, *points)).astype(np.float32))
        return functional.interpolate(drawn, list(size), mode="trilinear", align_corners=True)[0]


class Deform(_OfBoth):
    """Rotation, scaling and bending; liver and spleen are resized and moved.

    All changes are applied with one interpolation, to limit smoothing. (MONAI's Rand3DElastic
    cannot move organs, and takes three times as long for waves of this length.)
    """

    def __init__(self, patch_size: tuple[int, int, int]) -> None:
        super().__init__(1.0)
        self.size = patch_size

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        whole, patch = np.array(volume.shape[1:]), np.array(self.size)
        room = abs(whole - patch) + 8
        centre = (whole - 1) / 2 + self.R.uniform(-0.5, 0.5, 3) * room
        rotation = create_rotate(3, self.R.normal(0, (0.2, 0.12, 0.12)))[:3, :3]
        matrix = rotation * np.exp(self.R.normal(0, 0.1) + self.R.normal(0, 0.06, 3))
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.size]
        away = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        places = torch.einsum("ij,jzyx->izyx", torch.from_numpy(matrix).float(), away)
        places += _column(centre)
        places += self.R.uniform(0, 4) * self.waves(self.size, 16.0, 3)
        places += self.R.uniform(0, 1) * self.waves(self.size, 7.0, 3)
        for label in (LIVER, SPLEEN):
            if self.R.rand() < 0.6:
                self._move(places, labels[0] == label)
        scale = _column(2.0 / (whole - 1))
        grid = (places * scale - 1).flip(0).movedim(0, -1)[None]
        source = torch.cat([volume, labels == LIVER, labels == SPLEEN]).float()[None]
        sampled = functional.grid_sample(source, grid, padding_mode="zeros", align_corners=True)[0]
        labels = (sampled[1:2] >= 0.5) * LIVER
        labels[sampled[2:3] > 0.5] = SPLEEN
        return sampled[:1], labels.to(torch.uint8)

    def _move(self, places: torch.Tensor, organ: torch.Tensor) -> None:
        """Scale and shift the region around the organ's centre."""
        voxels = organ.nonzero().float()
        if len(voxels) < 100:
            return
        centre = voxels.mean(dim=0)
        reach = 1.2 * (voxels - centre).square().sum(dim=1).mean().sqrt()
        away = places - centre[:, None, None, None]
        near = torch.exp(-away.square().sum(dim=0) / (2 * reach**2))
        larger = np.exp(np.clip(self.R.normal(0, 0.3), -0.5, 0.5))
        shift = _column(self.R.normal(0, 0.25, 3)) * reach
        places += near * ((1 / larger - 1) * away + shift)


def _column(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values)).float()[:, None, None, None]


class Hearts(_OfBoth):
    """A simulated heart above the liver, or touching it, in front and left of the midline.

    The scans begin near the diaphragm, so that few of them show more than a heart's underside.
    """

    def __init__(self, hu: float, window: tuple[float, float]) -> None:
        super().__init__(0.4)
        self.hu, self.low = hu, window[0]

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        tissue = (volume[0] > (-50 - self.low) * self.hu).numpy()
        scanned = tissue.mean(axis=(1, 2)) > 0.02
        slices = np.flatnonzero((labels[0] == LIVER).flatten(1).any(dim=1).numpy() & scanned)
        if not len(slices):
            return volume, labels
        top = slices[-1]
        rows, columns = (np.flatnonzero(tissue[top].any(axis=axis)) for axis in (1, 0))
        depth, width = np.ptp(rows), np.ptp(columns)
        centre = np.array(
            [
                top + self.R.uniform(-2, 8),
                rows[0] + self.R.uniform(0.25, 0.42) * depth,
                (columns[0] + columns[-1]) / 2 + self.R.uniform(-0.05, 0.18) * width,
            ]
        )
        radii = self.R.uniform((6, 6, 8), (11, 10, 14))
        free = torch.from_numpy(scanned)[:, None, None] & (labels[0] == 0) & (volume[0] < 0.97)
        muscle = self.R.uniform(50, 130)
        volume[0][free & self._ellipsoid(volume, centre, radii)] = (muscle - self.low) * self.hu
        for _ in range(self.R.randint(1, 4)):  # chambers
            inside = centre + self.R.uniform(-0.5, 0.5, 3) * radii
            chamber = self._ellipsoid(volume, inside, radii * self.R.uniform(0.3, 0.6))
            blood = muscle + self.R.uniform(0, 100)
            volume[0][free & chamber] = (blood - self.low) * self.hu
        return volume, labels

    @staticmethod
    def _ellipsoid(volume: torch.Tensor, centre: np.ndarray, radii: np.ndarray) -> torch.Tensor:
        places = np.ogrid[tuple(slice(n) for n in volume.shape[1:])]
        parts = ((p - c) / r for p, c, r in zip(places, centre, radii))
        return torch.from_numpy(sum(part**2 for part in parts) < 1)


class Alike(_OfBoth):
    """Kidneys, heart, vessels and bowel with nearly the HU of liver or spleen: a late phase."""

    def __init__(self) -> None:
        super().__init__(0.35)

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        organ = labels == self.R.choice((LIVER, SPLEEN))
        if organ.any():
            level = volume[organ].mean()
            brighter = (labels == 0) & (volume > level) & (volume < 0.97)
            less = level + self.R.uniform(0, 0.5) * (volume - level)
            volume = torch.where(brighter, less, volume)
        return volume, labels


class Neighbours(_OfBoth):
    """Surrounding organs: brighter, darker, or filled with contrast agent, fluid or gas."""

    def __init__(self, hu: float) -> None:
        super().__init__(0.7)
        self.hu = hu

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        soft = (volume > 0.3) & (volume < 0.95) & (labels == 0)
        volume += soft * (20 * self.hu * self.waves(volume.shape[1:], 8.0))
        if self.R.rand() < 0.6:
            filled = soft & (self.waves(volume.shape[1:], self.R.uniform(5, 10)) > 0.7)
            inside = self.R.choice(4, p=(0.45, 0.2, 0.15, 0.2))
            content = ((0.85, 1.0), (0.35, 0.5), (0.0, 0.1), (0.5, 0.75))[inside]
            volume[filled] = self.R.uniform(*content)
        return volume, labels


class Tumours(_OfBoth):
    """Spheres in the liver that enhance more or less than it; they keep its label."""

    def __init__(self, hu: float) -> None:
        super().__init__(0.35)
        self.hu = hu

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        liver = labels[0] == LIVER
        voxels = liver.nonzero().float()
        if not len(voxels):
            return volume, labels
        for _ in range(self.R.randint(1, 5)):
            centre = voxels[self.R.randint(len(voxels))]
            radius = np.exp(self.R.uniform(np.log(2), np.log(12)))
            distance = (voxels - centre).square().sum(dim=1).sqrt()
            share = ((radius - distance) / 2 + 0.5).clamp(0, 1)
            volume[0][liver] += share * (self.R.uniform(-70, 50) * self.hu)
        return volume, labels


class Contrast(_OfBoth):
    """Contrast phase and disease: less enhancement overall, random shifts of the organs' HU.

    hu: size of one HU in the window. plain: muscle without contrast agent; brighter voxels are
    enhanced.
    """

    def __init__(self, hu: float, plain: float) -> None:
        super().__init__(0.8)
        self.hu, self.plain = hu, plain

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        if self.R.rand() < 0.35:
            kept = self.R.uniform(0.0, 0.9)
            less = self.plain + kept * (volume - self.plain)
            volume = torch.where(volume > self.plain, less, volume)
        for label in (LIVER, SPLEEN):
            volume += (labels == label) * (self.R.normal(0, 20) * self.hu)
        soft = (volume > 0.3) & (volume < 0.95)
        volume += soft * (self.R.normal(0, 10) * self.hu)
        return volume, labels


class ThickSlices(_OfBoth):
    """Two or three slices are replaced by their mean."""

    def __init__(self) -> None:
        super().__init__(0.2)

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        count = int(self.R.randint(2, 4))
        whole = volume.shape[1] // count * count
        blocks = volume[:, :whole].unflatten(1, (-1, count))
        volume[:, :whole] = blocks.mean(dim=2, keepdim=True).expand_as(blocks).flatten(1, 2)
        return volume, labels


class FieldOfView(_OfBoth):
    """A scan that does not cover the whole body: cut above, below, both, or to a circle."""

    def __init__(self) -> None:
        super().__init__(0.4)

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        _, slices, rows, columns = volume.shape
        black = torch.zeros(volume.shape, dtype=torch.bool)
        kind = self.R.randint(4)
        if kind < 2:
            cut = int(self.R.randint(1, slices // 2))
            black[:, -cut:] = True
            black = black if kind else black.flip(1)
        elif kind == 2:  # a slab of 3 to 12 cm
            kept = min(int(self.R.randint(8, 30)), slices)
            first = int(self.R.randint(slices - kept + 1))
            black[:, :first] = black[:, first + kept :] = True
        if self.R.rand() < 0.4:
            y, x = np.ogrid[:rows, :columns]
            middle = self.R.normal((rows / 2, columns / 2), 3)
            radius = self.R.uniform(0.38, 0.55) * columns
            outside = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 > radius**2
            black |= torch.from_numpy(outside)
        volume[black], labels[black] = 0.0, 0
        return volume, labels


class Surroundings(_OfBoth):
    """Objects in the air around the body: a table behind, arms at the sides."""

    def __init__(self) -> None:
        super().__init__(0.4)

    def changed(self, volume: torch.Tensor, labels: torch.Tensor) -> Pair:  # noqa: D102
        rows, columns = volume.shape[2:]
        y, x = np.ogrid[:rows, :columns]
        if self.R.randint(3) == 0:  # a curved table
            top = self.R.uniform(0.7, 0.95) * rows
            bow = self.R.uniform(0, 0.004) * (x - columns / 2) ** 2
            there = np.abs(y - (top - bow)) < self.R.uniform(0.5, 1.5)
        else:
            side = self.R.choice((0.03, 0.97)) * columns
            centre = np.array([self.R.uniform(0.3, 0.8) * rows, side])
            radius = self.R.uniform(6, 13)
            there = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        air = (volume < 0.02) & (labels == 0)
        air &= torch.from_numpy(np.broadcast_to(there, volume.shape[1:]).copy())
        volume[air] = float(self.R.uniform(0.3, 0.7))
        return volume, labels
