"""Names of patients stay on the screen: what is written says "the CT" instead.

Files and folders are named after patients more often than not, and DICOM says outright who it is.
Sentences for the screen may quote such names; each that goes into a file passes through
`Names.removed`. Names of cases, which become folders and a column of the table, are replaced by a
pseudonym where they read like a person's.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path

import SimpleITK as sitk

from .errors import StagingError
from .fingerprint import TEXT_HEADERS
from .imaging.dicom_elements import is_whole
from .imaging.dicom_files import is_dicom
from .imaging.itk_files import itk_path, quiet
from .imaging.masks import file_and_label
from .stages import GROUPS, STAGES

# What DICOM says about the patient (group 0010, as a whole) and in free text, where names occur.
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
# Words of our own sentences and of ordinary file names. They name nobody, so they are no reason to
# replace anything: a file called liver.nii must not take the liver out of every sentence.
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
_ORDINARY = {*_ORDINARY_WORDS.split(), *(name.lower() for name in (*STAGES, *GROUPS))}

_WORDS = re.compile(r"[^\W_]+")
_BETWEEN = r"[\W_]{1,3}"  # what stands between a name's words: ^ or _ or a space, or ", "
_INSIDE_DOE_JANE = re.compile("(?<=[a-z\u00df-\u00ff])(?=[A-Z\u00c0-\u00de])")
_YEAR_OR_DATE = re.compile(r"19\d\d|20[0-2]\d|\d{8}")
_FEWEST_DIGITS = 5  # a shorter number is no identifier but may be one of the sentence's own
# "The mask /data/p1.nii is empty" is to become "The liver mask is empty".
_NOUN = r"\b(?:the |its )?(?:mask|model|folder|data file|file|image|table) "
_LONGEST_HEADER = 1 << 16
_DATA_FILE = re.compile(r"^(?:ElementDataFile|data ?file)\s*[:=]+(.+)$", re.I | re.M)
_ANY_PATH = re.compile(
    rf"(?:{_NOUN})?(?<![\w/\\])(?:[A-Z]:)?(?:[/\\][^/\\\s:;,'\"]+){{2,}}[/\\]?", re.I
)
_REPEATED = re.compile(r"\b(the patient|a folder)(?:[\W_]{1,3}\1)+\b", re.I)
# A name of one word may be a word of ours as well: it is meant where something is named.
_SUBJECT = rf"(?:^(?=[^\W_]+:)|{_NOUN}|(?<=['\"/\\]))"


class Names:
    """What identifies the patient in one case's inputs, to be kept out of what is written.

    ct, liver, spleen: paths, FILE:LABEL, or names of nodes; None where there is none. Files are
    read only when there is a text to clean. files: other paths that the sentences may quote, and
    what these are.
    """

    def __init__(
        self,
        ct: str | Path | None,
        liver: str | Path | None = None,
        spleen: str | Path | None = None,
        files: Mapping[str | Path, str] | None = None,
    ) -> None:
        self._inputs = {"the CT": ct, "the liver mask": liver, "the spleen mask": spleen}
        self._files = files or {}

    def removed(self, text: str) -> str:
        """A text without names of the inputs, in any letter case and however they are joined.

        The inputs' paths, file and folder names become "the CT" and the like, what DICOM says of
        the patient becomes "the patient", and a path that is none of the inputs' "a file".
        """

        def begin(meant: str, match: re.Match[str]) -> str:
            capital = match.start() == 0 or match[0].startswith("The ")
            return meant[0].upper() + meant[1:] if capital else meant

        text = unicodedata.normalize("NFC", text)
        for pattern, meanings in self._patterns:
            text = pattern.sub(lambda m, known=meanings: begin(known[m.lastindex - 1], m), text)
        text = _ANY_PATH.sub(lambda m: begin("a file", m), text)
        return _REPEATED.sub(r"\1", text)

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], list[str]]]:
        """Patterns with a group for each identifier, and what each stands for."""
        anywhere, as_subject = self._identifiers()
        found = []
        # The root or drive of a path goes with it.
        for before, known in (
            (rf"(?:{_NOUN})?(?:(?<!\w)[/\\]+)?(?<![^\W_])", anywhere),
            (_SUBJECT, as_subject),
        ):
            if known:  # the longest first, so that none hides in another
                ordered = sorted(known, key=len, reverse=True)
                either = "|".join(f"({one})" for one in ordered)
                pattern = re.compile(rf"{before}(?:{either})(?![^\W_])", re.I)
                found.append((pattern, [known[one] for one in ordered]))
        return found

    def _identifiers(self) -> tuple[dict[str, str], dict[str, str]]:
        """What each stands for, by a pattern: those removed anywhere, and as a subject only."""
        anywhere: dict[str, str] = {}
        as_subject: dict[str, str] = {}

        def add(text: str, meant: str, tells: bool = False, person: bool = False) -> None:
            words = _WORDS.findall(unicodedata.normalize("NFC", text))
            if not words or not (tells or any(_tells(word.lower()) for word in words)):
                return
            pattern = _BETWEEN.join(re.escape(word.lower()) for word in words)
            if len(words) > 1 or person or not words[0].isalpha() or not words[0].isascii():
                anywhere.setdefault(pattern, meant)
                return
            as_subject.setdefault(pattern, meant)
            if not words[0].islower():  # as it is written, it is none of our words
                anywhere.setdefault(f"(?-i:{words[0]})", meant)

        def add_person(text: str) -> None:
            for word in _name_words(text):
                add(word, "the patient", person=True)

        paths = {
            file_and_label(given)[0]: meant
            for meant, given in self._inputs.items()
            if given is not None
        }
        paths |= {Path(file): meant for file, meant in self._files.items()}
        for path, meant in paths.items():
            for name in _names_of_path(path):
                file = name == path.name and path.suffix[1:2].isalpha()
                add(name, meant, tells=file or "/" in name or "\\" in name)
        for path in paths:
            for parent in path.absolute().parents:
                add(str(parent), "a folder", tells=len(parent.parts) > 2)
            for part in path.absolute().parts:
                add(part, "a folder")
                if reads_like_a_person(part):
                    add_person(part)
        for path in paths:
            for name in _data_files(path):
                add(name, "the data file", tells=True)
        ct = self._inputs["the CT"]
        for file in () if ct is None else _dicom_files(Path(ct)):
            add(file.name, "a file of the CT")
            add(file.stem, "a file of the CT")
            tags = _tags(file)
            for key, text in tags.items():
                add(text, "the patient", tells=key == _PATIENT_ID and len(text) >= _FEWEST_DIGITS)
                if key in _PEOPLE or reads_like_a_person(text):
                    add_person(text)
            if len(date := tags.get(_BIRTH_DATE, "")) == 8:
                year, month, day = date[:4], date[4:6], date[6:]
                for written in ((year, month, day), (day, month, year), (month, day, year)):
                    add(" ".join(written), "the patient", tells=True)
        return anywhere, as_subject


def reads_like_a_person(name: str, people: Iterable[str] = ()) -> bool:
    """Whether a case's name may be a person's.

    It is one that has a ^, as DICOM joins names; or two words and a year or a date, as in
    DOE_JANE_1950; or that shares a word with one of `people`, names from DICOM.
    """
    if "^" in name:
        return True
    parts = re.findall(
        r"[^\W\d_]+|\d+", _INSIDE_DOE_JANE.sub(" ", unicodedata.normalize("NFC", name))
    )
    words = {part.lower() for part in parts if part.isalpha() and len(part) >= 3} - _ORDINARY
    dated = any(map(_YEAR_OR_DATE.fullmatch, parts))
    known = {word for person in people if "^" in person for word in _name_words(person)}
    return (len(words) >= 2 and dated) or not known.isdisjoint(_name_words(name))


def pseudonym(identity: str) -> str:
    """The same name for the same case at every run, out of which nobody reads a name.

    identity: what tells the case from others, such as its path in the cohort.
    """
    normal = unicodedata.normalize("NFC", identity)
    return f"case-{hashlib.sha256(normal.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def patient_names(path: Path) -> list[str]:
    """DICOM's name of the patient, from the first DICOM file of a folder or from one file."""
    found = next(filter(None, map(_tags, _dicom_files(path))), {})
    return [found[_PATIENT_NAME]] if _PATIENT_NAME in found else []


