"""Slicer's own widgets, reduced to what the panel uses. PySide6 code, see qt_host.py.

`SLICER_SIGNALS` are the signatures as Slicer's C++ has them.
"""

from typing import Any

import slicer
from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtGui import QPainter
from PySide6.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLineEdit,
    QMessageBox,
    QSlider,
    QStyle,
    QStyleOptionButton,
    QTextBrowser,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from vtkmodules.util.misc import calldata_type
from vtkmodules.vtkCommonCore import VTK_OBJECT, vtkCommand

file_dialog_answers: list[str] = []  # what the next file dialogs return
opened: list[str] = []  # files and addresses that were to be opened outside of Slicer


def open_address(address: Any) -> bool:
    """In place of a browser."""
    opened.append(address.toLocalFile() or address.toString())
    return True


def _plain(kind: Any, attribute: str, notify: Any = None) -> Property:
    """A Qt property that is only remembered."""

    def read(self: Any) -> Any:
        return getattr(self, attribute)

    def write(self: Any, value: Any) -> None:
        setattr(self, attribute, value)

    return Property(kind, read, write, notify=notify) if notify else Property(kind, read, write)


class ctkCollapsibleButton(QWidget):
    contentsCollapsed = Signal(bool)
    clicked = Signal(bool)
    toggled = Signal(bool)
    SLICER_SIGNALS = ()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed, self._flat, self._height = "", False, False, 0
        self._title = self.fontMetrics().height() + 8
        self.setContentsMargins(0, self._title, 0, 0)

    def setText(self, text: str) -> None:
        self._text = text
        self.update()

    def setCollapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self._show_contents()
        self.contentsCollapsed.emit(collapsed)
        self.clicked.emit(not collapsed)
        self.toggled.emit(not collapsed)

    def _show_contents(self) -> None:
        for child in self.children():
            if isinstance(child, QWidget):
                child.setVisible(not self._collapsed)
        self.setMaximumHeight(self._title if self._collapsed else 16777215)
        self.updateGeometry()

    def showEvent(self, event: Any) -> None:
        if self._collapsed:
            self._show_contents()
        super().showEvent(event)

    def mouseReleaseEvent(self, event: Any) -> None:
        if event.position().y() < self._title:
            self.setCollapsed(not self._collapsed)

    def paintEvent(self, event: Any) -> None:
        option = QStyleOptionButton()
        option.initFrom(self)
        option.rect.setHeight(self._title)
        painter = QPainter(self)
        self.style().drawControl(QStyle.ControlElement.CE_PushButtonBevel, option, painter, self)
        arrow = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}", "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"
        text = f"  {arrow[not self._collapsed]}  {self._text}"
        painter.drawText(option.rect, Qt.AlignmentFlag.AlignVCenter, text)

    text = Property(str, lambda self: self._text, setText)
    collapsed = Property(bool, lambda self: self._collapsed, setCollapsed)
    checked = Property(
        bool, lambda self: not self._collapsed, lambda self, on: self.setCollapsed(not on)
    )
    flat = _plain(bool, "_flat")
    collapsedHeight = _plain(int, "_height")


class ctkSliderWidget(QWidget):
    valueChanged = Signal(float)
    valueIsChanging = Signal(float)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider, self._spin_box = QSlider(Qt.Orientation.Horizontal), QDoubleSpinBox()
        self._tracking, self._page, self._tick = True, 10.0, 0.0
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spin_box)
        self.setFocusProxy(self._spin_box)
        self._spin_box.valueChanged.connect(self._changed)
        self._slider.valueChanged.connect(self._moved)
        self._follow()

    def _follow(self) -> None:
        box = self._spin_box
        self._slider.blockSignals(True)
        self._slider.setRange(0, max(1, round((box.maximum() - box.minimum()) / box.singleStep())))
        self._slider.setValue(round((box.value() - box.minimum()) / box.singleStep()))
        self._slider.blockSignals(False)

    def _changed(self, value: float) -> None:
        self._follow()
        self.valueChanged.emit(value)

    def _moved(self, step: int) -> None:
        self._spin_box.setValue(self._spin_box.minimum() + step * self._spin_box.singleStep())

    def _set(self, name: str, value: Any) -> None:
        getattr(self._spin_box, name)(value)
        self._follow()

    def _set_step(self, step: float) -> None:
        self._set("setSingleStep", step)

    def setValue(self, value: float) -> None:
        self._spin_box.setValue(value)

    def setDecimals(self, decimals: int) -> None:
        self._spin_box.setDecimals(decimals)

    def setSpinBoxVisible(self, visible: bool) -> None:
        self._spin_box.setVisible(visible)

    value = Property(float, lambda self: self._spin_box.value(), setValue)
    minimum = Property(
        float, lambda self: self._spin_box.minimum(), lambda self, x: self._set("setMinimum", x)
    )
    maximum = Property(
        float, lambda self: self._spin_box.maximum(), lambda self, x: self._set("setMaximum", x)
    )
    singleStep = Property(float, lambda self: self._spin_box.singleStep(), _set_step)
    decimals = Property(int, lambda self: self._spin_box.decimals(), setDecimals)
    suffix = Property(
        str, lambda self: self._spin_box.suffix(), lambda self, x: self._spin_box.setSuffix(x)
    )
    prefix = Property(
        str, lambda self: self._spin_box.prefix(), lambda self, x: self._spin_box.setPrefix(x)
    )
    spinBoxVisible = Property(bool, lambda self: self._spin_box.isVisible(), setSpinBoxVisible)
    pageStep = _plain(float, "_page")
    tickInterval = _plain(float, "_tick")
    tracking = _plain(bool, "_tracking")


