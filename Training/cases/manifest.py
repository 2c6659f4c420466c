"""The cohort's manifest: CT, masks and stage of each case, and the inclusion criteria.

The columns are documented in Training/docs/manifest.md; what training needs besides is checked in
`requirements.py`. Inclusion criteria are those of Yin et al. 2021, "Patients" and Fig. 1.
"""

import argparse
import csv
import difflib
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.resume import digest, digest_of_mask
from common.tables import TableError, read_utf8
from LiverFibrosisStagingLib.imaging.masks import file_and_labels
from LiverFibrosisStagingLib.stages import ANY_STAGE, StageRange

REQUIRED = ("patient", "ct", "stage")
PARTS = ("ct", "liver", "spleen")  # columns with files
COLUMNS = (
    *REQUIRED,
    "liver",
    "spleen",
    "age",
    "sex",
    "etiology",
    "specimen",
    "days",
    "phase",
    "complete_liver",
    "label",
    "site",
    "scanner",
    "kernel",
    "thickness",
    "fold",
)
# Free text, kept as it is.
TEXTS = ("etiology", "specimen", "label", "site", "scanner", "kernel", "fold")
# METAVIR of an Ishak stage, as in the correspondence table of Goodman, J Hepatol 2007;47:598-607.
METAVIR_OF_ISHAK = (0, 1, 1, 2, 3, 4, 4)
PHASES = ("portal venous", "arterial", "late arterial", "delayed", "unenhanced")
YES, NO = {"yes", "true", "1"}, {"no", "false", "0"}


@dataclass(frozen=True)
class Case:
    """One CT of one patient; values that are empty in the manifest are None.

    line: line number in the manifest. name: unique regardless of letter case, usable as a file
    name: the patient's code, with -2 for the second scan. liver, spleen: FILE, FILE:LABEL or
    FILE:LABEL+LABEL, as for the library's `read_organ`. stages: METAVIR. label: one sentence,
    what the stages are and where they are from. age: years. days: between CT and histology. site,
    scanner, kernel, thickness (mm): of the acquisition. fold: that tests the case, if the manifest
    says so. others: unknown columns of the manifest, by name. outlined: whether the liver mask is
    not the manifest's, but automatic (`inputs.py`).
    """

    line: int
    name: str
    patient: str
    ct: Path
    stages: StageRange
    liver: Path | None = None
    spleen: Path | None = None
    age: float | None = None
    sex: str | None = None
    etiology: str | None = None
    specimen: str | None = None
    days: int | None = None
    phase: str | None = None
    complete_liver: bool | None = None
    label: str | None = None
    site: str | None = None
    scanner: str | None = None
    kernel: str | None = None
    thickness: float | None = None
    fold: str | None = None
    others: Mapping[str, str] = field(default_factory=dict, hash=False)
    outlined: bool = False

    @property
    def stage(self) -> int | None:
        """METAVIR, 0..4; None if the manifest has a range."""
        return self.stages.exact

    def content(self) -> list[str | None]:
        """Digests (of `resume`) of CT, liver and spleen; None for a missing mask."""
        masks = (mask and digest_of_mask(mask) for mask in (self.liver, self.spleen))
        return [digest(self.ct), *masks]


class ManifestError(TableError):
    """A manifest that cannot be used."""


@dataclass(frozen=True)
class Criteria:
    """Inclusion criteria (Yin et al. 2021, "Patients"); None switches a criterion off.

    A case is not excluded by a value that is missing in the manifest.
    """

    min_age: float | None = 16
    phase: str | None = "portal venous"
    complete_liver: bool = True
    max_days: int | None = 183


EVERYONE = Criteria(min_age=None, phase=None, complete_liver=False, max_days=None)


@dataclass(frozen=True)
class Inclusion:
    """Included cases, and excluded cases with the first criterion that they do not meet."""

    included: list[Case]
    excluded: list[tuple[Case, str]]


def read_manifest(path: Path, grades: str = "metavir") -> list[Case]:
    """The cases of a CSV or TSV file; paths are relative to the file's folder.

    grades: "metavir", stages F0..F4 (or 0..4), or "ishak", stages 0..6, which are converted by
    METAVIR_OF_ISHAK. Unknown columns are kept and named on standard error. Raises ManifestError
    with all problems.
    """
    path = Path(path)
    rows, problems = _rows(path)
    if problems:
        raise ManifestError(path, problems)
    cases: list[Case] = []
    scans: dict[str, int] = defaultdict(int)
    for line, row in rows:
        found: list[str] = []
        case = _case(line, row, path.parent, grades, found)
        problems += [f"line {line}: {problem}" for problem in found]
        if case is not None:
            scans[case.patient] += 1
            cases.append(replace(case, name=_name(case.patient, scans[case.patient])))
    problems += _contradictions(cases)
    if problems:
        raise ManifestError(path, sorted(problems, key=_line_of))
    return cases


