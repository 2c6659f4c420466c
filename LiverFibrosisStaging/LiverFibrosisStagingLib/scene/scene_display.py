"""The display of a CT's results: layers, colours and legend, table, chart and surfaces.

For the main thread; no voxels are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..report.colors import BAND_COUNT, BANDS
from .mrml import find_segments
from .scene_nodes import find_part, stored_summary

ABDOMEN_WINDOW = (350.0, 50.0)  # HU: width and level
# Fractions of a view: narrow and high, so that the labels are legible in a view of 200 pixels and
# the legend covers air, not the patient.
LEGEND_SIZE, LEGEND_POSITION = (0.14, 0.8), (0.98, 0.5)
TABLE_ATTRIBUTE = "LiverFibrosisStaging.bands"  # of the scene's one colour table
# A scalar volume has one opacity for all colours, unlike the bands: it is half transparent, and
# values below the second band, which is almost transparent itself, are not shown.
SMOOTH_OPACITY, SMOOTH_FROM = 0.5, 1 / BAND_COUNT


@dataclass(frozen=True)
class Display:
    """How a location map is displayed.

    opacity: 0..1, of the whole map. hidden_below: fraction 0..1 of the maximum; values below it are
    hidden. smooth: as an interpolated scalar volume in the foreground, with one opacity and without
    values below 10 %, instead of a label volume. outline: only the edges of the bands. legend: with
    a colour legend.
    """

    opacity: float = 1.0
    hidden_below: float = 0.0
    smooth: bool = False
    outline: bool = False
    legend: bool = True


def set_display(volume_node: Any, display: Display) -> None:
    """Display the CT's location map, if there is one, in the slice views that show the CT."""
    import slicer

    bands, smooth = find_part(volume_node, "bands"), find_part(volume_node, "smooth")
    summary = stored_summary(volume_node)
    if bands is None or summary is None:
        return
    shown = smooth if display.smooth and smooth is not None else bands
    _fade_bands(band_table(), display.hidden_below)
    if shown is smooth:
        highest = summary["location_map"]["maximum"] or 1.0
        lowest = max(display.hidden_below, SMOOTH_FROM)
        smooth.GetDisplayNode().SetThreshold(lowest * highest, highest)
    for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if view.GetBackgroundVolumeID() == volume_node.GetID():
            _set_layers(view, shown, bands, smooth, display.opacity)
    for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        view.SetUseLabelOutline(display.outline and shown is bands)
    for node in (bands, smooth):
        if node is not None:
            _set_legend(
                node, summary["location_map"]["explained"], display.legend and node is shown
            )


def jump_to_strongest(volume_node: Any) -> None:
    """Move all slice views and the crosshair to the maximum of the CT's location map."""
    import slicer

    summary = stored_summary(volume_node)
    if summary is None or summary["strongest_ijk"] is None:
        return
    ras = voxel_to_world(volume_node, summary["strongest_ijk"])
    for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        view.JumpSliceByOffsetting(*ras)  # keeps the position in the plane
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


def band_table() -> Any:
    """The scene's colour table of the ten bands, created if it does not exist yet."""
    import slicer

    tables = slicer.util.getNodesByClass("vtkMRMLColorTableNode")
    table = next((node for node in tables if node.GetAttribute(TABLE_ATTRIBUTE)), None)
    if table is None:
        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", "Location map bands")
        table.SetAttribute(TABLE_ATTRIBUTE, "10 %")
        table.SetTypeToUser()
        table.SetNumberOfColors(len(BANDS))
        for label, band in enumerate(BANDS):
            table.SetColor(label, band.name, *band.rgb, band.opacity)
    table.SetColorDefined(0, False)  # else the legend shows it as a black cell
    return table


def _fade_bands(table: Any, hidden_below: float) -> None:
    """Hide the bands below a fraction of the maximum; restore the opacity of the others."""
    for label, band in enumerate(BANDS):
        hidden = (label - 1) / BAND_COUNT < hidden_below - 1e-9
        opacity = 0.0 if hidden else band.opacity
        if table.GetLookupTable().GetTableValue(label)[3] != opacity:
            table.SetColor(label, *band.rgb, opacity)


