"""Networks on painted cases: input as in the library, loss, training, export, Grad-CAM."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import train_insilico  # noqa: E402

from insilico.paint import Case  # noqa: E402
from LiverFibrosisStagingLib import StagingModel, stage  # noqa: E402
from LiverFibrosisStagingLib.imaging.grid import patch_array, working_grid  # noqa: E402
from painted import cases, data, fit  # noqa: E402
from painted.check import map_shares  # noqa: E402
from painted.export import export  # noqa: E402
from painted.network import INPUTS, Input, OrganNetwork, near, region_weights  # noqa: E402

SMALL = Input((16, 32, 48))
SIGNS = ("spleen_ml", "texture", "rare")
NETWORK = {"channels": (4, 5, 6, 7), "dense": 8}


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
    truth = {"stage": drawn, "spleen_ml": spleen.sum() * 0.016, "texture": texture}
    truth["rare"] = 1.0 if drawn > 2 else float("nan")
    tensors = [torch.as_tensor(a) for a in (np.float32(hu), liver, spleen & ~liver)]
    return Case(*tensors, (4.0, 2.0, 2.0), truth), body


class Source(cases.Source):
    """Cases of the function above."""

    def __init__(self, bodies=2):
        self.taken, self.bodies = 0, bodies

    def take(self, count, wait=False):
        for _ in range(count if wait else 0):
            self.taken += 1
            yield painted(self.taken, self.taken % self.bodies)


def small_network():
    return OrganNetwork(SMALL, 3, **NETWORK)


def pool(count, given=SMALL):
    made = data.Pool(count, given, SIGNS, "cpu")
    for case, body in Source().take(count, wait=True):
        made.add(case, body)
    return made


def warm(given, seed):
    """A network with normalisations that are not trivial."""
    torch.manual_seed(seed)
    network = OrganNetwork(given, 3, **NETWORK).train()
    batch = pool(4, given).batch(np.arange(4), (torch.zeros(3), torch.ones(3)))
    with torch.no_grad():
        for _ in range(3):
            network(batch.x)
    return network.eval()


def image(array):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((2.0, 2.0, 4.0))
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    networks = [warm(SMALL, seed) for seed in range(2)]
    path = tmp_path_factory.mktemp("painted") / "LFS.onnx"
    export(networks, path, train_insilico.metadata("tiny", 2, SMALL))
    return networks, path


def test_training_input_is_the_librarys(exported):
    model, (case, _) = StagingModel.load(exported[1]), painted(3)
    masks = [image(mask.numpy().astype(np.uint8)) for mask in (case.liver, case.spleen)]
    grid = working_grid(image(case.hu.numpy()), *masks, **model.card.preprocessing)
    ours = patch_array(grid, 0, SMALL.patch_size[0])[0]
    stored = data.Pool(1, SMALL, SIGNS, "cpu")
    stored.add(case, 0)
    theirs = stored.batch(np.array([0]), (torch.zeros(3), torch.ones(3))).x[0].numpy()
    # The library's grid may lie half a voxel from ours.
    centres = [np.argwhere(x[1]).mean(axis=0) for x in (ours, theirs)]
    shift = np.round(centres[0] - centres[1]).astype(int)
    moved = np.roll(theirs, shift, axis=(1, 2, 3))
    assert np.abs(shift).max() <= 1
    inside = (moved[1:] * ours[1:]).max(axis=0) > 0
    assert np.abs(moved[0] - ours[0])[inside].mean() < 0.02  # 7 HU of the window
    assert (moved[1:] != ours[1:]).mean() < 0.03


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("members", [1, 3])
def test_gradient_in_numpy_equals_autograd(kind, members, tmp_path):
    given = Input(SMALL.patch_size, INPUTS[kind].channels, INPUTS[kind].field)
    networks = [warm(given, seed) for seed in range(members)]
    export(networks, tmp_path / "m.onnx", train_insilico.metadata("tiny", 2, given))
    model = StagingModel.load(tmp_path / "m.onnx")
    x = pool(3, given).batch(np.arange(3), (torch.zeros(3), torch.ones(3))).x
    forward = model.run(x.numpy())
    features = [network.features(x).detach().requires_grad_() for network in networks]
    logits = sum(n.outputs(f, x)[0] for n, f in zip(networks, features)) / members
    np.testing.assert_allclose(forward.logits, logits.detach(), atol=1e-4)
    expected = torch.softmax(logits, 1) @ torch.arange(5.0)
    expected.sum().backward()
    gradient = torch.cat([f.grad for f in features], 1)
    maps = torch.cat(features, 1).detach()
    location = (gradient.mean((2, 3, 4), keepdim=True) * maps).sum(1).relu().numpy()
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


def test_regions_weigh_organs_only():
    masks = torch.zeros(1, 2, 16, 32, 40)
    masks[0, 0, 4:12, 8:24, 8:24] = 1
    weights = region_weights(masks)[0].reshape(5, 8, 8, 10)
    assert weights[0].sum() == pytest.approx(64 / 65) and (weights[0] > 0).sum() == 64
    assert not weights[2].any() and not weights[4].any()  # no spleen
    assert weights[1].sum() == pytest.approx(1, abs=0.01) and weights[1, 4, 3, 3] == 0
    assert weights[3].sum() * 2900 == pytest.approx(64)
    assert near(masks).sum() == 6**3


def test_ordered_loss_is_least_at_the_truth_and_punishes_distance():
    truth = torch.tensor([2])
    losses = [float(fit.ordered_loss(8.0 * torch.eye(5)[k][None], truth)) for k in range(5)]
    assert losses[2] < 0.01 and losses[1] < losses[0] and losses[3] < losses[4]
    assert losses[1] == pytest.approx(losses[3])


def test_disturbed_masks_err_like_a_segmentation():
    masks = pool(12).batch(np.arange(12), (torch.zeros(3), torch.ones(3))).masks
    found = data.disturbed(masks, torch.Generator().manual_seed(2))
    overlap = 2 * (found * masks).sum((2, 3, 4)) / (found + masks).sum((2, 3, 4))
    assert (found * (1 - found)).abs().max() == 0 and not (found[:, 0] * found[:, 1]).any()
    assert 0.7 < overlap[:, 0].median() < 1 and (overlap[:, 0] == 1).any()
    assert overlap[:, 1].min() == 0  # without a spleen
    again = data.disturbed(masks, torch.Generator().manual_seed(2))
    assert torch.equal(found, again)


def test_the_loss_falls_on_cases_that_are_seen_again():
    torch.manual_seed(0)
    network, schedule = OrganNetwork(SMALL, 3, dropout=0.0, **NETWORK).train(), fit.Schedule()
    stored = pool(8)
    batch = stored.batch(np.arange(8), stored.spread())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = fit.total_loss(network, batch, schedule, half=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_run_resumes_and_is_measured_on_unseen_bodies(tmp_path):
    def run(steps):
        stored = data.Pool(16, SMALL, SIGNS, "cpu")
        schedule = fit.Schedule(steps, 4, painting=0.0, check_every=2, recalibration=2)
        training = fit.Training(tmp_path, stored, [[0], [1]], Source(), small_network, schedule, 16)
        training.fit()
        return training

    assert run(2).step == 2 and fit.cases_taken(tmp_path) == 16
    training = run(4)
    log = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)
    assert log["step"].tolist() == [2, 4] and np.isfinite(log["loss"]).all()
    probabilities, stages, _, _ = training.unseen()
    assert stages.tolist() == training.pool.stages[[*range(1, 16, 2), *range(0, 16, 2)]].tolist()
    # A finished run only restores its networks.
    np.testing.assert_allclose(run(4).unseen()[0], probabilities, atol=1e-6)
    batch = training.pool.batch(np.arange(4), training.spread)
    shares = map_shares(training.networks[0], batch.x, batch.masks)
    assert len(shares) == 4 and all(0 < share["expected organs"] <= 1 for share in shares)


def test_a_metadata_entry_says_what_the_input_needs(exported):
    card = StagingModel.load(exported[1]).card
    assert (card.contract, card.channels, card.field) == (2, ("ct", "liver", "spleen"), "organs")
    assert card.fill == {"beyond_mm": 16.0, "hu": -100.0} and card.liver_hu == 105
    assert "no patient" in card.trained_on and json.dumps(card.training)
