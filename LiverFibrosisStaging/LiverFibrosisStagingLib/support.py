"""Whether a predicted stage is supported, and what the measured signs say beside it."""

from collections.abc import Mapping, Sequence

from .imaging.input_checks import PHASE, REFUSE, WARN, Check
from .signs.measure import MeasuredSigns
from .signs.placing import Placement, place_signs


def reasons(
    checks: Sequence[Check], measurements: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    """Why a predicted stage is not supported, one sentence each; none if it is.

    checks: of the input; measurements: of the predicted stage's location map.
    """
    found = [
        check.sentence
        for check in checks
        if check.outcome == REFUSE or (check.key == PHASE and check.outcome == WARN)
    ]
    outside = measurements["rest"]["share"]
    if outside > 0.5:
        found.append(f"{outside:.0%} of the location map's weight lies outside liver and spleen.")
    return tuple(found)


def placements(signs: MeasuredSigns) -> tuple[Placement, ...]:
    """The measured signs among the published groups, one for each sign and source."""
    return place_signs(signs)
