"""StagingModel.load accepts valid files and refuses damaged ones."""

import json
import re

import numpy as np
import pytest

from LiverFibrosisStagingLib import StagingError, StagingModel
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx
from LiverFibrosisStagingLib.gradcam_onnx.session import SAFE_IR, SAFE_OPSET
from LiverFibrosisStagingLib.model import METADATA_KEY

onnx = pytest.importorskip("onnx", reason="makes the broken model files")
from onnx import TensorProto, external_data_helper, helper  # noqa: E402


def metadata(model, **changes):
    """Change (or, with None, remove) entries of the metadata."""
    entry = next(p for p in model.metadata_props if p.key == METADATA_KEY)
    card = {**json.loads(entry.value), **changes}
    entry.value = json.dumps({k: v for k, v in card.items() if v is not None})


def no_metadata(model):
    del model.metadata_props[:]


def rename_metadata_text(model):
    model.metadata_props[0].value = "{not json"


def drop_output(name):
    def change(model):
        kept = [output for output in model.graph.output if output.name != name]
        del model.graph.output[:]
        model.graph.output.extend(kept)

    return change


def wrong_rank(model):
    channels, *size = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])
    shape = ["N", channels, *size[1:]]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("volume", TensorProto.FLOAT, shape))
    axes = helper.make_tensor("axes_of_rank", TensorProto.INT64, [1], [2])
    model.graph.initializer.append(axes)
    unsqueeze = helper.make_node("Unsqueeze", ["volume", "axes_of_rank"], ["volume5"])
    expand_to = helper.make_tensor("expand_to", TensorProto.INT64, [5], [1, channels, *size])
    model.graph.initializer.append(expand_to)
    expand = helper.make_node("Expand", ["volume5", "expand_to"], ["volume_full"])
    for node in model.graph.node:
        renamed = ["volume_full" if name == "volume" else name for name in node.input]
        del node.input[:]
        node.input.extend(renamed)
    nodes = [unsqueeze, expand, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def nan_weights(model):
    weight = next(i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def weights_outside(model):
    weight = next(i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT)
    external_data_helper.set_external_data(weight, location="../secret.bin")
    weight.ClearField("raw_data")


def weights_beside(model):
    weights_outside(model)
    weight = next(i for i in model.graph.initializer if i.external_data)
    weight.external_data[0].value = "beside.bin"


def opset_too_new(model):
    model.opset_import[0].version = 99


def ir_too_new(model):
    model.ir_version = 99


def operator_unknown(model):
    model.graph.node[0].op_type = "Convolve"


BROKEN = {
    "no metadata": (no_metadata, "has no 'liver_fibrosis_staging' metadata"),
    "metadata not JSON": (rename_metadata_text, "not readable JSON"),
    "contract of the future": (lambda m: metadata(m, contract=3), r"contract is 3; 1 .* is needed"),
    "metadata incomplete": (lambda m: metadata(m, spacing_mm=None), "spacing_mm is missing"),
    "stages of another score": (
        lambda m: metadata(m, stages=["S0", "S1", "S2", "S3", "S4"]),
        r"stages is \[\"S0\".*; \[\"F0\".*is needed",
    ),
    "spacing zero": (lambda m: metadata(m, spacing_mm=[4, 0, 2]), r"\.1 is 0; .* is needed"),
    "window upside down": (lambda m: metadata(m, window_hu=[225, -125]), "the lower HU first"),
    "patch of another size": (lambda m: metadata(m, patch_size=[32, 64, 64]), "32, 64, 64"),
    "tail contradicts": (lambda m: metadata(m, tail=["Gemm"]), "is inconsistent"),
    "target layer missing": (lambda m: metadata(m, target_layer="nowhere"), "nowhere"),
    "input rank": (wrong_rank, r"input volume tensor\(float\).*one input, volume.* is needed"),
    "no logits": (drop_output("logits"), "; logits .* is needed"),
    "no probabilities": (drop_output("probabilities"), "; probabilities .* is needed"),
    "no feature maps": (drop_output("features"), "not among its outputs"),
    "NaN weights": (nan_weights, "NaN or infinite weights"),
    "weights outside the folder": (weights_outside, "another file .*not supported"),
    "weights in another file": (weights_beside, "in another file"),
    "opset too new": (opset_too_new, "opset 99.*too new for the installed onnxruntime"),
    "IR too new": (ir_too_new, "IR version 99.*too new for the installed onnxruntime"),
    "operator unknown": (operator_unknown, "cannot load the model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_model_is_refused_with_its_reason(case, model_path, tmp_path):
    change, words = BROKEN[case]
    broken = onnx.load(model_path)
    change(broken)
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken.SerializeToString())
    with pytest.raises(StagingError) as refusal:
        StagingModel.load(path)
    text = str(refusal.value)
    assert re.search(words, text), text
    assert "broken.onnx" in text and "\n" not in text


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1])
def test_truncated_model_is_refused(kept, model_path, tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(model_path.read_bytes()[:kept])
    with pytest.raises(StagingError, match=r"cut\.onnx"):
        StagingModel.load(path)


@pytest.mark.parametrize("content", [b"Dear radiologist,\n", b"PK\x03\x04 a zip file", b"\0" * 64])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(StagingError, match="not an ONNX file"):
        StagingModel.load(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(StagingError, match="Cannot read the model"):
            StagingModel.load(path)


def test_reader_agrees_with_the_onnx_package(model_path):
    ours, theirs = read_onnx(model_path), onnx.load(model_path)
    assert ours.ir_version == theirs.ir_version <= SAFE_IR
    assert ours.opset == theirs.opset_import[0].version <= SAFE_OPSET
    assert ours.inputs == [i.name for i in theirs.graph.input]
    assert ours.outputs == [o.name for o in theirs.graph.output]
    assert ours.metadata == {p.key: p.value for p in theirs.metadata_props}
    assert set(ours.weights) == {i.name for i in theirs.graph.initializer}
    for weight in theirs.graph.initializer:
        found = ours.weights[weight.name]
        np.testing.assert_array_equal(found, onnx.numpy_helper.to_array(weight))
    for mine, node in zip(ours.nodes, theirs.graph.node, strict=True):
        assert (mine.op, list(mine.inputs), list(mine.outputs)) == (
            node.op_type,
            list(node.input),
            list(node.output),
        )
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            value = value.decode() if isinstance(value, bytes) else value
            if isinstance(value, onnx.TensorProto):
                value = onnx.numpy_helper.to_array(value)
            np.testing.assert_array_equal(mine.attributes[attribute.name], value)


def test_typed_tensor_fields_are_read(tmp_path):
    """Weights may also be stored as lists of numbers instead of raw bytes."""
    tensors = [
        helper.make_tensor("f", TensorProto.FLOAT, [2], [1.5, -2.0]),
        helper.make_tensor("d", TensorProto.DOUBLE, [1], [0.1]),
        helper.make_tensor("i", TensorProto.INT64, [2, 1], [-3, 2**40]),
        helper.make_tensor("h", TensorProto.FLOAT16, [2], [0.5, -1.0]),
    ]
    node = helper.make_node("Identity", ["x"], ["y"])
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [info("x", TensorProto.FLOAT, [1])],
        [info("y", TensorProto.FLOAT, [1])],
        tensors,
    )
    path = tmp_path / "typed.onnx"
    onnx.save(helper.make_model(graph), path)
    weights = read_onnx(path).weights
    for tensor in tensors:
        np.testing.assert_array_equal(weights[tensor.name], onnx.numpy_helper.to_array(tensor))
