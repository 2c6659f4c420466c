"""Reading CTs and masks: one call for every format, and a clear refusal for what is damaged.

ITK reads a cut-off or corrupted NIfTI without a word, turns a spacing of 0 or NaN into 1 mm, a
negative one into a flip and voxels that are NaN into 0. What it does not say is checked here.
"""

import gzip
import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from .dicom_series import is_dicom, quiet, read_dicom
from .errors import StagingError

NOTES_KEY = "LiverFibrosisStaging.notes"
NAME_KEY = "LiverFibrosisStaging.name"  # what messages call an image that is no file

_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr) or MetaImage (.mha, .mhd)"
_AXES_TOLERANCE = 1e-2  # cosine between axes: 0.6 degrees, far above rounding in a header

_NIFTI_CODES = ("qform_code", "sform_code")  # both 0: the header gives no orientation
_NIFTI_FLOATS = {16: "f4", 64: "f8"}  # data type codes of the header
_ANY_ZLIB = 47  # zlib's window bits: gzip or zlib, found by itself
_GZIP_MAGIC = b"\x1f\x8b"

# What ITK's errors mean for the user, by a phrase in them.
_MEANINGS = (
    ("Zero-valued spacing", "the voxel spacing is 0 mm along an axis; it has to be positive"),
    ("orthonormal", "its axes are not at right angles; resample it to an upright grid first"),
    ("fread got only", "the file is truncated"),
    ("but received", "the file is truncated"),
    ("spacing (0) invalid", "the voxel spacing is 0 mm along an axis; it has to be positive"),
)


def read_ct(path: str | Path) -> sitk.Image:
    """A CT as a 3-D scalar image in HU, in the file's own pixel type and geometry (LPS, mm).

    path: a DICOM folder (searched recursively; the fittest series is chosen, see
    `dicom_series.find_series`), one DICOM file (its series in the same folder), NIfTI, NRRD or
    MetaImage. The image's metadata are `dicom_series.KEPT_TAGS`, where the file has them, and the
    notes for the user (see `notes`); nothing that identifies the patient.

    Raises StagingError where the path cannot be read as one intact volume.
    """
    path = _existing(path)
    if path.is_dir() or is_dicom(path) or path.suffix.lower() == ".dcm":
        image, found = read_dicom(path)
        if found:
            image.SetMetaData(NOTES_KEY, "\n".join(found))
        return image
    image = _read_volume(path)
    codes = [image.GetMetaData(key) for key in _NIFTI_CODES if image.HasMetaDataKey(key)]
    _strip(image, keep=())
    if codes == ["0", "0"]:
        image.SetMetaData(
            NOTES_KEY,
            f"{path.name} does not say how the patient lies in it; right, front and head may be "
            "mistaken.",
        )
    return image


def read_mask(path: str | Path) -> sitk.Image:
    """A label image (3-D, integer labels, uint8 where they fit) from NIfTI, NRRD or MetaImage.

    A Slicer segmentation (.seg.nrrd) of one layer keeps its "Segment..." metadata. Raises
    StagingError where the file cannot be read as one intact volume of labels.
    """
    path = _existing(path)
    if path.is_dir() or is_dicom(path) or path.suffix.lower() == ".dcm":
        raise StagingError(f"{path.name}: a mask has to be a {_FORMATS} file, not DICOM.")
    image = _read_volume(path)
    _strip(image, keep=("Segment",))
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f":
        # NaN is unequal to itself, so that it is refused here too.
        if not (values == np.rint(values)).all():
            raise StagingError(
                f"{path.name}: holds values between whole numbers, so it is not a mask; labels "
                "(0 outside) are needed."
            )
        image = _cast(image, sitk.sitkInt32)
        values = sitk.GetArrayViewFromImage(image)
    if values.dtype != np.uint8 and values.min() >= 0 and values.max() <= 255:
        image = _cast(image, sitk.sitkUInt8)
    return image


def notes(image: sitk.Image) -> tuple[str, ...]:
    """What the user should know about how the image was read; empty where nothing is."""
    if not image.HasMetaDataKey(NOTES_KEY):
        return ()
    return tuple(image.GetMetaData(NOTES_KEY).split("\n"))


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise StagingError(f"{path}: no such file or folder.")
    return path.absolute()  # so that "." has a name


def _read_volume(path: Path) -> sitk.Image:
    """One intact 3-D scalar image from a NIfTI, NRRD or MetaImage file."""
    if not path.name.lower().endswith(_SUFFIXES):
        raise StagingError(f"{path.name}: not a known format; {_FORMATS} or DICOM is needed.")
    if path.stat().st_size == 0:
        raise StagingError(f"{path.name}: the file is empty.")
    check_pixels = _check_header(path)
    # ITK and zlib both work outside the interpreter's lock: the check costs no time of its own.
    with quiet(), ThreadPoolExecutor(1) as pool:
        checked = pool.submit(check_pixels)
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            checked.result()
            raise StagingError(f"{path.name}: {_meaning(str(error))}.") from error
        checked.result()
    return _upright(_three_dimensional(image, path.name), path.name)


