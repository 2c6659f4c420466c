"""Collections as downloaded become manifests: one CT a patient, and all exclusions counted."""

import csv
from copy import deepcopy

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image, liver_array

pytest.importorskip("highdicom")
pytest.importorskip("matplotlib")
from public_copies import (
    FRAME,
    LIVER,
    SPLEEN,
    TUMOUR,
    VEIN,
    changed,
    ct,
    masks,
    mr,
    seg,
    slices_of,
    workbook,
)

from cases.manifest import read_manifest
from LiverFibrosisStagingLib import read_ct
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.input_checks import REFUSE, Check, input_checks
from LiverFibrosisStagingLib.imaging.reading import read_mask
from public import examination
from public.command import main

HCC = ("TCIA_ID", "Evidence_of_cirh", "CPS", "hepatitis")
CRLM = ("Patient-ID", "De-identify Scout Name", "NASH_score", "steatosis_yesno", "fibrosis_percent")
BIOTAB = ("bcr_patient_uuid", "bcr_patient_barcode", "ishak_fibrosis_score")


def unenhanced():
    hu = hu_array()
    hu[:, 16:40, 12:36] -= 60  # liver 50
    return hu


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The organs of `hu_array` instead of the network's; its phase by the liver's mean only.

    A CT of another size has no liver.
    """

    def organs_of(image):
        labels = liver_array()
        if image.GetSize() != (72, 64, 24):
            raise StagingError("no liver was found.")
        labels[masks()[SPLEEN]] = 2
        made = sitk.GetImageFromArray(labels)
        made.CopyInformation(image)
        return made

    def input_checks(image, liver, spleen):
        mean = sitk.GetArrayFromImage(image)[sitk.GetArrayFromImage(liver) > 0].mean()
        if mean > 80:
            return "portal-venous", ()
        return "unenhanced", (Check("phase", "Contrast phase", REFUSE, ""),)

    monkeypatch.setattr(examination, "organs_of", organs_of)
    monkeypatch.setattr(examination, "input_checks", input_checks)


def make(collection, images, table, output, *more):
    folders = images if isinstance(images, list) else [images]
    arguments = [collection, "--images", *map(str, folders), "--table", str(table)]
    return main([*arguments, "-o", str(output), "--workers", "1", *more])


def rows(path):
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def excluded(output, *units):
    """(patient, unit, reason) -> count, of the exclusions beside a manifest."""
    counts = {}
    for row in rows(output.parent / "exclusions.csv"):
        if not units or row["unit"] in units:
            key = row["patient"], row["reason"]
            counts[key] = counts.get(key, 0) + int(row["count"])
    return counts


def check_flow(output):
    """Everything that was found is either included or excluded."""
    flow = rows(output.parent / "flow.csv")
    for unit in ("patients", "CTs", "segmentations"):
        steps = {row["step"]: int(row["count"]) for row in flow if row["unit"] == unit}
        left = sum(count for step, count in steps.items() if step.startswith("excluded: "))
        assert steps["found"] == left + steps["included"], unit
        assert left == sum(excluded(output, unit).values()), unit
    assert (output.parent / "flow_chart.png").stat().st_size > 1000


@pytest.fixture(scope="module")
def hcc(tmp_path_factory):
    """HCC-TACE-Seg in the layout of The Cancer Imaging Archive, and its table."""
    root = tmp_path_factory.mktemp("hcc")
    images = root / "manifest-1643035385102" / "HCC-TACE-Seg"
    first = images / "HCC_001" / "01-01-2000-NA-CT ABDOMEN-1" / "4.000000-Recon 2 LIVER 3 PHASE-1"
    named = {"description": "Recon 2: LIVER 3 PHASE (AP)"}
    # The reader's own order takes the later acquisition, here the one without contrast.
    for patient, study, folder in (("HCC_001", "1", first), ("HCC_002", "2", images / "HCC_002")):
        ct(folder, patient, study, "4", "1", prefix="1-", **named)
        ct(folder, patient, study, "4", "2", prefix="2-", hu=unenhanced(), **named)
    drawn = masks()
    segs = first.parent
    made = seg(segs / "300-Segmentation-1" / "1-1.dcm", slices_of(first, "1-"), drawn)
    changed(made, segs / "301-Segmentation-2" / "1-1.dcm", (FRAME, "1.2.3.4"), made="20020101")
    # Of the acquisition without contrast, and of a CT that was not downloaded.
    for number, uid in ((302, "1.2.826.1.4.2."), (304, "1.2.826.9.4.1.")):
        path = segs / f"{number}-Segmentation" / "1-1.dcm"
        changed(made, path, ("1.2.826.1.4.1.", uid), ("1.2.826.1.4\0", f"{uid[:-3]}\0"))
    changed(made, segs / "303-Segmentation-4" / "1-1.dcm", made="19990101")
    mr(images / "HCC_001" / "MR", "HCC_001")
    ct(segs / "1.000000-SCOUT", "HCC_001", series="1", description="SCOUT")
    ct(segs / "5.0-TEST", "HCC_001", series="5", hu=hu_array(3))
    ct(images / "HCC_001" / "06-01-2000", "HCC_001", "11", date="20000601")
    ct(images / "HCC_003", "HCC_003", "3")
    ct(images / "HCC_001" / "misplaced", "HCC_999", "4")
    mr(images / "HCC_005", "HCC_005", "5")
    (images / "LICENSE").write_text("CC BY 4.0")
    (root / "manifest-1643035385102" / "metadata.csv").write_text("Series UID,Subject ID\n")
    table = workbook(
        root / "clinical.xlsx",
        HCC,
        ("HCC_001", 1, "A", "HCV only"),
        ("HCC_002", 0, "B", "No virus"),
        ("HCC_003", "NA", "A", "NA"),
        ("HCC_004", 1, "A", "HBV only"),
        ("HCC_005", 1, "C", "HBV only"),
    )
    return images.parent, table


def liver_mean(path):
    return sitk.GetArrayFromImage(read_ct(path))[masks()[LIVER]].mean()


def test_hcc_tace_seg_as_downloaded(hcc, tmp_path, capsys):
    output = tmp_path / "out" / "manifest.csv"
    assert make("hcc-tace-seg", *hcc, output) == 0
    one, two = read_manifest(output)
    assert [(case.patient, str(case.stages), case.phase) for case in (one, two)] == [
        ("HCC_001", "F4", "portal venous"),
        ("HCC_002", "F0-F3", "portal venous"),
    ]
    for case in (one, two):  # not the acquisition without contrast
        assert liver_mean(case.ct) == pytest.approx(110, abs=1)
        assert case.ct.is_file()
    labels = sitk.ReadImage(one.liver)
    drawn = masks()
    liver = drawn[LIVER] | drawn[TUMOUR]
    found = sitk.GetArrayFromImage(labels)
    np.testing.assert_array_equal(found == 1, liver)
    np.testing.assert_array_equal(found == 2, drawn[SPLEEN])
    assert labels.GetOrigin() == pytest.approx(read_ct(one.ct).GetOrigin())
    first, second = rows(output)
    voxel = np.prod(labels.GetSpacing()) / 1000
    assert float(first["tumour_ml"]) == pytest.approx(drawn[TUMOUR].sum() * voxel, abs=0.05)
    assert (first["child_pugh"], first["hepatitis"]) == ("A", "HCV only")
    assert (first["mask"], second["mask"]) == ("DICOM segmentation", "")
    assert "Evidence_of_cirh" in first["label"] and second["liver"] == ""
    assert (one.scanner, one.kernel, one.age, one.sex) == ("MAKER Scan 9", "SOFT", 61, "F")
    assert one.thickness == pytest.approx(labels.GetSpacing()[2])

    left = excluded(output, "patients")
    codes = {reason: patient for patient, reason in left}
    stranger = codes["CTs, but not in the clinical table"]
    assert stranger.startswith("case-")  # the PatientID is not written
    assert left == {
        (stranger, "CTs, but not in the clinical table"): 1,
        ("HCC_003", "no stage in the clinical table"): 1,
        ("HCC_004", "in the clinical table, but no CT"): 1,
        ("HCC_005", "in the clinical table, but no CT"): 1,
    }
    assert excluded(output, "CTs") == {
        (stranger, "of a patient who is excluded"): 1,
        ("HCC_001", "another phase by its HU"): 1,
        ("HCC_001", "in a later study, or in none that is known"): 1,
        ("HCC_001", "fewer than 10 slices"): 1,
        ("HCC_002", "another phase by its HU"): 1,
        ("HCC_003", "of a patient who is excluded"): 1,
    }
    assert excluded(output, "segmentations") == {
        ("HCC_001", "another frame of reference than its CT"): 1,
        ("HCC_001", "drawn on a CT that was not taken"): 1,
        ("HCC_001", "another segmentation of the CT has its organs"): 1,
        ("HCC_001", "refers to no CT that was found"): 1,
    }
    assert excluded(output, "other files") == {
        ("HCC_001", "modality MR"): 24,
        ("HCC_001", "localizers"): 24,
        ("HCC_005", "modality MR"): 24,
    }
    check_flow(output)
    printed = capsys.readouterr().out
    assert "6 patients, 2 in the manifest." in printed and "Stages: F0-F3 1, F4 1." in printed
    assert "Research use only" in printed
    written = "".join(p.read_text() for p in output.parent.glob("*.csv") if p != output)
    assert "misplaced" not in written and "HCC_999" not in written


def test_tumours_are_taken_out_of_the_mask_on_request(hcc, tmp_path):
    images, table = hcc
    (study,) = images.glob("*/HCC_001/01-01-2000*")
    output = tmp_path / "manifest.csv"
    assert make("hcc-tace-seg", study, table, output, "--tumour", "mask") == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "masks" / "HCC_001.nii.gz"))
    np.testing.assert_array_equal(found == 1, masks()[LIVER])


def test_a_segmentation_that_refers_to_the_whole_series_says_so(hcc, tmp_path):
    images, table = hcc
    (folder,) = images.glob("*/HCC_002")
    sources = [slices_of(folder, prefix) for prefix in ("1-", "2-")]
    made = seg(tmp_path / "seg" / "s.dcm", sources[0], {LIVER: masks()[LIVER]})
    for group in made.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    referred = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    for each in sources[1]:
        other = deepcopy(referred[0])
        other.ReferencedSOPInstanceUID = each.SOPInstanceUID
        referred.append(other)
    changed(made, tmp_path / "seg" / "s.dcm")
    output = tmp_path / "manifest.csv"
    assert make("hcc-tace-seg", [folder, tmp_path / "seg"], table, output) == 0
    (row,) = rows(output)
    assert row["mask"] == "DICOM segmentation of several acquisitions" and row["liver"]
    assert liver_mean(tmp_path / row["ct"]) == pytest.approx(110, abs=1)
    check_flow(output)


def biotab(path, *patients):
    lines = [BIOTAB, BIOTAB, ("CDE_ID:", "CDE_ID:2003301", "CDE_ID:3182621")]
    lines += [(f"uuid-{n}", *patient) for n, patient in enumerate(patients)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


def test_tcga_lihc_as_downloaded_from_imaging_data_commons(tmp_path):
    """Folders named after series only; all files of some patients in one folder."""
    images = tmp_path / "idc"
    # Before the study of the liver, one of something else, in which no liver is found.
    other = hu_array()[:, :60]
    ct(images / "0", "TCGA-DD-A001", "0", "1", hu=other, date="19991201", description="VENOUS")
    ct(images / "6a1b-0001", "TCGA-DD-A001", "1", "1", description="ARTERIAL")
    ct(images / "6a1b-0002", "tcga-dd-a001 ", "1", "2", description="VENOUS 5.0")
    ct(images / "6a1b-0003", "TCGA-DD-A001", "1", "3", description="DELAYED 5 MIN")
    mr(images / "6a1b-0004", "TCGA-DD-A001", "1")
    flat = images / "flat"
    for number, patient in ((2, "TCGA-BC-A002"), (3, "TCGA-BC-A003")):
        study = str(number)
        ct(flat, patient, study, "1", description="ARTERIAL", prefix=f"{number}a")
        ct(flat, patient, study, "2", description="LIVER", prefix=f"{number}b", hu=unenhanced())
        ct(flat, patient, study, "3", description="PORTAL VENOUS", prefix=f"{number}c")
    # One study of a patient has no date, so that the first one is not known.
    ct(images / "4a", "TCGA-G3-A004", "4")
    ct(images / "4b", "TCGA-G3-A004", "44", date="")
    ct(images / "5", "TCGA-G3-A005", "5", description="ARTERIAL")
    ct(images / "5b", "TCGA-G3-A005", "5", "2", description="VENOUS", hu=unenhanced())
    # A series in two folders, half of the slices each.
    whole = ct(images / "6" / "a", "TCGA-G3-A006", "6")
    (images / "6" / "b").mkdir()
    for path in sorted(whole.iterdir())[12:]:
        path.rename(images / "6" / "b" / path.name)
    ct(images / "6" / "c", "TCGA-G3-A006", "6", "2", description="ARTERIAL")
    ct(images / "6" / "a", "TCGA-G3-A006", "6", "3", description="ARTERIAL", prefix="art")
    table = biotab(
        tmp_path / "t.txt",
        ("TCGA-DD-A001", "1,2 - Portal Fibrosis"),
        ("TCGA-BC-A002", "3,4 - Fibrous Speta"),
        ("TCGA-BC-A003", "6 - Established Cirrhosis"),
        ("TCGA-G3-A004", "0 - No Fibrosis"),
        ("TCGA-G3-A005", "0 - No Fibrosis"),
        ("TCGA-G3-A006", "0 - No Fibrosis"),
    )
    output = tmp_path / "manifest.csv"
    assert make("tcga-lihc", images, table, output) == 0
    cases = {case.patient: case for case in read_manifest(output)}
    assert {name: (str(case.stages), case.site) for name, case in cases.items()} == {
        "TCGA-DD-A001": ("F1", "TCGA-DD"),
        "TCGA-BC-A002": ("F2-F3", "TCGA-BC"),
        "TCGA-BC-A003": ("F4", "TCGA-BC"),
        "TCGA-G3-A006": ("F0", "TCGA-G3"),
    }
    assert cases["TCGA-DD-A001"].ct == images / "6a1b-0002"
    assert [cases[name].ct.name[:2] for name in ("TCGA-BC-A002", "TCGA-BC-A003")] == ["2c", "3c"]
    copy = cases["TCGA-G3-A006"].ct
    assert copy == tmp_path / "cts" / "TCGA-G3-A006.nii.gz"
    for case in cases.values():
        assert liver_mean(case.ct) == pytest.approx(110, abs=1)
        assert "Goodman" in case.label and case.phase == "portal venous"
    left = excluded(output, "patients")
    assert left == {
        ("TCGA-G3-A004", "several studies, and not all have a date"): 1,
        ("TCGA-G3-A005", "no portal-venous CT in the first study"): 1,
    }
    assert excluded(output, "CTs")["TCGA-DD-A001", "no liver in it, or only a small part"] == 1
    check_flow(output)
    # The command does not read its own copies as images.
    assert make("tcga-lihc", [images / "6", tmp_path / "cts"], table, output) == 0
    assert [case.patient for case in read_manifest(output)] == ["TCGA-G3-A006"]
    assert not excluded(output, "other files")


def test_crlm_has_findings_but_no_stage(tmp_path, capsys):
    images = tmp_path / "images"
    folder = ct(images / "a", "CRLM-CT-1001")
    drawn = masks()
    seg(images / "b" / "s.dcm", slices_of(folder), {LIVER: drawn[LIVER], VEIN: drawn[VEIN]})
    table = workbook(tmp_path / "t.xlsx", CRLM, ("CRLM-CT-1001", "CRLM-CT-1001", 3, -999, 40))
    output = tmp_path / "manifest.csv"
    assert make("crlm", images, table, output) == 0
    (row,) = rows(output)
    assert (row["stage"], row["nash_score"]) == ("F0-F4", "3")
    assert "steatosis_yesno" not in row and "fibrosis_percent" not in row
    found = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / row["liver"]))
    np.testing.assert_array_equal(found, drawn[LIVER])
    assert "Without a known stage (F0-F4): 1." in capsys.readouterr().out
    check_flow(output)


def test_nifti_files_belong_to_the_patient_in_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "input_checks", input_checks)
    images = tmp_path / "images"
    for name, hu in (
        ("hcc011_portal/ct.nii.gz", hu_array()),
        ("hcc011_other/ct.nii.gz", unenhanced()),
        ("x/HCC_012.nii.gz", hu_array()),
        ("hcc013/hcc-014 hcc015.nii.gz", hu_array()),
        ("hcc0110/ct.nii.gz", hu_array()),
        ("hcc016/ct.nii.gz", hu_array()[:, :60]),
        ("HCC_012/liver.nii.gz", liver_array()),
    ):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image(hu), str(images / name))
    names = [f"HCC_{n:03d}" for n in range(11, 17)]
    table = workbook(tmp_path / "t.xlsx", HCC, *((name, 1, "A", "NA") for name in names))
    output = tmp_path / "manifest.csv"
    assert make("hcc-tace-seg", images, table, output) == 0
    found = {case.patient: case.ct for case in read_manifest(output)}
    assert found == {
        "HCC_011": images / "hcc011_portal" / "ct.nii.gz",
        "HCC_012": images / "x" / "HCC_012.nii.gz",
    }
    assert excluded(output, "CTs") == {
        ("HCC_011", "another phase by its HU"): 1,
        ("HCC_016", "no liver in it, or only a small part"): 1,
    }
    assert excluded(output, "other files") == {
        ("", "image files whose names contain no patient of the table, or several"): 2,
        ("", "label images"): 1,
    }
    check_flow(output)


def test_damaged_cts_are_counted(tmp_path, capsys):
    images = tmp_path / "images"
    gap = ct(images / "1", "HCC_001", "1")
    sorted(gap.iterdir())[12].unlink()
    ct(images / "2", "HCC_002", "2")
    (images / "2" / "IM003.dcm").write_bytes(b"nothing")
    twice = ct(images / "2b", "HCC_002", "2")
    ct(images / "3", "", "3")
    table = workbook(tmp_path / "t.xlsx", HCC, *((f"HCC_00{n}", 1, "A", "NA") for n in (1, 2)))
    output = tmp_path / "manifest.csv"
    assert make("hcc-tace-seg", images, table, output) == 0
    assert [(case.patient, case.ct) for case in read_manifest(output)] == [("HCC_002", twice)]
    assert excluded(output, "patients") == {("HCC_001", "no usable CT in the first study"): 1}
    assert excluded(output, "CTs") == {("HCC_001", "the CT or its masks cannot be read"): 1}
    assert excluded(output, "other files") == {
        ("", "damaged DICOM files"): 1,
        ("", "CT slices without PatientID"): 24,
        ("", "repeated CT slices"): 23,
    }
    assert "missing" in capsys.readouterr().err
    check_flow(output)


def test_odd_values_are_refused_with_their_lines_and_nothing_is_written(tmp_path, capsys):
    ct(tmp_path / "images", "HCC_001")
    table = workbook(tmp_path / "t.xlsx", HCC, ("HCC_001", 2, "A", "NA"), ("HCC_1", 1, "D", "NA"))
    output = tmp_path / "out" / "manifest.csv"
    assert make("hcc-tace-seg", tmp_path / "images", table, output) == 1
    said = capsys.readouterr().err
    assert "line 2: Evidence_of_cirh is '2'" in said and "line 3: TCIA_ID is 'HCC_1'" in said
    table = workbook(tmp_path / "t.xlsx", HCC, ("HCC_002", 1, "A", "NA"))
    assert make("hcc-tace-seg", tmp_path / "images", table, output) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not any((tmp_path / "out").rglob("*"))


def test_impossible_options_are_refused_before_any_ct_is_read(tmp_path, capsys):
    table, images = workbook(tmp_path / "t.xlsx", HCC), tmp_path / "images"
    images.mkdir()
    (images / "LICENSE").write_text("CC BY 4.0")
    for workers in ("0", "-2", "two"):
        with pytest.raises(SystemExit):
            make("hcc-tace-seg", images, table, tmp_path / "m.csv", "--workers", workers)
        assert f"argument --workers: {workers}: 1 or more" in capsys.readouterr().err
    assert make("hcc-tace-seg", images, table, tmp_path) == 1
    assert "a folder; the name of a file is needed" in capsys.readouterr().err
    (tmp_path / "cts").mkdir()
    mine = tmp_path / "cts" / "HCC_001.nii.gz"
    mine.write_bytes(b"mine")
    assert make("hcc-tace-seg", images, table, tmp_path / "m.csv") == 1
    assert "exists, and not from an earlier run" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("collection", "identifier"),
    [
        ("tcga-lihc", "tcga_lihc"),
        ("hcc-tace-seg", "hcc_tace_seg"),
        ("crlm", "colorectal_liver_metastases"),
    ],
)
def test_the_download_is_explained(collection, identifier, tmp_path, capsys):
    line = f"idc download {identifier} --download-dir FOLDER"
    assert main([collection, "--how-to-download"]) == 0
    assert line in capsys.readouterr().out
    for arguments in ([], ["--images", str(tmp_path)], ["--images", str(tmp_path / "none")]):
        assert main([collection, *arguments, "--table", "t"]) == 1
        assert line in capsys.readouterr().err


def test_the_real_cts_of_hcc_tace_seg(shared_data, tmp_path, monkeypatch):
    """The arterial CT of HCC_011 is told by its HU; the other one has the table's label."""
    network = examination.segment_checked

    def organs_of(image):
        if image.GetSize()[2] != 87:  # the arterial CT has no mask
            return network(image, "The CT", examination.shipped_network()).labels
        return read_mask(found[1] / "seg_semiauto_liver1_spleen2.nii.gz")

    monkeypatch.setattr(examination, "organs_of", organs_of)
    monkeypatch.setattr(examination, "input_checks", input_checks)
    found = [shared_data / f"hcc011_cirrA_{phase}" for phase in ("art", "pv")]
    table = shared_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.xlsx"
    output = tmp_path / "manifest.csv"
    assert make("hcc-tace-seg", found, table, output) == 0
    (case,) = read_manifest(output)
    assert (case.patient, str(case.stages), case.phase) == ("HCC_011", "F4", "portal venous")
    assert case.ct.samefile(found[1] / "ct.nii.gz")
    assert case.others == {"child_pugh": "A", "hepatitis": "HCV and HBV"}
    assert excluded(output, "CTs") == {("HCC_011", "another phase by its HU"): 1}
    assert sum(excluded(output, "patients").values()) == 104
    check_flow(output)
