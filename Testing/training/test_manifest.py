"""Manifests: problems by line, inclusion criteria, flow chart and Table 1."""

import csv
import re
from dataclasses import replace

import pytest
import SimpleITK as sitk

pytest.importorskip("matplotlib")
from cases import report as cohort_report
from cases.manifest import (
    Criteria,
    ManifestError,
    apply,
    read_manifest,
)
from cases.requirements import check_for_training, main

HEADER = "patient,ct,liver,spleen,stage,age,sex,days,phase,complete_liver"


@pytest.fixture
def folder(tmp_path):
    image = sitk.Image(4, 4, 4, sitk.sitkInt16)
    for name in ("a", "b", "c", "d", "liver", "spleen"):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    (tmp_path / "nothing.nii.gz").write_bytes(b"")
    (tmp_path / "hollow").mkdir()
    return tmp_path


def written(folder, *lines, header=HEADER, name="cohort.csv"):
    path = folder / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def line(patient="p", ct="a.nii.gz", stage="F1", liver="liver.nii.gz", **values):
    names = HEADER.split(",")
    row = dict.fromkeys(names, "") | {"patient": patient, "ct": ct, "stage": stage, "liver": liver}
    return ",".join(str((row | values)[name]) for name in names)


def problems(path, **options):
    with pytest.raises(ManifestError) as refused:
        read_manifest(path, **options)
    assert str(path) in str(refused.value)
    return refused.value.problems


def test_a_valid_manifest(folder):
    path = written(
        folder,
        line("x 1", age=40, sex="male", days=3, phase="Portal-venous", complete_liver="yes"),
        line("x 1", "b.nii.gz", "4", spleen="spleen.nii.gz"),
    )
    first, second = read_manifest(path)
    assert (first.name, second.name) == ("x_1", "x_1-2")
    assert (first.stage, second.stage, first.age, first.sex) == (1, 4, 40, "M")
    assert (first.phase, first.complete_liver, first.days) == ("portal venous", True, 3)
    assert first.liver == folder / "liver.nii.gz" and first.spleen is None
    assert (first.line, second.line) == (2, 3)


def test_tables_written_by_spreadsheets(folder):
    for delimiter, name in (("\t", "cohort.tsv"), (";", "semicolons.csv")):
        path = written(
            folder,
            line().replace(",", delimiter),
            header="\ufeff" + HEADER.replace(",", delimiter),
            name=name,
        )
        assert read_manifest(path)[0].patient == "p"


def test_ishak_stages_are_converted_to_metavir(folder):
    letters = "abcd"
    path = written(folder, *(line(c, f"{c}.nii.gz", s) for c, s in zip(letters, "0346")))
    assert [case.stage for case in read_manifest(path, "ishak")] == [0, 2, 3, 4]
    assert "Ishak stage 0 to 6" in problems(written(folder, line(stage="7")), grades="ishak")[0]


def test_all_problems_are_reported_by_line(folder):
    bad = [
        line(patient=""),
        line(ct=""),
        line(ct="absent.nii.gz"),
        line(ct="nothing.nii.gz"),
        line(ct="hollow"),
        line(liver="absent.nii.gz"),
        line(liver="hollow"),
        line(liver="a.nii.gz"),
        line(stage="F7"),
        line(stage=""),
        line(age="old"),
        line(age=-3),
        line(sex="X"),
        line(days=1.5),
        line(days=-1),
        line(phase="venous-ish"),
        line(complete_liver="perhaps"),
    ]
    good = [
        line("q", "b.nii.gz", sex="M", age=30),
        line("q", "c.nii.gz", sex="F", age=70),
        line("r", "b.nii.gz"),
    ]
    found = problems(written(folder, *bad, *good))
    numbers = [int(re.match(r"line (\d+): ", problem)[1]) for problem in found]
    assert set(numbers) == set(range(2, 2 + len(bad))) | {20, 21}
    assert numbers == sorted(numbers)
    assert len(set(found)) >= 20
    assert any("is M in line" in p or "but M in line 19" in p for p in found)
    assert any("years old, but 30 in line 19" in p for p in found)
    assert any("the CT b.nii.gz is also the CT of line 19" in p for p in found)


@pytest.mark.parametrize(
    ("header", "lines", "expected"),
    [
        ("patient,ct", ["p,a.nii.gz"], "line 1: the column 'stage' is missing"),
        ("patient,ct,stage,", ["p,a.nii.gz,F1,3"], "line 2: a value stands in a column without a"),
        ("patient,ct,stage,ct", ["p,a.nii.gz,F1,x"], "line 1: the column 'ct' occurs twice"),
        ("patient,ct,stage", ["p,a.nii.gz"], "line 2: 2 fields where 3 are needed"),
        ("patient,ct,stage", [], "no case"),
        ("", [], "is empty; a line with column names"),
    ],
)
def test_problems_of_the_whole_file(folder, header, lines, expected):
    assert any(expected in problem for problem in problems(written(folder, *lines, header=header)))


