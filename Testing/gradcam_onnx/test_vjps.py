"""Every vector-Jacobian product against PyTorch's autograd in float64, over drawn shapes and
attributes; ONNX Runtime confirms that the operator computes what the PyTorch function does.
"""

import functools

import numpy as np
import pytest

from LiverFibrosisStagingLib.gradcam_onnx.backprop import VJPS, Tail, shape_name, trace
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx

torch = pytest.importorskip("torch", reason="the independent implementation")
onnx = pytest.importorskip("onnx", reason="writes the operators")
onnxruntime = pytest.importorskip("onnxruntime")
hypothesis = pytest.importorskip("hypothesis", reason="draws shapes and attributes")
from hypothesis import strategies as st  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

F = torch.nn.functional
CASES = {}
EXAMPLES = 25


def case(op, name=""):
    """Register a drawing function: draw -> Case."""

    def register(function):
        CASES[f"{op} {name}".strip()] = (op, function)
        return function

    return register


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


# --- elementwise ---------------------------------------------------------------------------------

UNARY = {
    "Relu": (torch.relu, None),
    "Sigmoid": (torch.sigmoid, None),
    "HardSwish": (lambda x: F.hardswish(4 * x), None),
    "Tanh": (torch.tanh, None),
    "Erf": (torch.erf, None),
    "Softplus": (F.softplus, None),
    "Exp": (torch.exp, None),
    "Log": (torch.log, 0.2),
    "Sqrt": (torch.sqrt, 0.2),
    "Reciprocal": (torch.reciprocal, 0.2),
    "Neg": (torch.neg, None),
    "Abs": (torch.abs, None),
    "Identity": (lambda x: x, None),
}
for _op, (_function, _low) in UNARY.items():
    if _op != "HardSwish":

        @case(_op)
        def unary(draw, function=_function, low=_low):
            return Case([normal(draw, a_shape(draw), low)], function)


@case("HardSwish")
def hard_swish(draw):
    return Case([4 * normal(draw, a_shape(draw))], F.hardswish)


@case("Gelu")
def gelu(draw):
    how = draw(st.sampled_from(["none", "tanh"]))
    return Case(
        [3 * normal(draw, a_shape(draw))],
        lambda x: F.gelu(x, approximate=how),
        {"approximate": how},
        opset=20,
    )


@case("LeakyRelu")
def leaky_relu(draw):
    alpha = draw(st.sampled_from([0.0, 0.125, 1.5]))
    return Case([normal(draw, a_shape(draw))], lambda x: F.leaky_relu(x, alpha), {"alpha": alpha})


@case("Elu")
def elu(draw):
    alpha = draw(st.sampled_from([0.5, 1.0, 2.0]))
    return Case([normal(draw, a_shape(draw))], lambda x: F.elu(x, alpha), {"alpha": alpha})


@case("Selu")
def selu(draw):
    return Case([normal(draw, a_shape(draw))], F.selu)


@case("HardSigmoid")
def hard_sigmoid(draw):
    alpha, beta = draw(st.sampled_from([(0.25, 0.5), (0.125, 0.25)]))
    return Case(
        [4 * normal(draw, a_shape(draw))],
        lambda x: torch.clamp(alpha * x + beta, 0, 1),
        {"alpha": alpha, "beta": beta},
    )


@case("PRelu")
def prelu(draw):
    shape = an_image(draw, draw(ints(1, 3)))
    slope = normal(draw, (shape[1], *[1] * (len(shape) - 2)))
    return Case([normal(draw, shape), slope], lambda x: F.prelu(x, torch.tensor(slope).ravel()))


@case("Clip")
def clip(draw):
    low, high = draw(st.sampled_from([(-0.5, 0.75), (None, 0.25), (0.0, None), (None, None)]))
    inputs = [normal(draw, a_shape(draw)), *(v if v is None else np.array(v) for v in (low, high))]
    free = low is None and high is None
    return Case(inputs, lambda x: x if free else torch.clamp(x, low, high))


@case("Cast")
def cast(draw):
    return Case([normal(draw, a_shape(draw))], lambda x: x, {"to": 1})


@case("Dropout")
def dropout(draw):
    inputs = [normal(draw, a_shape(draw)), np.array(0.5, np.float32), np.array(False)]
    return Case(inputs[: draw(ints(1, 3))], lambda x: x)


