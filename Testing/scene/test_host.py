"""The stand-ins for Slicer and Qt are as strict as the originals."""

import enum
import json
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Annotated

import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import numpy as np
import parameter_node_host
import qt_host
import scripted_module_host
import slicer
import slicer_host
import slicer_names

slicer_host.start()
import ctk  # noqa: E402
import qt  # noqa: E402


@pytest.fixture(autouse=True)
def scene():
    slicer.mrmlScene.Clear(0)
    qt_host.exceptions.clear()
    return slicer.mrmlScene


@pytest.fixture
def as_module():
    """A function that runs a line as if it were in the module file."""
    return lambda line, **names: eval(line, {"__name__": "LiverFibrosisStaging", **names})


def test_properties_are_attributes():
    button = qt.QPushButton("Stage")
    assert button.text == "Stage" and button.enabled is True
    with pytest.raises(TypeError, match="'str' object is not callable"):
        button.text()
    button.text = "Cancel"
    assert button.text == "Cancel"
    with pytest.raises(AttributeError):
        button.txt = "Cancel"


def test_getters_that_are_no_properties_are_called():
    box = qt.QCheckBox("on")
    assert box.isChecked() is box.checked is False
    assert box.className() == "QCheckBox"


def test_keyword_arguments_are_refused():
    with pytest.raises(TypeError, match="keyword"):
        qt.QLabel(text="CT")
    with pytest.raises(TypeError, match="keyword"):
        qt.QTimer().start(msec=10)


@pytest.mark.parametrize("name", ["Signal", "Slot", "Property"])
def test_signals_cannot_be_declared(name):
    with pytest.raises(AttributeError):
        getattr(qt, name)


def test_qt_classes_have_no_python_subclasses():
    with pytest.raises(TypeError):
        type("Bars", (qt.QWidget,), {})


def test_numpy_numbers_are_refused():
    with pytest.raises(TypeError, match="numpy"):
        qt.QProgressBar().setValue(np.int64(3))


def test_a_slot_gets_the_arguments_it_takes():
    got = []
    button = qt.QPushButton()
    button.connect("clicked(bool)", lambda: got.append("none"))
    button.connect("clicked(bool)", lambda checked: got.append(checked))
    button.connect("clicked()", lambda checked="default": got.append(checked))
    button.clicked.connect(lambda checked="default": got.append(checked))
    button.click()
    assert got == ["none", False, "default", False]


def test_an_exception_in_a_slot_is_kept_and_goes_no_further():
    button = qt.QPushButton()
    button.connect("clicked(bool)", lambda: 1 / 0)
    button.click()
    assert isinstance(qt_host.exceptions.pop(), ZeroDivisionError)


def test_disconnected_slots_are_silent():
    got, button = [], qt.QPushButton()
    button.connect("clicked(bool)", got.append)
    assert button.disconnect("clicked(bool)", got.append)
    button.click()
    assert got == []


def test_unknown_signals_are_refused():
    for signature in ("clicked(QString)", "currentNodeChanged(vtkMRMLNode*)"):
        with pytest.raises(ValueError, match="no signal"):
            qt.QPushButton().connect(signature, print)


def test_deleted_widgets_cannot_be_used():
    import shiboken6

    label = qt.QLabel()
    shiboken6.delete(label._object)
    with pytest.raises(ValueError, match="deleted"):
        _ = label.text


def test_a_widget_is_always_the_same_object():
    parent = qt.QWidget()
    child = qt.QLabel("CT", parent)
    assert parent.children()[0] is child
    assert type(child) is qt.QLabel and isinstance(child, qt.QWidget)


def test_qt_belongs_to_the_main_thread():
    errors = []

    def touch():
        try:
            button.text = "from a thread"
        except RuntimeError as error:
            errors.append(error)

    button = qt.QPushButton()
    thread = threading.Thread(target=touch)
    thread.start()
    thread.join()
    assert "thread" in str(errors[0])


def test_the_module_may_only_use_names_of_slicer(as_module):
    assert as_module("qt.QPushButton().text", qt=qt) == ""
    for line in (
        "qt.QPushButton().isSignalNamed",
        "qt.QNoSuchWidget",
        "slicer.util.executePythonModule",  # of 5.12
        "slicer.app.noSuchName",
        "slicer.modules.nosuchmodule",
        "ctk.ctkNoSuchWidget",
        "slicer.qMRMLNoSuchWidget",
    ):
        with pytest.raises(AttributeError, match="not among the names"):
            as_module(line, qt=qt, slicer=slicer, ctk=ctk)
    changed = qt.QComboBox().currentIndexChanged
    with pytest.raises(TypeError, match="overloaded"):
        as_module("changed.connect(print)", changed=changed, print=print)


def test_the_small_list_is_part_of_the_recording():
    if not slicer_names.RECORDING.is_file():
        pytest.skip("the recording of a real Slicer's names is not on this machine")
    recording = json.loads(slicer_names.RECORDING.read_text(encoding="utf-8"))
    names = json.loads(slicer_names.NAMES.read_text(encoding="utf-8"))
    assert names["slicer"] == recording["slicer"]
    for section in slicer_names.SECTIONS:
        assert set(names[section]) <= set(recording[section])
    for library, classes in names["classes"].items():
        for name, entry in classes.items():
            recorded = recording["classes"][library][name]
            if entry is None or recorded is None:
                assert entry is recorded
                continue
            assert entry["base"] == recorded.get("base")
            for kind in (slicer_names.ATTRIBUTE, slicer_names.CALLABLE):
                assert set(entry.get(kind, ())) <= set(recorded[kind]), (library, name)


