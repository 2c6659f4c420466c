"""What a report says, in words and numbers; `page` and `pdf` only lay it out.

Made from a result's summary (staging.json), its signs and the model's metadata, none of which
contains a name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..signs.measure import MeasuredSigns, Measurement
from ..signs.placing import Strip, strips
from ..signs.published import Sign, Source, published_signs
from ..stages import GROUPS, STAGES
from .summary import (
    REGION_NAMES,
    at_point,
    further_warnings,
    group_label,
    pattern_sentences,
    points_note,
    segmented_by,
)

TITLE = "Liver fibrosis staging on CT"
# Of a group in a strip: its central 90 % and 50 %, and its median.
STRIP_PERCENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
SIGN_NAMES = {
    "spleen_volume_ml": "Spleen volume",
    "liver_volume_ml": "Liver volume",
    "spleen_liver_ratio": "Spleen-to-liver ratio",
    "liver_mean_hu": "Liver, mean",
    "liver_sd_hu": "Liver, SD",
    "spleen_mean_hu": "Spleen, mean",
    "spleen_sd_hu": "Spleen, SD",
    "liver_minus_spleen_hu": "Liver minus spleen",
    "spleen_ml_per_m2": "Spleen by body surface",
    "liver_ml_per_m2": "Liver by body surface",
    "lsvr": "Segmental volume ratio (LSVR)",
    "caudate_right_ratio": "Caudate to right lobe",
    "nodularity_mm10": "Surface nodularity",
}
STRIPS_NOTE = (
    "Strips: pale, the central 90 % of a group, or the published interval; dark, its central 50 %; "
    "thin line, its median; coloured line, this patient. Published are mean and SD, from which the "
    "distributions are drawn: normal, or log-normal where the sign is skewed."
)
OUTCOMES = {"pass": "passed", "warn": "warning", "refuse": "failed"}


@dataclass(frozen=True)
class Bar:
    """A probability 0..1.

    chosen: emphasised; range: of an ensemble's networks, or None. point: a group's operating point,
    or None; answer: "yes" or "no", whether the value is at or above that point.
    """

    name: str
    value: float
    chosen: bool
    range: tuple[float, float] | None
    point: float | None = None
    answer: str = ""


@dataclass(frozen=True)
class Row:
    """One group of a sign.

    values: at STRIP_PERCENTILES, or the two limits of an interval; note: the share of the group
    with smaller values, or the interval's share.
    """

    label: str
    values: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class SignStrip:
    """A measured sign among the groups of one source, on an axis from `low` to `high` in its unit.

    rows: none for a sign that is not comparable; sentence: the value in words; note: on the sign
    and its distribution.
    """

    sign: Sign
    source: Source
    value: float
    sentence: str
    rows: tuple[Row, ...]
    is_interval: bool
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Region:
    """A region of the location map.

    mean: relative to the body; share: 0..1; usual: mean at the reference's percentiles, or None.
    """

    name: str
    mean: float
    share: float
    volume_ml: float
    usual: tuple[float, ...] | None


@dataclass(frozen=True)
class Report:
    """The content of a report, in the order in which it is shown.

    headline: the stage, or that it is not supported; statement: the stage and its probability in
    words; agreement: of the signs with the stage; networks: of an ensemble's networks; points: the
    groups at their operating points, "" without any; map_caption: what the location map explains;
    measured, missing: (sign, value) and (sign, reason); regions_high: end of the axis of their
    means; checks: (name, key of OUTCOMES, sentence); model, basis: (label, text).
    """

    notice: str
    headline: str
    statement: str
    supported: bool
    reasons: tuple[str, ...]
    agreement: str
    trained_on: str
    stages: tuple[Bar, ...]
    groups: tuple[Bar, ...]
    networks: str
    points: str
    map_caption: str
    signs: tuple[SignStrip, ...]
    sources: tuple[Source, ...]
    measured: tuple[tuple[str, str], ...]
    missing: tuple[tuple[str, str], ...]
    steatosis: str
    regions: tuple[Region, ...]
    regions_high: float
    regions_note: str
    pattern: str
    checks: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]
    model: tuple[tuple[str, str], ...]
    basis: tuple[tuple[str, str], ...]


def report_content(
    summary: Mapping[str, Any],
    signs: MeasuredSigns,
    reference: Mapping[str, Any],
    training: Mapping[str, Any],
) -> Report:
    """The content for one result.

    summary: as in staging.json; reference: the model's usual mean weights by stage and region
    (`card.Reference`), may be empty; training: `training_record.Training`.
    """
    stage, explained = summary["stage"], summary["location_map"]["explained"]
    model = summary["model"]
    probability = percent(summary["probabilities"][stage])
    supported = summary["supported"]
    ensemble = summary.get("ensemble")
    ranges = {} if ensemble is None else ensemble["range"]
    regions, note = usual_regions(summary, reference)
    pattern = summary["location_map"]["pattern"]["name"]
    placed = tuple(filter(None, map(_strip, strips(signs))))
    return Report(
        notice=summary["research_use"],
        headline=stage if supported else "Stage not supported",
        statement=f"Predicted fibrosis stage {stage}, probability {probability}"
        if supported
        else f"The predicted stage {stage} (probability {probability}) is not supported because:",
        supported=supported,
        reasons=tuple(summary["reasons"]),
        agreement=summary["agreement"]["sentence"],
        trained_on=f"Model {model['name']}, trained on: {model['trained_on']}",
        stages=tuple(
            Bar(name, summary["probabilities"][name], name == stage, _range(ranges.get(name)))
            for name in STAGES
        ),
        groups=tuple(_group(summary, name, _range(ranges.get(name))) for name in GROUPS),
        networks=""
        if ensemble is None
        else f"{ensemble['agreeing']} of {ensemble['members']} networks predict {stage}; "
        "the thin lines are the range of their probabilities.",
        points=points_note(summary),
        map_caption="Colours show how much each region contributed to the score for "
        f"{group_label(explained) if explained in GROUPS else explained} (Grad-CAM), "
        "in steps of 10 % of this case's maximum.",
        signs=placed,
        sources=tuple(dict.fromkeys(strip.source for strip in placed)),
        measured=tuple(
            (sign_name(found), sign_text(found))
            for found in shown_signs(signs)
            if found.value is not None
        ),
        missing=tuple(
            (sign_name(found), found.reason) for found in shown_signs(signs) if found.value is None
        ),
        steatosis=signs.steatosis.sentence,
        regions=regions,
        regions_high=1.05
        * max(1.0, *(value for each in regions for value in (each.mean, *(each.usual or ())))),
        regions_note=note,
        pattern=f"Pattern: {pattern}. {pattern_sentences(summary)}"
        if pattern
        else "The map is empty.",
        checks=tuple(
            (check["name"], check["outcome"], check["sentence"]) for check in summary["checks"]
        ),
        warnings=further_warnings(summary),
        model=_model(summary, training),
        basis=_basis(summary),
    )


def percent(value: float) -> str:
    """A fraction as "62.0 %"."""
    return f"{100 * value:.1f} %"


def _group(summary: Mapping[str, Any], name: str, spread: tuple[float, float] | None) -> Bar:
    """Emphasised if positive or, without an operating point, if the predicted stage is in it."""
    label, value, found = group_label(name), summary["scores"][name], at_point(summary, name)
    if found is None:
        return Bar(label, value, value > 0.5, spread)
    answer = "yes" if found["positive"] else "no"
    return Bar(label, value, found["positive"], spread, found["point"], answer)


def _range(found: Sequence[float] | None) -> tuple[float, float] | None:
    return None if found is None else (float(found[0]), float(found[1]))


def shown_signs(signs: MeasuredSigns) -> tuple[Measurement, ...]:
    """The signs of a table; the length of the edge is said with the nodularity (`sign_text`)."""
    return tuple(each for each in signs.measurements if each.key != "nodularity_edge_mm")


def sign_name(found: Measurement) -> str:
    """A sign's name, for tables."""
    return SIGN_NAMES.get(found.key, found.key.replace("_", " "))


