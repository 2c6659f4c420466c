"""Input that cannot be staged is refused with one sentence; doubtful input gives a warning."""

import re
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import BAD_CTS, BAD_MASKS, hu_array, image, liver_array, write, write_slices

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.checks import check_ct, check_organs
from LiverFibrosisStagingLib.imaging.reading import read_ct, read_mask


def assert_sentence(refusal, path, words):
    text = str(refusal.value)
    assert "\n" not in text and text.endswith("."), text
    assert re.search(words, text), text
    assert path.name in text or path.stem in text, f"{path.name} is not named in: {text}"
    for jargon in ("itk", "0x", "Traceback", "Exception"):
        assert jargon not in text.lower().replace(path.name.lower(), ""), text


@pytest.mark.parametrize("name", BAD_CTS)
def test_a_ct_that_cannot_be_staged_is_refused(name, tmp_path):
    path = BAD_CTS[name].build(tmp_path)
    with pytest.raises(StagingError) as refusal:
        check_ct(read_ct(path), path.name)
    # A single bad file of a folder is named instead of the folder.
    culprit = re.match(r"IM\d+\.dcm", str(refusal.value))
    assert_sentence(refusal, path / culprit[0] if culprit else path, BAD_CTS[name].words)


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_mask_that_cannot_be_used_is_refused(name, tmp_path):
    ct_path, path = BAD_MASKS[name].build(tmp_path)
    ct = read_ct(ct_path)
    with pytest.raises(StagingError) as refusal:
        mask = sitk.Resample(read_mask(path), ct, sitk.Transform(), sitk.sitkNearestNeighbor)
        check_organs(ct, mask, None, path.name)
    assert_sentence(refusal, path, BAD_MASKS[name].words)


def test_damage_is_reported_without_output_on_stderr(tmp_path, capfd):
    for name in BAD_CTS:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        path = BAD_CTS[name].build(folder)
        capfd.readouterr()
        with pytest.raises(StagingError):
            check_ct(read_ct(path), path.name)
        out, err = capfd.readouterr()
        assert (out, err) == ("", ""), name


def test_itk_warnings_are_on_again_after_a_refusal(tmp_path):
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    try:
        sitk.ProcessObject.SetGlobalWarningDisplay(True)
        with pytest.raises(StagingError):
            read_ct(BAD_CTS["text as nrrd"].build(tmp_path))
        assert sitk.ProcessObject.GetGlobalWarningDisplay()
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def test_a_valid_ct_and_mask_pass_without_warning():
    ct = image(hu_array())
    assert check_ct(ct, "ct") == ()
    assert check_organs(ct, image(liver_array()), None, "ct") == ()


def test_padding_outside_a_round_field_of_view_is_accepted():
    hu = hu_array()
    hu[:, :4] = -2048
    assert check_ct(image(hu), "ct") == ()


def test_a_ct_of_ten_slices_is_enough():
    assert check_ct(image(hu_array(10)), "ct") == ()
    with pytest.raises(StagingError, match="9 slices over 45 mm"):
        check_ct(image(hu_array(9)), "ct")
    thin = image(hu_array(20))
    thin.SetSpacing((5.0, 5.0, 1.0))
    with pytest.raises(StagingError, match="20 slices over 20 mm"):
        check_ct(thin, "ct")


def test_slices_are_counted_along_the_body_whatever_the_order_of_the_axes():
    three = image(hu_array(3))
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        with pytest.raises(StagingError, match="3 slices over 15 mm"):
            check_ct(sitk.PermuteAxes(three, order), "ct")


def test_a_modality_that_is_not_ct_is_refused():
    ct = image(hu_array())
    ct.SetMetaData("0008|0060", "MR")
    with pytest.raises(StagingError, match="modality is MR"):
        check_ct(ct, "ct")


@pytest.mark.parametrize(
    ("description", "warned"),
    [
        ("Abd arterial 2.0", True),
        ("Liver native", True),
        ("Abd delayed 5 min", True),
        ("Abd portal venous 2.0", False),
        ("Abdomen venös", False),
        ("Lateral abdomen", False),
        ("", False),
    ],
)
def test_another_phase_in_the_description_gives_a_warning(description, warned):
    ct = image(hu_array())
    ct.SetMetaData("0008|103e", description)
    assert any("portal-venous" in text for text in check_ct(ct, "ct")) is warned


def test_thick_slices_give_a_warning():
    ct = image(hu_array())
    ct.SetMetaData("0018|0050", "7.5")
    assert "7.5 mm thick" in " ".join(check_ct(ct, "ct"))
    ct = image(hu_array())
    ct.SetSpacing((5.0, 5.0, 8.0))
    assert "8 mm thick" in " ".join(check_ct(ct, "ct"))


