"""From the library to the scene: a result becomes ordinary nodes that are saved with the scene.

A CT's results are a label volume (bands), on request a scalar volume (smooth map), a table, and a
plot of the probabilities, all named after the CT, filed beside it in the subject hierarchy, and
found again through a node reference to it. `scene_result` computes, in any thread; everything else
is for the main thread and copies no voxels.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from .colors import BAND_COUNT, BANDS
from .errors import StagingError
from .result import StagingResult
from .segmentation import ORGANS
from .stages import STAGES
from .summary import COLUMNS, table_rows

CT_ROLE = "LiverFibrosisStaging.ct"  # node reference of every node of ours: the CT it belongs to
PART_ATTRIBUTE = "LiverFibrosisStaging.part"  # which of a CT's result nodes a node is
SUMMARY_ATTRIBUTE = "LiverFibrosisStaging.summary"  # of the table: staging.json
TABLE_ATTRIBUTE = "LiverFibrosisStaging.bands"  # marks the scene's one colour table
# A scalar volume cannot have colours of different opacity, as the bands have: all of it is half
# transparent, and what is below the second band, which barely tints, is not shown.
SMOOTH_OPACITY, SMOOTH_FROM = 0.5, 1 / BAND_COUNT

# Part -> (class of its node, its name after the CT's).
PARTS = {
    "bands": ("vtkMRMLLabelMapVolumeNode", "location map"),
    "smooth": ("vtkMRMLScalarVolumeNode", "location map (smooth)"),
    "results": ("vtkMRMLTableNode", "fibrosis staging"),
    "probabilities": ("vtkMRMLTableNode", "stage probabilities"),
    "series": ("vtkMRMLPlotSeriesNode", "probability"),
    "plot": ("vtkMRMLPlotChartNode", "fibrosis stage plot"),
    "organs": ("vtkMRMLSegmentationNode", "liver and spleen"),
}


@dataclass(frozen=True)
class SceneResult:
    """A result, ready for the scene.

    summary: as in staging.json, with `strongest_ijk`, the voxel of the CT where the location map is
    highest, or None where it is empty. labels: uint8 [slice, row, column], the bands. relative:
    float32, the same shape, the location map itself, or None where it is not wanted. organs: uint8,
    the same shape, 1 liver and 2 spleen, where these were found and not given.
    """

    summary: dict[str, Any]
    labels: np.ndarray
    relative: np.ndarray | None
    organs: np.ndarray | None = None


@dataclass(frozen=True)
class Display:
    """How a location map is shown.

    opacity: 0..1, of the whole map. hidden_below: share 0..1 of its maximum below which nothing is
    shown. smooth: as interpolated scalar volume in the foreground instead of a label volume, with
    one opacity for all and nothing below 10 %.
    outline: of the bands' edges. legend: of the colours.
    """

    opacity: float = 1.0
    hidden_below: float = 0.0
    smooth: bool = False
    outline: bool = False
    legend: bool = True


def scene_result(result: StagingResult, smooth: bool = False) -> SceneResult:
    """Prepare a result for the scene; smooth: with the scalar volume."""
    summary = result.summary()
    values = sitk.GetArrayViewFromImage(result.location_map)
    strongest = None
    if summary["location_map"]["maximum"] > 0:
        strongest = [int(index) for index in np.unravel_index(values.argmax(), values.shape)[::-1]]
    summary["strongest_ijk"] = strongest
    labels = sitk.GetArrayFromImage(result.label_map)
    made = summary["segmentation"] is not None
    organs = sitk.GetArrayFromImage(result.organs) if made else None
    return SceneResult(summary, labels, values.copy() if smooth else None, organs)


def show_result(
    result: StagingResult | SceneResult, volume_node: Any, display: Display | None = None
) -> Any:
    """Put a result into the scene and its map over the CT; returns the label map volume node.

    The volumes lie on the CT's grid and under its parent transform, with the scene's one colour
    table and a legend. A second result for the same CT replaces the first in the same nodes. Liver
    and spleen that were found become a segmentation. Raises
    StagingError where the result does not fit the volume; whatever fails, no new node stays behind.
    """
    import slicer

    display = display or Display()
    if isinstance(result, StagingResult):
        result = scene_result(result, display.smooth)
    data = volume_node.GetImageData()
    size, found = result.labels.shape[::-1], data.GetDimensions() if data else (0, 0, 0)
    if size != found:
        raise StagingError(
            f"The result has {' x '.join(map(str, size))} voxels, "
            f"'{volume_node.GetName()}' has {' x '.join(map(str, found))}: it is the result of "
            "another volume."
        )
    with _all_or_nothing():
        table = _band_table()
        _write_tables(result.summary, volume_node)
        bands = _part(volume_node, "bands", lambda node: _fill(node, volume_node, result.labels))
        bands.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
        if result.relative is not None:
            smooth = _part(
                volume_node, "smooth", lambda node: _fill(node, volume_node, result.relative)
            )
            _window(smooth, table, result.summary["location_map"]["maximum"])
        elif find_part(volume_node, "smooth") is not None:  # of an earlier result
            slicer.mrmlScene.RemoveNode(find_part(volume_node, "smooth"))
        if result.organs is not None:
            _part(volume_node, "organs", lambda n: _fill_organs(n, volume_node, result.organs))
        _show_in_slices(volume_node)
        set_display(volume_node, display)
    return bands


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
    """Whether a node is one that `show_result` has made."""
    return node.GetAttribute(PART_ATTRIBUTE) is not None


def stored_summary(volume_node: Any) -> dict[str, Any] | None:
    """The summary of the CT's result in the scene, also after it was saved and loaded again."""
    table = find_part(volume_node, "results")
    return None if table is None else json.loads(table.GetAttribute(SUMMARY_ATTRIBUTE))


