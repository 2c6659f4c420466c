"""Convolutions computed by parts, against those that onnxruntime computes itself."""

import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
from onnx import TensorProto, helper, numpy_helper

from LiverFibrosisStagingLib.gradcam_onnx import session as opening
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import parse_onnx
from LiverFibrosisStagingLib.gradcam_onnx.winograd import transforms, with_fast_convolutions

ROUNDING = 1e-5  # of the largest value
SETTINGS = {"kernel_shape": [5, 5, 5], "pads": [2] * 6}


def network(outputs, inputs, groups=1, bias=True, opset=17, dtype=np.float32, **settings):
    """A convolution y, of x, and twice its result, z."""
    random = np.random.default_rng(outputs)
    kernel = settings.get("kernel_shape", [5, 5, 5])
    constants = {"w": random.normal(size=(outputs, inputs // groups, *kernel)).astype(dtype) / 10}
    if bias:
        constants["b"] = random.normal(size=outputs).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = {
        name: helper.make_tensor_value_info(name, kind, ["N", channels, "D", "H", "W"])
        for name, channels in (("x", inputs), ("y", outputs), ("z", outputs))
    }
    nodes = [
        helper.make_node("Conv", ["x", *constants], ["y"], group=groups, **SETTINGS | settings),
        helper.make_node("Add", ["y", "y"], ["z"]),
    ]
    weights = [numpy_helper.from_array(v, name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [values["x"]], [values["y"], values["z"]], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ran(content, x):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["y", "z"], {"x": x})


def fast(model):
    """A model's content, and the changed one with its weights written into it."""
    content = model.SerializeToString()
    changed, weights = with_fast_convolutions(parse_onnx(content, "model"))
    if not weights:
        return content, changed
    whole = onnx.load_from_string(changed)
    for tensor in whole.graph.initializer:
        if tensor.name in weights:
            assert [*tensor.dims] == [*weights[tensor.name].shape]
            tensor.CopyFrom(numpy_helper.from_array(weights.pop(tensor.name), tensor.name))
    assert not weights
    return content, whole.SerializeToString()


def test_transforms_give_the_correlation():
    given, kernel, made = transforms()
    d, g = (np.random.default_rng(0).normal(size=size) for size in (10, 5))
    found = made @ ((kernel @ g) * (given @ d))
    np.testing.assert_allclose(found, np.correlate(d, g, "valid"), atol=1e-13)


@pytest.mark.parametrize(
    ("outputs", "inputs", "groups", "shape"),
    [
        (16, 32, 1, (8, 6, 7)),  # whole blocks
        (8, 16, 1, (9, 7, 5)),  # two rows in a block; slices and rows left over
        (3, 4, 1, (1, 1, 2)),  # an input smaller than the kernel
        (32, 16, 2, (6, 5, 5)),  # groups that are not blocks
        (64, 32, 2, (5, 4, 4)),  # groups that are blocks
        (12, 6, 3, (3, 8, 4)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_those_of_the_convolution(outputs, inputs, groups, shape, bias):
    model = network(outputs, inputs, groups, bias)
    content, changed = fast(model)
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    assert {node.op for node in parse_onnx(changed, "changed").nodes} >= {"MatMul", "Add"}
    x = np.random.default_rng(1).normal(size=(2, inputs, *shape)).astype(np.float32)
    for ours, expected in zip(ran(changed, x), ran(content, x)):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, atol=ROUNDING * np.abs(expected).max())


@pytest.mark.parametrize("opset", [13, 18])
def test_opsets(opset):
    content, changed = fast(network(16, 16, opset=opset))
    assert changed != content
    x = np.ones((1, 16, 4, 4, 4), np.float32)
    for ours, expected in zip(ran(changed, x), ran(content, x)):
        np.testing.assert_allclose(ours, expected, atol=ROUNDING * np.abs(expected).max())


def softmax_network(axis, opset=17):
    """A convolution's softmax y, and twice the convolution, z."""
    model = network(16, 16, opset=opset)
    convolution, add = model.graph.node
    convolution.output[0] = "c"
    add.input[:] = ["c", "c"]
    del model.graph.node[:]
    softmax = helper.make_node("Softmax", ["c"], ["y"], axis=axis)
    model.graph.node.extend([convolution, softmax, add])
    return model


@pytest.mark.parametrize("opset", [13, 18])
def test_softmax_of_channels(opset):
    _, changed = fast(softmax_network(1, opset))
    assert "Softmax" not in {node.op for node in parse_onnx(changed, "changed").nodes}
    x = 100 * np.random.default_rng(1).normal(size=(2, 16, 4, 4, 4)).astype(np.float32)
    found, doubled = ran(changed, x)
    logits = doubled.astype(np.float64) / 2
    assert logits.max() > 89  # whose exp() is infinite in float32
    np.testing.assert_allclose(found, scipy.special.softmax(logits, axis=1), atol=1e-6)


@pytest.mark.parametrize("axis", [2, -1])
def test_softmax_of_another_axis_stays_as_it_is(axis):
    _, changed = fast(softmax_network(axis))
    assert "Softmax" in {node.op for node in parse_onnx(changed, "changed").nodes}


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": [1, 2, 1]},
        {"dilations": [2, 1, 1]},
        {"pads": [2, 2, 2, 2, 2, 1]},
        {"kernel_shape": [3, 5, 5]},
        {"kernel_shape": [5, 5], "pads": [2] * 4},
        {"auto_pad": "SAME_UPPER"},
        {"dtype": np.float64},
        {"inputs": 1},
        {"opset": 12},
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(settings):
    content, changed = fast(network(16, settings.pop("inputs", 16), **settings))
    assert changed == content


def pooled_network(after=(), **settings):
    """A convolution of one channel with its pooling y, and z as in `network`."""
    model = network(6, 1)
    convolution, add = model.graph.node
    convolution.output[0] = "c"
    pooling = {"kernel_shape": [2] * 3, "strides": [2] * 3} | settings
    pool = helper.make_node("MaxPool", ["c"], ["y"], **pooling)
    del model.graph.node[:]
    model.graph.node.extend([convolution, pool, add, *after])
    return model


@pytest.mark.parametrize("shape", [(8, 6, 4), (7, 9, 5), (2, 3, 2), (3, 2, 2)])
def test_pooled_convolutions_of_one_channel(shape):
    content, changed = fast(pooled_network())
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    assert [node.op for node in parse_onnx(changed, "changed").nodes].count("Conv") == 2
    x = np.random.default_rng(1).normal(size=(2, 1, *shape)).astype(np.float32)
    for ours, expected in zip(ran(changed, x), ran(content, x)):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "settings",
    [
        {"after": [helper.make_node("Neg", ["c"], ["other"])]},
        {"ceil_mode": 1},
        {"pads": [1] * 6},
        {"strides": [1, 2, 2]},
        {"kernel_shape": [3, 2, 2]},
    ],
    ids=str,
)
def test_other_poolings_stay_as_they_are(settings):
    content, changed = fast(pooled_network(**settings))
    assert changed == content


def test_weights_that_can_be_given_stay_as_they_are():
    model = network(16, 16)
    model.graph.input.append(
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 16, 5, 5, 5])
    )
    content, changed = fast(model)
    assert changed == content


def test_only_weights_that_are_read_are_kept():
    model = network(16, 16)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([3]), "factor"))
    model.graph.node.append(helper.make_node("Mul", ["b", "factor"], ["other"]))
    _, changed = fast(model)
    names = {name for name in parse_onnx(changed, "changed").weights if "/winograd" not in name}
    assert names == {"b", "factor"}


def test_weights_are_kept_as_long_as_the_session(monkeypatch):
    content, kept = network(64, 32, 2).SerializeToString(), []

    def seen(file):
        changed, weights = with_fast_convolutions(file)
        kept.extend(map(weakref.ref, weights.values()))
        return changed, weights

    monkeypatch.setattr(opening, "with_fast_convolutions", seen)
    session = opening.open_session(parse_onnx(content, "model"), Path("model"), 1)
    assert kept and all(one() is not None for one in kept)
    x = np.random.default_rng(1).normal(size=(1, 32, 5, 4, 4)).astype(np.float32)
    expected = ran(content, x)[0]
    found = opening.run_session(session, ["y"], x, Path("model"))[0]
    np.testing.assert_allclose(found, expected, atol=ROUNDING * np.abs(expected).max())
    del session
    assert not any(one() for one in kept)


def _without_weight(node):
    del node.input[1:]


def _bias_as_weight(node):
    node.input[1] = ""


def _further_input(node):
    node.input.append("b")


def _groups_that_do_not_divide(node):
    next(a for a in node.attribute if a.name == "group").i = 7


def _pads_of_another_type(node):
    pads = next(a for a in node.attribute if a.name == "pads")
    pads.CopyFrom(helper.make_attribute("pads", numpy_helper.from_array(np.arange(6))))


@pytest.mark.parametrize(
    "damage",
    [
        _without_weight,
        _bias_as_weight,
        _further_input,
        _groups_that_do_not_divide,
        _pads_of_another_type,
    ],
)
def test_damaged_convolutions_are_left_to_onnxruntime(damage):
    model = network(16, 16)
    damage(model.graph.node[0])
    content, changed = fast(model)
    assert changed == content
