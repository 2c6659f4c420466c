"""VJPs of convolutions and poolings, compared with autograd."""

import pytest
from vjp_cases import Case, Cases, an_image, check, ints, many, normal, st

from LiverFibrosisStagingLib.gradcam_onnx.vjp_windows import WINDOWS

torch = pytest.importorskip("torch", reason="the independent implementation")

F = torch.nn.functional
CASES = Cases()

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def torch_pads(before, after):
    return [n for pair in zip(before[::-1], after[::-1]) for n in pair]


@CASES.add("Conv")
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


@CASES.add("ConvTranspose")
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


@CASES.add("MaxPool")
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


@CASES.add("AveragePool")
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


@pytest.mark.parametrize("name", CASES)
def test_vjp_equals_autograd(name, tmp_path):
    check(*CASES[name], tmp_path / "one.onnx")


def test_every_operator_is_compared():
    assert CASES.operators == WINDOWS.keys()
