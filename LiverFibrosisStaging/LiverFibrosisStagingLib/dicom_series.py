"""Which DICOM files form the CT to stage: series found, told apart, ranked, checked and read.

Only SimpleITK (GDCM) reads the files. Positions and lengths are in mm, in DICOM's patient axes
(LPS); tags are written as SimpleITK writes them, "gggg|eeee".
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import StagingError
from .itk_files import itk_path, quiet

MODALITY = "0008|0060"
DESCRIPTION = "0008|103e"
THICKNESS = "0018|0050"

_IMAGE_TYPE = "0008|0008"
_SOP_CLASS = "0008|0016"
_SOP_INSTANCE = "0008|0018"
_PATIENT = "0010|0020"
_STUDY = "0020|000d"
_SERIES = "0020|000e"
_SERIES_NUMBER = "0020|0011"
_ACQUISITION = "0020|0012"
_TEMPORAL_POSITION = "0020|0100"
_KERNEL = "0018|1210"
_TIMES = ("0008|0022", "0008|0032")  # acquisition date and time

# What the checks may look at later. Nothing here names a person, a place or a date.
KEPT_TAGS = (
    _IMAGE_TYPE,
    MODALITY,
    DESCRIPTION,
    "0008|1090",  # manufacturer's model name
    "0018|0010",  # contrast agent
    "0018|0015",  # body part examined
    THICKNESS,
    _KERNEL,
    _SERIES_NUMBER,
    _ACQUISITION,
    "0028|1054",  # rescale type
)
_READ_TAGS = {
    *KEPT_TAGS,
    *_TIMES,
    _SOP_CLASS,
    _SOP_INSTANCE,
    _PATIENT,
    _STUDY,
    _SERIES,
    _TEMPORAL_POSITION,
}

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DIRECTORY_RECORD = b"1.2.840.10008.1.3.10\0"
_CT_STORAGE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.\d)?\0")
_ANY_STORAGE = b"1.2.840.10008.5.1.4."

_LOCALIZER = re.compile(r"localizer|scout|topogram|surview|scanogram", re.I)
_REFORMATTED = re.compile(r"\b(DERIVED|SECONDARY|MPR|MIP|REFORMATTED|PROJECTION IMAGE)\b")
# Lung and bone kernels raise the noise in the liver several times: GE and Philips by name,
# Siemens B50 and above, Canon FC30 and above.
_SHARP_KERNEL = re.compile(r"lung|bone|edge|sharp|\b[BHIQ][a-z]?[5-9]\d|\bFC[3-9]\d|^Y[A-D]$", re.I)
_PORTAL = re.compile(r"portal|porto|ven(ous|ös|oes|osa|oso|eux|euse)|\b(pv|pvp|vp|ven)\b", re.I)
_OTHER_PHASE = re.compile(
    r"arter|nativ|non.?(contrast|enh)|without|un.?enh|pre.?con|delay|equilib|excret|plain|"
    r"\b(art|late|spät|spaet|nc|ncct|basal)\b",
    re.I,
)

MIN_SLICES = 10  # a shorter stack is a localizer, a bolus trigger or a test: chosen last
_LIVER_HEIGHT_MM = 300.0  # a scan longer than any liver is no better for being longer still
_LENGTH_STEP_MM = 25.0  # a difference in length below this does not decide
_SAME_POSITION_MM = 0.01
_UNEVEN = 0.1  # share of the spacing by which a gap may differ: DICOM rounds positions
_MISSING = 1.5  # times the spacing: from here on a slice is missing
_TILT_DEGREES = 0.5  # 0.5 degrees shear 200 mm of liver by 2 mm, about two voxels


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


@dataclass(frozen=True)
class Series:
    """Slices of one acquisition on one grid, sorted along their normal."""

    slices: tuple[Slice, ...]

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the first slice."""
        return self.slices[0].tags

    @property
    def derived(self) -> bool:
        """Whether this was computed from other images (reformatted, projected, fused)."""
        return bool(_REFORMATTED.search(self.tags.get(_IMAGE_TYPE, "").upper()))

    @property
    def gaps(self) -> np.ndarray:
        """Distances between neighbouring slices, repeated positions left out."""
        gaps = np.diff([each.offset for each in self.slices])
        return gaps[gaps > _SAME_POSITION_MM]

    @property
    def spacing(self) -> float:
        """Usual distance between slices; the slice thickness where there is only one."""
        if self.gaps.size:
            return float(np.median(self.gaps))
        return _number(self.tags.get(THICKNESS, ""), 1.0)

    @property
    def label(self) -> str:
        """How a reader recognises the series; no name, date or identifier of the patient."""
        number = self.tags.get(_SERIES_NUMBER, "without number")
        acquisition = self.tags.get(_ACQUISITION)
        return (
            f"{number} '{self.tags.get(DESCRIPTION, 'no description')}'"
            + (f", acquisition {acquisition}" if acquisition else "")
            + f" ({len(self.slices)} slices every {self.spacing:.3g} mm)"
        )


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM does (part 10, section 7.1); a DICOMDIR is not meant."""
    head = _head(path)
    return head[128:132] == b"DICM" and _DIRECTORY_RECORD not in head


def dicom_folders(root: str | Path) -> list[Path]:
    """The folders under `root` that are one case each, sorted.

    A case is a top-most folder whose DICOM files, those in its subfolders included, belong to one
    study, as judged by the first file of every folder: one folder per patient, or per patient and
    date, gives one case each however its series are nested. Where anonymisation emptied the
    study's identifier, every folder that holds DICOM files directly is a case of its own. `root`
    itself is a case only where it holds DICOM files directly, or several folders of one study.
    """
    root = Path(root)
    studies: dict[Path, set[str]] = {}
    direct: set[Path] = set()
    for folder, subfolders, names in os.walk(root, topdown=False):
        here = Path(folder)
        found: set[str] = set()
        first = next((p for p in _visible(here, names) if is_dicom(p)), None)
        if first is not None:
            direct.add(here)
            found.add(_study(first))
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


def find_series(path: str | Path) -> list[Series]:
    """CT series of a folder (searched recursively) or around one file, the fittest first.

    Localizers, secondary captures and objects that are no CT images are left out. Files of one
    series that lie on different grids, or that repeat positions in different acquisitions, become
    series of their own. Order: stacks of at least MIN_SLICES; original before derived images;
    portal-venous by description before unknown before another phase; covered length; soft before
    sharp kernel; thin before thick slices; the later acquisition.

    Given one file, only the stack that holds it is returned. Raises StagingError where there is no
    CT series, where a file is damaged, and where a folder mixes several patients.
    """
    path = Path(path)
    with quiet():
        if path.is_dir():
            files = [p for folder, _, names in os.walk(path) for p in _visible(Path(folder), names)]
            slices, others = _headers(files, path.name)
        else:
            slices, others = _siblings(path)
    if not slices:
        raise StagingError(_nothing_found(path, others))
    patients = {s.tags.get(_PATIENT) or s.tags.get(_STUDY, "") for s in slices}
    if len(patients) > 1:
        raise StagingError(
            f"{path.name}: CT images of {len(patients)} patients found; give the folder of one "
            "examination."
        )
    found = [Series(tuple(part)) for part in _stacks(slices)]
    if not path.is_dir():
        found = [series for series in found if any(s.path == path for s in series.slices)]
    return sorted(found, key=_rank, reverse=True)


def read_dicom(path: str | Path) -> tuple[sitk.Image, list[str]]:
    """The fittest CT series of a folder, or the one around a file, in HU, and notes for the user.

    The image carries KEPT_TAGS as metadata. Raises StagingError as `find_series` and `read_series`
    do.
    """
    path = Path(path)
    found = find_series(path)
    image, notes = read_series(found[0], path.name)
    if len(found) > 1:
        rest = "; ".join(series.label for series in found[1:6])
        more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
        notes.insert(0, f"Read series {found[0].label}. Not used: {rest}{more}.")
    if found[0].derived:
        notes.append(
            f"Series {found[0].label} is derived from other images (ImageType "
            f"{found[0].tags[_IMAGE_TYPE]}); original slices are better."
        )
    return image, notes


def read_series(series: Series, name: str) -> tuple[sitk.Image, list[str]]:
    """Pixels of one series in HU, with notes for the user; `name` stands in the messages.

    Files that repeat a position with identical pixels are dropped, with a note. Raises StagingError
    for repeated positions that differ, missing slices, uneven spacing and a tilted gantry.
    """
    slices, dropped = _without_copies(series.slices, name)
    notes = [f"{dropped} copies of slices were left out."] if dropped else []
    series = Series(tuple(slices))
    _check_stack(series, name)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([itk_path(each.path) for each in slices])
    if len({each.pixel_id for each in slices}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # the rescale slope differs between slices
    try:
        with quiet():
            image = reader.Execute()
    except RuntimeError as error:
        raise StagingError(
            f"{name}: the pixels of series {series.label} cannot be read; a file is damaged or its "
            "compression is unknown."
        ) from error

    first, last = slices[0], slices[-1]
    step = (last.offset - first.offset) / (len(slices) - 1) if len(slices) > 1 else series.spacing
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    image.SetSpacing((*first.spacing, round(step, 6)))  # rounding takes the float noise away
    image.SetOrigin(first.position.tolist())
    image.SetDirection(first.direction.ravel().tolist())
    for tag in KEPT_TAGS:
        if first.tags.get(tag):
            image.SetMetaData(tag, first.tags[tag])
    return image, notes


def phase(description: str) -> int:
    """1 where a description names the portal-venous phase, -1 another phase, 0 neither or both."""
    return bool(_PORTAL.search(description)) - bool(_OTHER_PHASE.search(description))


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1024)
    except OSError as error:
        raise StagingError(f"{path.name}: cannot be opened ({error.strerror}).") from error


def _visible(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _study(path: Path) -> str:
    """What tells studies apart; "" for a DICOM file that holds no image."""
    with quiet():
        tags = _tags(path)
    if tags is None:
        return ""
    return tags[1].get(_STUDY) or str(path.parent)


def _tags(path: Path) -> tuple[sitk.ImageFileReader, dict[str, str]] | None:
    """Header of one DICOM file; None where GDCM finds no image in it."""
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


def _headers(files: Iterable[Path], name: str) -> tuple[list[Slice], Counter[str]]:
    """CT slices among the files, and what the other DICOM files are."""
    slices, others = [], Counter[str]()
    for path in files:
        if path.name.upper() == "DICOMDIR":
            continue
        if is_dicom(path):
            _sort_in(path, slices, others)
        elif path.suffix.lower() == ".dcm":
            raise StagingError(
                f"{name}: {path.name} is not a DICOM file or is cut off; remove or replace it."
            )
    return slices, others


def _sort_in(path: Path, slices: list[Slice], others: Counter[str]) -> None:
    header = _tags(path)
    if header is None:
        head = _head(path)
        if _CT_STORAGE.search(head) or _ANY_STORAGE not in head:
            raise StagingError(f"{path.name}: the DICOM file is truncated or damaged.")
        others["objects without image"] += 1
        return
    reader, tags = header
    kind = _excluded(reader, tags)
    if kind:
        others[kind] += 1
        return
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    slices.append(
        Slice(
            path=path,
            position=np.array(reader.GetOrigin()),
            direction=direction,
            spacing=reader.GetSpacing()[:2],
            size=reader.GetSize()[:2],
            pixel_id=reader.GetPixelIDValue(),
            tags=tags,
        )
    )


def _excluded(reader: sitk.ImageFileReader, tags: dict[str, str]) -> str | None:
    """Why a DICOM image is no slice of a CT; None where it is one."""
    if tags.get(MODALITY, "CT") != "CT":
        return f"modality {tags[MODALITY]}"
    if tags.get(_SOP_CLASS, "").startswith(_SECONDARY_CAPTURE):
        return "secondary captures"
    if reader.GetNumberOfComponents() > 1:
        return "colour pictures"
    if _LOCALIZER.search(f"{tags.get(_IMAGE_TYPE, '')} {tags.get(DESCRIPTION, '')}"):
        return "localizers"
    if reader.GetDimension() != 3:
        return "pictures without position"
    if reader.GetSize()[2] > 1:
        return "enhanced multi-frame CT files (convert them to one file per slice, or to NIfTI)"
    return None


def _siblings(path: Path) -> tuple[list[Slice], Counter[str]]:
    """Slices of the file's own series in the same folder."""
    if not is_dicom(path):
        raise StagingError(f"{path.name}: not a DICOM file.")
    slices, others = _headers([path], path.name)
    if not slices:
        return slices, others
    own = slices[0]
    for other in _visible(path.parent, os.listdir(path.parent)):
        if other == path or not other.is_file() or not is_dicom(other):
            continue
        header = _tags(other)
        if header is not None and header[1].get(_SERIES) == own.tags.get(_SERIES):
            _sort_in(other, slices, others)
    return slices, others