def _meaning(itk_error: str) -> str:
    for phrase, meaning in _MEANINGS:
        if phrase in itk_error:
            return meaning
    return f"cannot be read; an intact {_FORMATS} file is needed"


def _three_dimensional(image: sitk.Image, name: str) -> sitk.Image:
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise StagingError(
            f"{name}: holds {image.GetNumberOfComponentsPerPixel()} values per voxel (colours, or "
            "overlapping layers of a segmentation); one value per voxel is needed."
        )
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = sitk.Extract(image, (*image.GetSize()[:-1], 0))
    if image.GetDimension() != 3:
        size = " x ".join(str(n) for n in image.GetSize())
        raise StagingError(
            f"{name}: has {image.GetDimension()} dimensions ({size}); one 3-D volume is needed."
        )
    if "complex" in image.GetPixelIDTypeAsString():
        raise StagingError(f"{name}: holds complex numbers; HU or labels are needed.")
    return image


def _upright(image: sitk.Image, name: str) -> sitk.Image:
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if not np.allclose(direction.T @ direction, np.eye(3), atol=_AXES_TOLERANCE):
        raise StagingError(f"{name}: {_MEANINGS[1][1]}.")
    # Formats keep more or fewer digits; beyond the tenth, two of them differ.
    image.SetDirection((np.round(direction, 10) + 0.0).ravel().tolist())
    return image


def _strip(image: sitk.Image, keep: tuple[str, ...]) -> None:
    """Erase free text that may name a patient; keys that begin as in `keep` stay."""
    for key in image.GetMetaDataKeys():
        if not key.startswith(keep or ("\0",)):
            image.EraseMetaData(key)


def _cast(image: sitk.Image, pixel_id: int) -> sitk.Image:
    """Like sitk.Cast, with the metadata, which that drops."""
    cast = sitk.Cast(image, pixel_id)
    for key in image.GetMetaDataKeys():
        cast.SetMetaData(key, image.GetMetaData(key))
    return cast


def _check_header(path: Path) -> Callable[[], None]:
    """Refuse a header that ITK would read without a word; returns the check of the pixels."""
    suffix = path.suffix.lower()
    if suffix in (".nii", ".gz"):
        return _check_nifti(path)
    header, offset = _text_header(path)
    if suffix in (".nrrd", ".nhdr"):
        return _check_nrrd(path, header, offset)
    return _check_metaimage(path, header, offset)


def _check_nifti(path: Path) -> Callable[[], None]:
    """NIfTI-1 header: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h."""
    zipped = path.suffix.lower() == ".gz"
    try:
        with (gzip.open if zipped else open)(path, "rb") as file:
            header = file.read(348)
    except (OSError, EOFError, zlib.error) as error:
        raise StagingError(f"{path.name}: not a NIfTI file, or damaged.") from error
    order = {b"\x5c\x01\0\0": "<", b"\0\0\x01\x5c": ">"}.get(header[:4])
    if order is None or len(header) < 348 or header[344:347] not in (b"n+1", b"ni1"):
        raise StagingError(f"{path.name}: not a NIfTI-1 file.")
    dims = struct.unpack_from(f"{order}8h", header, 40)
    kind, bits = struct.unpack_from(f"{order}2h", header, 70)
    spacing = struct.unpack_from(f"{order}3f", header, 80)
    data_offset = struct.unpack_from(f"{order}f", header, 108)[0]
    _check_spacing(spacing, path.name)
    if struct.unpack_from(f"{order}h", header, 254)[0] > 0:
        axes = np.array(struct.unpack_from(f"{order}12f", header, 280)).reshape(3, 4)[:, :3]
        cosines = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-9)
        if not np.allclose(cosines.T @ cosines, np.eye(3), atol=_AXES_TOLERANCE):
            raise StagingError(f"{path.name}: {_MEANINGS[1][1]}.")
    voxels = int(np.prod([max(n, 1) for n in dims[1 : 1 + dims[0]]], dtype=np.int64))
    needed = int(data_offset) + voxels * bits // 8
    if not zipped:
        _check_size(path, needed)

    def check_pixels() -> None:
        if zipped:
            _check_stream(path, 0, needed)
        if kind in _NIFTI_FLOATS:
            with (gzip.open if zipped else open)(path, "rb") as file:
                file.seek(int(data_offset))
                _check_finite(file, np.dtype(order + _NIFTI_FLOATS[kind]), path.name)

    return check_pixels


