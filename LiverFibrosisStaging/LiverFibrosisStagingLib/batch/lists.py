"""Lists of cases: a CSV or Parquet file with a line per CT."""

import csv
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import StagingError
from ..imaging.body import Body, given_body
from .cohort import Case, named, usable_name
from .image_files import image_file
from .table_files import read_parquet

LISTS = (".csv", ".parquet")


def read_list(path: Path, pseudonyms: bool = False) -> list[Case]:
    """Cases of a CSV or Parquet file with the columns ct and, optionally, liver, spleen, case,
    segments, height_cm and weight_kg.

    Relative paths start at the file's folder. A case without a name is named after its CT, as in
    `cases.find_cases`; names in the file are kept, unless they may be those of persons. Raises
    StagingError for a file that cannot be read, and for names that occur twice, regardless of
    letter case, or lead out of the folder.
    """
    lines = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    if not lines or "ct" not in lines[0]:
        raise StagingError(
            f"The list {path} has no cases; a header with the column ct and a line per case are "
            "needed."
        )
    cases: list[Case] = []
    given: set[str] = set()
    for number, line in enumerate(lines, start=2):
        if not line["ct"]:
            raise StagingError(f"The list {path} names no CT in line {number}.")
        ct, liver, spleen, segments = (
            path.parent / line[key] if line.get(key) else None
            for key in ("ct", "liver", "spleen", "segments")
        )
        name = line.get("case", "")
        if name:
            parts = re.split(r"[\\/]", name)
            same = usable_name(name).casefold()
            if same in given or ".." in parts or not parts[0] or Path(name).is_absolute():
                raise StagingError(
                    f"The list {path} has the case name {name!r} twice, or it is not valid."
                )
            given.add(same)
        body = _body(line, f"The list {path}, line {number}")
        cases.append(Case(name, ct, liver, spleen, segments=segments, body=body))
    return named(_named_after_cts(cases, path.parent, given), path.parent, pseudonyms)


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [_texts(line) for line in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StagingError(f"Cannot read the list {path}: {error}.") from None


def _parquet(path: Path) -> list[dict[str, str]]:
    return [_texts(line) for line in read_parquet(path, "a list of CTs is needed")]


def _texts(line: dict[Any, Any]) -> dict[str, str]:
    """The cells of a line as text, "" for missing ones."""
    missing = (None, "")
    return {
        str(key): ""
        if value in missing or (isinstance(value, float) and math.isnan(value))
        else str(value).strip()
        for key, value in line.items()
    }


def _body(line: dict[str, str], where: str) -> Body | None:
    """Height and weight of a line of a list."""
    texts = [line.get(key, "") for key in ("height_cm", "weight_kg")]
    try:
        return given_body(*(float(text) if text else None for text in texts))
    except ValueError:
        raise StagingError(
            f"{where}: height and weight are {' and '.join(map(repr, texts))}; numbers in cm and "
            "kg are needed."
        ) from None
    except StagingError as refusal:
        raise StagingError(f"{where}: {refusal}") from None


def _named_after_cts(cases: list[Case], root: Path, given: set[str]) -> list[Case]:
    """Cases without a name get that of their CT, with its folder's name where ambiguous."""
    files = [image_file(case.ct) for case in cases]
    stems = [case.ct.name if file is None else file.stem for case, file in zip(cases, files)]
    count = Counter(stem.casefold() for case, stem in zip(cases, stems) if not case.name)
    count.update(given)
    found = []
    for case, stem in zip(cases, stems):
        if not case.name:
            name = Path(stem)
            if count[stem.casefold()] > 1:
                place = case.ct.parent
                inside = place.is_relative_to(root)
                name = (place.relative_to(root) if inside else Path(place.name)) / stem
            case = replace(case, name=name.as_posix())
        found.append(case)
    return found
