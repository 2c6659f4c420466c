"""Which CT belongs to which histology, and why the others belong to none.

The paper (Yin et al. 2021, "Study population") asks for less than six months between CT and
histology, whichever is first, and for the criteria of `cases.manifest.Criteria`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from cases.manifest import Case, Criteria, unmet
from LiverFibrosisStagingLib.stages import ANY_STAGE

from .examination import NO_LIVER, OTHER_SHOWN, UNREADABLE
from .hospital_table import Histology, contradictions
from .matching import Index
from .studies import COPY, NO_SLICES, NOT_CT, SHORT, Study

OLDEST = 90  # and above, as one group: 45 CFR 164.514(b)(2)(i)(C)
_AGES_APART = 2.0  # years: table and header may be of different days
NO_HISTOLOGY = "no histology"
NO_STUDY = "no CT found"
NO_DATE = "day of the CT unknown"
FARTHER = "another CT is nearer to the histology"
TAKEN = "the CT is nearer to another histology"
REPEATED = "the histology of another row"
_BEFORE = (NOT_CT, NO_SLICES, SHORT, COPY, NO_STUDY, NO_HISTOLOGY, NO_DATE)
_AFTER = (UNREADABLE, NO_LIVER, OTHER_SHOWN, FARTHER, TAKEN, REPEATED)


@dataclass(frozen=True)
class Pair:
    """A CT with its histology. patient: the number by which the patient is known.

    case: as it will stand in the manifest, without code, paths and free text.
    """

    patient: str
    histology: Histology
    study: Study
    case: Case

    @property
    def order(self) -> tuple[object, ...]:
        """Nearest first; on a tie the CT before the biopsy, then the earlier CT and biopsy."""
        day = ct_day(self.histology, self.study)
        late = day > self.histology.day
        place = self.study.place, self.histology.line
        return self.case.days, late, day, self.histology.day, self.study.accession, *place


@dataclass
class Pairing:
    """Pairs, and the reason why each other study and histology is in none."""

    pairs: list[Pair] = field(default_factory=list)
    studies: dict[Study, str] = field(default_factory=dict)
    histologies: dict[Histology, str] = field(default_factory=dict)


def ct_day(histology: Histology, study: Study) -> date | None:
    """The day of the CT."""
    return study.day or histology.ct_date


def disagreements(
    histologies: Sequence[Histology], studies: Sequence[Study]
) -> list[tuple[int, str]]:
    """Lines and sentences: where the table contradicts the header of the CT it means.

    Also different histologies of one day, of patients that only their CTs identify. A wrong
    accession number shows itself in this way.
    """
    problems = []
    patients: dict[Histology, str] = {}
    index = Index(studies)
    for histology in histologies:
        found = index.meant_by(histology)
        numbers = {study.patient for study in found if study.patient}
        if len(numbers) > 1:
            problems.append(
                (histology.line, "the accession number is that of CTs of several patients.")
            )
        if found and not (histology.patient or numbers):
            problems.append(
                (
                    histology.line,
                    "neither the table nor the CT's header has the patient's number, which tells "
                    "the CTs of one patient from those of others; one of them is needed.",
                )
            )
        patients[histology] = _patient(histology, found)
        for study in found:
            for what, of_row, of_study in (
                ("patient", histology.patient, study.patient),
                ("ct_date", histology.ct_date, study.day),
                ("sex", histology.sex, study.sex),
                ("birth_date", histology.birth, study.birth),
            ):
                if of_row and of_study and not _agree(what, of_row, of_study):
                    problems.append(
                        (
                            histology.line,
                            f"{what} is {of_row}, but {of_study} in the header of the CT; the "
                            f"right one is needed, or --column {what}= to leave the column out.",
                        )
                    )
            ages = histology.age, _age_in_header(study)
            if None not in ages and abs(ages[0] - ages[1]) > _AGES_APART:
                problems.append(
                    (
                        histology.line,
                        f"age is {ages[0]:g}, but {ages[1]:.0f} in the header of the CT.",
                    )
                )
    return problems + contradictions(patients)


def pair(
    histologies: Sequence[Histology],
    studies: Sequence[Study],
    criteria: Criteria,
    all_cts: bool = False,
) -> Pairing:
    """Pair each histology with the nearest CT that meets the criteria, each CT once.

    Of all possible pairs, the nearest (`Pair.order`) is taken first, then the nearest of what is
    left. Rows of a patient with the same day of the biopsy are one histology. all_cts: take every
    CT, with its nearest histology. The table must agree with the headers (`disagreements`).
    """
    found, index = Pairing(), Index(studies)
    possible: list[Pair] = []
    # Of both sides: whether the study is unusable, days, reason.
    refused: dict[Study | Histology, list[tuple[bool, int, str]]] = defaultdict(list)
    for histology in histologies:
        if histology.stages is None:
            found.histologies[histology] = NO_HISTOLOGY
            continue
        own = index.meant_by(histology)
        patient = _patient(histology, own)
        for study in own:
            days, why = 0, study.unusable
            if not why and ct_day(histology, study) is None:
                why = NO_DATE
            if not why:
                case = _case(histology, study)
                days, why = case.days, next(unmet(case, criteria), "")
            if not why:
                possible.append(Pair(patient, histology, study, case))
                continue
            refused[study].append((bool(study.unusable), days, why))
            refused[histology].append((bool(study.unusable), days, why))

    taken: set[Study | Histology | tuple[str, date]] = set()
    for each in sorted(possible, key=lambda pair: pair.order):
        biopsy = (each.patient, each.histology.day)
        if each.study not in taken and (all_cts or biopsy not in taken):
            found.pairs.append(each)
            taken |= {each.study, each.histology, biopsy}
    paired = {each.study for each in possible}
    for study in studies:
        if study not in taken:
            reasons = refused.get(study, [(True, 0, study.unusable or NO_HISTOLOGY)])
            found.studies[study] = FARTHER if study in paired else min(reasons)[-1]
    biopsies = {each.histology: (each.patient, each.histology.day) for each in possible}
    for histology in histologies:
        if histology in taken or histology in found.histologies:
            continue
        if histology in biopsies:
            again = biopsies[histology] in taken
            found.histologies[histology] = REPEATED if again else TAKEN
        else:
            reasons = refused.get(histology, [(True, 0, NO_STUDY)])
            found.histologies[histology] = min(reasons)[-1]
    return found


def in_order(reasons: Iterable[str], criteria: Criteria) -> list[str]:
    """Reasons in the order in which they were looked for."""
    values = {"age": 0.0, "days": date.max.toordinal(), "phase": "", "complete_liver": False}
    worst = Case(line=0, name="", patient="", ct=Path(), stages=ANY_STAGE, **values)
    known = [*_BEFORE, *unmet(worst, criteria), *_AFTER]
    return sorted(reasons, key=known.index)


def _patient(histology: Histology, studies: Sequence[Study]) -> str:
    """The number by which the patient of a row is known; studies: those that the row means."""
    numbers = [study.patient for study in studies if study.patient]
    return histology.patient or min(numbers, default=histology.accession)


def _case(histology: Histology, study: Study) -> Case:
    age = histology.age
    if age is None:
        age = _age(histology.birth, ct_day(histology, study))
    if age is None:
        age = _age_in_header(study)
    return Case(
        line=histology.line,
        name="",
        patient="",
        ct=Path(),
        stages=histology.stages,
        age=None if age is None else float(min(int(age), OLDEST)),
        sex=histology.sex or study.sex or None,
        etiology=histology.etiology or None,
        specimen=histology.specimen or None,
        days=abs((ct_day(histology, study) - histology.day).days),
        phase=histology.phase or study.phase or None,
        complete_liver=histology.complete_liver,
        label=histology.label,
        site=histology.site or None,
        scanner=study.scanner or None,
        kernel=study.kernel or None,
        thickness=study.thickness,
    )


def _agree(what: str, of_row: object, of_study: object) -> bool:
    """Whether table and header agree; exports may keep only the year of the birth date."""
    if what == "birth_date":
        return abs(of_row.year - of_study.year) < _AGES_APART
    return of_row == of_study


def _age_in_header(study: Study) -> float | None:
    from_birth = _age(study.birth, study.day)
    return study.age if from_birth is None else from_birth


def _age(birth: date | None, day: date | None) -> float | None:
    """Whole years on a day."""
    if None in (birth, day):
        return None
    return float(day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day)))
