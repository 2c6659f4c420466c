"""Checks of NRRD and MetaImage headers before ITK reads them.

ITK's parsers print errors to the console, and some headers crash them. Headers that they read
correctly pass; others are refused with a reason.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import StagingError
from .nifti_header import check_spacing
from .pixel_data import GZIP, GZIP_OR_ZLIB, PixelData

_MAX_HEADER = 1 << 20
_MAX_AXES = 8

_META_BYTES = {
    f"MET_{sign}{kind}": size
    for kind, size in (("CHAR", 1), ("SHORT", 2), ("INT", 4), ("LONG", 4), ("LONG_LONG", 8))
    for sign in ("", "U")
} | {"MET_FLOAT": 4, "MET_DOUBLE": 8}

# NRRD's names of types, without "signed" and "int" at their ends, and their bytes.
_NRRD_BYTES = {
    **dict.fromkeys(("char", "uchar", "unsigned char", "int8", "int8_t", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "ushort", "unsigned short"), 2),
    **dict.fromkeys(("int16", "int16_t", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "uint", "unsigned", "int32", "int32_t", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "ulonglong", "unsigned long long"), 8),
    **dict.fromkeys(("int64", "int64_t", "uint64", "uint64_t"), 8),
    **{"float": 4, "double": 8},
}
_NRRD_ENCODINGS = {"raw": 0, "gz": GZIP, "gzip": GZIP}
_NRRD_FIELDS = (
    *("content", "number", "type", "blocksize", "dimension", "space", "spacedimension", "sizes"),
    *("spacings", "thicknesses", "axismins", "axismaxs", "spacedirections", "centers"),
    *("centerings", "kinds", "labels", "units", "min", "max", "oldmin", "oldmax", "endian"),
    *("encoding", "lineskip", "byteskip", "sampleunits", "spaceunits", "spaceorigin"),
    *("measurementframe", "datafile"),
)
_NRRD_SPACES = re.compile(r"(left|right)-(anterior|posterior)-superior|[LR][AP]S", re.I)
_LONGEST_WORD = 255  # longer ones overflow a buffer in ITK's NRRD reader
_NRRD_TEXTS = ("ascii", "text", "txt", "hex")
_NO_MM = re.compile(r"^(m|cm|dm|[uµ]m|nm|met(er|re)s?|cent\w+|micro\w+|in(ch\w*)?)$", re.I)


@dataclass(frozen=True)
class TextHeader:
    """Fields of a header by name, the lines after it, and the offset at which it ends."""

    fields: dict[str, str]
    lines: tuple[str, ...]
    end: int


def check_nrrd(path: Path) -> PixelData:
    """The pixels of an NRRD file (https://teem.sourceforge.net/nrrd/format.html).

    Raises StagingError if it is not NRRD, its header is damaged, or ITK cannot read it.
    """
    name = path.name
    header = _nrrd_header(path)
    fields = header.fields
    for field in ("type", "dimension", "sizes", "encoding"):
        if field not in fields:
            raise StagingError(f"{name}: the header has no '{field}'; it is damaged.")
    axes = _whole(fields["dimension"], "dimension", name, 1, _MAX_AXES)
    size = _wholes(fields["sizes"], "sizes", axes, name)
    kind = re.sub(r"^signed (?=.)|(?<=.) int$", "", fields["type"].lower())
    if kind not in _NRRD_BYTES:
        raise StagingError(f"{name}: unknown data type {_quoted(fields['type'])}.")
    _check_nrrd_space(fields, name)

    encoding = fields["encoding"].lower()
    if encoding not in _NRRD_ENCODINGS and encoding not in _NRRD_TEXTS:
        raise StagingError(
            f"{name}: the encoding {_quoted(encoding)} cannot be read; raw or gzip is needed."
        )
    needed = math.prod(size) * _NRRD_BYTES[kind]
    if encoding in _NRRD_TEXTS:  # at least a digit and a space each
        needed = 2 * (needed if encoding == "hex" else math.prod(size)) - 1
    files = (path,)
    if "datafile" in fields:
        files = _data_files(path, fields["datafile"], header.lines)
    elif header.end == path.stat().st_size:
        raise StagingError(f"{name}: the file ends after its header; it is truncated.")

    offset = header.end if files == (path,) else 0
    for _ in range(_whole(fields.get("lineskip", "0"), "line skip", name, 0, 1000)):
        if len(files) > 1:
            raise StagingError(f"{name}: a line skip in several data files is not supported.")
        offset = _after_line(files[0], offset)
    # -1: the pixels are the last bytes.
    skipped = max(0, _whole(fields.get("byteskip", "0"), "byte skip", name, -1, 2**40))
    stream = _NRRD_ENCODINGS.get(encoding, 0)
    placed = _NRRD_SPACES.fullmatch(fields.get("space", "")) is not None
    if stream:
        return PixelData(
            *(files, offset, needed + skipped, stream, skipped),
            as_stored=len(files) == 1,
            placed=placed,
        )
    return PixelData(files, offset + skipped, needed, placed=placed)


def check_metaimage(path: Path) -> PixelData:
    """The pixels of a MetaImage file (https://docs.itk.org/en/latest/learn/metaio.html).

    Raises StagingError if it is not MetaImage, its header is damaged, or ITK cannot read it.
    """
    name = path.name
    header = _meta_header(path)
    fields = header.fields
    if fields.get("ObjectType", "Image").lower() != "image" or "ElementDataFile" not in fields:
        raise StagingError(f"{name}: not a MetaImage file.")
    axes = _whole(fields.get("NDims", ""), "NDims", name, 1, _MAX_AXES)
    size = _wholes(fields.get("DimSize", ""), "DimSize", axes, name)
    spacing = fields.get("ElementSpacing") or fields.get("ElementSize")
    if spacing is None:
        raise StagingError(f"{name}: the header has no voxel spacing.")
    check_spacing(spacing.split(), name)
    for field, count in _META_NUMBERS.items():
        if field in fields:
            _finites(fields[field], field, axes**count, name)
    _check_meta_units(fields, name)
    kind = fields.get("ElementType", "")
    if kind not in _META_BYTES:
        raise StagingError(f"{name}: unknown data type {_quoted(kind)}.")
    channels = _whole(fields.get("ElementNumberOfChannels", "1"), "channels", name, 1, 1000)
    values = math.prod(size) * channels
    needed = values * _META_BYTES[kind]

    target = fields["ElementDataFile"]
    inside = target.lower() == "local"
    files = (path,) if inside else _data_files(path, target, header.lines)
    skipped = _whole(fields.get("HeaderSize", "0"), "HeaderSize", name, -1, 2**40)
    zipped, text = _true(fields, "CompressedData"), not _true(fields, "BinaryData", "True")
    if skipped and (zipped or text or (inside and skipped > 0) or (len(files) > 1 and skipped < 0)):
        raise StagingError(
            f"{name}: a HeaderSize of {skipped} is not supported for compressed or text data, or "
            "for data in the same file."
        )
    offset = header.end if inside else max(skipped, 0)
    placed = not {"TransformMatrix", "Rotation", "Orientation"}.isdisjoint(fields)
    if not zipped:
        return PixelData(files, offset, 2 * values - 1 if text else needed, placed=placed)
    stored = fields.get("CompressedDataSize")
    if (inside and stored is None) or (len(files) > 1 and stored is not None):
        raise StagingError(
            f"{name}: the header has {'no' if inside else 'a'} CompressedDataSize; it is needed "
            "for pixels in the same file and not supported for several data files."
        )
    length = None if stored is None else _whole(stored, "CompressedDataSize", name, 1, 2**50)
    return PixelData(files, offset, needed, GZIP_OR_ZLIB, stored=length, placed=placed)


# Numeric fields of a MetaImage header: their length, as a power of the number of axes.
_META_NUMBERS = {
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2),
    **dict.fromkeys(("Offset", "Position", "Origin", "CenterOfRotation"), 1),
    **dict.fromkeys(("ElementSpacing", "ElementSize"), 1),
    **dict.fromkeys(("ElementMin", "ElementMax"), 0),
    **dict.fromkeys(("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"), 0),
}


def _nrrd_header(path: Path) -> TextHeader:
    """Field names are in lower case and without spaces: "data file" and "datafile" are the same."""
    lines, end = _lines(path, lambda line: not line.strip())
    if not re.fullmatch(r"NRRD00(0[1-5]|\.01)", lines[0].rstrip() if lines else ""):
        raise StagingError(f"{path.name}: not an NRRD file.")
    fields: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=1):
        line = line.rstrip()
        if not line or line.startswith("#") or re.match(r"[^:]*:=", line):
            continue
        key, separator, value = line.partition(": ")
        key = key.lower().replace(" ", "")
        too_long = key != "content" and max(map(len, value.split()), default=0) > _LONGEST_WORD
        if not separator or key not in _NRRD_FIELDS or key in fields or too_long:
            raise StagingError(f"{path.name}: the header is damaged in line {number + 1}.")
        fields[key] = value.strip()
        if key == "datafile" and value.strip().split(" ")[0] == "LIST":
            return TextHeader(fields, tuple(lines[number + 1 :]), end)
    return TextHeader(fields, (), end)


def _meta_header(path: Path) -> TextHeader:
    lines, end = _lines(path, lambda line: line.lstrip().startswith("ElementDataFile"))
    fields: dict[str, str] = {}
    for line in lines:
        if not line.strip():
            continue
        key, *value = re.split(r"[=:]", line.strip(), maxsplit=1)
        key = key.strip()
        if not value or not key.isascii() or not 0 < len(key) < 200:
            if "NDims" not in fields:
                raise StagingError(f"{path.name}: not a MetaImage file.")
            raise StagingError(f"{path.name}: the header is damaged near {_quoted(key)}.")
        fields[key] = value[0].strip()
        if "NDims" not in fields and key in (*_META_NUMBERS, "DimSize"):
            raise StagingError(f"{path.name}: the header gives {key} before NDims; it is damaged.")
    listed: tuple[str, ...] = ()
    if fields.get("ElementDataFile", "").split(" ")[0] == "LIST":
        with open(path, "rb") as file:
            file.seek(end)
            listed = tuple(file.read(_MAX_HEADER).decode("latin-1").splitlines())
    return TextHeader(fields, listed, end)


def _lines(path: Path, last: Callable[[str], bool]) -> tuple[list[str], int]:
    """Lines of a header up to the last one, and the offset of the next."""
    lines: list[str] = []
    with open(path, "rb") as file:
        while file.tell() < _MAX_HEADER and (raw := file.readline(_MAX_HEADER)):
            lines.append(raw.decode("latin-1"))
            if "\0" in lines[-1]:
                raise StagingError(f"{path.name}: the header is not text; the file is damaged.")
            if last(lines[-1]):
                break
        return lines, file.tell()


def _data_files(path: Path, target: str, listed: tuple[str, ...]) -> tuple[Path, ...]:
    """The files with the pixels: one by name, a list of them, or a numbered series."""
    names = [target]
    if target.split(" ")[0] == "LIST":
        names = [line.strip() for line in listed if line.strip()]
    elif "%" in target:
        pattern = r"([^%\s]*%0?\d?d[^%\s]*) (\d{1,6}) (\d{1,6}) (\d{1,6})( \d+)?"
        match = re.fullmatch(pattern, target)
        if match is None or int(match[4]) == 0:
            raise StagingError(
                f"{path.name}: a numbered series of data files needs a name with %d, and the "
                "first number, the last and the step."
            )
        names = [match[1] % n for n in range(int(match[2]), int(match[3]) + 1, int(match[4]))]
    files = tuple(path.parent / name for name in names)
    if not files:
        raise StagingError(f"{path.name}: the header lists no data file.")
    for file in files:
        if len(file.name) > 255 or not file.is_file():
            raise StagingError(f"{path.name}: its data file {_quoted(file.name)} is missing.")
    return files


def _check_nrrd_space(fields: dict[str, str], name: str) -> None:
    if "spacings" in fields:
        spacings = fields["spacings"].split()
        kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(spacings)
        spatial = ("domain", "space", "???", "none")
        check_spacing([step for step, kind in zip(spacings, kinds) if kind in spatial], name)
    elif "spacedirections" not in fields:
        raise StagingError(f"{name}: the header has no voxel spacing.")
    for field in ("units", "spaceunits"):
        for unit in re.findall(r'"\s*([^"]*?)\s*"', fields.get(field, "")):
            if _NO_MM.match(unit):
                raise StagingError(f"{name}: lengths are in {_quoted(unit)}; mm are needed.")


def _check_meta_units(fields: dict[str, str], name: str) -> None:
    unit = fields.get("DistanceUnits", "mm")
    if _NO_MM.match(unit):
        raise StagingError(f"{name}: lengths are in {_quoted(unit)}; mm are needed.")
    slope = fields.get("ElementToIntensityFunctionSlope", "1")
    offset = fields.get("ElementToIntensityFunctionOffset", "0")
    if (float(slope), float(offset)) != (1.0, 0.0):
        raise StagingError(
            f"{name}: the header scales values by {float(slope):g} and adds {float(offset):g}, "
            "which ITK does not apply; values in HU are needed."
        )


def _after_line(path: Path, offset: int) -> int:
    with open(path, "rb") as file:
        file.seek(offset)
        while (chunk := file.readline(_MAX_HEADER)) and not chunk.endswith(b"\n"):
            pass
        return file.tell()


def _true(fields: dict[str, str], field: str, default: str = "False") -> bool:
    """A flag as MetaIO reads it, by the first letter."""
    return fields.get(field, default)[:1] in ("T", "t", "1")


def _whole(text: str, field: str, name: str, least: int, most: int) -> int:
    number = int(text) if re.fullmatch(r"-?\d{1,19}", text) else None
    if number is None or not least <= number <= most:
        raise StagingError(
            f"{name}: the header gives {_quoted(text)} as {field}; a whole number from {least} to "
            f"{most} is needed."
        )
    return number


def _wholes(text: str, field: str, count: int, name: str) -> list[int]:
    words = text.split()
    if len(words) != count:
        raise StagingError(
            f"{name}: the header gives {len(words)} numbers as {field}; {count} are needed."
        )
    return [_whole(word, field, name, 1, 2**31 - 1) for word in words]


def _finites(text: str, field: str, count: int, name: str) -> None:
    try:
        finite = [math.isfinite(float(word)) for word in text.split()]
    except ValueError:
        finite = []
    if len(finite) != count or not all(finite):
        raise StagingError(
            f"{name}: the header gives {_quoted(text)} as {field}; {count} finite number"
            f"{'s are' if count > 1 else ' is'} needed."
        )


def _quoted(text: str) -> str:
    """A part of a header for a message: short, on one line."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"'{text[:40]}...'" if len(text) > 40 else f"'{text}'"
