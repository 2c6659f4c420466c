"""Every format gives the same CT: HU, geometry, the right series, and no names."""

import gzip
import itertools
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import PATIENT, hu_array, image, liver_array, write_slices

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.body import Body, body_of
from LiverFibrosisStagingLib.imaging.dicom_series import find_series, named_phase
from LiverFibrosisStagingLib.imaging.masks import read_organ
from LiverFibrosisStagingLib.imaging.reading import (
    FILES_KEY,
    NOTES_KEY,
    notes,
    read_ct,
    read_mask,
    source_files,
)

FORMATS = ("ct.nii", "ct.nii.gz", "ct.nrrd", "ct.nhdr", "ct.mha", "ct.mhd")


def oblique(volume, degrees=20.0):
    """The same voxels in a tilted frame: turned about x, then z."""
    turn = sitk.Euler3DTransform()
    turn.SetRotation(np.radians(degrees), 0.0, np.radians(degrees / 2))
    axes = np.array(turn.GetMatrix()).reshape(3, 3) @ np.array(volume.GetDirection()).reshape(3, 3)
    volume = sitk.Image(volume)
    volume.SetDirection(axes.ravel().tolist())
    return volume


def assert_same(found, expected, tolerance=1e-4):
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(found), sitk.GetArrayViewFromImage(expected)
    )
    for corner in itertools.product(*[(0, n - 1) for n in expected.GetSize()]):
        np.testing.assert_allclose(
            found.TransformIndexToPhysicalPoint(corner),
            expected.TransformIndexToPhysicalPoint(corner),
            atol=tolerance,
        )


def metadata(volume):
    return {key: volume.GetMetaData(key) for key in volume.GetMetaDataKeys()}


# Files of one volume


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_values_type_and_geometry(name, compress, tmp_path):
    for number, ct in enumerate(
        (
            image(hu_array()),
            oblique(image(hu_array())),
            sitk.PermuteAxes(image(hu_array()), [2, 0, 1])[::-1],
            image(hu_array().astype(np.int32)),
            image(hu_array() + np.float32(0.25)),
        )
    ):
        path = tmp_path / f"{number}{name}"
        sitk.WriteImage(ct, str(path), compress)
        found = read_ct(path)
        assert found.GetPixelID() == ct.GetPixelID()
        assert_same(found, ct)


def test_all_axis_orders_and_flips_keep_positions(tmp_path):
    ct = image(hu_array(12))
    point = ct.TransformIndexToPhysicalPoint((20, 25, 3))
    value = ct[20, 25, 3]
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turned = sitk.Flip(sitk.PermuteAxes(ct, order), flips)
            path = tmp_path / "turned.nii.gz"
            sitk.WriteImage(turned, str(path))
            found = read_ct(path)
            assert found[found.TransformPhysicalPointToIndex(point)] == value


def test_a_gzip_of_several_members_is_read(tmp_path):
    path = tmp_path / "ct.nii"
    sitk.WriteImage(image(hu_array()), str(path))
    raw = path.read_bytes()
    split = tmp_path / "split.nii.gz"
    split.write_bytes(gzip.compress(raw[:70000]) + gzip.compress(raw[70000:]))
    assert_same(read_ct(split), image(hu_array()))


def test_a_big_endian_nifti_is_read(tmp_path):
    path = tmp_path / "ct.nii"
    sitk.WriteImage(image(hu_array()), str(path))
    header, pixels = path.read_bytes()[:352], path.read_bytes()[352:]
    swapped = bytearray(header)
    fields = [(0, 4, 1), (40, 2, 8), (56, 4, 3), (68, 2, 4), (76, 4, 8), (108, 4, 3), (120, 2, 1)]
    fields += [(124, 4, 4), (252, 2, 2), (256, 4, 18)]
    for offset, width, count in fields:
        for at in range(offset, offset + width * count, width):
            swapped[at : at + width] = header[at : at + width][::-1]
    big = np.frombuffer(pixels, "<i2").astype(">i2").tobytes()
    path.write_bytes(bytes(swapped) + big)
    assert_same(read_ct(path), image(hu_array()))


def test_a_fourth_dimension_of_one_is_accepted(tmp_path):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([oblique(image(hu_array()))]), str(path))
    assert_same(read_ct(path), oblique(image(hu_array())))


def test_a_nifti_without_orientation_is_noted(tmp_path):
    path = tmp_path / "ct.nii"
    sitk.WriteImage(image(hu_array()), str(path))
    assert notes(read_ct(path)) == ()
    data = path.read_bytes()
    path.write_bytes(data[:252] + b"\0\0\0\0" + data[256:])
    assert "patient's orientation" in notes(read_ct(path))[0]


