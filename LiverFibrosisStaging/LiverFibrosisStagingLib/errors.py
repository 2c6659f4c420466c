"""The exceptions for refused input and for cancellation; cancel tokens, and how work listens."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

POLL_SECONDS = 0.05
Value = TypeVar("Value")


class StagingError(Exception):
    """Input was refused: one sentence with the file or node, what was found and what is needed."""


class WrongPhase(StagingError):
    """The CT is not in the portal-venous phase; staged only if any phase is allowed."""


class DiskFull(StagingError):
    """There is no room for a file; whatever is written next to it fails as well."""


class Cancelled(Exception):
    """The user cancelled; nothing was written."""


class CancelToken(Protocol):
    """Anything with `is_set()`, such as threading.Event."""

    def is_set(self) -> bool:
        """Whether the user has cancelled."""


def check_cancel(cancel: CancelToken | None) -> None:
    """Raises Cancelled if the user has cancelled; called several times a second in long work."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("The user cancelled.")


def cancellable(work: Callable[[], Value], cancel: CancelToken | None) -> Value:
    """The value or exception of work that cannot be interrupted, such as reading by ITK.

    Raises Cancelled as soon as the user cancels. The work then goes on in its thread until its end,
    and its value is dropped; other work is not held up by it.
    """
    if cancel is None:
        return work()
    check_cancel(cancel)
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)  # the thread ends with the work
    while not wait([future], POLL_SECONDS).done:
        check_cancel(cancel)
    check_cancel(cancel)
    return future.result()
