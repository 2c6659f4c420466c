"""Writing of a result's DICOM files."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK as sitk

from ..errors import CancelToken, StagingError, cancellable, check_cancel
from .images import parametric_map, segmentation
from .measurements import report
from .source import CHARACTER_SET, read_source, silent

if TYPE_CHECKING:
    from pydicom import Dataset

SEGMENTATION, LOCATION_MAP, MEASUREMENTS = FILES = (
    "segmentation.dcm",
    "location_map.dcm",
    "measurements.dcm",
)


def check_packages() -> None:
    """Check, before work starts, that pydicom and highdicom are installed. Raises StagingError."""
    missing = [name for name in ("pydicom", "highdicom") if find_spec(name) is None]
    if missing:
        raise StagingError(
            f"DICOM output needs the Python package {' and '.join(missing)}; install it with "
            "pip install pydicom highdicom."
        )


def write_dicom(
    folder: Path,
    source_files: Sequence[str | Path],
    organs: sitk.Image,
    location_map: sitk.Image,
    summary: Mapping[str, Any],
    cancel: CancelToken | None = None,
) -> None:
    """Write FILES into a folder: segmentation, location map and measurements.

    source_files: the DICOM files that the CT was read from, in any order. organs: on the CT's grid;
    location_map: on it, or on a box of it outside of which it is 0; summary: of the same result, as
    in staging.json. Patient and study are copied from the source; nothing of it is in a message.

    Raises StagingError without the packages, for unsuitable source files (`source.read_source`),
    and if the images' grid is not that of the source's slices; and Cancelled, at once: highdicom
    cannot be interrupted, so what it still makes is dropped.
    """
    check_packages()

    @silent()
    def objects() -> list["Dataset"]:
        source = read_source(source_files)
        check_cancel(cancel)
        place = source.placing(organs)
        segments = segmentation(source, place(organs)[1], summary)
        check_cancel(cancel)
        mapped = parametric_map(source, *place(location_map), summary)
        check_cancel(cancel)
        return [segments, mapped, report(source, segments, mapped, summary)]

    for name, found in zip(FILES, cancellable(objects, cancel)):
        check_cancel(cancel)
        found.SpecificCharacterSet = CHARACTER_SET
        with silent():
            found.save_as(folder / name)
