"""Grad-CAM for ONNX classifiers from the command line.

    python -m LiverFibrosisStagingLib.gradcam_onnx prepare MODEL.onnx       lists candidate layers
    python -m LiverFibrosisStagingLib.gradcam_onnx prepare MODEL.onnx --layer TENSOR -o OUT.onnx
    python -m LiverFibrosisStagingLib.gradcam_onnx explain OUT.onnx INPUT.npy --target 3 -o MAP.npy

Exit codes: 0 done; 1 refused, with the reason in one sentence on standard error; 2 wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import StagingError
from .gradcam import METHODS
from .session import CPU, DEVICE_CHOICES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except StagingError as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


def _prepare(options: argparse.Namespace) -> None:
    try:
        from .make_explainable import candidates, make_explainable
    except ModuleNotFoundError as error:
        raise StagingError(
            f"Preparing a model needs the package {error.name}: pip install onnx."
        ) from None
    if options.layer is None:
        for candidate in candidates(options.model, options.scores):
            sizes = " x ".join("N" if n is None else str(n) for n in candidate.shape)
            print(f"{candidate.tensor}\t{candidate.operator}\t{sizes}")
        return
    if options.output is None:
        options.error("-o OUT.onnx is needed with --layer")
    make_explainable(
        options.model,
        options.layer,
        options.output,
        options.scores,
        options.channels_last,
        options.grid,
    )
    print(f"Prepared: {options.output}")


def _explain(options: argparse.Namespace) -> None:
    from .explainable import ExplainableModel

    model = ExplainableModel(options.model, device=options.device)
    forward = model.run(_array(options.input))
    best = forward.logits.argmax(axis=1)
    target = np.eye(forward.logits.shape[1])[best] if options.target is None else options.target
    location = model.explain(forward, target, options.method)
    _write(location, Path(options.output))
    for number, scores in enumerate(forward.logits):
        print(f"input {number}: predicted class {best[number]} (score {scores[best[number]]:.4g})")
    explained = "the predicted class"
    if options.target is not None:
        explained = f"class {' + '.join(map(str, options.target))}"
    shape = " x ".join(map(str, location.shape))
    print(f"Map of {explained} ({options.method}, {shape}): {options.output}")


def _array(path: str) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StagingError(f"{path}: cannot be read as a .npy array ({error}).") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise StagingError(f"{path}: not an array of numbers; a .npy file with one is needed.")
    return values.astype(np.float32)


def _write(location: np.ndarray, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, location)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StagingError(f"Cannot write {path}: {error.strerror}.") from None


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m LiverFibrosisStagingLib.gradcam_onnx",
        description="Grad-CAM for ONNX classifiers, without PyTorch.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser(
        "prepare",
        help="add the outputs that Grad-CAM needs to a classifier (requires the package onnx)",
        description="Without --layer, list the layers that can be explained.",
    )
    prepare.add_argument("model", metavar="MODEL.onnx")
    prepare.add_argument("--layer", metavar="TENSOR", help="target layer")
    prepare.add_argument("-o", "--output", metavar="OUT.onnx")
    prepare.add_argument("--scores", metavar="TENSOR", help="scores before the softmax")
    prepare.add_argument(
        "--channels-last", action="store_true", help="the layer is [N, ..., channels]"
    )
    prepare.add_argument(
        "--grid",
        metavar="SIZES",
        type=_sizes,
        help="spatial shape of a transformer's last tokens: ROWS,COLUMNS",
    )
    prepare.set_defaults(run=_prepare, error=prepare.error)

    explain = commands.add_parser("explain", help="location map of an array by a prepared model")
    explain.add_argument("model", metavar="MODEL.onnx", help="a prepared model")
    explain.add_argument("input", metavar="INPUT.npy", help="the model's input, a batch")
    explain.add_argument(
        "--target",
        metavar="CLASS",
        type=int,
        action="append",
        help="class to explain; repeat the option to explain the sum of several scores (default: "
        "each input's predicted class)",
    )
    explain.add_argument("--method", choices=tuple(METHODS), default="gradcam")
    explain.add_argument(
        "--device", choices=DEVICE_CHOICES, default=CPU, help="default: %(default)s"
    )
    explain.add_argument("-o", "--output", metavar="MAP.npy", required=True)
    explain.set_defaults(run=_explain)
    return parser


if __name__ == "__main__":
    sys.exit(main())
