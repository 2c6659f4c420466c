"""Harness for the tests of vector-Jacobian products (VJPs).

Each product is compared with PyTorch's autograd in float64, over drawn shapes and attributes; ONNX
Runtime confirms that the operator computes the same as the PyTorch function.
"""

import functools

import numpy as np
import pytest

from LiverFibrosisStagingLib.gradcam_onnx.backprop import Tail, shape_name, trace
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx

torch = pytest.importorskip("torch", reason="the independent implementation")
onnx = pytest.importorskip("onnx", reason="writes the operators")
onnxruntime = pytest.importorskip("onnxruntime")
hypothesis = pytest.importorskip("hypothesis", reason="draws shapes and attributes")
from hypothesis import strategies as st  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

EXAMPLES = 25


class Cases(dict):
    """By name: (operator, drawing function: draw -> Case)."""

    def add(self, op, name=""):
        """Register a drawing function."""

        def register(function):
            self[f"{op} {name}".strip()] = (op, function)
            return function

        return register

    @property
    def operators(self):
        return {op for op, _ in self.values()}


class Case:
    """One drawn operator.

    inputs: float64 arrays, or None for one left out; those whose position is in `active` are
    differentiated. function: the same in PyTorch, of the active inputs.
    """

    def __init__(self, inputs, function, attributes=None, active=(0,), opset=17, outputs=1):
        self.inputs, self.function, self.attributes = inputs, function, attributes or {}
        self.active, self.opset, self.outputs = active, opset, outputs


def normal(draw, shape, low=None):
    """Normally distributed numbers, or uniform ones from `low` to low + 2."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random.normal(size=shape) if low is None else random.uniform(low, low + 2, shape)


def ints(low, high):
    return st.integers(low, high)


def a_shape(draw, least=1, most=4):
    return tuple(draw(st.lists(ints(1, 5), min_size=least, max_size=most)))


def an_image(draw, dims, channels=None, least=4, most=8):
    channels = channels or draw(ints(1, 3))
    return (draw(ints(1, 2)), channels, *(draw(ints(least, most)) for _ in range(dims)))


def many(draw, n, low, high):
    return [draw(ints(low, high)) for _ in range(n)]


def a_pair(draw, low_a=None, low_b=None):
    """Two shapes that broadcast: axes of either may be 1 or missing."""
    shape = a_shape(draw, 1, 4)
    pair = []
    for low in (low_a, low_b):
        own = [1 if draw(st.booleans()) and draw(st.booleans()) else n for n in shape]
        pair.append(normal(draw, own[draw(ints(0, len(shape) - 1)) :], low))
    return pair


def int64(values):
    return np.array(values, np.int64)


def write(op, drawn, path):
    """A model of one node; the active inputs come from the target layer through Identity."""
    names, constants = [], []
    for position, values in enumerate(drawn.inputs):
        if values is None:
            names.append("")
        elif position in drawn.active:
            names.append(f"x{position}")
        else:
            names.append(f"c{position}")
            single = values.astype(np.float32) if values.dtype == np.float64 else values
            constants.append(numpy_helper.from_array(single, names[-1]))
    outputs = [f"y{i}" for i in range(drawn.outputs)]
    info = functools.partial(helper.make_tensor_value_info, elem_type=1, shape=None)
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, **drawn.attributes)],
        "one",
        [info(n) for n in names if n.startswith("x")],
        [info(n) for n in outputs],
        constants,
    )
    opset = [helper.make_opsetid("", drawn.opset)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def relative(found, expected):
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12)


def check(op, drawing, path):
    """Compare the VJPs of drawn cases with autograd; path: of the model to write."""

    @hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @hypothesis.given(data=st.data())
    def run(data):
        drawn = drawing(data.draw)
        write(op, drawn, path)
        given = [torch.tensor(drawn.inputs[i], requires_grad=True) for i in drawn.active]
        ys = drawn.function(*given)
        ys = list(ys) if isinstance(ys, (tuple, list)) else [ys]
        values = {f"x{i}": drawn.inputs[i] for i in drawn.active}
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        single = {n: v.astype(np.float32) for n, v in values.items()}
        for found, y in zip(session.run(None, single), ys, strict=True):
            assert found.shape == tuple(y.shape)
            np.testing.assert_allclose(found, y.detach().numpy(), rtol=1e-3, atol=1e-3)
        values |= {f"y{i}": y.detach().numpy() for i, y in enumerate(ys)}
        values |= {shape_name(n): np.array(v.shape) for n, v in list(values.items())}
        random = np.random.default_rng(0)
        for output, y in enumerate(ys):
            g = random.normal(size=tuple(y.shape))
            expected = torch.autograd.grad(
                y, given, torch.tensor(g), retain_graph=True, allow_unused=True
            )
            for position, gradient in zip(drawn.active, expected):
                tail, read = prepared(path, f"x{position}", f"y{output}", drawn)
                tensors = {n: values[n] for n in tail.tensors}
                if f"x{position}" not in read:
                    tensors[f"x{position}"] = np.full(drawn.inputs[position].shape, np.nan)
                found = tail.gradient(tensors, g)
                assert found.shape == drawn.inputs[position].shape
                assert relative(found, gradient.numpy()) < 1e-5

    run()


def prepared(path, target, score, drawn):
    """The tail of a file that outputs only the tensors read by its steps."""
    file = read_onnx(path)
    for position, values in enumerate(drawn.inputs):
        if f"c{position}" in file.weights:  # in float64, as autograd has them
            file.weights[f"c{position}"] = values
    steps = trace(file, target, score, "one.onnx")
    read = {name for step in steps for name in step.values}
    file.outputs = [target, score, *read, *map(shape_name, {n for s in steps for n in s.shapes})]
    return Tail.of(file, target, score, "one.onnx"), read
