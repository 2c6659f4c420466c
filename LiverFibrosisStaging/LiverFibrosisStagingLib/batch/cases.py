"""The cases of a cohort: which files are CTs, which masks belong to them, and the cases' names.

No CT is skipped silently: every file that may be a CT is a case, and if it is not one, its row in
the results states so.
"""

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk

from ..errors import StagingError
from ..imaging.body import Body, given_body
from ..imaging.checks import AIR_HU
from ..imaging.dicom_files import dicom_folders
from ..imaging.itk_files import itk_path, quiet
from ..imaging.organs import liver_part
from ..imaging.reading import check_header, read_ct
from ..privacy import dicom_patient_names, looks_like_person_name, pseudonym
from ..result import FILES

IMAGES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
ORGANS = ("liver", "spleen", "seg")
# OWNER_liver, OWNER_spleen, OWNER_seg, also OWNER.seg and OWNER_liver.seg as written by Slicer.
_MASK = re.compile(rf"(?:(.+?)[._])?({'|'.join(ORGANS)})(?:[._]seg)?", re.I)
_CT = re.compile(r"(?:(.+)[._])?ct", re.I)
_UNSIGNED = (sitk.sitkUInt8, sitk.sitkUInt16, sitk.sitkUInt32, sitk.sitkUInt64)
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED_CHARACTERS = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')
_OUR_FILES = re.compile(r"(results|columns|left_out|summary|batch|report)\.\w+|\.partial-.*", re.I)
_RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(?=\.|$)", re.I)


@dataclass(frozen=True)
class Case:
    """One case: name of its result folder, CT, and masks (None: automatic segmentation).

    pseudonym: whether the name is a pseudonym. segments: segmentation of the liver's parts. body:
    height and weight.
    """

    name: str
    ct: Path
    liver: str | Path | None
    spleen: str | Path | None
    pseudonym: bool = False
    segments: Path | None = None
    body: Body | None = None


@dataclass(frozen=True)
class _Image:
    """An image file or a DICOM folder; its name without extension, the extension in lower case."""

    path: Path
    stem: str
    ending: str = ""

    @property
    def mask(self) -> tuple[str | None, str] | None:
        """The CT's name and the organ, for a mask's file name (None: mask of the folder's CT)."""
        match = _MASK.fullmatch(self.stem)
        if match is None:
            return (None, "seg") if self.stem.lower().startswith("seg") else None
        weak = match[1] is None or match[1].lower().startswith("seg")
        return (None if weak else match[1], match[2].lower())

    @property
    def is_part(self) -> bool:
        """Whether the name is that of a part of the liver, such as liver_segment_1."""
        return liver_part(None, self.stem) is not None

    @property
    def owner(self) -> str:
        """Beginning of its masks' names, and name of its case."""
        match = _CT.fullmatch(self.stem)
        return self.stem if match is None or match[1] is None else match[1]


def read_cases(source: Path, leave_out: Path | None = None, pseudonyms: bool = False) -> list[Case]:
    """Cases of a CSV file (`read_list`) or a folder (`find_cases`)."""
    if source.suffix.lower() == ".csv":
        return read_list(source, pseudonyms)
    return find_cases(source, leave_out, pseudonyms)


