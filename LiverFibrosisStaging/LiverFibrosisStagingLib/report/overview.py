"""One picture of a result: the location map over the CT, the probabilities and the measurements.

Slices are in radiological convention: the patient's right is on the picture's left, anterior (in
the coronal: head) is up. Everything is composed in numpy; VTK only renders the letters (FreeType,
without a window or OpenGL) and encodes the PNG. Pixels are [row, column, RGB], float32 0..1, y
counts rows from the top; physical points are LPS millimetres.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from ..errors import StagingError
from ..imaging.grid import AIR_HU, BODY_THRESHOLD_HU
from ..stages import GROUPS, RESEARCH_USE, STAGES
from .colors import BANDS, color_slice

if TYPE_CHECKING:
    from ..result import StagingResult

WIDTH, HEIGHT = 1600, 1000
WINDOW_HU = (-125.0, 225.0)
LEVELS = 6

Color = tuple[float, float, float]
_BACKGROUND: Color = (0.067, 0.078, 0.098)
_TRACK: Color = (0.15, 0.17, 0.20)
_WHITE: Color = (0.96, 0.97, 0.98)
_MUTED: Color = (0.62, 0.66, 0.71)
_ACCENT: Color = (0.99, 0.61, 0.10)
_BLACK: Color = (0.0, 0.0, 0.0)
# Cool colours: never mistaken for a band.
_LIVER: Color = (0.10, 0.62, 1.0)
_SPLEEN: Color = (0.40, 1.0, 0.62)

_REGIONS = {
    "liver": "Liver",
    "liver_surface": "  surface",
    "liver_core": "  core",
    "spleen": "Spleen",
    "rest": "Rest of body",
}

_COARSE_MM = 4.0
_MARGIN_MM = 8.0
# Not a half: midway between two voxels, rounding would decide differently for a flipped array.
_INSIDE = 0.47


class _Box(NamedTuple):
    """A rectangle of the picture in pixels."""

    x: int
    y: int
    width: int
    height: int


_AXIALS = _Box(20, 96, 796, 846)
_CORONAL = _Box(836, 96, 600, 440)
_BAR = _Box(1452, 96, 128, 440)
_PANELS = (_Box(836, 582, 340, 170), _Box(1216, 582, 364, 170))
_LOWER_PANELS = (_Box(836, 770, 340, 172), _Box(1216, 770, 364, 172))
_FOOTER = _Box(20, 954, 1560, 40)


def write_overview(result: StagingResult, path: str | Path) -> None:
    """Write the picture of `result` to `path` as PNG; StagingError if it cannot be written."""
    picture = render_overview(
        ct=result.ct,
        label_map=result.label_map,
        liver=result.liver,
        spleen=result.spleen,
        probabilities=result.probabilities,
        stage=result.stage,
        explained=result.explained,
        scores=result.scores,
        measurements=result.measurements,
        warnings=result.warnings,
        model_name=result.provenance["model"]["name"],
        model_training=result.provenance["model"]["trained_on"],
        ensemble=result.spread,
    )
    write_png(picture, path)


def render_overview(
    *,
    ct: sitk.Image,
    label_map: sitk.Image,
    liver: sitk.Image,
    spleen: sitk.Image | None = None,
    probabilities: Sequence[float],
    stage: str,
    explained: str,
    scores: Mapping[str, float],
    measurements: Mapping[str, Mapping[str, float]],
    warnings: Sequence[str] = (),
    model_name: str = "",
    model_training: str = "",
    bands: str = "percent of this case's maximum",
    ensemble: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Picture of one staged CT, uint8 RGB [1000, 1600, 3].

    ct: HU, any orientation; label_map (0..10), liver and spleen (non-zero inside) on its grid.
    probabilities: F0..F4; stage: the predicted one; explained: the stage or group whose score the
    map explains; scores: probability per group of `stages.GROUPS`; measurements: region ->
    {"mean": relative weight, "share": 0..1}; bands: what the bands are percent of; ensemble: how
    far its members agree (`ensemble.spread`), which draws the range of their probabilities.
    """
    canvas = np.empty((HEIGHT, WIDTH, 3), np.float32)
    canvas[:] = _BACKGROUND
    pen = _Pen(canvas)
    scene = _Scene.of(ct, label_map, liver, spleen)

    _draw_title(pen, stage, float(probabilities[STAGES.index(stage)]), explained)
    _draw_slices(pen, scene)
    _draw_color_bar(pen, bands)
    ranges = {} if ensemble is None else ensemble["range"]
    _draw_bars(
        pen,
        _PANELS[0],
        "Probability of each stage",
        [
            _Row(name, float(value), name == stage, ranges.get(name))
            for name, value in zip(STAGES, probabilities)
        ],
    )
    _draw_bars(
        pen,
        _PANELS[1],
        "Probability of each group",
        [
            _Row(_group_label(name), float(scores[name]), scores[name] >= 0.5, ranges.get(name))
            for name in GROUPS
        ],
    )
    if ensemble is not None:
        _draw_agreement(pen, _PANELS[1], ensemble, stage)
    _draw_measurements(pen, _LOWER_PANELS[0], measurements)
    _draw_warnings(pen, _LOWER_PANELS[1], warnings)
    _draw_footer(pen, model_name, model_training)
    return np.rint(np.clip(canvas, 0.0, 1.0) * 255.0).astype(np.uint8)


