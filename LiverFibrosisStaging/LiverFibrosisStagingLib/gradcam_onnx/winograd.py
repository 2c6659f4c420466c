"""Faster 3-D convolutions on CPUs: the same network, written with other operators.

onnxruntime has fast kernels for 2-D convolutions, with channels in blocks; a 3-D one it computes as
a matrix product of copies of the input. A 5 x 5 x 5 convolution is therefore computed slice-wise:
along the slices with the algorithm of Toom and Cook F(6, 5) (Winograd 1980, "Arithmetic complexity
of computations"; Lavin and Gray 2016, CVPR, "Fast algorithms for convolutional neural networks"),
which makes 6 slices of the output from 10 of the input with 10 two-dimensional convolutions instead
of 30. Results differ by rounding (up to 1e-5 of the largest value). Convolutions of one channel,
which gain little, are only made to need less memory. The softmax of channels, which onnxruntime
transposes, is written out. The file itself is not changed.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from .onnx_file import Node, OnnxFile, message_fields
from .onnx_write import (
    INITIALIZER,
    NODE,
    external_bytes,
    field_bytes,
    length_bytes,
    node_bytes,
    tensor_bytes,
)

KERNEL, MADE = 5, 6  # slices of the kernel, and of the output that are made in one step
# And infinity: of many sets that were tried, the one with the smallest rounding errors.
POINTS = (0, 1, -1, 2, Fraction(-1, 2), -3, Fraction(1, 3), Fraction(-4, 3), Fraction(3, 4))
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
_POOL_DEFAULTS = _DEFAULTS | {"kernel_shape": [], "ceil_mode": 0, "storage_order": 0}
_POOL_SETTINGS = _POOL_DEFAULTS | {"kernel_shape": [2] * 3, "strides": [2] * 3}


def with_fast_convolutions(file: OnnxFile) -> tuple[bytes, dict[str, np.ndarray]]:
    """The file's content with faster convolutions, where there are any of 5 x 5 x 5; and their
    weights by name, float32, which are not part of it (`SessionOptions.add_external_initializers`).

    All inputs, outputs and other tensors keep their names.
    """
    fitting = [n for n, node in enumerate(file.nodes) if _fits(node, file)]
    if not fitting or file.opset < MIN_OPSET:
        return bytes(file.content), {}
    graph = _Graph(f"{file.nodes[fitting[0]].outputs[0]}/winograd")
    replaced, read, own = {}, set(file.outputs), set()
    convolved = {node.outputs[0] for node in file.nodes if node.op == "Conv"}
    for n, node in enumerate(file.nodes):
        parts = n in fitting and file.weights[node.inputs[1]].shape[1] > 1
        (own if parts else read).update(node.inputs)
        if parts:
            _replace(node, file, graph)
        elif n in fitting and (pool := _pool(node, file)) is not None:
            replaced[pool] = b""
            _pool_halves(node, file.nodes[pool], graph)
        elif _of_channels(node, convolved):
            _softmax(node, file.opset, graph)
        if graph.nodes:
            replaced[n], graph.nodes = b"".join(graph.nodes), []
    if not replaced:
        return bytes(file.content), {}
    unread = {n for n, name in enumerate(file.weights) if name in own - read}
    model: list[bytes] = []
    for number, wire, value in message_fields(memoryview(file.content)):
        if number == _GRAPH:
            pieces = [*_changed(value, replaced, unread), *graph.constants]
            model += [length_bytes(number, sum(map(len, pieces))), *pieces]
        else:
            model.append(field_bytes(number, wire, value))
    return b"".join(model), graph.weights


def _changed(graph: memoryview, replaced: dict[int, bytes], unread: set[int]) -> Iterator[bytes]:
    """Fields of a graph with others for the nodes, and without the weights, of these numbers."""
    node = weight = 0
    for number, wire, value in message_fields(graph):
        if number == NODE:
            yield replaced[node] if node in replaced else field_bytes(number, wire, value)
            node += 1
        elif number != INITIALIZER or weight not in unread:
            yield field_bytes(number, wire, value)
        weight += number == INITIALIZER


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
    return (
        _has(node, _DEFAULTS, _SETTINGS)
        and weight.shape[2:] == (KERNEL,) * 3
        and all(values.shape == weight.shape[:1] for values in bias)
        and isinstance(groups, int)
        and groups > 0
        and len(weight) > 0 == len(weight) % groups
    )


def _has(node: Node, defaults: dict[str, object], settings: dict[str, object]) -> bool:
    """Whether a node has these attributes, of these types."""
    found = {**defaults, **node.attributes}
    return all(type(found[k]) is type(v) and found[k] == v for k, v in settings.items())


def _pool(node: Node, file: OnnxFile) -> int | None:
    """Number of the only node that reads a node's output, if it takes the largest of 2 x 2 x 2
    voxels.
    """
    made = node.outputs[0]
    readers = [n for n, other in enumerate(file.nodes) if made in other.inputs]
    if len(readers) != 1 or made in file.outputs:
        return None
    pool = file.nodes[readers[0]]
    fits = pool.op == "MaxPool" and len(pool.outputs) == 1
    return readers[0] if fits and _has(pool, _POOL_DEFAULTS, _POOL_SETTINGS) else None


def _pool_halves(node: Node, pool: Node, graph: "_Graph") -> None:
    """Append a convolution and its pooling for even and odd slices apart, which needs half of the
    memory; at the finest grid it is the network's largest need.
    """
    half, pooled = KERNEL // 2, []
    for first in (0, 1):
        convolved = graph.node(
            "Conv",
            node.inputs,
            group=node.attributes.get("group", 1),
            kernel_shape=[KERNEL] * 3,
            strides=[2, 1, 1],
            pads=[half - first, half, half, half - 1 + first, half, half],
        )
        pooled.append(graph.node("MaxPool", [convolved], kernel_shape=[1, 2, 2], strides=[1, 2, 2]))
    graph.node("Max", pooled, pool.outputs[0])


def _of_channels(node: Node, convolved: set[str]) -> bool:
    """Whether a node is the softmax of the channels of a convolution's output."""
    softmax = (node.op, len(node.inputs), len(node.outputs)) == ("Softmax", 1, 1)
    return softmax and node.inputs[0] in convolved and _has(node, {"axis": -1}, {"axis": 1})


