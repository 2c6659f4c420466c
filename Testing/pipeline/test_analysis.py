"""Regions of the location map against hand-computed bodies, and the patterns."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import cKDTree

from LiverFibrosisStagingLib import analysis
from LiverFibrosisStagingLib.analysis import (
    Thresholds,
    _beside_surface,
    _distances,
    deeper_than,
    measure,
    outside_share,
    pattern,
    surface_to_core,
    thresholds,
)
from LiverFibrosisStagingLib.imaging.grid import WorkingGrid
from LiverFibrosisStagingLib.location_map import LocationMap

# Column, row, slice in mm: isotropic, the shipped model's, thick slices, and the axes swapped.
SPACINGS = [(1.5, 1.5, 1.5), (2, 2, 4), (1, 1, 5), (0.9, 0.9, 8), (4, 2, 1.5)]
WEIGHTS = {"liver_surface": 3.0, "liver_core": 1.5, "spleen": 2.0, "rest": 0.5}


def ball_in_a_box(spacing, surface_mm=10.0, liver_mm=50.0, spleen_mm=25.0):
    """A box with two balls, and a map with one weight in each region; true volumes in mL."""
    rng = np.random.default_rng(0)
    half = np.array([110.0, 60.0, 60.0])
    size = [int(2 * (h + 6) / s) for h, s in zip(half, spacing)]
    # The centre lies anywhere between the voxels.
    x, y, z = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2 + rng.uniform(-0.5, 0.5)) * s for n, s in zip(size, spacing)),
        indexing="ij",
    )
    from_liver = np.sqrt((x + 50) ** 2 + y**2 + z**2)
    masks = {
        "body": (abs(x) < half[0]) & (abs(y) < half[1]) & (abs(z) < half[2]),
        "liver": from_liver < liver_mm,
        "spleen": (x - 60) ** 2 + y**2 + z**2 < spleen_mm**2,
    }
    weight = np.where(masks["body"], WEIGHTS["rest"], 0)
    weight[masks["spleen"]] = WEIGHTS["spleen"]
    weight[masks["liver"]] = WEIGHTS["liver_surface"]
    weight[from_liver < liver_mm - surface_mm] = WEIGHTS["liver_core"]

    def image(array, dtype=np.uint8):
        made = sitk.GetImageFromArray(array.T.astype(dtype))
        made.SetSpacing(spacing)
        return made

    def ball(radius):
        return 4 / 3 * np.pi * radius**3 / 1000

    volumes = {
        "liver": ball(liver_mm),
        "liver_core": ball(liver_mm - surface_mm),
        "liver_surface": ball(liver_mm) - ball(liver_mm - surface_mm),
        "spleen": ball(spleen_mm),
        "rest": masks["body"].sum() * np.prod(spacing) / 1000 - ball(liver_mm) - ball(spleen_mm),
    }
    grid = WorkingGrid(
        volume=image(weight, np.float32),
        body=image(masks["body"]),
        liver=image(masks["liver"]),
        spleen=image(masks["spleen"]),
        starts=(0,),
        warnings=(),
    )
    return LocationMap(image(weight, np.float32), 1.0), grid, volumes


# A surface thinner than the slices cannot be measured that well.
@pytest.mark.parametrize(
    "spacing, surface_mm",
    [(spacing, mm) for spacing in SPACINGS for mm in (5.0, 10.0, 12.0) if mm >= max(spacing)],
)
def test_regions_of_a_ball_in_a_box(spacing, surface_mm):
    location, grid, volumes = ball_in_a_box(spacing, surface_mm)
    found = measure(location, grid, surface_mm)
    total = sum(WEIGHTS[region] * volumes[region] for region in WEIGHTS)
    assert set(found) == set(volumes)
    for region, values in found.items():
        assert values["volume_ml"] == pytest.approx(volumes[region], rel=0.02), region
        if region in WEIGHTS:
            share = WEIGHTS[region] * volumes[region] / total
            assert values["mean"] == pytest.approx(WEIGHTS[region], rel=0.02), region
            assert values["share"] == pytest.approx(share, rel=0.02), region
    assert surface_to_core(found) == pytest.approx(2.0, rel=0.02)
    shares = {region: values["share"] for region, values in found.items()}
    assert shares["liver"] + shares["spleen"] + shares["rest"] == pytest.approx(1, abs=1e-6)
    assert shares["liver_surface"] + shares["liver_core"] == pytest.approx(shares["liver"])


def test_mean_is_the_share_of_the_weight_over_that_of_the_volume():
    location, grid, _ = ball_in_a_box((2, 2, 4))
    inside = sitk.GetArrayViewFromImage(grid.body) > 0
    relative = location.relative / float(
        sitk.GetArrayViewFromImage(location.relative)[inside].mean()
    )
    found = measure(LocationMap(relative, 1.0), grid)
    body = sum(found[region]["volume_ml"] for region in ("liver", "spleen", "rest"))
    for values in found.values():
        focus = values["share"] / (values["volume_ml"] / body)
        assert values["mean"] == pytest.approx(focus, rel=1e-5)


@pytest.mark.parametrize("spacing", [(2, 2, 4), (4, 2, 1.5)])
def test_weight_far_from_the_liver_and_outside_the_spleen(spacing):
    location, grid, _ = ball_in_a_box(spacing)
    weight = sitk.GetArrayViewFromImage(location.relative).astype(float)
    liver, spleen = (sitk.GetArrayViewFromImage(mask) > 0 for mask in (grid.liver, grid.spleen))
    far = distance_transform_edt(~liver, sampling=spacing[::-1]) > 10
    share = weight[far & ~spleen].sum() / weight.sum()
    assert 0.1 < share < 0.9 and outside_share(location, grid) == pytest.approx(share, rel=1e-6)
    with_spleen = weight[far].sum() / weight.sum()
    found = outside_share(location, replace(grid, spleen=None))
    assert found == pytest.approx(with_spleen, rel=1e-6) and found > share
    assert outside_share(LocationMap(location.relative * 0, 0.0), grid) is None


@pytest.mark.parametrize("spacing", SPACINGS)
def test_boundary_of_a_block_lies_between_the_voxels(spacing):
    size = [round(90 / s) for s in spacing]
    block = sitk.Image([n + 6 for n in size], sitk.sitkUInt8)
    block.SetSpacing(spacing)
    block[3:-3, 3:-3, 3:-3] = 1
    for depth_mm in (4.9, 9.7):
        # A voxel's centre lies half a voxel from the boundary, two and a half, ...
        deep = [2 * np.sum((np.arange(n) + 0.5) * s > depth_mm) - n for n, s in zip(size, spacing)]
        assert deeper_than(block, depth_mm).sum() == pytest.approx(np.prod(deep), rel=0.002)


def test_the_edge_of_the_grid_is_a_surface():
    """The working grid ends with the liver."""
    whole = sitk.Image(40, 40, 40, sitk.sitkUInt8)
    whole.SetSpacing((2, 2, 2))
    assert deeper_than(whole + 1, 10.0).sum() == 30**3
    assert not deeper_than(whole, 10.0).any()


@pytest.mark.parametrize("step, most", [((4, 2, 2), 9.0), ((1.5, 4, 2), 1e6), ((5, 0.9, 1.1), 20)])
def test_distances_to_the_other_side(step, most):
    rng = np.random.default_rng(5)
    inside = gaussian_filter(rng.normal(size=(15, 50, 40)), 3) > 0.02  # rows without a change too
    both = [distance_transform_edt(kind, sampling=step) for kind in (inside, ~inside)]
    expected = np.subtract(*(each.clip(max=most) for each in both))
    np.testing.assert_allclose(_distances(inside, np.array(step), most), expected, rtol=1e-6)


@pytest.mark.parametrize("step, reach_mm", [((4, 2, 2), 6.0), ((1.5, 4, 2), 5.3), ((5, 1, 1), 3)])
def test_voxels_beside_a_surface_are_those_with_a_near_point_of_it(step, reach_mm):
    rng = np.random.default_rng(3)
    depth = gaussian_filter(rng.normal(size=(15, 20, 25)), 3) + 0.03  # cut off by the array's edges
    points = []
    for axis in range(3):
        for index in np.ndindex(*(n - (a == axis) for a, n in enumerate(depth.shape))):
            other = np.add(index, np.eye(3, dtype=int)[axis])
            here, there = depth[index], depth[tuple(other)]
            if (here > 0) != (there > 0):
                points.append((index + (other - index) * here / (here - there)) * step)
    centres = np.argwhere(np.ones(depth.shape)) * step
    expected = (cKDTree(points).query(centres)[0] <= reach_mm).reshape(depth.shape)
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(_beside_surface(depth, np.array(step), reach_mm), expected)


def test_nothing_is_deeper_than_a_surface_thicker_than_the_liver():
    block = sitk.Image(30, 30, 30, sitk.sitkUInt8)
    assert not deeper_than(block + 1, 1e6).any()


def test_another_explanation_uses_the_same_regions(monkeypatch):
    location, grid, _ = ball_in_a_box((4, 4, 4))
    first = measure(location, grid)
    monkeypatch.setattr(analysis, "deeper_than", None)
    half = measure(LocationMap(location.relative * 0.5, 1.0), grid)
    assert half["liver_core"]["mean"] == pytest.approx(first["liver_core"]["mean"] / 2)
    with pytest.raises(TypeError):
        measure(location, grid, 5.0)  # of another thickness
    with pytest.raises(TypeError):
        measure(location, replace(grid))  # of another case


def test_a_thin_liver_has_no_core():
    location, grid, _ = ball_in_a_box((2, 2, 4), liver_mm=8.0)
    found = measure(location, grid)
    assert found["liver_core"] == {"mean": 0.0, "share": 0.0, "volume_ml": 0.0}
    assert surface_to_core(found) is None
    assert pattern(found, Thresholds()).name == "mixed"


def measured(**means):
    return {r: {"mean": mean, "share": 0.2, "volume_ml": 100.0} for r, mean in means.items()}


def named(surface, core, spleen, rest, limits=None):
    found = measured(liver_surface=surface, liver_core=core, spleen=spleen, rest=rest)
    return pattern(found, limits or Thresholds()).name


def test_patterns_follow_the_written_rule():
    assert named(2.0, 1.0, 0.5, 0.8) == "surface"
    assert named(1.0, 2.0, 1.5, 0.8) == "core and spleen"
    assert named(2.0, 1.5, 1.5, 0.8) == "mixed", "both patterns"
    assert named(1.0, 2.0, 0.5, 0.8) == "mixed", "the core without the spleen"
    assert named(1.1, 0.5, 2.5, 0.8) == "mixed", "more at the surface, but less than the spleen"
    assert named(0.5, 0.4, 0.5, 1.2) == "elsewhere", "more at the surface, but less than the rest"
    assert named(1.0, 1.0, 1.0, 1.0) == "elsewhere"
    assert named(0.0, 0.0, 0.0, 0.0) == ""
    without = measured(liver_surface=1.0, liver_core=2.0, rest=0.8)
    assert pattern(without, Thresholds()).name == "mixed", "unknown without a spleen"
    assert "over the rest of the body: not measurable" in pattern(without, Thresholds()).sentence


def test_patterns_keep_to_the_models_thresholds():
    limits = Thresholds(surface_to_core=1.8, organs_over_rest=1.5)
    assert named(1.7, 1.0, 0.5, 0.8, limits) == "mixed"
    assert named(1.9, 1.0, 0.5, 0.8, limits) == "surface"
    assert named(1.0, 2.0, 1.1, 0.8, limits) == "mixed"
    assert named(1.0, 2.0, 1.3, 0.8, limits) == "core and spleen"


def reference(f0, f4, cases=30):
    def stage(medians):
        return {r: [m / 2, m, 2 * m] for r, m in medians.items()} | {"cases": cases}

    return {"percentiles": [2.5, 50, 97.5], "stages": {"F0": stage(f0), "F4": stage(f4)}}


F0 = {"liver_surface": 2.0, "liver_core": 0.5, "spleen": 0.6, "rest": 0.8}  # 4 and 0.625
F4 = {"liver_surface": 1.0, "liver_core": 1.0, "spleen": 3.2, "rest": 0.25}  # 1 and 4


def test_thresholds_lie_between_f0_and_f4():
    found = thresholds(reference(F0, F4))
    assert found.surface_to_core == pytest.approx(2.0)
    assert found.organs_over_rest == pytest.approx(np.sqrt(0.625 * 4))


def test_thresholds_are_one_at_least_and_without_a_reference():
    flat = {"liver_surface": 0.3, "liver_core": 1.0, "spleen": 0.1, "rest": 1.0}
    assert thresholds(reference(flat, flat)) == Thresholds(1.0, 1.0)
    assert thresholds(reference(F4, F0)) == Thresholds(1.0, 1.0), "not the paper's patterns"
    assert thresholds(reference(F0, F4, cases=19)) == thresholds({}) == Thresholds(1.0, 1.0)
    bare = {region: F0[region] for region in ("liver_surface", "liver_core", "rest")}
    assert thresholds(reference(bare, bare)).organs_over_rest == 1.0
