"""The valid files that the fuzz tests damage, and their readers."""

import gzip
from functools import partial
from pathlib import Path

import SimpleITK as sitk
from bad_inputs import hu_array, image, write_slices
from fuzzing import Target

from LiverFibrosisStagingLib.imaging.checks import check_ct
from LiverFibrosisStagingLib.imaging.reading import read_ct

# Offset and format of the numbers in a NIfTI-1 header that tell how to read it.
_NIFTI_FIELDS = (
    (0, "<i"),
    *((offset, "<h") for offset in (*range(40, 56, 2), 68, 70, 72, 74, 252, 254)),
    *((offset, "<f") for offset in (*range(76, 108, 4), 108, 112, 116)),
    *((offset, "<f") for offset in range(256, 328, 4)),
    *((offset, "<B") for offset in (39, 123, 344, 345, 346, 348)),
)


def image_targets(folder: Path) -> dict[str, Target]:
    """One target for each format that is read; the readers work in subfolders of `folder`."""
    tiny = image(hu_array(10)[:, 4:36, 4:36])
    targets = {}
    for name, compressed, head in (
        ("plain.nii", False, 352),
        ("zipped.nii.gz", True, 60),
        ("plain.nrrd", False, 400),
        ("zipped.nrrd", True, 400),
        ("apart.nhdr", False, 400),
        ("plain.mha", False, 400),
        ("zipped.mha", True, 400),
        ("apart.mhd", False, 400),
    ):
        place = folder / name
        place.mkdir()
        sitk.WriteImage(tiny, str(place / name), compressed)
        data = (place / name).read_bytes()
        fields = _NIFTI_FIELDS if name == "plain.nii" else ()
        targets[name] = Target(data, partial(_read, place, name), head, fields)
    place = folder / "rezipped.nii.gz"
    place.mkdir()
    targets[place.name] = Target(
        targets["plain.nii"].data, partial(_read_zipped, place, place.name), 352, _NIFTI_FIELDS
    )
    floats = sitk.Cast(tiny, sitk.sitkFloat32) + 0.5
    place = folder / "floats.nii"
    place.mkdir()
    sitk.WriteImage(floats, str(place / place.name))
    targets[place.name] = Target(
        (place / place.name).read_bytes(), partial(_read, place, place.name), 352, _NIFTI_FIELDS
    )
    for name, compressor in (("dicom", ""), ("jpeg2000.dicom", "JPEG2000")):
        slice_file = write_slices(folder / name, tiny, compressor=compressor) / "IM002.dcm"
        targets[name] = Target(slice_file.read_bytes(), partial(_read_series, slice_file), 1500)
    return targets


def _read(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    check_ct(read_ct(folder / name), name)


def _read_zipped(folder: Path, name: str, data: bytes) -> None:
    _read(folder, name, gzip.compress(data, 1))


def _read_series(slice_file: Path, data: bytes) -> None:
    slice_file.write_bytes(data)
    check_ct(read_ct(slice_file.parent), slice_file.parent.name)
