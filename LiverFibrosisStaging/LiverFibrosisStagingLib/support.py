"""Whether a predicted stage is supported, and what the measured signs say beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .ensemble import disagreement
from .imaging.input_checks import (
    COVERAGE,
    LIVER_VOLUME,
    MIN_CUT_CM2,
    PHASE,
    REFUSE,
    WARN,
    Check,
)
from .report.summary import outside_sentence
from .signs.placing import HIGH, LOW, Placement
from .signs.published import published_signs
from .stages import STAGES

MAX_OUTSIDE = 0.3  # share of the map's weight far from liver and spleen (`analysis.outside_share`)
MIN_AUC = 0.7  # of a sign, to say anything about the stage; the liver's volume has 0.51


def reasons(
    stage: str,
    checks: Sequence[Check],
    outside: float | None,
    spread: dict[str, Any] | None,
    *,
    has_spleen: bool,
    spleen_is_input: bool,
) -> tuple[str, ...]:
    """Why a predicted stage is not supported, one sentence each; none if it is.

    checks: of the input, of which an overruled refusal, a wrong phase, an unusual volume of the
    liver, and a liver cut off at both ends of the scan count; outside: of the predicted stage's
    location map (`analysis.outside_share`); spread: of an ensemble (`ensemble.spread`), or None;
    has_spleen: whether there is a mask of the spleen; spleen_is_input: whether it is an input of
    the model, so that a mask that is missing or cut off by an end of the scan counts too.
    """
    found = [check.sentence for check in checks if _counts(check, spleen_is_input)]
    if spleen_is_input and not has_spleen:
        found.append("There is no mask of the spleen; the model needs it.")
    if outside is None:
        found.append(f"The location map is empty: no region contributed positively to {stage}.")
    elif outside > MAX_OUTSIDE:
        found.append(outside_sentence(outside, has_spleen))
    if spread is not None:
        found += disagreement(spread, stage)
    return tuple(found)


def _counts(check: Check, spleen_is_input: bool) -> bool:
    """Whether a check that did not pass makes the stage unsupported."""
    if check.key == COVERAGE and check.outcome == WARN:
        liver, spleen = (
            [float(check.values.get(f"{organ}_{end}_cm2", 0)) for end in ("lower", "upper")]
            for organ in ("liver", "spleen")
        )
        return min(liver) >= MIN_CUT_CM2 or (spleen_is_input and max(spleen) >= MIN_CUT_CM2)
    return check.outcome == REFUSE or (check.outcome == WARN and check.key in (PHASE, LIVER_VOLUME))


@dataclass(frozen=True)
class Agreement:
    """Whether signs and predicted stage agree, in one sentence; `agrees` is None if none is
    comparable. It is no probability: nobody has published how signs and stage are combined.
    """

    agrees: bool | None
    sentence: str


def agreement(placed: Sequence[Placement], stage: str) -> Agreement:
    """Compare a predicted stage with the groups in whose range (central 90 %) the signs are.

    Compared are signs that separate the stages (published AUC at least MIN_AUC) and for which a
    source has the predicted stage as a group of its own. A value within the range of every group
    agrees with none.
    """
    accuracies = published_signs().accuracies
    telling = {each.signs[0] for each in accuracies if len(each.signs) == 1 and each.auc >= MIN_AUC}
    same: dict[tuple[str, ...], list[str]] = {}
    other: dict[tuple[str, ...], list[str]] = {}
    open_ones: dict[tuple[str, ...], list[str]] = {}
    for placement in placed:
        groups = [each for each in placement.percentiles if each.group.group in STAGES]
        if placement.sign not in telling or stage not in {each.group.group for each in groups}:
            continue
        within = tuple(each.group.group for each in groups if LOW < each.percentile < HIGH)
        named = f"{placement.sign.name} ({placement.sign.text(placement.value)})"
        if placement.at_least:  # of a lower bound, only what it exceeds is known
            exceeded = {each.group.group for each in groups if each.percentile >= HIGH}
            if stage not in exceeded:
                continue
            within = ()
            named = f"{placement.sign.name} (at least {placement.sign.text(placement.value)})"
        kind = open_ones if len(within) == len(groups) else same if stage in within else other
        kind.setdefault(within, []).append(named)
    if not same and not other:
        parts = [f"{_are(found)} within the range of {_range(w)}" for w, found in open_ones.items()]
        if parts:
            return Agreement(None, f"{'; '.join(parts)}, which leaves every stage open.")
        return Agreement(None, "No measured sign can be compared with the predicted stage.")
    parts = [f"{_are(found)} within the range of {_range(w)}" for w, found in same.items()]
    if not other:
        return Agreement(True, f"{'; '.join(parts)}, as the predicted stage {stage}.")
    parts += [
        f"{_are(signs)} within the range of {_range(within)}, not of the predicted stage {stage}"
        if within
        else f"{_are(signs)} not within the range of the predicted stage {stage}"
        for within, signs in other.items()
    ]
    return Agreement(False, f"{'; '.join(parts)}: look again.")


def _are(signs: Sequence[str]) -> str:
    if len(signs) == 1:
        return f"{signs[0]} is"
    return f"{', '.join(signs[:-1])} and {signs[-1]} are"


def _range(stages: Sequence[str]) -> str:
    """Stages in order as "F3 to F4", "F0", or "F0, F2" if they are no neighbours."""
    indices = [STAGES.index(stage) for stage in stages]
    if len(stages) > 1 and indices == list(range(indices[0], indices[-1] + 1)):
        return f"{stages[0]} to {stages[-1]}"
    return ", ".join(stages)
