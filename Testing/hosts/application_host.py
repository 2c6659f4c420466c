"""Slicer's application for scripts: a main window, loading of the module, scenes in files.

    python Testing/hosts/application_host.py SCRIPT [ARGUMENT ...]

runs a script as `Slicer --python-script SCRIPT ARGUMENT ...` does, on the stand-ins: after startup,
with the module not registered yet, unless its folder is given by `--additional-module-paths`; the
process exits with the code given to slicer.util.exit. With `--no-main-window`, there is no window.
"""

import argparse
import os
import shlex
import sys
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import qt_host  # noqa: E402
import scripted_module_host  # noqa: E402
import slicer  # noqa: E402
import slicer_host  # noqa: E402
import slicer_names  # noqa: E402
from PySide6.QtCore import QEvent, QPoint, QSize, Qt  # noqa: E402
from PySide6.QtGui import QColor, QImage, QPainter  # noqa: E402
from PySide6.QtWidgets import QDockWidget, QMainWindow, QScrollArea, QWidget  # noqa: E402
from vtkmodules.util.numpy_support import vtk_to_numpy  # noqa: E402

NAME = "LiverFibrosisStaging"
NOT_ENDED = 3  # exit code if the script did not call slicer.util.exit; Slicer would stay open


class Views(QWidget):
    """The layout's slice views side by side, drawn on the CPU."""

    def paintEvent(self, event: Any) -> None:
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor("black"))
        names = slicer.app.layoutManager().sliceViewNames()
        width = self.width() // len(names)
        for place, name in enumerate(names):
            logic = slicer.app.layoutManager().sliceWidget(name).sliceLogic()
            if logic.GetSliceCompositeNode().GetBackgroundVolumeID():
                logic.ResizeSliceNode(width - 4, self.height())
                painter.drawImage(QPoint(place * width, 0), _pixels(logic))


def _pixels(logic: Any) -> QImage:
    connection = logic.GetImageDataConnection()
    producer = connection.GetProducer()
    producer.Update()
    image = producer.GetOutputDataObject(connection.GetIndex())
    columns, rows, _ = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)
    pixels = pixels[::-1].copy()
    kind = QImage.Format.Format_RGBA8888
    return QImage(pixels.data, columns, rows, pixels.strides[0], kind).copy()


class ModulePanel(QScrollArea):
    """Contains the module's widget: as wide as the widget needs, at the expense of the views."""

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    def show_module(self, widget: QWidget) -> None:
        self.setWidget(widget)
        widget.installEventFilter(self)

    def minimumSizeHint(self) -> QSize:
        widget = self.widget()
        needed = widget.minimumSizeHint().width() if widget else 0
        return QSize(needed + self.verticalScrollBar().sizeHint().width(), 100)

    def eventFilter(self, watched: Any, event: Any) -> bool:
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return super().eventFilter(watched, event)


class FactoryManager:
    """slicer.app.moduleManager().factoryManager(), for the one module."""

    def __init__(self, application: "Application") -> None:
        self._application, self._registered = application, {}

    def registerModule(self, file: Any) -> None:
        path = Path(file.absoluteFilePath())
        self._registered[path.stem] = path

    def isRegistered(self, name: str) -> bool:
        return name in self._registered

    def loadModules(self, names: list[str]) -> bool:
        return all([self._application.load_module(self._registered[name]) for name in names])


