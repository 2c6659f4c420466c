"""The real panel with its real .ui, over qt_host: what a reader clicks and what then is there."""

import re
import subprocess
import sys
import threading
import unittest
from collections import Counter
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
    choose,
    in_scene,
    is_busy,
    label_node,
    of_class,
    point_in,
    stage,
    until_under_way,
)
from slicer_host import wait_until

from LiverFibrosisStagingLib.report.colors import BANDS
from LiverFibrosisStagingLib.scene.mrml import find_segments

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("F0", "F1", "F2", "F3", "F4")


@pytest.fixture(autouse=True)
def one_network(request):
    """Staged is with one of the shipped networks, unless the test is about all of them."""
    if request.node.get_closest_marker("ensemble") is None:
        request.getfixturevalue("single_network")


def views():
    return slicer.app.layoutManager()._views


def expected_color(grey, label, opacity=1.0):
    opacity *= BANDS[label].opacity
    return np.asarray(grey) * (1 - opacity) + 255 * opacity * np.array(BANDS[label].rgb)


def check_overlay(opacity=1.0):
    """In every slice view the map has its colours at its place, and none outside the body."""
    node = label_node()
    outside, strong = point_in(node, 0), point_in(node, 7)
    for view in views().values():
        grey = view.color(strong, label=False)[:3]
        found = view.color(strong)[:3]
        np.testing.assert_allclose(found, expected_color(grey, 7, opacity), atol=3)
        assert np.abs(found - grey).max() > 20 * opacity
        np.testing.assert_array_equal(view.color(outside), view.color(outside, label=False))


# ---------------------------------------------------------------------------- before staging


def test_an_empty_panel_says_what_is_missing(panel):
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
    """Organs that were outlined become a segmentation; corrected by hand, it is what counts."""
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


def test_the_panel_survives_leaving_and_coming_back(ready):
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
def test_staging_the_sample_shows_progress_result_and_map(ready):
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
    assert ui.stageLabel.text == STAGES[int(np.argmax(bars))]
    assert ui.significantBar.value == pytest.approx(sum(bars[2:]), abs=3)
    assert ui.advancedBar.value == pytest.approx(sum(bars[3:]), abs=3)
    assert ui.cirrhosisBar.value == pytest.approx(bars[4], abs=1)
    assert ui.resultWidget.visible and not ui.emptyLabel.visible and ui.overlayWidget.enabled
    assert "esearch use" in ui.researchUseLabel.text
    assert "Trained on" in ui.behindLabel.text
    assert " of 5 say F4, with probabilities from " in ui.behindLabel.text
    assert "Liver surface" in ui.measurementsLabel.text
    check_overlay()


def test_the_numbers_are_those_of_the_library(staged, sample, single):
    from LiverFibrosisStagingLib import stage

    alone = stage(sample["ct"], sample["liver"], sample["spleen"], single)
    bars = [getattr(staged.ui, f"{name}Bar").value for name in STAGES]
    np.testing.assert_allclose(bars, 1000 * alone.probabilities, atol=0.51)
    np.testing.assert_array_equal(
        slicer.util.arrayFromVolume(label_node()), sitk.GetArrayViewFromImage(alone.label_map)
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


def test_another_stage_is_explained_without_running_the_network(staged):
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


def test_a_saved_scene_brings_everything_back(staged, tmp_path):
    ui, scene = staged.ui, slicer.mrmlScene
    ui.opacitySlider.value = 60.0
    before = (ui.stageLabel.text, ui.F1Value.text, ui.measurementsLabel.text)
    voxels = slicer.util.arrayFromVolume(label_node()).copy()
    folder = tmp_path / "scene"
    folder.mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(folder), None)
    scene.Clear(0)
    assert not ui.resultWidget.visible and not ui.stageButton.enabled
    (saved,) = folder.rglob("*.mrml")
    scene.SetURL(str(saved))
    assert scene.Connect()
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


# ---------------------------------------------------------------------------- ending early


def test_cancel_leaves_nothing_behind(ready):
    before = in_scene()
    until_under_way(ready)
    ready.ui.stageButton.click()
    ready._controller._worker.pump()  # the first one ends it, whatever the network still computes
    assert not is_busy(ready)
    assert in_scene() == before and ready.ui.emptyLabel.visible
    assert ready.ui.stageButton.text == "&Stage" and ready.ui.stageButton.enabled
    stage(ready)
    check_overlay()


