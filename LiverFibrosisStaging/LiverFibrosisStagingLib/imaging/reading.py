"""Reading of CTs and masks in all supported formats; damaged files are refused.

ITK silently reads a truncated or corrupted NIfTI file, turns a spacing of 0 or NaN into 1 mm, a
negative spacing into a flip, and NaN voxels into 0. `nifti_header`, `text_headers` and `pixel_data`
therefore check the files.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import Cancelled, CancelToken, StagingError, cancellable, check_cancel
from .dicom_files import is_dicom, path_of_series
from .dicom_series import FILES_KEY, read_dicom
from .itk_files import itk_path, quiet
from .nifti_header import AXES_TOLERANCE, NOT_ORTHOGONAL, check_nifti
from .nifti_header import SUFFIXES as NIFTI
from .pixel_data import PixelData
from .text_headers import check_metaimage, check_nrrd

NOTES_KEY = "LiverFibrosisStaging.notes"
NAME_KEY = "LiverFibrosisStaging.name"  # name, in messages, of an image that is not from a file

_CHECKS: dict[tuple[str, ...], Callable[[Path], PixelData]] = {
    NIFTI: check_nifti,
    (".nrrd", ".nhdr"): check_nrrd,
    (".mha", ".mhd"): check_metaimage,
}
_FORMATS = "NIfTI (.nii, .nii.gz, .hdr), NRRD (.nrrd, .nhdr) or MetaImage (.mha, .mhd)"

# Explanations of ITK's errors, by a phrase in them.
_MEANINGS = (
    ("Zero-valued spacing", "the voxel spacing is 0 mm along an axis; it must be positive"),
    ("orthonormal", NOT_ORTHOGONAL),
    ("fread got only", "the file is truncated"),
    ("but received", "the file is truncated"),
    ("spacing (0) invalid", "the voxel spacing is 0 mm along an axis; it must be positive"),
)


def _refusing(
    read: Callable[..., sitk.Image],
) -> Callable[..., sitk.Image]:
    """Turn every error of a reader into a StagingError, and let the user cancel it.

    ITK cannot be interrupted. After a cancel, the reader's thread ends with the file or series, and
    the image is dropped; another image can be read meanwhile.
    """

    @wraps(read)
    def cancellable_reader(
        path: str | Path | Sequence[Path], cancel: CancelToken | None = None
    ) -> sitk.Image:
        return cancellable(partial(reader, path, cancel), cancel)

    def reader(path: str | Path | Sequence[Path], cancel: CancelToken | None) -> sitk.Image:
        given, path = path, path_of_series(path)
        try:
            for each in [path] if isinstance(given, str | Path) else given:
                if not each.exists():
                    raise StagingError(f"{each}: no such file or folder.")
                if not (each.is_file() or each.is_dir()):
                    raise StagingError(f"{each}: neither a file nor a folder.")
            if not isinstance(given, str | Path):
                return read([file.absolute() for file in given], cancel)
            return read(path.absolute(), cancel)  # so that "." has a name
        except (StagingError, Cancelled):
            raise
        except OSError as error:
            raise StagingError(f"{path.name}: cannot be opened ({error.strerror}).") from error
        except MemoryError as error:
            raise StagingError(f"{path.name}: too large for this computer's memory.") from error
        except Exception as error:  # ITK, zlib, struct and numpy raise many kinds
            raise StagingError(f"{path.name}: {_meaning(str(error))}.") from error

    return cancellable_reader


@_refusing
def read_ct(path: Path | Sequence[Path], cancel: CancelToken | None = None) -> sitk.Image:
    """A CT as a 3-D scalar image in HU, in the file's own pixel type and geometry (LPS, mm).

    path: a DICOM folder (searched recursively; the best series is chosen, see
    `dicom_series.find_series`), one DICOM file (its series in the same folder), the DICOM files of
    one series, NIfTI, NRRD or MetaImage. The image's metadata are `dicom_files.KEPT_TAGS` and the
    numbers of `body.body_of`, if present in the file, the notes for the user (see `notes`) and the
    paths of DICOM files (see `source_files`); nothing else that identifies the patient.

    cancel: asked several times a second, also while ITK reads, which cannot be interrupted: its
    thread then ends with the file, and the image is dropped. Raises StagingError if the path cannot
    be read as one intact volume, and Cancelled.
    """
    if not isinstance(path, Path) or is_for_dicom(path):
        image, found = read_dicom(path, cancel)
        if found:
            image.SetMetaData(NOTES_KEY, "\n".join(found))
        return image
    image, placed = _read_volume(path, cancel)
    _strip(image, keep=())
    if not placed:
        image.SetMetaData(
            NOTES_KEY,
            "The file does not give the patient's orientation; left and right, front and back, or "
            "head and feet may be swapped.",
        )
    return image


@_refusing
def read_mask(path: Path, cancel: CancelToken | None = None) -> sitk.Image:
    """A label image (3-D, integer labels, uint8 where they fit) from NIfTI, NRRD or MetaImage.

    A Slicer segmentation (.seg.nrrd) of one layer keeps its "Segment..." metadata. cancel: as for
    `read_ct`. Raises StagingError if the file cannot be read as one intact volume of labels, and
    Cancelled.
    """
    if is_for_dicom(path):
        raise StagingError(
            f"{path.name}: a DICOM mask is not supported; a {_FORMATS} file is needed."
        )
    image, _ = _read_volume(path, cancel)
    _strip(image, keep=("Segment",))
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f":
        # Slice by slice; this also refuses NaN, which is not equal to itself.
        if not all((part == np.rint(part)).all() for part in values):
            raise StagingError(
                f"{path.name}: contains values that are not whole numbers, so it is not a mask; "
                "labels (0 outside) are needed."
            )
        if max(values.max(), -values.min()) > np.iinfo(np.int32).max:
            raise StagingError(f"{path.name}: contains {values.max():g}, which is not a label.")
        image = _cast(image, sitk.sitkInt32)
        values = sitk.GetArrayViewFromImage(image)
    if values.dtype != np.uint8 and values.min() >= 0 and values.max() <= 255:
        image = _cast(image, sitk.sitkUInt8)
    return image


def notes(image: sitk.Image) -> tuple[str, ...]:
    """Notes for the user on how the image was read."""
    if not image.HasMetaDataKey(NOTES_KEY):
        return ()
    return tuple(image.GetMetaData(NOTES_KEY).split("\n"))


def source_files(image: sitk.Image) -> tuple[Path, ...]:
    """The DICOM files of an image's slices, in their order; none if it is not from DICOM files."""
    if not image.HasMetaDataKey(FILES_KEY):
        return ()
    return tuple(map(Path, json.loads(image.GetMetaData(FILES_KEY))))


