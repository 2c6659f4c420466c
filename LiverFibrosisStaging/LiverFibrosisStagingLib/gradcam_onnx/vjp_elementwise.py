"""Vector-Jacobian products of elementwise operators.

Each formula is followed by the operator's version in the ONNX operator specification
(Operators.md); g = dscore/dy. If the derivative can be computed from y, y is read rather than x, so
that ONNX Runtime can fuse activations with their convolution.
"""

import numpy as np

from .vjp import Rules, Vjp, unbroadcast

_FLOATS = {1, 10, 11, 16}  # TensorProto.DataType FLOAT, FLOAT16, DOUBLE, BFLOAT16


def _prelu(g: np.ndarray, y: None, x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.where(x > 0, g, g * slope)


def _clip(
    g: np.ndarray,
    y: np.ndarray,
    x: None,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> np.ndarray:
    inside = np.ones(y.shape, bool)
    if low is not None:
        inside &= y > low
    if high is not None:
        inside &= y < high
    return g * inside


def _hard_swish(g: np.ndarray, y: None, x: np.ndarray) -> np.ndarray:
    return g * np.where(x <= -3, 0, np.where(x >= 3, 1, (2 * x + 3) / 6))


def _gelu(g: np.ndarray, y: np.ndarray, x: np.ndarray, *, approximate: str = "none") -> np.ndarray:
    """Gelu-20: y = x P(x), hence dx = g (P + x P'), with the normal distribution P and density P'.

    The approximation is P = (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3). numpy has no
    erf, but P = y / x.
    """
    if approximate == "tanh":
        u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        du = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
        probability, density = (1 + np.tanh(u)) / 2, du / (2 * np.cosh(np.clip(u, -40, 40)) ** 2)
    else:
        probability = np.divide(y, x, out=np.full_like(x, 0.5), where=x != 0)
        density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return g * (probability + x * density)


def _softmax(g: np.ndarray, y: np.ndarray, x: None, *, axis: int = -1) -> np.ndarray:
    return y * (g - (g * y).sum(axis=axis, keepdims=True))


def _log_softmax(g: np.ndarray, y: np.ndarray, x: None, *, axis: int = -1) -> np.ndarray:
    return g - np.exp(y) * g.sum(axis=axis, keepdims=True)


def _is_false(training: np.ndarray | None) -> bool:
    return training is not None and not training.any()


_NOT_NEGATIVE = {"alpha": lambda alpha: alpha >= 0}  # otherwise x's sign is not that of y

ELEMENTWISE: dict[str, Rules] = {
    # y = a + b: da = g, db = g. Add-14, Sum-13 (any number of inputs).
    "Add": (
        Vjp(lambda g, y, a, b: unbroadcast(g, a.shape), shapes=(0,)),
        Vjp(lambda g, y, a, b: unbroadcast(g, b.shape), shapes=(1,)),
    ),
    "Sum": (
        Vjp(
            lambda g, y, *x, position: unbroadcast(g, x[position].shape),
            all_shapes=True,
            positional=True,
        ),
    ),
    # y = a - b: da = g, db = -g. Sub-14.
    "Sub": (
        Vjp(lambda g, y, a, b: unbroadcast(g, a.shape), shapes=(0,)),
        Vjp(lambda g, y, a, b: -unbroadcast(g, b.shape), shapes=(1,)),
    ),
    # y = a b: da = g b, db = g a. Mul-14.
    "Mul": (
        Vjp(lambda g, y, a, b: unbroadcast(g * b, a.shape), values=(1,), shapes=(0,)),
        Vjp(lambda g, y, a, b: unbroadcast(g * a, b.shape), values=(0,), shapes=(1,)),
    ),
    # y = a / b: da = g / b, db = -g a / b^2 = -g y / b. Div-14.
    "Div": (
        Vjp(lambda g, y, a, b: unbroadcast(g / b, a.shape), values=(1,), shapes=(0,)),
        Vjp(lambda g, y, a, b: unbroadcast(-g * y / b, b.shape), output=True, values=(1,)),
    ),
    # y = a^b: da = g b a^(b - 1), db = g y ln a. Pow-15.
    "Pow": (
        Vjp(lambda g, y, a, b: unbroadcast(g * b * a ** (b - 1), a.shape), values=(0, 1)),
        Vjp(
            lambda g, y, a, b: unbroadcast(g * y * np.log(a), b.shape),
            output=True,
            values=(0,),
            shapes=(1,),
        ),
    ),
    # y = -x: dx = -g. Neg-13.
    "Neg": (Vjp(lambda g, y, x: -g),),
    # y = |x|: dx = g sign(x). Abs-13.
    "Abs": (Vjp(lambda g, y, x: g * np.sign(x), values=(0,)),),
    # y = exp(x): dx = g y. Exp-13.
    "Exp": (Vjp(lambda g, y, x: g * y, output=True),),
    # y = ln(x): dx = g / x. Log-13.
    "Log": (Vjp(lambda g, y, x: g / x, values=(0,)),),
    # y = sqrt(x): dx = g / (2 y). Sqrt-13.
    "Sqrt": (Vjp(lambda g, y, x: g / (2 * y), output=True),),
    # y = 1 / x: dx = -g y^2. Reciprocal-13.
    "Reciprocal": (Vjp(lambda g, y, x: -g * y**2, output=True),),
    # y = erf(x): dx = 2 g exp(-x^2) / sqrt(pi). Erf-13.
    "Erf": (Vjp(lambda g, y, x: g * 2 / np.sqrt(np.pi) * np.exp(-(x**2)), values=(0,)),),
    # y = max(0, x): dx = g where x > 0. Relu-14.
    "Relu": (Vjp(lambda g, y, x: g * (y > 0), output=True),),
    # y = x where x > 0, alpha x elsewhere: dx = g, alpha g. LeakyRelu-16.
    "LeakyRelu": (
        Vjp(
            lambda g, y, x, *, alpha=0.01: np.where(y > 0, g, g * alpha),
            output=True,
            allows=_NOT_NEGATIVE,
        ),
    ),
    # y = x where x > 0, slope x elsewhere: dx = g, slope g. PRelu-16.
    "PRelu": (Vjp(_prelu, values=(0, 1)),),
    # y = x where x > 0, alpha (e^x - 1) elsewhere: dx = g, alpha e^x g = (y + alpha) g. Elu-6.
    "Elu": (
        Vjp(
            lambda g, y, x, *, alpha=1.0: g * np.where(y > 0, 1, y + alpha),
            output=True,
            allows=_NOT_NEGATIVE,
        ),
    ),
    # y = gamma x where x > 0, gamma alpha (e^x - 1) elsewhere: dx = gamma g,
    # (y + gamma alpha) g. Selu-6.
    "Selu": (
        Vjp(
            lambda g, y, x, *, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875: (
                g * np.where(y > 0, gamma, y + gamma * alpha)
            ),
            output=True,
            allows=_NOT_NEGATIVE,
        ),
    ),
    # y = min(max(x, low), high): dx = g where low < x < high. Clip-13.
    "Clip": (Vjp(_clip, output=True, values=(1, 2)),),
    # y = 1 / (1 + e^-x): dx = g y (1 - y). Sigmoid-13.
    "Sigmoid": (Vjp(lambda g, y, x: g * y * (1 - y), output=True),),
    # y = min(max(alpha x + beta, 0), 1): dx = alpha g where 0 < y < 1. HardSigmoid-6.
    "HardSigmoid": (
        Vjp(lambda g, y, x, *, alpha=0.2, beta=0.5: g * alpha * ((y > 0) & (y < 1)), output=True),
    ),
    # y = x min(max(x / 6 + 1 / 2, 0), 1): dx = g (2 x + 3) / 6 where |x| < 3. HardSwish-14.
    "HardSwish": (Vjp(_hard_swish, values=(0,)),),
    # y = tanh(x): dx = g (1 - y^2). Tanh-13.
    "Tanh": (Vjp(lambda g, y, x: g * (1 - y**2), output=True),),
    "Gelu": (
        Vjp(_gelu, output=True, values=(0,), allows={"approximate": {"none", "tanh"}.__contains__}),
    ),
    # y = ln(1 + e^x): dx = g / (1 + e^-x) = g (1 - e^-y). Softplus-1.
    "Softplus": (Vjp(lambda g, y, x: g * -np.expm1(-y), output=True),),
    # y = e^x / sum e^x along axis: dx = y (g - sum g y). Softmax-13.
    "Softmax": (Vjp(_softmax, output=True),),
    # y = x - ln(sum e^x) along axis: dx = g - e^y sum g. LogSoftmax-13.
    "LogSoftmax": (Vjp(_log_softmax, output=True),),
    # y = x: dx = g. Identity-16; Dropout-13 at inference (training mode is refused).
    "Identity": (Vjp(lambda g, y, x: g),),
    "Dropout": (Vjp(lambda g, y, x, *_, seed=0: g, allows={2: _is_false}),),
    # y = x in another type: dx = g. Cast-13 to -19; a cast to integers is refused.
    "Cast": (Vjp(lambda g, y, x, *, to, saturate=1: g, allows={"to": _FLOATS.__contains__}),),
}
