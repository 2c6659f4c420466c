"""Signs measured on bodies whose volumes and HU are known."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial import cKDTree

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.body import Body
from LiverFibrosisStagingLib.imaging.masks import eroded
from LiverFibrosisStagingLib.signs.measure import (
    EROSION_MM,
    UNITS,
    _median,
    measure_signs,
)

PORTAL = "portal-venous"
# Centre and half axes in mm, in patient axes.
LIVER = ((-45.0, 0.0, 10.0), (70.0, 60.0, 55.0))
SPLEEN = ((75.0, 30.0, 5.0), (30.0, 40.0, 45.0))
HALF = np.array([125.0, 85.0, 75.0])  # of the scanned box


def turned(degrees):
    """A rotation about an oblique axis, as a direction."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


DIRECTIONS = {
    "axial": np.eye(3),
    "flipped": np.diag([-1.0, -1.0, 1.0]),
    "foot first": np.diag([1.0, 1.0, -1.0]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": turned(25),
}


def grid(spacing, direction):
    """An image of zeros over the scanned box, whatever its axes."""
    half = np.abs(direction.T) @ HALF
    size = np.ceil(2 * half / spacing).astype(int)
    image = sitk.Image([int(n) for n in size], sitk.sitkInt16)
    image.SetSpacing([float(step) for step in spacing])
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin((-direction @ (np.array(spacing) * (size - 1) / 2)).tolist())
    return image


def ellipsoid(image, centre, axes):
    """A mask of the voxels whose centre lies inside."""
    indices = np.stack(np.meshgrid(*map(np.arange, image.GetSize()), indexing="ij"), axis=-1)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    points = (indices * image.GetSpacing()) @ direction.T + image.GetOrigin()
    inside = (((points - centre) / axes) ** 2).sum(axis=-1) <= 1
    mask = sitk.GetImageFromArray(inside.transpose().astype(np.uint8))
    mask.CopyInformation(image)
    return mask


def true_ml(body):
    return 4 / 3 * np.pi * np.prod(body[1]) / 1000


def image_of(array, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    return image


def block(shape=(32, 32, 32), lowest=6, length=20):
    """A cube inside a volume, uint8."""
    array = np.zeros(shape, np.uint8)
    array[(slice(lowest, lowest + length),) * 3] = 1
    return array


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.6, 1.6, 5.0), (1.4, 2.2, 3.0)])
def test_volumes_within_two_percent_of_the_truth(spacing, direction):
    ct = grid(spacing, DIRECTIONS[direction])
    signs = measure_signs(ct, ellipsoid(ct, *LIVER), ellipsoid(ct, *SPLEEN), "")
    assert signs["liver_volume_ml"].value == pytest.approx(true_ml(LIVER), rel=0.02)
    assert signs["spleen_volume_ml"].value == pytest.approx(true_ml(SPLEEN), rel=0.02)
    ratio = true_ml(SPLEEN) / true_ml(LIVER)
    assert signs["spleen_liver_ratio"].value == pytest.approx(ratio, rel=0.02)
    keys = ("liver_volume_ml", "spleen_volume_ml", "spleen_liver_ratio")
    assert all(signs[key].reason == "" for key in keys)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.5, 4.0), (0.9, 3.0, 2.0)])
def test_depth_is_the_distance_to_the_nearest_voxel_outside(spacing):
    rng = np.random.default_rng(5)
    smooth = sitk.SmoothingRecursiveGaussian(image_of(rng.normal(size=(20, 24, 28))), 3.0)
    inside = sitk.GetArrayFromImage(smooth) > 0
    steps = np.array(spacing)[::-1]
    outside = cKDTree(np.argwhere(~inside) * steps)
    depth, _ = outside.query(np.argwhere(inside) * steps)
    expected = np.zeros_like(inside)
    expected[tuple(np.argwhere(inside).T)] = depth > EROSION_MM
    assert expected.any() and (expected != inside).any()
    found = eroded(inside, EROSION_MM, steps)
    assert (found == expected).all()


@pytest.mark.parametrize("values", [[7], [-30000, 30000], [5, 5, 9, 9], [-1, 0, 4], [3, 8, -2, 8]])
def test_the_median_of_int16_is_that_of_other_types(values):
    assert _median(np.array(values, np.int16)) == _median(np.array(values, np.float32))


