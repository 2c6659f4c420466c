"""What a staged case depends on, as one number: a result is used again only where it is the same.

Files are hashed whole. SHA-256 passes 0.3 to 2 GB/s, so a CT of 100 MB costs a fraction of a
second beside the seconds of staging; size and time of a file would cost nothing, but a mask that
was corrected, or a CT that was copied over another, can keep both.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import StagingError
from .imaging.dicom_files import is_dicom
from .imaging.masks import file_and_label

TEXT_HEADERS = (".mha", ".mhd", ".nrrd", ".nhdr")
_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 20


def fingerprint(
    ct: Path, liver: str | Path | None, spleen: str | Path | None, **settings: Any
) -> str:
    """SHA-256 of a case's files and settings, in hexadecimal.

    The files are the CT's (for DICOM, all DICOM files of the folder) and the masks', with the data
    files that headers name; their own names and places do not matter. settings: whatever else the
    result depends on, such as the models' hashes and the options, as JSON takes it. Raises
    StagingError for a file that is there and cannot be read.
    """
    of_ct = [_sha256(file) for file in _files_of_ct(ct)]
    inputs: dict[str, Any] = {"ct": sorted(of_ct) if ct.is_dir() else of_ct}
    for organ, mask in (("liver", liver), ("spleen", spleen)):
        if mask is not None:
            file, label = file_and_label(mask)
            inputs[organ] = [label, *(_sha256(part) for part in _with_data(file))]
    text = json.dumps({"inputs": inputs, "settings": settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _files_of_ct(ct: Path) -> Iterable[Path]:
    if ct.is_dir():
        files = (Path(folder, name) for folder, _, names in os.walk(ct) for name in names)
        return filter(_is_dicom, files)
    if _is_dicom(ct):  # one file stands for its series, which lies beside it
        return [ct, *sorted(file for file in ct.parent.iterdir() if _is_dicom(file))]
    return _with_data(ct)


def _is_dicom(file: Path) -> bool:
    return is_dicom(file) or (file.suffix.lower() == ".dcm" and file.is_file())


def _with_data(file: Path) -> Iterator[Path]:
    """An image file and, where it is a header, the data files that it names."""
    if not file.is_file():
        return  # staging will say so
    yield file
    if file.suffix.lower() not in TEXT_HEADERS:
        return
    with _opened(file) as stream:
        head = stream.read(_LONGEST_HEADER)
    # MetaImage: "ElementDataFile = a.raw"; NRRD: "data file: a.raw"; either "LIST" with a name a
    # line, or "a%03d.raw 1 90 1". An NRRD header that holds its data ends with an empty line.
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


def _sha256(file: Path) -> str:
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
