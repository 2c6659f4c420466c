"""DICOM objects on the slices of series in any orientation, read by pydicom and SimpleITK."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_frames import FRAME, SUMMARY, check_frames, edited, organs_and_map, series, turned

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.dicom_output import codes
from LiverFibrosisStagingLib.dicom_output.writing import FILES, SEGMENTATION, write_dicom
from LiverFibrosisStagingLib.imaging.organs import ORGANS
from LiverFibrosisStagingLib.imaging.reading import read_ct, source_files
from LiverFibrosisStagingLib.signs.measure import UNITS

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")


def written(folder, files, organs, location_map, summary=SUMMARY):
    folder.mkdir(exist_ok=True)
    write_dicom(folder, files, organs, location_map, summary)
    return [pydicom.dcmread(folder / name) for name in FILES]


@pytest.mark.parametrize(
    ("degrees", "flips"),
    [
        (0.0, (False, False, False)),
        (0.0, (True, True, False)),
        (0.0, (True, False, True)),  # slices from head to feet
        (15.0, (False, False, False)),
        (15.0, (False, True, True)),
    ],
)
def test_frames_lie_on_the_slices_they_refer_to(degrees, flips, tmp_path):
    folder = series(tmp_path / "ct", degrees, flips)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{(number * 5) % 12:02d}")
    ct = read_ct(folder)
    organs, location_map = organs_and_map(ct)
    files = source_files(ct)
    assert sorted(files) == sorted(folder.iterdir())
    shuffled = [files[(5 * k) % len(files)] for k in range(len(files))]
    segments, mapped, report = written(tmp_path / "out", shuffled, organs, location_map)
    check_frames(segments, segments.pixel_array, organs, files)
    # Every voxel of every organ is in a frame.
    labels = sitk.GetArrayViewFromImage(organs)
    assert segments.pixel_array.sum() == (labels > 0).sum()
    check_frames(mapped, mapped.pixel_array, location_map, files)
    assert mapped.pixel_array.sum() == pytest.approx(
        sitk.GetArrayViewFromImage(location_map).sum(), rel=1e-5
    )
    # Slicer's reader of parametric maps takes the frames for sorted along the normal.
    values = sitk.GetArrayViewFromImage(location_map)
    np.testing.assert_array_equal(mapped.pixel_array, values[1:10])
    for each in (segments, mapped, report):
        assert each.StudyInstanceUID == "1.2.3" and each.PatientName == "Doe^Jane"
    assert segments.FrameOfReferenceUID == mapped.FrameOfReferenceUID == FRAME


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_a_grid_with_other_axes_is_mapped_exactly(order, flips, tmp_path):
    ct = read_ct(series(tmp_path / "ct", 15.0))
    files = source_files(ct)
    made = organs_and_map(ct)
    expected = written(tmp_path / "out", files, *made)
    other = [sitk.Flip(sitk.PermuteAxes(each, order), flips) for each in made]
    found = written(tmp_path / "out", files, *other)
    for one, two in zip(found[:2], expected[:2]):
        np.testing.assert_array_equal(one.pixel_array, two.pixel_array)


@pytest.mark.parametrize("change", ["spacing", "origin", "direction", "fewer slices"])
def test_a_grid_that_is_not_the_sources_is_refused(change, tmp_path):
    ct = read_ct(series(tmp_path / "ct"))
    organs, location_map = organs_and_map(ct)
    for each in (organs, location_map):
        if change == "spacing":
            each.SetSpacing((4.0, 5.0, 3.1))
        elif change == "origin":
            each.SetOrigin((each.GetOrigin()[0] + 1.0, *each.GetOrigin()[1:]))
        elif change == "direction":
            each.SetDirection(turned(each, 2.0, (False,) * 3).GetDirection())
    if change == "fewer slices":
        organs, location_map = organs[:, :, 1:], location_map[:, :, 1:]
    with pytest.raises(StagingError, match="on another grid than the DICOM slices"):
        written(tmp_path / "out", source_files(ct), organs, location_map)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"])
def test_slices_without_identifiers_are_refused(name, tmp_path):
    folder = series(tmp_path / "ct")
    ct = read_ct(folder)
    edited(folder, lambda dataset: setattr(dataset, name, ""))
    with pytest.raises(StagingError, match=f"IM0.*dcm: {name} missing"):
        written(tmp_path / "out", source_files(ct), *organs_and_map(ct))


def renamed(file, copy):
    dataset = pydicom.dcmread(file)
    dataset.SOPInstanceUID += ".9"
    dataset.save_as(copy)
    return copy


def test_files_that_are_no_single_series_are_refused(tmp_path):
    ct = read_ct(series(tmp_path / "ct"))
    made, files = organs_and_map(ct), source_files(ct)
    second = sorted(series(tmp_path / "again", uid="1.2.3.2").iterdir())
    for chosen, words in (
        ((), "not read from DICOM"),
        ((*files, *second), "differ in SeriesInstanceUID"),
        ((*files, files[3]), "have the same SOPInstanceUID"),
        ((*files, renamed(files[3], tmp_path / "copy.dcm")), "have the same position"),
        (files[:-1], "on another grid"),
        ((*files[:-1], tmp_path / "gone.dcm"), "gone.dcm: the DICOM file cannot be read"),
    ):
        with pytest.raises(StagingError, match=words):
            written(tmp_path / "out", chosen, *made)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    from LiverFibrosisStagingLib.dicom_output import writing

    ct = read_ct(series(tmp_path / "ct"))
    monkeypatch.setattr(writing, "find_spec", lambda name: None)
    with pytest.raises(StagingError, match="pip install pydicom highdicom"):
        written(tmp_path / "out", source_files(ct), *organs_and_map(ct))


@pytest.mark.parametrize(
    ("provenance", "kind"),
    [
        (SUMMARY["segmentation"], "AUTOMATIC"),
        ({**SUMMARY["segmentation"], "edited": True}, "SEMIAUTOMATIC"),
        (None, "MANUAL"),
    ],
)
def test_segments_tell_what_they_are_and_how_they_were_made(provenance, kind, tmp_path):
    ct = read_ct(series(tmp_path / "ct"))
    made = organs_and_map(ct)
    summary = {**SUMMARY, "segmentation": provenance}
    dataset = written(tmp_path / "out", source_files(ct), *made, summary)[FILES.index(SEGMENTATION)]
    assert dataset.SegmentationType == "BINARY"
    for segment, organ in zip(dataset.SegmentSequence, ORGANS):
        (code,) = segment.SegmentedPropertyTypeCodeSequence
        assert (code.CodingSchemeDesignator, code.CodeValue) in organ.codes
        assert segment.SegmentLabel == organ.name and segment.SegmentAlgorithmType == kind
        if provenance is not None:
            (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
            assert algorithm.AlgorithmName == "V-Net"
            assert "b" * 64 in algorithm.AlgorithmParameters
    if provenance is not None:
        given = {**SUMMARY, "segmentation": {**provenance, "organs": ["liver"]}}
        (dataset, *_) = written(tmp_path / "given", source_files(ct), *made, given)
        liver, spleen = dataset.SegmentSequence
        assert liver.SegmentAlgorithmType == kind and spleen.SegmentAlgorithmType == "MANUAL"
        assert "user" in spleen.SegmentDescription
    only_liver = sitk.Mask(made[0], made[0] == 1)
    (dataset, *_) = written(tmp_path / "out", source_files(ct), only_liver, made[1], summary)
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == ["Liver"]


def test_codes_are_those_of_the_standard_and_fit_its_fields():
    from pydicom.sr import codedict

    found = [
        value for value in vars(codes).values() if isinstance(value, tuple) and len(value) == 3
    ]
    found += [*codes.UNITS.values(), *itertools.chain(*codes.PARTS.values())]
    found += [part for _, *parts in codes.ORGAN_SIGNS.values() for part in parts if part]
    found += [*codes.OTHER_SIGNS.values(), *map(codes.organ_code, ORGANS)]
    for name in codes.STAGE_NAMES:
        found += [codes.stage_code(name), codes.probability_code(name)]
    known = {}
    for scheme in ("SCT", "DCM", "UCUM", "cid100", "cid7150"):
        collection = getattr(codedict.codes, scheme)
        for code in (getattr(collection, name) for name in collection.dir()):
            known.setdefault((code.scheme_designator, code.value), []).append(code.meaning)
    meanings = {}
    for value, scheme, meaning in found:
        assert len(value) <= 16 and len(meaning) <= 64
        if scheme == codes.PRIVATE:
            assert meanings.setdefault(value, meaning) == meaning
        elif (scheme, value) in known:
            words = " ".join(known[scheme, value]).lower().split()
            assert meaning.lower().split()[0] in words, (meaning, words)
        else:
            assert (scheme, value) in {  # not in pydicom
                ("SCT", "62484002"),
                ("UCUM", "mL"),
                ("UCUM", "mL/m2"),
                ("UCUM", "10*-4.m"),
            }


def test_every_sign_has_a_code_and_a_unit():
    assert {*codes.ORGAN_SIGNS, *codes.OTHER_SIGNS} == set(UNITS)
    assert set(UNITS.values()) <= set(codes.UNITS)
