"""Runs are resumed only with the same inputs; no network is tested on its training cases."""

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch", reason="the V-Net is trained with PyTorch")
pytest.importorskip("onnx", reason="the V-Net is exported to ONNX")

import evaluate_vnet  # noqa: E402
import train_vnet  # noqa: E402
from conftest import ROOT  # noqa: E402

from cases import phantom_cohort  # noqa: E402
from cases.phantom import Phantom  # noqa: E402
from common import resume  # noqa: E402
from LiverFibrosisStagingLib import StagingError  # noqa: E402
from LiverFibrosisStagingLib.imaging import segmentation  # noqa: E402
from LiverFibrosisStagingLib.resources import default_model_path  # noqa: E402
from vnet import data as vnet_data  # noqa: E402
from vnet.network import VNet, export  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def small():
    """A small network, small patches, a checkpoint at every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_vnet, "SAVE_EVERY", 1)
        patch.setattr(train_vnet, "VNet", lambda: VNet((4, 6), (1, 1)))
        patch.setattr(vnet_data, "PATCH_SIZE", (8, 16, 16))
        yield


@pytest.fixture(scope="module")
def begun(small, tmp_path_factory):
    """A folder with a list of the small CTs a, b and c, and `run`, trained without b."""
    folder = tmp_path_factory.mktemp("begun")
    assert command(write_list(folder, ["a", "b", "c"]), "-o", folder / "run", *WITHOUT_B) == 0
    return folder


@pytest.fixture
def folder(begun, tmp_path):
    """A copy of it that a test can change."""
    return shutil.copytree(begun, tmp_path / "copy")


WITHOUT_B = ["--leave-out", "b"]


def write_list(folder, names, seeds=None):
    lines = ["case,ct,liver"]
    for number, name in enumerate(names):
        marked = np.zeros((20, 40, 40), np.uint8)
        marked[4:16, 10:30, 8:24] = 1
        noise = np.random.default_rng((seeds or range(9))[number]).normal(0, 9, marked.shape)
        voxels = np.where(marked > 0, 100 + noise, -1000).astype(np.int16)
        for kind, array in (("ct", voxels), ("liver", marked)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((8.0, 8.0, 8.0))
            sitk.WriteImage(image, str(folder / f"{name}_{kind}.nii.gz"))
        lines.append(f"{name},{name}_ct.nii.gz,{name}_liver.nii.gz")
    path = folder / "cases.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def command(*arguments):
    options = ["--steps", "2", "--batch", "1", "--workers", "0"]
    return train_vnet.main([*map(str, arguments), *options])


def refusal(capsys):
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Traceback" not in sentence
    return sentence


def states(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_run_gives_the_same_network(folder, tmp_path, monkeypatch):
    """Killed after the first step, and resumed with copies of the CTs."""
    real, calls = train_vnet.loss, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    run, other = tmp_path / "run", tmp_path / "other"
    monkeypatch.setattr(train_vnet, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        command(folder / "cases.csv", "-o", run, *WITHOUT_B)
    monkeypatch.setattr(train_vnet, "loss", real)
    other.mkdir()
    for file in ("cases.csv", *(path.name for path in folder.glob("*.nii.gz"))):
        shutil.copyfile(folder / file, other / file)
    assert command(other / "cases.csv", "-o", run, *WITHOUT_B) == 0
    states = [
        torch.load(path / "checkpoint.pt", weights_only=True) for path in (run, folder / "run")
    ]
    for resumed, whole in zip(*(state["network"].values() for state in states)):
        torch.testing.assert_close(resumed, whole)
    assert states[0]["step"] == 2


OTHERS = {
    "another patient left out": (["--leave-out", "a"], "its cases differ"),
    "no patient left out": ([], "its cases differ"),
    "another schedule": ([*WITHOUT_B, "--learning-rate", "0.1"], "its schedule differs"),
    "another start": ([*WITHOUT_B, "--start-from", "START"], "its start differs"),
}


@pytest.mark.parametrize("change", OTHERS)
def test_another_run_is_refused_and_nothing_is_changed(change, folder, capsys):
    run, (options, words) = folder / "run", OTHERS[change]
    start = shutil.copy(run / "checkpoint.pt", folder / "start.pt")
    before = states(run)
    options = [start if option == "START" else option for option in options]
    assert command(folder / "cases.csv", "-o", run, *options) == 1
    assert f"{run} contains another run: {words}" in refusal(capsys)
    assert states(run) == before


def test_other_cases_under_the_same_names_are_another_run(folder, capsys):
    listed = write_list(folder, ["a", "b", "c"], seeds=[0, 7, 2])
    assert command(listed, "-o", folder / "run", *WITHOUT_B) == 0  # b is not used for training
    write_list(folder, ["a", "b", "c"], seeds=[0, 7, 8])
    assert command(listed, "-o", folder / "run", *WITHOUT_B) == 1
    assert "its cases differ" in refusal(capsys)


def test_other_labels_of_the_same_files_are_another_run(folder, capsys):
    listed = folder / "cases.csv"
    listed.write_text(listed.read_text().replace("c_liver.nii.gz", "c_liver.nii.gz:1"))
    assert command(listed, "-o", folder / "run", *WITHOUT_B) == 1
    assert "its cases differ" in refusal(capsys)


def test_a_checkpoint_of_unknown_origin_is_refused(folder, capsys):
    plan = folder / "run" / "run.json"
    plan.unlink()
    assert command(folder / "cases.csv", "-o", folder / "run", *WITHOUT_B) == 1
    assert "contains checkpoint.pt but no run.json" in refusal(capsys)
    plan.write_text("[")
    assert command(folder / "cases.csv", "-o", folder / "run", *WITHOUT_B) == 1
    assert "cannot be read" in refusal(capsys)


@pytest.mark.parametrize("file", ["checkpoint.pt", "VNet.onnx"])
def test_a_start_that_was_trained_on_a_case_left_out_is_refused(file, folder, capsys):
    start, listed, run = folder / "run" / file, folder / "cases.csv", folder / "second"
    assert command(listed, "-o", run, "--leave-out", "a", "--start-from", start) == 1
    assert "was trained on test cases (a)" in refusal(capsys)
    assert not run.exists()
    # The second network lists the CTs of the first as well.
    (folder / "other").mkdir()
    other = write_list(folder / "other", ["d"], seeds=[8])
    assert command(other, "-o", run, "--start-from", start) == 0
    cases = [*vnet_data.read_cases(listed), *vnet_data.read_cases(other)]
    known = set().union(*(resume.digests(case.ct) for case in cases if case.name != "b"))
    assert resume.training_cts(run / "VNet.onnx") == known
    assert resume.training_cts(run / "checkpoint.pt") == known


def test_a_start_that_does_not_list_its_cts_gives_a_warning(folder, capsys):
    hidden = folder / "hidden.onnx"
    export(train_vnet.VNet(), hidden, {})
    listed, run = folder / "cases.csv", folder / "second"
    assert command(listed, "-o", run, *WITHOUT_B, "--start-from", hidden) == 0
    assert "it does not list all CTs" in capsys.readouterr().err
    assert resume.UNKNOWN in resume.training_cts(run / "VNet.onnx")
    shipped = segmentation.default_model_path("VNet.onnx")
    assert resume.training_cts(shipped) == {resume.UNKNOWN}


def test_a_copy_of_a_ct_that_is_left_out_is_refused(folder, capsys):
    shutil.copy(folder / "a_ct.nii.gz", folder / "again.nii.gz")
    with (folder / "cases.csv").open("a") as stream:
        stream.write("again,again.nii.gz,a_liver.nii.gz\n")
    assert command(folder / "cases.csv", "-o", folder / "new", "--leave-out", "a") == 1
    assert "the same content as again" in refusal(capsys)
    assert not (folder / "new").exists()


def test_two_cases_with_the_same_name_are_refused(folder, capsys):
    (folder / "more").mkdir()
    other = write_list(folder / "more", ["A"], seeds=[5])
    assert command(folder / "cases.csv", other, "-o", folder / "new", "--leave-out", "a") == 1
    sentence = refusal(capsys)
    assert (
        "the same case name, A" in sentence
        and "a_ct.nii.gz" in sentence
        and "A_ct.nii.gz" in sentence
    )


def test_a_network_is_not_tested_on_its_training_cases(folder, capsys):
    model, out = folder / "run" / "VNet.onnx", folder / "out"
    arguments = [str(folder / "cases.csv"), "--model-of", f"a={model}", "-o", str(out)]
    assert evaluate_vnet.main(arguments) == 1
    assert "was trained on test cases (a)" in refusal(capsys)
    assert not out.exists()


# ---------------------------------------------------------------------------- functions


def test_a_digest_depends_on_the_content_only(tmp_path):
    (tmp_path / "one").write_bytes(b"1" * 3_000_000)
    (tmp_path / "same").write_bytes(b"1" * 3_000_000)
    (tmp_path / "other").write_bytes(b"1" * 1_500_000 + b"2" + b"1" * 1_499_999)
    one, same, other = (resume.digest(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    for name, files in (("x", ("1", "2")), ("y", ("2", "1"))):
        (tmp_path / name / "sub").mkdir(parents=True)
        for number, file in enumerate(files):
            (tmp_path / name / "sub" / file).write_text(str(number))
    assert resume.digest(tmp_path / "x") == resume.digest(tmp_path / "y")
    (tmp_path / "y" / "sub" / "1").write_text("another slice")
    assert resume.digest(tmp_path / "x") != resume.digest(tmp_path / "y")
    for suffix in ("mhd", "raw"):
        (tmp_path / f"ct.{suffix}").write_text(suffix)
    headed = resume.digest(tmp_path / "ct.mhd")
    (tmp_path / "ct.raw").write_text("other voxels")
    assert resume.digest(tmp_path / "ct.mhd") != headed
    with pytest.raises(StagingError, match=r"none: cannot be read"):
        resume.digest(tmp_path / "none")


def test_a_ct_is_recognised_in_another_format_and_orientation(tmp_path):
    write_list(tmp_path, ["a", "b"])
    ct = sitk.ReadImage(str(tmp_path / "a_ct.nii.gz"))
    turned = sitk.Cast(sitk.DICOMOrient(ct, "PIR"), sitk.sitkFloat32)
    turned = sitk.Maximum(turned, -1000.0) - sitk.Cast(turned <= -1000, sitk.sitkFloat32) * 2048
    sitk.WriteImage(turned, str(tmp_path / "turned.nrrd"))
    (tmp_path / "dicom").mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(ct.GetSize()[2]):
        piece = ct[:, :, z : z + 1]
        for key, value in {
            "0008|0060": "CT",
            "0010|0020": "a",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(z),
            "0020|0032": "\\".join(map(str, ct.TransformIndexToPhysicalPoint((0, 0, z)))),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "8",
        }.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(tmp_path / "dicom" / f"{z}.dcm"))
        writer.Execute(piece)
    found = [
        resume.digests(tmp_path / name)
        for name in ("a_ct.nii.gz", "turned.nrrd", "dicom", "b_ct.nii.gz")
    ]
    assert all(found[0] & other for other in found[1:3])
    assert not found[0] & found[3]
    assert len(set().union(*found)) == 6


def test_the_shipped_network_lists_its_patients():
    shipped = resume.training_cts(default_model_path())
    codes = ["HCC_002", "hcc-007", "HCC_009", "HCC_011", "HCC_048", "CRLM-CT-1004", "TCGA-AY-4070"]
    for code in codes:
        assert resume.patient_digest(code) in shipped
    assert resume.patient_digest("HCC_003") not in shipped
    recipe = json.loads((ROOT / "Training" / "insilico" / "recipe.json").read_text())["bodies"]
    known = [resume.patient_digest(body["patient"]) for body in recipe if "patient" in body]
    assert len(recipe) == 8 and len(shipped) == 2 * 8 + len(known)


def test_the_shipped_network_lists_the_voxels_of_its_bodies(shared_data):
    shipped = resume.training_cts(default_model_path())
    for body in json.loads((ROOT / "Training" / "insilico" / "recipe.json").read_text())["bodies"]:
        assert resume.voxel_digest(shared_data / body["ct"]) in shipped


def test_a_plan_that_differs_is_refused_and_not_overwritten(tmp_path):
    plan = {"cases": [1, 2], "schedule": {"steps": 3}, "start": None}
    resume.check_plan(tmp_path / "run" / "plan.json", plan)
    resume.check_plan(tmp_path / "run" / "plan.json", plan)
    changed = {"cases": [1], "schedule": {"steps": 4}, "start": "x"}
    with pytest.raises(resume.RunError, match="its cases, schedule and start differ"):
        resume.check_plan(tmp_path / "run" / "plan.json", changed)
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == plan


def test_a_case_is_prepared_again_when_its_content_changes(folder, tmp_path):
    cases = vnet_data.read_cases(folder / "cases.csv")[:1]
    before = vnet_data.prepare(cases, tmp_path / "cache")[0]["volume"]
    times = cases[0].ct.stat()
    write_list(folder, ["a"], seeds=[5])
    os.utime(cases[0].ct, ns=(times.st_atime_ns, times.st_mtime_ns))
    resume._of_file.cache_clear()  # as in another process
    after = vnet_data.prepare(cases, tmp_path / "cache")[0]["volume"]
    assert not torch.equal(before, after)


def test_a_folder_holds_one_cohort_of_phantoms(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_cohort, "phantom", lambda *_, **__: tiny())
    phantom_cohort.write_cohort(tmp_path / "cohort", 5, 1)
    phantom_cohort.write_cohort(tmp_path / "cohort", 5, 1)
    for options in ({"count": 6}, {"effects": ["spleen"]}, {"strength": 2.0}, {"balanced": True}):
        with pytest.raises(resume.RunError, match="contains another run"):
            phantom_cohort.write_cohort(tmp_path / "cohort", **{"count": 5, "seed": 1, **options})


def tiny():
    return Phantom(*(sitk.Image(2, 2, 2, sitk.sitkInt16) for _ in Phantom._fields))
