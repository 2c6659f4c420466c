"""Batches that compete for a folder, fill the disk, or whose files change meanwhile."""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack

import pytest
from conftest import ROOT
from small_cohorts import coarse_sample, cohort, table
from stand_ins import StandInModel, StandInTask, cases

from LiverFibrosisStagingLib import StagingError, stage_folder
from LiverFibrosisStagingLib.batch import case_row
from LiverFibrosisStagingLib.batch.cohort import Case, usable_name
from LiverFibrosisStagingLib.batch.lists import read_list
from LiverFibrosisStagingLib.batch.log import LOG, batch_log
from LiverFibrosisStagingLib.batch.run import Batch
from LiverFibrosisStagingLib.batch.table_files import TABLE
from LiverFibrosisStagingLib.batch.workers import in_processes, in_this_process
from LiverFibrosisStagingLib.errors import DiskFull
from LiverFibrosisStagingLib.files import write_table
from LiverFibrosisStagingLib.result import FILES

HOLDING = """
import sys, time
from pathlib import Path
from LiverFibrosisStagingLib.batch.log import batch_log
with batch_log(Path(sys.argv[1]), print):
    print("locked", flush=True)
    time.sleep(600)
"""


def run_batch(listed, output, runner=in_this_process, told=None, size=10):
    batch = Batch(listed, output, StandInModel(), {})
    work = StandInTask(output, output.with_name("record"), size)
    notify = ([] if told is None else told).append
    return batch.run(work, runner, lambda *_: None, None, notify)


# ---------------------------------------------------------------------------- two batches


def test_second_batch_into_a_folder_is_refused(tmp_path):
    listed, out = cases(tmp_path / "in", a=""), tmp_path / "out"
    with (
        batch_log(out, print),
        pytest.raises(StagingError, match=f"{out}: another batch is writing"),
    ):
        run_batch(listed, out)
    assert {path.name for path in out.iterdir()} == {LOG}
    run_batch(listed, out)


def test_lock_ends_with_a_killed_process(tmp_path):
    listed, out = cases(tmp_path / "in", a=""), tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, out],
        env={**os.environ, "PYTHONPATH": str(ROOT / "LiverFibrosisStaging")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(StagingError, match="another batch"):
        run_batch(listed, out)
    holder.kill()
    holder.communicate()
    assert [row["status"] for row in run_batch(listed, out)] == ["done"]


def test_file_system_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    told = []
    run_batch(cases(tmp_path / "in", a=""), tmp_path / "out", told=told)
    assert len(told) == 1 and "cannot be locked" in told[0]


def test_log_continues_on_a_new_line_after_a_crash(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / LOG).write_text("2026-01-01 1/2 a do")
    run_batch(cases(tmp_path / "in", a=""), out)
    lines = (out / LOG).read_text().splitlines()
    assert lines[0] == "2026-01-01 1/2 a do" and lines[1].endswith("Batch of 1 cases")
    assert lines[-1].endswith("Batch ended: 1 of 1 cases staged")


# ---------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small file system")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", str(place)], check=True)
        yield place


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_ends_the_batch_which_resumes_when_there_is_room(workers, small_disk, tmp_path):
    out = small_disk / "out"
    texts = {f"case{number}": "x" for number in range(6)}
    listed = cases(tmp_path / "in", **texts)
    write_table(out / TABLE, ("case",), [{"case": "an earlier one"}])
    other = small_disk / "other"
    other.write_bytes(bytes(170_000))
    runner = in_this_process if workers == 1 else in_processes(workers)
    with pytest.raises(DiskFull, match="No space left"):
        run_batch(listed, out, runner, size=20_000)
    done = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert 0 < len(done) < 6
    earlier = [row["case"] for row in table(out)]
    # Of two processes, either may be the first without room.
    complete = earlier == sorted(earlier) and set(earlier) <= set(done)
    assert complete or earlier == ["an earlier one"]
    assert not list(out.rglob(".partial-*"))
    other.unlink()
    rows = run_batch(listed, out, runner, size=20_000)
    assert [(row["case"], row["status"]) for row in rows] == [(name, "done") for name in texts]
    assert [row["case"] for row in table(out)] == [*texts]


def test_full_disk_is_recognised_behind_errors_of_image_writers(small_disk, staged_sample):
    (small_disk / "other").write_bytes(bytes(200_000))
    with pytest.raises(DiskFull, match="No space left"):
        staged_sample.save(small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["other"]


# ---------------------------------------------------------------------------- whose result


def test_ct_replaced_while_it_is_staged_gets_no_result(sample, single, tmp_path, monkeypatch):
    images = coarse_sample(sample)
    root = cohort(tmp_path / "in", images)
    real = case_row.stage

    def stage_and_replace(ct, *arguments, **options):
        result = real(ct, *arguments, **options)
        cohort(root, images, brighter=1)
        return result

    monkeypatch.setattr(case_row, "stage", stage_and_replace)
    (row,) = stage_folder(root, tmp_path / "out", model=single)
    assert row["status"] == "failed" and "were changed while" in row["reason"]
    assert not (tmp_path / "out" / "p1").exists()


@pytest.mark.parametrize(
    "name",
    ["results.csv", "Batch.log", "a/results.csv", ".partial-running-1", "a/staging.json", FILES[0]],
)
def test_no_case_has_the_name_of_a_file_in_the_results(name):
    found = usable_name(name)
    assert found != name and found.rpartition("/")[2].startswith("_")
    assert usable_name(found) == found


def test_cases_within_and_beside_each_other_keep_their_results(tmp_path):
    names = ["a", "a/b", "results.csv", "a/staging.json", ".partial-a", "A/B/c"]
    listed = tmp_path / "list.csv"
    listed.write_text("case,ct\n" + "".join(f"{name},{i}.nii\n" for i, name in enumerate(names)))
    found = read_list(listed)
    assert len({case.name.casefold() for case in found}) == len(names)
    for case in found:
        assert isinstance(case, Case)
        case.ct.write_text("x")
    out = tmp_path / "out"
    for _ in range(2):
        rows = run_batch(found, out)
        assert [row["status"] for row in rows] == ["done"] * len(names)
    assert (tmp_path / "record").read_text().count("\n") == len(names)
    assert len(table(out)) == len(names)
