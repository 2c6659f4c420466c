"""The command train.py: from a manifest to models, figures, tables and the model card."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("monai")
pytest.importorskip("matplotlib")

import train  # noqa: E402
from conftest import ROOT  # noqa: E402
from phantom_cohorts import TINY, unchecked_inputs, write_cohort  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from cases.manifest import ManifestError, read_manifest  # noqa: E402
from common.resume import RunError, digests, training_cts  # noqa: E402
from evaluation import evaluate  # noqa: E402
from evaluation.metrics import Predictions, calibrate_folds  # noqa: E402
from evaluation.staged import stage_out_of_fold  # noqa: E402
from finetuning.methods import ANEW, SHIPPED, TUNED  # noqa: E402
from finetuning.starts import Start  # noqa: E402
from lfs import fit  # noqa: E402
from lfs.build import Build  # noqa: E402
from LiverFibrosisStagingLib import StagingError, StagingModel  # noqa: E402
from LiverFibrosisStagingLib.resources import default_model_path  # noqa: E402
from LiverFibrosisStagingLib.stages import GROUPS  # noqa: E402
from runs import reading  # noqa: E402
from runs.reading import Source  # noqa: E402

SCRIPT = ROOT / "Training" / "train.py"
BUILD = Build((8, 24, 32), (16.0, 14.0, 14.0), (2, 3, 4, 5), 4)
SCHEDULE = fit.Schedule(steps=4, batch=2, crop_steps=2, crop=16, check_every=2)
COUNT = 10  # in two folds, each stage has one patient to train on


@pytest.fixture(scope="module", autouse=True)
def quick():
    with unchecked_inputs():
        yield


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts")
    stages = [index % 5 for index in range(COUNT)]
    return tuple(
        write_cohort(folder / name, stages, seed, **TINY)
        for name, seed in (("one", 0), ("other", 100))
    )


def run_small(manifest, run, seeds=1, anew=False, **options):
    return train.train(
        Source(manifest, folds=2, **options),
        run,
        build=BUILD,
        schedule=SCHEDULE,
        data="Ten simulated phantoms, no patient.",
        workers=0,
        seeds=seeds,
        anew=anew,
    )


@pytest.fixture(scope="module")
def finished(cohorts, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "RUN"
    return run, run_small(cohorts[0], run, seeds=2, test=cohorts[1])


def test_a_run_writes_all_files(finished):
    run, found = finished
    assert json.loads((run / "metrics.json").read_text()) == found
    assert found["cases"] == COUNT and len(found["folds"]) == 2
    for name in ("fig_1_flow_chart", "fig_3a_roc_groups", "fig_3b_roc_averages", "reliability"):
        for suffix in (".png", ".pdf"):
            assert (run / "figures" / f"{name}{suffix}").stat().st_size > 1000
    for name in ("table_1", "table_2", "confusion", "regions", "patterns"):
        assert (run / "tables" / f"{name}.md").is_file()
    tested = json.loads((run / "test" / "metrics.json").read_text())
    assert tested["evaluation"] == "test cohort" and tested["cases"] == COUNT
    assert not list(run.rglob(".partial*"))


def test_models_describe_their_training_and_evaluation(finished):
    run, found = finished
    tested = json.loads((run / "test" / "metrics.json").read_text())
    ensemble, single = (StagingModel.load(run / f"{name}.onnx") for name in ("LFS", "LFS_single"))
    volume = np.random.default_rng(0).random((1, 1, *BUILD.patch_size), np.float32)
    assert ensemble.run(volume).tensors["member_logits"].shape == (1, 2, 5)
    assert "member_logits" not in single.run(volume).tensors
    for model in (ensemble, single):
        training = model.card.training
        assert training["cases_per_stage"] == [2, 2, 2, 2, 2] and training["folds"] == 2
        assert training["evaluated_on"] == f"test cohort, {COUNT} CTs of {COUNT} patients"
        assert model.card.temperature == pytest.approx(found["temperature"])
        assert model.card.calibration["operating_points"] == found["operating_points"]
    for group, values in ensemble.card.training["auc"].items():
        assert values["value"] == pytest.approx(tested["groups"][group]["auc"]["value"], abs=1e-4)


def test_trainings_with_other_seeds_have_the_same_folds(cohorts, finished):
    run, found = finished
    parts = [run / "fold_0", run / "seed_1" / "fold_0"]
    first, other = (StagingModel.load(part / "LFS.onnx") for part in parts)
    assert first.sha256 != other.sha256 and first.card.training == other.card.training
    assert training_cts(parts[0] / "LFS.onnx") == training_cts(parts[1] / "LFS.onnx")
    cases = read_manifest(cohorts[0])
    tests = json.loads((run / "folds.json").read_text())["folds"]
    indices = [[i for i, c in enumerate(cases) if c.name in part["test"]] for part in tests]
    again = Predictions.of(*stage_out_of_fold(cases, indices, run / "seed_1"))
    probabilities = calibrate_folds(again)[0].probabilities
    assert set(found["trainings"]) == set(GROUPS)
    for group, first in GROUPS.items():
        one = found["trainings"][group]
        area = roc_auc_score(again.stage >= first, probabilities[:, first:].sum(axis=1))
        assert one["seeds"] == pytest.approx([found["groups"][group]["auc"]["value"], area])
        assert one["sd_between_seeds"] == pytest.approx(np.std(one["seeds"], ddof=1))
        assert one["auc_with_seeds"]["value"] == pytest.approx(np.mean(one["seeds"]))
    card = (run / "MODEL_CARD.md").read_text()
    assert "Variance between trainings" in card and "those of the first training" in card


def test_a_number_of_trainings_below_one_is_refused(cohorts, tmp_path):
    with pytest.raises(RunError, match="--seeds 0: at least 1 is needed"):
        run_small(cohorts[0], tmp_path / "run", seeds=0)
    assert not (tmp_path / "run").exists()


def test_predictions_are_those_of_the_fold_that_tests_the_case(finished):
    run, _ = finished
    folds = json.loads((run / "folds.json").read_text())["folds"]
    rows = [line.split(",") for line in (run / "predictions.csv").read_text().splitlines()]
    name, fold = rows[0].index("name"), rows[0].index("fold")
    assert len(rows) == COUNT + 1
    for row in rows[1:]:
        assert row[name] in folds[int(row[fold])]["test"]


def test_the_model_card_has_measures_and_limitations(finished):
    run, found = finished
    text = (run / "MODEL_CARD.md").read_text()
    assert "Research use only" in text and "not trained on patients" in text
    assert f"{found['groups']['cirrhosis']['auc']['value']:.2f} [" in text
    assert "F0 2, F1 2, F2 2, F3 2, F4 2" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (run / line.split("(")[1].rstrip(")")).is_file()


def test_a_resumed_run_gives_the_same_models(cohorts, finished, tmp_path, monkeypatch):
    run, _ = finished
    broken = tmp_path / "broken"
    save = fit._Progress.save

    def save_and_stop(progress):
        save(progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit._Progress, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_small(cohorts[0], broken)
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, "save", lambda *_: None)
    run_small(cohorts[0], broken)
    plans = [json.loads((folder / "folds.json").read_text()) for folder in (run, broken)]
    assert plans[0] == plans[1]
    weights = [
        {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
        for model in (onnx.load(folder / "LFS_single.onnx") for folder in (run, broken))
    ]
    for name, values in weights[0].items():
        np.testing.assert_allclose(weights[1][name], values, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_run_is_extended_and_its_folds_have_their_own_seed(cohorts, tmp_path):
    def plan(steps, seed=0, fold_seed=0, folder="run"):
        schedule = replace(SCHEDULE, steps=steps, seed=seed)
        source = Source(cohorts[0], folds=2, only=0, fold_seed=fold_seed)
        train.train(source, tmp_path / folder, build=BUILD, schedule=schedule, workers=0)
        return json.loads((tmp_path / folder / "folds.json").read_text())

    first, longer = plan(4), plan(6)
    assert (first["crop_steps"], first["steps"], longer["steps"]) == ([2, 2], [4, 4], [6, 6])
    log = (tmp_path / "run" / "fold_0" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "4", "6"]
    with pytest.raises(RunError, match=r"its steps differ.* steps and patience may grow\."):
        plan(5)
    other_seed, other_folds = plan(4, seed=1, folder="a"), plan(4, fold_seed=1, folder="b")
    assert first["folds"] == other_seed["folds"] != other_folds["folds"]


def test_a_folder_holds_one_run(cohorts, finished):
    run, _ = finished
    before = (run / "folds.json").read_text()
    with pytest.raises(RunError, match="contains another run: its stages, folds and files differ"):
        run_small(cohorts[1], run)
    assert (run / "folds.json").read_text() == before


def test_other_cts_under_the_same_names_are_another_run(cohorts, finished, tmp_path):
    """For example a corrected mask, or another cohort with the same codes."""
    run, _ = finished
    before = (run / "folds.json").read_text()
    assert str(cohorts[0].parent) not in before
    changed = shutil.copytree(cohorts[0].parent, tmp_path / "changed")
    mask = changed / "case3_liver.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(mask)) * 2, str(mask))
    with pytest.raises(RunError, match="contains another run: its files differ"):
        run_small(changed / "manifest.csv", run)
    assert (run / "folds.json").read_text() == before


def test_a_start_that_was_trained_on_test_cases_is_refused(cohorts, finished, tmp_path):
    run, _ = finished
    starts = [run / f"fold_{k}" / "checkpoint.pt" for k in range(2)]
    test = json.loads((run / "folds.json").read_text())["folds"][0]["test"]
    with pytest.raises(RunError, match=f"trained on patients that a fold holds out .*{test[0]}"):
        run_small(cohorts[0], tmp_path / "run", only=0, start_from=starts[1])
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError, match="trained on test cases"):
        run_small(cohorts[1], tmp_path / "run", test=cohorts[0], start_from=starts[1])
    run_small(cohorts[0], tmp_path / "run", only=0, start_from=starts[0])
    known = [training_cts(folder / "fold_0" / "LFS.onnx") for folder in (run, tmp_path / "run")]
    cases = {case.name: digests(case.ct) for case in read_manifest(cohorts[0])}
    seen = [found for name, found in cases.items() if name not in test]
    assert known[0] == known[1] == set().union(*seen)
    assert training_cts(run / "LFS.onnx") == set().union(*cases.values())


def test_a_network_recognises_a_patient_in_another_file_format(
    cohorts, finished, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(cohorts[0].parent, tmp_path / "again")
    for file in folder.glob("*_ct.nii.gz"):
        image = sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS")
        sitk.WriteImage(image, str(folder / file.name.replace(".nii.gz", ".nrrd")))
    text = (folder / "manifest.csv").read_text()
    text = text.replace("_ct.nii.gz", "_ct.nrrd").replace("\np", "\nother")
    (folder / "manifest.csv").write_text(text)
    start = finished[0] / "fold_1" / "LFS.onnx"
    with pytest.raises(RunError, match=r"trained on patients that a fold holds out .*other"):
        run_small(folder / "manifest.csv", tmp_path / "run", start_from=start)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(evaluate, "check_inputs", reading.check_inputs)
    command = ["--model", start, "--manifest", folder / "manifest.csv", "-o", tmp_path / "out"]
    assert evaluate.main([*map(str, command)]) == 1
    assert "trained on test cases (other" in capsys.readouterr().err


def test_training_continues_from_an_exported_network(cohorts, finished, tmp_path):
    """Each fold from a member of the ensemble; without a step, the network is the member's."""
    run, _ = finished
    found = Start(run / "LFS.onnx")
    x = torch.rand(2, 1, *BUILD.patch_size)
    for k in range(3):
        exported = StagingModel.load(run / f"fold_{k % 2}" / "LFS.onnx")
        with torch.no_grad():
            logits = found.network(k, BUILD.network(0)).eval()(x)
        np.testing.assert_allclose(logits[:1], exported.run(x[:1].numpy()).logits, atol=1e-4)
    larger = dataclasses.replace(BUILD, dense=6).network(0)
    partly = found.network(0, larger)
    assert partly is larger
    member = found.network(0, BUILD.network(0))
    assert torch.equal(partly.head[0].weight, member.head[0].weight)
    run_small(cohorts[1], tmp_path / "run", start_from=run / "LFS.onnx", only=0)
    known = training_cts(tmp_path / "run" / "fold_0" / "LFS.onnx")
    assert training_cts(run / "LFS.onnx") < known


