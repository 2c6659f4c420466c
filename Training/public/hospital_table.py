"""A hospital's table of histologies: one row for each, with the CT's or the patient's number."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cases.manifest import description
from common.tables import TableError
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import StageRange

from .dates import date_of
from .histology import Score, score_named, stages_of
from .tables import column_name, read_csv, read_sheets

# Field -> names of its column, without differences of letter case, spaces and hyphens.
COLUMNS = {
    "accession": ("accession", "accession_number", "accessionnumber", "accession_no"),
    "patient": ("patient", "patient_id", "patientid", "mrn"),
    "ct_date": ("ct_date", "date_of_ct", "scan_date", "study_date", "studydate"),
    "histology": ("histology", "stage", "fibrosis", "fibrosis_stage"),
    "score": ("score", "scoring_system", "staging_system", "system"),
    "biopsy_date": (
        "biopsy_date",
        "date_of_biopsy",
        "histology_date",
        "date_of_histology",
        "specimen_date",
    ),
    "specimen": ("specimen", "specimen_type"),
    "age": ("age", "age_at_ct"),
    "birth_date": ("birth_date", "date_of_birth", "birthdate", "dob"),
    "sex": ("sex", "gender"),
    "etiology": ("etiology", "aetiology", "cause"),
    "site": ("site", "centre", "center", "hospital"),
    "phase": ("phase", "contrast_phase"),
    "complete_liver": ("complete_liver",),
}
FREE_TEXT = ("specimen", "etiology", "site")


@dataclass(frozen=True)
class Histology:
    """A row of the table; what is empty in it is None or "".

    patient, accession: one of them at least. day: of the biopsy. stages: METAVIR, None if the row
    has no histology. label: one sentence on the stages. age: years, at the CT.
    """

    line: int
    patient: str = ""
    accession: str = ""
    ct_date: date | None = None
    stages: StageRange | None = None
    label: str = ""
    day: date | None = None
    specimen: str = ""
    age: float | None = None
    birth: date | None = None
    sex: str | None = None
    etiology: str = ""
    site: str = ""
    phase: str | None = None
    complete_liver: bool | None = None


def read_histologies(
    path: Path,
    names: Mapping[str, str] | None = None,
    score: Score | None = None,
    form: str | None = None,
) -> list[Histology]:
    """The rows of a table, CSV or Excel, in their order.

    names: field -> name of its column, where that is not among COLUMNS, or "" to leave it out;
    other columns are not read. score: of rows that name none. form: of dates (`date_of`). Raises
    TableError with all problems.
    """
    path = Path(path)
    header, rows = _table(path, names or {})
    places = _places(path, header, names or {})
    found: list[Histology] = []
    problems: list[tuple[int, str]] = []
    for line, fields in rows:
        if len(fields) != len(header):
            problems.append((line, f"{len(fields)} fields where {len(header)} are needed."))
            continue
        row = {field: "" for field in COLUMNS}
        row |= {field: fields[place] for field, place in places.items()}
        histology, wrong = _histology(line, row, score, form)
        problems += [(line, problem) for problem in wrong]
        found.append(histology)
    problems += contradictions({each: each.patient for each in found if each.patient})
    if not rows:
        raise TableError(path, ["The table has column names but no row."])
    if problems:
        raise TableError(path, by_line(problems))
    return found


def by_line(problems: list[tuple[int, str]]) -> list[str]:
    """Problems with their lines as sentences, in the order of the lines, each once."""
    return [f"line {line}: {problem}" for line, problem in sorted(set(problems))]


def contradictions(patients: Mapping[Histology, str]) -> list[tuple[int, str]]:
    """Problems of two rows of one patient, with the later line; the patient of each row is given.

    Those are different histologies on the same day, and different data on the patient.
    """
    problems = []
    first: dict[tuple[str, ...], Histology] = {}
    for each, patient in patients.items():
        for what in ("sex", "birth"):
            if getattr(each, what):
                other = first.setdefault((patient, what), each)
                if getattr(each, what) != getattr(other, what):
                    named = {"birth": "birth_date"}.get(what, what)
                    problems.append(
                        (each.line, f"{named} is not that of line {other.line}, the same patient.")
                    )
        if each.stages is not None:
            other = first.setdefault((patient, "day", str(each.day)), each)
            if other.stages != each.stages:
                problems.append(
                    (
                        each.line,
                        f"the histology is {each.stages}, but {other.stages} of the same patient "
                        f"and day in line {other.line}; one of them is needed.",
                    )
                )
    return problems


def _table(path: Path, names: Mapping[str, str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the other rows that are not empty with their lines."""
    if path.suffix.lower() not in (".xlsx", ".xlsm"):
        lines = read_csv(path)
        if not lines:
            raise TableError(path, ["The file is empty; a line with column names is needed."])
        return lines[0][1], lines[1:]
    wanted = {column_name(names.get("histology", name)) for name in COLUMNS["histology"]}
    sheets = [
        sheet for sheet in read_sheets(path) if wanted & {column_name(name) for name in sheet[0]}
    ]
    if len(sheets) != 1:
        raise TableError(
            path,
            [
                f"{len(sheets) or 'No'} sheets have a column {' or '.join(sorted(wanted))} in "
                "their first row; one is needed."
            ],
        )
    header, *rows = sheets[0]
    return header, [(line, row) for line, row in enumerate(rows, start=2) if any(row)]


