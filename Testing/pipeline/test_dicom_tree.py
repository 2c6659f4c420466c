"""A tree of DICOM files of many patients: one case per study, and a reason for all that is left."""

import csv
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import PATIENT, image, write, write_slices

from LiverFibrosisStagingLib import StagingError, read_ct, stage_folder
from LiverFibrosisStagingLib.batch import case_row
from LiverFibrosisStagingLib.batch.cases import find_cases, read_cohort
from LiverFibrosisStagingLib.fingerprint import fingerprint
from LiverFibrosisStagingLib.imaging.dicom_series import find_series

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
STUDY, SERIES, NUMBER, DESCRIPTION = "0020|000d", "0020|000e", "0020|0011", "0008|103e"
_OF_STUDY = {"0008|0020": "20200101", "0008|0030": "120000", "0020|0010": "7"}
PATIENT_ID, KIND, MODALITY = "0010|0020", "0008|0008", "0008|0060"


def series(folder, study, number, description="", slices=10, value=None, **tags):
    """A small series whose voxels have one value; files of all series can lie in one folder."""
    value = 100 * int(number) if value is None else value
    uid = f"{study}.{number}"
    write_slices(
        folder,
        image(np.full((slices, 8, 8), value, np.int16)),
        {STUDY: study, NUMBER: number, DESCRIPTION: description, **_OF_STUDY, **tags},
        prefix=f"S{study.replace('.', '')}N{number}I",
        uid=uid,
    )
    return folder


def taken(cohort):
    """Of each case: the values of its voxels, and why the series was chosen."""
    return {
        case.name: (
            np.unique(sitk.GetArrayFromImage(read_ct(case.source))).tolist(),
            len(case.files),
            case.chosen,
        )
        for case in cohort.cases
    }


def left(cohort):
    """What was left out: number of the series, what, phase, slices, reason."""
    return sorted((o.series, o.what, o.phase, o.slices, o.reason) for o in cohort.left_out)


@pytest.fixture
def export(tmp_path):
    """A hospital's export: all files of two studies in one folder, of one patient identifier."""
    root = tmp_path / "export"
    series(root, "1.5", "1", "Abdomen nativ")
    series(root, "1.5", "2", "Abdomen arteriell", 14)
    series(root, "1.5", "3", "Abdomen portalvenös".encode().decode("latin-1"))
    series(root, "1.5", "4", "portal cor", 30, **{KIND: "DERIVED\\SECONDARY\\MPR"})
    series(root, "1.5", "5", "Topogramm", 2, **{KIND: "ORIGINAL\\PRIMARY\\LOCALIZER"})
    series(root, "1.5", "6", "T1 portal", 12, **{MODALITY: "MR", "0008|0016": MR})
    series(root, "1.5", "7", "portal dünn".encode().decode("latin-1"), 5)
    series(root, "1.6", "1", "Thorax", 11, 700)
    return root


def test_of_a_study_the_portal_venous_series_is_the_case(export):
    cohort = read_cohort(export)
    first, second = sorted(taken(cohort).values())
    assert first == ([300], 10, "portal-venous by its description; original slices")
    assert second == ([700], 11, "the only CT series; no phase in its description")
    assert left(cohort) == [
        ("1", "CT series", "unenhanced", 10, "unenhanced by its description"),
        ("2", "CT series", "arterial", 14, "arterial by its description"),
        ("4", "CT series", "portal-venous", 30, "derived from other images"),
        ("5", "2 DICOM objects", "", None, "localizers"),
        ("6", "12 DICOM objects", "", None, "modality MR"),
        ("7", "CT series", "portal-venous", 5, "fewer than 10 slices"),
    ]
    name = next(case.name for case in cohort.cases if len(case.files) == 10)
    assert {(each.study, each.case) for each in cohort.left_out} == {(1, name)}