def set_display(volume_node: Any, display: Display) -> None:
    """Show the CT's location map, where there is one, in the slice views that show the CT."""
    import slicer

    bands, smooth = find_part(volume_node, "bands"), find_part(volume_node, "smooth")
    if bands is None:
        return
    shown = smooth if display.smooth and smooth is not None else bands
    _fade_bands(_band_table(), display.hidden_below)
    if shown is smooth:
        highest = stored_summary(volume_node)["location_map"]["maximum"] or 1.0
        lowest = max(display.hidden_below, SMOOTH_FROM)
        smooth.GetDisplayNode().SetThreshold(lowest * highest, highest)
    for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if view.GetBackgroundVolumeID() == volume_node.GetID():
            _set_layers(view, shown, bands, smooth, display.opacity)
    for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        view.SetUseLabelOutline(display.outline and shown is bands)
    title = stored_summary(volume_node)["location_map"]["explained"]
    for node in (bands, smooth):
        if node is not None:
            _set_legend(node, title, display.legend and node is shown)


def jump_to_strongest(volume_node: Any) -> None:
    """Move all slice views, and the crosshair, to where the CT's location map is highest."""
    import slicer

    summary = stored_summary(volume_node)
    if summary is None or summary["strongest_ijk"] is None:
        return
    ras = voxel_to_world(volume_node, summary["strongest_ijk"])
    for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        view.JumpSliceByOffsetting(*ras)  # what is in the picture stays in it
    for crosshair in slicer.util.getNodesByClass("vtkMRMLCrosshairNode"):
        crosshair.SetCrosshairRAS(*ras)
        crosshair.SetCrosshairMode(crosshair.ShowSmallBasic)


def voxel_to_world(volume_node: Any, ijk: list[int]) -> list[float]:
    """World position (RAS, mm) of a voxel (i, j, k), the parent transform included."""
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    matrix, world = vtkMatrix4x4(), [0.0, 0.0, 0.0]
    volume_node.GetIJKToRASMatrix(matrix)
    volume_node.TransformPointToWorld(matrix.MultiplyPoint((*ijk, 1.0))[:3], world)
    return world


def _part(volume_node: Any, part: str, fill: Callable[[Any], None]) -> Any:
    """A part of the CT's results, filled; made where there is none, else written again."""
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
        _place_beside(node, volume_node)
    return node


def _fill(node: Any, volume_node: Any, voxels: np.ndarray) -> None:
    """Voxels on the CT's grid into a volume node, which shares them."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData

    node.CopyOrientation(volume_node)  # same voxels, so the same IJK to RAS
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    if node.GetClassName() == "vtkMRMLScalarVolumeNode":
        node.GetDisplayNode().SetAutoWindowLevel(False)  # before there are voxels to look through
    image = vtkImageData()
    image.SetDimensions(*voxels.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(voxels.ravel(), deep=False))
    node.SetAndObserveImageData(image)


def _fill_organs(node: Any, volume_node: Any, organs: np.ndarray) -> None:
    """Liver and spleen as segments with the field's names, codes and colours, as outlines."""
    import slicer

    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    segmentation = node.GetSegmentation()
    segmentation.RemoveAllSegments()
    for organ in ORGANS:
        mask = (organs == organ.label).astype(np.uint8)
        if mask.any():
            segment_id = segmentation.AddEmptySegment(organ.name.lower(), organ.name)
            segment = segmentation.GetSegment(segment_id)
            segment.SetColor(*(part / 255 for part in organ.rgb))
            segment.SetTerminology(organ.terminology)
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, volume_node)
    node.GetDisplayNode().SetAllSegmentsVisibility2DFill(False)  # the map stays readable


def _window(smooth_node: Any, table: Any, maximum: float) -> None:
    """Colours of a smooth map such that they change where the bands change.

    The table's first colour, of no attention, takes the tenth below 0.
    """
    display, maximum = smooth_node.GetDisplayNode(), maximum or 1.0
    display.SetAndObserveColorNodeID(table.GetID())
    display.SetWindowLevelMinMax(-maximum / BAND_COUNT, maximum)
    display.SetApplyThreshold(True)
    display.SetInterpolate(True)


