"""Prepared cases on disk."""

from pathlib import Path
from typing import Any

import SimpleITK as sitk
from joblib import cpu_count
from monai.data import PersistentDataset
from monai.transforms import Transform

from common.parallel import in_processes
from common.processes import first_on_node, processes_on_node, wait_for_others
from LiverFibrosisStagingLib import StagingError


def cached(
    items: list[dict[str, Any]], transform: Transform, cache: Path, workers: int = 0
) -> PersistentDataset:
    """The transformed items; all of them are in `cache` when this returns.

    Raises the StagingError of the first item that is refused.

    workers: as in training, for each process of torchrun. The first process on a machine prepares
    the items with the workers of all and one more in its own place, while the others wait.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if first_on_node():
        jobs = max(1, min(workers * processes_on_node() + (workers > 0), len(items)))
        threads = max(1, cpu_count() // jobs) if jobs > 1 else 0
        work = [(item, transform, cache, threads) for item in items]
        list(in_processes(_prepare, work, "Preprocessing", "CT", jobs))
    wait_for_others()
    return PersistentDataset(items, transform, cache)


def _prepare(item: dict[str, Any], transform: Transform, cache: Path, threads: int) -> None:
    """Write one item to the cache. threads: of SimpleITK; 0 leaves them as they are."""
    if threads:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    try:
        PersistentDataset([item], transform, cache)[0]
    except RuntimeError as error:  # MONAI's, which hides the sentence
        if isinstance(error.__cause__, StagingError):
            raise error.__cause__ from None
        raise
