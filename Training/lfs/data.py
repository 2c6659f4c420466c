"""Preprocessing, cache, sampling and augmentation: from a manifest's cases to training patches.

Training and staging use the same preprocessing, the library's `working_grid`. Each case is
resampled once and cached on disk by MONAI's PersistentDataset; each iteration draws a stage, a case
of that stage, and 32 consecutive slices of the liver (Yin et al. 2021, "Algorithm scheme").
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import PersistentDataset
from monai.transforms import (
    Affine,
    Compose,
    RandGaussianNoise,
    RandomizableTransform,
    RandScaleIntensityFixedMean,
    RandShiftIntensity,
    Transform,
)
from torch.utils.data import Dataset, Sampler

from cases.manifest import Case
from common.cache import cached
from lfs.build import FULL, Build
from LiverFibrosisStagingLib import __version__, read_ct
from LiverFibrosisStagingLib.imaging.grid import patch_starts, working_grid
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.imaging.resampling import nearest
from LiverFibrosisStagingLib.stages import ANY_STAGE, stage_bounds

PATCH_OVERLAP = 0.5
SPLEEN_SHARE = 0.2  # of the crops; the others are centred in the liver


class WorkingGrid(Transform):
    """Resamples a case to the network's grid.

    Returns `volume`, uint8 [1, slices, rows, columns], the window as 0..255 over the liver's
    slices, and `liver` and `spleen`, int16 [n, 3]: indices (slice, row, column) of voxels in these
    organs, every 4th in plane, as possible centres of crops (n = 0 without a spleen mask).
    """

    def __init__(self, build: Build) -> None:
        self.build = build

    def __call__(self, item: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One case: item has the paths `ct`, `liver` and `spleen` (empty if there is none)."""
        ct = read_ct(Path(item["ct"]))
        spleen = read_organ(Path(item["spleen"])) if item["spleen"] else None
        masks = organ_masks(ct, read_organ(Path(item["liver"])), spleen)[:2]
        grid = working_grid(
            ct,
            masks[0],
            spacing=self.build.spacing,
            patch_size=self.build.patch_size,
            window=self.build.window,
            overlap=PATCH_OVERLAP,
            smoothing_mm=self.build.smoothing,
        )
        volume = np.round(sitk.GetArrayFromImage(grid.volume) * 255).astype(np.uint8)
        found = {"volume": torch.from_numpy(volume[None])}
        for name, mask in zip(("liver", "spleen"), masks):
            places = np.empty((0, 3))
            if mask is not None:
                inside = nearest(mask, grid.volume)
                places = np.argwhere(inside[:, ::4, ::4]) * (1, 4, 4)
            found[name] = torch.from_numpy(places.astype(np.int16))
        return found


def prepare(
    cases: Sequence[Case], cache: Path, build: Build = FULL, workers: int = 0
) -> PersistentDataset:
    """Every case on its working grid, in the cases' order, cached in the folder `cache`.

    A case is prepared again when the content of its files or the preprocessing changes. workers:
    see `common.cache.cached`.
    """
    recipe = (__version__, build.patch_size, build.spacing, build.window, build.smoothing)
    items = [
        {
            "ct": str(case.ct.resolve()),
            "liver": str(case.liver.resolve()),
            "spleen": str(case.spleen.resolve()) if case.spleen else "",
            "content": case.content(),
            "recipe": repr(recipe),
        }
        for case in cases
    ]
    return cached(items, WorkingGrid(build), cache, workers)


class Draw(NamedTuple):
    """A patch to cut: index of the case, seed, in-plane size of the crop (0: whole sections)."""

    case: int
    seed: int
    crop: int


