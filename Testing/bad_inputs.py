"""Inputs that cannot be staged, each built from scratch in a temporary folder.

BAD_CTS: name -> BadInput whose `build(folder)` gives the path of a CT. BAD_MASKS: name -> BadInput
whose `build(folder)` gives the paths (CT, mask) with a valid CT. `words` is a regular
expression that the message must match.
"""

import gzip
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SPACING = (5.0, 5.0, 5.0)
PATIENT = "Doe^Jane"


@dataclass(frozen=True)
class BadInput:
    build: Callable[[Path], Path] | Callable[[Path], tuple[Path, Path]]
    words: str


def hu_array(slices: int = 24) -> np.ndarray:
    """A box of a patient in HU [slice, row, column]: air, body, liver, spine."""
    hu = np.full((slices, 64, 72), -1000, np.int16)
    hu[:, 8:56, 8:64] = 40
    hu[:, 16:40, 12:36] = 110
    hu[:, 44:52, 32:40] = 400
    # Some grain, so that compressed files are long enough to be cut.
    hu += np.random.default_rng(0).integers(-20, 21, hu.shape, dtype=np.int16)
    return hu


def liver_array(slices: int = 24) -> np.ndarray:
    liver = np.zeros((slices, 64, 72), np.uint8)
    liver[4:-4, 16:40, 12:36] = 1
    return liver


def image(array: np.ndarray, is_vector: bool = False) -> sitk.Image:
    made = sitk.GetImageFromArray(array, isVector=is_vector)
    made.SetSpacing(SPACING[: made.GetDimension()] + (1.0,) * (made.GetDimension() - 3))
    made.SetOrigin((-180.0, -160.0, 50.0)[: made.GetDimension()] + (0,) * (made.GetDimension() - 3))
    return made


def write(path: Path, array: np.ndarray | None = None, compress: bool = False) -> Path:
    sitk.WriteImage(image(hu_array() if array is None else array), str(path), compress)
    return path


def write_slices(
    folder: Path,
    volume: sitk.Image,
    tags: dict[str, str] | None = None,
    *,
    skip: tuple[int, ...] = (),
    shift_per_slice: tuple[float, float, float] = (0.0, 0.0, 0.0),
    prefix: str = "IM",
    uid: str = "1.2.3.1",
    compressor: str = "",
) -> Path:
    """A DICOM series of CT slices, one file each, with a patient's name in it."""
    folder.mkdir(parents=True, exist_ok=True)
    direction = np.array(volume.GetDirection()).reshape(3, 3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    for k in range(volume.GetSize()[2]):
        if k in skip:
            continue
        position = np.array(volume.TransformIndexToPhysicalPoint((0, 0, k)))
        position = position + k * np.array(shift_per_slice)
        one = volume[:, :, k]
        for key, value in {
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{k + 1}",
            "0008|0060": "CT",
            "0010|0010": PATIENT,
            "0010|0020": "PATIENT-1",
            "0010|0030": "19500101",
            "0018|0050": f"{volume.GetSpacing()[2]:g}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.8f}" for value in direction[:, :2].T.ravel()),
            **(tags or {}),
        }.items():
            one.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{prefix}{k:03d}.dcm"))
        writer.Execute(one)
    return folder


def _cut(source: Path, share: float = 0.6) -> Path:
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * share)])
    return source


