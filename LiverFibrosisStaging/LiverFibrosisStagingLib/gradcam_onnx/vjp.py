"""What the vector-Jacobian products of all operators share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Vjp:
    """The gradient of a score with respect to one input of an operator.

    of: called as of(g, y, *inputs, **attributes), returns dscore/dinput in the input's shape. g is
    the score's gradient with respect to the operator's output y (a list, one for each output, None
    where the score does not depend on it, if `several`); the attributes keep their ONNX names.
    What `of` reads: output: the values of y; values: of the inputs at these positions; shapes: of
    these inputs the shape alone; all_shapes: the shape of every input. All else arrives as None, so
    that a model need not output it. allows: for each attribute, or position of a
    constant input, that is not supported in all its values, whether one is. several: the
    operator's outputs all count. positional: `of` also takes the input's position, as a keyword.
    """

    of: Callable[..., np.ndarray]
    output: bool = False
    values: tuple[int, ...] = ()
    shapes: tuple[int, ...] = ()
    all_shapes: bool = False
    allows: Mapping[str | int, Callable[[Any], bool]] = field(default_factory=dict)
    several: bool = False
    positional: bool = False


# The products of an operator's differentiable inputs, in the order of the inputs.
Rules = tuple[Vjp, ...]


def unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo numpy's (and ONNX's) broadcasting: sum over the axes along which an input was repeated.

    y = broadcast(x) copies x, hence dx = the sum of g over all copies.
    """
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    repeated = tuple(i for i, (n, m) in enumerate(zip(shape, g.shape)) if n == 1 and m != 1)
    return g.sum(axis=repeated, keepdims=True) if repeated else g
