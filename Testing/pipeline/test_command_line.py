"""The command line: exit codes, one sentence per refusal, no files left behind."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import BAD_CTS, BAD_MASKS, liver_array, write
from conftest import ROOT

import LiverFibrosisStagingLib.staging as staging
from LiverFibrosisStagingLib.__main__ import main

LIBRARY = ROOT / "LiverFibrosisStaging"
FILES = [
    "location_map.nrrd",
    "location_map_label.nrrd",
    "organs.seg.nrrd",
    "overview.png",
    "staging.json",
]


def run(*arguments, **options):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "LiverFibrosisStagingLib", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **options,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_stage_writes_and_prints_the_result(sample, tmp_path):
    out = tmp_path / "out"
    done = run("stage", sample["ct"], "--liver", sample["liver"], "-o", out, "--explain", "F4")
    assert done.returncode == 0, done.stderr
    assert names(out) == FILES
    summary = json.loads((out / "staging.json").read_text())
    assert f"{summary['stage']} (probability" in done.stdout.splitlines()[0]
    assert summary["location_map"]["explained"] == "F4"
    assert summary["model"]["device"] == "cpu"
    assert "Research use only" in done.stdout
    assert summary["model"]["trained_on"] in done.stdout
    assert done.stderr == ""


def test_segments_height_and_weight_reach_the_result(sample, single_path, tmp_path, capsys):
    liver = sitk.ReadImage(sample["liver"])
    x = np.broadcast_to(np.arange(liver.GetWidth()), liver.GetSize()[::-1])
    inside = sitk.GetArrayFromImage(liver) > 0
    borders = np.quantile(x[inside], np.arange(1, 8) / 8)
    labels = sitk.GetImageFromArray((inside * (1 + np.searchsorted(borders, x))).astype(np.uint8))
    labels.CopyInformation(liver)
    sitk.WriteImage(labels, tmp_path / "parts.nii.gz")
    arguments = ["stage", sample["ct"], "--liver", sample["liver"], "--model", single_path]
    arguments += ["--segments", tmp_path / "parts.nii.gz", "--height", 180, "--weight", 80]
    assert main([*map(str, arguments), "-o", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "staging.json").read_text()
    signs = json.loads(text)["signs"]
    parts = np.bincount(sitk.GetArrayFromImage(labels).ravel())[1:]
    assert signs["lsvr"] == pytest.approx(parts[:3].sum() / parts[3:].sum())
    assert signs["caudate_right_ratio"] == pytest.approx(parts[0] / parts[4:].sum())
    assert signs["liver_ml_per_m2"] == pytest.approx(signs["liver_volume_ml"] / 2)
    assert "parts.nii" not in text


def test_an_unsupported_stage_is_printed_as_such(sample, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(staging, "reasons", lambda *_, **__: ("Most weight lies elsewhere.",))
    arguments = ["stage", sample["ct"], "--liver", sample["liver"], "-o", tmp_path, "--shell", 5]
    assert main([*map(str, arguments)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Not supported: F") and "Most weight lies elsewhere." in first
    summary = json.loads((tmp_path / "staging.json").read_text())
    assert summary["supported"] is False
    assert summary["location_map"]["surface_mm"] == 5


def test_library_runs_from_any_folder(sample, tmp_path):
    done = run("model-info", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["stages"] == ["F0", "F1", "F2", "F3", "F4"]


@pytest.mark.parametrize("case", BAD_CTS)
def test_bad_ct(case, tmp_path, capfd):
    refused(
        BAD_CTS[case].build(tmp_path),
        write(tmp_path / "m.nrrd", liver_array()),
        BAD_CTS[case].words,
        tmp_path,
        capfd,
    )


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_mask(case, tmp_path, capfd):
    ct, mask = BAD_MASKS[case].build(tmp_path)
    refused(ct, mask, None, tmp_path, capfd)


def refused(ct, mask, words, tmp_path, capfd):
    capfd.readouterr()
    out = tmp_path / "out"
    code = main(["stage", str(ct), "--liver", str(mask), "-o", str(out)])
    printed = capfd.readouterr()
    assert code == 1
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in printed.err, printed.err
    assert not lines[0].startswith("Unexpected"), lines[0]
    if words is not None:
        assert re.search(words, lines[0]), lines[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "none.onnx"], r"none\.onnx"),
        (["--model", __file__], "not an ONNX file"),
        (["--spleen", "nowhere.nii"], r"nowhere\.nii"),
        (["--segments", "nowhere.nii"], r"nowhere\.nii"),
        (["--height", "1.8", "--weight", "80"], "The height is 1.8 cm; 100 to 230 cm"),
        (["--weight", "80"], "Only the weight is given; the height is needed too"),
        (["--shell", "0"], "The shell has 0 mm; a thickness above 0 mm is needed"),
        (["--shell", "nan"], "a thickness above 0 mm"),
    ],
)
def test_other_bad_arguments(arguments, words, sample, tmp_path, capsys):
    out = tmp_path / "out"
    stage = ["stage", str(sample["ct"]), "--liver", str(sample["liver"]), "-o", str(out)]
    assert main([*stage, *arguments]) == 1
    assert re.search(words, capsys.readouterr().err)
    assert not out.exists()


def test_a_ct_without_contrast_is_refused_unless_any_phase_is_allowed(sample, tmp_path, capsys):
    ct = sitk.ReadImage(str(sample["ct"]))
    hu = sitk.GetArrayFromImage(ct)
    plain = sitk.GetImageFromArray(np.where((hu > 40) & (hu < 260), 40 + hu // 20, hu))
    plain.CopyInformation(ct)
    sitk.WriteImage(plain, str(tmp_path / "plain.nii.gz"))
    masks = ["--liver", str(sample["liver"]), "--spleen", str(sample["spleen"])]
    command = ["stage", str(tmp_path / "plain.nii.gz"), *masks, "-o", str(tmp_path / "out")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "plain.nii.gz: the HU are those of an unenhanced CT" in error
    assert len(error.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert main([*command, "--strict", "--any-phase"]) == 0
    assert capsys.readouterr().out.count("The HU are those of an unenhanced CT") == 1
    result = json.loads((tmp_path / "out" / "staging.json").read_text(encoding="utf-8"))
    assert result["phase"] == "unenhanced" and not result["supported"]
    (phase,) = (check for check in result["checks"] if check["outcome"] != "pass")
    assert phase["outcome"] == "refuse" and phase["sentence"] in result["warnings"]
    assert phase["values"]["aorta_hu"] < 75


def test_a_strict_run_refuses_a_warning(sample, tmp_path, capsys):
    paths = [tmp_path / sample[kind].name for kind in ("ct", "liver")]
    for kind, path in zip(("ct", "liver"), paths):
        image = sitk.ReadImage(str(sample[kind]))
        sitk.WriteImage(image[:, :, : 2 * image.GetSize()[2] // 3], str(path))
    command = ["stage", str(paths[0]), "--liver", str(paths[1]), "-o", str(tmp_path / "out")]
    assert main([*command, "--strict"]) == 1
    error = capsys.readouterr().err
    assert "the liver reaches the scan's upper end" in error and "without --strict" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_unwritable_output_is_refused_before_anything_is_read(place, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    missing = ["nowhere.nii", "--liver", "nowhere.nii", "--model", "nowhere.onnx"]
    assert main(["stage", *missing, "-o", str(tmp_path / place)]) == 1
    assert "Cannot write to the folder" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output(sample, tmp_path, capsys):
    tmp_path.chmod(0o500)
    code = main(
        ["stage", str(sample["ct"]), "--liver", str(sample["liver"]), "-o", str(tmp_path / "out")]
    )
    tmp_path.chmod(0o700)
    assert code == 1 and "Cannot write to the folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["stage"], ["stage", "ct.nii"], ["stage", "--explain"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_unexpected_errors_are_one_sentence_too(monkeypatch, sample, tmp_path, capsys):
    def broken(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(staging, "working_grid", lambda *_, **__: broken())
    arguments = ["stage", str(sample["ct"]), "--liver", str(sample["liver"]), "-o", str(tmp_path)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RuntimeError):
        main(["--debug", *arguments])


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupt_ends_cleanly(sample, tmp_path):
    # Each step is told and then waits for a line, so that the signal comes within a known one.
    command = (
        "import sys, LiverFibrosisStagingLib.__main__ as m\n"
        "m.ProgressLine.__call__ = lambda self, fraction, step: input(step + '\\n')\n"
        "sys.exit(m.main(sys.argv[1:]))"
    )
    inputs = ["stage", sample["ct"], "--liver", sample["liver"], "-o", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", command, *inputs],
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    steps = []
    for line in process.stdout:
        steps.append(line.strip())
        if steps[-1] == "Running the network":
            process.send_signal(signal.SIGINT)
        process.stdin.write("\n")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert errors.strip() == "Cancelled."
    assert steps[-1] == "Running the network"
    assert not (tmp_path / "out").exists()


def test_model_info_names_the_training_data(model, capsys):
    assert main(["model-info"]) == 0
    printed = capsys.readouterr().out
    assert model.sha256 in printed and model.card.trained_on in printed
    assert "esearch use only" in printed
