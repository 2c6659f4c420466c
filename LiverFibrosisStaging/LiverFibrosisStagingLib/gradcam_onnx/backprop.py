"""Backpropagation through an ONNX graph's tail, in numpy: from the score to the target layer.

Each operator has a vector-Jacobian product, as in HIPS/autograd; `VJPS` is the table of them, and
`Tail` applies them in reverse order. Where the layout matters, tensors are [N, C, spatial...].
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import StagingError
from .onnx_file import Node, OnnxFile, listed
from .vjp import Rules, Vjp
from .vjp_elementwise import ELEMENTWISE
from .vjp_reduce import REDUCE
from .vjp_shape import SHAPE
from .vjp_windows import WINDOWS, conv_sum, preserves_sum

PREPARE = "python -m LiverFibrosisStagingLib.gradcam_onnx prepare"  # the command, for messages
VJPS: dict[str, Rules] = {**ELEMENTWISE, **REDUCE, **SHAPE, **WINDOWS}
# Operators with zero derivative wherever they are differentiable.
ZERO_GRADIENT = {
    *("And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "Floor", "Greater"),
    *("GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonZero", "Not", "OneHot", "Or"),
    *("Range", "Round", "Shape", "Sign", "Size", "Xor"),
}
# Their subgraphs can read any tensor without listing it among their inputs.
CONTROL_FLOW = {"If", "Loop", "Scan"}
# What numpy raises for arrays or attributes that an operator cannot have.
_UNFIT = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
# Attributes that can contain a Constant node's value, and their types.
_CONSTANTS = {
    "value": None,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}
# Oldest opset that the products support (axes and shapes as inputs or attributes).
MIN_OPSET = 13


def shape_name(tensor: str) -> str:
    """Name of the output [rank] with a tensor's shape, used if its values are not needed."""
    return f"{tensor}/shape"


@dataclass(frozen=True)
class _Step:
    """One node of the tail and what it needs from the forward pass.

    rules: (position of an input that depends on the target, its product). values, shapes: names of
    the tensors, including constants, whose values or shapes the products read.
    """

    node: Node
    rules: tuple[tuple[int, Vjp], ...]
    values: frozenset[str]
    shapes: frozenset[str]


