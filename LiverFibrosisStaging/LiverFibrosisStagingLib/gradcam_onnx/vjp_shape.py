"""Vector-Jacobian products of operators that copy and rearrange numbers.

Operator versions are those of the ONNX operator specification (Operators.md). Shapes, axes and the
like are inputs or, in older versions, attributes.
"""

from itertools import accumulate

import numpy as np

from .vjp import Rules, Vjp, unbroadcast


def _transpose(
    g: np.ndarray, y: None, x: np.ndarray, *, perm: list[int] | None = None
) -> np.ndarray:
    return g.transpose(None if perm is None else np.argsort(perm))


def _concat(g: np.ndarray, y: None, *x: np.ndarray, axis: int, position: int) -> np.ndarray:
    """Concat-13: each input gets its own part of g."""
    before = sum(part.shape[axis] for part in x[:position])
    return np.take(g, range(before, before + x[position].shape[axis]), axis)


def _split(
    g: list[np.ndarray | None],
    y: None,
    x: np.ndarray,
    sizes: np.ndarray | None = None,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
) -> np.ndarray:
    """Split-13 (sizes are an input), -18 (num_outputs, the last part may be smaller), -2."""
    if sizes is None:
        sizes = split or [-(-x.shape[axis] // len(g))] * len(g)
    given = next(part for part in g if part is not None)
    dx = np.zeros(x.shape, given.dtype)
    view = np.moveaxis(dx, axis, 0)
    for part, end, size in zip(g, accumulate(sizes), sizes):
        if part is not None:
            view[end - size : end] = np.moveaxis(part, axis, 0)
    return dx


def _slice(
    g: np.ndarray,
    y: None,
    x: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> np.ndarray:
    """Slice-13: starts and ends count from the end where negative, and are clamped to the axis."""
    where = [slice(None)] * x.ndim
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps):
        n = x.shape[axis]
        start, end, step = (int(v) for v in (start, end, step))
        start, end = (v + n if v < 0 else v for v in (start, end))
        if step > 0:
            where[axis] = slice(min(max(start, 0), n), min(max(end, 0), n), step)
        else:
            end = min(max(end, -1), n - 1)
            where[axis] = slice(min(max(start, 0), n - 1), None if end < 0 else end, step)
    dx = np.zeros(x.shape, g.dtype)
    dx[tuple(where)] = g
    return dx


def _gather(
    g: np.ndarray, y: None, x: np.ndarray, indices: np.ndarray, *, axis: int = 0
) -> np.ndarray:
    """Gather-13: y = x[..., indices, ...] along axis; gradients of repeated indices are added."""
    axis %= x.ndim
    dx = np.zeros(x.shape, g.dtype)
    taken = range(axis, axis + np.ndim(indices))
    np.add.at(np.moveaxis(dx, axis, 0), indices, np.moveaxis(g, taken, range(len(taken))))
    return dx


def _pad(
    g: np.ndarray,
    y: None,
    x: np.ndarray,
    pads: np.ndarray,
    value: np.ndarray | None = None,
    axes: np.ndarray | None = None,
    *,
    mode: str = "constant",
) -> np.ndarray:
    """Pad-13, -18 (axes), -19 (wrap): y[j] = x[i(j)] along each axis, hence dx[i] = sum g[j].

    Negative pads crop.
    """
    axes = range(x.ndim) if axes is None else [int(axis) for axis in axes]
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :]):
        n = x.shape[axis]
        source = np.arange(-int(before), n + int(after))
        kept = np.ones(len(source), bool)
        if mode == "constant":
            kept = (source >= 0) & (source < n)
        elif mode == "edge":
            source = source.clip(0, n - 1)
        elif mode == "wrap":
            source %= n
        else:  # reflect
            source = np.abs((source + n - 1) % (2 * n - 2) - (n - 1)) if n > 1 else 0 * source
        g = np.moveaxis(g, axis, 0)
        dx = np.zeros((n, *g.shape[1:]), g.dtype)
        np.add.at(dx, source[kept], g[kept])
        g = np.moveaxis(dx, 0, axis)
    return g


def _resize(
    g: np.ndarray,
    y: None,
    x: np.ndarray,
    roi: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    axes: list[int] | None = None,
    **_: float,
) -> np.ndarray:
    """Resize-13 to -19: y = W x along each axis, with the weights W below, hence dx = W^T g."""
    axes = list(range(x.ndim)) if axes is None else axes
    for position, axis in enumerate(axes):
        n, m = x.shape[axis], g.shape[axis]
        # In exported models scales may be empty instead of omitted.
        scale = m / n if scales is None or not len(scales) else float(scales[position])
        if n == m and scale == 1:
            continue
        centre = _coordinates(n, m, scale, coordinate_transformation_mode)
        weights = np.zeros((m, n), g.dtype)
        if mode == "nearest":
            nearest = _ROUNDING[nearest_mode](centre).astype(int).clip(0, n - 1)
            weights[np.arange(m), nearest] = 1
        else:
            centre = centre.clip(0, n - 1)
            low = np.floor(centre).astype(int)
            np.add.at(weights, (np.arange(m), low), 1 - (centre - low))
            np.add.at(weights, (np.arange(m), np.minimum(low + 1, n - 1)), centre - low)
        g = np.moveaxis(np.tensordot(g, weights, (axis, 0)), -1, axis)
    return g


def _coordinates(n: int, m: int, scale: float, mode: str) -> np.ndarray:
    """Coordinates of m resized numbers on an axis of n numbers (ONNX Resize)."""
    out = np.arange(m)
    if mode == "asymmetric":
        return out / scale
    if mode == "align_corners":
        return out * (n - 1) / (m - 1) if m > 1 else np.zeros(1)
    if mode == "pytorch_half_pixel" and m == 1:
        return np.zeros(1)
    centre = (out + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        centre += n / 2 * (1 - m / (n * scale))
    return centre


_ROUNDING = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}

# The same numbers in another shape. Flatten-13, Reshape-14, Squeeze-13, Unsqueeze-13.
_reshaped = (Vjp(lambda g, y, x, *_, **__: g.reshape(x.shape), shapes=(0,)),)

SHAPE: dict[str, Rules] = {
    "Flatten": _reshaped,
    "Reshape": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    # y = x with its axes permuted: dx = g with the inverse permutation. Transpose-13.
    "Transpose": (Vjp(_transpose),),
    # y = broadcast(x). Expand-13.
    "Expand": (Vjp(lambda g, y, x, *_: unbroadcast(g, x.shape), shapes=(0,)),),
    "Concat": (Vjp(_concat, all_shapes=True, positional=True),),
    "Split": (Vjp(_split, values=(1,), shapes=(0,), several=True),),
    "Slice": (Vjp(_slice, values=(1, 2, 3, 4), shapes=(0,)),),
    "Gather": (Vjp(_gather, values=(1,), shapes=(0,)),),
    "Pad": (
        Vjp(
            _pad,
            values=(1, 3),
            shapes=(0,),
            allows={"mode": {"constant", "reflect", "edge", "wrap"}.__contains__},
        ),
    ),
    "Resize": (
        Vjp(
            _resize,
            values=(2,),
            shapes=(0,),
            allows={
                "mode": {"nearest", "linear"}.__contains__,
                "coordinate_transformation_mode": {
                    "half_pixel",
                    "half_pixel_symmetric",
                    "pytorch_half_pixel",
                    "align_corners",
                    "asymmetric",
                }.__contains__,
                "antialias": {0}.__contains__,
                "keep_aspect_ratio_policy": {"stretch"}.__contains__,
            },
        ),
    ),
}