def a_pair(draw, low_a=None, low_b=None):
    """Two shapes that broadcast: axes of either may be 1 or missing."""
    shape = a_shape(draw, 1, 4)
    pair = []
    for low in (low_a, low_b):
        own = [1 if draw(st.booleans()) and draw(st.booleans()) else n for n in shape]
        pair.append(normal(draw, own[draw(ints(0, len(shape) - 1)) :], low))
    return pair


BINARY = {
    "Add": (torch.add, None, None),
    "Sub": (torch.sub, None, None),
    "Mul": (torch.mul, None, None),
    "Div": (torch.div, None, 0.3),
    "Pow": (torch.pow, 0.3, None),
}
for _op, (_function, _a, _b) in BINARY.items():

    @case(_op)
    def binary(draw, function=_function, low_a=_a, low_b=_b):
        inputs = a_pair(draw, low_a, low_b)
        active = draw(st.sampled_from([(0,), (1,), (0, 1)]))
        constant = [torch.tensor(x) for x in inputs]

        def of(*given):
            both = list(constant)
            for position, x in zip(active, given):
                both[position] = x
            return function(*both)

        return Case(inputs, of, active=active)


@case("Sum")
def several(draw):
    return Case([*a_pair(draw), normal(draw, (1,))], lambda a, b, c: a + b + c, active=(0, 1, 2))


for _op, _function in {"Softmax": F.softmax, "LogSoftmax": F.log_softmax}.items():

    @case(_op)
    def softmax(draw, function=_function):
        shape = a_shape(draw)
        axis = draw(ints(-len(shape), len(shape) - 1))
        return Case([normal(draw, shape)], lambda x: function(x, axis), {"axis": axis})


# --- shapes --------------------------------------------------------------------------------------


def int64(values):
    return np.array(values, np.int64)


@case("Flatten")
def flatten(draw):
    shape = a_shape(draw, 2)
    axis = draw(ints(1, len(shape) - 1))
    lead = int(np.prod(shape[:axis]))
    return Case([normal(draw, shape)], lambda x: x.reshape(lead, -1), {"axis": axis})


@case("Reshape")
def reshape(draw):
    shape = a_shape(draw, 2)
    to = [-1, *shape[::-1][:1]]
    return Case([normal(draw, shape), int64(to)], lambda x: x.reshape(to))


@case("Transpose")
def transpose(draw):
    shape = a_shape(draw)
    if draw(st.booleans()):
        return Case([normal(draw, shape)], lambda x: x.permute(*range(x.ndim)[::-1]))
    order = draw(st.permutations(range(len(shape))))
    return Case([normal(draw, shape)], lambda x: x.permute(*order), {"perm": order})


@case("Squeeze")
def squeeze(draw):
    shape = list(a_shape(draw))
    axis = draw(ints(0, len(shape)))
    shape.insert(axis, 1)
    return Case([normal(draw, shape), int64([axis])], lambda x: x.squeeze(axis))


@case("Unsqueeze")
def unsqueeze(draw):
    shape = a_shape(draw)
    axis = draw(ints(-len(shape) - 1, len(shape)))
    return Case([normal(draw, shape), int64([axis])], lambda x: x.unsqueeze(axis))


@case("Expand")
def expand(draw):
    x = a_pair(draw)[0]
    to = [draw(ints(1, 4)) if n == 1 else n for n in x.shape]
    to = [*many(draw, draw(ints(0, 2)), 1, 3), *to]
    return Case([x, int64(to)], lambda x: x.expand(*to))


@case("Concat")
def concat(draw):
    shape = list(a_shape(draw))
    axis = draw(ints(-len(shape), len(shape) - 1))
    parts = []
    for _ in range(draw(ints(1, 3))):
        shape[axis] = draw(ints(1, 4))
        parts.append(normal(draw, shape))
    active = tuple(range(len(parts)))[draw(ints(0, len(parts) - 1)) :]
    constant = [torch.tensor(p) for p in parts[: active[0]]]
    return Case(parts, lambda *x: torch.cat([*constant, *x], axis), {"axis": axis}, active)


