"""Slicer's scene, application and widgets for tests: MRML from the slicer-core wheel.

`start()` creates the scene, the application logic and the module logics that slicer.util needs;
`import_module()` imports the module file; `open_panel()` shows its widget with its .ui (qt_host.py,
with PySide6). The stand-ins contain only what the module uses. Without PySide6, all but the panel
works.
"""

import importlib
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import parameter_node_host
import qt_host
import sample_data_host
import scripted_module_host
import slicer
import slicer_names
from vtkmodules.util.misc import calldata_type
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.util.vtkConstants import VTK_OBJECT
from vtkmodules.vtkCommonCore import vtkCollection, vtkObject
from vtkmodules.vtkCommonMath import vtkMatrix4x4

MODULE_FOLDER = Path(__file__).resolve().parents[2] / "LiverFibrosisStaging"

_ENLARGED = 16  # times, to look at a point of a view
# slicer.modules.<name in lower case>.logic() -> class; Colors first, the others ask for it.
_LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Plots": "vtkSlicerPlotsLogic",
}


@dataclass(frozen=True)
class Dialog:
    """A message box that was answered instead of shown."""

    text: str
    details: str


dialogs: list[Dialog] = []
dialog_answers: list[str] = []  # names of buttons, for the next message boxes; without one, Ok
status_messages: list[str] = []


class _Application:
    """slicer.app. While `_testing`, errors are raised and not shown, as in Slicer's own tests."""

    applicationName = "Slicer"
    mainApplicationName = "Slicer"
    applicationVersion = "5.10.0"
    majorVersion, minorVersion = 5, 10

    def __init__(self, logic: Any) -> None:
        self._logic, self._modules = logic, _ModuleManager()
        self._folder = tempfile.TemporaryDirectory(prefix="slicer")
        self._testing, self._views, self._slots = True, None, {}

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            slicer_names.check_section("slicer.app", name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(qt_host.wrap(qt_host.application()), name)

    def applicationLogic(self) -> Any:
        return self._logic

    @property
    def temporaryPath(self) -> str:
        return self._folder.name

    def _open_views(self) -> None:
        """Once: a second slice view of a name would get a slice node outside the scene."""
        self._views = self._views or _LayoutManager()

    def layoutManager(self) -> Any:
        return self._views

    def moduleManager(self) -> Any:
        return self._modules

    def testingEnabled(self) -> bool:
        return self._testing

    def pauseRender(self) -> None:
        """Nothing is rendered."""

    def resumeRender(self) -> None:
        """Nothing is rendered."""

    def userSettings(self) -> Any:
        import qt

        return qt.QSettings()

    settings = userSettings

    def connect(self, signal: str, function: Callable) -> bool:
        self._connected(signal).append(function)
        return True

    def disconnect(self, signal: str, function: Callable) -> bool:
        self._connected(signal).remove(function)
        return True

    def _connected(self, signal: str) -> list[Callable]:
        if signal not in ("startupCompleted()", "lastWindowClosed()", "aboutToQuit()"):
            raise ValueError(f"the host's application has no signal {signal}")
        return self._slots.setdefault(signal, [])

    def _send(self, signal: str) -> None:
        for function in [*self._connected(signal)]:
            function()


class _ModuleManager:
    """slicer.app.moduleManager(): modules are never unloaded here."""

    def connect(self, signal: str, function: Callable) -> bool:
        return True

    disconnect = connect


class _Modules:
    """slicer.modules: what was made with `vars(modules)[name] = ...`."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            slicer_names.check_section("slicer.modules", name)
        return super().__getattribute__(name)


class _LayoutManager:
    """Slicer's three slice views, composited on the CPU."""

    def __init__(self) -> None:
        self.layout = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        orientations = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
        self._views = {name: SliceView(o, name=name) for name, o in orientations.items()}
        crosshair = slicer.mrmlScene.CreateNodeByClass("vtkMRMLCrosshairNode")
        crosshair.UnRegister(None)
        crosshair.SetCrosshairName("default")
        slicer.mrmlScene.AddNode(crosshair)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            slicer_names.check_section("layoutManager", name)
        return super().__getattribute__(name)

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._views)

    def sliceWidget(self, name: str) -> Any:
        view = self._views[name]
        return types.SimpleNamespace(
            sliceLogic=lambda: view.logic,
            mrmlSliceNode=lambda: view.node,
            mrmlSliceCompositeNode=view.logic.GetSliceCompositeNode,
            fitSliceToBackground=view.logic.FitSliceToBackground,
        )

    def mrmlSliceLogics(self) -> Any:
        return slicer.app.applicationLogic().GetSliceLogics()

    def setLayout(self, layout: int) -> None:
        """Views of a kind are there from the first layout on that has one."""
        self.layout = layout
        names = vars(slicer.vtkMRMLLayoutNode)
        shown = next(n for n in names if n.startswith("SlicerLayout") and names[n] == layout)
        for kind in ("Table", "Plot"):
            if kind in shown and not slicer.util.getNodesByClass(f"vtkMRML{kind}ViewNode"):
                slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}ViewNode", f"{kind}View1")

    def resetThreeDViews(self) -> None:
        """There is no 3D view."""

    def resetSliceViews(self) -> None:
        for view in self._views.values():
            view.logic.FitSliceToBackground()