def _nothing_found(path: Path, others: Counter[str]) -> str:
    if not others:
        return f"{path.name}: no DICOM files found; a CT series is needed."
    found = ", ".join(f"{count} x {kind}" for kind, count in others.most_common())
    return f"{path.name}: no CT series found, only {found}."


def _stacks(slices: list[Slice]) -> Iterator[list[Slice]]:
    """Slices sorted into stacks that can each be one volume."""
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for each in slices:
        by_series[each.tags.get(_SERIES) or str(each.path.parent)].append(each)
    for members in by_series.values():
        grids: list[list[Slice]] = []
        for each in members:
            home = next((grid for grid in grids if grid[0].same_grid(each)), None)
            if home is None:
                grids.append([each])
            else:
                home.append(each)
        for grid in grids:
            yield from _acquisitions(grid, (_ACQUISITION, _TEMPORAL_POSITION))


def _acquisitions(slices: list[Slice], tags: tuple[str, ...]) -> Iterator[list[Slice]]:
    """Split by the first tag that differs, but only where positions repeat."""
    # The sort is stable: copies of one position stay in the order of their names.
    slices = sorted(slices, key=lambda each: each.offset)
    if tags and (np.diff([each.offset for each in slices]) <= _SAME_POSITION_MM).any():
        parts: dict[str, list[Slice]] = defaultdict(list)
        for each in slices:
            parts[each.tags.get(tags[0], "")].append(each)
        for part in parts.values():
            yield from _acquisitions(part, tags[1:])
    else:
        yield slices


