"""Batches in Slicer: a folder and CTs of the scene, in the background, into one table node."""

import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import qt_host
import SimpleITK as sitk

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import slicer
import slicer_host
from panel_steps import choose, in_scene, of_class
from slicer_host import wait_until
from small_scene import add_segmentation, add_volume

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.batch import case_row
from LiverFibrosisStagingLib.batch.table import COLUMNS
from LiverFibrosisStagingLib.errors import Cancelled
from LiverFibrosisStagingLib.result import StagingResult
from LiverFibrosisStagingLib.scene import jobs
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES

STEPS = ("Reading", "Running the network", "Explaining")


class Stage:
    """In place of `stage`: the same result for every CT, or what `outcomes` has for its turn.

    Between two of its reports it waits for the main thread's next timer event.
    """

    def __init__(self, result):
        from PySide6.QtCore import QTimer

        qt_host.application()
        self.result, self.outcomes, self.turns, self.ticks = result, {}, 0, []
        self._ticked, self._timer = threading.Event(), QTimer()
        self._timer.timeout.connect(self._ticked.set)
        self._timer.start(5)

    def __call__(self, *_, progress, cancel, **__):
        turn, self.turns = self.turns, self.turns + 1
        for number, step in enumerate(STEPS):
            progress(number / len(STEPS), step)
            self._ticked.clear()
            end = time.monotonic() + 30
            while not (ticked := self._ticked.wait(0.01)) and time.monotonic() < end:
                if cancel.is_set():
                    raise Cancelled("Cancelled.")
            self.ticks.append(ticked)
        outcome = self.outcomes.get(turn, self.result)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def stage(host, staged_sample, monkeypatch):
    host.import_module()
    stage = Stage(staged_sample)
    for module in (case_row, jobs):
        monkeypatch.setattr(module, "stage", stage)
    monkeypatch.setattr(StagingResult, "overview", lambda _: np.zeros((2, 2, 3), np.uint8))
    yield stage
    stage._timer.stop()
    stage._timer.deleteLater()
    assert all(stage.ticks) and not slicer.app._slots.get("aboutToQuit()")
    assert status_bar_buttons() == []


@pytest.fixture
def logic(stage):
    return slicer_host.import_module().LiverFibrosisStagingLogic()


@pytest.fixture
def cohort(tmp_path, abdomen):
    folder = tmp_path / "cohort"
    folder.mkdir()
    for name in ("one", "three", "two"):
        sitk.WriteImage(abdomen[0], str(folder / f"{name}_ct.nrrd"))
        sitk.WriteImage(abdomen[1], str(folder / f"{name}_liver.nrrd"))
    return folder


@pytest.fixture
def three(scene, abdomen):
    volumes = [add_volume(abdomen[0], name) for name in ("A", "B", "A")]
    return volumes, [add_segmentation(volume, liver=abdomen[1]) for volume in volumes]


def status_bar_buttons():
    from PySide6.QtWidgets import QPushButton

    slicer.app.processEvents()
    window = slicer_host._main_window()._object
    return [
        each for each in window.statusBar().findChildren(QPushButton) if each.isVisibleTo(window)
    ]


def texts(table, column):
    values = table.GetTable().GetColumnByName(column)
    return [values.GetValue(row) for row in range(table.GetNumberOfRows())]


def added(before):
    """Nodes that were added to the scene; the first one brings the subject hierarchy."""
    return in_scene() - before - Counter(vtkMRMLSubjectHierarchyNode=1)


def at_rest():
    return not [thread for thread in threading.enumerate() if "LiverFibrosis" in thread.name]


# ---------------------------------------------------------------------------- a folder


