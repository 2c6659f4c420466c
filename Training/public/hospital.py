"""The cohort of a hospital: its images, its table of histologies, and a manifest without names.

    python Training/cohort.py hospital --images FOLDER --table FILE.csv -o manifest.csv

Training/docs/hospital.md describes the table, the pairing and what is written.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cases.manifest import PARTS, Case, Criteria, counted
from common.parallel import in_processes
from common.tables import TableError
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.files import check_writable, write_folder
from LiverFibrosisStagingLib.imaging.checks import check_ct
from LiverFibrosisStagingLib.stages import RESEARCH_USE

from .examination import UNREADABLE, examined
from .histology import SCORES
from .hospital_table import COLUMNS as FIELDS
from .hospital_table import FREE_TEXT, Histology, by_line, named_columns, read_histologies
from .identity import path_tells, text_tells
from .matching import Index, with_zeros
from .pairing import Pair, Pairing, disagreements, in_order, pair
from .pseudonyms import WARNING, check_place, codes_of, read_key, write_key
from .studies import Study, images_of, read_studies
from .writing import (
    BESIDE,
    CTS,
    FLOW,
    Exclusion,
    add_options,
    print_flow,
    relative,
    row_of,
    write_flow,
    write_image,
    write_manifest,
)

STUDIES, HISTOLOGIES = "studies", "histologies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a hospital's cohort."""
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="the hospital's images"
    )
    parser.add_argument(
        "--table", type=Path, required=True, metavar="FILE", help="histologies, CSV or Excel"
    )
    add_options(parser)
    parser.add_argument(
        "--score",
        choices=SCORES,
        help="scoring system of the histologies, for rows that the column score leaves empty",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help=f"name of a column, for {', '.join(FIELDS)}; FIELD= leaves it out; may be repeated",
    )
    parser.add_argument(
        "--date-format", metavar="FORMAT", help="of the table's dates, such as %%d/%%m/%%Y"
    )
    parser.add_argument(
        "--days",
        type=int,
        default=Criteria.max_days,
        help="most days between CT and histology (default: %(default)s)",
    )
    parser.add_argument(
        "--all-cts",
        action="store_true",
        help="keep every CT within these days, not only the nearest to each histology",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help=f"write codes and patients to a CSV file, which {WARNING}; codes that it already has "
        "are used again",
    )


def run(options: argparse.Namespace) -> int:
    """Make the manifest; returns the exit status. Raises StagingError."""
    images, manifest = options.images, options.output
    folder = manifest.absolute().parent
    if not images.is_dir():
        raise StagingError(f"{images}: no such folder; that of the images is needed.")
    if options.days < 0:
        raise StagingError(f"--days is {options.days}; 0 or more is needed.")
    for existing in (manifest, folder / CTS, folder / FLOW):
        if existing.exists():
            raise StagingError(f"{existing}: exists; a new name or another folder is needed.")
    if options.key is not None:
        check_place(options.key, folder)
        check_writable(options.key.absolute().parent)
    known = {} if options.key is None else read_key(options.key)
    check_writable(folder)

    score = None if options.score is None else SCORES[options.score]
    histologies = read_histologies(
        options.table, named_columns(options.column), score, options.date_format
    )
    studies = read_studies(
        images,
        {each.patient for each in histologies} - {""},
        {each.accession for each in histologies} - {""},
    )
    histologies, completed, problems = with_zeros(histologies, studies)
    problems += disagreements(histologies, studies)
    if problems := [*problems, *_telling_texts(histologies, studies)]:
        raise TableError(options.table, by_line(problems))
    criteria = Criteria(max_days=options.days)
    pairing = _paired(histologies, studies, criteria, options.all_cts, folder, options.workers)
    codes = codes_of((each.patient for each in pairing.pairs), known)
    cohort = _Cohort(pairing, criteria, codes)
    _refuse_empty(cohort)

    def write(partial: Path) -> None:
        written = cohort.written(folder, partial)
        write_manifest(partial / manifest.name, [row_of(*each) for each in written])
        line = f"{cohort.patients} patients\n{cohort.stages}"
        write_flow(partial, *cohort.flow(), line, charted=STUDIES)
        if options.key is not None:
            write_key(options.key, cohort.codes)

    names = [f"{CTS}/{name}" for name in cohort.files()]
    write_folder(folder, [*names, *BESIDE, manifest.name], write)
    _tell(cohort, manifest, options.key)
    if completed:
        print(
            f"{completed} numbers of the table lack leading zeros; they were completed as in the "
            "headers of the CTs."
        )
    return 0


