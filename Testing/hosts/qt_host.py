"""PythonQt on PySide6: stand-ins for the modules `qt` and `ctk` and the qMRML widgets.

PythonQt is not PySide. Its Qt properties are attributes (`label.text`, not `label.text()`), keyword
arguments are refused, a slot gets as many arguments as it takes, Qt signals cannot be declared in
Python. Here each Qt object is returned in a `Wrapper` that behaves like this, so that code which
fails in Slicer fails in the tests. Slicer's own widgets are small subclasses of Qt's.

Code of the module itself (`LiverFibrosisStaging*`) may only use names that a real Slicer has: see
slicer_names.py. PySide6 is imported at the first use of `qt`, `ctk` or a widget.
"""

import os
import sys
import tempfile
import types
import weakref
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import slicer_names

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

exceptions: list[BaseException] = []  # raised in slots; PythonQt prints them and goes on


@cache
def application() -> Any:
    """PySide6's QApplication; settings live in a folder that goes with the process."""
    from PySide6.QtCore import QSettings
    from PySide6.QtWidgets import QApplication

    application = QApplication.instance() or QApplication(["Slicer"])
    application.setOrganizationName("host")
    application.setApplicationName("Slicer")
    folder = tempfile.TemporaryDirectory(prefix="settings")
    application._settings_folder = folder  # removed at exit
    QSettings.setDefaultFormat(QSettings.Format.IniFormat)
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder.name)
    return application


# ---------------------------------------------------------------------------- wrapping

_wrappers: "weakref.WeakValueDictionary[int, Wrapper]" = weakref.WeakValueDictionary()


def wrap(value: Any) -> Any:
    """A value from Qt as PythonQt shows it; the same object always in the same wrapper."""
    import shiboken6

    if isinstance(value, list | tuple):
        return tuple(wrap(item) for item in value)
    if not isinstance(value, shiboken6.Object):
        return value
    address = shiboken6.getCppPointer(value)[0]
    known = _wrappers.get(address)
    if known is not None and known._object is value:
        return known
    wrapper = object.__new__(wrapper_class(type(value)))
    object.__setattr__(wrapper, "_object", value)
    _wrappers[address] = wrapper
    return wrapper


def unwrap(value: Any) -> Any:
    """What PySide6 needs for a value from the module."""
    if isinstance(value, Wrapper):
        return _alive(value)
    if isinstance(value, _WrapperType):
        return value._qt
    if isinstance(value, _Method):
        return value._function
    if isinstance(value, list | tuple):
        return [unwrap(item) for item in value]
    if type(value).__module__ == "numpy" and not isinstance(value, int | float | str):
        raise TypeError(f"Qt takes no {type(value).__name__} of numpy")
    return value


@cache
def wrapper_class(qt_class: type) -> "type[Wrapper]":
    """The class of PythonQt for a class of PySide6 (or of this file)."""
    import shiboken6

    bases = [base for base in qt_class.__bases__ if issubclass(base, shiboken6.Object)]
    parent = wrapper_class(bases[0]) if bases and bases[0] is not shiboken6.Object else Wrapper
    members = {"__slots__": (), "_qt": qt_class}
    return type.__new__(_WrapperType, qt_class.__name__, (parent,), members)


def _alive(wrapper: "Wrapper") -> Any:
    import shiboken6

    if not shiboken6.isValid(wrapper._object):
        raise ValueError(f"Trying to use a deleted {type(wrapper).__name__}")
    return wrapper._object


def _refuse_keywords(name: str, keywords: dict[str, Any]) -> None:
    if keywords:
        raise TypeError(f"{name}() takes no keyword arguments in PythonQt: {sorted(keywords)}")


class _WrapperType(type):
    """Class of the classes in `qt`: calling one makes a Qt object, attributes are static."""

    def __new__(mcs, name: str, bases: tuple, members: dict) -> type:
        if bases:
            raise TypeError(f"{name}: the host has no Python subclasses of Qt classes")
        return super().__new__(mcs, name, bases, members)

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        _refuse_keywords(cls.__name__, keywords)
        application()
        return wrap(cls._qt(*unwrap(arguments)))

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        slicer_names.check_member(cls.__mro__, name)
        if cls.__name__ == "QFileDialog" and name.startswith("get"):
            import widgets_host

            return lambda *arguments: widgets_host.file_dialog_answers.pop(0)
        if (cls.__name__, name) == ("QDesktopServices", "openUrl"):
            import widgets_host

            return lambda url: widgets_host.open_address(unwrap(url))
        value = _member(cls._qt, name)
        return _Method(name, value) if callable(value) and not isinstance(value, type) else value


