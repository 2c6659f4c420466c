"""The comparison of location maps with known truth: right region, right layer, right numbers."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("matplotlib")

import truth  # noqa: E402
from phantom_cohorts import write_cohort  # noqa: E402

from cohort.manifest import read_manifest  # noqa: E402
from common.resume import digest, learned_entry  # noqa: E402
from LiverFibrosisStagingLib import StagingModel, stage  # noqa: E402


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return read_manifest(write_cohort(tmp_path_factory.mktemp("phantoms"), [4, 4, 4]))


@pytest.fixture(scope="module")
def single(single_path):
    return single_path


@pytest.fixture(scope="module")
def found(cases, single):
    """As if the two networks had been trained on different labels."""
    trained = [
        weight
        for effect in ("texture", "spleen")
        for weight in truth.weights(effect, "trained", single, cases)
    ]
    return [*trained, *(weight._replace(network="shuffled") for weight in trained)]


def test_weights_are_those_that_staging_measures(cases, single, found):
    for case in cases:
        measured = stage(case.ct, case.liver, case.spleen, single, "F4").measurements
        for effect, region in (("texture", "liver"), ("spleen", "spleen")):
            (ours,) = (
                w
                for w in found
                if w[:5] == (effect, "third convolution", "gradcam", "trained", case.name)
            )
            assert ours.share == pytest.approx(measured[region]["share"])
            # Share of weight over share of volume is the mean relative weight.
            assert ours.ratio == pytest.approx(measured[region]["mean"], rel=1e-3)


def test_the_other_layer_is_the_last_convolutions_activation(single, tmp_path):
    layers = truth._layers(single, tmp_path)
    patch = np.random.default_rng(0).random((1, 1, *layers["last"].card.patch_size), np.float32)
    sizes = {}
    for name, model in layers.items():
        forward = model.run(patch)
        sizes[name] = forward.tensors[model.card.target_layer].shape[1:]
    assert sizes == {"third convolution": (32, 16, 42, 54), "last": (64, 8, 21, 27)}
    assert StagingModel.load(single).card.target_layer == "features"  # the file is as it was


@pytest.fixture(scope="module")
def run(cases, single, tmp_path_factory):
    """A run of train.py, as far as the comparison looks at it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "fold_0").mkdir()
    (folder / "fold_0" / "LFS.onnx").write_bytes(single.read_bytes())
    files = {case.name: case.content() for case in cases}
    plan = {"folds": [{"held": [cases[0].name]}], "files": files}
    (folder / "folds.json").write_text(json.dumps(plan))
    return folder


def test_only_cases_that_were_held_out_are_looked_at(run, cases, tmp_path, capsys):
    manifest = cases[0].ct.parent / "manifest.csv"
    assert truth.held_out(run, manifest) == cases[:1]
    copied = shutil.copytree(manifest.parent, tmp_path / "other")
    shutil.copy(cases[1].ct, copied / cases[0].ct.name)
    command = ["--shuffled", str(run), "-o", str(tmp_path / "out")]
    assert truth.main([f"texture={run},{copied / 'manifest.csv'}", *command]) == 1
    assert "not the cohort that" in capsys.readouterr().err
    knowing = shutil.copytree(run, tmp_path / "knowing")
    model = onnx.load(knowing / "fold_0" / "LFS.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    known = learned_entry([digest(cases[0].ct)])
    onnx.helper.set_model_props(model, {**properties, **known})
    onnx.save(model, knowing / "fold_0" / "LFS.onnx")
    assert truth.main([f"texture={knowing},{manifest}", *command]) == 1
    assert "has learned from p0, to be tested on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_table_and_figure_show_every_way(found, tmp_path):
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
