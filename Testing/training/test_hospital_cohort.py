"""A hospital's folder and table as a cohort; the expected manifest is written by hand.

All patients and numbers are invented.
"""

import argparse
import csv
import gzip
import os
import re

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import SPACING, hu_array, image, write_slices

from cases.manifest import read_manifest
from common.tables import TableError
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.reading import read_ct
from public import examination, hospital
from public.histology import SCORES
from public.pseudonyms import codes_of, read_key
from public.studies import read_studies

MR = {"0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4"}
ARTERIAL = 200  # greatest value of the voxels of a CT whose HU are those of the arterial phase
# Patient number: name, birth date, sex.
PEOPLE = {
    "700101": ("Mustermann^Erika", "19500615", "F"),
    "700102": ("Doe^John", "19400101", "M"),
    "700103": ("Sample^Anna", "19700101", "F"),
    "700104": ("Junior^Tim", "20060101", "M"),
    "700105": ("Twice^Ida", "19600301", "F"),
    "700106": ("Nobody^Kim", "19800101", "M"),
    "700107": ("Oldest^Ada", "19270101", "F"),
    "700108": ("Neutral^Bo", "19651231", "M"),
    "700110": ("Magnet^Lou", "19650101", "M"),
    "700111": ("Partial^Lea", "19650101", "F"),
}
# Folder, patient, accession number, day, description, other tags. Values of voxels: the row.
STUDIES = [
    ("Mustermann_Erika_1950/a", "700101", "A8101", "20210301", "Abdomen portalven\u00f6s", {}),
    ("Mustermann_Erika_1950/b", "700101", "A8102", "20210601", "Abdomen portalven\u00f6s", {}),
    ("Mustermann_Erika_1950/mr", "700101", "A8103", "20210302", "T1 portal", MR),
    ("Doe_John_1940", "700102", "A8201", "20200110", "portal venous", {}),
    ("p3", "700103", "A8301", "20200110", "arterial", {}),
    ("p4", "700104", "A8401", "20210110", "portal venous", {}),
    ("p5/20180105", "700105", "A8501", "20180105", "portal venous", {}),
    ("p5/ct2", "700105", "A8502", "20200705", "", {}),
    ("flat", "700106", "A8601", "20210110", "portal venous", {}),
    ("flat", "700107", "A8701", "20200202", "portal venous", {}),
    ("p8/ct", "700108", "A8801", "20210220", "portal venous", {}),
    ("p10", "700110", "A9101", "20210220", "T1", MR),
    ("p11", "700111", "A9201", "20210220", "portal venous", {}),
]
TABLE = """\
Patient ID;Accession Number;Histology;Score;Date of Biopsy;Specimen;Etiology;Centre;Complete liver
700101;;F2-F3;METAVIR;15.3.2021;biopsy;HBV;North;yes
;A8201;5;Ishak;2020-08-20;;;;
700103;;3;Scheuer;2020-01-20;;;;
700104;;1;METAVIR;2021-01-20;;;;
700105;;1b;NASH CRN;20180105;biopsy;NASH;South;
700105;;>=3;Ishak;2020-07-01;resection;NASH;South;
700106;;;;;;;;
;A8701;cirrhosis;Batts-Ludwig;2020-02-01;;;;
700108;A8801;F0;;2021-08-22;;;;
700109;;4;METAVIR;2021-04-14;biopsy;;;
700110;;4;METAVIR;2021-02-14;;;;
700111;;4;METAVIR;2021-02-14;;;;no
700112;A9999;2;METAVIR;2021-02-14;;;;
700101;;F2-F3;METAVIR;2021-03-15;biopsy;HBV;North;
"""
MEANING = {name: score.meaning for name, score in SCORES.items()}
# Patient: stage, age, sex, days, phase, voxels' value, label, etiology, specimen, site.
MANIFEST = [
    ("700101", "F2-F3", 70, "F", 14, "portal venous", 0, "metavir", "HBV", "biopsy", "North"),
    ("700105", "F1", 57, "F", 0, "portal venous", 6, "nash-crn", "NASH", "biopsy", "South"),
    ("700105", "F2-F4", 60, "F", 4, "portal venous", 7, "ishak", "NASH", "resection", "South"),
    ("700107", "F4", 90, "F", 1, "portal venous", 9, "batts-ludwig", None, None, None),
    ("700108", "F0", 55, "M", 183, "portal venous", 10, "metavir", None, None, None),
    ("700109", "F4", None, None, 10, None, None, "metavir", None, "biopsy", None),
]
FLOW = {
    ("studies", "found"): 14,
    ("studies", "excluded: no CT (another modality)"): 2,
    ("studies", "excluded: no histology"): 1,
    ("studies", "excluded: younger than 16 years"): 1,
    ("studies", "excluded: more than 183 days between CT and histology"): 1,
    ("studies", "excluded: not in the portal venous phase"): 1,
    ("studies", "excluded: liver not completely covered by the CT"): 1,
    ("studies", "excluded: another CT is nearer to the histology"): 1,
    ("studies", "included"): 6,
    ("histologies", "found"): 14,
    ("histologies", "excluded: no CT (another modality)"): 1,
    ("histologies", "excluded: no CT found"): 1,
    ("histologies", "excluded: no histology"): 1,
    ("histologies", "excluded: younger than 16 years"): 1,
    ("histologies", "excluded: more than 183 days between CT and histology"): 1,
    ("histologies", "excluded: not in the portal venous phase"): 1,
    ("histologies", "excluded: liver not completely covered by the CT"): 1,
    ("histologies", "excluded: the histology of another row"): 1,
    ("histologies", "included"): 6,
}