def test_an_exported_start_is_compared_with_what_is_trained(
    cohorts, finished, tmp_path, monkeypatch
):
    for other in (None, finished[0] / "fold_0" / "checkpoint.pt"):
        with pytest.raises(RunError, match=r"--anew: .* exported file; .*--start-from"):
            run_small(cohorts[1], tmp_path / "run", start_from=other, anew=True)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(evaluate, "save", lambda *_: None)
    start, run = finished[0] / "LFS.onnx", tmp_path / "run"
    found = run_small(cohorts[1], run, start_from=start, anew=True)
    tested = json.loads((finished[0] / "test" / "metrics.json").read_text())
    for group, measured in found["comparison"]["groups"].items():
        measured = {name: one["auc"]["value"] for name, one in measured["methods"].items()}
        assert set(measured) >= {SHIPPED, TUNED, ANEW}
        assert measured[SHIPPED] == pytest.approx(tested["groups"][group]["auc"]["value"])
        assert measured[TUNED] == pytest.approx(found["groups"][group]["auc"]["value"])
    assert json.loads((run / "metrics.json").read_text()) == found
    assert "Comparison on the same cases" in (run / "MODEL_CARD.md").read_text()
    assert (run / "anew" / "fold_1" / "LFS.onnx").is_file()


@pytest.mark.parametrize("name", ["VNet.onnx", "none.onnx", "damaged.pt"])
def test_other_starts_are_refused_with_those_that_can_be_used(name, cohorts, tmp_path):
    start = default_model_path("LFS.onnx").with_name(name)
    if name == "damaged.pt":
        start = tmp_path / name
        with zipfile.ZipFile(start, "w") as archive:
            archive.writestr("a", "b")
    with pytest.raises(StagingError, match=r"an LFSNetwork .* or a SignNetwork .* is needed"):
        run_small(cohorts[0], tmp_path / "run", start_from=start)
    assert not (tmp_path / "run").exists()