def write_png(picture: np.ndarray, path: str | Path) -> None:
    """Write uint8 RGB [height, width, 3] as PNG; StagingError if the file cannot be written."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOImage import vtkPNGWriter

    height, width, channels = picture.shape
    pixels = np.ascontiguousarray(picture[::-1]).reshape(-1, channels)  # VTK's rows go upwards
    image = vtkImageData()
    image.SetDimensions(width, height, 1)
    image.GetPointData().SetScalars(numpy_to_vtk(pixels))
    writer = vtkPNGWriter()
    writer.SetInputData(image)
    # Encoded in memory: a failed write is then Python's error, with its reason.
    writer.WriteToMemoryOn()
    writer.Write()
    try:
        Path(path).write_bytes(vtk_to_numpy(writer.GetResult()).tobytes())
    except OSError as error:
        raise StagingError(
            f"Cannot write the picture {path}: {error.strerror or error}."
        ) from error


class _Pen:
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
        """How much ink each pixel gets, float32 0..1 [row, column]; `size` is in pixels.

        The last row is the deepest descender's, whatever the text, so that texts of one size line
        up at their bottom.
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
        """Pixels that `text` takes in a row."""
        return self.coverage(text, size, bold).shape[1]

    def text(
        self,
        text: str,
        x: int,
        y: int,
        size: int,
        color: Color = _WHITE,
        *,
        bold: bool = False,
        align: float = 0.0,
        outline: bool = False,
    ) -> int:
        """Write one line whose box begins at row `y`; returns its width.

        align: which part of the text is at column `x` (0 its left, 0.5 its middle, 1 its right);
        outline: a dark rim, for text over a picture.
        """
        ink = self.coverage(text, size, bold)
        rows, columns = ink.shape
        top, left = y + size - rows, x - int(round(align * columns))
        if outline:
            rim = np.zeros((rows + 2, columns + 2), np.float32)
            for dy, dx in np.ndindex(3, 3):
                part = rim[dy : dy + rows, dx : dx + columns]
                np.maximum(part, ink, out=part)
            self._blend(rim * 0.85, left - 1, top - 1, _BLACK)
        self._blend(ink, left, top, color)
        return columns

    def fill(self, box: _Box, color: Color) -> None:
        """Fill a rectangle."""
        self.canvas[box.y : box.y + box.height, box.x : box.x + box.width] = color

    def paste(self, picture: np.ndarray, x: int, y: int) -> None:
        """Put RGB [row, column, 3] with its upper left corner at (x, y)."""
        self.canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture

    def wrap(self, text: str, width: int, size: int) -> list[str]:
        """Break `text` into lines of at most `width` pixels, long words too."""
        sample = text[:200]
        average = max(self.width(sample, size), 1) / max(len(sample), 1)
        # Widths differ from letter to letter: begin with too many, take away until all lines fit.
        for characters in range(math.ceil(1.3 * width / average), 0, -1):
            lines = textwrap.wrap(text, characters)
            if all(self.width(line, size) <= width for line in lines):
                break
        return lines

    def _blend(self, ink: np.ndarray, left: int, top: int, color: Color) -> None:
        """Mix `color` into the canvas where there is ink; what lies outside is cut."""
        ink = ink[max(-top, 0) :, max(-left, 0) :]
        top, left = max(top, 0), max(left, 0)
        part = self.canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
        ink = ink[: part.shape[0], : part.shape[1], None]
        part += ink * (np.array(color, np.float32) - part)


