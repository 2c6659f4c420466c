"""The imaging studies of a hospital's folder: which CT each has, when, and of whom.

DICOM studies are known by their headers. CTs in other files are known by a path with the accession
number, or with the patient's number and the day of the CT.
"""

import filecmp
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import SimpleITK as sitk

from LiverFibrosisStagingLib.batch.cases import find_cases
from LiverFibrosisStagingLib.batch.cohort import Case, LeftOut
from LiverFibrosisStagingLib.imaging.dicom_files import (
    DESCRIPTION,
    KERNEL,
    PATIENT,
    SERIES,
    STUDY,
    THICKNESS,
    tag_text,
)
from LiverFibrosisStagingLib.imaging.dicom_series import (
    MIN_SLICES,
    named_phase,
)
from LiverFibrosisStagingLib.imaging.itk_files import itk_path, quiet

from .choice import PHASE_NAMES
from .dates import date_of

_ACCESSION, _STUDY_DATE, _ACQUISITION_DATE = "0008|0050", "0008|0020", "0008|0022"
_NAME, _BIRTH_DATE, _AGE, _SEX = "0010|0010", "0010|0030", "0010|1010", "0010|0040"
_MANUFACTURER, _MODEL = "0008|0070", "0008|1090"
_NO_BIRTH = date(1900, 1, 1)  # what some exports write instead of the day
_AGE_UNITS = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
_DAY = re.compile(r"(?<!\d)(\d{4}[-_]\d{2}[-_]\d{2}|\d{8}|\d{1,2}\.\d{1,2}\.\d{4})(?!\d)")

NOT_CT = "no CT (another modality)"
SHORT = f"fewer than {MIN_SLICES} slices in every CT series"
NO_SLICES = "no CT slices"
COPY = "copy of another CT"
UNREADABLE = "the CT or its masks cannot be read"


@dataclass(frozen=True)
class Study:
    """One study; what its header does not say is None or "".

    place: relative to the folder, which orders studies. case: its CT; None if it has none, for the
    reason `unusable`, which a copy has too. age: years. thickness: mm. uids: of study and series.
    """

    place: str
    case: Case | None
    unusable: str = ""
    patient: str = ""
    accession: str = ""
    day: date | None = None
    name: str = ""
    birth: date | None = None
    age: float | None = None
    sex: str = ""
    scanner: str = ""
    kernel: str = ""
    thickness: float | None = None
    phase: str = ""
    uids: tuple[str, ...] = ()


def read_studies(
    folder: Path, patients: Collection[str], accessions: Collection[str]
) -> list[Study]:
    """The studies below a folder, in the order of their places.

    patients, accessions: numbers of the table, which are searched in the paths of CTs that are not
    DICOM. Raises StagingError as `find_cases` does.
    """
    cohort = find_cases(folder)
    studies = [_with_ct(case, folder, patients, accessions) for case in cohort.cases]
    apart: dict[int, list[LeftOut]] = {}
    for each in cohort.left_out:
        if each.study is not None and each.taken is None:
            apart.setdefault(each.study, []).append(each)
    studies += [_without_ct(objects, folder) for objects in apart.values()]
    return list(_copies_marked(sorted(studies, key=lambda study: study.place)))


def _with_ct(
    case: Case, folder: Path, patients: Collection[str], accessions: Collection[str]
) -> Study:
    place = case.ct.relative_to(folder).as_posix()
    if case.files:
        return _of_header(Study(place, case), case.files[0])
    patient, accession = _only(place, patients), _only(place, accessions)
    rest = place
    for number in filter(None, (patient, accession)):  # which can look like a day
        rest = rest.replace(number, "-")
    days = {day for text in _DAY.findall(rest) if (day := _day(text.replace("_", "-")))}
    day = days.pop() if len(days) == 1 else None
    return Study(place, case, patient=patient, accession=accession, day=day)


def _without_ct(objects: list[LeftOut], folder: Path) -> Study:
    if any(each.what == "CT series" for each in objects):
        why = SHORT
    elif any(each.reason.startswith("modality") for each in objects):
        why = NOT_CT
    else:
        why = NO_SLICES
    first = objects[0].path
    return _of_header(Study(first.relative_to(folder).as_posix(), None, why), first)


def _of_header(study: Study, file: Path) -> Study:
    """The study with what the header of one of its files says."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_path(file))
    with quiet():
        reader.ReadImageInformation()
    keys = set(reader.GetMetaDataKeys())

    def text(tag: str) -> str:
        return tag_text(reader, tag) if tag in keys else ""

    birth = _day(text(_BIRTH_DATE))
    # An age of 000Y is how some exports remove it.
    age = re.fullmatch(r"(?!000Y)(\d{3})([YMWD])", text(_AGE).zfill(4))
    thickness = re.fullmatch(r"\d+(\.\d+)?", text(THICKNESS))
    return replace(
        study,
        patient=text(PATIENT),
        accession=text(_ACCESSION),
        day=_day(text(_STUDY_DATE)) or _day(text(_ACQUISITION_DATE)),
        name=text(_NAME),
        birth=birth if birth is not None and birth > _NO_BIRTH else None,
        age=int(age[1]) / _AGE_UNITS[age[2]] if age else None,
        sex=text(_SEX) if text(_SEX) in ("M", "F") else "",
        scanner=" ".join(filter(None, (text(_MANUFACTURER), text(_MODEL)))),
        kernel=text(KERNEL).split("\\")[0].strip(),
        thickness=float(thickness[0]) if thickness else None,
        phase=PHASE_NAMES[named_phase(text(DESCRIPTION))],
        uids=tuple(filter(None, (text(STUDY), text(SERIES)))),
    )


def _day(text: str) -> date | None:
    """A date of a header or a path; None for anything else, such as a number of eight digits."""
    try:
        return date_of(text)
    except ValueError:
        return None


def occurs(text: str, place: str) -> bool:
    """Whether a text occurs in a path by itself, and not as a part of a longer word or number."""
    text, place = (unicodedata.normalize("NFC", each) for each in (text, place))
    return re.search(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])", place, re.I) is not None


def _only(place: str, numbers: Collection[str]) -> str:
    """The one of some numbers that occurs in a path; "" for none, and for several.

    A number within a longer one (17 in 17-4) does not count.
    """
    found = [number for number in numbers if occurs(number, place)]
    longest = [one for one in found if not any(one != two and occurs(one, two) for two in found)]
    return longest[0] if len(longest) == 1 else ""


def _copies_marked(studies: list[Study]) -> Iterator[Study]:
    """The studies; of copies, all but the first are unusable."""
    first: dict[tuple[str, tuple[str, ...]], Study] = {}
    for study in studies:
        if study.case is not None and len(study.uids) == 2:
            other = first.setdefault((study.patient, study.uids), study)
            if other is not study and _same_files(study.case, other.case):
                study = replace(study, unusable=COPY)
        yield study


def _same_files(case: Case, other: Case) -> bool:
    return len(case.files) == len(other.files) and all(
        filecmp.cmp(*pair, shallow=False) for pair in zip(case.files, other.files)
    )
