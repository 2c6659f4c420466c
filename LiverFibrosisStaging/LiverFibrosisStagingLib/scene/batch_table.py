"""The table node of a batch: a row per case, with the columns of results.csv."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import slicer

from ..batch.table import COLUMNS
from ..model import StagingModel
from ..stages import RESEARCH_USE
from .scene_nodes import PART_ATTRIBUTE, set_columns

PART = "cohort"  # value of PART_ATTRIBUTE
MISSING = ("", None)


def put_table(node: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Fill the table node, or a new one if it is None or no longer in the scene; returns it.

    Numbers are double columns with NaN where they are missing, everything else is text.
    """
    if node is None or node.GetScene() is not slicer.mrmlScene:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
        node.SetAttribute(PART_ATTRIBUTE, PART)
        node.SetDescription(RESEARCH_USE)
    with slicer.util.NodeModify(node):
        set_columns(node, {key: _column([row.get(key) for row in rows]) for key in COLUMNS})
    return node


def node_row(case: str, model: StagingModel, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a CT of the scene; columns: those of its result."""
    about = {"trained_on": model.card.trained_on, "notice": RESEARCH_USE}
    return {"case": case, "status": "done", **columns, "model": model.card.name, **about}


def failed_row(case: str, model: StagingModel, reason: str) -> dict[str, Any]:
    """The row of a CT of the scene that could not be staged."""
    return {**node_row(case, model, {}), "status": "failed", "reason": reason}


def _column(values: Sequence[Any]) -> list[float] | list[str]:
    known = [value for value in values if value not in MISSING]
    if known and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        return [math.nan if value in MISSING else float(value) for value in values]
    return ["" if value is None else str(value) for value in values]
