"""Cases staged by the workers of a Dask cluster, which may be on other machines."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import StagingError
from .case_row import Notify
from .workers import Future, InPools

CONNECT_SECONDS = 10


def on_cluster(scheduler: Any) -> InPools:
    """A `Runner` on a Dask cluster.

    scheduler: its address, tcp://host:port, a `distributed.Client`, or a cluster, such as
    `dask_jobqueue.SLURMCluster`. Output, model and CTs must be at the same paths for all workers.
    A worker stages as many cases at a time as it has threads, each with OMP_NUM_THREADS threads,
    which Dask sets to 1 unless told otherwise. Raises StagingError if dask.distributed is not
    installed.
    """
    try:
        from distributed import KilledWorker
    except ImportError:
        raise StagingError(
            "A scheduler needs the Python package distributed, which is not installed (pip install "
            "distributed)."
        ) from None
    return InPools(
        ClusterPool(scheduler, KilledWorker), ClusterPool(scheduler, KilledWorker, at_once=1)
    )


class ClusterPool:
    """A `Pool` of a Dask cluster's workers.

    killed: distributed.KilledWorker, for a call during which workers ended more often than the
    scheduler allows (its setting allowed-failures); until then it is repeated.
    """

    def __init__(
        self, scheduler: Any, killed: type[Exception], at_once: int = 1_000_000_000
    ) -> None:
        self.at_once, self.killed = at_once, killed
        self._scheduler = scheduler
        self._client: Any = None

    def __enter__(self) -> "ClusterPool":
        from distributed import Client

        if isinstance(self._scheduler, Client):
            self._client = self._scheduler
            return self
        try:
            self._client = Client(
                self._scheduler, timeout=CONNECT_SECONDS, set_as_default=False, name="batch"
            )
        except (OSError, asyncio.TimeoutError, ValueError, TypeError) as error:
            raise StagingError(
                f"{self._scheduler}: no Dask scheduler answers ({type(error).__name__}); needed is "
                "its address, such as tcp://host:8786."
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not self._scheduler:
            self._client.close()

    def check(self, files: Sequence[Path], notify: Notify) -> None:
        """As for `Pool`; the workers that join later are not asked."""
        found = self._client.run(_missing, [str(file) for file in files], on_error="return")
        if not found:
            notify("The scheduler has no workers yet; the cases wait for them.")
        for worker, missing in found.items():
            if isinstance(missing, ImportError):
                raise StagingError(
                    f"The Dask worker {worker} cannot import this library ({missing}); it must be "
                    "installed there too."
                )
            if isinstance(missing, BaseException):
                continue  # it has just ended
            if missing:
                raise StagingError(
                    f"The Dask worker {worker} does not see {Path(missing[0]).parent}; output and "
                    "CTs must be at the same paths for all workers."
                )

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """As for `Pool`."""
        return self._client.submit(function, *arguments, pure=False)

    def result(self, future: Future) -> Any:
        """As for `Pool`."""
        from distributed import CancelledError

        try:
            return future.result()
        except (CancelledError, OSError):
            raise StagingError(
                "The connection to the Dask scheduler was lost; start the batch again to resume it."
            ) from None
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise StagingError(
                f"The Dask cluster cannot run the cases ({reason}); this library must be installed "
                "for its scheduler and its workers too."
            ) from None


def _missing(files: list[str]) -> list[str]:
    """On a worker: which of the files it does not see."""
    return [file for file in files if not Path(file).exists()]
