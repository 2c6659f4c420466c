"""ExplainableModel and the tool that prepares its files, on a small classifier made here."""

import numpy as np
import pytest

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.gradcam_onnx.explainable import EXPLAINABLE_KEY, ExplainableModel
from LiverFibrosisStagingLib.gradcam_onnx.gradcam import METHODS

onnx = pytest.importorskip("onnx", reason="makes the classifiers")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from LiverFibrosisStagingLib.gradcam_onnx.__main__ import main  # noqa: E402
from LiverFibrosisStagingLib.gradcam_onnx.make_explainable import (  # noqa: E402
    candidates,
    make_explainable,
)

INFO = helper.make_tensor_value_info


def classifier(path, opset=17, ir=8, softmax=True, nodes=None, score_shape=("N", 3), inputs=1):
    """Conv, ReLU, mean, Gemm and, as in many classifiers, a softmax at the end."""
    random = np.random.default_rng(1)
    weights = {
        "w": random.normal(size=(4, 1, 3, 3)),
        "dense": random.normal(size=(4, 3)),
    }
    nodes = nodes or [
        helper.make_node("Conv", ["image", "w"], ["conv"], pads=[1] * 4),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Shape", ["relu"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("GlobalAveragePool", ["relu"], ["mean"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"]),
        helper.make_node("Constant", [], ["front"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["count", "front"], ["counts"]),
        helper.make_node("Concat", ["counts", "rest"], ["flat_shape"], axis=0),
        helper.make_node("Reshape", ["mean", "flat_shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense"], ["scores"]),
        *([helper.make_node("Softmax", ["scores"], ["probabilities"])] if softmax else []),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [INFO(n, TensorProto.FLOAT, ["N", 1, 6, 5]) for n in ("image", "second")[:inputs]],
        [INFO("probabilities" if softmax else "scores", TensorProto.FLOAT, score_shape)],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir), path)
    return path


@pytest.fixture()
def model(tmp_path):
    make_explainable(classifier(tmp_path / "c.onnx"), "relu", tmp_path / "p.onnx")
    return ExplainableModel(tmp_path / "p.onnx")


X = np.random.default_rng(11).normal(size=(2, 1, 6, 5)).astype(np.float32)


def test_scores_before_the_softmax_are_explained(model):
    """dy/dA is the dense layer's weight over the number of voxels: a class activation map."""
    forward = model.run(X)
    dense = numpy_helper.to_array(onnx.load(model.path).graph.initializer[1])
    assert dense.shape == (4, 3)
    assert model.layer.scores == "scores"
    features = forward.tensors["relu"]
    for target in range(3):
        expected = np.maximum(np.einsum("k,nk...->n...", dense[:, target] / 30, features), 0)
        np.testing.assert_allclose(model.grad_cam(X, target), expected, rtol=1e-4, atol=1e-7)
        # Where the gradient is the same in all voxels, these are one and the same.
        for method in ("hirescam", "xgradcam"):
            np.testing.assert_allclose(
                model.explain(forward, target, method), expected, rtol=1e-3, atol=1e-6
            )


def test_layercam_keeps_positive_gradients_only(model):
    forward = model.run(X)
    features, gradient = forward.tensors["relu"], model.gradient(forward, 1)
    expected = (np.maximum(gradient, 0) * features).sum(1)
    np.testing.assert_allclose(model.explain(forward, 1, "layercam"), expected, rtol=1e-5)


def test_grad_cam_plus_plus_weights(model):
    """Equation 19 of the paper, number by number."""
    forward = model.run(X)
    features, gradient = (
        v.astype(np.float64) for v in (forward.tensors["relu"], model.gradient(forward, 1))
    )
    alpha = np.zeros(features.shape[:2])
    for n, k in np.ndindex(*alpha.shape):
        for i in np.ndindex(*features.shape[2:]):
            g = gradient[n, k][i]
            share = g**2 / (2 * g**2 + features[n, k].sum() * g**3)
            alpha[n, k] += share * max(g, 0)
    expected = np.maximum(np.einsum("nk,nk...->n...", alpha, features), 0)
    np.testing.assert_allclose(model.explain(forward, 1, "gradcam++"), expected, rtol=1e-4)