def test_free_text_of_a_file_is_not_kept(tmp_path):
    ct = image(hu_array())
    ct.SetMetaData("patient", PATIENT)
    ct.SetMetaData("ITK_FileNotes", PATIENT)
    for name in ("ct.nrrd", "ct.mha", "ct.nii.gz"):
        sitk.WriteImage(ct, str(tmp_path / name))
        assert metadata(read_ct(tmp_path / name)) == {}


# Masks


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nrrd", "mask.mha", "mask.seg.nrrd"])
def test_labels_come_as_small_integers(name, dtype, tmp_path):
    labels = oblique(image(liver_array() * dtype(5)))
    sitk.WriteImage(labels, str(tmp_path / name), True)
    found = read_mask(tmp_path / name)
    assert found.GetPixelID() == sitk.sitkUInt8
    assert_same(found, sitk.Cast(labels, sitk.sitkUInt8))


def test_labels_above_255_are_kept(tmp_path):
    labels = image(liver_array() * np.uint16(1100))
    sitk.WriteImage(labels, str(tmp_path / "mask.nii.gz"))
    assert_same(read_mask(tmp_path / "mask.nii.gz"), labels)


@pytest.mark.parametrize("label", [261, 5 + 2**32, 10**19])
def test_a_missing_label_is_refused(label, tmp_path):
    path = tmp_path / "mask.nii.gz"
    sitk.WriteImage(image(liver_array() * np.uint8(5)), str(path))
    assert sitk.GetArrayFromImage(read_organ(f"{path}:5")).sum() == liver_array().sum()
    with pytest.raises(StagingError, match=f"no voxel with the label {label}"):
        read_organ(f"{path}:{label}")


def test_numbers_too_large_for_a_label_are_refused(tmp_path):
    sitk.WriteImage(image(liver_array() * np.float32(5e12)), str(tmp_path / "mask.nii.gz"))
    with pytest.raises(StagingError, match="not a label"):
        read_mask(tmp_path / "mask.nii.gz")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_names_of_segments_are_kept_and_nothing_else(dtype, tmp_path):
    labels = image(liver_array().astype(dtype))
    for key, value in {
        "Segment0_Name": "liver",
        "Segment0_LabelValue": "1",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "operator": PATIENT,
    }.items():
        labels.SetMetaData(key, value)
    sitk.WriteImage(labels, str(tmp_path / "liver.seg.nrrd"), True)
    kept = metadata(read_mask(tmp_path / "liver.seg.nrrd"))
    assert kept["Segment0_Name"] == "liver" and kept["Segment0_LabelValue"] == "1"
    assert PATIENT not in kept.values()


# DICOM: one series


@pytest.mark.parametrize("degrees", [0.0, 15.0])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True), (True, True, False)])
def test_a_series_has_its_geometry_whatever_the_file_names(degrees, flips, tmp_path):
    ct = oblique(sitk.Flip(image(hu_array()), flips), degrees)
    series = write_slices(tmp_path / "series", ct)
    for number, path in enumerate(sorted(series.iterdir())):
        path.rename(series / f"{(number * 7) % 24:02d}")  # shuffled, no suffix
    found = read_ct(series)
    assert sorted(source_files(found)) == sorted(series.iterdir())
    assert np.linalg.det(np.array(found.GetDirection()).reshape(3, 3)) == pytest.approx(1.0)
    assert_same(found, ct, tolerance=1e-3)
    assert notes(found) == ()


def test_stored_values_become_hu(tmp_path):
    series = write_slices(
        tmp_path / "series",
        image(hu_array()),
        {"0028|1052": "-1024", "0028|1053": "1"},
    )
    assert_same(read_ct(series), image(hu_array()))


def test_tags_for_the_checks_are_kept_and_no_name(tmp_path):
    tags = {
        "0008|103e": "Abdomen portal venous",
        "0018|1210": "B30f",
        "0018|0010": "Iomeprol",
        "0008|0080": "General Hospital",
        "0010|4000": PATIENT,
    }
    found = metadata(read_ct(write_slices(tmp_path / "series", image(hu_array()), tags)))
    assert found["0008|0060"] == "CT"
    assert found["0008|103e"] == "Abdomen portal venous"
    assert found["0018|0050"] == "5"
    assert set(found) == {"0008|0060", "0008|103e", "0018|0050", FILES_KEY}
    del found[FILES_KEY]
    text = " ".join(found.values())
    for secret in (PATIENT, "PATIENT-1", "1950", "Hospital", "1.2.3"):
        assert secret not in text
    assert not any(key.startswith("0010") for key in found)


