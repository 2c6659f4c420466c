"""The same network in PyTorch, made from the ONNX file's own nodes and weights.

An independent forward pass, and autograd, to compare our numbers with.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F


class TorchTwin(nn.Module):
    """Runs an ONNX file, such as any of the shipped ones, node by node in PyTorch.

    `nodes` has one submodule a tensor, under the tensor's name with "_" for ".", so that hooks find
    a layer; calling the network gives the file's first output. explained: a layer before which no
    gradient is computed, as for Grad-CAM; by default, autograd goes back to the input.
    """

    def __init__(
        self, path: Path, dtype: torch.dtype = torch.float32, explained: str | None = None
    ) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        self.explained = explained
        self.input, self.output = graph.input[0].name, graph.output[0].name
        known = {tensor.name: _tensor(tensor, dtype) for tensor in graph.initializer}
        known[""] = None  # an optional input that is not given
        self.nodes = nn.ModuleDict()
        self._order: list[tuple[str, list[str]]] = []
        for node in graph.node:
            (name,) = node.output
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                known[name] = _tensor(attributes["value"], dtype)
                continue
            sources = [i for i in node.input if i not in known]
            constants = {n: known[i] for n, i in enumerate(node.input) if i in known}
            operator = _Operator(node.op_type, constants, {**attributes, "float": dtype})
            if sources:
                self.nodes[name.replace(".", "_")] = operator
                self._order.append((name, sources))
            else:
                known[name] = operator().detach()

    def tensors(self, given: torch.Tensor, name: str | None = None) -> dict[str, torch.Tensor]:
        """All tensors that follow from one that is given, the input by default."""
        values = {name or self.input: given}
        for target, sources in self._order:
            if target not in values and all(source in values for source in sources):
                self._compute(target, sources, values, True)
        return values

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """The first output; tensors are freed after their last use."""
        needed = {self.output}
        steps = []
        for target, sources in reversed(self._order):
            if target in needed:
                steps.append((target, sources, [s for s in sources if s not in needed]))
                needed.update(sources)
        values = {self.input: volume}
        differentiable = self.explained is None
        for target, sources, last in reversed(steps):
            differentiable = differentiable or target == self.explained
            self._compute(target, sources, values, differentiable)
            for source in last:
                values.pop(source, None)
        return values[self.output]

    def _compute(
        self, target: str, sources: list[str], values: dict[str, torch.Tensor], gradient: bool
    ) -> None:
        given = [values[source] for source in sources]
        with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
            if target == self.explained and torch.is_grad_enabled():
                given = [x.detach().requires_grad_() for x in given]
            values[target] = self.nodes[target.replace(".", "_")](*given)


class _Operator(nn.Module):
    """One node; its constant inputs are kept, the others are given in their order."""

    def __init__(self, op: str, constants: dict[int, torch.Tensor | None], attributes: dict):
        super().__init__()
        if op not in OPERATORS:
            raise NotImplementedError(op)
        self.op, self.attributes = op, attributes
        floats = {n: c for n, c in constants.items() if c is not None and c.is_floating_point()}
        self.weights = nn.ParameterDict({str(n): nn.Parameter(c) for n, c in floats.items()})
        self.others = {n: c for n, c in constants.items() if n not in floats}

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        fixed = {**self.others, **{int(n): c for n, c in self.weights.items()}}
        rest = iter(given)
        inputs = [fixed[n] if n in fixed else next(rest) for n in range(len(fixed) + len(given))]
        return OPERATORS[self.op](self.attributes, *inputs)


def _tensor(proto: onnx.TensorProto, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _pads(a: dict[str, Any]) -> list[int]:
    pads = a.get("pads", [0] * 6)
    half = len(pads) // 2
    if pads[:half] != pads[half:] or a.get("ceil_mode"):
        raise NotImplementedError("pads that differ between both ends, or ceil_mode")
    return pads[:half]


def _window(a: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    return a["kernel_shape"], a.get("strides", [1] * len(a["kernel_shape"])), _pads(a)


def _average(a: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool3d(x, *_window(a), count_include_pad=bool(a.get("count_include_pad")))


def _slice(
    a: dict[str, Any],
    x: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    axes: torch.Tensor,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    chosen = [slice(None)] * x.ndim
    strides = [1] * len(axes) if steps is None else steps.tolist()
    for axis, start, end, step in zip(axes.tolist(), starts.tolist(), ends.tolist(), strides):
        chosen[axis] = slice(start, end, step)
    return x[tuple(chosen)]


def _convolution(
    a: dict[str, Any], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return F.conv3d(
        x, weight, bias, a.get("strides", 1), _pads(a), a.get("dilations", 1), a.get("group", 1)
    )


def _transposed(
    a: dict[str, Any], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return F.conv_transpose3d(
        x, weight, bias, a.get("strides", 1), _pads(a), groups=a.get("group", 1)
    )


def _normalised(a: dict, x: torch.Tensor, *p: torch.Tensor) -> torch.Tensor:
    weight, bias, mean, variance = p
    return F.batch_norm(x, mean, variance, weight, bias, eps=a["epsilon"])


def _dense(a: dict, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight if a.get("transB") else weight.T, bias)


def _unsqueezed(a: dict, x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _gathered(a: dict, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    axis = a.get("axis", 0)
    shape = [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]
    return x.index_select(axis, index.reshape(-1)).reshape(shape)


def _cast(a: dict, x: torch.Tensor) -> torch.Tensor:
    kinds = {onnx.TensorProto.FLOAT: a["float"], onnx.TensorProto.INT64: torch.int64}
    return x.to(kinds[a["to"]])


def _filled(a: dict, shape: torch.Tensor) -> torch.Tensor:
    return _tensor(a["value"], a["float"]).expand(shape.tolist())


# Operator -> the function of its attributes and inputs.
OPERATORS: dict[str, Callable[..., torch.Tensor]] = {
    "Abs": lambda a, x: x.abs(),
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average,
    "BatchNormalization": _normalised,
    "Cast": _cast,
    "Clip": lambda a, x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "ConstantOfShape": _filled,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "CumSum": lambda a, x, axis: x.cumsum(int(axis)),
    "Div": lambda a, x, y: x / y if x.is_floating_point() else x // y,
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1),
    "Gather": _gathered,
    "Gemm": _dense,
    "GlobalAveragePool": lambda a, x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
    "Greater": lambda a, x, y: x > y,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "MaxPool": lambda a, x: F.max_pool3d(x, *_window(a)),
    "Min": lambda a, x, y: torch.minimum(x, y),
    "Mul": lambda a, x, y: x * y,
    "Neg": lambda a, x: -x,
    "PRelu": lambda a, x, slope: F.prelu(x, slope.reshape(-1)),
    "ReduceMax": lambda a, x: x.amax(a["axes"], keepdim=bool(a.get("keepdims", 1))),
    "ReduceSum": lambda a, x, axes: x.sum(axes.tolist(), keepdim=bool(a.get("keepdims", 1))),
    "Relu": lambda a, x: x.relu(),
    "Reshape": lambda a, x, shape: x.reshape(shape.tolist()),
    "Shape": lambda a, x: torch.tensor(x.shape),
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "Sub": lambda a, x, y: x - y,
    "Unsqueeze": _unsqueezed,
}


def autograd_map(twin: TorchTwin, volume: np.ndarray, score, layer: str) -> np.ndarray:
    """Raw Grad-CAM [N, spatial...] by autograd; `score` takes the logits [N, C]."""
    values = twin.tensors(torch.tensor(volume))
    features = values[layer]
    (gradient,) = torch.autograd.grad(score(values["logits"]).sum(), features)
    alpha = gradient.mean(dim=(2, 3, 4), keepdim=True)
    return (alpha * features).sum(1).relu().detach().numpy()
