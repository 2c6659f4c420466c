"""The parts of an ONNX file that staging needs, read without the `onnx` package.

onnxruntime runs a model but shows neither its nodes nor its weights, and Slicer has no `onnx`. A
protocol buffer is a flat list of (field number, value) pairs, so a small reader is enough. Field
numbers are those of onnx.proto (ONNX specification, onnx/onnx.proto, IR version 8 to 13).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import StagingError

# onnx.proto, TensorProto.DataType -> (numpy type of raw_data, field of the typed data).
_DTYPES = {
    1: (np.float32, 4),
    2: (np.uint8, 5),
    3: (np.int8, 5),
    6: (np.int32, 5),
    7: (np.int64, 7),
    9: (np.bool_, 5),
    10: (np.float16, 5),
    11: (np.float64, 10),
}
_EXTERNAL = 1


class _Malformed(Exception):
    """The bytes are no protocol buffer of the expected shape."""


@dataclass(frozen=True)
class Node:
    """One operator: `inputs` and `outputs` are tensor names, "" where an input is left out.

    op: its type, with the domain in front where it is none of ONNX's own ("com.microsoft.Gelu").
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Tensor:
    """A weight: `values` is None where it lies in another file, `external`, beside the model."""

    values: np.ndarray | None
    external: str | None = None


@dataclass
class OnnxFile:
    """What one ONNX file says about itself."""

    ir_version: int = 0
    opset: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file's header, nodes and weights.

    Raises StagingError where the file is missing, not ONNX, or cut short.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StagingError(f"Cannot read the model {path}: {error.strerror}.") from None
    return parse_onnx(data, str(path))


def parse_onnx(data: bytes | memoryview, name: str) -> OnnxFile:
    """Like `read_onnx`, from bytes; `name` is how messages call the model."""
    try:
        model = _model(memoryview(data))
    except (_Malformed, UnicodeDecodeError):
        raise StagingError(
            f"The model {name} is not an ONNX file, or it is cut short ({len(data)} bytes)."
        ) from None
    if not model.nodes:
        raise StagingError(f"The model {name} is not an ONNX file: it holds no network.")
    return model


def _model(data: memoryview) -> OnnxFile:
    model = OnnxFile()
    for number, value in _fields(data):
        if number == 1:
            model.ir_version = _integer(value)
        elif number == 7:
            _graph(_message(value), model)
        elif number == 8:
            opset = dict(_fields(_message(value)))
            if bytes(opset.get(1, b"")) in (b"", b"ai.onnx"):
                model.opset = _integer(opset.get(2, 0))
        elif number == 14:
            entry = dict(_fields(_message(value)))
            model.metadata[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    return model


def _graph(data: memoryview, model: OnnxFile) -> None:
    for number, value in _fields(data):
        if number == 1:
            model.nodes.append(_node(_message(value)))
        elif number == 5:
            name, tensor = _tensor(_message(value))
            model.weights[name] = tensor
        elif number in (11, 12):
            name = _text(dict(_fields(_message(value))).get(1, b""))
            (model.inputs if number == 11 else model.outputs).append(name)


def _node(data: memoryview) -> Node:
    inputs, outputs, attributes, op, name, domain = [], [], {}, "", "", ""
    for number, value in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 3:
            name = _text(value)
        elif number == 4:
            op = _text(value)
        elif number == 5:
            key, attribute = _attribute(_message(value))
            attributes[key] = attribute
        elif number == 7:
            domain = _text(value)
    if domain not in ("", "ai.onnx"):
        op = f"{domain}.{op}"
    return Node(op, name, tuple(inputs), tuple(outputs), attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    name, kind, single, floats, integers = "", 0, {}, [], []
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 20:
            kind = _integer(value)
        elif number == 7:
            floats += _repeated(value, "f")
        elif number == 8:
            integers += _repeated(value, "q")
        else:
            single[number] = value
    # AttributeProto.AttributeType: 1 FLOAT, 2 INT, 3 STRING, 4 TENSOR, 6 FLOATS, 7 INTS.
    if kind == 1:
        return name, struct.unpack("<f", _message(single.get(2, bytes(4))))[0]
    if kind == 2:
        return name, _signed(_integer(single.get(3, 0)))
    if kind == 3:
        return name, _text(single.get(4, b""))
    if kind == 4:
        return name, _tensor(_message(single[5]))[1].values
    if kind == 6:
        return name, floats
    if kind == 7:
        return name, integers
    return name, None


def _tensor(data: memoryview) -> tuple[str, Tensor]:
    dims: list[int] = []
    fields: dict[int, list] = {}
    for number, value in _fields(data):
        if number == 1:
            dims += _repeated(value, "q")
        else:
            fields.setdefault(number, []).append(value)
    name = _text(fields.get(8, [b""])[0])
    if _integer(fields.get(14, [0])[0]) == _EXTERNAL:
        entries = [dict(_fields(_message(entry))) for entry in fields.get(13, [])]
        places = {_text(e.get(1, b"")): _text(e.get(2, b"")) for e in entries}
        return name, Tensor(None, places.get("location", ""))
    kind = _integer(fields.get(2, [0])[0])
    if kind not in _DTYPES:
        return name, Tensor(None)
    dtype, typed = _DTYPES[kind]
    if 9 in fields:
        values = np.frombuffer(_message(fields[9][0]), dtype)
    elif typed in (4, 10):
        numbers = [
            x for v in fields.get(typed, []) for x in _repeated(v, "f" if typed == 4 else "d")
        ]
        values = np.array(numbers, dtype)
    else:
        numbers = [x for v in fields.get(typed, []) for x in _repeated(v, "q")]
        # Half floats are stored as their bit pattern.
        values = (
            np.array(numbers, np.uint16).view(dtype) if kind == 10 else np.array(numbers, dtype)
        )
    if values.size != int(np.prod(dims)):
        raise _Malformed
    return name, Tensor(values.reshape(dims))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, integer or bytes) of one message, in order (protobuf wire format)."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _Malformed
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            if wire == 2:
                length, at = _varint(data, at)
            else:
                length = 8 if wire == 1 else 4
            if at + length > end:
                raise _Malformed
            value, at = data[at : at + length], at + length
        else:
            raise _Malformed
        yield number, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
    raise _Malformed


def _repeated(value: int | memoryview, kind: str) -> list:
    """Numbers of a repeated field, whether packed into one run of bytes or one by one."""
    if isinstance(value, int):
        return [_signed(value)]
    if kind in "fd":
        size = struct.calcsize(kind)
        return list(struct.unpack(f"<{len(value) // size}{kind}", value))
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _Malformed
    return value


def _message(value: int | memoryview | bytes) -> memoryview:
    if isinstance(value, int):
        raise _Malformed
    return memoryview(value)


def _text(value: int | memoryview | bytes) -> str:
    return bytes(_message(value)).decode("utf-8")
