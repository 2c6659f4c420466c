"""DICOM segmentations as label images on the grid of the CT on which they were drawn.

Coordinates are in mm, in DICOM's patient axes (LPS); the attributes are those of DICOM PS3.3,
A.51 and C.8.20.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.pixels import iter_pixels
from pydicom.sequence import Sequence

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.organs import ORGANS

LIVER, SPLEEN = (organ.name.lower() for organ in ORGANS)
TUMOUR = "tumour"
SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # also label maps
# "Liver remnant", "portal vein" and the like may have the liver's code.
_OTHER = re.compile(r"remnant|vein|vessel|arter|aort|portal|hepatic|segment|lobe|duct|cyst|fat")
_TUMOUR = re.compile(r"tumou?r|mass\b|lesion|metasta|neoplas|carcinom|\bhcc\b|cancer")
_ASIDE = re.compile(r"\b(with|without|including|excluding|and|non|minus|plus)\b.*")
_GRID = 0.1  # voxels by which a frame may be beside the CT's grid


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A DICOM segmentation: what it refers to, and its segments.

    patient: PatientID. frame: of reference. segments: segment number -> LIVER, SPLEEN or TUMOUR;
    other segments are left out. made: date and time.
    """

    path: Path
    patient: str
    frame: str
    segments: dict[int, str]
    made: str

    @property  # not kept: a collection has many, with a group of attributes for each frame
    def _dataset(self) -> Dataset:
        return dcmread(self.path, stop_before_pixels=True)

    @cached_property
    def instances(self) -> frozenset[str]:
        """The CT slices from which its frames are, or else all that it refers to."""
        frames = self._dataset.get("PerFrameFunctionalGroupsSequence", [])
        found = {
            str(source.ReferencedSOPInstanceUID)
            for group in frames
            for derivation in group.get("DerivationImageSequence", [])
            for source in derivation.get("SourceImageSequence", [])
        }
        return frozenset(found) or frozenset(
            str(instance.ReferencedSOPInstanceUID)
            for series in self._dataset.get("ReferencedSeriesSequence", [])
            for instance in series.get("ReferencedInstanceSequence", [])
        )

    @cached_property
    def series(self) -> frozenset[str]:
        """The series that it refers to."""
        referenced = self._dataset.get("ReferencedSeriesSequence", [])
        return frozenset(str(each.get("SeriesInstanceUID", "")) for each in referenced)

    def masks(self, ct: sitk.Image) -> dict[str, np.ndarray]:
        """LIVER, SPLEEN, TUMOUR -> bool [slice, row, column] on the CT's grid.

        A slice without a frame is empty. Raises StagingError if the frames cannot be read or are
        not on the CT's grid.
        """
        masks: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(ct.GetSize()[::-1], bool))
        try:
            for name, pixels, place in self._frames():
                _draw(pixels, place, ct, masks[name], self.path.name)
        except StagingError:
            raise
        except Exception as error:  # pydicom and its decoders raise many types
            raise StagingError(
                f"{self.path.name}: the DICOM segmentation cannot be read; an intact file is "
                "needed."
            ) from error
        return dict(masks)

    def _frames(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name of the segment, pixels (bool) and place of each frame.

        place: 3 x 3; columns are the first pixel's position and the steps to the next row and
        column.
        """
        dataset = self._dataset
        groups = dataset.PerFrameFunctionalGroupsSequence
        shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
        kind = str(dataset.SegmentationType)
        half = float(dataset.get("MaximumFractionalValue", 1)) / 2
        wanted, numbers = [], []
        for index, group in enumerate(groups):
            number = None
            if kind != "LABELMAP":
                identified = _macro("SegmentIdentificationSequence", group, shared[0])
                number = int(identified.ReferencedSegmentNumber)
            if number is None or number in self.segments:
                wanted.append(index)
                numbers.append(number)
        if not wanted:
            return
        frames = _pixels(self.path, wanted)
        for index, number, pixels in zip(wanted, numbers, frames, strict=True):
            place = _place(groups[index], shared[0])
            if number is None:
                for each, name in self.segments.items():
                    yield name, pixels == each, place
            else:
                yield self.segments[number], pixels > half, place


def read_segmentation(path: Path) -> Segmentation | None:
    """The header of a DICOM segmentation; None for any other DICOM object.

    Raises StagingError if the file cannot be read.
    """
    try:
        dataset = dcmread(path, stop_before_pixels=True)
        if dataset.get("SOPClassUID") not in SOP_CLASSES:
            return None
        segments = {
            int(segment.SegmentNumber): kind
            for segment in dataset.get("SegmentSequence", [])
            if (kind := kind_of(segment)) is not None
        }
    except Exception as error:  # pydicom raises many types on a damaged file
        raise StagingError(f"{path.name}: the DICOM file is truncated or damaged.") from error
    return Segmentation(
        path,
        str(dataset.get("PatientID", "")).strip(),
        str(dataset.get("FrameOfReferenceUID", "")),
        segments,
        f"{dataset.get('ContentDate', '')} {dataset.get('ContentTime', '')}",
    )


def kind_of(segment: Dataset) -> str | None:
    """LIVER, SPLEEN or TUMOUR, by label and description, else by code; None for anything else."""
    texts = [
        _ASIDE.sub(
            "", " ".join(re.split(r"[\s_-]+", str(segment.get(name, "")).casefold()))
        ).strip()
        for name in ("SegmentLabel", "SegmentDescription")
    ]
    for organ in ORGANS:
        if texts[0] in organ.names:
            return organ.name.lower()
    codes = segment.get("SegmentedPropertyTypeCodeSequence", [])
    meant = " ".join(str(code.get("CodeMeaning", "")) for code in codes).casefold()
    named = re.sub(r"^segment[ _]?\d*$", "", texts[0])  # the default names of programs
    if _TUMOUR.search(named) or (_TUMOUR.search(meant) and not _OTHER.search(named)):
        return TUMOUR
    if _OTHER.search(named):
        return None
    pairs = {(str(c.get("CodingSchemeDesignator")), str(c.get("CodeValue"))) for c in codes}
    for organ in ORGANS:
        if texts[1] in organ.names or pairs & organ.codes:
            return organ.name.lower()
    return None


def _pixels(path: Path, indices: list[int]) -> Iterator[np.ndarray]:
    """Some frames of a file, [row, column]."""
    dataset = dcmread(path)
    if dataset.BitsAllocated != 1:
        yield from iter_pixels(dataset, indices=indices, raw=True)
        return
    # Frames of bits may begin within a byte, which `iter_pixels` does not read.
    shape = dataset.Rows, dataset.Columns
    size, data = math.prod(shape), np.frombuffer(dataset.PixelData, np.uint8)
    for index in indices:
        first, last = index * size, (index + 1) * size
        bits = np.unpackbits(data[first // 8 : -(-last // 8)], bitorder="little")
        yield bits[first % 8 :][:size].reshape(shape)


def _macro(name: str, group: Dataset, shared: Dataset) -> Dataset:
    """The item of a functional group, of the frame or of all frames."""
    found: Sequence = group[name].value if name in group else shared[name].value
    return found[0]


def _place(group: Dataset, shared: Dataset) -> np.ndarray:
    position = _macro("PlanePositionSequence", group, shared).ImagePositionPatient
    axes = _macro("PlaneOrientationSequence", group, shared).ImageOrientationPatient
    spacing = _macro("PixelMeasuresSequence", group, shared).PixelSpacing
    along, down = np.array(axes, float).reshape(2, 3)
    # PixelSpacing is the distance between rows, then that between columns.
    return np.stack([np.array(position, float), down * spacing[0], along * spacing[1]], axis=1)


def _draw(
    pixels: np.ndarray, place: np.ndarray, ct: sitk.Image, mask: np.ndarray, name: str
) -> None:
    """Set the voxels of a mask that a frame's pixels are; its axes may be those of the CT turned.

    Raises StagingError if the pixels are not the CT's voxels.
    """
    rows, columns = np.nonzero(pixels)
    if not len(rows):
        return
    axes = np.array(ct.GetDirection()).reshape(3, 3) * ct.GetSpacing()
    to_index = np.linalg.inv(axes)
    first = to_index @ (place[:, 0] - ct.GetOrigin())
    steps = to_index @ place[:, 1:]
    exact = first[:, None] + steps @ np.stack([rows, columns])
    index = np.rint(exact).astype(int)
    one_voxel = np.allclose(np.sort(np.abs(steps), axis=0), [[0], [0], [1]], atol=0.01)
    if not one_voxel or np.abs(exact - index).max() > _GRID:
        raise StagingError(
            f"{name}: a frame of the segmentation lies between the voxels of its CT; a "
            "segmentation on the grid of the CT is needed."
        )
    size = np.array(ct.GetSize())[:, None]
    if ((index < 0) | (index >= size)).any():
        raise StagingError(
            f"{name}: the segmentation reaches beyond its CT; all slices of the CT are needed."
        )
    mask[index[2], index[1], index[0]] = True
