"""DICOM output for slices whose headers are odd, incomplete or invalid."""

import logging
import warnings

import numpy as np
import pytest
from dicom_frames import SUMMARY, edited, errors_of, organs_and_map, series

from LiverFibrosisStagingLib.dicom_output.writing import FILES, write_dicom
from LiverFibrosisStagingLib.imaging.reading import read_ct, source_files

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")


def written(folder, files, organs, location_map):
    folder.mkdir()
    write_dicom(folder, files, organs, location_map, SUMMARY)
    return [folder / name for name in FILES]


def no_thickness(dataset):
    del dataset.SliceThickness


def empty_thickness(dataset):
    dataset.SliceThickness = None


def no_number(dataset):
    tag = dataset["SliceThickness"].tag
    dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, "DS", 4, b"thin", 0, False, True)


def negative_spacing(dataset):
    dataset.SpacingBetweenSlices = -3


def lossy(dataset):
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = [10]
    dataset.LossyImageCompressionMethod = "ISO_15444_1"


def rounded_orientation(dataset):
    dataset.ImageOrientationPatient = [0.999, 0.05, 0, -0.05, 0.999, 0]


def slight_tilt(dataset):
    offset = 3 * int(dataset.InstanceNumber) * np.tan(np.radians(0.45))
    position = [float(value) for value in dataset.ImagePositionPatient]
    dataset.ImagePositionPatient = [position[0], round(position[1] + offset, 4), position[2]]


def incomplete_sequences(dataset):
    code = pydicom.Dataset()
    code.CodeValue, code.CodeMeaning = "6500572", "CT ABDOMEN"
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    dataset.ProcedureCodeSequence = [code]
    dataset.ReferencedStudySequence = [reference]
    dataset.OtherPatientIDsSequence = [pydicom.Dataset()]


def other_alphabet(dataset):
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"


def unknown_alphabet(dataset):
    dataset.SpecificCharacterSet = "ISO_IR 999"


@pytest.mark.parametrize(
    "change",
    [
        no_thickness,
        empty_thickness,
        no_number,
        negative_spacing,
        lossy,
        rounded_orientation,
        slight_tilt,
        incomplete_sequences,
        other_alphabet,
        unknown_alphabet,
    ],
)
def test_the_objects_are_valid_although_the_source_is_not(change, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what is written here
        folder = edited(series(tmp_path / "ct"), change)
    ct = read_ct(folder)
    found = written(tmp_path / "out", source_files(ct), *organs_and_map(ct))
    segments, mapped, _ = map(pydicom.dcmread, found)
    (measures,) = mapped.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SpacingBetweenSlices == pytest.approx(3.0, abs=1e-3)
    assert measures.SliceThickness == pytest.approx(3.0, abs=1e-3)
    if change is lossy:
        assert mapped.LossyImageCompression == segments.LossyImageCompression == "01"
    if change is other_alphabet:
        assert segments.PatientName.ideographic == "\u5c71\u7530^\u592a\u90ce"
    assert [error for path in found for error in errors_of(path)] == []


@pytest.mark.parametrize("case", ["odd", "missing", "latin"])
def test_patient_fields_are_copied_and_never_printed(case, tmp_path, capfd, caplog):
    folder = series(tmp_path / "ct")
    ct = read_ct(folder)

    def change(dataset):
        if case == "odd":  # no form of DICOM's
            dataset.PatientName = "Roe Jane 1950"
            dataset.PatientSex = "X"
            dataset.PatientBirthDate = "unknown"
            dataset.StudyTime = "noon"
            dataset.PatientID = "R" * 80
            dataset.PatientAge = "77"
        elif case == "missing":
            for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"):
                if name in dataset:
                    delattr(dataset, name)
        else:
            dataset.SpecificCharacterSet = "ISO_IR 100"
            dataset.PatientName = "Müller^Jürgen"
            dataset.StudyDescription = "Bauchhöhle"
            dataset.PatientComments = "für Prüfung"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what is written here
        edited(folder, change)
    capfd.readouterr()
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        found = written(tmp_path / "out", source_files(ct), *organs_and_map(ct))
    assert capfd.readouterr() == ("", "") and not caplog.records
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dataset in map(pydicom.dcmread, found):
            if case == "odd":
                assert dataset.PatientName == "Roe Jane 1950" and dataset.PatientID == "R" * 80
                assert not dataset.PatientSex and not dataset.PatientBirthDate
            elif case == "missing":
                assert not dataset.PatientName and not dataset.PatientID
            else:
                assert dataset.PatientName == "Müller^Jürgen"
                assert dataset.StudyDescription == "Bauchhöhle"
                assert dataset.AccessionNumber == "A-1" and dataset.StudyDate == "20200102"