def test_files_that_are_not_text(folder):
    path = folder / "cohort.csv"
    path.write_bytes("patient,ct,stage\nMüller,a,F1".encode("latin-1"))
    assert "not UTF-8" in problems(path)[0]
    assert "cannot be read" in problems(folder / "absent.csv")[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["A/1", "A_1"], "line 3: patient 'A_1' would have the same case name as patient 'A/1' in"),
        (["a", "A"], "line 3: patient 'A' would have the same case name as patient 'a' in line 2"),
        (["A", "A", "A-2"], "line 4: patient 'A-2' would .* as scan 2 of patient 'A' in line 3"),
        (["A-2", "A", "A"], "line 4: scan 2 of patient 'A' would .* as patient 'A-2' in line 2"),
        (["x-2", "X", "X"], "line 4: scan 2 of patient 'X' would .* as patient 'x-2' in line 2"),
        (["J\u00f6rg", "Jo\u0308rg"], "line 3: patient '.*' would have the same case name"),
        (["Stra\u00dfe", "STRASSE"], "line 3: patient 'STRASSE' would have the same case name"),
    ],
)
def test_case_names_are_unique(rows, words, folder):
    path = written(folder, *(line(p, f"{ct}.nii.gz") for p, ct in zip(rows, "abcd")))
    (found,) = problems(path)
    assert re.match(words, found), found


def test_the_same_ct_under_two_names_is_refused(folder):
    path = written(folder, line("p", "a.nii.gz"), line("q", "b.nii.gz"))
    with pytest.raises(ManifestError, match=r"line 3: the CT b\.nii\.gz has the same content"):
        check_for_training(read_manifest(path), path)


def test_requirements_of_training(folder, capsys):
    (folder / "b.nii.gz").write_bytes(b"no image")
    path = written(folder, line("p", liver=""), line("q", "b.nii.gz"))
    with pytest.raises(ManifestError) as refused:
        check_for_training(read_manifest(path), path)
    text = "\n".join(refused.value.problems)
    assert "2 patients; 5 folds need 10" in text
    assert "No group of stages has 5 patients with and 5 without it" in text
    assert "F2-F4: 2 without, 0 with" in text
    assert main([str(path)]) == 1
    assert "line 3: the ct file b.nii.gz cannot be read as an image" in capsys.readouterr().err


def test_inclusion_criteria_are_those_of_the_paper(folder):
    lines = [
        line("young", "a.nii.gz", age=15),
        line("late", "b.nii.gz", days=184),
        line("arterial", "c.nii.gz", phase="arterial"),
        line("fine", "d.nii.gz", age=16, days=183, phase="portal venous"),
    ]
    cases = read_manifest(written(folder, *lines))
    inclusion = apply(cases, Criteria())
    assert [case.patient for case in inclusion.included] == ["fine"]
    reasons = {case.patient: why for case, why in inclusion.excluded}
    assert "16 years" in reasons["young"] and "183 days" in reasons["late"]
    assert "portal venous" in reasons["arterial"]
    everyone = Criteria(min_age=None, phase=None, complete_liver=False, max_days=None)
    assert len(apply(cases, everyone).included) == 4

    cohort_report.report(inclusion, folder / "run")
    chart = cohort_report.flow_chart(inclusion)
    words = "\n".join(text.get_text() for text in chart.axes[0].texts)
    assert "4 CTs of 4 patients" in words and "Excluded: 3 CTs" in words
    assert (folder / "run/figures/fig_1_flow_chart.png").read_bytes()[:4] == b"\x89PNG"
    odd = [replace(case, name="=HYPERLINK(1)") for case, _ in inclusion.excluded[:1]]
    formula = cohort_report.Inclusion(inclusion.included, [(odd[0], "-3"), *inclusion.excluded])
    cohort_report.report(formula, folder / "odd")
    assert "'=HYPERLINK(1),2,-3\n" in (folder / "odd/tables/excluded.csv").read_text()
    with (folder / "run/tables/excluded.csv").open() as file:
        assert {row["name"]: row["reason"] for row in csv.DictReader(file)} == reasons


def test_table_1_counts(folder):
    lines = [
        line("p", "a.nii.gz", "F0", sex="M", age=40),
        line("q", "b.nii.gz", "F4", sex="F", age=60),
        line("q", "c.nii.gz", "F4", sex="F", age=61),
    ]
    table = {
        row[0]: row[1:] for row in cohort_report.table_1(read_manifest(written(folder, *lines)))
    }
    assert table["CTs"] == ["1", "0", "0", "0", "2", "3"]
    assert table["Patients"] == ["1", "0", "0", "0", "1", "2"]
    assert table["Sex: F"] == ["0 (0 %)", "0", "0", "0", "2 (100 %)", "2 (67 %)"]
    assert table["Age, years: mean (SD)"][-1] == "53.7 (11.8)"
