"""Painted cases as they are needed, from the device that trains and from other processes."""

import itertools
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import multiprocessing

from common.resume import digest
from insilico.bodies import load_body
from insilico.paint import Case, Painter
from painted.network import SPACING_MM

HELD_SEED = 10**6  # cases for evaluation have seeds from here on, cases for training below
Painted = tuple[Case, int]


class Source:
    """Cases of random bodies, one for each seed.

    folder: body files. device: that paints. workers: processes that paint as well, on the CPU; how
    many of the cases are theirs depends on the machine. taken: cases so far, of an earlier run.
    """

    def __init__(
        self, folder: Path, device: torch.device | str, workers: int = 0, taken: int = 0
    ) -> None:
        self.taken, self.device = taken, torch.device(device)
        self._seeds = itertools.count(taken, workers + 1)
        self._queue: multiprocessing.Queue | None = None
        self._processes: list[multiprocessing.Process] = []
        if workers:
            context = multiprocessing.get_context("spawn")
            self._queue = context.Queue(2 * workers)
            for number in range(1, workers + 1):
                arguments = (folder, taken + number, workers + 1, self._queue)
                process = context.Process(target=_paint, args=arguments, daemon=True)
                process.start()
                self._processes.append(process)
        self.painter = painter(folder, device)

    def take(self, count: int) -> Iterator[Painted]:
        """`count` further cases with the indices of their bodies."""
        for _ in range(count):
            case = self._ready() or painted(self.painter, next(self._seeds))
            self.taken += 1
            yield case

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        self._processes = []

    def _ready(self) -> Painted | None:
        if self._queue is None:
            return None
        try:
            *arrays, truth, body = self._queue.get_nowait()
        except queue.Empty:
            return None
        return Case(*map(torch.from_numpy, arrays), SPACING_MM, truth), body


def painter(folder: Path, device: torch.device | str) -> Painter:
    """A painter of all bodies in a folder."""
    with ThreadPoolExecutor() as threads:
        return Painter([*threads.map(lambda file: load_body(file, device), body_files(folder))])


def body_files(folder: Path) -> list[Path]:
    """The body files of a folder, in the order of the bodies' indices."""
    return sorted(folder.glob("*.npz"))


def origins(file: Path) -> set[str]:
    """Digests of a body file, and of the CT and the patient that the body is from."""
    with np.load(file) as body:
        return {digest(file), *(body["origin"].tolist() if "origin" in body else [])}


def painted(painter: Painter, seed: int) -> Painted:
    """The case with this seed, and the index of its body."""
    body = int(np.random.default_rng(seed).integers(len(painter.bodies)))
    return painter.case(seed, body, spacing=SPACING_MM), body


def _paint(folder: Path, first: int, step: int, results: multiprocessing.Queue) -> None:
    """A process that paints every `step`-th case without end."""
    torch.set_num_threads(1)
    own = painter(folder, "cpu")
    for seed in itertools.count(first, step):
        case, body = painted(own, seed)
        arrays = (case.hu.numpy().astype(np.float16), case.liver.numpy(), case.spleen.numpy())
        results.put((*arrays, case.truth, body))
