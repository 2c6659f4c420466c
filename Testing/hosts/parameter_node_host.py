"""A stand-in for slicer.parameterNodeWrapper: typed properties in a node, connected to widgets.

As in Slicer 5.10, connectGui returns nothing, so its connections cannot be undone;
connectParametersToGui returns a tag, and disconnectGui(tag) disconnects the widgets, but the
observer of the parameter node remains.
"""

import enum
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import slicer
from vtkmodules.vtkCommonCore import vtkCommand


@dataclass(frozen=True)
class WithinRange:
    minimum: float
    maximum: float

    def check(self, value: Any) -> bool:
        return self.minimum <= value <= self.maximum


@dataclass(frozen=True)
class Minimum:
    minimum: float

    def check(self, value: Any) -> bool:
        return value >= self.minimum


@dataclass(frozen=True)
class Maximum:
    maximum: float

    def check(self, value: Any) -> bool:
        return value <= self.maximum


class Choice:
    def __init__(self, choices: Any) -> None:
        self.choices = list(choices)

    def check(self, value: Any) -> bool:
        return value in self.choices


@dataclass(frozen=True)
class Default:
    value: Any


@dataclass(frozen=True)
class Decimals:
    value: int


@dataclass(frozen=True)
class SingleStep:
    value: float


_VALIDATORS = (WithinRange, Minimum, Maximum, Choice)


class _Parameter:
    """One typed name: how it is written in a node, what it may be, and what it is at first."""

    def __init__(self, name: str, hint: Any, default: Any) -> None:
        self.name, self.annotations = name, ()
        if typing.get_origin(hint) is Annotated:
            hint, *self.annotations = typing.get_args(hint)
        optional = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        self.kind = optional[0] if optional else hint
        self.is_node = isinstance(self.kind, type) and issubclass(self.kind, slicer.vtkMRMLNode)
        given = self.find(Default)
        self.default = given.value if given else default
        if self.default is None and not self.is_node:
            self.default = next(iter(self.kind)) if self._is_enum() else self.kind()
            choice, bounds = self.find(Choice), self.find(WithinRange)
            if choice:
                self.default = choice.choices[0]
            elif bounds and not bounds.check(self.default):
                self.default = self.kind(bounds.minimum)
        if not (self.is_node or self._is_enum() or self.kind in (bool, int, float, str, Path)):
            raise TypeError(f"{name}: the host keeps no {self.kind}")

    def _is_enum(self) -> bool:
        return issubclass(self.kind, enum.Enum)

    def find(self, annotation: type) -> Any:
        return next((each for each in self.annotations if isinstance(each, annotation)), None)

    def read(self, node: Any) -> Any:
        if self.is_node:
            return node.GetNodeReference(self.name)
        if self.name not in node.GetParameterNames():
            self.write(node, self.default)
        text = node.GetParameter(self.name)
        if self.kind is bool:
            return text == "True"
        return self.kind[text] if self._is_enum() else self.kind(text)

    def write(self, node: Any, value: Any) -> None:
        if self.is_node:
            if value is not None and not isinstance(value, self.kind):
                raise TypeError(f"{self.name} takes a {self.kind.__name__}, not {value!r}")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
            return
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.kind):
            raise TypeError(f"{self.name} takes a {self.kind.__name__}, not {value!r}")
        for validator in self.annotations:
            if isinstance(validator, _VALIDATORS) and not validator.check(value):
                raise ValueError(f"{self.name} cannot be {value!r}: {validator}")
        node.SetParameter(self.name, value.name if self._is_enum() else str(value))


