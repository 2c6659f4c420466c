"""Writer of parts of an ONNX graph, without the `onnx` package; see onnx_file.py, the reader."""

from collections.abc import Sequence

import numpy as np

from .onnx_file import BYTES, INT

# Field numbers and types of onnx.proto.
NODE, INITIALIZER = 1, 5
_INTS, _INT_TYPE, _INTS_TYPE = 8, 2, 7
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType


def field_bytes(number: int, wire: int, value: int | bytes | memoryview) -> bytes:
    """A field of a message, as `onnx_file.message_fields` gives it."""
    if wire == BYTES:
        return length_bytes(number, len(value)) + value
    return _varint(number << 3 | wire) + (_varint(value) if wire == INT else bytes(value))


def length_bytes(number: int, length: int) -> bytes:
    """What stands in front of a field's bytes, or of a message's fields."""
    return _varint(number << 3 | BYTES) + _varint(length)


def node_bytes(
    op: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    **attributes: int | Sequence[int],
) -> bytes:
    """A graph's node, named by its first output; attributes: whole numbers or lists of them."""
    found = [_text(1, name) for name in inputs] + [_text(2, name) for name in outputs]
    found += [_text(3, outputs[0]), _text(4, op)]
    for name, value in attributes.items():
        if isinstance(value, int):
            stored = field_bytes(3, INT, value) + field_bytes(20, INT, _INT_TYPE)
        else:
            stored = b"".join(field_bytes(_INTS, INT, v) for v in value)
            stored += field_bytes(20, INT, _INTS_TYPE)
        found.append(field_bytes(5, BYTES, _text(1, name) + stored))
    return field_bytes(NODE, BYTES, b"".join(found))


def tensor_bytes(name: str, values: np.ndarray) -> bytes:
    """A graph's initializer of whole numbers, int64."""
    numbers = np.ascontiguousarray(values, "<i8").tobytes()
    return _tensor(name, values.shape, _INT64, field_bytes(9, BYTES, numbers))


def external_bytes(name: str, shape: Sequence[int]) -> bytes:
    """A graph's initializer, float32, whose numbers are given apart."""
    where = _text(1, "location") + _text(2, "memory")  # needed, but not used
    return _tensor(name, shape, _FLOAT, field_bytes(13, BYTES, where) + field_bytes(14, INT, 1))


def _tensor(name: str, shape: Sequence[int], kind: int, numbers: bytes) -> bytes:
    sizes = b"".join(field_bytes(1, INT, size) for size in shape)
    described = sizes + field_bytes(2, INT, kind) + _text(8, name)
    return field_bytes(INITIALIZER, BYTES, described + numbers)


def _text(number: int, text: str) -> bytes:
    return field_bytes(number, BYTES, text.encode())


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; negative numbers as 64-bit two's complement."""
    if 0 <= value <= 0x7F:
        return bytes((value,))
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