def apply(cases: Sequence[Case], criteria: Criteria) -> Inclusion:
    """Apply the criteria, in the order of the paper's Fig. 1; a case needs some known stage."""
    included, excluded = [], []
    for case in cases:
        reason = next(unmet(case, criteria), None)
        if reason is None:
            included.append(case)
        else:
            excluded.append((case, reason))
    return Inclusion(included, excluded)


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Line number and fields of every row, and problems of the whole file."""
    try:
        lines = read_utf8(path).splitlines()
    except TableError as refusal:
        return [], list(refusal.problems)
    if not lines or not lines[0].strip():
        return [], ["The file is empty; a line with column names is needed."]
    delimiter = "\t" if "\t" in lines[0] else ";" if ";" in lines[0] else ","
    reader = csv.reader(lines, delimiter=delimiter)
    names = [name.strip().lower() for name in next(reader)]
    problems = [
        f"line 1: the column {name!r} is missing." for name in REQUIRED if name not in names
    ]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    problems += [f"line 1: the column {name!r} occurs twice." for name in twice]
    unknown = [f"{name!r}{_meant(name)}" for name in names if name and name not in COLUMNS]
    if unknown:
        print(
            f"{path.name}: columns that are kept, but not used: {', '.join(unknown)}.",
            file=sys.stderr,
        )
    rows = []
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(names):
            problems.append(
                f"line {reader.line_num}: {len(fields)} fields where {len(names)} are needed."
            )
            continue
        row = [(name, field.strip()) for name, field in zip(names, fields)]
        if any(field and not name for name, field in row):
            problems.append(f"line {reader.line_num}: a value stands in a column without a name.")
        else:
            rows.append((reader.line_num, {name: field for name, field in row if name}))
    if not rows and not problems:
        problems.append("The manifest has column names but no case.")
    # Also check the values, unless the columns are wrong: then every line would be a problem.
    if not twice and set(REQUIRED) <= set(names) and problems:
        scratch: list[str] = []
        for line, row in rows:
            found: list[str] = []
            _case(line, row, path.parent, "either", found)
            scratch += [f"line {line}: {problem}" for problem in found]
        problems += scratch
    return rows, problems


def _meant(name: str) -> str:
    similar = difflib.get_close_matches(name, COLUMNS, 1, 0.75)
    return f" (is {similar[0]} meant?)" if similar else ""


def _case(
    line: int, row: dict[str, str], folder: Path, grades: str, problems: list[str]
) -> Case | None:
    """One row as a case; None if it has problems, which are appended."""
    before = len(problems)
    if not row["patient"]:
        problems.append("the patient is empty.")
    stages = _stages(row["stage"], grades, problems)
    files = {part: _file(part, row.get(part, ""), folder, problems) for part in PARTS}
    problems.extend(_same_file(files))
    days = _number("days", row.get("days", ""), 0, 36500, "whole days", problems)
    if days is not None and days != int(days):
        problems.append(f"days is {row['days']!r}; whole days are needed.")
    thickness = _number("thickness", row.get("thickness", ""), 0.1, 30, "mm", problems)
    described = description(row, problems)
    if len(problems) > before:
        return None
    return Case(
        line=line,
        name="",
        patient=row["patient"],
        stages=stages,
        **files,
        **described,
        days=None if days is None else int(days),
        thickness=thickness,
        others={name: value for name, value in row.items() if name not in COLUMNS},
        **{name: row.get(name) or None for name in TEXTS},
    )


def description(row: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """age (years), sex, phase and complete_liver of a row; None where it says nothing.

    Appends a sentence to `problems` for each other value.
    """
    sex, phase, complete = (row.get(name, "") for name in ("sex", "phase", "complete_liver"))
    if sex and sex.lower() not in ("m", "f", "male", "female"):
        problems.append(f"sex is {sex!r}; M or F is needed.")
    plain = phase.lower().replace("-", " ")
    if phase and plain not in PHASES:
        problems.append(f"phase is {phase!r}; one of {', '.join(PHASES)} is needed.")
    if complete and complete.lower() not in YES | NO:
        problems.append(f"complete_liver is {complete!r}; yes or no is needed.")
    return {
        "age": _number("age", row.get("age", ""), 0, 120, "years", problems),
        "sex": sex.upper()[:1] or None,
        "phase": plain or None,
        "complete_liver": complete.lower() in YES if complete else None,
    }


def _name(patient: str, scan: int) -> str:
    safe = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", patient))
    return safe if scan == 1 else f"{safe}-{scan}"


def _stages(value: str, grades: str, problems: list[str]) -> StageRange:
    ishak = re.fullmatch(r"([0-6])(?:\s*-\s*([0-6]))?", value)
    if grades != "metavir" and ishak is not None:
        ends = [METAVIR_OF_ISHAK[int(digit)] for digit in ishak.groups(ishak[1])]
        if ends[0] <= ends[1]:
            return StageRange(*ends)
    if grades != "ishak":
        try:
            return StageRange.of(value)
        except ValueError:
            problems.append(f"stage is {value!r}; F0 to F4, or a range such as F1-F2, is needed.")
    else:
        problems.append(f"stage is {value!r}; an Ishak stage 0 to 6, or a range, is needed.")
    return ANY_STAGE


def _file(part: str, value: str, folder: Path, problems: list[str]) -> Path | None:
    if not value:
        if part == "ct":
            problems.append("the CT's path is empty.")
        return None
    path = folder / value
    file, labels = (path, ()) if part == "ct" else file_and_labels(path)
    if not file.exists():
        problems.append(f"the {part} file {value} does not exist.")
    elif file.is_dir() and part != "ct":
        problems.append(f"{part} is the folder {value}; a mask file is needed.")
    elif file.is_dir() and not any(file.iterdir()):
        problems.append(f"the CT's folder {value} is empty.")
    elif file.is_file() and file.stat().st_size == 0:
        problems.append(f"the {part} file {value} is empty.")
    elif 0 in labels:
        problems.append(f"{part} is {value}; 0 is the background, a label above 0 is needed.")
    return path


def _same_file(files: Mapping[str, Path | None]) -> Iterator[str]:
    """Problems of one row's files: the CT as a mask, one label of a file for both organs."""
    ct, *masks = (files[part] for part in PARTS)
    split = [mask and file_and_labels(mask) for mask in masks]
    for part, mask in zip(PARTS[1:], split):
        if mask is not None and mask[0] == ct:
            yield f"{part} and ct are the same file, {ct.name}."
    if None not in split and split[0][0] == split[1][0]:
        for label in sorted(set(split[0][1]) & set(split[1][1])):
            yield (
                f"liver and spleen are both the label {label} of {split[0][0].name}; each organ "
                "needs its own label."
            )


