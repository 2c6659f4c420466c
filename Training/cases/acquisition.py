"""How a CT was acquired, by the header of one of its DICOM files."""

from pathlib import Path
from typing import NamedTuple

from LiverFibrosisStagingLib.imaging.dicom_files import KERNEL, THICKNESS
from LiverFibrosisStagingLib.privacy import technical_tags

_SCANNER = ("0008|0070", "0008|1090")  # manufacturer and model
_THICKEST = 100.0  # mm


class Acquisition(NamedTuple):
    """Scanner, kernel and slice thickness (mm), without names; "" and None if not known."""

    scanner: str = ""
    kernel: str = ""
    thickness: float | None = None


def acquisition_of(file: Path) -> Acquisition:
    """What the header of a DICOM file says; nothing if it cannot be read."""
    tags = technical_tags(file, (*_SCANNER, KERNEL, THICKNESS))
    try:
        thickness = float(tags.get(THICKNESS, ""))
    except ValueError:
        thickness = 0.0
    return Acquisition(
        " ".join(tags[tag] for tag in _SCANNER if tag in tags),
        tags.get(KERNEL, "").split("\\")[0].strip(),  # an iterative one has a strength after it
        thickness if 0 < thickness < _THICKEST else None,
    )