def test_hu_are_exactly_those_of_the_eroded_organs():
    rng = np.random.default_rng(3)
    liver, spleen = np.zeros((2, 40, 60, 60), np.uint8)
    liver[5:30, 8:40, 6:28] = 1
    spleen[8:36, 20:52, 32:56] = 255
    hu = rng.integers(-900, 900, liver.shape).astype(np.int16)
    # The surface of 5 mm, voxel centre to voxel centre, is left out: 5 voxels of 1 mm.
    core = {"liver": hu[10:25, 13:35, 11:23], "spleen": hu[13:31, 25:47, 37:51]}
    signs = measure_signs(image_of(hu), image_of(liver), image_of(spleen), PORTAL)
    for organ, values in core.items():
        assert signs[f"{organ}_mean_hu"].value == pytest.approx(values.mean(), abs=1e-9)
        assert signs[f"{organ}_sd_hu"].value == pytest.approx(values.std(), abs=1e-9)
    assert signs["liver_minus_spleen_hu"].value == pytest.approx(
        core["liver"].mean() - core["spleen"].mean(), abs=1e-9
    )


def test_what_surrounds_an_organ_does_not_change_its_hu():
    mask = block()
    for around in (-1000, 1000):
        hu = np.where(mask > 0, 105, around).astype(np.int16)
        signs = measure_signs(image_of(hu), image_of(mask), None, "")
        assert (signs["liver_mean_hu"].value, signs["liver_sd_hu"].value) == (105, 0)


def test_keys_and_units():
    signs = measure_signs(image_of(block()), image_of(block()), None, "")
    assert [found.key for found in signs.measurements] == list(UNITS)
    assert signs["spleen_volume_ml"].unit == "mL" and signs["spleen_liver_ratio"].unit == ""


@pytest.mark.parametrize("spleen", [None, image_of(np.zeros((32, 32, 32), np.uint8))])
def test_an_absent_organ_has_no_values_but_a_reason(spleen):
    ct = image_of(np.full((32, 32, 32), 100, np.int16))
    signs = measure_signs(ct, image_of(block()), spleen, PORTAL, body=Body(170, 70))
    assert signs["liver_volume_ml"].value == pytest.approx(8.0)
    for key in UNITS:
        if "spleen" in key:
            assert signs[key].value is None and signs[key].at_least is None
            assert signs[key].reason == "There is no mask of the spleen."
    no_liver = measure_signs(ct, None, None, PORTAL)
    for key in ("liver_mean_hu", "nodularity_mm10"):
        assert no_liver[key].reason == "There is no mask of the liver."


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", ["first", "last"])
def test_the_volume_of_an_organ_at_the_edge_of_the_scan_is_a_lower_bound(axis, end):
    spleen = np.roll(block(), -6 if end == "first" else 6, axis)
    ct = image_of(np.full(spleen.shape, 100, np.int16))
    signs = measure_signs(ct, image_of(block()), image_of(spleen), PORTAL)
    found = signs["spleen_volume_ml"]
    assert found.value is None and found.at_least == pytest.approx(8.0)
    assert "reaches the edge of the scan" in found.reason and "at least 8 mL" in found.reason
    assert signs["spleen_liver_ratio"].value is None
    assert signs["spleen_liver_ratio"].reason == found.reason
    assert signs["liver_volume_ml"].value is not None
    assert signs["spleen_mean_hu"].value == 100  # its inside is still measured


def test_a_mask_that_fills_the_image_has_no_surface():
    full = image_of(np.ones((20, 20, 20), np.uint8))
    signs = measure_signs(image_of(np.full((20, 20, 20), 90, np.int16)), full, None, "")
    assert signs["liver_volume_ml"].at_least == pytest.approx(8)
    assert signs["liver_mean_hu"].value == 90


@pytest.mark.parametrize(
    ("length", "spacing", "measured"),
    [
        (19, (1.0, 1.0, 1.0), False),  # 9 x 9 x 9 voxels deeper than 5 mm, 0.7 mL
        (20, (1.0, 1.0, 1.0), True),  # 10 x 10 x 10
        (8, (6.0, 6.0, 6.0), True),  # all voxels: none is closer than 6 mm to one outside
        (4, (6.0, 6.0, 6.0), False),  # 14 mL, but 64 voxels only
    ],
)
def test_an_organ_that_is_too_small_after_erosion_has_no_hu(length, spacing, measured):
    mask = block((36, 36, 36), 6, length)
    hu = np.full(mask.shape, 100, np.int16)
    ct = image_of(hu, spacing)
    signs = measure_signs(ct, image_of(mask, spacing), None, "")
    assert signs["liver_volume_ml"].value == pytest.approx(length**3 * np.prod(spacing) / 1000)
    if measured:
        assert signs["liver_mean_hu"].value == 100
    else:
        assert signs["liver_mean_hu"].value is None and signs["liver_sd_hu"].value is None
        assert "deeper than 5 mm; at least 1 mL and 100 voxels" in signs["liver_mean_hu"].reason


