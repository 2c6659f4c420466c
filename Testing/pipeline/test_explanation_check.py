"""`check-explanation`: how far the expected stage moves when the CT is changed."""

import csv
import json
import threading

import numpy as np
import pytest
import SimpleITK as sitk
from small_scene import make_abdomen
from tiny_models import CARD, masked_model, staging_model, written

from LiverFibrosisStagingLib import Cancelled, StagingError, StagingModel, stage
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.batch.cohort import Case
from LiverFibrosisStagingLib.explanation_check import (
    CHANGES,
    FILES,
    ORGANS,
    SPLEEN,
    SURFACE,
    SURROUNDINGS,
    TEXTURE,
    check_cases,
    check_explanation,
)
from LiverFibrosisStagingLib.imaging.changes import smooth_surface, uniform_core


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {"inside": masked_model(True), "outside": masked_model(False), "ct": staging_model()}
    return {name: written(model, folder / f"{name}.onnx") for name, model in made.items()}


@pytest.fixture(scope="module")
def abdomen_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    for name, made in zip(("p1_ct", "p1_liver", "p1_spleen"), make_abdomen()):
        sitk.WriteImage(made, str(folder / f"{name}.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def images():
    return make_abdomen()


def expected(result):
    return sum(k * p for k, p in enumerate(result.probabilities))


@pytest.fixture(scope="module")
def staged(images, models):
    """The model that looks at the liver gets a large spleen."""
    large = sitk.BinaryDilate(images[2], [4, 4, 4])
    spleens = {"inside": large, "outside": images[2], "ct": None}
    return {m: stage(*images[:2], spleens[m], models[m]) for m in models}


@pytest.fixture(scope="module")
def checked(staged):
    return {name: check_explanation(result) for name, result in staged.items()}


@pytest.mark.parametrize("name", ["inside", "ct"])
def test_each_change_is_staged_like_any_other_ct(name, staged, checked):
    """Models with and without masks in their input."""
    result, found = staged[name], checked[name]
    assert found.expected == pytest.approx(expected(result))
    model = result.forward_pass.model
    uniform = stage(uniform_core(result.ct, result.liver), result.liver, result.spleen, model)
    assert found.after[TEXTURE] == pytest.approx(expected(uniform))
    smooth = stage(*smooth_surface(result.ct, result.liver), result.spleen, model)
    assert found.after[SURFACE] == pytest.approx(expected(smooth))
    assert {p.shape for p in found.pictures.values()} == {found.pictures[""].shape}


def test_only_a_large_spleen_is_shrunk(checked):
    assert abs(checked["inside"].moved[SPLEEN]) < 0.1  # its model does not look at it
    assert "at most 215 mL" in checked["outside"].notes[SPLEEN]
    assert "there is no spleen mask" in checked["ct"].notes[SPLEEN]
    assert all(set(c.after) | set(c.notes) == set(CHANGES) for c in checked.values())


def test_only_a_model_of_the_surroundings_moves_with_them(checked):
    assert abs(checked["inside"].moved[SURROUNDINGS]) < 0.25
    assert abs(checked["outside"].moved[SURROUNDINGS]) > 1
    # Without organs a sum over the liver is 0: the softmax of 0, -3, -6, ... is known.
    weights = np.exp(-3.0 * np.arange(5))
    alone = weights @ np.arange(5) / weights.sum()
    assert checked["inside"].after[ORGANS] == pytest.approx(alone, abs=1e-3)


def run(*arguments):
    return main(["check-explanation", *map(str, arguments), "-q"])


def test_command_writes_numbers_table_and_picture(abdomen_files, models, tmp_path, capsys):
    ct, liver = (abdomen_files / f"p1_{n}.nii.gz" for n in ("ct", "liver"))
    out = tmp_path / "out"
    assert run(ct, "--liver", liver, "--model", models["outside"], "-o", out) == 4
    printed = capsys.readouterr().out
    assert "fails its own check" in printed and "Research use only" in printed
    assert "not changed: there is no spleen mask" in printed
    assert {path.name for path in out.iterdir()} == set(FILES)
    found = json.loads((out / "explanation_check.json").read_text())
    assert found["passed"] is False and found["limit"] == 0.3
    assert "Research use only" in found["research_use"]
    (case,) = found["cases"]
    (row,) = csv.DictReader((out / "explanation_check.csv").open(newline=""))
    for name, value in case["after"].items():
        assert float(row[name]) == pytest.approx(value, abs=1e-4)
        assert case["moved"][name] == pytest.approx(value - case["expected"])
        assert found["moved"][name]["largest"] == pytest.approx(abs(case["moved"][name]))
    assert (out / "explanation_check.png").read_bytes()[:4] == b"\x89PNG"
    assert "p1" not in json.dumps(found) and row["case"] == "CT"


def test_a_cohort_has_a_row_for_each_case_and_failures_have_reasons(
    abdomen_files, models, tmp_path, capsys
):
    folder = tmp_path / "cohort"
    folder.mkdir()
    for file in abdomen_files.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    empty = sitk.Image(60, 60, 30, sitk.sitkInt16)
    sitk.WriteImage(empty, str(folder / "p2_ct.nii.gz"))
    assert run(folder, "--model", models["inside"], "-o", tmp_path / "out") == 3
    assert "passes its own check" in capsys.readouterr().out
    rows = {r["case"]: r for r in csv.DictReader((tmp_path / "out" / FILES[0]).open(newline=""))}
    assert rows["p1"]["status"] == "done" and rows["p1"][SURROUNDINGS]
    assert rows["p2"]["status"] == "failed" and "HU" in rows["p2"]["reason"]
    assert str(folder) not in rows["p2"]["reason"]


def test_refused_input_and_cancellation_leave_nothing(abdomen_files, models, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(tmp_path / "no.nii", "--model", models["inside"], "-o", out) == 1
    assert "no.nii" in capsys.readouterr().err and not out.exists()
    cancel, seen = threading.Event(), []

    def progress(fraction, step):
        seen.append(fraction)
        if SURROUNDINGS in step:
            cancel.set()

    case = Case("a", abdomen_files / "p1_ct.nii.gz", abdomen_files / "p1_liver.nii.gz", None)
    model = StagingModel.load(models["inside"])
    with pytest.raises(Cancelled):
        check_cases([case], model, progress, cancel)
    assert seen == sorted(seen) and 0 < max(seen) < 0.5


def test_model_info_shows_the_models_own_check(models, tmp_path, capsys):
    movement = {"cases": 40, "mean": 0.1, "mean_absolute": 0.31, "largest": 0.9}
    checks = {"source": "40 cases", "moved": {SURROUNDINGS: movement}}
    path = written(staging_model(CARD | {"checks": checks}), tmp_path / "m.onnx")
    assert main(["model-info", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "checks.source: 40 cases" in printed and "fails its own check" in printed
    assert (
        main(["model-info", str(models["ct"])]) == 0 and "own check" not in capsys.readouterr().out
    )
    checks["moved"][SURROUNDINGS] = {"cases": 0}
    wrong = written(staging_model(CARD | {"checks": checks}), tmp_path / "wrong.onnx")
    with pytest.raises(StagingError, match=r"checks\.moved.*cases is 0"):
        StagingModel.load(wrong)