@dataclass(frozen=True)
class _Scene:
    """The images, and where in the patient the picture looks (LPS mm).

    low, high: corners of the box that holds the body at the liver's level, and the scan along the
    body; liver_z: the liver's extent; levels: z of the axial slices, head first; coronal: y.
    """

    ct: sitk.Image
    label_map: sitk.Image
    liver: sitk.Image
    spleen: sitk.Image | None
    low: np.ndarray
    high: np.ndarray
    liver_z: tuple[float, float]
    levels: tuple[float, ...]
    coronal: float

    @classmethod
    def of(
        cls, ct: sitk.Image, label_map: sitk.Image, liver: sitk.Image, spleen: sitk.Image | None
    ) -> _Scene:
        """Choose the slices on a coarse copy in patient axes, so that the array's do not matter."""
        liver = liver != 0
        spleen = None if spleen is None else spleen != 0
        centre = np.array(
            ct.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in ct.GetSize()])
        )
        step = np.abs(np.array(ct.GetDirection()).reshape(3, 3)) * np.array(ct.GetSpacing())
        half = step @ np.array(ct.GetSize()) / 2
        size = np.ceil(2 * half / _COARSE_MM - 1e-3).astype(int)
        first = centre - (size - 1) * _COARSE_MM / 2

        coarse = _Plane(first, size, np.full(3, _COARSE_MM))
        body = _largest_part(coarse.sample(ct, outside=AIR_HU) > BODY_THRESHOLD_HU)
        inside = coarse.sample(liver) > _INSIDE
        if not inside.any():  # a mask of a few voxels
            inside = body if body.any() else np.ones_like(body)
        slices = np.flatnonzero(inside.any(axis=(1, 2)))
        shown = (body | inside)[slices[0] : slices[-1] + 1]
        rows = np.flatnonzero(shown.any(axis=(0, 2)))
        columns = np.flatnonzero(shown.any(axis=(0, 1)))

        low = first + _COARSE_MM * np.array([columns[0], rows[0], 0.0])
        high = first + _COARSE_MM * np.array([columns[-1], rows[-1], size[2] - 1.0])
        low[:2] -= _MARGIN_MM
        high[:2] += _MARGIN_MM
        bottom, top = first[2] + _COARSE_MM * slices[[0, -1]]

        def on_voxels(axis: int, value: float) -> float:
            """The nearest plane of voxels: the CT's own slice rather than a mix of two."""
            point = centre.copy()
            point[axis] = value + 1e-3  # between two planes, the same one however they are stored
            index = [
                min(max(round(i), 0), n - 1)
                for i, n in zip(ct.TransformPhysicalPointToContinuousIndex(point), ct.GetSize())
            ]
            return round(ct.TransformIndexToPhysicalPoint(index)[axis], 3)

        wanted = top - (np.arange(LEVELS) + 0.5) / LEVELS * (top - bottom)
        most_liver = int(inside.sum(axis=(0, 2)).argmax())
        return cls(
            ct=ct,
            label_map=label_map,
            liver=liver,
            spleen=spleen,
            low=low,
            high=high,
            liver_z=(float(bottom), float(top)),
            levels=tuple(dict.fromkeys(on_voxels(2, z) for z in wanted)),
            coronal=on_voxels(1, first[1] + _COARSE_MM * most_liver),
        )

    def axial(self, z: float, mm: float) -> np.ndarray:
        """RGB of the axial slice at z with pixels of `mm`: right on the left, anterior up."""
        columns, rows = np.maximum(1, np.rint((self.high - self.low)[:2] / mm)).astype(int)
        plane = _Plane(
            np.array([*self.low[:2] + mm / 2, z]),
            np.array([columns, rows, 1]),
            np.array([mm, mm, 1.0]),
        )
        return self._color(plane, np.s_[0])

    def coronal_slice(self, bottom: float, top: float, mm: float) -> np.ndarray:
        """RGB of the coronal slice between two z: right on the left, head up."""
        columns = max(1, round((self.high - self.low)[0] / mm))
        plane = _Plane(
            np.array([self.low[0] + mm / 2, self.coronal, bottom + mm / 2]),
            np.array([columns, 1, max(1, round((top - bottom) / mm))]),
            np.array([mm, 1.0, mm]),
        )
        return self._color(plane, np.s_[::-1, 0])

    def _color(self, plane: _Plane, view: tuple | int) -> np.ndarray:
        low, high = WINDOW_HU
        hu = plane.sample(self.ct, outside=AIR_HU)[view]
        labels = plane.sample(self.label_map, sitk.sitkNearestNeighbor)[view].astype(np.uint8)
        picture = color_slice(labels, np.clip((hu - low) / (high - low), 0.0, 1.0))
        for mask, color in ((self.spleen, _SPLEEN), (self.liver, _LIVER)):
            if mask is not None:
                line = _outline(plane.sample(mask)[view] > _INSIDE)
                picture[line] = 0.1 * picture[line] + 0.9 * np.array(color, np.float32)
        return picture


