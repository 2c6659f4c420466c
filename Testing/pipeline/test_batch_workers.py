"""Several cases of a batch at a time, in processes that may end at any moment."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from small_cohorts import summaries, table
from stand_ins import BATCH_FILES, StandInModel, StandInTask, cases

from LiverFibrosisStagingLib import Cancelled, StagingError, stage_folder
from LiverFibrosisStagingLib.batch.run import Batch
from LiverFibrosisStagingLib.batch.workers import DIED, in_processes, in_this_process, largest_first

PATHS = os.pathsep.join(str(ROOT / name) for name in ("LiverFibrosisStaging", "Testing"))


def run(listed, output, runner, *, cancel=None, told=None, steps=None, **task):
    batch = Batch(listed, output, StandInModel(), {})
    work = StandInTask(output, output.with_name("record"), **task)
    steps = [] if steps is None else steps
    return batch.run(
        work,
        runner,
        lambda *step: steps.append(step),
        cancel,
        ([] if told is None else told).append,
    )


def began(output):
    return [line.split()[0] for line in output.with_name("record").read_text().splitlines()]


def wait_for_cases(names, output, check=lambda: True):
    while not (output.with_name("record").is_file() and names <= {*began(output)}):
        assert check()
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_process_that_ends_costs_one_case(tmp_path):
    texts = {"a": "x", "once": "dies once", "c": "fails", "dies": "dies", "e": f"{'waits':99}"}
    listed = cases(tmp_path / "in", **texts)
    out, told, steps = tmp_path / "out", [], []

    def go_on_when_both_have_begun():
        wait_for_cases({"e", "once"}, out)
        listed[-1].ct.write_text("x")

    threading.Thread(target=go_on_when_both_have_begun, daemon=True).start()
    rows = run(listed, out, in_processes(2), told=told, steps=steps)
    assert [row["case"] for row in rows] == [case.name for case in listed]
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed", "done"]
    assert rows[3]["reason"] == DIED and sorted(told) == ["c: failed", f"dies: {DIED}"]
    assert [row["case"] for row in table(out)] == [case.name for case in listed]
    begun = began(out)
    assert set(begun[:2]) == {"e", "once"}  # the largest CTs
    # At most one case besides is begun again for each process that ended.
    assert begun.count("dies") == begun.count("once") == 2 and len(begun) <= 9
    assert max(map(begun.count, begun)) == 2
    assert steps[-1][0] == 0.8  # without the case whose process ended twice
    assert {p.name for p in out.iterdir()} == {"a", "once", "e", *BATCH_FILES}
    threads = {line.split()[1] for line in (tmp_path / "record").read_text().splitlines()}
    assert all(1 <= int(number) <= os.cpu_count() for number in threads)


def test_largest_first(tmp_path):
    (small,) = cases(tmp_path / "in", small="12")
    (gone,) = cases(tmp_path / "in", gone="1")
    gone.ct.unlink()
    (slices,) = cases(tmp_path / "in", slices="1")
    slices.ct.unlink()
    (slices.ct / "series").mkdir(parents=True)
    for number in range(3):
        (slices.ct / "series" / str(number)).write_text("123")
    header = tmp_path / "in" / "a.mhd"
    header.write_text("ElementDataFile = a.raw\n")
    (tmp_path / "in" / "a.raw").write_bytes(bytes(99))
    headed = type(small)("headed", header)
    assert largest_first([small, gone, slices, headed]) == [3, 2, 0, 1]


def test_cancelling_ends_all_processes_and_leaves_nothing_half_made(tmp_path):
    listed = cases(tmp_path / "in", a="x" * 99, b="waits", c="waits", d="")
    out, cancel = tmp_path / "out", threading.Event()

    def cancel_when_both_wait():
        wait_for_cases({"b", "c"}, out)
        cancel.set()

    threading.Thread(target=cancel_when_both_wait, daemon=True).start()
    with pytest.raises(Cancelled):
        run(listed, out, in_processes(2), cancel=cancel)
    assert {p.name for p in out.iterdir()} == {"a", "results.csv", "left_out.csv", "batch.log"}
    assert [row["case"] for row in table(out)] == ["a"]
    assert "Batch ended early after 1 cases: Cancelled" in (out / "batch.log").read_text()


def test_error_outside_the_processes_ends_them(tmp_path):
    listed = cases(tmp_path / "in", a="x" * 99, b="waits", c="waits")
    out = tmp_path / "out"

    def finished(*_):
        raise ZeroDivisionError

    work = StandInTask(out, tmp_path / "record")
    with pytest.raises(ZeroDivisionError):
        Batch(listed, out, StandInModel(), {}).run(
            work, in_processes(2), lambda *_: None, None, print, finished
        )
    assert {p.name for p in out.iterdir()} == {"a", "results.csv", "left_out.csv", "batch.log"}


KILLED = """
import sys
from pathlib import Path
from stand_ins import StandInModel, StandInTask, cases
from LiverFibrosisStagingLib.batch.run import Batch
from LiverFibrosisStagingLib.batch.workers import in_processes
out = Path(sys.argv[1])
listed = cases(out.with_name("in"), a="x" * 99, b="waits", c="waits")
task = StandInTask(out, out.with_name("record"))
Batch(listed, out, StandInModel(), {}).run(task, in_processes(2), print, None, print)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_killed_batch_takes_its_processes_with_it_and_is_resumed(tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": PATHS, "LFS_TEST": str(tmp_path)}
    killed = subprocess.Popen([sys.executable, "-c", KILLED, out], env=environment)

    def alive():
        mark = f"LFS_TEST={tmp_path}".encode()
        found = []
        for process in filter(str.isdecimal, os.listdir("/proc")):
            try:
                with open(f"/proc/{process}/environ", "rb") as file:
                    found += [process] if mark in file.read() else []
            except OSError:
                continue
        return found

    wait_for_cases({"b", "c"}, out, check=lambda: killed.poll() is None)
    assert len(alive()) >= 3
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    while alive():
        time.sleep(0.02)
    assert list(out.glob(".partial-running-*"))  # nobody could remove it
    listed = cases(tmp_path / "in", a="x" * 99, b="x", c="x")
    rows = run(listed, out, in_this_process)
    assert [row["status"] for row in rows] == ["done"] * 3
    assert began(out).count("a") == 1
    assert {p.name for p in out.iterdir()} == {"a", "b", "c", *BATCH_FILES}


SCRIPT = """
import sys
from LiverFibrosisStagingLib import stage_folder
stage_folder(sys.argv[1], sys.argv[2], sys.argv[3], workers=2)
"""


@pytest.mark.parametrize("way", ["script", "console"])
def test_workers_give_the_same_table(way, small_cohort, single, tmp_path):
    """From a script without the test for __main__, and where there is no file to import."""
    root, expected = small_cohort
    (tmp_path / "script.py").write_text(SCRIPT)
    start = [tmp_path / "script.py"] if way == "script" else ["-c", SCRIPT]
    subprocess.run(
        [sys.executable, *start, root, tmp_path / "out", single.path],
        env={**os.environ, "PYTHONPATH": PATHS},
        check=True,
        timeout=120,
    )
    assert (table(tmp_path / "out"), summaries(tmp_path / "out")) == expected


def test_log_has_a_line_per_case(small_cohort, single):
    text = (small_cohort[0].parent / "whole" / "batch.log").read_text()
    assert len(re.findall(r"^\S+ [12]/2 p\d (done|failed) \d", text, re.M)) == 2
    assert f"model sha256: {single.sha256}" in text and "Research use only" in text
    assert str(small_cohort[0].parent) not in text


@pytest.mark.parametrize(("workers", "scheduler"), [(0, None), (-1, None), (2, "tcp://a:1")])
def test_numbers_of_workers_are_checked(workers, scheduler, tmp_path):
    with pytest.raises(StagingError, match="workers"):
        stage_folder(tmp_path, tmp_path / "out", workers=workers, scheduler=scheduler)
