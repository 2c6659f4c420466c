"""Whether a path or a free text can tell who a patient is."""

import re
from pathlib import Path

from LiverFibrosisStagingLib.privacy import ORDINARY

from .hospital_table import Histology
from .studies import Study, occurs

_DATE = re.compile(
    r"(?<!\d)(\d{4}[-_./]\d{1,2}[-_./]\d{1,2}|\d{1,2}[-_./]\d{1,2}[-_./](\d{4}|\d{2}))(?!\d)"
)
_UID = re.compile(r"\d+(\.\d+){3}")
_MIN_DIGITS = 5  # of numbers of patients and examinations, and of dates without separators
_MIN_LENGTH = 3  # of a number of the patient that no other number is taken for in a text


def _numbers(histology: Histology, study: Study) -> set[str]:
    found = {histology.patient, histology.accession, study.patient, study.accession, *study.uids}
    return found - {""}


def _names(study: Study) -> list[str]:
    """The patient's names; a name with digits is a code, whose words may be any (HCC_017)."""
    if any(map(str.isdigit, study.name)):
        return [study.name]
    return [word for word in re.findall(r"[^\W\d_]+", study.name) if len(word) > 1]


def path_tells(place: Path, histology: Histology, study: Study) -> bool:
    """Whether a path can tell the patient or a date: what is not known to be harmless can."""
    text = place.as_posix()
    return (
        text_tells(text, histology, study)
        or any(occurs(number, text) for number in _numbers(histology, study))
        or _UID.search(text) is not None
        or not all(map(_harmless, re.findall(r"[^\W\d_]+|\d+", text)))
    )


def _harmless(word: str) -> bool:
    """Whether a word or number of a path identifies nobody."""
    if word.isdigit():
        return len(word) < _MIN_DIGITS
    return len(word) == 1 or word.casefold() in ORDINARY


def text_tells(text: str, histology: Histology, study: Study) -> bool:
    """Whether a text has the patient's name or number, or a date."""
    known = (number for number in _numbers(histology, study) if len(number) >= _MIN_LENGTH)
    return (
        any(occurs(word, text) for word in (*known, *_names(study)))
        or _DATE.search(text) is not None
        or "^" in text
        or re.search(r"(?<!\d)\d{8}(?!\d)", text) is not None
    )
