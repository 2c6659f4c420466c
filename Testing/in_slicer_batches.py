"""Steps of in_slicer.py: batches, which are started as in the Python console."""

import re
import subprocess
from typing import Any

import slicer
from in_slicer_steps import STEPS
from in_slicer_walk import MODULE, ROOT, Walk, at_rest, check, column_of, in_scene, step

__all__ = ["STEPS"]  # those of in_slicer_steps, then these


@step("loaded")
def batch_of_a_folder(walk: Walk) -> None:
    """Slicer serves its events while a folder is staged; the results are a table node."""
    window, shown = slicer.util.mainWindow(), []
    before = walk.heartbeat.count
    source = ROOT / MODULE / "Resources" / "SampleData"
    output = walk.folder / "batch"

    def progressed(fraction: float, step: str) -> None:
        if not shown and fraction > 0.3:
            shown.extend(slicer.util.findChildren(window.statusBar(), className="QProgressBar"))
            walk.picture("batch-running")

    table = walk.logic.stageFolder(source, output, progress=progressed)
    check(shown, "no progress bar in the status bar")
    beats = walk.heartbeat.count - before
    check(beats > 20, f"a 5 ms timer was served only {beats} times during the batch")
    check(table is not None and table.GetScene(), "no table node")
    check(set(column_of(table, "status")) == {"done"}, f"status: {column_of(table, 'status')}")
    check((output / "results.csv").is_file(), "no results.csv")


@step("loaded")
def batch_of_nodes(walk: Walk) -> None:
    """CTs of the scene become rows; a second batch and the panel's Stage are refused meanwhile."""
    second = walk.load_ct("walk-second")
    slicer.util.arrayFromVolume(second)[:] = 90  # which is refused
    ended: list[Any] = []
    options = {"wait": False, "finished": ended.append, "showResults": True}
    batch = walk.logic.stageNodes([walk.volume(), second], **options)
    walk.ui.stageButton.click()
    walk.check_refused("A batch is running")
    walk.wait(lambda: ended, "the batch")
    status, reasons = (column_of(batch.tableNode, name) for name in ("status", "reason"))
    check(status == ["done", "failed"] and reasons[1], f"{status}, {reasons}")
    walk.settle()
    check(walk.has_result(), "the first CT's result is not shown")


@step("loaded")
def batch_cancelled(walk: Walk) -> None:
    """The button in the status bar ends a batch without a finished case; no node is left."""
    walk.settle()
    before = in_scene()
    batch = walk.logic.stageNodes(wait=False)
    bar = slicer.util.mainWindow().statusBar()
    buttons = slicer.util.findChildren(bar, text="Cancel", className="QPushButton")
    check(len(buttons) == 1, f"{len(buttons)} Cancel buttons in the status bar")
    buttons[0].click()  # at once: the small cases take less than a second
    walk.wait(lambda: not batch.isRunning and at_rest(), "the batch's end")
    check(batch.cancelled and batch.tableNode is None, "not cancelled")
    check(in_scene() == before, f"left behind: {in_scene() - before}")


@step("empty")
def batch_without_a_window(walk: Walk) -> None:
    """The documented script, run by another Slicer without a main window, exits with 0."""
    text = (ROOT / "docs" / "slicer.md").read_text(encoding="utf-8")
    (script,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "util.exit" in b]
    path, output = walk.folder / "stage_cohort.py", walk.folder / "batch-script"
    path.write_text(script, encoding="utf-8")
    module = ROOT / MODULE
    command = [
        slicer.app.launcherExecutableFilePath,
        *("--no-splash", "--no-main-window", "--additional-module-paths", str(module)),
        *("--python-script", str(path), str(module / "Resources" / "SampleData"), str(output)),
    ]
    environment = slicer.util.startupEnvironment()
    with open(walk.folder / "batch-script.txt", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        walk.wait(lambda: process.poll() is not None, "the script")
    check(process.returncode == 0, f"exit code {process.returncode}; see batch-script.txt")
    check((output / "results.csv").is_file(), "no results.csv")
