"""How long a Stage goes on after it is cancelled, at every moment of a run, by function.

    python Testing/benchmarks/cancel.py CT [--slices 454] [--liver MASK] [--every 0.5] [--top 20]

The CT, or a longer scan made from it as for profile_stage.py, is staged with automatic organs and
saved, once. The cancel token never says yes; it records when it is asked, and by which function of
the library. Nothing listens between two questions: a click in between waits for the second one. For
the longest of these gaps: wall and CPU seconds (all threads), the functions of the library that
were running, with the share of their time, and the one that asks next. Then runs are cancelled from
another thread, each --every seconds later than the one before, and the time until `stage` returns
is printed, worst first; 0: none.
"""

import argparse
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "LiverFibrosisStaging"), str(Path(__file__).parent)]

LIBRARY = "LiverFibrosisStagingLib"
SAMPLING_SECONDS = 0.01
ASKING = ("check_cancel", "check", "begin")


class Questions:
    """A cancel token that records when it is asked; its other methods are not called by jobs."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float, str]] = []  # wall, CPU, function that asks

    def is_set(self) -> bool:
        frame = sys._getframe(1)
        self.asked.append((time.perf_counter(), time.process_time(), place(frame)))
        return False


def place(frame: Any) -> str:
    """The innermost function of the library in a stack, but for those that ask."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(LIBRARY) and frame.f_code.co_name not in ASKING:
            return f"{name.removeprefix(LIBRARY + '.')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def traceback_place(error: BaseException) -> str:
    """The innermost function of the library that an error went through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return place(frames[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ct", type=Path)
    parser.add_argument("--slices", type=int)
    parser.add_argument("--liver", help="instead of automatic organs")
    parser.add_argument("--every", type=float, default=0.5, help="s between the real cancellations")
    parser.add_argument("--top", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ct = options.ct
        if options.slices:
            from profile_stage import longer

            ct = Path(folder) / "longer.nii.gz"
            longer(options.ct, options.slices, ct)
        took = show_gaps(ct, options.liver, Path(folder) / "out", options.top)
        if options.every:
            show_cancelled(ct, options.liver, took, options.every)


def show_gaps(ct: Path, liver: str | None, output: Path, top: int) -> float:
    """Print the longest times between two questions; returns the seconds of the Stage."""
    from LiverFibrosisStagingLib import stage

    token, samples, ended = Questions(), [], threading.Event()
    main_thread = threading.get_ident()

    def sample() -> None:
        while not ended.wait(SAMPLING_SECONDS):
            where = place(sys._current_frames()[main_thread])
            samples.append((time.perf_counter(), where))

    sampler = threading.Thread(target=sample)
    sampler.start()
    token.is_set()
    begun = time.perf_counter()
    try:
        result = stage(ct, liver, cancel=token, any_phase=True)
        token.is_set()
        took = time.perf_counter() - begun
        result.save(output, report=True)
        token.is_set()
    finally:
        ended.set()
        sampler.join()
    gaps = []
    for (a, cpu_a, _), (b, cpu_b, asker) in zip(token.asked, token.asked[1:]):
        running = Counter(where for when, where in samples if a < when <= b)
        gaps.append((b - a, cpu_b - cpu_a, asker, running))
    print(f"{'wall s':>7} {'CPU s':>7}  running until the next question")
    for wall, cpu, asker, running in sorted(gaps, key=lambda gap: -gap[0])[:top]:
        total = max(1, sum(running.values()))
        parts = [f"{where} {count / total:.0%}" for where, count in running.most_common(6)]
        print(f"{wall:7.3f} {cpu:7.3f}  {', '.join(parts)} -> {asker}")
    print(f"Stage {took:.2f} s, {len(token.asked)} questions")
    return took


def show_cancelled(ct: Path, liver: str | None, took: float, every: float) -> None:
    """Cancel runs at moments of the Stage and print the time until each returns, worst first."""
    from LiverFibrosisStagingLib import Cancelled, stage

    found = []
    for number in range(1, int(took / every)):
        cancel = threading.Event()
        timer = threading.Timer(number * every, cancel.set)
        begun = time.perf_counter()
        timer.start()
        try:
            stage(ct, liver, cancel=cancel, any_phase=True)
        except Cancelled as error:
            step = traceback_place(error)
            found.append((time.perf_counter() - begun - number * every, number * every, step))
        finally:
            timer.cancel()
    for seconds, moment, step in sorted(found, reverse=True)[:20]:
        print(
            f"cancelled after {moment:5.1f} s (noticed in {step}): returned {seconds:.3f} s later"
        )


if __name__ == "__main__":
    main()
