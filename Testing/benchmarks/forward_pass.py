"""Variants of the staging network's forward pass in ONNX Runtime, compared for speed.

    python Testing/benchmarks/forward_pass.py [--runs 5] [--threads 2] [--only "one thread" ...]

All variants run in turn on the first patch of the sample phantom, which also calibrates the
quantised variants (the best case for their accuracy). "As shipped" is the file as onnxruntime
computes it, without the library's convolutions by parts (convolutions.py). For each variant, the
shortest time of all turns is printed (other work of the machine can only increase a time), its
ratio to the shipped network, the largest difference of the logits, and the share of the machine's
float32 matrix product rate (the better of numpy and ONNX Runtime, 2048 x 2048) that the
convolutions would reach if they took all of the time; then the variants that cannot be loaded, with
the reasons. "as shipped, again" repeats the first variant: the deviation of its ratio from 1 is
noise. Needs `onnx`.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from machine import PRODUCT_OPERATIONS, matrix_products
from network_work import network_work

if TYPE_CHECKING:
    import numpy as np
    import onnx

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", help="variants to compare with the shipped one")
    options = parser.parse_args()
    for name in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)

    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    from LiverFibrosisStagingLib.resources import default_model_path

    logging.getLogger().setLevel(logging.ERROR)  # the quantiser logs advice at every call

    path = default_model_path("LFS_phantoms.onnx")
    shipped = onnx.load(path)
    x = _sample_patch()
    weights = {t.name: numpy_helper.to_array(t) for t in shipped.graph.initializer}

    def session(model: onnx.ModelProto, **changes: object) -> Callable[[], np.ndarray]:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.log_severity_level = 4
        for name, value in changes.items():
            if name == "entries":
                for key, entry in value.items():
                    settings.add_session_config_entry(key, entry)
            else:
                setattr(settings, name, value)
        made = ort.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        return lambda: made.run(["logits"], {"volume": x})[0]

    def sum_of_planes(chosen: Callable[[int], bool]) -> onnx.ModelProto:
        """3-D convolutions as 2-D ones over stacked slices.

        The slices and their neighbours become the batch [slices, inputs x kernel, rows, columns]:
        one Concat of shifted slices, then one 2-D convolution.
        """
        model = onnx.ModelProto()
        model.CopyFrom(shipped)
        graph, nodes, number = model.graph, [], 0
        for node in shipped.graph.node:
            if node.op_type != "Conv" or not chosen(number := number + 1):
                nodes.append(node)
                continue
            w = weights[node.input[1]]
            out, _, depth, *plane = w.shape
            half, name = depth // 2, node.output[0]
            # [o, i, z, y, x] -> [o, z i, y, x]
            flat = np.ascontiguousarray(w.transpose(0, 2, 1, 3, 4)).reshape(out, -1, *plane)
            constants = {
                "flat": flat,
                "pads": np.array([0, 0, half, 0, 0, 0, 0, half, 0, 0], np.int64),
                "axis": np.array([2], np.int64),
                "first": np.array([0], np.int64),
            }
            for z in range(depth):
                constants[f"start{z}"] = np.array([z], np.int64)
                constants[f"end{z}"] = np.array([z - depth + 1 or 2**40], np.int64)
            graph.initializer.extend(
                numpy_helper.from_array(v, f"{name}.{k}") for k, v in constants.items()
            )
            make = helper.make_node
            nodes.append(make("Pad", [node.input[0], f"{name}.pads"], [f"{name}.padded"]))
            for z in range(depth):
                given = [f"{name}.padded", f"{name}.start{z}", f"{name}.end{z}", f"{name}.axis"]
                nodes.append(make("Slice", given, [f"{name}.s{z}"]))
            shifted = [f"{name}.s{z}" for z in range(depth)]
            nodes += [
                make("Concat", shifted, [f"{name}.stack"], axis=1),
                make("Squeeze", [f"{name}.stack", f"{name}.first"], [f"{name}.one"]),
                make("Transpose", [f"{name}.one"], [f"{name}.batch"], perm=[1, 0, 2, 3]),
                make(
                    "Conv",
                    [f"{name}.batch", f"{name}.flat", *node.input[2:]],
                    [f"{name}.planes"],
                    pads=[2, 2, 2, 2],
                ),
                make("Transpose", [f"{name}.planes"], [f"{name}.back"], perm=[1, 0, 2, 3]),
                make("Unsqueeze", [f"{name}.back", f"{name}.first"], [name]),
            ]
        del graph.node[:]
        graph.node.extend(nodes)
        return model

    level = ort.GraphOptimizationLevel
    fast_math = {"mlas.enable_gemm_fastmath_arm64_bfloat16": "1"}
    variants = {
        "as shipped": lambda: session(shipped),
        "no graph optimisation": lambda: session(
            shipped, graph_optimization_level=level.ORT_DISABLE_ALL
        ),
        "one thread": lambda: session(shipped, intra_op_num_threads=1),
        "twice the threads": lambda: session(shipped, intra_op_num_threads=2 * options.threads),
        "threads do not spin": lambda: session(
            shipped, entries={"session.intra_op.allow_spinning": "0"}
        ),
        "no memory arena": lambda: session(shipped, enable_cpu_mem_arena=False),
        "denormals as zero": lambda: session(
            shipped, entries={"session.set_denormal_as_zero": "1"}
        ),
        "bfloat16 products if the CPU supports them": lambda: session(shipped, entries=fast_math),
        "2-D over stacked slices, all": lambda: session(sum_of_planes(lambda n: True)),
        "2-D over stacked slices, first": lambda: session(sum_of_planes(lambda n: n == 1)),
        "2-D over stacked slices, all but first": lambda: session(sum_of_planes(lambda n: n > 1)),
        "basic optimisation, no fusing": lambda: session(
            shipped, graph_optimization_level=level.ORT_ENABLE_BASIC
        ),
        "all four convolutions fused by hand": lambda: session(_fused(shipped)),
        "channels last": lambda: session(_channels_last(shipped)),
        "half precision": lambda: session(_half(shipped, onnx.TensorProto.FLOAT16)),
        "bfloat16": lambda: session(_half(shipped, onnx.TensorProto.BFLOAT16)),
        "int8, dynamic, weights u8": lambda: session(_quantised(shipped, "QUInt8")),
        "int8, dynamic, weights s8": lambda: session(_quantised(shipped, "QInt8")),
        "int8, static, QDQ": lambda: session(_quantised(shipped, "QInt8", "QDQ", x)),
        "int8, static, QOperator": lambda: session(_quantised(shipped, "QInt8", "QOperator", x)),
        "int8, static, QDQ, not channels last": lambda: session(
            _quantised(shipped, "QInt8", "QDQ", x),
            graph_optimization_level=level.ORT_ENABLE_EXTENDED,
        ),
        "int8, dynamic, 2-D": lambda: session(_quantised(sum_of_planes(lambda n: True), "QUInt8")),
        "int8, static, QDQ, 2-D": lambda: session(
            _quantised(sum_of_planes(lambda n: True), "QInt8", "QDQ", x)
        ),
        "as shipped, again": lambda: session(shipped),
    }
    runs, refused = {}, {}
    for name, make in variants.items():
        if options.only and name not in (*options.only, "as shipped", "as shipped, again"):
            continue
        try:
            run = make()
            run()
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            refused[name] = str(error).strip().splitlines()[0]
        else:
            runs[name] = run
    expected = runs["as shipped"]()
    products = matrix_products(options.threads)
    times: dict[str, list[float]] = {name: [] for name in (*runs, *products)}
    differences = {}
    for _ in range(options.runs):
        for name, run in runs.items():
            started = time.perf_counter()
            found = run()
            times[name].append(time.perf_counter() - started)
            differences[name] = float(np.abs(found - expected).max())
        for name, multiply in products.items():
            started = time.perf_counter()
            multiply()
            times[name].append(time.perf_counter() - started)
    operations = network_work(path, x.shape).operations
    rates = {name: PRODUCT_OPERATIONS / min(times[name]) for name in products}
    rate = max(rates.values())
    reached = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in rates.items())
    print(f"{options.threads} threads, {options.runs} turns; the convolutions are")
    print(f"{operations / 1e9:.1f} GFLOP; matrix products reach, in GFLOP/s: {reached}")
    print(f"{'variant':44s}{'ms':>8s}{'ratio':>8s}{'of GEMM':>9s}{'logits differ':>15s}")
    for name in runs:
        taken = min(times[name])
        ratio = taken / min(times["as shipped"])
        share = operations / taken / rate
        print(f"{name:44s}{taken * 1e3:8.0f}{ratio:8.2f}{share:9.0%}{differences[name]:15.1e}")
    for name, reason in refused.items():
        print(f"{name:44s}cannot be loaded: {reason}")
    print("available providers:", ", ".join(ort.get_available_providers()))


def _sample_patch() -> "np.ndarray":
    """The sample phantom's first patch, float32 [1, 1, slices, rows, columns] in 0..1."""
    import SimpleITK as sitk

    from LiverFibrosisStagingLib.imaging.grid import patch_array, working_grid
    from LiverFibrosisStagingLib.model import read_card
    from LiverFibrosisStagingLib.resources import default_model_path

    card = read_card(default_model_path("LFS_phantoms.onnx"))
    folder = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData"
    ct = sitk.ReadImage(folder / "phantom_F4_ct.nii.gz")
    liver = sitk.ReadImage(folder / "phantom_F4.seg.nrrd") == 1
    grid = working_grid(ct, liver, **card.preprocessing)
    return patch_array(grid, grid.starts[0], card.patch_size[0])


