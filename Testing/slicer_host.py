"""Slicer without Slicer: real MRML from the slicer-core wheel, and what the module file imports.

`start()` makes the scene, the application logic and the module logics that slicer.util asks for;
`import_module()` imports the real module file. The stand-ins hold only what that file needs to be
imported and its logic and self test to run; there is no Qt here.
"""

import importlib
import sys
import types
import unittest
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkCollection, vtkObject

MODULE_FOLDER = Path(__file__).resolve().parents[1] / "LiverFibrosisStaging"

# slicer.modules.<name in lower case>.logic() -> class; Colors first, the others ask for it.
_LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
}


class _Application:
    """What slicer.util asks of slicer.app. Errors are raised, not shown, as in Slicer's tests."""

    def __init__(self, logic: Any) -> None:
        self._logic = logic

    def applicationLogic(self) -> Any:
        return self._logic

    def layoutManager(self) -> None:
        return None

    def testingEnabled(self) -> bool:
        return True

    def pauseRender(self) -> None:
        """Nothing is rendered."""

    def resumeRender(self) -> None:
        """Nothing is rendered."""


@cache
def start() -> Any:
    """The scene of this process, with its logics behind slicer.app and slicer.modules."""
    vtkObject.GlobalWarningDisplayOff()  # logics of modules that are not here would be missed aloud
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetSliceLogics(vtkCollection())
    application.SetViewLogics(vtkCollection())
    modules = types.SimpleNamespace()
    for name, class_name in _LOGICS.items():
        logic = getattr(slicer, class_name)()
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(name, logic)
        module = types.SimpleNamespace(logic=lambda logic=logic: logic)
        setattr(modules, name.lower(), module)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    slicer.mrmlScene, slicer.app, slicer.modules = scene, _Application(application), modules
    return scene


def load_volume(path: Path, class_name: str = "vtkMRMLScalarVolumeNode") -> Any:
    """Load a volume file through Slicer's own reader."""
    node = start().AddNewNodeByClass(class_name, path.name.partition(".")[0])
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetCenterImage(0)
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        raise RuntimeError(f"Slicer's reader refused {path}")
    return node


class SliceView:
    """A slice view whose composited pixels can be read, without OpenGL and without a display."""

    def __init__(self, orientation: str, size: int = 256) -> None:
        scene = start()
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._logic.SetMRMLScene(scene)
        self._node = self._logic.AddSliceNode(f"{orientation}View")
        self._node.SetOrientation(orientation)
        self._size = size

    def color(self, ras: np.ndarray, label: bool = True) -> np.ndarray:
        """Red, green, blue, opacity, 0 to 255, where the view shows the point `ras` (mm).

        label: with the label layer, or as if it were hidden.
        """
        composite = self._logic.GetSliceCompositeNode()
        shown = composite.GetLabelOpacity()
        composite.SetLabelOpacity(shown if label else 0.0)
        self._logic.ResizeSliceNode(self._size, self._size)
        self._logic.FitSliceToBackground()
        self._node.JumpSliceByOffsetting(*ras)
        x, y, _, _ = np.linalg.solve(
            slicer.util.arrayFromVTKMatrix(self._node.GetXYToRAS()), [*ras, 1.0]
        )
        connection = self._logic.GetImageDataConnection()
        producer = connection.GetProducer()
        producer.Update()
        image = producer.GetOutputDataObject(connection.GetIndex())
        columns, rows, _ = image.GetDimensions()
        pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)
        composite.SetLabelOpacity(shown)
        return pixels[round(y), round(x)].astype(int)


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: Any = None) -> None:
        self.parent = parent


class ScriptedLoadableModuleLogic:
    """Logic of a module without a parameter node."""


class ScriptedLoadableModuleTest(unittest.TestCase):
    """As in Slicer: a TestCase."""


def _parameter_node_wrapper(decorated: type) -> type:
    return decorated


def _translate(context: str, text: str) -> str:
    return text


@cache
def import_module() -> types.ModuleType:
    """The module file LiverFibrosisStaging.py, as Slicer imports it."""
    start()
    if str(MODULE_FOLDER) not in sys.path:
        sys.path.insert(0, str(MODULE_FOLDER))
    base_classes = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    _stand_in("ScriptedLoadableModule", **{base.__name__: base for base in base_classes})
    _stand_in("i18n", tr=str, translate=_translate)
    _stand_in("parameterNodeWrapper", parameterNodeWrapper=_parameter_node_wrapper)
    return importlib.import_module("LiverFibrosisStaging")


def _stand_in(name: str, **members: type | Callable) -> None:
    module = types.ModuleType(f"slicer.{name}")
    module.__dict__.update(members)
    sys.modules[module.__name__] = module
