"""Paint a stage of fibrosis into a body.

One backward warp (pose, elastic deformation, spleen, lobes, liver surface) says for each voxel of
the case where in the body it comes from, and the CT is sampled there once. The parenchyma of liver
and spleen is replaced: a smooth trend, noise with the patient's own spectrum, drawn vessels and
lesions, then the stage's texture. What is not a sign of fibrosis is drawn from other random numbers
than the signs, so that one seed gives the same patient and scan in every stage.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.fft import next_fast_len

from . import vessels
from .bodies import EDGE_MM, REACH_MM, Body
from .effects import Signs, draw
from .fields import (
    band_noise,
    coarse_noise,
    noise_like,
    positions,
    resized,
    sample,
    smooth,
    step,
)

CANVAS_MM = (2.5, 1.5, 1.5)  # painted at this spacing, or at the output's where that is finer
LATTICE = 4  # the smooth part of the warp is computed at every fourth voxel
# Nodularity of 0.1 mm that is drawn -> SD of the displacement. The library's measurement then finds
# about 1.6 in F0 and 2.2 in F4; in real livers it found 0.8 to 1.9 without cirrhosis, 1.8 to 3.1
# with it. The published program, whose values are drawn, finds more on a smooth surface.
SMOOTH_SURFACE = 1.8
SURFACE_GAIN = 2.0
UMBILICAL_MM = ((8, 25, -3), (0, 0, 0), (-25, -12, 4), (-60, -16, 6))  # from the liver's front
TREES = 6  # vessel trees per body
FLUID_HU = 8.0
TEXTURE_MM = (1.5, 4.0)  # sigmas of the Gaussians between which the texture lies
NODULES_MM = (2.5, 6.0)
BUMPS_MM = (2.0, 5.0)
TILE_MM = (160.0, 240.0, 240.0)  # period of the random fields
MOTTLE_MM = (2.0, 8.0)
NODULES_FROM_HU = 2.75  # nodules appear in livers whose texture is coarser than this,
NODULES = 0.7  # with this SD per HU beyond
AIR_HU = -1000.0


@dataclass(frozen=True, eq=False)
class Case:
    """A painted case.

    hu: float32 [slice, row, column]; liver, spleen: bool; spacing: mm in the same order. truth: the
    drawn signs, and `measured_spleen_ml`, `measured_liver_ml`, `measured_lsvr` of the rendered
    masks.
    """

    hu: torch.Tensor
    liver: torch.Tensor
    spleen: torch.Tensor
    spacing: tuple[float, float, float]
    truth: dict[str, float]


class _Maps(NamedTuple):
    """The body's maps, sampled on the canvas; veins and spots are values of `vessels.splat`."""

    hu: torch.Tensor
    liver: torch.Tensor
    spleen: torch.Tensor
    veins: torch.Tensor
    spots: torch.Tensor
    depth: torch.Tensor


class _Scan(NamedTuple):
    """What does not depend on the stage: enhancement and acquisition."""

    liver_hu: float
    spleen_hu: float
    vessel_hu: float  # above the liver
    lesion_hu: float
    oral_hu: float
    noise: float  # factor of the organs' own noise
    added_noise: float  # HU, in the whole image
    mottle: float  # SD in HU of perfusion that differs from place to place
    noise_mm: float  # its correlation
    blur_mm: tuple[float, float, float]
    knots: np.ndarray  # HU of the surroundings
    table: float  # its distance from the back, mm; -1 without
    radius: float  # of the round field of view, share of the width


