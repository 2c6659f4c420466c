"""Training: the exported file keeps the contract and equals PyTorch; a run ends with such a one."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("tqdm")

import export  # noqa: E402
import onnxruntime  # noqa: E402
import phantom  # noqa: E402
import train  # noqa: E402
from network import PATCH_SIZE, SPACING_MM, LFSNetwork  # noqa: E402

from LiverFibrosisStagingLib import StagingModel  # noqa: E402
from LiverFibrosisStagingLib.stages import GROUPS, STAGES  # noqa: E402

SMALL = (8, 24, 32)
PLAIN_OPS = {"MaxPool", "Conv", "LeakyRelu", "AveragePool", "Flatten", "Gemm"}


def small_network(seed=0):
    """A network whose normalisation has seen data, so that folding it in is put to the test."""
    torch.manual_seed(seed)
    network = LFSNetwork(SMALL, channels=(3, 4, 5, 6), pooled=(2, 1, 2), dense=7)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.rand(2, 1, *SMALL) * 3)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d | torch.nn.BatchNorm1d):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    return network.eval()


def described(network, temperature=1.0):
    card = train.metadata("small", "no data", [0] * 5, network, SPACING_MM)
    return card | {"calibration": {"temperature": temperature}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    network, path = small_network(), tmp_path_factory.mktemp("export") / "small.onnx"
    export.export(network, path, described(network, temperature=1.7))
    return network, path


@pytest.fixture(params=["small", "shipped"])
def exported(request, small, model_path) -> Path:
    return small[1] if request.param == "small" else model_path


def metadata_of(path):
    properties = {item.key: item.value for item in onnx.load(path).metadata_props}
    return json.loads(properties["liver_fibrosis_staging"])


def test_every_output_equals_pytorch(small):
    network, path = small
    volume = torch.rand(3, 1, *SMALL)
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, {"volume": volume.numpy()})))
    with torch.no_grad():
        expected = [network.features(volume)]
        for layer in network.tail:
            expected.append(layer(expected[-1]))
        # A convolution's tensor is that after its normalisation; the other normalisation and the
        # dropout have none of their own.
        gone = (torch.nn.Conv3d, torch.nn.BatchNorm1d, torch.nn.Dropout)
        kept = [not isinstance(layer, gone) for layer in network.tail]
        expected = [expected[0], *(values for values, keep in zip(expected[1:], kept) if keep)]
    tail = ["features", *names[3:], "logits"]
    assert len(tail) == len(expected)
    for name, ours in zip(tail, expected):
        np.testing.assert_allclose(values[name], ours.numpy(), atol=1e-4, err_msg=name)
    calibrated = torch.softmax(expected[-1] / 1.7, dim=1).numpy()
    np.testing.assert_allclose(values["probabilities"], calibrated, atol=1e-5)


def test_any_onnxruntime_that_slicer_can_have_loads_it(exported):
    model = onnx.load(exported)
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version <= 18) for entry in model.opset_import] == [("", True)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert all(not weight.external_data for weight in model.graph.initializer)
    onnx.checker.check_model(model, full_check=True)


def test_the_tail_is_plain_listed_and_all_of_it_an_output(exported):
    model = onnx.load(exported)
    outputs = [output.name for output in model.graph.output]
    producer = {node.output[0]: node for node in model.graph.node}
    ops, tensor = [], "logits"
    while tensor != "features":
        assert tensor in outputs
        ops.append(producer[tensor].op_type)
        tensor = producer[tensor].input[0]
    assert "features" in outputs
    assert set(ops) <= PLAIN_OPS
    assert ops[::-1] == metadata_of(exported)["tail"]


def test_the_library_accepts_it(exported):
    card = StagingModel.load(exported).card
    assert card.stages == STAGES
    assert card.target_layer == "features"


def test_the_shipped_file_says_what_it_is(model_path):
    card = metadata_of(model_path)
    assert model_path.stat().st_size < 15e6
    assert (card["contract"], card["window_hu"]) == (1, [-125, 225])
    assert (card["spacing_mm"], card["patch_size"]) == (list(SPACING_MM), list(PATCH_SIZE))
    assert "Research use only" in card["intended_use"]
    training = card["training"]
    assert "phantom" in training["data"]
    assert len(training["cases_per_stage"]) == len(STAGES)
    for group in GROUPS:
        auc = training["auc"][group]
        assert 0.5 < auc["low"] <= auc["value"] <= auc["high"] <= 1
    assert training["auc"]["significant"]["value"] >= 0.9
    assert training["evaluated_on"] and training["date"] and training["code_version"]
    maps = StagingModel.load(model_path).run(np.zeros((1, 1, *PATCH_SIZE), np.float32))
    voxel = np.array(PATCH_SIZE) / maps.tensors["features"].shape[2:] * SPACING_MM
    assert voxel.max() <= 8  # mm: fine enough to tell the liver's surface from its core


def test_a_file_that_differs_from_the_network_is_not_written(tmp_path):
    network, path = small_network(), tmp_path / "wrong.onnx"
    network.tail[-1].register_forward_hook(lambda layer, inputs, output: output + 1)
    with pytest.raises(ValueError, match="logits differ from PyTorch"):
        export.export(network, path, described(network))
    assert not path.exists()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Ten coarse phantoms, two of each stage, with their manifest."""
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["patient,ct,liver,spleen,stage"]
    for index in range(10):
        case = phantom.phantom(index % 5, index, spacing=(8.0, 6.0, 6.0), size=(28, 54, 66))
        files = phantom.write(case, folder / f"case{index}")
        lines.append(",".join([f"p{index}", *files.values(), f"F{index % 5}"]))
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def run_small(manifest, run, steps):
    network = LFSNetwork(SMALL, channels=(2, 3, 4, 5), pooled=(1, 1, 1), dense=4)
    return train.train(
        manifest,
        run,
        parts=2,
        schedule=train.Schedule(steps=steps, batch=2, check_every=2, bfloat16=False),
        network=network,
        spacing=(16.0, 4.0, 4.0),
        data="Ten simulated phantoms, no patient.",
    )


