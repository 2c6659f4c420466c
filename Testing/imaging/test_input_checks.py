"""Each check of the input passes, warns or refuses, with its numbers and one sentence."""

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image, liver_array, write_slices

from LiverFibrosisStagingLib.errors import StagingError, WrongPhase
from LiverFibrosisStagingLib.imaging.input_checks import (
    PASS,
    PHASE,
    REFUSE,
    WARN,
    Check,
    concerns,
    input_checks,
    refuse,
    scan_checks,
)
from LiverFibrosisStagingLib.imaging.reading import read_ct

KEYS = (
    *("units", "phase", "coverage", "liver_volume", "thickness"),
    *("slices", "tilt", "field_of_view", "dense", "noise"),
)


def checked(ct, liver=None, spleen=None):
    """The checks by key."""
    liver = image(liver_array()) if liver is None else liver
    return {check.key: check for check in input_checks(ct, liver, spleen)[1]}


def warned(ct, liver=None):
    """Keys of the checks that warn."""
    return {key for key, check in checked(ct, liver).items() if check.outcome == WARN}


def test_a_valid_ct_passes_every_check():
    checks = checked(image(hu_array()))
    assert tuple(checks) == KEYS
    assert {check.outcome for check in checks.values()} == {PASS}
    assert concerns(checks.values()) == ()
    for check in checks.values():
        assert check.name and check.sentence.endswith(".") and "\n" not in check.sentence
        assert check.values or check.key == "noise"
        assert all(isinstance(value, float | str) for value in check.values.values())


def test_the_numbers_of_a_box():
    checks = checked(image(hu_array()))
    assert checks["liver_volume"].values == {"liver_ml": 16 * 24 * 24 * 0.125}
    assert checks["slices"].values["slices"] == 24 and checks["slices"].values["length_mm"] == 120
    assert checks["thickness"].values == {"spacing_mm": 5.0}
    assert checks["phase"].values["liver_hu"] == pytest.approx(110, abs=2)
    assert checks["units"].values["lowest_hu"] == hu_array().min()


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ("Abd arterial 2.0", "arterial"),
        ("Liver native", "unenhanced"),
        ("Abd delayed 5 min", "late"),
        ("Abd portal venous 2.0", ""),
        ("Abdomen venös", ""),
        ("Lateral abdomen", ""),
        ("", ""),
    ],
)
def test_another_phase_in_the_description_gives_a_warning(description, named):
    ct = image(hu_array())
    ct.SetMetaData("0008|103e", description)
    check = checked(ct)[PHASE]
    assert check.outcome == (WARN if named else PASS)
    assert not named or f"names the {named} phase" in check.sentence


@pytest.mark.parametrize("mean", [50, 200])
def test_a_liver_that_is_not_enhanced_as_expected_does_not_pass(mean):
    hu = hu_array()
    hu[liver_array() != 0] = mean
    check = checked(image(hu))[PHASE]
    assert check.outcome != PASS and f"liver {mean}" in check.sentence


def test_the_description_decides_where_the_hu_do_not():
    hu = hu_array()
    hu[liver_array() != 0] = 200
    ct = image(hu)
    ct.SetMetaData("0008|103e", "portal venous")
    phase, checks = input_checks(ct, image(liver_array()), None)
    assert phase == "portal-venous" and checks[1].outcome == PASS
    ct.SetMetaData("0008|103e", "DOE^JANE late")
    phase, checks = input_checks(ct, image(liver_array()), None)
    assert phase == "late" and checks[1].outcome == WARN
    assert "DOE" not in str(checks)


@pytest.mark.parametrize(
    ("thickness", "spacing", "words"),
    [
        ("7.5", 5.0, "7.5 mm thick"),
        ("", 8.0, "8 mm thick"),
        ("2.5", 5.0, "2.5 mm thick, 5 mm apart"),
        ("5", 2.5, ""),
        ("4.6", 5.0, ""),
    ],
)
def test_thick_slices_and_gaps_give_a_warning(thickness, spacing, words):
    ct, liver = image(hu_array()), image(liver_array())
    for each in (ct, liver):
        each.SetSpacing((5.0, 5.0, spacing))
    if thickness:
        ct.SetMetaData("0018|0050", thickness)
    check = checked(ct, liver)["thickness"]
    assert check.outcome == (WARN if words else PASS) and words in check.sentence


