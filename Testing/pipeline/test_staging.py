"""stage() and its result, on the phantom that ships and on real CTs."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import SimpleITK as sitk
from conftest import REAL_CASES, ROOT

import LiverFibrosisStagingLib.staging as staging
from LiverFibrosisStagingLib import Cancelled, StagingError, read_ct, read_mask, stage
from LiverFibrosisStagingLib.gradcam_onnx.session import run_session
from LiverFibrosisStagingLib.report.summary import SURFACE_MM, table_text
from LiverFibrosisStagingLib.result import FILES
from LiverFibrosisStagingLib.stages import STAGES

EXPECTED_FILES = {
    "staging.json",
    "location_map.nrrd",
    "location_map_label.nrrd",
    "organs.seg.nrrd",
    "overview.png",
}


@pytest.fixture(scope="module")
def model_path(single_path):
    return single_path


@pytest.fixture(scope="module")
def model(single):
    return single


@pytest.fixture(scope="module")
def result(sample, model):
    return stage(sample["ct"], sample["liver"], sample["spleen"], model=model)


def check(result):
    """What holds for every result."""
    assert result.probabilities.shape == (5,)
    assert result.probabilities.sum() == pytest.approx(1)
    assert result.stage == STAGES[int(np.argmax(result.probabilities.cumsum() >= 0.5))]
    assert result.scores["significant"] == pytest.approx(result.probabilities[2:].sum())
    assert result.scores["advanced"] == pytest.approx(result.probabilities[3:].sum())
    assert result.scores["cirrhosis"] == pytest.approx(result.probabilities[4])
    for image in (result.location_map, result.label_map, result.liver):
        assert image.GetSize() == result.ct.GetSize()
        assert image.GetOrigin() == result.ct.GetOrigin()
        assert image.GetSpacing() == result.ct.GetSpacing()
        assert image.GetDirection() == result.ct.GetDirection()
    relative = sitk.GetArrayFromImage(result.location_map)
    labels = sitk.GetArrayFromImage(result.label_map)
    assert relative.dtype == np.float32 and labels.dtype == np.uint8
    assert relative.min() == 0 and np.isfinite(relative).all()
    bands = np.ceil(relative.astype(np.float64) / relative.max() * 10)
    assert np.abs(labels - bands).max() <= 1 and (labels == bands).mean() > 0.9999
    assert labels.max() == 10
    assert not labels[sitk.GetArrayViewFromImage(result.ct) < -2000].any()
    shares = {name: values["share"] for name, values in result.measurements.items()}
    assert shares["liver"] + shares.get("spleen", 0) + shares["rest"] == pytest.approx(1, abs=1e-5)
    assert shares["liver_surface"] + shares["liver_core"] == pytest.approx(shares["liver"])


def test_the_shipped_model_stages_the_sample(sample):
    check(stage(*sample.values()))


def test_the_model_of_phantoms_stages_the_sample_as_it_was_made(sample, phantoms_path):
    result = stage(*sample.values(), phantoms_path)
    check(result)
    assert result.stage == "F4"
    assert not result.warnings


def test_relative_map_has_mean_one_in_the_body(result):
    """On the CT's grid as on the working grid; slices outside all patches have no map."""
    relative = sitk.GetArrayFromImage(result.location_map)
    seen = np.flatnonzero(relative.any(axis=(1, 2)))
    means = []
    for k in seen.tolist():
        body = sitk.GetArrayFromImage(sitk.BinaryFillhole(result.ct[:, :, k] > -250)) > 0
        means.append(relative[k][body].mean())
    assert np.mean(means) == pytest.approx(1, abs=0.05)


def test_measurements_equal_the_map_on_the_ct(result):
    """An independent way: SimpleITK's distance map and means on the CT's own, finer grid."""
    relative = sitk.GetArrayFromImage(result.location_map)
    # To the nearest voxel outside, which is up to a voxel farther away than the boundary.
    distance = sitk.GetArrayFromImage(
        sitk.SignedMaurerDistanceMap(
            result.liver == 0, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
        )
    )
    liver = sitk.GetArrayFromImage(result.liver) > 0
    seen = relative.any(axis=(1, 2))[:, None, None]
    regions = {
        "liver": liver,
        "liver_surface": liver & (distance <= SURFACE_MM),
        "liver_core": liver & (distance > SURFACE_MM),
        "spleen": sitk.GetArrayFromImage(result.spleen) > 0,
    }
    for name, region in regions.items():
        measured = result.measurements[name]
        assert measured["mean"] == pytest.approx(relative[region & seen].mean(), rel=0.05)
        volume = (region & seen).sum() * np.prod(result.ct.GetSpacing()) / 1000
        assert measured["volume_ml"] == pytest.approx(volume, rel=0.08)


