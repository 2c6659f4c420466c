"""The panel in each state: reasons for disabled controls, widths, saving, missing packages."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import slicer
import slicer_host
import widgets_host
from panel_steps import is_busy, load_scene, of_class, save_scene, until_under_way
from slicer_host import wait_until

from LiverFibrosisStagingLib.scene import jobs
from LiverFibrosisStagingLib.scene.scene_display import shows_3d

pytestmark = pytest.mark.usefixtures("single_network")
ROOT = Path(__file__).resolve().parents[2]
LABELS = (
    *("foundLabel", "emptyLabel", "unsupportedLabel", "attentionLabel", "behindLabel"),
    *("patternLabel", "measurementsLabel", "referenceLabel", "agreementLabel", "signsLabel"),
    *("checksLabel", "warningsLabel"),
)
KINDS = ("QPushButton", "QCheckBox", "QComboBox", "QSpinBox", "ctkSliderWidget", "ctkPathLineEdit")


def check_reasons(panel):
    """Each disabled control has the reason as its tooltip; returns the names of these controls."""
    disabled = set()
    for name, widget in vars(panel.ui).items():
        if type(widget).__name__ in (*KINDS, "qMRMLNodeComboBox") and widget.toolTip:
            of_use = widget.property("toolTipOfUse")
            if not widget.enabled:
                disabled.add(name)
                assert of_use and widget.toolTip != of_use, name
            else:
                assert of_use in (None, widget.toolTip) or widget.text == "&Cancel", name
    return disabled


def waiting_job(owner, name, monkeypatch):
    """A job made by the owner's function waits until the returned event is set."""
    go_on, make = threading.Event(), getattr(owner, name)

    def made(*arguments):
        job = make(*arguments)

        def run(progress, cancel):
            go_on.wait(60)
            return job(progress, cancel)

        return run

    monkeypatch.setattr(owner, name, made)
    return go_on


# ---------------------------------------------------------------------------- reasons


def test_disabled_controls_show_the_reason(ready, tmp_path, monkeypatch):
    ui = ready.ui
    nothing = {
        "explainedComboBox",
        "saveButton",
        "reportButton",
        "smoothCheckBox",
        "jumpButton",
        "opacitySlider",
    }
    assert nothing <= check_reasons(ready) and "stage the CT first" in ui.saveButton.toolTip
    until_under_way(ready)
    assert {"inputVolumeSelector", "threadsSpinBox"} <= check_reasons(ready)
    assert "cancel" in ui.inputVolumeSelector.toolTip
    wait_until(lambda: not is_busy(ready), 120)
    assert check_reasons(ready) == {"dicomButton"}
    assert "not loaded from Slicer's DICOM database" in ui.dicomButton.toolTip

    go_on = waiting_job(jobs, "saving_job", monkeypatch)
    widgets_host.file_dialog_answers.append(str(tmp_path))
    ui.saveButton.click()
    assert "saveButton" in check_reasons(ready) and ui.stageButton.text == "&Cancel"
    ui.stageButton.click()
    go_on.set()
    wait_until(lambda: not is_busy(ready))
    assert not any(tmp_path.iterdir())

    load_scene(save_scene(tmp_path / "scene"))
    again = {"explainedComboBox", "saveButton", "reportButton", "smoothCheckBox", "dicomButton"}
    assert check_reasons(ready) == again
    for widget in (ui.explainedComboBox, ui.saveButton, ui.reportButton):
        assert "Stage the CT again" in widget.toolTip and "feature maps" in widget.toolTip

    slicer.mrmlScene.Clear(0)
    assert "stageButton" in check_reasons(ready) and "Choose a CT" in ui.stageButton.toolTip


# ---------------------------------------------------------------------------- width


def test_the_panels_width_does_not_depend_on_its_texts(ready, monkeypatch):
    def widths():
        slicer.app.processEvents()
        return ready.parent.minimumSizeHint.width(), ready.parent.sizeHint.width()

    ui, before = ready.ui, widths()
    go_on = waiting_job(ready.logic, "stagingJob", monkeypatch)
    ui.stageButton.click()
    ui.stepLabel.text = "Bringing the map to the CT's grid ... about 12 s left " * 3
    assert widths() == before
    go_on.set()
    wait_until(lambda: not is_busy(ready), 120)
    assert ui.resultWidget.visible and widths() == before
    for name in LABELS:
        getattr(ui, name).text = "A long text with an unbreakable_" + "word" * 40
        getattr(ui, name).visible = True
    ui.F0Value.text = "100 %"
    assert widths() == before
    ui.modelCardButton.click()
    assert widths() == before


def test_the_table_of_measurements_fits_into_a_narrow_panel(staged):
    staged.parent.resize(staged.parent.minimumSizeHint.width(), 4000)
    staged.ui.checksCollapsibleButton.collapsed = False
    labels = (staged.ui.measurementsLabel, staged.ui.signsLabel, staged.ui.checksLabel)
    # Nested layouts are updated one after the other.
    wait_until(lambda: all(label.heightForWidth(label.width) <= label.height for label in labels))


# ---------------------------------------------------------------------------- saving


