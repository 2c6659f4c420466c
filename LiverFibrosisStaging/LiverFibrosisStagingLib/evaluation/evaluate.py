"""A batch's table against a reference standard: metrics.json, tables, figures and a page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import StagingError
from ..files import check_writable, write_folder, write_table
from ..fingerprint import sha256_of
from ..model import read_card
from ..report.content import SIGN_NAMES
from ..resources import default_model_path
from ..signs.measure import UNITS
from ..stages import GROUPS, RESEARCH_USE, decided, exact
from . import figures
from .cohort import SMALL, binary_measures, cohort_measures, describe_weights, weights_by_stage
from .comparing import delong
from .measures import (
    UNDEFINED,
    Interval,
    best_point,
    draw_patients,
    group_probabilities,
    interval,
    net_benefit,
    obuchowski,
    youden,
)
from .page import page
from .reading import Cases, Model, read_evaluated
from .signs import directions, published_cuts
from .tables import (
    Table,
    confusion_table,
    group_title,
    region_table,
    sign_table,
    table_2,
)

METRICS, PAGE, LEFT_OUT = "metrics.json", "evaluation.html", "left_out.csv"
TABLES = ("table_2", "confusion", "regions", "signs", "comparisons", "decision_curves")
FIGURES = (
    "fig_3a_roc_groups",
    "fig_3b_roc_averages",
    "fig_5_liver_weights",
    "region_weights",
    "confusion",
    "reliability",
    "decision_curves",
    "aucs",
)
FILES = (
    *(f"tables/{name}.csv" for name in TABLES),
    *(f"figures/{name}{ending}" for name in FIGURES for ending in (".png", ".svg")),
    LEFT_OUT,
    PAGE,
    METRICS,
)
SCHEMA = 1
ALL, SUPPORTED = "all cases", "supported cases"
OF_MODEL = "of the model"
OPTIMISTIC = "Youden's index on these cases; optimistic"
DIGITS = 6  # significant, in metrics.json


def evaluate(
    results: str | Path,
    truth: str | Path,
    output: str | Path,
    compare: str | Path | None = None,
    label: str = "network",
    model: str | Path | None = None,
    repeats: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a batch's table against a reference standard; returns what metrics.json has.

    results, truth: see `reading.read_evaluated`. compare: another batch's table, whose AUCs are
    compared on the cases that both have. label: name of the results in tables and figures. model:
    the model file that made the results, for its operating points; those of a shipped model are
    found by its hash. Without a model, they are Youden's on these cases, and are marked as
    optimistic. repeats, seed: of the bootstrap over patients.

    `output` receives FILES, all or none. The same inputs give the same metrics.json but for the
    date. Only cases that are in the results are named. Raises StagingError, also without
    matplotlib.
    """
    results, truth, output = Path(results), Path(truth), Path(output)
    figures.check_matplotlib()
    check_writable(output)
    cases = read_evaluated(results, truth)
    other = None if compare is None else read_evaluated(Path(compare), truth)
    points, points_source = _operating_points(cases, None if model is None else Path(model))
    positive = _positive(cases, points, points_source)
    found = _measured(cases, positive, repeats, seed)
    found = {
        "schema": SCHEMA,
        "research_use": RESEARCH_USE,
        "trained_on": _trained_on(cases.models),
        "label": label,
        "software": __version__,
        "date": date.today().isoformat(),
        "inputs": {
            "results": vars(cases.results),
            "truth": vars(cases.truth),
            "compare": None if other is None else vars(other.results),
            "model": None if model is None else {"sha256": sha256_of(Path(model))},
        },
        "models": [one._asdict() for one in cases.models],
        "options": {"label": label, "repeats": repeats, "seed": seed},
        "operating_points": {"source": points_source, **points},
        "warnings": _warnings(cases, points_source),
        "left_out": dict(Counter(_kind(one.reason) for one in cases.left_out)),
        **found,
        "comparison": None if other is None else _compared(cases, other),
    }
    found = rounded(found)

    def write(folder: Path) -> None:
        _write(found, cases, folder)

    write_folder(output, FILES, write)
    return found


def _operating_points(cases: Cases, file: Path | None) -> tuple[dict[str, float], str]:
    """Group -> lowest probability of a positive case, and where it is from."""
    named = {one.sha256 for one in cases.models}
    candidates = default_model_path().parent.glob("LFS*.onnx") if file is None else [file]
    for candidate in sorted(candidates):
        card = read_card(candidate)
        fits = {sha256_of(candidate)} == named
        if file is not None and named == {""}:  # a table without hashes has the models' names
            fits = {card.name} == {one.name for one in cases.models}
        if fits and len(card.operating_points) == len(GROUPS):
            return card.operating_points, OF_MODEL
        if file is not None and not fits:
            raise StagingError(
                f"{file}: not the model of the results; the model that staged all of them is "
                "needed."
            )
    scores = group_probabilities(cases.probabilities)
    return {
        name: best_point(cases.stage, scores[name], first) for name, first in GROUPS.items()
    }, OPTIMISTIC


