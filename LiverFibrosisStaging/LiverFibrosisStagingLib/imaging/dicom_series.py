"""Selection of the DICOM series to stage: series are found, separated, ranked, checked and read.

The files are read with SimpleITK (GDCM) only. Positions and lengths are in mm, in DICOM's patient
axes (LPS); tags are written as in SimpleITK, "gggg|eeee".
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import CancelToken, StagingError, check_cancel
from .body import body_metadata
from .dicom_files import (
    ACQUISITION,
    DESCRIPTION,
    IMAGE_TYPE,
    KEPT_TAGS,
    KERNEL,
    PATIENT,
    PATIENT_SIZE,
    PATIENT_WEIGHT,
    SERIES,
    SERIES_NUMBER,
    SOP_INSTANCE,
    STUDY,
    TEMPORAL_POSITION,
    THICKNESS,
    TIMES,
    Files,
    Slice,
    files_of,
    files_of_folder,
    files_of_series,
    path_of_series,
)
from .itk_files import itk_path, quiet

_REFORMATTED = re.compile(r"\b(DERIVED|SECONDARY|MPR|MIP|REFORMATTED|PROJECTION IMAGE)\b")
# Lung and bone kernels, which increase the noise in the liver several times: GE and Philips by
# name, Siemens B50 and above, Canon FC30 and above.
_SHARP_KERNEL = re.compile(r"lung|bone|edge|sharp|\b[BHIQ][a-z]?[5-9]\d|\bFC[3-9]\d|^Y[A-D]$", re.I)
UNENHANCED, ARTERIAL, PORTAL_VENOUS, LATE = "unenhanced", "arterial", "portal-venous", "late"
_PORTAL = re.compile(r"portal|porto|ven(ous|ös|oes|osa|oso|eux|euse)|\b(pv|pvp|vp|ven)\b", re.I)
_OTHER_PHASES = {
    ARTERIAL: re.compile(r"arter|\bart\b", re.I),
    UNENHANCED: re.compile(
        r"nativ|non.?(contrast|enh)|without|un.?enh|pre.?con|plain|\b(nc|ncct|basal)\b", re.I
    ),
    LATE: re.compile(r"delay|equilib|excret|\b(late|spät|spaet)\b", re.I),
}

FILES_KEY = "LiverFibrosisStaging.files"  # in memory only: the files of an image, as JSON
MIN_SLICES = 10  # shorter stacks (localizer, bolus tracking, test) are ranked last
_LIVER_HEIGHT_MM = 300.0  # longer than any liver; additional length does not count
_LENGTH_STEP_MM = 25.0  # smaller differences in length are ignored
_SAME_POSITION_MM = 0.01
_UNEVEN = 0.1  # tolerated deviation of a gap, as a share of the spacing: DICOM rounds positions
_MISSING = 1.5  # times the spacing: a larger gap means that a slice is missing
# In the order of `_rank`: what the better and the worse of two series have. "": their phases.
_DIFFERENCES = (
    (f"at least {MIN_SLICES} slices", f"fewer than {MIN_SLICES} slices"),
    ("original slices", "derived from other images"),
    ("", ""),
    ("more of the body", "less of the body"),
    ("a soft kernel", "a sharp kernel"),
    ("thinner slices", "thicker slices"),
    ("a later time of acquisition", "an earlier time of acquisition"),
    ("a later acquisition", "an earlier acquisition"),
    ("a higher series number", "a lower series number"),
)
_TILT_DEGREES = 0.5  # shears 200 mm of liver by 2 mm, about two voxels


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
        return bool(_REFORMATTED.search(self.tags.get(IMAGE_TYPE, "").upper()))

    @property
    def gaps(self) -> np.ndarray:
        """Distances between neighbouring slices, without repeated positions."""
        gaps = np.diff([each.offset for each in self.slices])
        return gaps[gaps > _SAME_POSITION_MM]

    @property
    def spacing(self) -> float:
        """Median distance between slices; the slice thickness if there is only one slice."""
        if self.gaps.size:
            return float(np.median(self.gaps))
        thickness = _number(self.tags.get(THICKNESS, ""), 1.0)
        return thickness if thickness > 0 else 1.0

    @property
    def phase(self) -> str:
        """The contrast phase in the description (`named_phase`)."""
        return named_phase(self.tags.get(DESCRIPTION, ""))

    @property
    def label(self) -> str:
        """Text by which the user recognises the series, without its free text."""
        acquisition = plain_number(self.tags, ACQUISITION)
        return (
            (plain_number(self.tags, SERIES_NUMBER) or "without number")
            + (f", acquisition {acquisition}" if acquisition else "")
            + f" ({f'{self.phase} by its description, ' if self.phase else ''}"
            + f"{len(self.slices)} slices every {self.spacing:.3g} mm)"
        )


def plain_number(tags: dict[str, str], tag: str) -> str:
    """The number in a tag, as text; "" for anything else, which may contain names."""
    text = tags.get(tag, "")
    return text if text.isdecimal() and len(text) < 10 else ""


def find_series(
    path: Path | Sequence[Path], cancel: CancelToken | None = None
) -> tuple[list[Series], list[Path]]:
    """CT series of a folder (searched recursively), of one file's series or of files, best first.

    Returns the series, and damaged files that may belong to them.

    Localizers, secondary captures and objects other than CT images are left out. Files of one
    series on different grids, or with repeated positions in different acquisitions, are separated
    into several series. Order: stacks of at least MIN_SLICES; original before derived images;
    portal-venous by description before unknown before another phase; covered length; soft before
    sharp kernel; thin before thick slices; the later acquisition.

    For one file, only the stack that contains it is returned. Damaged files are left out; the
    resulting gap is detected when the series is read. cancel: asked before each file. Raises
    StagingError if there is no CT series, if the file given is damaged, and if a folder contains
    several patients; and Cancelled.
    """
    given, path = path, path_of_series(path)
    if not isinstance(given, Path):
        files = files_of(given, cancel)
    else:
        files = (files_of_folder if path.is_dir() else files_of_series)(path, cancel)
    if not files.slices:
        raise StagingError(_nothing_found(path, files))
    patients = {s.tags.get(PATIENT) or s.tags.get(STUDY, "") for s in files.slices}
    if len(patients) > 1:
        raise StagingError(
            f"{path.name}: CT images of {len(patients)} patients found; give the folder of one "
            "examination."
        )
    found = ranked_series(files.slices)
    if not path.is_dir():
        found = [series for series in found if any(s.path == path for s in series.slices)]
    return found, files.damaged


def ranked_series(slices: Sequence[Slice]) -> list[Series]:
    """The series of slices of one examination, in the order of `find_series`."""
    return sorted((Series(tuple(stack)) for stack in _stacks(slices)), key=_rank, reverse=True)


def difference(best: Series, other: Series) -> tuple[str, str]:
    """What the best series has that another one has not, by `find_series`' order, and vice versa.

    Noun phrases, without free text of the files.
    """
    for one, two, (more, less) in zip(_rank(best), _rank(other), _DIFFERENCES):
        if one != two:
            return (more, less) if more else (_phase_words(best), _phase_words(other))
    return "the first of equal series", "equal to the series taken"


def _phase_words(series: Series) -> str:
    return f"{series.phase} by its description" if series.phase else "no phase in its description"


def read_dicom(
    path: Path | Sequence[Path], cancel: CancelToken | None = None
) -> tuple[sitk.Image, list[str]]:
    """The best CT series of a folder or files, or that of one file, in HU, and notes for the user.

    The image has KEPT_TAGS and FILES_KEY as metadata, and height and weight as numbers
    (`body.body_of`). Raises StagingError as `find_series` and `read_series` do.
    """
    found, damaged = find_series(path, cancel)
    check_cancel(cancel)
    image, notes = read_series(found[0], path_of_series(path).name, damaged)
    if len(found) > 1:
        rest = "; ".join(series.label for series in found[1:6])
        more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
        notes.insert(0, f"Read series {found[0].label}. Not used: {rest}{more}.")
    if found[0].derived:
        notes.append(
            f"Series {found[0].label} is derived from other images, according to its ImageType; "
            "original slices are preferable."
        )
    return image, notes


def read_series(
    series: Series, name: str, damaged: Sequence[Path] = ()
) -> tuple[sitk.Image, list[str]]:
    """Pixels of one series in HU, with notes for the user; `name` is used in messages.

    Files that repeat a position with identical pixels are left out, as are those whose pixels
    cannot be read; `damaged` are files left out before. The notes mention both. Raises StagingError
    for different slices at one position, missing slices, uneven spacing and gantry tilt.
    """
    slices, copies, unreadable = _without_copies(series.slices, name)
    damaged = [*damaged, *unreadable]
    series = Series(tuple(slices))
    _check_stack(series, name, damaged)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([itk_path(each.path) for each in slices])
    if len({each.pixel_id for each in slices}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # the rescale slope differs between slices
    try:
        with quiet():
            image = reader.Execute()
    except RuntimeError as error:
        readable = {each.path for each in slices if _pixels(each) is not None}
        if not 0 < len(readable) < len(slices):
            raise StagingError(
                f"{name}: the pixels of series {series.label} cannot be read; the files are "
                "damaged or their compression is not supported."
            ) from error
        damaged += [each.path for each in slices if each.path not in readable]
        intact = tuple(each for each in slices if each.path in readable)
        return read_series(Series(intact), name, damaged)

    notes = []
    if copies:
        what = "1 copy of a slice was" if copies == 1 else f"{copies} copies of slices were"
        notes.append(f"{what} left out.")
    if damaged:
        what = "1 damaged file was" if len(damaged) == 1 else f"{len(damaged)} damaged files were"
        notes.append(f"{what} left out; part of the scan may be missing.")
    first, last = slices[0], slices[-1]
    step = (last.offset - first.offset) / (len(slices) - 1) if len(slices) > 1 else series.spacing
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    image.SetSpacing((*first.spacing, round(step, 6)))  # rounding removes float noise
    image.SetOrigin(first.position.tolist())
    image.SetDirection(first.direction.ravel().tolist())
    for tag in KEPT_TAGS:
        if first.tags.get(tag):
            image.SetMetaData(tag, first.tags[tag])
    size, weight = (first.tags.get(tag, "") for tag in (PATIENT_SIZE, PATIENT_WEIGHT))
    for key, text in body_metadata(size, weight).items():
        image.SetMetaData(key, text)
    image.SetMetaData(FILES_KEY, json.dumps([str(each.path) for each in slices]))
    return image, notes


def named_phase(description: str) -> str:
    """The contrast phase in a series description; "" if there is none, or portal and another."""
    portal = _PORTAL.search(description) is not None
    others = [name for name, words in _OTHER_PHASES.items() if words.search(description)]
    if portal == bool(others):
        return ""
    return PORTAL_VENOUS if portal else others[0]


def _nothing_found(path: Path, files: Files) -> str:
    if len(files.damaged) == 1:
        what = f"{files.damaged[0].name} is damaged or not DICOM"
    elif files.damaged:
        first = files.damaged[0].name
        what = f"{len(files.damaged)} files, such as {first}, are damaged or not DICOM"
    else:
        counts = Counter(other.kind for other in files.others).most_common()
        kinds = ", ".join(f"{count} x {kind}" for kind, count in counts)
        what = f"only {kinds}" if kinds else ""
    if not what:
        return f"{path.name}: no DICOM files found; a CT series is needed."
    return f"{path.name}: no CT series found, {what}."


def _stacks(slices: Sequence[Slice]) -> Iterator[list[Slice]]:
    """Slices grouped into stacks that can each form one volume."""
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for each in slices:
        by_series[each.tags.get(SERIES) or str(each.path.parent)].append(each)
    for members in by_series.values():
        grids: list[list[Slice]] = []
        for each in members:
            home = next((grid for grid in grids if grid[0].same_grid(each)), None)
            if home is None:
                grids.append([each])
            else:
                home.append(each)
        for grid in grids:
            yield from _acquisitions(grid, (ACQUISITION, TEMPORAL_POSITION))


def _acquisitions(slices: list[Slice], tags: tuple[str, ...]) -> Iterator[list[Slice]]:
    """Split by the first tag that differs, but only if positions repeat."""
    # The sort is stable: slices at one position stay in the order of their names.
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
    sharp = _SHARP_KERNEL.search(tags.get(KERNEL, "")) or _SHARP_KERNEL.search(description)
    return (
        len(series.gaps) + 1 >= MIN_SLICES,
        not series.derived,
        {PORTAL_VENOUS: 1, "": 0}.get(series.phase, -1),
        round(length / _LENGTH_STEP_MM),
        not sharp,
        -max(series.spacing, 1.0),  # thinner slices than 1 mm only add noise
        " ".join(tags.get(tag, "") for tag in TIMES),
        _number(tags.get(ACQUISITION, ""), 0.0),
        _number(tags.get(SERIES_NUMBER, ""), 0.0),
    )


def _number(text: str, default: float) -> float:
    try:
        number = float(text)
    except ValueError:
        return default
    return number if math.isfinite(number) else default


def _without_copies(slices: tuple[Slice, ...], name: str) -> tuple[list[Slice], int, list[Path]]:
    """One slice per position, how many copies were left out, and files with damaged pixels."""
    kept, copies, damaged = [slices[0]], 0, []
    for each in slices[1:]:
        last = kept[-1]
        if each.offset - last.offset > _SAME_POSITION_MM:
            kept.append(each)
            continue
        uid = each.tags.get(SOP_INSTANCE)
        one, two = _pixels(each), _pixels(last)
        if one is None:
            damaged.append(each.path)
        elif two is None:
            damaged.append(last.path)
            kept[-1] = each
        elif (uid and uid == last.tags.get(SOP_INSTANCE)) or np.array_equal(one, two):
            copies += 1
        else:
            raise StagingError(
                f"{name}: {each.path.name} and {last.path.name} differ but have the same position "
                f"({each.offset:.1f} mm) and acquisition number; give one acquisition only."
            )
    return kept, copies, damaged


def _pixels(one: Slice) -> np.ndarray | None:
    """The pixels of one slice; None if they cannot be read."""
    try:
        with quiet():
            return sitk.GetArrayFromImage(sitk.ReadImage(itk_path(one.path)))
    except RuntimeError:
        return None


def _check_stack(series: Series, name: str, damaged: Sequence[Path]) -> None:
    """Refuse a stack that is not a regular orthogonal grid."""
    if len(series.slices) < 2:
        return
    gaps, spacing = series.gaps, series.spacing
    first, last = series.slices[0], series.slices[-1]
    path = last.position - first.position
    cosine = (last.offset - first.offset) / np.linalg.norm(path)
    tilt = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    if tilt > _TILT_DEGREES:
        raise StagingError(
            f"{name}: series {series.label} has a gantry tilt of {tilt:.1f} degrees; a series "
            "without tilt, or with the tilt corrected, is needed."
        )
    worst = int(np.abs(gaps - spacing).argmax())
    below, above = series.slices[worst], series.slices[worst + 1]
    where = f"between {below.path.name} ({below.offset:.1f} mm) and {above.path.name}"
    if gaps[worst] > _MISSING * spacing:
        raise StagingError(
            f"{name}: slices are missing in series {series.label}: {gaps[worst]:.2f} mm {where}"
            + (f"; {damaged[0].name} is damaged or not DICOM" if damaged else "")
            + "."
        )
    if abs(gaps[worst] - spacing) > _UNEVEN * spacing:
        raise StagingError(
            f"{name}: series {series.label} is unevenly spaced: {gaps[worst]:.2f} mm {where}; a "
            "constant spacing is needed."
        )
