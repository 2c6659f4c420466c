"""MODEL_CARD.md of a model trained on painted fibrosis, from the model file and its results."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_text
from common.tables import MISSING, markdown
from LiverFibrosisStagingLib.card import Card
from LiverFibrosisStagingLib.evaluation.measures import auc, draw_patients, interval
from LiverFibrosisStagingLib.explanation_check import CHANGES
from LiverFibrosisStagingLib.model import read_card
from LiverFibrosisStagingLib.report.summary import group_label
from LiverFibrosisStagingLib.stages import GROUPS, RESEARCH_USE, STAGES

METRICS, CASES, REAL = "metrics.json", "cases.csv", "real_cts.csv"
REPEATS = 2000
MEANING = (
    "A predicted F3 means that liver and spleen in this CT look like the published average of "
    "patients with F3, as it was painted. No patient with a known stage was used, neither for "
    "training nor for evaluation, so it is not known how often a prediction is right."
)
LIMITS = (
    "How the model does on patients is unknown: no CT with a histological stage was available.",
    "The painted signs are averages of published cohorts; textures, portal vein, varices and "
    "ascites have chosen sizes ([Training](../../README.md#fibrosis-painted-into-real-anatomy)).",
    "The bodies are few. Bodies of other scanners, sizes and diseases are untested.",
    "The input must be a portal-venous CT that covers liver and spleen, with masks of both. Errors "
    "of the masks change the prediction.",
    "A location map shows which regions contributed to the prediction. It does not show disease.",
)
REAL_COLUMNS = {
    "case": "CT",
    "expected": "expected stage",
    **{change: change for change in CHANGES},
    "share_with_10_mm": "map in liver, with 10 mm, and spleen",
}
ROWS = {
    "network": "this model",
    "logistic_regression": "logistic regression on seven measured features",
    "drawn_signs": "the drawn signs themselves (what is possible)",
}


def evaluated(results: Path) -> dict[str, Any]:
    """AUCs on painted cases of unseen bodies, for a model's metadata (`training_record.Training`).

    The intervals are of bodies drawn with replacement. results: folder with cases.csv.
    """
    with (results / CASES).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    stages = np.array([int(float(row["stage"])) for row in rows])
    probabilities = np.array([[float(row[f"p_{stage}"]) for stage in STAGES] for row in rows])
    bodies = np.array([row["body"] for row in rows])
    weights = draw_patients(bodies, REPEATS, seed=0)
    found = {}
    for group, first in GROUPS.items():
        score = probabilities[:, first:].sum(axis=1)
        area = interval(lambda w, s=score, f=first: auc(stages >= f, s, w), weights)
        found[group] = {key: round(value, 4) for key, value in area.items()}
    about = (
        f"{len(rows)} cases painted into {len(np.unique(bodies))} real bodies, unseen by the "
        "measured networks; no patient with a known stage"
    )
    return {"auc": found, "evaluated_on": about}


def read_metrics(results: Path) -> dict[str, Any]:
    """The metrics of `painted.check.report` in a folder of results."""
    return json.loads((results / METRICS).read_text(encoding="utf-8"))


def write(model: Path, results: Path) -> Path:
    """Write MODEL_CARD.md into `results`; returns its path.

    results: folder with metrics.json and cases.csv of `painted.check` and, if there are real CTs,
    real_cts.csv with the columns REAL_COLUMNS of check_cts.py; changes that were not measured may
    be left out.
    """
    card = read_card(model)
    metrics = read_metrics(results)
    sections = [
        f"# Model card: {card.name}",
        f"{RESEARCH_USE}\n\nTrained on: {card.trained_on}\n\n{MEANING}",
        _model(card, model),
        _painted(card, metrics),
        *([_real(results / REAL)] if (results / REAL).exists() else []),
        "## Limitations\n\n" + "\n".join(f"- {limit}" for limit in LIMITS),
    ]
    path = results / "MODEL_CARD.md"
    write_text(path, "\n\n".join(sections) + "\n")
    return path


def _model(card: Card, model: Path) -> str:
    low, high = card.window_hu
    lines = [
        f"`{model.name}` ({model.stat().st_size / 1e6:.1f} MB), trained on {card.training['date']} "
        f"with version {card.training['code_version']}.",
        f"Input: {', '.join(card.channels)} on {' x '.join(map(str, card.patch_size))} voxels "
        f"(slices, rows, columns) of {' x '.join(f'{mm:g}' for mm in card.spacing_mm)} mm, "
        f"{low:g} to {high:g} HU.",
        f"Probabilities are calibrated with temperature {card.temperature:.2f}, fitted on painted "
        "cases of unseen bodies.",
    ]
    if card.fill is not None:
        lines.insert(
            2,
            f"Farther than {card.fill['beyond_mm']:g} mm from liver and spleen, the CT is set to "
            f"{card.fill['hu']:g} HU.",
        )
    return "## Model\n\n" + "\n".join(f"- {line}" for line in lines)


def _painted(card: Card, metrics: Mapping[str, Any]) -> str:
    header = ["", *(f"AUC {group_label(g)}" for g in GROUPS), "quadratic kappa", "middle stages"]
    rows = [header]
    for key, title in ROWS.items():
        values = [*(_number(metrics[key][g]) for g in GROUPS), _number(metrics[key]["kappa"])]
        rows.append([title, *values, _percent(metrics[key]["middle"])])
    intervals = ", ".join(
        f"{_number(area['value'])} [{_number(area['low'])}, {_number(area['high'])}]"
        for area in (card.training["auc"][group] for group in GROUPS)
    )
    signs = ", ".join(f"{name} {r:.2f}" for name, r in metrics["signs_r"].items())
    shares = metrics["map_shares"]["expected organs"]
    lines = [
        f"AUCs in the model file, with 95 % intervals over bodies: {intervals} "
        f"({card.training['evaluated_on']}).",
        "Mean expected stage of cases painted as F0 to F4: "
        f"{', '.join(map(_number, metrics['expected_by_stage']))}.",
        f"Correlation of the regressed signs with the drawn ones: {signs}.",
        "Location map of the expected stage, share within the liver, 10 mm around it, and the "
        f"spleen: median {_percent(shares['median'])}, lowest {_percent(shares['lowest'])}.",
    ]
    pairs = metrics.get("same_patient_f0_to_f4")
    if pairs:
        lines.append(
            f"The same patient painted as F0 and as F4: the expected stage is {pairs['mean']:.1f} "
            f"higher, and rises in {_percent(pairs['rising'])} of {pairs['patients']} patients."
        )
    about = (
        f"{metrics['cases']} cases, each measured with a network that had not seen its body. "
        "*Middle stages*: cases painted as F1 to F3 that are predicted as F1 to F3."
    )
    return "\n\n".join(
        [
            "## Painted cases in unseen bodies",
            about,
            markdown(rows),
            "\n".join(f"- {line}" for line in lines),
            "What changes the expected stage:",
            markdown(_changes(metrics["counterfactuals"])),
        ]
    )


def _changes(found: Mapping[str, Mapping[str, float]]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ["change", "mean move, absolute", "largest", *(f"AUC {group_label(g)}" for g in GROUPS)]
    ]
    for name, values in found.items():
        moved = (values["mean_absolute"], values["largest"])
        rows.append([name, *map(_number, (*moved, *(values[group] for group in GROUPS)))])
    return rows


def _real(path: Path) -> str:
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    columns = [column for column in REAL_COLUMNS if column in found[0]]
    rows = [[REAL_COLUMNS[column] for column in columns]]
    for row in found:
        case, *stages, share = (row[column] for column in columns)
        stages = [stage if stage == MISSING else _number(float(stage)) for stage in stages]
        rows.append([case, *stages, _percent(float(share))])
    return "\n\n".join(
        [
            "## Real CTs, unmodified",
            "Their stages are not known; a diagnosis of cirrhosis is. Each is measured with a "
            "network that had not seen its body. The columns of changes have the expected stage of "
            "the changed CT ([check-explanation](../../../docs/command-line.md"
            "#what-the-stage-depends-on)).",
            markdown(rows),
        ]
    )


def _number(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
