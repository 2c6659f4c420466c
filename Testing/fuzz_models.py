"""The model files that the fuzz tests damage, byte by byte and, as valid ONNX, part by part."""

import json
import math
import random
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from fuzzing import Target
from onnx import TensorProto, helper, numpy_helper
from tiny_models import PATCH, explainable_model, segmentation_model, staging_model

from LiverFibrosisStagingLib.gradcam_onnx.backprop import VJPS
from LiverFibrosisStagingLib.gradcam_onnx.explainable import ExplainableModel
from LiverFibrosisStagingLib.gradcam_onnx.gradcam import METHODS
from LiverFibrosisStagingLib.imaging.segmentation import SegmentationModel
from LiverFibrosisStagingLib.model import StagingModel, read_card
from LiverFibrosisStagingLib.quality import unusual
from LiverFibrosisStagingLib.stages import softmax

SOUND = b"sound"
_INTEGERS = (0, 1, -1, 2, 3, 5, 7, 100, 2**31 - 1, 2**31, 2**62, -(2**63))
_FLOATS = (0.0, -1.0, 1.0, 1e-30, 1e30, float("nan"), float("inf"))
_TEXTS = ("", "x", "logits", "features", "volume", "SAME_UPPER", "NOTSET", "two\nlines", "\x1b[31m")
_ATTRIBUTES = (
    *("axis", "axes", "alpha", "auto_pad", "group", "kernel_shape", "pads", "strides", "dilations"),
    *("transA", "transB", "ceil_mode", "count_include_pad", "perm", "keepdims", "to", "value"),
    *("storage_order", "epsilon", "mode", "split", "num_outputs", "allowzero"),
)
_OPERATORS = (*VJPS, "Constant", "If", "Loop", "Shape", "Greater", "Cast", "TopK", "Sin", "Whistle")
_JSON = (None, True, 0, -1, 2.5, 1e300, "x", "", [], [1], ["x"], {}, {"x": 1}, [[[]]], "F4")


def model_targets(folder: Path) -> dict[str, Target]:
    """Two targets of each kind of model: its bytes, and a seed for changes that keep it ONNX."""
    targets = {}
    for name, made, read in (
        ("staging", staging_model, _stage),
        ("explainable", explainable_model, _explain),
        ("segmentation", segmentation_model, _segment),
    ):
        data = made().SerializeToString()
        path = folder / f"{name}.onnx"
        targets[f"{name}.onnx"] = Target(data, partial(_from_bytes, path, read), len(data))
        targets[f"{name} as ONNX"] = Target(SOUND, partial(_from_parts, path, read, data), 5)
    return targets


def shipped_targets(folder: Path) -> dict[str, Target]:
    """The shipped models, which take seconds to run, where they say what they are."""
    targets = {}
    models = Path(__file__).resolve().parents[1] / "LiverFibrosisStaging" / "Resources" / "Models"
    for name, load in (("LFS_single", StagingModel), ("VNet", SegmentationModel)):
        data = (models / f"{name}.onnx").read_bytes()
        path = folder / f"{name}.onnx"
        targets[f"{name}, head"] = Target(data, partial(_from_bytes, path, load), 6000)
        # What lies in front of the metadata is moved behind it: fields may come in any order.
        end = len(data) - data.rindex(b"\x72", 0, data.index(b"liver_"))
        turned = data[-end:] + data[:-end]
        targets[f"{name}, metadata"] = Target(turned, partial(_from_bytes, path, load), end)
    return targets


def _from_bytes(path: Path, read, data: bytes) -> None:
    path.write_bytes(data)
    read(path)


def _from_parts(path: Path, read, sound: bytes, seed: bytes) -> None:
    model = onnx.load_from_string(sound)
    if seed != SOUND:
        change(model, random.Random(seed))
    _from_bytes(path, read, model.SerializeToString())


def _stage(path: Path) -> None:
    model = StagingModel(path)
    json.dumps(asdict(model.card), allow_nan=False)
    x = np.linspace(0, 1, 2 * math.prod(PATCH), dtype=np.float32).reshape(2, 1, *PATCH)
    forward = model.run(x)
    assert np.isfinite(softmax(forward.logits, model.card.temperature)).all()
    for method in METHODS:
        for members in ((4,), (2, 3, 4)):
            found = model.location_map(forward, members, method)
            assert found.ndim == 4 and np.isfinite(found).all() and found.min() >= 0
    unusual({"liver": {"mean": 9.0}}, read_card(path).reference, "F4")


def _explain(path: Path) -> None:
    model = ExplainableModel(path)
    x = np.linspace(-1, 1, 60, dtype=np.float32).reshape(2, 1, 6, 5)
    for method in METHODS:
        found = model.grad_cam(x, 1, method)
        assert np.isfinite(found).all() and found.min() >= 0


def _segment(path: Path) -> None:
    model = SegmentationModel(path)
    found = model.run(np.linspace(0, 1, 4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8))
    assert found.shape == (3, 4, 6, 8) and np.isfinite(found).all()