def _number(
    name: str, value: str, low: float, high: float, unit: str, problems: list[str]
) -> float | None:
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if low <= number <= high:
        return number
    problems.append(f"{name} is {value!r}; {unit} from {low:g} to {high:g} are needed.")
    return None


def _contradictions(cases: Sequence[Case]) -> list[str]:
    """Problems that involve two lines.

    The same CT twice; different sexes or ages of one patient; two cases with the same file name,
    also on file systems that ignore letter case and Unicode normalisation.
    """
    problems = []
    by_ct: dict[Path, Case] = {}
    by_patient: dict[str, Case] = {}
    by_name: dict[str, Case] = {}
    for case in cases:
        other = by_name.setdefault(unicodedata.normalize("NFKC", case.name).casefold(), case)
        if other is not case:
            problems.append(
                f"line {case.line}: {_which(case, cases)} would have the same case name as "
                f"{_which(other, cases)} in line {other.line} ({case.name}, {other.name}); give "
                "one of them another code, or both the same if they are one patient."
            )
        other = by_ct.setdefault(case.ct.resolve(), case)
        if other is not case:
            problems.append(
                f"line {case.line}: the CT {case.ct.name} is also the CT of line {other.line}."
            )
        same = by_patient.setdefault(case.patient, case)
        if None not in (same.sex, case.sex) and same.sex != case.sex:
            problems.append(
                f"line {case.line}: patient {case.patient} is {case.sex}, but {same.sex} in line "
                f"{same.line}."
            )
        if None not in (same.age, case.age) and abs(same.age - case.age) > 15:
            problems.append(
                f"line {case.line}: patient {case.patient} is {case.age:g} years old, but "
                f"{same.age:g} in line {same.line}."
            )
    return problems


def _which(case: Case, cases: Sequence[Case]) -> str:
    scans = [other.name for other in cases if other.patient == case.patient]
    number = scans.index(case.name) + 1
    patient = f"patient {case.patient!r}"
    return patient if number == 1 else f"scan {number} of {patient}"


def unmet(case: Case, criteria: Criteria) -> Iterator[str]:
    """The criteria that a case does not meet, in the order of `apply`."""
    if case.stages == ANY_STAGE:
        yield f"stage unknown ({ANY_STAGE})"
    if None not in (criteria.min_age, case.age) and case.age < criteria.min_age:
        yield f"younger than {criteria.min_age:g} years"
    if None not in (criteria.max_days, case.days) and case.days > criteria.max_days:
        yield f"more than {criteria.max_days} days between CT and histology"
    if None not in (criteria.phase, case.phase) and case.phase != criteria.phase:
        yield f"not in the {criteria.phase} phase"
    if criteria.complete_liver and case.complete_liver is False:
        yield "liver not completely covered by the CT"


def _line_of(problem: str) -> int:
    found = re.match(r"line (\d+)", problem)
    return int(found[1]) if found else 0


def add_grades(parser: argparse.ArgumentParser) -> None:
    """Add the option --grades, for the parameter `grades` of `read_manifest`."""
    parser.add_argument(
        "--grades",
        choices=("metavir", "ishak"),
        default="metavir",
        help="score of the manifest's stages; Ishak stages are converted to METAVIR",
    )


def counted(stages: Iterable[StageRange]) -> str:
    """The number of each stage or range, the lowest first: "F0-F3 2, F4 1"."""
    return ", ".join(f"{each} {count}" for each, count in sorted(Counter(stages).items()))


def size(cases: Sequence[Case]) -> str:
    """The numbers of CTs and patients, as text."""
    return f"{len(cases)} CTs of {len({case.patient for case in cases})} patients"
