"""The PyTorch twin, which other tests and the benchmark compare with, equals ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from monai.visualize import GradCAM
from torch_twin import TorchTwin

from LiverFibrosisStagingLib.resources import default_model_path


def volume(shape: tuple[int, ...]) -> np.ndarray:
    """A noisy CT in the first channel; in the others blocks, as masks of liver and spleen."""
    x = np.zeros(shape, np.float32)
    x[:, 0] = np.random.default_rng(0).normal(0.65, 0.03, x[:, 0].shape)
    for n, channel in enumerate(range(1, shape[1])):
        x[:, channel, 8:50, 20:90, 20 + 80 * n : 90 + 50 * n] = 1
    return x


@pytest.mark.parametrize(
    ("name", "shape"),
    [("LFS.onnx", (1, 3, 64, 120, 168)), ("VNet.onnx", (1, 1, 32, 32, 48))],
)
def test_every_output_of_a_shipped_file_equals_onnx_runtime(name, shape):
    path = default_model_path(name)
    x = volume(shape)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"volume": x})))
    twin = TorchTwin(path).eval()
    with torch.no_grad():
        values = twin.tensors(torch.tensor(x))
        first = twin(torch.tensor(x))
    for output, numbers in expected.items():
        assert np.ptp(numbers) > 0
        scale = max(1.0, float(np.abs(numbers).max()))
        np.testing.assert_allclose(values[output], numbers, 0, 1e-4 * scale, err_msg=output)
    assert torch.equal(first, values[twin.output])


def test_map_of_monai_needs_no_gradient_before_the_layer():
    path = default_model_path("LFS.onnx")
    x = volume((1, 3, 64, 120, 168))
    twin = TorchTwin(path, explained="features").eval().requires_grad_(False)
    given = torch.tensor(x)
    raw = GradCAM(twin, "nodes.features").compute_map(given, class_idx=4)[0, 0].detach().numpy()
    other = TorchTwin(path).eval()
    given.requires_grad_()  # the features have no weights before them
    values = other.tensors(given)
    (gradient,) = torch.autograd.grad(values["logits"][0, 4], values["features"])
    alpha = gradient.mean(dim=(2, 3, 4), keepdim=True)
    expected = (alpha * values["features"]).sum(1).relu()[0].detach().numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-7)
