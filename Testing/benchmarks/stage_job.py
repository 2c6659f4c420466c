"""One job of the comparison in `bench.py`: staging with a location map of F4, without saving.

    python Testing/benchmarks/stage_job.py library|plain|tuned CT --model LFS.onnx [--liver MASK]

Prints JSON: seconds of the job without imports, peak memory of the process in MiB, probabilities.
Without --liver, the organs are outlined by the shipped V-Net.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from profile_stage import MIB, memory

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]


def prepared(side: str, ct: str, liver: str | None, model: str) -> Callable[[], list[float]]:
    """The job, after the imports."""
    from LiverFibrosisStagingLib.resources import default_model_path

    path = default_model_path(model)
    if side != "library":
        from monai_job import stage_with_monai

        return lambda: stage_with_monai(ct, liver, path, side == "plain").probabilities
    from LiverFibrosisStagingLib import stage

    return lambda: stage(ct, liver, model=path, explain="F4", any_phase=True).probabilities.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["library", "plain", "tuned"])
    parser.add_argument("ct")
    parser.add_argument("--model", required=True)
    parser.add_argument("--liver")
    options = parser.parse_args()
    job = prepared(options.side, options.ct, options.liver, options.model)
    started = time.perf_counter()
    probabilities = job()
    seconds = time.perf_counter() - started
    found = {"job": seconds, "peak": memory("VmHWM") / MIB, "probabilities": probabilities}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
