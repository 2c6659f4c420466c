"""The log of the panel's jobs: seconds by step and versions, in the panel and in Slicer's log."""

import importlib.metadata
import logging
import re

import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import slicer_host
import widgets_host
from panel_steps import is_busy, stage, until_under_way
from slicer_host import wait_until

from LiverFibrosisStagingLib.scene import run_log
from LiverFibrosisStagingLib.scene.run_log import RunLog

pytestmark = pytest.mark.usefixtures("single_network")
PATIENT = "Doe_Jane_1950"


@pytest.fixture(autouse=True)
def application_log(caplog):
    """A function that returns the module's lines in Slicer's application log."""
    caplog.set_level(logging.INFO)

    def text():
        ours = [record for record in caplog.records if record.module == "run_log"]
        return "\n".join(record.getMessage() for record in ours)

    return text


class Shown:
    """In place of the panel's text edit."""

    def __init__(self):
        self.lines = []

    def appendPlainText(self, text):
        self.lines += text.split("\n")


def test_each_job_is_logged_with_the_seconds_of_its_steps(ready, application_log, tmp_path):
    ready.ui.inputVolumeSelector.currentNode().SetName(PATIENT)
    ready.ui.segmentationSelector.currentNode().SetName(f"{PATIENT} organs")
    stage(ready)
    widgets_host.file_dialog_answers.append(str(tmp_path / PATIENT))
    ready.ui.saveButton.click()
    wait_until(lambda: not is_busy(ready))

    shown, logged = ready.ui.logTextEdit.plainText, application_log()
    for text in (shown, logged):
        assert re.search(r"Staging: done, \d+\.\d\d s", text)
        assert re.search(r"Running the network \d+\.\d\d s", text)
        assert "Showing the result" in text and "Saving: done" in text
        assert f"onnxruntime {importlib.metadata.version('onnxruntime')}" in text
        assert "Slicer 5.10.0" in text and "SimpleITK" in text
        for name in ("Doe", str(tmp_path), "Phantom"):
            assert name not in text
    assert shown.count("SimpleITK") == 1  # the versions have not changed since
    assert ready.ui.logTextEdit.readOnly and ready.ui.logCollapsibleButton.collapsed


def test_an_error_is_logged_by_its_kind_and_its_details_contain_the_log(ready, application_log):
    ready.ui.modelPathLineEdit.currentPath = f"/data/{PATIENT}.onnx"
    ready.ui.stageButton.click()
    wait_until(lambda: not is_busy(ready))
    (dialog,) = slicer_host.dialogs
    slicer_host.dialogs.clear()
    ready.ui.modelPathLineEdit.currentPath = ""
    assert PATIENT in dialog.text
    assert "Traceback" in dialog.details
    assert "Staging: StagingError (Loading the model)" in dialog.details
    assert "Slicer 5.10.0" in dialog.details
    for text in (ready.ui.logTextEdit.plainText, application_log()):
        assert "Staging: StagingError" in text and PATIENT not in text


def test_a_cancelled_job_is_logged_too(ready, application_log, monkeypatch):
    monkeypatch.setattr(run_log, "SHORTEST", 0.0)
    until_under_way(ready)
    ready.ui.stageButton.click()
    wait_until(lambda: not is_busy(ready))
    assert "Staging: cancelled" in application_log()
    assert re.search(r"Reading \d+\.\d\d s", ready.ui.logTextEdit.plainText)


def test_changed_versions_are_logged_again(host, monkeypatch):
    shown = Shown()
    log = RunLog(shown)
    log.add("First", 0.5)
    log.add("Second", {"Reading": 1.0, "Too short to list": 0.001})
    monkeypatch.setattr(run_log, "versions", lambda: "onnxruntime 99")
    assert log.add("Third") == "onnxruntime 99\nThird"
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in shown.lines]
    assert lines[1:] == [
        "First, 0.50 s",
        "Second, 1.00 s",
        "    Reading 1.00 s",
        "onnxruntime 99",
        "Third",
    ]


def test_a_package_that_is_missing_is_logged_as_such(host, monkeypatch):
    monkeypatch.setattr(run_log, "PACKAGES", ("no-such-package",))
    assert run_log.versions().endswith("no-such-package not installed")
