"""Gradients of an ONNX graph's tail, in numpy: from the score back to the target layer.

One small vector-Jacobian product per operator, after the manner of HIPS/autograd; `VJPS` is the
table of all of them, and `Tail` the engine, which knows no operator. Tensors are [N, C, spatial...]
where an operator cares.
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
from .vjp_windows import WINDOWS, conv_sum, hands_on_all

VJPS: dict[str, Rules] = {**ELEMENTWISE, **REDUCE, **SHAPE, **WINDOWS}
# Constant wherever they are differentiable: no gradient passes.
FLAT = {
    *("And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "Floor", "Greater"),
    *("GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonZero", "Not", "OneHot", "Or"),
    *("Range", "Round", "Shape", "Sign", "Size", "Xor"),
}
# Their subgraphs may use any tensor without naming it among their inputs.
CONTROL_FLOW = {"If", "Loop", "Scan"}
# What numpy raises where arrays or attributes are none that an operator can have.
_UNFIT = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
# Attributes that a Constant node's numbers lie in, of one type each but for the first.
_CONSTANTS = {
    "value": None,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}
# Operators behave as the products say from this opset on (axes and shapes as inputs or attributes).
OLDEST_OPSET = 13


def shape_name(tensor: str) -> str:
    """Name of the output [rank] that hands over a tensor's shape where its values are not read."""
    return f"{tensor}/shape"


@dataclass(frozen=True)
class _Step:
    """One node of the tail and what it needs of the forward pass.

    rules: (position of an input that depends on the target, its product). values, shapes: names of
    the tensors, constants included, of which the products read the values or the shape.
    """

    node: Node
    rules: tuple[tuple[int, Vjp], ...]
    values: frozenset[str]
    shapes: frozenset[str]