@cache
def start() -> Any:
    """The scene of this process, with slicer.app and slicer.modules."""
    vtkObject.GlobalWarningDisplayOff()  # else warnings about modules that are not here
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetSliceLogics(vtkCollection())
    application.SetViewLogics(vtkCollection())
    modules = _Modules()
    for name, class_name in _LOGICS.items():
        logic = getattr(slicer, class_name)()
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(name, logic)
        module = types.SimpleNamespace(logic=lambda logic=logic: logic)
        setattr(modules, name.lower(), module)
    path = str(MODULE_FOLDER / "LiverFibrosisStaging.py")
    modules.liverfibrosisstaging = types.SimpleNamespace(path=path)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    scene.AddObserver(scene.NodeAddedEvent, _file_at_the_root)
    slicer.mrmlScene, slicer.app, slicer.modules = scene, _Application(application), modules
    _stand_in_for_qt()
    return scene


@calldata_type(VTK_OBJECT)
def _file_at_the_root(scene: Any, event: str, node: Any) -> None:
    """As Slicer does: data that is added to the scene is filed at the subject hierarchy's root."""
    kinds = ("Volume", "Segmentation", "Table", "PlotChart", "PlotSeries", "Model", "Transform")
    if scene.IsImporting() or not any(node.IsA(f"vtkMRML{kind}Node") for kind in kinds):
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy.GetItemByDataNode(node) == hierarchy.GetInvalidItemID():
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


def _stand_in_for_qt() -> None:
    """qt, ctk and Slicer's widgets; slicer.util with the checked names and without windows."""
    qt_host.install()
    slicer.__getattr__ = _slicer_attribute
    util = slicer.util
    util.messageBox, util.mainWindow = _message_box, _main_window
    show_errors = util.tryWithErrorDisplay  # without the wait cursor, which takes PySide6
    util.tryWithErrorDisplay = lambda message=None, show=True, waitCursor=False: show_errors(
        message, show
    )
    util.showStatusMessage = lambda message, duration=0: status_messages.append(message)
    util.loadVolume = lambda path, properties=None: load_volume(Path(path))
    slicer.util = sys.modules["slicer.util"] = _CheckedUtil(util)


def _slicer_attribute(name: str) -> Any:
    if name.startswith(("qMRML", "qSlicer")):
        return qt_host.slicer_class(name)
    raise AttributeError(f"module 'slicer' has no attribute '{name}'")


class _CheckedUtil(types.ModuleType):
    """The real slicer.util, in which the module may use only what Slicer 5.10 has."""

    def __init__(self, util: types.ModuleType) -> None:
        super().__init__("slicer.util")
        self.__dict__["_util"] = util

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            slicer_names.check_section("slicer.util", name)
        return getattr(self._util, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._util, name, value)


