"""CTs with outlined livers and spleens, from a list or a Decathlon folder, to augmented patches."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import PersistentDataset
from monai.transforms import Transform
from torch.utils.data import Dataset

from common.resume import digest
from lfs.data import filled
from LiverFibrosisStagingLib import StagingError, __version__, read_ct, read_mask
from LiverFibrosisStagingLib.batch import read_list
from LiverFibrosisStagingLib.imaging.grid import resample_ct
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.imaging.segmentation import network_grid
from vnet.augmentation import LIVER, SPLEEN, augmentation

SPACING_MM = (4.0, 4.0, 4.0)
WINDOW_HU = (-150.0, 250.0)
# Whole sections of most patients, and the height of most livers: 19 x 29 x 38 cm.
PATCH_SIZE = (48, 72, 96)
MULTIPLE = 8
NOTHING_SHARE = 0.08  # of the patches: what has neither organ


class Mask(NamedTuple):
    """An organ in a file: the voxels with these labels, or what `read_organ` takes it for."""

    file: str
    labels: tuple[int, ...] = ()

    def content(self) -> str:
        """Digest of the file, and which labels are taken from it."""
        file, label = re.fullmatch(r"(.+?)(:\d+)?", self.file).groups("")
        return f"{digest(Path(file))}{label}{list(self.labels) or ''}"

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

    def content(self) -> list[str | None]:
        """Digests of the CT and of its organs; None for one that was not outlined."""
        return [digest(self.ct), *(mask and mask.content() for mask in (self.liver, self.spleen))]


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


def check_names(cases: Sequence[Outlined]) -> None:
    """Refuse, with StagingError, two cases of one name: which is left out would not be clear."""
    first: dict[str, Outlined] = {}
    for case in cases:
        other = first.setdefault(case.name.casefold(), case)
        if other is not case:
            raise StagingError(
                f"Two CTs have the case name {case.name}: {other.ct} and {case.ct}; give each its "
                "own, in the column case."
            )


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
        grid = network_grid(ct, SPACING_MM, MULTIPLE)
        given = [None if organ is None else Mask(*organ).image() for organ in case[2:]]
        liver, spleen = given
        if liver is None:
            masks = (None, organ_masks(ct, spleen, None)[0])
        else:
            masks = organ_masks(ct, liver, spleen)[:2]
        volume = sitk.GetArrayFromImage(sitk.IntensityWindowing(grid, *WINDOW_HU, 0.0, 255.0))
        volume = np.round(volume).astype(np.uint8)
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
    """Every case on the network's grid, in the cases' order, kept in `cache`.

    A case is prepared anew when the content of its files or the recipe changes.
    """
    recipe = repr((__version__, SPACING_MM, WINDOW_HU))
    items = []
    for case in cases:
        plain = [case.name, str(case.ct), *(m and [m.file, list(m.labels)] for m in case[2:])]
        items.append({"case": plain, "content": case.content(), "recipe": recipe})
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
        self.augment = augmentation(PATCH_SIZE, WINDOW_HU)

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
        volume = torch.as_tensor(np.asarray(made["volume"]))
        return volume.clamp_(0, 1), made["labels"], known


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
