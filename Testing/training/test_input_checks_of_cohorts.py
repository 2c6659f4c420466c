"""CTs and masks are checked before training; livers without a mask are outlined once."""

import csv
import json
from dataclasses import replace

import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image, write_slices
from phantom_cohorts import TINY, write_cohort

pytest.importorskip("matplotlib")
from cases import inputs
from cases.manifest import EVERYONE, Inclusion, ManifestError, apply, read_manifest
from cases.report import table_1
from common.resume import digests
from LiverFibrosisStagingLib.imaging.masks import organ_masks, read_organ


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Phantoms: with masks; without; with a spleen only; arterial; unreadable; without HU."""
    folder = tmp_path_factory.mktemp("Mustermann_Erika")
    cases = read_manifest(write_cohort(folder, [0, 1, 4, 3, 2, 2], **TINY))
    cases[1] = replace(cases[1], liver=None, spleen=None)
    cases[2] = replace(cases[2], liver=None)
    cases[4].ct.write_bytes(b"no image")
    sitk.WriteImage(sitk.ReadImage(str(cases[5].ct)) * 0 + 50, str(cases[5].ct))
    # As dark as before contrast: liver and spleen of 50 HU, blood of 40 HU.
    ct = sitk.ReadImage(str(cases[3].ct))
    sitk.WriteImage(sitk.Clamp(ct, ct.GetPixelID(), -1024, 50), str(cases[3].ct))
    return apply(cases, EVERYONE)


@pytest.fixture(scope="module")
def checked(cohort, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    found = inputs.check_inputs(cohort, run, workers=1)
    inputs.write_tables(found, run)
    return run, found


def test_refused_cases_are_excluded_with_the_reason(checked):
    run, found = checked
    assert [case.name for case in found.inclusion.included] == ["p0", "p1", "p2"]
    assert all(found.digests(case) == digests(case.ct) for case in found.inclusion.included)
    assert {case.name: why for case, why in found.inclusion.excluded} == {
        "p3": "another contrast phase",
        "p4": "the CT cannot be read",
        "p5": "not a CT that can be staged",
    }
    refused = {row["case"]: row for row in rows(run / "tables" / "refused.csv")}
    assert {name: row["line"] for name, row in refused.items()} == {"p3": "5", "p4": "6", "p5": "7"}
    assert "portal-venous phase is needed" in refused["p3"]["reason"]
    assert "values are not in HU" in refused["p5"]["reason"]
    sentences = dict(inputs.refusals(found))
    assert {case.name: text for case, text in sentences.items()} == {
        name: row["reason"] for name, row in refused.items()
    }


def test_output_has_no_names_of_files_and_folders(checked, cohort):
    run, _ = checked
    files = [path for path in run.rglob("*") if path.suffix in (".csv", ".json")]
    assert len(files) == 9
    for path in files:
        text = path.read_text(encoding="utf-8").lower()
        assert "mustermann" not in text and "erika" not in text and "case4_ct" not in text


def test_livers_without_a_mask_are_outlined(checked, cohort):
    run, found = checked
    whole, outlined, half = found.inclusion.included
    assert not whole.outlined and whole.liver == cohort.included[0].liver
    assert outlined.outlined and outlined.liver == run / "masks" / "p1.nii.gz"
    assert (half.spleen, str(half.liver)) == (
        cohort.included[2].spleen,
        str(run / "masks" / "p2.nii.gz") + ":1",
    )
    ct = sitk.ReadImage(str(outlined.ct))
    drawn = [read_organ(ct_case) for ct_case in (outlined.liver, half.liver)]
    liver, spleen, warnings = organ_masks(ct, drawn[0], None)
    assert warnings == ()
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    for mask, organ in ((liver, "liver"), (spleen, "spleen")):
        truth = sitk.ReadImage(str(outlined.ct).replace("_ct", f"_{organ}"))
        overlap.Execute(sitk.Cast(mask, sitk.sitkUInt8), sitk.Cast(truth, sitk.sitkUInt8))
        assert overlap.GetDiceCoefficient() > 0.8
    series = {row["case"]: row for row in rows(run / "tables" / "series.csv")}
    masks = {name: (row["liver"], row["spleen"]) for name, row in series.items()}
    assert masks["p0"] == ("given", "given") and masks["p1"] == ("automatic", "automatic")
    assert masks["p2"] == ("automatic", "given")
    assert (series["p1"]["kind"], series["p1"]["slices"]) == ("NIfTI", "28")
    assert series["p1"]["spacing_mm"] == "6 x 6 x 8"
    worries = rows(run / "tables" / "concerns.csv")
    assert any("slices are 8 mm thick" in row["concern"] for row in worries)
    assert {r["case"] for r in worries if "segmented automatically" in r["concern"]} == {"p1", "p2"}
    assert table_1(found.inclusion.included)[-1][-1] == "2"


def test_nothing_is_done_again_unless_its_inputs_change(checked, cohort, monkeypatch):
    run, found = checked
    done = []

    def count(case, *arguments):
        done.append(case.name)
        return check(case, *arguments)

    check = inputs._check_one
    monkeypatch.setattr(inputs, "_check_one", count)
    again = inputs.check_inputs(cohort, run, workers=1)
    assert done == [] and again.records == found.records
    assert again.inclusion == found.inclusion
    (run / "masks" / "p1.nii.gz").write_bytes(b"changed")
    few = Inclusion(cohort.included[:2], [])
    assert (
        inputs.check_inputs(few, run, workers=1).inclusion.included == again.inclusion.included[:2]
    )
    assert done == ["p1"]
    assert inputs._read(cohort.included[1], run, {"network": "of another V-Net"}) is None


def test_another_phase_can_be_allowed(cohort, tmp_path):
    arterial = Inclusion(cohort.included[3:4], [])
    assert not inputs.check_inputs(arterial, tmp_path, workers=1).inclusion.included
    found = inputs.check_inputs(arterial, tmp_path, any_phase=True, workers=1)
    assert [case.name for case in found.inclusion.included] == ["p3"]
    assert any("portal-venous" in text for text in found.records["p3"]["concerns"])


def test_a_scan_too_short_for_the_network_is_refused(cohort, tmp_path):
    patch = inputs.Patch(64, 16.0)
    found = inputs.check_inputs(Inclusion(cohort.included[:1], []), tmp_path, patch, workers=1)
    ((_, why),) = inputs.refusals(found)
    assert "would be copies of the first and last slice" in why
    with pytest.raises(ManifestError, match="line 2: left out: The CT: the scan spans"):
        inputs.check_some(found, tmp_path / "cohort.csv")


def test_dicom_tells_the_acquisition_without_names(tmp_path, cohort):
    tags = {
        "0010|0010": "Doe^Jane",
        "0010|0020": "4711",
        "0008|103e": "JANE_DOE 4711 portal venous 20240131",
        "0020|0011": "7",
        "0018|1210": "B30f",
        "0018|0050": "2.5",
        "0008|0070": "SIEMENS",
        "0008|1090": "Sensation 64",
    }
    folder = write_slices(tmp_path / "ct", image(hu_array(12)), tags)
    case = replace(cohort.included[0], ct=folder, kernel="soft")
    record = {"series": inputs._series(case, inputs.read_ct(folder))}
    assert {key: record["series"][key] for key in inputs.SERIES[:6]} == {
        "kind": "DICOM",
        "series": "7",
        "description": "portal venous",
        "scanner": "SIEMENS Sensation 64",
        "kernel": "B30f",
        "thickness_mm": 2.5,
    }
    completed = inputs._completed(case, record, tmp_path)
    # What the manifest says is kept.
    assert (completed.scanner, completed.kernel) == ("SIEMENS Sensation 64", "soft")
    assert completed.thickness == 2.5
    assert "jane" not in json.dumps(record).lower() and "4711" not in json.dumps(record)
