"""Stand-ins for slicer.ScriptedLoadableModule: the base classes of a scripted module's classes."""

import logging
import unittest
from pathlib import Path
from typing import Any

import slicer


class ModuleDescription:
    """The C++ module that a scripted module describes itself to."""

    __slots__ = (
        *("acknowledgementText", "associatedNodeTypes", "categories", "contributors"),
        *("dependencies", "helpText", "hidden", "icon", "name", "path", "title"),
        "widgetRepresentationCreationEnabled",
    )

    def __init__(self, path: Path) -> None:
        self.path, self.name = str(path), path.stem


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent, self.moduleName = parent, type(self).__name__

    def resourcePath(self, filename: str) -> str:
        return str(Path(self.parent.path).parent / "Resources" / filename)


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent or slicer.qSlicerScriptedLoadableModuleWidget()
        self.layout = self.parent.layout()
        if parent is None:
            self.parent.setMRMLScene(slicer.mrmlScene)
            self.setup()

    def setup(self) -> None:
        """Slicer adds the developer's section here."""

    def cleanup(self) -> None:
        """A module's widget may override this."""

    def onReload(self) -> None:
        """What the button *Reload* of the developer's section does."""
        slicer.util.reloadScriptedModule(self.moduleName)

    def resourcePath(self, filename: str) -> str:
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        class_name = "vtkMRMLScriptedModuleNode"
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, class_name)
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass(class_name)
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetModuleName(self.moduleName)
            node.SetName(self.moduleName)
            node = slicer.mrmlScene.AddNode(node)
        node.SetAttribute("ModuleName", self.moduleName)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """As in Slicer: a TestCase that can wait."""

    def delayDisplay(self, message: str, requestedDelay: int | None = None) -> None:
        logging.info(message)
        slicer.app.processEvents()