def test_a_model_is_not_evaluated_on_its_training_cases(cohorts, finished, tmp_path, capsys):
    run, _ = finished
    command = ["--manifest", str(cohorts[0]), "-o", str(tmp_path / "out"), "--workers", "1"]
    assert evaluate.main(["--model", str(run / "LFS.onnx"), *command]) == 1
    assert "trained on test cases (p0, p1, p2, p3, p4, " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_patients_of_the_training_cohort_are_refused_for_testing(cohorts, tmp_path):
    with pytest.raises(ManifestError, match="10 patients are also in the training cohort: p0"):
        run_small(cohorts[0], tmp_path / "run", test=cohorts[0])
    renamed = shutil.copytree(cohorts[0].parent, tmp_path / "renamed") / "manifest.csv"
    renamed.write_text(renamed.read_text().replace("\np", "\nq"))
    with pytest.raises(ManifestError, match=r"line 2: the CT case0_ct\.nii\.gz is also in line 2"):
        run_small(cohorts[0], tmp_path / "run", test=renamed)
    assert not (tmp_path / "run").exists()


def test_a_manifest_with_problems_is_refused(tmp_path, capsys):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("patient,ct,liver,stage\na,a.nii,a.nii,F1\nb,b.nii,b.nii,F7\n")
    assert train.main(["--manifest", str(manifest), "-o", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().err
    assert "line 2: the ct file a.nii does not exist." in printed
    assert "line 3: stage is 'F7'" in printed
    assert not (tmp_path / "run").exists()


def test_several_processes_train_one_network(cohorts, tmp_path):
    run = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--manifest", cohorts[0], "-o", run, "--folds", "2", "--fold", "1", "--small"]
    options += ["--steps", "3", "--crop-steps", "1", "--check-every", "1", "--workers", "0"]
    done = subprocess.run(
        [*launch, SCRIPT, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / "LiverFibrosisStaging")},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = (run / "fold_1" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "2", "3"]
    StagingModel.load(run / "fold_1" / "LFS.onnx")
