"""The nodes of a CT's results in the scene: how they are created, found and filed.

Each is named after its CT, refers to it by a node reference, and is beside or below it in the
subject hierarchy. For the main thread only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..result import READABLE
from .mrml import json_attribute

CT_ROLE = "LiverFibrosisStaging.ct"  # node reference of each result node to its CT
PART_ATTRIBUTE = "LiverFibrosisStaging.part"  # of a result node: its key in PARTS
SUMMARY_ATTRIBUTE = "LiverFibrosisStaging.summary"  # of the table: staging.json

# Part -> (class of its node, its name after the CT's).
PARTS = {
    "bands": ("vtkMRMLLabelMapVolumeNode", "location map"),
    "smooth": ("vtkMRMLScalarVolumeNode", "location map (smooth)"),
    "results": ("vtkMRMLTableNode", "fibrosis staging"),
    "probabilities": ("vtkMRMLTableNode", "stage probabilities"),
    "series": ("vtkMRMLPlotSeriesNode", "probability"),
    "plot": ("vtkMRMLPlotChartNode", "fibrosis stage plot"),
    "signs": ("vtkMRMLTableNode", "signs"),
    "percentiles": ("vtkMRMLTableNode", "signs among published groups"),
    "percentiles_series": ("vtkMRMLPlotSeriesNode", "percentage with smaller values"),
    "percentiles_plot": ("vtkMRMLPlotChartNode", "signs plot"),
    "organs": ("vtkMRMLSegmentationNode", "liver and spleen"),
}


def find_part(volume_node: Any, part: str) -> Any:
    """The node of PARTS that belongs to a CT, or None."""
    import slicer

    if volume_node is None:
        return None
    for node in slicer.util.getNodesByClass(PARTS[part][0]):
        of_part = node.GetAttribute(PART_ATTRIBUTE) == part
        if of_part and node.GetNodeReferenceID(CT_ROLE) == volume_node.GetID():
            return node
    return None


def is_result(node: Any) -> bool:
    """Whether a node was made by `show_result`."""
    return node.GetAttribute(PART_ATTRIBUTE) is not None


def stored_summary(volume_node: Any) -> dict[str, Any] | None:
    """The summary of the CT's result in the scene, also in one that was saved and loaded; None
    where there is none that this version can read.
    """
    table = find_part(volume_node, "results")
    summary = None if table is None else json_attribute(table, SUMMARY_ATTRIBUTE)
    readable = isinstance(summary, dict) and summary.get("schema") in READABLE
    return summary if readable else None


def put_part(volume_node: Any, part: str, fill: Callable[[Any], None]) -> Any:
    """Fill the node of a part of the CT's results, which is created if it does not exist yet."""
    import slicer

    node, (class_name, name) = find_part(volume_node, part), PARTS[part]
    is_new = node is None
    if is_new:
        node = slicer.mrmlScene.AddNewNodeByClass(class_name, f"{volume_node.GetName()} {name}")
        node.SetAttribute(PART_ATTRIBUTE, part)
        node.SetNodeReferenceID(CT_ROLE, volume_node.GetID())
    with slicer.util.NodeModify(node):
        fill(node)
    if is_new:
        _file(node, volume_node)
    return node


def remove_part(volume_node: Any, part: str) -> None:
    """Remove the node of a part of the CT's results, if there is one."""
    import slicer

    node = find_part(volume_node, part)
    if node is not None:
        slicer.mrmlScene.RemoveNode(node)


def set_columns(node: Any, columns: Mapping[str, Sequence[float] | Sequence[str]]) -> None:
    """Set the columns of a table node, numbers or texts, by their names."""
    from vtkmodules.vtkCommonCore import vtkDoubleArray, vtkStringArray

    node.RemoveAllColumns()
    for name, values in columns.items():
        column = vtkStringArray() if isinstance(values[0], str) else vtkDoubleArray()
        column.SetName(name)
        for value in values:
            column.InsertNextValue(value)
        node.AddColumn(column)
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetLocked(True)


def _file(node: Any, volume_node: Any) -> None:
    """Place a node below its CT in the subject hierarchy, or beside a CT in a study or folder."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    invalid, ct_item = hierarchy.GetInvalidItemID(), hierarchy.GetItemByDataNode(volume_node)
    if ct_item == invalid:
        return
    above, item = hierarchy.GetItemParent(ct_item), hierarchy.GetItemByDataNode(node)
    above = ct_item if above == hierarchy.GetSceneItemID() else above
    if item == invalid:
        hierarchy.CreateItem(above, node)
    else:
        hierarchy.SetItemParent(item, above)


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """If anything fails inside, remove the nodes that were added to the scene in the meantime."""
    import slicer

    before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    try:
        yield
    except BaseException:
        for node in slicer.util.getNodesByClass("vtkMRMLNode"):
            if node.GetID() not in before:
                slicer.mrmlScene.RemoveNode(node)
        raise