@dataclass(frozen=True)
class Tail:
    """The nodes between the target layer and the score, in the order in which they run.

    name: how messages call the model. target, score: tensor names. tensors: names of the model's
    outputs that the forward pass has to hand over. constants: weights of the tail.
    """

    name: str
    target: str
    score: str
    tensors: tuple[str, ...]
    constants: dict[str, np.ndarray]
    _steps: tuple[_Step, ...]

    @classmethod
    def of(cls, file: OnnxFile, target: str, score: str, name: str) -> "Tail":
        """The tail of a model; `name` is how messages call it.

        Raises StagingError where the target does not lead to the score, an operator or one of its
        attributes has no gradient here, the model has control flow, or a tensor that is needed is
        not among the model's outputs.
        """
        constants = _constants(file)
        steps = trace(file, target, score, name, constants)
        needed = {target, score}.union(*(step.values for step in steps))
        shapes = set().union(*(step.shapes for step in steps)) - needed
        handed_over = [tensor for tensor in sorted(needed) if tensor not in constants]
        for tensor in sorted(shapes - constants.keys()):
            handed_over.append(tensor if tensor in file.outputs else shape_name(tensor))
        hidden = [tensor for tensor in handed_over if tensor not in file.outputs]
        if hidden:
            raise StagingError(
                f"The model {name} cannot be explained: {listed(hidden)} must be among its "
                "outputs; Training/make_explainable.py adds what is missing."
            )
        kept = {tensor: constants[tensor] for tensor in (needed | shapes) & constants.keys()}
        unread = [tensor for tensor, values in kept.items() if values is None]
        if unread:
            raise StagingError(
                f"The model {name} cannot be explained: {listed(sorted(unread))} is stored in a "
                "type that is not read."
            )
        return cls(name, target, score, tuple(handed_over), kept, steps)

    @property
    def operators(self) -> tuple[str, ...]:
        """Operators from the target layer to the score, for the reader."""
        return tuple(step.node.op for step in self._steps)

    def gradient(self, tensors: dict[str, np.ndarray], dscore: np.ndarray) -> np.ndarray:
        """Gradient of a score with respect to the target layer, in the target layer's shape.

        tensors: what the forward pass gave for `self.tensors`; dscore: what is explained, as its
        gradient with respect to the scores [N, C]. Branches that meet again add up (chain rule).
        Raises StagingError where the tensors do not fit the tail's operators.
        """
        return self._walk(tensors, dscore, self._steps)[self.target]

    def mean_gradient(self, tensors: dict[str, np.ndarray], dscore: np.ndarray) -> np.ndarray:
        """`gradient` averaged over the voxels of each channel, [N, K]: Grad-CAM needs no more.

        What leads straight from the target through poolings into a convolution is not pulled back
        voxel by voxel: a pooling hands on all that it gets, to whichever voxels, and `conv_sum`
        adds up what a convolution would hand on.
        """
        voxels = prod(tensors[self.target].shape[2:])
        tensor, first = self.target, 0
        while (node := self._only_user(tensor)) and hands_on_all(node.op, node.attributes):
            tensor, first = node.outputs[0], first + 1
        if node is None or node.op != "Conv":
            g = self._walk(tensors, dscore, self._steps[first:])[tensor]
            return g.sum(axis=tuple(range(2, g.ndim))) / voxels
        # Its only user comes first among the steps that remain: nothing else depends on the target.
        step = self._steps[first]
        g = self._walk(tensors, dscore, self._steps[first + 1 :])[node.outputs[0]]
        arguments = self._arguments(step, self._values(tensors))
        with self._refusing(node):
            return conv_sum(g, *arguments, **node.attributes) / voxels

    def _only_user(self, tensor: str) -> Node | None:
        users = [step.node for step in self._steps if tensor in step.node.inputs]
        return users[0] if len(users) == 1 else None

    def _values(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors by name; one of which only the shape is known holds NaN, in no memory."""
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
        """Gradients of what the steps start from, of which the last gives the score."""
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
        """Whatever a product cannot do with what the network gave is a refusal."""
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
    """The steps from the target layer to the score; raises StagingError where there is no way."""
    refused = f"The model {name} cannot be explained: "
    if file.opset < OLDEST_OPSET:
        raise StagingError(
            f"{refused}it uses ONNX opset {file.opset}, and {OLDEST_OPSET} at least is needed."
        )
    branching = sorted({node.op for node in file.nodes} & CONTROL_FLOW)
    if branching:
        raise StagingError(f"{refused}it has control flow ({', '.join(branching)}).")
    if file.functions:  # one of them may go by the name of an operator that is known here
        raise StagingError(f"{refused}it defines operators itself ({listed(file.functions)}).")
    if score not in {output for node in file.nodes for output in node.outputs}:
        raise StagingError(f"{refused}it computes no {score!r}.")
    reached, forward = {target}, []
    for node in file.nodes:  # ONNX keeps nodes in topological order
        if reached.intersection(node.inputs) and node.op not in FLAT:
            reached.update(filter(None, node.outputs))
            forward.append(node)
    needed, nodes = {score}, []
    for node in reversed(forward):
        if needed.intersection(node.outputs):
            needed.update(reached.intersection(node.inputs))
            nodes.insert(0, node)
    if not nodes or target not in needed:
        raise StagingError(
            f"{refused}its target layer {target!r} does not lead to its scores {score!r}."
        )
    between = f"between {target!r} and {score!r}"
    unknown = sorted({node.op for node in nodes} - VJPS.keys())
    if unknown:
        raise StagingError(f"{refused}no gradient is known for {listed(unknown)} {between}.")
    constants = _constants(file) if constants is None else constants
    return tuple(_step(node, reached, needed, constants, f"{refused}{between}, ") for node in nodes)


def _constants(file: OnnxFile) -> dict[str, np.ndarray | None]:
    """Weights and what Constant nodes hold, by name; None for a type that is not read."""
    constants = dict(file.weights)
    for node in file.nodes:
        if node.op == "Constant":
            held = [*node.attributes.items()]
            attribute, value = held[0] if len(held) == 1 else ("", None)
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
            f"{refused}no gradient is known for input {active[-1] + 1} of {node.op}."
        )
    secondary = needed.intersection(node.outputs[1:])
    if secondary and not rules[0].several:
        raise StagingError(
            f"{refused}no gradient is known for output {', '.join(secondary)} of {node.op}."
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
    # ONNX writes "" for an input that is left out.
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
            raise StagingError(f"{refused}no gradient is known for {node.op} with {what}.")


def _accepts(allowed: Callable[[Any], bool], value: Any) -> bool:
    """A value of another type than the attribute's is not supported either."""
    try:
        return allowed(value)
    except (AttributeError, TypeError):
        return False