def test_closing_the_scene_ends_staging(ready):
    until_under_way(ready)
    slicer.mrmlScene.Clear(0)
    wait_until(lambda: not is_busy(ready))
    assert not of_class("vtkMRMLLabelMapVolumeNode") and not of_class("vtkMRMLTableNode")
    assert not ready.ui.stageButton.enabled and ready.ui.emptyLabel.visible
    assert only_main_thread()
    choose(ready, *slicer_host.import_module().loadSample())
    stage(ready)
    check_overlay()


@pytest.mark.parametrize("which", ["inputVolumeSelector", "segmentationSelector"])
def test_deleting_a_node_while_it_is_staged_is_harmless(ready, which):
    until_under_way(ready)
    slicer.mrmlScene.RemoveNode(getattr(ready.ui, which).currentNode())
    wait_until(lambda: not is_busy(ready))
    if which == "inputVolumeSelector":
        assert not ready.ui.stageButton.enabled
        assert not of_class("vtkMRMLLabelMapVolumeNode") and not of_class("vtkMRMLTableNode")


def test_deleting_the_result_empties_the_panel(staged):
    for class_name in ("vtkMRMLLabelMapVolumeNode", "vtkMRMLTableNode"):
        for node in of_class(class_name):
            slicer.mrmlScene.RemoveNode(node)
    assert staged.ui.emptyLabel.visible and not staged.ui.resultWidget.visible
    stage(staged)
    check_overlay()


def test_leaving_slicer_ends_the_thread(host):
    panel = host.open_panel()
    choose(panel, *host.import_module().loadSample())
    until_under_way(panel)
    host.close_panel(panel)
    assert only_main_thread()


def only_main_thread():
    return not [t for t in threading.enumerate() if "LiverFibrosisStaging" in t.name]


# ---------------------------------------------------------------------------- never frozen


def test_the_main_thread_goes_on_at_every_step(ready, monkeypatch):
    """The worker stops at each step until the main thread has ticked once more."""
    from PySide6.QtCore import QTimer

    ticked, timer, answered = threading.Event(), QTimer(), {}
    timer.timeout.connect(ticked.set)
    timer.start(5)
    make = ready.logic.stagingJob

    def waiting_job(*inputs):
        job = make(*inputs)

        def run(progress, cancel):
            def progress_and_wait(fraction, step):
                progress(fraction, step)
                ticked.clear()
                answered[step] = ticked.wait(60)

            return job(progress_and_wait, cancel)

        return run

    monkeypatch.setattr(ready.logic, "stagingJob", waiting_job)
    stage(ready)
    assert {"Reading", "Running the network", "Explaining", "Preparing the display"} <= {*answered}
    assert all(answered.values()), answered


@pytest.mark.skipif(sys.platform != "linux", reason="Qt is called so on Linux only")
def test_staging_goes_on_where_an_idle_slicer_keeps_pythons_lock(ready):
    ready.ui.stageButton.click()
    slicer_host.wait_as_slicer(lambda: not is_busy(ready), 60)
    check_overlay()


# ---------------------------------------------------------------------------- refusals


def test_a_refusal_is_a_dialog_with_the_sentence_first(ready):
    segmentation = ready.ui.segmentationSelector.currentNode()
    for position in range(segmentation.GetSegmentation().GetNumberOfSegments()):
        segment = segmentation.GetSegmentation().GetNthSegment(position)
        segment.SetName("bone")
        segment.SetTerminology("")
    before = in_scene()
    ready.ui.stageButton.click()
    wait_until(lambda: not is_busy(ready))
    (dialog,) = slicer_host.dialogs
    slicer_host.dialogs.clear()
    assert "liver" in dialog.text and "\n" not in dialog.text.strip()
    assert "Traceback" in dialog.details
    assert in_scene() == before and ready.ui.stageButton.enabled


def test_a_refusal_of_the_worker_is_a_dialog_too(ready, tmp_path):
    import qt

    ready.ui.modelPathLineEdit.currentPath = str(tmp_path / "absent.onnx")
    ready.ui.stageButton.click()
    wait_until(lambda: not is_busy(ready))
    (dialog,) = slicer_host.dialogs
    slicer_host.dialogs.clear()
    assert "absent.onnx" in dialog.text
    assert ready.ui.emptyLabel.visible
    qt.QSettings().clear()


# ---------------------------------------------------------------------------- the module file


def test_the_widget_works_with_another_logic(host):
    asked = []
    real = host.import_module().LiverFibrosisStagingLogic

    class Logic(real):
        def stagingJob(self, *arguments):
            def job(progress, cancel):
                progress(0.5, "Thinking")
                raise ValueError("of 42")

            asked.append(arguments)
            return job

    panel = host.open_panel(Logic())
    volume = slicer.util.addVolumeFromArray(np.zeros((2, 2, 2), np.int16), name="CT")
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Organs")
    choose(panel, volume, segmentation)
    panel.ui.stageButton.click()
    wait_until(lambda: not is_busy(panel))
    (dialog,) = host.dialogs
    host.dialogs.clear()
    assert asked[0][:2] == (volume, segmentation)
    assert "of 42" in dialog.text and "ValueError" in dialog.details
    host.close_panel(panel)