def _changed(model: "onnx.ModelProto", nodes: list) -> "onnx.ModelProto":
    """A copy of the model with other nodes, which may be of the domain com.microsoft."""
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    changed.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return changed


def _fused(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Every Conv and the following LeakyRelu as one FusedConv.

    ONNX Runtime does not fuse the last pair, because the Conv's output is an output of the graph.
    """
    from onnx import helper

    activations = {n.input[0]: n for n in model.graph.node if n.op_type == "LeakyRelu"}
    nodes, gone = [], set()
    for node in model.graph.node:
        if node.op_type == "Conv":
            after = activations[node.output[0]]
            gone |= {after.output[0], node.output[0]}
            slope = helper.get_node_attr_value(after, "alpha")
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            attributes |= {"activation": "LeakyRelu", "activation_params": [slope]}
            node = helper.make_node(
                "FusedConv", node.input, after.output, domain="com.microsoft", **attributes
            )
        elif node.output[0] in gone:
            continue
        nodes.append(node)
    fused = _changed(model, nodes)
    made = {name for node in nodes for name in node.output}
    kept = [o for o in model.graph.output if o.name in made]
    del fused.graph.output[:]
    fused.graph.output.extend(kept)
    return fused


def _channels_last(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Every Conv as ONNX Runtime's channels-last operator, between two Transposes."""
    from onnx import helper

    nodes = []
    for node in model.graph.node:
        if node.op_type != "Conv":
            nodes.append(node)
            continue
        given, made = node.input[0], node.output[0]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        nodes += [
            helper.make_node("Transpose", [given], [f"{made}.in"], perm=[0, 2, 3, 4, 1]),
            helper.make_node(
                "NhwcFusedConv",
                [f"{made}.in", *node.input[1:]],
                [f"{made}.out"],
                made,
                domain="com.microsoft",
                **attributes,
            ),
            helper.make_node("Transpose", [f"{made}.out"], [made], perm=[0, 4, 1, 2, 3]),
        ]
    return _changed(model, nodes)


def _half(model: "onnx.ModelProto", kind: int) -> "onnx.ModelProto":
    """Every Conv, its weights and its input in a 16-bit type, the rest in float32."""
    from onnx import TensorProto, helper

    nodes = []
    for node in model.graph.node:
        if node.op_type != "Conv":
            nodes.append(node)
            continue
        made = node.output[0]
        for number, name in enumerate(node.input):
            nodes.append(helper.make_node("Cast", [name], [f"{made}.{number}"], to=kind))
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        given = [f"{made}.{number}" for number in range(len(node.input))]
        nodes.append(helper.make_node("Conv", given, [f"{made}.half"], made, **attributes))
        nodes.append(helper.make_node("Cast", [f"{made}.half"], [made], to=TensorProto.FLOAT))
    half = _changed(model, nodes)
    if kind == TensorProto.BFLOAT16:
        half.opset_import[0].version = 22  # the first Conv that allows it
        half.ir_version = 10
    return half


def _quantised(
    model: "onnx.ModelProto", weights: str, form: str = "", patch: "np.ndarray | None" = None
) -> "onnx.ModelProto":
    """Every Conv in int8: dynamic, or static of a form (QDQ, QOperator) calibrated on a patch."""
    import onnx
    from onnxruntime import quantization as quant

    class Reader(quant.CalibrationDataReader):
        def __init__(self) -> None:
            self.patches = iter([{"volume": patch}])

        def get_next(self) -> dict | None:
            return next(self.patches, None)

    with tempfile.TemporaryDirectory() as folder:
        given, path = Path(folder) / "given.onnx", Path(folder) / "quantised.onnx"
        onnx.save(model, given)  # with a ModelProto, the weights would go to an external file
        common = {"op_types_to_quantize": ["Conv"], "weight_type": quant.QuantType[weights]}
        if form:
            quant.quantize_static(
                given,
                path,
                Reader(),
                quant_format=quant.QuantFormat[form],
                activation_type=quant.QuantType.QUInt8,
                per_channel=True,
                **common,
            )
        else:
            quant.quantize_dynamic(given, path, **common)
        return onnx.load(path)


if __name__ == "__main__":
    main()
