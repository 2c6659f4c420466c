"""stage --dicom: files that validators accept, with the result's numbers and the source's patient.

The validators are Debian's packages dicom3tools and dcmtk; without them, their tests are skipped.
"""

import json
import shutil
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image, liver_array, write, write_slices
from dicom_frames import SUMMARY, check_frames, errors_of, frames_of, organs_and_map, run

from LiverFibrosisStagingLib import StagingError, stage
from LiverFibrosisStagingLib.__main__ import DONE, REFUSED, main
from LiverFibrosisStagingLib.dicom_output.writing import FILES, write_dicom
from LiverFibrosisStagingLib.imaging.reading import read_ct, source_files

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

SECRETS = ("Roe", "JANE-77", "ACC-4711", "19500213", "Mill Hospital", "Dr^Who")
TAGS = {
    "0008|0020": "20200102",
    "0008|0030": "101500",
    "0008|0050": "ACC-4711",
    "0008|0080": "Mill Hospital",
    "0008|0090": "Dr^Who",
    "0008|103e": "Roe abdomen portal venous",
    "0010|0010": "Roe^Jane",
    "0010|0020": "JANE-77",
    "0010|0030": "19500213",
    "0010|0040": "F",
    "0020|0010": "S1",
    "0020|0052": "1.2.3.9",
}


def abdomen():
    hu, organs = hu_array(), liver_array()
    hu[6:16, 20:36, 46:58] = 120
    organs[6:16, 20:36, 46:58] = 2
    return image(hu), image(organs)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A DICOM folder named after a patient, and a label image with liver and spleen."""
    root = tmp_path_factory.mktemp("in")
    ct, organs = abdomen()
    sitk.WriteImage(organs, str(root / "organs.nii.gz"))
    return write_slices(root / "Roe_Jane", ct, TAGS), root / "organs.nii.gz"


@pytest.fixture(scope="module")
def staged(scan, single_path, tmp_path_factory):
    """The folder that the command has written."""
    out = tmp_path_factory.mktemp("out") / "result"
    ct, organs = map(str, scan)
    command = ["stage", ct, "--liver", organs, "--model", str(single_path), "--dicom"]
    assert main([*command, "-o", str(out)]) == DONE
    return out


@pytest.fixture(scope="module")
def objects(staged):
    return [pydicom.dcmread(staged / "dicom" / name) for name in FILES]


@pytest.mark.parametrize("name", FILES)
def test_dciodvfy_finds_no_error(name, staged):
    assert errors_of(staged / "dicom" / name) == []


def test_dsrdump_reads_the_report(staged):
    found = run("dsrdump", "dcmtk", "+Pc", "+Pl", str(staged / "dicom" / "measurements.dcm"))
    summary = json.loads((staged / "staging.json").read_text(encoding="utf-8"))
    assert found.returncode == 0 and "Comprehensive SR Document" in found.stdout
    assert summary["research_use"] in found.stdout and "Roe^Jane" in found.stdout
    assert f'METAVIR stage {summary["stage"]}"' in found.stdout
    assert not [line for line in found.stderr.splitlines() if line[:2] in ("E:", "F:")]


def test_the_segmentation_is_the_mask_of_the_result(objects, staged, scan):
    segments = objects[0]
    organs = sitk.ReadImage(str(staged / "organs.seg.nrrd"))
    files = sorted(scan[0].iterdir())
    check_frames(segments, segments.pixel_array, organs, files)
    made = np.zeros(organs.GetSize()[::-1], np.uint8)
    for position, number, _, values in frames_of(segments, segments.pixel_array):
        made[organs.TransformPhysicalPointToIndex(position.tolist())[2]][values > 0] = number
    truth = sitk.GetArrayFromImage(organs)
    for label in (1, 2):
        one, two = made == label, truth == label
        assert two.any() and 2 * (one & two).sum() / (one.sum() + two.sum()) == 1.0
    # An independent reader of the geometry: highdicom's volume, whose axes are slice, row, column.
    volume = highdicom.seg.segread(staged / "dicom" / FILES[0]).get_volume(combine_segments=True)
    where = np.argwhere(volume.array == 2)
    centre = (volume.affine @ [*where.mean(axis=0), 1.0])[:3]
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(organs)
    np.testing.assert_allclose(centre, statistics.GetCentroid(2), atol=1e-3)


def test_the_parametric_map_has_the_values_of_the_location_map(objects, staged, scan):
    mapped = objects[1]
    location_map = sitk.ReadImage(str(staged / "location_map.nrrd"))
    check_frames(mapped, mapped.pixel_array, location_map, sorted(scan[0].iterdir()))
    values = sitk.GetArrayFromImage(location_map)
    made = np.zeros_like(values)
    for position, _, _, frame in frames_of(mapped, mapped.pixel_array):
        made[location_map.TransformPhysicalPointToIndex(position.tolist())[2]] = frame
    np.testing.assert_array_equal(made, values)
    (mapping,) = mapped.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == pytest.approx(values.max())
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    (quantity,) = mapping.QuantityDefinitionSequence
    assert "Grad-CAM attention" in quantity.ConceptCodeSequence[0].CodeMeaning


def items(dataset):
    for item in dataset.get("ContentSequence", ()):
        yield item
        yield from items(item)


def numbers(group):
    """(name's code, derivation's code) -> value and unit of a group's measurements."""
    found = {}
    for item in group.ContentSequence:
        if item.ValueType == "NUM":
            derived = [
                each.ConceptCodeSequence[0].CodeValue
                for each in item.get("ContentSequence", ())
                if each.ConceptNameCodeSequence[0].CodeValue == "121401"
            ]
            (value,) = item.MeasuredValueSequence
            unit = value.MeasurementUnitsCodeSequence[0].CodeValue
            key = (item.ConceptNameCodeSequence[0].CodeValue, *derived)
            found[key] = (float(value.NumericValue), unit)
    return found


