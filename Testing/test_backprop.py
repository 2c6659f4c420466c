"""Every vector-Jacobian product against PyTorch's autograd, in float64."""

import numpy as np
import pytest

from LiverFibrosisStagingLib.backprop import VJPS, Tail
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.onnx_file import Node, OnnxFile, Tensor

torch = pytest.importorskip("torch", reason="the independent implementation")
F = torch.nn.functional
RANDOM = np.random.default_rng(7)

PARAMETERS = RANDOM.normal(size=(6, 4, 3, 3, 3)), RANDOM.normal(size=(6, 2, 3, 3, 3))
MATRIX = RANDOM.normal(size=(24, 5))

CASES = {
    "Conv": (
        (2, 4, 7, 8, 9),
        lambda x: F.conv3d(x, torch.tensor(PARAMETERS[0]), padding=1),
        [PARAMETERS[0]],
        {"pads": [1] * 6},
    ),
    "Conv strided, dilated, grouped": (
        (2, 4, 9, 8, 9),
        lambda x: F.conv3d(
            x, torch.tensor(PARAMETERS[1]), stride=(1, 2, 2), padding=2, dilation=2, groups=2
        ),
        [PARAMETERS[1]],
        {"pads": [2] * 6, "strides": [1, 2, 2], "dilations": [2, 2, 2], "group": 2},
    ),
    "Conv, same": (
        (1, 4, 5, 5, 5),
        lambda x: F.conv3d(x, torch.tensor(PARAMETERS[0]), padding="same"),
        [PARAMETERS[0]],
        {"auto_pad": "SAME_UPPER"},
    ),
    "Conv 2-D, asymmetric pads": (
        (1, 4, 6, 7),
        lambda x: F.conv2d(F.pad(x, (0, 1, 2, 1)), torch.tensor(PARAMETERS[0][..., 0])),
        [PARAMETERS[0][..., 0]],
        {"pads": [2, 0, 1, 1]},
    ),
    "MaxPool": (
        (2, 3, 8, 9, 10),
        lambda x: F.max_pool3d(x, (2, 2, 2)),
        [],
        {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]},
    ),
    "MaxPool overlapping": (
        (1, 3, 9, 9),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        [],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4},
    ),
    "MaxPool, ceil mode": (
        (1, 2, 8, 8),
        lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
        [],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    ),
    "AveragePool": (
        (2, 3, 8, 9, 12),
        lambda x: F.avg_pool3d(x, (4, 3, 2)),
        [],
        {"kernel_shape": [4, 3, 2], "strides": [4, 3, 2]},
    ),
    "AveragePool, padding not counted": (
        (1, 3, 7, 7),
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        [],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4},
    ),
    "AveragePool, padding counted, ceil mode": (
        (1, 3, 8, 8),
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=True),
        [],
        {
            "kernel_shape": [3, 3],
            "strides": [2, 2],
            "pads": [1] * 4,
            "ceil_mode": 1,
            "count_include_pad": 1,
        },
    ),
    "GlobalAveragePool": ((2, 3, 4, 5), lambda x: x.mean((2, 3), keepdim=True), [], {}),
    "Gemm": ((3, 24), lambda x: 0.5 * x @ torch.tensor(MATRIX), [MATRIX], {"alpha": 0.5}),
    "Gemm, transposed": (
        (24, 3),
        lambda x: x.T @ torch.tensor(MATRIX),
        [MATRIX.T],
        {"transA": 1, "transB": 1},
    ),
    "Relu": ((2, 3, 4), torch.relu, [], {}),
    "LeakyRelu": ((2, 3, 4), lambda x: F.leaky_relu(x, 0.1), [], {"alpha": 0.1}),
    "Flatten": ((2, 3, 4), lambda x: x.flatten(1), [], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_equals_autograd(case):
    shape, function, weights, attributes = CASES[case]
    x = torch.tensor(RANDOM.normal(size=shape), requires_grad=True)
    y = function(x)
    g = torch.tensor(RANDOM.normal(size=tuple(y.shape)))
    y.backward(g)
    vjp = VJPS[case.split()[0].rstrip(",")]
    (dx,) = vjp(g.numpy(), y.detach().numpy(), x.detach().numpy(), *weights, **attributes)
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_add_undoes_broadcasting():
    a = torch.tensor(RANDOM.normal(size=(2, 3, 4)), requires_grad=True)
    b = torch.tensor(RANDOM.normal(size=(3, 1)), requires_grad=True)
    g = torch.tensor(RANDOM.normal(size=(2, 3, 4)))
    (a + b).backward(g)
    da, db = VJPS["Add"](g.numpy(), None, a.detach().numpy(), b.detach().numpy())
    np.testing.assert_allclose(da, a.grad.numpy())
    np.testing.assert_allclose(db, b.grad.numpy())


def _residual() -> OnnxFile:
    """features -> Relu -> +features -> Gemm: two ways from the target to the logits."""
    file = OnnxFile()
    file.nodes = [
        Node("Relu", "", ("features",), ("r",), {}),
        Node("Add", "", ("r", "features"), ("s",), {}),
        Node("Gemm", "", ("s", "w"), ("logits",), {}),
    ]
    file.weights = {"w": Tensor(MATRIX)}
    file.outputs = ["features", "r", "s", "logits"]
    return file


def test_branches_add_up():
    tail = Tail.of(_residual(), "features", "logits", "test")
    x = torch.tensor(RANDOM.normal(size=(2, 24)), requires_grad=True)
    logits = (torch.relu(x) + x) @ torch.tensor(MATRIX)
    g = RANDOM.normal(size=(2, 5))
    logits.backward(torch.tensor(g))
    features = x.detach().numpy()
    tensors = {
        "features": features,
        "r": np.maximum(features, 0),
        "logits": logits.detach().numpy(),
    }
    tensors["s"] = tensors["r"] + features
    np.testing.assert_allclose(tail.gradient(tensors, g), x.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.nodes.__setitem__(0, Node("Loop", "", ("features",), ("r",), {})), "Loop"),
        (lambda f: f.outputs.remove("r"), "r must be among its outputs"),
        (lambda f: f.nodes.pop(), "does not lead"),
    ],
)
def test_what_cannot_be_explained_is_refused_by_name(change, words):
    file = _residual()
    change(file)
    with pytest.raises(StagingError, match=words):
        Tail.of(file, "features", "logits", "test")
