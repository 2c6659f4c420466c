"""The DICOM slices that a CT was read from: checked, sorted, and matched with the CT's grid."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..errors import StagingError
from ..settings import shared

if TYPE_CHECKING:
    from pydicom import Dataset

CHARACTER_SET = "ISO_IR 192"  # UTF-8
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
# Of type 1 in CT images; the objects that refer to them repeat them.
_NEEDED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
)
# Of type 2: present, but maybe empty. Anonymisation often removes them.
_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_SEXES = ("M", "F", "O")
# Of a voxel, at the corners of the volume: positions in DICOM, and in a scene, are rounded.
_TOLERANCE = 0.1
_SAME_POSITION_MM = 0.01


@dataclass(frozen=True)
class Source:
    """The slices of one CT series, sorted along their normal (row x column), without pixels.

    steps: columns are the steps in mm (LPS) from slice to slice, row to row and column to column;
    between slices, the mean step. origin: position of the first voxel of the first slice.
    """

    slices: "tuple[Dataset, ...]"
    steps: np.ndarray
    origin: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns."""
        first = self.slices[0]
        return len(self.slices), int(first.Rows), int(first.Columns)

    def placing(self, grid: sitk.Image) -> Callable[[sitk.Image], tuple[slice, np.ndarray]]:
        """A function from an image on `grid`, or a box of it, to the slices of this source that it
        covers, and their voxels [slice, row, column], 0 outside the box.

        The grid may have other axis orders and directions, since no voxel is interpolated. Raises
        StagingError if its voxels are not those of the source.
        """
        spacing, direction = np.array(grid.GetSpacing()), np.array(grid.GetDirection())
        steps = (direction.reshape(3, 3) * spacing)[:, ::-1]  # slice, row, column
        to_source = np.linalg.inv(self.steps)
        turn = to_source @ steps
        start = to_source @ (np.array(grid.GetOrigin()) - self.origin)
        axes, last = np.abs(turn).argmax(axis=1), np.array(grid.GetSize()[::-1]) - 1
        fits = sorted(axes) == [0, 1, 2] and tuple(last[axes] + 1) == self.shape
        if fits:
            signs = np.sign(turn[range(3), axes])
            corners = np.array(list(np.ndindex(2, 2, 2))) * last
            found = corners @ turn.T + start
            wanted = np.where(signs > 0, corners[:, axes], last[axes] - corners[:, axes])
            fits = bool((np.abs(found - wanted) <= _TOLERANCE).all())
        if not fits:
            raise StagingError(
                "The result is on another grid than the DICOM slices of the CT; for DICOM output, "
                "a CT that was not resampled, cropped or transformed is needed."
            )
        flips = tuple(slice(None, None, int(sign)) for sign in signs)

        def place(image: sitk.Image) -> tuple[slice, np.ndarray]:
            values = sitk.GetArrayViewFromImage(image).transpose(axes)[flips]
            index = grid.TransformPhysicalPointToContinuousIndex(image.GetOrigin())
            first = np.rint(index).astype(int)[::-1][axes]  # of the box, in the grid
            beyond = last[axes] + 1 - first - values.shape
            first = np.where(signs > 0, first, beyond)
            covered, rows, columns = (slice(f, f + n) for f, n in zip(first, values.shape))
            placed = np.zeros((len(values), *self.shape[1:]), values.dtype)
            placed[:, rows, columns] = values
            return covered, placed

        return place


@shared
@contextmanager
def silent() -> Iterator[None]:
    """No message of pydicom or highdicom, since theirs quote values such as the patient's name."""
    import logging
    import warnings

    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