def test_node_selector_follows_the_scene(scene):
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.showChildNodeTypes = False
    selector.noneEnabled = True
    selector.setMRMLScene(scene)
    chosen = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", chosen.append)
    ct = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    assert selector.nodeCount() == 1 and selector.currentNode() is None
    selector.setCurrentNode(ct)
    ct.SetName("CT of today")
    assert selector._object.currentText() == "CT of today"
    scene.RemoveNode(ct)
    assert selector.currentNode() is None
    assert chosen == [ct, None]


def test_parameters_and_widgets_follow_each_other(scene):
    class Color(enum.Enum):
        RED = 1
        BLUE = 2

    @parameter_node_host.parameterNodeWrapper
    class Parameters:
        opacity: Annotated[float, parameter_node_host.WithinRange(0, 1)] = 0.5
        count: int = 3
        outline: bool = False
        name: str = "CT"
        color: Color = Color.BLUE
        folder: Path
        volume: slicer.vtkMRMLScalarVolumeNode

    node = scripted_module_host.ScriptedLoadableModuleLogic().getParameterNode()
    gui = types.SimpleNamespace(
        opacity=ctk.ctkSliderWidget(),
        count=qt.QSpinBox(),
        outline=qt.QCheckBox(),
        name=qt.QLineEdit(),
        color=qt.QComboBox(),
        folder=ctk.ctkPathLineEdit(),
        volume=slicer.qMRMLNodeComboBox(),
    )
    gui.volume.setMRMLScene(scene)
    for name, widget in vars(gui).items():
        widget.setProperty("SlicerParameterName", name)
    parameters = Parameters(node)
    parameters.connectGui(gui)
    assert (gui.opacity.value, gui.opacity.maximum, gui.count.value) == (0.5, 1.0, 3)
    assert (gui.name.text, gui.color.currentText) == ("CT", "BLUE")

    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    gui.volume.setCurrentNode(volume)
    gui.opacity.value, gui.outline.checked, gui.color.currentIndex = 0.25, True, 0
    gui.folder.currentPath = "here"
    assert parameters.volume is volume
    assert (parameters.opacity, parameters.outline) == (0.25, True)
    assert (parameters.color, parameters.folder) == (Color.RED, Path("here"))

    parameters.count, parameters.volume = 7, None
    assert gui.count.value == 7 and gui.volume.currentNode() is None
    with pytest.raises(ValueError, match="opacity"):
        parameters.opacity = 1.5
    with pytest.raises(TypeError, match="count"):
        parameters.count = "7"
    assert Parameters(node).opacity == 0.25  # another wrapper of the same node
    gui.volume.setMRMLScene(None)  # so that it follows no scene of another test


def test_a_node_selector_loses_its_node_while_a_scene_is_imported(scene, tmp_path):
    """Observed in Slicer 5.10: connected to a parameter node, it writes the None into it."""

    @parameter_node_host.parameterNodeWrapper
    class Parameters:
        volume: slicer.vtkMRMLScalarVolumeNode

    selector = slicer.qMRMLNodeComboBox()
    selector.noneEnabled = True
    selector.setMRMLScene(scene)
    parameters = Parameters(scripted_module_host.ScriptedLoadableModuleLogic().getParameterNode())
    assert parameters.connectGui(types.SimpleNamespace()) is None  # no tag to disconnect with
    tag = parameters.connectParametersToGui({"volume": selector})
    ct = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    file = tmp_path / "empty.mrml"
    file.write_text('<MRML version="Slicer4.4.0" userTags=""></MRML>')
    for connected in (True, False):
        parameters.volume = ct
        if not connected:
            parameters.disconnectGui(tag)
        scene.SetURL(str(file))
        assert scene.Import()
        assert parameters.volume is (None if connected else ct)
    parameters.connectParametersToGui({"volume": selector})
    assert selector.currentNode() is ct
    selector.setMRMLScene(None)  # so that it follows no scene of another test


def test_a_widget_must_fit_its_parameter():
    @parameter_node_host.parameterNodeWrapper
    class Parameters:
        opacity: float = 0.5

    node = scripted_module_host.ScriptedLoadableModuleLogic().getParameterNode()
    for widget, reason in ((qt.QCheckBox(), "cannot be shown"), (ctk.ctkSliderWidget(), "Within")):
        widget.setProperty("SlicerParameterName", "opacity")
        with pytest.raises(RuntimeError, match=reason):
            Parameters(node).connectGui(types.SimpleNamespace(widget=widget))


@pytest.mark.skipif(sys.platform != "linux", reason="Qt is called so on Linux only")
def test_a_thread_hardly_runs_in_an_idle_slicer_without_the_pump():
    looks = []  # at how many steps a thread has made, until it has made a hundred
    for pumped in (True, False):
        stop, count, seen = threading.Event(), [0], []

        def work(stop=stop, count=count):
            while not stop.is_set():
                time.sleep(0.001)
                count[0] += 1

        thread = threading.Thread(target=work)
        pump = qt.QTimer()
        pump.connect("timeout()", lambda: time.sleep(0.005))
        if pumped:
            pump.start(10)
        thread.start()

        def enough(count=count, seen=seen):
            seen.append(count[0])
            return count[0] >= 100 or (looks and len(seen) > looks[0])

        slicer_host.wait_as_slicer(enough, 300)
        stop.set()
        thread.join()
        pump.stop()
        looks.append(len(seen))
        assert (count[0] >= 100) == pumped


def test_slicer_is_a_package_of_its_wheel_not_a_folder_of_ours():
    code = "import slicer; print(slicer.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "site-packages" in done.stdout
    assert not (slicer_names.ROOT / "Testing" / "slicer").exists()