class Wrapper(metaclass=_WrapperType):
    """A Qt object as PythonQt shows it."""

    __slots__ = ("__weakref__", "_object")
    _qt: type

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        kind = slicer_names.check_member(type(self).__mro__, name)
        qt_object = _alive(self)
        if hasattr(qt_object, "metaObject"):
            if name in ("connect", "disconnect"):
                return partial(_connect_by_signature, qt_object, name == "connect")
            if name == "name":
                return qt_object.objectName()
            if name == "className":
                return lambda: type(self).__name__
            position = qt_object.metaObject().indexOfProperty(name)
            if position >= 0 and kind != slicer_names.CALLABLE:
                return wrap(qt_object.metaObject().property(position).read(qt_object))
        value = _member(qt_object, name)
        if type(value).__name__ == "SignalInstance":
            return _Signal(qt_object, name)
        if not callable(value) or isinstance(value, type):
            return wrap(value)
        method = _Method(name, value)
        return method() if kind == slicer_names.ATTRIBUTE else method

    def __setattr__(self, name: str, value: Any) -> None:
        slicer_names.check_member(type(self).__mro__, name)
        qt_object = _alive(self)
        if name == "name":
            name = "objectName"
        position = qt_object.metaObject().indexOfProperty(name)
        if position < 0:
            raise AttributeError(f"Attribute '{name}' does not exist on {type(self).__name__}")
        if not qt_object.metaObject().property(position).write(qt_object, unwrap(value)):
            raise AttributeError(f"{type(self).__name__}.{name} does not take {value!r}")

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Wrapper) and self._object == other._object

    def __hash__(self) -> int:
        return hash(self._object)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of the host>"


def _member(owner: Any, name: str) -> Any:
    """PySide6's member; exec_ is exec there, and enum values are only members of their enum."""
    if name == "exec_":
        name = "exec"
    return getattr(owner, name)


class _Method:
    def __init__(self, name: str, function: Callable) -> None:
        self._name, self._function = name, function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        _refuse_keywords(self._name, keywords)
        if self._name == "singleShot":  # its slot is a Python callable
            milliseconds, function = arguments
            return self._function(milliseconds, _slot(function, 0))
        return wrap(self._function(*unwrap(arguments)))


# ---------------------------------------------------------------------------- signals and slots


def _slot(function: Callable, sent: int) -> Callable:
    """A Python callable as a slot: it gets the arguments it takes; what it raises is kept."""
    count = min(sent, _argument_count(function))

    def call(*arguments: Any) -> None:
        try:
            function(*(wrap(argument) for argument in arguments[:count]))
        except Exception as error:
            exceptions.append(error)

    # PySide6 sends as many arguments as the slot names.
    return (lambda: call(), lambda a: call(a), lambda a, b: call(a, b))[sent]


def _argument_count(function: Callable) -> int:
    """How many arguments PythonQt passes: those of a Python function or method, else all."""
    bound = int(isinstance(function, types.MethodType))
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None or code.co_flags & 0x04:  # *args
        return sys.maxsize
    return code.co_argcount - bound


_connections: dict[tuple[int, str, Any], Callable] = {}
# Overloaded in Slicer's Qt 5: which one a connection without arguments gets is left to chance.
_OVERLOADED = ("currentIndexChanged", "activated", "highlighted")


def _connect_by_signature(qt_object: Any, do: bool, signature: str, function: Callable) -> bool:
    """`widget.connect("clicked(bool)", function)` and the same with disconnect."""
    from PySide6.QtCore import QMetaObject

    name, _, rest = signature.partition("(")
    normalized = bytes(QMetaObject.normalizedSignature(signature).data()).decode()
    known = qt_object.metaObject().indexOfSignal(normalized) >= 0
    if not known and signature not in getattr(qt_object, "SLICER_SIGNALS", ()):
        raise ValueError(f"{type(qt_object).__name__} has no signal {signature}")
    slicer_names.check_member(wrapper_class(type(qt_object)).__mro__, name)
    count = len([part for part in rest.rstrip(")").split(",") if part.strip()])
    _connect(qt_object, name, do, function, count)
    return True


def _connect(qt_object: Any, name: str, do: bool, function: Callable, count: int) -> None:
    key = (id(qt_object), name, function)
    if do:
        slot = _slot(function, count)
        getattr(qt_object, name).connect(slot)
        _connections[key] = slot
        qt_object.destroyed.connect(lambda *_: _connections.pop(key, None))
    else:
        getattr(qt_object, name).disconnect(_connections.pop(key))