def _rank(series: Series) -> tuple[bool, bool, int, int, bool, float, str, float, float]:
    tags = series.tags
    description = tags.get(DESCRIPTION, "")
    length = min(float(series.gaps.sum()), _LIVER_HEIGHT_MM)
    sharp = _SHARP_KERNEL.search(tags.get(_KERNEL, "")) or _SHARP_KERNEL.search(description)
    return (
        len(series.gaps) + 1 >= MIN_SLICES,
        not series.derived,
        phase(description),
        round(length / _LENGTH_STEP_MM),
        not sharp,
        -max(series.spacing, 1.0),  # below 1 mm there is only more noise
        " ".join(tags.get(tag, "") for tag in _TIMES),
        _number(tags.get(_ACQUISITION, ""), 0.0),
        _number(tags.get(_SERIES_NUMBER, ""), 0.0),
    )


def _number(text: str, default: float) -> float:
    try:
        return float(text)
    except ValueError:
        return default


def _without_copies(slices: tuple[Slice, ...], name: str) -> tuple[list[Slice], int]:
    """One slice per position, and how many copies were dropped."""
    kept = [slices[0]]
    for each in slices[1:]:
        last = kept[-1]
        if each.offset - last.offset > _SAME_POSITION_MM:
            kept.append(each)
        elif not _same_pixels(each, last):
            raise StagingError(
                f"{name}: {each.path.name} and {last.path.name} lie at the same position "
                f"({each.offset:.1f} mm) but differ, and no acquisition number tells them apart; "
                "give one acquisition only."
            )
    return kept, len(slices) - len(kept)


