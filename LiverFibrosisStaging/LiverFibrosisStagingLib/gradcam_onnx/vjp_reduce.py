"""Vector-Jacobian products of matrix products, reductions and normalisations.

Operator versions are those of the ONNX operator specification (Operators.md).
"""

from math import prod

import numpy as np

from .vjp import Rules, Vjp, unbroadcast

_INFERENCE = {"training_mode": {0}.__contains__}


def _gemm(wanted: int) -> Vjp:
    """Gemm-13: y = alpha a' b' + beta c (a', b' transposed if stated), hence

    da' = alpha g b'^T, db' = alpha a'^T g, dc = beta g.
    """

    def of(
        g: np.ndarray,
        y: None,
        a: np.ndarray | None,
        b: np.ndarray | None,
        c: np.ndarray | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        transA: int = 0,
        transB: int = 0,
    ) -> np.ndarray:
        if wanted == 2:
            return unbroadcast(beta * g, c.shape)
        if wanted == 0:
            da = alpha * g @ (b if transB else b.T)
            return da.T if transA else da
        db = alpha * (a if transA else a.T) @ g
        return db.T if transB else db

    return Vjp(of, values=((1,), (0,), ())[wanted], shapes=((), (), (2,))[wanted])


def _matmul(wanted: int) -> Vjp:
    """MatMul-13: y = a b, hence da = g b^T, db = a^T g; vector a is a row, b a column."""

    def of(g: np.ndarray, y: None, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        rows = (1, *a.shape) if a.ndim == 1 else a.shape
        columns = (*b.shape, 1) if b.ndim == 1 else b.shape
        if b.ndim == 1:
            g = g[..., None]
        if a.ndim == 1:
            g = np.expand_dims(g, -2)
        if wanted == 0:
            da = g @ b.reshape(columns).swapaxes(-1, -2)
            return unbroadcast(da, rows).reshape(a.shape)
        db = a.reshape(rows).swapaxes(-1, -2) @ g
        return unbroadcast(db, columns).reshape(b.shape)

    return Vjp(of, values=((1,), (0,))[wanted], shapes=((0,), (1,))[wanted])


def _einsum(wanted: int) -> Vjp:
    """Einsum-12, two operands: with ab->y, da is the einsum yb->a, and db is ya->b."""

    def of(g: np.ndarray, y: None, *x: np.ndarray, equation: str) -> np.ndarray:
        terms, _, result = equation.replace(" ", "").partition("->")
        terms = terms.split(",")
        other = 1 - wanted
        return np.einsum(f"{result},{terms[other]}->{terms[wanted]}", g, x[other])

    return Vjp(of, values=((1,), (0,))[wanted], allows={"equation": _plain_einsum})


def _plain_einsum(equation: str) -> bool:
    """Two operands, each index once per term and in at least two terms: the VJP is an einsum."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    terms = [*terms.split(","), result]
    once = all(len(set(term)) == len(term) for term in terms)
    shared = all(sum(i in term for term in terms) > 1 for i in set("".join(terms)))
    return len(terms) == 3 and bool(arrow) and "." not in equation and once and shared


def _axes(x: np.ndarray, axes: np.ndarray | list[int] | None, noop: int) -> tuple[int, ...]:
    if axes is None or not len(axes):
        return () if noop else tuple(range(x.ndim))
    return tuple(int(axis) % x.ndim for axis in axes)


def _kept(g: np.ndarray, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """g with the reduced axes as axes of length 1, whether or not they were kept."""
    return g.reshape([1 if axis in axes else n for axis, n in enumerate(x.shape)])


def _reduce_sum(mean: bool) -> Vjp:
    """ReduceSum-13, ReduceMean-13, -18 (axes are an input): dx = g for a sum, g / n for a mean."""

    def of(
        g: np.ndarray,
        y: None,
        x: np.ndarray,
        over: np.ndarray | None = None,
        *,
        axes: list[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> np.ndarray:
        reduced = _axes(x, axes if over is None else over, noop_with_empty_axes)
        count = prod(x.shape[axis] for axis in reduced) if mean else 1
        return np.broadcast_to(_kept(g, x, reduced) / count, x.shape)

    return Vjp(of, values=(1,), shapes=(0,))


def _reduce_extreme(
    g: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    over: np.ndarray | None = None,
    *,
    axes: list[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> np.ndarray:
    """ReduceMax-13, -18, ReduceMin: the extreme value gets g; ties share it, as in PyTorch."""
    reduced = _axes(x, axes if over is None else over, noop_with_empty_axes)
    chosen = x == _kept(y, x, reduced)
    return _kept(g, x, reduced) * chosen / chosen.sum(axis=reduced, keepdims=True)


def _spatial(x: np.ndarray) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _along_channels(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *[1] * (x.ndim - 2))


def _batch_normalization(
    g: np.ndarray,
    y: None,
    x: None,
    scale: np.ndarray,
    b: None,
    mean: None,
    variance: np.ndarray,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> np.ndarray:
    """BatchNormalization-15: y = scale (x - mean) / sqrt(variance + epsilon) + b, all constant."""
    return g * _along_channels(scale / np.sqrt(variance + epsilon), g)


def _normalized(g: np.ndarray, x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    """Through u = (x - mean) / s, s = sqrt(variance + epsilon), both over `axes`; g = dscore/du:

    dx = (g - mean(g) - u mean(g u)) / s.
    """
    centred = x - x.mean(axis=axes, keepdims=True)
    s = np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)
    u = centred / s
    along = u * (g * u).mean(axis=axes, keepdims=True)
    return (g - g.mean(axis=axes, keepdims=True) - along) / s


def _instance_normalization(
    g: np.ndarray, y: None, x: np.ndarray, scale: np.ndarray, b: None, *, epsilon: float = 1e-5
) -> np.ndarray:
    """InstanceNormalization-6: y = scale u + b, u normalised over each channel's voxels."""
    return _normalized(g * _along_channels(scale, x), x, _spatial(x), epsilon)


def _layer_normalization(
    g: np.ndarray,
    y: None,
    x: np.ndarray,
    scale: np.ndarray,
    b: None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> np.ndarray:
    """LayerNormalization-17: y = scale u + b, u normalised over the axes from `axis` on."""
    return _normalized(g * scale, x, tuple(range(axis % x.ndim, x.ndim)), epsilon)


def _group_normalization(
    g: np.ndarray,
    y: None,
    x: np.ndarray,
    scale: np.ndarray,
    b: None,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> np.ndarray:
    """GroupNormalization-18 (scale per group), -21 (per channel): u normalised over each group."""
    channels = np.repeat(scale, x.shape[1] // len(scale))
    grouped = (len(x), num_groups, -1)
    scaled = (g * _along_channels(channels, x)).reshape(grouped)
    return _normalized(scaled, x.reshape(grouped), (2,), epsilon).reshape(x.shape)


def _lrn(
    g: np.ndarray,
    y: None,
    x: np.ndarray,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    bias: float = 1.0,
) -> np.ndarray:
    """LRN-13: y[c] = x[c] s[c]^-beta, s[c] = bias + alpha / size * sum of x^2 over channels near c,

    from c - floor((size - 1) / 2) to c + ceil((size - 1) / 2), hence
    dx[j] = g[j] s[j]^-beta - 2 alpha beta / size x[j] sum of g x s^(-beta - 1) over all c near j.
    """
    before, channel = (size - 1) // 2, np.arange(x.shape[1])
    apart = channel - channel[:, None]  # [c, j]
    near = ((apart >= -before) & (apart <= size - 1 - before)).astype(x.dtype)
    s = bias + alpha / size * np.einsum("cj,nj...->nc...", near, x**2)
    through = np.einsum("cj,nc...->nj...", near, g * x * s ** (-beta - 1))
    return g * s**-beta - 2 * alpha * beta / size * x * through


REDUCE: dict[str, Rules] = {
    "Gemm": (_gemm(0), _gemm(1), _gemm(2)),
    "MatMul": (_matmul(0), _matmul(1)),
    "Einsum": (_einsum(0), _einsum(1)),
    "ReduceSum": (_reduce_sum(mean=False),),
    "ReduceMean": (_reduce_sum(mean=True),),
    "ReduceMax": (Vjp(_reduce_extreme, output=True, values=(0, 1)),),
    "ReduceMin": (Vjp(_reduce_extreme, output=True, values=(0, 1)),),
    # y = mean, or largest, of each channel: as above. GlobalAveragePool-1, GlobalMaxPool-1.
    "GlobalAveragePool": (
        Vjp(lambda g, y, x: np.broadcast_to(g / prod(x.shape[2:]), x.shape), shapes=(0,)),
    ),
    "GlobalMaxPool": (
        Vjp(
            lambda g, y, x: _reduce_extreme(g, y, x, axes=list(_spatial(x))),
            output=True,
            values=(0,),
        ),
    ),
    "BatchNormalization": (Vjp(_batch_normalization, values=(1, 4), allows=_INFERENCE),),
    "InstanceNormalization": (Vjp(_instance_normalization, values=(0, 1)),),
    "LayerNormalization": (Vjp(_layer_normalization, values=(0, 1)),),
    "GroupNormalization": (Vjp(_group_normalization, values=(0, 1)),),
    "LRN": (Vjp(_lrn, values=(0,)),),
}
