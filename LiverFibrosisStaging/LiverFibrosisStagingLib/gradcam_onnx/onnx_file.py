"""Reader of the required parts of an ONNX file, without the `onnx` package.

onnxruntime runs a model but gives no access to its nodes and weights, and `onnx` is not installed
in Slicer. A protocol buffer is a list of (field number, value) pairs, so a small reader suffices.
The content is checked before onnxruntime reads it: ambiguous files (a field given twice, for
example), which onnxruntime could read as a different network, are refused, as are references to
weights in other files.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StagingError

MAX_FILE_BYTES = (1 << 31) - 1  # limit of protocol buffers
MAX_DEPTH = 100  # of nested messages; protobuf's own limit
MAX_NAME_LENGTH = 1000
_SHOWN = 100  # characters of a text in an error message

# onnx.proto (ONNX specification, IR version 8 to 13). For each message its fields by number: name
# and kind, with * for repeated fields. Includes every message that can contain a tensor, and every
# name that onnxruntime reports.
_MESSAGES = {
    "Model": {
        1: "ir_version int",
        7: "graph Graph",
        8: "opset_import OperatorSet*",
        14: "metadata_props Entry*",
        20: "training_info Training*",
        25: "functions Function*",
    },
    "OperatorSet": {1: "domain name", 2: "version int"},
    "Entry": {1: "key text", 2: "value text"},
    "Training": {1: "initialization Graph", 2: "algorithm Graph"},
    "Function": {1: "name name", 7: "node Node*", 11: "attribute_proto Attribute*"},
    "Graph": {
        1: "node Node*",
        5: "initializer Tensor*",
        11: "input Value*",
        12: "output Value*",
        13: "value_info Value*",
        15: "sparse_initializer SparseTensor*",
    },
    "Value": {1: "name name", 2: "type Type"},
    "Type": {1: "tensor_type TensorType"},
    "TensorType": {2: "shape Shape"},
    "Shape": {1: "dim Dimension*"},
    "Dimension": {2: "dim_param name"},
    "Node": {
        1: "input name*",
        2: "output name*",
        3: "name name",
        4: "op_type name",
        5: "attribute Attribute*",
        7: "domain name",
    },
    "Attribute": {
        1: "name name",
        2: "f float",
        3: "i int",
        4: "s text",
        5: "t Tensor",
        6: "g Graph",
        7: "floats float*",
        8: "ints int*",
        10: "tensors Tensor*",
        11: "graphs Graph*",
        20: "type int",
        22: "sparse_tensor SparseTensor",
        23: "sparse_tensors SparseTensor*",
    },
    "SparseTensor": {1: "values Tensor", 2: "indices Tensor"},
    "Tensor": {
        1: "dims int*",
        2: "data_type int",
        4: "float_data float*",
        5: "int32_data int*",
        7: "int64_data int*",
        8: "name name",
        9: "raw_data bytes",
        10: "double_data double*",
        13: "external_data Entry*",
        14: "data_location int",
    },
}
_FIELDS = {
    message: {
        number: (name, kind.rstrip("*"), kind.endswith("*"))
        for number, (name, kind) in ((n, words.split()) for n, words in fields.items())
    }
    for message, fields in _MESSAGES.items()
}
INT, _EIGHT_BYTES, BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types of the protobuf encoding
_WIRE = {"int": INT, "double": _EIGHT_BYTES, "float": _FOUR_BYTES}
_NUMPY = {"int": np.int64, "double": np.float64, "float": np.float32}
_NONE = {kind: np.empty(0, dtype) for kind, dtype in _NUMPY.items()}

# TensorProto.DataType -> (numpy type of raw_data, field of the typed data).
_DTYPES = {
    1: (np.float32, "float_data"),
    2: (np.uint8, "int32_data"),
    3: (np.int8, "int32_data"),
    6: (np.int32, "int32_data"),
    7: (np.int64, "int64_data"),
    9: (np.bool_, "int32_data"),
    10: (np.float16, "int32_data"),
    11: (np.float64, "double_data"),
}
_FLOAT16 = 10
# AttributeProto.AttributeType -> the field with the value, for the supported types.
_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints"}
_LAST_ATTRIBUTE_TYPE = 14
_ONNX = "ai.onnx"  # the domain of ONNX's own operators; may be omitted


class _Malformed(Exception):
    """The bytes are not a valid ONNX file; the argument is the reason."""


class _External(Exception):
    """A tensor's numbers are in another file; the argument is its name."""


