"""What `stage` does in a thread beside its steps: failures are passed on, nothing stays behind."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import Cancelled, StagingError, stage, staging
from LiverFibrosisStagingLib.imaging.grid import lps_grid
from LiverFibrosisStagingLib.imaging.resampling import nearest
from LiverFibrosisStagingLib.signs.measure import measure_signs


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


def test_after_cancelling_nothing_runs(abdomen, model, monkeypatch):
    begun, go_on, ended = (threading.Event() for _ in range(3))

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
    before = threads()
    with pytest.raises(Cancelled):
        stage(*abdomen, model)
    assert ended.is_set() and threads() == before


def test_the_models_are_opened_while_the_ct_is_read(abdomen, model_path, monkeypatch):
    opened = threading.Event()

    def network(*_):
        opened.set()
        raise StagingError("No network.")

    def read(*_):
        assert opened.wait(30)
        return abdomen[0]

    monkeypatch.setattr(staging, "shipped_network", network)
    monkeypatch.setattr(staging, "read_ct", read)
    before = threads()
    with pytest.raises(StagingError, match=r"^No network\.$"):
        stage("ct.nii.gz", model=model_path)
    assert threads() == before


def test_refusals_keep_their_order(abdomen, model_path, tmp_path, monkeypatch):
    """The model's first, then the CT's, then the segmentation network's."""

    def network(*_):
        raise StagingError("No network.")

    monkeypatch.setattr(staging, "shipped_network", network)
    absent = tmp_path / "absent.nii.gz"
    before = threads()
    with pytest.raises(StagingError, match=r"absent\.onnx"):
        stage(absent, model=tmp_path / "absent.onnx")
    with pytest.raises(StagingError, match=r"absent\.nii\.gz"):
        stage(absent, model=model_path)
    with pytest.raises(StagingError, match="slices over"):
        stage(abdomen[0][:, :, :5], model=model_path)
    assert threads() == before


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


@pytest.mark.parametrize("step", ["measuring", "sampling an oblique mask"])
def test_a_step_moves_no_voxels_that_other_threads_read(step):
    """While a filter reads an image, SimpleITK copies its voxels for a new view."""
    ct = sitk.Image([400, 400, 60], sitk.sitkInt16) + 100
    liver, spleen = (sitk.Image(ct.GetSize(), sitk.sitkUInt8) for _ in range(2))
    for mask in (liver, spleen):
        mask[10:390, 10:390, 5:55] = sitk.Image([380, 380, 50], sitk.sitkUInt8) + 1
    grid = lps_grid(np.array([200.0, 200.0, 30.0]), np.array([300, 300, 40]), np.ones(3))
    if step == "measuring":
        works = [partial(measure_signs, ct, liver, spleen, "")] * 5
    else:
        for image in (ct, liver, spleen):
            image.SetDirection(sitk.VersorTransform((0, 0, 1), 0.3).GetMatrix())
        works = [partial(nearest, mask, grid) for mask in (liver, spleen)] * 3

    def places() -> list[int]:
        views = map(sitk.GetArrayViewFromImage, (ct, liver, spleen))
        return [view.__array_interface__["data"][0] for view in views]

    before = places()
    with ThreadPoolExecutor(1) as beside:
        for work in works:
            working = beside.submit(work)
            while not working.done():
                assert places() == before
            working.result()
