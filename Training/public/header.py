"""What the header of a DICOM file says about the patient and the examination."""

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cases.acquisition import acquisition_of
from LiverFibrosisStagingLib.imaging.dicom_files import DESCRIPTION, PATIENT, SERIES, STUDY
from LiverFibrosisStagingLib.imaging.dicom_series import named_phase
from LiverFibrosisStagingLib.privacy import tags_of

from .dates import date_of
from .examination import PHASE_NAMES

_ACCESSION, _FRAME = "0008|0050", "0020|0052"
_STUDY_DATE, _STUDY_TIME, _ACQUISITION_DATE = "0008|0020", "0008|0030", "0008|0022"
_NAME, _BIRTH_DATE, _AGE, _SEX = "0010|0010", "0010|0030", "0010|1010", "0010|0040"
_NO_BIRTH = date(1900, 1, 1)  # what some exports write instead of the day
_AGE_UNITS = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header; what it does not say is None or "".

    moment: date and time of the study, which order studies. age: years. frame: of reference.
    scanner, kernel, thickness (mm): without names. phase: by the description. uids: of study and
    series.
    """

    patient: str = ""
    accession: str = ""
    name: str = ""
    day: date | None = None
    moment: str = ""
    birth: date | None = None
    age: float | None = None
    sex: str = ""
    scanner: str = ""
    kernel: str = ""
    thickness: float | None = None
    phase: str = ""
    frame: str = ""
    uids: tuple[str, ...] = ()


def header_of(file: Path) -> Header:
    """The header of a DICOM file; an empty one if it is damaged."""
    tags = tags_of(file)

    def text(tag: str) -> str:
        return tags.get(tag, "")

    birth = day_of(text(_BIRTH_DATE))
    # An age of 000Y is how some exports remove it.
    age = re.fullmatch(r"(?!000Y)(\d{3})([YMWD])", text(_AGE).zfill(4))
    sex = text(_SEX).upper()
    return Header(
        patient=text(PATIENT),
        accession=text(_ACCESSION),
        name=text(_NAME),
        day=day_of(text(_STUDY_DATE)) or day_of(text(_ACQUISITION_DATE)),
        moment=text(_STUDY_DATE) and f"{text(_STUDY_DATE)} {text(_STUDY_TIME)}",
        birth=birth if birth is not None and birth > _NO_BIRTH else None,
        age=int(age[1]) / _AGE_UNITS[age[2]] if age else None,
        sex=sex if sex in ("M", "F") else "",
        **acquisition_of(file)._asdict(),
        phase=PHASE_NAMES[named_phase(text(DESCRIPTION))],
        frame=text(_FRAME),
        uids=tuple(filter(None, (text(STUDY), text(SERIES)))),
    )


def day_of(text: str) -> date | None:
    """A date of a header or a path; None for anything else, such as a number of eight digits."""
    try:
        return date_of(text)
    except ValueError:
        return None
