"""What was tried to make the staging network's forward pass faster in ONNX Runtime.

    python Testing/benchmarks/forward_pass.py [--runs 5] [--threads 2]

Each variant runs in turn with the network as it ships, on the same input; printed are the shortest
times of all turns (what else the machine does only adds to a time), their ratios, the largest
difference of the logits, and the share of the machine's float32 matrix product rate (the better of
numpy and ONNX Runtime, 2048 x 2048) that the convolutions would reach if they took all of the time.
The last variant is the first one again: what its ratio differs from 1 is noise. Needs `onnx`.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "LiverFibrosisStaging"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    for name in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)

    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    from LiverFibrosisStagingLib.model import default_model_path

    shipped = onnx.load(default_model_path())
    size = [d.dim_value for d in shipped.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(0).uniform(0.4, 0.9, (1, *size)).astype(np.float32)
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
        "bfloat16 products where the CPU has them": lambda: session(shipped, entries=fast_math),
        "2-D over stacked slices, all": lambda: session(sum_of_planes(lambda n: True)),
        "2-D over stacked slices, first": lambda: session(sum_of_planes(lambda n: n == 1)),
        "2-D over stacked slices, all but first": lambda: session(sum_of_planes(lambda n: n > 1)),
        "as shipped, again": lambda: session(shipped),
    }
    runs = {name: make() for name, make in variants.items()}
    expected = runs["as shipped"]()
    a = np.random.default_rng(1).normal(size=(2048, 2048)).astype(np.float32)
    info = functools.partial(helper.make_tensor_value_info, elem_type=1, shape=[2048, 2048])
    product = helper.make_graph(
        [helper.make_node("MatMul", ["a", "a"], ["c"])], "product", [info("a")], [info("c")]
    )
    matmul = ort.InferenceSession(
        helper.make_model(
            product, opset_imports=shipped.opset_import, ir_version=8
        ).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    products = {"numpy": lambda: a @ a, "ONNX Runtime": lambda: matmul.run(None, {"a": a})}
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
    operations = _operations(shipped, weights)
    rates = {name: 2 * 2048**3 / min(times[name]) for name in products}
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


def _operations(model: object, weights: dict) -> float:
    """Multiplications and additions of all convolutions."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    total = 0.0
    for node in inferred.node:
        if node.op_type == "Conv":
            voxels = 1
            for n in shapes[node.output[0]][2:]:
                voxels *= n
            total += 2.0 * weights[node.input[1]].size * voxels
    return total


if __name__ == "__main__":
    main()
