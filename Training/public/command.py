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
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
from tqdm import tqdm

from common.files import unfinished
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.files import check_writable
from LiverFibrosisStagingLib.imaging.itk_files import itk_path
from LiverFibrosisStagingLib.imaging.organs import write_labels
from LiverFibrosisStagingLib.stages import ANY_STAGE, RESEARCH_USE, StageRange

from . import combining, hospital
from .choice import KEEP, MASK, PHASE_NAMES, Choice, Chosen
from .idc import COLLECTIONS, Collection, how_to_download
from .images import SCANS, SEGMENTATIONS, Images, find_images
from .labels import Label
from .tables import column_name
from .writing import PATIENTS, by_reason, write_flow, write_manifest

MASKS, CTS = "masks", "cts"  # folders beside the manifest
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
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("manifest.csv"),
        metavar="FILE",
        help="the manifest (default: manifest.csv)",
    )
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


def run(collection: Collection, options: argparse.Namespace) -> int:
    """Make the manifest of a public collection; returns the exit status."""
    if options.how_to_download:
        print(how_to_download(collection))
        return 0
    empty = [folder for folder in options.images or [] if not _has_content(folder)]
    if empty or not options.images or options.table is None:
        what = f"{empty[0]}: no such folder, or it is empty" if empty else None
        what = what or f"{'--table' if options.images else '--images'} is missing"
        raise StagingError(f"{what}; the collection is needed.\n\n{how_to_download(collection)}")
    labels = {label.patient: label for label in collection.read(options.table)}
    folder = options.output.absolute().parent
    check_writable(folder)
    images = find_images(options.images, labels, ours=(folder / MASKS, folder / CTS))
    choice = Choice(options.tumour, lambda sentence: tqdm.write(sentence, file=sys.stderr))
    rows, used = [], 0
    patients = sorted({*labels, *images.studies, *images.segmentations})
    for patient in tqdm(patients, "Choosing CTs", unit="patient", disable=None):
        label = labels.get(patient)
        studies, masks = images.studies.get(patient, []), images.segmentations.get(patient, [])
        why = _left_out(label, collection, bool(studies))
        if why is not None:
            choice.leave_out(patient, studies, len(masks), why)
            continue
        chosen = choice.of_patient(patient, studies, masks)
        if chosen is not None:
            rows.append(_row(label, chosen, collection, folder))
            used += len(chosen.used)
    _write(options.output, rows, patients, images, choice, used)
    return 0


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _left_out(label: Label | None, collection: Collection, has_ct: bool) -> str | None:
    """Why a patient is not in the manifest whatever the images show."""
    if label is None:
        return NOT_IN_TABLE
    if not has_ct:
        return NO_IMAGES
    return NO_STAGE if collection.staged and label.stages == ANY_STAGE else None


def _row(label: Label, chosen: Chosen, collection: Collection, folder: Path) -> dict[str, object]:
    """A line of the manifest; writes what it refers to into the manifest's folder."""
    scan, ct, mask, source = chosen.scan, chosen.scan.ct, None, ""
    if ct is None:
        ct = folder / CTS / f"{label.patient}.nii.gz"
        _write_ct(chosen.image, ct)
    if chosen.labels is not None:
        mask = folder / MASKS / f"{label.patient}.nii.gz"
        write_labels(chosen.labels, mask)
        source = "DICOM segmentation"
        if chosen.unclear:
            source += " of several acquisitions"
    findings = {column_name(name): value for name, value in label.findings.items()}
    return {
        "patient": label.patient,
        "ct": ct,
        "stage": str(label.stages),
        "liver": mask,
        "age": scan.age,
        "sex": scan.sex,
        "phase": PHASE_NAMES[chosen.phase],
        "label": label.meaning,
        "site": collection.site(label.patient),
        "scanner": scan.scanner,
        "kernel": scan.kernel,
        "thickness": scan.thickness,
        "mask": source,
        "tumour_ml": "" if chosen.tumour_ml is None else f"{chosen.tumour_ml:.1f}",
        **findings,
    }


def _write_ct(image: sitk.Image, path: Path) -> None:
    image = sitk.Image(image)
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    path.parent.mkdir(exist_ok=True)
    with unfinished(path) as partial:
        sitk.WriteImage(image, itk_path(partial), useCompression=True)


def _write(
    output: Path,
    rows: Sequence[dict[str, object]],
    patients: Sequence[str],
    images: Images,
    choice: Choice,
    used: int,
) -> None:
    """The manifest and the flow; prints a summary."""
    exclusions = [*choice.exclusions, *images.exclusions]
    masks = sum(map(len, images.segmentations.values()))
    found = {PATIENTS: len(patients), SCANS: images.scans, SEGMENTATIONS: masks}
    included = {PATIENTS: len(rows), SCANS: len(rows), SEGMENTATIONS: used}
    stages = Counter(str(row["stage"]) for row in rows)
    ordered = sorted(stages, key=lambda text: _ends(StageRange.of(text)))
    counted = ", ".join(f"{stage} {stages[stage]}" for stage in ordered)
    for unit, count in found.items():
        print(f"{count} {unit}, {included[unit]} in the manifest.")
        for why, number in by_reason(exclusions, unit).items():
            print(f"  {number} excluded: {why}")
    if not rows:
        raise StagingError(f"{output}: no patient has both a label and a CT; nothing was written.")
    write_flow(output.absolute().parent, found, exclusions, included, counted)
    write_manifest(output, rows)
    print(f"Stages: {counted}.")
    if all(row["liver"] is None for row in rows):
        print("No masks: there is no segmentation of these CTs.")
    unknown = [row for row in rows if StageRange.of(str(row["stage"])) == ANY_STAGE]
    if unknown:
        print(f"Without a known stage (F0-F4): {len(unknown)}. {unknown[0]['label']}")
    print(RESEARCH_USE)


def _ends(stages: StageRange) -> tuple[int, int]:
    return stages.lowest, stages.highest


def _command(collection: Collection) -> Command:
    return Command(
        f"{collection.name}, as downloaded",
        __doc__,
        add_arguments,
        lambda options: run(collection, options),
    )


# The collections by their names on the command line.
COMMANDS = {name: _command(collection) for name, collection in COLLECTIONS.items()}
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
