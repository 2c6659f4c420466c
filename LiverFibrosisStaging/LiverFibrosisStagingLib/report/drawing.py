"""Drawing in numpy: palette, boxes, text and PNG, for all pictures of this package.

VTK renders the text (FreeType, without a window or OpenGL) and encodes the PNG. Pixels are
[row, column, RGB], float32 0..1; y counts rows from the top.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import StagingError

Color = tuple[float, float, float]
BACKGROUND: Color = (0.067, 0.078, 0.098)
TRACK: Color = (0.15, 0.17, 0.20)
WHITE: Color = (0.96, 0.97, 0.98)
MUTED: Color = (0.62, 0.66, 0.71)
ACCENT: Color = (0.99, 0.61, 0.10)
BLACK: Color = (0.0, 0.0, 0.0)


class Box(NamedTuple):
    """A rectangle in pixels."""

    x: int
    y: int
    width: int
    height: int


def encode_png(picture: np.ndarray) -> bytes:
    """A PNG file of uint8 RGB [height, width, 3] or grey [height, width]."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOImage import vtkPNGWriter

    height, width = picture.shape[:2]
    pixels = np.ascontiguousarray(picture[::-1]).reshape(height * width, -1)  # first row at bottom
    image = vtkImageData()
    image.SetDimensions(width, height, 1)
    image.GetPointData().SetScalars(numpy_to_vtk(pixels))
    writer = vtkPNGWriter()
    writer.SetCompressionLevel(2)  # half the time of the default, and smaller with CT noise
    writer.SetInputData(image)
    writer.WriteToMemoryOn()
    writer.Write()
    return vtk_to_numpy(writer.GetResult()).tobytes()


def write_png(picture: np.ndarray, path: str | Path) -> None:
    """Write uint8 RGB [height, width, 3] as PNG; StagingError if the file cannot be written."""
    # Encoded in memory, so that a failed write raises an OSError with its reason.
    encoded = encode_png(picture)
    try:
        Path(path).write_bytes(encoded)
    except OSError as error:
        raise StagingError(
            f"Cannot write the picture {path}: {error.strerror or error}."
        ) from error


class Pen:
    """Draws text and rectangles on a canvas, float32 [row, column, RGB]."""

    def __init__(self, canvas: np.ndarray) -> None:
        from vtkmodules.vtkCommonDataModel import vtkImageData
        from vtkmodules.vtkRenderingCore import vtkTextProperty
        from vtkmodules.vtkRenderingFreeType import vtkFreeTypeTools

        self.canvas = canvas
        self._freetype = vtkFreeTypeTools.GetInstance()
        self._font = vtkTextProperty()
        self._font.SetFontFamilyToArial()
        self._image = vtkImageData()

    def coverage(self, text: str, size: int, bold: bool = False) -> np.ndarray:
        """Coverage of each pixel by the text, float32 0..1 [row, column]; `size` is in pixels.

        The last row is that of the lowest descender, whatever the text, so that texts of one size
        are aligned at the bottom.
        """
        from vtkmodules.util.numpy_support import vtk_to_numpy

        if not text.strip():
            return np.zeros((size, 0), np.float32)
        self._font.SetFontSize(size)
        self._font.SetBold(bold)
        extent = [0, 0]
        self._freetype.RenderString(self._font, text, 72, self._image, extent)
        columns, rows, _ = self._image.GetDimensions()
        rgba = vtk_to_numpy(self._image.GetPointData().GetScalars()).reshape(rows, columns, 4)
        ink = rgba[: extent[1], : extent[0], 3][::-1]
        return ink.astype(np.float32) / 255.0

    def width(self, text: str, size: int, bold: bool = False) -> int:
        """Width of `text` in pixels."""
        return self.coverage(text, size, bold).shape[1]

    def text(
        self,
        text: str,
        x: int,
        y: int,
        size: int,
        color: Color = WHITE,
        *,
        bold: bool = False,
        align: float = 0.0,
        outline: bool = False,
    ) -> int:
        """Write one line with its top at row `y`; returns its width.

        align: which part of the text is at column `x` (0 left, 0.5 middle, 1 right); outline: a
        dark rim, for text on a picture.
        """
        ink = self.coverage(text, size, bold)
        rows, columns = ink.shape
        top, left = y + size - rows, x - int(round(align * columns))
        if outline:
            rim = np.zeros((rows + 2, columns + 2), np.float32)
            for dy, dx in np.ndindex(3, 3):
                part = rim[dy : dy + rows, dx : dx + columns]
                np.maximum(part, ink, out=part)
            self._blend(rim * 0.85, left - 1, top - 1, BLACK)
        self._blend(ink, left, top, color)
        return columns

    def fill(self, box: Box, color: Color) -> None:
        """Fill a rectangle."""
        self.canvas[box.y : box.y + box.height, box.x : box.x + box.width] = color

    def paste(self, picture: np.ndarray, x: int, y: int) -> None:
        """Put RGB [row, column, 3] with its upper left corner at (x, y)."""
        self.canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture

    def wrap(self, text: str, width: int, size: int) -> list[str]:
        """Break `text`, including long words, into lines of at most `width` pixels."""
        sample = text[:200]
        average = max(self.width(sample, size), 1) / max(len(sample), 1)
        # Letters differ in width: start with too many per line and reduce until all lines fit.
        for characters in range(math.ceil(1.3 * width / average), 0, -1):
            lines = textwrap.wrap(text, characters)
            if all(self.width(line, size) <= width for line in lines):
                break
        return lines

    def picture(self) -> np.ndarray:
        """The canvas as uint8 RGB [row, column, 3]."""
        return np.rint(np.clip(self.canvas, 0.0, 1.0) * 255.0).astype(np.uint8)

    def _blend(self, ink: np.ndarray, left: int, top: int, color: Color) -> None:
        """Blend `color` into the canvas by the coverage `ink`, cropped to the canvas."""
        ink = ink[max(-top, 0) :, max(-left, 0) :]
        top, left = max(top, 0), max(left, 0)
        part = self.canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
        ink = ink[: part.shape[0], : part.shape[1], None]
        part += ink * (np.array(color, np.float32) - part)


def blank(width: int, height: int) -> Pen:
    """A pen on an empty canvas."""
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = BACKGROUND
    return Pen(canvas)