def test_names_in_a_mixed_folder_are_pseudonyms_that_stay(export):
    before = {case.name: case.files for case in read_cohort(export).cases}
    assert all(name.startswith("case-") for name in before)
    series(export, "1.1", "1")
    after = {case.name: case.files for case in read_cohort(export).cases}
    assert len(after) == 3 and before.items() <= after.items()


def test_the_fingerprint_of_a_case_has_only_its_own_files(export):
    cases = {len(case.files): case for case in read_cohort(export).cases}
    before = {size: fingerprint(case.source, None, None) for size, case in cases.items()}
    alone = {size: fingerprint(case.files[0], None, None) for size, case in cases.items()}
    file = cases[11].files[3]
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    assert fingerprint(cases[10].source, None, None) == before[10]
    assert fingerprint(cases[11].source, None, None) != before[11]
    # Also where a user gives one of the files.
    assert fingerprint(cases[10].files[0], None, None) == alone[10]
    assert fingerprint(cases[11].files[0], None, None) != alone[11]


@pytest.mark.parametrize("identifier", ["", "4711"])
def test_patients_without_or_with_the_same_identifier_are_not_merged(identifier, tmp_path):
    for number, study in enumerate(("1.5", "1.6"), start=1):
        tags = {PATIENT_ID: identifier, "0010|0010": ""}
        series(tmp_path / "flat", study, "1", value=number, **tags)
        series(tmp_path / "tree" / f"P{number}" / "CT", study, "1", value=number, **tags)
    assert sorted(taken(read_cohort(tmp_path / "flat")).values()) == [
        ([1], 10, "the only CT series; no phase in its description"),
        ([2], 10, "the only CT series; no phase in its description"),
    ]
    found = taken(read_cohort(tmp_path / "tree"))
    assert {name: values for name, (values, *_) in found.items()} == {"P1": [1], "P2": [2]}


def test_folders_with_the_same_identifiers_but_their_own_files_are_not_merged(tmp_path):
    """As after an anonymisation that gives every patient the same identifiers."""
    for number, name in enumerate(("a", "b", "c"), start=1):
        series(tmp_path / name / "portal", "1.5", "1", "portal", value=number)
        series(tmp_path / name / "scout", "1.5", "2", "scout", 2, value=5)
    cohort = read_cohort(tmp_path)
    found = {name: values for name, (values, *_) in taken(cohort).items()}
    assert found == {"a": [1], "b": [2], "c": [3]}
    assert [(each.case, each.reason) for each in cohort.left_out] == [
        ("a", "localizers"),
        ("b", "localizers"),
        ("c", "localizers"),
    ]


def test_copies_of_a_series_are_cases_that_say_so_and_other_phases_are_not(tmp_path):
    series(tmp_path / "p1" / "native", "1.5", "1", "native", 12)
    series(tmp_path / "p1" / "portal", "1.5", "2", "portal")
    shutil.copytree(tmp_path / "p1" / "portal", tmp_path / "p1" / "portal2")
    series(tmp_path / "p2", "1.6", "1", "portal")
    cohort = read_cohort(tmp_path)
    end = "portal-venous by its description; the same identifiers occur in another folder"
    found = {name: chosen for name, (_, _, chosen) in taken(cohort).items()}
    assert found == {
        "p1/portal": end,
        "p1/portal2": f"the only CT series; {end}",
        "p2": "the only CT series; portal-venous by its description",
    }
    assert [(each.series, each.case) for each in cohort.left_out] == [("1", "p1/portal")]


def test_without_study_identifiers_each_folder_is_a_case(tmp_path):
    for number, name in enumerate("ab", start=1):
        series(tmp_path / name, "1.5", "1", value=number, **{STUDY: ""})
    found = {name: values for name, (values, *_) in taken(read_cohort(tmp_path)).items()}
    assert found == {"a": [1], "b": [2]}


