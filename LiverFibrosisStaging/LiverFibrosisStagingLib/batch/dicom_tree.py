"""The CTs of a tree of DICOM files: studies are told apart, and one series of each is chosen.

Only headers are read. Files of many patients, studies and series may lie in one folder, and the
files of a series in several folders.
"""

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import StagingError
from ..imaging.dicom_files import (
    PATIENT,
    SERIES,
    SERIES_NUMBER,
    SOP_INSTANCE,
    STUDY,
    Files,
    Other,
    Slice,
    files_of,
)
from ..imaging.dicom_series import MIN_SLICES, Series, difference, plain_number, ranked_series
from ..privacy import pseudonym
from .cohort import Case, LeftOut, relative


class _Key(NamedTuple):
    """What files of one study have in common.

    folder: without an identifier of the study, or where the same files occur in several folders.
    """

    patient: str
    study: str
    folder: str = ""


@dataclass
class Tree:
    """What a tree of DICOM files contains.

    cases: without masks; those with a pseudonym lie in a folder with other studies. folders: that
    contain CT slices or damaged files directly. damaged: folders whose files are all damaged.
    """

    cases: list[Case]
    left_out: list[LeftOut]
    folders: set[Path]
    damaged: list[Path]


def read_tree(places: Iterable[tuple[Path, Sequence[str]]], root: Path) -> Tree:
    """The CTs among files, given as folders with the names of their files; root: of the cohort.

    A study is what has the same patient and study identifiers. Files without a study identifier are
    studies by folder, as are the copies of a study in several folders, and different patients whose
    files were given the same identifiers. The case of a study is its best series
    (`dicom_series.find_series`), if that has at least MIN_SLICES slices. It is named after the
    top-most folder with nothing but this study, or by a pseudonym if other studies lie beside it.
    Everything else is left out, with a reason.
    """
    found = _files(places)
    slices, others = _by_study(found)
    direct: dict[Path, set[_Key]] = defaultdict(set)
    for key, members in (*slices.items(), *others.items()):
        for each in members:
            direct[each.path.parent].add(key)
    damaged: dict[Path, list[Path]] = defaultdict(list)
    for path in found.damaged:
        damaged[path.parent].append(path)
    lost = sorted(folder for folder in damaged if folder not in direct)
    below: dict[Path, set[_Key]] = defaultdict(set)
    for folder, keys in (*direct.items(), *((one, {_Key("", "", str(one))}) for one in lost)):
        for place in (folder, *folder.parents):
            below[place] |= keys
            if place == root:
                break

    tree = Tree([], [], {*(each.path.parent for each in found.slices), *damaged}, lost)
    numbers = {key: number for number, key in enumerate(sorted({*slices, *others}), start=1)}
    taken: dict[_Key, Path] = {}
    for key, members in slices.items():
        series = ranked_series(members)
        if len(series[0].gaps) + 1 >= MIN_SLICES:
            folders = {each.path.parent for each in series[0].slices}
            files = [each.path for each in series[0].slices]
            files += [p for one in folders if direct[one] == {key} for p in damaged.get(one, [])]
            case = _case(key, series, tuple(files), direct, below, root)
            tree.cases.append(case)
            taken[key] = case.ct
        tree.left_out += _other_series(series, numbers[key], taken.get(key))
    for key, members in others.items():
        tree.left_out += _objects(members, SERIES, numbers[key], taken.get(key))
    tree.left_out += _objects(other for other in found.others if not other.tags)
    for folder in sorted(set(damaged) - {*lost}):
        tree.left_out.append(LeftOut(folder, _counted(len(damaged[folder]), "file"), "damaged"))
    return tree


def _files(places: Iterable[tuple[Path, Sequence[str]]]) -> Files:
    found = Files()
    for place, names in places:
        for name in sorted(names):
            try:
                part = files_of([place / name])
            except (StagingError, OSError):  # it cannot be opened
                part = Files(damaged=[place / name])
            found.slices += part.slices
            found.others += part.others
            found.damaged += part.damaged
    return found


def _by_study(found: Files) -> tuple[dict[_Key, list[Slice]], dict[_Key, list[Other]]]:
    """CT slices, and other images, by study."""
    together: dict[_Key, list[Slice]] = defaultdict(list)
    for each in found.slices:
        together[_key(each)].append(each)
    slices: dict[_Key, list[Slice]] = {}
    folders: dict[_Key, list[str]] = {}
    for key, members in together.items():
        apart = _copies_apart(members)
        folders[key] = sorted(filter(None, apart), key=len, reverse=True)
        slices |= {
            key._replace(folder=folder or key.folder): part for folder, part in apart.items()
        }
    others: dict[_Key, list[Other]] = defaultdict(list)
    for other in found.others:
        if other.tags:
            key = _key(other)
            near = [one for one in folders.get(key, ()) if other.path.is_relative_to(one)]
            others[key._replace(folder=near[0]) if near else key].append(other)
    return slices, others


