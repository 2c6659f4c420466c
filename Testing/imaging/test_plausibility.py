"""A heart is neither spleen nor liver: positions relative to spine and lungs."""

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import read_ct, read_mask
from LiverFibrosisStagingLib.imaging.components import components, filled
from LiverFibrosisStagingLib.imaging.grid import resample_ct
from LiverFibrosisStagingLib.imaging.plausibility import _in_sections, landmarks, without_heart
from LiverFibrosisStagingLib.imaging.refinement import refine_em_mrf
from LiverFibrosisStagingLib.imaging.segmentation import (
    network_grid,
    segment_checked,
    shipped_network,
)

SIZE = (56, 72, 96)  # voxels of 4 mm; the lungs' bases are at slice 34
MIDDLE = 48


def ellipsoid(centre, radii):
    parts = ((a - c) / r for a, c, r in zip(np.ogrid[tuple(map(slice, SIZE))], centre, radii))
    return np.broadcast_to(sum(part**2 for part in parts) < 1, SIZE)


BODY = ellipsoid((28, 36, MIDDLE), (1000, 30, 42))
DOME = ellipsoid((30, 32, 28), (20, 22, 14))
LEFT_LOBE = ellipsoid((26, 20, 52), (7, 9, 18))
LIVER = DOME | LEFT_LOBE
SPLEEN = ellipsoid((30, 44, 78), (11, 10, 6))
HEART = ellipsoid((44, 24, 58), (11, 13, 12))
VENTRICLE = ellipsoid((44, 26, 63), (8, 8, 6))
ABOVE = np.arange(SIZE[0])[:, None, None] >= 34
CHEST = ellipsoid((28, 36, MIDDLE), (1000, 26, 37)) & ABOVE
SPINE = ellipsoid((28, 54, MIDDLE), (1000, 7, 6))
LUNGS = CHEST & ~(HEART | LIVER | SPLEEN | SPINE)


def scan(spleen=SPLEEN, parts=(LUNGS, SPINE)):
    """HU of the phantom on the network's grid."""
    hu = np.full(SIZE, -1000.0, np.float32)
    for where, value in (
        (BODY, 40),
        (parts[0], -850),
        (HEART, 130),
        (VENTRICLE, 160),
        (LIVER, 105),
        (spleen, 125),
        (parts[1], 350),
    ):
        hu[where] = value
    hu += np.random.default_rng(0).normal(0, 8, SIZE).astype(np.float32)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 4.0))
    return image


def found(liver, spleen, unsure=None):
    """Probabilities of the network: 0.9 in both masks, 0.3 of a spleen in a third."""
    probabilities = np.zeros((3, *SIZE), np.float32)
    probabilities[1][liver], probabilities[2][spleen] = 0.9, 0.9
    if unsure is not None:
        probabilities[2][unsure] = 0.3
    probabilities[0] = 1 - probabilities[1:].sum(axis=0)
    return probabilities


def cut(probabilities, image):
    return without_heart(probabilities, landmarks(probabilities, image))


def organs(probabilities):
    return probabilities[1] > 0.5, probabilities[2] > 0.5


def test_the_larger_of_heart_and_spleen_is_not_the_spleen():
    kept = cut(found(LIVER, SPLEEN | HEART), scan())
    assert np.array_equal(organs(kept)[1], SPLEEN)
    np.testing.assert_allclose(kept.sum(axis=0), 1, atol=1e-6)


def test_a_spleen_that_the_network_found_less_likely_than_a_ventricle():
    kept = cut(found(LIVER, VENTRICLE, unsure=SPLEEN), scan())
    inside = organs(kept)[1]
    assert not (inside & ~SPLEEN).any() and inside.sum() > 0.9 * SPLEEN.sum()


@pytest.mark.parametrize("heart", [HEART, VENTRICLE], ids=["heart", "ventricle"])
def test_a_heart_alone_is_no_spleen(heart):
    kept = cut(found(LIVER, heart), scan())
    assert not organs(kept)[1].any() and np.array_equal(organs(kept)[0], LIVER)


def test_a_chamber_above_the_dome_is_no_spleen():
    """A scan far into the chest: beside the spine, as an enlarged left atrium."""
    atrium = ellipsoid((50, 46, 60), (5, 6, 6))
    low = LIVER & (np.arange(SIZE[0]) < 44)[:, None, None]
    assert not organs(cut(found(low, atrium), scan()))[1].any()


def test_the_underside_of_the_heart_is_cut_from_the_liver():
    leak = HEART & (np.arange(SIZE[0]) < 44)[:, None, None]
    kept = organs(cut(found(LIVER | leak, SPLEEN), scan()))[0]
    assert (kept & leak & ~LIVER).sum() < 0.4 * (leak & ~LIVER).sum()
    assert (LIVER & ~kept).sum() < 0.01 * LIVER.sum()


def test_no_spleen_is_reported_for_a_heart():
    """Through `segment_checked`, with a network that takes the heart for the spleen."""

    class Network:
        card, sha256 = shipped_network().card, "0" * 64

        def run(self, volume, cancel=None):
            # Everything that has a heart's HU.
            hu = self.card.window_hu[0] + volume * np.subtract(*self.card.window_hu[::-1])
            made = np.zeros((3, *volume.shape), np.float32)
            made[1], made[2] = abs(hu - 105) < 10, abs(hu - 145) < 30
            made[2] *= 1 - made[1]
            made[0] = 1 - made[1:].sum(axis=0)
            return made

    ct = sitk.Cast(scan(spleen=np.zeros(SIZE, bool)), sitk.sitkInt16)
    result = segment_checked(ct, "the phantom", Network())
    assert result.volumes_ml["spleen"] == 0 and result.spleen is None
    assert result.volumes_ml["liver"] > 1000
    assert "No spleen was found; it is not measured." in result.warnings