def save(panel, folder):
    widgets_host.file_dialog_answers.append(str(folder))
    panel.ui.saveButton.click()
    wait_until(lambda: not is_busy(panel))


def test_a_result_gets_its_own_folder_and_is_replaced_only_after_a_question(staged, tmp_path):
    volume = staged.ui.inputVolumeSelector.currentNode()
    save(staged, tmp_path)
    own = tmp_path / "LiverFibrosisPhantom"
    assert [path.name for path in tmp_path.iterdir()] == [own.name]
    assert {"staging.json", "overview.png", "location_map_label.nrrd"} <= {
        path.name for path in own.iterdir()
    }
    assert str(own) in slicer_host.status_messages[-1]

    (own / "staging.json").write_text("{}")
    slicer_host.dialog_answers.append("Cancel")
    save(staged, tmp_path)
    assert (own / "staging.json").read_text() == "{}"
    save(staged, own)  # the folder itself: with Ok
    assert json.loads((own / "staging.json").read_text())["stage"] == staged.ui.stageLabel.text
    assert [str(own) in dialog.text and "?" in dialog.text for dialog in slicer_host.dialogs] == [
        True,
        True,
    ]
    slicer_host.dialogs.clear()

    volume.SetName("2: Thorax/Abdomen, p.v. <3 mm>?  ")
    save(staged, tmp_path)
    assert (tmp_path / "2_Thorax_Abdomen_p.v._3_mm" / "staging.json").is_file()
    save(staged, "")  # cancelled
    assert not is_busy(staged)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("", "CT"),
        ("...", "CT"),
        ("../../etc", "etc"),
        ("con", "_con"),
        ("LPT1.ct", "_LPT1.ct"),
        ("Größe", "Größe"),
        ("x" * 300, "x" * 80),
    ],
)
def test_folder_names_are_valid_on_every_system(host, tmp_path, name, folder):
    host.import_module()
    from LiverFibrosisStagingLib.scene.panel_content import result_folder

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    volume.SetName(name)
    assert result_folder(str(tmp_path), volume) == tmp_path / folder


@pytest.mark.parametrize("how", ["the CT is deleted", "the scene is closed"])
def test_a_save_completes_also_if_its_ct_is_removed(staged, tmp_path, monkeypatch, how):
    go_on = waiting_job(jobs, "saving_job", monkeypatch)
    widgets_host.file_dialog_answers.append(str(tmp_path))
    staged.ui.saveButton.click()
    if how == "the CT is deleted":
        slicer.mrmlScene.RemoveNode(staged.ui.inputVolumeSelector.currentNode())
        assert is_busy(staged)
        go_on.set()
    else:
        threading.Timer(0.2, go_on.set).start()
        slicer.mrmlScene.Clear(0)  # waits for it
    wait_until(lambda: not is_busy(staged))
    assert (tmp_path / "LiverFibrosisPhantom" / "staging.json").is_file()
    assert slicer_host.status_messages[-1].startswith("Saved in ")
    assert "Cancelled." not in slicer_host.status_messages


# ---------------------------------------------------------------------------- table, chart, 3D


def test_table_chart_and_surfaces_are_shown_on_demand(staged):
    ui, manager = staged.ui, slicer.app.layoutManager()
    volume, segmentation = (
        ui.inputVolumeSelector.currentNode(),
        ui.segmentationSelector.currentNode(),
    )
    before = manager.layout
    ui.showTableButton.click()
    with_table = manager.layout
    ui.showPlotButton.click()
    assert before != with_table != manager.layout
    (selection,) = of_class("vtkMRMLSelectionNode")
    table = slicer.mrmlScene.GetNodeByID(selection.GetActiveTableID())
    assert volume.GetName() in table.GetName()
    assert not ui.show3DButton.checked
    ui.show3DButton.click()
    assert ui.show3DButton.checked and shows_3d(volume, segmentation)
    slicer_host.import_module().loadSample()
    ui.inputVolumeSelector.setCurrentNode(of_class("vtkMRMLScalarVolumeNode")[-1])
    ui.inputVolumeSelector.setCurrentNode(volume)
    assert ui.show3DButton.checked
    ui.show3DButton.click()
    assert not ui.show3DButton.checked
    assert not shows_3d(volume, segmentation)


# ---------------------------------------------------------------------------- missing packages


@pytest.mark.parametrize("package", ["SimpleITK", "packaging"])
def test_a_missing_package_is_named_and_nothing_else_fails(package):
    code = f"""
import sys
sys.path[:0] = {[str(ROOT / "Testing/hosts"), str(ROOT / "LiverFibrosisStaging")]!r}
import slicer, slicer_host, qt_host
slicer_host.start()
import qt
for name in [n for n in sys.modules if n.split(".")[0] == {package!r}] + [{package!r}]:
    sys.modules[name] = None  # importing it fails
panel = slicer_host.open_panel()
panel.exit()
panel.enter()
slicer.mrmlScene.Clear(0)
print([label.text for label in panel.parent.findChildren(qt.QLabel)])
panel.cleanup()
print(qt_host.exceptions, slicer_host.dialogs)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text, rest = done.stdout.splitlines()
    assert package in text and f"pip_install('{package}')" in text.replace("\\", "")
    assert rest == "[] []"
