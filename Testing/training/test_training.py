"""Training and export of the LFS network: parity with PyTorch, folds, sampling, augmentation."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("monai")

import onnxruntime  # noqa: E402

from cases.folds import split  # noqa: E402
from cases.manifest import Case  # noqa: E402
from lfs import data, export, fit  # noqa: E402
from lfs.build import Build  # noqa: E402
from lfs.network import PATCH_SIZE, SPACING_MM, LFSNetwork  # noqa: E402
from LiverFibrosisStagingLib import StagingModel  # noqa: E402
from LiverFibrosisStagingLib.gradcam_onnx.gradcam import grad_cam  # noqa: E402
from LiverFibrosisStagingLib.stages import GROUPS, STAGES, StageRange  # noqa: E402
from runs.networks import metadata  # noqa: E402
from runs.reading import permute_stages  # noqa: E402

SMALL = (8, 24, 32)
PLAIN_OPS = {"MaxPool", "Conv", "LeakyRelu", "AveragePool", "Flatten", "Gemm"}


def small_network(seed=0):
    """A network with random normalisations, so that folding them in is tested."""
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
    card = metadata("small", "no data", [], Build(network.patch_size))
    return card | {"calibration": {"temperature": temperature}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    network, path = small_network(), tmp_path_factory.mktemp("export") / "small.onnx"
    export.export(network, path, described(network, temperature=1.7))
    return network, path


@pytest.fixture(params=["small", "shipped"])
def exported(request, small, phantoms_path) -> Path:
    return small[1] if request.param == "small" else phantoms_path


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
        # The normalisation after a convolution is folded into it; the other normalisation and the
        # dropout have no node.
        folded = (torch.nn.Conv3d, torch.nn.BatchNorm1d, torch.nn.Dropout)
        kept = [not isinstance(layer, folded) for layer in network.tail]
        expected = [expected[0], *(values for values, keep in zip(expected[1:], kept) if keep)]
    tail = ["features", *names[3:], "logits"]
    assert len(tail) == len(expected)
    for name, ours in zip(tail, expected):
        np.testing.assert_allclose(values[name], ours.numpy(), atol=1e-4, err_msg=name)
    calibrated = torch.softmax(expected[-1] / 1.7, dim=1).numpy()
    np.testing.assert_allclose(values["probabilities"], calibrated, atol=1e-5)


def test_the_file_suits_every_supported_onnxruntime(exported):
    model = onnx.load(exported)
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version <= 18) for entry in model.opset_import] == [("", True)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert all(not weight.external_data for weight in model.graph.initializer)
    onnx.checker.check_model(model, full_check=True)


def test_every_tensor_of_the_tail_is_an_output_and_its_operators_are_listed(exported):
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


def test_the_library_loads_it(exported):
    card = StagingModel.load(exported).card
    assert card.stages == STAGES
    assert card.target_layer == "features"


def test_the_shipped_file_describes_itself(phantoms_path):
    card = metadata_of(phantoms_path)
    assert phantoms_path.stat().st_size < 15e6
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
    maps = StagingModel.load(phantoms_path).run(np.zeros((1, 1, *PATCH_SIZE), np.float32))
    voxel = np.array(PATCH_SIZE) / maps.tensors["features"].shape[2:] * SPACING_MM
    assert voxel.max() <= 8  # mm: resolves the liver's surface and core


def test_a_file_that_differs_from_the_network_is_not_written(tmp_path):
    network, path = small_network(), tmp_path / "wrong.onnx"
    network.tail[-1].register_forward_hook(lambda layer, inputs, output: output + 1)
    with pytest.raises(ValueError, match="logits differ from PyTorch"):
        export.export(network, path, described(network))
    assert not path.exists()


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    members = [small_network(seed) for seed in range(3)]
    path = tmp_path_factory.mktemp("ensemble") / "three.onnx"
    export.export(members, path, described(members[0], temperature=1.7))
    return members, path


def test_an_ensemble_is_the_mean_of_its_members(ensemble):
    members, path = ensemble
    volume = torch.rand(2, 1, *SMALL)
    forward = StagingModel.load(path).run(volume.numpy())
    with torch.no_grad():
        alone = torch.stack([member(volume) for member in members], dim=1).numpy()
        maps = torch.cat([member.features(volume) for member in members], dim=1).numpy()
    np.testing.assert_allclose(forward.tensors["member_logits"], alone, atol=1e-4)
    np.testing.assert_allclose(forward.logits, alone.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(forward.tensors["features"], maps, atol=1e-4)


def test_the_map_of_an_ensemble_equals_that_of_autograd(ensemble):
    """The score is the mean logit; the features are those of all members."""
    members, path = ensemble
    volume = torch.rand(2, 1, *SMALL)
    model = StagingModel.load(path)
    ours = model.location_map(model.run(volume.numpy()), (4,))
    features = [member.features(volume).detach().requires_grad_() for member in members]
    score = sum(member.tail(maps)[:, 4].sum() for member, maps in zip(members, features)) / 3
    gradients = torch.autograd.grad(score, features)
    joined = (torch.cat(parts, dim=1).detach().numpy() for parts in (features, gradients))
    expected = grad_cam(*joined)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * expected.max())


def test_describe_changes_the_metadata_only(small, tmp_path):
    path = tmp_path / "copy.onnx"
    path.write_bytes(small[1].read_bytes())
    export.describe(path, {"name": "renamed"})
    assert StagingModel.load(path).card.name == "renamed"
    graphs = [onnx.load(file).graph.SerializeToString() for file in (small[1], path)]
    assert graphs[0] == graphs[1]


def cases_of(stages, scans=1):
    return [
        Case(
            line=i,
            name=f"c{i}",
            patient=f"p{i // scans}",
            ct=Path(f"{i}.nii"),
            stages=StageRange(int(stage), int(stage)),
        )
        for i, stage in enumerate(np.repeat(stages, scans))
    ]


def test_all_scans_of_a_patient_are_in_the_same_part():
    cases = cases_of(np.tile(np.arange(5), 12), scans=2)
    parts = split(cases, 5, seed=3)
    assert sorted(i for part in parts for i in part.test) == list(range(len(cases)))
    for part in parts:
        assert sorted(i for indices in part for i in indices) == list(range(len(cases)))
        patients = [{cases[i].patient for i in indices} for indices in part]
        assert not patients[0] & patients[1] and not patients[2] & (patients[0] | patients[1])
        assert {cases[i].stage for i in part.test} == {0, 1, 2, 3, 4}


def bright_cases(stages, seed):
    """Prepared cases without files, whose brightness depends on the stage."""
    rng = np.random.default_rng(seed)
    return [
        {
            "volume": torch.from_numpy(
                (165 + 8 * (stage - 2) + rng.normal(0, 3, (1, 12, *SMALL[1:]))).astype(np.uint8)
            ),
            "liver": torch.tensor([[6, 12, 16]], dtype=torch.int16),
            "spleen": torch.empty((0, 3), dtype=torch.int16),
        }
        for stage in stages
    ]


QUICK = fit.Schedule(
    steps=60, batch=8, crop_steps=30, crop=16, check_every=10, sparsity=0.0, learning_rate=1e-2
)


@pytest.mark.parametrize("shuffled", [False, True])
def test_auc_is_high_with_true_and_at_chance_level_with_shuffled_labels(shuffled, tmp_path):
    cases = cases_of(np.repeat(np.arange(5), 24))
    prepared = bright_cases([case.stage for case in cases], seed=1)
    if shuffled:
        cases = permute_stages(cases, seed=0)
    stages = np.array([case.stage for case in cases])
    parts = split(cases, 5, seed=0)[0]
    training, validation = (([prepared[i] for i in part], stages[part]) for part in parts[:2])
    torch.manual_seed(0)
    network = LFSNetwork(SMALL, channels=(3, 4, 5, 6), dense=8, dropout=0.0)
    fit.fit(network, training, validation, QUICK, tmp_path, workers=0)
    test = [prepared[i] for i in parts.test]
    logits = fit.case_logits(network, test, torch.device("cpu"))
    found = list(fit.aucs(fit.softmax(logits), stages[parts.test]).values())
    if shuffled:
        assert np.mean(found) == pytest.approx(0.5, abs=0.25)
    else:
        assert min(found) > 0.9


def test_permuted_stages_are_the_same_for_all_scans_of_a_patient():
    cases = cases_of(np.tile(np.arange(5), 8), scans=2)
    permuted = permute_stages(cases, seed=0)
    stages = {}
    for case in permuted:
        assert stages.setdefault(case.patient, case.stage) == case.stage
    assert [c.stage for c in permuted] != [c.stage for c in cases]
    assert sorted(c.stage for c in permuted) == sorted(c.stage for c in cases)


def test_training_stops_early(tmp_path):
    stages = np.repeat(np.arange(5), 4)
    prepared = bright_cases(stages, seed=2), stages
    schedule = replace(QUICK, steps=400, crop_steps=0, patience=2, learning_rate=1e-9)
    network = LFSNetwork(SMALL, channels=(2, 3, 4, 5), dense=4)
    fit.fit(network, prepared, prepared, schedule, tmp_path, workers=0)
    steps = [int(line.split(",")[0]) for line in (tmp_path / "log.csv").read_text().split()[1:]]
    assert 30 <= steps[-1] < 400
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["stopped"]


class Draw:
    """Draws from a cohort in which one case in five is F4."""

    stages = np.array([0] * 16 + [4] * 4)

    @classmethod
    def of(cls, steps=range(200), temper=0.5, **parts):
        return list(data.Draws(cls.stages, steps, 8, 100, 16, temper, 0, **parts))


@pytest.mark.parametrize("temper, share", [(1.0, 0.2), (0.5, 1 / 3), (0.0, 0.5)])
def test_temper_sets_the_share_of_rare_stages(temper, share):
    drawn = [Draw.stages[draw.case] for batch in Draw.of(temper=temper) for draw in batch]
    assert np.mean(np.array(drawn) == 4) == pytest.approx(share, abs=0.04)


def test_draws_depend_on_the_step_only_and_are_split_among_processes():
    whole = Draw.of()
    assert Draw.of(steps=range(150, 200)) == whole[150:]
    assert [len(batch) for batch in whole[99:101]] == [16, 8]  # crops, then whole sections
    assert [batch[0].crop for batch in whole[99:101]] == [16, 0]
    halves = [Draw.of(rank=rank, ranks=2) for rank in range(2)]
    for batch, first, second in zip(whole, *halves):
        assert sorted(batch) == sorted(first + second)


def test_the_same_draw_gives_the_same_patch():
    stages = np.array([0, 4])
    prepared = bright_cases(stages, seed=0)
    draw = data.Draw(1, 7, 16)
    patches = [data.Patches(prepared, stages, SMALL[0]) for _ in range(2)]
    patches[0][data.Draw(0, 1, 0)]  # earlier draws have no influence
    (first, stage), (second, _) = (one[draw] for one in patches)
    assert first.shape == (1, 8, 16, 16) and stage == 4
    assert torch.equal(first, second)
    assert not torch.equal(first, patches[0][data.Draw(1, 8, 16)][0])


def test_movement_is_in_mm():
    """A rod keeps its length on an anisotropic grid, up to the change of scale."""
    spacing = (4.0, 2.0, 2.0)
    z, y, x = np.ogrid[-15.5:16, -31.5:32, -31.5:32]
    rod = (abs(z * 4) < 5) & (abs(y * 2) < 5) & (abs(x * 2) < 50)
    move = data.RandMove(spacing)
    for seed in range(8):
        move.set_random_state(seed)
        volume = move(torch.from_numpy(rod.astype(np.float32))[None])[0].numpy() > 0.5
        points = np.argwhere(volume) * spacing
        length = 4 * np.sqrt(np.linalg.eigvalsh(np.cov(points.T))[-1] * 0.75)
        assert length == pytest.approx(100, rel=0.13)


def test_the_loss_depends_on_the_order_of_the_stages():
    logits = 4 * torch.eye(5)
    losses = [float(fit.ordinal_loss(logits[[stage]], torch.tensor([4]))) for stage in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[4] < losses[3] < losses[2]
