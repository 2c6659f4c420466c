"""Shared definitions of the vector-Jacobian products (VJPs)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Vjp:
    """The gradient of a score with respect to one input of an operator.

    of: called as of(g, y, *inputs, **attributes), returns dscore/dinput in the input's shape. g is
    the score's gradient with respect to the operator's output y (with `several`, a list with one
    entry per output, None if the score does not depend on it); the attributes have their ONNX
    names. Fields for what `of` reads: output: the values of y; values: those of the inputs at these
    positions; shapes: only the shapes of these inputs; all_shapes: the shapes of all inputs.
    Anything else is passed as None, so that a model does not have to output it. allows: for an
    attribute, or the position of a constant input, of which not all values are supported, a test
    of the value. several: `of` handles several outputs. positional: `of` also takes the input's
    position, as a keyword.
    """

    of: Callable[..., np.ndarray]
    output: bool = False
    values: tuple[int, ...] = ()
    shapes: tuple[int, ...] = ()
    all_shapes: bool = False
    allows: Mapping[str | int, Callable[[Any], bool]] = field(default_factory=dict)
    several: bool = False
    positional: bool = False


# The VJPs of an operator's differentiable inputs, in the order of the inputs.
Rules = tuple[Vjp, ...]


def unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo numpy's (and ONNX's) broadcasting: sum over the axes along which an input was repeated.

    y = broadcast(x) copies x, hence dx is the sum of g over all copies.
    """
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    repeated = tuple(i for i, (n, m) in enumerate(zip(shape, g.shape)) if n == 1 and m != 1)
    return g.sum(axis=repeated, keepdims=True) if repeated else g