def test_folder_is_staged_while_slicer_processes_events(logic, stage, cohort, tmp_path, single):
    progress, buttons = [], []

    def progressed(fraction, step):
        progress.append((threading.current_thread(), fraction, step))
        buttons.extend(status_bar_buttons())

    table = logic.stageFolder(cohort, tmp_path / "out", progress=progressed, model=single)
    assert table.GetName() == "cohort fibrosis staging" and of_class("vtkMRMLTableNode") == [table]
    names = [table.GetTable().GetColumnName(n) for n in range(table.GetNumberOfColumns())]
    assert names == list(COLUMNS)
    assert texts(table, "case") == ["one", "three", "two"] and {*texts(table, "status")} == {"done"}
    assert {*texts(table, "notice")} == {RESEARCH_USE}
    assert {*texts(table, "trained_on")} == {single.card.trained_on}
    expected = stage.result.probabilities.round(6)
    for stage_name, value in zip(STAGES, expected):
        column = slicer.util.arrayFromTableColumn(table, stage_name)
        assert column.dtype == np.float64 and (column == value).all()
    assert len(progress) >= 6 and buttons
    assert {thread for thread, _, _ in progress} == {threading.main_thread()}
    fractions = [fraction for _, fraction, _ in progress]
    assert fractions == sorted(fractions)
    (last,) = [text for text in slicer_host.status_messages if "left" not in text][-1:]
    assert "3 staged and 0 failed of 3" in last
    assert any("2 staged and 0 failed of 3, 0:00:0" in t for t in slicer_host.status_messages)


def test_cancelling_keeps_the_finished_cases(logic, stage, cohort, tmp_path, single):
    before = in_scene()

    def click_in_the_third(fraction, step):
        if fraction > 2 / 3:
            (button,) = status_bar_buttons()
            button.click()

    table = logic.stageFolder(cohort, tmp_path / "out", progress=click_in_the_third, model=single)
    assert texts(table, "case") == ["one", "three"]
    assert added(before) == Counter(vtkMRMLTableNode=1)
    assert "cancelled" in slicer_host.status_messages[-1]
    wait_until(at_rest)
    table_again = logic.stageFolder(cohort, tmp_path / "out", model=single)  # the rest
    assert texts(table_again, "case") == ["one", "three", "two"] and stage.turns == 4


def test_cancelled_before_the_first_case_ends_nothing_is_left(logic, cohort, tmp_path, single):
    before = in_scene()
    batch = logic.stageFolder(cohort, tmp_path / "out", wait=False, model=single)
    batch.cancel()
    assert batch.wait() is None and batch.cancelled and batch.error is None
    assert in_scene() == before
    wait_until(at_rest)


def test_failures_are_rows_with_missing_numbers(logic, stage, cohort, tmp_path, single):
    stage.outcomes = {0: StagingError("The CT has no liver."), 2: ValueError("of Mustermann")}
    told = []

    def notify(text):
        assert threading.current_thread() is threading.main_thread()
        told.append(text)

    table = logic.stageFolder(cohort, tmp_path / "out", notify=notify, model=single)
    assert texts(table, "status") == ["failed", "done", "failed"]
    assert texts(table, "reason")[0] == "The CT has no liver."
    assert texts(table, "stage")[0] == "" and texts(table, "stage")[1] in STAGES
    assert texts(table, "supported") == ["", "true", ""]
    numbers = slicer.util.arrayFromTableColumn(table, "F4")
    assert list(np.isnan(numbers)) == [True, False, True]
    assert not any("Mustermann" in text for text in texts(table, "reason"))
    assert len(told) == 2 and "of Mustermann" in told[1]


def test_folder_continues_when_the_scene_is_closed(logic, cohort, tmp_path, single):
    seen = []

    def close_after_the_first(fraction, step):
        if of_class("vtkMRMLTableNode") and not seen:
            seen.append(step)
            slicer.mrmlScene.Clear(0)

    table = logic.stageFolder(
        cohort, tmp_path / "out", progress=close_after_the_first, model=single
    )
    assert seen and of_class("vtkMRMLTableNode") == [table]
    assert texts(table, "case") == ["one", "three", "two"]


def test_without_a_main_window_progress_goes_to_stderr(
    logic, cohort, tmp_path, single, monkeypatch, capsys
):
    monkeypatch.setattr(slicer.util._util, "mainWindow", lambda: None)
    slicer_host.status_messages.clear()
    table = logic.stageFolder(cohort, tmp_path / "out", model=single)
    assert table.GetNumberOfRows() == 3 and slicer_host.status_messages == []
    lines = capsys.readouterr().err.splitlines()
    assert "1 staged and 0 failed of 3" in lines[1] and "left" in lines[1]
    assert lines[-1].endswith("cohort fibrosis staging: 3 staged and 0 failed of 3")
    assert not any(name in line for line in lines for name in ("one", "three", "two"))


