"""Damaged files by a fixed seed, and a runner that sees whether a reader reads or refuses them.

A `Target` is a valid file and its reader. `hunt` damages the file in every way that disks,
transfers and other software do, and runs the reader in a process of its own, so that a crash or a
hang is a finding like any other. A mutant depends on the seed and its number alone: the number in a
finding rebuilds it (`mutant`).
"""

import math
import multiprocessing
import os
import random
import re
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from LiverFibrosisStagingLib.errors import StagingError

HANGS_AFTER_S = 60.0  # for one mutant of a tiny file
MAX_GROWTH_MB = 700.0  # of the process's peak memory, for one mutant of a tiny file

_BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01", b"\n", b" ", b'"')
_WORDS = (
    *(b"0", b"-1", b"1", b"2", b"3", b"16", b"17", b"255", b"65536", b"2147483648"),
    *(b"4294967296", b"99999999999999999999", b"0.5", b"1e-30", b"1e30", b"1e400", b"nan", b"-inf"),
    *(b"", b"none", b"True", b"LIST", b"%03d", b"?", b"x" * 3000, b"\xc3\x28", b"..", b"(1,0,0)"),
)
_INTEGERS = (0, 1, -1, 2, 7, 8, 127, 255, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31), 2**63 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e9, 1e30, math.nan, math.inf, -math.inf)


@dataclass(frozen=True)
class Target:
    """A valid file, its reader and the position of its header.

    read: takes a damaged version; raises StagingError for a refusal; a function at the top of a
    module, or a partial of one. head: bytes in which most of the damage is done. fields: offset and
    struct format (with its byte order) of each number of a binary header.
    """

    data: bytes
    read: Callable[[bytes], object]
    head: int = 400
    fields: tuple[tuple[int, str], ...] = ()


@dataclass
class Tally:
    """Outcome for the mutants; findings: those neither read nor refused with a message."""

    read: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)
    sentences: Counter[str] = field(default_factory=Counter)


def mutant(target: Target, seed: int, number: int) -> bytes:
    """The file with one to three kinds of damage."""
    rng = random.Random(f"{seed}/{number}")
    data = bytearray(target.data)
    kinds = [_flip, _overwrite, _cut, _insert, _delete, _repeat, _word, _word]
    kinds += [_number] * 3 if target.fields else [_overwrite]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(kinds)(data, target, rng)
    return bytes(data)


def hunt(target: Target, seed: int, count: int, seconds: float = math.inf) -> Tally:
    """Feed `count` mutants to the reader, or as many as it takes in `seconds`."""
    target.read(target.data)  # the sound file has to be read
    tally, number, end = Tally(), 0, time.monotonic() + seconds
    while number < count and time.monotonic() < end:
        number = _hunt_in_one_process(target, seed, number, count, end, tally)
    return tally


def _hunt_in_one_process(
    target: Target, seed: int, number: int, count: int, end: float, tally: Tally
) -> int:
    """Until all is done or the process dies; returns the number to go on with."""
    context = multiprocessing.get_context("spawn")  # ITK's threads do not survive a fork
    here, there = context.Pipe(duplex=False)
    child = context.Process(
        target=_read_all, args=(target, seed, range(number, count), there), daemon=True
    )
    child.start()
    there.close()
    try:
        while number < count and time.monotonic() < end:
            if not here.poll(HANGS_AFTER_S):
                tally.findings.append(f"mutant {number}: no answer in {HANGS_AFTER_S:g} s")
                return number + 1
            try:
                kind, text = here.recv()
            except EOFError:
                child.join()
                tally.findings.append(f"mutant {number}: crash, exit code {child.exitcode}")
                return number + 1
            if kind == "read":
                tally.read += 1
            elif kind == "refused":
                tally.refused += 1
                tally.sentences[re.sub(r"[-+.\d]+", "#", text)] += 1
            else:
                tally.findings.append(f"mutant {number}: {text}")
            number += 1
        return number
    finally:
        child.kill()
        child.join()
        here.close()


def _read_all(target: Target, seed: int, numbers: range, answers: object) -> None:
    """In the child process: read the mutants one by one and report the outcome of each."""
    warnings.simplefilter("error")
    with open(os.devnull, "w") as nowhere:  # native libraries complain there
        os.dup2(nowhere.fileno(), 2)
    target.read(target.data)  # warms up, so that what grows later is a mutant's
    for number in numbers:
        before = _peak_mb()
        answer = _outcome(target.read, mutant(target, seed, number))
        grown = _peak_mb() - before
        if grown > MAX_GROWTH_MB:
            answer = ("finding", f"{grown:.0f} MB of memory for {len(target.data)} bytes")
        answers.send(answer)


def _outcome(read: Callable[[bytes], object], data: bytes) -> tuple[str, str]:
    try:
        read(data)
    except StagingError as refusal:
        text = str(refusal)
        if "\n" in text or not text.endswith(".") or len(text) > 400:
            return "finding", f"no sentence: {text!r}"
        if isinstance(refusal.__cause__, MemoryError):
            return "finding", f"memory ran out: {text}"
        return "refused", text
    except BaseException as error:
        return "finding", f"{type(error).__name__}: {error}"
    return "read", ""


def _peak_mb() -> float:
    """Peak memory of this process; 0 if not available (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


# Kinds of damage; each changes `data`.


def _place(data: bytearray, target: Target, rng: random.Random) -> int:
    within = target.head if rng.random() < 0.8 else len(data)
    return rng.randrange(max(1, min(within, len(data))))


def _flip(data: bytearray, target: Target, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[_place(data, target, rng)] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, target: Target, rng: random.Random) -> None:
    place, width = _place(data, target, rng), rng.choice((1, 1, 2, 4, 8, 32))
    new = rng.randbytes(width) if rng.random() < 0.5 else rng.choice(_BYTES) * width
    data[place : place + width] = new


def _cut(data: bytearray, target: Target, rng: random.Random) -> None:
    del data[_place(data, target, rng) :]


def _insert(data: bytearray, target: Target, rng: random.Random) -> None:
    place, width = _place(data, target, rng), rng.choice((1, 2, 4, 100))
    data[place:place] = rng.randbytes(width) if rng.random() < 0.5 else rng.choice(_BYTES) * width


def _delete(data: bytearray, target: Target, rng: random.Random) -> None:
    place = _place(data, target, rng)
    del data[place : place + rng.choice((1, 2, 4, 100))]


def _repeat(data: bytearray, target: Target, rng: random.Random) -> None:
    place, width = _place(data, target, rng), rng.choice((2, 16, 100))
    data[place:place] = data[place : place + width]


def _word(data: bytearray, target: Target, rng: random.Random) -> None:
    """Another word in a text header, most often a number or a name."""
    words = list(re.finditer(rb"[-+.\w]+", bytes(data[: target.head])))
    if words:
        word = rng.choice(words)
        data[word.start() : word.end()] = rng.choice(_WORDS)


def _number(data: bytearray, target: Target, rng: random.Random) -> None:
    """A special value in a field of a binary header."""
    offset, form = rng.choice(target.fields)
    values = _FLOATS if form[-1] in "fd" else _INTEGERS
    width = struct.calcsize(form)
    if form[-1] in "fd":
        new = struct.pack(form, rng.choice(values))
    else:
        order = "big" if form[0] == ">" else "little"
        new = (rng.choice(values) % 2 ** (8 * width)).to_bytes(width, order)
    data[offset : offset + width] = new
