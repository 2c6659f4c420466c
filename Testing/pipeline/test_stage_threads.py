"""What `stage` does in a thread beside its steps: failures are passed on, nothing stays behind."""

import threading

import pytest

from LiverFibrosisStagingLib import Cancelled, StagingError, stage, staging


@pytest.fixture(scope="module")
def abdomen():
    from small_scene import make_abdomen

    return make_abdomen()


def threads():
    return {thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name}


def test_a_failure_in_the_thread_is_passed_on(abdomen, model, monkeypatch):
    def fail(*_):
        raise StagingError("No signs.")

    monkeypatch.setattr(staging, "measure_signs", fail)
    before = threads()
    with pytest.raises(StagingError, match=r"^No signs\.$"):
        stage(*abdomen, model)
    assert threads() == before


def test_after_cancelling_nothing_runs_and_nothing_more_is_begun(abdomen, model, monkeypatch):
    begun, go_on, ended = (threading.Event() for _ in range(3))
    hashed = []

    def measure(*_):
        begun.set()
        go_on.wait(30)
        ended.set()

    def cancelled(*_):
        assert begun.wait(30)
        threading.Timer(0.5, go_on.set).start()
        raise Cancelled

    monkeypatch.setattr(staging, "run_network", cancelled)
    monkeypatch.setattr(staging, "measure_signs", measure)
    monkeypatch.setattr(staging, "_voxels_sha256", lambda *_: hashed.append(1) or "")
    before = threads()
    with pytest.raises(Cancelled):
        stage(*abdomen, model)
    assert ended.is_set() and not hashed and threads() == before


def test_the_measuring_overlaps_the_steps_and_is_waited_for(abdomen, model, monkeypatch):
    seen, network = [], threading.Event()
    real = staging.measure_signs

    def measure(*args):
        assert network.wait(30)  # the network begins although the signs are not measured yet
        return real(*args)

    def progress(fraction, step):
        seen.append((fraction, step))
        if step == "Running the network":
            network.set()

    monkeypatch.setattr(staging, "measure_signs", measure)
    result = stage(*abdomen, model, progress=progress)
    monkeypatch.setattr(staging, "measure_signs", real)
    alone = stage(*abdomen, model)
    assert result.signs == alone.signs
    assert result.provenance["input"] == alone.provenance["input"]
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert seen[-2][1] == "Measuring signs" in result.provenance["seconds"]