def _positive(
    cases: Cases, points: Mapping[str, float], points_source: str
) -> dict[str, np.ndarray]:
    """Group -> whether each case is positive [n], by the results where they say it of these points.

    Their probabilities are rounded, and a case may be exactly at a point.
    """
    if points_source == OF_MODEL and cases.positive is not None:
        return cases.positive
    scores = group_probabilities(cases.probabilities)
    return {name: scores[name] >= points[name] for name in GROUPS}


def _measured(
    cases: Cases, positive: Mapping[str, np.ndarray], repeats: int, seed: int
) -> dict[str, Any]:
    def of(chosen: np.ndarray) -> dict[str, Any] | None:
        if not chosen.any():
            return None
        return cohort_measures(
            cases.stage[chosen],
            cases.probabilities[chosen],
            cases.predicted[chosen],
            {name: positive[name][chosen] for name in GROUPS},
            cases.patient[chosen],
            repeats,
            seed,
        )

    everyone = np.ones(len(cases.stage), bool)
    return {
        "network": {
            ALL: of(everyone),
            SUPPORTED: None if cases.supported is None else of(cases.supported),
        },
        "signs": {key: _sign(cases, key, repeats, seed) for key in directions()},
        "signs_without_direction": [
            key for key in UNITS if key in SIGN_NAMES and key not in directions()
        ],
        "location_maps": describe_weights(weights_by_stage(cases.weights, cases.predicted)),
    }


def _sign(cases: Cases, key: str, repeats: int, seed: int) -> dict[str, Any]:
    """Measures of a sign over the cases in which it is measured, and the network against it.

    None for a group of which these cases have one class only.
    """
    measured = np.isfinite(cases.signs[key])
    found: dict[str, Any] = {
        "rises": directions()[key] > 0,
        "cases": int(measured.sum()),
        "obuchowski": None,
        "groups": dict.fromkeys(GROUPS),
    }
    if not measured.any():
        return found
    stage, patient = cases.stage[measured], cases.patient[measured]
    score = directions()[key] * cases.signs[key][measured]
    known, one = exact(stage)
    weights = draw_patients(patient[known], repeats, seed)
    found["obuchowski"] = interval(lambda w: obuchowski(one, score[known], w), weights)
    network = group_probabilities(cases.probabilities[measured])
    cuts = published_cuts(key)
    for name, first in GROUPS.items():
        known, at = decided(stage, first)
        if at.all() or not at.any():
            continue
        own = score[known]
        cut = cuts[name].score if name in cuts else youden(at, own)
        weights = draw_patients(patient[known], repeats, seed)
        found["groups"][name] = {
            "cutoff": directions()[key] * cut,
            "cutoff_source": cuts[name].source if name in cuts else OPTIMISTIC,
            "cases": len(at),
            **binary_measures(at, own, own >= cut, patient[known], weights),
            "network_against_sign": _delong(at, network[name][known], own, patient[known]),
        }
    return found


def _delong(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, patient: np.ndarray
) -> dict[str, float] | None:
    """DeLong's comparison and its number of cases; None with fewer than two patients in a class."""
    if min(len(np.unique(patient[one])) for one in (truth, ~truth)) < 2:
        return None
    return {"cases": len(truth), **delong(truth, first, second, patient)._asdict()}


def _compared(cases: Cases, other: Cases) -> dict[str, Any]:
    """DeLong's comparison of two tables on the cases that both have."""
    place = {name: number for number, name in enumerate(other.case)}
    own = np.array([number for number, name in enumerate(cases.case) if name in place], int)
    if not len(own):
        raise StagingError("The two tables of results have no evaluated case in common.")
    theirs = np.array([place[cases.case[number]] for number in own])
    stage, patient = cases.stage[own], cases.patient[own]
    first = group_probabilities(cases.probabilities[own])
    second = group_probabilities(other.probabilities[theirs])
    groups = {}
    for name, lowest in GROUPS.items():
        known, truth = decided(stage, lowest)
        groups[name] = _delong(truth, first[name][known], second[name][known], patient[known])
    return {
        "cases": len(own),
        "only_in_results": len(cases.case) - len(own),
        "only_in_other": len(other.case) - len(own),
        "models": [one._asdict() for one in other.models],
        "trained_on": _trained_on(other.models),
        "groups": groups,
    }