def test_result_cannot_be_changed(result):
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.stage = "F0"
    with pytest.raises(ValueError, match="read-only"):
        result.probabilities[0] = 1


@pytest.mark.parametrize("explain", ["F0", "F2", "significant", "cirrhosis"])
def test_explaining_another_stage_changes_the_map_only(explain, sample, model, result):
    other = stage(sample["ct"], sample["liver"], sample["spleen"], model, explain=explain)
    np.testing.assert_array_equal(other.probabilities, result.probabilities)
    assert other.explained == explain
    if explain not in (result.stage, "cirrhosis"):
        a, b = (sitk.GetArrayFromImage(r.location_map) for r in (other, result))
        assert np.abs(a - b).max() > 0.1


def test_result_explains_another_stage_without_the_network(sample, model, result):
    expected = stage(sample["ct"], sample["liver"], sample["spleen"], model, explain="F0")
    found = result.explain("F0")
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(found.location_map),
        sitk.GetArrayViewFromImage(expected.location_map),
    )
    assert found.measurements == expected.measurements and found.explained == "F0"
    assert result.explained == result.stage  # the first one is as it was
    with pytest.raises(StagingError, match="Cannot explain"):
        result.explain("F7")


def test_predicted_stage_is_what_is_explained(sample, model, result):
    named = stage(sample["ct"], sample["liver"], sample["spleen"], model, explain=result.stage)
    assert result.explained == result.stage
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(named.label_map), sitk.GetArrayViewFromImage(result.label_map)
    )


def test_images_and_paths_give_the_same(sample, model_path, result):
    images = read_ct(sample["ct"]), read_mask(sample["liver"]), read_mask(sample["spleen"])
    again = stage(*images, model=str(model_path))
    np.testing.assert_array_equal(again.probabilities, result.probabilities)


def test_one_label_image_serves_as_both_masks(sample, model, result):
    liver, spleen = read_mask(sample["liver"]) != 0, read_mask(sample["spleen"]) != 0
    both = stage(sample["ct"], liver + 2 * spleen, model=model)
    assert both.measurements == result.measurements


def test_label_of_a_label_image_can_be_named(sample, model, result, tmp_path):
    path = tmp_path / "many.nii.gz"
    liver, spleen = read_mask(sample["liver"]) != 0, read_mask(sample["spleen"]) != 0
    sitk.WriteImage(5 * liver + 7 * spleen, str(path))
    named = stage(sample["ct"], f"{path}:5", f"{path}:7", model=model)
    assert named.measurements == result.measurements
    with pytest.raises(StagingError, match=r"several labels \(5, 7\)"):
        stage(sample["ct"], path, model=model)
    with pytest.raises(StagingError, match="no voxel with the label 3"):
        stage(sample["ct"], f"{path}:3", model=model)


def test_saved_result_is_complete_and_documented(result, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    folder = result.save(tmp_path / "new" / "folder")
    assert {p.name for p in folder.iterdir()} == EXPECTED_FILES == set(FILES)
    summary = json.loads((folder / "staging.json").read_text())
    schema = json.loads((ROOT / "Resources" / "staging.schema.json").read_text())
    jsonschema.validate(summary, schema)
    assert summary == json.loads(json.dumps(result.summary()))
    assert "esearch use only" in summary["research_use"]
    for name, image in zip(FILES, (result.location_map, result.label_map)):
        saved = sitk.ReadImage(str(folder / name))
        np.testing.assert_array_equal(
            sitk.GetArrayViewFromImage(saved), sitk.GetArrayViewFromImage(image)
        )
        np.testing.assert_allclose(saved.GetOrigin(), result.ct.GetOrigin(), atol=1e-6)
        np.testing.assert_allclose(saved.GetDirection(), result.ct.GetDirection(), atol=1e-9)
        assert not saved.GetMetaDataKeys() or "Patient" not in str(saved.GetMetaDataKeys())
    picture = sitk.ReadImage(str(folder / "overview.png"))
    assert picture.GetSize()[0] >= 1200 and picture.GetNumberOfComponentsPerPixel() == 3
    result.save(folder)  # again, over itself
    assert {p.name for p in folder.iterdir()} == EXPECTED_FILES


def test_failed_save_leaves_nothing(result, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StagingError, match="Cannot write to the folder"):
        result.save(blocked)
    with pytest.raises(StagingError, match="Cannot write to the folder"):
        result.save(blocked / "below")
    # A disk that fills up while the picture is written.
    from LiverFibrosisStagingLib.report import drawing

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "write_png", full)
    with pytest.raises(StagingError, match="No space left"):
        result.save(tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_save_over_a_file_in_use_keeps_the_earlier_result(result, tmp_path, monkeypatch):
    """A picture that is open in a viewer on Windows can neither be moved nor replaced."""
    result.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = Path.replace

    def replace(self, target):
        if tmp_path / "overview.png" in (self, target):
            raise PermissionError(13, "The process cannot access the file")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StagingError, match=r"overview\.png .*earlier result in it is unchanged"):
        dataclasses.replace(result, explained="F0").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_result_does_not_name_its_inputs(sample, model, tmp_path, monkeypatch):
    """Names of files and of nodes in the scene, quoted in warnings."""
    ct = shutil.copy(sample["ct"], tmp_path / "DOE^JANE.nii.gz")
    node = read_ct(ct)
    node.SetMetaData(staging.NAME_KEY, "Doe Jane")
    for given, name in ((ct, ct), (node, "Doe Jane")):
        said = (f"{name} is odd.", "DOE, JANE.")
        monkeypatch.setattr(staging, "notes", lambda _, said=said: said)
        warnings = stage(given, sample["liver"], model=model).warnings
        assert warnings[:2] == ("The CT is odd.", "The CT.")


