"""Jobs of the panel: cancelled, ended with the scene, failed; Slicer stays responsive."""

import sys
import threading

import numpy as np
import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import slicer
import slicer_host
from panel_steps import (
    check_overlay,
    choose,
    in_scene,
    is_busy,
    of_class,
    stage,
    until_under_way,
)
from slicer_host import wait_until

pytestmark = pytest.mark.usefixtures("single_network")


# ---------------------------------------------------------------------------- ending early


def test_cancel_does_not_change_the_scene(ready):
    before = in_scene()
    until_under_way(ready)
    ready.ui.stageButton.click()
    ready._panel._worker.pump()  # one pump ends it, while the network still computes
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


def test_the_main_thread_runs_during_every_step(ready, monkeypatch):
    """The worker waits at each step for the main thread's next timer event."""
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
def test_staging_continues_while_an_idle_slicer_holds_pythons_lock(ready):
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