@dataclass
class _Cohort:
    """Pairs with the codes of their patients, in the order of the manifest.

    in_place: number of CTs of which the manifest has the images' own folder, and not a copy.
    """

    pairing: Pairing
    criteria: Criteria
    codes: dict[str, str]
    in_place: int = 0

    def __post_init__(self) -> None:
        self.pairing.pairs.sort(key=lambda each: (self.codes[each.patient], each.order))

    @property
    def patients(self) -> int:
        """Number of those in the manifest."""
        return len({each.patient for each in self.pairing.pairs})

    @property
    def stages(self) -> str:
        """Number of CTs by stage or range."""
        return counted(each.case.stages for each in self.pairing.pairs)

    def named(self) -> Iterator[tuple[str, Pair]]:
        """A name for the files of each pair: the code, with -2 for the second CT."""
        scans: Counter[str] = Counter()
        for each in self.pairing.pairs:
            code = self.codes[each.patient]
            scans[code] += 1
            yield (code if scans[code] == 1 else f"{code}-{scans[code]}"), each

    def files(self) -> list[str]:
        """All files that may be written for CTs and masks."""
        return [_file(name, part) for name, _ in self.named() for part in PARTS]

    def written(self, folder: Path, partial: Path) -> list[tuple[Case, dict[str, str]]]:
        """Write copies of CTs and masks to `partial`; returns the cases of the manifest.

        With each, the paths of CT and masks relative to `folder`, into which the copies will be
        moved. Raises StagingError.
        """
        rows = []
        for name, each in self.named():
            case = replace(each.case, name=name, patient=self.codes[each.patient])
            for field in ("scanner", "kernel"):
                if text_tells(getattr(case, field) or "", each.histology, each.study):
                    case = replace(case, **{field: None})
            found = each.study.case
            own = {part: getattr(found, part) for part in PARTS}
            parts = {part: relative(path, folder) for part, path in own.items() if path}
            if _may_stay(each, parts.values()):
                self.in_place += 1
            else:
                parts = _copy(each, partial / CTS, name)
            rows.append((case, parts))
        return rows

    def reasons(self, left: Mapping[Any, str]) -> dict[str, int]:
        """Reason -> number of studies or histologies that are left."""
        counts = Counter(left.values())
        return {why: counts[why] for why in in_order(counts, self.criteria)}

    def flow(self) -> tuple[dict[str, int], list[Exclusion], dict[str, int]]:
        """What `write_flow` takes: found, exclusions, included."""
        pairing, pairs = self.pairing, self.pairing.pairs
        included = {
            STUDIES: len(pairs),
            HISTOLOGIES: len({each.histology for each in pairs}),
        }
        reasons = {STUDIES: pairing.studies, HISTOLOGIES: pairing.histologies}
        exclusions = [
            Exclusion("", unit, why, count)
            for unit, left in reasons.items()
            for why, count in self.reasons(left).items()
        ]
        found = {unit: included[unit] + len(left) for unit, left in reasons.items()}
        return found, exclusions, included