def _overwrite(path: Path, offset: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


def _replace(path: Path, pattern: bytes, replacement: bytes) -> Path:
    content, count = re.subn(pattern, replacement, path.read_bytes(), count=1)
    assert count == 1, f"{pattern!r} not in {path.name}"
    path.write_bytes(content)
    return path


def _text(path: Path) -> Path:
    path.write_text("This is not an image.\n" * 40)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _damaged_gzip(folder: Path) -> Path:
    path = write(folder / "damaged.nii.gz")
    # The middle of a stored (uncompressed) block: ITK reads such damage without a word.
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw, compresslevel=0))
    return _overwrite(path, path.stat().st_size // 2, b"\x55" * 8)


def _headless_mhd(folder: Path) -> Path:
    path = write(folder / "alone.mhd")
    (folder / "alone.raw").unlink()
    return path


def _sheared(folder: Path) -> Path:
    return _overwrite(write(folder / "sheared.nii"), 280, struct.pack("<4f", -5.0, 1.5, 0.0, 180.0))


def _rgb(folder: Path) -> Path:
    path = folder / "rgb.nrrd"
    array = np.zeros((24, 64, 72, 3), np.uint8)
    sitk.WriteImage(image(array, is_vector=True), str(path))
    return path


def _complex(folder: Path) -> Path:
    path = folder / "complex.nii"
    sitk.WriteImage(image(hu_array().astype(np.complex64)), str(path))
    return path


def _picture(folder: Path) -> Path:
    path = folder / "slice.png"
    sitk.WriteImage(image(np.zeros((64, 72), np.uint8)), str(path))
    return path


def _with(folder: Path, name: str, value: float) -> Path:
    hu = hu_array().astype(np.float32)
    hu[5, 30:33, 30] = value
    return write(folder / name, hu)


def _padded_offset(folder: Path) -> Path:
    hu = hu_array() + 1024
    hu[:, :4] = -2000
    return write(folder / "padded_offset.nii.gz", hu)


def _dicom(folder: Path, name: str, **options: object) -> Path:
    return write_slices(folder / name, image(hu_array()), **options)


def _truncated_dicom(folder: Path) -> Path:
    series = _dicom(folder, "truncated_dicom")
    _cut(series / "IM010.dcm")
    return series


def _text_among_dicom(folder: Path) -> Path:
    series = _dicom(folder, "text_among_dicom")
    _text(series / "IM010.dcm")
    return series


def _two_patients(folder: Path) -> Path:
    _dicom(folder, "two_patients")
    tags = {"0010|0020": "PATIENT-2", "0020|000d": "1.2.4"}
    _dicom(folder, "two_patients", tags=tags, prefix="B", uid="1.2.4.1")
    return folder / "two_patients"


def _ambiguous_positions(folder: Path) -> Path:
    _dicom(folder, "ambiguous")
    other = image(hu_array() + np.int16(30))
    for k in range(24):  # the same series, other images at the same places
        write_slices(
            folder / "ambiguous",
            other,
            {"0008|0018": f"1.2.9.{k}"},
            skip=tuple(set(range(24)) - {k}),
            prefix="B",
        )
    return folder / "ambiguous"


def _uneven(folder: Path) -> Path:
    _dicom(folder, "uneven", skip=tuple(range(12, 24)))
    upper = image(hu_array())
    upper.SetSpacing((5.0, 5.0, 6.0))
    upper.SetOrigin((-180.0, -160.0, 38.0))
    return write_slices(folder / "uneven", upper, skip=tuple(range(12)), prefix="U")


def _colour_captures(folder: Path) -> Path:
    series = _folder(folder / "captures")
    shot = image(np.zeros((64, 72, 3), np.uint8), is_vector=True)
    for key, value in (("0008|0060", "CT"), ("0008|0016", "1.2.840.10008.5.1.4.1.1.7")):
        shot.SetMetaData(key, value)
    sitk.WriteImage(shot, str(series / "dose.dcm"))
    return series


_UPRIGHT = "not at right angles"
_FEW = r"slices over .* mm found along the body"
_NOT_HU = "not in HU"
_POSITIVE = "must be positive|positive numbers are needed"

BAD_CTS: dict[str, BadInput] = {
    "missing file": BadInput(lambda t: t / "nowhere.nii.gz", "no such file"),
    "empty folder": BadInput(lambda t: _folder(t / "empty"), "no DICOM files found"),
    "empty file": BadInput(lambda t: _touch(t / "zero.nii"), "is empty"),
    "unknown format": BadInput(_picture, "unknown format"),
    "text as nii.gz": BadInput(lambda t: _text(t / "text.nii.gz"), "not a NIfTI"),
    "text as nrrd": BadInput(lambda t: _text(t / "text.nrrd"), "not an NRRD"),
    "text as mha": BadInput(lambda t: _text(t / "text.mha"), "not a MetaImage"),
    "text as dcm": BadInput(lambda t: _text(t / "text.dcm"), "not a DICOM file"),
    "truncated nii": BadInput(lambda t: _cut(write(t / "cut.nii")), "truncated"),
    "truncated nii.gz": BadInput(lambda t: _cut(write(t / "cut.nii.gz")), "truncated"),
    "truncated by a little": BadInput(lambda t: _cut(write(t / "cut.nii.gz"), 0.99), "truncated"),
    "truncated nrrd": BadInput(lambda t: _cut(write(t / "cut.nrrd")), "truncated"),
    "truncated gzip nrrd": BadInput(
        lambda t: _cut(write(t / "cut.nrrd", compress=True)), "truncated"
    ),
    "truncated mha": BadInput(lambda t: _cut(write(t / "cut.mha")), "truncated"),
    "truncated zlib mha": BadInput(
        lambda t: _cut(write(t / "cut.mha", compress=True)), "truncated"
    ),
    "mhd without data": BadInput(_headless_mhd, "alone.raw' is missing"),
    "damaged nii.gz": BadInput(_damaged_gzip, "damaged"),
    "zero spacing nii": BadInput(
        lambda t: _overwrite(write(t / "zero.nii"), 84, struct.pack("<f", 0.0)), _POSITIVE
    ),
    "negative spacing nii": BadInput(
        lambda t: _overwrite(write(t / "minus.nii"), 88, struct.pack("<f", -5.0)), _POSITIVE
    ),
    "spacing not a number": BadInput(
        lambda t: _overwrite(write(t / "nan.nii"), 88, struct.pack("<f", float("nan"))), _POSITIVE
    ),
    "zero spacing nrrd": BadInput(
        lambda t: _replace(write(t / "zero.nrrd"), rb"\(0,0,5\)", b"(0,0,0)"), _POSITIVE
    ),
    "negative spacing mha": BadInput(
        lambda t: _replace(
            write(t / "minus.mha"), rb"ElementSpacing = 5 5 5", b"ElementSpacing = 5 5 -5"
        ),
        _POSITIVE,
    ),
    "no spacing nrrd": BadInput(
        lambda t: _replace(
            write(t / "none.nrrd"), rb"space: .*\n(sizes: .*\n)space directions: .*\n", rb"\1"
        ),
        "no voxel spacing",
    ),
    "sheared nii": BadInput(_sheared, _UPRIGHT),
    "sheared nrrd": BadInput(
        lambda t: _replace(write(t / "shear.nrrd"), rb"\(0,0,5\)", b"(1,0,5)"), _UPRIGHT
    ),
    "two-dimensional": BadInput(lambda t: write(t / "flat.nii", hu_array()[0]), "2 dimensions"),
    "one slice": BadInput(lambda t: write(t / "one.nii", hu_array(1)), _FEW),
    "three slices": BadInput(lambda t: write(t / "three.nii.gz", hu_array(3)), _FEW),
    "four-dimensional": BadInput(
        lambda t: write(t / "phases.nii.gz", np.stack([hu_array()] * 2)), "4 dimensions"
    ),
    "colours": BadInput(_rgb, "3 values per voxel"),
    "complex numbers": BadInput(_complex, "complex numbers"),
    "too few voxels": BadInput(
        lambda t: write(t / "tiny.nii", hu_array()[:, ::4, ::4]), "voxels across the body"
    ),
    "spacing in micrometres": BadInput(
        lambda t: _overwrite(
            _overwrite(write(t / "huge.nii"), 88, struct.pack("<f", 5000.0)),
            252,
            struct.pack("<2h", 1, 0),
        ),
        "at most 20 mm",
    ),
    "8-bit picture": BadInput(
        lambda t: write(t / "grey.nii", np.clip((hu_array() + 160) / 2, 0, 255).astype(np.uint8)),
        _NOT_HU,
    ),
    "offset of 1024": BadInput(lambda t: write(t / "offset.nii", hu_array() + 1024), _NOT_HU),
    "offset of 1024, padded": BadInput(_padded_offset, _NOT_HU),
    "MR values": BadInput(
        lambda t: write(t / "mr.nii", ((hu_array() + 1000) * 0.7 - 20).astype(np.int16)), _NOT_HU
    ),
    "all air": BadInput(
        lambda t: write(t / "air.nii", np.full((24, 64, 72), -1000, np.int16)), "no patient found"
    ),
    "NaN nii": BadInput(lambda t: _with(t, "holes.nii", np.nan), "NaN or infinite"),
    "NaN nii.gz": BadInput(lambda t: _with(t, "holes.nii.gz", np.nan), "NaN or infinite"),
    "NaN nrrd": BadInput(lambda t: _with(t, "holes.nrrd", np.nan), "3 voxels are NaN"),
    "infinite mha": BadInput(
        lambda t: _with(t, "infinite.mha", np.inf), "3 voxels are NaN or infinite"
    ),
    "DICOM slice alone": BadInput(
        lambda t: _dicom(t, "alone", skip=tuple(range(1, 24))) / "IM000.dcm", _FEW
    ),
    "DICOM truncated": BadInput(_truncated_dicom, "slices are missing .*; IM010.dcm is damaged"),
    "DICOM with text in it": BadInput(
        _text_among_dicom, "slices are missing .*; IM010.dcm is damaged or not DICOM"
    ),
    "DICOM of MR": BadInput(
        lambda t: _dicom(t, "mr", tags={"0008|0060": "MR"}), "only 24 x modality MR"
    ),
    "DICOM localizers": BadInput(
        lambda t: _dicom(t, "scout", tags={"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}),
        "only 24 x localizers",
    ),
    "DICOM colour captures": BadInput(_colour_captures, "no CT series found"),
    "DICOM missing slice": BadInput(lambda t: _dicom(t, "gap", skip=(11,)), "slices are missing"),
    "DICOM uneven spacing": BadInput(_uneven, "unevenly spaced"),
    "DICOM gantry tilt": BadInput(
        lambda t: _dicom(t, "tilt", shift_per_slice=(0.0, 1.0, 0.0)), "tilt of 11.3 degrees"
    ),
    "DICOM two patients": BadInput(_two_patients, "2 patients"),
    "DICOM ambiguous positions": BadInput(_ambiguous_positions, "same position"),
}


def _touch(path: Path) -> Path:
    path.touch()
    return path


def _beside(build: Callable[[Path], Path]) -> Callable[[Path], tuple[Path, Path]]:
    """The mask made by `build`, and a valid CT."""
    return lambda folder: (write(folder / "ct.nii.gz"), build(folder))


def _far_away(folder: Path) -> Path:
    mask = image(liver_array())
    mask.SetOrigin((2000.0, 2000.0, 2000.0))
    sitk.WriteImage(mask, str(folder / "far.nii.gz"))
    return folder / "far.nii.gz"


def _layers(folder: Path) -> Path:
    path = folder / "layers.seg.nrrd"
    sitk.WriteImage(image(np.stack([liver_array()] * 2, axis=-1), is_vector=True), str(path))
    return path


def _block(folder: Path, name: str, rows: slice, columns: slice, slices: slice) -> Path:
    mask = np.zeros_like(liver_array())
    mask[slices, rows, columns] = 1
    return write(folder / name, mask)


_ALL = slice(4, 20)

BAD_MASKS: dict[str, BadInput] = {
    "missing mask": BadInput(_beside(lambda t: t / "nowhere.nii.gz"), "no such file"),
    "text as mask": BadInput(_beside(lambda t: _text(t / "mask.nii.gz")), "not a NIfTI"),
    "truncated mask": BadInput(
        _beside(lambda t: _cut(write(t / "mask.nrrd", liver_array(), compress=True))), "truncated"
    ),
    "DICOM as mask": BadInput(_beside(lambda t: _dicom(t, "mask")), "DICOM mask is not supported"),
    "probabilities": BadInput(
        _beside(lambda t: write(t / "soft.nii.gz", liver_array() * np.float32(0.7))),
        "not whole numbers",
    ),
    "NaN in a mask": BadInput(
        _beside(lambda t: write(t / "nan.nii.gz", np.where(liver_array(), np.nan, 0.0))),
        "NaN",
    ),
    "overlapping layers": BadInput(_beside(_layers), "2 values per voxel"),
    "four-dimensional mask": BadInput(
        _beside(lambda t: write(t / "mask.nii.gz", np.stack([liver_array()] * 2))), "4 dimensions"
    ),
    "empty mask": BadInput(
        _beside(lambda t: write(t / "mask.nii.gz", liver_array() * np.uint8(0))), "mask is empty"
    ),
    "mask outside the scan": BadInput(_beside(_far_away), "mask is empty"),
    "mask of a few voxels": BadInput(
        _beside(lambda t: _block(t, "dot.nii.gz", slice(20, 24), slice(20, 24), slice(8, 12))),
        "8.0 mL",
    ),
    "mask in the air": BadInput(
        _beside(lambda t: _block(t, "air.nii.gz", slice(0, 8), slice(0, 72), _ALL)),
        "-1000 HU",
    ),
    "mask on the spine": BadInput(
        _beside(lambda t: _block(t, "bone.nii.gz", slice(44, 52), slice(32, 40), _ALL)),
        "400 HU",
    ),
}
