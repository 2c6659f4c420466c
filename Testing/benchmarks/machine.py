"""The machine: what it is, and the rates that limit a Stage, measured with the same threads.

    python Testing/benchmarks/machine.py CT [--threads 2]

Prints JSON: GB/s that one thread copies in memory, read and written bytes together; GFLOP/s of a
float32 matrix product in numpy and in ONNX Runtime; and MB/s of voxels that zlib and ITK decompress
from the CT. Each is the best of several runs.
"""

import argparse
import json
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDE = 2048
PRODUCT_OPERATIONS = 2 * SIDE**3
COPIED = 256_000_000


def described() -> str:
    """Processor, cores, memory and system in one line. Linux only."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = {line.split(":")[1].strip() for line in info if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    what = f"{' / '.join(sorted(names)) or platform.machine()}, {os.cpu_count()} cores"
    return f"{what}, {memory:.0f} GiB, {platform.system()}"


def environment(threads: int, checkout: Path) -> dict[str, str]:
    """Variables of a process that uses this checkout's library and so many threads.

    Python keeps compiled modules, as it does for users, whose second run compiles nothing.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(checkout / "LiverFibrosisStaging"),
        "PYTHONDONTWRITEBYTECODE": "",
        **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")},
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
    }


def matrix_products(threads: int) -> dict[str, Callable[[], Any]]:
    """The float32 product of PRODUCT_OPERATIONS, by library."""
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper

    a = np.random.default_rng(1).normal(size=(SIDE, SIDE)).astype(np.float32)
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in "ac"
    )
    node = helper.make_node("MatMul", ["a", "a"], ["c"])
    model = helper.make_model(
        helper.make_graph([node], "product", [given], [made]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return {"numpy": lambda: a @ a, "ONNX Runtime": lambda: session.run(None, {"a": a})}


def limits(ct: Path, threads: int, runs: int = 5) -> dict[str, float]:
    """The rates; see the module's docstring. ct: a CT in any format that ITK reads."""
    import numpy as np
    import SimpleITK as sitk

    def least(job: Callable[[], Any]) -> float:
        taken = []
        for _ in range(runs):
            started = time.perf_counter()
            job()
            taken.append(time.perf_counter() - started)
        return min(taken)

    source = np.ones(COPIED // 8)
    target = np.empty_like(source)
    found = {"copy, GB/s": 2 * COPIED / least(lambda: np.copyto(target, source)) / 1e9}
    for name, product in matrix_products(threads).items():
        found[f"product in {name}, GFLOP/s"] = PRODUCT_OPERATIONS / least(product) / 1e9
    with tempfile.TemporaryDirectory() as folder:
        if ct.suffix != ".gz":
            image, ct = sitk.ReadImage(ct), Path(folder) / "ct.nii.gz"
            sitk.WriteImage(image, ct)
        compressed = ct.read_bytes()
        size = len(zlib.decompress(compressed, wbits=31))
        seconds = least(lambda: zlib.decompress(compressed, wbits=31))
        found["decompressed by zlib, MB/s"] = size / seconds / 1e6
        found["decompressed by ITK, MB/s"] = size / least(lambda: sitk.ReadImage(ct)) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    print(json.dumps(limits(options.ct, options.threads)))


if __name__ == "__main__":
    main()
