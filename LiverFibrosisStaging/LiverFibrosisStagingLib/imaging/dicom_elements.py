"""Checks that all elements of a DICOM file end within the file and that no pixels are missing.

GDCM allocates any length that an element declares, and pads missing pixels with zeros. The checks
follow DICOM part 5 (sections 7.1, 7.5 and A.4).
"""

import mmap
import struct
from pathlib import Path

_PREAMBLE = 132
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_SHORT = (
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"),
    *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
)
_OPEN = 0xFFFFFFFF  # undefined length: up to the delimiter
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SYNTAX, _PIXELS = 0x00020010, 0x7FE00010
_FRAMES, _ROWS, _COLUMNS = 0x00280008, 0x00280010, 0x00280011
_BITS = 0x00280100
_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_DEPTH = 30
_MAX_RATIO = 2000  # of compressed pixels
_SMALL = 1 << 26  # bytes; small enough to allocate in any case


class _Broken(Exception):
    """The file ends too early, or contains an invalid element."""


def is_whole(path: Path) -> bool:
    """Whether a DICOM file (with its preamble) is complete, including its pixels."""
    if path.stat().st_size <= _PREAMBLE:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        try:
            walk.all()
        except (_Broken, struct.error):
            return False
        return walk.has_pixels()


class _Walk:
    """One pass through a file; `found`: values of short elements, for the size of the pixels."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.end = data, len(data)
        self.order, self.explicit = "<", True
        self.found: dict[int, bytes] = {}
        self.pixels: int | None = None  # bytes of pixels
        self.compressed = False

    def all(self) -> None:
        """Read the file meta information, then the data set up to the pixels."""
        at = _PREAMBLE
        while at + 8 <= self.end and self.data[at : at + 2] == b"\x02\0":
            at = self._element(at, 0)
        syntax = self.found.get(_SYNTAX, b"").strip(b" \0")
        if syntax == _DEFLATED:
            return
        self.order = ">" if syntax == _BIG_ENDIAN else "<"
        self.explicit = self.data[at + 4 : at + 6] in (*_LONG, *_SHORT)
        # Fewer than 8 bytes after the last element are padding.
        while self.pixels is None and at + 8 <= self.end:
            at = self._element(at, 0)

    def has_pixels(self) -> bool:
        """Whether there are as many pixels as the image's size requires."""
        if self.pixels is None:
            return True  # an object without an image
        bits = self._number(_BITS) * self._number(_ROWS) * self._number(_COLUMNS)
        frames = self.found.get(_FRAMES, b"1").strip(b" \0")
        bits *= int(frames) if frames.isdigit() else 1
        if self.compressed:
            return bits // 8 <= max(_SMALL, _MAX_RATIO * self.pixels)
        return bits // 8 <= self.pixels

    def _number(self, tag: int) -> int:
        value = self.found.get(tag, b"")
        return struct.unpack(self.order + "H", value)[0] if len(value) == 2 else 0

    def _tag(self, at: int) -> int:
        group, element = struct.unpack_from(self.order + "2H", self.data, at)
        return group << 16 | element

    def _element(self, at: int, depth: int) -> int:
        """Offset of the next element."""
        tag = self._tag(at)
        if not self.explicit:
            value, length = at + 8, struct.unpack_from(self.order + "I", self.data, at + 4)[0]
        elif (kind := self.data[at + 4 : at + 6]) in _LONG:
            value, length = at + 12, struct.unpack_from(self.order + "I", self.data, at + 8)[0]
        elif kind in _SHORT:
            value, length = at + 8, struct.unpack_from(self.order + "H", self.data, at + 6)[0]
        else:
            raise _Broken
        pixels = tag == _PIXELS and depth == 0
        if length != _OPEN:
            if value + length > self.end:
                raise _Broken
            if pixels:
                self.pixels = length
            elif depth == 0 and length <= 64:
                self.found[tag] = self.data[value : value + length]
            return value + length
        if pixels:
            self.pixels, self.compressed = 0, True
            return self._fragments(value)
        implicit_within = self.explicit and self.data[at + 4 : at + 6] == b"UN"
        self.explicit ^= implicit_within
        after = self._items(value, depth + 1)
        self.explicit ^= implicit_within
        return after

    def _items(self, at: int, depth: int) -> int:
        """The items of a sequence of undefined length, up to its delimiter."""
        if depth > _MAX_DEPTH:
            raise _Broken
        while (tag := self._tag(at)) != _SEQUENCE_END:
            length = struct.unpack_from(self.order + "I", self.data, at + 4)[0]
            if tag != _ITEM:
                raise _Broken
            at += 8
            if length != _OPEN:
                at += length
                continue
            while self._tag(at) != _ITEM_END:
                at = self._element(at, depth)
            at += 8
        return at + 8

    def _fragments(self, at: int) -> int:
        """The fragments of compressed pixels, up to their delimiter."""
        while (tag := self._tag(at)) != _SEQUENCE_END:
            length = struct.unpack_from(self.order + "I", self.data, at + 4)[0]
            at += 8 + length
            if tag != _ITEM or at > self.end:
                raise _Broken
            self.pixels += length
        return at + 8