def _places(path: Path, header: list[str], names: Mapping[str, str]) -> dict[str, int]:
    """The place of each field's column."""
    plain = [column_name(name) for name in header]
    places, problems = {}, []
    for field, usual in COLUMNS.items():
        if names.get(field) == "":
            continue
        wanted = (column_name(names[field]),) if field in names else usual
        found = [place for place, name in enumerate(plain) if name in wanted]
        if field in names and not found:
            problems.append(f"line 1: the column {names[field]!r} is missing.")
        elif len(found) > 1:
            which = " and ".join(repr(header[place]) for place in found)
            problems.append(
                f"line 1: the columns {which} may both be {field}; --column {field}=NAME is needed."
            )
        elif found:
            places[field] = found[0]
    for needed in (("histology",), ("biopsy_date",), ("accession", "patient")):
        if not problems and not set(needed) & set(places):
            problems.append(
                f"line 1: a column {' or '.join(needed)} is needed; --column {needed[0]}=NAME "
                "names one."
            )
    if problems:
        raise TableError(path, problems)
    return places


def _histology(
    line: int, row: Mapping[str, str], score: Score | None, form: str | None
) -> tuple[Histology, list[str]]:
    """One row, and its problems."""
    problems: list[str] = []
    if not (row["patient"] or row["accession"]):
        problems.append("neither accession nor patient is given; one of them is needed.")
    dates = {}
    for field in ("ct_date", "biopsy_date", "birth_date"):
        try:
            dates[field] = date_of(row[field], form) if row[field] else None
        except ValueError as error:
            problems.append(f"{field} is {row[field]!r}; {error}.")
            dates[field] = None
    stages, label = None, ""
    if row["histology"]:
        try:
            used = score_named(row["score"]) if row["score"] else score
            if used is None:
                raise ValueError("no score is given; a column score or --score is needed.")
            stages, label = stages_of(row["histology"], used), used.meaning
        except ValueError as error:
            problems.append(str(error))
        if not row["biopsy_date"]:
            problems.append("the biopsy_date is empty; a histology needs one.")
    described = description(row, problems)
    birth, days = dates["birth_date"], (dates["ct_date"], dates["biopsy_date"])
    if birth is not None and any(day is not None and day < birth for day in days):
        problems.append("the birth_date is after the CT or the biopsy.")
    return Histology(
        line=line,
        patient=row["patient"],
        accession=row["accession"],
        ct_date=dates["ct_date"],
        stages=stages,
        label=label,
        day=dates["biopsy_date"],
        birth=birth,
        **described,
        **{field: row[field] for field in FREE_TEXT},
    ), problems


def named_columns(entries: list[str]) -> dict[str, str]:
    """Field -> name of its column, "" to leave it out, of entries FIELD=NAME.

    Raises StagingError.
    """
    names = {}
    for entry in entries:
        field, equals, name = entry.partition("=")
        if field not in COLUMNS or not equals:
            raise StagingError(
                f"--column {entry}: FIELD=NAME with one of the fields {', '.join(COLUMNS)} is "
                "needed."
            )
        names[field] = name
    return names
