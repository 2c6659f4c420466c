"""Put the manifests of several cohorts into one, for a training on all of them.

    python Training/cohort.py combine A/manifest.csv B/manifest.csv -o AB/manifest.csv

Columns that a manifest does not have are empty for its CTs; Ishak stages (--grades) become METAVIR
stages. A patient's code in two manifests is refused, because it may stand for two people.
"""

import argparse
from pathlib import Path

from cases.manifest import PARTS, Case, add_grades, read_manifest, size
from common.files import unfinished
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.files import check_writable
from LiverFibrosisStagingLib.stages import RESEARCH_USE

from .writing import relative, row_of, write_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the new manifest"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="PATIENT",
        help="codes to leave out, such as those of patients a network was trained on",
    )
    add_grades(parser)


def run(options: argparse.Namespace) -> int:
    """Write the manifest; returns the exit status. Raises StagingError."""
    if options.output.exists():
        raise StagingError(f"{options.output}: exists; a new name is needed.")
    folder = options.output.absolute().parent
    check_writable(folder)
    cohorts = {path: read_manifest(path, options.grades) for path in options.manifests}
    cases = _combined(cohorts)
    unknown = sorted(set(options.without) - {case.patient for case in cases})
    if unknown:
        raise StagingError(f"--without {', '.join(unknown)}: in no manifest; a code is needed.")
    kept = [case for case in cases if case.patient not in options.without]
    if not kept:
        raise StagingError(f"{options.output}: no patient is left; nothing was written.")
    folder.mkdir(parents=True, exist_ok=True)
    with unfinished(options.output) as file:
        write_manifest(file, [_row(case, folder) for case in kept])
    print(f"{options.output}: {size(kept)}, from {len(cohorts)} manifests. {RESEARCH_USE}")
    return 0


def _combined(cohorts: dict[Path, list[Case]]) -> list[Case]:
    """All cases; StagingError if a code or a CT is in two cohorts."""
    first: dict[object, Path] = {}
    for path, cases in cohorts.items():
        for key in {case.patient for case in cases} | {case.ct.resolve() for case in cases}:
            other = first.setdefault(key, path)
            if other != path:
                what = f"the CT {key.name}" if isinstance(key, Path) else f"the patient {key}"
                raise StagingError(
                    f"{path}: {what} is also in {other}; two patients need two codes, and one "
                    "patient's CTs belong in one manifest."
                )
    return [case for cases in cohorts.values() for case in cases]


def _row(case: Case, folder: Path) -> dict[str, object]:
    """A line as in the case's own manifest, with paths relative to the folder of the new one."""
    own = {part: getattr(case, part) for part in PARTS}
    return row_of(case, {part: path and relative(path, folder) for part, path in own.items()})
