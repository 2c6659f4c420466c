"""Folders with the layout of a known kind of data set, whose masks are found by its rules.

Medical Segmentation Decathlon and nnU-Net: imagesTr and labelsTr, with the labels named in
dataset.json. BIDS: sub-*/[ses-*/](ct|anat)/*_ct.nii.gz, with masks in derivatives/. A label image
whose labels are not named is not used.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import StagingError
from ..imaging.dicom_series import PORTAL_VENOUS, named_phase
from .cohort import Case, LeftOut
from .image_files import ORGANS, ImageFile, image_file, image_files

_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: NAME_0000.nii.gz
_CT = re.compile(r"(?<![a-z])ct(?![a-z])", re.I)
_NO_CT = re.compile(r"(?<![a-z])(mri?|t1|t2|flair|dwi|adc|pet|suv|us)(?![a-z])", re.I)
_TUMOUR = {
    *("cancer", "cancers", "cyst", "cysts", "hcc", "lesion", "lesions", "metastases"),
    *("metastasis", "tumor", "tumors", "tumour", "tumours"),
}
_WHOLE = {"organ", "parenchyma", "whole"}
_SUBJECT = "sub-*"
_ENTITY = re.compile(r"([a-z0-9]+)-([^_.]+)")
_OTHER = "neither a CT nor a mask of liver or spleen"
_SEVERAL = "one of several masks of an organ; segmented automatically"
_UNNAMED = "its labels of liver and spleen are not named; segmented automatically"

Found = tuple[list[Case], list[LeftOut]]


def read_layout(folder: Path) -> Found | None:
    """The cases of a folder with a known layout, and what is left out; None for another folder.

    Raises StagingError for a description (dataset.json, dseg.tsv) that cannot be read.
    """
    if (folder / "imagesTr").is_dir() or (folder / "imagesTs").is_dir():
        return _decathlon(folder)
    cts = [
        ct
        for session in ("", "ses-*/")
        for modality in ("ct", "anat")
        for ct in folder.glob(f"{_SUBJECT}/{session}{modality}/sub-*_ct.nii*")
        if image_file(ct) is not None
    ]
    return _bids(folder, cts) if cts else None


def organ_labels(names: Mapping[str, Iterable[int]]) -> dict[str, str]:
    """The labels of liver, with its tumours, and spleen among named ones, as in FILE:LABEL.

    names: name -> its numbers. Tumours without an organ in their name are those of the liver if no
    other organ is named. Of the two organs, those that are not named are left out.
    """
    words = {name: set(re.findall(r"[a-z]+", name.lower())) - _WHOLE for name in names}
    organs = {frozenset(each - _TUMOUR) for each in words.values()} - {frozenset()}
    liver_only = organs <= {frozenset({"liver"}), frozenset({"background"})}
    found = {}
    for organ in ORGANS[:2]:
        numbers = {
            number
            for name, each in words.items()
            if each - _TUMOUR == {organ}
            or (organ == "liver" and liver_only and each and each <= _TUMOUR)
            for number in names[name]
            if number > 0
        }
        if any(each == {organ} for each in words.values()) and numbers:
            found[organ] = "+".join(map(str, sorted(numbers)))
    return found


def _decathlon(folder: Path) -> Found:
    described = _described(folder / "dataset.json")
    organs = organ_labels(_label_names(described, folder / "dataset.json"))
    sets = []
    for place in sorted(folder.glob("images*")):
        beside = folder / f"labels{place.name.removeprefix('images')}"
        sets.append((_images(place), {label.stem: label for label in _images(beside)}))
    in_channels = "channel_names" in described or all(
        _CHANNEL.fullmatch(image.stem) and image.stem not in labels
        for images, labels in sets
        for image in images
    )

    def split(image: ImageFile) -> tuple[str, int]:
        match = _CHANNEL.fullmatch(image.stem) if in_channels else None
        return (image.stem, 0) if match is None else (match[1], int(match[2]))

    channels = {split(image)[1] for images, _ in sets for image in images}
    channel = _ct_channel(channels, described.get("channel_names", described.get("modality")))
    chosen = f"channel {channel} of {len(channels)}" if len(channels) > 1 else ""
    cases: list[Case] = []
    left_out: list[LeftOut] = []
    for images, labels in sets:
        for image in images:
            name, number = split(image)
            if number == channel:
                masks = {o: f"{labels[name].path}:{n}" for o, n in organs.items() if name in labels}
                ct, liver, spleen = image.path, masks.get("liver"), masks.get("spleen")
                cases.append(Case(name, ct, liver, spleen, chosen=chosen))
                if name in labels and not masks:
                    left_out.append(LeftOut(labels[name].path, "label image", _UNNAMED, taken=ct))
            else:
                why = "not a CT by dataset.json" if channel is None else f"channel {number}"
                left_out.append(LeftOut(image.path, "image file", why))
        owned = {split(image)[0] for image in images}
        left_out += [
            LeftOut(label.path, "label image", "belongs to no image")
            for name, label in labels.items()
            if name not in owned
        ]
    return cases, left_out


def _images(place: Path) -> list[ImageFile]:
    if not place.is_dir():
        return []
    return image_files(place, [path.name for path in place.iterdir()])


def _described(file: Path) -> dict[str, Any]:
    """The content of a dataset.json; {} if there is none."""
    if not file.is_file():
        return {}
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StagingError(f"{file}: cannot be read ({error}); JSON is needed.") from None
    return described if isinstance(described, dict) else {}


def _label_names(described: dict[str, Any], file: Path) -> dict[str, list[int]]:
    """Name -> numbers; Decathlon writes {"1": "liver"}, nnU-Net 2 {"liver": 1} or [1, 2]."""
    labels = described.get("labels", {})
    names: dict[str, list[int]] = defaultdict(list)
    try:
        for key, value in labels.items():
            if str(key).isdecimal():
                names[str(value)].append(int(key))
            else:
                names[str(key)] += map(int, value if isinstance(value, list) else [value])
    except (AttributeError, TypeError, ValueError):
        raise StagingError(
            f"{file}: its labels are {labels!r}; names with their numbers are needed."
        ) from None
    return names


def _ct_channel(channels: Iterable[int], described: Any) -> int | None:
    """The channel with the CT: by its name, portal-venous if there are several; None if none is.

    described: number, as text -> name, from dataset.json.
    """
    names = described if isinstance(described, dict) else {}
    ranked = [
        (_CT.search(name) is None, named_phase(name) != PORTAL_VENOUS, channel)
        for channel in channels
        if not _NO_CT.search(name := str(names.get(str(channel), "")))
    ]
    return min(ranked)[-1] if ranked else None


def _bids(folder: Path, cts: list[Path]) -> Found:
    places = [folder, *folder.glob("derivatives"), *folder.glob("derivatives/*")]
    files = {
        image.path: image
        for place in places
        for below in place.glob(f"{_SUBJECT}/**/")
        for image in _images(below)
    }
    tables = {
        image.path: organ_labels(names)
        for image in files.values()
        if image.stem.endswith("_dseg") and (names := _table(image, folder))
    }
    masks: dict[tuple[Path, str], list[tuple[Path, str]]] = defaultdict(list)
    reasons: dict[Path, tuple[str, Path | None]] = {}
    for path, image in files.items():
        if path in cts:
            continue
        organs = tables.get(path) or dict.fromkeys(_bids_organ(image.stem), "")
        owners = _scans(image.stem, cts)
        if not organs:
            reasons[path] = _UNNAMED if image.stem.endswith("_dseg") else _OTHER, None
        elif len(owners) != 1:
            reasons[path] = f"a mask that could belong to {len(owners)} CTs", None
        else:
            for organ, numbers in organs.items():
                given = f"{path}:{numbers}" if numbers else str(path)
                masks[owners[0], organ].append((path, given))
            reasons[path] = _SEVERAL, owners[0]
    single = {which: found[0] for which, found in masks.items() if len(found) == 1}
    used = {path for path, _ in single.values()}
    cases = [
        Case(files[ct].owner, ct, *(single.get((ct, o), (None, None))[1] for o in ORGANS[:2]))
        for ct in cts
    ]
    left_out = [
        LeftOut(path, "image file", reason, taken=ct)
        for path, (reason, ct) in reasons.items()
        if path not in used
    ]
    return cases, left_out


def _table(image: ImageFile, folder: Path) -> dict[str, list[int]]:
    """The labels in the dseg.tsv of a label image, or of a folder above it."""
    own = image.path.with_name(f"{image.stem}.tsv")
    above = [place for place in image.path.parents if place.is_relative_to(folder)]
    shared = [path for place in above for path in sorted(place.glob("*dseg.tsv"))[:1]]
    file = next((path for path in (own, *shared) if path.is_file()), None)
    names: dict[str, list[int]] = defaultdict(list)
    if file is not None:
        try:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                for line in csv.DictReader(stream, delimiter="\t"):
                    names[line["name"]].append(int(line["index"]))
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            raise StagingError(
                f"{file}: cannot be read; a table with the columns index and name is needed."
            ) from None
    return names


def _bids_organ(stem: str) -> list[str]:
    """The organ of a mask's name, as in sub-01_label-liver_mask."""
    values = {part.partition("-")[2] or part for part in stem.lower().split("_")}
    found = [organ for organ in ORGANS if organ in values]
    return found if len(found) == 1 else []


def _scans(stem: str, cts: Iterable[Path]) -> list[Path]:
    """The CTs whose entities (sub, ses, acq ...) a BIDS name shares best, none differing."""
    own = dict(_ENTITY.findall(stem))
    scores: dict[Path, int] = {}
    for ct in cts:
        theirs = dict(_ENTITY.findall(ct.name))
        if own.get("sub") == theirs["sub"] and all(
            own.get(key, value) == value for key, value in theirs.items()
        ):
            scores[ct] = sum(1 if key in own else -1 for key in theirs)
    return [ct for ct, score in scores.items() if score == max(scores.values())]
