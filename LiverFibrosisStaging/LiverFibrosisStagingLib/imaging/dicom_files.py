"""Sorting of DICOM files into CT slices, other objects and damaged files.

The files are read with SimpleITK (GDCM) only. Positions and lengths are in mm, in DICOM's patient
axes (LPS); tags are written as in SimpleITK, "gggg|eeee".
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, StagingError, check_cancel
from .dicom_elements import is_whole
from .itk_files import itk_path, quiet

MODALITY = "0008|0060"
DESCRIPTION = "0008|103e"
THICKNESS = "0018|0050"

IMAGE_TYPE = "0008|0008"
SOP_CLASS = "0008|0016"
SOP_INSTANCE = "0008|0018"
PATIENT = "0010|0020"
PATIENT_SIZE = "0010|1020"  # m
PATIENT_WEIGHT = "0010|1030"  # kg
STUDY = "0020|000d"
SERIES = "0020|000e"
SERIES_NUMBER = "0020|0011"
ACQUISITION = "0020|0012"
TEMPORAL_POSITION = "0020|0100"
KERNEL = "0018|1210"
TIMES = ("0008|0022", "0008|0032")  # acquisition date and time

# Used by `checks` and `input_checks`. The description is free text: it is kept in memory only.
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
    PATIENT_SIZE,
    PATIENT_WEIGHT,
    STUDY,
    SERIES,
    TEMPORAL_POSITION,
}

_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DIRECTORY_RECORD = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![.\d])")  # media storage directory
_CT_STORAGE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.\d)?\0")
_ANY_STORAGE = b"1.2.840.10008.5.1.4."

_LOCALIZER = re.compile(r"localizer|scout|topogram|surview|scanogram", re.I)


@dataclass(frozen=True)
class Slice:
    """One slice of a CT in one file: position, grid and tags."""

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
        """Whether both slices can belong to one volume."""
        return (
            self.size == other.size
            and np.allclose(self.spacing, other.spacing, atol=1e-3)
            and np.allclose(self.direction, other.direction, atol=5e-3)
        )


@dataclass(frozen=True)
class Other:
    """A DICOM object that is no CT slice: its kind, in the plural; no tags without an image."""

    path: Path
    kind: str
    tags: dict[str, str]


@dataclass
class Files:
    """A folder's files: CT slices, other DICOM objects, damaged files."""

    slices: list[Slice] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Add a DICOM file to its kind."""
        header = _header(path)
        if header is None:
            if _is_damaged(path):
                self.damaged.append(path)
            else:
                self.others.append(Other(path, "objects without image", {}))
            return
        reader, tags = header
        kind = _excluded(reader, tags)
        if kind:
            self.others.append(Other(path, kind, tags))
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
    """Whether the file has the DICOM prefix (part 10, section 7.1) and is not a DICOMDIR."""
    head = _head(path)
    return head[128:132] == b"DICM" and _DIRECTORY_RECORD.search(head) is None


def is_dicomdir(path: Path) -> bool:
    """Whether the file is a DICOMDIR, the list of the files of a medium (part 10, section 8.6)."""
    return _DIRECTORY_RECORD.search(_head(path)) is not None


def files_of_folder(folder: Path, cancel: CancelToken | None = None) -> Files:
    """The files of a folder and its subfolders; a .dcm file without DICOM prefix is damaged."""
    found = (path for place, _, names in os.walk(folder) for path in _visible(Path(place), names))
    return files_of(found, cancel)


def files_of(paths: Iterable[Path], cancel: CancelToken | None = None) -> Files:
    """The DICOM files among some files; a .dcm file without DICOM prefix is damaged."""
    found = Files()
    with quiet():
        for path in paths:
            check_cancel(cancel)
            if is_dicom(path):
                found.add(path)
            elif _is_broken(path):
                found.damaged.append(path)
    return found


def path_of_series(ct: str | Path | Sequence[Path]) -> Path:
    """The path by which messages name a CT: its own, or the folder that a series' files share."""
    if isinstance(ct, str | Path):
        return Path(ct)
    return Path(os.path.commonpath([file.parent for file in ct]))


