"""Histological scores of liver fibrosis, converted to ranges of METAVIR stages.

METAVIR (Bedossa and Poynard, Hepatology 1996;24:289-293): F0 no fibrosis, F1 portal fibrosis
without septa, F2 with few septa, F3 numerous septa without cirrhosis, F4 cirrhosis.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cases.manifest import METAVIR_OF_ISHAK
from LiverFibrosisStagingLib.stages import STAGES, StageRange


@dataclass(frozen=True)
class Score:
    """A scoring system. metavir: the stage of each of its levels, in their order.

    source: of the correspondence, for the label's sentence.
    """

    name: str
    metavir: Mapping[str, int]
    source: str = ""

    @property
    def meaning(self) -> str:
        """One sentence for the manifest: what the stages are, and where they are from."""
        if not self.source:
            return "METAVIR stage of the histology, as the table gives it."
        return f"METAVIR stages of the histology, from its {self.name} stage by {self.source}."


_FIVE = {str(level): level for level in range(len(STAGES))}
SCORES = {
    "metavir": Score("METAVIR", _FIVE),
    "ishak": Score(
        "Ishak",
        {str(level): stage for level, stage in enumerate(METAVIR_OF_ISHAK)},
        "the correspondence of Goodman, J Hepatol 2007;47:598-607",
    ),
    "scheuer": Score(
        "Scheuer",
        _FIVE,
        "its five levels (Scheuer, J Hepatol 1991;13:372-374) as Goodman, J Hepatol "
        "2007;47:598-607, compares them",
    ),
    "batts-ludwig": Score(
        "Batts-Ludwig",
        _FIVE,
        "its five levels (Batts and Ludwig, Am J Surg Pathol 1995;19:1409-1417) as Goodman, "
        "J Hepatol 2007;47:598-607, compares them",
    ),
    # Perisinusoidal fibrosis has no place in METAVIR; the levels agree in what the groups need:
    # bridging is 3, cirrhosis is 4, and 1 is fibrosis either in zone 3 or in portal tracts.
    "nash-crn": Score(
        "NASH CRN",
        {"0": 0, "1a": 1, "1b": 1, "1c": 1, "2": 2, "3": 3, "4": 4},
        "its levels (Kleiner et al., Hepatology 2005;41:1313-1321): 1a to 1c as F1, although "
        "perisinusoidal fibrosis has no METAVIR stage, 2 as F2, bridging as F3, cirrhosis as F4",
    ),
}
_OTHER_NAMES = {"kleiner": "nash-crn", "nafld-crn": "nash-crn", "batts-and-ludwig": "batts-ludwig"}
# What a pathologist may write around a level of any system: F2, stage 2.
_LEVEL = r"(?:stage ?|f)?(\d[a-c]?)"
_WORDS = {
    "cirrhosis": StageRange.of("F4"),
    "no cirrhosis": StageRange.of("F0-F3"),
    "no fibrosis": StageRange.of("F0"),
}


def score_named(name: str) -> Score:
    """The system with a name such as "Batts & Ludwig" or "NASH CRN". Raises ValueError."""
    plain = re.sub(r"[\W_]+", "-", name.casefold().replace("&", " and ")).strip("-")
    plain = _OTHER_NAMES.get(plain, plain)
    if plain not in SCORES:
        raise ValueError(f"the score is {name!r}; one of {', '.join(SCORES)} is needed.")
    return SCORES[plain]


def stages_of(text: str, score: Score) -> StageRange:
    """The METAVIR stages that an entry leaves possible.

    Accepted are a level ("F2", "1b", "stage 3"), two levels ("F2-F3", "2 to 3", "F3/4"), a bound
    (">=F2", "<3"), "cirrhosis", "no cirrhosis" and "no fibrosis"; in METAVIR also with the grade of
    activity ("A1F2"), which is left out. Raises ValueError with a sentence for anything else.
    """
    levels = list(score.metavir)
    plain = _plain(text, score)
    if plain in _WORDS:
        return _WORDS[plain]
    if found := re.fullmatch(rf"(>=|<=|>|<) ?{_LEVEL}", plain):
        lowest, highest = _levels_of(found[2], text, score)
        sign = found[1]
        first = {">=": lowest, ">": highest + 1}.get(sign, 0)
        last = {"<=": highest, "<": lowest - 1}.get(sign, len(levels) - 1)
    elif found := re.fullmatch(rf"{_LEVEL}(?: ?(-|/|to) ?{_LEVEL})?", plain):
        first, last = _levels_of(found[1], text, score)
        if found[3]:
            start, last = _levels_of(found[3], text, score)
            stages_apart = int(found[3][0]) - int(found[1][0])
            if found[2] == "/" and stages_apart > 1:
                raise ValueError(
                    f"the histology is {text!r}, which may be one stage of {found[3]} or a range; "
                    f"{found[1]} or {found[1]}-{found[3]} is needed."
                )
            if start < first:
                first = len(levels)
    else:
        raise _refusal(text, score)
    if first > last:
        raise _refusal(text, score)
    metavir = [score.metavir[level] for level in levels[first : last + 1]]
    return StageRange(min(metavir), max(metavir))


def _plain(text: str, score: Score) -> str:
    """An entry in lower case, with ASCII signs, without the system's name and METAVIR's activity.

    A grade of activity is between 0 and 3.
    """
    plain = " ".join(text.casefold().split())
    for sign, replacement in (("\u2265", ">="), ("\u2264", "<="), ("\u2013", "-"), ("\u2014", "-")):
        plain = plain.replace(sign, replacement)
    plain = plain.removeprefix(score.name.casefold()).strip()
    if score is SCORES["metavir"]:
        plain = re.sub(r"^a[0-3][ ,/-]*(?=f[0-4])|(?<=f[0-4])[ ,/-]*a[0-3]$", "", plain)
    return plain


def _levels_of(level: str, text: str, score: Score) -> tuple[int, int]:
    """The first and last place of a level among those of the system: 1 is 1a to 1c in NASH CRN."""
    places = [n for n, known in enumerate(score.metavir) if level in (known, known[0])]
    if not places:
        raise _refusal(text, score)
    return places[0], places[-1]


def _refusal(text: str, score: Score) -> ValueError:
    levels = ", ".join(score.metavir)
    return ValueError(
        f"the histology is {text!r}; a {score.name} stage ({levels}), a range such as 2-3 or >=2, "
        "cirrhosis or no cirrhosis is needed; leave it empty if there is none."
    )