def find_cases(folder: Path, leave_out: Path | None = None, pseudonyms: bool = False) -> list[Case]:
    """Cases in a folder and its subfolders, by name.

    A case is an image file (NIfTI, NRRD, MetaImage) that is not a mask, or a folder with DICOM
    files. The masks of NAME.nii.gz or NAME_ct.nii.gz are NAME_liver and NAME_spleen, or NAME_seg
    with 1 liver and 2 spleen; in a folder with one CT, also liver, spleen, or any name that begins
    with seg. The masks of a DICOM folder are in it, or beside it with its name.

    Masks named after parts of the liver, such as TotalSegmentator's liver_segment_1, are the
    segments of the CT in their folder, or else in the folder above, if there is only one.

    Files with a mask's name that belongs to no CT, other files beside one called ct or NAME_ct, and
    image files in a DICOM folder are cases only if their voxels are those of a CT or cannot be
    read. CTs whose names differ only in extension, letter case, or "." for "_" are separate cases;
    a mask belongs to the CT with the most similar name. Hidden files and the files of earlier
    results are not cases. `leave_out`: a folder of results that is not searched.

    Cases are named after the CTs, or the folders with one CT, made unique and valid as folder names
    on all systems; names that may be those of persons, and with `pseudonyms` all names, are
    replaced by `privacy.pseudonym`. Raises StagingError if there is no case.
    """
    if not folder.is_dir():
        raise StagingError(f"{folder}: no such folder; a folder of CTs or a CSV file is needed.")
    series = dicom_folders(folder)
    found: list[Case] = []
    masks: dict[Path, dict[str, Path]] = {}
    parts: list[Path] = []
    visited = {folder.resolve()}

    def unreadable(error: OSError) -> None:  # the reason is reported when it is staged
        place = Path(error.filename)
        found.append(Case(_relative(place, folder), place, None, None))

    for here, subfolders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        place = Path(here)
        subfolders.sort()
        for name in list(subfolders):
            below = place / name
            target = below.resolve()
            left_out = leave_out is not None and target == leave_out.resolve()
            if name.startswith(".") or left_out or target in visited:
                subfolders.remove(name)
                continue
            visited.add(target)
            if below.is_symlink():
                series += dicom_folders(below)
        images = _images(place, names)
        parts += [image.path for image in images if image.is_part]
        found += _cases_of_folder(images, place, folder, series, masks)
    for place in series:
        found.append(_case(_relative(place, folder), place, masks))
    if not found:
        raise StagingError(
            f"The folder {folder} contains no CT, neither image files ({', '.join(IMAGES)}) nor "
            "DICOM."
        )
    found = _with_segments(found, parts)
    found.sort(key=lambda case: (case.name, case.ct))
    return _named(found, folder, pseudonyms)


def read_list(path: Path, pseudonyms: bool = False) -> list[Case]:
    """Cases of a CSV file with the columns ct and, optionally, liver, spleen, case, segments,
    height_cm and weight_kg.

    A case without a name is named after its CT, as in `find_cases`; names in the file are kept,
    unless they may be those of persons. Raises StagingError for a file that cannot be read, and for
    names that occur twice, regardless of letter case, or lead out of the folder.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StagingError(f"Cannot read the list {path}: {error}.") from None
    if not lines or "ct" not in lines[0]:
        raise StagingError(
            f"The list {path} has no cases; a header with the column ct and a line per case are "
            "needed."
        )
    cases: list[Case] = []
    given: set[str] = set()
    for number, line in enumerate(lines, start=2):
        if not (line.get("ct") or "").strip():
            raise StagingError(f"The list {path} names no CT in line {number}.")
        ct, liver, spleen, segments = (
            path.parent / line[key].strip() if (line.get(key) or "").strip() else None
            for key in ("ct", "liver", "spleen", "segments")
        )
        name = (line.get("case") or "").strip()
        if name:
            parts = re.split(r"[\\/]", name)
            same = usable_name(name).casefold()
            if same in given or ".." in parts or not parts[0] or Path(name).is_absolute():
                raise StagingError(
                    f"The list {path} has the case name {name!r} twice, or it is not valid."
                )
            given.add(same)
        body = _body(line, f"The list {path}, line {number}")
        cases.append(Case(name, ct, liver, spleen, segments=segments, body=body))
    return _named(_named_after_cts(cases, path.parent, given), path.parent, pseudonyms)


def _body(line: dict[str, str | None], where: str) -> Body | None:
    """Height and weight of a line of a list."""
    texts = [(line.get(key) or "").strip() for key in ("height_cm", "weight_kg")]
    try:
        return given_body(*(float(text) if text else None for text in texts))
    except ValueError:
        raise StagingError(
            f"{where}: height and weight are {' and '.join(map(repr, texts))}; numbers in cm and "
            "kg are needed."
        ) from None
    except StagingError as refusal:
        raise StagingError(f"{where}: {refusal}") from None


def _named_after_cts(cases: list[Case], root: Path, given: set[str]) -> list[Case]:
    """Cases without a name get that of their CT, with its folder's name where ambiguous."""
    stems = [case.ct.name if (image := _image(case.ct)) is None else image.stem for case in cases]
    count = Counter(stem.casefold() for case, stem in zip(cases, stems) if not case.name)
    count.update(given)
    named = []
    for case, stem in zip(cases, stems):
        if not case.name:
            name = Path(stem)
            if count[stem.casefold()] > 1:
                place = case.ct.parent
                inside = place.is_relative_to(root)
                name = (place.relative_to(root) if inside else Path(place.name)) / stem
            case = replace(case, name=name.as_posix())
        named.append(case)
    return named


