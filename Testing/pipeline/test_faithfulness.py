"""Measures of faithfulness: on images with known importance, and on the shipped phantom."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.faithfulness import (
    Curves,
    Faithfulness,
    deletion_and_insertion,
    randomized,
    rank_correlation,
)
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx
from LiverFibrosisStagingLib.stages import explained_score, score_gradient

RANDOM = np.random.default_rng(2)
X = RANDOM.uniform(1, 2, (4, 5, 6))
USED = np.zeros_like(X)
USED[:2] = X[:2]


@pytest.fixture(scope="module")
def model(single):
    return single


def score(x):
    """A model that uses only the first half of the image."""
    return float(x[:2].sum())


def test_a_faithful_map_has_steep_curves():
    curves = deletion_and_insertion(score, X, np.zeros_like(X), USED, steps=4)
    assert curves.fractions == (0, 0.25, 0.5, 0.75, 1)
    assert curves.deletion[0] == 1 and curves.insertion[0] == 0
    np.testing.assert_allclose(curves.deletion[2:], 0)
    np.testing.assert_allclose(curves.insertion[2:], 1)
    assert curves.deletion_area < 0.25 < 0.75 < curves.insertion_area


def test_an_unfaithful_map_has_flat_curves():
    curves = deletion_and_insertion(score, X, np.zeros_like(X), -USED, steps=4)
    np.testing.assert_allclose(curves.deletion[:3], 1)
    np.testing.assert_allclose(curves.insertion[:3], 0)
    assert curves.insertion_area < 0.25 < 0.75 < curves.deletion_area


def test_only_the_region_is_masked():
    region = np.zeros(X.shape, bool)
    region[1:3] = True
    seen = []

    def watch(x):
        seen.append((x != X) & ~region)
        return score(x)

    masked = np.where(region, 0, X)
    deletion_and_insertion(watch, X, masked, USED, region, steps=2)
    assert len(seen) == 8 and not np.any(seen)


def test_equal_scores_of_image_and_masked_image_are_refused():
    with pytest.raises(StagingError, match="same score"):
        deletion_and_insertion(lambda x: 1.0, X, np.zeros_like(X), USED)


def test_failed_save_leaves_the_earlier_files(tmp_path, monkeypatch):
    curves = Curves((0, 1), (1, 0), (0, 1))
    found = Faithfulness("F4", curves, curves, (("weights", 0.1),))
    found.save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(before) == {"faithfulness.json", "faithfulness.png"}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    for folder in ("out", "new"):
        with pytest.raises(StagingError, match="No space left"):
            replace(found, explained="F0").save(tmp_path / folder)
    assert not (tmp_path / "new").exists()
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_rank_correlation_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = RANDOM.integers(0, 5, 40), RANDOM.normal(size=40)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation(a, np.ones(40)) is None


@pytest.mark.parametrize("members", [(2,), (3, 4), (0, 1, 2, 3, 4)])
def test_score_has_the_gradient_that_is_explained(members):
    logits, step = RANDOM.normal(size=5), 1e-6
    numeric = [
        (explained_score(logits + d, members) - explained_score(logits - d, members)) / (2 * step)
        for d in step * np.eye(5)
    ]
    np.testing.assert_allclose(score_gradient(logits, members), numeric, atol=1e-7)


def test_randomisation_shuffles_from_the_scores_and_keeps_the_file(model):
    before = model.path.read_bytes()
    one, name = randomized(model, 1)
    assert name == "logits_weight" and model.path.read_bytes() == before
    x = RANDOM.uniform(0.4, 0.9, (1, 1, *model.card.patch_size)).astype(np.float32)
    old, new = model.run(x), one.run(x)
    target = model.card.target_layer
    np.testing.assert_array_equal(old.tensors[target], new.tensors[target])
    assert np.abs(old.logits - new.logits).max() > 1e-3
    file = read_onnx(model.path)
    weights = [w for n, w in file.weights.items() if w.ndim >= 2 and "member" not in n]
    every, _ = randomized(model, len(weights))
    assert np.abs(every.run(x).tensors[target] - old.tensors[target]).max() > 1e-3
    with pytest.raises(StagingError, match=f"has {len(weights)} layers"):
        randomized(model, len(weights) + 1)


def test_command_measures_the_phantom_and_draws(sample, single_path, tmp_path, capsys):
    """The map of the phantom's stage is better than random order, and depends on the weights.

    Only deletion tells them apart: fibrosis is everywhere in the liver, so that pieces by chance
    soon bring some of it back.
    """
    ct, liver = tmp_path / "ct.nrrd", tmp_path / "liver.nrrd"
    for path, whole in ((ct, sample["ct"]), (liver, sample["liver"])):
        sitk.WriteImage(sitk.ReadImage(str(whole))[:, :, 20:60], str(path))  # one patch
    arguments = [str(ct), "--liver", str(liver), "-o", str(tmp_path / "out")]
    arguments += ["--model", str(single_path)]
    assert main(["check-explanation", "--faithfulness", *arguments, "--explain", "F4", "-q"]) == 0
    assert "Deletion: area" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    areas = found["areas"]
    assert areas["map"]["deletion"] < 0.6 * areas["by_chance"]["deletion"]
    assert areas["map"]["insertion"] > 0.9 * areas["by_chance"]["insertion"]
    assert all(rho is None or rho < 0.9 for _, rho in found["shuffled"][-2:])
    picture = (tmp_path / "out" / "faithfulness.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
