"""Measured signs as scores of fibrosis: their direction and cutoffs are published, never chosen by
the evaluated cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..signs.measure import UNITS
from ..signs.published import published_signs

# Sign without published values by stage -> the published sign that it changes with.
_FOLLOWS = {
    "spleen_liver_ratio": "spleen_volume_ml",
    "spleen_ml_per_m2": "spleen_volume_ml",
    "liver_ml_per_m2": "liver_volume_ml",
}
# Harbin et al. 1980, Radiology 135:273-283: the caudate lobe grows relative to the right lobe.
_KNOWN = {"caudate_right_ratio": 1}
# Group -> the finding of a published cutoff.
_FINDINGS = {
    "significant": "significant fibrosis",
    "advanced": "advanced fibrosis",
    "cirrhosis": "cirrhosis",
}


@dataclass(frozen=True)
class Cut:
    """The lowest score of a positive case, and the publication."""

    score: float
    source: str


def directions() -> dict[str, int]:
    """Sign -> 1 if it rises with fibrosis, -1 if it falls; without those of which nothing is known.

    By the means of the lowest and the highest published group of the first source.
    """
    found = {key: _direction(key) for key in UNITS}
    return {key: sign for key, sign in found.items() if sign is not None}


def published_cuts(key: str) -> Mapping[str, Cut]:
    """Group -> the published cutoff of a sign in `directions`, as a score that rises with it."""
    sign = directions()[key]
    return {
        group: Cut(sign * cutoff.value, cutoff.source.name)
        for group, finding in _FINDINGS.items()
        for cutoff in published_signs().cutoffs
        if cutoff.sign.key == key
        and cutoff.finding == finding
        and (cutoff.side == "at least") == (sign > 0)
    }


def _direction(key: str) -> int | None:
    if key in _KNOWN:
        return _KNOWN[key]
    groups = [one for one in published_signs().groups if one.sign.key == _FOLLOWS.get(key, key)]
    if not groups:
        return None
    own = [one for one in groups if one.source == groups[0].source]
    return 1 if own[-1].mean > own[0].mean else -1