def _check_nrrd(path: Path, header: dict[str, str], offset: int) -> Callable[[], None]:
    """NRRD header: https://teem.sourceforge.net/nrrd/format.html. ITK itself reports cut files."""
    if "spacings" in header:
        _check_spacing(header["spacings"].split(), path.name)
    elif header and "space directions" not in header:
        raise StagingError(f"{path.name}: the header has no voxel spacing.")
    if header.get("encoding", "").lower() not in ("gz", "gzip"):
        return _nothing
    data = header.get("data file") or header.get("datafile")
    if data is None:
        return lambda: _check_stream(path, offset)
    return lambda: _check_stream(_data_file(path, data), 0)


def _check_metaimage(path: Path, header: dict[str, str], offset: int) -> Callable[[], None]:
    """MetaImage header: https://docs.itk.org/en/latest/learn/metaio.html."""
    if header.get("ObjectType", "Image") != "Image" or "ElementDataFile" not in header:
        raise StagingError(f"{path.name}: not a MetaImage file.")
    spacing = header.get("ElementSpacing") or header.get("ElementSize")
    if spacing is None:
        raise StagingError(f"{path.name}: the header has no voxel spacing.")
    _check_spacing(spacing.split(), path.name)
    inside = header["ElementDataFile"] == "LOCAL"
    data = path if inside else _data_file(path, header["ElementDataFile"])
    offset = offset if inside else 0
    if header.get("CompressedData", "False") == "True":
        _check_size(data, offset + int(header.get("CompressedDataSize", 0)))
        return lambda: _check_stream(data, offset)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise StagingError(f"{path.name}: {_meaning(str(error))}.") from error
    voxels = int(np.prod(reader.GetSize(), dtype=np.int64)) * reader.GetNumberOfComponents()
    bytes_each = sitk.GetArrayViewFromImage(sitk.Image([1, 1], reader.GetPixelID())).itemsize
    _check_size(data, offset + voxels * bytes_each)
    return _nothing


def _text_header(path: Path) -> tuple[dict[str, str], int]:
    """Fields of an NRRD or MetaImage header, and where the pixels begin; empty for other files."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        first = file.readline(200)
        if not first.startswith((b"NRRD", b"ObjectType", b"NDims", b"Comment")):
            return fields, 0
        file.seek(0)
        for line in file:
            key, separator, value = line.decode("latin-1").partition(
                ":" if first.startswith(b"NRRD") else "="
            )
            if not line.strip():
                break
            if separator:
                fields[key.strip()] = value.lstrip("=").strip()
            if key.strip() == "ElementDataFile":
                break
        return fields, file.tell()


def _check_spacing(values: Iterable[float | str], name: str) -> None:
    try:
        spacing = [float(value) for value in values]
    except ValueError:
        spacing = []
    if not spacing or not all(0 < step < np.inf for step in spacing):
        found = " x ".join(str(value) for value in values)
        raise StagingError(f"{name}: voxel spacing {found} mm; it has to be positive.")


def _data_file(path: Path, name: str) -> Path:
    data = path.parent / name
    if not data.is_file():
        raise StagingError(f"{path.name}: its data file {name} is missing.")
    return data


def _check_size(path: Path, needed: int) -> None:
    found = path.stat().st_size
    if found < needed:
        raise StagingError(
            f"{path.name}: the file is truncated: {found} of {needed} bytes are there."
        )


def _check_stream(path: Path, offset: int, needed: int = 0) -> None:
    """Refuse a gzip or zlib stream that ends early, fails its checksum or holds too little."""
    expanded, decoder = 0, zlib.decompressobj(_ANY_ZLIB)
    with open(path, "rb") as file:
        file.seek(offset)
        while chunk := file.read(1 << 18):
            try:
                while chunk:
                    expanded += len(decoder.decompress(chunk))
                    chunk = decoder.unused_data
                    if decoder.eof and chunk[:2] == _GZIP_MAGIC:  # another member follows
                        decoder = zlib.decompressobj(_ANY_ZLIB)
                    elif decoder.eof:
                        break
            except zlib.error as error:
                raise StagingError(
                    f"{path.name}: the file is damaged (its checksum fails)."
                ) from error
    if not decoder.eof or expanded < needed:
        raise StagingError(f"{path.name}: the file is truncated.")


def _check_finite(file: BinaryIO, dtype: np.dtype, name: str) -> None:
    while chunk := file.read(1 << 20):
        values = np.frombuffer(chunk[: len(chunk) // dtype.itemsize * dtype.itemsize], dtype)
        if not np.isfinite(values).all():
            raise StagingError(
                f"{name}: holds NaN or infinite values; every voxel needs a finite one."
            )


def _nothing() -> None:
    """Nothing about the pixels is left to check."""