def test_name_of_a_patient_is_not_the_tables(logic, cohort, tmp_path, single):
    folder = cohort.rename(tmp_path / "Mustermann_Erika_1950")
    table = logic.stageFolder(folder, tmp_path / "out", model=single)
    assert table.GetName() == "Cohort fibrosis staging"


def test_quitting_slicer_ends_the_batch(logic, cohort, tmp_path, single):
    def quit_in_the_second(fraction, step):
        if fraction > 1 / 3:
            slicer.app._send("lastWindowClosed()")
            assert at_rest()

    table = logic.stageFolder(cohort, tmp_path / "out", progress=quit_in_the_second, model=single)
    assert texts(table, "case") == ["one"]


def test_interrupting_the_script_ends_the_batch(logic, cohort, tmp_path, single, monkeypatch):
    def interrupt(seconds):
        if of_class("vtkMRMLTableNode"):
            raise KeyboardInterrupt

    from LiverFibrosisStagingLib.scene import batch

    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
    with pytest.raises(KeyboardInterrupt):
        logic.stageFolder(cohort, tmp_path / "out", model=single)
    assert at_rest() and batch.running() is None


@pytest.mark.skipif(sys.platform != "linux", reason="Qt is called so on Linux only")
def test_batch_continues_while_an_idle_slicer_holds_pythons_lock(logic, cohort, tmp_path, single):
    batch = logic.stageFolder(cohort, tmp_path / "out", wait=False, model=single)
    slicer_host.wait_as_slicer(lambda: not batch.isRunning, 60)
    assert batch.tableNode.GetNumberOfRows() == 3


# ---------------------------------------------------------------------------- without waiting


def test_without_waiting_one_callback_tells_the_end(logic, cohort, tmp_path, single):
    ended = []
    batch = logic.stageFolder(
        cohort, tmp_path / "out", wait=False, finished=ended.append, model=single
    )
    assert batch.isRunning and batch.tableNode is None and ended == []
    wait_until(lambda: not batch.isRunning)
    assert ended == [batch] and not batch.cancelled and batch.error is None
    assert [row["case"] for row in batch.rows] == texts(batch.tableNode, "case")
    batch.cancel()  # has no effect any more
    assert ended == [batch] and batch.wait() is batch.tableNode


def test_refusals_leave_no_node_and_no_running_batch(logic, cohort, three, tmp_path):
    (tmp_path / "empty").mkdir()
    before, out = in_scene(), tmp_path / "out"
    volumes, organs = three
    refused = {
        "no CT": lambda: logic.stageFolder(tmp_path / "empty", out),
        "workers=2": lambda: logic.stageFolder(cohort, out, workers=2),
        "absent.onnx": lambda: logic.stageFolder(cohort, out, model=tmp_path / "absent.onnx"),
        "absent.onnx'?:? ": lambda: logic.stageNodes(volumes, model=tmp_path / "absent.onnx"),
        "3 CTs and 1 seg": lambda: logic.stageNodes(volumes, organs[:1]),
        "load CTs": lambda: logic.stageNodes([]),
    }
    for sentence, call in refused.items():
        with pytest.raises(StagingError, match=sentence):
            call()
        assert in_scene() == before, sentence
    batch = logic.stageFolder(tmp_path / "empty", out, wait=False)
    wait_until(lambda: not batch.isRunning)
    assert isinstance(batch.error, StagingError) and batch.tableNode is None


def test_second_batch_and_the_panels_stage_are_refused(
    logic, panel, three, cohort, tmp_path, single
):
    choose(panel, three[0][0], three[1][0])
    batch = logic.stageFolder(cohort, tmp_path / "out", wait=False, model=single)
    with pytest.raises(StagingError, match="A batch is running"):
        logic.stageNodes(three[0])
    panel.ui.stageButton.click()
    (dialog,) = slicer_host.dialogs
    slicer_host.dialogs.clear()
    assert dialog.text.startswith("A batch is running") and batch.isRunning
    assert batch.wait().GetNumberOfRows() == 3


