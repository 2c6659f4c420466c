"""Vector-Jacobian products of convolutions and poolings, in one, two or three dimensions.

Tensors are [N, C, spatial...]. Operator versions are those of the ONNX operator specification
(Operators.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from .vjp import Rules, Vjp


@dataclass(frozen=True)
class _Windows:
    """The positions of a kernel's windows on a padded image.

    size, output: spatial shape of the image, and of the array with one number per window. pads:
    (before, after) of each axis; `after` extends to the end of the last window.
    """

    size: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        size: tuple[int, ...],
        output: tuple[int, ...],
        kernel: tuple[int, ...],
        strides: list[int] | None = None,
        dilations: list[int] | None = None,
        pads: list[int] | None = None,
        auto_pad: str = "NOTSET",
        **_: Any,
    ) -> "_Windows":
        """From an operator's attributes; SAME_UPPER and SAME_LOWER follow from the output's size.

        In ceil mode the last window may extend beyond the stated padding.
        """
        strides = tuple(strides or [1] * len(kernel))
        dilations = tuple(dilations or [1] * len(kernel))
        reach = [
            s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(strides, output, dilations, kernel)
        ]
        missing = [max(0, r - n) for r, n in zip(reach, size)]
        if auto_pad == "SAME_UPPER":
            before = [m // 2 for m in missing]
        elif auto_pad == "SAME_LOWER":
            before = [m - m // 2 for m in missing]
        else:
            before = list(pads[: len(kernel)]) if pads else [0] * len(kernel)
        both = tuple((b, max(0, r - n - b)) for b, r, n in zip(before, reach, size))
        return cls(size, output, tuple(kernel), strides, dilations, both)

    def __iter__(self) -> Iterator[tuple]:
        """For each position in the kernel, the slices of the padded image that it covers."""
        for offset in product(*map(range, self.kernel)):
            steps = zip(offset, self.dilations, self.strides, self.output)
            yield (..., *(slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in steps))

    def pad(self, x: np.ndarray, value: float = 0) -> np.ndarray:
        if not any(map(any, self.pads)):
            return x
        untouched = [(0, 0)] * (x.ndim - len(self.pads))
        return np.pad(x, [*untouched, *self.pads], constant_values=value)

    def padded_zeros(self, leading: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        padded = (n + before + after for n, (before, after) in zip(self.size, self.pads))
        return np.zeros((*leading, *padded), dtype)

    def unpad(self, g: np.ndarray) -> np.ndarray:
        inside = (slice(before, before + n) for (before, _), n in zip(self.pads, self.size))
        return g[(..., *inside)]

    def places(self, axis: int) -> np.ndarray:
        """Coordinates [output, kernel] of the windows' numbers in the image, along one axis."""
        window = np.arange(self.output[axis]) * self.strides[axis] - self.pads[axis][0]
        return window[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]

    def inside(self, axis: int, before: int = 0, after: int = 0) -> np.ndarray:
        """Whether these coordinates [output, kernel] are in the image, not in its padding.

        before, after: how much of the padding is included.
        """
        places = self.places(axis)
        return (places >= -before) & (places < self.size[axis] + after)


def _conv(
    g: np.ndarray,
    y: None,
    x: np.ndarray,
    w: np.ndarray,
    b: None = None,
    *,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    **window: Any,
) -> np.ndarray:
    """Conv-11: y[o, p] = sum_it w[o, i, t] x[i, s p + d t], hence

    dx[i, s p + d t] += sum_o w[o, i, t] g[o, p], with strides s and dilations d.
    """
    windows = _Windows.of(x.shape[2:], g.shape[2:], w.shape[2:], **window)
    outputs, inputs = w.shape[0] // group, w.shape[1]
    dx = windows.padded_zeros((len(x), group, inputs), g.dtype)
    flat = g.reshape(len(x), group, outputs, -1)
    # One matrix product per plane of the kernel: a few large products are fast, and their results
    # (inputs x plane x output voxels) stay small.
    depth, plane = w.shape[2], prod(w.shape[3:])
    taps = w.reshape(group, outputs, inputs, depth, plane).transpose(3, 0, 4, 2, 1)
    places = iter(windows)
    for tap in taps:
        steps = tap.reshape(group, plane * inputs, outputs) @ flat
        steps = steps.reshape(len(x), group, plane, inputs, *windows.output)
        for part in range(plane):
            dx[next(places)] += steps[:, :, part]
    return windows.unpad(dx).reshape(x.shape)