@pytest.mark.parametrize(
    ("size", "weight", "body"),
    [
        ("1.72", "81.5", Body(172, 81.5)),
        ("172", "81.5", None),  # cm: not what the standard says
        ("1.72", "", None),
        ("0", "0", None),
        ("1.72", "1e9", None),
        ("nan", "80", None),
        ("tall", "heavy", None),
    ],
)
def test_height_and_weight_are_kept_as_plausible_numbers(size, weight, body, tmp_path):
    tags = {tag: text for tag, text in (("0010|1020", size), ("0010|1030", weight)) if text}
    found = read_ct(write_slices(tmp_path / "series", image(hu_array()), tags))
    assert body_of(found) == body
    assert not any(key.startswith("0010") for key in found.GetMetaDataKeys())
    if body is None:
        keys = {*found.GetMetaDataKeys()} - {FILES_KEY}
        assert not any("LiverFibrosis" in key for key in keys)


def test_accents_in_a_description_survive(tmp_path):
    tags = {"0008|0005": "ISO_IR 100", "0008|103e": "Abdomen venös"}
    series = write_slices(tmp_path / "series", image(hu_array()), tags)
    for path in series.iterdir():  # as a scanner writes it: one byte per letter
        data = path.read_bytes().replace("venös".encode(), "venös".encode("latin-1") + b" ")
        path.write_bytes(data)
    assert read_ct(series).GetMetaData("0008|103e") == "Abdomen venös"


def test_a_file_stands_for_its_series_in_the_same_folder(tmp_path):
    ct = image(hu_array())
    folder = write_slices(tmp_path / "all", ct)
    write_slices(folder, image(hu_array(12)), prefix="B", uid="1.2.3.2")
    write_slices(folder / "deeper", ct, skip=tuple(range(20)))
    assert_same(read_ct(folder / "IM007.dcm"), ct)
    assert_same(read_ct(folder / "B007.dcm"), image(hu_array(12)))


def test_copies_of_slices_are_dropped_with_a_note(tmp_path):
    ct = image(hu_array())
    folder = write_slices(tmp_path / "series", ct)
    shutil.copytree(folder, folder / "copy")
    write_slices(folder / "again", ct, {"0008|0018": "1.2.7"}, skip=tuple(range(1, 24)))
    found = read_ct(folder)
    assert_same(found, ct)
    assert notes(found) == ("25 copies of slices were left out.",)
    assert found.GetMetaData(NOTES_KEY) == "25 copies of slices were left out."


# DICOM: the choice among several series


def study(folder, *series):
    """Several series in one folder: (description, slices, tags) each."""
    for number, (description, volume, tags) in enumerate(series, 1):
        write_slices(
            folder / f"S{number}",
            volume,
            {"0008|103e": description, "0020|0011": str(number), **tags},
            uid=f"1.2.3.{number}",
        )
    return folder


def chosen(folder):
    series, _ = find_series(folder)
    return series[0].tags["0020|0011"]


def finer(slices=60):
    thin = image(hu_array(slices))
    thin.SetSpacing((5.0, 5.0, 2.0))
    return thin


def test_the_portal_venous_series_is_read_and_the_note_says_so(tmp_path):
    ct = image(hu_array())
    scout = {"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    folder = study(
        tmp_path / "study",
        ("Topogram", image(hu_array(2)), scout),
        ("Liver native", ct, {}),
        ("Liver arterial", finer(), {}),
        ("Liver portal venous", ct, {}),
        ("Liver delayed", ct, {}),
        ("Liver portal venous MPR cor", finer(), {"0008|0008": "DERIVED\\SECONDARY\\MPR"}),
    )
    found = read_ct(folder)
    assert found.GetMetaData("0008|103e") == "Liver portal venous"
    (note,) = notes(found)
    read, rest = note.split("Not used:")
    assert "4 (portal-venous by its description, 24 slices every 5 mm)" in read
    assert all(f"{word} by its description" in rest for word in ("unenhanced", "arterial"))
    assert all(word not in note for word in ("Liver", "native", "MPR", "Topogram", PATIENT))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (("x", finer(), {}), ("x portal venous", image(hu_array(5)), {})),
        (("x", image(hu_array()), {}), ("x MIP", finer(), {"0008|0008": "DERIVED\\PRIMARY\\MIP"})),
        (("x", image(hu_array(40)), {}), ("x", finer(), {})),
        (("x", finer(), {"0018|1210": "B30f"}), ("x", finer(), {"0018|1210": "B70f"})),
        (("x", finer(), {"0018|1210": "STANDARD"}), ("x", finer(), {"0018|1210": "LUNG"})),
        (("x", finer(), {}), ("x", image(hu_array()), {})),
        (("x", finer(), {"0008|0032": "101500"}), ("x", finer(), {"0008|0032": "101430"})),
        (("x", finer(), {}), ("x without contrast", finer(), {})),
    ],
    ids=["too short", "derived", "longer", "kernel", "kernel name", "thinner", "later", "phase"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_better_series_is_read_in_any_order(better, worse, turned, tmp_path):
    order = (worse, better) if turned else (better, worse)
    assert chosen(study(tmp_path / "study", *order)) == ("2" if turned else "1")


def test_a_derived_series_is_used_without_an_original_with_a_note(tmp_path):
    tags = {"0008|0008": "DERIVED\\SECONDARY\\AXIAL"}
    found = read_ct(write_slices(tmp_path / "mpr", image(hu_array()), tags))
    (note,) = notes(found)
    assert "derived from other images" in note and "SECONDARY" not in note


def test_grids_within_one_series_are_separated(tmp_path):
    folder = write_slices(tmp_path / "series", image(hu_array()))
    coronal = sitk.PermuteAxes(image(hu_array()), [0, 2, 1])
    write_slices(folder, coronal, prefix="C", skip=tuple(range(6, 64)))
    assert_same(read_ct(folder), image(hu_array()))


def test_two_acquisitions_of_one_series_are_separated(tmp_path):
    early, late = image(hu_array()), image(hu_array() + np.int16(30))
    folder = write_slices(tmp_path / "series", early, {"0020|0012": "1"}, prefix="A")
    for k in range(24):
        tags = {"0020|0012": "2", "0008|0018": f"1.2.8.{k}"}
        write_slices(folder, late, tags, skip=tuple(set(range(24)) - {k}), prefix="B")
    found = read_ct(folder)
    assert_same(found, late)
    assert "acquisition 2 (24 slices" in notes(found)[0]
    assert_same(read_ct(folder / "A003.dcm"), early)


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("ABD PORTAL VENOUS", "portal-venous"),
        ("Leber venös 3.0", "portal-venous"),
        ("PVP 2.5mm", "portal-venous"),
        ("art. Leber", "arterial"),
        ("late arterial", "arterial"),
        ("Non-contrast", "unenhanced"),
        ("3 min delay", "late"),
        ("Recon 2: LIVER 3 PHASE (AP)", ""),
        ("CT Body 3.0", ""),
        ("arterial + portal venous", ""),
        ("Lateral", ""),
        ("chest part", ""),
    ],
)
def test_phases_by_description(description, expected):
    assert named_phase(description) == expected


