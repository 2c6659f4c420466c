"""From the library to the scene: a result becomes ordinary nodes, which are saved with the scene.

A CT's results are a label volume (bands), on request a scalar volume (smooth map), tables and plots
of the probabilities and of the signs, and the segmentation if it was made automatically.
`scene_result` computes, in any thread; all else is for the main thread and neither copies nor reads
voxels.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import StagingError
from ..imaging.masks import voxels_sha256
from ..imaging.organs import ORGANS, Organ
from ..report.colors import BAND_COUNT, BANDS
from ..report.summary import COLUMNS, table_rows
from ..result import StagingResult
from ..stages import STAGES
from .mrml import SEGMENTED_ATTRIBUTE, segmented_by
from .scene_display import (
    Display,
    activate,
    band_table,
    set_abdomen_window,
    set_display,
    show_in_slices,
    window_smooth,
)
from .scene_nodes import (
    PART_ATTRIBUTE,
    SUMMARY_ATTRIBUTE,
    all_or_nothing,
    find_part,
    put_part,
    remove_part,
    set_columns,
)
from .sign_rows import group_percentiles, sign_rows


@dataclass(frozen=True)
class Box:
    """A box of a CT's voxels: values [slice, row, column], and the index (i, j, k) of the first."""

    values: np.ndarray
    first: tuple[int, int, int]


@dataclass(frozen=True)
class SceneOrgans:
    """Organs that a network segmented: uint8 labels in a box, and SEGMENTED_ATTRIBUTE's value."""

    box: Box
    organs: tuple[Organ, ...]
    segmented: dict[str, str]


@dataclass(frozen=True)
class SceneResult:
    """A result, prepared for the scene, which shares its arrays.

    summary: as in staging.json, with `strongest_ijk`, the index of the location map's maximum in
    the CT, or None where the map is empty; `reference`, that of the model (`Card.reference`); and
    `sign_rows` and `percentiles`, the signs for panel, table and chart (`sign_rows.sign_rows`).
    ct_size: voxels of the CT (i, j, k). labels: uint8, the bands, and relative: float32, the
    location map, or None without the smooth map; both in the box of the CT that contains the map,
    with an empty voxel around it where the CT goes on. organs: liver and spleen as a network
    segmented them, or None where they have another origin or were edited since.
    """

    summary: dict[str, Any]
    ct_size: tuple[int, int, int]
    labels: Box
    relative: Box | None
    organs: SceneOrgans | None = None


def scene_result(result: StagingResult, smooth: bool = False) -> SceneResult:
    """Prepare a result for the scene; smooth: with the scalar volume."""
    summary, on_ct = result.summary(), result.map_on_ct
    summary["strongest_ijk"] = None if on_ct.strongest is None else list(on_ct.strongest)
    summary["reference"] = result.forward_pass.model.card.reference
    summary["sign_rows"] = sign_rows(result.signs)
    summary["percentiles"] = group_percentiles(result.signs)
    labels = Box(on_ct.bands_in_box(), on_ct.first)
    relative = Box(on_ct.relative_in_box(), on_ct.first) if smooth else None
    segmentation = summary["segmentation"]
    segmented = segmentation is not None and not segmentation["edited"]
    organs = _organs(result) if segmented else None
    return SceneResult(summary, result.ct.GetSize(), labels, relative, organs)


def _organs(result: StagingResult) -> SceneOrgans:
    labels, box = result.organs_in_box()
    network = {key: result.provenance["segmentation"][key] for key in ("name", "sha256")}
    return SceneOrgans(
        Box(labels, tuple(part.start for part in box[::-1])),
        tuple(organ for organ in ORGANS if (labels == organ.label).any()),
        {**network, "masks_sha256": voxels_sha256(result.liver, result.spleen)},
    )


def show_result(
    result: StagingResult | SceneResult, volume_node: Any, display: Display | None = None
) -> Any:
    """Add a result to the scene and show its map over the CT; returns the label map volume node.

    The volumes are on the part of the CT's grid that contains the map, under the CT's parent
    transform, with the scene's one colour table and a legend. A second result for the same CT
    replaces the first in the same nodes. Liver and spleen that a network segmented become a
    segmentation; an existing one may have been edited and is never overwritten. A CT with Slicer's
    automatic window gets the abdomen window. Raises StagingError if the CT is not in the scene or
    the result does not fit it; after any failure, no new node remains.
    """
    import slicer

    display = display or Display()
    if volume_node is None or volume_node.GetScene() is not slicer.mrmlScene:
        raise StagingError("The CT of this result is no longer in the scene; load it again.")
    if isinstance(result, StagingResult):
        result = scene_result(result, display.smooth)
    data = volume_node.GetImageData()
    size, found = result.ct_size, data.GetDimensions() if data else (0, 0, 0)
    if size != found:
        raise StagingError(
            f"'{volume_node.GetName()}' has {' x '.join(map(str, found))} voxels, the result "
            f"{' x '.join(map(str, size))}; choose the CT that was staged."
        )
    with all_or_nothing():
        table = band_table()
        _write_tables(result.summary, volume_node)
        _write_signs(result.summary, volume_node)
        bands = put_part(volume_node, "bands", lambda node: _fill(node, volume_node, result.labels))
        bands.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
        if result.relative is not None:
            smooth = put_part(
                volume_node, "smooth", lambda node: _fill(node, volume_node, result.relative)
            )
            window_smooth(smooth, table, result.summary["location_map"]["maximum"])
        else:
            remove_part(volume_node, "smooth")  # of an earlier result
        set_abdomen_window(volume_node)
        show_in_slices(volume_node)
        set_display(volume_node, display)
        activate(volume_node)
        if result.organs is not None:
            _put_organs(volume_node, result.organs)
    return bands