@case("Split")
def split(draw):
    shape = list(a_shape(draw))
    axis = draw(ints(-len(shape), len(shape) - 1))
    how = draw(st.sampled_from(["sizes", "equal", "number"]))
    count = draw(ints(1, 3))
    if how == "sizes":
        sizes = many(draw, count, 1, 3)
        shape[axis] = sum(sizes)
        x, more, opset = normal(draw, shape), [int64(sizes)], 13
        attributes = {"axis": axis}
        of = lambda x: torch.split(x, sizes, axis)  # noqa: E731
    else:
        each = draw(ints(2, 3))
        short = how == "number" and count > 1
        shape[axis] = each * count - short
        x, more, opset = normal(draw, shape), [], 18 if how == "number" else 13
        attributes = {"axis": axis, **({"num_outputs": count} if how == "number" else {})}
        of = lambda x: torch.split(x, each, axis)  # noqa: E731
    return Case([x, *more], of, attributes, opset=opset, outputs=count)


@case("Slice")
def slice_(draw):
    shape = a_shape(draw, 1, 3)
    axes = draw(st.permutations(range(len(shape))))[: draw(ints(1, len(shape)))]
    starts, ends, steps, where = [], [], [], [None] * len(shape)
    for axis in axes:
        step = draw(st.sampled_from([1, 2, -1, -2]))
        n = shape[axis]
        start = draw(ints(-n, n - 1))
        first = start % n
        # At least one number is taken.
        end = draw(ints(first + 1, n + 3)) if step > 0 else draw(ints(0, first) | st.just(-99)) - 1
        if step < 0 and end == -1:
            end = -n - 1
        starts, ends, steps = [*starts, start], [*ends, end], [*steps, step]
        stop = end if step > 0 else (-1 if end < 0 else end)
        where[axis] = list(range(first, min(stop, n), step))
    inputs = [normal(draw, shape), int64(starts), int64(ends), int64(axes), int64(steps)]
    wanted = [list(range(n)) if w is None else w for n, w in zip(shape, where)]
    return Case(inputs, lambda x: x[np.ix_(*wanted)])


@case("Gather")
def gather(draw):
    shape = a_shape(draw)
    axis = draw(ints(-len(shape), len(shape) - 1))
    n = shape[axis]
    chosen = np.array(draw(st.lists(ints(-n, n - 1), min_size=1, max_size=4)))
    chosen = draw(st.sampled_from([chosen, chosen[0], chosen[None]]))

    def of(x):
        taken = x.index_select(axis, torch.tensor(np.ravel(chosen) % n))
        at = axis % len(shape)
        return taken.reshape((*shape[:at], *np.shape(chosen), *shape[at + 1 :]))

    return Case([normal(draw, shape), int64(chosen)], of, {"axis": axis})


@case("Pad")
def pad(draw):
    dims = draw(ints(1, 2))
    shape = an_image(draw, dims, least=3)
    mode = draw(st.sampled_from(["constant", "reflect", "edge"]))
    least = -1 if mode == "constant" else 0
    before, after = many(draw, dims, least, 2), many(draw, dims, least, 2)
    ordered = [n for pair in zip(before[::-1], after[::-1]) for n in pair]
    torch_mode = "replicate" if mode == "edge" else mode
    if draw(st.booleans()):
        pads, axes, opset = [*before, *after], [None, int64(range(2, 2 + dims))], 18
    else:
        pads, axes, opset = [0, 0, *before, 0, 0, *after], [], 13
    inputs = [normal(draw, shape), int64(pads), *axes]
    return Case(inputs, lambda x: F.pad(x, ordered, torch_mode), {"mode": mode}, opset=opset)


@case("Resize", "as in PyTorch")
def resize(draw):
    dims = draw(ints(1, 2))
    mode = draw(st.sampled_from(["nearest", "linear"]))
    shape = an_image(draw, dims, least=2, most=5)
    size = many(draw, dims, 2, 9)
    kind = "bilinear" if dims == 2 else "linear"
    if mode == "nearest":
        where, of = "asymmetric", lambda x: F.interpolate(x, size, mode="nearest")
    else:
        corners = draw(st.booleans())
        where = "align_corners" if corners else "pytorch_half_pixel"
        of = lambda x: F.interpolate(x, size, mode=kind, align_corners=corners)  # noqa: E731
    inputs = [normal(draw, shape), None, None, int64([*shape[:2], *size])]
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": where,
        "nearest_mode": "floor",
    }
    return Case(inputs, of, attributes, opset=draw(st.sampled_from([13, 18])))