class Painter:
    """Paints cases from bodies that are on one device."""

    def __init__(self, bodies: Sequence[Body]) -> None:
        self.bodies = list(bodies)
        self.device = self.bodies[0].hu.device
        self._noise_sd = float(np.median([np.sqrt(b.noise[0, 0, 0]) for b in self.bodies]))
        self._trees: dict[tuple[int, int], torch.Tensor] = {}

    def case(
        self,
        seed: int,
        body_index: int,
        stage: int | None = None,
        only: Collection[str] | None = None,
        spacing: tuple[float, float, float] = (4.0, 2.0, 2.0),
    ) -> Case:
        """The case with this seed, at `spacing` (slice, row, column), over the body's extent.

        stage: 0..4, drawn if it is None; only: the signs of `effects.SIGNS` that have the values of
        the stage, the rest those of F0. The same seed gives the same patient, pose, scan and
        quantiles of all signs in every stage.
        """
        body = self.bodies[body_index]
        streams = np.random.SeedSequence([seed, body_index]).spawn(4)
        of_signs, of_pose, of_anatomy, of_scan = map(np.random.default_rng, streams)
        drawn_stage = int(of_signs.integers(5))
        signs = draw(drawn_stage if stage is None else stage, of_signs, only)
        scan = _draw_scan(of_scan)
        canvas = _Canvas(body, spacing, int(streams[1].generate_state(1)[0]))
        posed = _posed(canvas, of_pose)
        warped = _with_signs(canvas, body, posed, signs)
        where = canvas.full(warped)
        _move_surface(canvas, body, where, warped, signs)
        veins, spots = self._drawn_anatomy(body, body_index, signs, of_anatomy)
        stack = torch.stack([body.hu, body.liver, body.spleen, veins, spots, body.depth])
        maps = _Maps(*sample(stack, where, body.spacing))
        noise = scan.noise * min(float(np.sqrt(body.noise[0, 0, 0])), self._noise_sd)
        hu = _fluid(_surroundings(canvas, scan, maps), maps, body, signs)
        hu = _organs(canvas, body, scan, noise, signs, maps, hu)
        hu = _scanned(canvas, scan, hu, _back(canvas, body, posed))
        return _output(canvas, body, hu, maps, where[..., 2] > body.fissure, signs)

    def _drawn_anatomy(
        self, body: Body, index: int, signs: Signs, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Veins, and lesions and oral contrast, as `vessels.splat` in the body's space."""
        number = int(rng.integers(TREES))
        if (index, number) not in self._trees:
            self._trees[index, number] = _trees(body, np.random.default_rng([index, number]))
        shape = body.hu.shape
        pieces = _tubes(body, signs, rng)
        points, radii = (np.concatenate(part) for part in zip(*pieces))
        tubes = vessels.splat(points, radii, shape, body.spacing, self.device)
        spots, sizes = _spots(body, rng)
        return (
            torch.maximum(self._trees[index, number], tubes),
            vessels.splat(spots, sizes, shape, body.spacing, self.device),
        )


class _Canvas:
    """The grid that a case is painted on, its lattice, and its random fields."""

    def __init__(self, body: Body, spacing: Sequence[float], seed: int) -> None:
        self.device = body.hu.device
        self.output = tuple(map(float, spacing))
        self.spacing = tuple(min(a, b) for a, b in zip(self.output, CANVAS_MM))
        self.shape = tuple(int(n / s) + 1 for n, s in zip(body.size_mm, self.spacing))
        self.lattice_shape = tuple(
            int(np.ceil(n / (LATTICE * c))) + 1 for n, c in zip(body.size_mm, CANVAS_MM)
        )
        extent = [(n - 1) * s for n, s in zip(self.shape, self.spacing)]
        self.lattice_spacing = tuple(e / (n - 1) for e, n in zip(extent, self.lattice_shape))
        self.lattice = positions(self.lattice_shape, self.lattice_spacing, self.device)
        self.middle = torch.tensor(extent, device=self.device) / 2
        self._seed = seed
        self.boxes: dict[str, tuple[slice, ...]] = {"all": tuple(slice(0, n) for n in self.shape)}
        self.tile = tuple(
            next_fast_len(round(mm / s), real=True) for mm, s in zip(TILE_MM, self.spacing)
        )

    def generator(self, number: int) -> torch.Generator:
        """The random numbers of one field: no field depends on how many others there are."""
        state = np.random.SeedSequence([self._seed, number]).generate_state(1)[0]
        return torch.Generator(self.device).manual_seed(int(state))

    def tiled(self, tile: torch.Tensor, name: str) -> torch.Tensor:
        """A periodic field in one of `boxes`; where the box begins does not change the field."""
        for axis, part in enumerate(self.boxes[name]):
            stop = min(part.stop, self.shape[axis])
            index = torch.arange(part.start, stop, device=self.device) % tile.shape[axis]
            tile = tile.index_select(axis, index)
        return tile

    def band(self, number: int, sigmas_mm: tuple[float, float], name: str) -> torch.Tensor:
        """`band_noise` in one of `boxes`."""
        found = band_noise(self.tile, self.spacing, sigmas_mm, self.generator(number))
        return self.tiled(found, name)

    def full(self, warped: torch.Tensor) -> torch.Tensor:
        """Positions on the lattice as positions on the canvas."""
        offset = (warped - self.lattice).movedim(-1, 0)
        return positions(self.shape, self.spacing, self.device) + resized(
            offset, self.shape
        ).movedim(0, -1)

    def box(self, near: torch.Tensor) -> tuple[slice, slice, slice]:
        """The part of the canvas around a mask on the lattice."""
        found = []
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            along = torch.nonzero(near.any(others[1]).any(others[0])).flatten()
            low, high = int(along[0]) - 1, int(along[-1]) + 2
            factor = self.lattice_spacing[axis] / self.spacing[axis]
            found.append(slice(max(int(low * factor), 0), int(np.ceil(high * factor)) + 1))
        return tuple(found)


def _draw_scan(rng: np.random.Generator) -> _Scan:
    enhanced = rng.uniform(0.7, 1.45)
    fat, soft, lung, bone = rng.normal((0, 0, 0, 1), (8, 5, 30, 0.12))
    before = np.array([-1000, -850, -400, -110, -60, 0, 50, 120, 200, 300, 1500], np.float32)
    shift = [0, lung, lung / 2, fat, fat, soft, soft]
    high = 50 + soft + (before[7:9] - 50) * enhanced
    knots = np.array([*(before[:7] + shift), *high, high[-1] + 100 * bone, 1500 * bone])
    oral = rng.random() < 0.4
    grain_mm = float(rng.uniform(0.3, 0.8))  # coarser noise, as of a smooth kernel, is weaker
    return _Scan(
        liver_hu=float(np.clip(rng.normal(104, 15), 65, 145)),
        spleen_hu=float(np.clip(rng.normal(124, 15), 85, 165)),
        vessel_hu=float(rng.uniform(12, 60)),
        lesion_hu=float(rng.choice([-1, 1], p=[0.8, 0.2]) * rng.uniform(8, 35)),
        oral_hu=float(rng.uniform(100, 400)) if oral else 0.0,
        noise=float(np.exp(rng.normal(0, 0.15))),
        added_noise=float(rng.uniform(0, 14)) * min(0.45 / grain_mm, 1.0),
        mottle=float(rng.uniform(0, 1.5)),
        noise_mm=grain_mm,
        blur_mm=(float(rng.uniform(0, 1.8)), *[float(rng.uniform(0, 0.7))] * 2),
        knots=np.stack([before, knots]),
        table=float(rng.uniform(2, 12)) if rng.random() < 0.7 else -1.0,
        radius=float(rng.uniform(0.46, 0.6)) if rng.random() < 0.3 else 1.0,
    )


# ------------------------------------------------------------------------------- the warp


def _posed(canvas: _Canvas, rng: np.random.Generator) -> torch.Tensor:
    """Where each point of the lattice comes from: pose, scale, bend, elastic deformation."""
    a, b, c = np.radians(rng.normal(0, 2.0, 3))
    turn = np.array([[1, -a, b], [a, 1, -c], [-b, c, 1]])
    scale = 1 / np.clip(rng.normal(1, 0.04, 3), 0.92, 1.06)
    bend = rng.normal(0, 5.0, 3)  # mm at 150 mm from the middle
    matrix = torch.as_tensor(turn * scale, dtype=torch.float32, device=canvas.device)
    centred = canvas.lattice - canvas.middle
    moved = centred @ matrix.T
    moved[..., 1] += float(bend[0]) * (centred[..., 0] / 150) ** 2
    moved[..., 2] += float(bend[1]) * (centred[..., 0] / 150) ** 2
    moved[..., 0] += float(bend[2]) * (centred[..., 2] / 150) ** 2
    elastic = coarse_noise(
        canvas.lattice_shape, canvas.lattice_spacing, 40.0, canvas.generator(0), 3
    )
    size = torch.tensor([2.5, 3.0, 3.0], device=canvas.device)
    found = moved + canvas.middle + elastic.movedim(0, -1) * size
    # Stretched along the body where it would begin or end outside of the scan.
    length = 2 * float(canvas.middle[0])
    low = min(float(found[0, ..., 0].median()), 0.0)
    high = max(float(found[-1, ..., 0].median()), length)
    found[..., 0] = (found[..., 0] - low) * (length / (high - low))
    return found


def _back(canvas: _Canvas, body: Body, posed: torch.Tensor) -> float:
    """The row, in mm, of the patient's back."""
    patient = sample(body.depth[None], posed, body.spacing)[0] > 0.5
    rows = torch.nonzero(patient.any(2).any(0)).flatten()
    return float(rows[-1]) * canvas.lattice_spacing[1]


def _inflated(
    at: torch.Tensor,
    body: Body,
    distance: torch.Tensor,
    side: int,
    centre: np.ndarray,
    scale: float,
    reach_mm: float,
    free: torch.Tensor,
) -> torch.Tensor:
    """Positions before an organ is scaled about `centre`; its neighbours give way.

    distance: of the organ; side: 1 for its part on the left of the fissure, -1 on the right, 0 for
    all of it; free: how far each position is free to move, 0..1.
    """
    if abs(scale - 1) < 1e-4:
        return at
    middle = torch.as_tensor(centre, dtype=torch.float32, device=at.device)
    before = middle + (at - middle) / scale
    outside = sample(distance[None], before, body.spacing)[0]
    if side:
        outside = torch.maximum(outside, side * (body.fissure - before[..., 2]))
    weight = (1 - step(scale * outside, 1.0, reach_mm)) * free
    return at + (before - at) * weight[..., None]


def _with_signs(canvas: _Canvas, body: Body, posed: torch.Tensor, signs: Signs) -> torch.Tensor:
    """The lattice's positions with the spleen's volume and the lobes' ratio solved for."""
    centres = _centres(body)
    (free,) = sample(body.free[None], posed, body.spacing)
    on_left = free * step(posed[..., 2] - body.spine, 0, 35)  # the spleen stays left of the spine

    def moved(spleen: float, lobes: float) -> torch.Tensor:
        found = _inflated(posed, body, body.spleen, 0, centres["spleen"], spleen, 45.0, on_left)
        left, right = np.exp(0.8 * lobes / 3), np.exp(-0.2 * lobes / 3)
        found = _inflated(found, body, body.liver, 1, centres["left"], float(left), 35.0, free)
        return _inflated(found, body, body.liver, -1, centres["right"], float(right), 35.0, free)

    spleen, lobes, bias = 1.0, 0.0, (1.0, 1.0)
    for steps in (3, 2):
        for _ in range(steps):
            volume, ratio = _measured(canvas, body, moved(spleen, lobes), 1)
            growth = np.clip(signs.spleen_ml / (bias[0] * volume), 0.3, 3.0) ** (1 / 2.7)
            spleen = float(np.clip(spleen * growth, 0.45, 2.4))
            change = np.log(signs.lsvr / (bias[1] * ratio))
            lobes = float(np.clip(lobes + change, -1.5, 2.0))
        if steps == 3:
            # The lattice is too coarse for exact volumes; its error hardly changes with the size.
            coarse, fine = (
                _measured(canvas, body, moved(spleen, lobes), times) for times in (1, LATTICE)
            )
            bias = (fine[0] / coarse[0], fine[1] / coarse[1])
    return moved(spleen, lobes)


def _measured(canvas: _Canvas, body: Body, warped: torch.Tensor, times: int) -> tuple[float, float]:
    """Spleen in mL and ratio of the lobes, on the lattice or on one that is finer by `times`."""
    shape = [times * (n - 1) + 1 for n in canvas.lattice_shape]
    if times > 1:
        warped = resized(warped.movedim(-1, 0), shape).movedim(0, -1)
    step_mm = np.array(canvas.lattice_spacing) / times
    maps = torch.stack([body.liver, body.spleen])
    inside = (0.5 - sample(maps, warped, body.spacing) / float(step_mm.mean())).clamp(0, 1)
    left = inside[0] * (warped[..., 2] > body.fissure)
    spleen, liver, on_left = torch.stack([inside[1].sum(), inside[0].sum(), left.sum()]).tolist()
    volume = max(spleen * float(step_mm.prod()) / 1000, 1.0)
    return volume, max(on_left / max(liver - on_left, 1.0), 0.01)


def _centres(body: Body) -> dict[str, np.ndarray]:
    """The points that stay in place while an organ grows: at ribs and diaphragm, at the fissure."""
    liver, spleen = body.liver_points, body.spleen_points
    lateral = spleen[:, 2] + 0.6 * spleen[:, 1]
    outer = spleen[lateral >= np.quantile(lateral, 0.97)].mean(axis=0)
    outer[0] = np.quantile(spleen[:, 0], 0.65)
    at_fissure = liver[np.abs(liver[:, 2] - body.fissure) < 5].mean(axis=0)
    right = liver[liver[:, 2] <= np.quantile(liver[:, 2], 0.03)].mean(axis=0)
    right[0] = np.quantile(liver[:, 0], 0.7)
    return {"spleen": outer, "left": at_fissure, "right": right}


def _move_surface(
    canvas: _Canvas, body: Body, where: torch.Tensor, warped: torch.Tensor, signs: Signs
) -> None:
    """Smooth the liver's surface and make it nodular; changes `where`, the canvas's positions.

    Nodules bulge between narrow grooves, as |g| of a random field g does between its zeros.
    """
    organs = sample(torch.stack([body.liver, body.spleen]), warped, body.spacing)
    canvas.boxes["liver"] = box = canvas.box(organs[0] < REACH_MM)
    canvas.boxes["organs"] = canvas.box(organs.amin(0) < 4)
    part = where[box]
    maps = torch.cat([torch.stack([body.healing, body.liver]), body.normal])
    healing, distance, *normal = sample(maps, part, body.spacing)
    bumps = _cells(canvas.band(1, BUMPS_MM, "liver"))
    mean = 0.1 * np.sqrt(max(signs.nodularity**2 - SMOOTH_SURFACE**2, 0.01))
    near = torch.exp(-2 * (distance / REACH_MM) ** 2)
    shift = healing - float(SURFACE_GAIN * mean) * bumps * near
    where[box] = part + shift[..., None] * torch.stack(normal, dim=-1)


def _cells(field: torch.Tensor) -> torch.Tensor:
    """Round cells between narrow grooves, mean 0 and SD 1, from a Gaussian field of SD 1."""
    return (field.abs() - 0.798) / 0.603


# ------------------------------------------------------------------------------- anatomy


def _trees(body: Body, rng: np.random.Generator) -> torch.Tensor:
    """Portal and hepatic veins of the liver."""
    inside = body.liver_points
    found = [
        vessels.tree(inside, root, radius, leaves, rng)
        for root, radius, leaves in ((_hilum(body), 5.0, 130), (_cava(body), 5.5, 110))
    ]
    points, radii = (np.concatenate(part) for part in zip(*found))
    return vessels.splat(points, radii, body.hu.shape, body.spacing, body.hu.device)


def _hilum(body: Body) -> np.ndarray:
    middle = body.liver_points.mean(axis=0) + np.array([-12.0, 12.0, 22.0])
    distance = np.linalg.norm(body.liver_points - middle, axis=1)
    return body.liver_points[np.argmin(distance)].astype(float)


def _cava(body: Body) -> np.ndarray:
    z, y, x = body.liver_points.T
    return body.liver_points[np.argmax(0.6 * z + 0.8 * y + 0.5 * x)].astype(float)


def _tubes(
    body: Body, signs: Signs, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The portal vein's trunk, and the veins of portal hypertension."""
    hilum = _hilum(body)
    bends = rng.normal(0, 4, (2, 3))
    trunk = [hilum + (4, -4, -25) + bends[0], hilum, hilum + (-18, 8, 28) + bends[1]]
    found = [vessels.tube(trunk, signs.portal_mm)]
    ways = rng.normal(0, 1, (8, 10, 3))  # always drawn, so that later numbers stay the same
    if signs.vein_mm:
        liver = body.liver_points
        start = liver[np.abs(liver[:, 2] - body.fissure) < 5]
        front = start[start[:, 1] <= np.quantile(start[:, 1], 0.1)].mean(axis=0)
        line = [front + np.array(way) for way in UMBILICAL_MM]
        found.append(vessels.tube(line, signs.vein_mm))
    spleen = body.spleen_points
    medial = spleen[spleen[:, 2] <= np.quantile(spleen[:, 2], 0.1)]
    for way in ways[: signs.varices]:
        line = [medial.mean(axis=0) + way[0] * (14, 10, 8) + (0, -8, -6)]
        for turn in way[1:]:
            line.append(line[-1] + 7 * turn + (1.0, -2.0, -3.0))
        found.append(vessels.tube(line, 2.0 + 0.25 * abs(float(way[0, 0]) * 4)))
    return found


def _spots(body: Body, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lesions of the liver, and bowel that holds oral contrast; centres and radii."""
    lesions = int(rng.choice([0, 0, 0, 1, 2, 4]))
    centres = [body.liver_points[rng.choice(len(body.liver_points), 4)][:lesions]]
    radii = [rng.uniform(3, 16, 4)[:lesions]]
    bowel = body.bowel_points
    if len(bowel):
        centres.append(bowel[rng.choice(len(bowel), 3)])
        radii.append(rng.uniform(10, 26, 3))
    return np.concatenate(centres), np.concatenate(radii)


# ------------------------------------------------------------------------------- HU


def _surroundings(canvas: _Canvas, scan: _Scan, maps: _Maps) -> torch.Tensor:
    """HU outside the organs: other enhancement, fat and lungs, oral contrast, painted veins."""
    hu, apart = maps.hu, torch.minimum(maps.liver, maps.spleen)
    table = np.interp(np.arange(-1000, 1501, 0.5), *scan.knots).astype(np.float32)
    index = ((hu.clamp(-1000, 1500) + 1000) * 2).round().long()
    outer = torch.as_tensor(table, device=hu.device)[index]
    tissue = step(hu, -60, 0) * (1 - step(hu, 180, 260))
    outer = outer + 4 * tissue * _trend(canvas, 2, 60.0)
    if scan.oral_hu:
        share = vessels.occupancy(maps.spots, 3.0) * step(apart, 2, 6) * step(hu, -60, -10)
        outer = outer + share * (scan.oral_hu - outer)
    soft = step(hu, -160, -90) * (1 - step(hu, 180, 260))
    share = vessels.occupancy(maps.veins) * step(apart, -1, 1) * soft
    return outer + share * (scan.liver_hu + scan.vessel_hu - outer)


def _fluid(hu: torch.Tensor, maps: _Maps, body: Body, signs: Signs) -> torch.Tensor:
    """Ascites: fluid in the place of fat around liver and spleen, not in the abdominal wall."""
    if not signs.ascites_mm:
        return hu
    apart = torch.minimum(maps.liver, maps.spleen)
    near = 1 - step(apart, signs.ascites_mm, signs.ascites_mm + 3)
    cavity = step(maps.depth, body.wall_mm, body.wall_mm + 4)
    fat = step(maps.hu, -180, -130) * (1 - step(maps.hu, -20, 10))
    return hu + near * cavity * fat * (FLUID_HU - hu)


def _organs(
    canvas: _Canvas,
    body: Body,
    scan: _Scan,
    noise_sd: float,
    signs: Signs,
    maps: _Maps,
    outer: torch.Tensor,
) -> torch.Tensor:
    """Liver and spleen with the scan's enhancement and new parenchyma, in what surrounds them."""
    liver_share, spleen_share = (torch.sigmoid(-d / EDGE_MM) for d in (maps.liver, maps.spleen))
    found = outer * (1 - liver_share - spleen_share).clamp_min(0)
    found = found + liver_share * (maps.hu + scan.liver_hu - body.medians[0])
    found = found + spleen_share * (maps.hu + scan.spleen_hu - body.medians[1])
    box = canvas.boxes["organs"]
    noise = noise_like(body.noise, body.spacing, canvas.tile, canvas.spacing, canvas.generator(3))
    noise = noise_sd * canvas.tiled(noise, "organs")
    noise = noise + 2.0 * _trend(canvas, 4, 50.0)[box]
    for distance, hu in ((maps.liver, scan.liver_hu), (maps.spleen, scan.spleen_hu)):
        core = step(-distance[box], 0.5, 3.0)
        found[box] += core * (hu + noise - found[box])
    box = canvas.boxes["liver"]
    core = step(-maps.liver[box], 0.5, 3.0)
    texture = signs.texture_hu * canvas.band(5, TEXTURE_MM, "liver")
    texture = texture + scan.mottle * canvas.band(8, MOTTLE_MM, "liver")
    nodules = NODULES * max(0.0, signs.texture_hu - NODULES_FROM_HU)
    if nodules:
        texture = texture + nodules * _cells(canvas.band(6, NODULES_MM, "liver"))
    painted = texture + vessels.occupancy(maps.veins[box]) * scan.vessel_hu
    lesion = vessels.occupancy(maps.spots[box], 2.5)
    painted = painted * (1 - 0.7 * lesion) + lesion * scan.lesion_hu
    found[box] += core * painted
    return found


def _trend(canvas: _Canvas, number: int, knots_mm: float) -> torch.Tensor:
    """A smooth field of SD 1."""
    lattice = coarse_noise(
        canvas.lattice_shape, canvas.lattice_spacing, knots_mm, canvas.generator(number), 1
    )
    return resized(lattice, canvas.shape)[0]


def _scanned(canvas: _Canvas, scan: _Scan, hu: torch.Tensor, back: float) -> torch.Tensor:
    """Table, reconstruction (slice thickness, kernel, noise) and field of view."""
    air = hu < -940
    if scan.table >= 0:
        y, x = (
            torch.arange(n, device=hu.device) * s
            for n, s in zip(canvas.shape[1:], canvas.spacing[1:])
        )
        curve = back + scan.table - 0.0006 * (x - x.mean()) ** 2
        shell = 1 - step((y[:, None] - curve).abs(), 1.0, 2.5)
        hu = hu + air * shell * (-600.0 - hu)
    hu = smooth(hu, scan.blur_mm, canvas.spacing)
    hu = hu + scan.added_noise * canvas.band(7, (scan.noise_mm, 4.0), "all")
    if scan.radius < 1:
        y, x = (
            (torch.arange(n, device=hu.device) - (n - 1) / 2) * s
            for n, s in zip(canvas.shape[1:], canvas.spacing[1:])
        )
        limit = scan.radius * canvas.shape[2] * canvas.spacing[2]
        hu = torch.where(y[:, None] ** 2 + x**2 > limit**2, AIR_HU, hu)
    return hu.clamp_min(AIR_HU)


def _output(
    canvas: _Canvas, body: Body, hu: torch.Tensor, maps: _Maps, left: torch.Tensor, signs: Signs
) -> Case:
    """The case at the output's spacing, and what its masks measure on the canvas."""
    voxel_ml = float(np.prod(canvas.spacing)) / 1000
    inside = maps.liver < 0
    volumes = torch.stack([(maps.spleen < 0).sum(), inside.sum(), (inside & left).sum()]).tolist()
    truth = {key: float(value) for key, value in signs._asdict().items()}
    truth |= {
        "measured_spleen_ml": volumes[0] * voxel_ml,
        "measured_liver_ml": volumes[1] * voxel_ml,
        "measured_lsvr": volumes[2] / max(volumes[1] - volumes[2], 1),
    }
    stack = torch.stack([hu, maps.liver, maps.spleen])
    if canvas.output != canvas.spacing:
        size = [(n - 1) * s for n, s in zip(canvas.shape, canvas.spacing)]
        shape = [int(n / s) + 1 for n, s in zip(size, canvas.output)]
        stack = sample(stack, positions(shape, canvas.output, hu.device), canvas.spacing)
    hu, liver, spleen = stack
    return Case(hu, liver < 0, (spleen < 0) & (liver >= 0), canvas.output, truth)