def usable_name(name: str) -> str:
    """A case's name as a valid path of folders on all systems; / separates folders.

    Names of the files in the folders of results are not those of folders.
    """
    parts = []
    for part in re.split(r"[\\/]", unicodedata.normalize("NFC", name)):
        part = _RESERVED_CHARACTERS.sub("-", part).strip().rstrip(". ")
        ours = part.casefold() in FILES or _OUR_FILES.fullmatch(part)
        parts.append(f"_{part}" if ours or _RESERVED_NAMES.match(part) else part)
    return "/".join(filter(None, parts)) or "case"


def _named(cases: list[Case], root: Path, pseudonyms: bool) -> list[Case]:
    """Cases with valid names that identify nobody and differ by more than letter case."""
    named = []
    for case in cases:
        identity = _relative(case.ct, root)
        if pseudonyms or looks_like_person_name(case.name, dicom_patient_names(case.ct)):
            named.append(replace(case, name=pseudonym(identity), pseudonym=True))
        else:
            named.append(replace(case, name=usable_name(case.name)))
    firsts: dict[str, Case] = {}
    for case in named:
        firsts.setdefault(case.name.casefold(), case)
    taken = set(firsts)
    unique = []
    for case in named:
        name, count = case.name, 1
        while firsts.get(name.casefold()) is not case and name.casefold() in taken:
            count += 1
            name = f"{case.name}-{count}"
        taken.add(name.casefold())
        unique.append(replace(case, name=name))
    return unique


def _cases_of_folder(
    images: list[_Image],
    place: Path,
    root: Path,
    series: list[Path],
    masks: dict[Path, dict[str, Path]],
) -> list[Case]:
    """Cases of the images in one folder; the masks found there are added to `masks`, by CT."""
    inside = next((one for one in series if one == place or one in place.parents), None)
    dicom = [_Image(one, one.name) for one in series if one.parent == place]
    cts = []
    if inside is None:
        named_ct = [image for image in images if _CT.fullmatch(image.stem)]
        cts = named_ct or [image for image in images if image.mask is None and not image.is_part]
    only = cts[0].path if len(cts) == 1 else place if inside == place else None

    taken = {
        mask for owned in _masks_by_name(images, [*cts, *dicom]).values() for mask in owned.values()
    }
    for image in images:
        if image not in cts and image.path not in taken:
            holds_ct = _holds_ct(image.path)
            theirs = only is not None and image.mask is not None and image.mask[0] is None
            if holds_ct or (holds_ct is None and not theirs and not image.is_part):
                cts.append(image)
    if only is None and len(cts) == 1:
        only = cts[0].path

    others = [image for image in images if image not in cts]
    for owner, owned in _masks_by_name(others, [*cts, *dicom]).items():
        masks.setdefault(owner, {}).update(owned)
    if only is not None:
        for image in others:
            if image.mask is not None and image.mask[0] is None:
                masks.setdefault(only, {}).setdefault(image.mask[1], image.path)
    alone = len(cts) == 1 and place != root
    return [
        _case(_relative(place if alone else place / ct.owner, root), ct.path, masks) for ct in cts
    ]