def _warnings(cases: Cases, points_source: str) -> list[str]:
    found = []
    if len(cases.models) > 1:
        found.append(
            f"The results are from {len(cases.models)} models; the measures are not those of one "
            "model."
        )
    if points_source == OPTIMISTIC:
        found.append(
            "The operating points were chosen on these cases, so sensitivity, specificity and "
            "accuracy are optimistic."
        )
    for name, first in GROUPS.items():
        known, truth = decided(cases.stage, first)
        if not known.all():
            found.append(
                f"{group_title(name)}: {len(truth)} of {len(known)} cases are scored; the range of "
                "stages of the others does not say whether they have it."
            )
        for count, words in ((int(truth.sum()), "with"), (int((~truth).sum()), "without")):
            if count < SMALL:
                found.append(f"{group_title(name)}: there are only {count} cases {words} it.")
    return found


def _trained_on(models: Sequence[Model]) -> str:
    texts = dict.fromkeys(one.trained_on.rstrip(".") for one in models if one.trained_on)
    return "; ".join(texts) or "not stated in the results"


def _kind(reason: str) -> str:
    """The reason without what concerns one case only."""
    return "not staged" if reason.startswith("not staged") else reason.rpartition(": ")[2]


def rounded(value: Any) -> Any:
    """The value with its floats, at any depth, rounded to 6 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def _write(found: dict[str, Any], cases: Cases, folder: Path) -> None:
    notice = f"Model trained on: {found['trained_on']}. {RESEARCH_USE}"
    measures = {f"{found['label']}, {which}": one for which, one in found["network"].items() if one}
    for name, lines in (
        ("table_2", table_2(measures)),
        ("confusion", confusion_table(found["network"][ALL])),
        ("regions", region_table(found["location_maps"])),
        ("signs", sign_table(found["signs"])),
        ("comparisons", _comparison_rows(found)),
        ("decision_curves", _decision_rows(cases)),
    ):
        _write_lines(folder / "tables" / f"{name}.csv", lines, notice)
    _write_lines(folder / LEFT_OUT, [["case", "reason"], *map(list, cases.left_out)], notice)
    (folder / "figures").mkdir()
    weights = weights_by_stage(cases.weights, cases.predicted)
    about = {**found["network"][ALL], "evaluation": found["label"]}
    drawn_from = cases.stage, cases.probabilities, about
    drawn = (
        figures.roc_groups(*drawn_from),
        figures.roc_averages(*drawn_from),
        figures.liver_weights(weights["liver"]),
        figures.region_weights(weights),
        figures.confusion(about),
        figures.reliability(about, "probabilities of the table"),
        figures.decision_curves(cases.stage, cases.probabilities),
        figures.areas(_areas(found)),
    )
    for name, figure in zip(FIGURES, drawn, strict=True):
        figures.add_footer(figure, found["trained_on"])
        figures.save(figure, folder / "figures" / name)
    (folder / PAGE).write_text(page(found, FIGURES), encoding="utf-8")
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / METRICS).write_text(f"{text}\n", encoding="utf-8")


def _write_lines(path: Path, lines: Table, notice: str) -> None:
    """A table with the notice in its last column."""
    header = [*lines[0], "notice"]
    write_table(path, header, [dict(zip(header, [*line, notice])) for line in lines[1:]])


def _areas(found: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    """Name of the network and of each measured sign -> group -> AUC."""
    areas = {found["label"]: {n: g["auc"] for n, g in found["network"][ALL]["groups"].items()}}
    for key, one in found["signs"].items():
        if one["cases"]:
            areas[f"{SIGN_NAMES[key]} (n={one['cases']})"] = {
                group: UNDEFINED if measured is None else measured["auc"]
                for group, measured in one["groups"].items()
            }
    return areas


def _comparison_rows(found: Mapping[str, Any]) -> Table:
    """DeLong's comparisons as numbers: the network with each sign, and with the other table."""
    fields = ("first", "second", "difference", "low", "high", "p")
    rows = [["first score", "second score", "group", "cases", *fields]]
    compared = {
        key: (one["cases"], {n: g and g["network_against_sign"] for n, g in one["groups"].items()})
        for key, one in found["signs"].items()
    }
    if found["comparison"] is not None:
        other = found["comparison"]
        compared["other results"] = (other["cases"], other["groups"])
    for name, (count, groups) in compared.items():
        for group, one in groups.items():
            numbers = [""] * len(fields) if one is None else [one[key] for key in fields]
            compared_on = count if one is None else one["cases"]
            rows.append([found["label"], name, group, compared_on, *numbers])
    return rows


def _decision_rows(cases: Cases) -> Table:
    rows: Table = [["group", "threshold", "net benefit", "net benefit of all positive"]]
    scores = group_probabilities(cases.probabilities)
    for name, first in GROUPS.items():
        known, truth = decided(cases.stage, first)
        if not known.any():
            continue
        own = net_benefit(truth, scores[name][known], figures.THRESHOLDS)
        everyone = net_benefit(truth, np.ones(len(truth)), figures.THRESHOLDS)
        for line in zip(figures.THRESHOLDS, own, everyone):
            rows.append([name, *(f"{value:.6g}" for value in line)])
    return rows
