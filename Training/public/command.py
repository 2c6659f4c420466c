"""Make the manifest of a cohort from its images and its clinical table, as downloaded.

    python Training/cohort.py COLLECTION --images FOLDER --table FILE -o manifest.csv
    python Training/cohort.py COLLECTION --how-to-download

Patients are recognised by the PatientID in the DICOM headers, whatever the folders are called.
Other files, such as NIfTI, belong to the patient whose code is in their name or that of their
folder. Each patient has one CT: of the first study that shows a liver, because the labels are from
before treatment, and in the portal-venous phase by the series description or, where that does not
tell, by the HU of liver and vessels, which may also refuse a description. DICOM segmentations of
that CT become masks/CODE.nii.gz (1 liver, 2 spleen). Beside the manifest, flow.csv, exclusions.csv
and flow_chart.png count everything that is not in it.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cases.manifest import counted
from common.parallel import in_processes
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.files import check_writable, write_folder
from LiverFibrosisStagingLib.stages import ANY_STAGE, RESEARCH_USE

from . import combining, hospital
from .choice import KEEP, MASK, Choice, Chosen
from .idc import COLLECTIONS, Collection, how_to_download
from .images import SCANS, SEGMENTATIONS, Images, Study, find_images
from .labels import Label
from .seg import Segmentation
from .tables import column_name
from .writing import (
    BESIDE,
    CTS,
    FLOW,
    PATIENTS,
    Exclusion,
    add_options,
    print_flow,
    relative,
    write_flow,
    write_image,
    write_manifest,
)

MASKS = "masks"  # folder beside the manifest
NOT_IN_TABLE = "CTs, but not in the clinical table"
NO_IMAGES = "in the clinical table, but no CT"
NO_STAGE = "no stage in the clinical table"


@dataclass(frozen=True)
class Command:
    """A collection on the command line.

    help: a phrase; about: the text of its --help. run returns the exit status and may raise
    StagingError.
    """

    help: str
    about: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="collection", metavar="COLLECTION", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=command.help,
            description=command.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.collection].run(options)
    except StagingError as refusal:
        print(refusal, file=sys.stderr)
    except OSError as error:  # of the images' folders
        print(f"{error.filename}: cannot be read ({error.strerror}).", file=sys.stderr)
    return 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the public collections."""
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="as downloaded from The Cancer Imaging Archive or Imaging Data Commons, or with "
        "NIfTI files",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="the clinical table")
    add_options(parser)
    parser.add_argument(
        "--tumour",
        choices=(KEEP, MASK),
        default=KEEP,
        help="keep the tumours of a segmentation in the liver's mask, as the shipped segmentation "
        "does, or take them out (default: keep); the column tumour_ml has their volume",
    )
    parser.add_argument(
        "--how-to-download", action="store_true", help="print the commands, and do nothing else"
    )


def run(name: str, options: argparse.Namespace) -> int:
    """Make the manifest of a public collection; returns the exit status. Raises StagingError."""
    collection = COLLECTIONS[name]
    if options.how_to_download:
        print(how_to_download(collection))
        return 0
    empty = [folder for folder in options.images or [] if not _has_content(folder)]
    missing = [f"--{name}" for name in ("images", "table") if getattr(options, name) is None]
    if empty or missing:
        what = (
            f"{empty[0]}: no such folder, or it is empty" if empty else f"{missing[0]} is missing"
        )
        raise StagingError(f"{what}; the collection is needed.\n\n{how_to_download(collection)}")
    if options.output.is_dir():
        raise StagingError(f"{options.output}: a folder; the name of a file is needed.")
    folder = options.output.absolute().parent
    for existing in (options.output, folder / MASKS, folder / CTS):
        if existing.exists() and not (folder / FLOW).exists():
            raise StagingError(
                f"{existing}: exists, and not from an earlier run; another folder is needed."
            )
    labels = {label.patient: label for label in collection.read(options.table)}
    check_writable(folder)
    images = find_images(options.images, labels, ours=(folder / MASKS, folder / CTS))
    patients = sorted({*labels, *images.studies, *images.segmentations})
    found: list[_Found] = []

    def write(partial: Path) -> None:
        choose = functools.partial(
            _of_patient, collection=name, tumour=options.tumour, partial=partial
        )
        work = [
            (
                each,
                labels.get(each),
                images.studies.get(each, []),
                images.segmentations.get(each, []),
            )
            for each in patients
        ]
        for each in in_processes(choose, work, "Choosing CTs", "patient", options.workers):
            for sentence in each.said:
                tqdm.write(sentence, file=sys.stderr)
            found.append(each)
        _write(options.output, partial, images, found)

    copies = [f"{part}/{patient}.nii.gz" for patient in labels for part in (MASKS, CTS)]
    write_folder(folder, [*copies, *BESIDE, options.output.name], write)
    _tell([each.row for each in found if each.row is not None])
    return 0