class _Plane(NamedTuple):
    """Sampling points along the patient's axes: first point, count and step (x, y, z), LPS mm."""

    first: np.ndarray
    size: np.ndarray
    step: np.ndarray

    def sample(
        self, image: sitk.Image, method: int = sitk.sitkLinear, outside: float = 0.0
    ) -> np.ndarray:
        """Values of `image` at the points, float32 [z, y, x]."""
        sampled = sitk.Resample(
            image,
            [int(n) for n in self.size],
            sitk.Transform(),
            method,
            self.first.tolist(),
            self.step.tolist(),
            np.eye(3).ravel().tolist(),
            outside,
            sitk.sitkFloat32,
        )
        return sitk.GetArrayFromImage(sampled)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask [z, y, x] once thin bridges (the table) are cut."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image = sitk.BinaryMorphologicalOpening(image, [1, 1, 0])
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(image))
    return sitk.GetArrayFromImage(parts) == 1


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask [row, column] that touch its outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _group_label(name: str) -> str:
    """The group's stages and name, e.g. F2-F4 (significant)."""
    first, last = STAGES[GROUPS[name]], STAGES[-1]
    return f"{first if first == last else f'{first}-{last}'} ({name})"


def _draw_title(pen: _Pen, stage: str, probability: float, explained: str) -> None:
    x = 20 + pen.text(stage, 20, 18, 66, _ACCENT, bold=True) + 24
    pen.text(f"Predicted fibrosis stage {stage}, probability {_percent(probability)}", x, 20, 30)
    what = _group_label(explained) if explained in GROUPS else explained
    pen.text(f"The colours show where the network found evidence for {what}", x, 56, 20, _MUTED)
    pen.text("Liver fibrosis staging on CT", 1580, 24, 22, _WHITE, align=1)
    pen.text("Grad-CAM location map", 1580, 56, 20, _MUTED, align=1)


