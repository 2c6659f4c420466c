"""Cases and tasks that take the place of staging where voxels do not matter, also in processes.

They import nothing heavy, so that worker processes start quickly.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from LiverFibrosisStagingLib.files import write_folder

NAMES = ("map", "staging.json")
# What a row needs to be shown in the summary.
DONE = {"status": "done", "schema": 1, "model": "stand-in", "trained_on": "nothing"}
DONE |= {"stage": "F0", "supported": True, **dict.fromkeys(("F0", "F1", "F2", "F3", "F4"), 0.2)}
BATCH_FILES = {"results.csv", "columns.csv", "summary.html", "batch.log", "left_out.csv"}


@dataclass(frozen=True)
class StandInCard:
    name: str = DONE["model"]
    trained_on: str = DONE["trained_on"]


@dataclass(frozen=True)
class StandInModel:
    card: StandInCard = StandInCard()
    sha256: str = "0" * 64


@dataclass(frozen=True)
class StandInCase:
    name: str
    ct: Path
    chosen: str = ""

    @property
    def source(self) -> Path:
        return self.ct


def cases(folder: Path, **texts: str) -> list[StandInCase]:
    """A case per text, which is its CT; `StandInTask` does what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [StandInCase(name, folder / name) for name in texts]


@dataclass(frozen=True)
class StandInTask:
    """Writes a result of `size` bytes into the case's folder, unless it is finished.

    A CT that says "dies" ends the process; "dies once", only the first time; "waits", waits until
    it says something else or the batch is cancelled. record: names of the cases as they begin,
    with number of threads and process.
    """

    output: Path
    record: Path
    size: int = 10
    seconds: float = 0.0

    def __call__(self, case, progress, cancel, notify):
        from LiverFibrosisStagingLib.errors import Cancelled

        row = {**DONE, "case": case.name}
        folder = self.output / case.name
        if (folder / NAMES[-1]).is_file():
            return row
        with self.record.open("a") as record:
            record.write(f"{case.name} {os.environ.get('OMP_NUM_THREADS')} {os.getpid()}\n")
        text = case.ct.read_text().strip()
        before = self.record.read_text().split().count(case.name)
        if text == "dies" or (text == "dies once" and before == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        while case.ct.read_text().strip() == "waits":
            time.sleep(0.01)
            if cancel is not None and cancel.is_set():
                raise Cancelled("The stand-in was cancelled.")
        if text == "fails":
            notify(f"{case.name}: failed")
            return {**row, "status": "failed", "reason": "It failed.", "stage": None}

        def write(partial: Path) -> None:
            for name in NAMES:
                (partial / name).write_bytes(bytes(self.size))
                time.sleep(self.seconds / len(NAMES))

        write_folder(folder, NAMES, write)
        return row
