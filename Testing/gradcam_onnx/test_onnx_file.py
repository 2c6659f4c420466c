"""The reader of ONNX files: files refused before onnxruntime reads them, and reading once."""

import hashlib

import numpy as np
import pytest

from LiverFibrosisStagingLib import StagingError, StagingModel
from LiverFibrosisStagingLib.gradcam_onnx.explainable import ExplainableModel
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import MAX_FILE_BYTES, parse_onnx, read_onnx
from LiverFibrosisStagingLib.imaging.segmentation import SegmentationModel

onnx = pytest.importorskip("onnx", reason="makes the model files")
from onnx import TensorProto, external_data_helper, helper, numpy_helper  # noqa: E402
from tiny_models import PATCH, explainable_model, segmentation_model, staging_model, written  # noqa

MODELS = {
    StagingModel: staging_model,
    ExplainableModel: explainable_model,
    SegmentationModel: segmentation_model,
}


def outside(name="hidden", location="beside.bin"):
    """A tensor whose numbers lie in another file."""
    tensor = numpy_helper.from_array(np.ones(3, np.float32), name)
    external_data_helper.set_external_data(tensor, location=location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def body(*nodes, weights=()):
    return helper.make_graph(
        [helper.make_node("Constant", [], ["unused"], value_float=1.0), *nodes],
        "body",
        [],
        [helper.make_tensor_value_info("unused", TensorProto.FLOAT, [])],
        list(weights),
    )


def constant(model):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside()))


def sparse():
    values, indices = outside(), numpy_helper.from_array(np.arange(3), "i")
    return helper.make_sparse_tensor(values, indices, [9])


def sparse_indices(model):
    values = numpy_helper.from_array(np.ones(3, np.float32), "v")
    indices = outside()
    indices.data_type = TensorProto.INT64
    tensor = helper.make_sparse_tensor(values, indices, [9])
    model.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=tensor))


def branch(graph):
    return helper.make_node("If", ["yes"], ["m"], then_branch=graph, else_branch=body())


def deep(model):
    """In a constant of a branch of a loop."""
    inner = branch(body(helper.make_node("Constant", [], ["c"], value=outside())))
    model.graph.node.append(helper.make_node("Loop", ["n"], ["m"], body=body(inner)))


