"""Removal of names of patients from everything that is written to files.

Files and folders are often named after patients, and DICOM files contain the name. Messages on
screen may quote such names; text that is written to a file passes through `Names.removed`, which
replaces them by "the CT" and the like. Names of cases, used for folders and in the table, are
replaced by a pseudonym if they may be a person's.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path

import SimpleITK as sitk

from .errors import StagingError
from .fingerprint import TEXT_HEADERS
from .imaging.dicom_elements import is_whole
from .imaging.dicom_files import is_dicom, path_of_series, tag_text
from .imaging.itk_files import itk_path, quiet
from .imaging.masks import file_and_labels
from .stages import GROUPS, STAGES

# DICOM tags about the patient (all of group 0010), and free text that can contain names.
_PATIENT_GROUP = "0010|"
_PATIENT_NAME = "0010|0010"
_PATIENT_ID, _BIRTH_DATE = "0010|0020", "0010|0030"
# Names of the patient, of physicians and of operators.
_PEOPLE = (_PATIENT_NAME, "0008|0090", "0008|1048", "0008|1050", "0008|1060", "0008|1070")
_FREE_TEXT = (
    "0008|0050",  # accession number
    "0008|0080",  # institution
    "0008|0081",
    "0008|1010",  # station
    "0008|1030",  # study description
    "0008|103e",  # series description
    "0008|1040",
    "0018|1030",  # protocol
    "0018|1400",
    "0020|0010",  # study
    "0020|4000",  # comments
    "0032|1032",
    "0032|1060",
    "0040|0254",
)
# Words of messages and of ordinary file names, which identify nobody and are not replaced: with a
# file called liver.nii, "liver" must remain in messages.
_ORDINARY_WORDS = """
a an and are as at be below but by for from has have in is it its no none not of on or so than
that the them they this to too was what where with
abdomen abdominal above air all anonymous arterial axial axis body bone case cases chest cohort
contrast core ct cts data dataset delayed dicom dicomdir enhanced export fat file files folder
gz head header hu image images img input label labels late left liver lung map mask masks mean
metaimage mha mhd ml mm model mr mri nan native network nhdr nifti nii none nrrd organ organs
original output
patient patients phase plain portal post pre pv raw result results right sample scan scans seg
segment segmentation segmented segments series share slice slices spacing spine spleen stage
staged staging study studies sub subject surface test thick thin thorax tissue tmp train
unknown user users venous volume volumes voxel voxels
"""
ORDINARY = {*_ORDINARY_WORDS.split(), *(name.lower() for name in (*STAGES, *GROUPS))}

_WORDS = re.compile(r"[^\W_]+")
_BETWEEN = r"[\W_]{1,3}"  # between the words of a name: ^ or _ or a space, or ", "
_INSIDE_DOE_JANE = re.compile("(?<=[a-z\u00df-\u00ff])(?=[A-Z\u00c0-\u00de])")
_YEAR_OR_DATE = re.compile(r"19\d\d|20[0-2]\d|\d{8}")
_MIN_DIGITS = 5  # shorter numbers are not identifiers, and occur in messages
# "The mask /data/p1.nii is empty" becomes "The liver mask is empty".
_NOUN = r"\b(?:the |its )?(?:mask|model|folder|data file|file|image|table) "
_LONGEST_HEADER = 1 << 16
_DATA_FILE = re.compile(r"^(?:ElementDataFile|data ?file)\s*[:=]+(.+)$", re.I | re.M)
_ANY_PATH = re.compile(
    rf"(?:{_NOUN})?(?<![\w/\\])(?:[A-Z]:)?(?:[/\\][^/\\\s:;,'\"]+){{2,}}[/\\]?", re.I
)
_REPEATED = re.compile(r"\b(the patient|a folder)(?:[\W_]{1,3}\1)+\b", re.I)
# A name of one word may also be a word of the message; it is replaced only as a subject.
_SUBJECT = rf"(?:^(?=[^\W_]+:)|{_NOUN}|(?<=['\"/\\]))"


class Names:
    """Names in one case's inputs that can identify the patient, for removal from text.

    ct, liver, spleen: paths, FILE:LABEL, names of nodes, or the DICOM files of a CT; None if there
    is none. Files are read on the first call of `removed`. files: other paths that messages may
    quote, and their replacements.
    """

    def __init__(
        self,
        ct: str | Path | Sequence[Path] | None,
        liver: str | Path | None = None,
        spleen: str | Path | None = None,
        files: Mapping[str | Path, str] | None = None,
    ) -> None:
        self._ct = ct
        path = None if ct is None else path_of_series(ct)
        self._inputs = {"the CT": path, "the liver mask": liver, "the spleen mask": spleen}
        self._files = files or {}

    def removed(self, text: str) -> str:
        """A text without names of the inputs, in any letter case and with any separators.

        The inputs' paths, file and folder names are replaced by "the CT" and the like, DICOM's data
        on the patient by "the patient", and any other path by "a file".
        """

        def capitalized(replacement: str, match: re.Match[str]) -> str:
            capital = match.start() == 0 or match[0].startswith("The ")
            return replacement[0].upper() + replacement[1:] if capital else replacement

        text = unicodedata.normalize("NFC", text)
        for pattern, replacements in self._patterns:
            text = pattern.sub(
                lambda m, known=replacements: capitalized(known[m.lastindex - 1], m), text
            )
        text = _ANY_PATH.sub(lambda m: capitalized("a file", m), text)
        return _REPEATED.sub(r"\1", text)

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], list[str]]]:
        """Patterns with a group per identifier, and the replacement of each."""
        anywhere, as_subject = self._identifiers()
        found = []
        # The root or drive of a path is replaced with it.
        for before, known in (
            (rf"(?:{_NOUN})?(?:(?<!\w)[/\\]+)?(?<![^\W_])", anywhere),
            (_SUBJECT, as_subject),
        ):
            if known:  # the longest first, since some contain others
                ordered = sorted(known, key=len, reverse=True)
                either = "|".join(f"({one})" for one in ordered)
                pattern = re.compile(rf"{before}(?:{either})(?![^\W_])", re.I)
                found.append((pattern, [known[one] for one in ordered]))
        return found

    def _identifiers(self) -> tuple[dict[str, str], dict[str, str]]:
        """Replacements by pattern: of those removed anywhere, and of those only as a subject."""
        anywhere: dict[str, str] = {}
        as_subject: dict[str, str] = {}

        def add(text: str, replacement: str, always: bool = False, person: bool = False) -> None:
            words = _WORDS.findall(unicodedata.normalize("NFC", text))
            if not words or not (always or any(_identifies(word.lower()) for word in words)):
                return
            pattern = _BETWEEN.join(re.escape(word.lower()) for word in words)
            if len(words) > 1 or person or not words[0].isalpha() or not words[0].isascii():
                anywhere.setdefault(pattern, replacement)
                return
            as_subject.setdefault(pattern, replacement)
            if not words[0].islower():  # with capitals it is not a word of a message
                anywhere.setdefault(f"(?-i:{words[0]})", replacement)

        def add_person(text: str) -> None:
            for word in _name_words(text):
                add(word, "the patient", person=True)

        paths = {
            file_and_labels(given)[0]: replacement
            for replacement, given in self._inputs.items()
            if given is not None
        }
        paths |= {Path(file): replacement for file, replacement in self._files.items()}
        for path, replacement in paths.items():
            for name in _names_of_path(path):
                file = name == path.name and path.suffix[1:2].isalpha()
                add(name, replacement, always=file or "/" in name or "\\" in name)
        for path in paths:
            for parent in path.absolute().parents:
                add(str(parent), "a folder", always=len(parent.parts) > 2)
            for part in path.absolute().parts:
                add(part, "a folder")
                if looks_like_person_name(part):
                    add_person(part)
        for path in paths:
            for name in _data_files(path):
                add(name, "the data file", always=True)
        for file in () if self._ct is None else _dicom_files(self._ct):
            add(file.name, "a file of the CT")
            add(file.stem, "a file of the CT")
            tags = _tags(file)
            for key, text in tags.items():
                add(text, "the patient", always=key == _PATIENT_ID and len(text) >= _MIN_DIGITS)
                if key in _PEOPLE or looks_like_person_name(text):
                    add_person(text)
            if len(date := tags.get(_BIRTH_DATE, "")) == 8:
                year, month, day = date[:4], date[4:6], date[6:]
                for written in ((year, month, day), (day, month, year), (month, day, year)):
                    add(" ".join(written), "the patient", always=True)
        return anywhere, as_subject


def looks_like_person_name(name: str, people: Iterable[str] = ()) -> bool:
    """Whether a case's name may be a person's.

    That is a name with ^, DICOM's separator; with two words and a year or a date, as in
    DOE_JANE_1950; or with a word of one of `people`, names from DICOM.
    """
    if "^" in name:
        return True
    parts = re.findall(
        r"[^\W\d_]+|\d+", _INSIDE_DOE_JANE.sub(" ", unicodedata.normalize("NFC", name))
    )
    words = {part.lower() for part in parts if part.isalpha() and len(part) >= 3} - ORDINARY
    dated = any(map(_YEAR_OR_DATE.fullmatch, parts))
    known = {word for person in people if "^" in person for word in _name_words(person)}
    return (len(words) >= 2 and dated) or not known.isdisjoint(_name_words(name))


def pseudonym(identity: str) -> str:
    """A pseudonym, the same for the same case in every run.

    identity: identifies the case, for example its path in the cohort.
    """
    normal = unicodedata.normalize("NFC", identity)
    return f"case-{hashlib.sha256(normal.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def technical_tags(file: Path, tags: Iterable[str]) -> dict[str, str]:
    """The texts of a DICOM file's tags, for an output file; only tags that have one.

    Without words of the tags about the patient and other people, and without numbers that may be
    dates or identifiers.
    """
    found = tags_of(file)
    private = set(_WORDS.findall(found.get(_PATIENT_ID, "").lower()))
    for tag, text in found.items():
        if tag.startswith(_PATIENT_GROUP) or tag in _PEOPLE:
            private |= _name_words(text)

    def kept(match: re.Match[str]) -> str:
        word = match[0].lower()
        return "" if word in private or (word.isdigit() and len(word) >= _MIN_DIGITS) else match[0]

    texts = {tag: _WORDS.sub(kept, found.get(tag, "")).split() for tag in tags}
    texts = {tag: [part for part in parts if _WORDS.search(part)] for tag, parts in texts.items()}
    return {tag: " ".join(parts) for tag, parts in texts.items() if parts}


def dicom_patient_names(ct: Path | Sequence[Path]) -> list[str]:
    """DICOM's name of the patient, from the first DICOM file of a folder, of files, or one file."""
    found = next(filter(None, map(_tags, _dicom_files(ct))), {})
    return [found[_PATIENT_NAME]] if _PATIENT_NAME in found else []


