"""Faster 3-D convolutions on CPUs: the same network, written with other operators.

onnxruntime has fast kernels for 2-D convolutions, with channels in blocks; a 3-D one it computes as
a matrix product of copies of the input. A 5 x 5 x 5 convolution is therefore computed slice-wise:
along the slices with the algorithm of Toom and Cook F(4, 5) (Winograd 1980, "Arithmetic complexity
of computations"; Lavin and Gray 2016, CVPR, "Fast algorithms for convolutional neural networks"),
which makes 4 slices of the output from 8 of the input with 8 two-dimensional convolutions instead
of 20. Results differ by rounding (up to 5e-6 of the largest value). The file itself is not changed.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from .onnx_file import Node, OnnxFile, message_fields
from .onnx_write import INITIALIZER, NODE, field_bytes, node_bytes, tensor_bytes

KERNEL, MADE = 5, 4  # slices of the kernel, and of the output that are made in one step
POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))  # and infinity
READ = len(POINTS) + 1  # slices of the input
ONE = POINTS.index(1)  # what is added at this point is added to each slice of the output
BLOCK = 16  # channels of a block with AVX-512
MIN_OPSET = 13  # older ones are not tested
_GRAPH = 7  # field number of onnx.proto
_DEFAULTS = {
    "auto_pad": "NOTSET",
    "dilations": [1] * 3,
    "kernel_shape": [KERNEL] * 3,
    "pads": [0] * 6,
    "strides": [1] * 3,
}
_SETTINGS = _DEFAULTS | {"pads": [KERNEL // 2] * 6}  # of a convolution that is replaced


def with_fast_convolutions(file: OnnxFile) -> bytes:
    """The file's content with faster convolutions, where there are any of 5 x 5 x 5.

    All inputs, outputs and other tensors keep their names.
    """
    replaced = {n: _replacement(c, file) for n, c in enumerate(file.nodes) if _fits(c, file)}
    if not replaced or file.opset < MIN_OPSET:
        return bytes(file.content)
    read, own = set(file.outputs), set()
    for n, node in enumerate(file.nodes):
        (own if n in replaced else read).update(node.inputs)
    unread = {n for n, name in enumerate(file.weights) if name in own - read}
    model = []
    for number, wire, value in message_fields(memoryview(file.content)):
        if number == _GRAPH:
            value = _changed(value, replaced, unread)
        model.append(field_bytes(number, wire, value))
    return b"".join(model)


def _changed(graph: memoryview, replaced: dict[int, bytes], unread: set[int]) -> bytes:
    """A graph with other fields for the nodes, and without the weights, of these numbers."""
    fields, node, weight = [], 0, 0
    for number, wire, value in message_fields(graph):
        if number == NODE:
            fields.append(replaced.get(node) or field_bytes(number, wire, value))
            node += 1
        elif number != INITIALIZER or weight not in unread:
            fields.append(field_bytes(number, wire, value))
        weight += number == INITIALIZER
    return b"".join(fields)


def _fits(node: Node, file: OnnxFile) -> bool:
    """Whether a node is a convolution that can be replaced; a wrong one is left to onnxruntime."""
    if (node.op, len(node.outputs)) != ("Conv", 1) or len(node.inputs) not in (2, 3):
        return False
    constants = [name for name in node.inputs[1:] if name]
    if not node.inputs[1] or any(name in file.inputs for name in constants):
        return False
    weight, *bias = [file.weights.get(name) for name in constants]
    if any(values is None or values.dtype != np.float32 for values in (weight, *bias)):
        return False
    groups = node.attributes.get("group", 1)
    found = {**_DEFAULTS, **node.attributes}
    return (
        all(type(found[name]) is type(value) for name, value in _SETTINGS.items())
        and all(found[name] == value for name, value in _SETTINGS.items())
        and weight.shape[2:] == (KERNEL,) * 3
        and all(values.shape == weight.shape[:1] for values in bias)
        and isinstance(groups, int)
        and groups > 0
        and len(weight) > 0 == len(weight) % groups
        and weight.shape[1] > 1
    )


@lru_cache(maxsize=1)
def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices, float64, of the input [READ, READ], kernel [READ, KERNEL] and output [MADE, READ].

    made @ ((kernel @ g) * (given @ d)) is the correlation of d [READ] with g [KERNEL].
    """

    def product(roots: Iterable[Fraction | int]) -> list[Fraction]:
        """Coefficients of the polynomial with these roots, from the constant."""
        found = [Fraction(1)]
        for root in roots:
            found = [a - root * b for a, b in zip([Fraction(0), *found], [*found, Fraction(0)])]
        return found

    others = [[other for other in POINTS if other != point] for point in POINTS]
    given = [[*product(rest), Fraction(0)] for rest in others] + [product(POINTS)]
    scale = [math.prod(p - other for other in rest) for p, rest in zip(POINTS, others)]
    kernel = [[Fraction(p) ** k / s for k in range(KERNEL)] for p, s in zip(POINTS, scale)]
    kernel.append([Fraction(k == KERNEL - 1) for k in range(KERNEL)])
    made = [[*(Fraction(p) ** i for p in POINTS), Fraction(i == MADE - 1)] for i in range(MADE)]
    return tuple(np.array([[float(v) for v in row] for row in m]) for m in (given, kernel, made))


