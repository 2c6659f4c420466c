"""Grad-CAM in numpy against PyTorch's autograd and MONAI's GradCAM, with the shipped weights."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import read_ct, read_mask, stage
from LiverFibrosisStagingLib.imaging.grid import patch_array, working_grid
from LiverFibrosisStagingLib.location_map import enlarge, merge_patches
from LiverFibrosisStagingLib.stages import EXPLAIN_CHOICES, explained_stages

torch = pytest.importorskip("torch", reason="the independent implementation")
pytest.importorskip("onnx", reason="reads the weights for PyTorch")
from torch_twin import TorchTwin, autograd_map  # noqa: E402


@pytest.fixture(scope="module")
def model_path(single_path):
    return single_path


@pytest.fixture(scope="module")
def model(single):
    return single


@pytest.fixture(scope="module")
def twin(model_path):
    return TorchTwin(model_path).eval()


@pytest.fixture(scope="module")
def grid(sample, model):
    ct, liver = read_ct(sample["ct"]), read_mask(sample["liver"])
    return working_grid(ct, liver, **model.card.preprocessing)


def score(members):
    """The explained score in PyTorch: a logit, a group's log-odds, or the expected stage."""
    outside = [i for i in range(5) if i not in members]

    def of(logits):
        if len(members) == 1:
            return logits[:, members[0]]
        if not outside:
            return torch.softmax(logits, 1) @ torch.arange(5.0)
        rest = torch.logsumexp(logits[:, outside], 1)
        return torch.logsumexp(logits[:, list(members)], 1) - rest

    return of


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("explain", [name for name in EXPLAIN_CHOICES if name != "predicted"])
def test_map_equals_autograd(explain, model, twin, grid):
    members = explained_stages(explain, 0)
    patch = patch_array(grid, grid.starts[0], model.card.patch_size[0])
    found = model.location_map(model.run(patch), members)
    expected = autograd_map(twin, patch, score(members), model.card.target_layer)
    assert expected.max() > 0
    assert relative_error(found, expected) < 1e-4


def test_gradient_itself_equals_autograd(model, twin, grid):
    """From the same feature maps: rounding in the forward pass may choose another maximum."""
    forward = model.run(patch_array(grid, 0, model.card.patch_size[0]))
    found = model._tail.gradient(forward.tensors, np.eye(5)[None, 4])
    layer = model.card.target_layer
    features = torch.tensor(forward.tensors[layer], requires_grad=True)
    twin.tensors(features, layer)["logits"][0, 4].backward()
    assert relative_error(found, features.grad.numpy()) < 1e-4


def test_forward_pass_equals_pytorch(model, twin, grid):
    patch = patch_array(grid, 0, model.card.patch_size[0])
    with torch.no_grad():
        expected = twin(torch.tensor(patch)).numpy()
    np.testing.assert_allclose(model.run(patch).logits, expected, atol=1e-4)


def test_merged_map_equals_monai(sample, model, twin, grid):
    monai = pytest.importorskip("monai.visualize", reason="the other Grad-CAM")
    layer = f"nodes.{model.card.target_layer}"
    cam = monai.GradCAM(nn_module=twin, target_layers=layer)
    result = stage(sample["ct"], sample["liver"], explain="F4", model=model)
    patches = [patch_array(grid, start, model.card.patch_size[0]) for start in grid.starts]
    # compute_map is the raw map: MONAI's usual post-processing inverts and rescales it.
    maps = [cam.compute_map(torch.tensor(p), class_idx=4).detach().numpy()[0, 0] for p in patches]
    expected = merge_patches(maps, grid, model.card.patch_size)
    found = sitk.Resample(result.location_map, grid.volume, sitk.Transform(), sitk.sitkLinear)
    assert result.body_mean == pytest.approx(expected.body_mean, rel=1e-4)
    ours = merge_patches(
        [model.location_map(model.run(p), (4,))[0] for p in patches], grid, model.card.patch_size
    )
    relative = sitk.GetArrayFromImage(expected.relative)
    assert relative_error(sitk.GetArrayFromImage(ours.relative), relative) < 1e-4
    # What stage() returns is that map on the CT's grid.
    inside = sitk.GetArrayFromImage(sitk.BinaryErode(grid.body, [3, 3, 1])) > 0
    there = sitk.GetArrayFromImage(found)[inside]
    assert np.corrcoef(there, relative[inside])[0, 1] > 0.99


def test_enlarged_map_keeps_its_place():
    """A map voxel has the same centre as its block of patch voxels."""
    raw = np.zeros((4, 5, 6), np.float32)
    raw[1, 2, 3] = 1
    big = enlarge(raw, (8, 20, 24))
    centre = [
        np.average(np.arange(n), weights=big.sum(axis=axes))
        for n, axes in ((8, (1, 2)), (20, (0, 2)), (24, (0, 1)))
    ]
    np.testing.assert_allclose(centre, [1.5 * 2 - 0.5, 2.5 * 4 - 0.5, 3.5 * 4 - 0.5], atol=1e-5)
    np.testing.assert_allclose(enlarge(np.ones((4, 5, 6)), (8, 20, 24)), 1)


def test_overlapping_patches_are_averaged(grid, model):
    slices = model.card.patch_size[0]
    constant = [np.full((4, 4, 4), 3.0)] * len(grid.starts)
    merged = merge_patches(constant, grid, model.card.patch_size)
    inside = sitk.GetArrayFromImage(grid.body) > 0
    assert slices == model.card.patch_size[0]
    np.testing.assert_allclose(sitk.GetArrayFromImage(merged.relative)[inside], 1, atol=1e-5)
    assert merged.body_mean == pytest.approx(3)
    assert not sitk.GetArrayFromImage(merged.relative)[~inside].any()