def body(value, slices=10):
    """A CT of one value in air."""
    voxels = np.full((slices, 32, 32), -1000, np.int16)
    voxels[:, 8:24, 8:24] = value
    return image(voxels)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The hospital's folder; the values of the bodies are the places in STUDIES."""
    root = tmp_path_factory.mktemp("images")
    for value, (folder, patient, accession, day, description, other) in enumerate(STUDIES):
        name, birth, sex = PEOPLE[patient]
        tags = {
            "0008|0020": day,
            "0008|0050": accession,
            "0008|103e": description.encode().decode("latin-1"),
            "0008|0070": "Maker",
            "0008|1090": "Model 5",
            "0010|0010": name,
            "0010|0020": patient,
            "0010|0030": birth,
            "0010|0040": sex,
            "0018|1210": "B30f",
            "0020|000d": f"1.2.7.{value}",
        }
        write_slices(
            root / folder,
            body(value),
            {**tags, **other},
            prefix=f"S{value}I",
            uid=f"1.2.7.{value}.1",
        )
    made = image(hu_array(12))
    made.SetMetaData("descrip", "Nifti^Nora")
    sitk.WriteImage(made, root / "nifti_700109_20210404.nii.gz")
    mask = np.zeros((12, *hu_array(12).shape[1:]), np.uint8)
    mask[3:7, 4:9, 4:9] = 1
    sitk.WriteImage(image(mask), root / "nifti_700109_20210404_liver.nii.gz")
    return root


def options(tree, table, output, *more):
    parser = argparse.ArgumentParser()
    hospital.add_arguments(parser)
    required = ["--images", tree, "--table", table, "-o", output, "--score", "metavir"]
    required += ["--workers", "1"]
    return parser.parse_args([*map(str, (*required, *more))])


@pytest.fixture(scope="module", autouse=True)
def voxels():
    """Stand-ins for what needs a body: outlines of the organs, and the phase by the HU.

    The voxels of the CT without a phase in its description have the value 7.
    """

    def checks(ct, liver, spleen):
        value = int(sitk.GetArrayViewFromImage(ct).max())
        return {7: "portal-venous", ARTERIAL: "arterial"}.get(value, ""), ()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examination, "organs_of", lambda ct: sitk.Cast(ct > -2000, sitk.sitkUInt8))
        patch.setattr(examination, "input_checks", checks)
        yield


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cohort(tree, tmp_path_factory):
    """The manifest and the key file."""
    place = tmp_path_factory.mktemp("cohort")
    table, key = written(place / "table.csv", TABLE), place / "key.csv"
    manifest = place / "out" / "manifest.csv"
    assert hospital.run(options(tree, table, manifest, "--key", key)) == 0
    return manifest, key


def value_of(case):
    """The value of the body in a CT of `tree`; None for the one with other voxels."""
    voxels = np.unique(sitk.GetArrayFromImage(read_ct(case.ct)))
    return int(voxels[1]) if len(voxels) == 2 else None


