"""VJPs of matrix products, reductions and normalisations, compared with autograd."""

import pytest
from vjp_cases import Case, Cases, a_shape, an_image, check, int64, ints, many, normal, st

from LiverFibrosisStagingLib.gradcam_onnx.vjp_reduce import REDUCE

torch = pytest.importorskip("torch", reason="the independent implementation")

F = torch.nn.functional
CASES = Cases()


@CASES.add("Gemm")
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


@CASES.add("MatMul")
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


@CASES.add("Einsum")
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

    @CASES.add(_op)
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


@CASES.add("GlobalAveragePool")
def global_average_pool(draw):
    dims = draw(ints(1, 3))
    axes = tuple(range(2, 2 + dims))
    return Case([normal(draw, an_image(draw, dims))], lambda x: x.mean(axes, keepdim=True))


@CASES.add("GlobalMaxPool")
def global_max_pool(draw):
    dims = draw(ints(1, 3))
    axes = tuple(range(2, 2 + dims))
    return Case([normal(draw, an_image(draw, dims))], lambda x: x.amax(axes, keepdim=True))


@CASES.add("BatchNormalization")
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


@CASES.add("InstanceNormalization")
def instance_normalization(draw):
    shape = an_image(draw, draw(ints(1, 3)))
    scale, bias = normal(draw, shape[1]), normal(draw, shape[1])
    tensors = [torch.tensor(scale), torch.tensor(bias)]
    of = lambda x: F.instance_norm(x, None, None, *tensors, eps=1e-3)  # noqa: E731
    return Case([normal(draw, shape), scale, bias], of, {"epsilon": 1e-3})


@CASES.add("LayerNormalization")
def layer_normalization(draw):
    shape = (*a_shape(draw, 1, 2), *many(draw, draw(ints(1, 2)), 2, 5))
    axis = draw(ints(-min(2, len(shape) - 1), -1))
    normalized = shape[axis:]
    scale, bias = normal(draw, normalized), normal(draw, normalized)
    of = lambda x: F.layer_norm(  # noqa: E731
        x, normalized, torch.tensor(scale), torch.tensor(bias), 1e-3
    )
    return Case([normal(draw, shape), scale, bias], of, {"axis": axis, "epsilon": 1e-3})


@CASES.add("GroupNormalization")
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


@CASES.add("LRN")
def lrn(draw):
    shape = an_image(draw, 2, channels=draw(ints(1, 6)))
    size = draw(st.sampled_from([1, 3, 5]))
    of = lambda x: F.local_response_norm(x, size, 0.5, 0.75, 1.5)  # noqa: E731
    attributes = {"size": size, "alpha": 0.5, "beta": 0.75, "bias": 1.5}
    return Case([normal(draw, shape)], of, attributes)


@pytest.mark.parametrize("name", CASES)
def test_vjp_equals_autograd(name, tmp_path):
    check(*CASES[name], tmp_path / "one.onnx")


def test_every_operator_is_compared():
    assert CASES.operators == REDUCE.keys()