def _write_tables(summary: dict[str, Any], volume_node: Any) -> None:
    def fill_results(node: Any) -> None:
        node.SetAttribute(SUMMARY_ATTRIBUTE, json.dumps(summary))
        _set_columns(node, dict(zip(COLUMNS, zip(*table_rows(summary)))))

    def fill_probabilities(node: Any) -> None:
        values = [summary["probabilities"][stage] for stage in STAGES]
        _set_columns(node, {"Stage": STAGES, "Probability": values})

    def fill_series(node: Any) -> None:
        node.SetAndObserveTableNodeID(table.GetID())
        node.SetPlotType(node.PlotTypeBar)
        node.SetLabelColumnName("Stage")
        node.SetYColumnName("Probability")
        node.SetColor(*BANDS[BAND_COUNT // 2].rgb)

    def fill_plot(node: Any) -> None:
        node.SetTitle(f"{volume_node.GetName()}: {summary['stage']}")
        node.SetXAxisTitle("Stage")
        node.SetYAxisTitle("Probability")
        node.SetYAxisRangeAuto(False)
        node.SetYAxisRange(0.0, 1.0)
        node.SetLegendVisibility(False)
        node.RemoveAllPlotSeriesNodeIDs()
        node.AddAndObservePlotSeriesNodeID(series.GetID())

    _part(volume_node, "results", fill_results)
    table = _part(volume_node, "probabilities", fill_probabilities)
    series = _part(volume_node, "series", fill_series)
    _part(volume_node, "plot", fill_plot)


def _set_columns(node: Any, columns: dict[str, Any]) -> None:
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


def _band_table() -> Any:
    """The scene's colour table of the ten bands, made where there is none yet."""
    import slicer

    for table in slicer.util.getNodesByClass("vtkMRMLColorTableNode"):
        if table.GetAttribute(TABLE_ATTRIBUTE):
            return table
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", "Location map bands")
    table.SetAttribute(TABLE_ATTRIBUTE, "10 %")
    table.SetTypeToUser()
    table.SetNumberOfColors(len(BANDS))
    for label, band in enumerate(BANDS):
        table.SetColor(label, band.name, *band.rgb, band.opacity)
    return table


def _fade_bands(table: Any, hidden_below: float) -> None:
    """Hide the bands that lie below a share of the maximum; the others get their opacity again."""
    for label, band in enumerate(BANDS):
        hidden = (label - 1) / BAND_COUNT < hidden_below - 1e-9
        opacity = 0.0 if hidden else band.opacity
        if table.GetLookupTable().GetTableValue(label)[3] != opacity:
            table.SetColor(label, *band.rgb, opacity)


def _set_layers(view: Any, shown: Any, bands: Any, smooth: Any, opacity: float) -> None:
    """The map in the label or the foreground layer; what else is in the foreground stays there."""
    if shown is smooth:
        view.SetLabelVolumeID(None)
        view.SetForegroundVolumeID(smooth.GetID())
        view.SetForegroundOpacity(opacity * SMOOTH_OPACITY)
        return
    if smooth is not None and view.GetForegroundVolumeID() == smooth.GetID():
        view.SetForegroundVolumeID(None)
    view.SetLabelVolumeID(bands.GetID())
    view.SetLabelOpacity(opacity)


def _set_legend(node: Any, explained: str, visible: bool) -> None:
    import slicer

    colors = slicer.modules.colors.logic()
    legend = colors.GetColorLegendDisplayNode(node)
    if legend is None:
        if not visible:
            return
        legend = colors.AddDefaultColorLegendDisplayNode(node)
        legend.SetUseColorNamesForLabels(True)
        legend.SetMaxNumberOfColors(len(BANDS))
        legend.SetNumberOfLabels(len(BANDS))
    legend.SetTitleText(f"Location map of {explained}\n(share of its maximum)")
    legend.SetVisibility(visible)


def _place_beside(node: Any, volume_node: Any) -> None:
    """File a node in the CT's study, where the subject hierarchy shows such nodes at all."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    volume_item = hierarchy.GetItemByDataNode(volume_node)
    if volume_item == hierarchy.GetInvalidItemID():
        return
    folder, item = hierarchy.GetItemParent(volume_item), hierarchy.GetItemByDataNode(node)
    if item == hierarchy.GetInvalidItemID():
        hierarchy.CreateItem(folder, node)
    else:
        hierarchy.SetItemParent(item, folder)


def _show_in_slices(volume_node: Any) -> None:
    """The CT in all slice views; they are fitted only where it was not yet shown."""
    import slicer

    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = {view.GetBackgroundVolumeID() for view in views}
    slicer.util.setSliceViewerLayers(background=volume_node, fit=volume_node.GetID() not in shown)


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Whatever fails inside, the nodes that were added to the scene meanwhile go again."""
    import slicer

    before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    try:
        yield
    except BaseException:
        for node in slicer.util.getNodesByClass("vtkMRMLNode"):
            if node.GetID() not in before:
                slicer.mrmlScene.RemoveNode(node)
        raise
