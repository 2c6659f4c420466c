"""Checks that a file contains all pixels that its header declares, undamaged and finite.

ITK reads truncated and corrupted pixels without an error, and allocates any size that a header
declares.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import StagingError

GZIP_MAGIC = b"\x1f\x8b"
GZIP, GZIP_OR_ZLIB = 31, 47  # zlib's window bits
_MAX_RATIO = 1032  # deflate's own limit (zlib's technical details: 1032 to 1)
_CHUNK = 1 << 20
_TRAILER = struct.Struct("<2I")  # of a gzip member: CRC-32 and length modulo 2^32 (RFC 1952)


@dataclass(frozen=True)
class PixelData:
    """Location of the pixels: `needed` bytes in total, from `offset` on in each of `files`.

    stream: zlib's window bits if a compressed stream begins at `offset`, 0 for uncompressed pixels.
    skipped: bytes of the expanded stream before the pixels, included in `needed`. stored: length of
    the compressed stream, if the header gives it. floats: data type, if the pixels must be checked
    for NaN and infinite values because ITK would replace them. as_stored: whether ITK is expected
    to return the pixels of a gzip stream byte by byte as they are stored (see `check`). placed:
    whether the header gives the patient's orientation.
    """

    files: tuple[Path, ...]
    offset: int
    needed: int
    stream: int = 0
    skipped: int = 0
    stored: int | None = None
    floats: np.dtype | None = None
    as_stored: bool = False
    placed: bool = True

    def check_size(self) -> None:
        """Check, before anything is allocated, that the files are long enough for the pixels."""
        found = sum(file.stat().st_size - self.offset for file in self.files)
        name = self.files[0].name
        if self.stored is not None and found < self.stored:
            raise StagingError(
                f"{name}: the file is truncated: {max(found, 0)} of {self.stored} compressed bytes "
                "are present."
            )
        if self.stream and self.needed > _MAX_RATIO * max(found, 0):
            raise StagingError(
                f"{name}: the file is truncated, or its header is damaged: {max(found, 0)} "
                f"compressed bytes cannot contain the {self.needed} that the header declares."
            )
        if not self.stream and found < self.needed:
            raise StagingError(
                f"{name}: the file is truncated: {max(found, 0)} of {self.needed} bytes of pixels "
                "are present."
            )

    def check(self, read: np.ndarray | None = None) -> None:
        """Check all pixels. Raises StagingError for damage and for NaN or infinite values.

        read: the pixels as ITK returned them. If the file's own checksum is theirs, the file is
        intact, and is not expanded a second time.
        """
        intact = read is not None and self._has_checksum_of(read)
        if self.stream and not intact:
            expanded = sum(len(part) for file in self.files for part in self._parts(file))
            if expanded < self.needed:
                raise StagingError(f"{self.files[0].name}: the file is truncated.")
        if self.floats is not None:
            parts = read if intact else self._values(self.floats)
            if not all(np.isfinite(part).all() for part in parts):
                raise StagingError(
                    f"{self.files[0].name}: contains NaN or infinite values; finite values are "
                    "needed."
                )

    def _has_checksum_of(self, pixels: np.ndarray) -> bool:
        """Whether the file ends as a gzip stream of the skipped bytes and these pixels does.

        Not so if bytes follow the pixels, if the stream has several members, or if ITK changed a
        value.
        """
        before = next(self._parts(self.files[0]), b"")[: self.skipped]
        with open(self.files[0], "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TRAILER.size))
            end = file.read()
        length = (len(before) + pixels.nbytes) % 2**32
        return end == _TRAILER.pack(zlib.crc32(pixels, zlib.crc32(before)), length)

    def _parts(self, path: Path) -> Iterator[bytes]:
        """A compressed stream's content; StagingError if it is truncated or damaged."""
        decoder, left = zlib.decompressobj(self.stream), self.stored
        with open(path, "rb") as file:
            file.seek(self.offset)
            while chunk := file.read(_CHUNK // 4 if left is None else min(left, _CHUNK // 4)):
                left = None if left is None else left - len(chunk)
                try:
                    while chunk:
                        yield decoder.decompress(chunk, _CHUNK)
                        while decoder.unconsumed_tail:
                            yield decoder.decompress(decoder.unconsumed_tail, _CHUNK)
                        chunk = decoder.unused_data
                        if decoder.eof and chunk[:2] == GZIP_MAGIC:  # another gzip member follows
                            decoder = zlib.decompressobj(self.stream)
                        elif decoder.eof:
                            break
                except zlib.error as error:
                    raise StagingError(
                        f"{path.name}: the file is damaged (checksum error)."
                    ) from error
        if not decoder.eof:
            raise StagingError(f"{path.name}: the file is truncated.")

    def _values(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        """The pixels as they are stored, in parts."""
        left = self.needed - self.skipped
        with (gzip.open if self.stream else open)(self.files[0], "rb") as file:
            file.seek(self.skipped if self.stream else self.offset)
            while left > 0 and (chunk := file.read(min(left, _CHUNK))):
                left -= len(chunk)
                yield np.frombuffer(chunk[: len(chunk) // dtype.itemsize * dtype.itemsize], dtype)
