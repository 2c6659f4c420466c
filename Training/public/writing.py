"""What `cohort.py` writes: the manifest, and beside it what was excluded, as tables and a chart."""

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from cases.manifest import COLUMNS, PARTS, REQUIRED, Case
from cases.report import flow_figure
from common.figures import save_figure
from common.tables import write_csv
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.itk_files import itk_path

FLOW, EXCLUSIONS, CHART = "flow.csv", "exclusions.csv", "flow_chart"
CTS = "cts"  # folder of copies, beside the manifest
BESIDE = (EXCLUSIONS, f"{CHART}.png", f"{CHART}.pdf", FLOW)  # files that `write_flow` writes
PATIENTS = "patients"


@dataclass(frozen=True)
class Exclusion:
    """Something that is not in the manifest.

    patient: code, "" if not known. unit: what is excluded, in the plural, such as PATIENTS.
    reason: a phrase without names and paths, because it is written to files.
    """

    patient: str
    unit: str
    reason: str
    count: int = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every cohort."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("manifest.csv"),
        metavar="FILE",
        help="the manifest (default: manifest.csv)",
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        default=-1,
        metavar="N",
        help="processes that examine CTs (default: one per core)",
    )


def _workers(text: str) -> int:
    if text != "-1" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text}: 1 or more, or -1 for one per core, is needed")
    return int(text)


def write_manifest(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows, by names of columns, as a manifest that `cases.manifest.read_manifest` reads.

    None is an empty cell. Columns without any value are left out, unless they are required.
    """
    given = {name: None for row in rows for name, value in row.items() if value not in (None, "")}
    names = [name for name in COLUMNS if name in REQUIRED or name in given]
    names += [name for name in given if name not in COLUMNS]
    write_csv(path, [names, *([_cell(row.get(name)) for name in names] for row in rows)])


def row_of(case: Case, paths: Mapping[str, str | None]) -> dict[str, object]:
    """The line of a case, for `write_manifest`; paths: of CT, liver and spleen (PARTS)."""
    row = {name: getattr(case, name, None) for name in COLUMNS}
    return {**row, **{part: paths.get(part) for part in PARTS}, "stage": case.stages, **case.others}


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def write_image(image: sitk.Image, path: Path) -> None:
    """Write a CT or mask without any text of its header. Raises StagingError."""
    image = sitk.Image(image)
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    path.parent.mkdir(exist_ok=True)
    try:
        sitk.WriteImage(image, itk_path(path), useCompression=True)
    except RuntimeError:  # ITK does not say why
        raise StagingError(
            f"{path.name}: the image cannot be written; a folder with enough space is needed."
        ) from None


def relative(path: Path, folder: Path) -> str:
    """A path relative to a folder; the path itself on another drive."""
    try:
        return Path(os.path.relpath(path.absolute(), folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def print_flow(
    found: Mapping[str, int], exclusions: Sequence[Exclusion], included: Mapping[str, int]
) -> None:
    """Print how many were found, and why how many are excluded; see `write_flow`."""
    for unit, count in found.items():
        print(f"{count} {unit}, {included[unit]} in the manifest.")
        for why, number in by_reason(exclusions, unit).items():
            print(f"  {number} excluded: {why}")


def write_flow(
    folder: Path,
    found: Mapping[str, int],
    exclusions: Sequence[Exclusion],
    included: Mapping[str, int],
    stages: str = "",
    charted: str = PATIENTS,
) -> None:
    """Write flow.csv, exclusions.csv and flow_chart.png and .pdf.

    found, included: numbers by unit. Reasons are in the order of `exclusions`, in which they were
    applied. stages: the last line of the chart. charted: the unit that the chart counts.
    """
    lines: list[list[object]] = [["unit", "step", "count"]]
    for unit, count in found.items():
        lines.append([unit, "found", count])
        lines += [[unit, f"excluded: {why}", n] for why, n in by_reason(exclusions, unit).items()]
        lines.append([unit, "included", included[unit]])
    others = dict.fromkeys(each.unit for each in exclusions if each.unit not in found)
    for unit in others:
        lines += [[unit, f"not used: {why}", n] for why, n in by_reason(exclusions, unit).items()]
    rows = [[each.patient, each.unit, each.reason, each.count] for each in exclusions]
    write_csv(folder / FLOW, lines)
    write_csv(folder / EXCLUSIONS, [["patient", "unit", "reason", "count"], *rows])
    top = f"In table or images\n{found[charted]} {charted}"
    bottom = f"In the manifest\n{included[charted]} {charted}\n{stages}".rstrip()
    reasons = by_reason(exclusions, charted)
    title = f"Excluded: {sum(reasons.values())} {charted}"
    save_figure(flow_figure(top, bottom, title, reasons), folder, CHART)


def by_reason(exclusions: Iterable[Exclusion], unit: str) -> Counter[str]:
    """Reason -> number of excluded ones, in the order of the exclusions."""
    counts: Counter[str] = Counter()
    for each in exclusions:
        if each.unit == unit:
            counts[each.reason] += each.count
    return counts