def change(model: onnx.ModelProto, rng: random.Random) -> None:
    """One to three changes after which the file is a protocol buffer of the same kind."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice((_attribute, _attribute, _node, _weight, _value, _metadata, _version))(
            model, rng
        )


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    if not model.graph.node:
        return
    node = rng.choice(model.graph.node)
    if not node.attribute or rng.random() < 0.2:
        node.attribute.append(_made_attribute(rng.choice(_ATTRIBUTES), rng))
        return
    place = rng.randrange(len(node.attribute))
    attribute = node.attribute[place]
    kind = rng.randrange(5)
    if kind == 0:
        del node.attribute[place]
    elif kind == 1:
        attribute.CopyFrom(_made_attribute(attribute.name, rng))
    elif kind == 2:
        attribute.name = rng.choice(_ATTRIBUTES)
    elif kind == 3:
        attribute.type = rng.randrange(15) if rng.random() < 0.5 else attribute.type
        attribute.i = rng.choice(_INTEGERS)
    elif attribute.ints:
        values = list(attribute.ints)
        values[rng.randrange(len(values))] = rng.choice(_INTEGERS)
        if rng.random() < 0.3:
            values = rng.choice((values[:-1], [*values, 1], []))
        del attribute.ints[:]
        attribute.ints.extend(values)


def _made_attribute(name: str, rng: random.Random) -> onnx.AttributeProto:
    values = (
        rng.choice(_INTEGERS),
        rng.choice(_FLOATS),
        rng.choice(_TEXTS),
        [rng.choice(_INTEGERS) for _ in range(rng.randrange(1, 7))],
        [rng.choice(_FLOATS) for _ in range(2)],
        ["x", "y"],
        numpy_helper.from_array(np.array(rng.choice(_INTEGERS[:8])), "t"),
    )
    return helper.make_attribute(name, rng.choice(values))


def _node(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = model.graph.node
    if not nodes:
        return
    place = rng.randrange(len(nodes))
    node = nodes[place]
    names = [*(t for n in nodes for t in n.output), *(w.name for w in model.graph.initializer)]
    kind = rng.randrange(8)
    if kind == 0:
        node.op_type = rng.choice(_OPERATORS)
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice((*names, *_TEXTS))
    elif kind == 2:
        node.input.append(rng.choice(names))
    elif kind == 3 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif kind == 4:
        node.output.append(rng.choice((*names, "more")))
    elif kind == 5:
        del nodes[place]
    elif kind == 6:
        other = onnx.NodeProto()
        other.CopyFrom(nodes[place])
        nodes.append(other)
    else:
        node.domain = rng.choice(("ai.onnx", "com.microsoft", "ai.onnx.ml", "own"))


def _weight(model: onnx.ModelProto, rng: random.Random) -> None:
    weights = model.graph.initializer
    if not weights:
        return
    place = rng.randrange(len(weights))
    weight = weights[place]
    kind = rng.randrange(8)
    if kind == 0 and weight.dims:
        weight.dims[rng.randrange(len(weight.dims))] = rng.choice(_INTEGERS)
    elif kind == 1:
        weight.data_type = rng.randrange(25)
    elif kind == 2:
        weight.raw_data = weight.raw_data[: rng.randrange(len(weight.raw_data) + 1)]
    elif kind == 3 and (values := _array(weight)) is not None:
        values.flat[rng.randrange(values.size)] = rng.choice(_FLOATS)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    elif kind == 4:
        del weights[place]
    elif kind == 5:
        shape = list(weight.dims)
        rng.shuffle(shape)
        del weight.dims[:]
        weight.dims.extend(rng.choice((shape, [*shape, 1], [int(math.prod(shape))])))
    elif kind == 6 and (values := _array(weight)) is not None:
        other = rng.choice((np.float64, np.float16, np.int64, np.int32, np.bool_))
        weight.CopyFrom(numpy_helper.from_array(values.astype(other), weight.name))
    else:
        weight.name = rng.choice(_TEXTS)


def _array(weight: TensorProto) -> np.ndarray | None:
    """A copy of the floating-point numbers, if it still holds any."""
    try:
        values = numpy_helper.to_array(weight).copy()
    except (ValueError, TypeError, KeyError):
        return None
    return values if values.size and values.dtype.kind == "f" else None


def _value(model: onnx.ModelProto, rng: random.Random) -> None:
    values = rng.choice((model.graph.input, model.graph.output))
    if not values:
        return
    place = rng.randrange(len(values))
    value = values[place]
    dims = value.type.tensor_type.shape.dim
    kind = rng.randrange(6)
    if kind == 0 and dims:
        dims[rng.randrange(len(dims))].dim_value = rng.choice(_INTEGERS)
    elif kind == 1:
        value.type.tensor_type.elem_type = rng.randrange(25)
    elif kind == 2:
        del values[place]
    elif kind == 3 and dims:
        del dims[rng.randrange(len(dims))]
    elif kind == 4:
        value.name = rng.choice((*_TEXTS, "more"))
    else:
        value.type.tensor_type.ClearField("shape")


def _metadata(model: onnx.ModelProto, rng: random.Random) -> None:
    entry = rng.choice(model.metadata_props)
    try:
        card = json.loads(entry.value)
    except ValueError:
        return
    places = [(card, key) for key in card] if isinstance(card, dict) else []
    for inner, key in places:  # grows on the way
        value = inner[key]
        if isinstance(value, dict):
            places += [(value, k) for k in value]
        elif isinstance(value, list):
            places += [(value, i) for i in range(len(value))]
    if places:
        inner, key = rng.choice(places)
        if rng.random() < 0.2:
            del inner[key]
        else:
            inner[key] = rng.choice(_JSON)
    entry.value = json.dumps(card)


def _version(model: onnx.ModelProto, rng: random.Random) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        model.opset_import[0].version = rng.choice((*range(1, 30), *_INTEGERS))
    elif kind == 1:
        model.ir_version = rng.choice((*range(1, 20), *_INTEGERS))
    else:
        value = rng.choice((TensorProto.FLOAT, TensorProto.INT64))
        model.graph.value_info.append(helper.make_tensor_value_info("conv", value, [1, 2]))
