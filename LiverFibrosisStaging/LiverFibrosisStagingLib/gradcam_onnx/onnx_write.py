"""Writer of parts of an ONNX graph, without the `onnx` package; see onnx_file.py, the reader."""

from collections.abc import Sequence

import numpy as np

from .onnx_file import BYTES, INT

# Field numbers and types of onnx.proto.
NODE, INITIALIZER = 1, 5
_INTS, _INT_TYPE, _INTS_TYPE = 8, 2, 7
_TENSOR_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}


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


def tensor_pieces(name: str, values: np.ndarray) -> list[bytes | memoryview]:
    """A graph's initializer, float32 or int64, in pieces: the numbers are not copied."""
    found = [field_bytes(1, INT, size) for size in values.shape]
    found += [field_bytes(2, INT, _TENSOR_TYPES[values.dtype]), _text(8, name)]
    stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    found.append(length_bytes(9, stored.nbytes))
    start = b"".join(found)
    numbers = memoryview(stored.reshape(-1).view(np.uint8))
    return [length_bytes(INITIALIZER, len(start) + len(numbers)), start, numbers]


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
