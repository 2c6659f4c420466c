"""A cohort: cases found by name or list, one row each, also for failed cases."""

import csv
import shutil
import threading

import pytest
import SimpleITK as sitk
from bad_inputs import write_slices

from LiverFibrosisStagingLib import Cancelled, StagingError, stage, stage_folder
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.batch import case_row, run, table_files
from LiverFibrosisStagingLib.batch.cases import find_cases
from LiverFibrosisStagingLib.batch.table import COLUMNS
from LiverFibrosisStagingLib.signs.measure import UNITS

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
        for case in find_cases(cohort).cases
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
    assert table["broken"]["reason"] == "The CT: not a NIfTI-1 file, or damaged."
    assert "automatically" in table["nomask"]["warnings"]
    assert set(table["a"]) == set(COLUMNS)
    alone = stage(cohort / "a.nii.gz", cohort / "a_liver.nii.gz", cohort / "a_spleen.nii.gz", model)
    assert table["a"]["stage"] == alone.stage
    assert float(table["a"]["F4"]) == pytest.approx(alone.probabilities[4], abs=1e-6)
    share = alone.measurements["liver_surface"]["share"]
    assert float(table["a"]["liver_surface_share"]) == pytest.approx(share, abs=1e-6)
    assert table["own"]["spleen_mean"] != ""
    assert table["a"]["supported"] == str(alone.supported).lower()
    assert table["a"]["reasons"] == " | ".join(alone.reasons)
    spleen_ml = alone.signs["spleen_volume_ml"].value
    assert float(table["a"]["spleen_volume_ml"]) == pytest.approx(spleen_ml, abs=1e-6)
    assert set(UNITS) < set(table["a"]) and table["a"]["phase"] == alone.phase
    assert table["a"]["pattern"] == alone.pattern.name
    for name in ("a", "own", "dicom", "nomask"):
        assert (output / name / "overview.png").is_file()
    files = {"results.csv", "columns.csv", "summary.html", "left_out.csv", "batch.log"}
    assert {p.name for p in output.iterdir()} == {"a", "own", "dicom", "nomask", *files}


def test_finished_cases_are_skipped(staged, cohort, model):
    output, before = staged
    stamp = (output / "a" / "staging.json").stat().st_mtime_ns
    steps = []
    rows = stage_folder(cohort, output, model=model, progress=lambda _, step: steps.append(step))
    assert (output / "a" / "staging.json").stat().st_mtime_ns == stamp
    assert not [step for step in steps if step.startswith("a:")]
    assert [r["status"] for r in rows] == [r["status"] for r in before]
    assert rows[0] == before[0]


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
        ("ct,case\na,../x\n", "not valid"),
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
        with pytest.raises(StagingError, match=r"no such folder|contains no CT"):
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


def test_results_beside_the_cts_are_not_cases(cohort, model, tmp_path):
    for name in ("a.nii.gz", "a_liver.nii.gz"):
        shutil.copy(cohort / name, tmp_path / name)
    for _ in range(2):
        rows = stage_folder(tmp_path, tmp_path / "results", model=model)
        assert [row["case"] for row in rows] == ["a"]


def test_command_line_reports_how_many_and_which_failed(staged, cohort, capsys):
    output, _ = staged
    assert main(["batch", str(cohort), "-o", str(output)]) == 3
    printed = capsys.readouterr()
    assert "4 of 5 cases staged" in printed.out
    assert "nomask" not in printed.err and "broken: broken.nii: not a" in printed.err
    assert "Research use only" in printed.out


@pytest.fixture
def many(tmp_path):
    """Three cases that are never read."""
    for name in ("a", "b", "c"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.nii.gz").write_text("")
    return tmp_path / "in"


def staging_fails(monkeypatch, error):
    """Staging of the second case raises `error`; the others are refused."""

    def stage_or_not(ct, *_, **__):
        raise error if ct.name == "b.nii.gz" else StagingError(f"{ct.name}: refused.")

    monkeypatch.setattr(case_row, "stage", stage_or_not)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("cannot convert float 'Doe' to integer"), "Unexpected ValueError: the file"),
        (OverflowError("\n"), "Unexpected OverflowError"),
        (OSError(5, "Input/output error", "/data/Doe.nii"), "Unexpected OSError"),
        (UnicodeDecodeError("utf-8", b"Doe", 0, 1, "bad"), "Unexpected UnicodeDecodeError"),
        (AssertionError(), "Unexpected AssertionError"),
        (MemoryError(), "Not enough memory for this CT"),
    ],
)
def test_any_error_of_a_case_is_its_row(error, words, many, model, tmp_path, monkeypatch):
    staging_fails(monkeypatch, error)
    told = []
    rows = stage_folder(many, tmp_path / "out", model=model, notify=told.append)
    assert [row["status"] for row in rows] == ["failed"] * 3
    assert rows[1]["reason"].startswith(words) and "Doe" not in rows[1]["reason"]
    assert rows_of(tmp_path / "out" / "results.csv")["b"]["reason"] == rows[1]["reason"]
    assert told[0] == "a: a.nii.gz: refused." and " ".join(str(error).split()) in told[1]
    assert rows[0]["reason"] == "The CT: refused."


@pytest.mark.parametrize("error", [Cancelled("."), KeyboardInterrupt()])
def test_only_the_user_ends_a_batch(error, many, model, tmp_path, monkeypatch):
    staging_fails(monkeypatch, error)
    with pytest.raises(type(error)):
        stage_folder(many, tmp_path / "out", model=model)
    assert list(rows_of(tmp_path / "out" / "results.csv")) == ["a"]


def test_debug_shows_where_a_case_failed(many, tmp_path, monkeypatch, capsys):
    staging_fails(monkeypatch, ValueError("a bug"))
    assert main(["--debug", "batch", str(many), "-o", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr().err
    assert printed.count("Traceback") == 1 and "b: Unexpected ValueError: a bug" in printed


def test_table_in_use_is_written_at_the_end(many, model, tmp_path, monkeypatch):
    staging_fails(monkeypatch, ValueError())
    tries, told = [], []
    real = table_files.write_table

    def write_table(*arguments):
        if arguments[0].name == "results.csv":
            tries.append(arguments)
            if len(tries) < 3 or len(tries) > 5:
                raise StagingError("Cannot write the table.")
        real(*arguments)

    monkeypatch.setattr(table_files, "write_table", write_table)
    monkeypatch.setattr(run, "TABLE_SECONDS", 0)
    monkeypatch.setattr(run, "TABLE_SHARE", 0)
    stage_folder(many, tmp_path / "out", model=model, notify=told.append)
    assert told.count("Cannot write the table.") == 2
    assert len(rows_of(tmp_path / "out" / "results.csv")) == 3
    with pytest.raises(StagingError, match="Cannot write the table"):
        stage_folder(many, tmp_path / "out", model=model)