def _message_box(text: str, parent: Any = None, **properties: Any) -> Any:
    import qt

    dialogs.append(Dialog(text, properties.get("detailedText", "")))
    return getattr(qt.QMessageBox, dialog_answers.pop(0) if dialog_answers else "Ok")


@cache
def _main_window() -> Any:
    import qt

    return qt.QMainWindow()


def load_volume(path: Path, class_name: str = "vtkMRMLScalarVolumeNode") -> Any:
    """Load a volume file through Slicer's own reader."""
    node = start().AddNewNodeByClass(class_name, path.name.partition(".")[0])
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetCenterImage(0)
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        raise RuntimeError(f"Slicer's reader refused {path}")
    return node


def voxel_point(node: Any, index: Any) -> np.ndarray:
    """World position (RAS, mm) of a voxel of a volume node, index [slice, row, column]."""
    matrix, ras = vtkMatrix4x4(), [0.0, 0.0, 0.0]
    node.GetIJKToRASMatrix(matrix)
    node.TransformPointToWorld(matrix.MultiplyPoint((*map(float, index[::-1]), 1.0))[:3], ras)
    return np.array(ras)


class SliceView:
    """A slice view whose composited pixels can be read, without OpenGL and without a display."""

    def __init__(self, orientation: str, size: int = 256, name: str | None = None) -> None:
        scene = start()
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self.logic.SetMRMLScene(scene)
        self.node = self.logic.AddSliceNode(name or f"{orientation}View")
        self.node.SetOrientation(orientation)
        if name:
            slicer.app.applicationLogic().GetSliceLogics().AddItem(self.logic)
        self._size = size

    def color(self, ras: np.ndarray, label: bool = True) -> np.ndarray:
        """Red, green, blue, opacity, 0 to 255, where the view shows the point `ras` (mm).

        label: with the label layer, or as if it were hidden. The view is enlarged around the point,
        since the pixel nearest to it could otherwise show the voxel beside it.
        """
        composite = self.logic.GetSliceCompositeNode()
        shown = composite.GetLabelOpacity()
        composite.SetLabelOpacity(shown if label else 0.0)
        self.logic.ResizeSliceNode(self._size, self._size)
        self.logic.FitSliceToBackground()
        width, height, depth = self.node.GetFieldOfView()
        self.node.SetFieldOfView(width / _ENLARGED, height / _ENLARGED, depth)
        self.node.JumpSliceByCentering(*ras)
        x, y, _, _ = np.linalg.solve(
            slicer.util.arrayFromVTKMatrix(self.node.GetXYToRAS()), [*ras, 1.0]
        )
        connection = self.logic.GetImageDataConnection()
        producer = connection.GetProducer()
        producer.Update()
        image = producer.GetOutputDataObject(connection.GetIndex())
        columns, rows, _ = image.GetDimensions()
        pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)
        found = pixels[round(y), round(x)].astype(int)
        composite.SetLabelOpacity(shown)
        self.logic.FitSliceToBackground()
        self.node.JumpSliceByOffsetting(*ras)
        return found


def import_module() -> types.ModuleType:
    """The module file LiverFibrosisStaging.py, as Slicer imports it."""
    start()
    _stand_in_for_modules()
    return importlib.import_module("LiverFibrosisStaging")


@cache
def _stand_in_for_modules() -> None:
    """What Slicer's Python modules offer to the module file."""
    if str(MODULE_FOLDER) not in sys.path:
        sys.path.insert(0, str(MODULE_FOLDER))
    names = ("Module", "ModuleWidget", "ModuleLogic", "ModuleTest")
    classes = [getattr(scripted_module_host, f"ScriptedLoadable{name}") for name in names]
    _stand_in("slicer.ScriptedLoadableModule", **{each.__name__: each for each in classes})
    _stand_in("slicer.i18n", tr=str, translate=lambda context, text: text)
    public = {n: v for n, v in vars(parameter_node_host).items() if not n.startswith("_")}
    _stand_in("slicer.parameterNodeWrapper", **public)
    _stand_in("SampleData", SampleDataLogic=sample_data_host.SampleDataLogic)


