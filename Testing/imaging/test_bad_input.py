"""Input that cannot be staged is refused with one sentence."""

import re
import tracemalloc

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


def test_a_valid_ct_and_mask_pass():
    ct = image(hu_array())
    check_ct(ct, "ct")
    check_organs(ct, image(liver_array()), None, "ct")


def test_padding_outside_a_round_field_of_view_is_accepted():
    hu = hu_array()
    hu[:, :4] = -2048
    check_ct(image(hu), "ct")


def test_a_ct_of_ten_slices_is_enough():
    check_ct(image(hu_array(10)), "ct")
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


def test_one_label_given_for_both_organs_is_refused():
    liver = image(liver_array())
    with pytest.raises(StagingError, match="100 % of the spleen mask is also in the liver mask"):
        check_organs(image(hu_array()), liver, liver, "ct")


def test_an_empty_spleen_and_a_mask_of_another_size_are_refused():
    ct, liver = image(hu_array()), image(liver_array())
    with pytest.raises(StagingError, match="spleen mask is empty"):
        check_organs(ct, liver, liver * 0, "ct")
    with pytest.raises(StagingError, match="a mask on the CT's grid is needed"):
        check_organs(ct, liver[:, :, 1:], None, "ct")


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


def test_a_wrong_file_beside_a_series_does_no_harm(tmp_path):
    series = write_slices(tmp_path / "series", image(hu_array()))
    (series / "README.txt").write_text("hello")
    (series / ".DS_Store").write_text("hello")
    write(series / "mask.nii.gz")
    assert read_ct(series).GetSize() == (72, 64, 24)
