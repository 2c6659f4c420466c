"""Exported networks read back: the same logits and features, in PyTorch and ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from conftest import ROOT  # noqa: E402

from lfs import export as lfs_export  # noqa: E402
from lfs import fit as lfs_fit  # noqa: E402
from lfs import imported as lfs_imported  # noqa: E402
from lfs.export import export  # noqa: E402
from lfs.network import LFSNetwork  # noqa: E402
from LiverFibrosisStagingLib import StagingError  # noqa: E402
from painted import export as painted_export  # noqa: E402
from painted import imported as painted_imported  # noqa: E402

MODELS = ROOT / "LiverFibrosisStaging" / "Resources" / "Models"
ABOUT = {
    "contract": 1,
    "name": "tiny",
    "stages": ["F0", "F1", "F2", "F3", "F4"],
    "window_hu": [-125.0, 225.0],
    "spacing_mm": [16.0, 14.0, 14.0],
    "patch_size": [8, 24, 32],
    "patch_overlap": 0.5,
    "calibration": {"temperature": 1.5},
    "reference": {},
    "training": {},
    "intended_use": "Research use only.",
}


def ours(networks, x):
    with torch.no_grad():
        features = [network.features(torch.from_numpy(x)) for network in networks]
        logits = [network.tail(maps) for network, maps in zip(networks, features)]
    return torch.stack(logits).mean(0).numpy(), torch.cat(features, 1).numpy()


def assert_equal(networks, path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for one, other in zip(session.run(["logits", "features"], {"volume": x}), ours(networks, x)):
        assert np.abs(one - other).max() < 1e-4 * max(1, np.abs(one).max())


@pytest.mark.parametrize(
    ("name", "load", "members"),
    [("LFS", painted_imported.load, 8), ("LFS_single", lfs_imported.load, 1)],
)
def test_the_shipped_networks_are_read_back(name, load, members, monkeypatch):
    """`load` itself compares logits and features; here within the limit of 1e-4 for both."""
    monkeypatch.setattr(painted_export, "TOLERANCE", 1e-4)
    networks = load(MODELS / f"{name}.onnx")
    assert len(networks) == members


@pytest.fixture
def ensemble(tmp_path):
    torch.manual_seed(0)
    networks = [LFSNetwork((8, 24, 32), (2, 3, 4, 5), dense=4) for _ in range(3)]
    for network in networks:
        network.train()
        network(torch.rand(8, 1, 8, 24, 32))  # running statistics that are not trivial
    export(networks, tmp_path / "LFS.onnx", ABOUT)
    return tmp_path / "LFS.onnx"


def test_the_comparison_notices_a_weight_that_is_off(ensemble):
    networks = lfs_imported.load(ensemble)
    with torch.no_grad():
        networks[1].tail[-1].weight.mul_(1.05)
    with pytest.raises(ValueError, match="differ from PyTorch"):
        lfs_export.check_parity(networks, ensemble.read_bytes())


def test_an_ensemble_is_read_member_by_member_and_written_again(ensemble, tmp_path):
    networks = lfs_imported.load(ensemble)
    x = np.random.default_rng(0).random((2, 1, 8, 24, 32), np.float32)
    assert_equal(networks, ensemble, x)
    session = onnxruntime.InferenceSession(str(ensemble), providers=["CPUExecutionProvider"])
    (members,) = session.run(["member_logits"], {"volume": x})
    with torch.no_grad():
        for number, network in enumerate(networks):
            np.testing.assert_allclose(network(torch.from_numpy(x)), members[:, number], atol=1e-4)
    export(networks, tmp_path / "again.onnx", ABOUT)
    assert_equal(lfs_imported.load(tmp_path / "again.onnx"), ensemble, x)


def test_training_starts_from_the_networks_outputs_and_changes_its_normalisations(ensemble):
    network = lfs_imported.load(ensemble)[0]
    x = torch.rand(4, 1, 8, 24, 32)
    with torch.no_grad():
        before = network(x)
    network.train()
    for layer in network.tail:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    np.testing.assert_allclose(network(x).detach(), before, atol=1e-5)
    network(x)[:, 0].sum().backward()
    norms = [part for part in network.modules() if isinstance(part, lfs_imported.FixedNorm3d)]
    assert len(norms) == 4 and all(part.bias.grad.abs().sum() > 0 for part in norms)


def test_several_gpus_synchronise_all_normalisations_but_the_fixed_ones(ensemble):
    network = lfs_imported.load(ensemble)[0]
    x = torch.rand(4, 1, 8, 24, 32)
    with torch.no_grad():
        before = network.features(x)
        lfs_fit.synchronise(network)
        np.testing.assert_allclose(network.train().features(x), before, atol=1e-6)
    for each, count in ((network, 0), (LFSNetwork((8, 24, 32), (2, 3, 4, 5), dense=4), 5)):
        lfs_fit.synchronise(each)
        kinds = [type(part) for part in each.modules()]
        assert kinds.count(torch.nn.SyncBatchNorm) == count
        assert torch.nn.BatchNorm3d not in kinds and torch.nn.BatchNorm1d not in kinds


@pytest.mark.parametrize("load", [lfs_imported.load, painted_imported.load])
def test_other_networks_are_refused(load, ensemble, tmp_path):
    with pytest.raises(StagingError, match=r"LFSNetwork .* or a SignNetwork .* is needed"):
        load(MODELS / "VNet.onnx")
    changed = onnx.load(ensemble)
    kernel = next(w for w in changed.graph.initializer if w.name == "head4_conv_weight")
    kernel.name = "renamed"
    next(n for n in changed.graph.node if n.name == "head4_conv").input[1] = "renamed"
    onnx.save(changed, tmp_path / "renamed.onnx")
    with pytest.raises(StagingError, match="is needed"):
        load(tmp_path / "renamed.onnx")
    other = {
        lfs_imported.load: MODELS / "LFS.onnx",
        painted_imported.load: ensemble,
    }[load]
    with pytest.raises(StagingError, match="is needed"):
        load(other)
