"""The cases of a cohort: which files are CTs, and which masks belong to them.

No CT is skipped silently: what may be a CT is a case, and if it cannot be staged, its row in the
results states so; of a DICOM study, the series that are not its case are left out with a reason.
"""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import StagingError
from ..imaging.dicom_files import is_dicomdir
from .cohort import Case, Cohort, LeftOut, cohort_of, relative
from .dicom_tree import read_tree
from .image_files import IMAGES, ImageFile, holds_ct, image_files, masks_by_name
from .layouts import read_layout
from .lists import LISTS, read_list

Place = tuple[Path, Sequence[str]]  # a folder and the names of its files


def read_cohort(
    source: Path, leave_out: Path | None = None, pseudonyms: bool = False, look: bool = True
) -> Cohort:
    """The cases of a list, a folder, a DICOMDIR's folder or a glob, and what was left out.

    source: a CSV or Parquet file (`lists.read_list`); a folder with the layout of a known data set
    (`layouts.read_layout`) or any other (`find_cases`); a DICOMDIR, which stands for its folder; or
    a pattern with wildcards, "cohort/**/*_ct.nii.gz", for the CTs, whose masks are found as in a
    folder. leave_out: a folder of results that is not searched. pseudonyms: for all cases. look:
    whether voxels may be read, to tell apart CTs and masks with misleading names.

    Raises StagingError for a source that cannot be read or, with `look`, has no case.
    """
    if source.suffix.lower() in LISTS:
        return Cohort(tuple(read_list(source, pseudonyms)))
    if not source.exists() and glob.has_magic(str(source)):
        found = _matching(source, leave_out, pseudonyms, look)
    else:
        if source.is_file() and is_dicomdir(source):
            source = source.parent
        if not source.is_dir():
            raise StagingError(
                f"{source}: no such folder; a folder of CTs, a list (CSV or Parquet) or a pattern "
                "is needed."
            )
        laid_out = read_layout(source)
        if laid_out is None:
            found = find_cases(source, leave_out, pseudonyms, look)
        else:
            found = cohort_of(*laid_out, source, pseudonyms)
    if look and not found.cases:
        first = f": {found.left_out[0].what}, {found.left_out[0].reason}" if found.left_out else ""
        raise StagingError(
            f"{source} contains no CT, neither image files ({', '.join(IMAGES)}) nor DICOM"
            + (f"; {len(found.left_out)} left out{first}." if first else ".")
        )
    return found


def find_cases(
    folder: Path, leave_out: Path | None = None, pseudonyms: bool = False, look: bool = True
) -> Cohort:
    """Cases in a folder and its subfolders, by name.

    A case is an image file (NIfTI, NRRD, MetaImage) that is not a mask, or the best CT series of a
    DICOM study (`dicom_tree.read_tree`). The masks of NAME.nii.gz or NAME_ct.nii.gz are NAME_liver
    and NAME_spleen, or NAME_seg with 1 liver and 2 spleen; in a folder with one CT, also liver,
    spleen, or any name that begins with seg. The masks of a DICOM study's folder are in it, or
    beside it with its name.

    Masks named after parts of the liver, such as TotalSegmentator's liver_segment_1, are the
    segments of the CT in their folder, or else in the folder above, if there is only one.

    Files with a mask's name that belongs to no CT, other files beside one called ct or NAME_ct, and
    image files in a DICOM folder are cases only if their voxels are those of a CT or cannot be
    read; without `look` they are left out. CTs whose names differ only in extension, letter case,
    or "." for "_" are separate cases; a mask belongs to the CT with the most similar name. Hidden
    files and the files of earlier results are not cases. leave_out, pseudonyms: as for
    `read_cohort`.

    Cases are named after the CTs, or the folders with one CT, made unique and valid as folder names
    on all systems; names that may be those of persons, and with `pseudonyms` all names, are
    replaced by `privacy.pseudonym`.
    """
    unreadable: list[Case] = []

    def note(error: OSError) -> None:  # the reason is reported when it is staged
        place = Path(error.filename)
        unreadable.append(Case(relative(place, folder), place, None, None))

    places = _places([folder], leave_out, note)
    cases, left_out = _search(places, places, folder, look)
    return cohort_of([*cases, *unreadable], left_out, folder, pseudonyms)


def _matching(pattern: Path, leave_out: Path | None, pseudonyms: bool, look: bool) -> Cohort:
    """Cases among the files and folders that match a pattern; their masks need not match it."""
    apart = None if leave_out is None else leave_out.resolve()
    matched = [
        path
        for path in map(Path, sorted(glob.glob(str(pattern), recursive=True)))
        if apart not in (path.resolve(), *path.resolve().parents)
    ]
    if not matched:
        raise StagingError(f"{pattern}: no file or folder matches this pattern.")
    root = next(one for one in pattern.parents if not glob.has_magic(str(one)))
    files: dict[Path, list[str]] = {}
    for path in matched:
        if path.is_file():
            files.setdefault(path.parent, []).append(path.name)
    walked = _places([path for path in matched if path.is_dir()], leave_out, None)
    beside = [(place, os.listdir(place)) for place in files]
    cases, left_out = _search([*files.items(), *walked], [*beside, *walked], root, look)
    wanted = {*matched, *files, *(place for place, _ in walked)}
    wanted |= {place / name for place, names in walked for name in names}
    cases = [case for case in cases if case.files or case.ct in wanted]
    return cohort_of(cases, [each for each in left_out if each.path in wanted], root, pseudonyms)


