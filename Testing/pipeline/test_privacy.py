"""No file written by any command contains a patient's name or a path."""

import csv
import re
import sys
import unicodedata
import zlib
from functools import partial

import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image, write, write_slices

from LiverFibrosisStagingLib import explanation_check, faithfulness
from LiverFibrosisStagingLib.__main__ import FAILS_CHECK, main
from LiverFibrosisStagingLib.privacy import Names, looks_like_person_name, pseudonym

TAGS = {"0010|0010": "DOE^JANE", "0008|103e": "Jane Doe arterial", "0010|0030": "19500213"}


@pytest.mark.parametrize(
    "name",
    [
        "DOE^JANE",
        "^",
        "DOE_JANE_1950",
        "Doe Jane 19500213",
        "Doe, Jane 1950-02-13",
        "DoeJane1950",
        "scans/Doe/Jane/2019",
        "M\u00fcller-Lim_Ana_1987",
        unicodedata.normalize("NFD", "M\u00fcller_J\u00e9r\u00f4me_1987"),
    ],
)
def test_names_that_may_be_persons(name):
    assert looks_like_person_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "p1",
        "hcc002_cirrA_pv",
        "sub-01",
        "sub-1950/ct",
        "CT_abdomen_portal_2019",
        "1950",
        "case-1a2b",
    ],
)
def test_ordinary_names(name):
    assert not looks_like_person_name(name)


def test_name_shared_with_dicom_is_a_person():
    assert looks_like_person_name("doe_scan2", ["DOE^JANE"])
    assert looks_like_person_name("2019/JaneD", ["DOE^JANE"])
    assert not looks_like_person_name("scan2", ["DOE^JANE"])
    assert not looks_like_person_name("LIDC-01", ["LIDC-01"])  # a number, not a name
    assert not looks_like_person_name("CT of liver", ["CT^LIVER"])


def test_pseudonyms_are_stable():
    assert pseudonym("a/DOE.nii") == pseudonym("a/DOE.nii") != pseudonym("b/DOE.nii")
    assert re.fullmatch("case-[0-9a-f]{8}", pseudonym("a/DOE.nii"))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("DOE^JANE.nii.gz: the file is empty.", "The CT: the file is empty."),
        ("{ct}: no such file or folder.", "The CT: no such file or folder."),
        ("Cannot open '{folder}'.", "Cannot open 'a folder'."),
        (
            "The mask {liver} has no voxel with the label 3.",
            "The liver mask has no voxel with the label 3.",
        ),
        ("doe jane, Jane_Doe and JANE", "The CT, the patient and the patient"),
        ("Cannot write to the folder {out}: full.", "Cannot write to the result folder: full."),
        ("The model {model} failed to run: no.", "The model failed to run: no."),
        ("'/tmp/elsewhere/x.nii' is missing", "'a file' is missing"),
        (
            "No liver was found: 12 mL of 300 mL, F2/F4.",
            "No liver was found: 12 mL of 300 mL, F2/F4.",
        ),
    ],
)
def test_names_are_removed(text, clean, tmp_path):
    folder = tmp_path / "DOE_JANE_1950"
    given = {
        "ct": folder / "DOE^JANE.nii.gz",
        "folder": folder,
        "liver": folder / "doe_liver.nii",
        "out": tmp_path / "results" / "p1",
        "model": tmp_path / "models" / "m.onnx",
    }
    files = {given["out"]: "the result folder", given["model"]: "the model"}
    names = Names(given["ct"], f"{given['liver']}:3", files=files)
    assert names.removed(text.format(**given)) == clean


def test_one_word_names_are_removed_as_subjects(tmp_path):
    names = Names(tmp_path / "Damaged" / "offset.nii")
    for text, clean in (
        ("offset: no.", "The CT: no."),
        ("Damaged: no.", "A folder: no."),
        ("The folder Damaged is damaged.", "A folder is damaged."),
        ("'damaged' is Damaged: an offset.", "'a folder' is a folder: an offset."),
        ("offset.nii: with an offset of 5 x 5 x 5.", "The CT: with an offset of 5 x 5 x 5."),
    ):
        assert names.removed(text) == clean


