"""The CTs and segmentations of a collection as downloaded, by patient and study.

DICOM files are sorted by their headers, whatever the folders are called: the layouts of The Cancer
Imaging Archive (collection/patient/study/series) and of Imaging Data Commons (folders named after
the series, in a tree or not) need no rules of their own. Other CTs, such as NIfTI, are assigned to
the patient whose code their name, or that of their folder, contains.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import SimpleITK as sitk
from tqdm import tqdm

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.dicom_files import (
    PATIENT,
    SERIES,
    SOP_INSTANCE,
    STUDY,
    Files,
    Slice,
    files_of,
    path_of_series,
)
from LiverFibrosisStagingLib.imaging.dicom_series import MIN_SLICES, Series, ranked_series
from LiverFibrosisStagingLib.imaging.itk_files import itk_path, quiet
from LiverFibrosisStagingLib.imaging.organs import IMAGES
from LiverFibrosisStagingLib.imaging.reading import check_header
from LiverFibrosisStagingLib.privacy import pseudonym

from .header import Header, header_of
from .seg import Segmentation, read_segmentation
from .writing import Exclusion

SCANS, SEGMENTATIONS, FILES = "CTs", "segmentations", "other files"
SHORT = f"fewer than {MIN_SLICES} slices"


@dataclass(frozen=True, eq=False)
class Scan:
    """One CT: an acquisition of a DICOM series, or a file of another format.

    ct: the path from which `read_ct` reads exactly this scan; None if there is none. files: of its
    slices. alone: no other acquisition is in its series. instances, series: UIDs of its slices and
    their series.
    """

    ct: Path | None
    files: tuple[Path, ...]
    alone: bool = True
    instances: frozenset[str] = frozenset()
    series: str = ""
    header: Header = field(default_factory=Header)


@dataclass(eq=False)
class Study:
    """The CTs of a study with at least MIN_SLICES slices, in the order of `find_series`.

    date: date and time, "" if unknown. dicom: False for files that state no study.
    """

    date: str
    scans: list[Scan]
    dicom: bool = True


@dataclass
class Images:
    """What was found, by patient; scans: the number of CTs, including those that are excluded."""

    studies: dict[str, list[Study]] = field(default_factory=lambda: defaultdict(list))
    segmentations: dict[str, list[Segmentation]] = field(default_factory=lambda: defaultdict(list))
    exclusions: list[Exclusion] = field(default_factory=list)
    scans: int = 0


def find_images(
    folders: Sequence[Path], patients: Collection[str], ours: Collection[Path] = ()
) -> Images:
    """The images in folders and their subfolders.

    patients: codes in the clinical table; a patient with another PatientID gets a pseudonym. ours:
    folders not to be searched, because this command writes into them.
    """
    paths = _paths(folders, {folder.resolve() for folder in ours})
    files = files_of(tqdm(paths, "Reading headers", unit="file", disable=None))
    found = Images()
    known = {patient.casefold(): patient for patient in patients}

    def code_of(identifier: str) -> str:
        identifier = identifier.strip()
        return known.get(identifier.casefold()) or pseudonym(identifier)

    _sort_others(files, code_of, found)
    _sort_slices(files.slices, code_of, found)
    _sort_volumes(paths, patients, found)
    return found


def _paths(folders: Sequence[Path], ours: Collection[Path]) -> list[Path]:
    """All visible files, each once."""
    paths: dict[Path, Path] = {}
    for folder in folders:
        for place, inside, names in os.walk(folder):
            here = Path(place)
            if here.resolve() in ours:
                inside.clear()
                continue
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith("."):
                    paths.setdefault((here / name).resolve(), here / name)
    return list(paths.values())


def _sort_others(files: Files, code_of: Callable[[str], str], found: Images) -> None:
    """Segmentations by patient; all other DICOM objects are only counted."""
    counts: Counter[tuple[str, str]] = Counter()
    for other in files.others:
        segmentation = None
        if not other.tags or other.kind == "modality SEG":
            try:
                segmentation = read_segmentation(other.path)
            except StagingError:
                counts["", "damaged DICOM files"] += 1
                continue
        if segmentation is not None:
            found.segmentations[code_of(segmentation.patient)].append(segmentation)
        else:
            patient = other.tags.get(PATIENT, "")
            counts[code_of(patient) if patient else "", other.kind] += 1
    if files.damaged:
        counts["", "damaged DICOM files"] += len(files.damaged)
    for (patient, kind), count in sorted(counts.items()):
        found.exclusions.append(Exclusion(patient, FILES, kind, count))


def _sort_slices(slices: Sequence[Slice], code_of: Callable[[str], str], found: Images) -> None:
    """CT slices as scans, by patient and study."""
    places: dict[Path, set[str]] = defaultdict(set)  # the series in a folder and below it
    all_of: dict[str, list[Slice]] = defaultdict(list)  # by series, with repeated files
    for each in slices:
        all_of[_series(each)].append(each)
        for folder in each.path.parents:
            places[folder].add(_series(each))
    # Of repeated files, those that have the most of their series beside them.
    counts = Counter((_series(each), each.path.parent) for each in slices)
    by_study: dict[tuple[str, str], list[Slice]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    nameless = repeated = 0
    for each in sorted(slices, key=lambda each: -counts[_series(each), each.path.parent]):
        patient, key = each.tags.get(PATIENT, "").strip(), (_series(each), _instance(each))
        if not patient:
            nameless += 1
        elif key in seen:
            repeated += 1
        else:
            seen.add(key)
            study = each.tags.get(STUDY) or str(each.path.parent)
            by_study[code_of(patient), study].append(each)
    for count, why in ((nameless, "CT slices without PatientID"), (repeated, "repeated CT slices")):
        if count:
            found.exclusions.append(Exclusion("", FILES, why, count))
    for (code, _), members in sorted(by_study.items()):
        stacks = ranked_series(members)
        whole = [stack for stack in stacks if len(stack.gaps) + 1 >= MIN_SLICES]
        alike = Counter(_series(stack.slices[0]) for stack in whole)
        scans = []
        for stack in whole:
            series = _series(stack.slices[0])
            path = _path(stack, all_of[series], places)
            files = tuple(each.path for each in stack.slices)
            own = frozenset(map(_instance, stack.slices))
            scans.append(Scan(path, files, alike[series] == 1, own, series, header_of(files[0])))
        found.studies[code].append(Study(scans[0].header.moment if scans else "", scans))
        found.scans += len(stacks)
        short = len(stacks) - len(whole)
        if short:
            found.exclusions.append(Exclusion(code, SCANS, SHORT, short))


def _sort_volumes(paths: Sequence[Path], patients: Collection[str], found: Images) -> None:
    """Files of other formats than DICOM, by the patient whose code is in their name or folder."""
    parts = {code: map(re.escape, re.split(r"[\W_]+", code)) for code in patients}
    codes = {
        code: re.compile(rf"(?<![^\W_]){r'[_-]*'.join(words)}(?![^\W_])", re.I)
        for code, words in parts.items()
    }
    scans: dict[str, list[Scan]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for path in paths:
        if path.name.lower().endswith(IMAGES):
            for text in (path.name, path.parent.name):
                named = [code for code, pattern in codes.items() if pattern.search(text)]
                if named:
                    break
            if len(named) != 1:
                counts["image files whose names contain no patient of the table, or several"] += 1
            elif _has_labels(path):
                counts["label images"] += 1
            else:
                scans[named[0]].append(Scan(path, (path,)))
    for patient, members in scans.items():
        found.studies[patient].append(Study("", members, dicom=False))
        found.scans += len(members)
    found.exclusions += [Exclusion("", FILES, why, count) for why, count in counts.items()]


def _has_labels(path: Path) -> bool:
    """Whether a file's voxels are bytes, which cannot hold HU; False if it cannot be read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_path(path))
    try:
        check_header(path)
        with quiet():
            reader.ReadImageInformation()
    except (StagingError, RuntimeError):
        return False
    return reader.GetPixelID() in (sitk.sitkUInt8, sitk.sitkInt8)


def _path(stack: Series, alike: Sequence[Slice], places: dict[Path, set[str]]) -> Path | None:
    """What `read_ct` reads as this stack: its folder, else one of its files, else nothing.

    alike: all slices of its series. places: the series below each folder.
    """
    own = {_instance(each) for each in stack.slices}
    folder = path_of_series([each.path for each in stack.slices])
    here = [each for each in alike if each.path.is_relative_to(folder)]
    stacks = [{_instance(each) for each in one.slices} for one in ranked_series(here)]
    if len(places[folder]) == 1 and stacks[0] == own:
        return folder
    beside = all(each.path.parent == folder for each in here)
    return stack.slices[0].path if beside and own in stacks else None


def _series(each: Slice) -> str:
    return each.tags.get(SERIES) or str(each.path.parent)


def _instance(each: Slice) -> str:
    return each.tags.get(SOP_INSTANCE) or str(each.path)
