"""A patient's value among the published groups, one sign and one source at a time.

Percentiles of different signs are never combined into a probability of a stage: nobody has
published how.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from ..errors import StagingError
from .published import Group, Interval, PublishedSigns, Sign, Source, published_signs

# "Above 95 % of F0": from this percentile on. "Within the range": the central 90 %.
HIGH, LOW = 95.0, 5.0
_IN_WORDS = {"no cirrhosis": "patients without cirrhosis", "cirrhosis": "patients with cirrhosis"}


@dataclass(frozen=True)
class GroupPercentile:
    """The percentile, 0 to 100, of a value within a group."""

    group: Group
    percentile: float


@dataclass(frozen=True)
class Placement:
    """A value among one source's groups, or against its reference interval.

    percentiles: one for each group, none for an interval; sentence: the same in words.
    """

    sign: Sign
    value: float
    source: Source
    percentiles: tuple[GroupPercentile, ...]
    interval: Interval | None
    sentence: str


def percentile(group: Group, value: float) -> float:
    """The share of a group, in percent, with a smaller value.

    Published are mean m and SD s only; the distribution is assumed to be the one that the data file
    names for the sign, with this mean and SD. "normal": N(m, s). "log-normal", for skewed values:
    the logarithm has variance v = ln(1 + (s / m)^2) and mean ln(m) - v / 2. The group's size does
    not enter. Raises StagingError for a value that is not a number, or not above 0 in a log-normal
    distribution.
    """
    if not math.isfinite(value) or (group.sign.shape == "log-normal" and value <= 0):
        raise StagingError(f"{group.sign.name}: {value:g} found; a number above 0 is needed.")
    if group.sign.shape == "normal":
        return 100 * _distribution(group).cdf(value)
    return 100 * _distribution(group).cdf(math.log(value))


def quantile(group: Group, percent: float) -> float:
    """The value that `percent`, above 0 and below 100, of a group are below; see `percentile`."""
    value = _distribution(group).inv_cdf(percent / 100)
    return value if group.sign.shape == "normal" else math.exp(value)


def _distribution(group: Group) -> NormalDist:
    """The distribution of a group's values, or of their logarithms if it is log-normal."""
    if group.sign.shape == "normal":
        return NormalDist(group.mean, group.sd)
    variance = math.log1p((group.sd / group.mean) ** 2)
    return NormalDist(math.log(group.mean) - variance / 2, math.sqrt(variance))


def place(key: str, value: float, published: PublishedSigns | None = None) -> tuple[Placement, ...]:
    """Place a value of a sign, in its unit, among the published groups and intervals.

    One placement for each source, in the order of the data file; none for a sign without published
    groups, or whose values cannot be compared with those of another program. published: by default
    the shipped values. Raises StagingError for an unknown sign, and for a value as in `percentile`.
    """
    published = published_signs() if published is None else published
    sign = published.sign(key)
    if not sign.comparable:
        return ()
    by_source: dict[Source, list[Group]] = {}
    for group in published.groups:
        if group.sign == sign:
            by_source.setdefault(group.source, []).append(group)
    placements = []
    for source, groups in by_source.items():
        found = tuple(GroupPercentile(group, percentile(group, value)) for group in groups)
        sentence = f"{sign.name} {sign.text(value)}: {_among(found)}."
        placements.append(Placement(sign, value, source, found, None, sentence))
    for interval in published.intervals:
        if interval.sign == sign:
            sentence = f"{sign.name} {sign.text(value)}: {_against(interval, value)}."
            placements.append(Placement(sign, value, interval.source, (), interval, sentence))
    return tuple(placements)


def _among(found: tuple[GroupPercentile, ...]) -> str:
    above = [each.group.group for each in found if each.percentile >= HIGH]
    below = [each.group.group for each in found if each.percentile <= LOW]
    within = [each.group.group for each in found if LOW < each.percentile < HIGH]
    parts = (
        (f"above {HIGH:g} % of", above),
        (f"below {100 - LOW:g} % of", below),
        ("within the range of", within),
    )
    return ", ".join(f"{start} {_names(groups)}" for start, groups in parts if groups)


def _against(interval: Interval, value: float) -> str:
    if not math.isfinite(value):
        raise StagingError(f"{interval.sign.name}: {value:g} found; a number is needed.")
    # Compared as they are written: 322.3 mL is not above "81 to 322 mL".
    shown, lowest, highest = (
        round(number, interval.sign.decimals) for number in (value, interval.low, interval.high)
    )
    where = "within"
    if shown < lowest:
        where = "below"
    elif shown > highest:
        where = "above"
    low = f"{interval.low:.{interval.sign.decimals}f}"
    return (
        f"{where} the {100 * interval.share:g} % interval of {interval.group} "
        f"({low} to {interval.sign.text(interval.high)})"
    )


def _names(groups: list[str]) -> str:
    """Names of groups in words: neighbouring stages as a range, everything else one by one."""
    runs: list[list[str]] = []
    for group in groups:
        if runs and _follows(runs[-1][-1], group):
            runs[-1].append(group)
        else:
            runs.append([group])
    words = [
        _IN_WORDS.get(run[0], run[0])
        if len(run) == 1
        else f"{run[0].partition('-')[0]} to {run[-1]}"
        for run in runs
    ]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _follows(before: str, after: str) -> bool:
    """Whether the second group starts with the stage after the last one of the first."""
    if before in _IN_WORDS or after in _IN_WORDS:
        return False
    return int(after[1]) == int(before[-1]) + 1
