"""Networks on painted cases: input as in the library, loss, training, export, Grad-CAM."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import train_insilico  # noqa: E402

from insilico.paint import Case  # noqa: E402
from LiverFibrosisStagingLib import StagingError, StagingModel, stage  # noqa: E402
from LiverFibrosisStagingLib.imaging.grid import patch_array, working_grid  # noqa: E402
from painted import cases, data, fit  # noqa: E402
from painted.check import map_shares  # noqa: E402
from painted.export import export  # noqa: E402
from painted.maps import NAMES, sign_maps  # noqa: E402
from painted.network import SIGNS, Input, SignNetwork  # noqa: E402

SMALL = Input((16, 32, 48))
QUICK = fit.Schedule(versions=2, reader_steps=60, stage_steps=60, patients=500, batch=200)


def painted(seed, body=0):
    """A liver whose texture and a spleen whose size rise with the stage."""
    rng = np.random.default_rng(seed)
    drawn = int(rng.integers(5))
    z, y, x = np.meshgrid(*(np.arange(n) for n in (14, 44, 60)), indexing="ij")
    liver = ((z - 7) / 6) ** 2 + ((y - 22) / 12) ** 2 + ((x - 22) / 12) ** 2 < 1
    wide = 3 + 0.8 * drawn
    spleen = ((z - 7) / 4) ** 2 + ((y - 24) / wide) ** 2 + ((x - 42) / wide) ** 2 < 1
    hu = np.where(((y - 22) / 20) ** 2 + ((x - 30) / 28) ** 2 < 1, 40.0, -1000.0)
    texture = 1 + 3 * drawn
    hu = hu + rng.normal(0, 4, hu.shape) + liver * (70 + texture * rng.normal(0, 1, hu.shape))
    truth = {"stage": drawn, "measured_spleen_ml": spleen.sum() * 0.016, "texture_hu": texture}
    truth |= {"measured_lsvr": 0.25 + 0.05 * drawn, "ascites_mm": 5.0 if drawn > 3 else 0.0}
    tensors = [torch.as_tensor(a) for a in (np.float32(hu), liver, spleen & ~liver)]
    return Case(*tensors, (4.0, 2.0, 2.0), truth), body


class Source(cases.Source):
    """Cases of the function above."""

    def __init__(self, bodies=2):
        self.taken, self.bodies, self.device = 0, bodies, torch.device("cpu")
        self._processes = []

    def take(self, count):
        for _ in range(count):
            self.taken += 1
            yield painted(self.taken, self.taken % self.bodies)


def pool(count, given=SMALL):
    made = data.Pool(count, given, tuple(SIGNS), "cpu")
    for case, _ in Source().take(count):
        made.add(case)
    return made


def random_network(given, seed):
    """A network with random weights and normalisations that are not trivial."""
    torch.manual_seed(seed)
    network = SignNetwork(given)
    network.signs[0].running_mean.copy_(torch.rand(len(NAMES)))
    network.signs[0].running_var.copy_(0.5 + torch.rand(len(NAMES)))
    network.separate()
    return network.eval()


def image(array):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((2.0, 2.0, 4.0))
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    networks = [random_network(SMALL, seed) for seed in range(2)]
    path = tmp_path_factory.mktemp("painted") / "LFS.onnx"
    export(networks, path, train_insilico.metadata("tiny", 2, SMALL))
    return networks, path


def test_training_input_is_the_librarys(exported):
    model, (case, _) = StagingModel.load(exported[1]), painted(3)
    masks = [image(mask.numpy().astype(np.uint8)) for mask in (case.liver, case.spleen)]
    grid = working_grid(image(case.hu.numpy()), *masks, **model.card.preprocessing)
    ours = patch_array(grid, 0, SMALL.patch_size[0])[0]
    stored = data.Pool(1, SMALL, tuple(SIGNS), "cpu")
    stored.add(case)
    theirs = stored.inputs(np.array([0]))[0].numpy()
    # The library's grid may lie half a voxel from ours.
    centres = [np.argwhere(x[1]).mean(axis=0) for x in (ours, theirs)]
    shift = np.round(centres[0] - centres[1]).astype(int)
    moved = np.roll(theirs, shift, axis=(1, 2, 3))
    assert np.abs(shift).max() <= 1
    inside = (moved[1:] * ours[1:]).max(axis=0) > 0
    assert np.abs(moved[0] - ours[0])[inside].mean() < 0.02  # 7 HU of the window
    assert (moved[1:] != ours[1:]).mean() < 0.03


@pytest.mark.parametrize("members", [1, 3])
def test_gradient_in_numpy_equals_autograd(members, tmp_path):
    networks = [random_network(SMALL, seed) for seed in range(members)]
    export(networks, tmp_path / "m.onnx", train_insilico.metadata("tiny", 2, SMALL))
    model = StagingModel.load(tmp_path / "m.onnx")
    x = pool(3).inputs(np.arange(3))
    forward = model.run(x.numpy())
    features = networks[0].features(x).detach().requires_grad_()
    logits = sum(network.outputs(features)[0] for network in networks) / members
    np.testing.assert_allclose(forward.logits, logits.detach(), atol=1e-4)
    (torch.softmax(logits, 1) @ torch.arange(5.0)).sum().backward()
    weights = features.grad.mean((2, 3, 4), keepdim=True)
    location = (weights * features.detach()).sum(1).relu().numpy()
    ours = model.location_map(forward, (0, 1, 2, 3, 4))
    assert np.abs(ours - location).max() < 1e-4 * location.max()


def test_staging_without_a_spleen_and_map_near_the_organs(exported):
    case, _ = painted(5)
    ct, liver = image(case.hu.numpy()), image(case.liver.numpy().astype(np.uint8))
    result = stage(ct, liver, model=exported[1], explain="expected")
    assert result.explained == "expected"
    weight = sitk.GetArrayFromImage(result.location_map)
    distance = sitk.SignedMaurerDistanceMap(liver, squaredDistance=False, useImageSpacing=True)
    outside = sitk.GetArrayFromImage(distance) > 33  # two voxels of the map, and half of one
    assert weight.max() > 0 and outside.any() and weight[outside].max() == 0


def organs(texture=0.0, noise=3.0, spleen_radius=10, fluid=False, seed=0):
    """HU and masks [1, channels, 24, 64, 96] of a liver and a spleen in fat."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in (24, 64, 96)), indexing="ij")
    liver = ((z - 12) / 9) ** 2 + ((y - 32) / 24) ** 2 + ((x - 32) / 24) ** 2 < 1
    radius = spleen_radius
    spleen = ((z - 12) / 8) ** 2 + ((y - 32) / radius) ** 2 + ((x - 78) / radius) ** 2 < 1
    hu = np.where(liver, 105.0, np.where(spleen, 120.0, 8.0 if fluid else -100.0))
    coarse = ndimage.gaussian_filter(rng.normal(0, 1, hu.shape), (0, 1.5, 1.5))
    hu = hu + rng.normal(0, noise, hu.shape) + liver * texture * coarse / coarse.std()
    masks = np.stack([liver, spleen])[None]
    return torch.as_tensor(hu[None, None], dtype=torch.float32), torch.as_tensor(masks).float()