# --- sums ----------------------------------------------------------------------------------------


@case("Gemm")
def gemm(draw):
    n, k, m = many(draw, 3, 1, 5)
    ta, tb = draw(ints(0, 1)), draw(ints(0, 1))
    a, b = normal(draw, (k, n) if ta else (n, k)), normal(draw, (m, k) if tb else (k, m))
    c = normal(draw, draw(st.sampled_from([(m,), (1, m), (n, 1)])))
    attributes = {"alpha": 0.5, "beta": 2.0, "transA": ta, "transB": tb}
    of = lambda a, b, c: 0.5 * (a.T if ta else a) @ (b.T if tb else b) + 2 * c  # noqa: E731
    if draw(st.booleans()):
        return Case([a, b, c], of, attributes, (0, 1, 2))
    return Case([a, b, c], lambda a: of(a, torch.tensor(b), torch.tensor(c)), attributes)


@case("MatMul")
def matmul(draw):
    n, k, m = many(draw, 3, 1, 4)
    batch = many(draw, draw(ints(0, 2)), 1, 3)
    less = [1 if draw(st.booleans()) else b for b in batch]
    shapes = [
        ([*batch, n, k], [*less, k, m]),
        ([*less, n, k], [*batch, k, m]),
        ([k], [*batch, k, m]),
        ([*batch, n, k], [k]),
        ([k], [k]),
    ]
    a, b = draw(st.sampled_from(shapes))
    return Case([normal(draw, a), normal(draw, b)], torch.matmul, active=(0, 1))


@case("Einsum")
def einsum(draw):
    n, k, m, h = many(draw, 4, 1, 4)
    equation, a, b = draw(
        st.sampled_from(
            [
                ("nk,km->nm", (n, k), (k, m)),
                ("hnk, hmk -> hnm", (h, n, k), (h, m, k)),
                ("hnk,hkm->nhm", (h, n, k), (h, k, m)),
            ]
        )
    )
    of = lambda a, b: torch.einsum(equation, a, b)  # noqa: E731
    return Case([normal(draw, a), normal(draw, b)], of, {"equation": equation}, (0, 1))


def some_axes(draw, shape):
    axes = draw(st.lists(ints(0, len(shape) - 1), min_size=1, unique=True))
    return [a - len(shape) if draw(st.booleans()) else a for a in axes]


REDUCTIONS = {
    "ReduceMean": (torch.mean, 18),
    "ReduceSum": (torch.sum, 13),
    "ReduceMax": (torch.amax, 18),
    "ReduceMin": (torch.amin, 18),
}
for _op, (_function, _since) in REDUCTIONS.items():

    @case(_op)
    def reduction(draw, function=_function, since=_since):
        shape = a_shape(draw)
        axes, keep = some_axes(draw, shape), draw(ints(0, 1))
        x = normal(draw, shape)
        attributes = {"keepdims": keep}
        how = draw(st.sampled_from(["input", "attribute", "all"]))
        if how == "all":
            everything = tuple(range(len(shape)))
            return Case([x], lambda x: function(x, everything, bool(keep)), attributes, opset=since)
        of = lambda x: function(x, axes, bool(keep))  # noqa: E731
        if how == "attribute" and since == 18:
            return Case([x], of, {**attributes, "axes": axes}, opset=13)
        return Case([x, int64(axes)], of, attributes, opset=since)


@case("GlobalAveragePool")
def global_average_pool(draw):
    dims = draw(ints(1, 3))
    axes = tuple(range(2, 2 + dims))
    return Case([normal(draw, an_image(draw, dims))], lambda x: x.mean(axes, keepdim=True))


@case("GlobalMaxPool")
def global_max_pool(draw):
    dims = draw(ints(1, 3))
    axes = tuple(range(2, 2 + dims))
    return Case([normal(draw, an_image(draw, dims))], lambda x: x.amax(axes, keepdim=True))


