"""The table node of a batch: a row per case, with the columns of results.csv."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import slicer

from ..batch.table import BOOLEAN, SCHEMA, TEXT
from ..stages import RESEARCH_USE
from .scene_nodes import PART_ATTRIBUTE, set_columns

PART = "cohort"  # value of PART_ATTRIBUTE


def put_table(node: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Fill the table node, or a new one if it is None or no longer in the scene; returns it.

    Numbers are double columns with NaN where they are missing. Everything else is text, "" where it
    is missing.
    """
    if node is None or node.GetScene() is not slicer.mrmlScene:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
        node.SetAttribute(PART_ATTRIBUTE, PART)
        node.SetDescription(RESEARCH_USE)
    columns = {
        column.name: [_cell(column.kind, row.get(column.name)) for row in rows] for column in SCHEMA
    }
    with slicer.util.NodeModify(node):
        set_columns(node, columns)
    return node


def _cell(kind: str, value: Any) -> float | str:
    if kind == TEXT:
        return value or ""
    if kind == BOOLEAN:  # as in results.csv; a table node has no such columns
        return "" if value is None else str(value).lower()
    return math.nan if value is None else float(value)