def test_the_manifest_is_the_one_made_by_hand(cohort):
    manifest, key = cohort
    patient_of = {code: patient for patient, code in read_key(key).items()}
    rows = []
    for case in read_manifest(manifest):
        label = next(name for name, meaning in MEANING.items() if meaning == case.label)
        row = (patient_of[case.patient], str(case.stages), case.age, case.sex, case.days)
        row += (case.phase, value_of(case), label, case.etiology, case.specimen, case.site)
        rows.append(row)
        dicom = row[0] != "700109"
        assert (case.scanner, case.kernel) == (("Maker Model 5", "B30f") if dicom else (None, None))
        assert case.thickness == (pytest.approx(SPACING[2]) if dicom else None)
        assert (case.liver is None) == dicom
    assert sorted(rows, key=lambda row: (row[0], row[1])) == MANIFEST


def test_every_study_and_histology_is_counted_in_the_order_of_the_criteria(cohort):
    with (cohort[0].parent / "flow.csv").open(encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["unit", "step", "count"]
    assert [(tuple(row[:2]), int(row[2])) for row in rows] == list(FLOW.items())
    assert (cohort[0].parent / "flow_chart.png").stat().st_size > 0


def test_no_output_has_a_name_a_number_or_a_date(cohort, tree):
    identifying = {word for name, *_ in PEOPLE.values() for word in name.split("^")}
    identifying |= {*PEOPLE, "700109", "700112", "Nora", "1.2.7."}
    identifying |= {accession for _, _, accession, *_ in STUDIES} | {"A9999"}
    days = {day for *_, day, _, _ in STUDIES} | {birth for _, birth, _ in PEOPLE.values()}
    days |= {"20210315", "20200820", "20210404", "20210414"}
    for day in days:
        year, month, last = day[:4], day[4:6], day[6:]
        identifying |= {day, f"{year}-{month}-{last}", f"{int(last)}.{int(month)}.{year}"}
    files = [path for path in cohort[0].parent.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name.endswith(".nii.gz")]) == 5
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".gz":
            assert content[3] == 0  # no name of a file
            content = gzip.decompress(content)[:352]  # the header; the rest are voxels
        text = f"{path.relative_to(cohort[0].parent)} {content.decode('latin-1')}".lower()
        words = set(re.findall(r"[^\W_]+", text))
        for one in identifying:  # a short name may be a part of another word, or of pixels
            assert one.lower() not in (text if len(one) > 4 else words), path.name


def test_a_folder_that_tells_nothing_stays_where_it_is(cohort, tree):
    manifest, _ = cohort
    in_place = [case.ct for case in read_manifest(manifest) if case.ct.is_dir()]
    assert {path.resolve() for path in in_place} == {tree / "p8", tree / "p5" / "ct2"}
    assert ".." in manifest.read_text(encoding="utf-8")


def test_a_path_above_the_images_must_tell_nothing_either(tmp_path):
    tags = {"0010|0010": "Doe^John", "0010|0020": "700102", "0008|103e": "portal venous"}
    images = tmp_path / "Doe_John" / "images"
    write_slices(images / "ct", body(7), {**tags, "0008|0020": "20200102"})
    table = written(tmp_path / "t.csv", "patient,stage,biopsy date\n700102,F2,2020-01-01\n")
    for place, stays in ((tmp_path / "out", False), (images.parent / "out", True)):
        assert hospital.run(options(images, table, place / "m.csv")) == 0
        (case,) = read_manifest(place / "m.csv")
        assert case.ct.is_dir() == stays
        assert "Doe" not in (place / "m.csv").read_text(encoding="utf-8")