def test_a_mask_on_another_grid_is_refused():
    ct = image_of(np.zeros((32, 32, 32), np.int16))
    with pytest.raises(StagingError, match="spleen mask is on another grid"):
        measure_signs(ct, image_of(block()), image_of(block(), (1.0, 1.0, 2.0)), "")


def test_volumes_per_body_surface():
    ct = image_of(np.full((32, 32, 32), 100, np.int16))
    cut_off = image_of(np.roll(block(), -6, 0))
    signs = measure_signs(ct, image_of(block()), cut_off, PORTAL, body=Body(180, 80))
    assert signs["liver_ml_per_m2"].value == pytest.approx(8 / 2)  # sqrt(180 x 80 / 3600) = 2
    spleen = signs["spleen_ml_per_m2"]
    assert spleen.value is None and spleen.at_least == pytest.approx(4)
    assert spleen.reason == signs["spleen_volume_ml"].reason
    without = measure_signs(ct, image_of(block()), None, PORTAL)["liver_ml_per_m2"]
    assert (without.value, without.reason) == (None, "Height and weight are needed.")


def test_means_are_compared_as_they_are_written():
    assert staged(89.7, 120).sentence.startswith("Liver 90 HU: not below 90 HU")
    assert staged(89.4, 120).sentence.startswith("Liver 89 HU: below 90 HU")
    assert staged(105, 89.7).assessed


def staged(liver_hu, spleen_hu, phase=PORTAL, spleen=True):
    """A liver and a spleen of constant HU."""
    hu = np.full((30, 30, 64), -100, np.float32)
    masks = np.zeros((2, *hu.shape), np.uint8)
    masks[0, 2:28, 2:28, 2:28] = masks[1, 2:28, 2:28, 34:60] = 1
    hu[masks[0] > 0], hu[masks[1] > 0] = liver_hu, spleen_hu
    liver, given = image_of(masks[0]), image_of(masks[1]) if spleen else None
    return measure_signs(image_of(hu), liver, given, phase).steatosis


@pytest.mark.parametrize(
    ("liver_hu", "threshold", "words"),
    [
        (105, None, "Liver 105 HU: not below 90 HU, the threshold for at least moderate steatosis"),
        (90, None, "not below 90 HU"),
        (89, 90, "below 90 HU, as in at least moderate steatosis (sensitivity 95 %, specificity"),
        (80, 90, "specificity 75 %"),
        (79, 80, "below 80 HU, as in at least moderate steatosis (sensitivity 86 %, specificity"),
        (40, 80, "specificity 90 %"),
    ],
)
def test_steatosis_in_the_portal_venous_phase(liver_hu, threshold, words):
    hint = staged(liver_hu, 120)
    assert hint.assessed and words in hint.sentence and "ARRS 2024" in hint.sentence
    assert (hint.cutoff.value if hint.cutoff else None) == threshold


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phase": ""}, "the phase is not known"),
        ({"phase": "arterial"}, "this is the arterial phase"),
        ({"phase": "unenhanced"}, "this is the unenhanced phase"),
        ({"spleen": False}, "There is no mask of the spleen"),
        ({"spleen_hu": 50}, "contrast is missing or weak, since the spleen has 50 HU"),
        ({"spleen_hu": 89}, "contrast is missing or weak"),
    ],
)
def test_steatosis_is_not_assessed_without_evidence_of_the_phase(options, words):
    hint = staged(**{"liver_hu": 55, "spleen_hu": 120} | options)
    assert not hint.assessed and hint.cutoff is None
    assert hint.sentence.startswith("Steatosis not assessed: ") and words in hint.sentence


def test_the_phantom_that_ships(sample):
    ct = sitk.ReadImage(sample["ct"])
    liver, spleen = (sitk.ReadImage(sample[organ]) for organ in ("liver", "spleen"))
    signs = measure_signs(ct, liver, spleen, PORTAL)
    hu = sitk.GetArrayFromImage(ct)
    for organ, mask in (("liver", liver), ("spleen", spleen)):
        inside = sitk.GetArrayFromImage(mask) > 0
        assert signs[f"{organ}_mean_hu"].value == pytest.approx(hu[inside].mean(), abs=5)
