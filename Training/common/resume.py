"""What may be gone on with: a folder takes one run, and what is held out was never learned from.

Cases are told by the content of their files, so that neither another patient under the same name
nor the same CT under another name passes.
"""

import glob
import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx

LEARNED_KEY = "learned_from"  # in an exported file's metadata and in a checkpoint
HEADERS = (".mhd", ".nhdr")
UNKNOWN = "unknown"  # stands among digests for CTs of which nothing is known


class RunError(StagingError):
    """A run that cannot go on; the sentence says why."""


def digest(path: Path) -> str:
    """16 letters of the SHA-256 of a file's content, or of a folder's files whatever their names.

    Raises StagingError where it cannot be read.
    """
    try:
        files = sorted(_files(path))
        stats = [(file, file.stat()) for file in files if not file.is_dir()]
        parts = [_of_file(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    except OSError as error:
        raise StagingError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()[:16]


def _files(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return path.rglob("*")
    # A header's voxels lie in a file beside it, of the same stem.
    return path.parent.glob(f"{glob.escape(path.stem)}.*") if path.suffix in HEADERS else [path]


@cache
def _of_file(path: Path, size: int, changed: int) -> bytes:
    """The digest, computed once in a process while size and time of change stay as they are."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.digest()


def keep(path: Path, plan: Mapping[str, Any], made: Iterable[Path] = ()) -> None:
    """Write the plan of a run as JSON, or see that the run that is there follows the same.

    made: files that a run under this plan leaves. Raises RunError where the plan that is there
    differs, or where there are such files without a plan.
    """
    text = json.dumps(plan, indent=1) + "\n"
    advice = "Choose another folder, or delete that one."
    if not path.exists():
        orphan = next((file for file in made if file.exists()), None)
        if orphan is not None:
            raise RunError(
                f"{path.parent} holds {orphan.relative_to(path.parent)} but no {path.name}, which "
                f"says what it was made from. {advice}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
        return
    try:
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        changed = [key for key in now if now[key] != before.get(key)]
    except (OSError, ValueError, AttributeError):
        raise RunError(f"{path} cannot be read as the plan of a run. {advice}") from None
    if changed:
        *most, last = changed
        listed = f"{', '.join(most)} and {last}" if most else last
        raise RunError(
            f"{path.parent} holds another run: its {listed} "
            f"{'differ' if most or last.endswith('s') else 'differs'}. {advice}"
        )


def learned_entry(digests: Collection[str]) -> dict[str, str]:
    """The entry of an exported file's metadata that names the CTs it has learned from."""
    return {LEARNED_KEY: json.dumps(sorted(digests))}


def learned_from(file: Path) -> frozenset[str]:
    """Digests of the CTs that a checkpoint.pt or an exported model has learned from.

    UNKNOWN is among them where the file, or one that it started from, does not say. Raises
    StagingError where the file is neither.
    """
    if not is_zipfile(file):  # as PyTorch's checkpoints are
        text = read_onnx(file).metadata.get(LEARNED_KEY, json.dumps([UNKNOWN]))
        try:
            return frozenset(json.loads(text))
        except (ValueError, TypeError):
            raise StagingError(f"{file}: its metadata {LEARNED_KEY} is no list.") from None
    import torch  # takes seconds, which those who only keep a plan need not wait

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return frozenset(state.get(LEARNED_KEY, [UNKNOWN]))
    except Exception:  # of a damaged file PyTorch raises what its parts raise
        raise StagingError(f"{file}: this is no checkpoint of a training.") from None


def check_unseen(file: Path, held: Mapping[str, Path]) -> frozenset[str]:
    """What a file has learned from, where that is none of the cases held out; else RunError.

    held: case name -> CT. Where the file does not say all, standard error does.
    """
    learned = learned_from(file)
    known = [name for name, ct in held.items() if digest(ct) in learned]
    if known:
        shown = ", ".join(known[:5]) + (" ..." if len(known) > 5 else "")
        raise RunError(
            f"{file}: it has learned from {shown}, to be tested on; a file that has not is needed."
        )
    if held and UNKNOWN in learned:
        print(
            f"{file} does not name all CTs that it has learned from: make sure that none of those "
            "to be tested on was among them.",
            file=sys.stderr,
        )
    return learned
