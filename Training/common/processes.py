"""Processes: those of torchrun, and those that prepare data."""

import os
from datetime import timedelta

import torch
from joblib import cpu_count
from torch import distributed

# The others wait for the process that prepares a cohort, or that validates.
PATIENCE = timedelta(days=1)
MOST_WORKERS = 8


def on_gpu() -> bool:
    """Whether training runs on a GPU."""
    return torch.cuda.is_available()


def process() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torchrun."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def join_processes() -> None:
    """Under torchrun, initialise the process group; each process has its own GPU, if any."""
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        if on_gpu():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if on_gpu() else "gloo", timeout=PATIENCE)


def first_on_node() -> bool:
    """Whether this is the first process on its machine, as for work that is done once."""
    return not distributed.is_initialized() or int(os.environ.get("LOCAL_RANK", 0)) == 0


def processes_on_node() -> int:
    """Number of processes that torchrun started on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if distributed.is_initialized() else 1


def wait_for_others() -> None:
    """Return when all processes have come here."""
    if distributed.is_initialized():
        distributed.barrier()


def default_workers() -> int:
    """Worker processes for each process of training: the free cores, 8 at most."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min((cpu_count() - 1) // local, MOST_WORKERS))
