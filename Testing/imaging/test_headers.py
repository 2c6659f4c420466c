"""Headers of NIfTI, NRRD and MetaImage: every valid way to write one is read, the rest refused."""

import gzip
import re
import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.reading import notes, read_ct

HU = hu_array(10)[:, 4:36, 4:36]
RAW = HU.tobytes()
TEXT = " ".join(map(str, HU.ravel())).encode() + b"\n"
SLICES = {f"s{k}.raw": HU[k - 1].tobytes() for k in range(1, 11)}
LIST = "LIST\n" + "\n".join(SLICES) + "\n"

META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = -180 -160 50
ElementSpacing = 5 5 5
DimSize = 32 32 10
ElementType = MET_SHORT
ElementDataFile = """
NRRD = """NRRD0004
# a comment: with a colon
type: short
dimension: 3
space: left-posterior-superior
sizes: 32 32 10
space directions: (5,0,0) (0,5,0) (0,0,5)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (-180,-160,50)
"""


def meta(*changes, target="LOCAL"):
    return changed(META, changes) + f"{target}\n"


def nrrd(*changes, after=""):
    return changed(NRRD, changes) + after


def changed(text, changes):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def zipped_meta(size, pixels=RAW):
    stream = zlib.compress(pixels)
    size = len(stream) if size is None else size
    field = f"CompressedData = True\nCompressedDataSize = {size}"
    return meta(("CompressedData = False", field)).encode() + stream


def nifti(*changes, pixels=RAW):
    """A NIfTI-1 file with other values in its header: (offset, struct format, value)."""
    header = bytearray(352)
    for offset, form, *values in (
        *((0, "<i", 348), (40, "<8h", 3, 32, 32, 10, 1, 1, 1, 1), (70, "<2h", 4, 16)),
        *((76, "<4f", 1, 5, 5, 5), (108, "<3f", 352, 1, 0), (123, "<B", 2), (252, "<2h", 1, 1)),
        *((256, "<6f", 0, 0, 1, 180, 160, 50), (344, "4s", b"n+1\0")),
        (280, "<12f", -5, 0, 0, 180, 0, -5, 0, 160, 0, 0, 5, 50),
        *changes,
    ):
        struct.pack_into(form, header, offset, *values)
    return bytes(header) + pixels


VALID = {
    # MetaImage
    **{
        f"ElementDataFile {word}": {"ct.mha": meta(target=word).encode() + RAW}
        for word in ("LOCAL", "Local", "local")
    },
    "true and false in small letters": {
        "ct.mha": meta(("True", "true"), ("False", "false")).encode() + RAW
    },
    "colons": {"ct.mha": meta((" = ", ": ")).encode() + RAW},
    "Windows line ends": {"ct.mha": meta().replace("\n", "\r\n").encode() + RAW},
    "a comment first": {"ct.mha": b"Comment = old\n" + meta().encode() + RAW},
    "an unknown field": {"ct.mha": meta(("DimSize", "Colour = red\nDimSize")).encode() + RAW},
    "ElementSize alone": {"ct.mha": meta(("ElementSpacing", "ElementSize")).encode() + RAW},
    "Position for Offset": {"ct.mha": meta(("Offset", "Position")).encode() + RAW},
    "text": {"ct.mha": meta(("BinaryData = True", "BinaryData = False")).encode() + TEXT},
    "HeaderSize": {
        "ct.mhd": meta(("DimSize", "HeaderSize = 7\nDimSize"), target="a.raw").encode(),
        "a.raw": b"7 bytes" + RAW,
    },
    "HeaderSize -1": {
        "ct.mhd": meta(("DimSize", "HeaderSize = -1\nDimSize"), target="a.raw").encode(),
        "a.raw": b"some bytes" + RAW,
    },
    "most significant byte first": {
        "ct.mha": meta(("MSB = False", "MSB = True")).encode() + HU.astype(">i2").tobytes()
    },
    "a list of slices": {"ct.mhd": meta(target=LIST).encode(), **SLICES},
    "numbered slices": {"ct.mhd": meta(target="s%d.raw 1 10 1").encode(), **SLICES},
    "zlib in the file": {"ct.mha": zipped_meta(None)},
    "zlib in a file of its own": {
        "ct.mhd": meta(("CompressedData = False", "CompressedData = 1"), target="a.zraw").encode(),
        "a.zraw": zlib.compress(RAW),
    },
    # NRRD
    "names in capitals": {
        "ct.nrrd": re.sub(r"(?m)^[a-z ]+:", lambda found: found[0].upper(), NRRD).encode()
        + b"\n"
        + RAW
    },
    "keys and values": {"ct.nrrd": nrrd(after="spacings:=0 0 0\nfoo:=a: b\n\n").encode() + RAW},
    "another name of the type": {
        "ct.nrrd": nrrd(("type: short", "type: signed short int"), after="\n").encode() + RAW
    },
    "NRRD as text": {"ct.nrrd": nrrd(("raw", "TEXT"), after="\n").encode() + TEXT},
    "NRRD as hex": {"ct.nrrd": nrrd(("raw", "hex"), after="\n").encode() + RAW.hex().encode()},
    "NRRD most significant byte first": {
        "ct.nrrd": nrrd(("little", "BIG"), after="\n").encode() + HU.astype(">i2").tobytes()
    },
    "skipped lines and bytes": {
        "ct.nrrd": nrrd(after="line skip: 1\nbyte skip: 3\n\n").encode() + b"a line\nabc" + RAW
    },
    "the last bytes": {"ct.nrrd": nrrd(after="byte skip: -1\n\n").encode() + b"abc" + RAW},
    "skipped bytes in gzip": {
        "ct.nrrd": nrrd(("raw", "GZip"), after="byteskip: 3\n\n").encode()
        + gzip.compress(b"abc" + RAW)
    },
    "a data file": {"ct.nhdr": nrrd(after="Data File: ./a.raw\n").encode(), "a.raw": RAW},
    "a list of data files": {"ct.nhdr": nrrd(after=f"data file: {LIST}").encode(), **SLICES},
    "numbered data files": {
        "ct.nhdr": nrrd(after="data file: s%d.raw 1 10 1\n").encode(),
        **SLICES,
    },
    "right-anterior-superior": {
        "ct.nrrd": nrrd(
            ("left-posterior", "Right-Anterior"),
            ("(5,0,0) (0,5,0)", "(-5,0,0) (0,-5,0)"),
            ("-180,-160", "180,160"),
            after="\n",
        ).encode()
        + RAW
    },
    "one layer of a list": {
        "ct.nrrd": nrrd(
            ("dimension: 3", "dimension: 4"),
            ("sizes: ", "sizes: 1 "),
            ("directions: ", "directions: none "),
            ("kinds: ", "kinds: list "),
            after="\n",
        ).encode()
        + RAW
    },
    # NIfTI
    "single file": {"ct.nii": nifti()},
    "pixels further on": {"ct.nii": nifti((108, "<f", 368.0), pixels=bytes(16) + RAW)},
    "no scaling by NaN": {"ct.nii": nifti((112, "<2f", np.nan, 0))},
    "no scaling by 0": {"ct.nii": nifti((112, "<2f", 0, 0))},
    "empty axes after the third": {"ct.nii": nifti((40, "<8h", 7, 32, 32, 10, 0, 0, 0, 0))},
    "an sform in a template's space beside a qform": {
        "ct.nii": nifti((254, "<h", 4), (280, "<4f", 3, 1, 0, 9))
    },
    "not compressed, but called so": {"ct.nii.gz": nifti()},
    "a pair": {
        "ct.hdr": nifti((344, "4s", b"ni1\0"), (108, "<f", 0))[:348],
        "ct.img": RAW,
    },
    "a compressed pair": {
        "ct.img.gz": gzip.compress(RAW),
        "ct.hdr.gz": gzip.compress(nifti((344, "4s", b"ni1\0"), (108, "<f", 0))[:348]),
    },
}

REFUSED = {
    "zlib without a length": (
        {"ct.mha": meta(("Data = False", "Data = True")).encode() + zlib.compress(RAW)},
        "no CompressedDataSize",
    ),
    "garbage as length": ({"ct.mha": zipped_meta("12x7")}, "gives '12x7' as CompressedDataSize"),
    "a length beyond the file": ({"ct.mha": zipped_meta(10**6)}, "of 1000000 compressed bytes"),
    "a length that cuts": ({"ct.mha": zipped_meta(100)}, "truncated"),
    "too few pixels in zlib": ({"ct.mha": zipped_meta(None, RAW[:-2])}, "truncated"),
    "damaged zlib": (
        {"ct.mha": zipped_meta(None)[:-4] + b"\x55" * 4},
        "damaged",
    ),
    "a series without step": (
        {"ct.mhd": meta(target="s%d.raw 1 10").encode(), **SLICES},
        "and the step",
    ),
    "a list with a gap": (
        {"ct.mhd": meta(target=LIST).encode(), **SLICES, "s3.raw": None},
        "'s3.raw' is missing",
    ),
    "scaled MetaImage": (
        {
            "ct.mha": meta(
                ("DimSize", "ElementToIntensityFunctionOffset = -1024\nDimSize")
            ).encode()
            + RAW
        },
        "adds -1024",
    ),
    "metres": ({"ct.mha": meta(("DimSize", "DistanceUnits = m\nDimSize")).encode() + RAW}, "'m'"),
    "eleven axes": ({"ct.mha": meta(("NDims = 3", "NDims = 11")).encode() + RAW}, "'11' as NDims"),
    "a size below 0": ({"ct.mha": meta(("32 10", "32 -10")).encode() + RAW}, "'-10' as DimSize"),
    "an absurd size": (
        {"ct.mha": meta(("32 32", "2000000000 2000000000")).encode() + RAW},
        "truncated: 20480 of 80000000000000000000 bytes",
    ),
    "a place that is no number": (
        {"ct.mha": meta(("-180 -160", "nan -160")).encode() + RAW},
        "'nan -160 50' as Offset",
    ),
    "vectors": ({"ct.mha": meta(("SHORT", "SHORT_ARRAY")).encode() + RAW}, "MET_SHORT_ARRAY"),
    "bytes in the header": (
        {"ct.mha": meta(("DimSize", "Na\xffme = x\nDimSize")).encode("latin-1") + RAW},
        "damaged near",
    ),
    "bzip2": ({"ct.nrrd": nrrd(("raw", "bzip2"), after="\n").encode()}, "encoding 'bzip2'"),
    "a word that overflows": (
        {"ct.nrrd": nrrd(("(5,0,0)", "(" + "5" * 3000 + ",0,0)"), after="\n").encode() + RAW},
        "damaged in line 7",
    ),
    "an unknown NRRD field": (
        {"ct.nrrd": nrrd(after="flavour: sweet\n\n").encode() + RAW},
        "damaged in line",
    ),
    "an absurd gzip": (
        {
            "ct.nrrd": nrrd(("raw", "gzip"), ("32 32", "200000 200000"), after="\n").encode()
            + gzip.compress(RAW)
        },
        "compressed bytes cannot contain",
    ),
    "micrometres": (
        {"ct.nrrd": nrrd(after='space units: "um" "um" "um"\n\n').encode() + RAW},
        "in 'um'",
    ),
    **{
        f"pixels at byte {value}": ({"ct.nii": nifti((108, "<f", value))}, "pixels begin at byte")
        for value in (np.nan, np.inf, -352.0, 1e30, 0.0, 352.5)
    },
    "eight dimensions": ({"ct.nii": nifti((40, "<h", 8))}, "8 dimensions"),
    "an axis of 0": ({"ct.nii": nifti((46, "<h", 0))}, "32 x 32 x 0 voxels"),
    "an unknown type": ({"ct.nii": nifti((70, "<h", 77))}, "data type code 77"),
    "an infinite slope": ({"ct.nii": nifti((112, "<f", np.inf))}, "scales values by inf"),
    "an intercept without slope": (
        {"ct.nii": nifti((112, "<2f", 0, -1024))},
        "adds -1024 to values that it does not scale",
    ),
    "a NaN in the qform": (
        {"ct.nii": nifti((254, "<h", 0), (268, "<f", np.nan))},
        "not a rotation and a position",
    ),
    "a NaN in the sform": ({"ct.nii": nifti((280, "<f", np.nan))}, "not finite"),
    "two spacings": ({"ct.nii": nifti((80, "<f", 2.5))}, "is inconsistent"),
    "NIfTI-2": ({"ct.nii": nifti((0, "<i", 540))}, "NIfTI-2"),
    "Analyze": ({"ct.nii": nifti((344, "4s", bytes(4)))}, "Analyze"),
    "compressed, but not called so": ({"ct.nii": gzip.compress(nifti())}, "must end in .gz"),
    "half a pair": ({"ct.hdr": nifti((344, "4s", b"ni1\0"))}, "other file of the pair"),
    "a cut pair": (
        {"ct.hdr": nifti((344, "4s", b"ni1\0"), (108, "<f", 0))[:348], "ct.img": RAW[:-2]},
        "20478 of 20480 bytes",
    ),
}


def written(folder, files):
    for name, data in files.items():
        if data is not None:
            (folder / name).write_bytes(data)
    return folder / next(iter(files))


@pytest.mark.parametrize("name", VALID)
def test_a_valid_header_is_read(name, tmp_path):
    found = read_ct(written(tmp_path, VALID[name]))
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found), HU)
    expected = image(HU)
    for what in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, what)(), getattr(expected, what)(), atol=1e-6)
    assert notes(found) == ()


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_header_is_refused(name, tmp_path, capfd):
    files, words = REFUSED[name]
    path = written(tmp_path, files)
    with pytest.raises(StagingError, match=re.escape(words)) as refusal:
        read_ct(path)
    text = str(refusal.value)
    assert text.startswith("ct.") and text.endswith(".") and "\n" not in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "files",
    [
        {"ct.nrrd": nrrd(("left-posterior-superior", "scanner-xyz"), after="\n").encode() + RAW},
        {
            "ct.nrrd": nrrd(
                ("space: left-posterior-superior\n", ""),
                ("space directions: (5,0,0) (0,5,0) (0,0,5)", "spacings: 5 5 5"),
                ("space origin: (-180,-160,50)\n", ""),
                after="\n",
            ).encode()
            + RAW
        },
        {"ct.mha": meta(("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "")).encode() + RAW},
        {"ct.nii": nifti((252, "<2h", 0, 0))},
    ],
    ids=["another space", "spacings alone", "no matrix", "no form"],
)
def test_a_header_without_orientation_is_noted(files, tmp_path):
    (note,) = notes(read_ct(written(tmp_path, files)))
    assert "patient's orientation" in note and "ct" not in note.split()[1]


def test_nan_as_spacing_of_a_non_spatial_axis_is_valid(tmp_path):
    text = nrrd(
        ("dimension: 3", "dimension: 4"),
        ("sizes: ", "sizes: 1 "),
        ("space: left-posterior-superior\n", ""),
        ("space directions: (5,0,0) (0,5,0) (0,0,5)", "spacings: NaN 5 5 5"),
        ("kinds: ", "kinds: vector "),
        ("space origin: (-180,-160,50)\n", ""),
        after="\n",
    )
    found = read_ct(written(tmp_path, {"ct.nrrd": text.encode() + RAW}))
    assert found.GetSpacing() == (5.0, 5.0, 5.0) and found.GetSize() == (32, 32, 10)


def test_a_path_that_is_neither_file_nor_folder_is_refused(tmp_path):
    import os

    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(StagingError, match="neither a file nor a folder"):
        read_ct(tmp_path / "pipe.nii")