def sign_text(found: Measurement) -> str:
    """A measured sign's value with its unit, and what it was measured on."""
    known = published_signs().signs.get(found.key)
    if known is not None:
        text = known.text(found.value)
    else:
        text = f"{found.value:.0f} {found.unit}" if found.unit else f"{found.value:.3g}"
    return f"{text}, {found.basis}" if found.basis else text


def source_text(source: Source) -> str:
    """A source's citation, cohort and technique."""
    about = f"{source.citation}. n = {source.n}; {source.cohort}; {source.technique}."
    return f"{about} {source.remark}".rstrip()


def _strip(strip: Strip) -> SignStrip | None:
    """None for a sign without a value; the reason is among the signs that are not measurable."""
    sign, source, found = strip.sign, strip.source, strip.placement
    if found is not None:
        value, sentence = found.value, found.sentence
    elif strip.measurement.value is not None:
        value = strip.measurement.value
        sentence = f"{sign.name} {sign_text(strip.measurement)}."
    else:
        return None
    shares = (
        {}
        if found is None
        else {p.group: _share(p.percentile, found.at_least) for p in found.percentiles}
    )
    rows = [
        Row(
            group.group,
            tuple(distribution.quantile(percentile / 100) for percentile in STRIP_PERCENTILES),
            shares[group],
        )
        for group, distribution in strip.groups
    ]
    interval = strip.interval
    if interval is not None:
        note = f"central {100 * interval.share:g} %"
        rows.append(Row(interval.group, (interval.low, interval.high), note))
    values = [value, *(end for row in rows for end in row.values)]
    low, high = min(0.0, *values), max(values)
    return SignStrip(
        sign,
        source,
        value,
        sentence,
        tuple(rows),
        interval is not None,
        low,
        high + 0.05 * (high - low),
        "" if interval is not None else sign.remark,
    )


