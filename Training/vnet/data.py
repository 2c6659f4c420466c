"""Training data of the V-Net: CTs with liver and spleen masks, and patches of them."""

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

from common.cache import cached
from common.resume import digest, digest_of_mask
from LiverFibrosisStagingLib import StagingError, __version__, read_ct, read_mask
from LiverFibrosisStagingLib.batch.lists import read_list
from LiverFibrosisStagingLib.imaging.grid import resample_ct
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.imaging.segmentation import network_grid
from vnet.augmentation import LIVER, SPLEEN, augmentation

SPACING_MM = (4.0, 4.0, 4.0)
WINDOW_HU = (-150.0, 250.0)
# 19 x 29 x 38 cm: whole sections of most patients, and the height of most livers.
PATCH_SIZE = (48, 72, 96)
MULTIPLE = 8
EMPTY_SHARE = 0.08  # of the patches: without liver and spleen


class Mask(NamedTuple):
    """An organ in a file: the voxels with these labels; if none are given, see `read_organ`."""

    file: str
    labels: tuple[int, ...] = ()

    def content(self) -> str:
        """Digest of the file, with the labels."""
        return f"{digest_of_mask(self.file)}{list(self.labels) or ''}"

    def image(self) -> sitk.Image:
        """The mask, or a label image with 1 liver and 2 spleen."""
        if not self.labels:
            return read_organ(self.file)
        image = read_mask(self.file)
        inside = np.isin(sitk.GetArrayViewFromImage(image), self.labels).astype(np.uint8)
        mask = sitk.GetImageFromArray(inside)
        mask.CopyInformation(image)
        return mask


class Labelled(NamedTuple):
    """A CT and the masks of its organs; None for an organ without a mask, which may be present."""

    name: str
    ct: Path
    liver: Mask | None
    spleen: Mask | None

    def content(self) -> list[str | None]:
        """Digests of the CT and the masks; None for an organ without a mask."""
        return [digest(self.ct), *(mask and mask.content() for mask in (self.liver, self.spleen))]


def read_cases(source: Path) -> list[Labelled]:
    """Cases of a CSV (columns ct, liver, spleen, case) or a Medical Segmentation Decathlon folder.

    In the folder, dataset.json names the labels of liver (with its tumours) and spleen. Raises
    StagingError if there are none.
    """
    if source.is_dir():
        return _decathlon(source)
    cases = [
        Labelled(case.name, case.ct, *(m and Mask(str(m)) for m in (case.liver, case.spleen)))
        for case in read_list(source)
    ]
    bare = [case.name for case in cases if case.liver is None and case.spleen is None]
    if bare:
        raise StagingError(
            f"{source}: {', '.join(bare)} have no mask; a mask of liver or spleen is needed."
        )
    return cases


def check_names(cases: Sequence[Labelled]) -> None:
    """Raise StagingError if two cases have the same name: --leave-out would be ambiguous."""
    first: dict[str, Labelled] = {}
    for case in cases:
        other = first.setdefault(case.name.casefold(), case)
        if other is not case:
            raise StagingError(
                f"{other.ct} and {case.ct} have the same case name, {case.name}; different names "
                "are needed, in the column case."
            )


def _decathlon(folder: Path) -> list[Labelled]:
    file = folder / "dataset.json"
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        pairs = [(folder / item["image"], folder / item["label"]) for item in described["training"]]
        labels = {int(number): str(name).lower() for number, name in described["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StagingError(
            f"{file}: cannot be read ({error}); the description of a Decathlon folder with "
            "`training` and `labels` is needed."
        ) from None
    spleen = tuple(n for n, name in labels.items() if n and "spleen" in name)
    # Task 3 labels the tumours in the liver "cancer"; they are part of the liver.
    words = "liver|cancer|tumou?r|lesion" if any("liver" in n for n in labels.values()) else "liver"
    liver = tuple(n for n, name in labels.items() if n and re.search(words, name))
    if not pairs or (not liver and not spleen):
        raise StagingError(f"{file}: its labels are {labels}; a liver or a spleen is needed.")
    return [
        Labelled(
            image.name.split(".")[0],
            image,
            *(Mask(str(label), numbers) if numbers else None for numbers in (liver, spleen)),
        )
        for image, label in pairs
    ]


class NetworkGrid(Transform):
    """Resamples a case to the network's grid.

    Returns `volume`, uint8 [1, slices, rows, columns], the window as 0..255; `labels`, uint8 of the
    same shape; and `known`, bool [3]: the classes that have a mask.
    """

    def __call__(self, item: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One case: item has `case`, an Labelled."""
        case = Labelled(*item["case"])
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
                labels[share >= 0.5] = label
        return {
            "volume": torch.from_numpy(volume[None]),
            "labels": torch.from_numpy(labels[None]),
            "known": torch.tensor([True, *(mask is not None for mask in masks)]),
        }


def prepare(cases: Sequence[Labelled], cache: Path, workers: int = 0) -> PersistentDataset:
    """Every case on the network's grid, in the cases' order, cached in the folder `cache`.

    A case is prepared again when the content of its files or the preprocessing changes. workers:
    see `common.cache.cached`.
    """
    recipe = repr((__version__, SPACING_MM, WINDOW_HU))
    items = []
    for case in cases:
        plain = [case.name, str(case.ct), *(m and [m.file, list(m.labels)] for m in case[2:])]
        items.append({"case": plain, "content": case.content(), "recipe": recipe})
    return cached(items, NetworkGrid(), cache, workers)


class Patches(Dataset):
    """Augmented patches of CTs, of phantoms, and of simulated volumes without liver and spleen.

    Item n depends only on the seed and on n. Gives `volume` float32 [1, slices, rows, columns],
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
        if rng.random() < EMPTY_SHARE:
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
    """A patch, as `Patches` gives it, of a simulated head, chest or container with spheres.

    A network trained on abdomens alone segments a liver in every image.
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