def _set_layers(view: Any, shown: Any, bands: Any, smooth: Any, opacity: float) -> None:
    """Show the map in the label or foreground layer; another foreground volume is kept."""
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
        legend.SetSize(*LEGEND_SIZE)
        legend.SetPosition(*LEGEND_POSITION)
    legend.SetTitleText(f"Map of {explained}")
    legend.SetVisibility(visible)


def show_in_slices(volume_node: Any) -> None:
    """Show the CT in all slice views; they are fitted only if none showed it yet."""
    import slicer

    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = {view.GetBackgroundVolumeID() for view in views}
    slicer.util.setSliceViewerLayers(background=volume_node, fit=volume_node.GetID() not in shown)


def set_abdomen_window(volume_node: Any) -> None:
    """Set the abdomen window for a CT that still has Slicer's automatic window."""
    display = volume_node.GetDisplayNode()
    if display is not None and display.GetAutoWindowLevel():
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(*ABDOMEN_WINDOW)


def activate(volume_node: Any, table_part: str = "results", plot_part: str = "plot") -> None:
    """Make a table and a chart of the CT's the active ones, which table and plot views show."""
    import slicer

    logic = slicer.app.applicationLogic()
    selection = logic.GetSelectionNode()
    table, plot = find_part(volume_node, table_part), find_part(volume_node, plot_part)
    if table is not None:
        selection.SetActiveTableID(table.GetID())
        logic.PropagateTableSelection()
    if plot is not None:
        selection.SetActivePlotChartID(plot.GetID())
        logic.PropagatePlotChartSelection()


def show_table(volume_node: Any, part: str = "results") -> None:
    """Show a table of the CT's, "results" or "signs", in a layout with a table view."""
    import slicer

    _set_layout(slicer.modules.tables.logic().GetLayoutWithTable)
    activate(volume_node, table_part=part)


def show_plot(volume_node: Any, part: str = "plot") -> None:
    """Show a chart of the CT's in a layout with a plot view: of the stages' probabilities ("plot")
    or of the signs ("percentiles_plot").
    """
    import slicer

    _set_layout(slicer.modules.plots.logic().GetLayoutWithPlot)
    activate(volume_node, plot_part=part)


def _set_layout(with_view: Callable[[int], int]) -> None:
    """Change to the layout that `with_view` returns for the current one, if there are views."""
    import slicer

    manager = slicer.app.layoutManager()
    if manager is not None:
        manager.setLayout(with_view(manager.layout))


def show_3d(volume_node: Any, visible: bool, segmentation_node: Any = None) -> None:
    """Show or hide the surfaces of liver and spleen in the 3D views.

    segmentation_node: the user's, or None for the one that staging has made.
    """
    import slicer

    node = segmentation_node or find_part(volume_node, "organs")
    if node is None:
        return
    node.CreateDefaultDisplayNodes()
    if visible:
        organs = {*find_segments(node, "liver"), *find_segments(node, "spleen")}
        node.CreateClosedSurfaceRepresentation()
        node.GetDisplayNode().SetVisibility(True)
        for segment_id in node.GetSegmentation().GetSegmentIDs():
            node.GetDisplayNode().SetSegmentVisibility3D(segment_id, segment_id in organs)
    node.GetDisplayNode().SetVisibility3D(visible)
    if visible and slicer.app.layoutManager() is not None:
        slicer.app.layoutManager().resetThreeDViews()


def shows_3d(volume_node: Any, segmentation_node: Any = None) -> bool:
    """Whether the surfaces of `show_3d` are visible, for the same arguments."""
    import slicer

    node = segmentation_node or find_part(volume_node, "organs")
    display = node and node.GetDisplayNode()
    if display is None or not (display.GetVisibility() and display.GetVisibility3D()):
        return False
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return node.GetSegmentation().ContainsRepresentation(surface)


def window_smooth(smooth_node: Any, table: Any, maximum: float) -> None:
    """Set a smooth map's colours such that they change where the bands change.

    The table's first colour, for no attention, covers the tenth below 0.
    """
    display, maximum = smooth_node.GetDisplayNode(), maximum or 1.0
    display.SetAndObserveColorNodeID(table.GetID())
    display.SetWindowLevelMinMax(-maximum / BAND_COUNT, maximum)
    display.SetApplyThreshold(True)
    display.SetInterpolate(True)