def files_of_series(path: Path, cancel: CancelToken | None = None) -> Files:
    """A DICOM file and the others of its series in the same folder.

    Raises StagingError if the file itself is damaged.
    """
    if is_dicomdir(path):
        raise StagingError(f"{path.name}: a DICOMDIR contains no images; give the images' folder.")
    if not is_dicom(path):
        raise StagingError(f"{path.name}: not a DICOM file, or its beginning is missing.")
    found = Files()
    with quiet():
        found.add(path)
        if found.damaged:
            raise StagingError(f"{path.name}: the DICOM file is truncated or damaged.")
        if not found.slices:
            return found
        own = found.slices[0].tags.get(SERIES)
        for other in _visible(path.parent, os.listdir(path.parent)):
            check_cancel(cancel)
            if other == path or not is_dicom(other):
                continue
            header = _header(other)
            if header is None or header[1].get(SERIES) == own:
                found.add(other)
    found.others.clear()
    return found


def code(text: str) -> str:
    """A DICOM code for a message; "unknown" for other text, which may contain names."""
    return text if re.fullmatch(r"[A-Z0-9_]{1,16}", text) else "unknown"


def tag_text(reader: sitk.ImageFileReader, tag: str) -> str:
    """The text of a tag; Latin-1, DICOM's default, where it is not UTF-8."""
    # SimpleITK returns bytes that are not UTF-8 as surrogates.
    raw = reader.GetMetaData(tag).encode("utf-8", "surrogateescape")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.strip(" \0")


def _visible(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _head(path: Path) -> bytes:
    """The first bytes of a file; empty for a pipe, or a file that cannot be opened."""
    try:
        if not path.is_file():
            return b""
        with open(path, "rb") as file:
            return file.read(1024)
    except OSError:
        return b""


def _is_damaged(path: Path) -> bool:
    """Whether a DICOM file in which GDCM finds no image should contain one."""
    head = _head(path)
    return _CT_STORAGE.search(head) is not None or _ANY_STORAGE not in head


def _is_broken(path: Path) -> bool:
    """Whether a .dcm file lacks the DICOM prefix."""
    head = _head(path)
    named = path.suffix.lower() == ".dcm" and path.is_file()
    return named and head[128:132] != b"DICM"


def _header(path: Path) -> tuple[sitk.ImageFileReader, dict[str, str]] | None:
    """Header of one DICOM file; None if it is damaged, or GDCM finds no image in it."""
    if not is_whole(path):
        return None
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_path(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    found = set(reader.GetMetaDataKeys())
    # The same text of many files is kept once: a cohort may have half a million slices.
    texts = {tag: sys.intern(tag_text(reader, tag)) for tag in _READ_TAGS if tag in found}
    return reader, {tag: text for tag, text in texts.items() if text}


def _excluded(reader: sitk.ImageFileReader, tags: dict[str, str]) -> str | None:
    """Why a DICOM image is not a CT slice; None if it is one."""
    if tags.get(MODALITY, "CT") != "CT":
        return f"modality {code(tags[MODALITY])}"
    if tags.get(SOP_CLASS, "").startswith(_SECONDARY_CAPTURE):
        return "secondary captures"
    if reader.GetNumberOfComponents() > 1:
        return "colour images"
    if _LOCALIZER.search(f"{tags.get(IMAGE_TYPE, '')} {tags.get(DESCRIPTION, '')}"):
        return "localizers"
    if reader.GetDimension() != 3:
        return "images without position"
    if reader.GetSize()[2] > 1:
        return "enhanced multi-frame CT files (convert them to one file per slice, or to NIfTI)"
    # GDCM replaces a missing spacing by 1 mm; an enhanced CT stores it elsewhere.
    if tags.get(SOP_CLASS) != _ENHANCED_CT and not _positive(tags.get(_PIXEL_SPACING, "")):
        return "images without pixel spacing"
    if not np.isfinite([*reader.GetOrigin(), *reader.GetDirection()]).all():
        return "images without position"
    return None


def _positive(text: str) -> bool:
    """Whether a decimal string contains two positive numbers."""
    try:
        numbers = [float(part) for part in text.split("\\")]
    except ValueError:
        return False
    return len(numbers) == 2 and all(0 < number < math.inf for number in numbers)