def test_copied_table_holds_no_formula(result):
    summary = result.summary()
    summary["model"] = {**summary["model"], "trained_on": "=HYPERLINK(1)\tand\nmore"}
    rows = [line.split("\t") for line in table_text(summary).splitlines()]
    assert ["Trained on", "'=HYPERLINK(1) and more", ""] in rows
    assert {len(row) for row in rows} == {3}


def test_progress_rises_to_one_and_names_its_steps(sample, model):
    calls = []
    stage(sample["ct"], sample["liver"], model=model, progress=lambda f, s: calls.append((f, s)))
    fractions = [fraction for fraction, _ in calls]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert {"Reading", "Running the network", "Explaining"} <= {step for _, step in calls}


@pytest.mark.parametrize("step", ["Reading", "Running the network", "Explaining"])
def test_cancelled_between_steps(step, sample, model):
    cancel = threading.Event()

    def progress(_, name):
        if name == step:
            cancel.set()

    with pytest.raises(Cancelled):
        stage(sample["ct"], sample["liver"], model=model, progress=progress, cancel=cancel)


def test_cancelled_inside_the_network(model_path, tmp_path):
    """No further operators are run, and the session can be used again."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "run")
    session = onnxruntime.InferenceSession(str(model_path), options, ["CPUExecutionProvider"])
    cancel = threading.Event()
    cancel.set()  # first asked for while the network runs
    (given,) = session.get_inputs()
    volume = np.zeros((4, *given.shape[1:]), np.float32)
    with pytest.raises(Cancelled):
        run_session(session, ["logits"], volume, model_path, cancel)
    run_session(session, ["logits"], volume[:1], model_path, threading.Event())
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["name"] for event in events if event["name"].endswith("_kernel_time")]
    last = ran[-1]
    assert ran.count(last) == 1  # by the second run alone
    assert ran.count(ran[0]) == 2


def test_refusals_name_what_is_missing(sample, model):
    with pytest.raises(StagingError, match="Cannot explain 'F5'"):
        stage(sample["ct"], sample["liver"], model=model, explain="F5")
    with pytest.raises(StagingError, match=r"none\.onnx"):
        stage(sample["ct"], sample["liver"], model="none.onnx")


def test_mask_on_another_grid_is_resampled_with_a_warning(sample, model, result):
    liver = sitk.BinShrink(read_mask(sample["liver"]), [2, 2, 1])
    other = stage(sample["ct"], liver, model=model)
    assert any("another grid" in warning for warning in other.warnings)
    np.testing.assert_allclose(other.probabilities, result.probabilities, atol=0.02)


def test_mask_of_another_scan_is_refused(sample, model):
    liver = read_mask(sample["liver"])
    liver.SetOrigin([1000, 1000, 1000])
    with pytest.raises(StagingError, match="outside the CT"):
        stage(sample["ct"], liver, model=model)


@pytest.mark.parametrize("case", REAL_CASES)
def test_real_ct(case, shared_data, model):
    folder = shared_data / case
    result = stage(folder / "ct.nii.gz", folder / "seg_semiauto_liver1_spleen2.nii.gz", model=model)
    check(result)
    # A map, not a constant; and measured where the mask says.
    assert 0.02 < result.measurements["liver"]["share"] < 0.95
    liver_ml = (sitk.GetArrayViewFromImage(result.liver) > 0).sum() * np.prod(
        result.ct.GetSpacing()
    )
    assert result.measurements["liver"]["volume_ml"] == pytest.approx(liver_ml / 1000, rel=0.01)
