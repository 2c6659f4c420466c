"""The module's widget: built when the module is first opened, informed when it is entered.

The module file imports this one when Slicer starts, so SimpleITK and all that needs it is imported
in `setup` only, which tells the user what is missing.
"""

import logging
import sys
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget

PACKAGE = __name__.partition(".")[0]


class StagingWidget(ScriptedLoadableModuleWidget):
    """Loads the .ui and connects it (`panel.Panel`); the module's widget inherits from it.

    logic: the module's logic.
    """

    def __init__(self, parent: Any, logic: Any) -> None:
        self.logic = logic
        self._panel = None  # until it is built, which may fail
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        """Build the panel; called once, when the module is first opened."""
        ScriptedLoadableModuleWidget.setup(self)
        try:
            from .panel import Panel
        except ImportError as error:
            logging.exception("The panel cannot be built.")
            self._show_missing(error)
            return
        widget = slicer.util.loadUI(self.resourcePath("UI/LiverFibrosisStaging.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        requirements = self.resourcePath("requirements.txt")
        self._panel = Panel(self.ui, self.logic, self.parent, requirements)

    def cleanup(self) -> None:
        """Called when the widget is destroyed: waits for the background thread to end."""
        if self._panel is not None:
            self._panel.cleanup()

    def enter(self) -> None:
        """Called each time the user opens the module."""
        if self._panel is not None:
            self._panel.enter()

    def exit(self) -> None:
        """Called each time the user opens another module. A running job continues, and the panel
        stays connected, as up to Slicer 5.10 each disconnection leaves an observer behind.
        """

    def onReload(self) -> None:
        """Reload the library with the module (*Reload* in Slicer's developer mode)."""
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]  # the module file imports it again
        ScriptedLoadableModuleWidget.onReload(self)

    def _show_missing(self, error: ImportError) -> None:
        """Show which package is missing, and how to install it, in place of the panel."""
        package = (error.name or "").partition(".")[0]
        if package in ("", PACKAGE):
            remedy = _("Install the extension again.")
        else:
            remedy = _(
                "Install {package} with slicer.util.pip_install('{package}') in the Python console "
                "(Ctrl+3), then restart Slicer."
            ).format(package=package)
        text = _("Liver Fibrosis Staging cannot be used: {error}. {remedy}")
        label = qt.QLabel(text.format(error=error, remedy=remedy))
        label.wordWrap = True
        self.layout.addWidget(label)
