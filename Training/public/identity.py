"""Whether a path or a free text can tell who a patient is."""

import re
from collections.abc import Iterable

from LiverFibrosisStagingLib.privacy import looks_like_person_name

from .hospital_table import Histology
from .studies import Study, occurs

_DATE = re.compile(
    r"(?<!\d)(\d{4}[-_./]\d{1,2}[-_./]\d{1,2}|\d{1,2}[-_./]\d{1,2}[-_./](\d{4}|\d{2}))(?!\d)"
)
# Numbers of examinations and of patients, dates without separators, DICOM's UIDs.
_NUMBER = re.compile(r"\d{5}|\d+(\.\d+){4}")
_MIN_LENGTH = 3  # of a number of the patient that no other number is taken for in a text


def _numbers(histology: Histology, study: Study) -> set[str]:
    found = {histology.patient, histology.accession, study.patient, study.accession, *study.uids}
    return found - {""}


def _names(study: Study) -> list[str]:
    return [word for word in re.findall(r"[^\W\d_]+", study.name) if len(word) > 1]


def path_tells(parts: Iterable[str], histology: Histology, study: Study) -> bool:
    """Whether the parts of a path can tell the patient or a date: when in doubt, they do."""
    known = _numbers(histology, study)
    return any(
        looks_like_person_name(part, [study.name])
        or any(occurs(word, part) for word in (*known, *_names(study)))
        or _DATE.search(part)
        or _NUMBER.search(part)
        for part in parts
    )


def text_tells(text: str, histology: Histology, study: Study) -> bool:
    """Whether a text has the patient's name or number, or a date."""
    known = (number for number in _numbers(histology, study) if len(number) >= _MIN_LENGTH)
    return (
        any(occurs(word, text) for word in (*known, *_names(study)))
        or _DATE.search(text) is not None
        or "^" in text
        or re.search(r"(?<!\d)\d{8}(?!\d)", text) is not None
    )