@dataclass(frozen=True)
class Tail:
    """The nodes between the target layer and the score, in order of execution.

    name: of the model, for messages. target, score: tensor names. tensors: names of the model's
    outputs that `gradient` needs. constants: weights of the tail.
    """

    name: str
    target: str
    score: str
    tensors: tuple[str, ...]
    constants: dict[str, np.ndarray]
    _steps: tuple[_Step, ...]

    @classmethod
    def of(cls, file: OnnxFile, target: str, score: str, name: str) -> "Tail":
        """The tail of a model; `name` is used in messages.

        Raises StagingError if the score does not depend on the target, an operator or one of its
        attributes is not supported, the model has control flow, or a required tensor is not among
        the model's outputs.
        """
        constants = _constants(file)
        steps = trace(file, target, score, name, constants)
        needed = {target, score}.union(*(step.values for step in steps))
        shapes = set().union(*(step.shapes for step in steps)) - needed
        required = [tensor for tensor in sorted(needed) if tensor not in constants]
        for tensor in sorted(shapes - constants.keys()):
            required.append(tensor if tensor in file.outputs else shape_name(tensor))
        missing = [tensor for tensor in required if tensor not in file.outputs]
        if missing:
            raise StagingError(
                f"The model {name} cannot be explained: {listed(missing)} must be among its "
                f"outputs; {PREPARE} adds the missing ones."
            )
        kept = {tensor: constants[tensor] for tensor in (needed | shapes) & constants.keys()}
        unread = [tensor for tensor, values in kept.items() if values is None]
        if unread:
            raise StagingError(
                f"The model {name} cannot be explained: {listed(sorted(unread))} has a data type "
                "that is not supported."
            )
        return cls(name, target, score, tuple(required), kept, steps)

    @property
    def operators(self) -> tuple[str, ...]:
        """Operators from the target layer to the score, in order."""
        return tuple(step.node.op for step in self._steps)

    def gradient(self, tensors: dict[str, np.ndarray], dscore: np.ndarray) -> np.ndarray:
        """Gradient of a score with respect to the target layer, in the target layer's shape.

        tensors: the values of `self.tensors` from the forward pass; dscore: gradient of the
        explained score with respect to the model's scores [N, C]. Gradients of branches add up
        (chain rule). Raises StagingError if the tensors do not fit the tail's operators.
        """
        return self._walk(tensors, dscore, self._steps)[self.target]

    def mean_gradient(self, tensors: dict[str, np.ndarray], dscore: np.ndarray) -> np.ndarray:
        """`gradient` averaged over the voxels of each channel, [N, K], as Grad-CAM requires.

        Poolings and a convolution directly after the target are not backpropagated voxel by voxel:
        a pooling preserves the sum of the gradient over the voxels, and `conv_sum` computes the sum
        of a convolution's gradient directly.
        """
        voxels = prod(tensors[self.target].shape[2:])
        tensor, first = self.target, 0
        while (node := self._only_user(tensor)) and preserves_sum(node.op, node.attributes):
            tensor, first = node.outputs[0], first + 1
        if node is None or node.op != "Conv":
            g = self._walk(tensors, dscore, self._steps[first:])[tensor]
            return g.sum(axis=tuple(range(2, g.ndim))) / voxels
        # Nothing else depends on the target, so the convolution is the first of the other steps.
        step = self._steps[first]
        g = self._walk(tensors, dscore, self._steps[first + 1 :])[node.outputs[0]]
        arguments = self._arguments(step, self._values(tensors))
        with self._refusing(node):
            return conv_sum(g, *arguments, **node.attributes) / voxels

    def _only_user(self, tensor: str) -> Node | None:
        users = [step.node for step in self._steps if tensor in step.node.inputs]
        return users[0] if len(users) == 1 else None

    def _values(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors by name; NaN, without memory, for those of which only the shape is known."""
        values = {**self.constants, **tensors}
        for step in self._steps:
            with self._refusing(step.node):
                for name in step.shapes - values.keys():
                    values[name] = np.broadcast_to(np.float32(np.nan), values[shape_name(name)])
        return values

    @staticmethod
    def _arguments(step: _Step, values: dict[str, np.ndarray]) -> list[np.ndarray | None]:
        read = step.values | step.shapes
        return [values[name] if name in read else None for name in step.node.inputs]

    def _walk(
        self, tensors: dict[str, np.ndarray], dscore: np.ndarray, steps: tuple[_Step, ...]
    ) -> dict[str, np.ndarray]:
        """Gradients with respect to the inputs of the steps, the last of which gives the score."""
        values = self._values(tensors)
        dtype = values[self.target].dtype
        gradients: dict[str, Any] = {self.score: dscore.astype(dtype)}
        for step in reversed(steps):
            given = [gradients.pop(output, None) for output in step.node.outputs]
            y = values[step.node.outputs[0]] if step.node.outputs[0] in step.values else None
            with self._refusing(step.node):
                arguments = self._arguments(step, values)
                for position, rule in step.rules:
                    where = {"position": position} if rule.positional else {}
                    g = rule.of(
                        given if rule.several else given[0],
                        y,
                        *arguments,
                        **step.node.attributes,
                        **where,
                    ).astype(dtype, copy=False)
                    name = step.node.inputs[position]
                    if name in values and g.shape != values[name].shape:
                        raise ValueError(f"{g.shape} does not fit {values[name].shape}")
                    gradients[name] = gradients[name] + g if name in gradients else g
        return gradients

    @contextmanager
    def _refusing(self, node: Node) -> Iterator[None]:
        """Turn the errors of a product into a StagingError."""
        try:
            yield
        except _UNFIT as error:
            raise StagingError(
                f"The model {self.name} cannot be explained: the gradient of its {node.op} "
                f"{node.name!r} cannot be computed."
            ) from error


def trace(
    file: OnnxFile,
    target: str,
    score: str,
    name: str,
    constants: dict[str, np.ndarray | None] | None = None,
) -> tuple[_Step, ...]:
    """The steps from the target layer to the score; raises StagingError as `Tail.of` does."""
    refused = f"The model {name} cannot be explained: "
    if file.opset < MIN_OPSET:
        raise StagingError(
            f"{refused}it uses ONNX opset {file.opset}; at least {MIN_OPSET} is needed."
        )
    branching = sorted({node.op for node in file.nodes} & CONTROL_FLOW)
    if branching:
        raise StagingError(f"{refused}it has control flow ({', '.join(branching)}).")
    if file.functions:  # one of them may have the name of an operator supported here
        raise StagingError(f"{refused}it defines its own operators ({listed(file.functions)}).")
    if score not in {output for node in file.nodes for output in node.outputs}:
        raise StagingError(f"{refused}it does not compute {score!r}.")
    reached, forward = {target}, []
    for node in file.nodes:  # ONNX keeps nodes in topological order
        if reached.intersection(node.inputs) and node.op not in ZERO_GRADIENT:
            reached.update(filter(None, node.outputs))
            forward.append(node)
    needed, nodes = {score}, []
    for node in reversed(forward):
        if needed.intersection(node.outputs):
            needed.update(reached.intersection(node.inputs))
            nodes.insert(0, node)
    if not nodes or target not in needed:
        raise StagingError(
            f"{refused}its scores {score!r} do not depend on its target layer {target!r}."
        )
    between = f"between {target!r} and {score!r}"
    unknown = sorted({node.op for node in nodes} - VJPS.keys())
    if unknown:
        raise StagingError(
            f"{refused}the gradient of {listed(unknown)} {between} is not supported."
        )
    constants = _constants(file) if constants is None else constants
    return tuple(_step(node, reached, needed, constants, f"{refused}{between}, ") for node in nodes)


def _constants(file: OnnxFile) -> dict[str, np.ndarray | None]:
    """Weights and values of Constant nodes, by name; None for a type that is not supported."""
    constants = dict(file.weights)
    for node in file.nodes:
        if node.op == "Constant":
            given = [*node.attributes.items()]
            attribute, value = given[0] if len(given) == 1 else ("", None)
            known = attribute in _CONSTANTS and value is not None
            constants[node.outputs[0]] = np.asarray(value, _CONSTANTS[attribute]) if known else None
    return constants


def _step(
    node: Node,
    reached: set[str],
    needed: set[str],
    constants: dict[str, np.ndarray | None],
    refused: str,
) -> _Step:
    rules = VJPS[node.op]
    if rules[0].positional:
        rules = rules * len(node.inputs)
    active = [i for i, name in enumerate(node.inputs) if name in reached]
    if active[-1] >= len(rules):
        raise StagingError(
            f"{refused}a gradient for input {active[-1] + 1} of {node.op} is not supported."
        )
    secondary = needed.intersection(node.outputs[1:])
    if secondary and not rules[0].several:
        raise StagingError(
            f"{refused}a gradient for output {', '.join(secondary)} of {node.op} is not supported."
        )
    chosen = tuple((i, rules[i]) for i in active)
    for _, rule in chosen:
        _check_values(node, rule, constants, refused)
    values, shapes = set(), set()
    for _, rule in chosen:
        if rule.output:
            values.add(node.outputs[0])
        if rule.all_shapes:
            shapes.update(node.inputs)
        values.update(node.inputs[i] for i in rule.values if i < len(node.inputs))
        shapes.update(node.inputs[i] for i in rule.shapes if i < len(node.inputs))
    # ONNX writes "" for an omitted input.
    return _Step(node, chosen, frozenset(values - {""}), frozenset(shapes - values - {""}))


def _check_values(
    node: Node, rule: Vjp, constants: dict[str, np.ndarray | None], refused: str
) -> None:
    parameters = inspect.signature(rule.of).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given: dict[str | int, Any] = dict(node.attributes)
    for attribute in given:
        if attribute not in known and not takes_all:
            raise StagingError(f"{refused}{node.op} has the unknown attribute {attribute!r}.")
    given |= {i: constants.get(name) for i, name in enumerate(node.inputs) if name}
    for key, allowed in rule.allows.items():
        if key in given and not _accepts(allowed, given[key]):
            if isinstance(key, int):
                what = f"this input {key + 1}, {node.inputs[key]!r}"
            else:
                what = f"{key} {given[key]!r}"
            raise StagingError(f"{refused}{node.op} with {what} is not supported.")


def _accepts(allowed: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value is supported; one of another type than the attribute's is not."""
    try:
        return allowed(value)
    except (AttributeError, TypeError):
        return False
