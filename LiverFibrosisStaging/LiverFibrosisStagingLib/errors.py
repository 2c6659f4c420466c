"""The exceptions for refused input and for cancellation, and the type of a cancel token."""

from typing import Protocol


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