def test_leading_zeros_that_excel_removed_are_completed(tmp_path, capsys):
    for number, (patient, accession) in enumerate((("0077", "00123"), ("0088", "00456"))):
        tags = {"0010|0020": patient, "0008|0050": accession, "0008|103e": "portal venous"}
        tags |= {"0008|0020": "20200102", "0020|000d": f"1.2.9.{number}"}
        write_slices(tmp_path / "in" / f"ct{number}", body(7), tags, uid=f"1.2.9.{number}.1")
    head = "patient,accession,stage,biopsy date\n"
    rows = "77,123,F2,2020-01-01\n88,,F3,2020-01-01\n"
    table, key = written(tmp_path / "t.csv", head + rows), tmp_path / "key.csv"
    hospital.run(options(tmp_path / "in", table, tmp_path / "out" / "m.csv", "--key", key))
    said = capsys.readouterr().out
    assert "3 numbers of the table lack leading zeros" in said
    assert "2 studies, 2 in the manifest." in said and "Stages: F2 1, F3 1." in said
    stages = {case.patient: str(case.stages) for case in read_manifest(tmp_path / "out" / "m.csv")}
    assert {p: stages[code] for p, code in read_key(key).items()} == {"0077": "F2", "0088": "F3"}
    written(table, head + "77,,F2,2020-01-01\n077,,F3,2020-02-01\n")
    with pytest.raises(TableError, match="line 2: patient is 77, and without leading zeros 077 or"):
        hospital.run(options(tmp_path / "in", table, tmp_path / "again" / "m.csv"))
    tags |= {"0010|0020": "88", "0020|000d": "1.2.9.2"}
    write_slices(tmp_path / "in" / "ct2", body(7), tags, uid="1.2.9.2.1")
    written(table, head + "088,,F3,2020-01-01\n")
    with pytest.raises(TableError, match=r"line 2: patient is 088, and .* 0088 or 088 or 88 are"):
        hospital.run(options(tmp_path / "in", table, tmp_path / "again" / "m.csv"))
    assert not (tmp_path / "again").exists()


def test_codes_are_kept_by_the_key_and_tell_no_order(cohort):
    _, key = cohort
    codes = read_key(key)
    assert set(codes) == {row[0] for row in MANIFEST}
    assert all(re.fullmatch(r"P\d{4}", code) for code in codes.values())
    if os.name == "posix":
        assert key.stat().st_mode & 0o077 == 0
    more = codes_of(["new", *codes], codes)
    assert codes.items() <= more.items() and len(set(more.values())) == 6
    patients = [f"{number:03d}" for number in range(200)]
    codes = codes_of(patients, {})
    drawn = [codes[patient] for patient in patients]
    assert drawn != sorted(drawn) and len(set(drawn)) == 200


def test_all_cts_within_the_days_and_a_shorter_window(tree, tmp_path):
    table = written(tmp_path / "table.csv", TABLE)
    hospital.run(options(tree, table, tmp_path / "all" / "m.csv", "--all-cts"))
    assert sorted(case.days for case in read_manifest(tmp_path / "all" / "m.csv")) == [
        *(0, 1, 4, 10, 14, 78, 183)
    ]
    hospital.run(options(tree, table, tmp_path / "near" / "m.csv", "--days", "4"))
    assert sorted(case.days for case in read_manifest(tmp_path / "near" / "m.csv")) == [0, 1, 4]


def test_a_ct_that_its_voxels_exclude_leaves_its_place_to_the_next(tmp_path):
    tags = {"0010|0020": "p", "0008|103e": ""}
    for number, (value, day) in enumerate([(ARTERIAL, "20200102"), (0, "20200103")]):
        write_slices(
            tmp_path / "in" / f"ct{number}",
            body(value),
            {**tags, "0008|0020": day, "0020|000d": f"1.2.8.{number}"},
            uid=f"1.2.8.{number}.1",
        )
    write_slices(
        tmp_path / "in" / "ct2",
        body(7, 12),
        {**tags, "0008|0020": "20200101", "0020|000d": "1.2.8.2"},
        skip=(5,),
        uid="1.2.8.2.1",
    )
    table = written(tmp_path / "t.csv", "patient,stage,biopsy date\np,F2,2020-01-01\n")
    hospital.run(options(tmp_path / "in", table, tmp_path / "out" / "m.csv"))
    (case,) = read_manifest(tmp_path / "out" / "m.csv")
    assert (case.days, case.phase) == (2, None)
    flow = (tmp_path / "out" / "flow.csv").read_text(encoding="utf-8").splitlines()
    assert flow[1:5] == [
        "studies,found,3",
        "studies,excluded: not in the portal venous phase,1",
        "studies,excluded: the CT or its masks cannot be read,1",
        "studies,included,1",
    ]


