"""DICOM files one by one: which are slices of a CT, which are something else, which are damaged.

Only SimpleITK (GDCM) reads the files. Positions and lengths are in mm, in DICOM's patient axes
(LPS); tags are written as SimpleITK writes them, "gggg|eeee".
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import StagingError
from .dicom_elements import is_whole
from .itk_files import itk_path, quiet

MODALITY = "0008|0060"
DESCRIPTION = "0008|103e"
THICKNESS = "0018|0050"

IMAGE_TYPE = "0008|0008"
SOP_CLASS = "0008|0016"
SOP_INSTANCE = "0008|0018"
PATIENT = "0010|0020"
STUDY = "0020|000d"
SERIES = "0020|000e"
SERIES_NUMBER = "0020|0011"
ACQUISITION = "0020|0012"
TEMPORAL_POSITION = "0020|0100"
KERNEL = "0018|1210"
TIMES = ("0008|0022", "0008|0032")  # acquisition date and time

# What `checks.check_ct` looks at. The description is free text: it stays with the image in memory.
KEPT_TAGS = (MODALITY, DESCRIPTION, THICKNESS)
_PIXEL_SPACING = "0028|0030"
_READ_TAGS = {
    _PIXEL_SPACING,
    *KEPT_TAGS,
    *TIMES,
    IMAGE_TYPE,
    SERIES_NUMBER,
    ACQUISITION,
    KERNEL,
    SOP_CLASS,
    SOP_INSTANCE,
    PATIENT,
    STUDY,
    SERIES,
    TEMPORAL_POSITION,
}

_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DIRECTORY_RECORD = b"1.2.840.10008.1.3.10\0"
_CT_STORAGE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.\d)?\0")
_ANY_STORAGE = b"1.2.840.10008.5.1.4."

_LOCALIZER = re.compile(r"localizer|scout|topogram|surview|scanogram", re.I)


@dataclass(frozen=True)
class Slice:
    """One file of one CT image: its place, its grid and the tags that are needed."""

    path: Path
    position: np.ndarray  # centre of the first voxel
    direction: np.ndarray  # 3 x 3, columns are the row's, column's and normal's direction
    spacing: tuple[float, float]
    size: tuple[int, int]
    pixel_id: int
    tags: dict[str, str]

    @property
    def offset(self) -> float:
        """Position along the slice's own normal."""
        return float(self.position @ self.direction[:, 2])

    def same_grid(self, other: "Slice") -> bool:
        """Whether both can be slices of one volume."""
        return (
            self.size == other.size
            and np.allclose(self.spacing, other.spacing, atol=1e-3)
            and np.allclose(self.direction, other.direction, atol=5e-3)
        )


@dataclass
class Files:
    """What a folder's files are: CT slices; other DICOM objects, counted by kind; damaged files."""

    slices: list[Slice] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    damaged: list[Path] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Sort a DICOM file in."""
        header = _header(path)
        if header is None:
            if _is_damaged(path):
                self.damaged.append(path)
            else:
                self.others["objects without image"] += 1
            return
        reader, tags = header
        kind = _excluded(reader, tags)
        if kind:
            self.others[kind] += 1
            return
        self.slices.append(
            Slice(
                path=path,
                position=np.array(reader.GetOrigin()),
                direction=np.array(reader.GetDirection()).reshape(3, 3),
                spacing=reader.GetSpacing()[:2],
                size=reader.GetSize()[:2],
                pixel_id=reader.GetPixelIDValue(),
                tags=tags,
            )
        )


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM does (part 10, section 7.1); a DICOMDIR is not meant."""
    head = _head(path)
    return head[128:132] == b"DICM" and _DIRECTORY_RECORD not in head


def dicom_folders(root: str | Path) -> list[Path]:
    """The folders under `root` that are one case each, sorted.

    A case is a top-most folder whose DICOM files, those in its subfolders included, belong to one
    study, as judged by the first sound file of every folder: one folder per patient, or per patient
    and date, gives one case each however its series are nested. Where anonymisation emptied the
    study's identifier, every folder that holds DICOM files directly is a case of its own. `root`
    itself is a case only where it holds DICOM files directly, or several folders of one study.
    """
    root = Path(root)
    studies: dict[Path, set[str]] = {}
    direct: set[Path] = set()
    for folder, subfolders, names in os.walk(root, topdown=False):
        here = Path(folder)
        found: set[str] = set()
        own = _study(here, names)
        if own is not None:
            direct.add(here)
            found.add(own)
        for name in subfolders:
            found |= studies.get(here / name, set())
        if found:
            studies[here] = found

    cases: list[Path] = []
    for folder in sorted(studies):  # parents come before their subfolders
        if any(case in folder.parents for case in cases):
            continue
        lone_child = folder == root and sum(other.parent == root for other in studies) == 1
        if folder in direct or (len(studies[folder] - {""}) <= 1 and not lone_child):
            cases.append(folder)
    return cases