def _name_words(name: str) -> set[str]:
    """The words of a name, in lower case; of one letter are initials, which tell nothing."""
    name = unicodedata.normalize("NFC", name)
    words = _WORDS.findall(name) + re.findall(r"[^\W\d_]+", _INSIDE_DOE_JANE.sub(" ", name))
    return {word.lower() for word in words if not word.isdigit() and _tells(word.lower())}


def _tells(word: str) -> bool:
    """Whether a word in lower case may identify someone."""
    if word.isdigit():
        return len(word) >= _FEWEST_DIGITS
    return word not in _ORDINARY and (len(word) >= 2 or not word.isascii())


def _names_of_path(path: Path) -> Iterator[str]:
    yield from (str(path), str(path.absolute()))
    if os.path.exists(path):
        yield str(path.resolve())
    yield path.name
    stem = path.name
    while stem != (stem := Path(stem).stem):  # a.seg.nrrd, a.seg, a
        yield stem


def _dicom_files(path: Path) -> Iterator[Path]:
    """The files of a DICOM folder, damaged ones too, or of the folder around one DICOM file."""
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
    """What a MetaImage or NRRD header calls the files with its voxels."""
    if path.suffix.lower() not in TEXT_HEADERS or not os.path.isfile(path):
        return []
    with suppress(OSError), path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER).decode("utf-8", "replace")
        return [name.strip() for name in _DATA_FILE.findall(head)]
    return []


def _tags(path: Path) -> dict[str, str]:
    """What one DICOM file says about the patient and in free text; {} where it is no image."""
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
    tags = {}
    for key in reader.GetMetaDataKeys():
        if key.startswith(_PATIENT_GROUP) or key in (*_PEOPLE, *_FREE_TEXT):
            raw = reader.GetMetaData(key).encode("utf-8", "surrogateescape")
            try:
                tags[key] = raw.decode("utf-8").strip(" \0")
            except UnicodeDecodeError:
                tags[key] = raw.decode("latin-1").strip(" \0")
    return tags
