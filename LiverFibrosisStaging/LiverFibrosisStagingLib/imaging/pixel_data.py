"""The pixels of a file as its header announces them: are they all there, undamaged and finite?

ITK reads cut-off and corrupted pixels without a word, and allocates whatever a header asks for.
"""

import gzip
import zlib
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
    """Where pixels lie: `needed` bytes in all, from `offset` on in every one of `files`.

    stream: zlib's window bits where a compressed stream begins at `offset`, 0 where the pixels are
    stored as they are. skipped: bytes of the expanded stream before the pixels, `needed` counts
    them. stored: length of the compressed stream where the header gives it. floats: type of the
    pixels that have to be finite, where ITK would change those that are not. placed: whether the
    header says how the patient lies.
    """

    files: tuple[Path, ...]
    offset: int
    needed: int
    stream: int = 0
    skipped: int = 0
    stored: int | None = None
    floats: np.dtype | None = None
    placed: bool = True

    def check_size(self) -> None:
        """Refuse, before anything is allocated, what the files are too short for."""
        found = sum(file.stat().st_size - self.offset for file in self.files)
        name = self.files[0].name
        if self.stored is not None and found < self.stored:
            raise StagingError(
                f"{name}: the file is truncated: {max(found, 0)} of {self.stored} compressed bytes "
                "are there."
            )
        if self.stream and self.needed > _MAX_RATIO * max(found, 0):
            raise StagingError(
                f"{name}: the file is truncated, or its header is damaged: {max(found, 0)} "
                f"compressed bytes cannot hold the {self.needed} that the header announces."
            )
        if not self.stream and found < self.needed:
            raise StagingError(
                f"{name}: the file is truncated: {max(found, 0)} of {self.needed} bytes of pixels "
                "are there."
            )

    def check(self) -> None:
        """Go through all pixels. Raises StagingError for damage and for NaN or infinite values."""
        if self.stream:
            expanded = sum(self._expanded(file) for file in self.files)
            if expanded < self.needed:
                raise StagingError(f"{self.files[0].name}: the file is truncated.")
        if self.floats is not None:
            self._check_finite(self.floats)

    def _expanded(self, path: Path) -> int:
        """How many bytes a compressed stream holds; StagingError where it is cut off or damaged."""
        expanded, decoder, left = 0, zlib.decompressobj(self.stream), self.stored
        with open(path, "rb") as file:
            file.seek(self.offset)
            while chunk := file.read(_CHUNK // 4 if left is None else min(left, _CHUNK // 4)):
                left = None if left is None else left - len(chunk)
                try:
                    while chunk:
                        expanded += len(decoder.decompress(chunk, _CHUNK))
                        while decoder.unconsumed_tail:
                            expanded += len(decoder.decompress(decoder.unconsumed_tail, _CHUNK))
                        chunk = decoder.unused_data
                        if decoder.eof and chunk[:2] == GZIP_MAGIC:  # another member follows
                            decoder = zlib.decompressobj(self.stream)
                        elif decoder.eof:
                            break
                except zlib.error as error:
                    raise StagingError(
                        f"{path.name}: the file is damaged (its checksum fails)."
                    ) from error
        if not decoder.eof:
            raise StagingError(f"{path.name}: the file is truncated.")
        return expanded

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
                        f"{path.name}: holds NaN or infinite values; every voxel needs a finite "
                        "one."
                    )