@case("BatchNormalization")
def batch_normalization(draw):
    shape = an_image(draw, draw(ints(0, 3)))
    n = shape[1]
    scale, bias, mean = (normal(draw, n) for _ in range(3))
    variance = normal(draw, n, 0.3)
    tensors = [torch.tensor(v) for v in (mean, variance, scale, bias)]
    return Case(
        [normal(draw, shape), scale, bias, mean, variance],
        lambda x: F.batch_norm(x, *tensors, eps=1e-3),
        {"epsilon": 1e-3},
    )


@case("InstanceNormalization")
def instance_normalization(draw):
    shape = an_image(draw, draw(ints(1, 3)))
    scale, bias = normal(draw, shape[1]), normal(draw, shape[1])
    tensors = [torch.tensor(scale), torch.tensor(bias)]
    of = lambda x: F.instance_norm(x, None, None, *tensors, eps=1e-3)  # noqa: E731
    return Case([normal(draw, shape), scale, bias], of, {"epsilon": 1e-3})


@case("LayerNormalization")
def layer_normalization(draw):
    shape = (*a_shape(draw, 1, 2), *many(draw, draw(ints(1, 2)), 2, 5))
    axis = draw(ints(-min(2, len(shape) - 1), -1))
    normalized = shape[axis:]
    scale, bias = normal(draw, normalized), normal(draw, normalized)
    of = lambda x: F.layer_norm(  # noqa: E731
        x, normalized, torch.tensor(scale), torch.tensor(bias), 1e-3
    )
    return Case([normal(draw, shape), scale, bias], of, {"axis": axis, "epsilon": 1e-3})


