"""The page on performance is what its generator makes; the numbers that it is made from."""

import inspect
import re
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import SimpleITK as sitk
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing" / "benchmarks")]

import bench  # noqa: E402
import performance_page  # noqa: E402
import profile_stage  # noqa: E402
from network_work import network_work  # noqa: E402

MIB = 1 << 20
V_NET = "imaging.segmentation.SegmentationModel.run"
STAGING = "model.StagingModel.run"
ON_CT = "location_map.on_ct"


def test_the_page_is_what_the_generator_makes_of_the_history():
    written = performance_page.PAGE.read_text(encoding="utf-8")
    assert written == performance_page.page(performance_page.read_history())


def side(seconds: float, peak: float, commit: str) -> dict:
    """One checkout's part of a run: CPU and wall seconds of all steps grow with `seconds`."""
    steps = {
        performance_page.READING: [0.1, 0.5 * seconds, 30.0, 20.0],
        V_NET: [1.5 * seconds, seconds, 4.0, 60.0],
        STAGING: [0.2, 0.1 * seconds, 4.0, 60.0],
        ON_CT: [0.1, 0.25 * seconds, 1e9 / MIB, 8.0],
        "staging.stage": [0.01, 0.01, 1.0, 1.0],
    }
    return {
        "steps": steps,
        "stage": [3.0 * seconds, 2.0 * seconds],
        "save": [0.2, 0.1],
        "process": [4.0, 3.0],
        "peak": peak,
        "files": 3.0,
        "voxels": 50e6 / MIB,
        "size": [512, 512, 109],
        "spacing": [0.8, 0.8, 2.5],
        "commit": commit,
    }


@pytest.fixture
def run():
    jobs = {
        "now": {"job": 1.0, "process": 2.0, "peak": 300.0},
        "plain": {"job": 16.0, "process": 20.0, "peak": 1500.0},
        "tuned": {"job": 8.0, "process": 12.0, "peak": 1200.0},
        "before": {"job": 4.0, "process": 5.0, "peak": 600.0},
        "difference": 0.01,
    }
    return {
        "date": "2026-01-02",
        "commit": "abc1234",
        "machine": "a machine",
        "versions": {"numpy": "2"},
        "threads": 2,
        "runs": 3,
        "sample": False,
        "limits": {
            "copy, GB/s": 10.0,
            "product in numpy, GFLOP/s": 100.0,
            "product in ONNX Runtime, GFLOP/s": 200.0,
            "decompressed by zlib, MB/s": 100.0,
            "decompressed by ITK, MB/s": 200.0,
        },
        "now": side(1.0, 500.0, "abc1234"),
        "before": side(8.0, 2000.0, "old5678"),
        "work": {V_NET: [150e9, 9e9], STAGING: [0.0, 0.4e9]},
        "monai": {"shipped": jobs, "phantoms": jobs},
        "slices": {
            "now": [[100, 2.0, 3.0, 500.0], [200, 2.5, 4.0, 600.0], [300, 3.0, 5.0, 700.0]],
            "before": [[100, 4.0, 6.0, 900.0], [200, 6.0, 8.0, 1300.0], [300, 8.0, 10.0, 1700.0]],
        },
    }


def test_share_of_the_limit_of_each_kind_of_step(run):
    found = performance_page.shares(run)
    assert found == {
        performance_page.READING: ("decompression", pytest.approx(50 / 0.5 / 200)),
        V_NET: ("matrix product", pytest.approx(150 / 1.0 / 200)),
        STAGING: ("copy", pytest.approx(0.4 / 0.1 / 10)),
        ON_CT: ("copy", pytest.approx(1 / 0.25 / 10)),
    }


def test_line_through_slices(run):
    assert performance_page.fit(run["slices"]["now"], 1) == pytest.approx((1.5, 0.5))
    assert performance_page.fit(run["slices"]["now"], 3) == pytest.approx((400, 100))


