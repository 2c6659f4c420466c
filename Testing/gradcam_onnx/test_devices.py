"""The devices that networks run on: onnxruntime's providers, refusals, equal results."""

import numpy as np
import onnxruntime
import pytest

from LiverFibrosisStagingLib import StagingError, StagingModel
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.gradcam_onnx.session import (
    AUTO_ORDER,
    CPU,
    DEVICE_CHOICES,
    DEVICES,
    installed_devices,
    open_session,
)
from LiverFibrosisStagingLib.imaging.segmentation import shipped_network

INSTALLED = installed_devices()
ABSENT = [name for name in DEVICES if name not in INSTALLED]


@pytest.fixture()
def seem_installed(monkeypatch):
    """All providers are listed, as by packages whose drivers are missing; they do not start."""
    everything = [device.provider for device in DEVICES.values()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)


@pytest.fixture()
def opened(monkeypatch):
    """Records the content, options and providers of the sessions that are opened."""
    seen, session = [], onnxruntime.InferenceSession

    def record(content, options, **how):
        seen.append((content, options, how))
        return session(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    return seen


def test_onnxruntime_knows_the_providers():
    assert {device.provider for device in DEVICES.values()} <= {*onnxruntime.get_all_providers()}


def test_the_processor_is_always_there_and_is_the_default(single, single_path):
    assert INSTALLED[0] == CPU == single.device
    assert StagingModel.load(single_path, device="auto").device in (*AUTO_ORDER, CPU)


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_not_installed_is_refused(name, single_path):
    with pytest.raises(StagingError, match=f"{name} is not installed, only cpu") as refusal:
        StagingModel.load(single_path, device=name)
    assert DEVICES[name].package in str(refusal.value)


def test_an_unknown_device_is_refused(single_path):
    with pytest.raises(StagingError, match=f"expected one of {', '.join(DEVICE_CHOICES)}"):
        StagingModel.load(single_path, device="gpu")


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_does_not_start_is_refused(name, single_path, seem_installed):
    with pytest.raises(StagingError, match=f"{name} does not start") as refusal:
        StagingModel.load(single_path, device=name)
    assert DEVICES[name].needs in str(refusal.value)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif({*AUTO_ORDER} & {*INSTALLED} != set(), reason="a GPU may be here")
def test_auto_goes_on_without_a_device_that_does_not_start(single_path, seem_installed, opened):
    assert StagingModel.load(single_path, device="auto").device == CPU
    first = [how["providers"][0] for *_, how in opened]
    assert first == [DEVICES[name].provider for name in (*AUTO_ORDER, CPU)]


@pytest.mark.parametrize("name", DEVICES)
def test_the_processor_computes_what_a_device_lacks(name, single, seem_installed, opened):
    try:
        open_session(single.file, single.path, 2, name)
    except StagingError:
        assert name != CPU  # the recorder opens all of them on the processor
    ((content, options, how),) = opened
    # Convolutions by parts are faster on the processor only.
    assert (content == single.file.content) == (name != CPU)
    providers = [DEVICES[name].provider, "CPUExecutionProvider"]
    assert how["providers"] == providers[: 1 if name == CPU else 2]
    assert len(how["provider_options"]) == len(how["providers"])
    assert options.intra_op_num_threads == 2
    assert not options.enable_mem_pattern
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


@pytest.mark.skipif("cuda" in INSTALLED, reason="CUDA is installed")
@pytest.mark.parametrize("command", ["stage", "segment", "batch", "check-explanation"])
def test_commands_refuse_it_before_any_work(command, sample, tmp_path, capsys):
    source, output = (sample["ct"], tmp_path / "out.mha")
    if command == "batch":
        source = tmp_path
        (tmp_path / "ct.nii.gz").symlink_to(sample["ct"])
    assert main([command, str(source), "-o", str(output), "--device", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("The device cuda is not installed, only cpu;")
    assert not output.exists()


@pytest.mark.parametrize("name", [n for n in DEVICES if n != CPU])
def test_every_device_gives_the_same_results(name, single, single_path):
    if name not in INSTALLED:
        pytest.skip(f"the installed onnxruntime has no {DEVICES[name].provider}")
    patch = np.random.default_rng(1).random((1, 1, *single.card.patch_size), np.float32)
    other = StagingModel.load(single_path, device=name)
    assert other.device == name
    here, there = single.run(patch), other.run(patch)
    assert np.abs(here.logits - there.logits).max() < 1e-3
    maps = [m.location_map(f, (4,)) for m, f in ((single, here), (other, there))]
    assert np.abs(maps[0] - maps[1]).max() < 1e-3 * maps[0].max()
    organs = [shipped_network(0, device).run(patch[0, 0, :32, :64, :64]) for device in (CPU, name)]
    assert np.abs(organs[0] - organs[1]).max() < 1e-3