def _places(
    folders: Iterable[Path], leave_out: Path | None, unreadable: Callable[[OSError], None] | None
) -> list[Place]:
    """Folders and their subfolders, also linked ones, each once, without hidden ones."""
    found: list[Place] = []
    visited: set[Path] = set()
    for folder in folders:
        if folder.resolve() in visited:
            continue
        visited.add(folder.resolve())
        for here, subfolders, names in os.walk(folder, onerror=unreadable, followlinks=True):
            subfolders.sort()
            for name in list(subfolders):
                target = (Path(here) / name).resolve()
                left_out = leave_out is not None and target == leave_out.resolve()
                if name.startswith(".") or left_out or target in visited:
                    subfolders.remove(name)
                    continue
                visited.add(target)
            found.append((Path(here), [name for name in names if not name.startswith(".")]))
    return found


@dataclass
class _Found:
    """What a search has found so far.

    places: of DICOM studies, where their masks may lie; folders: with CT slices. masks: by CT.
    unclear: image files that are no cases, and whether their voxels say so.
    """

    root: Path
    places: set[Path]
    folders: set[Path]
    cases: list[Case] = field(default_factory=list)
    masks: dict[Path, dict[str, Path]] = field(default_factory=dict)
    unclear: dict[ImageFile, bool] = field(default_factory=dict)


def _search(
    dicom: Iterable[Place], images: Iterable[Place], root: Path, look: bool
) -> tuple[list[Case], list[LeftOut]]:
    """The cases among DICOM files and image files, without valid names, and what is left out."""
    tree = read_tree(dicom, root)
    tree.cases += [Case(relative(place, root), place, None, None) for place in tree.damaged]
    places = {case.ct for case in tree.cases if not case.pseudonym}
    found = _Found(root, places, tree.folders)
    parts: list[Path] = []
    for place, names in images:
        files = image_files(place, names)
        parts += [image.path for image in files if image.is_part]
        _cases_of_folder(files, place, found, look)
    cases = [*found.cases, *tree.cases]
    for number, case in enumerate(cases):
        own = found.masks.get(case.ct, {})
        liver = own.get("liver", own.get("seg"))
        cases[number] = replace(case, liver=liver, spleen=own.get("spleen"))
    cases = _with_segments(cases, parts)
    used = {mask for own in found.masks.values() for mask in own.values()}
    left_out = [
        LeftOut(image.path, "image file", _why_unclear(image, looked))
        for image, looked in found.unclear.items()
        if image.path not in used and not image.is_part
    ]
    return cases, [*tree.left_out, *left_out]


def _why_unclear(image: ImageFile, looked: bool) -> str:
    what = "a mask's name, but of no case" if image.mask else "beside a CT or in a DICOM folder"
    voxels = "its voxels are not those of a CT" if looked else "batch will look at its voxels"
    return f"{what}; {voxels}"


def _cases_of_folder(images: list[ImageFile], place: Path, found: _Found, look: bool) -> None:
    """Add the cases of the images in one folder, and the masks found there."""
    in_dicom = place in found.folders or not found.places.isdisjoint((place, *place.parents))
    dicom = [ImageFile(one, one.name) for one in found.places if one.parent == place]
    cts = []
    if not in_dicom:
        named_ct = [image for image in images if image.is_named_ct]
        cts = named_ct or [image for image in images if image.mask is None and not image.is_part]
    only = cts[0].path if len(cts) == 1 else place if place in found.places else None

    taken = {
        mask for owned in masks_by_name(images, [*cts, *dicom]).values() for mask in owned.values()
    }
    for image in images:
        if image not in cts and image.path not in taken:
            holds = holds_ct(image.path) if look else False
            theirs = only is not None and image.mask is not None and image.mask[0] is None
            if holds or (holds is None and not theirs and not image.is_part):
                cts.append(image)
    if only is None and len(cts) == 1:
        only = cts[0].path

    others = [image for image in images if image not in cts]
    found.unclear |= dict.fromkeys(others, look)
    for owner, owned in masks_by_name(others, [*cts, *dicom]).items():
        found.masks.setdefault(owner, {}).update(owned)
    if only is not None:
        for image in others:
            if image.mask is not None and image.mask[0] is None:
                found.masks.setdefault(only, {}).setdefault(image.mask[1], image.path)
    alone = len(cts) == 1 and place != found.root
    for ct in cts:
        name = relative(place if alone else place / ct.owner, found.root)
        found.cases.append(Case(name, ct.path, None, None))


def _with_segments(cases: list[Case], parts: list[Path]) -> list[Case]:
    """Give the folders with masks of the liver's parts to their cases."""
    cts = {case.ct for case in cases}
    segments: dict[Path, Path] = {}
    for folder in {part.parent: None for part in parts if part not in cts}:
        for place in (folder, folder.parent):
            near = [ct for ct in cts if place in (ct, ct.parent)]
            if len(near) == 1:
                segments.setdefault(near[0], folder)
            if near:
                break
    return [replace(case, segments=segments.get(case.ct)) for case in cases]
