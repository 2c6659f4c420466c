"""Backpropagation from the score to the target layer: branches, refusals, required tensors."""

import numpy as np
import pytest

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.gradcam_onnx.backprop import Tail, shape_name
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import Node, OnnxFile

torch = pytest.importorskip("torch", reason="the independent implementation")
F = torch.nn.functional
RANDOM = np.random.default_rng(7)
MATRIX = RANDOM.normal(size=(24, 5))


def _file(nodes: list[Node], weights: dict, outputs: list[str]) -> OnnxFile:
    file = OnnxFile(opset=17)
    file.nodes = nodes
    file.weights = dict(weights)
    file.outputs = outputs
    return file


def _residual() -> OnnxFile:
    """features -> Relu -> +features -> Gemm: two paths from the target to the logits."""
    return _file(
        [
            Node("Relu", "", ("features",), ("r",), {}),
            Node("Add", "", ("r", "features"), ("s",), {}),
            Node("Gemm", "", ("s", "w"), ("logits",), {}),
        ],
        {"w": MATRIX},
        ["features", "r", "logits"],
    )


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
    np.testing.assert_allclose(tail.gradient(tensors, g), x.grad.numpy(), rtol=1e-12)


def test_split_and_concatenated_tensors():
    """Of three parts one is unused, one is used twice."""
    file = _file(
        [
            Node("Split", "", ("features", "sizes"), ("a", "b", "c"), {"axis": 1}),
            Node("Mul", "", ("a", "a"), ("d",), {}),
            Node("Concat", "", ("d", "c"), ("e",), {"axis": 1}),
            Node("Gemm", "", ("e", "w"), ("logits",), {}),
        ],
        {"w": MATRIX[:8], "sizes": np.array([3, 2, 5])},
        ["features", "a", "d", "c", "logits"],
    )
    tail = Tail.of(file, "features", "logits", "test")
    x = torch.tensor(RANDOM.normal(size=(2, 10)), requires_grad=True)
    a, _, c = torch.split(x, [3, 2, 5], 1)
    d = a * a
    logits = torch.cat([d, c], 1) @ torch.tensor(MATRIX[:8])
    logits[:, 2].sum().backward()
    named = {"features": x, "a": a, "c": c, "d": d, "logits": logits}
    tensors = {name: value.detach().numpy() for name, value in named.items()}
    found = tail.gradient(tensors, np.tile(np.eye(5)[2], (2, 1)))
    np.testing.assert_allclose(found, x.grad.numpy(), rtol=1e-12)


def _convolution(pools: int, **attributes) -> OnnxFile:
    nodes, source = [], "features"
    for number in range(pools):
        pooling = {"kernel_shape": [2, 2], "strides": [2, 2]}
        nodes.append(Node("MaxPool", "", (source,), (f"p{number}",), pooling))
        source = f"p{number}"
    nodes += [
        Node("Conv", "", (source, "w"), ("c",), attributes),
        Node("Relu", "", ("c",), ("r",), {}),
        Node("GlobalAveragePool", "", ("r",), ("g",), {}),
        Node("Flatten", "", ("g",), ("logits",), {}),
    ]
    w = RANDOM.normal(size=(6, 4 // attributes.get("group", 1), 3, 3))
    return _file(nodes, {"w": w}, ["features", "p0", "p1", "r", shape_name("g"), "logits"])


@pytest.mark.parametrize("pools", [0, 1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [2, 1, 0, 2], "strides": [2, 1], "group": 2},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"pads": [2] * 4, "dilations": [2, 2]},
    ],
)
def test_mean_gradient_is_the_mean_of_the_gradient(pools, attributes):
    """Without backpropagation through the convolution and the poolings before it."""
    file = _convolution(pools, **attributes)
    tail = Tail.of(file, "features", "logits", "test")
    shape = (2, 4, 5 * 2**pools, 6 * 2**pools)
    tensors = {"features": RANDOM.normal(size=shape)}
    x = torch.tensor(tensors["features"])
    for number in range(pools):
        x = F.max_pool2d(x, 2)
        tensors[f"p{number}"] = x.numpy()
    output = _conv_shape(x.shape[2:], attributes)
    tensors["r"] = np.maximum(RANDOM.normal(size=(2, 6, *output)), 0)
    tensors |= {"logits": np.zeros((2, 6)), shape_name("g"): np.array([2, 6, 1, 1])}
    g = RANDOM.normal(size=(2, 6))
    expected = tail.gradient(tensors, g).mean(axis=(2, 3))
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(tail.mean_gradient(tensors, g), expected, rtol=1e-9, atol=1e-15)