@pytest.mark.parametrize(
    "name", ["ct", "liver", "a", "the", "12", "1.2", "cirrhosis", "segmentation"]
)
def test_ordinary_words_stay_in_sentences(name, tmp_path):
    sentence = "The liver of a 12 x 1.2 mm CT, for cirrhosis: see the segmentation."
    assert Names(tmp_path / name / f"{name}.nii.gz").removed(sentence) == sentence
    assert Names(tmp_path / name / f"{name}.nii.gz").removed(f"{name}.nii.gz: no.") == "The CT: no."


def test_names_of_nodes_and_of_other_scripts_are_removed():
    assert Names("3: DOE JANE").removed("3: DOE JANE: is empty.") == "The CT: is empty."
    assert Names("\u5c71\u7530").removed("\u5c71\u7530: no.") == "The CT: no."
    decomposed = unicodedata.normalize("NFD", "M\u00fcller")
    assert Names(decomposed).removed("M\u00dcLLER: no.") == "The CT: no."
    assert Names(None).removed("Nothing.") == "Nothing."


def test_names_in_dicom_are_removed(tmp_path):
    folder = write_slices(tmp_path / "scan", image(hu_array(3)), TAGS, prefix="JD")
    names = Names(folder)
    for text in ("doe", "Jane, Doe", "PATIENT-1", "jane doe arterial", "19500213", "1950-02-13"):
        assert names.removed(f"Series of {text}.") == "Series of the patient.", text
    assert names.removed("JD001.dcm is damaged.") == "A file of the CT is damaged."
    assert names.removed("Read in the arterial phase.") == "Read in the arterial phase."


@pytest.mark.parametrize("one_file", [False, True])
def test_other_files_of_a_dicom_folder_are_removed(one_file, tmp_path):
    folder = write_slices(tmp_path / "scan", image(hu_array(3)), {"0010|0010": "X"}, prefix="P")
    (folder / "Roe.dcm").write_text("cut off")
    names = Names(folder / "P001.dcm" if one_file else folder)
    assert (
        names.removed("roe.dcm and P002.dcm differ.")
        == "A file of the CT and a file of the CT differ."
    )


def test_names_of_data_files_in_headers_are_removed(tmp_path):
    write(tmp_path / "p1.mhd", hu_array(2))
    text = (tmp_path / "p1.mhd").read_text().replace("p1.raw", "Roe R.zraw")
    (tmp_path / "p1.mhd").write_text(text)
    clean = Names(tmp_path / "p1.mhd").removed("p1.mhd: its data file Roe R.zraw is missing.")
    assert clean == "The CT: the data file is missing."


@pytest.fixture(scope="module")
def inputs(sample, tmp_path_factory):
    """The phantom under a patient's name in every format, and files that cannot be read."""
    root = tmp_path_factory.mktemp("in") / "DOE_JANE_1950"
    coarse = {
        name: sitk.BinShrink(sitk.ReadImage(str(path)), [3, 3, 2]) for name, path in sample.items()
    }
    cohort = root / "cohort"
    cohort.mkdir(parents=True)
    for name in ("DOE^JANE", "DOE_JANE_1950"):
        if "^" in name:  # without orientation, so that there is something to say about the file
            for part in ("", "_liver"):
                image_of = coarse["liver" if part else "ct"]
                sitk.WriteImage(image_of, str(cohort / f"{name}{part}.nii"))
                header = bytearray((cohort / f"{name}{part}.nii").read_bytes())
                header[252:256] = bytes(4)
                (cohort / f"{name}{part}.nii").write_bytes(header)
        else:
            sitk.WriteImage(coarse["ct"], str(cohort / f"{name}.nii.gz"))
            sitk.WriteImage(coarse["liver"], str(cohort / f"{name}_liver.seg.nrrd"))
    slices = sitk.Cast(coarse["ct"], sitk.sitkInt16)
    write_slices(cohort / "DOE_JANE", slices, TAGS)
    write_slices(
        cohort / "DOE_JANE", slices[:, :, :12], {**TAGS, "0020|0011": "2"}, prefix="B", uid="1.2.9"
    )
    sitk.WriteImage(coarse["liver"], str(cohort / "DOE_JANE" / "DOE^JANE.seg.nrrd"))
    (cohort / "DOE^JANE broken.nii").write_text("DOE^JANE")
    write(cohort / "JANE_DOE_1950.mha", hu_array())
    text = (
        (cohort / "JANE_DOE_1950.mha")
        .read_bytes()
        .replace(b"ElementSpacing = 5 5 5", b"ElementSpacing = DOE JANE 5")
    )
    (cohort / "JANE_DOE_1950.mha").write_bytes(text)
    other = {**TAGS, "0020|000d": "1.2.4"}
    write_slices(cohort / "JANE", slices, other, skip=(9,), uid="1.2.7")
    listed = root / "DOE^JANE.csv"
    with listed.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("ct", "liver", "case"),
                ("cohort/DOE^JANE.nii", "cohort/DOE^JANE_liver.nii:1", "Doe^Jane"),
                (cohort / "DOE_JANE", "cohort/DOE_JANE_1950_liver.seg.nrrd:7", "P2"),
                ("cohort/DOE_JANE_gone.nii", "", "P1"),
            ]
        )
    return root


