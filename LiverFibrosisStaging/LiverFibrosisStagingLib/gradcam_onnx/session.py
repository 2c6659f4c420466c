"""Opening, running and cancelling ONNX Runtime sessions, on the processor or on a GPU."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Cancelled, CancelToken, StagingError
from .onnx_file import OnnxFile, listed
from .winograd import with_fast_convolutions

# Supported by every onnxruntime that can be installed in Slicer >= 5.10.
SAFE_OPSET, SAFE_IR = 18, 10
CANCEL_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Device:
    """Something that onnxruntime computes on.

    provider: onnxruntime's name for it. package: the one that contains the provider. needs: what
    has to be installed, for messages. options: of the provider.
    """

    provider: str
    package: str
    needs: str
    options: dict[str, str] = field(default_factory=dict)


CPU, AUTO = "cpu", "auto"
DEVICES = {
    CPU: Device("CPUExecutionProvider", "onnxruntime", "onnxruntime"),
    "cuda": Device(
        "CUDAExecutionProvider",
        "onnxruntime-gpu",
        "onnxruntime-gpu in place of onnxruntime, with CUDA, cuDNN and an NVIDIA driver",
        # TF32 would round the inputs of convolutions to 10 bits. Few patches have the same shape,
        # too few to gain from trying all algorithms of a convolution on the first one.
        {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    ),
    "directml": Device(
        "DmlExecutionProvider",
        "onnxruntime-directml",
        "onnxruntime-directml in place of onnxruntime, on Windows",
    ),
    "coreml": Device("CoreMLExecutionProvider", "onnxruntime", "onnxruntime on macOS"),
}
# Without CoreML, which has no three-dimensional convolutions and would leave most to the processor.
AUTO_ORDER = ("cuda", "directml")
DEVICE_CHOICES = (*DEVICES, AUTO)


def check_weights(file: OnnxFile, path: Path) -> None:
    """Raise StagingError for NaN or infinite weights."""
    for name, values in file.weights.items():
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise StagingError(f"The model {path} has NaN or infinite weights in {name!r}.")


def installed_devices() -> list[str]:
    """Names of the devices that the installed onnxruntime can use, in the order of DEVICES; their
    drivers may be missing. Raises StagingError if onnxruntime is missing.
    """
    available = _onnxruntime().get_available_providers()
    return [name for name, device in DEVICES.items() if device.provider in available]


def device_of(session: Any) -> str:
    """Name of the device on which a session computes; what it lacks is computed on the CPU."""
    first = session.get_providers()[0]
    return next(name for name, device in DEVICES.items() if device.provider == first)


def open_session(file: OnnxFile, path: Path, threads: int, device: str = CPU) -> Any:
    """An InferenceSession for the content of `file`.

    threads: with 0, one per core. device: a key of DEVICES, whose missing operators the CPU
    computes; "auto": a GPU that works, otherwise the CPU. Raises StagingError if the device is
    unknown or cannot be used, and if onnxruntime is missing or cannot load the file.
    """
    onnxruntime = _onnxruntime()
    if device == AUTO:
        for name in AUTO_ORDER:
            with suppress(StagingError):  # the next one, at last the CPU, tells what is wrong
                return open_session(file, path, threads, name)
        device = CPU
    _check_installed(device)
    version, chosen = onnxruntime.__version__, DEVICES[device]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Planned in one block, the memory of convolutions by parts would be twice what they need; and
    # DirectML refuses to run with it.
    options.enable_mem_pattern = False
    # Idle threads would spin, while other steps could use the processor, and gain nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Otherwise bytes that also match onnxruntime's own format would be loaded as such.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if device == "directml":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Without a fallback of onnxruntime's own, which would go on elsewhere unnoticed.
    wanted = {chosen.provider: chosen.options, DEVICES[CPU].provider: {}}
    how = {"providers": [*wanted], "provider_options": [*wanted.values()], "enable_fallback": 0}
    content, weights = with_fast_convolutions(file) if device == CPU else (bytes(file.content), {})
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    try:
        options.add_external_initializers([*weights], values)
        session = onnxruntime.InferenceSession(content, options, **how)
        session.disable_fallback()
    except Exception as error:  # onnxruntime raises a class of its own for every status
        if file.opset > SAFE_OPSET or file.ir_version > SAFE_IR:
            raise StagingError(
                f"The model {path} uses ONNX opset {file.opset} and IR version {file.ir_version}, "
                f"too new for the installed onnxruntime {version}; export it with at most opset "
                f"{SAFE_OPSET} and IR version {SAFE_IR}."
            ) from None
        where = "" if device == CPU else f" on {device}"
        raise StagingError(
            f"onnxruntime {version} cannot load the model {path}{where}: {_first_line(error)}"
        ) from None
    session.weights = values  # onnxruntime may read their memory as long as it runs the session
    if device_of(session) != device:
        raise StagingError(
            f"The device {device} does not start with onnxruntime {version}; needed is "
            f"{chosen.needs}, in versions that fit each other."
        )
    return session


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


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise StagingError(
            "Staging needs the Python package onnxruntime, which is not installed."
        ) from None
    return onnxruntime


def _check_installed(device: str) -> None:
    if device not in DEVICES:
        raise StagingError(
            f"The device {device!r} is unknown; expected one of {', '.join(DEVICE_CHOICES)}."
        )
    found = installed_devices()
    if device not in found:
        raise StagingError(
            f"The device {device} is not installed, only {', '.join(found)}; needed is "
            f"{DEVICES[device].needs}."
        )


def described(item: Any, others: Sequence[str]) -> str:
    """An input or output for a message; if it is missing, the names of the others."""
    return f"{item.name} {item.type} {item.shape}" if item is not None else listed([*others])


@contextmanager
def _terminable(cancel: CancelToken | None) -> Iterator[Any]:
    """Options of one run, which a watching thread terminates when the user cancels."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    # Otherwise a session would keep the memory of its largest run.
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
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
