"""A patient's value among the published groups, one sign and one source at a time.

Percentiles of different signs are never combined into a probability of a stage: nobody has
published how.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

from ..errors import StagingError
from .measure import MeasuredSigns, Measurement
from .published import Group, Interval, PublishedSigns, Sign, Source, published_signs

# "Above 95 % of F0": from this percentile on. "Within the range": the central 90 %.
HIGH, LOW = 95.0, 5.0
_ONLY_PART = "not placed, since only part of the organ was scanned"
_IN_WORDS = {"no cirrhosis": "patients without cirrhosis", "cirrhosis": "patients with cirrhosis"}


@dataclass(frozen=True)
class Distribution:
    """How a sign is assumed to be distributed in a group of which only mean and SD are published.

    shape, as the data file names it for the sign: "normal", with mean mu and SD sigma, or, for
    skewed values, "log-normal", where these are mean and SD of the natural logarithm.
    """

    shape: str
    mu: float
    sigma: float

    def cdf(self, value: float) -> float:
        """The share of the group with a smaller value, 0 to 1."""
        if self.shape == "log-normal":
            value = math.log(value) if value > 0 else -math.inf
        return NormalDist(self.mu, self.sigma).cdf(value)

    def density(self, value: float) -> float:
        """The probability density at a value, per unit of the sign."""
        if self.shape == "normal":
            return NormalDist(self.mu, self.sigma).pdf(value)
        return NormalDist(self.mu, self.sigma).pdf(math.log(value)) / value if value > 0 else 0.0

    def quantile(self, share: float) -> float:
        """The value that a share of the group, between 0 and 1, does not exceed."""
        value = NormalDist(self.mu, self.sigma).inv_cdf(share)
        return math.exp(value) if self.shape == "log-normal" else value


@dataclass(frozen=True)
class GroupPercentile:
    """The percentile, 0 to 100, of a value within a group."""

    group: Group
    percentile: float


@dataclass(frozen=True)
class Placement:
    """A value among one source's groups, or against its reference interval.

    at_least: whether the value is a lower bound; then the percentiles are lower bounds too.
    percentiles: one for each group, none for an interval; sentence: the same in words.
    """

    sign: Sign
    value: float
    at_least: bool
    source: Source
    percentiles: tuple[GroupPercentile, ...]
    interval: Interval | None
    sentence: str


@dataclass(frozen=True)
class Strip:
    """What a strip shows: a patient's value of one sign over one source's groups.

    groups, with their distributions, and intervals: of this source; both are empty for a sign that
    is not comparable. placement: None if the sign is not measurable (`measurement.reason`) or not
    comparable (`sign.remark`).
    """

    sign: Sign
    source: Source
    measurement: Measurement
    groups: tuple[tuple[Group, Distribution], ...]
    interval: Interval | None
    placement: Placement | None


def distribution(group: Group) -> Distribution:
    """The distribution with the group's mean m and SD s.

    Of a log-normal one, the logarithm has variance v = ln(1 + (s / m)^2) and mean ln(m) - v / 2.
    The group's size does not enter.
    """
    if group.sign.shape == "normal":
        return Distribution("normal", group.mean, group.sd)
    variance = math.log1p((group.sd / group.mean) ** 2)
    return Distribution("log-normal", math.log(group.mean) - variance / 2, math.sqrt(variance))


def percentile(group: Group, value: float) -> float:
    """The share of a group, in percent, with a smaller value, by its `distribution`.

    Raises StagingError for a value that is not a number, or not above 0 in a log-normal
    distribution.
    """
    if not math.isfinite(value) or (group.sign.shape == "log-normal" and value <= 0):
        raise StagingError(f"{group.sign.name}: {value:g} found; a number above 0 is needed.")
    return 100 * distribution(group).cdf(value)


def place(
    key: str, value: float, published: PublishedSigns | None = None, at_least: bool = False
) -> tuple[Placement, ...]:
    """Place a value of a sign, in its unit, among the published groups and intervals.

    One placement for each source, in the order of the data file; none for a sign without published
    groups, or whose values cannot be compared with those of another program. published: by default
    the shipped values. at_least: the value is a lower bound, of an organ that the scan's edge cuts
    off, so that only what it exceeds is known. Raises StagingError for an unknown sign, and for a
    value as in `percentile`.
    """
    published = published_signs() if published is None else published
    sign = published.sign(key)
    if not sign.comparable:
        return ()
    start = f"{sign.name} {'at least ' if at_least else ''}{sign.text(value)}"
    placements = []
    for source, groups in _by_source(published.groups, sign).items():
        found = tuple(GroupPercentile(group, percentile(group, value)) for group in groups)
        sentence = f"{start}: {_among(found, at_least)}."
        placements.append(Placement(sign, value, at_least, source, found, None, sentence))
    for source, intervals in _by_source(published.intervals, sign).items():
        for interval in intervals:
            sentence = f"{start}: {_against(interval, value, at_least)}."
            placements.append(Placement(sign, value, at_least, source, (), interval, sentence))
    return tuple(placements)


def place_signs(signs: MeasuredSigns) -> tuple[Placement, ...]:
    """All measured signs, and the lower bounds of organs cut off, among the published groups."""
    return tuple(placed for found in signs.measurements for placed in _place(found))


def strips(signs: MeasuredSigns) -> tuple[Strip, ...]:
    """The strips of a report: one for each measured sign and source, in the order of both."""
    published = published_signs()
    found = []
    for measurement in signs.measurements:
        sign = published.signs.get(measurement.key)
        if sign is None:
            continue
        placed = {(each.source, each.interval): each for each in _place(measurement)}
        for source, groups in _by_source(published.groups, sign).items():
            curves = tuple((group, distribution(group)) for group in groups)
            shown = curves if sign.comparable else ()
            found.append(Strip(sign, source, measurement, shown, None, placed.get((source, None))))
        for source, intervals in _by_source(published.intervals, sign).items():
            for interval in intervals:
                where = placed.get((source, interval))
                found.append(Strip(sign, source, measurement, (), interval, where))
    return tuple(found)


def _place(found: Measurement) -> tuple[Placement, ...]:
    value = found.at_least if found.value is None else found.value
    if value is None or found.key not in published_signs().signs:
        return ()
    return place(found.key, value, at_least=found.value is None)


_Row = TypeVar("_Row", Group, Interval)


def _by_source(rows: Iterable[_Row], sign: Sign) -> dict[Source, list[_Row]]:
    found: dict[Source, list[_Row]] = {}
    for row in rows:
        if row.sign == sign:
            found.setdefault(row.source, []).append(row)
    return found


def _among(found: tuple[GroupPercentile, ...], at_least: bool) -> str:
    above = [each.group.group for each in found if each.percentile >= HIGH]
    if at_least:
        return f"above {HIGH:g} % of {_names(above)}" if above else _ONLY_PART
    below = [each.group.group for each in found if each.percentile <= LOW]
    within = [each.group.group for each in found if LOW < each.percentile < HIGH]
    parts = (
        (f"above {HIGH:g} % of", above),
        (f"below {100 - LOW:g} % of", below),
        ("within the range of", within),
    )
    return ", ".join(f"{start} {_names(groups)}" for start, groups in parts if groups)


def _against(interval: Interval, value: float, at_least: bool) -> str:
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
    if at_least and where != "above":
        return _ONLY_PART
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
