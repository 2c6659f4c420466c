"""A batch on the workers of a Dask cluster: the same table, also if a worker is killed."""

import builtins
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from small_cohorts import summaries, table
from stand_ins import StandInModel, StandInTask, cases

from LiverFibrosisStagingLib import Cancelled, StagingError, stage_folder
from LiverFibrosisStagingLib.batch import cluster
from LiverFibrosisStagingLib.batch.cluster import on_cluster
from LiverFibrosisStagingLib.batch.run import Batch
from LiverFibrosisStagingLib.batch.workers import DIED, in_this_process

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def two_workers():
    """A scheduler with two processes of one thread each, started anew when they end."""
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as found,
    ):
        yield found


def run(listed, output, runner, cancel=None, told=None, seconds=0.0):
    work = StandInTask(output, output.with_name("record"), seconds=seconds)
    notify = ([] if told is None else told).append
    return Batch(listed, output, StandInModel(), {}).run(
        work, runner, lambda *_: None, cancel, notify
    )


def test_same_table_as_in_one_process(two_workers, small_cohort, single, tmp_path):
    root, expected = small_cohort
    out, told, address = tmp_path / "out", [], two_workers.scheduler_address
    stage_folder(root, out, model=single, scheduler=address, notify=told.append)
    assert (table(out), summaries(out)) == expected
    assert len(told) == 1 and told[0].startswith("p2: ")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_workers(two_workers, tmp_path):
    """One while it stages an ordinary case, others by a case that ends every process."""
    texts = {f"case{number}": "x" for number in range(8)}
    listed = cases(tmp_path / "in", **texts, waits="waits", dies="dies")
    record = tmp_path / "record"

    def kill_one():
        while not (record.is_file() and re.search(r"waits .*\n", record.read_text())):
            time.sleep(0.01)
        (process,) = re.findall(r"waits \d+ (\d+)", record.read_text())
        os.kill(int(process), signal.SIGKILL)
        (tmp_path / "in" / "waits").write_text("x")

    killer = threading.Thread(target=kill_one)
    killer.start()
    rows = run(listed, tmp_path / "out", on_cluster(two_workers), seconds=0.1)
    killer.join()
    assert [row["case"] for row in rows] == [*texts, "waits", "dies"]
    assert [row["status"] for row in rows] == ["done"] * 9 + ["failed"]
    assert rows[-1]["reason"] == DIED
    assert [row["case"] for row in table(tmp_path / "out")] == [row["case"] for row in rows]
    assert not list((tmp_path / "out").rglob(".partial-*"))


def test_cancelling_stops_the_workers(two_workers, tmp_path):
    listed = cases(tmp_path / "in", a="waits", b="waits", c="x")
    out, cancel = tmp_path / "out", threading.Event()

    def cancel_when_both_wait():
        while not ((tmp_path / "record").is_file() and "b " in (tmp_path / "record").read_text()):
            time.sleep(0.01)
        cancel.set()

    threading.Thread(target=cancel_when_both_wait).start()
    with distributed.Client(two_workers, set_as_default=False) as client:
        with pytest.raises(Cancelled):
            run(listed, out, on_cluster(client), cancel)
        assert client.submit(int, 3).result(timeout=20) == 3  # the workers are free again
    assert not list(out.glob(".partial-*"))


def test_schedulers_and_folders_that_cannot_be_used(two_workers, tmp_path, monkeypatch):
    listed = cases(tmp_path / "in", a="x")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.3)
    for wrong in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(StagingError, match="no Dask scheduler answers"):
            run(listed, tmp_path / "out", on_cluster(wrong))
    monkeypatch.setattr(cluster, "_missing", _misses)
    with pytest.raises(StagingError, match=r"does not see .*the same paths"):
        run(listed, tmp_path / "out", on_cluster(two_workers))
    assert not list((tmp_path / "out").glob(".partial-*"))
    run(listed, tmp_path / "out", in_this_process)


def _misses(files):
    return [file for file in files if Path(file).name.startswith(".partial")]


def test_package_is_asked_for(monkeypatch, tmp_path):
    real = builtins.__import__

    def without_distributed(name, *arguments):
        if name == "distributed":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_distributed)
    with pytest.raises(StagingError, match="needs the Python package distributed"):
        on_cluster("tcp://127.0.0.1:8786")


@pytest.mark.filterwarnings("ignore:Port")
def test_job_script_of_the_documentation():
    """The cluster of docs/command-line.md, as dask-jobqueue would submit it."""
    pytest.importorskip("dask_jobqueue")
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    start = text.index("from dask_jobqueue import SLURMCluster")
    lines = text[start : text.index("cluster.scale", start)]
    found = {}
    exec(lines, found)  # the lines that users copy
    with found["cluster"] as slurm:
        script = slurm.job_script()
    for words in ("#SBATCH -n 1", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=15G", "--nthreads 1"):
        assert words in script, script
    assert "export OMP_NUM_THREADS=4" in script and sys.executable in script
