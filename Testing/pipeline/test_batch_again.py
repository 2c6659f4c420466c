"""A cohort staged again: results are reused if everything that they depend on is the same."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import write_slices
from conftest import ROOT
from small_cohorts import TIMES, coarse_sample, cohort, summaries, table

from LiverFibrosisStagingLib import StagingModel, stage, stage_folder
from LiverFibrosisStagingLib.batch import case_row
from LiverFibrosisStagingLib.fingerprint import fingerprint
from LiverFibrosisStagingLib.result import StagingResult


@pytest.fixture(scope="module")
def coarse(sample):
    return coarse_sample(sample)


@pytest.fixture(scope="module")
def single(model_path):
    return StagingModel.load(model_path.with_name("LFS_single.onnx"))


def row_of(root, output, model, **options):
    (row,) = stage_folder(root, output, model=model, **options)
    assert row["status"] == "done", row
    return {name: value for name, value in row.items() if name not in TIMES}


@pytest.fixture(scope="module")
def result(coarse, single):
    return stage(coarse["ct"], coarse["liver"], model=single)


@pytest.fixture
def staged(result, monkeypatch):
    """The paths that are staged; each gets the same result, without a picture."""
    paths = []

    def stage_quickly(ct, liver, spleen, model, explain, **_):
        paths.append(ct)
        return result if explain == "predicted" else replace(result, explained=explain)

    monkeypatch.setattr(case_row, "stage", stage_quickly)
    monkeypatch.setattr(StagingResult, "overview", lambda _: np.zeros((2, 2, 3), np.uint8))
    return paths


def test_two_cohorts_with_the_same_names_get_their_own_results(coarse, single, tmp_path):
    a = cohort(tmp_path / "a", coarse)
    b = cohort(tmp_path / "b", coarse, brighter=-60)
    alone = {root: row_of(root, tmp_path / f"out_{root.name}", single) for root in (a, b)}
    assert alone[a]["liver_mean"] != alone[b]["liver_mean"]
    assert alone[b]["warnings"] and alone[a]["warnings"] != alone[b]["warnings"]
    for root in (a, b, b):
        assert row_of(root, tmp_path / "both", single) == alone[root]


def test_result_is_used_again_only_for_the_same(
    coarse, single, model, tmp_path, staged, monkeypatch
):
    root, out = cohort(tmp_path / "in", coarse), tmp_path / "out"
    first = row_of(root, out, single)

    def staged_once(network=single, **options):
        """Staged at the first call, and used again at the second."""
        staged.clear()
        rows = [row_of(root, out, network, **options) for _ in range(2)]
        assert rows[0] == rows[1]
        return len(staged) == 1

    assert row_of(root, out, single) == first and len(staged) == 1
    assert staged_once(explain="F0")
    assert staged_once(surface_mm=5)
    assert staged_once(model)
    assert staged_once()

    # A corrected mask of the same size and time.
    mask = root / "p1" / "liver.nii"
    sitk.WriteImage(coarse["liver"], str(mask))
    (root / "p1" / "liver.nii.gz").unlink()
    assert staged_once()
    times = mask.stat()
    data = bytearray(mask.read_bytes())
    data[352 + np.flatnonzero(np.frombuffer(data, np.uint8)[352:])[9]] = 0
    mask.write_bytes(data)
    os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert mask.stat().st_mtime_ns == times.st_mtime_ns
    assert staged_once()

    mask.unlink()  # now the V-Net finds the liver, so that its version counts too
    assert staged_once()
    monkeypatch.setattr(case_row, "shipped_network", lambda *_: SimpleNamespace(sha256="another"))
    assert staged_once()
    newer = {**case_row.software(), "LiverFibrosisStaging": "99"}
    monkeypatch.setattr(case_row, "software", lambda: newer)
    assert staged_once()


def test_damaged_or_older_results_are_staged_again(coarse, single, tmp_path, staged):
    root, out = cohort(tmp_path / "in", coarse), tmp_path / "out"
    first = row_of(root, out, single)
    file = out / "p1" / "staging.json"
    whole = file.read_text()
    summary = json.loads(whole)
    texts = [
        whole[:-40],
        "[]",
        json.dumps({**summary, "schema": summary["schema"] - 1}),
        json.dumps({key: value for key, value in summary.items() if key != "measurements"}),
        json.dumps({key: value for key, value in summary.items() if key != "fingerprint"}),
    ]
    for text in texts:
        file.write_text(text)
        assert row_of(root, out, single) == first
        assert json.loads(file.read_text()) == summary
    (out / "p1" / "location_map.nrrd").unlink()
    row_of(root, out, single)
    assert (out / "p1" / "location_map.nrrd").is_file()
    assert len(staged) == 1 + len(texts) + 1


def test_saved_fingerprint_is_in_the_schema(coarse, single, tmp_path, staged):
    jsonschema = pytest.importorskip("jsonschema")
    row_of(cohort(tmp_path / "in", coarse), tmp_path / "out", single)
    summary = json.loads((tmp_path / "out" / "p1" / "staging.json").read_text())
    schema = json.loads((ROOT / "Resources" / "staging.schema.json").read_text())
    jsonschema.validate(summary, schema)
    assert len(summary["fingerprint"]) == 64


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "list.mhd", "pattern.mhd", "a.nii.gz"])
def test_fingerprint_includes_the_data_files_of_headers(name, coarse, tmp_path):
    path = tmp_path / name
    sitk.WriteImage(coarse["ct"], str(path), useCompression=False)
    data = next((p for p in tmp_path.iterdir() if p != path), path)
    if name in ("list.mhd", "pattern.mhd"):
        data = data.rename(tmp_path / "slice01.raw")
        value = "LIST\nslice01.raw" if name == "list.mhd" else "slice%02d.raw 1 1 1"
        text = path.read_text()
        path.write_text(text[: text.index("ElementDataFile")] + f"ElementDataFile = {value}\n")
    before = fingerprint(path, None, None)
    assert fingerprint(path, None, None) == before
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert fingerprint(path, None, None) != before


def test_fingerprint_includes_every_input(coarse, tmp_path):
    write_slices(tmp_path / "dicom", coarse["ct"][:, :, :3])
    sitk.WriteImage(coarse["liver"], str(tmp_path / "m.nii.gz"))
    ct, mask = tmp_path / "dicom", tmp_path / "m.nii.gz"
    shutil.copytree(ct, tmp_path / "copy")
    segments = tmp_path / "segments"
    segments.mkdir()
    shutil.copy(mask, segments / "liver_segment_1.nii.gz")
    base = fingerprint(ct, mask, None)
    assert fingerprint(tmp_path / "copy", mask, None) == base
    (ct / "notes.txt").write_text("a result, or whatever lies beside the slices")
    assert fingerprint(ct, mask, None) == base
    others = [
        fingerprint(ct, None, mask),
        fingerprint(ct, mask, mask),
        fingerprint(ct, f"{mask}:1", None),
        fingerprint(ct, f"{mask}:2", None),
        fingerprint(ct, mask, None, explain="F0"),
        fingerprint(ct, mask, None, mask),
        fingerprint(ct, mask, None, segments),
        fingerprint(ct / "IM000.dcm", mask, None),
        fingerprint(ct / "IM001.dcm", mask, None),
    ]
    (segments / "liver_segment_1.nii.gz").rename(segments / "liver_segment_2.nii.gz")
    others.append(fingerprint(ct, mask, None, segments))
    last = ct / "IM002.dcm"
    last.write_bytes(last.read_bytes()[:-1] + b"\7")
    others += [fingerprint(ct, mask, None), fingerprint(ct / "IM000.dcm", mask, None)]
    assert len({base, *others}) == 1 + len(others)


# Its own SIGKILL at the n-th file that is put in its place: nothing can be tidied up.
KILLED = """
import os, signal, sys
from LiverFibrosisStagingLib import stage_folder
left = [int(sys.argv[1])]
def count(event, arguments):
    if event == "os.rename":
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
stage_folder(sys.argv[2], sys.argv[3], sys.argv[4])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_batch_resumes_to_the_same_table(coarse, single, tmp_path):
    root = cohort(tmp_path / "in", coarse)
    cohort(root, coarse, brighter=-60, case="p2")
    (root / "bad.nii").write_text("Dear radiologist")
    stage_folder(root, tmp_path / "whole", model=single)
    expected = table(tmp_path / "whole"), summaries(tmp_path / "whole")
    assert [row["status"] for row in expected[0]] == ["failed", "done", "done"]
    assert expected[0][2]["warnings"]
    out = tmp_path / "out"
    # At the table, within the first result, and within the second, the first put over its remains.
    for moves in (0, 4, 12):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(moves), root, out, single.path],
            env={**os.environ, "PYTHONPATH": str(ROOT / "LiverFibrosisStaging")},
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert killed.returncode == -9, killed.stderr
    stage_folder(root, out, model=single)
    assert (table(out), summaries(out)) == expected
    left = {p.relative_to(out) for p in out.rglob("*")}
    assert left == {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")}