class _Signal:
    """`widget.clicked`: connect, disconnect, emit."""

    def __init__(self, qt_object: Any, name: str) -> None:
        self._object, self._name = qt_object, name

    def connect(self, function: Callable) -> bool:
        if self._name in _OVERLOADED and slicer_names.called_by_module():
            raise TypeError(f"{self._name} is overloaded: connect by its signature")
        meta = self._object.metaObject()
        methods = (meta.method(index) for index in range(meta.methodCount()))
        sent = max(
            m.parameterCount() for m in methods if bytes(m.name().data()).decode() == self._name
        )
        _connect(self._object, self._name, True, function, sent)
        return True

    def disconnect(self, function: Callable) -> bool:
        _connect(self._object, self._name, False, function, 0)
        return True

    def emit(self, *arguments: Any) -> None:
        getattr(self._object, self._name).emit(*unwrap(arguments))

    __call__ = emit


# ---------------------------------------------------------------------------- qt, ctk, slicer.q*

_FORBIDDEN = {"Signal", "Slot", "Property"}


class _QtModule(types.ModuleType):
    """Slicer's `qt`: the classes of QtCore, QtGui and QtWidgets in one module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        slicer_names.check_class("qt", name)
        if name == "QUiLoader":
            return UiLoader
        value = None if name in _FORBIDDEN else _pyside(name)
        if value is None:
            raise AttributeError(f"module 'qt' has no attribute '{name}'")
        if name == "Qt":
            return _QtNamespace(value)
        return wrapper_class(value) if isinstance(value, type) else value


class _QtNamespace:
    """`qt.Qt`: the values of all its enums, without the enum's name as in PySide6's Qt too."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        slicer_names.check_section("qt.Qt", name)
        return getattr(self._namespace, name)


def _pyside(name: str) -> Any:
    from PySide6 import QtCore, QtGui, QtSvg, QtWidgets

    for module in (QtWidgets, QtGui, QtCore, QtSvg):
        if hasattr(module, name):
            return getattr(module, name)
    return None


class _CtkModule(types.ModuleType):
    """Slicer's `ctk`, as far as the panel uses it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        slicer_names.check_class("ctk", name)
        return wrapper_class(_slicer_widgets()[name])


def install() -> None:
    """Make `import qt` and `import ctk` work."""
    sys.modules["qt"], sys.modules["ctk"] = _QtModule("qt"), _CtkModule("ctk")


def slicer_class(name: str) -> Any:
    """`slicer.qMRMLNodeComboBox` and the like."""
    slicer_names.check_class("slicer", name)
    return wrapper_class(_slicer_widgets()[name])


@cache
def _slicer_widgets() -> dict[str, type]:
    import widgets_host

    return widgets_host.CLASSES


class UiLoader:
    """`qt.QUiLoader` for a .ui of Slicer, with the widgets that Qt does not have."""

    def load(self, file: Any) -> Any:
        from PySide6.QtCore import QBuffer, QByteArray
        from PySide6.QtUiTools import QUiLoader
        from PySide6.QtWidgets import QWidget

        class Loader(QUiLoader):
            def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
                host_class = _slicer_widgets().get(class_name)
                if host_class is None:
                    if class_name.startswith(("ctk", "qMRML", "qSlicer")):
                        raise NotImplementedError(f"the host has no {class_name}")
                    return super().createWidget(class_name, parent, name)
                widget = host_class(parent)
                widget.setObjectName(name)
                return widget

        path = Path(unwrap(file).fileName() if isinstance(file, Wrapper) else file)
        tree = ElementTree.parse(path)
        _check_properties(tree)
        links = [{part.tag: part.text for part in link} for link in tree.iter("connection")]
        for connections in tree.findall("connections"):
            tree.getroot().remove(connections)  # their signals are made of Python here
        application()
        buffer = QBuffer()
        buffer.setData(QByteArray(ElementTree.tostring(tree.getroot())))
        widget = Loader().load(buffer)
        widgets = {child.objectName(): child for child in widget.findChildren(QWidget)}
        widgets[widget.objectName()] = widget
        for link in links:
            signal = getattr(widgets[link["sender"]], link["signal"].partition("(")[0])
            signal.connect(getattr(widgets[link["receiver"]], link["slot"].partition("(")[0]))
        return wrap(widget)


def _check_properties(tree: ElementTree.ElementTree) -> None:
    """A .ui may only set properties that Slicer's widgets have."""
    libraries = {"Q": "qt", "c": "ctk", "q": "slicer"}
    for widget in tree.iter("widget"):
        class_name = widget.get("class")
        for element in widget.findall("property"):
            name = element.get("name")
            if element.get("stdset") != "0" and name != "buddy":  # which is a method
                slicer_names.check_ui(libraries[class_name[0]], class_name, name)
