"""Clinical tables of public collections: labels, spellings, refusals by line."""

import sys

import pytest

from common.tables import TableError
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import ANY_STAGE, StageRange
from public import crlm, hcc_tace_seg, tcga_lihc

openpyxl = pytest.importorskip("openpyxl")

# The groups as TCGA spells them, with the range of METAVIR stages (Goodman 2007) by hand.
GROUPS = {
    "0 - No Fibrosis": (0, 0),
    "1,2 - Portal Fibrosis": (1, 1),
    "3,4 - Fibrous Speta": (2, 3),
    "5 - Nodular Formation and Incomplete Cirrhosis": (4, 4),
    "6 - Established Cirrhosis": (4, 4),
}
UNKNOWN = ("[Not Available]", "[Unknown]", "[Not Evaluated]", "[Discrepancy]")
BIOTAB = (
    ("bcr_patient_uuid", "bcr_patient_barcode", "patient_id", "ishak_fibrosis_score", "gender"),
    (
        "bcr_patient_uuid",
        "bcr_patient_barcode",
        "patient_id",
        "liver_fibrosis_ishak_score_category",
        "gender",
    ),
    ("CDE_ID:", "CDE_ID:2003301", "CDE_ID:", "CDE_ID:3182621", "CDE_ID:2200604"),
)


def barcode(number):
    return f"TCGA-DD-A{number:03d}"


def biotab(path, scores, header=BIOTAB, end="\n", start=b""):
    rows = [(f"uuid-{n}", barcode(n), f"A{n:03d}", score, "MALE") for n, score in enumerate(scores)]
    text = "".join("\t".join(row) + end for row in (*header, *rows))
    path.write_bytes(start + text.encode())
    return path


def workbook(path, *rows, **other):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for title, lines in other.items():
        sheet = book.create_sheet(title, 0)
        for line in lines:
            sheet.append(line)
    book.save(path)
    return path


def ranges(labels):
    return {label.patient: label.stages for label in labels}


def problems(reader, path):
    with pytest.raises(TableError) as refused:
        reader.read_labels(path)
    assert str(path) in str(refused.value)
    assert all(problem in str(refused.value) for problem in refused.value.problems)
    return list(refused.value.problems)


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [
        (0, 4, [None, None, None, None]),
        (0, 0, [False, False, False, False]),
        (0, 3, [None, None, None, False]),
        (2, 3, [True, True, None, False]),
        (4, 4, [True, True, True, True]),
    ],
)
def test_a_range_decides_only_some_cutoffs(lowest, highest, expected):
    stages = StageRange(lowest, highest)
    assert [stages.decides(cutoff) for cutoff in (1, 2, 3, 4)] == expected


@pytest.mark.parametrize(("end", "start"), [("\n", b""), ("\r\n", b"\xef\xbb\xbf")])
def test_the_biotab_of_tcga(tmp_path, end, start):
    scores = [*GROUPS, *UNKNOWN]
    labels = tcga_lihc.read_labels(biotab(tmp_path / "t.txt", scores, end=end, start=start))
    expected = [*GROUPS.values(), *[ANY_STAGE] * len(UNKNOWN)]
    assert ranges(labels) == {barcode(n): both for n, both in enumerate(expected)}
    assert [label.text for label in labels] == scores
    assert "Goodman" in labels[0].meaning


def test_the_score_is_found_by_its_alternative_name_or_its_cde(tmp_path):
    names = ("uuid", "bcr_patient_barcode", "patient_id", "score", "gender")
    for header in ((names, *BIOTAB[1:]), (names, BIOTAB[2])):
        labels = tcga_lihc.read_labels(biotab(tmp_path / "t.txt", GROUPS, header))
        assert list(ranges(labels).values()) == list(GROUPS.values())


def test_odd_scores_are_refused_with_their_lines(tmp_path):
    scores = ["3 - Fibrous Septa", "6 - Established Cirrhosis", "F4", "[Not Available"]
    found = problems(tcga_lihc, biotab(tmp_path / "t.txt", scores))
    assert [problem.split(";")[0] for problem in found] == [
        "line 4: the Ishak score is '3 - Fibrous Septa'",
        "line 6: the Ishak score is 'F4'",
        "line 7: the Ishak score is '[Not Available'",
    ]