class ctkPathLineEdit(QWidget):
    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)
    SLICER_SIGNALS = ("currentPathChanged(QString)",)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._filters, self._names, self._key, self._label = 0, [], "", ""
        self._edit, self._button = QLineEdit(), QToolButton()
        self._button.setText("...")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._edit, 1)
        layout.addWidget(self._button)
        self.setFocusProxy(self._edit)
        self._edit.textChanged.connect(self.currentPathChanged)
        self._button.clicked.connect(self.browse)

    def browse(self) -> None:
        self.setCurrentPath(file_dialog_answers.pop(0))

    def setCurrentPath(self, path: str) -> None:
        self._edit.setText(path)

    def addCurrentPathToHistory(self) -> None:
        """The history is not kept."""

    currentPath = Property(str, lambda self: self._edit.text(), setCurrentPath)
    filters = _plain("QVariant", "_filters")
    nameFilters = _plain("QStringList", "_names")
    settingKey = _plain(str, "_key")
    label = _plain(str, "_label")
    showBrowseButton = Property(
        bool, lambda self: self._button.isVisible(), lambda self, on: self._button.setVisible(on)
    )
    showHistoryButton = _plain(bool, "_history")
    _history = True


class ctkFittedTextBrowser(QTextBrowser):
    SLICER_SIGNALS = ()


class ctkMessageBox(QMessageBox):
    """Never shown: slicer_host answers for the user before one is made."""


class qMRMLWidget(QWidget):
    mrmlSceneChanged = Signal(object)
    SLICER_SIGNALS = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The parent of a module's widget."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._entered = False
        QVBoxLayout(self)

    isEntered = _plain(bool, "_entered")

    def reload(self) -> None:
        """Make the module's widget again; `make` is set by slicer_host.open_panel."""
        self.make()