def test_page_of_a_run_beside_an_older_version(run):
    lines = performance_page.page([run, run]).splitlines()
    assert "| Stage, s | 16 | 2 | 8.00 |" in lines
    assert "| peak, MiB | 2000 | 500 | 4.00 |" in lines
    assert "| V-Net, share of Stage, % | 50 | 50 | 1.00 |" in lines
    assert "|  | peak, MiB | 1500 | 1200 | 600 | 300 | 5.00 | 4.00 |" in lines
    assert f"| `{V_NET}` | 1.000 | 1.500 | 1.5 | 4 | 60 | 75 % of matrix product | 8.000 |" in lines
    assert "| 200 | 6 | 8 | 1300 | 2.5 | 4 | 600 |" in lines
    assert "| line: 100 slices more | 2 | 2 | 400 | 0.5 | 1 | 100 |" in lines
    assert len([line for line in lines if line.startswith("| 2026-01-02 | abc1234 |")]) == 2
    assert "A CT of 512 x 512 x 109 voxels of 0.8 x 0.8 x 2.5 mm." in "\n".join(lines)


def test_page_of_a_run_alone(run):
    run["before"] = None
    for job in run["monai"].values():
        job.pop("before", None)
    del run["slices"]["before"]
    text = performance_page.page([run])
    assert "| Stage, s | 2 |" in text.splitlines()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) == 5
    assert "before" not in "".join(tables)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_recorded_runs_are_read_back(run, tmp_path):
    path = tmp_path / "history.jsonl"
    assert performance_page.read_history(path) == []
    run["now"]["stage"] = [1.23456789, 0.000123456]
    performance_page.record(run, path)
    performance_page.record(run, path)
    first, second = performance_page.read_history(path)
    assert first == second
    assert first["now"]["stage"] == [1.235, 0.0001235]
    assert first["now"]["size"] == [512, 512, 109]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_operations_and_bytes_of_convolutions(tmp_path):
    """By hand: a grouped convolution with strides, then a transposed one."""
    weights = [np.ones((4, 1, 3, 3, 3), np.float32), np.ones((4, 5, 2, 2, 2), np.float32)]
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv", ["x", "a"], ["y"], group=2, strides=[2, 2, 2], pads=[1, 1, 1, 1, 1, 1]
            ),
            helper.make_node("ConvTranspose", ["y", "b"], ["z"], strides=[2, 2, 2]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, "s", "r", "c"])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 5, "s", "r", "c"])],
        [numpy_helper.from_array(w, name) for w, name in zip(weights, "ab")],
    )
    path = tmp_path / "small.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    work = network_work(path, (3, 2, 8, 10, 12))
    half = 4 * 5 * 6  # voxels of y, of each of 3 volumes
    assert work.operations == 3 * 2 * (4 * 27 * half + 4 * 5 * 8 * half)
    x, y, z = 3 * 2 * 8 * half, 3 * 4 * half, 3 * 5 * 8 * half
    assert work.moved == 4 * (x + 4 * 27 + y) + 4 * (y + 4 * 5 * 8 + z)


def test_every_step_is_a_function_of_this_library():
    for name in profile_stage.STEPS:
        owner, last = profile_stage._place(name)
        assert owner is not None and inspect.getattr_static(owner, last, None), name
    assert profile_stage._place("no_such_module.function") == (None, "function")
    steps = {*profile_stage.NETWORKS, *performance_page.VOXELS, performance_page.READING}
    assert steps <= set(profile_stage.STEPS)


def test_a_step_has_its_own_cost_and_the_bytes_it_touched(tmp_path):
    profile = profile_stage.Profile()
    array, image = np.zeros((4, 5), np.int16), sitk.Image([3, 4, 5], sitk.sitkFloat32)
    file = tmp_path / "file"
    file.write_bytes(b"1234567")

    def work(until: float) -> None:
        while time.process_time() < until:
            pass

    def inside(*given: object) -> tuple:
        work(time.process_time() + 0.06)
        return given

    inner = profile.step("inner", inside)

    def around(given: dict) -> object:
        work(time.process_time() + 0.02)
        return inner(given["array"], given["array"], image)

    found = profile.step("outer", around)({"array": array, "file": file})
    assert found[0] is array
    cpu, wall, touched, _ = profile.costs["inner"]
    assert touched == 40 + 240
    assert cpu >= 0.06
    assert wall >= cpu * 0.5
    cpu, _, touched, _ = profile.costs["outer"]
    assert touched == 40 + 240 + 7
    assert 0.02 <= cpu < profile.costs["inner"][0]


