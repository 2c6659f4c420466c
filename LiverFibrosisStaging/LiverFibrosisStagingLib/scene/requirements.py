"""Installs the packages that staging needs and Slicer does not include, after asking the user.

Slicer is used only when `installation` is called, never at import or startup.
"""

import importlib
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ..errors import Cancelled, CancelToken, StagingError
from ..gradcam_onnx.session import DEVICES
from .worker import Job

# Each contains onnxruntime for other devices; pip would install one over the other.
ONNXRUNTIMES = tuple({device.package: None for device in DEVICES.values()})
POLL_SECONDS = 0.1  # interval at which a running pip is checked for its end and for cancelling
OFFLINE = (
    "Without internet: on a computer with internet, the same system and Python {python}, run\n"
    "    pip download {quoted} -d wheels\n"
    "then copy the folder wheels, and in Slicer's Python console (Ctrl+3) run\n"
    "    slicer.util.pip_install(['--no-index', '--find-links', '/path/to/wheels', {listed}])\n"
    "and click Stage again."
)


class RequirementsError(StagingError):
    """The packages could not be installed; `details` contains the manual installation."""

    def __init__(self, sentence: str, details: str) -> None:
        super().__init__(sentence)
        self.details = details


def missing(path: str | Path) -> list[str]:
    """The lines of a requirements file that are not satisfied."""

    def installed(requirement: Requirement) -> bool:
        names = ONNXRUNTIMES if requirement.name in ONNXRUNTIMES else [requirement.name]
        for name in names:
            with suppress(PackageNotFoundError):
                return requirement.specifier.contains(version(name), prereleases=True)
        return False

    text = Path(path).read_text(encoding="utf-8")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not installed(Requirement(line))]


def installation(path: str | Path) -> Job | None:
    """A job that installs the missing packages of requirements.txt, or None where none is missing.

    The user is asked first. In Slicer 5.12 and later, Slicer installs them before this returns.
    Installed packages are not changed. Raises Cancelled if the user declines, and
    RequirementsError if the installation fails, as the job does.
    """
    lacking = missing(path)
    if not lacking:
        return None
    logging.info("Missing: %s", ", ".join(lacking))
    try:
        from slicer.packaging import load_requirements, pip_ensure
    except ImportError:  # before Slicer 5.12
        _ask(lacking)
        return _pip_job(path, lacking)
    try:
        with _constraints(lacking) as constraints:
            pip_ensure(load_requirements(str(path)), constraints=constraints, requester=_our_name())
    except subprocess.CalledProcessError as error:
        raise _refusal(lacking, str(error)) from error
    except RuntimeError as error:
        raise Cancelled(str(error)) from error
    return None


def _ask(lacking: list[str]) -> None:
    import slicer
    from slicer.i18n import tr as _

    question = _(
        "Staging needs {names} from the Python Package Index (about 20 MB). Install it now?"
    ).format(names=", ".join(lacking))
    if not slicer.util.confirmOkCancelDisplay(question, _our_name()):
        raise Cancelled("Installing was declined.")


def _our_name() -> str:
    from slicer.i18n import tr as _

    return _("Liver Fibrosis Staging")


def _pip_job(path: str | Path, lacking: list[str]) -> Job:
    """Runs pip in the background, unlike Slicer's pip_install; its output is the progress."""

    def job(progress: Callable[[float, str], None], cancel: CancelToken) -> None:
        with _constraints(lacking) as constraints:
            options = ["--disable-pip-version-check", "--no-input", "--constraint", constraints]
            command = [_python(), "-m", "pip", "install", *options, *lacking]
            output = _run(command, lambda line: progress(0.0, f"Installing: {line}"), cancel)
        importlib.invalidate_caches()
        if missing(path):
            raise _refusal(lacking, output)

    return job


@contextmanager
def _constraints(lacking: list[str]) -> Iterator[str]:
    """A file of pip constraints that keeps all installed packages, above all Slicer's numpy.

    Only the lacking packages may change.
    """
    wanted = {canonicalize_name(Requirement(line).name) for line in lacking}
    kept = {}
    for found in distributions():
        name, number = found.metadata["Name"], found.version
        if name and canonicalize_name(name) not in wanted and _is_version(number):
            kept.setdefault(canonicalize_name(name), f"{name}=={number}\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("".join(sorted(kept.values())), encoding="utf-8")
        yield str(path)


def _is_version(text: str | None) -> bool:
    """Whether pip can read it; some packages of Slicer's own builds have other versions."""
    try:
        return text is not None and bool(Version(text))
    except InvalidVersion:
        return False


def _python() -> str:
    """Slicer's Python interpreter; sys.executable is Slicer itself."""
    found = shutil.which("PythonSlicer")
    if found is None and Path(sys.executable).stem.startswith("python"):
        found = sys.executable
    if found is None:
        raise StagingError(
            "Slicer's Python interpreter (PythonSlicer) was not found; it is needed for pip."
        )
    return found


def _run(command: list[str], report: Callable[[str], None], cancel: CancelToken) -> str:
    """Run a program and return its output; each line is also reported as it comes."""
    hidden = {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # so that PythonSlicer's child, Python, ends with it
        **hidden,
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout])
    reader.start()
    output = []
    while process.poll() is None or reader.is_alive() or not lines.empty():
        if cancel.is_set():
            _end(process)
            raise Cancelled("Installing was cancelled.")
        try:
            output.append(lines.get(timeout=POLL_SECONDS))
        except queue.Empty:
            continue
        report(output[-1].strip())
    return "".join(output)


def _end(process: subprocess.Popen) -> None:
    """End a process and its children."""
    if os.name == "nt":
        tree = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(tree, capture_output=True, check=False)
    else:
        with suppress(ProcessLookupError):  # it has ended already
            os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def _refusal(lacking: list[str], reason: str) -> RequirementsError:
    import platform

    python = ".".join(platform.python_version_tuple()[:2])
    offline = OFFLINE.format(
        python=python,
        quoted=" ".join(f'"{line}"' for line in lacking),
        listed=", ".join(map(repr, lacking)),
    )
    return RequirementsError(
        f"Staging needs {', '.join(lacking)}, which is not installed; the details describe the "
        "manual installation, also without internet.",
        f"{reason}\n\n{offline}",
    )
