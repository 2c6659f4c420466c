"""Preparation of ONNX classifiers for Grad-CAM with `ExplainableModel`.

The only module of the library that needs the package `onnx`. The prepared file contains the same
network, with constants folded and all weights inside; besides the scores it outputs the target
layer's feature maps and what backpropagation reads: values of some tensors, shapes of others (as
"TENSOR/shape"). Its metadata entry `explainable` describes the layer (explainable.py). ONNX Runtime
must give the same scores for both files.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter
from onnx.reference import ReferenceEvaluator

from ..errors import StagingError
from .backprop import MIN_OPSET, shape_name, trace
from .explainable import (
    EXPLAINABLE_KEY,
    EXPLAINABLE_VERSION,
    ExplainableModel,
)
from .onnx_file import parse_onnx
from .session import SAFE_IR, SAFE_OPSET

MAX_FOLDED = 1 << 24  # numbers; larger constants are computed at run time
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Candidate:
    """A tensor that can be the target layer; `shape` has None for sizes that are not fixed."""

    tensor: str
    operator: str
    shape: tuple[int | None, ...]


def make_explainable(
    source: str | Path,
    layer: str,
    output: str | Path,
    scores: str | None = None,
    channels_last: bool = False,
    grid: tuple[int, ...] | None = None,
) -> None:
    """Write `output`, an explainable copy of the classifier `source`.

    layer: name of the target tensor. scores: name of the tensor of scores before the softmax, by
    default derived from the model's first output. channels_last: the layer is [N, ..., K]. grid:
    spatial shape of the layer's last tokens, if it is [N, tokens, K]. Raises StagingError if the
    model cannot be explained, or the scores would differ.
    """
    model = simplified(_load(source), str(source))
    if len(model.graph.input) != 1:
        names = ", ".join(value.name for value in model.graph.input)
        raise StagingError(f"The model {source} has the inputs {names}; one input is needed.")
    shapes = _shapes(model)
    scores = scores or _scores(model)
    if layer not in shapes:
        known = ", ".join(candidate.tensor for candidate in candidates(source, scores)[-5:])
        raise StagingError(
            f"The model {source} has no tensor {layer!r}; its last layers are {known}."
        )
    _check_rank(shapes.get(scores), scores, source)
    file = parse_onnx(model.SerializeToString(), str(source))
    steps = trace(file, layer, scores, str(source))
    constants = {*file.weights}
    values = {layer, scores}.union(*(step.values for step in steps)) - constants
    sizes = set().union(*(step.shapes for step in steps)) - values - constants
    original = [o.name for o in model.graph.output]
    for tensor in sorted(sizes):
        model.graph.node.append(helper.make_node("Shape", [tensor], [shape_name(tensor)]))
    del model.graph.output[:]
    # The original outputs first; a tensor may have been an output already.
    for tensor in dict.fromkeys([scores, *original, layer, *sorted(values)]):
        model.graph.output.append(_info(tensor, shapes))
    for tensor in sorted(sizes):
        model.graph.output.append(
            helper.make_tensor_value_info(shape_name(tensor), TensorProto.INT64, [None])
        )
    described = {
        "version": EXPLAINABLE_VERSION,
        "target_layer": layer,
        "scores": scores,
        "channel_axis": -1 if channels_last or grid else 1,
        "grid": None if grid is None else list(grid),
        "tail": [step.node.op for step in steps],
    }
    entry = next((p for p in model.metadata_props if p.key == EXPLAINABLE_KEY), None)
    entry = entry or model.metadata_props.add(key=EXPLAINABLE_KEY)
    entry.value = json.dumps(described)
    onnx.checker.check_model(model)
    output = Path(output)
    unfinished = output.with_name(output.name + ".part")
    try:
        onnx.save(model, unfinished)
        _check_scores(source, unfinished)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def candidates(source: str | Path, scores: str | None = None) -> list[Candidate]:
    """Tensors with feature maps on which the scores depend, in order of computation.

    Maps are [N, K, spatial...] (rank 3 to 5, more than one voxel) or, in transformers, tokens
    [N, tokens, K]. Of a chain of elementwise operators only the last is listed.
    """
    model = simplified(_load(source), str(source))
    shapes = _shapes(model)
    scores = scores or _scores(model)
    leading = {scores}
    for node in reversed(model.graph.node):
        if leading.intersection(node.output):
            leading.update(node.input)
    followers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for tensor in node.input:
            followers.setdefault(tensor, []).append(node.op_type)
    found = []
    for node in model.graph.node:
        tensor = node.output[0]
        shape = shapes.get(tensor) or ()
        spatial = [n for n in shape[2:] if n != 1]
        if tensor not in leading or tensor == scores or not 3 <= len(shape) <= 5 or not spatial:
            continue
        if node.op_type in _FEATURES and not set(followers.get(tensor, [])) <= _POINTWISE:
            found.append(Candidate(tensor, node.op_type, shape))
    return found


_POINTWISE = {
    *("BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu"),
    *("PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh"),
}
_FEATURES = {*_POINTWISE, "Add", "Concat", "Conv", "LayerNormalization", "Mul"}


def simplified(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same network in opset 13 to 18 and at most IR version 10, with constants folded.

    Raises StagingError if the opset cannot be converted.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    wanted = min(max(opset, MIN_OPSET), SAFE_OPSET)
    if opset != wanted:
        try:
            model = version_converter.convert_version(model, wanted)
        except Exception as error:  # the converter raises a class of its own for every operator
            reason = " ".join(str(error).split())[:200]
            raise StagingError(
                f"The model {name} uses ONNX opset {opset}, which cannot be converted to {wanted} "
                f"({reason}); export it with opset {wanted}."
            ) from None
    model.ir_version = min(model.ir_version, SAFE_IR)
    _fold(model)
    return model


def _fold(model: onnx.ModelProto) -> None:
    """Replace tensors that do not depend on the input (constants, fixed shapes) by weights."""
    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = _shapes(model)
    outputs = {output.name for output in graph.output}
    removed = set()
    for position, node in enumerate(graph.node):
        folded = None
        if node.op_type == "Constant":
            folded = _evaluate(node, {}, model)
        elif node.op_type == "Shape" and None not in shapes.get(node.input[0], (None,)):
            span = {a.name: a.i for a in node.attribute}
            shape = shapes[node.input[0]][span.get("start", 0) : span.get("end")]
            folded = [np.array(shape, np.int64)]
        elif node.op_type in _RANDOM or any(a.type == a.GRAPH for a in node.attribute):
            pass
        elif all(not tensor or tensor in known for tensor in node.input):
            folded = _evaluate(node, known, model)
        if folded is None or outputs.intersection(node.output):
            continue
        removed.add(position)
        for tensor, values in zip(node.output, folded):
            if tensor:
                known[tensor] = values
                graph.initializer.append(numpy_helper.from_array(np.asarray(values), tensor))
    _keep_only(graph.node, lambda position, _: position not in removed)
    used = {tensor for node in graph.node for tensor in node.input} | outputs
    used = used.union(*(_captured(node) for node in graph.node))
    _keep_only(graph.initializer, lambda _, tensor: tensor.name in used)
    _keep_only(graph.input, lambda _, value: value.name not in known)


def _keep_only(field: Any, wanted: Callable[[int, Any], bool]) -> None:
    """Delete all other entries of a repeated field, in place since weights may be large."""
    for position in reversed(range(len(field))):
        if not wanted(position, field[position]):
            del field[position]


_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"}


def _evaluate(
    node: onnx.NodeProto, known: dict[str, np.ndarray], model: onnx.ModelProto
) -> list[np.ndarray] | None:
    """A constant node's outputs; None if they are large or the operator is not ONNX's own."""
    if node.domain not in ("", "ai.onnx"):
        return None
    given = {tensor: known[tensor] for tensor in node.input if tensor}
    alone = helper.make_graph(
        [node],
        "alone",
        [helper.make_tensor_value_info(t, _type(v), v.shape) for t, v in given.items()],
        [onnx.ValueInfoProto(name=t) for t in node.output if t],
    )
    version = [helper.make_opsetid("", _opset(model))]
    results = ReferenceEvaluator(helper.make_model(alone, opset_imports=version)).run(None, given)
    if sum(np.size(values) for values in results) > MAX_FOLDED:
        return None
    named = dict(zip((t for t in node.output if t), results))
    return [named.get(tensor) for tensor in node.output]


def _captured(node: onnx.NodeProto) -> set[str]:
    """Tensors read by the subgraphs of a node."""
    graphs = [a.g for a in node.attribute if a.type == a.GRAPH]
    inner = [n for graph in graphs for n in graph.node]
    return {t for n in inner for t in n.input}.union(*(_captured(n) for n in inner))


def _type(values: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(values.dtype)


def _opset(model: onnx.ModelProto) -> int:
    return next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _load(source: str | Path) -> onnx.ModelProto:
    try:
        return onnx.load(source)
    except OSError as error:
        raise StagingError(f"Cannot read the model {source}: {error.strerror}.") from None
    except Exception:  # protobuf raises a class of its own
        raise StagingError(f"The model {source} is not an ONNX file, or it is truncated.") from None


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Inferred shapes by tensor; None for a size that is not fixed."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _scores(model: onnx.ModelProto) -> str:
    """The first output, or the input of its softmax, since Grad-CAM uses scores before it."""
    tensor = model.graph.output[0].name
    made = {output: node for node in model.graph.node for output in node.output}
    while tensor in made and made[tensor].op_type in {"Softmax", "LogSoftmax", "Identity"}:
        tensor = made[tensor].input[0]
    return tensor


def _check_rank(shape: tuple[int | None, ...] | None, scores: str, source: str | Path) -> None:
    if shape is None or len(shape) != 2:
        found = "unknown shape" if shape is None else f"shape {list(shape)}"
        raise StagingError(
            f"The model {source} cannot be explained: its scores {scores!r} have {found}; [N, "
            "classes] is needed."
        )


def _info(tensor: str, shapes: dict[str, tuple[int | None, ...]]) -> onnx.ValueInfoProto:
    shape = shapes.get(tensor)
    if shape is not None:
        shape = ["N" if n is None and axis == 0 else n for axis, n in enumerate(shape)]
    return helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape)


def _check_scores(source: str | Path, prepared: Path) -> None:
    """Compare both files on a random input. Raises StagingError if their outputs differ."""
    before, after = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (source, prepared)
    )
    (given,) = before.get_inputs()
    shape = [n if isinstance(n, int) else 1 for n in given.shape]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    names = [output.name for output in before.get_outputs()]
    results = (session.run(names, {given.name: x}) for session in (before, after))
    for name, old, new in zip(names, *results):
        worst = np.abs(old - new).max() / max(1.0, np.abs(old).max())
        if not worst < TOLERANCE:
            raise StagingError(
                f"The prepared model's {name!r} differs from the original's by {worst:.2g}."
            )
    ExplainableModel(prepared).grad_cam(x, 0)
