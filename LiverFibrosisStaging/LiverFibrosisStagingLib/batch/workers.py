"""Cases staged one after another in this process, or several at a time in worker processes.

The worker processes are those of loky, which joblib contains: unlike those of `concurrent.futures`,
they do not run the user's script again when they start, so that a batch can be started from a
console or a plain script, and they get an environment, thus a number of threads, of their own.
"""

import os
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from ..errors import CancelToken, StagingError, check_cancel
from ..files import PARTIAL, unwritable
from ..fingerprint import files_of_ct
from .case_row import Notify, Progress, Row
from .cohort import Case
from .worker import THREADS, RunningMark, row_and_messages, start_worker

DIED = "The process ended while this case was staged; perhaps not enough memory."
POLL_SECONDS = 0.1

Outcomes = Generator[tuple[int, Row | None], None, None]
Task = Callable[[Case, Progress, CancelToken | None, Notify], Row]


class Future(Protocol):
    """What the futures of loky and of Dask have in common."""

    def result(self) -> Any:
        """The result; raises what the call raised."""

    def add_done_callback(self, fn: Callable[[Any], None]) -> Any:
        """Call `fn` with the future when it has finished."""


class Pool(Protocol):
    """Processes that run functions.

    at_once: how many calls are handed over at a time. killed: see `result`.
    """

    at_once: int
    killed: type[Exception]

    def __enter__(self) -> "Pool": ...

    def __exit__(self, *_: object) -> None: ...

    def check(self, files: Sequence[Path], notify: Notify) -> None:
        """Raise StagingError if a process does not see the files."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Have a function called."""

    def result(self, future: Future) -> Any:
        """The result of a finished call.

        Raises what the call raised, `killed` if its process ended, and StagingError if there is
        no connection to the processes.
        """


class Runner(Protocol):
    """Stages cases; yields the index and the row of each as it finishes.

    The row is None if the process that staged the case ended, also when the case was tried once
    more, alone. output: the folder of the results, in which the task writes. Raises Cancelled.
    """

    def __call__(
        self,
        task: Task,
        cases: Sequence[Case],
        output: Path,
        progress: Progress,
        cancel: CancelToken | None,
        notify: Notify,
    ) -> Outcomes:
        """progress, cancel, notify: as for `stage_folder`."""


def in_this_process(
    task: Task,
    cases: Sequence[Case],
    output: Path,
    progress: Progress,
    cancel: CancelToken | None,
    notify: Notify,
) -> Outcomes:
    """A `Runner`: one case after another, in their order, with progress by step."""
    for number, case in enumerate(cases):

        def within(fraction: float, step: str, number: int = number, name: str = case.name) -> None:
            progress((number + fraction) / len(cases), f"{name}: {step}")

        yield number, task(case, within, cancel, notify)


@dataclass(frozen=True)
class InPools:
    """A `Runner`: as many cases at a time as the first pool takes, the largest CTs first.

    The second pool stages, one at a time, the cases whose process ended in the first.
    """

    several: Pool
    alone: Pool

    def __call__(
        self,
        task: Task,
        cases: Sequence[Case],
        output: Path,
        progress: Progress,
        cancel: CancelToken | None,
        notify: Notify,
    ) -> Outcomes:
        """As for `Runner`."""
        left = largest_first(cases)
        finished = 0
        for pool in (self.several, self.alone):
            if not left:
                break
            killed = []
            # At the end, the cases are first told to stop and then waited for.
            with pool, running_mark(output) as running:
                there = (cases[index].ct for index in left)
                seen = [path for path in there if path.exists()][:1]
                pool.check([running.path, *seen], notify)

                def submit(index: int, pool: Pool = pool, running: RunningMark = running) -> Future:
                    return pool.submit(row_and_messages, task, cases[index], running)

                for index, future in _as_finished(submit, left, pool.at_once, cancel):
                    try:
                        row, messages = pool.result(future)
                    except pool.killed:
                        killed.append(index)
                        continue
                    for message in messages:
                        notify(message)
                    finished += 1
                    progress(finished / len(cases), cases[index].name)
                    yield index, row
            left = killed
        for index in left:
            yield index, None


def in_processes(workers: int) -> InPools:
    """A `Runner` with worker processes on this machine, which share its cores."""
    return InPools(ProcessPool(workers), ProcessPool(1))


class ProcessPool:
    """A `Pool` of worker processes on this machine, new ones if one of them has ended."""

    def __init__(self, workers: int) -> None:
        from joblib.externals.loky import BrokenProcessPool

        self.at_once = workers
        self.killed = BrokenProcessPool
        self._executor: Any = None

    def __enter__(self) -> "ProcessPool":
        from joblib import cpu_count
        from joblib.externals.loky import ProcessPoolExecutor

        threads = max(1, cpu_count() // self.at_once)
        self._executor = ProcessPoolExecutor(
            self.at_once, initializer=start_worker, env={THREADS: str(threads)}
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True)

    def check(self, files: Sequence[Path], notify: Notify) -> None:
        """They see what this process sees.

        Nothing is called to try that: loky takes a worker's memory after its first call, which is
        best the largest CT, as what it needs, and starts a new one that has much more.
        """

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """As for `Pool`."""
        try:
            return self._executor.submit(function, *arguments)
        except self.killed:
            self._executor.shutdown(wait=True)
            self.__enter__()
            return self._executor.submit(function, *arguments)

    def result(self, future: Future) -> Any:
        """As for `Pool`."""
        return future.result()


@contextmanager
def running_mark(output: Path) -> Iterator[RunningMark]:
    """The mark of a batch that writes to a folder, removed at the end."""
    mark = RunningMark(output / f"{PARTIAL}running-{uuid4().hex}")
    try:
        mark.path.touch()
    except OSError as error:
        raise unwritable(output, error) from None
    try:
        yield mark
    finally:
        with suppress(OSError):  # the next batch removes it
            mark.path.unlink(missing_ok=True)


def largest_first(cases: Sequence[Case]) -> list[int]:
    """Indices of the cases by the size of the CT's files, so that the last ones are short."""
    return sorted(range(len(cases)), key=lambda index: -_size(cases[index].source))


def _size(ct: Path | Sequence[Path]) -> int:
    """Size in bytes of a CT's files; for a folder, of all its files, without opening them."""
    if isinstance(ct, Path) and ct.is_dir():
        files: Iterable[Path] = (Path(at, name) for at, _, names in os.walk(ct) for name in names)
    else:
        files = files_of_ct(ct)
    total = 0
    with suppress(OSError, StagingError):  # the reason is reported when it is staged
        for file in files:
            total += file.stat().st_size
    return total


def _as_finished(
    submit: Callable[[int], Future],
    order: Sequence[int],
    at_once: int,
    cancel: CancelToken | None,
) -> Iterator[tuple[int, Future]]:
    """Index and future of each call, as it finishes. Raises Cancelled."""
    waiting, running = deque(order), {}
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    while waiting or running:
        check_cancel(cancel)
        while waiting and len(running) < at_once:
            index = waiting.popleft()
            running[index] = submit(index)
            running[index].add_done_callback(lambda _, index=index: done.put(index))
        try:
            index = done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        yield index, running.pop(index)
