"""Prepared cases on disk."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from monai.transforms import Transform
from tqdm import tqdm


def cached(items: list[dict[str, Any]], transform: Transform, cache: Path) -> PersistentDataset:
    """The transformed items; all of them are in `cache` when this returns."""
    cache.mkdir(parents=True, exist_ok=True)
    prepared = PersistentDataset(items, transform, cache)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        done = pool.map(lambda i: prepared[i] is None, range(len(items)))
        for _ in tqdm(done, "Preprocessing", len(items), unit="CT"):
            pass
    return prepared
