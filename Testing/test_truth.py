"""The comparison of location maps with known truth: right region, right layer, right numbers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("matplotlib")

import phantom  # noqa: E402
import truth  # noqa: E402
from manifest import read_manifest  # noqa: E402

from LiverFibrosisStagingLib import StagingModel, stage  # noqa: E402


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    lines = ["patient,ct,liver,spleen,stage"]
    for seed in range(3):
        files = phantom.write(
            phantom.phantom(4, seed, spacing=(6.0, 4.0, 4.0), size=(38, 81, 99)),
            folder / f"case{seed}",
        )
        lines.append(",".join([f"p{seed}", *files.values(), "F4"]))
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return read_manifest(folder / "manifest.csv")


@pytest.fixture(scope="module")
def single(model_path):
    return model_path.with_name("LFS_single.onnx")


@pytest.fixture(scope="module")
def found(cases, single):
    """As if the two networks had been trained on different labels."""
    return [
        weight
        for network in ("trained", "shuffled")
        for effect in ("texture", "spleen")
        for weight in truth.weights(effect, network, single, cases)
    ]


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