def _draw_slices(pen: _Pen, scene: _Scene) -> None:
    """Axial montage, head first, and the coronal with the axial levels marked."""
    gap, columns = 6, 2
    rows = -(-LEVELS // columns)
    width = (_AXIALS.width - gap * (columns - 1)) // columns
    height = (_AXIALS.height - gap * (rows - 1)) // rows
    extent = scene.high - scene.low
    mm = max(extent[0] / width, extent[1] / height)
    for number, z in enumerate(scene.levels):
        cell = _Box(
            _AXIALS.x + number % columns * (width + gap),
            _AXIALS.y + number // columns * (height + gap),
            width,
            height,
        )
        _draw_view(pen, cell, scene.axial(z, mm))
        level = f"{number + 1}   S {_signed(z)} mm"
        pen.text(level, cell.x + 8, cell.y + 6, 16, outline=True)

    # Where the scan is longer than the panel, what is near the liver is shown.
    mm = max(
        extent[0] / _CORONAL.width,
        min(extent[2], 1.6 * (scene.liver_z[1] - scene.liver_z[0])) / _CORONAL.height,
    )
    length = min(extent[2], _CORONAL.height * mm)
    bottom = sum(scene.liver_z) / 2 - length / 2
    bottom = min(max(bottom, scene.low[2]), scene.high[2] - length)
    picture = scene.coronal_slice(bottom, bottom + length, mm)
    top = _draw_view(pen, _CORONAL, picture)
    x = _CORONAL.x + _CORONAL.width - 40  # clear of the side's letter
    free = top  # the numbers of a thin slab would lie on each other
    for number, z in enumerate(scene.levels):
        y = top + round((bottom + length - z) / mm)
        pen.fill(_Box(x, y, 12, 1), _WHITE)
        if y >= free:
            pen.text(str(number + 1), x - 4, y - 8, 13, align=1, outline=True)
            free = y + 14
    level = f"Coronal   A {_signed(-scene.coronal)} mm"
    pen.text(level, _CORONAL.x + 8, _CORONAL.y + 6, 16, outline=True)

    x, y = _CORONAL.x, _CORONAL.y + _CORONAL.height + 8
    for name, color, mask in (("Liver", _LIVER, scene.liver), ("Spleen", _SPLEEN, scene.spleen)):
        if mask is not None:
            pen.fill(_Box(x, y + 7, 22, 2), color)
            x += 30 + pen.text(name, x + 30, y, 15, _MUTED) + 24
    low, high = WINDOW_HU
    pen.text(f"Window {low:.0f} to {high:.0f} HU", x, y, 15, _MUTED)


def _draw_view(pen: _Pen, cell: _Box, picture: np.ndarray) -> int:
    """Centre a slice in its black cell and name the patient's sides; returns its first row."""
    picture = picture[: cell.height, : cell.width]  # rounding may add a pixel
    rows, columns = picture.shape[:2]
    left, top = cell.x + (cell.width - columns) // 2, cell.y + (cell.height - rows) // 2
    pen.fill(cell, _BLACK)
    pen.paste(picture, left, top)
    y = cell.y + cell.height // 2 - 9
    pen.text("R", cell.x + 6, y, 18, bold=True, outline=True)
    pen.text("L", cell.x + cell.width - 6, y, 18, bold=True, align=1, outline=True)
    return top


def _draw_color_bar(pen: _Pen, bands: str) -> None:
    """The bands as they look over dark and over bright tissue, strongest on top."""
    width, caption = 40, 64
    height = (_BAR.height - caption) // (len(BANDS) - 1)
    grey = np.tile(np.linspace(0.15, 0.75, width), (height - 2, 1))
    y = _BAR.y
    for label in range(len(BANDS) - 1, 0, -1):
        pen.paste(color_slice(np.full(grey.shape, label), grey), _BAR.x, y)
        pen.text(BANDS[label].name, _BAR.x + width + 10, y + height // 2 - 10, 16)
        y += height
    for line, text in enumerate(pen.wrap(bands.capitalize(), _BAR.width, 15)[:3]):
        pen.text(text, _BAR.x, y + 8 + 19 * line, 15, _MUTED)


def _draw_heading(pen: _Pen, box: _Box, text: str) -> None:
    pen.text(text, box.x, box.y, 17, _MUTED)
    pen.fill(_Box(box.x, box.y + 24, box.width, 1), _TRACK)


class _Row(NamedTuple):
    """One bar: its name, number 0..1, whether it is marked, and a range to draw on it."""

    name: str
    value: float
    marked: bool
    range: Sequence[float] | None = None


def _draw_bars(pen: _Pen, box: _Box, heading: str, rows: list[_Row]) -> None:
    """Horizontal bars 0..1 with their number; the marked ones in the accent colour."""
    _draw_heading(pen, box, heading)
    label = max(pen.width(row.name, 16, bold=True) for row in rows) + 12
    number = 72
    track = box.width - label - number
    for line, (name, value, marked, range_) in enumerate(rows):
        y = box.y + 36 + 26 * line
        color = _WHITE if marked else _MUTED
        pen.text(name, box.x, y, 16, color, bold=marked)
        pen.fill(_Box(box.x + label, y + 1, track, 16), _TRACK)
        bar = _Box(box.x + label, y + 1, round(track * min(max(value, 0.0), 1.0)), 16)
        pen.fill(bar, _ACCENT if marked else _MUTED)
        if range_ is not None:
            low, high = (bar.x + round(track * min(max(end, 0.0), 1.0)) for end in range_)
            for whisker in (_Box(low, y + 8, high - low, 2), _Box(low, y + 4, 2, 10)):
                pen.fill(whisker, _WHITE)
            pen.fill(_Box(high - 2, y + 4, 2, 10), _WHITE)
        pen.text(_percent(value), box.x + box.width, y, 16, color, bold=marked, align=1)


def _draw_agreement(pen: _Pen, box: _Box, ensemble: Mapping[str, Any], stage: str) -> None:
    """Under the groups' bars: what the lines on the bars are, and how many networks agree."""
    members = ensemble["members"]
    sentence = f"{ensemble['agreeing']} of {members} networks say {stage}; lines: their range"
    pen.text(sentence, box.x, box.y + 36 + 26 * len(GROUPS) + 8, 13, _MUTED)


def _draw_measurements(
    pen: _Pen, box: _Box, measurements: Mapping[str, Mapping[str, float]]
) -> None:
    """Mean relative weight and share of the whole map, region by region."""
    _draw_heading(pen, box, "Attention by region")
    mean_x, share_x = box.x + 250, box.x + box.width
    pen.text("mean", mean_x, box.y, 15, _MUTED, align=1)
    pen.text("share", share_x, box.y, 15, _MUTED, align=1)
    y = box.y + 34
    for region, name in _REGIONS.items():
        if region not in measurements:
            continue
        values = measurements[region]
        indent = len(name) - len(name.lstrip())
        pen.text(name.strip(), box.x + 8 * indent, y, 16, _MUTED if indent else _WHITE)
        mean = f"{values['mean']:.2f}" if math.isfinite(values["mean"]) else "-"
        pen.text(mean, mean_x, y, 16, align=1)
        pen.text(_percent(values["share"]), share_x, y, 16, align=1)
        y += 23
    pen.text("mean: 1 = the body's average", box.x, y + 2, 13, _MUTED)


def _draw_warnings(pen: _Pen, box: _Box, warnings: Sequence[str]) -> None:
    """As many warnings as fit, then how many are left."""
    size, leading = 15, 19
    _draw_heading(pen, box, "Warnings")
    y = box.y + 34
    if not warnings:
        pen.text("None", box.x, y, size, _MUTED)
    for shown, warning in enumerate(warnings):
        left = len(warnings) - shown
        lines = pen.wrap(warning, box.width - 16, size)
        free = (box.y + box.height - y) // leading - (left > 1)
        if len(lines) > free:
            if shown:
                pen.text(f"+ {left} more", box.x, y, size, _MUTED)
                break
            lines = [*lines[: free - 1], lines[free - 1][:-3].rstrip() + "..."]
        pen.fill(_Box(box.x, y + 3, 4, leading * len(lines) - 6), _ACCENT)
        for line in lines:
            pen.text(line, box.x + 16, y, size)
            y += leading
        y += 4


def _draw_footer(pen: _Pen, model_name: str, model_training: str) -> None:
    pen.fill(_Box(_FOOTER.x, _FOOTER.y, _FOOTER.width, 1), _TRACK)
    used = pen.text(RESEARCH_USE, _FOOTER.x, _FOOTER.y + 13, 18, _ACCENT, bold=True)
    model = f"Model {model_name}".strip()
    if model_training:
        model = f"{model}, trained on {model_training}"
    lines = pen.wrap(model, _FOOTER.width - used - 40, 14)
    if len(lines) > 2:
        lines = [lines[0], lines[1][:-3].rstrip() + "..."]
    y = _FOOTER.y + (14 if len(lines) == 1 else 6)
    for line in lines:
        pen.text(line, _FOOTER.x + _FOOTER.width, y, 14, _MUTED, align=1)
        y += 18


def _signed(millimetres: float) -> str:
    """Position as Slicer gives it (RAS), without a minus before zero."""
    return f"{round(millimetres, 1) + 0.0:.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"
