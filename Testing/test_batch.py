"""A cohort: cases found by name or list, one row each, a bad one never the end."""

import csv
import json
import shutil
import threading

import pytest
import SimpleITK as sitk
from bad_inputs import write_slices

from LiverFibrosisStagingLib import Cancelled, StagingError, stage, stage_folder
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.batch import COLUMNS, find_cases

MASKS = ("liver", "spleen")


@pytest.fixture(scope="module")
def model(single):
    return single


@pytest.fixture(scope="module")
def cohort(sample, tmp_path_factory):
    """Every way in which a case may lie in a folder, and two that cannot be staged."""
    root = tmp_path_factory.mktemp("cohort")
    coarse = {
        name: sitk.BinShrink(sitk.ReadImage(str(path)), [3, 3, 2]) for name, path in sample.items()
    }
    both = sitk.Cast(coarse["liver"] != 0, sitk.sitkUInt8) + 2 * sitk.Cast(
        coarse["spleen"] != 0, sitk.sitkUInt8
    )
    sitk.WriteImage(coarse["ct"], str(root / "a.nii.gz"))
    sitk.WriteImage(coarse["liver"], str(root / "a_liver.nii.gz"))
    sitk.WriteImage(coarse["spleen"], str(root / "a_spleen.nii.gz"))
    (root / "own").mkdir()
    sitk.WriteImage(coarse["ct"], str(root / "own" / "ct.nrrd"))
    sitk.WriteImage(both, str(root / "own" / "seg_of_today.nrrd"))
    sitk.WriteImage(coarse["liver"], str(root / "own" / "vessels.nrrd"))
    write_slices(root / "dicom", sitk.Cast(coarse["ct"], sitk.sitkInt16))
    sitk.WriteImage(coarse["liver"], str(root / "dicom" / "vessels.nrrd"))
    sitk.WriteImage(both, str(root / "dicom_seg.nrrd"))
    sitk.WriteImage(coarse["ct"], str(root / "nomask.mha"))
    (root / "broken.nii").write_text("Dear radiologist")
    sitk.WriteImage(coarse["liver"], str(root / "broken_liver.nii.gz"))
    (root / "notes.txt").write_text("no image")
    return root


def rows_of(path):
    with path.open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def test_cases_and_masks_are_found_by_name(cohort):
    found = {
        case.name: (case.ct.name, *(m and m.name for m in (case.liver, case.spleen)))
        for case in find_cases(cohort)
    }
    assert found == {
        "a": ("a.nii.gz", "a_liver.nii.gz", "a_spleen.nii.gz"),
        "broken": ("broken.nii", "broken_liver.nii.gz", None),
        "dicom": ("dicom", "dicom_seg.nrrd", None),
        "nomask": ("nomask.mha", None, None),
        "own": ("ct.nrrd", "seg_of_today.nrrd", None),
    }


