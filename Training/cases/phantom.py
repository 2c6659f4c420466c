"""Simulated portal-venous CTs of the upper abdomen with a known stage of liver fibrosis.

Unlike in patients' CTs, the effects of the stage are known. Each can be switched off:

surface   nodularity of the liver's surface (Smith et al. 2016, Radiology 280:771-781)
texture   coarser parenchyma; regenerative nodules from F3 on (Goshima and Bae 2017, Radiology
          283:921-922)
spleen    volume (Pickhardt et al. 2017, Eur Radiol 27:3060-3068)
lobes     smaller right lobe, larger caudate lobe (Harbin et al. 1980, Radiology 135:273-283)
portal    wider portal vein (Bolondi et al. 1982, Radiology 142:167-172)
ascites, varices   in part of the F4 cases (D'Amico et al. 2006, J Hepatol 44:217-231)

The directions of the effects are taken from the literature. The magnitudes were not measured in
patients; they are chosen so that a small network can detect them at 4 x 2 x 2 mm and neighbouring
stages overlap.

Coordinates are LPS in mm, arrays [slice, row, column]; x increases towards the patient's left, y
towards the back, z towards the head. A shape is a function that gives approximately the signed
distance to its surface, negative inside.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import scipy.fft
import SimpleITK as sitk

EFFECTS = ("surface", "texture", "spleen", "lobes", "portal", "ascites", "varices")
SPACING_MM = (3.0, 1.5, 1.5)
SIZE = (76, 216, 264)
AIR, LUNG, FAT, FLUID, MUSCLE = -1000.0, -820.0, -100.0, 25.0, 60.0

Shape = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Phantom(NamedTuple):
    """CT (int16 HU) and masks (uint8, 1 inside) on one grid with LPS axes."""

    ct: sitk.Image
    liver: sitk.Image
    spleen: sitk.Image


class Signs(NamedTuple):
    """Imaging signs: all parameters of a phantom that depend on the stage."""

    surface_mm: float  # standard deviation of the liver's surface about its smooth shape
    surface_wavelength_mm: float
    texture_hu: float  # standard deviation of the parenchyma
    texture_wavelength_mm: float
    nodules_hu: float  # contrast of regenerative nodules against the parenchyma
    spleen_ml: float
    right_lobe: float  # factor of the right lobe's radii
    caudate_mm: float  # radius of the caudate lobe
    portal_mm: float  # radius of the portal vein
    ascites_mm: float  # thickness of the fluid between organs and abdominal wall
    varices: int  # number of wide, winding veins between stomach and spleen


def signs(
    stage: int, rng: np.random.Generator, effects: Iterable[str] = EFFECTS, strength: float = 1.0
) -> Signs:
    """Signs of `stage` 0..4; effects that are not in `effects` are as in F0.

    strength: factor of all severities. With 1, as in the cohorts, the mean spleen volume is 204 mL
    in F0 and 427 mL in F4; with 2 it is 215 and 943 mL. Pickhardt et al. 2017 measured 215 and 791.

    Neighbouring stages overlap: a patient's severity varies around the stage with a standard
    deviation of 0.6, and each sign varies in addition.
    """
    effects = tuple(effects)
    unknown = set(effects) - set(EFFECTS)
    if stage not in range(5) or unknown:
        raise ValueError(
            f"stage {stage}, effects {effects}: needed are 0..4 and effects of {EFFECTS}."
        )
    scatter, *own = rng.normal(0, (0.6, 0.15, 0.1, 0.15, 0.1, 0.2, 0.04, 0.15, 0.1))
    fluid, bleeding = rng.random(2)
    severity = {
        e: strength * np.clip((stage if e in effects else 0) + scatter, 0, 4.5) for e in EFFECTS
    }
    surface, surface_wavelength, texture, texture_wavelength, spleen, lobe, caudate, vein = np.exp(
        own
    )
    has_ascites = severity["ascites"] > 3.3 and fluid < 0.5
    has_varices = severity["varices"] > 3.0 and bleeding < 0.5
    return Signs(
        surface_mm=float((0.3 + 0.5 * severity["surface"]) * surface),
        surface_wavelength_mm=float(17.0 * surface_wavelength),
        texture_hu=float((2.0 + 3.0 * severity["texture"]) * texture),
        texture_wavelength_mm=float((9.0 + 1.2 * severity["texture"]) * texture_wavelength),
        nodules_hu=float(8.0 * max(0.0, severity["texture"] - 2.5)),
        spleen_ml=float(190.0 * np.exp(0.2 * severity["spleen"]) * spleen),
        right_lobe=float((1.0 - 0.035 * severity["lobes"]) * lobe),
        caudate_mm=float((13.0 + 3.0 * severity["lobes"]) * caudate),
        portal_mm=float((5.5 + 0.5 * severity["portal"]) * vein),
        ascites_mm=float(4.0 + 14.0 * fluid) if has_ascites else 0.0,
        varices=3 + int(8 * bleeding) if has_varices else 0,
    )


def phantom(
    stage: int,
    seed: int,
    *,
    spacing: tuple[float, float, float] = SPACING_MM,
    size: tuple[int, int, int] = SIZE,
    effects: Iterable[str] = EFFECTS,
    strength: float = 1.0,
    table: bool = True,
    scan: int = 0,
) -> Phantom:
    """A patient of `stage` 0..4. The same seed gives the same anatomy in every stage.

    spacing: (slice, row, column) mm. size: voxels in the same order; the whole upper abdomen takes
    about 230 x 320 x 400 mm, and a smaller volume shows its centre. effects: those of `EFFECTS`
    that the stage changes. strength: see `signs`. table: with the scanner's table. scan: number of
    the examination of this patient; examinations differ in positioning and noise. Raises ValueError
    for an unknown stage or effect.
    """
    pose, anatomy, fibrosis, noise = map(
        np.random.default_rng, np.random.SeedSequence(seed).spawn(4)
    )
    if scan:
        pose, noise = map(np.random.default_rng, np.random.SeedSequence([seed, scan]).spawn(2))
    shown = signs(stage, fibrosis, effects, strength)
    canvas = _Canvas(spacing, size, pose)
    liver, spleen = _draw(canvas, anatomy, fibrosis, shown)
    if table:
        half_width, height = 210.0, anatomy.uniform(6, 14) + canvas.back
        canvas.paint(lambda x, y, z: np.maximum(abs(y - height) - 2, abs(x) - half_width), -650)
    hu = canvas.hu + _scanner_noise(noise, spacing, size)
    hu = np.maximum(np.where(canvas.hu <= AIR + 1, AIR, hu), AIR)
    return Phantom(
        canvas.image(np.round(hu).astype(np.int16)),
        canvas.image(liver.astype(np.uint8)),
        canvas.image(spleen.astype(np.uint8)),
    )


class _Canvas:
    """HU on a grid, in the coordinates of a patient who is slightly rotated and shifted."""

    def __init__(
        self,
        spacing: tuple[float, float, float],
        size: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> None:
        self.spacing, self.size = np.array(spacing), size
        self.hu = np.full(size, AIR, np.float32)
        self.back = 0.0  # y of the patient's back
        a, b, c = np.radians(rng.normal(0, 2.5, 3))
        self.turn = (
            np.array([[1, -a, 0], [a, 1, 0], [0, 0, 1]])
            @ np.array([[1, 0, b], [0, 1, 0], [-b, 0, 1]])
            @ np.array([[1, 0, 0], [0, 1, -c], [0, c, 1]])
        )
        self.shift = rng.normal(0, 5, 3)
        self.first = -(np.array(size) - 1) / 2 * self.spacing
        z, y, x = np.ix_(*(f + np.arange(n) * s for f, n, s in zip(self.first, size, spacing)))
        self.xyz = [
            np.float32(row[0] * x + row[1] * y + row[2] * z + shift)
            for row, shift in zip(self.turn, self.shift)
        ]

    def image(self, array: np.ndarray) -> sitk.Image:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing[::-1].tolist())
        image.SetOrigin(self.first[::-1].tolist())
        return image

    def box(self, centre: Iterable[float], radius: Iterable[float]) -> tuple[slice, ...]:
        """Indices of the voxels within `radius` (x, y, z) of `centre`, with a margin."""
        middle = np.linalg.solve(self.turn, np.array(centre) - self.shift)[::-1]
        reach = np.array(radius)[::-1] * 1.15 + 6
        low = np.floor((middle - reach - self.first) / self.spacing)
        high = np.ceil((middle + reach - self.first) / self.spacing)
        return tuple(
            slice(int(np.clip(a, 0, n)), int(np.clip(b, 0, n)))
            for a, b, n in zip(low, high, self.size)
        )

    def at(self, shape: Shape, box: tuple[slice, ...] = (...,)) -> np.ndarray:
        return shape(*(axis[box] for axis in self.xyz))

    def paint(
        self, shape: Shape | np.ndarray, hu: float | np.ndarray, box: tuple[slice, ...] = (...,)
    ) -> None:
        """Fill a shape with `hu`, with partial volume at its surface."""
        distance = shape if isinstance(shape, np.ndarray) else self.at(shape, box)
        share = np.clip(0.5 - distance / 2.0, 0, 1)
        view = self.hu[box]
        view += share * (hu - view)

    def blob(
        self,
        centre: Iterable[float],
        radius: Iterable[float],
        hu: float,
        inner: float | None = None,
    ) -> None:
        """Paint an ellipsoid of `hu`; with `inner`, a wall of 4 mm around content of `inner` HU."""
        box = self.box(centre, radius)
        distance = self.at(_ellipsoid(centre, radius), box)
        self.paint(distance, hu, box)
        if inner is not None:
            self.paint(distance + 4, inner, box)

    def tube(self, start: Iterable[float], end: Iterable[float], radius: float, hu: float) -> None:
        start, end = np.array(start, np.float32), np.array(end, np.float32)
        box = self.box((start + end) / 2, abs(end - start) / 2 + radius)
        self.paint(_tube(start, end, radius), hu, box)


def _draw(
    canvas: _Canvas, rng: np.random.Generator, fibrosis: np.random.Generator, shown: Signs
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the abdomen from the outside to the inside; masks of liver and spleen, bool."""
    width, depth = rng.uniform(145, 175), rng.uniform(98, 122)
    fat, wall = rng.uniform(6, 26), rng.uniform(9, 14)
    top = rng.uniform(72, 84)  # the right dome of the diaphragm
    canvas.back = depth
    jitter = rng.normal

    body = canvas.at(lambda x, y, z: _ellipse(x, y, width, depth))
    canvas.paint(body, MUSCLE)
    canvas.paint(body + 2, FAT)
    canvas.paint(body + fat, MUSCLE)
    inside = body + fat + wall
    canvas.paint(inside, FAT)

    def diaphragm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        right = (x + 70) ** 2 / 150
        left = (x - 75) ** 2 / 150 + 14
        return z - top + np.minimum(right, left) + (y + 5) ** 2 / 190

    above = canvas.at(diaphragm)
    canvas.paint(np.maximum(inside, -above), LUNG)
    canvas.blob((20, -30, top + 25), (50, 42, 32), rng.uniform(130, 170))  # heart

    # Bowel below the liver; stomach with gas at its front, since the patient is supine.
    low = canvas.box((0, 0, -100), (width, depth, 60))
    loops = _waves(rng, canvas.hu[low].shape, canvas.spacing, 45.0)
    loops = np.maximum(4 - 10 * loops, inside[low] + 4)
    canvas.paint(np.maximum(loops, canvas.xyz[2][low] + 45), rng.uniform(25, 60), low)
    centre = np.array([68, -38, 18]) + jitter(0, 6, 3)
    radius = rng.uniform((34, 30, 34), (46, 42, 50))
    canvas.blob(centre, radius, MUSCLE, FLUID)
    level = centre[1] - radius[1] * rng.uniform(0.2, 0.8)
    gas = _ellipsoid(centre, radius - 5)
    box = canvas.box(centre, radius)
    canvas.paint(lambda x, y, z: np.maximum(gas(x, y, z), y - level), -900, box)

    spine = np.float32([0, depth - fat - 42])
    for side in (-1, 1):
        kidney = np.array([side * 66, spine[1] - 2, -42 - 6 * (side < 0)]) + jitter(0, 5, 3)
        canvas.blob(kidney, (28, 24, 50), rng.uniform(160, 195))
        canvas.blob(kidney - (side * 12, 0, 0), (12, 9, 24), FAT)

    # Ascites between the abdominal wall and the organs.
    fluid = shown.ascites_mm
    if fluid:
        canvas.paint(np.maximum.reduce([inside, -inside - fluid, above]), FLUID - 10)

    # Spleen: below the left ribs, random shape, volume according to the stage.
    form = np.exp(jitter(0, 0.08, 3)) * (0.95, 0.62, 1.35)
    scale = np.cbrt(shown.spleen_ml * 1000 / (4 / 3 * np.pi * form.prod()) / 0.85)
    radius = form * scale
    reach = width * (1 - fat / depth) - wall - 4
    centre = np.array([reach - fluid - radius[0], 30, 18 - 0.3 * (radius[2] - 45)]) + jitter(
        0, 4, 3
    )
    box = canvas.box(centre, radius)
    smooth = 2.5 * _waves(rng, canvas.hu[box].shape, canvas.spacing, 50.0)
    spleen = canvas.at(_ellipsoid(centre, radius), box) + smooth
    back = np.hypot(canvas.xyz[0][box] * 0.8, canvas.xyz[1][box] - spine[1])
    spleen = np.maximum.reduce([spleen, inside[box] + 3 + fluid, above[box] + 2, 48 - back])
    canvas.paint(spleen, rng.normal(125, 9), box)
    spleen_mask = np.zeros(canvas.size, bool)
    spleen_mask[box] = spleen < 0

    # Liver: right, left and caudate lobe, bounded by diaphragm, wall and spine; nodular surface.
    right = np.array([-72, 0, top - 78]) + jitter(0, 4, 3)
    left = np.array([-8, -40, top - 58]) + jitter(0, 5, 3)
    right_radius = rng.uniform((68, 70, 74), (82, 84, 88)) * shown.right_lobe
    left_radius = rng.uniform((60, 28, 36), (82, 38, 50))
    box = canvas.box((-40, 0, top - 78), (120, 105, 95))
    liver = _smooth_union(
        canvas.at(_ellipsoid(right, right_radius), box),
        canvas.at(_ellipsoid(left, left_radius), box),
        18.0,
    )
    caudate = np.array([-18, spine[1] - 52, top - 66])
    caudate_radius = shown.caudate_mm * np.array([0.9, 0.8, 1.2])
    liver = _smooth_union(liver, canvas.at(_ellipsoid(caudate, caudate_radius), box), 8.0)
    liver += 4 * _waves(rng, liver.shape, canvas.spacing, 70.0)
    cava = np.float32([-24, spine[1] - 34])
    back = np.hypot(canvas.xyz[0][box] * 0.8, canvas.xyz[1][box] - spine[1])
    liver = np.maximum.reduce([liver, inside[box] + 4 + fluid, above[box] + 3, 38 - back])
    liver += shown.surface_mm * _waves(
        fibrosis, liver.shape, canvas.spacing, shown.surface_wavelength_mm
    )
    liver = np.maximum.reduce([liver, inside[box] + 1 + fluid, above[box] + 1])
    texture = _waves(fibrosis, liver.shape, canvas.spacing, shown.texture_wavelength_mm)
    parenchyma = rng.normal(105, 8) + shown.texture_hu * texture
    if shown.nodules_hu:
        nodules = _waves(fibrosis, liver.shape, canvas.spacing, 16.0)
        parenchyma += shown.nodules_hu * np.clip(nodules - 0.8, 0, 1)
    canvas.paint(liver, parenchyma, box)
    liver_mask = np.zeros(canvas.size, bool)
    liver_mask[box] = liver < 0

    # Vessels: aorta, vena cava, portal and hepatic veins.
    portal, venous = rng.normal(160, 12), rng.normal(145, 10)
    canvas.tube((14, spine[1] - 32, -200), (10, spine[1] - 30, 200), 11, rng.normal(155, 10))
    canvas.tube((*cava, -200), (*cava, top - 5), rng.uniform(10, 13), venous)
    hilum = np.array([-32, cava[1] - 28, top - 88]) + jitter(0, 3, 3)
    canvas.tube((5, hilum[1] + 12, hilum[2] - 35), hilum, shown.portal_mm, portal)
    for end in ((-62, 2, 0), (-92, 18, 18), (-90, -8, -32), (-10, -38, 22), (-70, -30, 8)):
        end = np.add(end, (0, 0, top - 82)) + jitter(0, 5, 3)
        canvas.tube(hilum, end, rng.uniform(2.5, 4), portal)
    for end in ((-95, 10, -50), (-65, -40, -45), (-20, -42, -40)):
        end = np.add(end, (0, 0, top)) + jitter(0, 5, 3)
        canvas.tube((*cava, top - 22), end, rng.uniform(2.5, 4), venous)

    between = np.array([62, 10, top - 62])
    for _ in range(shown.varices):
        start = between + fibrosis.normal(0, (10, 9, 18))
        end = start + fibrosis.normal(0, 14, 3)
        canvas.tube(start, end, fibrosis.uniform(2.5, 4.5), portal)

    # Bones last, over everything else: vertebrae with discs, ribs descending towards the front.
    canvas.blob((-34, spine[1], 0), (18, 18, 400), MUSCLE)
    canvas.blob((34, spine[1], 0), (18, 18, 400), MUSCLE)
    x, y, z = canvas.xyz
    vertebra = np.hypot(x, (y - spine[1]) * 1.15) - 21
    bone = np.where(np.mod(z + rng.uniform(0, 30), 30) < 24, rng.uniform(170, 240), 90)
    canvas.paint(vertebra, bone)
    canvas.paint(np.hypot(x, y - spine[1] - 28) - 8, FLUID)
    rib = abs(np.mod(z - 0.35 * y + rng.uniform(0, 24), 24) - 12) - 5
    cage = np.maximum.reduce([rib, abs(body + fat + 0.5 * wall) - 4, -20 - z + 0.4 * y])
    canvas.paint(cage, rng.uniform(280, 420))
    return liver_mask, spleen_mask