def _name_words(name: str) -> set[str]:
    """The words of a name, in lower case, without initials."""
    name = unicodedata.normalize("NFC", name)
    words = _WORDS.findall(name) + re.findall(r"[^\W\d_]+", _INSIDE_DOE_JANE.sub(" ", name))
    return {word.lower() for word in words if not word.isdigit() and _identifies(word.lower())}


def _identifies(word: str) -> bool:
    """Whether a word in lower case may identify someone."""
    if word.isdigit():
        return len(word) >= _MIN_DIGITS
    return word not in ORDINARY and (len(word) >= 2 or not word.isascii())


def _names_of_path(path: Path) -> Iterator[str]:
    yield from (str(path), str(path.absolute()))
    if os.path.exists(path):
        yield str(path.resolve())
    yield path.name
    stem = path.name
    while stem != (stem := Path(stem).stem):  # a.seg.nrrd, a.seg, a
        yield stem


def _dicom_files(ct: str | Path | Sequence[Path]) -> Iterator[Path]:
    """The files of a DICOM folder, including damaged ones, or of a DICOM file's folder."""
    if not isinstance(ct, str | Path):
        yield from ct
        return
    path = Path(ct)
    if os.path.isdir(path):
        places = os.walk(path)
    elif is_dicom(path):
        yield path
        places = islice(os.walk(path.parent), 1)
    else:
        return
    for folder, _, names in places:
        yield from (Path(folder, name) for name in sorted(names))


def _data_files(path: Path) -> list[str]:
    """Names of the data files in a MetaImage or NRRD header."""
    if path.suffix.lower() not in TEXT_HEADERS or not os.path.isfile(path):
        return []
    with suppress(OSError), path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER).decode("utf-8", "replace")
        return [name.strip() for name in _DATA_FILE.findall(head)]
    return []


def _tags(path: Path) -> dict[str, str]:
    """The tags of a DICOM file about the patient and with free text; {} if it is not an image."""
    return {
        tag: text
        for tag, text in tags_of(path).items()
        if tag.startswith(_PATIENT_GROUP) or tag in (*_PEOPLE, *_FREE_TEXT)
    }


def tags_of(path: Path) -> dict[str, str]:
    """The texts of all tags of a DICOM file's header, in memory only; {} if it is not an image."""
    if not (is_dicom(path) and is_whole(path)):
        return {}
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.SetFileName(itk_path(path))
        with quiet():
            reader.ReadImageInformation()
    except (RuntimeError, StagingError):
        return {}
    return {tag: tag_text(reader, tag) for tag in reader.GetMetaDataKeys()}
