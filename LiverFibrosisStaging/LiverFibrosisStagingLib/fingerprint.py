"""Hash of everything a result depends on: a result is reused only if the hash is the same.

Files are hashed completely. SHA-256 processes 0.3 to 2 GB/s, a fraction of a second for a CT of
100 MB, compared with seconds for staging. Size and time of a file are not sufficient: they can be
the same after a mask was corrected, or a CT was copied over another.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import StagingError
from .imaging.dicom_files import files_of_series, is_dicom
from .imaging.masks import file_and_labels

TEXT_HEADERS = (".mha", ".mhd", ".nrrd", ".nhdr")
_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 20


def fingerprint(
    ct: Path | Sequence[Path],
    liver: str | Path | None,
    spleen: str | Path | None,
    segments: Path | None = None,
    **settings: Any,
) -> str:
    """SHA-256 of a case's files and settings, in hexadecimal.

    The files are those of the CT (for DICOM, all DICOM files of the folder, the files given, or one
    file and those that may belong to its series) and the masks, with the data files referenced by
    headers; their names and folders do not matter. segments: a file, or a folder, of which the
    names count because they tell the segments. settings: anything else that the result depends on,
    such as the models' hashes and the options, as JSON values. Raises StagingError for a file that
    exists but cannot be read.
    """
    of_ct = [sha256_of(file) for file in files_of_ct(ct)]
    in_order = isinstance(ct, Path) and not ct.is_dir()
    inputs: dict[str, Any] = {"ct": of_ct if in_order else sorted(of_ct)}
    for organ, mask in (("liver", liver), ("spleen", spleen)):
        if mask is not None:
            file, labels = file_and_labels(mask)
            inputs[organ] = [labels, *(sha256_of(part) for part in _with_data(file))]
    if segments is not None:
        files = sorted(segments.iterdir()) if segments.is_dir() else [segments]
        names = [file.name if segments.is_dir() else "" for file in files]
        inputs["segments"] = [
            [name, *map(sha256_of, _with_data(file))] for name, file in zip(names, files)
        ]
    text = json.dumps({"inputs": inputs, "settings": settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def files_of_ct(ct: Path | Sequence[Path]) -> Iterable[Path]:
    """The files of a CT: those of a DICOM series, or an image file with its data files."""
    if not isinstance(ct, Path):
        return ct
    if ct.is_dir():
        files = (Path(folder, name) for folder, _, names in os.walk(ct) for name in names)
        return filter(_is_dicom, files)
    if not _is_dicom(ct):
        return _with_data(ct)
    try:  # one file stands for its series in its folder
        found = files_of_series(ct)
    except StagingError:  # damaged: refused when it is staged
        return [ct]
    return [ct, *sorted([*(each.path for each in found.slices), *found.damaged])]


def _is_dicom(file: Path) -> bool:
    return is_dicom(file) or (file.suffix.lower() == ".dcm" and file.is_file())


def _with_data(file: Path) -> Iterator[Path]:
    """An image file and, if it is a header, the data files that it references."""
    if not file.is_file():
        return  # reported when it is staged
    yield file
    if file.suffix.lower() not in TEXT_HEADERS:
        return
    with _opened(file) as stream:
        head = stream.read(_LONGEST_HEADER)
    # MetaImage: "ElementDataFile = a.raw"; NRRD: "data file: a.raw"; both also "LIST" followed by a
    # name per line, or "a%03d.raw 1 90 1". In NRRD, an empty line separates header and data.
    text = re.split(rb"\r?\n\r?\n|\0", head, maxsplit=1)[0].decode("utf-8", "surrogateescape")
    found: set[str] = set()
    for line in text.splitlines():
        for name in (line.strip(), re.split("[:=]", line, maxsplit=1)[-1].lstrip("=").strip()):
            place = os.path.join(file.parent, name)
            if name and os.path.isfile(place):
                found.add(place)
            elif "%" in name:
                pattern = re.sub(r"%\d*[di]", "*", name.split()[0])
                found.update(glob.glob(pattern, root_dir=file.parent))
    yield from sorted(file.parent / name for name in found)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises StagingError if it cannot be read."""
    digest = hashlib.sha256()
    with _opened(file) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with file.open("rb") as stream:
            yield stream
    except OSError as error:
        raise StagingError(f"{file.name}: cannot be read ({error.strerror}).") from None
