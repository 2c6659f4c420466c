"""TCGA-LIHC: Ishak groups of the liver beside the tumour.

Reads the BCR biotab nationwidechildrens.org_clinical_patient_lihc.txt (a line of names, one of
alternative names, one of CDE ids), the clinical tables of cBioPortal, and that of Firehose, which
has a row per field and a column per patient, in lower case.
"""

import re
from pathlib import Path

from cases.manifest import METAVIR_OF_ISHAK
from common.tables import TableError
from LiverFibrosisStagingLib.stages import ANY_STAGE, StageRange

from .labels import Label, one_per_patient
from .tables import column_name, read_lines

MEANING = (
    "Range of METAVIR stages of the patient's Ishak group (TCGA-LIHC, ishak_fibrosis_score), by "
    "the correspondence of Goodman, J Hepatol 2007;47:598-607."
)
# Ishak stages of each entry. "Speta" is how TCGA spells it.
ISHAK_OF = {
    "0 - no fibrosis": (0,),
    "1,2 - portal fibrosis": (1, 2),
    "3,4 - fibrous speta": (3, 4),
    "3,4 - fibrous septa": (3, 4),
    "5 - nodular formation and incomplete cirrhosis": (5,),
    "6 - established cirrhosis": (6,),
}
# Entries without a score: those of TCGA, and what cBioPortal and Firehose have instead.
MISSING = {"[not available]", "[unknown]", "[not evaluated]", "[discrepancy]", "", "na"}
# Names of the columns, the best first: patient_id is only a part of the barcode in the biotab.
PATIENT = ("bcr_patient_barcode", "patient_id")
SCORE = (
    "ishak_fibrosis_score",
    "fibrosis_ishak_score",
    "liver_fibrosis_ishak_score_category",
    "cde_id:3182621",
)
BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")

Entry = tuple[int, str, str]  # line, patient, score
Problem = tuple[int, str]  # line, sentence


def read_labels(path: Path) -> list[Label]:
    """The label of every patient. Raises TableError with all problems."""
    path = Path(path)
    labels = []
    entries, problems = _entries(path)
    for line, patient, text in entries:
        score, found = " ".join(text.casefold().split()), []
        if not BARCODE.fullmatch(patient.upper()):
            found.append(f"patient is {patient!r}; a TCGA barcode is needed.")
        if score not in {*ISHAK_OF, *MISSING}:
            found.append(f"the Ishak score is {text!r}; an Ishak group is needed.")
        if not found:
            metavir = [METAVIR_OF_ISHAK[ishak] for ishak in ISHAK_OF.get(score, ())]
            stages = StageRange(min(metavir), max(metavir)) if metavir else ANY_STAGE
            labels.append((line, Label(patient.upper(), stages, MEANING, text)))
        problems += [(line, problem) for problem in found]
    return one_per_patient(path, labels, problems)


def _entries(path: Path) -> tuple[list[Entry], list[Problem]]:
    """Each patient, and lines with another number of fields than the names."""
    lines = read_lines(path)
    if not lines:
        raise TableError(path, ["The file is empty; a line with column names is needed."])
    names = [fields[0] for _, fields in lines]
    patient, score = _place(names, PATIENT), _place(names, SCORE)
    if patient is None or score is None:
        return _by_line(path, lines)
    (line, patients), (score_line, scores) = lines[patient], lines[score]
    if len(patients) != len(scores):
        raise TableError(
            path, [f"line {score_line}: {len(scores)} fields, but {len(patients)} in line {line}."]
        )
    return [(score_line, *pair) for pair in zip(patients[1:], scores[1:])], []


def _by_line(path: Path, lines: list[tuple[int, list[str]]]) -> tuple[list[Entry], list[Problem]]:
    patient, score = _place(lines[0][1], PATIENT), None
    if patient is not None:
        headers = [fields for _, fields in lines if _is_header(fields, patient)]
        places = [_place(fields, SCORE) for fields in headers]
        score = next((place for place in places if place is not None), None)
    if patient is None or score is None:
        raise TableError(
            path,
            [
                f"A column {' or '.join(PATIENT)} and a column {' or '.join(SCORE[:-1])} are "
                "needed; one of them is missing."
            ],
        )
    body = [(line, fields) for line, fields in lines if not _is_header(fields, patient)]
    width = len(lines[0][1])
    problems = [
        (line, f"{len(fields)} fields where {width} are needed.")
        for line, fields in body
        if len(fields) != width
    ]
    even = [(line, fields) for line, fields in body if len(fields) == width]
    return [(line, fields[patient], fields[score]) for line, fields in even], problems


def _is_header(fields: list[str], patient: int) -> bool:
    name = _plain(fields[patient]) if patient < len(fields) else ""
    return name in PATIENT or name.startswith("cde_id:")


def _place(names: list[str], wanted: tuple[str, ...]) -> int | None:
    plain = [_plain(name) for name in names]
    return next((plain.index(name) for name in wanted if name in plain), None)


def _plain(name: str) -> str:
    return column_name(name).removeprefix("patient.")