def is_for_dicom(path: Path) -> bool:
    """Whether `read_ct` reads a path as DICOM: a folder, .dcm, DICOMDIR or its file prefix."""
    named = path.suffix.lower() == ".dcm" or path.name.upper() == "DICOMDIR"
    return path.is_dir() or named or is_dicom(path)


def check_header(path: Path) -> PixelData:
    """Check a file's header before ITK reads it, since some headers crash ITK; returns the pixels.

    Raises StagingError for an unknown format, an invalid header, and a file too short for it.
    """
    check = _header_check(path)
    if check is None:
        raise StagingError(f"{path.name}: unknown format; {_FORMATS} or DICOM is needed.")
    if path.stat().st_size == 0:
        raise StagingError(f"{path.name}: the file is empty.")
    pixels = check(path)
    pixels.check_size()
    return pixels


def _header_check(path: Path) -> Callable[[Path], PixelData] | None:
    name = path.name.lower()
    return next((check for ends, check in _CHECKS.items() if name.endswith(ends)), None)


def _read_volume(path: Path, cancel: CancelToken | None) -> tuple[sitk.Image, bool]:
    """One intact 3-D scalar image of a file, and whether the file gives the orientation."""
    pixels = check_header(path)
    image = _three_dimensional(_read_checked(path, pixels, cancel), path.name)
    return _checked_axes(image, path.name), pixels.placed


def _read_checked(path: Path, pixels: PixelData, cancel: CancelToken | None) -> sitk.Image:
    """The image as ITK reads it; its pixels are checked besides."""
    with quiet(), ThreadPoolExecutor(1) as pool:
        # A check that has to expand the pixels itself runs in parallel: ITK and zlib both release
        # the interpreter's lock.
        check = pixels.check if pixels.as_stored else pool.submit(pixels.check).result
        if _header_check(path) is check_metaimage:  # MetaIO prints errors to the console
            check()
        try:
            image = sitk.ReadImage(itk_path(path))
        except RuntimeError as error:
            check()
            raise StagingError(f"{path.name}: {_meaning(str(error))}.") from error
        check_cancel(cancel)
        if pixels.as_stored:
            pixels.check(sitk.GetArrayViewFromImage(image))
        else:
            check()
    return image


def _meaning(itk_error: str) -> str:
    for phrase, meaning in _MEANINGS:
        if phrase in itk_error:
            return meaning
    return f"cannot be read; an intact {_FORMATS} file is needed"


def _three_dimensional(image: sitk.Image, name: str) -> sitk.Image:
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise StagingError(
            f"{name}: has {image.GetNumberOfComponentsPerPixel()} values per voxel (colours, or "
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
        raise StagingError(f"{name}: contains complex numbers; HU or labels are needed.")
    return image


def _checked_axes(image: sitk.Image, name: str) -> sitk.Image:
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if not np.allclose(direction.T @ direction, np.eye(3), atol=AXES_TOLERANCE):
        raise StagingError(f"{name}: {NOT_ORTHOGONAL}.")
    # Rounded, since formats store different numbers of digits.
    image.SetDirection((np.round(direction, 10) + 0.0).ravel().tolist())
    return image


def _strip(image: sitk.Image, keep: tuple[str, ...]) -> None:
    """Erase free text, which may name a patient; keys with a prefix in `keep` stay."""
    for key in image.GetMetaDataKeys():
        if not key.startswith(keep or ("\0",)):
            image.EraseMetaData(key)


def _cast(image: sitk.Image, pixel_id: int) -> sitk.Image:
    """Like sitk.Cast, but keeps the metadata."""
    cast = sitk.Cast(image, pixel_id)
    for key in image.GetMetaDataKeys():
        cast.SetMetaData(key, image.GetMetaData(key))
    return cast
