"""The two ways in which staging ends without a result, and what asks for the second."""

from typing import Protocol


class StagingError(Exception):
    """A refusal: one sentence that names the file or node, what was found and what is needed."""


class Cancelled(Exception):
    """The user cancelled: nothing was written and nothing is left behind."""


class CancelToken(Protocol):
    """Anything with `is_set()`, such as threading.Event."""

    def is_set(self) -> bool:
        """Whether the user has cancelled."""