def _paired(
    histologies: Sequence[Histology],
    studies: Sequence[Study],
    criteria: Criteria,
    all_cts: bool,
    folder: Path,
    workers: int,
) -> Pairing:
    """Pairs whose CTs have been examined; one that is unusable leaves its place to the next."""
    latest = {study.place: study for study in studies}
    done: set[str] = set()
    while True:
        pairing = pair(histologies, list(latest.values()), criteria, all_cts)
        new = {each.study.place: each.study for each in pairing.pairs}
        work = [(study, folder) for place, study in new.items() if place not in done]
        if not work:
            return pairing
        for study, said in in_processes(_examined, work, "Examining CTs", "CT", workers):
            latest[study.place] = study
            done.add(study.place)
            if said:
                tqdm.write(said, file=sys.stderr)


def _examined(study: Study, folder: Path) -> tuple[Study, str]:
    """The study with its phase, or with the reason why it is unusable; a sentence for the screen.

    folder: of the records of examined CTs.
    """
    try:
        images = images_of(study)
        check_ct(images["ct"], study.place)
    except StagingError as refusal:
        return replace(study, unusable=UNREADABLE), str(refusal)
    found = examined(*map(images.get, PARTS), folder)
    said = found.said and f"{study.place}: {found.said}"
    return replace(study, phase=study.phase or found.phase, unusable=found.unusable), said


def _telling_texts(
    histologies: Sequence[Histology], studies: Sequence[Study]
) -> Iterator[tuple[int, str]]:
    """Lines and sentences: free texts for the manifest that tell the patient."""
    index = Index(studies)
    for histology in histologies:
        own = index.meant_by(histology)
        for field in FREE_TEXT:
            text = getattr(histology, field)
            if any(text_tells(text, histology, study) for study in own):
                yield (
                    histology.line,
                    f"{field} is {text!r}, with the patient's name or number or a date; a text "
                    "without is needed, since it is written into the manifest.",
                )


def _refuse_empty(cohort: _Cohort) -> None:
    if cohort.pairing.pairs:
        return
    left = cohort.reasons(cohort.pairing.studies), cohort.reasons(cohort.pairing.histologies)
    of_studies, of_rows = (
        ", ".join(f"{count} {why}" for why, count in each.items()) or "none" for each in left
    )
    raise StagingError(
        f"No CT belongs to a histology. Studies: {of_studies}. Histologies: {of_rows}."
    )


def _may_stay(each: Pair, paths: Iterable[str]) -> bool:
    """Whether the manifest may have these paths of CT and masks.

    The CT is a folder of DICOM files without another study, and no path, as it would be written in
    the manifest, tells anything of the patient.
    """
    if not each.study.case.files or each.study.case.pseudonym:
        return False
    return not any(path_tells(Path(path), each.histology, each.study) for path in paths)


def _copy(each: Pair, folder: Path, name: str) -> dict[str, str]:
    """Write CT and masks as NIfTI without any text, into the folder CTS; returns their paths.

    Raises StagingError.
    """
    paths = {}
    for part, image in images_of(each.study).items():
        file = _file(name, part)
        write_image(image, folder / file)
        paths[part] = f"{CTS}/{file}"
    return paths


def _file(name: str, part: str) -> str:
    return f"{name}.nii.gz" if part == "ct" else f"{name}_{part}.nii.gz"


def _tell(cohort: _Cohort, manifest: Path, key: Path | None) -> None:
    """Print what was made, on the screen only."""
    pairs = cohort.pairing.pairs
    print(f"{manifest}: {len(pairs)} CTs of {cohort.patients} patients. {RESEARCH_USE}")
    print_flow(*cohort.flow())
    print(f"Stages: {cohort.stages}.")
    if unknown := sum(each.case.phase is None for each in pairs):
        print(f"{unknown} CTs have no known contrast phase; they are included.")
    if cohort.in_place:
        print(
            f"{cohort.in_place} CTs are not copied, since their paths tell no patient; their DICOM "
            "headers may: hand on the manifest, not these files."
        )
    if key is not None:
        print(f"{key} {WARNING}.")
