"""Codes in place of patients' identifiers, and the key file that connects the two."""

import csv
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.files import write_file

COLUMNS = ("code", "patient")
WARNING = "identifies the patients; keep it where the images are, and never hand it on"
# With ten times as many codes as patients, a new code is found after few draws.
_DIGITS, _SPARE = 4, 10


def codes_of(patients: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """Patient -> code, such as P4711: that of `known`, or else one drawn at random.

    So neither the codes nor their order tell anything about identifiers, names or dates.
    """
    codes, wanted = dict(known), sorted(set(patients))
    taken = set(codes.values())
    digits = max(_DIGITS, len(str(_SPARE * len({*codes, *wanted}))))
    for patient in wanted:
        while patient not in codes:
            code = f"P{secrets.randbelow(10**digits - 1) + 1:0{digits}d}"
            if code not in taken:
                codes[patient] = code
                taken.add(code)
    return codes


def read_key(path: Path) -> dict[str, str]:
    """Patient -> code of a key file; empty if there is no such file. Raises StagingError."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            header, *rows = [tuple(row) for row in csv.reader(stream)] or [()]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StagingError(f"{path}: {error.strerror}; a key file is needed.") from None
    except (UnicodeDecodeError, csv.Error):
        header, rows = (), []
    codes = {row[1]: row[0] for row in rows if len(row) == len(COLUMNS)}
    if header != COLUMNS or len(set(codes.values())) != len(rows):
        raise StagingError(
            f"{path}: not a key file written by this command; another name is needed."
        )
    return codes


def check_place(key: Path, folder: Path) -> None:
    """Refuse a key file in the folder of the manifest, or below it, by a StagingError."""
    if key.resolve().is_relative_to(folder.resolve()):
        raise StagingError(
            f"{key}: in the folder of the manifest, which is handed on with it; a place outside "
            "is needed, since the key identifies the patients."
        )


def write_key(path: Path, codes: Mapping[str, str]) -> None:
    """Write a key file, by code, that only its owner may read. Raises StagingError."""

    def write(partial: Path) -> None:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", newline="", encoding="utf-8") as stream:
            rows = sorted((code, patient) for patient, code in codes.items())
            csv.writer(stream).writerows([COLUMNS, *rows])

    write_file(path, write)