def test_each_study_is_named_after_the_folder_that_has_only_it(tmp_path):
    for patient, study in (("anna", "1.5"), ("bert", "1.6")):
        for number in "12":
            series(tmp_path / "ward" / patient / f"s{number}", study, number)
    series(tmp_path / "ward" / "carl" / "v1", "1.7", "1")
    series(tmp_path / "ward" / "carl" / "v2", "1.8", "1")
    series(tmp_path / "ward" / "carl" / "v2" / "old", "1.9", "1")
    names = {case.name: case.ct for case in find_cases(tmp_path).cases}
    assert names == {
        f"ward/{name}": tmp_path / "ward" / name
        for name in ("anna", "bert", "carl/v1", "carl/v2", "carl/v2/old")
    }
    with pytest.raises(StagingError, match="2 patients"):
        find_series(
            [path for case in find_cases(tmp_path / "ward").cases[:1] for path in case.files]
            + list(series(tmp_path / "x", "1.4", "1", **{PATIENT_ID: "other"}).iterdir())
        )


def test_series_spread_over_folders_among_others_is_read_whole(tmp_path):
    """As on media with a limited number of files per folder."""
    flat = series(tmp_path / "flat", "1.5", "1", "portal")
    series(flat, "1.6", "1", value=2)
    for number, path in enumerate(sorted(flat.iterdir())):
        part = tmp_path / "medium" / f"{number % 3:08d}"
        part.mkdir(parents=True, exist_ok=True)
        path.rename(part / f"{number:08d}")
    shutil.rmtree(flat)
    assert sorted(taken(read_cohort(tmp_path / "medium")).values()) == [
        ([2], 10, "the only CT series; no phase in its description"),
        ([100], 10, "the only CT series; portal-venous by its description"),
    ]


def test_masks_of_a_dicom_study_are_in_its_folder_or_beside_it(tmp_path):
    mask = np.ones((10, 8, 8), np.uint8)
    for study, name in (("1.5", "p1"), ("1.6", "p2")):
        series(tmp_path / name / "portal", study, "1", "portal")
        series(tmp_path / name / "native", study, "2", "native")
    write(tmp_path / "p1" / "liver.nii.gz", mask)
    write(tmp_path / "p2_seg.nii.gz", mask)
    series(tmp_path / "mixed", "1.7", "1")
    series(tmp_path / "mixed", "1.8", "1")
    write(tmp_path / "mixed" / "liver.nii.gz", mask)  # of which study is not known
    cohort = read_cohort(tmp_path)
    masks = {case.name: case.liver for case in cohort.cases if case.liver}
    assert masks == {"p1": tmp_path / "p1" / "liver.nii.gz", "p2": tmp_path / "p2_seg.nii.gz"}
    (other,) = (each for each in cohort.left_out if each.what == "image file")
    assert other.reason == "a mask's name, but of no case; its voxels are not those of a CT"


def test_damaged_files_are_left_out_or_a_row_of_their_own(export):
    good = sorted(export.iterdir())[0]
    (export / "broken.dcm").write_bytes(good.read_bytes()[:500])
    lost = export.parent / "export" / "lost"
    lost.mkdir()
    (lost / "IM1.dcm").write_bytes(good.read_bytes()[:500])
    cohort = read_cohort(export)
    assert ("", "1 DICOM file", "", None, "damaged") in left(cohort)
    assert [case.name for case in cohort.cases if not case.files] == ["lost"]
    assert len(cohort.cases) == 3