class qMRMLNodeComboBox(QComboBox):
    """Follows the scene: its items are the nodes of its types, their ids the items' data."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    SLICER_SIGNALS = (
        "currentNodeChanged(vtkMRMLNode*)",
        "currentNodeChanged(bool)",
        "currentNodeIDChanged(QString)",
        "nodeActivated(vtkMRMLNode*)",
        "nodeAdded(vtkMRMLNode*)",
    )

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._types, self._scene, self._shown = [], None, None
        self._none, self._none_text, self._children, self._hidden = False, "None", True, False
        self._add, self._remove, self._edit, self._rename = True, True, False, False
        self._base, self._select_new, self._tag, self._hidden_types = "", True, "", []
        self._attributes, self._filling = {}, False
        self._observed = observed = {}  # key: (observed object, tag)
        self.destroyed.connect(
            lambda: [object.RemoveObserver(t) for object, t in observed.values()]
        )
        # Wide node names must not make the panel wide.
        self.setSizeAdjustPolicy(self.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.currentIndexChanged.connect(self._selected)

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        self._scene = scene
        while self._observed:
            _, (observed, tag) = self._observed.popitem()
            observed.RemoveObserver(tag)
        if scene is None:
            self.clear()
            return
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent):
            self._observe(scene, event, self._on_node)
        for event in (scene.EndBatchProcessEvent, scene.EndCloseEvent):
            self._observe(scene, event, self._fill)
        self._observe(scene, scene.EndImportEvent, self._refill)
        self._fill()

    def _observe(self, observed: Any, event: int, function: Any) -> None:
        key = observed.GetAddressAsString(""), event
        if key not in self._observed:
            self._observed[key] = observed, observed.AddObserver(event, function)

    @calldata_type(VTK_OBJECT)
    def _on_node(self, scene: Any, event: str, node: Any) -> None:
        if scene.IsBatchProcessing() or not self._offers(node):
            return
        gone = event == "NodeRemovedEvent"
        self._fill(without=node if gone else None)
        if not gone:
            self.nodeAdded.emit(node)

    def _offers(self, node: Any) -> bool:
        if node is None or (node.GetHideFromEditors() and not self._hidden):
            return False
        kinds = [
            k for k in self._types if (node.IsA(k) if self._children else node.GetClassName() == k)
        ]
        attributes = self._attributes.items()
        return bool(kinds) and all(
            node.GetAttribute(name) is not None and value in (None, node.GetAttribute(name))
            for (_, name), value in attributes
        )

    def _refill(self, *_event: Any) -> None:
        """After an import the items are created again: for a moment no node is selected, which is
        signalled even if none was selected before.
        """
        self._shown = None
        if self._none:
            self.currentNodeChanged.emit(None)
            self.currentNodeIDChanged.emit("")
        self._fill_now()

    def _fill(self, *_event: Any, without: Any = None) -> None:
        if self._scene is not None and not self._scene.IsBatchProcessing():
            self._fill_now(without)

    def _fill_now(self, without: Any = None) -> None:
        nodes = slicer.util.getNodesByClass("vtkMRMLNode")
        nodes = [node for node in nodes if node is not without and self._offers(node)]
        self._filling = True
        self.clear()
        if self._none:
            self.addItem(self._none_text, None)
        for node in nodes:
            self.addItem(node.GetName(), node.GetID())
            self._observe(node, vtkCommand.ModifiedEvent, self._name)
        index = self.findData(self._shown) if self._shown else -1
        self.setCurrentIndex(index if index >= 0 else 0)
        self._filling = False
        self._selected()

    def _name(self, node: Any, _event: str) -> None:
        index = self.findData(node.GetID())
        if index >= 0 and self.itemText(index) != node.GetName():
            self.setItemText(index, node.GetName())

    def _selected(self, *_index: int) -> None:
        if self._filling or self.currentData() == self._shown:
            return
        self._shown = self.currentData()
        self.currentNodeChanged.emit(self.currentNode())
        self.currentNodeIDChanged.emit(self._shown or "")

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._shown) if self._scene and self._shown else None

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    def setCurrentNodeID(self, node_id: str) -> None:
        """A node that is not offered is none, as in Slicer."""
        self.setCurrentIndex(max(self.findData(node_id or None), -1 if not self._none else 0))

    def nodeCount(self) -> int:
        return self.count() - self._none

    def nodeFromIndex(self, index: int) -> Any:
        return self._scene.GetNodeByID(self.itemData(index + self._none) or "")

    def addAttribute(self, node_type: str, name: str, value: str | None = None) -> None:
        self._attributes[node_type, name] = value
        self._fill()

    def _set_types(self, types: list[str]) -> None:
        self._types = list(types)
        self._fill()

    def _set_none(self, enabled: bool) -> None:
        self._none = enabled
        self._fill()

    def _set_none_text(self, text: str) -> None:
        self._none_text = text
        self._fill()

    nodeTypes = Property("QStringList", lambda self: self._types, _set_types)
    noneEnabled = Property(bool, lambda self: self._none, _set_none)
    noneDisplay = Property(str, lambda self: self._none_text, _set_none_text)
    currentNodeID = Property(str, lambda self: self._shown or "", setCurrentNodeID)
    showChildNodeTypes = _plain(bool, "_children")
    hideChildNodeTypes = _plain("QStringList", "_hidden_types")
    showHidden = _plain(bool, "_hidden")
    addEnabled = _plain(bool, "_add")
    removeEnabled = _plain(bool, "_remove")
    editEnabled = _plain(bool, "_edit")
    renameEnabled = _plain(bool, "_rename")
    baseName = _plain(str, "_base")
    selectNodeUponCreation = _plain(bool, "_select_new")
    interactionNodeSingletonTag = _plain(str, "_tag")


CLASSES = {
    each.__name__: each
    for each in (
        ctkCollapsibleButton,
        ctkSliderWidget,
        ctkPathLineEdit,
        ctkFittedTextBrowser,
        ctkMessageBox,
        qMRMLWidget,
        qMRMLNodeComboBox,
        qSlicerScriptedLoadableModuleWidget,
    )
}
