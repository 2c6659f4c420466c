"""Each 5 x 5 x 5 convolution of the shipped networks: as onnxruntime computes it, and by parts.

    python Testing/benchmarks/convolutions.py [--runs 5]

Each convolution runs alone, on one thread, in both forms in turn. Printed are the least CPU
seconds and, in brackets, the rate as a share of that of matrix products (numpy, 1536 x 1536, in the
same run), both for the operations of the 3-D convolution: by parts, fewer are computed, and the
share can exceed 100 %. The last columns are the ratio of the times and the largest difference,
relative to the largest value. The first lines are the whole networks. Needs `onnx`.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import parse_onnx  # noqa: E402
from LiverFibrosisStagingLib.gradcam_onnx.winograd import with_fast_convolutions  # noqa: E402
from LiverFibrosisStagingLib.resources import default_model_path  # noqa: E402

# The V-Net's grid of a CT of the upper abdomen at 4 mm, and the staging network's patch.
NETWORKS = {"VNet.onnx": (72, 80, 104), "LFS_phantoms.onnx": (32, 168, 216)}
# Their convolutions: input channels, output channels, groups, size of the input.
LAYERS = {
    "V-Net, finest grid": (16, 8, 1, (72, 80, 104)),
    "V-Net, second, after joining": (32, 16, 1, (36, 40, 52)),
    "V-Net, second": (16, 16, 1, (36, 40, 52)),
    "V-Net, third, after joining": (64, 32, 1, (18, 20, 26)),
    "V-Net, third": (32, 32, 1, (18, 20, 26)),
    "V-Net, fourth": (48, 48, 1, (9, 10, 13)),
    "five staging networks, second": (40, 80, 5, (16, 84, 108)),
    "five staging networks, third": (80, 160, 5, (16, 42, 54)),
    "five staging networks, fourth": (160, 320, 5, (8, 21, 27)),
    "one staging network, second": (8, 16, 1, (16, 84, 108)),
    "one staging network, third": (16, 32, 1, (16, 42, 54)),
}
SIDE = 1536


def least(runs: int, *functions: Callable[[], object]) -> list[float]:
    """CPU seconds of each function, the least of all runs, in turn."""
    found = [math.inf] * len(functions)
    for _ in range(runs):
        for number, function in enumerate(functions):
            before = time.process_time()
            function()
            found[number] = min(found[number], time.process_time() - before)
    return found


def both(model: onnx.ModelProto) -> list[ort.InferenceSession]:
    """Sessions of a model as it is, and by parts."""
    content, sessions = model.SerializeToString(), []
    for one, weights in ((content, {}), with_fast_convolutions(parse_onnx(content, "model"))):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_mem_pattern = False
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers([*weights], values)
        session = ort.InferenceSession(one, options, providers=["CPUExecutionProvider"])
        session.weights = values  # as in `open_session`
        sessions.append(session)
    return sessions


def convolution(inputs: int, outputs: int, groups: int, size: Sequence[int]) -> onnx.ModelProto:
    """A model of one convolution, with random weights."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(outputs, inputs // groups, 5, 5, 5)).astype(np.float32)
    info = [
        helper.make_tensor_value_info(name, 1, ["N", channels, *size])
        for name, channels in (("volume", inputs), ("y", outputs))
    ]
    node = helper.make_node(
        "Conv", ["volume", "w"], ["y"], group=groups, pads=[2] * 6, kernel_shape=[5] * 3
    )
    weights = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph([node], "convolution", info[:1], info[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    random, square = np.random.default_rng(0), np.ones((SIDE, SIDE), np.float32)
    (product,) = least(options.runs, lambda: square @ square)
    rate = 2e-9 * SIDE**3 / product
    print(f"matrix products: {rate:.0f} GFLOP per CPU s; one thread, {options.runs} runs")
    print(f"{'':32s}{'GFLOP':>7s}{'3-D':>20s}{'by parts':>20s}{'times':>8s}{'differs':>9s}")
    models = {
        name: (onnx.load(default_model_path(name)), 1, size) for name, size in NETWORKS.items()
    }
    models |= {
        name: (convolution(inputs, *rest), inputs, rest[-1])
        for name, (inputs, *rest) in LAYERS.items()
    }
    for name, (model, channels, size) in models.items():
        sessions = both(model)
        feed = {"volume": random.random(size=(1, channels, *size), dtype=np.float32)}
        expected, found = (session.run(None, feed)[0] for session in sessions)
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        seconds = least(options.runs, *(partial(session.run, None, feed) for session in sessions))
        gflop, cells = 0.0, [f"{s * 1e3:.0f} ms" for s in seconds]
        if name in LAYERS:
            _, outputs, groups, _ = LAYERS[name]
            gflop = 2e-9 * outputs * (channels // groups) * 125 * math.prod(size)
            cells = [f"{cell} ({gflop / s / rate:.0%})" for cell, s in zip(cells, seconds)]
        print(
            f"{name:32s}{gflop:7.1f}{cells[0]:>20s}{cells[1]:>20s}"
            f"{seconds[0] / seconds[1]:8.2f}{difference:9.0e}"
        )


if __name__ == "__main__":
    main()