def conv_sum(
    g: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    **window: Any,
) -> np.ndarray:
    """The result of _conv summed over the voxels of each channel, [N, C], computed directly.

    Each number of g contributes to one voxel per kernel position, unless that is in the padding:
    sum dx[i] = sum_ot w[o, i, t] G[o, t], with G[o, t] = the sum of g[o, p] over the windows p
    whose position t is in the image. G is computed one axis after the other.
    """
    windows = _Windows.of(x.shape[2:], g.shape[2:], w.shape[2:], **window)
    # Always the first spatial axis: tensordot appends the kernel positions as the last axis.
    for axis in range(len(windows.kernel)):
        g = np.tensordot(g, windows.inside(axis).astype(g.dtype), (2, 0))
    summed = g.reshape(len(x), group, w.shape[0] // group, -1)
    taps = w.reshape(group, w.shape[0] // group, w.shape[1], -1)
    return np.einsum("goit,ngot->ngi", taps, summed, optimize=True).reshape(x.shape[:2])


def _conv_transpose(
    g: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    b: None = None,
    *,
    group: int = 1,
    auto_pad: str = "NOTSET",
    pads: list[int] | None = None,
    output_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    kernel_shape: list[int] | None = None,
    **window: Any,
) -> np.ndarray:
    """ConvTranspose-11: y[o, s p + d t] += sum_i w[i, o, t] x[i, p], the VJP of a Conv, hence

    dx[i, p] = sum_ot w[i, o, t] g[o, s p + d t], a Conv.
    """
    size, kernel = x.shape[2:], w.shape[2:]
    if output_shape or auto_pad.startswith("SAME"):
        # The specification's formula for the padding that gives the output its shape.
        reach = _Windows.of((0,) * len(size), size, kernel, **window).pads
        extra = output_padding or [0] * len(size)
        total = [r + e - n for (_, r), e, n in zip(reach, extra, g.shape[2:])]
        pads = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
    windows = _Windows.of(g.shape[2:], size, kernel, pads=pads, **window)
    outputs, inputs = w.shape[1], x.shape[1] // group
    padded = windows.pad(g)
    padded = padded.reshape(len(x), group, outputs, *padded.shape[2:])
    taps = np.moveaxis(w.reshape(group, inputs, outputs, -1), -1, 0)
    dx = np.zeros((len(x), group, inputs, prod(size)), g.dtype)
    for tap, place in zip(taps, windows):
        dx += tap @ padded[place].reshape(len(x), group, outputs, -1)
    return dx.reshape(x.shape)


def _max_pool(
    g: np.ndarray, y: np.ndarray, x: np.ndarray, *, kernel_shape: list[int], **window: Any
) -> np.ndarray:
    """MaxPool-12: the gradient goes to the first largest number of each window."""
    windows = _Windows.of(x.shape[2:], g.shape[2:], tuple(kernel_shape), **window)
    padded = windows.pad(x, -np.inf)
    dx = windows.padded_zeros(x.shape[:2], g.dtype)
    open_ = np.ones(y.shape, bool)
    for place in windows:
        chosen = (padded[place] == y) & open_
        open_ ^= chosen
        dx[place] += g * chosen
    return windows.unpad(dx)


def _average_pool(
    g: np.ndarray,
    y: None,
    x: np.ndarray,
    *,
    kernel_shape: list[int],
    count_include_pad: int = 0,
    pads: list[int] | None = None,
    **window: Any,
) -> np.ndarray:
    """AveragePool-11, -19 (dilations): each number of a window gets g / n, of n averaged numbers.

    Padding that ceil mode adds beyond the stated padding is never counted.
    """
    kernel = tuple(kernel_shape)
    windows = _Windows.of(x.shape[2:], g.shape[2:], kernel, pads=pads, **window)
    counted = np.ones(g.shape[2:], g.dtype)
    for axis, (before, after) in enumerate(windows.pads):
        stated = pads[len(kernel) + axis] if pads else after
        padding = (before, stated) if count_include_pad else (0, 0)
        count = windows.inside(axis, *padding).sum(axis=1)
        counted *= count.reshape([-1 if i == axis else 1 for i in range(len(kernel))])
    dx = g / counted
    # A box is a product of intervals, so g is distributed along one axis after the other.
    for axis, size in enumerate(windows.size):
        spread = np.zeros((windows.output[axis], size), g.dtype)
        window, position = np.nonzero(windows.inside(axis))
        spread[window, windows.places(axis)[window, position]] = 1
        dx = np.tensordot(dx, spread, (2, 0))
    return dx


def preserves_sum(op: str, attributes: dict[str, Any]) -> bool:
    """Whether an operator's VJP preserves the sum of g over the voxels of each channel.

    Max-pooling passes each g to one voxel, average-pooling distributes it over a window.
    """
    if op == "AveragePool":
        return not attributes.get("count_include_pad")
    return op in {"MaxPool", "GlobalAveragePool", "GlobalMaxPool"}


WINDOWS: dict[str, Rules] = {
    "Conv": (Vjp(_conv, values=(1,), shapes=(0,)),),
    "ConvTranspose": (Vjp(_conv_transpose, values=(1,), shapes=(0,)),),
    "MaxPool": (Vjp(_max_pool, output=True, values=(0,)),),
    "AveragePool": (Vjp(_average_pool, shapes=(0,)),),
}