def test_a_target_is_a_class_several_or_a_weighting(model):
    forward = model.run(X)
    one = model.explain(forward, 1)
    np.testing.assert_array_equal(one, model.explain(forward, [1]))
    np.testing.assert_array_equal(one, model.explain(forward, np.array([0.0, 1.0, 0.0])))
    both = model.gradient(forward, [0, 2])
    apart = model.gradient(forward, 0) + model.gradient(forward, 2)
    np.testing.assert_allclose(both, apart, rtol=1e-5)
    each = model.explain(forward, np.eye(3)[[1, 2]])
    np.testing.assert_array_equal(each[0], one[0])
    np.testing.assert_array_equal(each[1], model.explain(forward, 2)[1])


@pytest.mark.parametrize("target", [3, -1, [0, 3], 1.5, np.ones(4), "F4", [], None])
def test_invalid_targets_are_refused(target, model):
    with pytest.raises(StagingError, match="expected classes from 0 to 2, or weights of the 3"):
        model.grad_cam(X, target)


def test_unknown_method_is_refused_with_the_known_ones(model):
    with pytest.raises(StagingError, match="'eigencam' is unknown.*" + ", ".join(METHODS)[:7]):
        model.grad_cam(X, 0, "eigencam")


def test_wrong_input_is_refused_in_one_sentence(model):
    with pytest.raises(StagingError, match=r"p\.onnx failed to run") as refusal:
        model.run(X[:, :, :4])
    assert "\n" not in str(refusal.value)


def test_prepared_file_is_folded_and_described(model):
    prepared = onnx.load(model.path)
    assert prepared.ir_version <= 10 and prepared.opset_import[0].version <= 18
    assert "Constant" not in {node.op_type for node in prepared.graph.node}
    outputs = {o.name for o in prepared.graph.output}
    # Neither the convolution's output nor the averages' values are read by the backward pass.
    assert outputs == {"scores", "probabilities", "relu", "relu/shape", "mean/shape"} - {
        "relu/shape"
    }
    assert EXPLAINABLE_KEY in {p.key for p in prepared.metadata_props}


def test_candidates_are_maps_on_which_the_scores_depend(tmp_path, capsys):
    path = classifier(tmp_path / "c.onnx")
    assert [(c.tensor, c.operator, c.shape) for c in candidates(path)] == [
        ("relu", "Relu", (None, 4, 6, 5))
    ]
    assert main(["prepare", str(path)]) == 0
    assert capsys.readouterr().out == "relu\tRelu\tN x 4 x 6 x 5\n"


def test_command_line_prepares_and_refuses(tmp_path, capsys):
    path = str(classifier(tmp_path / "c.onnx"))
    out = str(tmp_path / "p.onnx")
    assert main(["prepare", path, "--layer", "relu", "-o", out]) == 0
    assert ExplainableModel(out).grad_cam(X, 0).shape == (2, 6, 5)
    assert main(["prepare", path, "--layer", "leru", "-o", out]) == 1
    assert "no tensor 'leru'; its last layers are relu" in capsys.readouterr().err


def test_command_line_explains(model, tmp_path, capsys):
    given, out = tmp_path / "x.npy", tmp_path / "map.npy"
    np.save(given, X)
    logits = model.run(X).logits
    assert main(["explain", str(model.path), str(given), "--target", "1", "-o", str(out)]) == 0
    np.testing.assert_array_equal(np.load(out), model.grad_cam(X, 1))
    assert main(["explain", str(model.path), str(given), "-o", str(out)]) == 0
    best = logits.argmax(axis=1)
    for number, target in enumerate(best):
        np.testing.assert_allclose(np.load(out)[number], model.grad_cam(X, int(target))[number])
    assert f"input 0: predicted class {best[0]}" in capsys.readouterr().out


def test_command_line_refuses_files_without_an_array(model, tmp_path, capsys):
    (tmp_path / "x.npy").write_bytes(b"nothing")
    out = tmp_path / "map.npy"
    assert main(["explain", str(model.path), str(tmp_path / "x.npy"), "-o", str(out)]) == 1
    assert "x.npy" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("opset", [11, 13, 20, 21])