@pytest.mark.parametrize(("mean", "words"), [(50, "low enhancement"), (200, "higher than usual")])
def test_unusual_enhancement_gives_a_warning(mean, words):
    hu = hu_array()
    hu[liver_array() != 0] = mean
    warnings = check_organs(image(hu), image(liver_array()), None, "ct")
    assert len(warnings) == 1 and words in warnings[0] and f"{mean} HU" in warnings[0]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("slices", "end"), [(slice(0, 14), "lower"), (slice(10, 24), "upper")])
def test_a_liver_cut_off_by_the_scan_gives_a_warning(slices, end, flip):
    mask = np.zeros_like(liver_array())
    mask[slices, 16:40, 12:36] = 1
    ct, liver = image(hu_array()), image(mask)
    if flip:  # the array turned over, the patient as before
        ct, liver = ct[:, :, ::-1], liver[:, :, ::-1]
    warnings = check_organs(ct, liver, None, "ct")
    assert len(warnings) == 1 and f"scan's {end} end" in warnings[0]


def test_an_unusual_liver_volume_gives_a_warning():
    mask = np.zeros_like(liver_array())
    mask[4:-4, 16:24, 12:30] = 1
    (warning,) = check_organs(image(hu_array()), image(mask), None, "ct")
    assert "288 mL" in warning and "500 to 4000 mL" in warning


def test_one_label_given_for_both_organs_is_refused():
    liver = image(liver_array())
    with pytest.raises(StagingError, match="100% of the spleen mask is also in the liver mask"):
        check_organs(image(hu_array()), liver, liver, "ct")


def test_an_empty_spleen_and_a_mask_of_another_size_are_refused():
    ct, liver = image(hu_array()), image(liver_array())
    with pytest.raises(StagingError, match="spleen mask is empty"):
        check_organs(ct, liver, liver * 0, "ct")
    with pytest.raises(StagingError, match="a mask on the CT's grid is needed"):
        check_organs(ct, liver[:, :, 1:], None, "ct")


def test_real_scans_get_the_expected_warnings(shared_data):
    def judged(folder, liver_label=None):
        ct = read_ct(shared_data / folder / "ct.nii.gz")
        if liver_label is None:
            liver = read_mask(shared_data / folder / "liver.nii.gz")
        else:
            liver = (
                read_mask(shared_data / folder / "seg_semiauto_liver1_spleen2.nii.gz")
                == liver_label
            )
        return " ".join(check_ct(ct, folder) + check_organs(ct, liver, None, folder))

    assert judged("hcc002_cirrA_pv", 1) == ""
    assert judged("hcc048_cirrA_pv", 1) == ""
    assert "lower end" in judged("hcc011_cirrA_pv", 1)
    without_contrast = judged("ts_example_ct_nc_masks")
    assert "low enhancement" in without_contrast and "upper end" in without_contrast


def test_real_scans_not_in_hu_are_refused(shared_data):
    for path, words in (
        (shared_data / "neg_mr_abdomen_ts" / "mr.nii.gz", "-47 to 833"),
        (shared_data / "neg_geom_variants_ts" / "ct_unsigned_offset1024.nii.gz", "0 to 2421"),
        (shared_data / "neg_dcm_dcmqi_ct3slice" / "dicom", "3 slices over 3 mm"),
    ):
        with pytest.raises(StagingError, match=words):
            check_ct(read_ct(path), path.name)


def test_checks_of_a_full_ct_copy_a_small_part_of_it(shared_data):
    folder = shared_data / "hcc002_cirrA_pv"
    ct = read_ct(folder / "ct.nii.gz")
    liver = read_mask(folder / "seg_semiauto_liver1_spleen2.nii.gz") == 1
    tracemalloc.start()
    check_ct(ct, "ct")
    check_organs(ct, liver, None, "ct")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sitk.GetArrayViewFromImage(ct).nbytes / 2


def test_a_portal_venous_series_gives_no_warning(tmp_path):
    tags = {"0008|103e": "Abdomen portal venous"}
    assert check_ct(read_ct(write_slices(tmp_path / "pv", image(hu_array()), tags)), "pv") == ()


def test_a_wrong_file_beside_a_series_does_no_harm(tmp_path):
    series = write_slices(tmp_path / "series", image(hu_array()))
    (series / "README.txt").write_text("hello")
    (series / ".DS_Store").write_text("hello")
    write(series / "mask.nii.gz")
    assert read_ct(series).GetSize() == (72, 64, 24)