@silent()
def read_source(files: Sequence[str | Path]) -> Source:
    """The slices in `files`, in any order.

    Raises StagingError if they are not the CT images of one series, one file per slice at a
    position of its own, or lack what objects referring to them need.
    """
    if not files:
        raise StagingError(
            "The CT was not read from DICOM; for DICOM output, a DICOM CT is needed."
        )
    slices = [_slice(Path(file)) for file in files]
    first = slices[0]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
        if len({getattr(each, name) for each in slices}) > 1:
            raise StagingError(
                f"The DICOM slices of the CT differ in {name}; one series is needed."
            )
    if len({each.SOPInstanceUID for each in slices}) < len(slices):
        raise StagingError(
            "Several DICOM slices of the CT have the same SOPInstanceUID; DICOM output refers to "
            "the slices by it."
        )
    normal = _axes(first)[2]
    slices.sort(key=lambda each: _position(each) @ normal)
    first = slices[0]
    along_row, along_column, normal = _axes(first)  # to the next column, the next row, slice
    offsets = np.array([_position(each) @ normal for each in slices])
    if (np.diff(offsets) < _SAME_POSITION_MM).any():
        raise StagingError(
            "Several DICOM slices of the CT have the same position; the slices of one acquisition "
            "are needed."
        )
    thickness = float(first.get("SliceThickness") or 0.0)
    if not 0 < thickness < math.inf:
        thickness = 0.0
    spacing = thickness or 1.0
    if len(slices) > 1:
        spacing = float(offsets[-1] - offsets[0]) / (len(slices) - 1)
    # Objects take these from the slices, in which they may be missing, negative or rounded.
    for each in slices:
        each.SpacingBetweenSlices = _decimal(spacing)
        each.SliceThickness = _decimal(thickness or spacing)
        each.ImageOrientationPatient = [_decimal(v) for v in (*along_row, *along_column)]
    row_spacing, column_spacing = map(float, first.PixelSpacing)
    steps = [normal * spacing, along_column * row_spacing, along_row * column_spacing]
    return Source(tuple(slices), np.stack(steps, axis=1), _position(first))


def _position(one: "Dataset") -> np.ndarray:
    return np.array(one.ImagePositionPatient, float)


def _axes(one: "Dataset") -> np.ndarray:
    """Unit vectors along a row, along a column and normal to both, each a row of the array."""
    row, column = np.array(one.ImageOrientationPatient, float).reshape(2, 3)
    row = row / np.linalg.norm(row)
    column = column - row * (row @ column)
    column /= np.linalg.norm(column)
    return np.array([row, column, np.cross(row, column)])


def _decimal(value: float) -> str:
    """A decimal string, of at most 16 characters (PS3.5, VR DS)."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def _slice(path: Path) -> "Dataset":
    """One slice in UTF-8, without pixels, and without values and references of a wrong form."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.valuerep import DA, TM

    try:
        found = dcmread(path, stop_before_pixels=True)
    except (OSError, InvalidDicomError):
        raise StagingError(f"{path.name}: the DICOM file cannot be read again.") from None
    forms = {"DA": DA, "TM": TM, "AS": _age, "DS": _numbers}
    for tag in list(found.keys()):
        try:
            element = found[tag]
            if element.VR in forms:
                forms[element.VR](element.value)
            elif element.VR == "SQ" and any(map(_is_incomplete, element.value)):
                del found[tag]
        except ValueError:
            del found[tag]
    missing = [name for name in _NEEDED if not found.get(name)]
    if missing:
        raise StagingError(
            f"{path.name}: {', '.join(missing)} missing; DICOM output refers to the slices by them."
        )
    if found.SOPClassUID != CT_IMAGE:
        raise StagingError(
            f"{path.name}: not a CT image of one slice; DICOM output needs one file per slice."
        )
    found.decode()
    found.SpecificCharacterSet = CHARACTER_SET
    for name in _EMPTY:
        if name not in found:
            setattr(found, name, "")
    if found.PatientSex not in _SEXES:
        found.PatientSex = ""
    return found


def _numbers(value: Any) -> None:
    for each in np.atleast_1d(value or 0.0):
        float(each)


def _age(text: str) -> None:
    if text and not re.fullmatch(r"\d{3}[DWMY]", text):
        raise ValueError(text)


def _is_incomplete(item: "Dataset") -> bool:
    """Whether an item is empty, or a code or a reference without a part (PS3.3, 8.8, 10.8)."""
    needed = ()
    if "CodeValue" in item or "LongCodeValue" in item:
        needed = ("CodingSchemeDesignator", "CodeMeaning")
    elif "ReferencedSOPClassUID" in item or "ReferencedSOPInstanceUID" in item:
        needed = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
    return len(item) == 0 or not all(item.get(name) for name in needed)
