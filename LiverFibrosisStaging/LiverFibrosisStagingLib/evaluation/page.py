"""evaluation.html: what was evaluated, the tables and the figures, for reading in a browser."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..stages import GROUPS, RESEARCH_USE
from .cohort import SMALL
from .measures import MIN_PATIENTS
from .tables import (
    Table,
    calibration_table,
    comparison_table,
    region_table,
    sign_table,
    sign_title,
    stages_table,
    table_2,
)

_TITLES = {
    "fig_3a_roc_groups": "ROC curves of the groups (the paper's Fig. 3a)",
    "fig_3b_roc_averages": "ROC curves of the stages and their averages (Fig. 3b)",
    "fig_5_liver_weights": "The liver's mean weight by predicted stage (Fig. 5)",
    "region_weights": "Mean weight of every region by predicted stage",
    "confusion": "Stage by histology and predicted stage",
    "reliability": "Reliability",
    "decision_curves": "Decision curves",
    "aucs": "AUCs of the network and of each sign",
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2933; max-width: 1500px; margin: 2em auto;
       padding: 0 1em; }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; font-size: 13px; display: block;
        overflow-x: auto; }
th, td { border-bottom: 1px solid #cbd2d9; padding: 0.3em 0.7em; text-align: left;
         vertical-align: top; white-space: nowrap; }
th { background: #f5f7fa; }
figure { margin: 1.5em 0; }
img { max-width: 100%; }
code { overflow-wrap: anywhere; }
.notice { background: #fff5e0; border-left: 4px solid #d9952b; padding: 0.5em 1em; }
"""


def page(found: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The page as HTML; found: as in metrics.json; figures: names of those in figures/."""
    label = found["label"]
    columns = {f"{label}, {which}": one for which, one in found["network"].items()}
    defined = {name: one for name, one in columns.items() if one is not None}
    parts = [
        f"<h1>Evaluation: {escape(label)}</h1>",
        f'<p class="notice">{escape(RESEARCH_USE)} Model trained on: '
        f"{escape(found['trained_on'])}.</p>",
        *(_items(found["warnings"])),
        "<h2>What was evaluated</h2>",
        _table(_inputs(found)),
        _left_out(found["left_out"]),
        "<h2>Groups of stages (Table 2)</h2>",
        _table(table_2(defined)),
        _about_groups(found["operating_points"], next(iter(defined.values()))["interval"]),
        "<h2>Stages</h2>",
        _table(stages_table(columns)),
        "<h2>Calibration</h2>",
        _table(calibration_table(columns)),
        "<h2>Measured signs</h2>",
        "<p>Each sign is a score in its published direction. The network is compared with it by "
        "DeLong's test on the cases in which the sign is measured.</p>",
        _table(sign_table({key: sign for key, sign in found["signs"].items() if sign["cases"]})),
        *_signs_left_out(found),
        *_comparison(found),
        "<h2>Location map</h2>",
        _table(region_table(found["location_maps"])),
        "<h2>Figures</h2>",
        *(
            f'<figure><img src="figures/{name}.png" alt="{escape(_TITLES[name])}">'
            f"<figcaption>{escape(_TITLES[name])} "
            f'(<a href="figures/{name}.svg">SVG</a>)</figcaption></figure>'
            for name in figures
        ),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>Evaluation: {escape(label)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _inputs(found: Mapping[str, Any]) -> Table:
    lines = [["Input", "Rows", "SHA-256"]]
    for name, source in found["inputs"].items():
        if source is not None:
            lines.append([name, str(source.get("rows", "")), source["sha256"]])
    for model in found["models"]:
        lines.append([f"model {model['name']}", "", model["sha256"] or "not in the results"])
    options = found["options"]
    about = f"{options['repeats']} bootstrap repeats, seed {options['seed']}"
    return [*lines, [f"software {found['software']}, {found['date']}", "", about]]


def _about_groups(points: Mapping[str, Any], interval: str) -> str:
    values = ", ".join(f"{name} {points[name]:.3g}" for name in GROUPS)
    return (
        f"<p>Operating points: {escape(points['source'])} ({values}). {escape(interval)}; that of "
        f"an AUC with fewer than {SMALL} patients in a class by DeLong's variance; none for fewer "
        f"than {MIN_PATIENTS}.</p>"
    )


def _left_out(counts: Mapping[str, int]) -> str:
    if not counts:
        return "<p>No case was left out.</p>"
    listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    return f'<p>Left out: {escape(listed)} (<a href="left_out.csv">list</a>).</p>'


def _signs_left_out(found: Mapping[str, Any]) -> list[str]:
    unmeasured = [key for key, sign in found["signs"].items() if not sign["cases"]]
    reasons = {
        "Measured in no case": unmeasured,
        "Not evaluated, since no direction is published": found["signs_without_direction"],
    }
    return [
        f"<p>{reason}: {escape(', '.join(map(sign_title, keys)))}.</p>"
        for reason, keys in reasons.items()
        if keys
    ]


def _comparison(found: Mapping[str, Any]) -> list[str]:
    other = found["comparison"]
    if other is None:
        return []
    return [
        "<h2>Comparison with other results</h2>",
        f"<p>{other['cases']} cases in both; {other['only_in_results']} only in these results, "
        f"{other['only_in_other']} only in the others. The other model was trained on: "
        f"{escape(other['trained_on'])}.</p>",
        _table(comparison_table(other["groups"], found["label"], "the other results")),
    ]


def _items(lines: Sequence[str]) -> list[str]:
    return [f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"] if lines else []


def _table(lines: Table) -> str:
    header, *rows = (
        "".join(f"<{tag}>{escape(text)}</{tag}>" for text in line)
        for line, tag in zip(lines, ["th", *["td"] * (len(lines) - 1)])
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