def means(**options):
    """Means of the maps by name."""
    found = sign_maps(*organs(**options)).mean(dim=(0, 2, 3, 4))
    return dict(zip(NAMES, found.tolist()))


def beyond_noise(**options):
    found = means(**options)
    return found["coarse parenchyma"] - found["fine parenchyma"]


def test_maps_measure_texture_beyond_the_noise_of_the_spleen():
    plain, coarse = beyond_noise(), beyond_noise(texture=4.0)
    assert coarse > plain + 1
    for noise in (1.0, 6.0):  # in liver and spleen alike
        assert beyond_noise(noise=noise) == pytest.approx(plain, abs=0.5)
    hu, masks = organs(texture=4.0)
    hu = hu + masks[:, 1:] * torch.randn(hu.shape, generator=torch.Generator().manual_seed(1)) * 4
    maps = sign_maps(hu, masks).mean(dim=(0, 2, 3, 4))  # with more noise in the spleen alone
    assert float(maps[0] - maps[1]) == pytest.approx(coarse, abs=0.5)
    hu, masks = organs(texture=4.0)
    hu[0, 0, 10:14, 24:30, 24:30] = 160.0  # a vessel
    maps = sign_maps(hu, masks).mean(dim=(0, 2, 3, 4))
    assert float(maps[0] - maps[1]) == pytest.approx(coarse, rel=0.15)
    masks[:, 1] = 0  # without a spleen, texture is taken for typical
    maps = sign_maps(hu, masks).mean(dim=(0, 2, 3, 4))
    assert abs(float(maps[0] - maps[1])) < 0.5


def test_maps_measure_volumes_and_fluid():
    found, masks = means(), organs()[1]
    voxel_ml = 0.016
    assert found["spleen"] * 490 * 0.512 == pytest.approx(float(masks[:, 1].sum()) * voxel_ml)
    assert found["liver"] * 2900 * 0.512 == pytest.approx(float(masks[:, 0].sum()) * voxel_ml)
    parts = [found[name] for name in NAMES if name.startswith("liver, part")]
    assert sum(parts) == pytest.approx(1, abs=0.01)
    assert parts == pytest.approx(parts[::-1], abs=0.03)  # this liver is symmetrical
    assert found["fluid"] < 0.05 and found["fat"] > 0.9
    # Fluid is told from fat by the patient's own fat, and by -100 HU where there is none.
    assert means(fluid=True)["fluid"] > 0.9