ONE = "accession,patient,histology,biopsy date,sex,age,birth date,ct date,phase,etiology\n"
ODD = [
    ("A8101,,F7,2021-03-15,,,,,,", r"line 2: the histology is 'F7'; a METAVIR stage"),
    ("A8101,,F2,03/05/2021,,,,,,", r"line 2: biopsy_date is '03/05/2021'; day and month can be"),
    ("A8101,,F2,2021-02-30,,,,,,", r"line 2: biopsy_date is '2021-02-30'; there is no such day"),
    ("A8101,,F2,15.3.21,,,,,,", r"line 2: biopsy_date is '15.3.21'; a date such as"),
    ("A8101,,F2,2999-01-01,,,,,,", r"'2999-01-01'; a date from 1900 to today"),
    ("A8101,,F2,,,,,,,", r"line 2: the biopsy_date is empty"),
    (",,F2,2021-03-15,,,,,,", r"line 2: neither accession nor patient"),
    ("A8101,,F2,2021-03-15,X,,,,,", r"line 2: sex is 'X'; M or F"),
    ("A8101,,F2,2021-03-15,,old,,,,", r"line 2: age is 'old'; years"),
    ("A8101,,F2,2021-03-15,,,,,early,", r"line 2: phase is 'early'"),
    ("A8101,,F2,2021-03-15,M,,,,,", r"line 2: sex is M, but F in the header of the CT"),
    ("A8101,,F2,2021-03-15,,50,,,,", r"line 2: age is 50, but 70 in the header"),
    ("A8101,,F2,2021-03-15,,,1952-06-15,,,", r"line 2: birth_date is 1952-06-15, but 1950-06-15"),
    ("A8101,,F2,2021-03-15,,,,2021-03-02,,", r"line 2: ct_date is 2021-03-02, but 2021-03-01"),
    ("A8101,700102,F2,2021-03-15,,,,,,", r"line 2: patient is 700102, but 700101"),
    ("A8101,,F2,2021-03-15,,,2022-01-01,,,", r"line 2: the birth_date is after"),
    ("A8101,,F2,2021-03-15,,,,,,,", r"line 2: 11 fields where 10"),
    ("A8101,,F2,2021-03-15,,,,,,HBV since 2.3.2001", r"line 2: etiology is 'HBV since 2.3.2001'"),
    ("A8101,,F2,2021-03-15,,,,,,Erika's HBV", r"line 2: etiology is .*; a text without"),
    (
        ",700101,F2,2021-03-15,F,,,,,\n,700101,F2,2021-03-16,M,,,,,",
        r"line 3: sex is not that of line 2, the same patient",
    ),
    (
        "A8101,,F2,2021-03-15,,,,,,\nA8102,,F3,2021-03-15,,,,,,",
        r"line 3: the histology is F3, but F2 of the same patient and day in line 2",
    ),
]


@pytest.fixture(scope="module")
def known_studies(tree):
    """The studies, read once, for tests of what the table says about them."""
    return read_studies(tree, {"700109"}, ())


@pytest.mark.parametrize(("rows", "message"), ODD)
def test_odd_rows_are_refused_with_their_line(
    rows, message, tree, known_studies, tmp_path, monkeypatch
):
    monkeypatch.setattr(hospital, "read_studies", lambda *_: known_studies)
    table = written(tmp_path / "table.csv", ONE + rows + "\n")
    with pytest.raises(TableError) as refusal:
        hospital.run(options(tree, table, tmp_path / "out" / "m.csv"))
    assert re.search(message, str(refusal.value))
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_if_no_ct_belongs_to_a_histology(
    tree, known_studies, tmp_path, monkeypatch
):
    monkeypatch.setattr(hospital, "read_studies", lambda *_: known_studies)
    table = written(tmp_path / "table.csv", ONE + "A9999,,F2,2021-03-15,,,,,,\n")
    with pytest.raises(StagingError, match=r"Histologies: 1 no CT found\."):
        hospital.run(options(tree, table, tmp_path / "out" / "m.csv"))
    assert not (tmp_path / "out").exists()


def test_places_of_key_and_manifest_are_checked_first(tree, tmp_path):
    table = written(tmp_path / "table.csv", "")
    out = tmp_path / "out"
    with pytest.raises(StagingError, match="in the folder of the manifest"):
        hospital.run(options(tree, table, out / "m.csv", "--key", out / "sub" / "key.csv"))
    with pytest.raises(StagingError, match="not a key file written by this command"):
        hospital.run(options(tree, table, out / "m.csv", "--key", written(tmp_path / "k", "a,b")))
    out.mkdir()
    written(out / "m.csv", "mine")
    with pytest.raises(StagingError, match=r"m\.csv: exists"):
        hospital.run(options(tree, table, out / "m.csv"))
    assert (out / "m.csv").read_text(encoding="utf-8") == "mine"