@pytest.mark.parametrize("thickness", ["abc", "nan", "inf", "1e999", "", "5\\5", "-", "DOE^JANE"])
def test_a_strange_thickness_is_a_warning(thickness):
    ct = image(hu_array())
    ct.SetMetaData("0018|0050", thickness)
    checks = checked(ct)
    assert concerns(checks.values()) == ("The slice thickness in the header is not a number.",)
    assert "DOE" not in str(checks)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("slices", "end"), [(slice(0, 15), "lower"), (slice(9, 24), "upper")])
def test_an_organ_cut_off_by_the_scan_gives_a_warning(slices, end, flip):
    mask = np.zeros_like(liver_array())
    mask[slices, 16:40, 12:36] = 1
    ct, organ = image(hu_array()), image(mask)
    whole = image(liver_array())
    if flip:  # the array turned over, the patient as before
        ct, organ, whole = (each[:, :, ::-1] for each in (ct, organ, whole))
    found = checked(ct, organ)["coverage"]
    assert found.outcome == WARN
    assert found.sentence == f"The liver reaches the scan's {end} end; part of it may be missing."
    assert found.values[f"liver_{end}_cm2"] == 24 * 24 * 0.25
    assert f"spleen reaches the scan's {end} end" in checked(ct, whole, organ)["coverage"].sentence


def test_a_small_part_of_a_liver_is_refused_if_the_scan_cuts_it():
    mask = np.zeros_like(liver_array())
    mask[10:, 16:40, 12:36] = 1
    for axes in ((0, 1, 2), (2, 0, 1)):
        given = [sitk.PermuteAxes(image(each), axes) for each in (hu_array(), mask)]
        found = checked(*given)["coverage"]
        assert found.outcome == REFUSE and found.values["liver_mm"] == 70
        assert found.sentence == (
            "The liver reaches the scan's upper end, and 70 mm of it are in the scan; at least "
            "75 mm are needed."
        )
    with pytest.raises(StagingError, match=r"^a\.nii: the liver reaches .* 75 mm are needed\.$"):
        refuse([found], "a.nii", strict=True, any_phase=True)
    mask[-1] = 0  # not cut off
    assert checked(image(hu_array()), image(mask))["coverage"].outcome == PASS


def test_an_unusual_liver_volume_gives_a_warning():
    mask = np.zeros_like(liver_array())
    mask[4:-4, 16:24, 12:30] = 1
    found = checked(image(hu_array()), image(mask))["liver_volume"]
    assert found.outcome == WARN and "288 mL" in found.sentence
    assert "500 to 4000 mL" in found.sentence


def smooth_patient(slices=24):
    """HU that change little by little from slice to slice."""
    z, y, x = np.ogrid[:slices, :64, :72]
    inside = ((y - 32) / 24) ** 2 + ((x - 36) / 28) ** 2 < 1
    hu = np.where(inside, 60 + 50 * np.sin(x / 3 + y / 4 + z / 2), -1000).astype(np.int16)
    hu[:, 16:40, 12:36] = 110
    hu[:, 44:52, 32:40] = 400
    return hu


def test_missing_and_repeated_slices_give_a_warning():
    hu = smooth_patient(28)
    rng = np.random.default_rng(0)
    hu = hu + rng.integers(-3, 4, hu.shape, dtype=np.int16)
    assert checked(image(hu[:24]))["slices"].outcome == PASS
    missing = checked(image(np.delete(hu, (11, 12, 13), axis=0)[:24]))["slices"]
    assert missing.outcome == WARN and "slices may be missing" in missing.sentence
    hu[12] = hu[11]
    repeated = checked(image(hu[:24]))["slices"]
    assert repeated.outcome == WARN and repeated.values["repeated"] == 1


@pytest.mark.parametrize("order", ["RAI", "PSR", "ASL", "SPL", "LIP"])
def test_units_and_slices_do_not_depend_on_the_order_of_the_voxels(order):
    hu = np.random.default_rng(0).integers(-150, 250, (25, 38, 43), dtype=np.int16)
    ct = image(hu)
    assert scan_checks(sitk.DICOMOrient(ct, order)) == scan_checks(ct)


def test_the_end_of_an_organ_between_two_slices_is_no_missing_slice():
    hu = smooth_patient(24)
    hu = hu + np.random.default_rng(0).integers(-3, 4, hu.shape, dtype=np.int16)
    hu[12:, 16:40, 12:36] = -150  # fat below the liver
    found = checked(image(hu))["slices"]
    assert found.outcome == PASS and found.values["jump"] < 1.1


def test_slices_tilted_against_the_patient_give_a_warning():
    for degrees, expected in ((10, PASS), (30, WARN)):
        ct, liver = image(hu_array()), image(liver_array())
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        for each in (ct, liver):
            each.SetDirection((1, 0, 0, 0, c, -s, 0, s, c))
        found = checked(ct, liver)["tilt"]
        assert found.outcome == expected
        assert found.values["tilt_degrees"] == pytest.approx(degrees, abs=1e-3)


