"""The order and orientation of the voxels do not affect the result."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import read_ct, read_mask, stage
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.checks import check_copies
from LiverFibrosisStagingLib.imaging.grid import patch_starts, slices_in, working_grid
from LiverFibrosisStagingLib.resources import default_model_path

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), np.ndindex(2, 2, 2)))
AXES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1))
DEGREES = (8, 10, 12, -10, 15)
MODELS = sorted(default_model_path().parent.glob("LFS*.onnx"))


def reoriented(image, orientation):
    """The same voxels at the same places, stored in another order."""
    permutation, flips = orientation
    image = sitk.PermuteAxes(image, list(permutation))
    forward = [slice(None, None, -1 if flip else 1) for flip in flips]
    turned = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image)[tuple(forward[::-1])])
    signs = [-1.0 if flip else 1.0 for flip in flips]
    first = [n - 1 if flip else 0 for flip, n in zip(flips, image.GetSize())]
    turned.SetSpacing(image.GetSpacing())
    turned.SetDirection((np.array(image.GetDirection()).reshape(3, 3) * signs).ravel().tolist())
    turned.SetOrigin(image.TransformIndexToPhysicalPoint(first))
    return turned


def rotated(image, axis, degrees, fill):
    """The same patient, resampled onto a grid whose axes are oblique."""
    centre = image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()])
    turn = sitk.VersorTransform([float(a) for a in axis], np.radians(degrees), centre)
    matrix = np.array(turn.GetMatrix()).reshape(3, 3)
    # Enough slices and columns that the turned grid still holds the whole patient.
    size = [int(n * 1.3) for n in image.GetSize()]
    direction = matrix @ np.array(image.GetDirection()).reshape(3, 3)
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing(image.GetSpacing())
    grid.SetDirection(direction.ravel().tolist())
    offset = direction @ ((np.array(size) - 1) / 2 * np.array(image.GetSpacing()))
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    grid.SetOrigin((np.array(middle) - offset).tolist())
    method = sitk.sitkNearestNeighbor if fill == 0 else sitk.sitkLinear
    return sitk.Resample(image, grid, sitk.Transform(), method, fill)


def centre_of_mass(image):
    """Physical centre of the location map's weight, LPS mm."""
    values = sitk.GetArrayViewFromImage(image).astype(np.float64)
    total = values.sum()
    index = [
        float(
            (
                values.sum(axis=tuple(a for a in range(3) if a != 2 - axis))
                * np.arange(values.shape[2 - axis])
            ).sum()
            / total
        )
        for axis in range(3)
    ]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index))


@pytest.fixture(scope="module")
def model(single):
    return single


@pytest.fixture(scope="module")
def case(sample):
    # Half as fine: 48 orientations in a minute.
    def coarse(image):
        return sitk.BinShrink(image, [2, 2, 1])

    return (
        coarse(read_ct(sample["ct"])),
        coarse(read_mask(sample["liver"])),
        coarse(read_mask(sample["spleen"])),
    )


@pytest.fixture(scope="module")
def fine(sample, model):
    """At full resolution, since rotating a coarse CT would smooth its texture."""
    images = read_ct(sample["ct"]), read_mask(sample["liver"]), read_mask(sample["spleen"])
    return images, stage(*images, model=model, explain="F4")


@pytest.fixture(scope="module")
def expected(case, model):
    return stage(*case, model=model, explain="F4")


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: f"{o[0]}{o[1]}")
def test_every_orientation_gives_the_same(orientation, case, model, expected):
    turned = [reoriented(image, orientation) for image in case]
    result = stage(*turned, model=model, explain="F4")
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-3)
    assert result.location_map.GetSize() == turned[0].GetSize()
    # Every voxel, not only the centre of mass: brought back, the map is the same.
    back = sitk.DICOMOrient(result.location_map, "LPS")
    reference = sitk.DICOMOrient(expected.location_map, "LPS")
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(reference), atol=1e-3
    )
    for region, values in expected.measurements.items():
        assert result.measurements[region]["mean"] == pytest.approx(values["mean"], abs=1e-3)


@pytest.mark.parametrize(("axis", "degrees"), list(zip(AXES, DEGREES)))
def test_oblique_grids_give_nearly_the_same(axis, degrees, fine, model):
    images, expected = fine
    turned = [rotated(image, axis, degrees, fill) for image, fill in zip(images, (-1000, 0, 0))]
    result = stage(*turned, model=model, explain="F4")
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=0.05)
    apart = np.abs(centre_of_mass(result.location_map) - centre_of_mass(expected.location_map))
    assert (apart <= np.array(model.card.spacing_mm[::-1])).all(), apart


def test_patches_cover_all_slices_with_the_stated_overlap():
    for length in range(20, 140):
        starts = patch_starts(length, 32, 0.5)
        covered = {k for start in starts for k in range(start, start + 32)}
        assert covered >= set(range(length))
        assert length <= 32 or starts[-1] + 32 == length
        assert all(b - a <= 16 for a, b in itertools.pairwise(starts))


def slab(images, height_mm):
    """The middle of the liver."""
    levels = np.flatnonzero(sitk.GetArrayViewFromImage(images[1]).any(axis=(1, 2)))
    half = round(height_mm / images[0].GetSpacing()[2] / 2)
    return [image[:, :, int(levels.mean()) - half : int(levels.mean()) + half] for image in images]


def test_short_scan_is_padded_with_a_warning(case, single_path):
    ct, liver, _ = slab(case, 90)
    result = stage(ct, liver, model=single_path)
    assert any("repeated" in warning for warning in result.warnings)
    assert result.location_map.GetSize() == ct.GetSize()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_slab_of_the_liver_is_refused_for_every_model(path, case):
    with pytest.raises(StagingError, match="mm are needed"):
        stage(*slab(case, 54), model=path)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_real_slab_is_refused_for_every_model(path, shared_data):
    real = shared_data / "ts_example_ct_dicom_slab_pv"
    masks = sitk.ReadImage(real / "totalseg_117labels.nii.gz")
    with pytest.raises(StagingError, match=r"(40|36) mm .* at least (64|75) mm are needed"):
        stage(real / "dicom", masks == 5, masks == 1, path)


def test_a_scan_with_more_copies_than_slices_is_refused(case):
    ct = slab(case, 54)[0]
    count = slices_in(ct, 4.0)
    check_copies(ct, "a.nii", 2 * count, 4.0)
    words = rf"^a\.nii: the scan spans {4 * count} mm .* at least {4 * count + 4} mm are needed"
    with pytest.raises(StagingError, match=words):
        check_copies(ct, "a.nii", 2 * count + 2, 4.0)


def test_body_and_patch_hold_the_patient(case, model):
    card = model.card
    grid = working_grid(
        *case, spacing=card.spacing_mm, patch_size=card.patch_size, window=card.window_hu
    )
    liver = sitk.GetArrayFromImage(grid.liver) > 0
    assert liver.any(axis=(1, 2)).any()
    assert (sitk.GetArrayFromImage(grid.body)[liver] == 1).mean() > 0.99
    volume = sitk.GetArrayFromImage(grid.volume)
    assert volume.min() == 0 and volume.max() == 1
    before = (sitk.GetArrayViewFromImage(case[1]) > 0).sum() * np.prod(case[1].GetSpacing())
    assert liver.sum() * np.prod(card.spacing_mm) == pytest.approx(before, rel=0.02)