class Draws(Sampler[list[Draw]]):
    """The draws of every step in `steps`, for process `rank` of `ranks`.

    They depend only on the seed and the step, so that an interrupted run gives the same result when
    it is resumed, also with another number of workers. The probability of a stage is proportional
    to its share to the power `temper`: 1 keeps the shares, 0 makes all stages equally frequent.
    Values in between draw rare stages more often, but limit overfitting to their few patients. A
    range of stages counts as a stage of its own, since which of its stages a case has is unknown;
    cases of which no stage is known, from which nothing can be learnt, are not drawn.

    stages: int [n], or [n, 2] with lowest and highest.

    The first `crop_steps` steps use crops of `crop` x `crop` voxels in plane, twice as many per
    step. Such a step takes a third of the time, and the signal is a much larger part of the input:
    trained on whole sections alone, the network stayed at chance level for long.
    """

    def __init__(
        self,
        stages: np.ndarray,
        steps: range,
        batch: int,
        crop_steps: int,
        crop: int,
        temper: float,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.stages, self.steps, self.batch = stages, steps, batch
        self.crop_steps, self.crop, self.temper = crop_steps, crop, temper
        self.seed, self.rank, self.ranks = seed, rank, ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        known = np.flatnonzero(np.ptp(stage_bounds(self.stages), axis=0) < ANY_STAGE.highest)
        _, stratum, counts = np.unique(
            self.stages[known], axis=0, return_inverse=True, return_counts=True
        )
        members = [known[stratum.ravel() == s] for s in range(len(counts))]
        share = counts**self.temper / (counts**self.temper).sum()
        for step in self.steps:
            rng = np.random.default_rng([self.seed, step])
            cropped = step < self.crop_steps
            strata = rng.choice(len(counts), self.batch * (2 if cropped else 1), p=share)
            drawn = [
                Draw(
                    int(rng.choice(members[drawn_from])),
                    int(rng.integers(2**31)),
                    self.crop if cropped else 0,
                )
                for drawn_from in strata
            ]
            yield drawn[self.rank :: self.ranks]


class Patches(Dataset):
    """Augmented patches, float32 [1, slices, rows, columns], 0..1, and their stages, by Draw.

    stages: int [n], or [n, 2] with lowest and highest.
    """

    def __init__(
        self,
        prepared: Sequence[dict[str, torch.Tensor]],
        stages: np.ndarray,
        slices: int,
        build: Build = FULL,
    ) -> None:
        self.prepared, self.stages, self.slices = prepared, stages, slices
        self.augment = augmentation(build)

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        patch = cut(
            self.prepared[draw.case], self.slices, draw.crop, np.random.default_rng(draw.seed)
        )
        self.augment.set_random_state(draw.seed)
        return self.augment(patch).clamp_(0, 1), torch.as_tensor(self.stages[draw.case])


def cut(
    prepared: dict[str, torch.Tensor], slices: int, crop: int, rng: np.random.Generator
) -> torch.Tensor:
    """A patch, float32 [1, slices, rows, columns], 0..1: whole sections, or a crop.

    A crop has `crop` x `crop` voxels in plane around a voxel in the liver or, less often, in the
    spleen.
    """
    volume = prepared["volume"]
    size = np.array([slices, crop, crop] if crop else [slices, *volume.shape[2:]])
    last = np.array(volume.shape[1:]) - size
    if crop:
        organ = "spleen" if len(prepared["spleen"]) and rng.random() < SPLEEN_SHARE else "liver"
        places = prepared[organ]
        start = np.clip(places[rng.integers(len(places))].numpy() - size // 2, 0, last)
    else:
        start = np.array([rng.integers(last[0] + 1), 0, 0])
    (z, y, x), (d, h, w) = start, size
    return volume[:, z : z + d, y : y + h, x : x + w].float() / 255


def sections(prepared: dict[str, torch.Tensor], slices: int, overlap: float) -> np.ndarray:
    """The patches of a case as in staging: float32 [n, 1, slices, rows, columns], 0..1."""
    volume = prepared["volume"]
    starts = patch_starts(volume.shape[1], slices, overlap)
    return np.stack([np.float32(volume[:, s : s + slices]) / np.float32(255) for s in starts])


def augmentation(build: Build) -> Compose:
    """Random changes of position, contrast and noise, as between patients and scanners."""
    hu = 1 / (build.window[1] - build.window[0])
    return Compose(
        [
            RandMove(build.spacing),
            RandScaleIntensityFixedMean(prob=1.0, factors=0.1),
            RandShiftIntensity(offsets=17.5 * hu, prob=1.0),
            RandGaussianNoise(prob=1.0, std=7 * hu),  # at most, after smoothing
        ]
    )


class RandMove(RandomizableTransform):
    """Random rotation (SD 3 degrees about each axis), scaling (4 %) and shift (8 mm) of a patch.

    MONAI's RandAffine rotates in voxels, which shears if the spacing (mm; slice, row, column) is
    anisotropic; this transform rotates in mm. One patch in five is not changed, because
    interpolation smooths and the network must also handle images without this smoothing.
    """

    def __init__(self, spacing: tuple[float, float, float]) -> None:
        super().__init__(prob=0.8)
        self.spacing = np.array(spacing)

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        """The patch [1, slices, rows, columns], moved."""
        self.randomize(None)
        x, y, z = np.radians(self.R.normal(0, 3, 3))
        scale, shift = np.exp(self.R.normal(0, 0.04)), self.R.normal(0, 8, 3)
        if not self._do_transform:
            return patch
        matrix = np.eye(4)
        rotation = scale * np.array([[1, -x, y], [x, 1, -z], [-y, z, 1]])
        matrix[:3, :3] = rotation * self.spacing / self.spacing[:, None]
        matrix[:3, 3] = shift / self.spacing
        moved = Affine(affine=matrix, padding_mode="border", image_only=True)(patch)
        return torch.as_tensor(moved.as_tensor() if hasattr(moved, "as_tensor") else moved)