def _stand_in(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


# ---------------------------------------------------------------------------- the panel


def open_module() -> Any:
    """The module's own class, as when Slicer starts: it describes itself and registers samples."""
    module = import_module().LiverFibrosisStaging(
        scripted_module_host.ModuleDescription(MODULE_FOLDER / "LiverFibrosisStaging.py")
    )
    slicer.app._send("startupCompleted()")
    slicer.app._slots.pop("startupCompleted()")
    return module


def open_panel(*collaborators: Any) -> Any:
    """The module's widget as when the user opens the module; close it with `close_panel`.

    collaborators: more arguments for the widget's constructor, which Slicer does not give.
    """
    start()
    slicer.app._open_views()
    slicer.app._testing = False
    parent = slicer.qSlicerScriptedLoadableModuleWidget()
    parent.setMRMLScene(slicer.mrmlScene)

    def make() -> Any:
        panel = import_module().LiverFibrosisStagingWidget(parent, *collaborators)
        panel.setup()
        slicer.modules.LiverFibrosisStagingWidget = panel
        return panel

    parent._object.make = make
    slicer.modules.liverfibrosisstaging.widgetRepresentation = lambda: parent
    panel = make()
    parent.isEntered = True
    panel.enter()
    parent.resize(420, 900)
    parent.show()
    return panel


def close_panel(panel: Any) -> None:
    """As when Slicer ends."""
    panel.exit()
    panel.parent.isEntered = False
    panel.cleanup()
    # With the node go the observers of parameter nodes that could not be disconnected.
    slicer.mrmlScene.RemoveNode(
        slicer.mrmlScene.GetSingletonNode(panel.moduleName, "vtkMRMLScriptedModuleNode")
    )
    panel.parent.hide()
    panel.parent.deleteLater()
    slicer.app.processEvents()
    slicer.app._testing = True


def wait_until(condition: Callable[[], Any], seconds: float = 300.0) -> None:
    """Let Qt and the worker run until the condition holds. Raises TimeoutError."""
    _wait(condition, seconds, lambda loop: loop.exec(), every_ms=10)


def wait_as_slicer(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """The same, but Qt's loop keeps Python's lock while it is idle, as a real Slicer's does.

    A thread starves here unless something gives it time. Only where Qt can be called so (Linux);
    raises NotImplementedError elsewhere. The condition is looked at seldom: looking gives time too.
    """
    _wait(condition, seconds, _exec_with_lock, every_ms=500)


def _wait(condition: Callable, seconds: float, execute: Callable, every_ms: int) -> None:
    from PySide6.QtCore import QEventLoop, QTimer

    loop, timer, end = QEventLoop(), QTimer(), time.monotonic() + seconds

    def look() -> None:
        if condition() or time.monotonic() > end:
            loop.quit()

    timer.timeout.connect(look)
    timer.start(every_ms)
    execute(loop)
    timer.stop()
    if not condition():
        raise TimeoutError(f"not within {seconds} s")


def _exec_with_lock(loop: Any) -> None:
    import ctypes

    import PySide6
    import shiboken6

    found = sorted(Path(PySide6.__file__).parent.glob("Qt/lib/libQt6Core.so.6"))
    if not found:
        raise NotImplementedError("only with PySide6's Qt on Linux")
    # PyDLL, unlike CDLL and PySide6 itself, does not release the lock while it calls.
    execute = ctypes.PyDLL(str(found[0]))._ZN10QEventLoop4execE6QFlagsINS_17ProcessEventsFlagEE
    execute.argtypes = [ctypes.c_void_p, ctypes.c_int]
    execute(shiboken6.getCppPointer(loop)[0], 0)
