"""Progress on the command line."""

import sys
from typing import Any


class ProgressLine:
    """A line on standard error, updated with the step and the percentage."""

    def __init__(self, quiet: bool) -> None:
        self._show = not quiet and sys.stderr.isatty()

    def __enter__(self) -> "ProgressLine":
        return self

    def __call__(self, fraction: float, step: str) -> None:
        """A step has begun, at a fraction 0..1 of the whole."""
        if self._show:
            print(f"\r\033[K{fraction:4.0%} {step}", end="", file=sys.stderr, flush=True)

    def finished(self, row: dict[str, Any], number: int, cases: int) -> None:
        """A case of a batch is finished."""

    def clear(self) -> None:
        """Erase the line, before other output."""
        if self._show:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        self.clear()


class ProgressBar(ProgressLine):
    """The finished cases of a batch, their rate and the time left, with tqdm."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, fraction: float, step: str) -> None:
        """A step has begun."""
        self._bar.set_postfix_str(step)

    def finished(self, row: dict[str, Any], number: int, cases: int) -> None:
        """A case is finished, the number-th of all."""
        self._bar.total = cases
        self._bar.update(number - self._bar.n)

    def clear(self) -> None:
        """Erase the bar, before other output."""
        self._bar.clear()

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def batch_progress(quiet: bool) -> ProgressLine:
    """A bar where tqdm is installed, otherwise a line; neither where nobody looks at it."""
    if quiet or not sys.stderr.isatty():
        return ProgressLine(quiet)
    try:
        from tqdm import tqdm
    except ImportError:
        return ProgressLine(quiet)
    return ProgressBar(tqdm(unit="case", file=sys.stderr, dynamic_ncols=True, leave=False))
