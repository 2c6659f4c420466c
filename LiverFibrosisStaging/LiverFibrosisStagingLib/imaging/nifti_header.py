"""Checks of NIfTI-1 headers before ITK reads them, since ITK repairs damaged ones silently.

https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h describes every field.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..errors import StagingError
from .pixel_data import GZIP, GZIP_MAGIC, PixelData

NOT_ORTHOGONAL = "its axes are not at right angles; resample it to an orthogonal grid first"
AXES_TOLERANCE = 1e-2  # cosine between axes: 0.6 degrees, far above rounding errors in headers
SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")

# Bytes of each data type that ITK reads.
_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8}
_BYTES |= {1280: 8, 1792: 16, 2304: 4}
_FLOATS = {16: "f4", 64: "f8"}
_HEADER_BYTES = 348
_SCANNER = 1  # qform and sform code for scanner coordinates
_SPACING_TOLERANCE = 0.01


def check_nifti(path: Path) -> PixelData:
    """The pixels of a NIfTI-1 file, or of a pair of .hdr and .img.

    Raises StagingError if it is not NIfTI-1, or its header is damaged or inconsistent.
    """
    name = path.name
    header_file, data_file = _files(path)
    header, _ = _head(header_file, name)
    order = {b"\x5c\x01\0\0": "<", b"\0\0\x01\x5c": ">"}.get(header[:4])
    if header[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        raise StagingError(f"{name}: a NIfTI-2 file; NIfTI-1, NRRD or MetaImage is needed.")
    if order is None or len(header) < _HEADER_BYTES:
        raise StagingError(f"{name}: not a NIfTI-1 file, or damaged.")
    if header[344:348] not in (b"n+1\0", b"ni1\0"):
        raise StagingError(
            f"{name}: not a NIfTI-1 file (Analyze files do not give the patient's orientation)."
        )

    def field(offset: int, form: str) -> tuple:
        return struct.unpack_from(order + form, header, offset)

    kind = field(70, "h")[0]
    if kind not in _BYTES:
        raise StagingError(f"{name}: the data type code {kind} is unknown; the header is damaged.")
    voxels = math.prod(_size(field(40, "8h"), name))
    check_spacing(field(80, "3f"), name)
    scaling = field(112, "2f")
    _check_scaling(*scaling, name)
    _check_place(field, name)
    single = header_file == data_file
    start = _pixels_begin(field(108, "f")[0], _HEADER_BYTES if single else 0, name)
    zipped = _head(data_file, name)[1]
    return PixelData(
        files=(data_file,),
        offset=0 if zipped else start,
        needed=voxels * _BYTES[kind] + (start if zipped else 0),
        stream=GZIP if zipped else 0,
        skipped=start if zipped else 0,
        floats=np.dtype(order + _FLOATS[kind]) if kind in _FLOATS else None,
        as_stored=zipped and scaling in ((0, 0), (1, 0)),
        placed=max(field(252, "2h")) > 0,
    )


def check_spacing(values: Iterable[float | str], name: str) -> None:
    """Check that a voxel spacing (mm) is positive and finite. Raises StagingError."""
    values = tuple(values)
    try:
        spacing = [float(value) for value in values]
    except ValueError:
        spacing = []
    if not spacing or not all(0 < step < math.inf for step in spacing):
        found = " x ".join(str(value)[:20] for value in values[:4])
        raise StagingError(f"{name}: voxel spacing {found} mm; positive numbers are needed.")


def _files(path: Path) -> tuple[Path, Path]:
    """The file with the header, and the one with the pixels."""
    stem, dot, rest = path.name.rpartition(".nii")
    if dot and rest in ("", ".gz"):
        return path, path
    stem = re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.I)
    pair = []
    for ending in (".hdr", ".img"):
        wanted = [f"{stem}{ending}{zipped}".lower() for zipped in ("", ".gz")]
        found = [p for p in sorted(path.parent.iterdir()) if p.name.lower() in wanted]
        if not found:
            raise StagingError(
                f"{path.name}: the other file of the pair (its {ending}) is missing."
            )
        pair.append(path if path in found else found[0])
    return pair[0], pair[1]


def _head(path: Path, name: str) -> tuple[bytes, bool]:
    """The first bytes of a file, decompressed if necessary, and whether it is compressed."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == GZIP_MAGIC
        if zipped and path.suffix.lower() != ".gz":
            raise StagingError(f"{name}: the file is compressed; its name must end in .gz.")
        with (gzip.open if zipped else open)(path, "rb") as file:
            return file.read(_HEADER_BYTES), zipped
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StagingError(f"{name}: not a NIfTI-1 file, or damaged.") from error


def _size(dims: tuple[int, ...], name: str) -> list[int]:
    """Number of voxels along each axis."""
    if not 1 <= dims[0] <= 7:
        raise StagingError(f"{name}: {dims[0]} dimensions in the header; it is damaged.")
    size = list(dims[1 : 1 + dims[0]])
    # Axes beyond the third are often 0.
    if min(size[:3]) < 1 or min(size) < 0:
        raise StagingError(
            f"{name}: {' x '.join(map(str, size))} voxels in the header; it is damaged."
        )
    return [max(n, 1) for n in size]


def _pixels_begin(offset: float, least: int, name: str) -> int:
    if not (math.isfinite(offset) and offset == int(offset) and least <= offset < 2**31):
        raise StagingError(
            f"{name}: the pixels begin at byte {offset:g} according to the header; a whole number "
            f"of at least {least} is needed."
        )
    return int(offset)


def _check_scaling(slope: float, intercept: float, name: str) -> None:
    """A slope of 0 or NaN means no scaling, but ITK would still add the intercept."""
    none = slope == 0 or math.isnan(slope)
    if math.isinf(slope) or not (math.isfinite(intercept) or none):
        raise StagingError(
            f"{name}: the header scales values by {slope:g} and adds {intercept:g}; finite numbers "
            "are needed."
        )
    if none and math.isfinite(intercept) and intercept != 0:
        raise StagingError(
            f"{name}: the header adds {intercept:g} to values that it does not scale (slope "
            f"{slope:g}); a slope of 1 is needed."
        )


def _check_place(field: Callable[[int, str], tuple], name: str) -> None:
    """Check the form that ITK uses: the sform if it is in scanner coordinates or the only one."""
    qform, sform = field(252, "2h")
    if sform > 0 and (sform == _SCANNER or qform <= 0):
        rows = np.array(field(280, "12f")).reshape(3, 4)
        if not np.isfinite(rows).all():
            raise StagingError(f"{name}: the sform has numbers that are not finite.")
        axes, lengths = rows[:, :3], np.linalg.norm(rows[:, :3], axis=0)
        cosines = axes / np.maximum(lengths, 1e-9)
        if not np.allclose(cosines.T @ cosines, np.eye(3), atol=AXES_TOLERANCE):
            raise StagingError(f"{name}: {NOT_ORTHOGONAL}.")
        spacing = np.array(field(80, "3f"))
        if not np.allclose(lengths, spacing, rtol=_SPACING_TOLERANCE):
            raise StagingError(
                f"{name}: the header is inconsistent: voxels of "
                f"{' x '.join(f'{n:.4g}' for n in lengths)} mm in the sform, "
                f"{' x '.join(f'{n:.4g}' for n in spacing)} mm in pixdim."
            )
    elif qform > 0:
        place = np.array(field(256, "6f"))
        if not np.isfinite(place).all() or np.linalg.norm(place[:3]) > 1 + AXES_TOLERANCE:
            raise StagingError(
                f"{name}: the qform is not a rotation and a position; the header is damaged."
            )