def test_the_module_describes_itself_and_offers_the_sample(host):
    module = host.open_module()
    assert module.parent.title and module.parent.categories == ["Quantification"]
    assert (
        "esearch use" in module.parent.helpText and "doi.org" in module.parent.acknowledgementText
    )
    ((name, source),) = host.SampleDataLogic.sources.items()
    assert Path(source.thumbnailFileName).is_file()
    for _ in range(2):  # the second time from Slicer's cache
        volume, segmentation = host.SampleDataLogic().downloadSamples(name)
        assert volume.GetClassName() == "vtkMRMLScalarVolumeNode"
        assert volume.GetImageData().GetNumberOfPoints() > 0
        assert find_segments(segmentation, "liver") and find_segments(segmentation, "spleen")
    host.SampleDataLogic().clickButton(name)
    assert len(of_class("vtkMRMLSegmentationNode")) == 3


def test_the_self_test_passes(host):
    module = host.import_module()
    suite = unittest.TestLoader().loadTestsFromTestCase(module.LiverFibrosisStagingTest)
    outcome = unittest.TestResult()
    suite.run(outcome)
    assert outcome.testsRun >= 2 and outcome.skipped == []
    assert outcome.errors + outcome.failures == []


def test_the_documentations_python_works_when_pasted(host, sample, tmp_path, monkeypatch, capsys):
    host.import_module()
    for part, path in sample.items():
        (tmp_path / f"{part}.nii.gz").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {"slicer": slicer}
    pages = ("slicer.md", "command-line.md")
    text = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3
    assert names["rows"][0]["stage"] in STAGES and (tmp_path / "result" / "overview.png").is_file()
    assert label_node() and str(names["result"].stage) in capsys.readouterr().out


def test_the_tutorials_pictures_are_there_and_small():
    text = (ROOT / "docs" / "slicer.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\(\.\./(Resources/Screenshots/panel.*?)\)", text)
    assert len(pictures) == 5
    for picture in pictures:
        assert 5_000 < (ROOT / picture).stat().st_size < 400_000, picture


def test_the_module_loads_where_nothing_is_installed():
    code = f"""
import sys
sys.path[:0] = {[str(ROOT / "Testing/hosts"), str(ROOT / "LiverFibrosisStaging")]!r}
import slicer_host
slicer_host.start()
for name in ("onnxruntime", "SimpleITK", "sklearn", "torch"):
    sys.modules[name] = None  # importing it fails
module = slicer_host.import_module()
instance = module.LiverFibrosisStaging(slicer_host._Described(slicer_host.MODULE_FOLDER / "x.py"))
print(instance.parent.title, module.LiverFibrosisStagingLogic().moduleName)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Liver", "Fibrosis", "Staging", "LiverFibrosisStaging"], done


def test_every_parameter_is_in_the_panel(panel):
    shown = {widget.property("SlicerParameterName") for widget in vars(panel.ui).values()} - {None}
    assert shown == set(slicer_host.import_module().LiverFibrosisStagingParameterNode._parameters)


def test_the_panel_can_be_used_with_the_keyboard(panel):
    import qt

    for name, widget in vars(panel.ui).items():
        if isinstance(widget, qt.QPushButton | qt.QCheckBox):
            assert re.search("&[^&]", widget.text), name
            assert widget.focusPolicy & qt.Qt.TabFocus, name
        if name.endswith(("Selector", "ComboBox", "Slider", "SpinBox", "LineEdit")):
            labels = (w for w in vars(panel.ui).values() if isinstance(w, qt.QLabel))
            buddies = {label.buddy() for label in labels}
            assert widget in buddies, name
    shortcuts = [
        re.search("&([^&])", w.text)[1].lower()
        for w in vars(panel.ui).values()
        if isinstance(w, qt.QPushButton | qt.QCheckBox | qt.QLabel)
        and re.search("&[^&]", w.text)
        and "<" not in w.text
    ]
    assert len(shortcuts) == len(set(shortcuts)), Counter(shortcuts)


def test_every_control_has_a_tool_tip(staged):
    import qt

    kinds = qt.QPushButton | qt.QCheckBox | qt.QComboBox | qt.QSpinBox
    for name, widget in vars(staged.ui).items():
        if isinstance(widget, kinds) or name.endswith("Selector"):
            assert widget.toolTip, name
