"""How long a Stage, and then saving with a report, goes on after it is cancelled, by function.

    python Testing/benchmarks/cancel.py CT [--slices 454] [--liver MASK] [--every 0.1] [--top 20]

The CT, or a longer scan made from it as for profile_stage.py, is staged with automatic organs and
saved, once. The cancel token never says yes; it records when it is asked, and by which function of
the library. Nothing listens between two questions: a click in between waits for the second one. For
the longest of these gaps: wall and CPU seconds (all threads), the functions of the library that
were running, with the share of their time, and the one that asks next. Then the work is cancelled
from another thread again and again, each time --every CPU seconds later than before, Stage and
saving each from their beginning. By step, worst first: how often, and the longest wall and CPU
seconds from the cancel until the work has returned, with the function that noticed. --every 0: not
done. CPU seconds, of all threads, depend less on other work of the machine than wall seconds.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
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
        if threading.current_thread().name.startswith("ThreadPoolExecutor"):
            return False  # of work beside the steps: the steps still have to notice
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
    parser.add_argument("--every", type=float, default=0.1, help="CPU s between real cancellations")
    parser.add_argument("--top", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ct = options.ct
        if options.slices:
            from profile_stage import longer

            ct = Path(folder) / "longer.nii.gz"
            longer(options.ct, options.slices, ct)
        output = Path(folder) / "out"
        result = show_gaps(ct, options.liver, output, options.top)
        if options.every:
            shutil.rmtree(output)
            show_cancelled(ct, options.liver, result, output, options.every)


def staged(ct: Path, liver: str | None, cancel: Any) -> Any:
    """The result of the Stage that is cancelled."""
    from LiverFibrosisStagingLib import stage

    return stage(ct, liver, cancel=cancel, any_phase=True)


def show_gaps(ct: Path, liver: str | None, output: Path, top: int) -> Any:
    """Print the longest times between two questions; returns the result of the Stage."""
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
        result = staged(ct, liver, token)
        token.is_set()
        took = time.perf_counter() - begun
        result.save(output, report=True, cancel=token)
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
    saving = time.perf_counter() - begun - took
    print(f"Stage {took:.2f} s, saving {saving:.2f} s, {len(token.asked)} questions")
    return result


def show_cancelled(ct: Path, liver: str | None, result: Any, output: Path, every: float) -> None:
    """Cancel Stage and saving at many moments; print the time until each returned, by step."""
    jobs: dict[str, Callable[[Any], Any]] = {
        "Stage": lambda cancel: staged(ct, liver, cancel),
        "Saving": lambda cancel: result.save(output, report=True, cancel=cancel),
    }
    found: dict[str, list[tuple[float, float]]] = {}
    for job in jobs.values():
        moment = every
        while (late := cancelled(job, moment)) is not None:
            step, wall, cpu = late
            found.setdefault(step, []).append((wall, cpu))
            if output.exists():
                raise RuntimeError("Something was left behind.")
            moment += every
        shutil.rmtree(output, ignore_errors=True)
        print(f"{moment / every:.0f} moments")
    print(f"{'runs':>5} {'wall s':>7} {'CPU s':>7}  noticed in")
    for step, times in sorted(found.items(), key=lambda item: -max(c for _, c in item[1])):
        wall, cpu = map(max, zip(*times))
        print(f"{len(times):5d} {wall:7.3f} {cpu:7.3f}  {step}")


def cancelled(job: Callable[[Any], Any], moment: float) -> tuple[str, float, float] | None:
    """Cancel a job this many CPU seconds after its beginning: the function that noticed, wall and
    CPU seconds until the job returned; None if it was done before.
    """
    from LiverFibrosisStagingLib import Cancelled

    cancel, at, before = threading.Event(), [], set(threading.enumerate())
    begun, ended = time.process_time(), threading.Event()

    def set_token() -> None:
        while time.process_time() - begun < moment:
            if ended.wait(SAMPLING_SECONDS):
                return
        at.extend((time.perf_counter(), time.process_time()))
        cancel.set()

    threading.Thread(target=set_token).start()
    try:
        job(cancel)
    except Cancelled as error:
        wall, cpu = time.perf_counter() - at[0], time.process_time() - at[1]
        return traceback_place(error), wall, cpu
    finally:
        ended.set()
        for thread in set(threading.enumerate()) - before:  # such as one that still reads
            thread.join()
    return None


if __name__ == "__main__":
    main()
