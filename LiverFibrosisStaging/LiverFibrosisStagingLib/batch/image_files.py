"""Image files of a cohort: which may be CTs, and which masks belong to them by name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from ..imaging.checks import AIR_HU
from ..imaging.itk_files import itk_path, quiet
from ..imaging.organs import liver_part
from ..imaging.reading import check_header, read_ct
from ..result import FILES

IMAGES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
ORGANS = ("liver", "spleen", "seg")
# OWNER_liver, OWNER_spleen, OWNER_seg, also OWNER.seg and OWNER_liver.seg as written by Slicer.
_MASK = re.compile(rf"(?:(.+?)[._])?({'|'.join(ORGANS)})(?:[._]seg)?", re.I)
_CT = re.compile(r"(?:(.+)[._])?ct", re.I)
_UNSIGNED = (sitk.sitkUInt8, sitk.sitkUInt16, sitk.sitkUInt32, sitk.sitkUInt64)


@dataclass(frozen=True)
class ImageFile:
    """An image file or a DICOM folder; its name without extension, the extension in lower case."""

    path: Path
    stem: str
    ending: str = ""

    @property
    def mask(self) -> tuple[str | None, str] | None:
        """The CT's name and the organ, for a mask's file name (None: mask of the folder's CT)."""
        match = _MASK.fullmatch(self.stem)
        if match is None:
            return (None, "seg") if self.stem.lower().startswith("seg") else None
        weak = match[1] is None or match[1].lower().startswith("seg")
        return (None if weak else match[1], match[2].lower())

    @property
    def is_named_ct(self) -> bool:
        """Whether the name is ct or NAME_ct."""
        return _CT.fullmatch(self.stem) is not None

    @property
    def is_part(self) -> bool:
        """Whether the name is that of a part of the liver, such as liver_segment_1."""
        return liver_part(None, self.stem) is not None

    @property
    def owner(self) -> str:
        """Beginning of its masks' names, and name of its case."""
        match = _CT.fullmatch(self.stem)
        return self.stem if match is None or match[1] is None else match[1]


def image_files(place: Path, names: Iterable[str]) -> list[ImageFile]:
    """The image files of a folder, without hidden ones and files of an earlier result."""
    results = FILES if FILES[-1] in names else ()
    found = (image_file(place / name) for name in sorted(names) if name not in results)
    return [image for image in found if image is not None and not image.stem.startswith(".")]


def image_file(path: Path) -> ImageFile | None:
    """An image file by its extension; None for another file."""
    name = path.name.lower()
    ending = next((ending for ending in IMAGES if name.endswith(ending)), None)
    return None if ending is None else ImageFile(path, path.name[: -len(ending)], ending)


def masks_by_name(images: Iterable[ImageFile], cts: list[ImageFile]) -> dict[Path, dict[str, Path]]:
    """The masks with a CT's name, by CT and organ; of several, the one with the best match."""
    best: dict[Path, dict[str, tuple[tuple[int, ...], Path]]] = {}
    for image in images:
        if image.mask is None or image.mask[0] is None:
            continue
        name, organ = image.mask
        scores = {ct.path: _match_score(name, image.ending, ct) for ct in cts}
        highest = max(scores.values(), default=(0,))
        for ct, score in scores.items():
            owned = best.setdefault(ct, {})
            if highest[0] and score == highest and highest > owned.get(organ, ((0,),))[0]:
                owned[organ] = (highest, image.path)
    return {ct: {organ: path for organ, (_, path) in own.items()} for ct, own in best.items()}


def _match_score(name: str, ending: str, ct: ImageFile) -> tuple[int, ...]:
    """How well a mask's name matches a CT's, then the extension; (0,) for no match."""
    same_ending = int(ending == ct.ending)
    for rank, form in ((3, str), (2, str.casefold), (1, _folded)):
        for direct, own in ((1, ct.stem), (0, ct.owner)):
            if form(name) == form(own):
                return (rank, direct, same_ending)
    return (0,)


def _folded(name: str) -> str:
    return name.casefold().replace(".", "_")


def holds_ct(path: Path) -> bool | None:
    """Whether the voxels are HU, which extend far below zero; None if they cannot be read."""
    reader = sitk.ImageFileReader()
    try:
        check_header(path)
        reader.SetFileName(itk_path(path))
        with quiet():
            reader.ReadImageInformation()
        if reader.GetNumberOfComponents() > 1 or reader.GetPixelID() in _UNSIGNED:
            return False
        image = read_ct(path)  # a variable, since a view does not keep its image alive
        return float(sitk.GetArrayViewFromImage(image).min()) < AIR_HU
    except Exception:  # any error is reported when the file is staged
        return None