class Application:
    """Slicer's main window, and of slicer.app and slicer.util what scripts use beside the panel."""

    def __init__(self) -> None:
        slicer_host.start()
        qt_host.application()
        slicer.app._open_views()
        del slicer.modules.liverfibrosisstaging  # no module has been found yet
        self.exit_code, self.panel = NOT_ENDED, None
        self.window, self._module_panel, self._views = QMainWindow(), ModulePanel(), Views()
        dock = QDockWidget()
        dock.setWidget(self._module_panel)
        self.window.addDockWidget(Qt.DockWidgetArea.LeftDockWidgetArea, dock)
        self.window.setCentralWidget(self._views)
        self.window.resize(1400, 900)
        self.window.show()
        slicer.app._views.viewport = lambda: qt_host.wrap(self._views)
        factory = FactoryManager(self)
        slicer.app._modules.factoryManager = lambda: factory
        qt_host.exceptions = types.SimpleNamespace(append=_print_exception)
        util = slicer.util
        util.mainWindow = lambda: qt_host.wrap(self.window)
        util.selectModule, util.getModuleWidget = self._select_module, self._module_widget
        util.loadVolume, util.saveScene, util.loadScene = _load_volume, _save_scene, _load_scene
        util.forceRenderAllViews, util.exit = self._views.repaint, self._exit
        slicer.app.launcherExecutableFilePath = _launcher(Path(slicer.app.temporaryPath))
        util.startupEnvironment = lambda: dict(os.environ)

    def load_module(self, path: Path) -> bool:
        """As when a module is found after startup: startupCompleted() is never sent to it."""
        slicer.modules.liverfibrosisstaging = types.SimpleNamespace(path=str(path))
        slicer_host.import_module().LiverFibrosisStaging(
            scripted_module_host.ModuleDescription(path)
        )
        return True

    def close(self) -> None:
        """As when Slicer ends."""
        if self.panel is not None:
            slicer_host.close_panel(self.panel)
        self.window.close()

    def _select_module(self, name: str) -> None:
        if name != NAME:
            self.panel.parent.isEntered = False
            self.panel.exit()
        elif self.panel is None:
            self.panel = slicer_host.open_panel()
            self._module_panel.show_module(self.panel.parent._object)
        elif not self.panel.parent.isEntered:
            self.panel.parent.isEntered = True
            self.panel.enter()

    def _module_widget(self, name: str) -> Any:
        return self.panel

    def _exit(self, status: int = 0) -> None:
        self.exit_code = status


def _print_exception(error: BaseException) -> None:
    """PythonQt has Python print what a slot raises, which calls sys.excepthook."""
    sys.excepthook(type(error), error, error.__traceback__)


def _load_volume(filename: Any, properties: Any = None) -> Any:
    """With a display that sets window and level by itself, and shown in all views, as in Slicer."""
    path = Path(filename)
    name = (properties or {}).get("name", path.name.partition(".")[0])
    node = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), name)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


def _save_scene(filename: Any, properties: Any = None) -> bool:
    """An .mrb: the scene's folder of files, zipped."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / Path(filename).stem
        scene.mkdir()
        done = slicer.mrmlScene.SaveSceneToSlicerDataBundleDirectory(str(scene), None)
        with zipfile.ZipFile(filename, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in scene.rglob("*"):
                archive.write(path, path.relative_to(folder))
    return bool(done)


def _load_scene(filename: Any, properties: Any = None) -> bool:
    """Added to what is in the scene, as slicer.util.loadScene does."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(filename) as archive:
            archive.extractall(folder)
        (saved,) = Path(folder).rglob("*.mrml")
        slicer.mrmlScene.SetURL(str(saved))
        return bool(slicer.mrmlScene.Import())


def _launcher(folder: Path) -> str:
    """A program that runs this file, as Slicer's launcher runs Slicer."""
    if os.name == "nt":
        path, line = folder / "Slicer.bat", f'@"{sys.executable}" "{__file__}" %*\n'
    else:
        path = folder / "Slicer"
        line = f'#!/bin/sh\nexec {shlex.join([sys.executable, __file__])} "$@"\n'
    path.write_text(line, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def main() -> int:
    """Run a script as Slicer does, and end."""
    parser = argparse.ArgumentParser()
    for option in ("--no-splash", "--no-main-window"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--additional-module-paths", type=Path)
    parser.add_argument("--python-script", action="store_true")  # its file is the first argument
    parser.add_argument("arguments", nargs="+")
    options = parser.parse_args()
    application = Application()
    if options.additional_module_paths:
        application.load_module(options.additional_module_paths / f"{NAME}.py")
    if options.no_main_window:
        application.window.hide()
        slicer.util.mainWindow = lambda: None
    script = Path(options.arguments[0]).resolve()
    sys.argv = [str(script), *options.arguments[1:]]
    code = compile(script.read_text(encoding="utf-8"), str(script), "exec")
    exec(code, {"__name__": "__main__", "__file__": str(script)})
    application.close()
    slicer_names.write_used()
    return application.exit_code


if __name__ == "__main__":
    sys.exit(main())