class _Found(NamedTuple):
    """What was found of a patient: the manifest's line, if any, and what is not used.

    used: number of segmentations in the mask. said: sentences for the screen.
    """

    row: dict[str, object] | None
    exclusions: list[Exclusion]
    used: int
    said: list[str]


def _of_patient(
    patient: str,
    label: Label | None,
    studies: Sequence[Study],
    masks: Sequence[Segmentation],
    collection: str,
    tumour: str,
    partial: Path,
) -> _Found:
    """Choose the CT of a patient, and write its mask. Raises StagingError.

    collection: its name on the command line. partial: folder in the manifest's folder, from which
    the files will be moved into that.
    """
    said: list[str] = []
    choice = Choice(tumour, partial.parent, said.append)
    why = _left_out(label, COLLECTIONS[collection], bool(studies))
    if why is not None:
        choice.leave_out(patient, studies, len(masks), why)
        return _Found(None, choice.exclusions, 0, said)
    chosen = choice.of_patient(patient, studies, masks)
    if chosen is None:
        return _Found(None, choice.exclusions, 0, said)
    row = _row(label, chosen, COLLECTIONS[collection], partial)
    return _Found(row, choice.exclusions, len(chosen.used), said)


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _left_out(label: Label | None, collection: Collection, has_ct: bool) -> str | None:
    """Why a patient is not in the manifest whatever the images show."""
    if label is None:
        return NOT_IN_TABLE
    if not has_ct:
        return NO_IMAGES
    return NO_STAGE if collection.staged and label.stages == ANY_STAGE else None


def _row(label: Label, chosen: Chosen, collection: Collection, partial: Path) -> dict[str, object]:
    """A line of the manifest; writes the mask, and the CT if `read_ct` cannot read it alone."""
    header, mask, source = chosen.scan.header, None, ""
    if chosen.scan.ct is None:
        ct = f"{CTS}/{label.patient}.nii.gz"
        write_image(chosen.image, partial / ct)
    else:
        ct = relative(chosen.scan.ct, partial.parent)
    if chosen.labels is not None:
        mask = f"{MASKS}/{label.patient}.nii.gz"
        write_image(chosen.labels, partial / mask)
        source = "DICOM segmentation"
        if chosen.unclear:
            source += " of several acquisitions"
    findings = {column_name(name): value for name, value in label.findings.items()}
    return {
        "patient": label.patient,
        "ct": ct,
        "stage": label.stages,
        "liver": mask,
        "age": None if header.age is None else int(header.age),
        "sex": header.sex,
        "phase": chosen.phase,
        "label": label.meaning,
        "site": collection.site(label.patient),
        "scanner": header.scanner,
        "kernel": header.kernel,
        "thickness": header.thickness,
        "mask": source,
        "tumour_ml": "" if chosen.tumour_ml is None else f"{chosen.tumour_ml:.1f}",
        **findings,
    }


def _write(output: Path, partial: Path, images: Images, found: Sequence[_Found]) -> None:
    """The manifest and the flow; prints the flow. Raises StagingError if no patient is left."""
    exclusions = [*(each for one in found for each in one.exclusions), *images.exclusions]
    rows = [each.row for each in found if each.row is not None]
    masks = sum(map(len, images.segmentations.values()))
    counts = {PATIENTS: len(found), SCANS: images.scans, SEGMENTATIONS: masks}
    used = sum(each.used for each in found)
    included = {PATIENTS: len(rows), SCANS: len(rows), SEGMENTATIONS: used}
    print_flow(counts, exclusions, included)
    if not rows:
        raise StagingError(f"{output}: no patient has both a label and a CT; nothing was written.")
    write_flow(partial, counts, exclusions, included, counted(row["stage"] for row in rows))
    write_manifest(partial / output.name, rows)


def _tell(rows: Sequence[dict[str, object]]) -> None:
    """Print what is in the manifest."""
    print(f"Stages: {counted(row['stage'] for row in rows)}.")
    if all(row["liver"] is None for row in rows):
        print("No masks: there is no segmentation of these CTs.")
    unknown = [row for row in rows if row["stage"] == ANY_STAGE]
    if unknown:
        print(f"Without a known stage (F0-F4): {len(unknown)}. {unknown[0]['label']}")
    print(RESEARCH_USE)


def _command(name: str) -> Command:
    return Command(
        f"{COLLECTIONS[name].name}, as downloaded",
        __doc__,
        add_arguments,
        functools.partial(run, name),
    )


# The collections by their names on the command line.
COMMANDS = {name: _command(name) for name in COLLECTIONS}
COMMANDS["hospital"] = Command(
    "your hospital: its images and a table of histologies",
    hospital.__doc__,
    hospital.add_arguments,
    hospital.run,
)
COMMANDS["combine"] = Command(
    "manifests of several cohorts, into one",
    combining.__doc__,
    combining.add_arguments,
    combining.run,
)
