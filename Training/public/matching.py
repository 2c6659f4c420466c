"""Which studies a row of the table means, by their numbers."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .hospital_table import Histology
from .studies import Study

NUMBERS = ("accession", "patient")


class Index:
    """Studies by accession number and patient."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self._of: dict[tuple[str, str], list[Study]] = defaultdict(list)
        for study in studies:
            for field in NUMBERS:
                self._of[field, getattr(study, field)].append(study)

    def meant_by(self, histology: Histology) -> list[Study]:
        """The study, or those studies, that a row of the table means.

        The accession number decides; without one, in the row or the study, it is the patient, and
        the day of the CT if the row has it.
        """
        number, day = histology.accession, histology.ct_date
        found = list(self._of.get(("accession", number), ())) if number else []
        if histology.patient:
            found += [
                study
                for study in self._of.get(("patient", histology.patient), ())
                if not (number and study.accession)
                and (None in (day, study.day) or day == study.day)
            ]
        return found


def with_zeros(
    histologies: Sequence[Histology], studies: Sequence[Study]
) -> tuple[list[Histology], int, list[tuple[int, str]]]:
    """The rows, with leading zeros that Excel removed from their numbers as in the CTs' headers.

    Also how many numbers were completed, and lines and sentences where several could be meant.
    """
    rows, completed, problems = list(histologies), 0, []
    for field in NUMBERS:
        of_headers = _by_plain(getattr(study, field) for study in studies)
        of_rows = _by_plain(getattr(row, field) for row in rows)
        for place, row in enumerate(rows):
            number = getattr(row, field)
            headers = of_headers.get(_plain(number), set())
            if not headers or number in headers:
                continue
            others = (headers if len(headers) > 1 else of_rows[_plain(number)]) - {number}
            if others:
                listed = " or ".join(sorted({number, *others}))
                problems.append(
                    (
                        row.line,
                        f"{field} is {number}, and without leading zeros {listed} are the same; "
                        "the number as in the CT's header is needed.",
                    )
                )
                continue
            rows[place] = replace(row, **{field: min(headers)})
            completed += 1
    return rows, completed, problems


def _by_plain(numbers: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for number in numbers:
        if _plain(number):
            found[_plain(number)].add(number)
    return found


def _plain(number: str) -> str:
    """A number without leading zeros; "" for other texts, which Excel does not change."""
    return number.lstrip("0") if number.isdecimal() else ""