class _Connector:
    """A widget and how a parameter's value is read from it and written to it."""

    def __init__(self, widget: Any, parameter: _Parameter) -> None:
        import ctk
        import qt

        self._widget, kind, self._values, self._slot = widget, parameter.kind, None, None
        if parameter.is_node:
            expected, self._attribute, self.signal = "qMRMLNodeComboBox", None, "currentNodeChanged"
            widget.nodeTypes = [kind.__name__]
        elif kind is bool:
            expected = {qt.QCheckBox: "stateChanged", qt.QPushButton: "toggled"}
            self._attribute, self.signal = "checked", expected.get(type(widget))
            expected = self.signal and type(widget).__name__
        elif kind is str and type(widget) in (qt.QLineEdit, qt.QLabel):
            expected, self._attribute, self.signal = type(widget).__name__, "text", "textChanged"
        elif kind is Path:
            expected, self._attribute = "ctkPathLineEdit", "currentPath"
            self.signal = "currentPathChanged"
        elif type(widget) is qt.QComboBox:
            expected, self._attribute, self.signal = "QComboBox", None, "currentIndexChanged"
            self._fill(parameter)
        else:
            sliders = {
                float: (ctk.ctkSliderWidget, qt.QDoubleSpinBox),
                int: (qt.QSlider, qt.QSpinBox),
            }
            expected = type(widget) in sliders.get(kind, ()) and type(widget).__name__
            self._attribute, self.signal = "value", "valueChanged"
            self._limit(parameter)
        if expected != type(widget).__name__:
            raise RuntimeError(f"'{parameter.name}' cannot be shown in a {type(widget).__name__}")

    def _fill(self, parameter: _Parameter) -> None:
        """The wrapper overwrites a combo box's items."""
        if issubclass(parameter.kind, enum.Enum):
            self._values = list(parameter.kind)
            label = getattr(parameter.kind, "label", lambda value: value.name)
            labels = [label(value) for value in self._values]
        else:
            choice = parameter.find(Choice)
            if choice is None:
                raise RuntimeError(f"'{parameter.name}' needs a Choice to be in a combo box")
            self._values, labels = choice.choices, [str(value) for value in choice.choices]
        self._widget.clear()
        for text in labels:
            self._widget.addItem(text)

    def _limit(self, parameter: _Parameter) -> None:
        bounds = parameter.find(WithinRange)
        if bounds is None and type(self._widget).__name__ in ("ctkSliderWidget", "QSlider"):
            raise RuntimeError(f"'{parameter.name}' needs a WithinRange to be on a slider")
        for name, annotation in (("decimals", Decimals), ("singleStep", SingleStep)):
            if parameter.find(annotation):
                setattr(self._widget, name, parameter.find(annotation).value)
        if bounds is not None:
            self._widget.minimum, self._widget.maximum = bounds.minimum, bounds.maximum

    def follow(self, slot: Any) -> None:
        """Call `slot` when the user changes the widget; None: no more."""
        signal = getattr(self._widget, self.signal)
        if self._slot is not None:
            signal.disconnect(self._slot)
        self._slot = slot
        if slot is not None:
            signal.connect(slot)

    def read(self) -> Any:
        if self._values is not None:
            return self._values[self._widget.currentIndex]
        if self._attribute is None:
            return self._widget.currentNode()
        value = getattr(self._widget, self._attribute)
        return Path(value) if self._attribute == "currentPath" else value

    def write(self, value: Any) -> None:
        if self._values is not None:
            self._widget.currentIndex = self._values.index(value)
        elif self._attribute is None:
            self._widget.setCurrentNode(value)
        else:
            setattr(self._widget, self._attribute, str(value) if isinstance(value, Path) else value)


class _Wrapper:
    """What the decorator adds to a class of parameters."""

    _parameters: dict[str, _Parameter]

    def __init__(self, parameterNode: Any) -> None:
        self.parameterNode, self._connected, self._updating = parameterNode, [], False
        for parameter in self._parameters.values():
            if not parameter.is_node and parameter.name not in parameterNode.GetParameterNames():
                parameter.write(parameterNode, parameter.default)

    def getValue(self, name: str) -> Any:
        return self._parameters[name].read(self.parameterNode)

    def setValue(self, name: str, value: Any) -> None:
        self._parameters[name].write(self.parameterNode, value)

    def default(self, name: str) -> Default:
        return Default(self._parameters[name].default)

    def connectGui(self, gui: Any) -> None:
        widgets = {w.property("SlicerParameterName"): w for w in vars(gui).values()}
        widgets.pop(None, None)
        self.connectParametersToGui(widgets)

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        unknown = set(mapping) - set(self._parameters)
        if unknown:
            raise ValueError(f"Cannot find a param with the given name: {sorted(unknown)}")
        connectors = {n: _Connector(w, self._parameters[n]) for n, w in mapping.items()}
        self._connected.append(connectors)
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.follow(self._writer(name, connector))
        self.AddObserver(vtkCommand.ModifiedEvent, self._to_widgets)
        return len(self._connected) - 1

    def disconnectGui(self, tag: Any) -> None:
        """Let go of what the tag stands for; with the None of connectGui there is nothing to do."""
        if tag is None:
            return
        for connector in self._connected[tag].values():
            connector.follow(None)
        self._connected[tag] = {}

    def _writer(self, name: str, connector: _Connector) -> Any:
        def changed() -> None:
            with slicer.util.NodeModify(self):
                if not self._updating:
                    self.setValue(name, connector.read())

        return changed

    def _to_widgets(self, *_event: Any) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for connectors in self._connected:
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating = False

    def StartModify(self) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self, was: int) -> None:
        self.parameterNode.EndModify(was)

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def parameterNodeWrapper(decorated: type | None = None) -> Any:
    """Decorator of a class with type hints, with or without parentheses."""
    if decorated is None:
        return parameterNodeWrapper
    hints = typing.get_type_hints(decorated, include_extras=True)
    parameters = {n: _Parameter(n, hint, getattr(decorated, n, None)) for n, hint in hints.items()}
    members = {"_parameters": parameters, "__doc__": decorated.__doc__}
    for name in parameters:
        members[name] = property(
            lambda self, name=name: self.getValue(name),
            lambda self, value, name=name: self.setValue(name, value),
        )
    return type(decorated.__name__, (decorated, _Wrapper), members)
