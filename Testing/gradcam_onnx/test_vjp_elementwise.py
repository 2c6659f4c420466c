"""VJPs of elementwise operators, compared with autograd."""

import numpy as np
import pytest
from vjp_cases import Case, Cases, a_pair, a_shape, an_image, check, ints, normal, st

from LiverFibrosisStagingLib.gradcam_onnx.vjp_elementwise import ELEMENTWISE

torch = pytest.importorskip("torch", reason="the independent implementation")

F = torch.nn.functional
CASES = Cases()

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

        @CASES.add(_op)
        def unary(draw, function=_function, low=_low):
            return Case([normal(draw, a_shape(draw), low)], function)


@CASES.add("HardSwish")
def hard_swish(draw):
    return Case([4 * normal(draw, a_shape(draw))], F.hardswish)


@CASES.add("Gelu")
def gelu(draw):
    how = draw(st.sampled_from(["none", "tanh"]))
    return Case(
        [3 * normal(draw, a_shape(draw))],
        lambda x: F.gelu(x, approximate=how),
        {"approximate": how},
        opset=20,
    )


@CASES.add("LeakyRelu")
def leaky_relu(draw):
    alpha = draw(st.sampled_from([0.0, 0.125, 1.5]))
    return Case([normal(draw, a_shape(draw))], lambda x: F.leaky_relu(x, alpha), {"alpha": alpha})


@CASES.add("Elu")
def elu(draw):
    alpha = draw(st.sampled_from([0.5, 1.0, 2.0]))
    return Case([normal(draw, a_shape(draw))], lambda x: F.elu(x, alpha), {"alpha": alpha})


@CASES.add("Selu")
def selu(draw):
    return Case([normal(draw, a_shape(draw))], F.selu)


@CASES.add("HardSigmoid")
def hard_sigmoid(draw):
    alpha, beta = draw(st.sampled_from([(0.25, 0.5), (0.125, 0.25)]))
    return Case(
        [4 * normal(draw, a_shape(draw))],
        lambda x: torch.clamp(alpha * x + beta, 0, 1),
        {"alpha": alpha, "beta": beta},
    )


@CASES.add("PRelu")
def prelu(draw):
    shape = an_image(draw, draw(ints(1, 3)))
    slope = normal(draw, (shape[1], *[1] * (len(shape) - 2)))
    return Case([normal(draw, shape), slope], lambda x: F.prelu(x, torch.tensor(slope).ravel()))


@CASES.add("Clip")
def clip(draw):
    low, high = draw(st.sampled_from([(-0.5, 0.75), (None, 0.25), (0.0, None), (None, None)]))
    inputs = [normal(draw, a_shape(draw)), *(v if v is None else np.array(v) for v in (low, high))]
    free = low is None and high is None
    return Case(inputs, lambda x: x if free else torch.clamp(x, low, high))


@CASES.add("Cast")
def cast(draw):
    return Case([normal(draw, a_shape(draw))], lambda x: x, {"to": 1})


@CASES.add("Dropout")
def dropout(draw):
    inputs = [normal(draw, a_shape(draw)), np.array(0.5, np.float32), np.array(False)]
    return Case(inputs[: draw(ints(1, 3))], lambda x: x)


BINARY = {
    "Add": (torch.add, None, None),
    "Sub": (torch.sub, None, None),
    "Mul": (torch.mul, None, None),
    "Div": (torch.div, None, 0.3),
    "Pow": (torch.pow, 0.3, None),
}
for _op, (_function, _a, _b) in BINARY.items():

    @CASES.add(_op)
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


@CASES.add("Sum")
def several(draw):
    return Case([*a_pair(draw), normal(draw, (1,))], lambda a, b, c: a + b + c, active=(0, 1, 2))


for _op, _function in {"Softmax": F.softmax, "LogSoftmax": F.log_softmax}.items():

    @CASES.add(_op)
    def softmax(draw, function=_function):
        shape = a_shape(draw)
        axis = draw(ints(-len(shape), len(shape) - 1))
        return Case([normal(draw, shape)], lambda x: function(x, axis), {"axis": axis})


@pytest.mark.parametrize("name", CASES)
def test_vjp_equals_autograd(name, tmp_path):
    check(*CASES[name], tmp_path / "one.onnx")


def test_every_operator_is_compared():
    assert CASES.operators == ELEMENTWISE.keys()
