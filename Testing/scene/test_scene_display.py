"""How results are shown and stored: window, legend, table, chart, surfaces; no patient names."""

import json
from dataclasses import replace

import numpy as np
import pytest
import slicer
import slicer_host
from small_scene import add_segmentation, add_volume, in_scene, make_abdomen

from LiverFibrosisStagingLib import StagingError, stage
from LiverFibrosisStagingLib.location_map import LocationMap, on_ct
from LiverFibrosisStagingLib.report.colors import BANDS
from LiverFibrosisStagingLib.scene.scene_display import (
    Display,
    band_table,
    set_display,
    show_3d,
    show_plot,
    show_table,
    shows_3d,
)
from LiverFibrosisStagingLib.scene.scene_nodes import (
    PARTS,
    SUMMARY_ATTRIBUTE,
    find_part,
    stored_summary,
)
from LiverFibrosisStagingLib.scene.scene_results import scene_result, show_result

pytestmark = pytest.mark.usefixtures("scene")

PATIENT = "DOE^JANE_1950"


@pytest.fixture
def layout(monkeypatch):
    """Slicer's layout manager, as where the panel is open; no table or chart is shown."""
    slicer.app._open_views()
    manager = slicer.app.layoutManager()
    monkeypatch.setattr(manager, "layout", slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    return manager


@pytest.fixture(scope="module")
def result(abdomen, model):
    """As if a network had segmented the organs."""
    return stage(
        *abdomen, model, segmentation={"name": "VNet", "sha256": "0" * 64, "edited": False}
    )


@pytest.fixture
def volume(abdomen):
    return add_volume(abdomen[0])


# ---------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"schema": 0}', '{"stage": "F4"}'])
def test_a_table_that_cannot_be_read_is_no_result(text, result, volume):
    show_result(result, volume)
    table = find_part(volume, "results")
    if text is None:
        table.RemoveAttribute(SUMMARY_ATTRIBUTE)
    else:
        table.SetAttribute(SUMMARY_ATTRIBUTE, text)
    assert stored_summary(volume) is None
    set_display(volume, Display(opacity=0.5, smooth=True))  # the panel may still ask for it
    show_result(result, volume)
    assert stored_summary(volume)["stage"] == result.stage


def test_a_result_of_another_version_is_no_result(result, volume):
    show_result(result, volume)
    summary = stored_summary(volume)
    later = json.dumps({**summary, "schema": summary["schema"] + 1})
    find_part(volume, "results").SetAttribute(SUMMARY_ATTRIBUTE, later)
    assert stored_summary(volume) is None


def test_a_result_whose_ct_is_gone_is_refused(result, volume, scene):
    scene.RemoveNode(volume)
    before = in_scene()
    for gone in (volume, None):
        with pytest.raises(StagingError, match="no longer in the scene"):
            show_result(result, gone)
    assert in_scene() == before


def test_only_the_nodes_names_contain_the_cts_name(abdomen, model, tmp_path, scene):
    volume = add_volume(abdomen[0], PATIENT)
    segmentation = add_segmentation(volume, liver=abdomen[1], spleen=abdomen[2])
    segmentation.SetName(f"{PATIENT} organs")
    logic = slicer_host.import_module().LiverFibrosisStagingLogic()
    outlined = {"segmentation": {"name": "VNet", "sha256": "0" * 64, "edited": False}}
    result = logic.stageVolume(volume, segmentation, model=model)
    result = replace(result, provenance={**result.provenance, **outlined})
    show_result(result, volume, Display(smooth=True))
    named = [n for n in slicer.util.getNodesByClass("vtkMRMLNode") if PATIENT in n.GetName()]
    assert {find_part(volume, part) for part in PARTS} < {*named}
    for node in named:
        node.SetName("anonymous")
    (tmp_path / "scene").mkdir()
    scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "scene"), None)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".mrml", ".nrrd", ".tsv"} <= {path.suffix for path in written}
    for path in written:
        assert PATIENT.encode() not in path.read_bytes(), path


# ---------------------------------------------------------------------------- the main thread


def test_the_scene_shares_the_workers_arrays(result, volume):
    """What was prepared in a thread is not copied on the main thread, and no part is as large as
    the CT.
    """
    ready = scene_result(result, smooth=True)
    bands = show_result(ready, volume)
    shared = [(bands, ready.labels.values), (find_part(volume, "smooth"), ready.relative.values)]
    for node, prepared in shared:
        assert np.shares_memory(slicer.util.arrayFromVolume(node), prepared)
    node = find_part(volume, "organs")
    images = [node.GetBinaryLabelmapInternalRepresentation(organ) for organ in ("liver", "spleen")]
    assert images[0] is images[1]
    pointer = images[0].GetPointData().GetScalars().GetVoidPointer(0)
    assert int(pointer.split("_")[1], 16) == ready.organs.box.values.ctypes.data
    voxels = result.ct.GetNumberOfPixels()
    assert ready.organs.box.values.size < voxels / 3
    assert ready.relative.values.size == ready.labels.values.size < voxels


