"""Gradients of an ONNX graph's tail, in numpy.

One small vector-Jacobian product per operator, after the manner of HIPS/autograd: given the
gradient `g` of the score with respect to the operator's output `y`, return the gradients with
respect to its inputs, as far as they are no weights (which are constants here). Attributes arrive
under their ONNX names as keyword arguments. Tensors are [N, C, spatial...]. Formulas follow the
operators' definitions in the ONNX operator specification (Operators.md).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from .errors import StagingError
from .onnx_file import Node, OnnxFile

Gradients = tuple[np.ndarray | None, ...]


def _windows(
    output: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int] | None,
    dilations: list[int] | None,
) -> Iterator[tuple[tuple[int, ...], tuple]]:
    """Each position in the kernel, with the slices of the padded input that it meets."""
    strides = strides or [1] * len(kernel)
    dilations = dilations or [1] * len(kernel)
    for offset in product(*map(range, kernel)):
        yield (
            offset,
            (
                ...,
                *(
                    slice(o * d, o * d + s * (n - 1) + 1, s)
                    for o, d, s, n in zip(offset, dilations, strides, output)
                ),
            ),
        )


def _pads(
    auto_pad: str,
    pads: list[int] | None,
    size: tuple[int, ...],
    output: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int] | None,
    dilations: list[int] | None,
) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis; `after` may exceed what is stated, in ceil mode."""
    strides = strides or [1] * len(kernel)
    dilations = dilations or [1] * len(kernel)
    reach = [
        s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(strides, output, dilations, kernel)
    ]
    missing = [max(0, r - n) for r, n in zip(reach, size)]
    if auto_pad == "SAME_UPPER":
        before = [m // 2 for m in missing]
    elif auto_pad == "SAME_LOWER":
        before = [m - m // 2 for m in missing]
    else:
        before = list(pads[: len(kernel)]) if pads else [0] * len(kernel)
    return [(b, max(0, r - n - b)) for b, r, n in zip(before, reach, size)]


def _padded(x: np.ndarray, pads: list[tuple[int, int]], value: float) -> np.ndarray:
    if not any(map(any, pads)):
        return x
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def _unpadded(g: np.ndarray, pads: list[tuple[int, int]], size: tuple[int, ...]) -> np.ndarray:
    return g[(..., *(slice(before, before + n) for (before, _), n in zip(pads, size)))]


def _padded_zeros(x: np.ndarray, pads: list[tuple[int, int]], dtype: np.dtype) -> np.ndarray:
    spatial = [n + before + after for n, (before, after) in zip(x.shape[2:], pads)]
    return np.zeros((*x.shape[:2], *spatial), dtype)


def conv(
    g: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
    kernel_shape: list[int] | None = None,
) -> Gradients:
    """Conv: y[o, p] = sum_it w[o, i, t] x[i, s p + d t], hence

    dx[i, s p + d t] += sum_o w[o, i, t] g[o, p], with strides s and dilations d.
    """
    size, output, kernel = x.shape[2:], g.shape[2:], w.shape[2:]
    padding = _pads(auto_pad, pads, size, output, kernel, strides, dilations)
    dx = _padded_zeros(x, padding, g.dtype)
    inputs, outputs = x.shape[1] // group, w.shape[0] // group
    windows = list(_windows(output, kernel, strides, dilations))
    # One matrix product for each plane of the kernel: few and large ones are fast, and what they
    # give (inputs x plane x output voxels) stays small.
    plane = prod(kernel[1:])
    for n, k in product(range(len(x)), range(group)):
        into = dx[n, k * inputs : (k + 1) * inputs]
        flat = g[n, k * outputs : (k + 1) * outputs].reshape(outputs, -1)
        weights = w[k * outputs : (k + 1) * outputs].reshape(outputs, inputs, kernel[0], plane)
        for first in range(kernel[0]):
            taps = weights[:, :, first].transpose(2, 1, 0).reshape(plane * inputs, outputs)
            steps = (taps @ flat).reshape(plane, inputs, *output)
            for (_, window), step in zip(windows[first * plane :], steps):
                into[window] += step
    return (_unpadded(dx, padding, size),)


def max_pool(
    g: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Gradients:
    """MaxPool: the gradient goes to the first largest voxel of each window."""
    size, output, kernel = x.shape[2:], g.shape[2:], tuple(kernel_shape)
    padding = _pads(auto_pad, pads, size, output, kernel, strides, dilations)
    padded = _padded(x, padding, -np.inf)
    dx = _padded_zeros(x, padding, g.dtype)
    open_ = np.ones(y.shape, bool)
    for _, window in _windows(output, kernel, strides, dilations):
        chosen = (padded[window] == y) & open_
        open_ &= ~chosen
        dx[window] += g * chosen
    return (_unpadded(dx, padding, size),)


def average_pool(
    g: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Gradients:
    """AveragePool: each voxel of a window gets g over the number of voxels that were averaged."""
    size, output, kernel = x.shape[2:], g.shape[2:], tuple(kernel_shape)
    padding = _pads(auto_pad, pads, size, output, kernel, strides, dilations)
    counted = _padded(np.ones((1, 1, *size), g.dtype), padding, float(count_include_pad))
    if count_include_pad and pads:
        # What ceil mode adds beyond the stated padding is never counted.
        stated = pads[len(kernel) :]
        for axis, ((before, _), n, after) in enumerate(zip(padding, size, stated)):
            beyond = [slice(None)] * counted.ndim
            beyond[axis + 2] = slice(before + n + after, None)
            counted[tuple(beyond)] = 0
    windows = list(_windows(output, kernel, strides, dilations))
    share = g / sum(counted[window] for _, window in windows)
    dx = _padded_zeros(x, padding, g.dtype)
    for _, window in windows:
        dx[window] += share
    return (_unpadded(dx, padding, size),)


def global_average_pool(g: np.ndarray, y: np.ndarray, x: np.ndarray) -> Gradients:
    """GlobalAveragePool: every voxel gets g over the number of voxels."""
    return (np.broadcast_to(g / prod(x.shape[2:]), x.shape),)


def gemm(
    g: np.ndarray,
    y: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Gradients:
    """Gemm: y = alpha a' b' + beta c, so da' = alpha g b'^T (a', b' transposed where stated)."""
    da = alpha * g @ (b if transB else b.T)
    return (da.T if transA else da,)


def relu(g: np.ndarray, y: np.ndarray, x: np.ndarray) -> Gradients:
    """Relu: g where x > 0."""
    return (g * (x > 0),)


def leaky_relu(g: np.ndarray, y: np.ndarray, x: np.ndarray, *, alpha: float = 0.01) -> Gradients:
    """LeakyRelu: g where x > 0, alpha g elsewhere."""
    return (np.where(x > 0, g, g * g.dtype.type(alpha)),)


def reshape(g: np.ndarray, y: np.ndarray, x: np.ndarray, *_: np.ndarray, **__: int) -> Gradients:
    """Flatten, Reshape, Squeeze, Unsqueeze, Identity: the same numbers in another shape."""
    return (g.reshape(x.shape),)


def add(g: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> Gradients:
    """Add: g for both, summed over the axes along which an input was broadcast."""
    return _unbroadcast(g, a.shape), _unbroadcast(g, b.shape)


def _unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


VJPS: dict[str, Callable[..., Gradients]] = {
    "Add": add,
    "AveragePool": average_pool,
    "Conv": conv,
    "Flatten": reshape,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "Identity": reshape,
    "LeakyRelu": leaky_relu,
    "MaxPool": max_pool,
    "Relu": relu,
    "Reshape": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
}


@dataclass(frozen=True)
class Tail:
    """The nodes between the target layer and the logits, in the order in which they run.

    target, logits: tensor names. tensors: names that the forward pass has to hand over besides the
    weights. weights: constants of the tail.
    """

    target: str
    logits: str
    nodes: tuple[Node, ...]
    tensors: tuple[str, ...]
    weights: dict[str, np.ndarray]

    @classmethod
    def of(cls, file: OnnxFile, target: str, logits: str, name: str) -> "Tail":
        """The tail of a model; `name` is how messages call it.

        Raises StagingError where the target does not lead to the logits, an operator has no
        gradient, or a tensor on the way is not among the model's outputs.
        """
        reached = {target}
        forward = []
        for node in file.nodes:  # ONNX keeps nodes in topological order
            if reached.intersection(node.inputs):
                reached.update(node.outputs)
                forward.append(node)
        needed = {logits}
        nodes: list[Node] = []
        for node in reversed(forward):
            if needed.intersection(node.outputs):
                needed.update(i for i in node.inputs if i in reached)
                nodes.insert(0, node)
        if not nodes or target not in needed:
            raise StagingError(
                f"The model {name} cannot be explained: its target layer {target!r} does not lead "
                f"to its logits {logits!r}."
            )
        unknown = sorted({node.op for node in nodes} - VJPS.keys())
        if unknown:
            raise StagingError(
                f"The model {name} cannot be explained: no gradient is known for "
                f"{', '.join(unknown)} between {target!r} and {logits!r}."
            )
        weights, tensors = {}, dict.fromkeys([target])
        for node in nodes:
            for tensor in (*node.inputs, node.outputs[0]):
                if tensor in file.weights:
                    weights[tensor] = file.weights[tensor].values
                elif tensor:
                    tensors[tensor] = None
        hidden = [tensor for tensor in tensors if tensor not in file.outputs]
        if hidden:
            raise StagingError(
                f"The model {name} cannot be explained: {', '.join(hidden)} must be among its "
                "outputs."
            )
        return cls(target, logits, tuple(nodes), tuple(tensors), weights)

    def gradient(self, tensors: dict[str, np.ndarray], dlogits: np.ndarray) -> np.ndarray:
        """Gradient of a score with respect to the target layer, in the target layer's shape.

        tensors: what the forward pass gave for `self.tensors`; dlogits: the score's gradient with
        respect to the logits, [N, C]. Branches that meet again add up (chain rule).
        """
        values = {**self.weights, **tensors}
        gradients = {self.logits: dlogits.astype(values[self.target].dtype)}
        for node in reversed(self.nodes):
            g = gradients.pop(node.outputs[0], None)
            if g is None:
                continue
            arguments = [values.get(name) for name in node.inputs]
            given = VJPS[node.op](g, values[node.outputs[0]], *arguments, **node.attributes)
            for name, gradient in zip(node.inputs, given):
                if gradient is None or name in self.weights:
                    continue
                gradients[name] = gradients[name] + gradient if name in gradients else gradient
        return gradients[self.target]
