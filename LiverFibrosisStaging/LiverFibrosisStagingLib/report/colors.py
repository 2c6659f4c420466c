"""The location map's ten colour bands, for Slicer's colour table, the picture and the panel.

The colours run from dark crimson over orange to light yellow, in perceptually equal steps. Their
lightness increases steadily, so that the order of the bands is visible with colour blindness and in
greyscale prints. Opacity increases as well: low attention tints the anatomy only slightly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BAND_COUNT = 10

# Lightness, chroma and hue (degrees) of the path through OKLCH on which the bands lie.
_PATH_LCH = ((0.40, 0.15, 5.0), (0.57, 0.20, 25.0), (0.76, 0.17, 62.0), (0.96, 0.15, 106.0))
_OPACITY = (0.08, 0.75)

# OKLab to cube roots of cone responses, and cone responses to linear sRGB:
# Bjoern Ottosson, "A perceptual color space for image processing" (2020).
_LAB_TO_CONES = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_CONES_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@dataclass(frozen=True)
class Band:
    """One label of the label volume: its name, sRGB colour 0..1 and opacity 0..1."""

    name: str
    rgb: tuple[float, float, float]
    opacity: float


def _srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab colours [N, 3] as gamma-encoded sRGB 0..1 [N, 3] (IEC 61966-2-1)."""
    linear = np.clip((lab @ _LAB_TO_CONES.T) ** 3 @ _CONES_TO_RGB.T, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _make_bands() -> tuple[Band, ...]:
    along = np.linspace(0, len(_PATH_LCH) - 1, 400)
    lightness, chroma, hue = (
        np.interp(along, np.arange(len(_PATH_LCH)), values) for values in zip(*_PATH_LCH)
    )
    hue = np.radians(hue)
    path = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    # Equal steps of OKLab distance along the path, which are perceptually even.
    travelled = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1)))
    stops = np.linspace(0.0, travelled[-1], BAND_COUNT)
    lab = np.stack([np.interp(stops, travelled, axis) for axis in path.T], axis=1)

    step = 100 // BAND_COUNT
    # An entry without a name is not listed in Slicer's colour legend.
    nothing = Band(name="", rgb=(0.0, 0.0, 0.0), opacity=0.0)
    return nothing, *(
        Band(
            name=f"{k * step}-{(k + 1) * step} %",
            rgb=tuple(round(float(value), 4) for value in rgb),
            opacity=round(float(opacity), 3),
        )
        for k, (rgb, opacity) in enumerate(zip(_srgb(lab), np.linspace(*_OPACITY, BAND_COUNT)))
    )


# Indexed by label value: 0 is outside the body or no attention, 1..10 are the bands.
BANDS: tuple[Band, ...] = _make_bands()


def band_rgba() -> np.ndarray:
    """Colour table float64 [11, 4]: red, green, blue, opacity, 0..1, row = label value."""
    return np.array([(*band.rgb, band.opacity) for band in BANDS])


def color_slice(labels: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Overlay the bands on a grey slice.

    labels: integers 0..10, any shape [...]; grey: 0..1, the same shape. Returns RGB 0..1,
    float32 [..., 3]; grey is unchanged where the label is 0.
    """
    table = band_rgba().astype(np.float32)[labels]
    color, opacity = table[..., :3], table[..., 3:]
    return np.asarray(grey, np.float32)[..., None] * (1 - opacity) + color * opacity


def css(rgb: Sequence[float]) -> str:
    """An sRGB colour 0..1 for HTML, as "#rrggbb"."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
