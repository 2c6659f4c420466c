"""Cost of Grad-CAM relative to the forward pass, compared with MONAI's GradCAM in PyTorch.

    python Testing/benchmarks/gradcam_cost.py [--runs 7] [--threads 2]

The target layer is the activation of the third or of the last convolution; weights, input and
number of threads are equal. Everything is measured in turn in one process, so that other work of
the machine affects all alike; medians of the ratios within each turn are printed.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing")]
CLASS = 4


def seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    for name in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)

    import numpy as np
    import onnx
    import torch
    from monai.visualize import GradCAM
    from torch_twin import TorchTwin

    from LiverFibrosisStagingLib.gradcam_onnx.explainable import ExplainableModel
    from LiverFibrosisStagingLib.gradcam_onnx.make_explainable import make_explainable
    from LiverFibrosisStagingLib.resources import default_model_path

    torch.set_num_threads(options.threads)
    path = default_model_path("LFS_phantoms.onnx")
    graph = onnx.load(path).graph
    layers = [node.output[0] for node in graph.node if node.op_type == "LeakyRelu"]
    size = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(0).uniform(0.4, 0.9, (1, *size)).astype(np.float32)
    tensor = torch.tensor(x)
    twin = TorchTwin(path).eval()
    with tempfile.TemporaryDirectory() as folder:
        for name, layer in (("last", layers[3]), ("third", layers[2])):
            prepared = Path(folder) / f"{name}.onnx"
            make_explainable(path, layer, prepared, scores="logits")
            model = ExplainableModel(prepared)
            cam = GradCAM(nn_module=twin, target_layers=f"nodes.{layer}")
            forward = model.run(x)
            jobs = {
                "forward": lambda model=model: model.run(x),
                "map": lambda model=model, forward=forward: model.explain(forward, CLASS),
                "gradient": lambda model=model, forward=forward: model.gradient(forward, CLASS),
                "ours": lambda model=model: model.grad_cam(x, CLASS),
                "monai": lambda cam=cam: cam.compute_map(tensor, class_idx=CLASS),
            }
            turns: dict[str, list[float]] = {job: [] for job in jobs}
            for turn in range(options.runs + 1):
                for job, run in jobs.items():
                    elapsed = seconds(run)
                    if turn:  # the first turn is a warm-up
                        turns[job].append(elapsed)

            def ratio(above: str, below: str, turns: dict = turns) -> float:
                return statistics.median(a / b for a, b in zip(turns[above], turns[below]))

            print(f"target: {name} convolution ({layer}), {options.runs} turns")
            for job, values in turns.items():
                print(f"  {job:9s}{statistics.median(values) * 1000:9.1f} ms")
            print(f"  Grad-CAM adds to the forward pass      {ratio('map', 'forward'):7.1%}")
            print(f"  full gradient, for other methods       {ratio('gradient', 'forward'):7.1%}")
            print(f"  MONAI's GradCAM takes                  {ratio('monai', 'ours'):7.2f} x ours")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
