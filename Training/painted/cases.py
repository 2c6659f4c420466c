"""Painted cases as they are needed, on the GPU itself or by other processes."""

import itertools
import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import multiprocessing

from insilico.bodies import load_bodies
from insilico.paint import Case, Painter
from painted.network import SPACING_MM

HELD_SEED = 10**6  # cases for evaluation have seeds from here on, cases for training below
Painted = tuple[Case, int]


class Source:
    """Cases of the bodies in turn, one for each seed.

    folder: body files. device: that paints. workers: processes that paint on the CPU instead; the
    order of their cases is not always the same. first_seed: of the first case.
    """

    def __init__(
        self, folder: Path, device: torch.device | str, workers: int = 0, first_seed: int = 0
    ) -> None:
        self.folder, self.workers, self.next_seed = folder, workers, first_seed
        self._painter = None if workers else Painter(load_bodies(folder, device))
        self._queue: multiprocessing.Queue | None = None
        self._processes: list[multiprocessing.Process] = []

    def take(self, count: int, wait: bool = False) -> Iterator[Painted]:
        """`count` further cases with the indices of their bodies; if processes paint and not
        `wait`, only those that are ready.
        """
        if not self.workers:
            for _ in range(count):
                yield painted(self._painter, self.next_seed)
                self.next_seed += 1
            return
        if self._queue is None:
            self._start()
        for _ in range(count):
            try:
                hu, liver, spleen, truth, body = self._queue.get(wait)
            except queue.Empty:
                return
            self.next_seed += 1
            tensors = [torch.from_numpy(array) for array in (hu, liver, spleen)]
            yield Case(*tensors, SPACING_MM, truth), body

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        self._processes, self._queue = [], None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._queue = context.Queue(2 * self.workers)
        for number in range(self.workers):
            arguments = (self.folder, self.next_seed + number, self.workers, self._queue)
            process = context.Process(target=_paint, args=arguments, daemon=True)
            process.start()
            self._processes.append(process)


def painted(painter: Painter, seed: int, stage: int | None = None) -> Painted:
    """The case with this seed, and the index of its body."""
    body = seed % len(painter.bodies)
    return painter.case(seed, body, stage, spacing=SPACING_MM), body


def _paint(folder: Path, first: int, step: int, results: multiprocessing.Queue) -> None:
    """A process that paints every `step`-th case without end."""
    torch.set_num_threads(1)
    painter = Painter(load_bodies(folder))
    for seed in itertools.count(first, step):
        case, body = painted(painter, seed)
        arrays = (case.hu.numpy().astype(np.float16), case.liver.numpy(), case.spleen.numpy())
        results.put((*arrays, case.truth, body))