def _share(percentile: float, at_least: bool) -> str:
    """Whole percent; the ends are open, because published are mean and SD only."""
    if percentile > 99:
        return "> 99 %"
    if at_least:
        return f"\u2265 {percentile:.0f} %" if percentile >= 0.5 else "not known"
    return "< 1 %" if percentile < 1 else f"{percentile:.0f} %"


def usual_regions(
    summary: Mapping[str, Any], reference: Mapping[str, Any]
) -> tuple[tuple[Region, ...], str]:
    """The regions, and a sentence on their reference, where the map can be compared with it."""
    stage, explained = summary["stage"], summary["location_map"]["explained"]
    compared = summary["location_map"]["percentiles"]  # not surface and core of another thickness
    usual = reference["stages"][stage] if compared else None
    regions = tuple(
        Region(
            REGION_NAMES[key],
            values["mean"],
            values["share"],
            values["volume_ml"],
            tuple(usual[key]) if usual and key in compared else None,
        )
        for key, values in summary["measurements"].items()
    )
    if usual is None:
        return regions, f"The model's metadata have no reference for this map of {explained}."
    percentiles = reference["percentiles"]
    return regions, (
        f"Reference: percentiles {percentiles[0]:g} to {percentiles[-1]:g} of "
        f"{usual['cases']} cases with predicted stage {stage} ({reference['source']})."
    )


def _model(summary: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    model = summary["model"]
    facts = [
        ("Name", model["name"]),
        ("Trained on", model["trained_on"]),
    ]
    if "cases_per_stage" in training:
        by_stage = dict(zip(STAGES, training["cases_per_stage"]))
        by_stage |= training.get("cases_per_range", {})
        counts = (f"{s} {n}" for s, n in by_stage.items())
        facts.append(("Cases by stage", ", ".join(counts)))
    if "evaluated_on" in training:
        facts.append(("Evaluated on", training["evaluated_on"]))
    for group, auc in training.get("auc", {}).items():
        facts.append(
            (
                f"AUC, {group_label(group) if group in GROUPS else group}",
                f"{auc['value']:.3f} (95 % interval {auc['low']:.3f} to {auc['high']:.3f})",
            )
        )
    facts.append(("Intended use", model["intended_use"]))
    return tuple(facts)


def _basis(summary: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    model, ct = summary["model"], summary["input"]
    spacing = " x ".join(f"{mm:.4g}" for mm in ct["spacing_mm"])
    return (
        ("Contrast phase", summary["phase"] or "not known"),
        ("CT", f"{' x '.join(map(str, ct['size']))} voxels of {spacing} mm"),
        ("Liver and spleen segmented by", segmented_by(summary)),
        ("Window", "{:g} to {:g} HU".format(*model["window_hu"])),
        ("Target layer of the location map", model["target_layer"]),
        ("SHA-256 of the model", model["sha256"]),
        ("SHA-256 of the CT", ct["sha256"]),
        ("Software", ", ".join(f"{name} {v}" for name, v in summary["software"].items())),
        ("Date", summary["date"].replace("T", " ").replace("+00:00", " UTC")),
    )


def fraction(value: float, low: float, high: float) -> float:
    """Position of a value on an axis, 0..1, kept inside."""
    if not math.isfinite(value) or high <= low:
        return 0.0
    return min(1.0, max(0.0, (value - low) / (high - low)))