def _softmax(node: Node, opset: int, graph: "_Graph") -> None:
    """Append a softmax of channels, for which onnxruntime would transpose them to the last axis and
    back.
    """
    (x,), channels = node.inputs, graph.whole([1])
    if opset < 18:  # ReduceMax has its axes as an attribute
        largest = graph.node("ReduceMax", [x], axes=[1])
    else:
        largest = graph.node("ReduceMax", [x, channels])
    powers = graph.node("Exp", [graph.node("Sub", [x, largest])])
    total = graph.node("ReduceSum", [powers, channels])
    graph.node("Div", [powers, total], node.outputs[0])


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


def _replace(node: Node, file: OnnxFile, graph: "_Graph") -> None:
    """Append nodes and weights that compute what a convolution computes."""
    x, given_weight, *given_bias = node.inputs
    weight = file.weights[given_weight]
    bias = file.weights[given_bias[0]] if any(given_bias) else np.zeros(len(weight))
    groups = node.attributes.get("group", 1)
    outputs, inputs = len(weight) // groups, weight.shape[1]  # of a group
    shape = graph.node("Shape", [x])
    # Two rows are computed as further channels if a block would not be full otherwise.
    rows = 2 if 2 * outputs <= BLOCK else 1
    if inputs % BLOCK == 0 and rows * outputs % BLOCK == 0:
        _convolve(graph, x, shape, weight, bias, groups, rows, node.outputs[0])
        return
    # onnxruntime has no blocks for groups that do not fill them. One after the other, the groups
    # also need less memory.
    parts = []
    for n, (w, b) in enumerate(zip(np.split(weight, groups), np.split(bias, groups))):
        part = x
        if groups > 1:
            bounds = [[n * inputs], [(n + 1) * inputs], [1]]
            part = graph.node("Slice", [x, *map(graph.whole, bounds)])
        parts.append(_convolve(graph, part, shape, w, b, 1, rows))
    graph.node("Concat", parts, node.outputs[0], axis=1)