def _case(name: str, ct: Path, masks: dict[Path, dict[str, Path]]) -> Case:
    own = masks.get(ct, {})
    return Case(name, ct, own.get("liver", own.get("seg")), own.get("spleen"))


def _with_segments(cases: list[Case], parts: list[Path]) -> list[Case]:
    """Give the folders with masks of the liver's parts to their cases."""
    cts = {case.ct for case in cases}
    segments: dict[Path, Path] = {}
    for folder in {part.parent: None for part in parts if part not in cts}:
        for place in (folder, folder.parent):
            near = [ct for ct in cts if place in (ct, ct.parent)]
            if len(near) == 1:
                segments.setdefault(near[0], folder)
            if near:
                break
    return [replace(case, segments=segments.get(case.ct)) for case in cases]


def _relative(path: Path, root: Path) -> str:
    """A path relative to the cohort's folder; the name of that folder for itself."""
    if path == root:
        return root.absolute().name
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _images(place: Path, names: Iterable[str]) -> list[_Image]:
    """The image files of a folder, without hidden ones and files of an earlier result."""
    results = FILES if FILES[-1] in names else ()
    found = (_image(place / name) for name in sorted(names) if name not in results)
    return [image for image in found if image is not None and not image.stem.startswith(".")]


def _image(path: Path) -> _Image | None:
    name = path.name.lower()
    ending = next((ending for ending in IMAGES if name.endswith(ending)), None)
    return None if ending is None else _Image(path, path.name[: -len(ending)], ending)


def _masks_by_name(images: Iterable[_Image], cts: list[_Image]) -> dict[Path, dict[str, Path]]:
    """The masks with a CT's name, by CT and organ; of several, the one with the best match."""
    best: dict[Path, dict[str, tuple[tuple[int, ...], Path]]] = {}
    for image in images:
        if image.mask is None or image.mask[0] is None:
            continue
        name, organ = image.mask
        scores = {ct.path: _match_score(name, image.ending, ct) for ct in cts}
        highest = max(scores.values(), default=(0,))
        for ct, score in scores.items():
            owned = best.setdefault(ct, {})
            if highest[0] and score == highest and highest > owned.get(organ, ((0,),))[0]:
                owned[organ] = (highest, image.path)
    return {ct: {organ: path for organ, (_, path) in own.items()} for ct, own in best.items()}


def _match_score(name: str, ending: str, ct: _Image) -> tuple[int, ...]:
    """How well a mask's name matches a CT's, then the extension; (0,) for no match."""
    same_ending = int(ending == ct.ending)
    for rank, form in ((3, str), (2, str.casefold), (1, _folded)):
        for direct, own in ((1, ct.stem), (0, ct.owner)):
            if form(name) == form(own):
                return (rank, direct, same_ending)
    return (0,)


def _folded(name: str) -> str:
    return name.casefold().replace(".", "_")


def _holds_ct(path: Path) -> bool | None:
    """Whether the voxels are HU, which extend far below zero; None if they cannot be read."""
    reader = sitk.ImageFileReader()
    try:
        check_header(path)
        reader.SetFileName(itk_path(path))
        with quiet():
            reader.ReadImageInformation()
        if reader.GetNumberOfComponents() > 1 or reader.GetPixelID() in _UNSIGNED:
            return False
        image = read_ct(path)  # a variable, since a view does not keep its image alive
        return float(sitk.GetArrayViewFromImage(image).min()) < AIR_HU
    except Exception:  # any error is reported when the file is staged
        return None
