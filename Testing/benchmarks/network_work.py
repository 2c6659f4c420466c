"""What a network has to do at least: operations of its convolutions, and bytes of its tensors."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Work(NamedTuple):
    """operations: multiplications and additions of all convolutions. moved: bytes of the inputs
    and outputs of all nodes, weights included, as float32.
    """

    operations: float
    moved: float


def network_work(path: str | Path, shape: Sequence[int]) -> Work:
    """Work of one run on an input of this shape, such as [1, channels, slices, rows, columns].

    Of the graph after ONNX Runtime's basic optimisation, which removes what is constant. A
    convolution takes 2 operations a weight and voxel of its output, a transposed one a weight and
    voxel of its input.
    """
    import onnx
    import onnxruntime as ort

    model = onnx.load(path)
    for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = size
    for output in model.graph.output:  # of any batch in the file
        output.type.tensor_type.ClearField("shape")
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        settings.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        graph = onnx.shape_inference.infer_shapes(
            onnx.load(settings.optimized_model_filepath), strict_mode=True, data_prop=True
        ).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]
    operations = moved = 0.0
    for node in graph.node:
        moved += sum(4.0 * math.prod(shapes[n]) for n in (*node.input, *node.output) if n)
        if node.op_type in ("Conv", "ConvTranspose"):
            at = node.output[0] if node.op_type == "Conv" else node.input[0]
            batch, _, *voxels = shapes[at]
            operations += 2.0 * math.prod(shapes[node.input[1]]) * batch * math.prod(voxels)
    return Work(operations, moved)