def test_callback_that_fails_does_not_end_the_batch(logic, cohort, tmp_path, single):
    def notify(text):
        raise KeyError("a callback")

    (cohort / "one_ct.nrrd").rename(cohort / "Mustermann^Erika_ct.nrrd")  # which is told
    batch = logic.stageFolder(cohort, tmp_path / "out", wait=False, notify=notify, model=single)
    wait_until(lambda: not batch.isRunning)
    assert {type(error) for error in qt_host.exceptions} == {KeyError}
    qt_host.exceptions.clear()
    assert [row["status"] for row in batch.rows] == ["done"] * 3


# ---------------------------------------------------------------------------- CTs of the scene


def test_nodes_are_staged_and_shown(logic, stage, three, single):
    volumes, _ = three
    table = logic.stageNodes(volumes[:2], model=single)
    assert texts(table, "case") == ["A", "B"] and {*texts(table, "status")} == {"done"}
    assert table.GetName() == "Fibrosis staging of 2 CTs"
    assert of_class("vtkMRMLLabelMapVolumeNode") == []
    table = logic.stageNodes(model=single)
    assert texts(table, "case") == ["A", "B", "A (2)"]
    assert {*texts(table, "notice")} == {RESEARCH_USE} and len(stage.ticks) == 5 * len(STEPS)


def test_each_node_is_read_when_its_turn_comes(logic, three, single, abdomen):
    """Removed or emptied before that, it is a failed row; removed while it is staged, it is not."""
    volumes, _ = three
    done = []

    def change(fraction, step):
        if fraction and not done:
            done.append(step)
            slicer.mrmlScene.RemoveNode(volumes[0])  # being staged
            slicer.mrmlScene.RemoveNode(volumes[1])
            volumes[2].SetAndObserveImageData(None)

    table = logic.stageNodes(volumes, [None] * 3, progress=change, showResults=True, model=single)
    assert texts(table, "status") == ["done", "failed", "failed"]
    assert "removed from the scene" in texts(table, "reason")[1]
    assert "has no voxels" in texts(table, "reason")[2]


def test_cancelled_nodes_keep_their_rows(logic, three, single):
    def cancel(fraction, step):
        if fraction > 1 / 3:
            (button,) = status_bar_buttons()
            button.click()

    before = in_scene()
    table = logic.stageNodes(three[0], progress=cancel, model=single)
    assert texts(table, "case") == ["A"] and added(before) == Counter(vtkMRMLTableNode=1)
    wait_until(at_rest)


def test_closing_the_scene_ends_the_batch_of_nodes(logic, three, single):
    def close(fraction, step):
        if fraction > 1 / 3:
            slicer.mrmlScene.Clear(0)

    ended = []
    assert logic.stageNodes(three[0], progress=close, finished=ended.append, model=single) is None
    (batch,) = ended
    assert batch.cancelled and [row["case"] for row in batch.rows] == ["A"] and at_rest()
    assert of_class("vtkMRMLTableNode") == []


def test_result_that_no_longer_fits_is_a_failed_row(logic, stage, three, single):
    """The stand-in's result has the sample's size."""
    table = logic.stageNodes(three[0][:1], showResults=True, model=single)
    assert texts(table, "status") == ["failed"] and "voxels" in texts(table, "reason")[0]
    assert of_class("vtkMRMLLabelMapVolumeNode") == []


def test_nodes_get_the_numbers_of_the_library(host, single, staged_sample):
    module = host.import_module()
    volume, organs = module.loadSample()
    logic = module.LiverFibrosisStagingLogic()
    table = logic.stageNodes([volume], [organs], showResults=True, model=single)
    found = [slicer.util.arrayFromTableColumn(table, stage)[0] for stage in STAGES]
    np.testing.assert_allclose(found, staged_sample.probabilities, atol=1e-6)
    assert texts(table, "stage") == [staged_sample.stage]
    assert logic.storedSummary(volume)["stage"] == staged_sample.stage