def test_other_opsets_are_converted(opset, tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"], pads=[1] * 4),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    path = classifier(tmp_path / "c.onnx", opset, nodes=nodes)
    make_explainable(path, "relu", tmp_path / "p.onnx")
    assert 13 <= onnx.load(tmp_path / "p.onnx").opset_import[0].version <= 18
    assert ExplainableModel(tmp_path / "p.onnx").grad_cam(X, 0).any()


def conv_and(*nodes):
    return [helper.make_node("Conv", ["image", "w"], ["conv"], pads=[1] * 4), *nodes]


def branch():
    """A network with control flow that depends on its input."""
    empty = [
        helper.make_graph(
            [helper.make_node("ReduceMean", ["conv"], ["m"], axes=[2, 3], keepdims=0)],
            "way",
            [],
            [INFO("m", TensorProto.FLOAT, None)],
        )
        for _ in range(2)
    ]
    return conv_and(
        helper.make_node("ReduceMax", ["conv"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["m"], then_branch=empty[0], else_branch=empty[1]),
        helper.make_node("Gemm", ["m", "dense"], ["scores"]),
    )


REFUSED = {
    "scores are an image": (
        {"nodes": conv_and(helper.make_node("Relu", ["conv"], ["scores"])), "score_shape": None},
        "conv",
        r"scores 'scores' have shape \[None, 4, 6, 5\]; \[N, classes\] is needed",
    ),
    "operator without a gradient": (
        {
            "nodes": conv_and(
                helper.make_node("Sin", ["conv"], ["sin"]),
                helper.make_node("ReduceMean", ["sin"], ["mean"], axes=[2, 3], keepdims=0),
                helper.make_node("Gemm", ["mean", "dense"], ["scores"]),
            )
        },
        "conv",
        "the gradient of Sin between 'conv' and 'scores' is not supported",
    ),
    "control flow": ({"nodes": branch()}, "conv", r"has control flow \(If\)"),
    "layer behind the scores": (
        {
            "nodes": conv_and(
                helper.make_node("ReduceMean", ["conv"], ["mean"], axes=[2, 3], keepdims=0),
                helper.make_node("Gemm", ["mean", "dense"], ["scores"]),
                helper.make_node("Relu", ["conv"], ["aside"]),
            )
        },
        "aside",
        "scores 'scores' do not depend on its target layer 'aside'",
    ),
    "two inputs": ({"inputs": 2}, "relu", "has the inputs image, second; one input is needed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_explained_are_refused_and_nothing_is_written(case, tmp_path):
    options, layer, words = REFUSED[case]
    options = {"softmax": "nodes" not in options, **options}
    path = classifier(tmp_path / "c.onnx", **options)
    with pytest.raises(StagingError, match=words):
        make_explainable(path, layer, tmp_path / "p.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["c.onnx"]


def test_a_file_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(StagingError, match=r"prepare it with python -m .*gradcam_onnx prepare"):
        ExplainableModel(classifier(tmp_path / "c.onnx"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable JSON"),
        ('{"version": 1}', "target_layer is missing"),
        (
            '{"version": 2, "target_layer": "relu", "scores": "scores", "channel_axis": 1, '
            '"grid": null}',
            "version is 2; 1 .the supported version. is needed",
        ),
    ],
)
def test_wrong_metadata_is_refused(text, words, model, tmp_path):
    broken = onnx.load(model.path)
    broken.metadata_props[0].value = text
    onnx.save(broken, tmp_path / "b.onnx")
    with pytest.raises(StagingError, match=words):
        ExplainableModel(tmp_path / "b.onnx")


def test_the_staging_model_takes_every_method(model_path):
    from LiverFibrosisStagingLib import StagingModel

    staging = StagingModel.load(model_path)
    size = (1, len(staging.card.channels), *staging.card.patch_size)
    x = np.random.default_rng(13).uniform(0.4, 0.9, size).astype(np.float32)
    forward = staging.run(x)
    maps = {method: staging.location_map(forward, (4,), method) for method in METHODS}
    assert {m.shape for m in maps.values()} == {maps["gradcam"].shape}
    assert all(np.isfinite(m).all() and m.min() >= 0 for m in maps.values())