@pytest.fixture(scope="module")
def staged(cohort, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "out"
    return output, stage_folder(cohort, output, model=model)


def test_every_case_is_a_row(staged, cohort, model):
    output, rows = staged
    table = rows_of(output / "results.csv")
    assert list(table) == [row["case"] for row in rows] == ["a", "broken", "dicom", "nomask", "own"]
    assert [row["status"] for row in rows] == ["done", "failed", "done", "done", "done"]
    assert "broken.nii" in table["broken"]["reason"]
    assert "automatically" in table["nomask"]["warnings"]
    assert set(table["a"]) == set(COLUMNS)
    alone = stage(cohort / "a.nii.gz", cohort / "a_liver.nii.gz", cohort / "a_spleen.nii.gz", model)
    assert table["a"]["stage"] == alone.stage
    assert float(table["a"]["F4"]) == pytest.approx(alone.probabilities[4], abs=1e-6)
    share = alone.measurements["liver_surface"]["share"]
    assert float(table["a"]["liver_surface_share"]) == pytest.approx(share, abs=1e-6)
    assert table["own"]["spleen_mean"] != ""
    for name in ("a", "own", "dicom", "nomask"):
        assert (output / name / "overview.png").is_file()
    assert {p.name for p in output.iterdir()} == {"a", "own", "dicom", "nomask", "results.csv"}


def test_finished_cases_are_skipped(staged, cohort, model):
    output, before = staged
    stamp = (output / "a" / "staging.json").stat().st_mtime_ns
    steps = []
    rows = stage_folder(cohort, output, model=model, progress=lambda _, step: steps.append(step))
    assert (output / "a" / "staging.json").stat().st_mtime_ns == stamp
    assert not [step for step in steps if step.startswith("a:")]
    assert [r["status"] for r in rows] == [r["status"] for r in before]
    assert rows[0] == before[0]


def test_another_question_is_not_skipped(cohort, model, tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text(f"ct,liver\n{cohort / 'a.nii.gz'},{cohort / 'a_liver.nii.gz'}\n")
    for explain in ("F0", "F4"):
        stage_folder(listed, tmp_path / "out", model=model, explain=explain)
        summary = json.loads((tmp_path / "out" / "a" / "staging.json").read_text())
        assert summary["location_map"]["explained"] == explain


def test_csv_list_with_relative_paths(cohort, model, tmp_path):
    for name in ("a.nii.gz", "a_liver.nii.gz"):
        shutil.copy(cohort / name, tmp_path / name)
    listed = tmp_path / "list.csv"
    listed.write_text("case,ct,liver,spleen\nP1,a.nii.gz,a_liver.nii.gz,\nP2,gone.nii.gz,,\n")
    rows = stage_folder(listed, tmp_path / "out", model=model)
    assert [(row["case"], row["status"]) for row in rows] == [("P1", "done"), ("P2", "failed")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "header"),
        ("patient\n1\n", "header"),
        ("ct,liver\n,b\n", "no CT in line 2"),
        ("ct,case\na,x\nb,x\n", "'x' twice"),
        ("ct,case\na,../x\n", "not usable"),
    ],
)
def test_bad_lists_are_refused(text, words, tmp_path, model):
    listed = tmp_path / "list.csv"
    listed.write_text(text)
    with pytest.raises(StagingError, match=words):
        stage_folder(listed, tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


def test_folders_without_cts_are_refused(tmp_path, model):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(StagingError, match=r"no folder|holds no CT"):
            stage_folder(folder, tmp_path / "out", model=model)


def test_cancelling_keeps_what_is_finished(cohort, model, tmp_path):
    cancel = threading.Event()

    def progress(_, step):
        if step.startswith("dicom"):
            cancel.set()

    with pytest.raises(Cancelled):
        stage_folder(cohort, tmp_path / "out", model=model, progress=progress, cancel=cancel)
    assert list(rows_of(tmp_path / "out" / "results.csv")) == ["a", "broken"]
    assert (tmp_path / "out" / "a" / "staging.json").is_file()
    assert not (tmp_path / "out" / "dicom").exists()


def test_results_beside_the_cts_are_not_taken_for_cts(cohort, model, tmp_path):
    for name in ("a.nii.gz", "a_liver.nii.gz"):
        shutil.copy(cohort / name, tmp_path / name)
    for _ in range(2):
        rows = stage_folder(tmp_path, tmp_path / "results", model=model)
        assert [row["case"] for row in rows] == ["a"]


def test_command_line_says_how_many_and_what_failed(staged, cohort, capsys):
    output, _ = staged
    assert main(["batch", str(cohort), "-o", str(output)]) == 3
    printed = capsys.readouterr()
    assert "4 of 5 cases staged" in printed.out
    assert "nomask" not in printed.err and "broken: " in printed.err
    assert "Research use only" in printed.out


def test_patient_names_stay_out_of_results(staged):
    """The DICOM slices carry a name; no file of ours does."""
    from bad_inputs import PATIENT

    output, _ = staged
    for path in output.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for part in PATIENT.split("^"):
                assert part.encode() not in content, path
