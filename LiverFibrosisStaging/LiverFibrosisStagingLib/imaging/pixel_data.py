"""Checks that a file contains all pixels that its header declares, undamaged and finite.

ITK reads truncated and corrupted pixels without an error, and allocates any size that a header
declares.
"""

import gzip
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


@dataclass(frozen=True)
class PixelData:
    """Location of the pixels: `needed` bytes in total, from `offset` on in each of `files`.

    stream: zlib's window bits if a compressed stream begins at `offset`, 0 for uncompressed pixels.
    skipped: bytes of the expanded stream before the pixels, included in `needed`. stored: length of
    the compressed stream, if the header gives it. floats: data type, if the pixels must be checked
    for NaN and infinite values because ITK would replace them. stored_as: data type of compressed
    pixels that are stored as ITK returns them (`expanded`). placed: whether the header gives the
    patient's orientation.
    """

    files: tuple[Path, ...]
    offset: int
    needed: int
    stream: int = 0
    skipped: int = 0
    stored: int | None = None
    floats: np.dtype | None = None
    stored_as: np.dtype | None = None
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

    def check(self) -> None:
        """Check all pixels. Raises StagingError for damage and for NaN or infinite values."""
        if self.stream:
            self._check_length(sum(len(part) for file in self.files for part in self._parts(file)))
        if self.floats is not None:
            self._check_finite(self.floats)

    def expanded(self) -> np.ndarray:
        """The pixels `stored_as` a type, one-dimensional. Raises StagingError as `check` does."""
        pixels, end = np.empty(self.needed - self.skipped, np.uint8), -self.skipped
        for part in self._parts(self.files[0]):
            begin, end = end, end + len(part)
            if end > 0 and begin < len(pixels):
                kept = np.frombuffer(part, np.uint8)[max(-begin, 0) : len(pixels) - begin]
                pixels[max(begin, 0) : max(begin, 0) + len(kept)] = kept
        self._check_length(end + self.skipped)
        return pixels.view(self.stored_as)

    def _check_length(self, expanded: int) -> None:
        if expanded < self.needed:
            raise StagingError(f"{self.files[0].name}: the file is truncated.")

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

    def _check_finite(self, dtype: np.dtype) -> None:
        path, left = self.files[0], self.needed - self.skipped
        with (gzip.open if self.stream else open)(path, "rb") as file:
            file.seek(self.skipped if self.stream else self.offset)
            while left > 0 and (chunk := file.read(min(left, _CHUNK))):
                left -= len(chunk)
                values = np.frombuffer(
                    chunk[: len(chunk) // dtype.itemsize * dtype.itemsize], dtype
                )
                if not np.isfinite(values).all():
                    raise StagingError(
                        f"{path.name}: contains NaN or infinite values; finite values are needed."
                    )