def test_a_patient_cut_off_in_plane_gives_a_warning():
    hu = hu_array()
    assert checked(image(hu))["field_of_view"].values["outline_at_edge"] == 0
    # Half of the outline of 48 x 56 voxels: cut on the left and right side of the liver.
    cut = checked(image(hu)[9:63], image(liver_array())[9:63])["field_of_view"]
    assert cut.outcome == WARN and "rectangular field of view" in cut.sentence
    assert cut.values["outline_at_edge"] == pytest.approx(2 * 48 / (2 * 48 + 2 * 54), abs=0.05)
    touching = checked(image(hu)[14:], image(liver_array())[14:])["field_of_view"]
    assert touching.outcome == WARN and "cuts the liver in plane" in touching.sentence


def test_a_round_field_of_view_is_recognised_by_its_padding():
    hu = np.full((24, 64, 64), -1000, np.int16)
    hu += np.random.default_rng(0).integers(-10, 11, hu.shape, dtype=np.int16)
    y, x = np.ogrid[-31.5:32, -31.5:32]
    hu[:, (y / 22) ** 2 + (x / 38) ** 2 < 1] = 40  # wider than the field
    liver = np.zeros_like(hu, np.uint8)
    liver[4:-4, 20:40, 12:32] = 1
    hu[liver != 0] = 110
    hu[:, np.hypot(y, x) > 32] = -2048
    found = checked(image(hu), image(liver))["field_of_view"]
    assert found.values["field"] == "round" and found.outcome == WARN


def test_dense_material_in_the_liver_and_metal_beside_it_give_a_warning():
    hu = hu_array()
    hu[10:13, 26:29, 22:25] = 600  # 27 voxels of 0.125 mL
    found = checked(image(hu))["dense"]
    assert found.outcome == WARN and "Lipiodol" in found.sentence
    assert found.values["dense_liver_ml"] == pytest.approx(27 * 0.125, rel=0.5)
    hu = hu_array()
    hu[10:13, 26:29, 50:53] = 3000
    found = checked(image(hu))["dense"]
    assert found.outcome == WARN and "metal" in found.sentence
    assert found.values["dense_liver_ml"] == 0


@pytest.mark.parametrize(("sd", "outcome"), [(12, PASS), (60, WARN)])
def test_noise_is_measured_beside_vessels(sd, outcome):
    """At 2 x 2 x 3 mm, the grid of the check, so that nothing is interpolated."""
    rng = np.random.default_rng(0)
    hu = np.full((40, 100, 100), -1000.0)
    hu[:, 10:90, 10:90] = 40
    liver = np.zeros(hu.shape, np.uint8)
    liver[:, 25:75, 25:75] = 1
    hu[liver != 0] = 110
    hu[:, 30:34, 30:34] = hu[:, 60:64, 40:44] = 200  # vessels
    hu += rng.normal(0, sd, hu.shape)
    ct, mask = (sitk.GetImageFromArray(each) for each in (hu.astype(np.int16), liver))
    for each in (ct, mask):
        each.SetSpacing((2.0, 2.0, 3.0))
    found = checked(ct, mask)["noise"]
    assert found.outcome == outcome
    assert found.values["liver_noise_hu"] == pytest.approx(sd, rel=0.1)


def test_a_strict_run_refuses_warnings_and_any_phase_only_the_phase():
    passed = Check("units", "Units", PASS, "A CT.")
    warning = Check("noise", "Noise", WARN, "The noise is high.")
    wrong = Check(PHASE, "Phase", REFUSE, "The HU are those of an arterial CT.")
    refuse((passed, warning), "a.nii", strict=False, any_phase=False)
    words = r"^a\.nii: the noise is high; without --strict, this is only a warning\.$"
    with pytest.raises(StagingError, match=words) as refusal:
        refuse((passed, warning), "a.nii", strict=True, any_phase=True)
    assert not isinstance(refusal.value, WrongPhase)
    for strict in (False, True):
        with pytest.raises(WrongPhase, match=r"^a\.nii: the HU are those of an arterial CT\.$"):
            refuse((passed, wrong), "a.nii", strict, any_phase=False)
        refuse((passed, wrong), "a.nii", strict, any_phase=True)


def test_a_portal_venous_series_gives_no_warning(tmp_path):
    tags = {"0008|103e": "Abdomen portal venous"}
    ct = read_ct(write_slices(tmp_path / "pv", image(hu_array()), tags))
    assert warned(ct) == set()
