"""Liver and spleen: labels, terminology codes, colours, names, and .seg.nrrd files.

Codes are those of SNOMED CT and, from older DICOM, SNOMED RT (DICOM PS3.16, CID 7154 and 7170);
colours those of Slicer's General Anatomy list.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import StagingError
from .itk_files import itk_path

# In label images with both organs.
LIVER_LABEL, SPLEEN_LABEL = 1, 2
IMAGES = (".nrrd", ".nii.gz", ".nii", ".mha")


@dataclass(frozen=True)
class Organ:
    """code: SNOMED CT; older_code: SNOMED RT; names: lower case, in several languages."""

    label: int
    name: str
    code: str
    older_code: str
    rgb: tuple[int, int, int]
    names: frozenset[str]

    @property
    def codes(self) -> frozenset[tuple[str, str]]:
        """Coding scheme and code, of both terminologies."""
        return frozenset({("SCT", self.code), ("SRT", self.older_code)})

    @property
    def terminology(self) -> str:
        """Slicer's serialised terminology entry."""
        return (
            "Segmentation category and type - 3D Slicer General Anatomy list"
            "~SCT^123037004^Anatomical Structure"
            f"~SCT^{self.code}^{self.name}~^^~Anatomic codes - DICOM master list~^^~^^"
        )


LIVER = Organ(
    LIVER_LABEL,
    "Liver",
    "10200004",
    "T-62000",
    (221, 130, 101),
    frozenset({"liver", "foie", "leber", "hígado", "fegato"}),
)
SPLEEN = Organ(
    SPLEEN_LABEL,
    "Spleen",
    "78961009",
    "T-C3000",
    (157, 108, 162),
    frozenset({"spleen", "rate", "milz", "bazo", "milza"}),
)
ORGANS = (LIVER, SPLEEN)

# Couinaud's hepatic segments I to VIII; DICOM PS3.16, CID 7170.
COUINAUD_CODES = (
    "71133005",
    "277956007",
    "277957003",
    "277958008",
    "277959000",
    "277960005",
    "277961009",
    "277962002",
)
COUINAUD_NAME = re.compile(
    r"(?:couinaud |liver |hepatic )+segment (viii|vii|vi|v|iv|iii|ii|i|[1-8])[ab]?"
)
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")


def couinaud_segment(type_code: tuple[str, str] | None, name: str) -> int | None:
    """Which of Couinaud's segments a segment is, 0 to 7; None for any other."""
    if type_code is not None and type_code[0] == "SCT" and type_code[1] in COUINAUD_CODES:
        return COUINAUD_CODES.index(type_code[1])
    match = COUINAUD_NAME.fullmatch(name)
    if match is None:
        return None
    return _ROMAN.index(match[1]) if match[1] in _ROMAN else int(match[1]) - 1


# Larger parts of the liver -> their Couinaud segments. The falciform ligament divides the right
# and left lobe, Cantlie's line the hemilivers: segment IV belongs to the right lobe and to the left
# hemiliver (Strasberg 2005, J Hepatobiliary Pancreat Surg 12:351-355).
_SECTIONS = {
    "caudate lobe": {1},
    "left lobe": {2, 3},
    "right lobe": {4, 5, 6, 7, 8},
    "left hemiliver": {2, 3, 4},
    "right hemiliver": {5, 6, 7, 8},
    "left lateral section": {2, 3},
    "left medial section": {4},
    "right anterior section": {5, 8},
    "right posterior section": {6, 7},
}


def liver_part(type_code: tuple[str, str] | None, name: str) -> frozenset[int] | None:
    """The Couinaud segments, 1 to 8, of a part of the liver; None for anything else.

    name: in any letter case, words separated by spaces, underscores or hyphens, such as
    "liver_segment_4", "Left lobe of liver" or "caudate lobe". The lobes' names have to be written
    out, because of their two meanings: see _SECTIONS.
    """
    plain = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    segment = couinaud_segment(type_code, plain)
    if segment is not None:
        return frozenset({segment + 1})
    words = plain.removeprefix("liver ").removesuffix(" of liver").removesuffix(" of the liver")
    found = _SECTIONS.get(words)
    return None if found is None else frozenset(found)


def check_image_name(path: str | Path) -> None:
    """Check, before work starts, that a file's extension is supported. Raises StagingError."""
    if not str(path).lower().endswith(IMAGES):
        raise StagingError(f"Cannot write {path}: its name must end in {', '.join(IMAGES)}.")


def segment_metadata(size: Sequence[int], labels: np.ndarray) -> dict[str, str]:
    """What Slicer needs in a .seg.nrrd file to know the ORGANS in it.

    size: of the file's grid; labels: its voxels, or those of a box with all organs.
    """
    metadata = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    last = " ".join(f"0 {n - 1}" for n in size)
    found = [organ for organ in ORGANS if any((part == organ.label).any() for part in labels)]
    for number, organ in enumerate(found):
        for key, value in (
            ("ID", organ.name.lower()),
            ("Name", organ.name),
            ("NameAutoGenerated", "0"),
            ("Color", " ".join(f"{c / 255:.6f}" for c in organ.rgb)),
            ("ColorAutoGenerated", "0"),
            ("LabelValue", str(organ.label)),
            ("Layer", "0"),
            ("Extent", last),
            ("Tags", f"TerminologyEntry:{organ.terminology}|"),
        ):
            metadata[f"Segment{number}_{key}"] = value
    return metadata


def write_labels(labels: sitk.Image, path: str | Path) -> None:
    """Write a label image; a .nrrd file gets the segment metadata (name, colour, code) of Slicer.

    The image's own metadata are replaced by those of the file. Raises StagingError if it cannot be
    written.
    """
    path = Path(path)
    check_image_name(path)
    for key in labels.GetMetaDataKeys():  # no free text of the input in the file
        labels.EraseMetaData(key)
    if path.suffix == ".nrrd":
        metadata = segment_metadata(labels.GetSize(), sitk.GetArrayViewFromImage(labels))
        for key, value in metadata.items():
            labels.SetMetaData(key, value)
    # Written under a temporary name first; the extension determines the format.
    ending = next(ending for ending in IMAGES if path.name.lower().endswith(ending))
    unfinished = path.with_name(f".partial-{os.getpid()}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(labels, itk_path(unfinished), useCompression=True, compressionLevel=1)
        unfinished.replace(path)
    except (RuntimeError, OSError):
        raise StagingError(
            f"Cannot write {path}: check the folder's permissions and the free disk space."
        ) from None
    finally:
        with suppress(OSError):  # the folder may not be there
            unfinished.unlink()
