"""CTs with outlined livers and spleens, from a list or a Decathlon folder, to augmented patches."""

import json
import re
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from data import filled
from monai.data import PersistentDataset
from monai.transforms import (
    Compose,
    MapTransform,
    Rand3DElasticd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandSpatialCropd,
    SpatialPadd,
    Transform,
)
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "LiverFibrosisStaging"))
from LiverFibrosisStagingLib import StagingError, __version__, read_ct, read_mask
from LiverFibrosisStagingLib.batch import read_list
from LiverFibrosisStagingLib.grid import resample_ct
from LiverFibrosisStagingLib.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.segmentation import CLASSES, network_grid

SPACING_MM = (4.0, 4.0, 4.0)
WINDOW_HU = (-150.0, 250.0)
LIVER, SPLEEN = CLASSES.index("liver"), CLASSES.index("spleen")
# Whole sections of most patients, and the height of most livers: 19 x 29 x 38 cm.
PATCH_SIZE = (48, 72, 96)
MULTIPLE = 8
NOTHING_SHARE = 0.08  # of the patches: what has neither organ


class Mask(NamedTuple):
    """An organ in a file: the voxels with these labels, or what `read_organ` takes it for."""

    file: str
    labels: tuple[int, ...] = ()

    def image(self) -> sitk.Image:
        """The mask, or a label image with 1 liver and 2 spleen."""
        if not self.labels:
            return read_organ(self.file)
        image = read_mask(self.file)
        inside = np.isin(sitk.GetArrayViewFromImage(image), self.labels).astype(np.uint8)
        mask = sitk.GetImageFromArray(inside)
        mask.CopyInformation(image)
        return mask


class Outlined(NamedTuple):
    """A CT and its organs; None where one was not outlined, which says nothing about it."""

    name: str
    ct: Path
    liver: Mask | None
    spleen: Mask | None


def read_cases(source: Path) -> list[Outlined]:
    """Cases of a CSV (columns ct, liver, spleen, case) or a Medical Segmentation Decathlon folder.

    In the folder, dataset.json says which labels are liver (tumours in it included) and spleen.
    Raises StagingError where there is none.
    """
    if source.is_dir():
        return _decathlon(source)
    cases = [
        Outlined(case.name, case.ct, *(m and Mask(str(m)) for m in (case.liver, case.spleen)))
        for case in read_list(source)
    ]
    bare = [case.name for case in cases if case.liver is None and case.spleen is None]
    if bare:
        raise StagingError(f"{source}: no organ is outlined in {', '.join(bare)}.")
    return cases