def test_the_main_thread_reads_no_voxels(result, volume, monkeypatch):
    """No conversion and no statistics; the range of values has not been asked for."""
    ready = scene_result(result, smooth=True)
    monkeypatch.setattr(np, "array", None)
    monkeypatch.setattr(np, "ascontiguousarray", None)
    bands = show_result(ready, volume, Display(smooth=True))
    for node in (bands, find_part(volume, "smooth")):
        scalars = node.GetImageData().GetPointData().GetScalars()
        assert not scalars.HasInformation() or not scalars.GetInformation().GetNumberOfKeys()
    smooth = find_part(volume, "smooth").GetDisplayNode()
    assert not smooth.GetAutoWindowLevel() and not smooth.GetAutoThreshold()


def test_an_empty_map_is_shown(result, volume):
    grid = result.forward_pass.grid
    empty = on_ct(LocationMap(result.map_on_ct.location.relative * 0, 0.0), grid, result.ct)
    nothing = replace(result, map_on_ct=empty)
    label = show_result(nothing, volume, Display(smooth=True))
    assert not slicer.util.arrayFromVolume(label).any()
    assert stored_summary(volume)["strongest_ijk"] is None
    assert find_part(volume, "smooth") is not None


# ---------------------------------------------------------------------------- how it is shown


def test_the_abdomen_window_unless_the_user_has_set_one(abdomen, result, volume):
    assert volume.GetDisplayNode().GetAutoWindowLevel()
    show_result(result, volume)
    display = volume.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (350.0, 50.0)
    display.SetWindowLevel(1500, -500)
    show_result(result, volume)
    assert (display.GetWindow(), display.GetLevel()) == (1500.0, -500.0)
    other = add_volume(abdomen[0], "As in the DICOM header")
    other.GetDisplayNode().SetAutoWindowLevel(False)
    other.GetDisplayNode().SetWindowLevel(400, 40)
    show_result(result, other)
    assert (other.GetDisplayNode().GetWindow(), other.GetDisplayNode().GetLevel()) == (400.0, 40.0)


def test_the_legend_is_compact_and_holds_the_ten_bands(result, volume, tmp_path, scene):
    bands = show_result(result, volume)
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(bands)
    width, height = legend.GetSize()
    assert width <= 0.15 and height <= 0.8 and legend.GetPosition()[0] > 0.9
    table = band_table()
    defined = [table.GetColorDefined(label) for label in range(len(BANDS))]
    assert defined == [False] + [True] * 10  # else the bar ends in a black cell
    legend.SetSize(0.3, 0.5)  # by the user
    show_result(result, volume)
    assert legend.GetSize() == (0.3, 0.5)


def test_table_and_chart_are_active_and_shown_on_demand(result, volume, layout, scene):
    before = layout.layout
    show_result(result, volume)
    selection = slicer.app.applicationLogic().GetSelectionNode()
    table, plot = find_part(volume, "results"), find_part(volume, "plot")
    assert layout.layout == before
    assert selection.GetActiveTableID() == table.GetID()
    assert selection.GetActivePlotChartID() == plot.GetID()

    show_table(volume)
    assert layout.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView
    (view,) = slicer.util.getNodesByClass("vtkMRMLTableViewNode")
    assert view.GetTableNodeID() == table.GetID()
    show_plot(volume)
    (view,) = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
    assert view.GetPlotChartNodeID() == plot.GetID()
    again = add_volume(make_abdomen()[0], "Another")
    show_result(result, again)  # views that are there already follow
    assert view.GetPlotChartNodeID() == find_part(again, "plot").GetID()


def test_surfaces_of_liver_and_spleen_on_demand(abdomen, result, volume):
    show_3d(volume, True)  # nothing to show yet
    show_result(result, volume)
    assert not shows_3d(volume)
    show_3d(volume, True)
    node = find_part(volume, "organs")
    assert shows_3d(volume) and node.GetDisplayNode().GetVisibility3D()
    for organ in ("liver", "spleen"):
        assert node.GetClosedSurfaceInternalRepresentation(organ).GetNumberOfPoints() > 100
    show_3d(volume, False)
    assert not shows_3d(volume)

    own = add_segmentation(volume, liver=abdomen[1], bone=abdomen[2])
    show_3d(volume, True, own)
    assert shows_3d(volume, own) and not shows_3d(volume)
    display = own.GetDisplayNode()
    assert display.GetSegmentVisibility3D("liver")
    assert not display.GetSegmentVisibility3D("bone")


def test_nodes_of_a_ct_from_a_file_are_filed_below_it(result, volume, scene):
    show_result(result, volume, Display(smooth=True))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    for part in PARTS:
        item = hierarchy.GetItemByDataNode(find_part(volume, part))
        assert hierarchy.GetItemParent(item) == hierarchy.GetItemByDataNode(volume), part
