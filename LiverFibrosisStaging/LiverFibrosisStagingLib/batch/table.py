"""The table of a cohort's results: its columns, and a row from the summary of a result."""

from typing import Any

from ..imaging.input_checks import PASS
from ..report.summary import REGION_NAMES
from ..signs.measure import UNITS
from ..stages import GROUPS, STAGES

TABLE = "results.csv"
COLUMNS = (
    "case",
    "status",
    "reason",
    "stage",
    "supported",
    "reasons",
    *STAGES,
    *GROUPS,
    "agreeing",
    "explained",
    *(f"{region}_{what}" for region in REGION_NAMES for what in ("mean", "share")),
    "surface_to_core",
    "outside_share",
    "pattern",
    *UNITS,
    "agreement",
    "phase",
    "checks",
    "warnings",
    "model",
    "trained_on",
    "notice",
)


def columns_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The columns of a result; summary: as in staging.json."""
    measurements = {
        f"{region}_{what}": round(values[what], 6)
        for region, values in summary["measurements"].items()
        for what in ("mean", "share")
    }
    return {
        "stage": summary["stage"],
        "supported": summary["supported"],
        "reasons": " ".join(summary["reasons"]),
        **{name: round(p, 6) for name, p in summary["probabilities"].items()},
        **{name: round(p, 6) for name, p in summary["scores"].items()},
        "agreeing": _agreeing(summary),
        "explained": summary["location_map"]["explained"],
        **measurements,
        "surface_to_core": _rounded(summary["location_map"]["surface_to_core"]),
        "outside_share": _rounded(summary["location_map"]["outside_share"]),
        "pattern": summary["location_map"]["pattern"]["name"],
        **{key: _rounded(value) for key, value in summary["signs"].items()},
        "agreement": summary["agreement"]["sentence"],
        "phase": summary["phase"],
        "checks": " ".join(
            f"{check['key']}: {check['outcome']}."
            for check in summary["checks"]
            if check["outcome"] != PASS
        ),
        "warnings": " ".join(summary["warnings"]),
    }


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 6)


def _agreeing(summary: dict[str, Any]) -> float | str:
    """Share of an ensemble's networks that predict the stage."""
    found = summary.get("ensemble")
    return "" if found is None else round(found["agreeing"] / found["members"], 6)
