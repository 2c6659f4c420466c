"""What a cohort consists of: cases, what was left out, and names that identify nobody."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..imaging.body import Body
from ..privacy import dicom_patient_names, looks_like_person_name, pseudonym
from ..result import FILES
from ..stages import RESEARCH_USE

LEFT_OUT = "left_out.csv"
LEFT_OUT_COLUMNS = ("study", "case", "what", "series", "phase", "slices", "spacing_mm", "reason")
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED_CHARACTERS = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')
_OUR_FILES = re.compile(r"(results|columns|left_out|summary|batch|report)\.\w+|\.partial-.*", re.I)
_RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(?=\.|$)", re.I)


@dataclass(frozen=True)
class Case:
    """One case: name of its result folder, CT, and masks (None: automatic segmentation).

    pseudonym: whether the name is a pseudonym. segments: segmentation of the liver's parts. body:
    height and weight. files: the CT's DICOM files, where a folder was searched for series; `ct` is
    then the folder, or one of the files if the folder holds other studies too. chosen: why this
    series of the study was taken; without free text of the files.
    """

    name: str
    ct: Path
    liver: str | Path | None
    spleen: str | Path | None
    pseudonym: bool = False
    segments: Path | None = None
    body: Body | None = None
    files: tuple[Path, ...] = ()
    chosen: str = ""

    @property
    def source(self) -> Path | tuple[Path, ...]:
        """What is staged: the CT's DICOM files, or its path."""
        return self.files or self.ct


@dataclass(frozen=True)
class LeftOut:
    """What was found in a cohort and is not a case, nor a mask of one.

    path: for the screen only, since it may contain names. study: number of its DICOM study in the
    cohort; None where it is unknown. series: its number. taken: the CT of the case of its study;
    case: the name of that case.
    """

    path: Path
    what: str
    reason: str
    study: int | None = None
    series: str = ""
    phase: str = ""
    slices: int | None = None
    spacing_mm: float | None = None
    taken: Path | None = None
    case: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """A row of the table left_out.csv, without names."""
        row = {column: getattr(self, column) for column in LEFT_OUT_COLUMNS}
        return {column: "" if value is None else value for column, value in row.items()}


@dataclass(frozen=True)
class Cohort:
    """The cases of a cohort, by name, and what was left out."""

    cases: tuple[Case, ...]
    left_out: tuple[LeftOut, ...] = ()

    def lines(self) -> Iterator[str]:
        """The cases and what is left out, as text for the screen, with paths."""
        for case in self.cases:
            yield f"{case.name}: {case.ct}"
            automatic = "with the liver" if case.liver else "automatic"
            organs = f"liver {case.liver or 'automatic'}, spleen {case.spleen or automatic}"
            yield f"    {organs}" + (f", segments {case.segments}" if case.segments else "")
            if case.chosen:
                yield f"    series taken: {case.chosen}"
        if self.left_out:
            yield "Left out:"
        for each in self.left_out:
            yield f"    {each.path}: {each.what}, {each.reason}"
        yield (
            f"{len(self.cases)} cases, {len(self.left_out)} left out; nothing was staged or "
            f"written. {RESEARCH_USE}"
        )


def usable_name(name: str) -> str:
    """A case's name as a valid path of folders on all systems; / separates folders.

    Names of the files in the folders of results are not those of folders.
    """
    parts = []
    for part in re.split(r"[\\/]", unicodedata.normalize("NFC", name)):
        part = _RESERVED_CHARACTERS.sub("-", part).strip().rstrip(". ")
        ours = part.casefold() in FILES or _OUR_FILES.fullmatch(part)
        parts.append(f"_{part}" if ours or _RESERVED_NAMES.match(part) else part)
    return "/".join(filter(None, parts)) or "case"


def relative(path: Path, root: Path) -> str:
    """A path relative to the cohort's folder; the name of that folder for itself."""
    if path == root:
        return root.absolute().name
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def named(cases: Iterable[Case], root: Path, pseudonyms: bool) -> list[Case]:
    """Cases with valid names that identify nobody and differ by more than letter case."""
    safe = []
    for case in cases:
        if case.pseudonym:
            safe.append(case)
        elif pseudonyms or looks_like_person_name(case.name, dicom_patient_names(case.source)):
            safe.append(replace(case, name=pseudonym(relative(case.ct, root)), pseudonym=True))
        else:
            safe.append(replace(case, name=usable_name(case.name)))
    firsts: dict[str, Case] = {}
    for case in safe:
        firsts.setdefault(case.name.casefold(), case)
    taken = set(firsts)
    unique = []
    for case in safe:
        name, count = case.name, 1
        while firsts.get(name.casefold()) is not case and name.casefold() in taken:
            count += 1
            name = f"{case.name}-{count}"
        taken.add(name.casefold())
        unique.append(replace(case, name=name))
    return unique


def cohort_of(
    cases: Iterable[Case], left_out: Sequence[LeftOut], root: Path, pseudonyms: bool
) -> Cohort:
    """A cohort with names (`named`), in their order; what is left out names its study's case."""
    ordered = named(sorted(cases, key=lambda case: (case.name, case.ct)), root, pseudonyms)
    names = {case.ct: case.name for case in ordered}
    known = [
        each if each.taken is None else replace(each, case=names.get(each.taken, ""))
        for each in left_out
    ]
    return Cohort(tuple(ordered), tuple(known))