@case("GroupNormalization")
def group_normalization(draw):
    groups, each = draw(ints(1, 3)), draw(ints(1, 3))
    shape = an_image(draw, draw(ints(1, 2)), channels=groups * each)
    opset = draw(st.sampled_from([18, 21]))
    n = groups if opset == 18 else groups * each
    scale, bias = normal(draw, n), normal(draw, n)
    tensors = [torch.tensor(v.repeat(groups * each // n)) for v in (scale, bias)]
    of = lambda x: F.group_norm(x, groups, *tensors, eps=1e-3)  # noqa: E731
    attributes = {"num_groups": groups, "epsilon": 1e-3}
    return Case([normal(draw, shape), scale, bias], of, attributes, opset=opset)


@case("LRN")
def lrn(draw):
    shape = an_image(draw, 2, channels=draw(ints(1, 6)))
    size = draw(st.sampled_from([1, 3, 5]))
    of = lambda x: F.local_response_norm(x, size, 0.5, 0.75, 1.5)  # noqa: E731
    attributes = {"size": size, "alpha": 0.5, "beta": 0.75, "bias": 1.5}
    return Case([normal(draw, shape)], of, attributes)


# --- windows -------------------------------------------------------------------------------------

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def torch_pads(before, after):
    return [n for pair in zip(before[::-1], after[::-1]) for n in pair]


@case("Conv")
def conv(draw):
    dims, group = draw(ints(1, 3)), draw(ints(1, 3))
    shape = an_image(draw, dims, channels=group * draw(ints(1, 2)), least=6)
    kernel, strides = many(draw, dims, 1, 3), many(draw, dims, 1, 2)
    dilations, before, after = (
        many(draw, dims, 1, 2),
        many(draw, dims, 0, 2),
        many(draw, dims, 0, 2),
    )
    w = normal(draw, (group * draw(ints(1, 2)), shape[1] // group, *kernel))
    b = normal(draw, w.shape[0])
    attributes = {"strides": strides, "dilations": dilations, "group": group}
    auto = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if auto == "NOTSET":
        attributes |= {"pads": [*before, *after], "kernel_shape": kernel}
    else:
        attributes["auto_pad"] = auto
        # ONNX Runtime takes SAME with dilation for an error.
        attributes["dilations"] = dilations = [1] * dims
        before, after = [0] * dims, [0] * dims
        if auto != "VALID":
            missing = [
                max(0, (-(-n // s) - 1) * s + k - n) for n, s, k in zip(shape[2:], strides, kernel)
            ]
            less = [m // 2 for m in missing]
            more = [m - m // 2 for m in missing]
            before, after = (less, more) if auto == "SAME_UPPER" else (more, less)

    def of(x):
        padded = F.pad(x, torch_pads(before, after))
        return CONV[dims](
            padded, torch.tensor(w), torch.tensor(b), strides, 0, dilations, groups=group
        )

    return Case([normal(draw, shape), w, b], of, attributes)


@case("ConvTranspose")
def conv_transpose(draw):
    dims, group = draw(ints(1, 3)), draw(ints(1, 2))
    shape = an_image(draw, dims, channels=group * draw(ints(1, 2)), least=3, most=5)
    kernel, strides = many(draw, dims, 2, 3), many(draw, dims, 1, 3)
    dilations, pads = many(draw, dims, 1, 2), many(draw, dims, 0, 1)
    extra = [draw(ints(0, s - 1)) for s in strides]
    w = normal(draw, (shape[1], draw(ints(1, 2)), *kernel))
    attributes = {"strides": strides, "dilations": dilations, "group": group}
    if draw(st.booleans()):
        attributes |= {"pads": pads * 2, "output_padding": extra}
    else:  # the same output, told by its shape
        reach = [
            s * (n - 1) + d * (k - 1) + 1
            for s, n, d, k in zip(strides, shape[2:], dilations, kernel)
        ]
        extra = [0] * dims
        attributes["output_shape"] = [r - 2 * p for r, p in zip(reach, pads)]
    of = lambda x: CONV_TRANSPOSE[dims](  # noqa: E731
        x, torch.tensor(w), None, strides, pads, extra, group, dilations
    )
    return Case([normal(draw, shape), w], of, attributes)


@case("MaxPool")
def max_pool(draw):
    dims = draw(ints(1, 3))
    shape = an_image(draw, dims, least=6)
    kernel, strides = many(draw, dims, 1, 3), many(draw, dims, 1, 3)
    pads = [draw(ints(0, k // 2)) for k in kernel]
    dilations, ceil = many(draw, dims, 1, 2), draw(ints(0, 1))
    of = lambda x: MAX_POOL[dims](x, kernel, strides, pads, dilations, bool(ceil))  # noqa: E731
    attributes = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": pads * 2,
        "dilations": dilations,
        "ceil_mode": ceil,
    }
    return Case([normal(draw, shape)], of, attributes)


@case("AveragePool")
def average_pool(draw):
    dims = draw(ints(1, 3))
    shape = an_image(draw, dims, least=6)
    kernel, strides = many(draw, dims, 1, 3), many(draw, dims, 1, 3)
    pads = [draw(ints(0, k // 2)) for k in kernel]
    ceil, counted = draw(ints(0, 1)), draw(ints(0, 1))
    of = lambda x: AVG_POOL[dims](x, kernel, strides, pads, bool(ceil), bool(counted))  # noqa: E731
    attributes = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": pads * 2,
        "ceil_mode": ceil,
        "count_include_pad": counted,
    }
    # Before version 19 ONNX Runtime counted what ceil mode adds.
    return Case([normal(draw, shape)], of, attributes, opset=19)


# --- the comparison ------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", CASES)
def test_product_equals_autograd(name, tmp_path):
    op, drawing = CASES[name]
    path = tmp_path / "one.onnx"

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
                handed = {n: values[n] for n in tail.tensors}
                if f"x{position}" not in read:
                    handed[f"x{position}"] = np.full(drawn.inputs[position].shape, np.nan)
                found = tail.gradient(handed, g)
                assert found.shape == drawn.inputs[position].shape
                assert relative(found, gradient.numpy()) < 1e-5

    run()


def prepared(path, target, score, drawn):
    """The tail of a file whose outputs are no more than the steps say that they read."""
    file = read_onnx(path)
    for position, values in enumerate(drawn.inputs):
        if f"c{position}" in file.weights:  # in float64, as autograd has them
            file.weights[f"c{position}"] = values
    steps = trace(file, target, score, "one.onnx")
    read = {name for step in steps for name in step.values}
    file.outputs = [target, score, *read, *map(shape_name, {n for s in steps for n in s.shapes})]
    return Tail.of(file, target, score, "one.onnx"), read


def test_every_operator_is_compared():
    assert {op for op, _ in CASES.values()} == VJPS.keys()