def many_tensors(model):
    node = helper.make_node("Constant", [], ["c"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(outside())
    model.graph.node.append(node)


def many_graphs(model):
    node = helper.make_node("Scan", [], ["c"])
    attribute = node.attribute.add(name="body", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.append(body(weights=[outside()]))
    model.graph.node.append(node)


def function(model):
    made = model.functions.add(name="Own", domain="own")
    made.node.append(helper.make_node("Constant", [], ["c"], value=outside()))


def function_default(model):
    made = model.functions.add(name="Own", domain="own")
    made.attribute_proto.append(helper.make_attribute("value", outside()))


def training(model):
    model.training_info.add().algorithm.CopyFrom(body(weights=[outside()]))


def memory(model):
    """A location that onnxruntime takes for an address in its own memory."""
    model.graph.initializer.append(outside(location="*/_ORT_MEM_ADDR_/*"))


def undeclared(model):
    """With a location, but without the flag for external data."""
    tensor = outside()
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)


HIDDEN = {
    "weight": lambda m: m.graph.initializer.append(outside(location="../secret.bin")),
    "no place": lambda m: m.graph.initializer.append(outside(location="")),
    "address in memory": memory,
    "not said to be there": undeclared,
    "constant": constant,
    "sparse weight": lambda m: m.graph.sparse_initializer.append(sparse()),
    "sparse constant": lambda m: m.graph.node.append(
        helper.make_node("Constant", [], ["c"], sparse_value=sparse())
    ),
    "indices of a sparse constant": sparse_indices,
    "branch": lambda m: m.graph.node.append(branch(body(weights=[outside()]))),
    "branch of a loop": deep,
    "list of tensors": many_tensors,
    "list of graphs": many_graphs,
    "function": function,
    "default of a function": function_default,
    "training": training,
}


@pytest.mark.parametrize("place", HIDDEN)
@pytest.mark.parametrize("load", MODELS)
def test_weights_in_other_files_are_refused_anywhere(place, load, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", None)  # refused before it would open them
    (tmp_path / "beside.bin").write_bytes(np.ones(3, np.float32).tobytes())
    path = written(MODELS[load](), tmp_path / "m.onnx", HIDDEN[place])
    with pytest.raises(StagingError, match=r"m\.onnx stores weights in another file \('"):
        load(path)


@pytest.mark.parametrize("load", MODELS)
def test_the_bytes_that_run_are_those_hashed_and_checked(load, tmp_path, monkeypatch):
    """The file is replaced as soon as it was read."""
    path = written(MODELS[load](), tmp_path / "m.onnx")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    read = type(path).read_bytes

    def once(self):
        data = read(self)
        self.write_bytes(b"exchanged")
        return data

    monkeypatch.setattr(type(path), "read_bytes", once)
    model = load(path)
    assert model.sha256 == expected and path.stat().st_size == 9
    if load is StagingModel:
        assert np.isfinite(model.run(np.ones((1, 1, *PATCH), np.float32)).logits).all()


def test_bytes_that_could_be_of_another_format_are_run_as_onnx(tmp_path):
    """onnxruntime takes a file with ORTM at its fifth byte for one of its own kind."""
    path = written(staging_model(), tmp_path / "m.onnx")
    path.write_bytes(b"\x12\x06xxORTM" + path.read_bytes())  # producer_name
    forward = StagingModel.load(path).run(np.ones((1, 1, *PATCH), np.float32))
    assert forward.logits.shape == (1, 5)


def varint(value):
    return bytes([value & 127 | 128, *varint(value >> 7)]) if value > 127 else bytes([value])


def message(*fields):
    """A protocol buffer of (field number, integer or bytes)."""
    found = b""
    for number, value in fields:
        if isinstance(value, int):
            found += varint(number << 3) + varint(value)
        else:
            found += varint(number << 3 | 2) + varint(len(value)) + value
    return found


NODE = message((1, b"x"), (2, b"y"), (4, b"Relu"))
VALUES = [(11, message((1, b"x"))), (12, message((1, b"y")))]


def file_of(*fields, model=()):
    return message((1, 8), (8, message((2, 17))), *model, (7, message(*VALUES, *fields)))


def with_weight(*fields):
    return file_of((1, NODE), (5, message((8, b"w"), *fields)))


def with_attribute(*fields):
    return file_of((1, NODE + message((5, message((1, b"a"), *fields)))))


def nested(depth):
    node = NODE
    for _ in range(depth):
        inner = message((1, node))
        node = NODE + message((5, message((1, b"g"), (20, 5), (6, inner))))
    return file_of((1, node))


MALFORMED = {
    "two graphs": (file_of((1, NODE), model=[(7, b"")]), "Model has graph twice"),
    "two names": (file_of((1, NODE + message((4, b"Sigmoid")))), "Node has op_type twice"),
    "two weights of one name": (
        file_of((1, NODE), *[(5, message((8, b"w"), (2, 16)))] * 2),
        "'w' twice",
    ),
    "two metadata entries": (
        file_of((1, NODE), model=[(14, message((1, b"k"), (2, b"v")))] * 2),
        "'k' twice",
    ),
    "two opsets": (file_of((1, NODE), model=[(8, message((1, b"ai.onnx"), (2, 18)))]), "'' twice"),
    "integer for text": (file_of((1, message((1, 7), (2, b"y"), (4, b"Relu")))), "wire type 0"),
    "text for an integer": (message((1, b"8"), (7, message((1, NODE)))), "wire type 2"),
    "group": (b"\x0b" + file_of((1, NODE)), "wire type 3"),
    "field 0": (b"\x00\x00" + file_of((1, NODE)), "without a number"),
    "number of 65 bits": (b"\x08" + b"\xff" * 9 + b"\x02" + file_of((1, NODE)), "64 bits"),
    "number without end": (b"\x08" + b"\x80" * 500, "64 bits"),
    "cut within a number": (b"\x08\x80", "within a number"),
    "length beyond the end": (b"\x3a\xff\xff\xff\xff\x0f", "too early"),
    "text that is not UTF-8": (file_of((1, NODE + message((3, b"\xff")))), "not UTF-8"),
    "two lines in a name": (file_of((1, NODE + message((3, b"a\nb")))), "the name 'a"),
    "nested without end": (nested(40), "nested more than 100 deep"),
    "no network": (message((1, 8)), "no network"),
    "empty": (b"", "no network"),
    "no nodes": (file_of(), "no network"),
    "node without an operator": (file_of((1, message((1, b"x"), (2, b"y")))), "computes nothing"),
    "node without an output": (file_of((1, message((1, b"x"), (4, b"Relu")))), "computes nothing"),
    "reads what is not there": (
        file_of((1, message((1, b"z"), (2, b"y"), (4, b"Relu")))),
        "Relu reads 'z', which no earlier node computes",
    ),
    "circle": (
        file_of(
            (1, message((1, b"y"), (2, b"z"), (4, b"Relu"))),
            (1, message((1, b"z"), (2, b"y"), (4, b"Relu"))),
        ),
        "reads 'y', which no earlier node computes",
    ),
    "computed twice": (file_of((1, NODE), (1, NODE)), "'y' is computed twice"),
    "output from nowhere": (file_of((1, NODE), (12, message((1, b"q")))), "'q' is not computed"),
    "negative size": (
        with_weight((1, 2**64 - 1), (2, 1), (9, b"")),
        r"shape \[-1\] has a negative",
    ),
    "size of another": (with_weight((1, 3), (2, 1), (9, b"1234")), r"shape \[3\] has 4 bytes"),
    "absurd size": (with_weight((1, 2**62), (1, 2**62), (2, 1), (9, b"")), "has 0 bytes"),
    "empty and absurd": (with_weight((1, 0), (1, 2**62), (2, 1), (9, b"")), "too long ones"),
    "many axes": (with_weight(*[(1, 1)] * 99, (2, 1), (9, b"1234")), "too many axes"),
    "list of another size": (with_weight((1, 2), (2, 7), (7, 5)), r"shape \[2\] has 1 numbers"),
    "numbers too large": (with_weight((1, 1), (2, 2), (5, 256)), "not of its type"),
    "half a number": (with_weight((1, 1), (2, 1), (4, b"123")), "3 bytes are not a whole number"),
    "weight without a name": (file_of((1, NODE), (5, message((2, 16)))), "name in it is missing"),
    "attribute without a type": (with_attribute((3, 1)), "the unknown type 0"),
    "attribute of the future": (with_attribute((20, 99)), "the unknown type 99"),
    "attribute without its tensor": (with_attribute((20, 4)), "has no tensor"),
    "attribute without a name": (
        file_of((1, NODE + message((5, message((20, 2)))))),
        "name in it is missing",
    ),
    "attribute's float of 8 bytes": (with_attribute((20, 1), (2, b"12345678")), "wire type 2"),
    "two attributes": (
        file_of((1, NODE + message(*[(5, message((1, b"a"), (20, 2), (3, 1)))] * 2))),
        "'a' twice",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(case):
    data, words = MALFORMED[case]
    with pytest.raises(StagingError, match=rf"not an ONNX file, or it is damaged: .*{words}") as e:
        parse_onnx(data, "m.onnx")
    assert "\n" not in str(e.value) and len(str(e.value)) < 300


def test_the_undamaged_files_are_valid():
    assert parse_onnx(file_of((1, NODE)), "m.onnx").nodes[0].op == "Relu"
    assert parse_onnx(nested(20), "m.onnx").nodes[0].attributes == {"g": None}
    weight = with_weight((1, 2), (2, 1), (9, b"12345678"))
    assert parse_onnx(weight, "m.onnx").weights["w"].shape == (2,)
    assert parse_onnx(with_attribute((20, 2), (3, 7)), "m.onnx").nodes[0].attributes == {"a": 7}
    assert parse_onnx(with_weight((2, 16), (9, b"12")), "m.onnx").weights == {"w": None}


def test_a_file_too_large_or_not_a_file_is_refused(tmp_path):
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # of zeros that take no room on the disk
    with pytest.raises(StagingError, match=r"large\.onnx has 2\.1 GB"):
        read_onnx(path)
    with pytest.raises(StagingError, match="Cannot read the model"):
        StagingModel.load("a\0b.onnx")
    device = type(tmp_path)("/dev/zero")
    if device.exists():
        with pytest.raises(StagingError, match="is not a file"):
            read_onnx(device)
