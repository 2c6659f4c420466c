"""The table of a cohort's results: its columns, and a row from the summary of a result.

The columns are documented for users in docs/results-table.md, which a test compares with SCHEMA.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import __version__
from ..imaging.input_checks import PASS
from ..model import StagingModel
from ..report.content import SIGN_NAMES
from ..report.summary import REGION_NAMES, at_point, group_stages
from ..signs.measure import UNITS
from ..stages import GROUPS, RESEARCH_USE, STAGES, expected_stage

TABLE_SCHEMA = 2
TEXT, NUMBER, INTEGER, BOOLEAN = "text", "number", "integer", "boolean"
DONE, FAILED = "done", "failed"
SEPARATOR = " | "  # of several sentences in one cell
DECIMALS = 6  # of all numbers


@dataclass(frozen=True)
class Column:
    """A column: its kind is TEXT, NUMBER, INTEGER or BOOLEAN; unit: "" for a number without one."""

    name: str
    kind: str
    unit: str
    meaning: str


def _regions() -> tuple[Column, ...]:
    meanings = {
        "mean": "mean of the location map; 1 is its mean over the body",
        "share": "share of the location map's weight, 0 to 1",
    }
    return tuple(
        Column(f"{region}_{what}", NUMBER, "", f"{name}: {meaning}.")
        for region, name in REGION_NAMES.items()
        for what, meaning in meanings.items()
    )


def _signs() -> tuple[Column, ...]:
    edge = "Length of the liver's edge on which the nodularity was measured"
    return tuple(
        Column(key, NUMBER, unit, f"{SIGN_NAMES.get(key, edge)}.") for key, unit in UNITS.items()
    )


SCHEMA = (
    Column("case", TEXT, "", "Name of the case and of its result folder; unique."),
    Column("status", TEXT, "", f"{DONE} or {FAILED}."),
    Column("reason", TEXT, "", "Why the case failed."),
    Column("chosen", TEXT, "", "Why this series was chosen among those of its study."),
    Column("stage", TEXT, "", "Predicted stage, F0 to F4."),
    Column("supported", BOOLEAN, "", "Whether nothing speaks against the predicted stage."),
    Column("reasons", TEXT, "", "Why the stage is not supported; several are separated by |."),
    *(Column(stage, NUMBER, "", f"Probability of {stage}, 0 to 1.") for stage in STAGES),
    *(
        Column(name, NUMBER, "", f"Probability of {group_stages(name)} ({name}), 0 to 1.")
        for name in GROUPS
    ),
    *(
        Column(
            f"{name}_positive",
            BOOLEAN,
            "",
            f"Whether {group_stages(name)} ({name}) is at or above the model's operating point.",
        )
        for name in GROUPS
    ),
    Column("expected", NUMBER, "", "Expected stage: mean of the probabilities, 0 (F0) to 4 (F4)."),
    Column(
        "agreeing", NUMBER, "", "Share of an ensemble's networks that predict the stage, 0 to 1."
    ),
    Column("explained", TEXT, "", "Stage or group that the location map explains."),
    *_regions(),
    Column("surface_to_core", NUMBER, "", "liver_surface_mean divided by liver_core_mean."),
    Column(
        "outside_share",
        NUMBER,
        "",
        "Share of the location map's weight far from liver and spleen, 0 to 1.",
    ),
    Column(
        "pattern",
        TEXT,
        "",
        "Pattern of the location map: surface, core and spleen, mixed or elsewhere.",
    ),
    *_signs(),
    Column("agreement", TEXT, "", "Whether the signs agree with the predicted stage."),
    Column("phase", TEXT, "", "Contrast phase; missing if it is not known."),
    Column(
        "checks",
        TEXT,
        "",
        "Checks of the input that were not passed, as in phase: warn; several are separated by |.",
    ),
    Column("warnings", TEXT, "", "Warnings; several are separated by |."),
    Column("seconds", NUMBER, "s", "Time that the staging of the case took."),
    Column("fingerprint", TEXT, "", "Hash of the inputs, the model, the options and the software."),
    Column("model", TEXT, "", "Name of the staging model."),
    Column("model_sha256", TEXT, "", "SHA-256 of the staging model's file."),
    Column("trained_on", TEXT, "", "What the staging model was trained on."),
    Column("software", TEXT, "", "Version of LiverFibrosisStaging."),
    Column("schema", INTEGER, "", "Version of these columns."),
    Column("notice", TEXT, "", "Permitted use of the results."),
)
COLUMNS = tuple(column.name for column in SCHEMA)


def columns_of_any(case: str, chosen: str, model: StagingModel) -> dict[str, Any]:
    """The columns of every case, also of one that failed; chosen: "" if there was no choice."""
    return {
        "case": case,
        "chosen": chosen or None,
        "model": model.card.name,
        "model_sha256": model.sha256,
        "trained_on": model.card.trained_on,
        "software": __version__,
        "schema": TABLE_SCHEMA,
        "notice": RESEARCH_USE,
    }


def done_row(
    case: str, chosen: str, model: StagingModel, columns: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of a staged case; columns: of its result (`columns_of`)."""
    return {**columns_of_any(case, chosen, model), "status": DONE, **columns}


def failed_row(case: str, chosen: str, model: StagingModel, reason: str) -> dict[str, Any]:
    """The row of a case that was not staged; reason: a sentence without names."""
    return {**columns_of_any(case, chosen, model), "status": FAILED, "reason": reason}


def columns_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a result, None for missing values; summary: as in staging.json."""
    location, ensemble = summary["location_map"], summary.get("ensemble")
    probabilities = np.array([summary["probabilities"][stage] for stage in STAGES])
    numbers = {
        **summary["probabilities"],
        **summary["scores"],
        "expected": expected_stage(probabilities),
        "agreeing": None if ensemble is None else ensemble["agreeing"] / ensemble["members"],
        **{
            f"{region}_{what}": values[what]
            for region, values in summary["measurements"].items()
            for what in ("mean", "share")
        },
        "surface_to_core": location["surface_to_core"],
        "outside_share": location["outside_share"],
        **summary["signs"],
        "seconds": sum(summary["seconds"].values()),
    }
    failed = [check for check in summary["checks"] if check["outcome"] != PASS]
    texts = {
        "stage": summary["stage"],
        "reasons": SEPARATOR.join(summary["reasons"]),
        "explained": location["explained"],
        "pattern": location["pattern"]["name"],
        "agreement": summary["agreement"]["sentence"],
        "phase": summary["phase"],
        "checks": SEPARATOR.join(f"{check['key']}: {check['outcome']}" for check in failed),
        "warnings": SEPARATOR.join(summary["warnings"]),
        "fingerprint": summary.get("fingerprint"),
    }
    return {
        "supported": summary["supported"],
        **{f"{name}_positive": _positive(summary, name) for name in GROUPS},
        **{name: None if n is None else round(float(n), DECIMALS) for name, n in numbers.items()},
        **{name: text or None for name, text in texts.items()},
    }


def _positive(summary: Mapping[str, Any], name: str) -> bool | None:
    found = at_point(summary, name)
    return None if found is None else found["positive"]