def test_lines_with_too_few_fields_and_odd_patients_are_refused(tmp_path):
    path = biotab(tmp_path / "t.txt", ["[Unknown]"])
    whole = path.read_text()
    path.write_text(whole + "uuid\tTCGA-DD-A111\n")
    assert problems(tcga_lihc, path) == ["line 5: 2 fields where 5 are needed."]
    path.write_text(whole.replace("[Unknown]", "7") + "uuid\tTCGA-DD-A111\n")
    assert [problem[:6] for problem in problems(tcga_lihc, path)] == ["line 4", "line 5"]
    path.write_text(whole + "\n" + "\t".join(("u", "A1", "A1", "[Unknown]", "MALE")) + "\n")
    assert problems(tcga_lihc, path) == ["line 6: patient is 'A1'; a TCGA barcode is needed."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a\tb\n1\t2\n", "bcr_patient_barcode"),
        ("bcr_patient_barcode\tgender\nTCGA-DD-A111\tMALE\n", "ishak_fibrosis_score"),
        ("patient.gender\tmale\npatient.bcr_patient_barcode\ttcga-dd-a111\n", "ishak"),
        ("bcr_patient_barcode\tishak_fibrosis_score\n", "no patient"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, words):
    path = tmp_path / "t.txt"
    path.write_text(text)
    assert words in "".join(problems(tcga_lihc, path))
    assert "cannot be read" in problems(tcga_lihc, tmp_path / "absent.txt")[0]
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in problems(tcga_lihc, path)[0]


@pytest.mark.parametrize(
    "header",
    [
        "Study ID\tPatient ID\tSample ID\tLiver fibrosis ishak score category",
        "#Study\tPatient Identifier\tSample\tIshak\n#STRING\tSTRING\tSTRING\tSTRING\n"
        "STUDY_ID\tPATIENT_ID\tSAMPLE_ID\tFIBROSIS_ISHAK_SCORE",
    ],
)
def test_tables_of_cbioportal(tmp_path, header):
    path = tmp_path / "t.tsv"
    rows = ("A001\t{0}-A001-01\t3,4 - Fibrous Speta", "A001\t{0}-A001-02\t3,4 - Fibrous Speta")
    rows = (*rows, 'A002\t{0}-A002-01\t"1,2 - Portal Fibrosis"', "A003\t{0}-A003-01\t")
    text = "\n".join([header, *("lihc_tcga\t{0}-" + row for row in rows)]) + "\n"
    path.write_text(text.format("TCGA-DD"))
    expected = {barcode(1): (2, 3), barcode(2): (1, 1), barcode(3): ANY_STAGE}
    assert ranges(tcga_lihc.read_labels(path)) == expected
    path.write_text(text.format("TCGA-DD").replace("Speta", "Septa", 1))
    first = header.count("\n") + 2
    assert problems(tcga_lihc, path) == [
        f"line {first + 1}: patient {barcode(1)} has other values than in line {first}."
    ]


def test_the_table_of_firehose_has_a_column_per_patient(tmp_path):
    path = tmp_path / "LIHC.merged_only_clinical_clin_format.txt"
    rows = [
        ("V1", "1", "2", "3"),
        ("patient.bcr_patient_barcode", "tcga-dd-a001", "tcga-dd-a002", "tcga-dd-a003"),
        (
            "patient.liver_fibrosis_ishak_score_category",
            "5 - nodular formation and incomplete cirrhosis",
            "NA",
            "3,4 - fibrous speta",
        ),
    ]
    text = "\n".join("\t".join(row) for row in rows)
    path.write_text(text)
    expected = {barcode(1): (4, 4), barcode(2): ANY_STAGE, barcode(3): (2, 3)}
    assert ranges(tcga_lihc.read_labels(path)) == expected
    path.write_text(text.partition("\n")[2])
    assert ranges(tcga_lihc.read_labels(path)) == expected
    path.write_text(text.replace("NA", "7"))
    assert problems(tcga_lihc, path)[0].startswith("line 3: the Ishak score is '7'")
    path.write_text(text + "\t6 - established cirrhosis")
    assert problems(tcga_lihc, path) == ["line 3: 5 fields, but 4 in line 2."]


HCC = ("TCIA_ID", "age", "hepatitis", "Evidence_of_cirh ", "CPS")


def test_cirrhosis_yes_and_no(tmp_path):
    path = workbook(
        tmp_path / "t.xlsx",
        HCC,
        ("HCC_001", 71, "HCV only", 1, "A"),
        ("HCC_002", 72, "No virus", "0", "B"),
        (None, None, None, None, None),
        ("HCC_003 ", 53, None, 1.0, "NA"),
        ("HCC_004", 53, "HCV and HBV", None, "C"),
        glossary=[("TCIA_ID", "Patient ID"), ("CPS", "Child Pugh class")],
    )
    labels = hcc_tace_seg.read_labels(path)
    assert ranges(labels) == {
        "HCC_001": (4, 4),
        "HCC_002": (0, 3),
        "HCC_003": (4, 4),
        "HCC_004": ANY_STAGE,
    }
    assert labels[0].findings == {"Child-Pugh": "A", "hepatitis": "HCV only"}
    assert labels[2].findings == {}
    assert [label.text for label in labels] == ["1", "0", "1", ""]


def test_odd_cells_are_refused_with_their_lines(tmp_path):
    path = workbook(
        tmp_path / "t.xlsx",
        HCC,
        ("HCC_001", 71, "HCV only", 2, "A"),
        ("HCC_002", 71, "HDV only", 1, "D"),
        (None, 71, "No virus", 1, "A"),
        ("HCC_004", 71, "No virus", True, "A"),
        ("HCC_005", 71, "No virus", 0, "A"),
        ("HCC_005", 71, "No virus", 1, "A"),
    )
    assert [problem.split(";")[0] for problem in problems(hcc_tace_seg, path)] == [
        "line 2: Evidence_of_cirh is '2'",
        "line 3: CPS is 'D'",
        "line 3: hepatitis is 'HDV only'",
        "line 4: TCIA_ID is ''",
        "line 5: Evidence_of_cirh is 'True'",
        "line 7: patient HCC_005 has other values than in line 6.",
    ]


def test_files_that_are_no_such_workbook(tmp_path, monkeypatch):
    path = tmp_path / "t.xlsx"
    assert "cannot be read" in problems(hcc_tace_seg, path)[0]
    path.write_text("TCIA_ID,Evidence_of_cirh\n")
    assert "not an Excel workbook" in problems(hcc_tace_seg, path)[0]
    workbook(path, HCC[:-1], ("HCC_001", 71, "HCV only", 1))
    assert "CPS" in problems(hcc_tace_seg, path)[0]
    workbook(path, (*HCC, "CPS"), ("HCC_001", 71, "HCV only", 1, "A", "B"))
    assert problems(hcc_tace_seg, path) == ["line 1: the column 'CPS' occurs twice."]
    workbook(path, HCC, copy=[HCC])
    assert problems(hcc_tace_seg, path)[0].startswith("2 sheets have the columns")
    workbook(path, HCC)
    assert problems(hcc_tace_seg, path) == ["The table has no patient."]
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(StagingError, match="needs the package openpyxl"):
        hcc_tace_seg.read_labels(path)


CRLM = (
    "Patient-ID",
    "De-identify Scout Name",
    "steatosis_yesno",
    "NASH_score",
    "fibrosis_percent",
)


def test_fibrosis_of_a_metastasis_is_no_stage(tmp_path):
    path = workbook(
        tmp_path / "t.xlsx",
        CRLM,
        ("CRLM-CT-1001", "CRLM-CT-1001", 1, 4, 0.9),
        (7, "CRLM-CT-1002", 0, -999, 4),
        ("CRLM-CT-1003", 8, -999, 0, -999),
    )
    labels = crlm.read_labels(path)
    assert ranges(labels) == {f"CRLM-CT-{n}": ANY_STAGE for n in (1001, 1002, 1003)}
    assert [label.findings for label in labels] == [
        {"NASH_score": "4", "steatosis_yesno": "1"},
        {"steatosis_yesno": "0"},
        {"NASH_score": "0"},
    ]
    assert all(label.stages.decides(cutoff) is None for label in labels for cutoff in (1, 2, 3, 4))


def test_odd_background_livers_are_refused_with_their_lines(tmp_path):
    path = workbook(
        tmp_path / "t.xlsx",
        CRLM,
        ("CRLM-CT-1001", "CRLM-CT-1002", 1, 4, 0.9),
        ("CRLM-CT-1003", None, 2, 9, 0.9),
        ("1004", "1004", "yes", 2.5, 0.9),
    )
    assert [problem.split(";")[0] for problem in problems(crlm, path)] == [
        "line 2: Patient-ID is 'CRLM-CT-1001' and De-identify Scout Name is 'CRLM-CT-1002'",
        "line 3: NASH_score is '9'",
        "line 3: steatosis_yesno is '2'",
        "line 4: NASH_score is '2.5'",
        "line 4: Patient-ID is '1004' and De-identify Scout Name is '1004'",
        "line 4: steatosis_yesno is 'yes'",
    ]


def test_the_real_table_of_hcc_tace_seg(shared_data):
    table = shared_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.xlsx"
    labels = {label.patient: label for label in hcc_tace_seg.read_labels(table)}
    # Of the 105 patients of the collection, 78 have cirrhosis.
    assert set(labels) == {f"HCC_{number:03d}" for number in range(1, 106)}
    assert sum(label.stages.decides(4) is True for label in labels.values()) == 78
    # The patients of the CTs, as in the manifest of the data.
    for patient, both, child_pugh, hepatitis in (
        ("HCC_002", (4, 4), "A", "HBV only"),
        ("HCC_007", (4, 4), "A", "HCV only"),
        ("HCC_009", (0, 3), "B", "No virus"),
        ("HCC_011", (4, 4), "A", "HCV and HBV"),
        ("HCC_048", (4, 4), "A", "HCV only"),
    ):
        label = labels[patient]
        assert label.stages == both, patient
        assert label.findings == {"Child-Pugh": child_pugh, "hepatitis": hepatitis}, patient