def texts(path):
    """The bytes of a file, also decompressed."""
    data = path.read_bytes()
    yield data
    for start in (m.start() for m in re.finditer(rb"\x1f\x8b|\x78[\x01\x5e\x9c\xda]", data)):
        try:
            yield zlib.decompressobj(47).decompress(data[start:])
        except zlib.error:
            continue


def check(output):
    """Check that no file below `output` contains a name; returns the files."""
    written = [path for path in output.rglob("*") if path.is_file()]
    for path in written:
        assert not re.search("doe|jane|1950", str(path.relative_to(output)).lower()), path
        # "does" is no name, and a few letters come by chance in megabytes of voxels.
        text_only = path.suffix in (".json", ".csv")
        words = rb"\bdoe(?![a-z])|jane" if text_only else rb"doe[ _^]|jane[ _^]"
        for text in texts(path):
            for found in re.finditer(words, text.lower()):
                raise AssertionError((path, text[max(0, found.start() - 80) : found.end() + 80]))
            assert b"cohort/" not in text
    return written


@pytest.mark.parametrize("shown", [True, False])
def test_no_command_writes_a_name(shown, inputs, model_path, tmp_path, monkeypatch, capsys):
    """With the progress line and tracebacks on, and off."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: shown, raising=False)
    quick = partial(faithfulness.measure_faithfulness, steps=1, layers=1)
    monkeypatch.setattr(faithfulness, "measure_faithfulness", quick)
    monkeypatch.setattr(explanation_check, "CHANGES", (explanation_check.SURROUNDINGS,))
    cohort, single = inputs / "cohort", model_path.with_name("LFS_single.onnx")
    if shown:
        one, mask = cohort / "DOE_JANE", cohort / "DOE_JANE_1950_liver.seg.nrrd"
        source, options, labels = cohort, [], "organs.seg.nrrd"
    else:
        one, mask = cohort / "DOE^JANE.nii", cohort / "DOE^JANE_liver.nii"
        source, options, labels = inputs / "DOE^JANE.csv", ["--pseudonyms"], "organs.nii.gz"

    def run(command, *arguments, code=0):
        first = ["--debug"] if shown else []
        assert main([*first, command, *map(str, arguments)]) == code
        return capsys.readouterr()

    run("stage", one, "--liver", mask, "--model", single, "-o", "out/stage")
    run("segment", cohort / "DOE_JANE", "-o", f"out/segmented/{labels}")
    on_one = ["check-explanation", one, "--liver", mask, "--model", single]
    run(*on_one, "-o", "out/faithfulness", "--faithfulness")
    run(*on_one, "-o", "out/check", code=FAILS_CHECK)
    printed = run("batch", source, "--model", single, "-o", "out/batch", *options, code=3)
    assert "DOE" in printed.err  # the screen says which is which
    assert {".json", ".csv", ".png", ".nrrd"} <= {path.suffix for path in check(tmp_path / "here")}
    with (tmp_path / "here" / "out" / "batch" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"done", "failed"}
    assert all(row["reason"] for row in rows if row["status"] == "failed")
    assert {row["case"][:5] for row in rows} == {"case-"}