@dataclass(frozen=True)
class Node:
    """One operator: `inputs` and `outputs` are tensor names, "" for an omitted input.

    op: its type, preceded by the domain if it is not one of ONNX's own ("com.microsoft.Gelu").
    attributes: a number, text, array or list by name; None for an unsupported type.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass
class OnnxFile:
    """The content of an ONNX file.

    weights: arrays by name; None for an unsupported type. functions: names of operators that the
    file defines. content: the file's bytes.
    """

    ir_version: int = 0
    opset: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, np.ndarray | None] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    content: bytes | memoryview = b""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the bytes that were read."""
        return hashlib.sha256(self.content).hexdigest()


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file.

    Raises StagingError if the file is missing, not ONNX, damaged, or refers to other files.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise StagingError(
                f"The model {path} has {size / 1e9:.1f} GB; an ONNX file has at most 2.1 GB."
            )
        if not (path.is_file() or path.is_dir()):  # reading a device may not end
            raise StagingError(f"The model {path} is not a file.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StagingError(f"Cannot read the model {path}: {reason}.") from None
    return parse_onnx(data, str(path))


def parse_onnx(data: bytes | memoryview, name: str) -> OnnxFile:
    """Like `read_onnx`, from bytes; `name` is used in messages."""
    try:
        return _model(data)
    except _Malformed as error:
        raise StagingError(
            f"The model {name} is not an ONNX file, or it is damaged: {error}."
        ) from None
    except _External as error:
        raise StagingError(
            f"The model {name} stores weights in another file ({error}), which is not supported; "
            "export it as one file."
        ) from None


def listed(names: Sequence[str], most: int = 8) -> str:
    """A list of names for a message, shortened to the first `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _model(data: bytes | memoryview) -> OnnxFile:
    found = _message(memoryview(data), "Model")
    graph = found.get("graph", {})
    if not graph.get("node"):
        raise _Malformed("it contains no network")
    opsets = _unique(
        ("" if entry.get("domain") == _ONNX else entry.get("domain", ""), entry.get("version", 0))
        for entry in found["opset_import"]
    )
    model = OnnxFile(
        ir_version=found.get("ir_version", 0),
        opset=opsets.get("", 0),
        metadata=_unique(
            (_key(entry, "key"), entry.get("value", "")) for entry in found["metadata_props"]
        ),
        nodes=[_node(node) for node in graph["node"]],
        weights=_unique(
            [(_key(tensor), tensor["values"]) for tensor in graph["initializer"]]
            + [(_key(sparse.get("values", {})), None) for sparse in graph["sparse_initializer"]]
        ),
        inputs=[_key(value) for value in graph["input"]],
        outputs=[_key(value) for value in graph["output"]],
        functions=[_key(function) for function in found["functions"]],
        content=data,
    )
    _check_order(model)
    return model


def _check_order(model: OnnxFile) -> None:
    """Check that every node reads only tensors computed before, and each is computed once."""
    known = {*model.inputs, *model.weights}
    for node in model.nodes:
        if not node.op or not any(node.outputs):
            raise _Malformed(f"its node {node.name or node.op!r} computes nothing")
        for tensor in node.inputs:
            if tensor and tensor not in known:
                raise _Malformed(f"{node.op} reads {tensor!r}, which no earlier node computes")
        for tensor in filter(None, node.outputs):
            if tensor in known:
                raise _Malformed(f"{tensor!r} is computed twice")
            known.add(tensor)
    for tensor in model.outputs:
        if tensor not in known:
            raise _Malformed(f"its output {tensor!r} is not computed")


def _node(found: dict[str, Any]) -> Node:
    op, domain = found.get("op_type", ""), found.get("domain", "")
    return Node(
        op if domain in ("", _ONNX) else f"{domain}.{op}",
        found.get("name", ""),
        tuple(found["input"]),
        tuple(found["output"]),
        _unique((_key(attribute), _attribute(attribute)) for attribute in found["attribute"]),
    )


def _attribute(found: dict[str, Any]) -> Any:
    kind = found.get("type", 0)
    if not 0 < kind <= _LAST_ATTRIBUTE_TYPE:
        raise _Malformed(f"its attribute {found['name']!r} has the unknown type {kind}")
    field_name = _ATTRIBUTES.get(kind)
    if field_name == "t":
        if "t" not in found:
            raise _Malformed(f"its attribute {found['name']!r} has no tensor")
        return found["t"]["values"]
    if field_name in ("floats", "ints"):
        return found[field_name].tolist()
    # Zero or empty values may be omitted.
    return found.get(field_name, {"f": 0.0, "i": 0, "s": ""}[field_name]) if field_name else None


def _key(found: dict[str, Any], name: str = "name") -> str:
    """The name of a message."""
    if not found.get(name):
        raise _Malformed("a name in it is missing")
    return found[name]


def _unique(entries: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in entries:
        if name in found:
            raise _Malformed(f"it contains {name[:_SHOWN]!r} twice")
        found[name] = value
    return found


def _values(found: dict[str, Any]) -> np.ndarray | None:
    """A tensor's numbers in its shape; None for an unsupported type."""
    if found.get("data_location", 0) or found["external_data"]:
        places = {e.get("key"): e.get("value", "") for e in found["external_data"]}
        raise _External(repr(places.get("location", "")[:_SHOWN]))
    dims = found["dims"].tolist()
    tensor = f"its tensor {found.get('name', '')!r} of shape [{listed([*map(str, dims)])}]"
    if any(n < 0 for n in dims):
        raise _Malformed(f"{tensor} has a negative size")
    kind = found.get("data_type", 0)
    if kind not in _DTYPES:
        return None
    dtype, typed = _DTYPES[kind]
    dtype = np.dtype(dtype).newbyteorder("<")
    if "raw_data" in found:
        if len(found["raw_data"]) != dtype.itemsize * prod(dims):
            raise _Malformed(f"{tensor} has {len(found['raw_data'])} bytes")
        values = np.frombuffer(found["raw_data"], dtype)
    else:
        # Half floats are stored as their bit pattern.
        stored = np.dtype(np.uint16) if kind == _FLOAT16 else dtype
        values = found[typed].astype(stored)
        if not np.array_equal(values, found[typed], equal_nan=stored.kind == "f"):
            raise _Malformed(f"{tensor} has numbers that are not of its type")
        values = values.view(dtype)
        values.flags.writeable = False  # a copy: changes would not reach the file
        if len(values) != prod(dims):
            raise _Malformed(f"{tensor} has {len(values)} numbers")
    try:
        return values.reshape(dims)
    except ValueError:  # more or longer axes than numpy supports
        raise _Malformed(f"{tensor} has too many axes or too long ones") from None


def _message(data: memoryview, message: str, depth: int = 0) -> dict[str, Any]:
    """The known fields of a message by name; a repeated one is a list, of numbers an array."""
    if depth > MAX_DEPTH:
        raise _Malformed(f"it is nested more than {MAX_DEPTH} deep")
    known = _FIELDS[message]
    found: dict[str, Any] = {name: [] for name, _, many in known.values() if many}
    for number, wire, value in message_fields(data):
        if number not in known:
            continue
        name, kind, many = known[number]
        if many and kind in _WIRE:
            found[name].append(_numbers(kind, wire, value))
            continue
        if wire != _WIRE.get(kind, BYTES):
            raise _Malformed(f"{name} of a {message} is stored as wire type {wire}")
        decoded = _message(value, kind, depth + 1) if kind in _FIELDS else _single(kind, value)
        if many:
            found[name].append(decoded)
        elif name in found:
            raise _Malformed(f"a {message} has {name} twice")
        else:
            found[name] = decoded
    for name, kind, many in known.values():
        if many and kind in _WIRE:
            found[name] = np.concatenate(found[name]) if found[name] else _NONE[kind]
    if message == "Tensor":
        found["values"] = _values(found)
    return found


def _single(kind: str, value: int | memoryview) -> Any:
    if kind == "int":
        return _signed(value)
    if kind == "float":
        return struct.unpack("<f", value)[0]
    if kind == "bytes":
        return value
    try:
        text = bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise _Malformed("it contains text that is not UTF-8") from None
    # Names are quoted in messages of one line.
    if kind == "name" and not (text.isprintable() and len(text) <= MAX_NAME_LENGTH):
        raise _Malformed(f"it contains the name {text[:_SHOWN]!r}")
    return text


def _numbers(kind: str, wire: int, value: int | memoryview) -> np.ndarray:
    """Numbers of a repeated field, packed or one by one."""
    dtype = np.dtype(_NUMPY[kind]).newbyteorder("<")
    if wire == INT and kind == "int":
        return np.array([_signed(value)], dtype)
    if wire not in (BYTES, _WIRE[kind]) or wire == INT:
        raise _Malformed(f"numbers are stored as wire type {wire}")
    if kind != "int":
        if len(value) % dtype.itemsize:
            raise _Malformed(f"{len(value)} bytes are not a whole number of values")
        return np.frombuffer(value, dtype)
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return np.array(numbers, dtype)


def message_fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field number, wire type, integer or bytes) of one message, in order (protobuf encoding)."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _Malformed("it has a field without a number")
        if wire == INT:
            value, at = _varint(data, at)
        elif wire in (_EIGHT_BYTES, BYTES, _FOUR_BYTES):
            if wire == BYTES:
                length, at = _varint(data, at)
            else:
                length = 8 if wire == _EIGHT_BYTES else 4
            if length > end - at:
                raise _Malformed(f"it ends {length - (end - at)} bytes too early")
            value, at = data[at : at + length], at + length
        else:
            raise _Malformed(f"it has a field of wire type {wire}")
        yield number, wire, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned integer of at most 64 bits in groups of seven, and the offset of its end."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if value >> 64 or shift > 70:
            raise _Malformed("it has a number of more than 64 bits")
        if byte < 0x80:
            return value, at
    raise _Malformed("it ends within a number")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