def test_a_short_run_ends_with_a_valid_file(cohort, tmp_path):
    figures = run_small(cohort, tmp_path, steps=4)
    card = StagingModel.load(tmp_path / "LFS.onnx").card
    assert card.training["auc"] == figures
    assert card.training["cases_per_stage"] == [1] * 5
    assert json.loads((tmp_path / "metrics.json").read_text())["auc"] == figures
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "2", "4"]


def test_an_interrupted_run_goes_on_and_ends_the_same(cohort, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_small(cohort, whole, steps=4)
    drawn = train.draw_batch

    def interrupt(*arguments):
        if (broken / "checkpoint.pt").exists():
            raise KeyboardInterrupt
        return drawn(*arguments)

    monkeypatch.setattr(train, "draw_batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_small(cohort, broken, steps=4)
    monkeypatch.setattr(train, "draw_batch", drawn)
    run_small(cohort, broken, steps=4)
    weights = [
        {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
        for model in (onnx.load(run / "LFS.onnx") for run in (whole, broken))
    ]
    for name, values in weights[0].items():
        np.testing.assert_allclose(weights[1][name], values, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_patient_is_never_on_both_sides():
    cases = [train.Case(f"p{i // 2}", Path(), Path(), i // 2 % 5) for i in range(40)]
    kept, held = train.hold_out(cases, 4, seed=3)
    assert sorted(kept + held) == list(range(40))
    assert not {cases[i].patient for i in kept} & {cases[i].patient for i in held}
    assert sorted({cases[i].stage for i in held}) == [0, 1, 2, 3, 4]


def test_batches_are_balanced_whatever_the_cohort():
    volumes = [np.full((6, 8, 8), 50 * stage, np.uint8) for stage in (0, 0, 0, 0, 4)]
    stages = np.array([0, 0, 0, 0, 4])
    patches, truth = train.draw_batch(volumes, stages, 400, 4, np.random.default_rng(0))
    assert patches.shape == (400, 1, 4, 8, 8)
    assert 0.4 < (truth == 4).float().mean() < 0.6
    assert torch.allclose(patches[:, 0, 0, 0, 0] * 255, truth * 50.0)


def test_rotation_acts_in_mm():
    """A rod keeps its length on a grid of unequal spacing, up to the change of scale."""
    spacing = (4.0, 2.0, 2.0)
    z, y, x = np.ogrid[-15.5:16, -31.5:32, -31.5:32]
    rod = (abs(z * 4) < 5) & (abs(y * 2) < 5) & (abs(x * 2) < 50)
    patches = torch.from_numpy(rod.astype(np.float32))[None, None].repeat(8, 1, 1, 1, 1)
    moved = train.augment(patches, spacing, np.random.default_rng(1))[:, 0].numpy() > 0.5
    for volume in moved:
        points = np.argwhere(volume) * spacing
        length = 4 * np.sqrt(np.linalg.eigvalsh(np.cov(points.T))[-1] * 0.75)
        assert length == pytest.approx(100, rel=0.13)


def test_the_loss_knows_the_order():
    logits = 4 * torch.eye(5)
    losses = [float(train.ordinal_loss(logits[[said]], torch.tensor([4]))) for said in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[4] < losses[3] < losses[2]


def test_aucs_with_intervals():
    rng = np.random.default_rng(0)
    stages = np.repeat(np.arange(5), 40)
    probabilities = rng.dirichlet(np.ones(5), len(stages))
    chance = train.evaluate(probabilities, stages, repeats=200)
    perfect = train.evaluate(np.eye(5)[stages], stages, repeats=200)
    for group in GROUPS:
        assert chance[group]["low"] < 0.5 < chance[group]["high"]
        assert perfect[group] == {"value": 1, "low": 1, "high": 1}


def test_an_unknown_stage_in_the_manifest_is_named_by_line(tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("patient,ct,liver,spleen,stage\na,a.nii,a.nii,,F1\nb,b.nii,b.nii,,F7\n")
    with pytest.raises(ValueError, match="line 3: stage 'F7'"):
        train.read_manifest(manifest)
