"""The names of Slicer 5.10 that may be used, in qt, ctk, slicer.util, slicer.app and so on.

`slicer_names.json` is the part of a recording from a real Slicer 5.10 that the module and the walk
of in_slicer.py use. The recording itself (../shared/reference/slicer-5.10-api.json) is not in the
repository. Where it is present, `python Testing/hosts/slicer_names.py --update` runs the panel's
tests and the walk against it and writes the small file anew.
"""

import json
import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAMES = Path(__file__).with_name("slicer_names.json")
RECORDING = ROOT.parent / "shared" / "reference" / "slicer-5.10-api.json"
ATTRIBUTE, CALLABLE = "attributes", "callables"
SECTIONS = ("qt.Qt", "slicer.util", "slicer.app", "layoutManager", "slicer.modules")
# Names of the module's own, which no recording can have.
_OWN = {"slicer.modules": {"liverfibrosisstaging", "LiverFibrosisStagingInstance"}}
_HOST_FILES = {
    *("parameter_node_host.py", "qt_host.py", "slicer_host.py", "slicer_names.py"),
    *("application_host.py", "sample_data_host.py", "scripted_module_host.py", "widgets_host.py"),
}
_WALK_FILES = {  # run in Slicer too
    *("in_slicer.py", "in_slicer_batches.py", "in_slicer_steps.py", "in_slicer_walk.py"),
}
_UPDATE = "SLICER_NAMES_UPDATE"  # environment: the file to write while updating

used: dict[str, Any] = {"classes": {}, **{section: [] for section in SECTIONS}}


@cache
def reference() -> dict[str, Any]:
    """The names that are allowed: the small file's, or while it is updated the recording's."""
    path = RECORDING if os.environ.get(_UPDATE) else NAMES
    return json.loads(path.read_text(encoding="utf-8"))


def called_by_module() -> bool:
    """Whether the code that asked is the module's or the walk's, not a test's or the host's.

    Raises RuntimeError in a thread: Slicer's and Qt's objects belong to the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("Qt or Slicer was used in a thread")
    frame = sys._getframe(1)
    while Path(frame.f_code.co_filename).name in _HOST_FILES:
        if frame.f_back is None:  # Qt itself called the host
            return False
        frame = frame.f_back
    if Path(frame.f_code.co_filename).name in _WALK_FILES:
        return True
    return frame.f_globals.get("__name__", "").startswith("LiverFibrosisStaging")


def check_section(section: str, name: str) -> None:
    """A name of slicer.util, slicer.app and so on. Raises AttributeError."""
    if not called_by_module() or name in _OWN.get(section, ()):
        return
    if name not in reference()[section]:
        raise AttributeError(_missing(f"{section}.{name}"))
    if name not in used[section]:
        used[section].append(name)


def check_class(library: str, name: str) -> None:
    """A class of qt, ctk or slicer. Raises AttributeError."""
    if not called_by_module() or (library, name) == ("qt", "Qt"):
        return
    if name not in reference()["classes"].get(library, {}):
        raise AttributeError(_missing(f"{library}.{name}"))
    _used_class(library, name)


def check_member(classes: tuple[type, ...], name: str) -> str | None:
    """A member of an object whose classes are given, most derived first.

    Returns ATTRIBUTE or CALLABLE, or None where it is not known. Raises AttributeError.
    """
    return _check(classes, name) if called_by_module() else None


def check_ui(library: str, class_name: str, name: str) -> None:
    """A property that a .ui sets. Raises AttributeError."""
    if class_name not in reference()["classes"].get(library, {}):
        raise AttributeError(_missing(f"{library}.{class_name}"))
    _look_up(library, class_name, name)


def _check(classes: tuple[type, ...], name: str) -> str | None:
    for each in classes:
        for library, recorded in reference()["classes"].items():
            if each.__name__ in recorded:
                return _look_up(library, each.__name__, name)
    raise AttributeError(_missing(f"{classes[0].__name__}.{name}"))


def _look_up(library: str, class_name: str, name: str) -> str | None:
    entry = reference()["classes"][library][class_name]
    _used_class(library, class_name)
    if entry is None:
        return None
    for kind in (ATTRIBUTE, CALLABLE):
        if name in entry.get(kind, ()):
            names = used["classes"][library][class_name].setdefault(kind, [])
            if name not in names:
                names.append(name)
            return kind
    if entry.get("base"):
        return _look_up("qt", entry["base"], name)
    raise AttributeError(_missing(f"{library}.{class_name}.{name}"))


def _used_class(library: str, class_name: str) -> None:
    entry = reference()["classes"][library][class_name]
    new = None if entry is None else {"base": entry.get("base")}
    used["classes"].setdefault(library, {}).setdefault(class_name, new)


def _missing(name: str) -> str:
    return (
        f"{name} is not among the names of Slicer 5.10 that the module uses; if Slicer has it, "
        "run: python Testing/hosts/slicer_names.py --update"
    )


def write_used() -> None:
    """While updating, at the end of a process: add what was used to the file."""
    if os.environ.get(_UPDATE):
        path = Path(os.environ[_UPDATE])
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        names = _merged(before, {"slicer": reference()["slicer"], **used})
        text = json.dumps(_sorted(names), indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")


def _merged(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _merged(one.get(key), other.get(key)) for key in {*one, *other}}
    if isinstance(one, list) and isinstance(other, list):
        return list({*one, *other})
    return one if other is None else other


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return sorted(value) if isinstance(value, list) else value


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"] or not RECORDING.is_file():
        sys.exit(f"usage: python {sys.argv[0]} --update   (needs {RECORDING.name})")
    NAMES.unlink(missing_ok=True)
    files = sorted(map(str, (ROOT / "Testing" / "scene").glob("test_panel*.py")))
    tests = ["-m", "pytest", "-p", "no:xdist", *files]
    walk = [str(ROOT / "Testing/hosts/application_host.py"), str(ROOT / "Testing/in_slicer.py")]
    environment = {**os.environ, _UPDATE: str(NAMES)}
    codes = [
        subprocess.call([sys.executable, *command], env=environment) for command in (tests, walk)
    ]
    sys.exit(max(codes))
