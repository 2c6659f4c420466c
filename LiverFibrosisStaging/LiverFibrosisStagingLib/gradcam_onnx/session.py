"""Opening, running and cancelling ONNX Runtime sessions."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Cancelled, CancelToken, StagingError
from .onnx_file import OnnxFile, listed

# Supported by every onnxruntime that can be installed in Slicer >= 5.10.
SAFE_OPSET, SAFE_IR = 18, 10
CANCEL_POLL_SECONDS = 0.05


def check_weights(file: OnnxFile, path: Path) -> None:
    """Raise StagingError for NaN or infinite weights."""
    for name, values in file.weights.items():
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise StagingError(f"The model {path} has NaN or infinite weights in {name!r}.")


def open_session(file: OnnxFile, path: Path, threads: int) -> Any:
    """An InferenceSession for the content of `file`; threads: with 0, one per core.

    Raises StagingError if onnxruntime is missing or cannot load the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise StagingError(
            "Staging needs the Python package onnxruntime, which is not installed."
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Otherwise bytes that also match onnxruntime's own format would be loaded as such.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    content = bytes(file.content)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for every status
        version = onnxruntime.__version__
        if file.opset > SAFE_OPSET or file.ir_version > SAFE_IR:
            raise StagingError(
                f"The model {path} uses ONNX opset {file.opset} and IR version {file.ir_version}, "
                f"too new for the installed onnxruntime {version}; export it with at most opset "
                f"{SAFE_OPSET} and IR version {SAFE_IR}."
            ) from None
        raise StagingError(
            f"onnxruntime {version} cannot load the model {path}: {_first_line(error)}"
        ) from None


def run_session(
    session: Any,
    outputs: Sequence[str],
    x: np.ndarray,
    path: Path,
    cancel: CancelToken | None = None,
) -> list[np.ndarray]:
    """The outputs for x, the network's only input.

    cancel: also checked while the network runs, at its next operator. Raises StagingError if the
    network fails, and Cancelled.
    """
    (given,) = session.get_inputs()
    try:
        with _terminable(cancel) as options:
            return session.run(outputs, {given.name: x}, options)
    except Exception as error:  # onnxruntime raises a class of its own for every status
        if cancel is not None and cancel.is_set():
            raise Cancelled("The run was cancelled.") from None
        raise StagingError(f"The model {path} failed to run: {_first_line(error)}") from None


def described(item: Any, others: Sequence[str]) -> str:
    """An input or output for a message; if it is missing, the names of the others."""
    return f"{item.name} {item.type} {item.shape}" if item is not None else listed([*others])


@contextmanager
def _terminable(cancel: CancelToken | None) -> Iterator[Any]:
    """Options of one run, which a watching thread terminates when the user cancels."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    if cancel is None:
        yield options
        return
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(CANCEL_POLL_SECONDS):
            if cancel.is_set():
                options.terminate = True
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield options
    finally:
        finished.set()
        watcher.join()


def _first_line(error: Exception) -> str:
    """The first line of onnxruntime's message, of limited length."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .")[:200]
    return "".join(c if c.isprintable() else " " for c in text) + "."
