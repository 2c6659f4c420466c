"""Writing of location maps and masks as NRRD files, slice by slice, on a grid of any length.

Most voxels are 0: a run of zeros is compressed once for all files, and its CRC is computed and not
read from zeros, so that the time hardly depends on the grid. The gzip stream is put
together from parts that are deflated by themselves (RFC 1951); it is one member (RFC 1952), since
not all readers of NRRD accept several.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import SimpleITK as sitk

_TYPES = {"f4": "float", "u1": "unsigned char"}
_GZIP_START = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # deflated; neither name nor time nor system
_GZIP_LAST = b"\x03\x00"  # an empty last block
_STORED_BYTES = 1 << 15  # of a block that is not compressed; at most 65,535
_SHORTEST_GAP = 256  # bytes; a run of zeros between two stored blocks takes about 20
_ZEROS = (1 << 20, 1 << 16, 1 << 12)  # bytes of the longer runs of zeros, the longest first
_CRC_POLYNOMIAL = 0xEDB88320  # RFC 1952; bit 31 is the coefficient of x^0


class NrrdWriter:
    """A file of float32 or uint8 voxels on a grid; a context manager.

    metadata: fields of the header. Slices are written in order; those left out are 0. Raises
    OSError, such as for a full disk.
    """

    def __init__(
        self,
        path: Path,
        grid: sitk.Image,
        dtype: type[np.generic],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        columns, rows, self._slices = grid.GetSize()
        self._plane = np.zeros((rows, columns), np.dtype(dtype).newbyteorder("<"))
        self._next = 0  # slice
        self._zeros = 0  # bytes before it that are not written yet
        self._crc = 0
        self._file = path.open("wb")
        self._file.write(_header(grid, self._plane.dtype, metadata or {}).encode() + _GZIP_START)

    def __enter__(self) -> "NrrdWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None:
                self._skip_to(self._slices)
                size = self._slices * self._plane.nbytes
                end = _GZIP_LAST + struct.pack("<II", self._crc, size % (1 << 32))
                self._file.write(b"".join(_runs(self._zeros)) + end)

    def write(self, number: int, values: np.ndarray, row: int, column: int) -> None:
        """Write values [row, column], the first of them at this slice, row and column of the grid;
        the others of the slice are 0.
        """
        self._skip_to(number)
        rows, columns = values.shape
        part, width = self._plane[row : row + rows], self._plane[0].nbytes
        part[:, column : column + columns] = values
        self._skip(row * width)
        self._crc = zlib.crc32(part, self._crc)
        pieces = self._stored(part) if part.dtype.kind == "f" else self._deflated(part)
        self._file.write(b"".join(pieces))
        part[:, column : column + columns] = 0
        self._skip((len(self._plane) - row - rows) * width)
        self._next += 1

    def _skip_to(self, number: int) -> None:
        """Slices of zeros up to this one."""
        self._skip((number - self._next) * self._plane.nbytes)
        self._next = number

    def _skip(self, count: int) -> None:
        """Bytes that are 0."""
        self._crc = _crc_after_zeros(self._crc, count)
        self._zeros += count

    def _stored(self, rows: np.ndarray) -> list[bytes | memoryview]:
        """Rows of a slice with their values as they are: level 1 does not make floats smaller, and
        takes ten times as long.
        """
        voxels, done = memoryview(rows).cast("B"), 0
        parts: list[bytes | memoryview] = []
        for start, end in _filled(rows):
            parts += (_block_start(self._zeros + start - done, end - start), voxels[start:end])
            self._zeros, done = 0, end
        self._zeros += len(voxels) - done
        return parts

    def _deflated(self, rows: np.ndarray) -> list[bytes]:
        """Rows of a slice, compressed."""
        used = np.flatnonzero(rows.any(axis=1))
        if not used.size:
            self._zeros += rows.nbytes
            return []
        first, end, width = int(used[0]), int(used[-1]) + 1, rows[0].nbytes
        parts = _runs(self._zeros + first * width)
        self._zeros = rows.nbytes - end * width
        return [*parts, _deflated(rows[first:end], 1, zlib.Z_RLE)]


def _filled(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """First byte and end of the parts of rows without long runs of zeros, each short enough to be
    stored as one block.
    """
    used = np.flatnonzero(rows.ravel() != 0) * rows.itemsize
    if not used.size:
        return iter(())
    split = (np.diff(used) > _SHORTEST_GAP) | (np.diff(used // _STORED_BYTES) > 0)
    breaks = np.flatnonzero(split)
    starts, ends = np.append(used[0], used[breaks + 1]), np.append(used[breaks], used[-1])
    return zip(starts.tolist(), (ends + rows.itemsize).tolist())


@lru_cache(1 << 14)
def _block_start(zeros: int, size: int) -> bytes:
    """A run of zeros, and what stands before a stored block; many rows have the same."""
    return b"".join(_runs(zeros)) + struct.pack("<BHH", 0, size, size ^ 0xFFFF)


def _runs(count: int) -> list[bytes]:
    """This number of zero bytes, deflated."""
    parts = []
    for size in _ZEROS:
        if count >= size:
            parts += [_zeros(size)] * (count // size)
            count %= size
    return [*parts, _zeros(count)] if count else parts


@cache
def _zeros(count: int) -> bytes:
    return _deflated(bytes(count), 9, zlib.Z_DEFAULT_STRATEGY)


def _deflated(data: bytes | np.ndarray, level: int, strategy: int) -> bytes:
    """Data compressed by themselves, to the end of a byte; others may follow."""
    made = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return made.compress(data) + made.flush(zlib.Z_FULL_FLUSH)


def _crc_after_zeros(crc: int, count: int) -> int:
    """The CRC-32 of data with the CRC `crc`, followed by zeros.

    The register is a polynomial modulo 2; each bit that follows multiplies it by x, modulo the
    CRC's own (Williams 1993, "A painless guide to CRC error detection algorithms").
    """
    return _product(crc ^ 0xFFFFFFFF, _power(count)) ^ 0xFFFFFFFF


@lru_cache
def _power(count: int) -> int:
    """x to the number of bits in `count` bytes."""
    power, square = 1 << 31, 1 << 23
    while count:
        if count & 1:
            power = _product(power, square)
        square, count = _product(square, square), count >> 1
    return power


def _product(one: int, other: int) -> int:
    made = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            made ^= other
        other = other >> 1 ^ (_CRC_POLYNOMIAL if other & 1 else 0)
    return made


def _header(grid: sitk.Image, dtype: np.dtype, metadata: Mapping[str, str]) -> str:
    """The same text as ITK's."""
    spacing, axes = np.array(grid.GetSpacing()), np.array(grid.GetDirection()).reshape(3, 3)
    steps = " ".join(_vector(step * axis) for step, axis in zip(spacing, axes.T))
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {_TYPES[dtype.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, grid.GetSize()))}",
        f"space directions: {steps}",
        "kinds: domain domain domain",
        *(["endian: little"] if dtype.itemsize > 1 else []),
        "encoding: gzip",
        f"space origin: {_vector(grid.GetOrigin())}",
        *(f"{key}:={metadata[key]}" for key in sorted(metadata)),
    ]
    return "\n".join(lines) + "\n\n"


def _vector(values: np.ndarray | tuple[float, ...]) -> str:
    return f"({','.join(format(float(value) + 0.0, '.17g') for value in values)})"