def test_report_and_structure_objects_are_left_out(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    folder = series(tmp_path / "p1", "1.5", "1", "portal")
    report = pydicom.dcmread(sorted(folder.iterdir())[0])
    for element in ("PixelData", "Rows", "Columns", "BitsAllocated"):
        delattr(report, element)
    report.Modality, report.SOPClassUID = "RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    report.save_as(folder / "structures.dcm")
    cohort = read_cohort(tmp_path)
    assert left(cohort) == [("", "1 DICOM object", "", None, "objects without image")]
    assert len(cohort.cases) == 1 and len(cohort.cases[0].files) == 10


@pytest.mark.parametrize("given", ["DICOMDIR", ""])
def test_dicomdir_stands_for_its_medium(given, export, tmp_path):
    medium = pytest.importorskip("pydicom.fileset").FileSet()
    for path in sorted(export.iterdir()):
        medium.add(path)
    medium.write(tmp_path / "medium")
    assert (tmp_path / "medium" / "DICOMDIR").is_file()
    cohort = read_cohort(tmp_path / "medium" / given)
    assert sorted(taken(cohort).values()) == sorted(taken(read_cohort(export)).values())
    assert left(cohort) == left(read_cohort(export))


def test_tree_without_a_ct_is_refused_with_the_first_reason(tmp_path):
    series(tmp_path / "p1", "1.5", "1", slices=3)
    with pytest.raises(StagingError, match=r"contains no CT.*; 1 left out: CT series, fewer than"):
        read_cohort(tmp_path)


def test_batch_stages_the_files_of_the_series_and_writes_no_name(
    export, tmp_path, single, monkeypatch
):
    given = []

    def stage(ct, *_, **__):
        given.append(ct)
        raise StagingError("DOE JANE: stop here.")

    monkeypatch.setattr(case_row, "stage", stage)
    messages = []
    output = tmp_path / "out"
    rows = stage_folder(export, output, model=single, notify=messages.append)
    assert sorted(map(len, given)) == [10, 11] and [row["status"] for row in rows] == ["failed"] * 2
    assert f"6 left out; the reasons are in {output / 'left_out.csv'}." in messages
    text = (output / "left_out.csv").read_text(encoding="utf-8")
    table = list(csv.DictReader(text.splitlines()))
    assert len(table) == 6 and {line["case"] for line in table} <= {row["case"] for row in rows}
    assert table[0]["spacing_mm"] == "5.0" and {line["study"] for line in table} == {"1"}
    for name in ("export", "S15", "nativ", "Abdomen", *PATIENT.split("^"), "PATIENT-1", ".dcm"):
        assert name.lower() not in text.lower().replace("native", "")


def test_mixed_tree_of_real_series(shared_data, tmp_path):
    """Checked by hand, with the descriptions of ../shared/data/MANIFEST.md."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, name in enumerate(
        ("neg_dcm_hcc002_2phases_dupz", "ts_example_ct_dicom_slab_pv", "neg_dcm_dcmqi_ct3slice")
    ):
        for path in sorted((shared_data / name).rglob("*.dcm")):
            os.symlink(path, flat / f"{number}-{path.name}")
    mr = sitk.ReadImage(str(shared_data / "neg_mr_abdomen_ts" / "mr.nii.gz"), sitk.sitkInt16)
    write_slices(flat, mr, {MODALITY: "MR", "0008|0016": MR, STUDY: "1.7"}, uid="1.7.1")
    cohort = read_cohort(flat)
    found = {
        case.files[0].name[0]: (sorted(path.name for path in case.files), case.chosen)
        for case in cohort.cases
    }
    # Of the two phases under one series UID, acquisition 2 is the portal-venous one.
    names, chosen = found["0"]
    assert names == [f"0-2-0{n}.dcm" for n in range(48, 60)]
    assert chosen == "no phase in its description; a later acquisition"
    # The slab has no study UID: its folder, the same as that of the others, tells it apart.
    names, chosen = found["1"]
    assert len(names) == 20 and chosen == "the only CT series; no phase in its description"
    assert len(found) == len(cohort.cases) == 2
    assert left(cohort) == [
        ("", "20 DICOM objects", "", None, "modality MR"),
        ("1", "1 DICOM object", "", None, "modality SEG"),
        ("2", "CT series", "", 3, "fewer than 10 slices"),
        ("4", "CT series", "", 12, "an earlier acquisition"),
    ]
    by_folder = read_cohort(shared_data).cases
    names = {case.name for case in by_folder if case.files}
    assert names == {"neg_dcm_hcc002_2phases_dupz", "ts_example_ct_dicom_slab_pv"}