def test_least_of_all_runs_and_medians():
    runs = [
        {
            "steps": {ON_CT: [n, 2 * n, MIB, 2 * MIB]},
            "shapes": {},
            **{part: [n, n + 1] for part in ("stage", "save")},
            **{"process": n, "process_wall": n + 2, "peak": n * MIB, "files": MIB},
            **{"size": [1], "spacing": [1], "voxels": MIB, "versions": {}},
        }
        for n in (3.0, 1.0, 2.0)
    ]
    found = profile_stage.summary(runs, runs)
    assert found["steps"] == {ON_CT: [1.0, 2.0, 1.0, 2.0]}
    assert (found["stage"], found["process"], found["peak"]) == ([1.0, 2.0], [1.0, 3.0], 1.0)
    jobs = [{"job": n, "process_wall": n, "peak": n, "probabilities": []} for n in (3, 1, 2)]
    assert bench._medians(jobs) == {"job": 2, "process": 2, "peak": 2}


def test_numbers_of_a_process_are_its_last_line():
    script = "print('other'); import json; print(json.dumps({'job': 1.5}))"
    found = profile_stage.measured_process([sys.executable, "-c", script], {})
    assert found["job"] == 1.5 and found["process_wall"] > 0
    with pytest.raises(SystemExit, match="it failed"):
        profile_stage.measured_process([sys.executable, "-c", "raise SystemExit('it failed')"], {})


@pytest.mark.parametrize(("slices", "step"), [(10, 2.4), (40, 0.6), (60, 0.6)])
def test_a_longer_scan_has_so_many_slices_over_the_same_anatomy(slices, step, tmp_path):
    values = np.linspace(0, 110, 12)[:, None, None] * np.ones((12, 8, 9))
    given = sitk.GetImageFromArray(values.astype(np.int16))
    given.SetSpacing((0.7, 0.7, 2.0))
    sitk.WriteImage(given, tmp_path / "ct.nii.gz")
    profile_stage.longer(tmp_path / "ct.nii.gz", slices, tmp_path / "long.nii.gz")
    made = sitk.ReadImage(tmp_path / "long.nii.gz")
    assert made.GetSize() == (9, 8, slices)
    assert made.GetSpacing() == pytest.approx((0.7, 0.7, step))
    found = sitk.GetArrayFromImage(made).mean((1, 2))
    anatomy = found[-min(slices, 40) :]
    np.testing.assert_allclose(anatomy, np.linspace(0, 110, len(anatomy)), atol=0.6)
    noise = sitk.GetArrayFromImage(made)[: slices - len(anatomy)]
    assert not noise.size or 5 < noise.std() < 15


def test_commit_of_a_folder_without_git_is_unknown(tmp_path):
    assert bench.commit(tmp_path) == "unknown"


def test_the_job_in_monai_gives_the_probabilities_of_the_library(tmp_path, model_path):
    """With masks. Both grids are up to half a voxel apart, so that they are not equal."""
    pytest.importorskip("nibabel", reason="MONAI reads NIfTI with nibabel")
    from monai_job import stage_with_monai

    from LiverFibrosisStagingLib import stage

    mask = str(tmp_path / "mask.nii.gz")
    sitk.WriteImage(sitk.ReadImage(profile_stage.SAMPLE.parent / "phantom_F4.seg.nrrd"), mask)
    found = stage_with_monai(str(profile_stage.SAMPLE), mask, model_path)
    expected = stage(profile_stage.SAMPLE, mask, model=model_path, explain="F4", any_phase=True)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=0.05)
    ours = sitk.GetArrayFromImage(expected.location_map)
    theirs = found.location_map.as_tensor()[0].numpy().transpose(2, 1, 0)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95