def _decathlon(folder: Path) -> list[Outlined]:
    file = folder / "dataset.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        pairs = [(folder / item["image"], folder / item["label"]) for item in said["training"]]
        labels = {int(number): str(name).lower() for number, name in said["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StagingError(
            f"Cannot read {file}: {error}. Needed is a folder in Decathlon layout, with `training` "
            "and `labels`."
        ) from None
    spleen = tuple(n for n, name in labels.items() if n and "spleen" in name)
    # Task 3 calls the tumours in the liver cancer; they are part of it.
    words = "liver|cancer|tumou?r|lesion" if any("liver" in n for n in labels.values()) else "liver"
    liver = tuple(n for n, name in labels.items() if n and re.search(words, name))
    if not pairs or (not liver and not spleen):
        raise StagingError(f"{file}: none of the labels {labels} is a liver or a spleen.")
    return [
        Outlined(
            image.name.split(".")[0],
            image,
            *(Mask(str(label), numbers) if numbers else None for numbers in (liver, spleen)),
        )
        for image, label in pairs
    ]


class OnGrid(Transform):
    """A case on the network's grid.

    Returns `volume`, uint8 [1, slices, rows, columns], the window as 0..255; `labels`, uint8 of the
    same shape; and `known`, bool [3]: the classes that were outlined.
    """

    def __call__(self, item: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One case: item has `case`, an Outlined."""
        case = Outlined(*item["case"])
        ct = read_ct(case.ct)
        grid = network_grid(ct, SPACING_MM, MULTIPLE, WINDOW_HU)
        given = [None if organ is None else Mask(*organ).image() for organ in case[2:]]
        liver, spleen = given
        if liver is None:
            masks = (None, organ_masks(ct, spleen, None)[0])
        else:
            masks = organ_masks(ct, liver, spleen)[:2]
        volume = np.round(sitk.GetArrayFromImage(grid) * 255).astype(np.uint8)
        labels = np.zeros_like(volume)
        for label, mask in zip((LIVER, SPLEEN), masks):
            if mask is not None:
                share = resample_ct(sitk.Cast(mask != 0, sitk.sitkFloat32), grid, outside=0.0)
                labels[sitk.GetArrayViewFromImage(share) >= 0.5] = label
        return {
            "volume": torch.from_numpy(volume[None]),
            "labels": torch.from_numpy(labels[None]),
            "known": torch.tensor([True, *(mask is not None for mask in masks)]),
        }


def prepare(cases: Sequence[Outlined], cache: Path) -> PersistentDataset:
    """Every case on the network's grid, in the cases' order, kept in `cache`."""
    recipe = repr((__version__, SPACING_MM, WINDOW_HU))
    items = []
    for case in cases:
        files = [case.ct, *(re.sub(r":\d+$", "", m.file) for m in case[2:] if m is not None)]
        changed = [Path(file).stat().st_mtime_ns for file in files]
        plain = [case.name, str(case.ct), *(m and [m.file, list(m.labels)] for m in case[2:])]
        items.append({"case": plain, "changed": changed, "recipe": recipe})
    return filled(items, OnGrid(), cache)


class Patches(Dataset):
    """Augmented patches, each drawn by its number: of CTs, of phantoms, and of what has no liver.

    Item n depends on the seed and n alone. Gives `volume` float32 [1, slices, rows, columns],
    `labels` uint8 of the same shape, and `known` bool [3].
    """

    def __init__(
        self,
        cases: PersistentDataset | None,
        phantoms: PersistentDataset | None,
        phantom_share: float,
        numbers: range,
        seed: int,
    ) -> None:
        self.cases, self.phantoms, self.share = cases, phantoms, phantom_share
        self.numbers, self.seed = numbers, seed
        self.augment = augmentation()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self.seed, self.numbers[index]])
        if rng.random() < NOTHING_SHARE:
            return without_organs(rng)
        simulated = self.cases is None or (self.phantoms is not None and rng.random() < self.share)
        source = self.phantoms if simulated else self.cases
        item = dict(source[int(rng.integers(len(source)))])
        known = item.pop("known")
        item["volume"] = item["volume"].float() / 255
        self.augment.set_random_state(int(rng.integers(2**31)))
        made = self.augment(item)
        volume, labels = (torch.as_tensor(np.asarray(made[key])) for key in ("volume", "labels"))
        return volume.float().clamp_(0, 1), labels.round().to(torch.uint8), known


def without_organs(
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A patch, as `Patches` gives it, of a head, a chest, or a vessel with balls in it.

    A network that has only seen abdomens finds a liver everywhere.
    """
    axes = [step * (np.arange(n) - (n - 1) / 2) for n, step in zip(PATCH_SIZE, SPACING_MM)]
    z, y, x = np.ix_(*(axis + shift for axis, shift in zip(axes, rng.normal(0, 15, 3))))
    hu = np.full(PATCH_SIZE, -1000.0)

    def paint(centre: Sequence[float], radii: Sequence[float], value: float) -> None:
        parts = ((a - c) / r for a, c, r in zip((z, y, x), centre, radii))
        hu[sum(part**2 for part in parts) < 1] = value

    kind = rng.integers(3)
    length = rng.choice((90.0, 1e4))
    wide = rng.uniform(110, 180)
    if kind == 0:
        size = np.array([95.0, rng.uniform(85, 100), rng.uniform(65, 80)])
        paint((0, 0, 0), size, rng.uniform(300, 1200))
        paint((0, 0, 0), size - 7, rng.uniform(20, 60))
    else:
        paint((0, 0, 0), (length, rng.uniform(0.6, 0.8) * wide, wide), rng.uniform(-100, 120))
    if kind == 1:
        for side in (-0.48, 0.48):
            paint((0, -10, side * wide), (length, rng.uniform(55, 80), 0.38 * wide), -850)
        paint((0, rng.uniform(60, 90), 0), (length, 20, 20), rng.uniform(200, 500))
        paint(rng.normal(0, 15, 3), rng.uniform(35, 60, 3), rng.uniform(30, 180))
    for _ in range(rng.integers(4)):
        paint(rng.normal(0, 40, 3), rng.uniform(8, 40, 3), rng.uniform(-100, 200))
    hu += rng.normal(0, rng.uniform(3, 30), PATCH_SIZE)
    low, high = WINDOW_HU
    volume = torch.from_numpy(((hu - low) / (high - low)).clip(0, 1).astype(np.float32))[None]
    return volume, torch.zeros(volume.shape, dtype=torch.uint8), torch.ones(3, dtype=torch.bool)


def augmentation() -> Compose:
    """Patients are built and lie differently; phase, dose, kernel, slices and scanners differ.

    No flips: the liver has a side.
    """
    both = ("volume", "labels")
    larger = [n + 8 for n in PATCH_SIZE]  # what turns need at the edges
    return Compose(
        [
            SpatialPadd(both, PATCH_SIZE),
            RandSpatialCropd(both, larger, max_roi_size=None, random_size=False),
            Rand3DElasticd(
                both,
                sigma_range=(4, 6),
                magnitude_range=(20, 60),
                prob=0.9,
                spatial_size=PATCH_SIZE,
                rotate_range=(0.1, 0.15, 0.15),
                scale_range=(0.15, 0.15, 0.15),
                translate_range=(3, 4, 4),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            Contrast(),
            ThickSlices(),
            RandGaussianSmoothd(("volume",), (0.3, 0.8), (0.3, 0.8), (0.3, 0.8), prob=0.3),
            RandGaussianNoised(("volume",), prob=0.5, std=0.06),
            FieldOfView(),
            Surroundings(),
        ]
    )


class _OnVolume(MapTransform, RandomizableTransform):
    """A random change of `volume`, and of `labels` where the picture goes black."""

    def __init__(self, prob: float) -> None:
        MapTransform.__init__(self, ("volume", "labels"))
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        self.randomize(None)
        if not self._do_transform:
            return data
        volume, labels = (torch.as_tensor(np.asarray(data[key])).clone() for key in self.keys)
        self.change(volume, labels)
        return {**data, "volume": volume, "labels": labels}

    @abstractmethod
    def change(self, volume: torch.Tensor, labels: torch.Tensor) -> None:
        """Change both in place."""


class Contrast(_OnVolume):
    """Contrast phase and disease: less enhancement everywhere, organs a little apart from it."""

    def __init__(self) -> None:
        super().__init__(0.8)

    def change(self, volume: torch.Tensor, labels: torch.Tensor) -> None:  # noqa: D102
        low, high = WINDOW_HU
        if self.R.rand() < 0.35:
            plain = (40.0 - low) / (high - low)  # muscle; what enhances lies above
            kept = self.R.uniform(0.1, 0.9)
            volume.copy_(torch.where(volume > plain, plain + kept * (volume - plain), volume))
        for label in (LIVER, SPLEEN):
            volume += (labels == label) * (self.R.normal(0, 18) / (high - low))
        soft = (volume > 0.3) & (volume < 0.95)
        volume += soft * (self.R.normal(0, 8) / (high - low))


class ThickSlices(_OnVolume):
    """Two or three slices become one that is seen several times."""

    def __init__(self) -> None:
        super().__init__(0.2)

    def change(self, volume: torch.Tensor, labels: torch.Tensor) -> None:  # noqa: D102
        count = int(self.R.randint(2, 4))
        whole = volume.shape[1] // count * count
        blocks = volume[:, :whole].unflatten(1, (-1, count))
        volume[:, :whole] = blocks.mean(dim=2, keepdim=True).expand_as(blocks).flatten(1, 2)


class FieldOfView(_OnVolume):
    """The scan ends within the patient: above, below, or at a round field of view."""

    def __init__(self) -> None:
        super().__init__(0.4)

    def change(self, volume: torch.Tensor, labels: torch.Tensor) -> None:  # noqa: D102
        _, slices, rows, columns = volume.shape
        black = torch.zeros(volume.shape, dtype=torch.bool)
        if self.R.rand() < 0.7:
            cut = int(self.R.randint(1, slices // 2))
            black[:, -cut:] = True
            black = black if self.R.rand() < 0.5 else black.flip(1)
        if self.R.rand() < 0.4:
            y, x = np.ogrid[:rows, :columns]
            middle = self.R.normal((rows / 2, columns / 2), 3)
            radius = self.R.uniform(0.38, 0.55) * columns
            outside = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 > radius**2
            black |= torch.from_numpy(outside)
        volume[black], labels[black] = 0.0, 0


class Surroundings(_OnVolume):
    """What lies in the air: a table behind the patient, arms at the sides."""

    def __init__(self) -> None:
        super().__init__(0.4)

    def change(self, volume: torch.Tensor, labels: torch.Tensor) -> None:  # noqa: D102
        rows, columns = volume.shape[2:]
        y, x = np.ogrid[:rows, :columns]
        kind = self.R.randint(3)
        if kind == 0:  # a curved shell
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