def _same_pixels(first: Slice, second: Slice) -> bool:
    uid = first.tags.get(_SOP_INSTANCE)
    if uid and uid == second.tags.get(_SOP_INSTANCE):
        return True
    try:
        with quiet():
            one, two = (
                sitk.GetArrayFromImage(sitk.ReadImage(itk_path(each.path)))
                for each in (first, second)
            )
    except RuntimeError as error:
        raise StagingError(
            f"{first.path.name} or {second.path.name}: the pixels cannot be read."
        ) from error
    return np.array_equal(one, two)


def _check_stack(series: Series, name: str) -> None:
    """Refuse a stack whose slices do not make an even, upright grid."""
    if len(series.slices) < 2:
        return
    gaps, spacing = series.gaps, series.spacing
    first, last = series.slices[0], series.slices[-1]
    path = last.position - first.position
    cosine = (last.offset - first.offset) / np.linalg.norm(path)
    tilt = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    if tilt > _TILT_DEGREES:
        raise StagingError(
            f"{name}: series {series.label} was taken with a gantry tilt of {tilt:.1f} degrees; "
            "give a series without tilt or with the tilt corrected."
        )
    worst = int(np.abs(gaps - spacing).argmax())
    below, above = series.slices[worst], series.slices[worst + 1]
    where = f"between {below.path.name} ({below.offset:.1f} mm) and {above.path.name}"
    if gaps[worst] > _MISSING * spacing:
        raise StagingError(
            f"{name}: slices are missing in series {series.label}: {gaps[worst]:.2f} mm {where}."
        )
    if abs(gaps[worst] - spacing) > _UNEVEN * spacing:
        raise StagingError(
            f"{name}: series {series.label} is unevenly spaced: {gaps[worst]:.2f} mm {where}; "
            "one spacing is needed."
        )