def _conv_shape(size, attributes):
    strides = attributes.get("strides", [1, 1])
    if "auto_pad" in attributes:
        return [-(-n // s) for n, s in zip(size, strides)]
    pads, dilations = attributes["pads"], attributes.get("dilations", [1, 1])
    return [
        (n + pads[i] + pads[i + 2] - 2 * dilations[i] - 1) // strides[i] + 1
        for i, n in enumerate(size)
    ]


def test_only_tensors_that_are_read_are_required():
    """A ReLU reads its output, a Gemm with constant weights nothing, an Add two shapes."""
    tail = Tail.of(_residual(), "features", "logits", "test")
    assert set(tail.tensors) == {"features", "r", "logits"}
    file = _residual()
    file.outputs = ["features", "logits", "r"]
    file.nodes[0] = Node("Neg", "", ("features",), ("r",), {})
    file.outputs[2] = shape_name("r")
    assert shape_name("r") in Tail.of(file, "features", "logits", "test").tensors


def _replace(position, *node):
    return lambda file: file.nodes.__setitem__(position, Node(*node))


REFUSED = {
    "unknown operator": (
        _replace(0, "Whistle", "", ("features",), ("r",), {}),
        "the gradient of Whistle between 'features' and 'logits' is not supported",
    ),
    "operator of another domain": (
        _replace(0, "com.microsoft.Gelu", "", ("features",), ("r",), {}),
        "com.microsoft.Gelu",
    ),
    "loop": (_replace(0, "Loop", "", ("features",), ("r",), {}), r"control flow \(Loop\)"),
    "branch on a condition": (_replace(0, "If", "", ("c",), ("r",), {}), r"control flow \(If\)"),
    "scan": (_replace(0, "Scan", "", ("features",), ("r",), {}), r"control flow \(Scan\)"),
    "tensor not handed over": (lambda f: f.outputs.remove("r"), "r must be among its outputs"),
    "no way to the score": (
        _replace(2, "Gemm", "", ("else", "w"), ("logits",), {}),
        "scores 'logits' do not depend on its target layer 'features'",
    ),
    "only the shape leads there": (
        lambda f: f.nodes.__setitem__(slice(0, 2), [Node("Shape", "", ("features",), ("s",), {})]),
        "do not depend on",
    ),
    "no such score": (lambda f: f.nodes.pop(), "does not compute 'logits'"),
    "attribute without a gradient": (
        _replace(0, "Resize", "", ("features", "", "w"), ("r",), {"mode": "cubic"}),
        "Resize with mode 'cubic' is not supported",
    ),
    "attribute of the future": (
        _replace(0, "Tanh", "", ("features",), ("r",), {"temper": 3}),
        "Tanh has the unknown attribute 'temper'",
    ),
    "training mode": (
        _replace(0, "Dropout", "", ("features", "", "w"), ("r",), {}),
        "Dropout with this input 3, 'w' is not supported",
    ),
    "weights that are computed": (
        _replace(2, "Conv", "", ("w", "s"), ("logits",), {}),
        "input 2 of Conv",
    ),
    "second output": (
        _replace(0, "Dropout", "", ("features",), ("q", "r"), {}),
        "output r of Dropout",
    ),
    "old opset": (lambda f: setattr(f, "opset", 11), "opset 11; at least 13 is needed"),
    "weights of an unread type": (
        lambda f: f.weights.__setitem__("w", None),
        "w has a data type that is not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_explained_are_refused_with_the_reason(case):
    change, words = REFUSED[case]
    file = _residual()
    change(file)
    with pytest.raises(StagingError, match=words) as refusal:
        Tail.of(file, "features", "logits", "model.onnx")
    assert str(refusal.value).startswith("The model model.onnx cannot be explained")
    assert "\n" not in str(refusal.value)
