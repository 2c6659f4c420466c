"""Checks before a run is resumed or a network is tested.

A folder holds one run, and no network is tested on a CT that it was trained on. Cases are
identified by the content of their files, not by their names: another patient under the same name
and the same CT under another name are both detected. The voxels are compared as well, so that a CT
is recognised as DICOM and as NIfTI.
"""

import glob
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import SimpleITK as sitk

from common.files import write_text
from LiverFibrosisStagingLib import StagingError, read_ct
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx
from LiverFibrosisStagingLib.imaging.dicom_files import files_of, is_dicom
from LiverFibrosisStagingLib.imaging.dicom_series import ranked_series
from LiverFibrosisStagingLib.imaging.grid import reorient_to_lps
from LiverFibrosisStagingLib.imaging.masks import file_and_labels

TRAINING_CTS_KEY = "learned_from"  # in an exported file's metadata and in a checkpoint
HEADERS = (".mhd", ".nhdr")
UNKNOWN = "unknown"  # among the digests: the network was also trained on unknown CTs
# Readers differ in what they set outside of the scanner's field of view.
HU_RANGE = (-1000, 3000)


class RunError(StagingError):
    """A run that is refused; the message gives the reason."""


def digest(path: Path) -> str:
    """First 16 digits of the SHA-256 of a file, or of a folder's files regardless of their names.

    One DICOM file of a CT stands for all slices that `read_ct` reads with it. Raises StagingError
    if it cannot be read.
    """
    try:
        files = sorted(_files(path))
        stats = [(file, file.stat()) for file in files if not file.is_dir()]
        parts = [_of_file(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    except OSError as error:
        raise StagingError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()[:16]


def digest_of_mask(mask: str | Path) -> str:
    """`digest` of a mask's file, with its labels: FILE, FILE:LABEL or FILE:LABEL+LABEL."""
    file, labels = file_and_labels(mask)
    return ":".join([digest(file), *(["+".join(map(str, labels))] if labels else [])])


def _files(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return path.rglob("*")
    if is_dicom(path):
        with os.scandir(path.parent) as beside:
            changed = sorted(
                (file.name, file.stat(follow_symlinks=False).st_mtime_ns) for file in beside
            )
        return _stacks_of(path.parent, tuple(changed)).get(path, [path])
    # A header's voxels are in a file beside it with the same stem.
    return path.parent.glob(f"{glob.escape(path.stem)}.*") if path.suffix in HEADERS else [path]


@cache
def _stacks_of(folder: Path, files: tuple[tuple[str, int], ...]) -> dict[Path, list[Path]]:
    """DICOM file -> the files of its stack; files: the folder's, with their times of change."""
    visible = [folder / name for name, _ in files if not name.startswith(".")]
    stacks = [[one.path for one in each.slices] for each in ranked_series(files_of(visible).slices)]
    return {file: stack for stack in stacks for file in stack}


@cache
def _of_file(path: Path, size: int, changed: int) -> bytes:
    """SHA-256 of a file; recomputed in a process only if its size or modification time changes."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.digest()


def digests(ct: Path) -> frozenset[str]:
    """By what a CT is recognised: `digest` of its files and `voxel_digest`."""
    return frozenset({digest(ct), voxel_digest(ct)})


def voxel_digest(ct: Path) -> str:
    """First 16 digits of the SHA-256 of a CT's voxels, whatever the file's format.

    The HU are rounded, limited to HU_RANGE, and taken in the order of the patient's axes (left,
    back, head). Two phases of an examination differ, as does a CT that was cropped or resampled.
    Raises StagingError if the CT cannot be read.
    """
    return _of_voxels(ct, digest(ct))


@cache
def _of_voxels(ct: Path, _: str) -> str:
    return digest_of_voxels(read_ct(ct))


def digest_of_voxels(ct: sitk.Image) -> str:
    """`voxel_digest` of a CT that was read."""
    voxels = sitk.GetArrayFromImage(reorient_to_lps(ct))
    hu = np.clip(np.rint(voxels), *HU_RANGE).astype("<i2")
    return hashlib.sha256(repr(hu.shape).encode() + hu.tobytes()).hexdigest()[:16]


def patient_digest(code: str) -> str:
    """Digest of the code by which a public collection names a patient, such as "HCC_002".

    Only for such codes, in the list of a published network: other cohorts may have the same code
    for another patient, and a hospital's numbers can be guessed from their digests.
    """
    plain = "".join(letter for letter in code.casefold() if letter.isalnum())
    return hashlib.sha256(f"patient {plain}".encode()).hexdigest()[:16]


def check_plan(
    path: Path,
    plan: Mapping[str, Any],
    outputs: Iterable[Path] = (),
    growing: Collection[str] = (),
) -> None:
    """Write the plan of a new run as JSON, or check that a run to be resumed has the same plan.

    outputs: files that such a run writes. growing: entries (a number, or a list of numbers) that
    may be larger than before, which extends the run. Raises RunError if the existing plan differs
    otherwise, or if there are outputs without a plan.
    """
    text = json.dumps(plan, indent=1) + "\n"
    advice = "Choose another folder, or delete this one."
    if not path.exists():
        orphan = next((file for file in outputs if file.exists()), None)
        if orphan is not None:
            raise RunError(
                f"{path.parent} contains {orphan.relative_to(path.parent)} but no {path.name} with "
                f"its inputs. {advice}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        return
    try:
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        changed = [key for key in now if now[key] != before.get(key)]
    except (OSError, ValueError, AttributeError):
        raise RunError(f"{path} cannot be read as the plan of a run. {advice}") from None
    if changed and all(key in growing and _grown(before.get(key), now[key]) for key in changed):
        write_text(path, text)
    elif changed:
        *most, last = changed
        listed = f"{', '.join(most)} and {last}" if most else last
        raise RunError(
            f"{path.parent} contains another run: its {listed} "
            f"{'differ' if most or last.endswith('s') else 'differs'}. {advice}"
            + (f" A run can be extended: {' and '.join(growing)} may grow." if growing else "")
        )


def _grown(before: Any, now: Any) -> bool:
    """Whether no number is smaller than before."""
    if isinstance(now, list):
        return (
            isinstance(before, list) and len(before) == len(now) and all(map(_grown, before, now))
        )
    return isinstance(before, int) and before <= now


def training_entry(digests: Collection[str]) -> dict[str, str]:
    """The metadata entry of an exported file that lists the CTs the network was trained on."""
    return {TRAINING_CTS_KEY: json.dumps(sorted(digests))}


def training_cts(file: Path) -> frozenset[str]:
    """Digests of the CTs that the network of a checkpoint.pt or an exported model was trained on.

    They include UNKNOWN if the file, or one that its training started from, does not list its CTs.
    Raises StagingError if the file is neither.
    """
    if not is_zipfile(file):  # PyTorch's checkpoints are ZIP archives
        text = read_onnx(file).metadata.get(TRAINING_CTS_KEY, json.dumps([UNKNOWN]))
        try:
            return frozenset(json.loads(text))
        except (ValueError, TypeError):
            raise StagingError(
                f"{file}: its metadata {TRAINING_CTS_KEY} is damaged; a JSON list is needed."
            ) from None
    import torch  # takes seconds to import, and most commands do not need it

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return frozenset(state.get(TRAINING_CTS_KEY, [UNKNOWN]))
    except Exception:  # torch.load raises errors of many types for damaged files
        raise StagingError(
            f"{file}: it is not a checkpoint; a checkpoint.pt or an exported model is needed."
        ) from None


def check_not_trained_on(file: Path, test_cts: Mapping[str, Path]) -> frozenset[str]:
    """`training_cts` of a file; RunError if any of them is to be tested on.

    test_cts: case name -> CT; a case is also recognised by its name, if the file lists the patients
    of a public collection. Prints a warning to standard error if the file does not list all CTs.
    """
    training = training_cts(file)
    listed = training != {UNKNOWN}
    refuse_known(file, training, {n: digests(ct) for n, ct in test_cts.items() if listed})
    if test_cts:
        warn_of_unknown(file, training)
    return training


def refuse_known(
    file: Path,
    training: Collection[str],
    cases: Mapping[str, Collection[str]],
    tested: str = "test cases",
) -> None:
    """RunError if a case is among what the network of a file was trained on (`training_cts`).

    cases: case name -> digests of its CT. tested: what the cases are, for the message.
    """
    known = [
        name
        for name, found in cases.items()
        if patient_digest(name) in training or not set(training).isdisjoint(found)
    ]
    if known:
        shown = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
        raise RunError(
            f"{file}: the network was trained on {tested} ({shown}); a network trained without "
            "them is needed, or a cohort without these patients."
        )


def warn_of_unknown(file: Path, training: Collection[str]) -> None:
    """Print a warning to standard error if not all CTs of the training are known."""
    if UNKNOWN in training:
        print(
            f"{file}: it does not list all CTs that the network was trained on; make sure that no "
            "test case is among them.",
            file=sys.stderr,
        )
