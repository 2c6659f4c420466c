"""Parts of the liver (Couinaud segments, lobes) from a file or folder of another segmentation."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, StagingError
from .masks import same_grid
from .organs import IMAGES, liver_part
from .reading import read_mask

COUINAUD = frozenset(range(1, 9))


@dataclass(frozen=True, eq=False)
class LiverSegments:
    """A label image of parts of the liver.

    labels: uint8 image, 0 outside; parts: for the label n, parts[n - 1] are the Couinaud segments
    (1 to 8) that the part consists of.
    """

    labels: sitk.Image
    parts: tuple[frozenset[int], ...]

    def volume_ml(self, segments: frozenset[int]) -> float | None:
        """Volume of some Couinaud segments; None if no parts consist of exactly these."""
        inside = [n for n, part in enumerate(self.parts, start=1) if part <= segments]
        if frozenset().union(*(self.parts[n - 1] for n in inside)) != segments:
            return None
        each = math.prod(self.labels.GetSpacing()) / 1000
        labels = sitk.GetArrayViewFromImage(self.labels)
        return float(np.count_nonzero(np.isin(labels, inside)) * each)


def read_segments(path: str | Path, cancel: CancelToken | None = None) -> LiverSegments:
    """Read a segmentation of the liver's parts.

    path: a folder of masks named after the parts, as TotalSegmentator's task liver_segments writes
    it (liver_segment_1.nii.gz to liver_segment_8.nii.gz; other files are not read); a Slicer
    segmentation (.seg.nrrd) whose segments have terminology codes or names of parts; or a label
    image with the labels 1 to 8 of Couinaud's segments. Where parts overlap, the smaller ones are
    kept. Raises StagingError for anything else, and Cancelled.
    """
    path = Path(path)
    named = (_folder if path.is_dir() else _file)(path, cancel)
    filled = [(part, mask) for part, mask in named if mask is not None]
    if not filled:
        raise StagingError(f"{path.name}: all parts of the liver are empty; segments are needed.")
    first = filled[0][1]
    labels = np.zeros(first.GetSize()[::-1], np.uint8)
    # Larger parts first, so that the segments of a lobe replace it.
    named.sort(key=lambda each: -len(each[0]))
    for number, (_, mask) in enumerate(named, start=1):
        if mask is not None:
            if not same_grid(mask, first):
                raise StagingError(f"{path.name}: the masks of its parts are on different grids.")
            labels[sitk.GetArrayViewFromImage(mask) != 0] = number
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(first)
    return LiverSegments(image, tuple(part for part, _ in named))


_Named = list[tuple[frozenset[int], sitk.Image | None]]


def _folder(path: Path, cancel: CancelToken | None) -> _Named:
    """Parts and masks of a folder; the mask is None where it is empty."""
    found: _Named = []
    for file in sorted(path.iterdir()):
        ending = next((end for end in IMAGES if file.name.lower().endswith(end)), None)
        part = None if ending is None else liver_part(None, file.name[: -len(ending)])
        if part is not None:
            mask = read_mask(file, cancel)
            empty = not sitk.GetArrayViewFromImage(mask).any()
            found.append((part, None if empty else mask))
    if not found:
        raise StagingError(
            f"{path.name}: no mask is named after a part of the liver; files such as "
            "liver_segment_1.nii.gz to liver_segment_8.nii.gz are needed."
        )
    return found


def _file(path: Path, cancel: CancelToken | None) -> _Named:
    image = read_mask(path, cancel)
    labels = {int(label) for label in np.unique(sitk.GetArrayViewFromImage(image))} - {0}
    parts = _described(image)
    if not parts and labels == COUINAUD:
        parts = {label: frozenset({label}) for label in labels}
    if not parts:
        found = ", ".join(map(str, sorted(labels)[:10])) or "none"
        raise StagingError(
            f"{path.name}: its labels ({found}) are not parts of the liver; the labels 1 to 8 of "
            "Couinaud's segments, or a Slicer segmentation with their codes or names, are needed."
        )
    return [(part, image == n if n in labels else None) for n, part in parts.items()]


def _described(image: sitk.Image) -> dict[int, frozenset[int]]:
    """Label -> part, by the metadata that Slicer writes into a .seg.nrrd file."""
    parts = {}
    for key in image.GetMetaDataKeys():
        start, _, what = key.partition("_")
        if what != "LabelValue":
            continue
        tags, name = (
            image.GetMetaData(f"{start}_{each}") if image.HasMetaDataKey(f"{start}_{each}") else ""
            for each in ("Tags", "Name")
        )
        part = liver_part(_type_code(tags), name)
        label = image.GetMetaData(key).strip()
        if part is not None and label.isdecimal():
            parts[int(label)] = part
    return parts


def _type_code(tags: str) -> tuple[str, str] | None:
    """Scheme and code of the type in Slicer's "TerminologyEntry:CONTEXT~CATEGORY~TYPE~..."."""
    entry = tags.partition("TerminologyEntry:")[2].partition("|")[0].split("~")
    code = entry[2].split("^") if len(entry) > 2 else []
    return (code[0], code[1]) if len(code) > 1 and code[1] else None
