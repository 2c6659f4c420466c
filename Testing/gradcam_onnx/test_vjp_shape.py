"""VJPs of operators that copy and rearrange numbers, compared with autograd."""

import numpy as np
import pytest
from vjp_cases import Case, Cases, a_pair, a_shape, an_image, check, int64, ints, many, normal, st

from LiverFibrosisStagingLib.gradcam_onnx.vjp_shape import SHAPE

torch = pytest.importorskip("torch", reason="the independent implementation")

F = torch.nn.functional
CASES = Cases()


@CASES.add("Flatten")
def flatten(draw):
    shape = a_shape(draw, 2)
    axis = draw(ints(1, len(shape) - 1))
    lead = int(np.prod(shape[:axis]))
    return Case([normal(draw, shape)], lambda x: x.reshape(lead, -1), {"axis": axis})


@CASES.add("Reshape")
def reshape(draw):
    shape = a_shape(draw, 2)
    to = [-1, *shape[::-1][:1]]
    return Case([normal(draw, shape), int64(to)], lambda x: x.reshape(to))


@CASES.add("Transpose")
def transpose(draw):
    shape = a_shape(draw)
    if draw(st.booleans()):
        return Case([normal(draw, shape)], lambda x: x.permute(*range(x.ndim)[::-1]))
    order = draw(st.permutations(range(len(shape))))
    return Case([normal(draw, shape)], lambda x: x.permute(*order), {"perm": order})


@CASES.add("Squeeze")
def squeeze(draw):
    shape = list(a_shape(draw))
    axis = draw(ints(0, len(shape)))
    shape.insert(axis, 1)
    return Case([normal(draw, shape), int64([axis])], lambda x: x.squeeze(axis))


@CASES.add("Unsqueeze")
def unsqueeze(draw):
    shape = a_shape(draw)
    axis = draw(ints(-len(shape) - 1, len(shape)))
    return Case([normal(draw, shape), int64([axis])], lambda x: x.unsqueeze(axis))


@CASES.add("Expand")
def expand(draw):
    x = a_pair(draw)[0]
    to = [draw(ints(1, 4)) if n == 1 else n for n in x.shape]
    to = [*many(draw, draw(ints(0, 2)), 1, 3), *to]
    return Case([x, int64(to)], lambda x: x.expand(*to))


@CASES.add("Concat")
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


@CASES.add("Split")
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


@CASES.add("Slice")
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


@CASES.add("Gather")
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


@CASES.add("Pad")
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


@CASES.add("Resize", "as in PyTorch")
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


@pytest.mark.parametrize("name", CASES)
def test_vjp_equals_autograd(name, tmp_path):
    check(*CASES[name], tmp_path / "one.onnx")


def test_every_operator_is_compared():
    assert CASES.operators == SHAPE.keys()