LARGE = ellipsoid((18, 34, 70), (18, 20, 17)) & BODY & ~LIVER  # 1.3 L, reaches the midline in front
HIGH_LOBE = LIVER | ellipsoid((34, 26, 66), (5, 14, 14)) & BODY  # touches the spleen


@pytest.mark.parametrize(
    ("liver", "spleen"),
    [
        pytest.param(LIVER, SPLEEN, id="usual"),
        pytest.param(LIVER, LARGE, id="very large spleen"),
        pytest.param(HIGH_LOBE & ~SPLEEN, SPLEEN, id="left lobe at the spleen"),
        pytest.param(DOME, SPLEEN, id="no left lobe"),
        pytest.param(LIVER, np.zeros(SIZE, bool), id="no spleen"),
        pytest.param(np.zeros(SIZE, bool), np.zeros(SIZE, bool), id="nothing"),
    ],
)
def test_organs_are_not_changed(liver, spleen):
    given = found(liver, spleen)
    assert np.array_equal(cut(given, scan(spleen)), given)


def part_of(probabilities, image, *axes):
    """A smaller scan."""
    first, last = ([a.indices(n)[e] for a, n in zip(axes, SIZE)] for e in (0, 1))
    region = [b - a for a, b in zip(first, last)]
    return probabilities[(slice(None), *axes)], sitk.RegionOfInterest(
        image, region[::-1], first[::-1]
    )


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param((slice(10, 28), slice(72), slice(96)), id="slab without lungs"),
        pytest.param((slice(26, 48), slice(72), slice(96)), id="from the middle of the heart"),
        pytest.param((slice(56), slice(8, 64), slice(12, 86)), id="small field of view"),
    ],
)
def test_organs_in_smaller_scans_are_not_changed(axes):
    given, image = part_of(found(LIVER, SPLEEN), scan(), *axes)
    assert np.array_equal(cut(given, image), given)


def test_a_heart_in_a_scan_from_the_middle_of_the_heart():
    given, image = part_of(found(LIVER, VENTRICLE), scan(), slice(26, 46), slice(72), slice(96))
    assert not organs(cut(given, image))[1].any()


def test_nothing_is_changed_without_a_spine():
    given = found(LIVER, HEART)
    image = scan(parts=(LUNGS, np.zeros(SIZE, bool)))
    assert np.array_equal(cut(given, image), given)


def test_each_section_is_treated_on_its_own():
    body = np.random.default_rng(0).random((6, 30, 40)) < 0.6
    sections = [sitk.GetImageFromArray(section.astype(np.uint8)) for section in body]
    expected = np.stack([sitk.GetArrayFromImage(sitk.BinaryFillhole(each)) for each in sections])
    assert np.array_equal(_in_sections(filled, body), expected) and expected.sum() > body.sum()
    parts = _in_sections(lambda each: components(each)[0], body)
    alone = [sitk.GetArrayFromImage(sitk.ConnectedComponent(each)).max() for each in sections]
    assert [len(np.unique(part)) - 1 for part in parts] == alone


def on_network_grid(folder):
    """A real CT on the network's grid, and shares of liver and spleen."""
    card = shipped_network().card
    grid = network_grid(read_ct(folder / "ct.nii.gz"), card.spacing_mm, card.multiple_of)
    labels = read_mask(folder / "seg_semiauto_liver1_spleen2.nii.gz")
    return grid, [resample_ct(sitk.Cast(labels == n, sitk.sitkFloat32), grid, 0.0) for n in (1, 2)]


@pytest.fixture(scope="module")
def patient(shared_data):
    return on_network_grid(shared_data / "hcc007_cirrA_bl_pv")


def test_organs_of_a_real_patient_are_not_changed(patient):
    grid, (liver, spleen) = patient
    given = np.stack([1 - liver - spleen, liver, spleen])
    assert np.array_equal(cut(given, grid), given)


def test_a_real_ventricle_is_not_the_spleen(patient):
    """Only the uppermost 4 cm of the liver and the heart are in the scan."""
    grid, (liver, spleen) = patient
    first = np.flatnonzero((liver > 0.5).any(axis=(1, 2)))[-1] - 10
    hu = sitk.GetArrayFromImage(grid)
    hu[:first], spleen = -1024, np.where(np.arange(len(hu))[:, None, None] < first, 0, spleen)
    image = sitk.GetImageFromArray(hu)
    image.CopyInformation(grid)
    network = shipped_network()
    volume = sitk.IntensityWindowing(image, *network.card.window_hu, 0.0, 1.0)
    given = network.run(sitk.GetArrayViewFromImage(volume))
    clamped = sitk.Clamp(image, lowerBound=-150, upperBound=250)
    before = organs(refine_em_mrf(given, clamped))[1]
    after = organs(cut(refine_em_mrf(cut(given, image), clamped), image))[1]
    assert (before & (spleen < 0.1)).sum() > 1000 > 100 > (after & (spleen < 0.1)).sum()
    assert (after & (spleen > 0.5)).sum() > 0.8 * (spleen > 0.5).sum()
