"""A result's summary (staging.json) as a table for Slicer's scene, the clipboard and the panel."""

from collections.abc import Mapping
from typing import Any

from ..files import cell
from ..stages import GROUPS, STAGES

SURFACE_MM = 10.0  # thickness of the liver's surface: over one voxel of the shipped model's map
AROUND_MM = 10.0  # of the liver: signs of its surface lie on both sides of its border
COLUMNS = ("Quantity", "Value", "Unit")
REGION_NAMES = {
    "liver": "Liver",
    "liver_surface": "Liver surface",
    "liver_core": "Liver core",
    "spleen": "Spleen",
    "rest": "Rest of the body",
}

ABOUT_POINTS = (
    "The operating points are the model's, chosen in its training by Youden's index on held-out "
    "cases. The predicted stage is the median of the probabilities and does not use them, so that "
    "a CT of stage F3 can be positive for cirrhosis."
)


def group_stages(name: str) -> str:
    """The stages of a group: "F2-F4" for "significant", "F4" for "cirrhosis"."""
    first, last = STAGES[GROUPS[name]], STAGES[-1]
    return first if first == last else f"{first}-{last}"


def segmented_by(summary: Mapping[str, Any]) -> str:
    """Who segmented the organs, such as "V-Net", "V-Net, edited" or "User"."""
    segmentation = summary["segmentation"]
    if segmentation is None:
        return "User"
    if segmentation.get("organs") == ["liver"]:
        return "V-Net (liver), user (spleen)"
    return "V-Net, edited" if segmentation.get("edited") else "V-Net"


def outside_sentence(share: float, has_spleen: bool) -> str:
    """The share of a location map's weight that is far from the organs, in words.

    share: 0..1 (`analysis.outside_share`); has_spleen: whether there is a mask of the spleen.
    """
    beyond = " and outside the spleen" if has_spleen else ""
    return (
        f"{100 * share:.0f} % of the location map's weight lies farther than {AROUND_MM:g} mm from "
        f"the liver{beyond}."
    )


def pattern_sentences(summary: Mapping[str, Any]) -> str:
    """The numbers that the map's pattern follows from, and its weight far from the organs."""
    location = summary["location_map"]
    outside = outside_sentence(location["outside_share"], "spleen" in summary["measurements"])
    return f"{location['pattern']['sentence']} {outside}"


def further_warnings(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The warnings that no check states."""
    stated = {check["sentence"] for check in summary["checks"]}
    return tuple(warning for warning in summary["warnings"] if warning not in stated)


def group_label(name: str) -> str:
    """A group's stages and name: "F2-F4 (significant)"."""
    return f"{group_stages(name)} ({name})"


def at_point(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A group's operating `point` and whether the case is `positive`; None without a point, and in
    summaries of schema 3, which had none.
    """
    return summary.get("operating_points", {}).get(name)


def told_apart(score: float, point: float) -> tuple[str, str]:
    """Both with two decimals, or with as many as they need to differ if they are not equal."""
    for decimals in range(2, 17):
        texts = f"{score:.{decimals}f}", f"{point:.{decimals}f}"
        if texts[0] != texts[1] or score == point:
            break
    return texts


def point_sentence(summary: Mapping[str, Any], name: str) -> str:
    """A group's score against its operating point; "" without a point."""
    found = at_point(summary, name)
    if found is None:
        return ""
    score, point = told_apart(summary["scores"][name], found["point"])
    where = "at or above" if found["positive"] else "below"
    return (
        f"{group_label(name)}: {score}, {where} the operating point {point}: "
        f"{answer(found['positive'])}."
    )


def answer(positive: bool) -> str:
    """What a case is at an operating point, in a word."""
    return "positive" if positive else "negative"


def points_note(summary: Mapping[str, Any]) -> str:
    """The groups at their operating points, and ABOUT_POINTS; "" without any."""
    sentences = [sentence for name in GROUPS if (sentence := point_sentence(summary, name))]
    return " ".join([*sentences, ABOUT_POINTS]) if sentences else ""


def table_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of (quantity, value, unit): stage, whether it is supported, probabilities, scores,
    measurements, pattern, agreement with the signs, warnings and provenance.
    """
    explained = summary["location_map"]["explained"]
    rows = [
        ("Predicted stage", summary["stage"], ""),
        ("Supported", "yes" if summary["supported"] else "no", ""),
    ]
    rows += [("Not supported because", reason, "") for reason in summary["reasons"]]
    rows += [
        (f"Probability of {stage}", f"{value:.3f}", "")
        for stage, value in summary["probabilities"].items()
    ]
    rows += [
        (f"Probability of {name} ({group_stages(name)})", f"{summary['scores'][name]:.3f}", "")
        for name in GROUPS
    ]
    rows += [
        (
            f"Positive for {name} ({group_stages(name)}), at {found['point']:.3f} or above",
            "yes" if found["positive"] else "no",
            "",
        )
        for name in GROUPS
        if (found := at_point(summary, name)) is not None
    ]
    if "ensemble" in summary:
        found, stage = summary["ensemble"], summary["stage"]
        low, high = found["range"][stage]
        rows += [
            (f"Networks predicting {stage}", f"{found['agreeing']} of {found['members']}", ""),
            (f"Probability of {stage} by network", f"{low:.3f} to {high:.3f}", ""),
        ]
    for key, values in summary["measurements"].items():
        name = REGION_NAMES[key]
        rows += [
            (f"{name}: attention for {explained}", f"{values['mean']:.2f}", "x body mean"),
            (f"{name}: share of attention", f"{100 * values['share']:.1f}", "%"),
            (f"{name}: volume", f"{values['volume_ml']:.0f}", "mL"),
        ]
    rows += [
        ("Pattern of the location map", summary["location_map"]["pattern"]["name"], ""),
        ("Signs and predicted stage", summary["agreement"]["sentence"], ""),
    ]
    rows += [("Warning", warning, "") for warning in summary["warnings"]]
    rows += [
        ("Liver and spleen segmented by", segmented_by(summary), ""),
        ("Model", summary["model"]["name"], ""),
        ("Trained on", summary["model"]["trained_on"], ""),
        ("Date", summary["date"], ""),
        ("Use", summary["research_use"], ""),
    ]
    return rows


def table_text(summary: Mapping[str, Any]) -> str:
    """The table as tab-separated text with a header, for pasting into a spreadsheet."""
    rows = (COLUMNS, *table_rows(summary))
    return "".join("\t".join(cell(" ".join(text.split())) for text in row) + "\n" for row in rows)
