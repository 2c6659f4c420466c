"""Work on many CTs in several processes, with a progress bar."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from tqdm import tqdm

Result = TypeVar("Result")


def in_processes(
    function: Callable[..., Result],
    work: Sequence[tuple[Any, ...]],
    what: str,
    unit: str,
    workers: int = -1,
) -> Iterator[Result]:
    """`function` of each tuple of arguments, in their order, while the others are worked on.

    what, unit: for the progress bar. workers: processes, -1 for one per core; with 1, all work is
    done in this one.
    """
    jobs = max(1, min(effective_n_jobs(workers), len(work)))
    results = Parallel(jobs, return_as="generator")(delayed(function)(*each) for each in work)
    yield from tqdm(results, what, len(work), unit=unit, disable=None)
