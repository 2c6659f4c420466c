"""The walk of in_slicer.py on the stand-ins: all steps pass, and a fault makes it fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

from PySide6.QtGui import QImage

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "Testing" / "in_slicer.py"
LINE = re.compile(r"^(ok|FAILED|skipped) +([^(]+) \(.* s, longest pause .* s\)(?:: (.*))?$", re.M)
# Run in the same script before the walk.
BREAKS = """
import importlib.metadata, sys
import slicer_host
slicer_host.import_module()
from LiverFibrosisStagingLib.scene import jobs, panel_content, requirements
"""
FAULTS = f"""{BREAKS}
def raises(*inputs):
    def job(progress, cancel):
        raise ValueError("broken on purpose")
    return job

def hangs(*inputs):
    def job(progress, cancel):
        progress(0.5, "Checking")
        cancel.wait()
    return job

def progress_text(progress):
    raise KeyError("a slot broken on purpose")

faults = [raises, hangs, hangs]
jobs.staging_job = lambda *inputs: faults.pop(0)(*inputs)
panel_content.progress_text = progress_text
"""
NOT_INSTALLED = f"""{BREAKS}
installed, known = [], importlib.metadata.version

def version(name):
    if not installed:
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

def pip(command, report, cancel):
    installed.append(command)
    return ""

requirements.version, requirements._run = version, pip
"""


def walk(folder, steps="", before="", limit=120.0):
    """Run the walk in a process of its own; its exit code and [(outcome, step, reason)]."""
    script = folder / "script.py"
    run = "exec(compile(open(path).read(), path, 'exec'), dict(globals(), __file__=path))"
    script.write_text(f"{before}\npath = {str(SCRIPT)!r}\n{run}\n", encoding="utf-8")
    environment = {
        **os.environ,
        "LFS_WALK_FOLDER": str(folder),
        "LFS_WALK_STEPS": steps,
        "LFS_WALK_LIMIT": str(limit),
    }
    host = ROOT / "Testing" / "hosts" / "application_host.py"
    done = subprocess.run(
        [sys.executable, str(host), str(script)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done.returncode, LINE.findall(done.stdout), done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The whole walk: exit code, lines, folder."""
    folder = tmp_path_factory.mktemp("walk")
    code, lines, _ = walk(folder)
    return code, lines, folder


def test_every_step_passes(whole):
    code, lines, folder = whole
    assert [line for line in lines if line[0] != "ok"] == []
    assert code == 0
    names = {name for _, name, _ in lines}
    assert names >= {
        *("sample data", "stage", "cancel", "explain", "smooth map", "outline and opacity"),
        *("jump", "save result", "reload the scene", "close while running", "refusals"),
        *("second ct", "signs table and chart", "report", "wrong phase"),
        *("console lines", "self test", "batch of a folder", "batch of nodes"),
        *("batch cancelled", "batch without a window"),
    }
    report = (folder / "walk.txt").read_text(encoding="utf-8")
    assert f"{len(lines)} passed, 0 failed" in report


def test_every_step_has_a_picture(whole):
    _, lines, folder = whole
    numbered = sorted(folder.glob("[0-9]*.png"))
    assert [path.stem[3:].replace("-", " ") for path in numbered] == [name for _, name, _ in lines]
    for path in folder.glob("*.png"):
        image = QImage(str(path)).scaled(64, 48)
        colors = {image.pixel(x, y) for x in range(64) for y in range(48)}
        assert len(colors) > 20, f"{path.name} is blank"
    empty, staged = numbered[0].read_bytes(), next(folder.glob("*-stage.png")).read_bytes()
    assert empty != staged


def test_faults_make_it_fail_and_it_goes_on(tmp_path):
    """Faults in the worker, a job without an end, and an exception in a slot."""
    code, lines, printed = walk(tmp_path, "empty panel,stage,explain,cancel", FAULTS, limit=5)
    reasons = {name: reason for outcome, name, reason in lines if outcome == "FAILED"}
    assert code == 1 and lines[0][:2] == ("ok", "empty panel")
    assert set(reasons) == {"stage", "explain", "cancel"}
    assert "broken on purpose" in reasons["stage"]
    assert "not within 5 s" in reasons["explain"]
    assert "a slot broken on purpose" in reasons["cancel"]
    assert "1 passed, 3 failed" in printed


def test_steps_that_cannot_be_done_are_skipped(tmp_path):
    code, lines, printed = walk(tmp_path, "empty panel,stage", NOT_INSTALLED)
    (_, (outcome, name, reason)) = lines
    assert (outcome, name) == ("skipped", "stage") and code == 2
    assert "onnxruntime" in reason and "not installed" in reason
    assert "1 passed, 0 failed, 1 skipped" in printed


def test_missing_packages_are_installed(tmp_path):
    code, lines, _ = walk(tmp_path, "install", NOT_INSTALLED)
    assert [line[:2] for line in lines] == [("ok", "install")] and code == 0
    assert "already" not in lines[0][2]


def test_an_unknown_step_is_refused(tmp_path):
    code, lines, printed = walk(tmp_path, "stage,dance")
    assert code == 1 and lines == [] and "no such steps: dance" in printed