def _convolve(
    graph: "_Graph",
    x: str,
    shape: str,
    weight: np.ndarray,
    bias: np.ndarray,
    groups: int,
    rows: int,
    output: str = "",
) -> str:
    """Append the convolution of x, of `shape` (its channels aside); returns its output.

    T below: the number of steps of MADE slices that cover the input; slices that they make beyond
    it are cut off at the end.
    """
    given, _, made = transforms()
    half, inputs, channels = KERNEL // 2, weight.shape[1], groups * weight.shape[1]
    # Points at once: fewer would need more operators, which take time to load; more would need more
    # memory where there are few channels, at the finest grid.
    together = READ if channels > BLOCK else READ // 2
    count, size = graph.part(shape, 0, 1), graph.part(shape, 3, 5)

    # Each channel of the input [N, channels, slices, rows, columns] as an image of one channel. (In
    # two dimensions onnxruntime would use blocks, of which this channel fills a part only.)
    image = graph.reshape(graph.reshape(x, [0, 0, 0, 1, -1]), [-1, 1, 0, 0, 0])
    weights, biases = _at_points(graph, weight, bias, groups, rows)
    each = rows * len(bias)  # outputs at a point
    fills = inputs % BLOCK == 0 and each // groups % BLOCK == 0
    convolved = []
    for first in range(0, READ, together):
        mixed = graph.node(
            "Conv",
            [image, graph.weight(given[first : first + together, None, :, None, None])],
            kernel_shape=[READ, 1, 1],
            strides=[MADE, 1, 1],
            pads=[half, 0, 0, half + MADE - 1, 0, 0],
        )
        apart = graph.reshape(mixed, count, [channels, together, -1, 0])
        # Points are groups of one convolution, or convolved one by one if they do not fill blocks.
        points = together if fills else 1
        # [N, T, points, channels, rows x columns], or the points in front
        apart = graph.node("Transpose", [apart], perm=[0, 3, 2, 1, 4] if fills else [2, 0, 3, 1, 4])
        for n in range(0, together, points):
            one = apart
            if not fills:
                bounds = [[n], [n + 1], [0]]
                one = graph.node("Slice", [apart, *map(graph.whole, bounds)])
            chosen = slice((first + n) * each, (first + n + points) * each)
            planes = graph.reshape(one, [-1, points * channels], size)
            constants = [graph.weight(weights[chosen]), graph.weight(biases[chosen])]
            one = graph.node(
                "Conv",
                [planes, *constants],
                group=points * groups,
                kernel_shape=[KERNEL + rows - 1, KERNEL],
                strides=[rows, 1],
                pads=[half, half, half + rows - 1, half],
            )
            convolved.append(one)
    found = graph.node("Concat", convolved, axis=1)
    made_size = size if rows == 1 else graph.part(graph.node("Shape", [found]), 2, 4)
    found = graph.reshape(found, [0, READ, -1])
    found = graph.node("MatMul", [graph.weight(made), found])
    parts = [-1, MADE, groups, rows, len(bias) // groups]
    found = graph.reshape(found, count, parts, made_size)
    turned = graph.node("Transpose", [found], perm=[0, 3, 5, 1, 2, 6, 4, 7])
    if rows > 1:
        # The numbers of slices and rows are one axis each after two steps, as both are unknown.
        last = graph.part(graph.node("Shape", [turned]), 5, 8)
        turned = graph.reshape(turned, [0, len(bias), -1], last)
        whole = graph.reshape(turned, [0, 0, 0, -1], graph.part(shape, 4, 5))
    else:
        whole = graph.reshape(turned, [0, len(bias), -1], size)
    bounds = [graph.whole([0, 0]), graph.part(shape, 2, 4), graph.whole([2, 3])]
    return graph.node("Slice", [whole, *bounds], output)


def _at_points(
    graph: "_Graph", weight: np.ndarray, bias: np.ndarray, groups: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kernels [READ x groups x rows x outputs, inputs, rows', columns'] of the convolutions, and
    their biases; outputs and inputs are those of a group. The kernel of the second row is that of
    the first, a row lower.
    """
    kernel = transforms()[1].astype(np.float32)
    given = weight.reshape(groups, -1, weight.shape[1], KERNEL, KERNEL * KERNEL)
    taller = (READ, groups, rows, *given.shape[1:3], KERNEL + rows - 1, KERNEL)
    weights = np.zeros((*taller[:5], taller[5] * KERNEL), np.float32)
    for row in range(rows):
        one = weights[:, :, row, ..., row * KERNEL :][..., : KERNEL * KERNEL]
        # Many small products: of a large one's threads, the idle ones would spin.
        np.matmul(kernel, given, out=np.moveaxis(one, 0, -2))
    biases = np.zeros(taller[:4])
    biases[ONE] = bias.reshape(groups, 1, -1)
    return weights.reshape(-1, *taller[4:]), biases.reshape(-1)


class _Graph:
    """Writer of nodes and of the constants that they read, which have names after `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[bytes] = []
        self.constants: list[bytes] = []
        self.weights: dict[str, np.ndarray] = {}
        self._prefix, self._names = prefix, 0
        self._known: dict[str, str] = {}

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: object) -> str:
        """Append a node; returns its output."""
        output = output or self._name()
        self.nodes.append(node_bytes(op, inputs, [output], **attributes))
        return output

    def reshape(self, source: str, *sizes: list[int] | str) -> str:
        """Sizes: numbers, and tensors of numbers; 0 keeps an axis, -1 is what is left."""
        key = str(sizes)
        if key not in self._known:
            named = [size if isinstance(size, str) else self.whole(size) for size in sizes]
            self._known[key] = self.node("Concat", named, axis=0) if len(named) > 1 else named[0]
        return self.node("Reshape", [source, self._known[key]])

    def part(self, shape: str, first: int, end: int) -> str:
        """Some of the sizes in a shape."""
        return self.node("Slice", [shape, self.whole([first]), self.whole([end])])

    def whole(self, numbers: list[int] | int) -> str:
        """A constant of whole numbers, written once."""
        key = str(numbers)
        if key not in self._known:
            self._known[key] = self._name()
            values = np.array(numbers, np.int64)
            self.constants.append(tensor_bytes(self._known[key], values))
        return self._known[key]

    def weight(self, values: np.ndarray) -> str:
        """A constant of float32, kept apart: within the content it would be copied twice more."""
        name = self._name()
        self.weights[name] = np.ascontiguousarray(values, np.float32)
        self.constants.append(external_bytes(name, self.weights[name].shape))
        return name

    def _name(self) -> str:
        self._names += 1
        return f"{self._prefix}/{self._names}"
