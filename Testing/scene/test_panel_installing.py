"""Installing missing packages: the question, pip in the background, kept versions."""

import importlib.metadata
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import slicer
import slicer_host
from panel_steps import is_busy, stage
from slicer_host import wait_until

from LiverFibrosisStagingLib import Cancelled
from LiverFibrosisStagingLib.scene import requirements

pytestmark = pytest.mark.usefixtures("single_network")
# Prints a line and waits for a file, like a pip that downloads; then it "installs".
PIP = """
import pathlib, sys, time
folder = pathlib.Path(__file__).parent
constraints = sys.argv[sys.argv.index("--constraint") + 1]
(folder / "constraints").write_text(pathlib.Path(constraints).read_text())
(folder / "arguments").write_text(" ".join(sys.argv[1:]))
print("Downloading onnxruntime (17 MB)", flush=True)
while not (folder / "go on").exists():
    time.sleep(0.01)
if (folder / "fail").exists():
    sys.exit("ERROR: no network")
(folder / "installed").touch()
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """As in a fresh Slicer, with a pip that installs nothing; returns its folder."""
    program, known = tmp_path / "pip.py", importlib.metadata.version
    program.write_text(PIP, encoding="utf-8")
    (tmp_path / "go on").touch()

    def version(name):
        if name == "onnxruntime" and not (tmp_path / "installed").exists():
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    def run(command, report, cancel, real=requirements._run):
        arguments = command[command.index("install") :]
        return real([sys.executable, str(program), *arguments], report, cancel)

    monkeypatch.setattr(requirements, "version", version)
    monkeypatch.setattr(requirements, "_run", run)
    return tmp_path


def test_declining_shows_no_error(ready, pip):
    slicer_host.dialog_answers.append("Cancel")
    ready.ui.stageButton.click()
    (question,) = slicer_host.dialogs  # and no error after it
    slicer_host.dialogs.clear()
    assert "onnxruntime" in question.text and "?" in question.text
    assert not (pip / "arguments").exists() and not is_busy(ready)
    assert "Installation declined" in slicer_host.status_messages[-1]


def test_installing_shows_the_output_of_pip_and_staging_follows(ready, pip):
    ui = ready.ui
    (pip / "go on").unlink()
    ui.stageButton.click()
    wait_until(lambda: "Downloading onnxruntime" in ui.stepLabel.text)
    assert is_busy(ready) and ui.stageButton.text == "&Cancel" and ui.stageButton.enabled
    assert ui.progressBar.maximum == 0  # moves without an end
    (pip / "go on").touch()
    wait_until(lambda: not is_busy(ready), 120)
    assert ui.resultWidget.visible
    assert "onnxruntime" in (pip / "arguments").read_text().split()[-1]
    assert len(slicer_host.dialogs) == 1  # the question
    slicer_host.dialogs.clear()


def test_installed_packages_are_not_changed(ready, pip):
    stage(ready)
    slicer_host.dialogs.clear()
    lines = (pip / "constraints").read_text().splitlines()
    for name in ("numpy", "SimpleITK", "vtk"):
        assert any(
            line.lower() == f"{name}=={importlib.metadata.version(name)}".lower() for line in lines
        ), name
    assert not any(line.startswith("onnxruntime") for line in lines)


def test_installing_can_be_cancelled_and_its_process_ends(ready, pip):
    (pip / "go on").unlink()
    ready.ui.stageButton.click()
    wait_until(lambda: "Downloading" in ready.ui.stepLabel.text)
    ready.ui.stageButton.click()
    wait_until(lambda: not is_busy(ready))
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "LiverFibrosisStaging"])
    (pip / "go on").touch()
    assert not (pip / "installed").exists() and ready.ui.emptyLabel.visible
    assert slicer_host.status_messages[-1] == "Cancelled."
    slicer_host.dialogs.clear()


def test_a_failure_describes_the_manual_installation(ready, pip):
    (pip / "fail").touch()
    ready.ui.stageButton.click()
    wait_until(lambda: not is_busy(ready))
    _question, refusal = slicer_host.dialogs
    slicer_host.dialogs.clear()
    assert "onnxruntime" in refusal.text
    assert "no network" in refusal.details and "--no-index" in refusal.details


def test_slicer_5_12_installs_with_its_packaging(ready, pip, monkeypatch):
    asked = []
    packaging = types.ModuleType("slicer.packaging")
    packaging.load_requirements = lambda path: Path(path).read_text(encoding="utf-8")

    def ensure(names, constraints, requester):
        asked.append((names, Path(constraints).read_text(encoding="utf-8"), requester))

    packaging.pip_ensure = ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    stage(ready)
    ((names, constraints, requester),) = asked
    assert "onnxruntime" in names and "numpy==" in constraints and "Liver" in requester

    def decline(names, **_):
        raise RuntimeError("declined")

    packaging.pip_ensure = decline
    ready.ui.stageButton.click()
    assert slicer_host.dialogs == [] and not is_busy(ready)

    def fail(names, **_):
        raise subprocess.CalledProcessError(1, "pip")

    packaging.pip_ensure = fail
    ready.ui.stageButton.click()
    (dialog,) = slicer_host.dialogs
    slicer_host.dialogs.clear()
    assert "onnxruntime" in dialog.text and "--no-index" in dialog.details


def wheel(folder, name, requires=()):
    """A wheel of a package without anything in it."""
    info = f"{name}-1.0.dist-info"
    needed = "".join(f"Requires-Dist: {line}\n" for line in requires)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "answer = 42\n")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needed}"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize("requires", [(), ("numpy<1",)])
def test_the_real_pip_installs_or_refuses_to_change_numpy(host, tmp_path, monkeypatch, requires):
    host.import_module()
    monkeypatch.setattr(slicer.app, "_testing", False)  # else questions are not asked
    name = f"lfs_probe_{len(requires)}"
    wheel(tmp_path, name, requires)
    (tmp_path / "requirements.txt").write_text(f"{name}>=1.0\n")
    for key, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": tmp_path,
        "TARGET": tmp_path / "site",
    }.items():
        monkeypatch.setenv(f"PIP_{key}", str(value))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    lines = []
    job = requirements.installation(tmp_path / "requirements.txt")
    if requires:
        with pytest.raises(requirements.RequirementsError) as refusal:
            job(lambda fraction, line: lines.append(line), threading.Event())
        assert "numpy" in refusal.value.details
    else:
        job(lambda fraction, line: lines.append(line), threading.Event())
        assert __import__(name).answer == 42
        assert requirements.installation(tmp_path / "requirements.txt") is None
    assert any(name.replace("_", "-") in line or name in line for line in lines)
    slicer_host.dialogs.clear()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
def test_cancelling_ends_the_child_of_a_launcher_too(tmp_path):
    """PythonSlicer is a launcher: the Python that it starts must end with it."""
    launcher, cancel, told = tmp_path / "launcher", threading.Event(), []
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    launcher.write_text(f'#!/bin/sh\n"{sys.executable}" -c "{child}"\necho over\n')
    launcher.chmod(0o755)

    def tell(line):
        told.append(line)
        cancel.set()

    with pytest.raises(Cancelled):
        requirements._run([str(launcher)], tell, cancel)
    state = Path(f"/proc/{told[0]}/stat")
    wait_until(lambda: not state.exists() or state.read_text().split()[2] == "Z")