# Real scans


def test_two_real_phases_in_one_series_are_separated(shared_data):
    folder = shared_data / "neg_dcm_hcc002_2phases_dupz"
    found = read_ct(folder)
    assert found.GetSize() == (512, 512, 12) and found.GetSpacing() == (0.78125, 0.78125, 2.5)
    assert "acquisition 2 (12 slices every 2.5 mm). Not used:" in notes(found)[0]
    # The later acquisition is the portal-venous one, of which the whole scan is at hand.
    whole = read_ct(shared_data / "hcc002_cirrA_pv" / "ct.nii.gz")
    first = whole.TransformPhysicalPointToIndex(found.GetOrigin())[2]
    assert_same(found, whole[:, :, first : first + 12])


def test_a_real_jpeg_2000_series_lies_under_its_labels(shared_data):
    folder = shared_data / "ts_example_ct_dicom_slab_pv"
    found = read_ct(folder / "dicom")
    labels = read_mask(folder / "totalseg_117labels.nii.gz")
    assert found.GetSize() == (512, 512, 20) and found.GetSpacing()[2] == 2.0
    labels = sitk.Resample(labels, found, sitk.Transform(), sitk.sitkNearestNeighbor)
    hu, labels = sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(labels)
    assert np.median(hu[labels == 5]) == pytest.approx(91, abs=3)  # liver
    assert np.median(hu[labels == 1]) == pytest.approx(81, abs=3)  # spleen
    assert np.median(hu[labels == 64]) == pytest.approx(138, abs=8)  # portal and splenic vein


def test_a_real_short_series_beside_its_segmentation_object(shared_data):
    folder = shared_data / "neg_dcm_dcmqi_ct3slice"
    found = read_ct(folder)
    assert found.GetSize() == (512, 512, 3) and found.GetSpacing()[2] == pytest.approx(1.0)
    assert sitk.GetArrayViewFromImage(found).min() == -3024  # padding of -2000, rescaled
    assert "99000" not in " ".join(metadata(found).values())
    with pytest.raises(StagingError, match=r"liver_SEG.dcm: .*modality SEG"):
        read_ct(folder / "liver_SEG.dcm")


def test_real_orientation_variants_show_the_same_liver(shared_data):
    folder = shared_data / "neg_geom_variants_ts"
    means = []
    for variant in ("LPS", "RAS", "PIR", "oblique_header"):
        ct = read_ct(folder / f"ct_{variant}.nii.gz")
        liver = read_mask(folder / f"seg_liver1_spleen2_{variant}.nii.gz")
        inside = sitk.GetArrayViewFromImage(liver) == 1
        means.append((inside.sum(), sitk.GetArrayViewFromImage(ct)[inside].mean()))
    assert all(each == pytest.approx(means[0]) for each in means)
