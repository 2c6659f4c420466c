"""The module file: what Slicer finds in it, its self test, its reload, and the documented lines."""

import re
import subprocess
import sys
import unittest
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import sample_data_host
import slicer
from panel_steps import label_node, of_class, stage

from LiverFibrosisStagingLib.scene.mrml import find_segments

pytestmark = pytest.mark.usefixtures("single_network")
ROOT = Path(__file__).resolve().parents[2]
STAGES = ("F0", "F1", "F2", "F3", "F4")


def test_the_module_describes_itself_and_offers_the_sample(host):
    module = host.open_module()
    assert module.parent.title and module.parent.categories == ["Quantification"]
    assert (
        "esearch use" in module.parent.helpText and "doi.org" in module.parent.acknowledgementText
    )
    ((name, source),) = sample_data_host.SampleDataLogic.sources.items()
    assert Path(source.thumbnailFileName).is_file()
    for _ in range(2):  # the second time from Slicer's cache
        volume, segmentation = sample_data_host.SampleDataLogic().downloadSamples(name)
        assert volume.GetClassName() == "vtkMRMLScalarVolumeNode"
        assert volume.GetImageData().GetNumberOfPoints() > 0
        assert find_segments(segmentation, "liver") and find_segments(segmentation, "spleen")
    sample_data_host.SampleDataLogic().clickButton(name)
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
    elsewhere = ("slicer.util.exit", "SLURMCluster")  # tested on their own
    pasted = [block for block in blocks if not any(word in block for word in elsewhere)]
    assert (len(blocks), len(pasted)) == (7, 5)
    for block in pasted:
        exec(block, names)
        if "batch" in names:
            names["batch"].wait()
    for table in (names["table"], names["batch"].tableNode):
        assert table.GetTable().GetColumnByName("stage").GetValue(0) in STAGES
    assert (tmp_path / "result" / "overview.png").is_file()
    assert label_node() and str(names["result"].stage) in capsys.readouterr().out


def test_the_documentations_script_exits_with_the_reason(tmp_path):
    """Its success is a step of in_slicer.py."""
    text = (ROOT / "docs" / "slicer.md").read_text(encoding="utf-8")
    (script,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "util.exit" in b]
    path, empty = tmp_path / "stage_cohort.py", tmp_path / "empty"
    path.write_text(script, encoding="utf-8")
    empty.mkdir()
    command = [sys.executable, str(ROOT / "Testing/hosts/application_host.py"), "--no-main-window"]
    command += ["--additional-module-paths", str(ROOT / "LiverFibrosisStaging")]
    command += ["--python-script", str(path), str(empty), str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no CT" in done.stderr, done


def test_the_tutorials_pictures_are_there_and_small():
    text = (ROOT / "docs" / "slicer.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\(\.\./(Resources/Screenshots/panel.*?)\)", text)
    assert len(pictures) == 5
    for picture in pictures:
        assert 5_000 < (ROOT / picture).stat().st_size < 500_000, picture


def test_the_module_loads_where_nothing_is_installed():
    code = f"""
import sys
sys.path[:0] = {[str(ROOT / "Testing/hosts"), str(ROOT / "LiverFibrosisStaging")]!r}
import scripted_module_host, slicer_host
slicer_host.start()
for name in ("onnxruntime", "SimpleITK", "sklearn", "torch"):
    sys.modules[name] = None  # importing it fails
module = slicer_host.import_module()
path = slicer_host.MODULE_FOLDER / "LiverFibrosisStaging.py"
instance = module.LiverFibrosisStaging(scripted_module_host.ModuleDescription(path))
print(instance.parent.title, module.LiverFibrosisStagingLogic().moduleName)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Liver", "Fibrosis", "Staging", "LiverFibrosisStaging"], done


def test_every_parameter_is_in_the_panel(panel):
    shown = {widget.property("SlicerParameterName") for widget in vars(panel.ui).values()} - {None}
    assert shown == set(type(panel.logic.getParameterNode())._parameters)


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


# ---------------------------------------------------------------------------- reload


@pytest.fixture
def loaded_before():
    """The modules imported before the test; they are restored after it."""

    def ours():
        return {n: m for n, m in sys.modules.items() if n.startswith("LiverFibrosisStaging")}

    before = ours()
    yield before
    for name in ours():
        del sys.modules[name]
    sys.modules.update(before)


def test_reload_imports_the_library_again(ready, host, loaded_before):
    """As the button *Reload* does in Slicer's developer mode, with the real slicer.util."""
    volume = ready.ui.inputVolumeSelector.currentNode()
    ready.onReload()
    slicer.app.processEvents()  # shows the new widget
    widget = slicer.modules.LiverFibrosisStagingWidget
    assert widget is not ready and widget.ui.inputVolumeSelector.currentNode() is volume
    for name in ("scene.widget", "scene.panel", "scene.panel_content", "scene.jobs", "staging"):
        name = f"LiverFibrosisStagingLib.{name}"
        assert sys.modules[name] is not loaded_before[name], name
    stage(widget)
    assert widget.ui.resultWidget.visible
    widget.onReload()
    slicer.app.processEvents()
    again = slicer.modules.LiverFibrosisStagingWidget
    assert again is not widget and again.ui.resultWidget.visible
    again.cleanup()
