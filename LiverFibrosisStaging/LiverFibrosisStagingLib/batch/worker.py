"""What happens in a worker process: the cases that it is given, until the batch ends.

Only what a worker needs at once is imported here, so that it starts quickly.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, StagingError

if TYPE_CHECKING:
    from ..model import StagingModel
    from .cohort import Case

THREADS = "OMP_NUM_THREADS"  # also obeyed by OpenBLAS and MKL
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class RunningMark:
    """A file that exists while a batch runs: the cancel token of its cases in other processes.

    They stop, on any machine that sees the output, when the batch ends or is cancelled, and those
    of a batch that was killed when the next one into the same folder begins.
    """

    path: Path

    def is_set(self) -> bool:
        """Whether the batch has ended."""
        try:
            self.path.stat()
        except FileNotFoundError:
            return True
        except OSError:  # a network drive that does not answer now
            return False
        return False


@lru_cache(maxsize=1)
def worker_model(path: Path, sha256: str, device: str) -> "StagingModel":
    """The model of a worker process, read once, with the threads that are its share.

    sha256: as it was when the batch began. device: as for `StagingModel`. Raises StagingError
    if the file has another hash, or the device cannot be used here.
    """
    import SimpleITK as sitk

    from ..model import StagingModel

    threads = int(os.environ.get(THREADS, "1"))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    model = StagingModel.load(path, threads, device)
    if model.sha256 != sha256:
        raise StagingError(f"The model {path} was changed while the batch ran; start it again.")
    return model


def row_and_messages(
    task: Callable[..., Any], case: "Case", running: RunningMark
) -> tuple[Any, list[str]]:
    """In another process: a case's row, and the messages for the screen."""
    messages: list[str] = []
    if running.is_set():
        raise Cancelled("The batch has ended.")
    row = task(case, lambda *_: None, running, messages.append)
    return row, messages


def start_worker() -> None:
    """In a new worker process: leave Ctrl+C to the batch, and end when the batch has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        if os.name == "nt":
            parent.join()
        else:  # loky hands its workers no handle of their parent
            while os.getppid() == parent.pid:
                time.sleep(POLL_SECONDS)
        os._exit(1)
