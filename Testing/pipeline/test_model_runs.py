"""Model files that load, but whose network or gradient gives invalid values."""

import numpy as np
import pytest

from LiverFibrosisStagingLib import StagingError, StagingModel
from LiverFibrosisStagingLib.gradcam_onnx.explainable import ExplainableModel
from LiverFibrosisStagingLib.gradcam_onnx.session import open_session
from LiverFibrosisStagingLib.imaging.segmentation import SegmentationModel

onnx = pytest.importorskip("onnx", reason="makes the model files")
from onnx import helper, numpy_helper  # noqa: E402
from tiny_models import (  # noqa: E402
    EXPLAINABLE,
    PATCH,
    explainable_model,
    segmentation_model,
    staging_model,
    written,
)

IMAGE = np.ones((2, 1, 6, 5), np.float32)
PATCHES = np.ones((2, 1, *PATCH), np.float32)


def scaled(name, factor):
    def change(model):
        weight = next(w for w in model.graph.initializer if w.name == name)
        values = numpy_helper.to_array(weight) * np.float32(factor)
        weight.CopyFrom(numpy_helper.from_array(values, name))

    return change


def test_scores_that_overflow_are_refused(tmp_path):
    path = written(explainable_model(), tmp_path / "m.onnx", scaled("w", 1e38))
    with pytest.raises(StagingError, match="not finite"):
        ExplainableModel(path).run(IMAGE)
    path = written(staging_model(), tmp_path / "m.onnx", scaled("w1", 1e38))
    with pytest.raises(StagingError, match="not finite"):
        StagingModel.load(path).run(PATCHES)


def test_a_map_that_overflows_is_refused(tmp_path):
    """Small feature maps with large weights: the scores are small, a gradient's square is not."""

    def change(model):
        scaled("w", 1e-30)(model)
        scaled("dense", 1e30)(model)

    model = ExplainableModel(written(explainable_model(), tmp_path / "m.onnx", change))
    forward = model.run(IMAGE)
    with pytest.raises(StagingError, match="location map that is not finite"):
        model.explain(forward, 1, "gradcam++")


def test_probabilities_that_overflow_are_refused(tmp_path):
    path = written(segmentation_model(), tmp_path / "m.onnx", scaled("w", 1e38))
    with pytest.raises(StagingError, match=r"m\.onnx gave probabilities"):
        SegmentationModel(path).run(np.full((4, 6, 8), 1e30, np.float32))


def test_probabilities_of_another_size_are_refused(tmp_path):
    def strided(model):
        model.graph.node[0].attribute.append(helper.make_attribute("strides", [2, 2, 2]))

    path = written(segmentation_model(), tmp_path / "m.onnx", strided)
    with pytest.raises(StagingError, match=r"shape \[1, 3, 2, 3, 4\]; needed .* \[1, 3, 4, 6, 8\]"):
        SegmentationModel(path).run(np.ones((4, 6, 8), np.float32))


def test_a_grid_of_tokens_that_the_layer_does_not_have_is_refused(tmp_path):
    described = {**EXPLAINABLE, "grid": [3, 3], "channel_axis": -1}
    path = written(explainable_model(described), tmp_path / "m.onnx")
    with pytest.raises(StagingError, match=r"shape \[2, 4, 6, 5\]; a grid of \(3, 3\)"):
        ExplainableModel(path).run(IMAGE)


def test_an_operator_defined_by_the_file_is_refused(tmp_path):
    """Its own Relu would run, but the gradient of ONNX's would be computed."""

    def own_relu(model):
        body = [helper.make_node("Sin", ["a"], ["b"])]
        opset = helper.make_opsetid("", 17)
        made = helper.make_function("own", "Relu", ["a"], ["b"], body, [opset])
        model.functions.append(made)
        model.opset_import.append(helper.make_opsetid("own", 1))

    path = written(explainable_model(), tmp_path / "m.onnx", own_relu)
    with pytest.raises(StagingError, match=r"defines its own operators \(Relu\)"):
        ExplainableModel(path)


@pytest.mark.parametrize("target", [[[1], [1, 2]], [None], {"a": 1}])
def test_targets_that_are_not_arrays_are_refused(target, tmp_path):
    model = ExplainableModel(written(explainable_model(), tmp_path / "m.onnx"))
    with pytest.raises(StagingError, match="Cannot explain"):
        model.grad_cam(IMAGE, target)


@pytest.mark.parametrize("said", ["", "\n", "two\nlines", "a\x1b[31mb", "long " * 1000])
def test_errors_of_onnxruntime_become_one_sentence(said, tmp_path, monkeypatch):
    import onnxruntime

    class Failing:
        def __init__(self, *_, **__):
            raise RuntimeError(said)

    model = ExplainableModel(written(explainable_model(), tmp_path / "m.onnx"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Failing)
    with pytest.raises(StagingError, match="cannot load the model") as refusal:
        open_session(model.file, model.path, 1)
    text = str(refusal.value)
    assert text.isprintable() and text.endswith(".") and len(text) < 400
