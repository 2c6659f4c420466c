"""Phantoms: reproducible, with plausible HU and anatomy, and with the effects of the stage."""

import csv
import itertools
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("scipy")
pytest.importorskip("tqdm")
from conftest import ROOT

from cases import phantom

COMMAND = [sys.executable, ROOT / "Training" / "phantom.py"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "LiverFibrosisStaging")}
SAMPLE = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData"
COARSE = {"spacing": (4.0, 3.0, 3.0), "size": (57, 108, 132)}


def arrays(case):
    return [sitk.GetArrayFromImage(image) for image in case]


def roughness(mask: sitk.Image) -> float:
    """Volume in mL that smoothing the surface adds or removes."""
    smooth = sitk.DiscreteGaussian(sitk.Cast(mask, sitk.sitkFloat32), 16.0) > 0.5
    return float(sitk.GetArrayFromImage(smooth != mask).sum()) * 0.036


def test_the_same_seed_gives_the_same_voxels():
    first, again, other = (phantom.phantom(2, seed, **COARSE) for seed in (5, 5, 6))
    for one, two, three in zip(arrays(first), arrays(again), arrays(other)):
        assert np.array_equal(one, two)
        assert not np.array_equal(one, three)


def test_geometry_and_pixel_types():
    case = phantom.phantom(1, 3, **COARSE)
    assert case.ct.GetPixelID() == sitk.sitkInt16
    for image in case:
        assert image.GetSize() == COARSE["size"][::-1]
        assert image.GetSpacing() == COARSE["spacing"][::-1]
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert case.liver.GetPixelID() == case.spleen.GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize("seed", range(4))
def test_organs_have_plausible_position_size_and_hu(seed):
    case = phantom.phantom(seed % 5, seed, **COARSE)
    ct, liver, spleen = arrays(case)
    liver, spleen = liver > 0, spleen > 0
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(case.liver)
    liver_x, liver_y, _ = shape.GetCentroid(1)
    shape.Execute(case.spleen)
    spleen_x, spleen_y, _ = shape.GetCentroid(1)
    assert liver_x < -20  # LPS: the patient's right
    assert spleen_x > 40
    assert spleen_y > liver_y  # the spleen lies behind
    assert not (liver & spleen).any()
    assert not liver[[0, -1]].any()  # the scan covers the liver
    assert 900 < liver.sum() * 0.036 < 2600  # mL
    assert 80 < ct[liver].mean() < 135
    assert 95 < ct[spleen].mean() < 160
    assert ct[liver].mean() < ct[spleen].mean() + 25
    assert ct[0, 0, 0] == ct.min() == -1000
    lung = np.mean((ct[-1] > -900) & (ct[-1] < -700))
    assert lung > 0.1
    assert ct.max() < 700


def test_surface_texture_and_spleen_depend_on_the_stage():
    signs = {"roughness": [], "texture": [], "spleen": []}
    for stage in (0, 4):
        cases = [phantom.phantom(stage, seed, **COARSE) for seed in range(5)]
        signs["roughness"].append(np.mean([roughness(case.liver) for case in cases]))
        inner = [
            sitk.GetArrayFromImage(sitk.BinaryErode(case.liver, (3, 3, 3))) > 0 for case in cases
        ]
        signs["texture"].append(
            np.mean(
                [
                    np.percentile(np.abs(values - np.median(values)), 50)
                    for values in (sitk.GetArrayFromImage(c.ct)[m] for c, m in zip(cases, inner))
                ]
            )
        )
        signs["spleen"].append(np.mean([arrays(case)[2].sum() for case in cases]))
    for name, (low, high) in signs.items():
        assert high > 1.3 * low, name


def test_an_effect_that_is_switched_off_does_not_depend_on_the_stage():
    f0, surface, spleen = (
        phantom.signs(stage, np.random.default_rng(1), effects)
        for stage, effects in ((0, phantom.EFFECTS), (4, ["surface"]), (4, ["spleen"]))
    )
    assert surface.surface_mm > f0.surface_mm
    assert (surface.texture_hu, surface.spleen_ml) == (f0.texture_hu, f0.spleen_ml)
    assert spleen.spleen_ml > f0.spleen_ml
    assert (spleen.surface_mm, spleen.texture_hu) == (f0.surface_mm, f0.texture_hu)


def test_neighbouring_stages_overlap():
    drawn = [
        [phantom.signs(stage, np.random.default_rng([stage, i])).texture_hu for i in range(200)]
        for stage in range(5)
    ]
    means = np.mean(drawn, axis=1)
    assert (np.diff(means) > 0).all()
    for lower, higher in itertools.pairwise(drawn):
        assert np.percentile(lower, 90) > np.percentile(higher, 10)


@pytest.mark.parametrize("arguments", [(5, 0, ()), (2, 0, ("colour",))])
def test_an_unknown_stage_or_effect_is_refused(arguments):
    stage, seed, effects = arguments
    with pytest.raises(ValueError, match="needed"):
        phantom.phantom(stage, seed, effects=effects)


def test_the_command_writes_a_cohort(tmp_path):
    command = [*COMMAND, "-n", "5", "--seed", "9", "-o", tmp_path]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    with (tmp_path / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # One patient with F0 and one with F4 have two scans.
    assert Counter(row["stage"] for row in rows) == {"F0": 2, "F1": 1, "F2": 1, "F3": 1, "F4": 2}
    assert len({row["patient"] for row in rows}) == 5
    for row in rows:
        sizes = {
            sitk.ReadImage(tmp_path / row[kind]).GetSize() for kind in ("ct", "liver", "spleen")
        }
        assert len(sizes) == 1


def test_the_command_reproduces_the_shipped_sample(tmp_path):
    command = [*COMMAND, "--sample", tmp_path]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in SAMPLE.iterdir())
    for name in written:
        ours, shipped = (sitk.ReadImage(folder / name) for folder in (tmp_path, SAMPLE))
        assert ours.GetOrigin() == shipped.GetOrigin()
        difference = sitk.GetArrayFromImage(ours).astype(int) - sitk.GetArrayFromImage(shipped)
        # Other versions of numpy and scipy may round some voxels differently.
        assert np.mean(difference != 0) < 1e-3
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 4e6