def files_of_folder(folder: Path) -> Files:
    """What the files of a folder and its subfolders are. A broken .dcm file counts as damaged."""
    found = Files()
    with quiet():
        for place, _, names in os.walk(folder):
            for path in _visible(Path(place), names):
                if is_dicom(path):
                    found.add(path)
                elif _is_broken(path):
                    found.damaged.append(path)
    return found


def files_of_series(path: Path) -> Files:
    """What a DICOM file and the others of its series in the same folder are.

    Raises StagingError where the file itself is damaged.
    """
    if _DIRECTORY_RECORD in _head(path):
        raise StagingError(f"{path.name}: a DICOMDIR only lists files; give their folder.")
    if not is_dicom(path):
        raise StagingError(f"{path.name}: not a DICOM file, or cut off at its beginning.")
    found = Files()
    with quiet():
        found.add(path)
        if found.damaged:
            raise StagingError(f"{path.name}: the DICOM file is truncated or damaged.")
        if not found.slices:
            return found
        own = found.slices[0].tags.get(SERIES)
        for other in _visible(path.parent, os.listdir(path.parent)):
            if other == path or not is_dicom(other):
                continue
            header = _header(other)
            if header is None or header[1].get(SERIES) == own:
                found.add(other)
    found.others.clear()
    return found


def code(text: str) -> str:
    """A DICOM code as messages show it; what is none may be free text."""
    return text if re.fullmatch(r"[A-Z0-9_]{1,16}", text) else "unknown"


def _visible(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of a pipe, or of a file that cannot be opened."""
    try:
        if not path.is_file():
            return b""
        with open(path, "rb") as file:
            return file.read(1024)
    except OSError:
        return b""


def _study(folder: Path, names: Iterable[str]) -> str | None:
    """What tells the study in a folder's own files from others; None where none is DICOM.

    "" where they hold no image, the folder's path where they are damaged or name no study.
    """
    study = None
    for path in _visible(folder, names):
        if is_dicom(path):
            try:
                with quiet():
                    header = _header(path)
            except StagingError:  # a path that SimpleITK cannot open: the case will say so
                return str(folder)
            if header is not None:
                return header[1].get(STUDY) or str(folder)
            study = str(folder) if _is_damaged(path) else study or ""
        elif _is_broken(path):
            study = str(folder)
    return study


def _is_damaged(path: Path) -> bool:
    """Whether a DICOM file in which GDCM finds no image ought to hold one."""
    head = _head(path)
    return _CT_STORAGE.search(head) is not None or _ANY_STORAGE not in head


def _is_broken(path: Path) -> bool:
    """Whether a file is called .dcm but does not begin as DICOM does."""
    head = _head(path)
    named = path.suffix.lower() == ".dcm" and path.is_file()
    return named and head[128:132] != b"DICM"


def _header(path: Path) -> tuple[sitk.ImageFileReader, dict[str, str]] | None:
    """Header of one DICOM file; None where it is damaged, or GDCM finds no image in it."""
    if not is_whole(path):
        return None
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_path(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    tags = {}
    for key in _READ_TAGS.intersection(reader.GetMetaDataKeys()):
        # Texts come as bytes in disguise where they are not UTF-8 (DICOM's default is Latin-1).
        raw = reader.GetMetaData(key).encode("utf-8", "surrogateescape")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        tags[key] = text.strip(" \0")
    return reader, {key: text for key, text in tags.items() if text}


def _excluded(reader: sitk.ImageFileReader, tags: dict[str, str]) -> str | None:
    """Why a DICOM image is no slice of a CT; None where it is one."""
    if tags.get(MODALITY, "CT") != "CT":
        return f"modality {code(tags[MODALITY])}"
    if tags.get(SOP_CLASS, "").startswith(_SECONDARY_CAPTURE):
        return "secondary captures"
    if reader.GetNumberOfComponents() > 1:
        return "colour pictures"
    if _LOCALIZER.search(f"{tags.get(IMAGE_TYPE, '')} {tags.get(DESCRIPTION, '')}"):
        return "localizers"
    if reader.GetDimension() != 3:
        return "pictures without position"
    if reader.GetSize()[2] > 1:
        return "enhanced multi-frame CT files (convert them to one file per slice, or to NIfTI)"
    # GDCM makes 1 mm of a spacing that is missing; an enhanced CT has it elsewhere.
    if tags.get(SOP_CLASS) != _ENHANCED_CT and not _positive(tags.get(_PIXEL_SPACING, "")):
        return "pictures without pixel spacing"
    if not np.isfinite([*reader.GetOrigin(), *reader.GetDirection()]).all():
        return "pictures without position"
    return None


def _positive(text: str) -> bool:
    """Whether a decimal string holds two positive numbers."""
    try:
        numbers = [float(part) for part in text.split("\\")]
    except ValueError:
        return False
    return len(numbers) == 2 and all(0 < number < math.inf for number in numbers)