def _ellipse(x: np.ndarray, y: np.ndarray, width: float, depth: float) -> np.ndarray:
    radius = np.sqrt((x / width) ** 2 + (y / depth) ** 2)
    return radius * (radius - 1) / np.sqrt((x / width**2) ** 2 + (y / depth**2) ** 2 + 1e-12)


def _ellipsoid(centre: Iterable[float], radius: Iterable[float]) -> Shape:
    (a, b, c), (u, v, w) = np.float32(radius), np.float32(centre)

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = (x - u) / a, (y - v) / b, (z - w) / c
        k = np.sqrt(x * x + y * y + z * z)
        return k * (k - 1) / np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 + 1e-12)

    return distance


def _tube(start: np.ndarray, end: np.ndarray, radius: float) -> Shape:
    along = end - start

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = x - start[0], y - start[1], z - start[2]
        share = np.clip((x * along[0] + y * along[1] + z * along[2]) / (along @ along), 0, 1)
        x, y, z = x - share * along[0], y - share * along[1], z - share * along[2]
        return np.sqrt(x * x + y * y + z * z) - radius

    return distance


def _smooth_union(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    blend = np.maximum(width - abs(first - second), 0) / width
    return np.minimum(first, second) - blend * blend * width / 4


def _waves(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray, wavelength: float
) -> np.ndarray:
    """Random field with standard deviation 1 and wavelengths of about `wavelength` mm."""
    # A margin, because the field is periodic; then rounded up to fast transform lengths.
    padded = [
        scipy.fft.next_fast_len(int(n + wavelength / s), True) for n, s in zip(shape, spacing)
    ]
    spectrum = scipy.fft.rfftn(rng.standard_normal(padded, np.float32))
    frequencies = [np.fft.fftfreq(n, s) for n, s in zip(padded[:2], spacing)]
    frequencies.append(np.fft.rfftfreq(padded[2], spacing[2]))
    z, y, x = np.ix_(*(np.float32(f * wavelength) for f in frequencies))
    spectrum *= np.exp(-((np.sqrt(z * z + y * y + x * x) - 1) ** 2) / (2 * 0.3**2))
    field = scipy.fft.irfftn(spectrum, padded)
    field /= field.std()
    return field[tuple(slice(n) for n in shape)]


def _scanner_noise(
    rng: np.random.Generator, spacing: tuple[float, float, float], size: tuple[int, int, int]
) -> np.ndarray:
    """Noise of 10 to 15 HU at 0.8 x 0.8 x 2.5 mm, less in larger voxels.

    As with filtered back-projection, its power increases with the in-plane frequency and decreases
    towards the highest frequencies.
    """
    spectrum = scipy.fft.rfft2(rng.standard_normal(size, np.float32))
    frequency = np.hypot(np.fft.fftfreq(size[1])[:, None], np.fft.rfftfreq(size[2]))
    spectrum *= np.float32(np.sqrt(frequency + 0.02) * np.exp(-4 * frequency**2))
    noise = scipy.fft.irfft2(spectrum, size[1:])
    level = rng.uniform(10, 15) * np.sqrt(0.8 * 0.8 * 2.5 / np.prod(spacing))
    return noise * (level / noise.std())