def test_the_report_has_the_numbers_of_the_result(objects, staged):
    segments, mapped, report = objects
    summary = json.loads((staged / "staging.json").read_text(encoding="utf-8"))
    groups = {}
    for item in items(report):
        if item.ValueType == "CONTAINER" and "Group" in item.ConceptNameCodeSequence[0].CodeMeaning:
            groups[item.ContentSequence[0].TextValue] = item
    stages = numbers(groups["Stage of liver fibrosis"])
    for name, value in {**summary["probabilities"], **summary["scores"]}.items():
        assert stages[(f"P_{name.upper()}",)] == (pytest.approx(value), "1")
    answers = {
        item.ConceptNameCodeSequence[0].CodeValue: item.ConceptCodeSequence[0].CodeMeaning
        for item in groups["Stage of liver fibrosis"].ContentSequence
        if item.ValueType == "CODE"
    }
    for name, found in summary["operating_points"].items():
        assert answers[f"POS_{name.upper()}"] == ("Yes" if found["positive"] else "No")
    signs, regions = summary["signs"], summary["measurements"]
    for organ in ("liver", "spleen"):
        found = numbers(groups[organ.capitalize()])
        volume = signs[f"{organ}_volume_ml"]
        assert found[("118565006",)] == (pytest.approx(volume), "mL") and volume > 0
        assert found["112031", "373098007"] == (
            pytest.approx(signs[f"{organ}_mean_hu"]),
            "[hnsf'U]",
        )
        assert found["112031", "386136009"] == (pytest.approx(signs[f"{organ}_sd_hu"]), "[hnsf'U]")
        assert found["ATTENTION", "373098007"] == (pytest.approx(regions[organ]["mean"]), "1")
        assert found[("ATTENTION_SHARE",)] == (pytest.approx(100 * regions[organ]["share"]), "%")
        (referred,) = (
            item.ReferencedSOPSequence[0]
            for item in groups[organ.capitalize()].ContentSequence
            if item.ValueType == "IMAGE"
        )
        assert referred.ReferencedSOPInstanceUID == segments.SOPInstanceUID
        number = referred.ReferencedSegmentNumber
        assert segments.SegmentSequence[number - 1].SegmentLabel == organ.capitalize()
    shell = numbers(groups["Outer shell of the liver, along its surface"])
    assert shell[("118565006",)] == (pytest.approx(regions["liver_surface"]["volume_ml"]), "mL")
    ratio = numbers(groups["Signs of liver fibrosis"])[("SPLEEN_TO_LIVER",)]
    assert ratio == (pytest.approx(signs["spleen_liver_ratio"]), "1")
    texts = [item.TextValue for item in items(report) if item.ValueType == "TEXT"]
    assert summary["research_use"] in texts
    assert f"Model SHA-256: {summary['model']['sha256']}" in texts
    point = summary["operating_points"]["cirrhosis"]["point"]
    assert f"Operating point of cirrhosis (F4): {point:.6g}" in texts
    assert {f"Warning: {warning}" for warning in summary["warnings"]} <= set(texts)
    evidence = {
        instance.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    source = {f"1.2.3.1.{number}" for number in range(1, 25)}
    assert evidence == {*source, segments.SOPInstanceUID, mapped.SOPInstanceUID}


def test_patient_and_study_are_copied_into_dicom_only(objects, staged, scan, capfd):
    for dataset in objects:
        assert dataset.PatientName == "Roe^Jane" and dataset.PatientID == "JANE-77"
        assert dataset.PatientBirthDate == "19500213" and dataset.PatientSex == "F"
        assert dataset.StudyInstanceUID == "1.2.3" and dataset.AccessionNumber == "ACC-4711"
        assert dataset.StudyDate == "20200102" and dataset.StudyID == "S1"
        assert dataset.SeriesInstanceUID != "1.2.3.1" and "research" in dataset.SeriesDescription
    others = [path for path in staged.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert len(others) == 5
    for path in others:
        content = path.read_bytes()
        if path.suffix == ".nrrd":
            header, _, voxels = content.partition(b"\n\n")
            content = header + zlib.decompress(voxels, 47)
        for secret in (*SECRETS, scan[0].name, str(scan[0].parent)):
            if path.suffix != ".png" or len(secret) > 4:
                assert secret.encode() not in content, (path, secret)


def test_a_result_without_dicom_replaces_one_with_dicom(scan, single, tmp_path):
    ct, organs = abdomen()
    result = stage(ct, liver=organs, model=single)
    files = source_files(read_ct(scan[0]))
    assert result.source_files == ()
    # In Slicer the image is a node's, and the files come from the DICOM database.
    result.save(tmp_path, dicom=files)
    assert sorted(path.name for path in (tmp_path / "dicom").iterdir()) == sorted(FILES)
    (tmp_path / "dicom" / "mine.txt").write_text("kept")
    result.save(tmp_path)
    assert [path.name for path in (tmp_path / "dicom").iterdir()] == ["mine.txt"]
    # A refusal keeps the earlier result and adds nothing.
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StagingError, match="not read from DICOM"):
        result.save(tmp_path, dicom=result.source_files)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_written_is_refused_before_staging(scan, tmp_path, capsys, monkeypatch):
    from LiverFibrosisStagingLib import staging
    from LiverFibrosisStagingLib.dicom_output import writing

    monkeypatch.setattr(staging, "stage", lambda *_: pytest.fail("staged"))
    for path in (nifti := write(tmp_path / "ct.nii.gz"), tmp_path / "anonymous", scan[0]):
        if path.name == "anonymous":
            shutil.copytree(scan[0], path)
            for file in path.iterdir():
                dataset = pydicom.dcmread(file)
                dataset.StudyInstanceUID = ""
                dataset.save_as(file)
        if path == scan[0]:
            monkeypatch.setattr(writing, "find_spec", lambda name: None)
        assert main(["stage", str(path), "-o", str(tmp_path / "out"), "--dicom"]) == REFUSED
        assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{nifti}: not DICOM; --dicom needs a DICOM folder or file."
    assert "StudyInstanceUID missing" in said[1]
    assert "pip install pydicom highdicom" in said[2] and len(said) == 3


def test_a_real_jpeg_2000_series(shared_data, tmp_path):
    """Its anonymisation has emptied the identifiers, which are filled in here."""
    real = shared_data / "ts_example_ct_dicom_slab_pv" / "dicom"
    folder = tmp_path / "ct"
    folder.mkdir()
    for path in real.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        dataset.save_as(folder / path.name)
    check_real(read_ct(folder), tmp_path / "out")
    with pytest.raises(StagingError, match="StudyInstanceUID missing"):
        write_dicom(tmp_path, source_files(ct := read_ct(real)), *organs_and_map(ct), SUMMARY)


def test_one_acquisition_of_a_real_series_of_two(shared_data, tmp_path):
    ct = read_ct(shared_data / "neg_dcm_hcc002_2phases_dupz" / "dicom")
    files = source_files(ct)
    acquisitions = {str(pydicom.dcmread(file).AcquisitionNumber) for file in files}
    assert len(files) == 12 and len(acquisitions) == 1
    check_real(ct, tmp_path / "out")


def check_real(ct, out):
    out.mkdir()
    organs, location_map = organs_and_map(ct)
    write_dicom(out, source_files(ct), organs, location_map, SUMMARY)
    segments, mapped, report = (pydicom.dcmread(out / name) for name in FILES)
    check_frames(segments, segments.pixel_array, organs, source_files(ct))
    check_frames(mapped, mapped.pixel_array, location_map, source_files(ct))
    for each in (segments, mapped, report):
        assert each.StudyInstanceUID == pydicom.dcmread(source_files(ct)[0]).StudyInstanceUID
    assert [error for name in FILES for error in errors_of(out / name)] == []
