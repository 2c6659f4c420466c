"""The imaging studies of a hospital's folder: which CT each has, when, and of whom.

DICOM studies are known by their headers. CTs in other files are known by a path with the accession
number, or with the patient's number and the day of the CT.
"""

import filecmp
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk

from LiverFibrosisStagingLib.batch.cases import find_cases
from LiverFibrosisStagingLib.batch.cohort import Case, LeftOut
from LiverFibrosisStagingLib.imaging.dicom_series import MIN_SLICES
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ
from LiverFibrosisStagingLib.imaging.reading import read_ct

from .header import Header, day_of, header_of

_DAY = re.compile(r"(?<!\d)(\d{4}[-_]\d{2}[-_]\d{2}|\d{8}|\d{1,2}\.\d{1,2}\.\d{4})(?!\d)")

NOT_CT = "no CT (another modality)"
SHORT = f"fewer than {MIN_SLICES} slices in every CT series"
NO_SLICES = "no CT slices"
COPY = "copy of another CT"


@dataclass(frozen=True)
class Study(Header):
    """One study, with the header of its CT.

    place: relative to the folder, which orders studies. case: its CT; None if it has none, for the
    reason `unusable`, which a copy has too.
    """

    place: str
    case: Case | None
    unusable: str = ""


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
        return Study(place, case, **vars(header_of(case.files[0])))
    patient, accession = _only(place, patients), _only(place, accessions)
    rest = place
    for number in filter(None, (patient, accession)):  # which can look like a day
        rest = rest.replace(number, "-")
    days = {day for text in _DAY.findall(rest) if (day := day_of(text.replace("_", "-")))}
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
    return Study(first.relative_to(folder).as_posix(), None, why, **vars(header_of(first)))


def images_of(study: Study) -> dict[str, sitk.Image]:
    """The CT in HU, and liver and spleen on its grid if they have masks. Raises StagingError."""
    case = study.case
    images = {"ct": read_ct(case.source)}
    if case.liver is not None:
        spleen = None if case.spleen is None else read_organ(case.spleen)
        liver, spleen, _ = organ_masks(images["ct"], read_organ(case.liver), spleen)
        images |= {"liver": liver} | ({} if spleen is None else {"spleen": spleen})
    return images


def occurs(text: str, place: str) -> bool:
    """Whether a text occurs in a path by itself, and not as a part of a longer word or number."""
    text, place = (unicodedata.normalize("NFC", each) for each in (text, place))
    return re.search(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])", place, re.I) is not None


def _only(place: str, numbers: Collection[str]) -> str:
    """The one of some numbers that occurs in a path; "" for none, and for several.

    A number within a longer one (17 in 17-4) does not count.
    """
    plain = unicodedata.normalize("NFC", place).casefold()  # before `occurs`, which takes longer
    near = (one for one in numbers if unicodedata.normalize("NFC", one).casefold() in plain)
    found = [number for number in near if occurs(number, place)]
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
