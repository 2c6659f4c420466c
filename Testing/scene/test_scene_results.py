"""A result in the scene: its nodes, their geometry and how they are shown."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from small_scene import (
    add_transform,
    add_volume,
    in_scene,
    on_grid_of,
    rigid,
)
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from LiverFibrosisStagingLib import StagingError, stage
from LiverFibrosisStagingLib.report.colors import BANDS
from LiverFibrosisStagingLib.scene.scene_display import (
    SMOOTH_OPACITY,
    TABLE_ATTRIBUTE,
    Display,
    jump_to_strongest,
    set_display,
)
from LiverFibrosisStagingLib.scene.scene_nodes import PARTS, find_part, is_result, stored_summary
from LiverFibrosisStagingLib.scene.scene_results import show_result

pytestmark = pytest.mark.usefixtures("scene")


@pytest.fixture(scope="module")
def result(abdomen, phantoms_path):
    return stage(*abdomen, phantoms_path)  # its map of this CT has many bands


@pytest.mark.parametrize("degrees", [None, 0, 30])
def test_label_volume_lies_where_the_ct_lies(degrees, abdomen, result):
    volume = add_volume(abdomen[0])
    if degrees is not None:
        transform = add_transform(rigid(degrees, (5, 6, -7)))
        volume.SetAndObserveTransformNodeID(transform.GetID())

    label = show_result(result, volume)

    matrices = vtkMatrix4x4(), vtkMatrix4x4()
    for node, matrix in zip((volume, label), matrices):
        node.GetIJKToRASMatrix(matrix)
    of_volume, of_label = map(slicer.util.arrayFromVTKMatrix, matrices)
    np.testing.assert_array_equal(of_label[:, :3], of_volume[:, :3])
    assert label.GetTransformNodeID() == volume.GetTransformNodeID()
    bands = sitk.GetArrayViewFromImage(result.label_map)
    np.testing.assert_array_equal(on_grid_of(volume, label), bands)
    assert slicer.util.arrayFromVolume(label).size < 0.8 * bands.size


@pytest.mark.parametrize("degrees", [None, 20])
def test_slice_views_show_the_bands_at_the_right_position(degrees, abdomen, result, views):
    volume = add_volume(abdomen[0])
    to_world = np.eye(4)
    if degrees is not None:
        to_world = rigid(degrees, (15, -20, 30))
        volume.SetAndObserveTransformNodeID(add_transform(to_world).GetID())
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(350, 50)

    show_result(result, volume)

    labels = sitk.GetArrayViewFromImage(result.label_map)
    hu = sitk.GetArrayViewFromImage(abdomen[0])
    shown = set()
    for index in np.random.default_rng(1).permutation(np.argwhere(hu > -500))[:400]:
        around = labels[tuple(slice(i - 1, i + 2) for i in index)]
        label = labels[tuple(index)]
        # One point for each band, inside an even patch, so that its pixel shows no other band.
        if label in shown or around.size != 27 or (around != label).any():
            continue
        shown.add(label)
        lps = abdomen[0].TransformIndexToPhysicalPoint(index[::-1].tolist())
        ras = (to_world @ [-lps[0], -lps[1], lps[2], 1])[:3]
        opacity = BANDS[label].opacity
        for view in views:
            with_map, grey = view.color(ras, label=True), view.color(ras, label=False)
            assert grey[0] == grey[1] == grey[2]
            if degrees is None:
                window = np.clip((hu[tuple(index)] - 50) / 350 + 0.5, 0, 1) * 255
                assert abs(grey[0] - window) < 80  # interpolated noise, but not air
            expected = (1 - opacity) * grey[:3] + opacity * 255 * np.array(BANDS[label].rgb)
            np.testing.assert_allclose(with_map[:3], expected, atol=2)
    assert len(shown) >= 3


def test_second_result_replaces_the_first(abdomen, result, model, views):
    volume = add_volume(abdomen[0])
    label = show_result(result, volume)
    before = in_scene()
    other = stage(*abdomen, model, explain="F0" if result.stage != "F0" else "F4")

    assert show_result(other, volume) is label

    assert in_scene() == before
    np.testing.assert_array_equal(
        on_grid_of(volume, label), sitk.GetArrayViewFromImage(other.label_map)
    )
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(label)
    assert other.explained in legend.GetTitleText()
    for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert view.GetBackgroundVolumeID() == volume.GetID()
        assert view.GetLabelVolumeID() == label.GetID()


def test_two_cts_share_one_colour_table_with_the_bands_names(abdomen, result):
    labels = [show_result(result, add_volume(abdomen[0], name)) for name in ("CT 1", "CT 2")]

    assert [label.GetName() for label in labels] == ["CT 1 location map", "CT 2 location map"]
    tables = [label.GetDisplayNode().GetColorNode() for label in labels]
    assert tables[0] is tables[1]
    of_ours = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLColorTableNode")
        if node.GetAttribute(TABLE_ATTRIBUTE)
    ]
    assert of_ours == [tables[0]]
    color = [0.0] * 4
    for value, band in enumerate(BANDS):
        tables[0].GetColor(value, color)
        np.testing.assert_allclose(color, (*band.rgb, band.opacity), atol=1 / 255)
        if value:
            assert tables[0].GetColorName(value) == band.name


def test_label_volume_is_filed_beside_its_ct(abdomen, result, scene):
    volume = add_volume(abdomen[0])
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.CreateItem(study, volume)
    label = show_result(result, volume)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(label)) == study


def test_no_new_node_remains_after_a_failure(abdomen, result, monkeypatch):
    volume = add_volume(abdomen[0])
    before = in_scene()
    monkeypatch.delattr(slicer.modules, "colors")  # no Colors module: the legend fails, last of all
    with pytest.raises(AttributeError):
        show_result(result, volume)
    assert in_scene() == before


def test_result_of_another_volume_is_refused(abdomen, result):
    volume = add_volume(abdomen[0][:40, :, :], "Cropped")
    before = in_scene()
    with pytest.raises(StagingError, match="40 x 62 x 48 voxels, the result 98 x 62 x 48"):
        show_result(result, volume)
    assert in_scene() == before


def names_of_results(volume):
    return {part: find_part(volume, part) and find_part(volume, part).GetName() for part in PARTS}


def test_results_are_nodes_named_after_the_ct_and_updated_by_a_second_run(abdomen, result):
    volume = add_volume(abdomen[0])
    show_result(result, volume)
    assert names_of_results(volume) == {
        "bands": "CT location map",
        "smooth": None,
        "results": "CT fibrosis staging",
        "probabilities": "CT stage probabilities",
        "series": "CT probability",
        "plot": "CT fibrosis stage plot",
        "signs": "CT signs",
        "percentiles": "CT signs among published groups",
        "percentiles_series": "CT percentage with smaller values",
        "percentiles_plot": "CT signs plot",
        "organs": None,  # they were given
    }
    table = find_part(volume, "probabilities").GetTable()
    values = [table.GetValueByName(row, "Probability").ToDouble() for row in range(5)]
    np.testing.assert_allclose(values, result.probabilities)
    (series,) = [find_part(volume, "plot").GetNthPlotSeriesNode(n) for n in range(1)]
    assert series.GetTableNode() is find_part(volume, "probabilities")

    before = in_scene()
    again = result.explain("F0" if result.explained != "F0" else "F1")
    show_result(again, volume)
    assert in_scene() == before
    assert stored_summary(volume)["location_map"]["explained"] == again.explained
    assert find_part(volume, "plot").GetNumberOfPlotSeriesNodes() == 1


def test_a_result_without_comparable_signs_has_no_chart_of_them(abdomen, result):
    volume = add_volume(abdomen[0])
    show_result(result, volume)
    before = in_scene()
    none = tuple(
        replace(found, value=None, at_least=None, reason="No mask.")
        for found in result.signs.measurements
    )
    show_result(replace(result, signs=replace(result.signs, measurements=none)), volume)
    assert find_part(volume, "percentiles_plot") is find_part(volume, "percentiles") is None
    table = find_part(volume, "signs").GetTable()
    shown = [table.GetValueByName(n, "Value").ToString() for n in range(table.GetNumberOfRows())]
    # The length of the edge has no row of its own: it is said with the nodularity.
    assert shown.count("not measurable") == len(none) - 1
    show_result(result, volume)
    assert in_scene() == before


def test_smooth_map_has_the_numbers_and_the_colors_of_the_bands(abdomen, result, views):
    volume = add_volume(abdomen[0])
    show_result(result, volume, Display(smooth=True))
    node = find_part(volume, "smooth")
    # The map's part of the CT's grid, at its place; nothing of the map lies outside it.
    relative = sitk.GetArrayViewFromImage(result.location_map)
    np.testing.assert_array_equal(on_grid_of(volume, node), relative)
    edges = slicer.util.arrayFromVolume(node).copy()
    edges[1:-1, 1:-1, 1:-1] = 0
    assert not edges.any()  # so the views interpolate to 0, as they would within the whole CT

    labels = sitk.GetArrayViewFromImage(result.label_map)
    composite = views[0].logic.GetSliceCompositeNode()
    assert composite.GetForegroundVolumeID() == node.GetID()
    assert composite.GetForegroundOpacity() == SMOOTH_OPACITY
    shown = set()
    for index in np.random.default_rng(2).permutation(np.argwhere(labels > 0))[:2000]:
        around = tuple(slice(max(0, i - 1), i + 2) for i in index)
        label = labels[tuple(index)]
        if label in shown or (labels[around] != label).any() or labels[around].size != 27:
            continue
        shown.add(label)
        lps = abdomen[0].TransformIndexToPhysicalPoint(index[::-1].tolist())
        ras = np.array([-lps[0], -lps[1], lps[2]])
        composite.SetForegroundOpacity(SMOOTH_OPACITY)
        color = views[0].color(ras)
        composite.SetForegroundOpacity(0.0)
        grey = views[0].color(ras)
        opacity = SMOOTH_OPACITY if label > 1 else 0.0
        expected = grey[:3] * (1 - opacity) + 255 * opacity * np.array(BANDS[label].rgb)
        np.testing.assert_allclose(color[:3], expected, atol=3)
    assert len(shown) >= 3

    set_display(volume, Display(smooth=False))
    assert composite.GetForegroundVolumeID() is None
    assert composite.GetLabelVolumeID() == find_part(volume, "bands").GetID()
    show_result(result, volume)  # a result without a smooth map leaves no old one behind
    assert find_part(volume, "smooth") is None


def test_another_foreground_stays(abdomen, result, views):
    volume, other = add_volume(abdomen[0]), add_volume(abdomen[0], "Arterial phase")
    composite = views[0].logic.GetSliceCompositeNode()
    composite.SetForegroundVolumeID(other.GetID())
    show_result(result, volume)
    set_display(volume, Display(opacity=0.3, outline=True))
    assert composite.GetForegroundVolumeID() == other.GetID()
    assert composite.GetLabelOpacity() == pytest.approx(0.3)


def test_jump_goes_to_the_highest_value(abdomen, result, views):
    volume = add_volume(abdomen[0])
    to_world = rigid(20, (15, -20, 30))
    volume.SetAndObserveTransformNodeID(add_transform(to_world).GetID())
    show_result(result, volume)
    values = sitk.GetArrayViewFromImage(result.location_map)
    strongest = np.unravel_index(values.argmax(), values.shape)[::-1]
    lps = abdomen[0].TransformIndexToPhysicalPoint([int(i) for i in strongest])
    expected = (to_world @ [-lps[0], -lps[1], lps[2], 1])[:3]

    jump_to_strongest(volume)

    for view in views:
        matrix = slicer.util.arrayFromVTKMatrix(view.node.GetSliceToRAS())
        in_slice = np.linalg.solve(matrix, [*expected, 1.0])
        assert in_slice[2] == pytest.approx(0.0, abs=1e-6)  # in the plane that is shown


def test_saved_scene_restores_results(abdomen, result, tmp_path, scene):
    volume = add_volume(abdomen[0])
    show_result(result, volume, Display(smooth=True))
    summary = stored_summary(volume)
    for node in slicer.util.getNodesByClass("vtkMRMLStorableNode"):
        if node.GetSaveWithScene() and (node.IsA("vtkMRMLVolumeNode") or is_result(node)):
            node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
            extension = storage.GetDefaultWriteFileExtension()
            storage.SetFileName(str(tmp_path / f"{node.GetID()}.{extension}"))
            assert storage.WriteData(node)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    scene.Clear(0)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Connect()

    volume = slicer.util.getNode("CT")
    assert stored_summary(volume) == summary
    assert all(find_part(volume, part) is not None for part in PARTS if part != "organs")
    np.testing.assert_array_equal(
        on_grid_of(volume, find_part(volume, "bands")),
        sitk.GetArrayViewFromImage(result.label_map),
    )
    before = in_scene()
    show_result(result, volume, Display(smooth=True))
    assert in_scene() == before