def _key(file: Slice | Other) -> _Key:
    study = file.tags.get(STUDY, "")
    return _Key(file.tags.get(PATIENT, ""), study, "" if study else str(file.path.parent))


def _copies_apart(slices: list[Slice]) -> dict[str, list[Slice]]:
    """The slices of a study by folder, if the same ones occur in several; otherwise by "".

    Where they are copies, byte for byte, each copy of a series is apart, the first one with the
    other series of the study. Otherwise the identifiers are not unique, and every folder is apart.
    """
    first: dict[tuple[str, str], Path] = {}
    pairs = []
    for each in slices:
        same = each.tags.get(SERIES, ""), each.tags.get(SOP_INSTANCE, "")
        if same[1] and first.setdefault(same, each.path).parent != each.path.parent:
            pairs.append((first[same], each.path))
    if not pairs:
        return {"": slices}
    folders: dict[Path, list[Slice]] = defaultdict(list)
    if all(filecmp.cmp(*pair, shallow=False) for pair in pairs):
        for each in slices:
            folders[each.path.parent].append(each)
        copies: dict[str, list[Slice]] = {}
        uids: dict[str, set[str]] = {}
        for folder, members in folders.items():
            own = {each.tags.get(SOP_INSTANCE, "") for each in members}
            name = next((name for name in copies if uids[name].isdisjoint(own)), str(folder))
            copies.setdefault(name, []).extend(members)
            uids.setdefault(name, set()).update(own - {""})
        return copies
    common = Path(os.path.commonpath([each.path.parent for each in slices]))
    for each in slices:
        inside = each.path.parent.relative_to(common).parts[:1]
        folders[common.joinpath(*inside)].append(each)
    return {
        inner or str(folder): members
        for folder, part in folders.items()
        for inner, members in _copies_apart(part).items()
    }


def _case(
    key: _Key,
    series: list[Series],
    files: tuple[Path, ...],
    direct: dict[Path, set[_Key]],
    below: dict[Path, set[_Key]],
    root: Path,
) -> Case:
    """The case of a study, whose best series has these files."""
    place = Path(os.path.commonpath([path.parent for path in files]))
    chosen = _chosen(series)
    if key.study and key.folder:
        chosen += "; the same identifiers occur in another folder"
    if below[place] == {key}:
        while place.parent != root and place != root and below[place.parent] == {key}:
            place = place.parent
    elif direct.get(place) != {key}:
        identity = "|".join([key.patient, key.study, key.folder and relative(place, root)])
        name = pseudonym(identity)
        return Case(name, files[0], None, None, pseudonym=True, files=files, chosen=chosen)
    return Case(relative(place, root), place, None, None, files=files, chosen=chosen)


def _chosen(series: list[Series]) -> str:
    """Why the first of a study's series is its case."""
    best = series[0]
    words = [f"{best.phase} by its description" if best.phase else "no phase in its description"]
    if len(series) == 1:
        words.insert(0, "the only CT series")
    else:
        alike = (other for other in series[1:] if other.phase == best.phase)
        words.append(difference(best, next(alike, series[1]))[0])
    if best.derived:
        words.append("derived from other images")
    return "; ".join(dict.fromkeys(words))


def _other_series(series: list[Series], study: int, taken: Path | None) -> list[LeftOut]:
    """The series of a study that are not its case."""
    best = series[0]
    return [
        LeftOut(
            each.slices[0].path,
            "CT series",
            f"fewer than {MIN_SLICES} slices" if taken is None else difference(best, each)[1],
            study,
            plain_number(each.tags, SERIES_NUMBER),
            each.phase,
            len(each.slices),
            round(each.spacing, 3),
            taken,
        )
        for each in (series if taken is None else series[1:])
    ]


def _objects(
    others: Iterable[Other], tag: str = "", study: int | None = None, taken: Path | None = None
) -> list[LeftOut]:
    """DICOM objects of a study that are no CT slices, by kind and a tag, or else their folder."""
    groups: dict[tuple[str, str], list[Other]] = defaultdict(list)
    for other in others:
        groups[other.kind, other.tags.get(tag) or str(other.path.parent)].append(other)
    return [
        LeftOut(
            members[0].path,
            _counted(len(members), "object"),
            kind,
            study,
            plain_number(members[0].tags, SERIES_NUMBER),
            taken=taken,
        )
        for (kind, _), members in groups.items()
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} DICOM {noun}{'s' if count > 1 else ''}"