def _replacement(node: Node, file: OnnxFile) -> bytes:
    """Fields of a graph, nodes and weights, that compute what a convolution computes.

    T below: the number of steps of MADE slices that cover the input; slices that they make beyond
    it are cut off at the end.
    """
    x, given_weight, *given_bias = node.inputs
    weight = file.weights[given_weight]
    bias = file.weights[given_bias[0]] if any(given_bias) else np.zeros(len(weight))
    groups, half = node.attributes.get("group", 1), KERNEL // 2
    outputs, inputs = len(weight) // groups, weight.shape[1]  # of a group
    given, _, made = transforms()
    # Two rows are computed as further channels if a block would not be full otherwise.
    rows = 2 if 2 * outputs <= BLOCK else 1
    # onnxruntime has no blocks for groups that do not fill them, so each is computed alone.
    fills = inputs % BLOCK == 0 and rows * outputs % BLOCK == 0
    alone, together = (1, groups) if fills else (groups, 1)
    graph = _Fields(f"{node.outputs[0]}/winograd")

    shape = graph.node("Shape", [x])
    count, slices, size = graph.part(shape, 0, 1), graph.part(shape, 2, 3), graph.part(shape, 3, 5)

    # The input [N, channels, slices, rows, columns] by slices, as images of one channel. (In two
    # dimensions onnxruntime would use blocks, of which this channel fills a part only.)
    sliced = graph.node("Transpose", [x], perm=[0, 2, 1, 3, 4])
    images = graph.reshape(sliced, count, [1], slices, [groups * inputs, -1])
    mixed = graph.node(
        "Conv",
        [images, graph.weight(given[:, None, :, None, None])],
        kernel_shape=[READ, 1, 1],
        strides=[MADE, 1, 1],
        pads=[half, 0, 0, half + MADE - 1, 0, 0],
    )
    steps = graph.part(graph.node("Shape", [mixed]), 2, 3)
    # [N, READ, T, groups computed alone, channels, rows, columns]
    apart = graph.reshape(mixed, [0, READ], steps, [alone, -1], size)
    weights, biases = _at_points(weight, bias, groups, rows)
    weights = weights.reshape(READ * alone, -1, *weights.shape[-3:])
    biases = biases.reshape(READ * alone, -1)
    plane = graph.sizes([-1, together * inputs], size)
    convolved = []
    for part, (w, b) in enumerate(zip(weights, biases)):
        first = [part // alone, part % alone]
        bounds = [first, [n + 1 for n in first], [1, 3]]
        one = graph.node("Slice", [apart, *map(graph.whole, bounds)])
        one = graph.node("Reshape", [one, plane])
        one = graph.node(
            "Conv",
            [one, graph.weight(w), graph.weight(b)],
            group=together,
            kernel_shape=[KERNEL + rows - 1, KERNEL],
            strides=[rows, 1],
            pads=[half, half, half + rows - 1, half],
        )
        convolved.append(one)
    lines = [graph.reshape(one, [1, -1]) for one in convolved]
    joined = graph.reshape(graph.node("Concat", lines, axis=0), [READ, -1])
    found = graph.node("MatMul", [graph.weight(made), joined])
    made_size = graph.part(graph.node("Shape", [convolved[0]]), 2, 4)
    apart = graph.reshape(found, [MADE, alone, -1], steps, [together, rows, outputs], made_size)
    turned = graph.node("Transpose", [apart], perm=[2, 1, 4, 6, 3, 0, 7, 5, 8])
    # The numbers of slices and rows are one axis each after two steps, as both are unknown.
    by_rows = graph.node("Shape", [turned])
    ordered = graph.reshape(turned, [0, groups * outputs, -1], graph.part(by_rows, 6, 9))
    whole = graph.reshape(ordered, [0, 0, 0, -1], graph.part(shape, 4, 5))
    bounds = [graph.whole([0, 0]), graph.part(shape, 2, 4), graph.whole([2, 3])]
    graph.node("Slice", [whole, *bounds], node.outputs[0])
    return b"".join(graph.fields)


def _at_points(
    weight: np.ndarray, bias: np.ndarray, groups: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kernels [READ, groups, rows, outputs, inputs, rows', columns'] of the convolutions, and their
    biases [READ, groups, rows, outputs]; outputs and inputs are those of a group. The kernel of the
    second row is that of the first, a row lower.
    """
    _, kernel, _ = transforms()
    mixed = np.tensordot(kernel, weight, axes=(1, 2))
    mixed = mixed.reshape(READ, groups, -1, *mixed.shape[2:])
    taller = (*mixed.shape[:2], rows, *mixed.shape[2:4], KERNEL + rows - 1, KERNEL)
    weights = np.zeros(taller)
    for row in range(rows):
        weights[:, :, row, ..., row : row + KERNEL, :] = mixed
    biases = np.zeros(taller[:4])
    biases[ONE] = bias.reshape(groups, 1, -1)
    return weights, biases


class _Fields:
    """Fields of a graph, as bytes; tensors are numbered, and named after `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.fields: list[bytes] = []
        self._prefix = prefix

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: object) -> str:
        """Append a node; returns its output."""
        output = output or self._name()
        self.fields.append(node_bytes(op, inputs, [output], **attributes))
        return output

    def sizes(self, *sizes: list[int] | str) -> str:
        """A shape of numbers and of tensors of numbers, one after the other."""
        named = [size if isinstance(size, str) else self.whole(size) for size in sizes]
        return self.node("Concat", named, axis=0) if len(named) > 1 else named[0]

    def reshape(self, source: str, *sizes: list[int] | str) -> str:
        """Sizes as for `sizes`; 0 keeps an axis, -1 is what is left."""
        return self.node("Reshape", [source, self.sizes(*sizes)])

    def part(self, shape: str, first: int, end: int) -> str:
        """Some of the sizes in a shape."""
        return self.node("Slice", [shape, self.whole([first]), self.whole([end])])

    def whole(self, numbers: list[int]) -> str:
        """A constant of whole numbers."""
        return self._constant(np.array(numbers, np.int64))

    def weight(self, values: np.ndarray) -> str:
        """A constant of float32."""
        return self._constant(np.asarray(values, np.float32))

    def _constant(self, values: np.ndarray) -> str:
        name = self._name()
        self.fields.append(tensor_bytes(name, values))
        return name

    def _name(self) -> str:
        return f"{self._prefix}/{len(self.fields)}"
