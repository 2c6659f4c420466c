"""The background worker: each job ends once, with a value, an error or cancelled."""

import threading
import time

import pytest

from LiverFibrosisStagingLib import Cancelled, StagingError, stage
from LiverFibrosisStagingLib.scene.jobs import explaining_job, report_job, saving_job
from LiverFibrosisStagingLib.scene.worker import Outcome, Worker


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(worker, job, progressed=None):
    """The outcome of a job, pumped as the panel does."""
    outcomes = []
    worker.start(job, outcomes.append, progressed)
    finish(worker)
    (outcome,) = outcomes
    return outcome


def finish(worker, seconds=20.0):
    end = time.monotonic() + seconds
    while worker.busy and time.monotonic() < end:
        worker.pump()
        time.sleep(0.005)
    assert not worker.busy


def until(event):
    def job(progress, cancel):
        event.wait(20)
        return "value"

    return job


def until_cancelled(progress, cancel):
    if cancel.wait(20):
        raise Cancelled("Staging was cancelled.")


def test_value_arrives_once_and_on_the_thread_that_pumps():
    threads = []

    def job(progress, cancel):
        threads.append(threading.current_thread())
        return 7

    worker = Worker()
    outcome = run(worker, job)
    assert outcome == Outcome(value=7) and not outcome.cancelled
    assert threads[0] is not threading.current_thread()
    worker.pump()  # nothing more comes


def test_an_error_is_delivered_as_it_is():
    def job(progress, cancel):
        raise StagingError("No liver.")

    outcome = run(Worker(), job)
    assert isinstance(outcome.error, StagingError) and not outcome.cancelled


def test_cancelling_ends_in_cancelled():
    worker, outcomes = Worker(), []
    worker.start(until_cancelled, outcomes.append)
    worker.cancel()
    assert worker.busy and not outcomes  # the end comes with pump, as always
    worker.pump()
    assert not worker.busy
    assert [outcome.cancelled for outcome in outcomes] == [True]


def test_cancelling_does_not_wait_for_a_job_that_ignores_it():
    worker, event, outcomes, at_work = Worker(), threading.Event(), [], []
    worker.start(until(event), outcomes.append)
    worker.cancel()
    worker.pump()
    assert outcomes[0].cancelled and outcomes[0].value is None
    assert not worker.busy and not worker.idle

    def next_job(progress, cancel):
        at_work.append(event.is_set())
        return "next"

    worker.start(next_job, outcomes.append)  # waits for the thread of the first
    time.sleep(0.05)
    assert not at_work
    event.set()
    finish(worker)
    assert at_work == [True]
    assert [outcome.value for outcome in outcomes] == [None, "next"]
    worker.stop()
    assert worker.idle


def test_stop_joins_the_thread_and_delivers_the_end():
    worker, outcomes = Worker(), []
    before = threading.active_count()
    worker.start(until_cancelled, outcomes.append)
    worker.stop()
    assert threading.active_count() == before
    assert [outcome.cancelled for outcome in outcomes] == [True]
    worker.stop()  # while idle it does nothing
    assert len(outcomes) == 1
    assert run(worker, lambda progress, cancel: 1).value == 1


def test_one_job_at_a_time():
    worker, event = Worker(), threading.Event()
    worker.start(until(event), lambda outcome: None)
    with pytest.raises(RuntimeError):
        worker.start(until(event), lambda outcome: None)
    event.set()
    finish(worker)


def test_the_end_may_start_the_next_job():
    worker, values = Worker(), []

    def ended(outcome):
        values.append(outcome.value)
        if len(values) < 3:
            worker.start(lambda progress, cancel: len(values), ended)

    worker.start(lambda progress, cancel: 0, ended)
    finish(worker)
    assert values == [0, 1, 2]


def test_progress_estimates_the_time_left():
    clock, told = Clock(), []

    def job(progress, cancel):
        progress(0.01, "Reading")
        worker_told.wait(20)
        clock.now = 3.0
        progress(0.25, "Running")
        over.wait(20)

    worker, worker_told, over = Worker(clock), threading.Event(), threading.Event()
    worker.start(job, lambda outcome: None, told.append)
    for event in (worker_told, over):
        count = len(told)
        while len(told) == count:
            worker.pump()
        event.set()
    finish(worker)
    assert [report.step for report in told] == ["Reading", "Running"]
    assert [report.seconds_left for report in told] == [None, pytest.approx(9.0)]


def test_the_seconds_of_each_step_come_with_the_end():
    clock = Clock()

    def job(progress, cancel):
        for seconds, step in ((2.0, "Reading"), (1.0, "Installing: a"), (1.5, "Installing: b")):
            progress(0.0, step)
            clock.now += seconds
        raise StagingError("No liver.")

    outcome = run(Worker(clock), job)
    assert outcome.seconds == {"Reading": 2.0, "Installing": 2.5}


def test_the_end_of_slicer_does_not_interrupt_a_job_that_writes():
    worker, outcomes, go_on = Worker(), [], threading.Event()
    worker.start(until(go_on), outcomes.append, writes=True)
    threading.Timer(0.1, go_on.set).start()
    worker.stop()
    finish(worker)
    assert outcomes == [Outcome(value="value")]


def test_a_job_that_writes_ends_as_its_files_are():
    """Cancelled in time, they are not written; cancelled too late, they are."""
    worker, outcomes, go_on = Worker(), [], threading.Event()
    for job, cancelled in ((until_cancelled, True), (until(go_on), False)):
        worker.start(job, outcomes.append, writes=True)
        worker.cancel()
        worker.pump()
        if not cancelled:
            assert worker.busy
            go_on.set()
        finish(worker)
        assert outcomes.pop().cancelled == cancelled


def test_jobs_explain_and_prepare_without_the_network(sample, model, tmp_path, monkeypatch):
    result = stage(*sample.values(), model)
    monkeypatch.setattr(type(model), "run", None)
    fractions = []
    other = "F0" if result.explained != "F0" else "F1"
    outcome = run(
        Worker(), explaining_job(result, other, smooth=True), lambda p: fractions.append(p.fraction)
    )
    explained, showable = outcome.value
    assert explained.explained == showable.summary["location_map"]["explained"] == other
    assert showable.ct_size == result.ct.GetSize()
    assert showable.labels.values.max() == 10
    assert showable.relative.values.any()
    assert all(0 <= fraction <= 1 for fraction in fractions)

    again = run(Worker(), explaining_job(result, None, smooth=True)).value
    assert again[0] is result and again[1].relative is not None
    folder = run(Worker(), saving_job(result, tmp_path / "result")).value
    assert (folder / "staging.json").is_file()


def test_a_cancelled_report_leaves_no_folder(staged_sample, tmp_path):
    cancel, job = threading.Event(), report_job(staged_sample, tmp_path)
    cancel.set()
    with pytest.raises(Cancelled):
        job(lambda *_: None, cancel)
    assert not list(tmp_path.iterdir())
    assert job(lambda *_: None, threading.Event()).parent.parent == tmp_path
