"""Location maps against a known truth: regions, layers, measures, table and figure."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("matplotlib")

import truth  # noqa: E402
from phantom_cohorts import write_cohort  # noqa: E402

from cases.manifest import read_manifest  # noqa: E402
from common.resume import digest, training_entry  # noqa: E402
from LiverFibrosisStagingLib import StagingModel, stage  # noqa: E402


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return read_manifest(write_cohort(tmp_path_factory.mktemp("phantoms"), [4, 4, 4]))


@pytest.fixture(scope="module")
def single(single_path):
    return single_path


@pytest.fixture(scope="module")
def found(cases, single):
    """Weights of one network, used for the trained network and for the control."""
    trained = [
        weight
        for effect in ("texture", "spleen")
        for weight in truth.weights(effect, "trained", single, cases)
    ]
    return [*trained, *(weight._replace(network="shuffled") for weight in trained)]


def test_weights_equal_the_measurements_of_staging(cases, single, found):
    for case in cases:
        measured = stage(case.ct, case.liver, case.spleen, single, "F4").measurements
        for effect, region in (("texture", "liver"), ("spleen", "spleen")):
            (ours,) = (
                w
                for w in found
                if w[:5] == (effect, "third convolution", "gradcam", "trained", case.name)
            )
            assert ours.share == pytest.approx(measured[region]["share"])
            # The share of weight over the share of volume is the mean relative weight.
            assert ours.ratio == pytest.approx(measured[region]["mean"], rel=1e-3)


def test_the_second_layer_is_the_last_convolutions_activation(single, tmp_path):
    layers = truth._layers(single, tmp_path)
    patch = np.random.default_rng(0).random((1, 1, *layers["last"].card.patch_size), np.float32)
    sizes = {}
    for name, model in layers.items():
        forward = model.run(patch)
        sizes[name] = forward.tensors[model.card.target_layer].shape[1:]
    assert sizes == {"third convolution": (32, 16, 42, 54), "last": (64, 8, 21, 27)}
    assert StagingModel.load(single).card.target_layer == "features"  # the file is not changed


@pytest.fixture(scope="module")
def run(cases, single, tmp_path_factory):
    """A run of train.py with the files that truth.py reads."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "fold_0").mkdir()
    (folder / "fold_0" / "LFS.onnx").write_bytes(single.read_bytes())
    files = {case.name: case.content() for case in cases}
    plan = {"folds": [{"test": [cases[0].name]}], "files": files}
    (folder / "folds.json").write_text(json.dumps(plan))
    return folder


def test_only_test_cases_are_evaluated(run, cases, tmp_path, capsys):
    manifest = cases[0].ct.parent / "manifest.csv"
    assert truth.f4_test_cases(run, manifest) == cases[:1]
    copied = shutil.copytree(manifest.parent, tmp_path / "other")
    shutil.copy(cases[1].ct, copied / cases[0].ct.name)
    command = ["--shuffled", str(run), "-o", str(tmp_path / "out")]
    assert truth.main([f"texture={run},{copied / 'manifest.csv'}", *command]) == 1
    assert "it is another cohort than that of" in capsys.readouterr().err
    trained_on_test = shutil.copytree(run, tmp_path / "trained")
    model = onnx.load(trained_on_test / "fold_0" / "LFS.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    known = training_entry([digest(cases[0].ct)])
    onnx.helper.set_model_props(model, {**properties, **known})
    onnx.save(model, trained_on_test / "fold_0" / "LFS.onnx")
    assert truth.main([f"texture={trained_on_test},{manifest}", *command]) == 1
    assert "trained on test cases (p0)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_table_and_figure_show_all_layers_and_methods(found, tmp_path):
    lines = truth._write(found, tmp_path)
    assert [line[:4] for line in lines[1:]] == [
        [region, layer, method, "3"]
        for region in ("liver", "spleen")
        for layer in ("third convolution", "last")
        for method in ("gradcam", "hirescam")
    ]
    first = [w for w in found if w[:4] == ("texture", "third convolution", "gradcam", "trained")]
    assert lines[1][6].startswith(f"{np.median([w.ratio for w in first]):.2f} (")
    assert "Research use only" in (tmp_path / "truth.md").read_text()
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"truth.{suffix}").stat().st_size > 1000
    rows = (tmp_path / "truth.csv").read_text().splitlines()
    assert len(rows) == len(found) + 1
