"""The panel with its .ui on the stand-ins: what the user clicks and what is shown then."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import SimpleITK as sitk
import slicer
import slicer_host
from panel_steps import (
    check_overlay,
    choose,
    in_scene,
    is_busy,
    label_node,
    load_scene,
    of_class,
    point_in,
    save_scene,
    stage,
    views,
)
from slicer_host import wait_until
from small_scene import on_grid_of

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("F0", "F1", "F2", "F3", "F4")


@pytest.fixture(autouse=True)
def one_network(request):
    """Stage with one of the shipped networks, unless the test is about the ensemble."""
    if request.node.get_closest_marker("ensemble") is None:
        request.getfixturevalue("single_network")


# ---------------------------------------------------------------------------- before staging


def test_an_empty_panel_shows_what_is_missing(panel):
    ui = panel.ui
    assert not ui.stageButton.enabled and ui.stageButton.text == "&Stage"
    assert "a CT volume" in ui.missingLabel.text and "automatically" in ui.foundLabel.text
    assert ui.missingLabel.visible and "CT" in ui.stageButton.toolTip
    assert ui.emptyLabel.visible and not ui.resultWidget.visible and not ui.overlayWidget.enabled


def test_a_chosen_ct_and_segmentation_can_be_staged(ready):
    ui = ready.ui
    assert ui.stageButton.enabled and not ui.missingLabel.visible
    assert "Liver" in ui.foundLabel.text and "Spleen" in ui.foundLabel.text
    assert "not staged yet" in ui.emptyLabel.text


def test_a_ct_alone_is_enough_and_corrections_are_kept(ready):
    """Organs segmented automatically become a segmentation; after corrections, it is used."""
    ui, ct = ready.ui, ready.ui.inputVolumeSelector.currentNode()
    before = of_class("vtkMRMLSegmentationNode")
    choose(ready, ct, None)
    assert ui.stageButton.enabled and "automatically" in ui.foundLabel.text
    stage(ready)
    (made,) = [node for node in of_class("vtkMRMLSegmentationNode") if node not in before]
    assert "automatically" in ui.warningsLabel.text and "Spleen" in ui.measurementsLabel.text
    assert "Liver" in ui.foundLabel.text and ui.segmentationSelector.currentNode() is None
    made.GetSegmentation().RemoveSegment("spleen")
    stage(ready)
    assert "automatically" not in ui.warningsLabel.text
    assert "Spleen" not in ui.measurementsLabel.text
    assert made.GetSegmentation().GetNumberOfSegments() == 1


def test_what_is_in_the_scene_is_chosen_when_the_module_is_opened(host):
    volume, segmentation = host.import_module().loadSample()
    slicer.util.addVolumeFromArray(
        np.zeros((2, 2, 2), np.uint8), nodeClassName="vtkMRMLLabelMapVolumeNode"
    )
    panel = host.open_panel()
    assert panel.ui.inputVolumeSelector.currentNode() is volume
    assert panel.ui.segmentationSelector.currentNode() is segmentation
    assert panel.ui.inputVolumeSelector.nodeCount() == 1
    host.close_panel(panel)


def test_the_panel_works_after_leaving_and_coming_back(ready):
    for _ in range(3):
        ready.exit()
        ready.enter()
    ready.ui.opacitySlider.value = 40.0
    assert ready.ui.stageButton.enabled
    assert ready.logic.getParameterNode().opacity == 40.0


def test_settings_are_remembered(panel, host, tmp_path):
    import qt

    panel.ui.threadsSpinBox.value = 2
    panel.ui.modelPathLineEdit.currentPath = str(tmp_path / "mine.onnx")
    other = host.open_panel()
    assert other.ui.threadsSpinBox.value == 2
    assert other.ui.modelPathLineEdit.currentPath == str(tmp_path / "mine.onnx")
    host.close_panel(other)
    qt.QSettings().clear()


def test_the_model_card_is_shown_on_demand(panel, tmp_path):
    ui = panel.ui
    assert not ui.modelCardLabel.visible
    ui.modelCardButton.click()
    assert "Trained on" in ui.modelCardLabel.text
    ui.modelPathLineEdit.currentPath = str(tmp_path / "absent.onnx")
    assert "absent.onnx" in ui.modelCardLabel.text
    ui.modelPathLineEdit.currentPath = ""
    assert "Trained on" in ui.modelCardLabel.text


# ---------------------------------------------------------------------------- staging


@pytest.mark.ensemble
def test_staging_the_sample_shows_progress_result_and_map(ready, sample):
    ui, seen = ready.ui, []
    ui.progressBar.valueChanged.connect(lambda value: seen.append((value, ui.stepLabel.text)))
    ui.stageButton.click()
    assert ui.stageButton.text == "&Cancel" and ui.stageButton.enabled
    assert not ui.inputVolumeSelector.enabled
    wait_until(lambda: not is_busy(ready))

    values = [value for value, _ in seen]
    assert values == sorted(values) and len(set(values)) > 5
    steps = " ".join(text for _, text in seen)
    assert "network" in steps and "s left" in steps
    assert ui.stageButton.text == "&Stage" and ui.inputVolumeSelector.enabled
    bars = [getattr(ui, f"{stage}Bar").value for stage in STAGES]
    assert sum(bars) == pytest.approx(1000, abs=3)
    assert ui.stageLabel.text == STAGES[int(np.argmax(np.cumsum(bars) >= sum(bars) / 2))]
    assert ui.significantBar.value == pytest.approx(sum(bars[2:]), abs=3)
    assert ui.advancedBar.value == pytest.approx(sum(bars[3:]), abs=3)
    assert ui.cirrhosisBar.value == pytest.approx(bars[4], abs=1)
    assert ui.resultWidget.visible and not ui.emptyLabel.visible and ui.overlayWidget.enabled
    summary = ready.logic.storedSummary(ui.inputVolumeSelector.currentNode())
    assert ui.stageLabel.visible == ui.probabilitiesWidget.enabled == summary["supported"]
    assert ui.unsupportedLabel.visible != summary["supported"]
    assert "esearch use" in ui.researchUseLabel.text
    assert summary["model"]["trained_on"] in ui.behindLabel.text
    found = summary["ensemble"]
    agreeing = f"{found['agreeing']} of {found['members']} predict {summary['stage']}, with"
    assert agreeing in ui.behindLabel.text
    assert "Liver&nbsp;surface" in ui.measurementsLabel.text
    check_overlay()

    from LiverFibrosisStagingLib import stage

    alone = stage(sample["ct"], sample["liver"], sample["spleen"])
    np.testing.assert_allclose(bars, 1000 * alone.probabilities, atol=0.51)


def test_the_numbers_are_those_of_the_library(staged, sample, single):
    from LiverFibrosisStagingLib import stage

    alone = stage(sample["ct"], sample["liver"], sample["spleen"], single)
    bars = [getattr(staged.ui, f"{name}Bar").value for name in STAGES]
    np.testing.assert_allclose(bars, 1000 * alone.probabilities, atol=0.51)
    (volume,) = of_class("vtkMRMLScalarVolumeNode")
    np.testing.assert_array_equal(
        on_grid_of(volume, label_node()), sitk.GetArrayViewFromImage(alone.label_map)
    )


def test_a_real_ct_is_staged(panel, shared_data):
    folder = shared_data / "hcc007_cirrA_bl_pv"
    volume = slicer_host.load_volume(folder / "ct.nii.gz")
    labels = slicer_host.load_volume(
        folder / "seg_semiauto_liver1_spleen2.nii.gz", "vtkMRMLLabelMapVolumeNode"
    )
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Organs")
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, segmentation)
    slicer.mrmlScene.RemoveNode(labels)
    for position, name in enumerate(("Liver", "Spleen")):
        segmentation.GetSegmentation().GetNthSegment(position).SetName(name)
    choose(panel, volume, segmentation)
    stage(panel)
    assert panel.ui.stageLabel.text in STAGES
    check_overlay()
    panel.ui.jumpButton.click()
    strongest = slicer.util.arrayFromVolume(label_node()).max(initial=0)
    assert strongest == 10


def test_another_stage_is_explained_without_rerunning_the_network(staged):
    ui = staged.ui
    before = slicer.util.arrayFromVolume(label_node()).copy()
    bars = [getattr(ui, f"{name}Bar").value for name in STAGES]
    other = (STAGES.index(ui.stageLabel.text) + 2) % 5
    assert ui.explainedComboBox.currentIndex == STAGES.index(ui.stageLabel.text)
    ui.explainedComboBox.setCurrentIndex(other)
    ui.explainedComboBox.activated.emit(other)  # as a click in the list does
    assert is_busy(staged)
    wait_until(lambda: not is_busy(staged))
    assert (slicer.util.arrayFromVolume(label_node()) != before).any()
    assert bars == [getattr(ui, f"{name}Bar").value for name in STAGES]
    assert ui.explainedComboBox.currentIndex == other
    (legend,) = of_class("vtkMRMLColorLegendDisplayNode")
    assert STAGES[other] in legend.GetTitleText()
    check_overlay()


def test_opacity_threshold_outline_and_legend_change_the_view(staged):
    ui = staged.ui
    ui.opacitySlider.value = 50.0
    check_overlay(opacity=0.5)
    ui.opacitySlider.value = 100.0

    weak, strong = point_in(label_node(), 2), point_in(label_node(), 7)
    view = views()["Red"]
    ui.thresholdSlider.value = 50.0
    assert (view.color(weak) == view.color(weak, label=False)).all()
    assert (view.color(strong) != view.color(strong, label=False)).any()
    ui.thresholdSlider.value = 0.0
    assert (view.color(weak) != view.color(weak, label=False)).any()

    voxels = slicer.util.arrayFromVolume(label_node())
    voxels[:] = 2  # a map with a large band, in which there is no outline
    voxels[:, 40:-40, 40:-40] = 7
    slicer.util.arrayFromVolumeModified(label_node())
    inner = slicer_host.voxel_point(label_node(), np.array(voxels.shape) // 2)
    ui.outlineCheckBox.click()
    assert (view.color(inner) == view.color(inner, label=False)).all()
    ui.outlineCheckBox.click()
    assert (view.color(inner) != view.color(inner, label=False)).any()

    (legend,) = of_class("vtkMRMLColorLegendDisplayNode")
    assert legend.GetVisibility()
    ui.legendCheckBox.click()
    assert not legend.GetVisibility()


def test_the_smooth_map_is_a_foreground_volume(staged):
    ui, view = staged.ui, views()["Red"]
    strong, outside = point_in(label_node(), 7), point_in(label_node(), 0)
    with_bands = view.color(strong)
    grey = view.color(strong, label=False)
    ui.smoothCheckBox.click()
    wait_until(lambda: not is_busy(staged))
    composite = view.logic.GetSliceCompositeNode()
    smooth = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID())
    assert smooth.GetClassName() == "vtkMRMLScalarVolumeNode"
    assert composite.GetLabelVolumeID() is None
    assert np.abs(view.color(strong)[:3] - grey[:3]).max() > 20
    black = view.color(outside)
    ui.smoothCheckBox.click()
    assert (view.color(strong) == with_bands).all() and (view.color(outside) == black).all()
    assert composite.GetForegroundVolumeID() is None


def test_jumping_shows_the_strongest_region_in_every_view(staged):
    for view in views().values():
        view.node.JumpSliceByCentering(0, 0, 0)
    staged.ui.jumpButton.click()
    node = label_node()
    voxels = np.argwhere(slicer.util.arrayFromVolume(node) == 10)
    strongest = np.array([slicer_host.voxel_point(node, index) for index in voxels])
    for view in views().values():
        _, _, normal, origin = slicer.util.arrayFromVTKMatrix(view.node.GetSliceToRAS())[:3].T
        assert np.abs((strongest - origin) @ normal).min() < 1e-3


def test_results_are_ordinary_nodes_named_after_the_ct(staged):
    (volume,) = (n for n in of_class("vtkMRMLScalarVolumeNode"))
    for class_name in (
        "vtkMRMLLabelMapVolumeNode",
        "vtkMRMLTableNode",
        "vtkMRMLPlotChartNode",
        "vtkMRMLPlotSeriesNode",
    ):
        nodes = of_class(class_name)
        assert nodes and all(node.GetName().startswith(volume.GetName()) for node in nodes)
    assert sum("Location map" in node.GetName() for node in of_class("vtkMRMLColorTableNode")) == 1


def test_staging_again_updates_and_duplicates_nothing(staged):
    before, label = in_scene(), label_node()
    stage(staged)
    assert in_scene() == before and label_node() is label
    check_overlay()


def test_the_table_is_copied(staged):
    import qt

    staged.ui.copyTableButton.click()
    text = qt.QApplication.clipboard().text()
    assert staged.ui.stageLabel.text in text and "\t" in text and "Liver surface" in text


def test_a_saved_scene_restores_everything(staged, tmp_path):
    ui = staged.ui
    ui.opacitySlider.value = 60.0
    before = (ui.stageLabel.text, ui.F1Value.text, ui.measurementsLabel.text)
    voxels = slicer.util.arrayFromVolume(label_node()).copy()
    saved = save_scene(tmp_path / "scene")
    slicer.mrmlScene.Clear(0)
    assert not ui.resultWidget.visible and not ui.stageButton.enabled
    load_scene(saved)
    assert (ui.stageLabel.text, ui.F1Value.text, ui.measurementsLabel.text) == before
    assert ui.resultWidget.visible and ui.opacitySlider.value == 60.0
    assert ui.inputVolumeSelector.currentNode().GetName() == "LiverFibrosisPhantom"
    assert ui.segmentationSelector.currentNode().GetName() == "LiverFibrosisPhantom organs"
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(label_node()), voxels)
    check_overlay(opacity=0.6)
    ui.opacitySlider.value = 100.0
    check_overlay()
    before = in_scene()
    stage(staged)
    assert in_scene() == before
    check_overlay()


def test_parent_transforms_are_respected(ready):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Move")
    matrix = np.eye(4)
    matrix[:3, 3] = 12.0, -30.0, 45.0
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    for selector in (ready.ui.inputVolumeSelector, ready.ui.segmentationSelector):
        selector.currentNode().SetAndObserveTransformNodeID(transform.GetID())
    stage(ready)
    assert label_node().GetTransformNodeID() == transform.GetID()
    check_overlay()