def _fill(node: Any, volume_node: Any, box: Box) -> None:
    """Set a volume node's voxels, which it shares, and its position in the CT's grid."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    ijk_to_ras = vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(ijk_to_ras)
    node.CopyOrientation(volume_node)
    node.SetOrigin(ijk_to_ras.MultiplyPoint((*box.first, 1.0))[:3])
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    if node.GetClassName() == "vtkMRMLScalarVolumeNode":
        node.GetDisplayNode().SetAutoWindowLevel(False)  # first, else it reads the voxels
    image = vtkImageData()
    image.SetDimensions(*box.values.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(box.values.ravel(), deep=False))
    node.SetAndObserveImageData(image)


def _put_organs(volume_node: Any, organs: SceneOrgans) -> None:
    """Add the organs as a segmentation of the CT, unless the scene contains it already.

    Another segmentation, which may have been edited, stays in the scene as the user's.
    """
    node = find_part(volume_node, "organs")
    if node is not None:
        if segmented_by(node) == organs.segmented:
            return
        node.RemoveAttribute(PART_ATTRIBUTE)
    put_part(volume_node, "organs", lambda node: _fill_organs(node, volume_node, organs))


def _fill_organs(node: Any, volume_node: Any, organs: SceneOrgans) -> None:
    """Add organs as segments, which share the voxels, with names, codes and colours."""
    import slicer
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.SetAttribute(SEGMENTED_ATTRIBUTE, json.dumps(organs.segmented))
    image, ijk_to_ras = slicer.vtkOrientedImageData(), vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(ijk_to_ras)
    image.SetGeometryFromImageToWorldMatrix(ijk_to_ras)
    size = organs.box.values.shape[::-1]
    ends = ((first, first + n - 1) for first, n in zip(organs.box.first, size))
    image.SetExtent(*(index for end in ends for index in end))
    image.GetPointData().SetScalars(numpy_to_vtk(organs.box.values.ravel(), deep=False))
    voxels = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    for organ in organs.organs:
        segment = slicer.vtkSegment()
        segment.SetName(organ.name)
        segment.SetColor(*(part / 255 for part in organ.rgb))
        segment.SetTerminology(organ.terminology)
        segment.SetLabelValue(organ.label)
        segment.AddRepresentation(voxels, image)
        node.GetSegmentation().AddSegment(segment, organ.name.lower())
    node.GetDisplayNode().SetAllSegmentsVisibility2DFill(False)  # filled, they would hide the map


def _write_tables(summary: dict[str, Any], volume_node: Any) -> None:
    def fill_results(node: Any) -> None:
        node.SetAttribute(SUMMARY_ATTRIBUTE, json.dumps(summary))
        set_columns(node, dict(zip(COLUMNS, zip(*table_rows(summary)))))

    put_part(volume_node, "results", fill_results)
    values = [summary["probabilities"][stage] for stage in STAGES]
    _put_chart(
        volume_node,
        {"Stage": STAGES, "Probability": values},
        ("probabilities", "series", "plot"),
        f"Fibrosis stage: {summary['stage'] if summary['supported'] else 'not supported'}",
        1.0,
    )


def _write_signs(summary: dict[str, Any], volume_node: Any) -> None:
    rows = [
        (row["name"], row["value"], note.get("sentence", ""), note.get("citation", ""))
        for row in summary["sign_rows"]
        for note in row["notes"] or [{}]
    ]
    columns = dict(zip(("Sign", "Value", "Among published groups", "Source"), zip(*rows)))
    put_part(volume_node, "signs", lambda node: set_columns(node, columns))
    parts = ("percentiles", "percentiles_series", "percentiles_plot")
    if summary["percentiles"]:
        names = ("Published group", "Sign", "Group", "Smaller values in the group (%)")
        columns = dict(zip(names, zip(*summary["percentiles"])))
        title = "Signs: share of each published group with smaller values"
        _put_chart(volume_node, columns, parts, title, 100.0)
    else:  # nothing is measurable and comparable, but maybe it was in an earlier result
        for part in reversed(parts):
            remove_part(volume_node, part)


def _put_chart(
    volume_node: Any,
    columns: dict[str, Any],
    parts: tuple[str, str, str],
    title: str,
    highest: float,
) -> None:
    """Put a bar chart from 0 to `highest` into the scene.

    columns: by their names; the first are the labels, the last the values; parts: keys in PARTS of
    table, series and chart.
    """
    labels, *_, values = columns
    table = put_part(volume_node, parts[0], lambda node: set_columns(node, columns))

    def fill_series(node: Any) -> None:
        node.SetAndObserveTableNodeID(table.GetID())
        node.SetPlotType(node.PlotTypeBar)
        node.SetLabelColumnName(labels)
        node.SetYColumnName(values)
        node.SetColor(*BANDS[BAND_COUNT // 2].rgb)

    series = put_part(volume_node, parts[1], fill_series)

    def fill_plot(node: Any) -> None:
        node.SetTitle(title)
        node.SetXAxisTitle(labels)
        node.SetYAxisTitle(values)
        node.SetYAxisRangeAuto(False)
        node.SetYAxisRange(0.0, highest)
        node.SetLegendVisibility(False)
        node.RemoveAllPlotSeriesNodeIDs()
        node.AddAndObservePlotSeriesNodeID(series.GetID())

    put_part(volume_node, parts[2], fill_plot)
