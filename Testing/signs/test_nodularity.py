"""Nodularity of surfaces whose undulation is known."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter1d
from scipy.stats import spearmanr

from LiverFibrosisStagingLib.report.content import sign_text
from LiverFibrosisStagingLib.scene.sign_rows import sign_rows
from LiverFibrosisStagingLib.signs import nodularity as module
from LiverFibrosisStagingLib.signs.measure import measure_signs
from LiverFibrosisStagingLib.signs.nodularity import edge_pieces, nodularity

LIVER_HU, FAT_HU, AIR_HU, WALL_HU = 105.0, -100.0, -900.0, 60.0
AXES = np.array([58.0, 54.0, 60.0])  # half axes of the liver, mm
HALF = np.array([72.0, 70.0, 30.0])  # of the scanned box
WAVES = (((0.9, 0.1, 0.42), 0.3), ((0.2, 0.9, 0.38), 1.7), ((0.6, -0.6, 0.53), 4.0))
AMPLITUDES = (0.0, 0.2, 0.5, 0.9, 1.5)


def turned(axis, degrees):
    axis = np.array(axis, float) / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def depth(points, amplitude, wavelength):
    """Roughly the distance to the surface, negative inside, of points [..., 3] in LPS."""
    radius = np.linalg.norm(points / AXES, axis=-1)
    slope = np.linalg.norm(points / AXES**2, axis=-1)
    smooth = np.where(radius > 0.3, (radius - 1) * radius / np.maximum(slope, 1e-9), -30)
    # Waves in three directions, so that every slice and every side has some.
    waves = sum(
        np.sin(2 * np.pi * (points @ direction) / wavelength + phase)
        for direction, phase in (
            ((0.9, 0.1, 0.42), 0.3),
            ((0.2, 0.9, 0.38), 1.7),
            ((0.6, -0.6, 0.53), 4.0),
        )
    )
    return smooth + amplitude * waves * np.sqrt(2 / 3)


def phantom(
    amplitude,
    spacing=(0.8, 0.8, 2.5),
    direction=None,
    wavelength=14.0,
    outside=FAT_HU,
    fat_mm=99.0,
    liver_hu=LIVER_HU,
    noise=10.0,
):
    """CT and mask of a liver in fat, with partial volume in plane and between slices.

    amplitude: standard deviation of the surface, mm.
    """
    direction = np.eye(3) if direction is None else direction
    spacing = np.array(spacing)
    size = np.ceil(2 * np.abs(direction.T) @ HALF / spacing).astype(int)
    origin = -direction @ (spacing * (size - 1) / 2)
    thick = int(np.argmax(spacing))
    parts = max(round(spacing.max() / 1.2), 1)
    share = np.zeros(size[::-1])
    hu = np.zeros(size[::-1])
    for part in range(parts):
        place = [np.arange(n, dtype=float) for n in size]
        place[thick] += (part + 0.5) / parts - 0.5
        grid = np.stack(np.meshgrid(*place, indexing="ij"), axis=-1).transpose(2, 1, 0, 3)
        distance = depth((grid * spacing) @ direction.T + origin, amplitude, wavelength)
        inside = np.clip(0.5 - distance / spacing.min(), 0, 1)
        beyond = np.clip(0.5 - (distance - fat_mm) / spacing.min(), 0, 1)
        share += inside / parts
        around = beyond * outside + (1 - beyond) * WALL_HU
        hu += (inside * liver_hu + (1 - inside) * around) / parts
    hu += np.random.default_rng(4).normal(0, noise * np.sqrt(1.6 / np.prod(spacing)), hu.shape)
    ct = sitk.GetImageFromArray(np.round(hu).astype(np.int16))
    mask = sitk.GetImageFromArray((share > 0.5).astype(np.uint8))
    for image in (ct, mask):
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(origin.tolist())
        image.SetDirection(direction.ravel().tolist())
    return ct, mask


@pytest.mark.parametrize("slice_mm", [1.5, 5.0])
def test_it_rises_with_the_amplitude_of_the_surface(slice_mm):
    found = [nodularity(*phantom(a, (0.8, 0.8, slice_mm)), LIVER_HU) for a in AMPLITUDES]
    values = [each.mm10 for each in found]
    assert spearmanr(AMPLITUDES, values)[0] == pytest.approx(1)
    # The mean of a normal distribution's absolute value is 0.8 SD; waves of 14 mm lose some.
    for amplitude, value in list(zip(AMPLITUDES, values))[1:]:
        assert 0.5 < (value - values[0]) / (8 * amplitude) < 1.0
    assert values[0] < 0.6  # noise and voxels


@pytest.fixture(scope="module")
def axial():
    return nodularity(*phantom(0.5), LIVER_HU)


@pytest.mark.parametrize(
    ("direction", "spacing"),
    [
        (np.diag([-1.0, -1.0, 1.0]), (0.8, 0.8, 2.5)),  # RAS
        (np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]), (0.8, 2.5, 0.8)),  # PIR
        (turned((0, 0, 1), 37), (0.8, 0.8, 2.5)),
        (turned((1, 2, 3), 15), (0.8, 0.8, 2.5)),
        (np.eye(3), (0.6, 0.6, 2.5)),
        (np.eye(3), (1.0, 1.0, 2.5)),
    ],
    ids=["RAS", "PIR", "turned in plane", "oblique", "0.6 mm", "1.0 mm"],
)
def test_orientation_and_pixel_size_do_not_matter(axial, direction, spacing):
    found = nodularity(*phantom(0.5, spacing, direction), LIVER_HU)
    assert found.mm10 == pytest.approx(axial.mm10, rel=0.1)


def test_waves_of_the_shape_do_not_count(axial):
    assert nodularity(*phantom(0.5, wavelength=90.0), LIVER_HU).mm10 < 0.4 * axial.mm10


def test_the_mask_only_says_where_to_look(axial):
    ct, mask = phantom(0.5)
    rough = sitk.GetArrayFromImage(mask)
    for kept in (
        sitk.BinaryDilate(mask, [2, 2, 0]),
        sitk.BinaryErode(mask, [3, 3, 0]),
        sitk.GetImageFromArray(np.kron(rough[:, ::4, ::4], np.ones((1, 4, 4), np.uint8))),
    ):
        kept = sitk.Cast(kept, sitk.sitkUInt8)[: ct.GetWidth(), : ct.GetHeight()]
        kept.CopyInformation(ct)
        assert nodularity(ct, kept, LIVER_HU).mm10 == pytest.approx(axial.mm10, rel=0.1)


def test_the_edge_is_where_the_liver_ends():
    ct, mask = phantom(0.0, noise=0.0)
    pieces = edge_pieces(ct, mask, LIVER_HU)
    for piece in pieces:
        assert np.abs(depth(piece.points, 0.0, 1.0)).max() < 0.15
        assert (piece.points[:, 1] < 0).all()  # the anterior side
        assert len(piece.points) >= module.PIECE_MM
    assert len({piece.slice_number for piece in pieces}) > 15


@pytest.mark.parametrize(
    "options",
    [{"outside": AIR_HU}, {"outside": 20.0}, {"fat_mm": 0.5}, {"outside": 105.0}],
    ids=["lung", "ascites", "abdominal wall", "no contrast"],
)
def test_an_edge_that_does_not_border_on_fat_is_not_used(options):
    found = nodularity(*phantom(0.5, **options), LIVER_HU)
    assert found.mm10 is None and found.edge_mm < module.MIN_EDGE_MM
    assert "border on fat with enough contrast" in found.reason


def test_thin_fat_is_enough(axial):
    found = nodularity(*phantom(0.5, fat_mm=4.0), LIVER_HU)
    assert found.mm10 == pytest.approx(axial.mm10, rel=0.15)


def test_voxels_that_are_too_large_and_a_dark_liver_are_not_measurable():
    small = sitk.Image(8, 8, 8, sitk.sitkInt16)
    for spacing, words in (
        ((0.8, 0.8, 6.0), "slices of 6 mm; at most 1.5 and 5 mm"),
        ((2.0, 2.0, 3.0), "2 mm in plane"),
    ):
        small.SetSpacing(spacing)
        found = nodularity(small, small, LIVER_HU)
        assert found.mm10 is None and words in found.reason
    small.SetSpacing((0.8, 0.8, 2.5))
    assert "The liver has -20 HU; at least 0 HU" in nodularity(small, small, -20.0).reason


def test_the_measured_signs_have_the_value_and_its_quality(axial):
    signs = measure_signs(*phantom(0.5), None, "")
    assert signs["nodularity_mm10"].value == pytest.approx(axial.mm10, rel=0.02)
    assert signs["nodularity_edge_mm"].value == pytest.approx(axial.edge_mm, rel=0.02)
    basis = f", on {axial.edge_mm:.0f} mm of the liver's edge"
    text = f"{axial.mm10:.2f} tenths of a mm{basis}"
    assert sign_text(signs["nodularity_mm10"]) == text
    (row,) = (row for row in sign_rows(signs) if "nodularity" in row["name"])
    assert row["value"] == text
    assert axial.slices >= module.MIN_SLICES and axial.reason == ""


def test_real_cts(shared_data):
    """A patient with cirrhosis has more than one without."""
    from LiverFibrosisStagingLib.imaging.reading import read_ct, read_mask

    def value(case):
        ct = read_ct(shared_data / case / "ct.nii.gz")
        mask = read_mask(shared_data / case / "seg_semiauto_liver1_spleen2.nii.gz") == 1
        return measure_signs(ct, mask, None, "")["nodularity_mm10"].value

    assert 2.0 < value("hcc011_cirrA_pv") < 4.5
    assert value("hcc009_noncirr_bl_pv") < value("hcc011_cirrA_pv")


def test_outlines_follow_every_border_once_with_the_inside_on_the_right():
    inside = np.random.default_rng(3).random((4, 9, 11)) > 0.45  # many pixels touch at corners
    inside[1] = False
    found = module._outlines(inside, np.zeros(2), np.ones(2))
    assert [bool(outlines) for outlines in found] == [True, False, True, True]
    for mask, outlines in zip(inside, found):
        # From each pixel's four sides: start and end of a border, both (column, row).
        borders = []
        for row, column in zip(*np.nonzero(mask)):
            left, right, top, bottom = column - 0.5, column + 0.5, row - 0.5, row + 0.5
            for beside, border in (
                ((row - 1, column), ((left, top), (right, top))),
                ((row, column + 1), ((right, top), (right, bottom))),
                ((row + 1, column), ((right, bottom), (left, bottom))),
                ((row, column - 1), ((left, bottom), (left, top))),
            ):
                within = all(0 <= at < n for at, n in zip(beside, mask.shape))
                if not (within and mask[beside]):
                    borders.append(border)
        followed = [
            ((start.real, start.imag), (end.real, end.imag))
            for outline in outlines
            for start, end in zip(outline.tolist(), np.roll(outline, -1).tolist())
        ]
        assert sorted(followed) == sorted(borders)


@pytest.mark.parametrize("radius", [10.0, 70.0])
def test_outlines_are_smoothed_around_their_whole_length(radius):
    angle = np.arange(0, 2 * np.pi, 0.7 / radius)
    outline = (radius + np.random.default_rng(1).uniform(-1, 1, len(angle))) * np.exp(1j * angle)
    closed = np.append(outline, outline[0])
    length = np.append(0, np.abs(np.diff(closed)).cumsum())
    fine = np.interp(np.arange(0, length[-1], module.PROFILE_MM), length, closed)
    sigma = module.OUTLINE_MM * len(fine) / length[-1]
    smooth = gaussian_filter1d(fine, sigma, mode="wrap", truncate=9.0)
    closed = np.append(smooth, smooth[0])
    length = np.append(0, np.abs(np.diff(closed)).cumsum())
    even = np.linspace(0, length[-1], round(length[-1]), endpoint=False)
    expected = np.interp(even, length, closed)
    np.testing.assert_allclose(module._smoothed(outline), expected, rtol=1e-9)