def test_maps_are_in_the_organs_and_at_most_8_mm_from_them():
    hu, masks = organs(texture=3.0)
    found = sign_maps(hu, masks).sum(dim=1)[0]
    near = data.widened(masks.amax(dim=1, keepdim=True), (2, 4, 4))
    blocks = torch.nn.functional.max_pool3d(near, (2, 4, 4))[0, 0]
    assert found[blocks == 0].abs().max() == 0 < found[blocks == 1].sum()


def test_ordered_loss_is_least_at_the_truth_and_punishes_distance():
    truth = torch.tensor([2])
    losses = [float(fit.ordered_loss(8.0 * torch.eye(5)[k][None], truth)) for k in range(5)]
    assert losses[2] < 0.01 and losses[1] < losses[0] and losses[3] < losses[4]
    assert losses[1] == pytest.approx(losses[3])


def test_disturbed_masks_err_like_a_segmentation():
    masks = pool(12).inputs(np.arange(12))[:, 1:]
    found = data.disturbed(masks, torch.Generator().manual_seed(2))
    overlap = 2 * (found * masks).sum((2, 3, 4)) / (found + masks).sum((2, 3, 4))
    assert (found * (1 - found)).abs().max() == 0 and not (found[:, 0] * found[:, 1]).any()
    assert 0.7 < overlap[:, 0].median() < 1 and (overlap[:, 0] == 1).any()
    again = data.disturbed(masks, torch.Generator().manual_seed(2))
    assert torch.equal(found, again)


def test_a_run_resumes_and_is_measured_on_unseen_bodies(tmp_path, monkeypatch):
    for body in range(2):
        np.savez(tmp_path / f"b{body}.npz", body=body)
    made = []

    def source(folder, device, workers, taken):
        made.append(Source())
        made[-1].taken = taken
        return made[-1]

    monkeypatch.setattr(train_insilico, "Source", source)
    options = {"cases": 40, "schedule": QUICK, "given": SMALL}
    found = train_insilico.train(tmp_path, tmp_path / "run", **options)
    assert made[0].taken == 40 and found["cases"] == 40
    assert found["signs_r"]["measured_spleen_ml"] > 0.5
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["held"] == [[0], [1]] and len(state["networks"]) == 2
    # No sign is read from another sign's maps.
    network = SignNetwork(SMALL)
    network.load_state_dict(state["networks"][0])
    network.eval()
    x = torch.rand(1, len(NAMES), requires_grad=True)
    network.signs(x)[0, list(SIGNS).index("texture_hu")].backward()
    used = [name for name, slope in zip(NAMES, x.grad[0].tolist()) if slope]
    assert set(used) == set(SIGNS["texture_hu"])
    # A finished run paints nothing.
    again = train_insilico.train(tmp_path, tmp_path / "run", **options)
    assert made[1].taken == 40 and again == found
    model = StagingModel.load(tmp_path / "run" / "LFS.onnx")
    assert model.card.name == "LFS"
    with pytest.raises(StagingError, match="contains another run"):
        train_insilico.train(tmp_path, tmp_path / "run", **{**options, "folds": 1})


def test_drawn_readings_follow_the_readers_errors():
    rng = np.random.default_rng(0)
    truth = torch.as_tensor(rng.normal(size=(500, 4)), dtype=torch.float32)
    noise = torch.as_tensor(rng.normal(size=(500, 4)), dtype=torch.float32)
    read = 0.5 * truth + 0.1 * noise + 0.2
    spread = torch.zeros(4), torch.ones(4)
    drawn, stages = fit.drawn_readings(read, truth, spread, fit.Schedule(patients=4000), 0)
    rows = []
    again = np.random.default_rng([0, 0])
    again.integers(5, size=4000)
    for one in stages.tolist():
        signs = fit.draw(one, again)
        rows.append([signs.spleen_ml, signs.lsvr, signs.texture_hu, signs.ascites_mm])
    values = np.array(rows)
    values[:, :2] = np.log(values[:, :2])
    errors = drawn.numpy() - (0.2 + 0.5 * values)
    assert errors.std(axis=0) == pytest.approx(0.1, rel=0.1)
    assert abs(errors.mean(axis=0)).max() < 0.03


def test_map_shares_are_those_of_the_location_map(exported):
    networks, _ = exported
    x = pool(4).inputs(np.arange(4))
    shares = map_shares(networks[0], x, x[:, 1:])
    assert len(shares) == 4 and all(0 < share["expected organs"] <= 1 for share in shares)


def test_a_metadata_entry_says_what_the_input_needs(exported):
    card = StagingModel.load(exported[1]).card
    assert (card.contract, card.channels, card.field) == (2, ("ct", "liver", "spleen"), "organs")
    assert card.fill == {"beyond_mm": 16.0, "hu": -100.0} and card.liver_hu == 105
    assert "no patient" in card.trained_on and json.dumps(card.training)
