"""Parts of a hospital's cohort: table and dates, pairs of CT and histology, harmless paths."""

from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image

from cases.manifest import Criteria
from common.tables import TableError
from LiverFibrosisStagingLib.batch.cohort import Case
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import StageRange
from public.dates import date_of
from public.histology import SCORES
from public.hospital_table import Histology, named_columns, read_histologies
from public.identity import path_tells, text_tells
from public.pairing import disagreements, pair
from public.studies import Study, read_studies


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_and_synonyms(delimiter, start, tmp_path):
    text = 'MRN|STAGE|date-of-histology|cause|note\n7|"F1"|2020-02-03|"a, b; c"|x\n\n'
    table = written(tmp_path / "t.csv", start + text.replace("|", delimiter))
    (row,) = read_histologies(table, score=SCORES["metavir"])
    assert (row.line, row.patient, row.stages, row.etiology) == (2, "7", (1, 1), "a, b; c")
    assert row.day == date(2020, 2, 3)


def test_an_excel_table_reads_as_its_csv(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["Notes"])
    sheet = book.create_sheet("data")
    sheet.append(["Patient", "Fibrosis", "Biopsy date"])
    sheet.append([123, 2, datetime(2021, 3, 5)])
    sheet.append([124, None, None])
    book.save(tmp_path / "t.xlsx")
    first, second = read_histologies(tmp_path / "t.xlsx", score=SCORES["ishak"], form="%d/%m/%Y")
    assert (first.patient, first.stages, first.day) == ("123", (1, 1), date(2021, 3, 5))
    assert (second.line, second.stages) == (3, None)


def test_columns_named_by_options(tmp_path):
    table = written(tmp_path / "t.csv", "Nr,Stage,Fibrosis,When\n7,F1,4,2020-02-03\n")
    with pytest.raises(TableError, match="'Stage' and 'Fibrosis' may both be histology"):
        read_histologies(table)
    names = {"patient": "nr", "histology": "Fibrosis", "biopsy_date": "When"}
    (row,) = read_histologies(table, names, SCORES["metavir"])
    assert row.stages == (4, 4)
    with pytest.raises(TableError, match="line 2: no score is given"):
        read_histologies(table, names)
    with pytest.raises(TableError, match="the column 'Where' is missing"):
        read_histologies(table, {**names, "site": "Where"})
    assert read_histologies(table, {**names, "site": ""}, SCORES["metavir"]) == [row]
    with pytest.raises(TableError, match="a column accession or patient is needed"):
        read_histologies(table, {**names, "patient": ""})
    del names["biopsy_date"]
    with pytest.raises(TableError, match="a column biopsy_date is needed"):
        read_histologies(table, names)


def test_entries_of_the_option_column():
    assert named_columns(["patient=Nr = 1", "site="]) == {"patient": "Nr = 1", "site": ""}
    for entry in ("patient", "name=x"):
        with pytest.raises(StagingError, match=f"--column {entry}: FIELD=NAME with one of"):
            named_columns([entry])


@pytest.mark.parametrize(
    ("text", "form", "day"),
    [
        ("2021-03-05", None, (2021, 3, 5)),
        ("20210305", None, (2021, 3, 5)),
        ("2021-03-05 00:00:00", None, (2021, 3, 5)),
        ("5.3.2021", None, (2021, 3, 5)),
        ("25/03/2021", None, (2021, 3, 25)),
        ("03/25/2021", None, (2021, 3, 25)),
        ("05/05/2021", None, (2021, 5, 5)),
        ("03/05/2021", "%d/%m/%Y", (2021, 5, 3)),
        ("03/05/2021", "%m/%d/%Y", (2021, 3, 5)),
        ("5.3.21", "%d.%m.%y", (2021, 3, 5)),
    ],
)
def test_dates(text, form, day):
    assert date_of(text, form) == date(*day)


# ---------------------------------------------------------------------------- pairing


def ct(place, day, **other):
    return Study(place, Case(place, Path(place), None, None), patient="p", day=day, **other)


def biopsy(line, day, stages=(2, 2), **other):
    return Histology(line, patient="p", stages=StageRange(*stages), day=day, **other)


def pairs(histologies, studies, **options):
    found = pair(histologies, studies, Criteria(), **options).pairs
    return {(each.histology.line, each.study.place) for each in found}


def test_the_nearest_pair_is_taken_first_and_each_ct_once():
    early, late = biopsy(2, date(2020, 1, 1)), biopsy(3, date(2020, 3, 1))
    # The CT in February is nearer to the later biopsy, which leaves that in October to the first.
    studies = [ct("february", date(2020, 2, 20)), ct("october", date(2019, 10, 1))]
    assert pairs([early, late], studies) == {(2, "october"), (3, "february")}
    nearest = [ct("before", date(2019, 12, 20)), ct("after", date(2020, 1, 4))]
    assert pairs([early], nearest) == {(2, "after")}
    assert pairs([early, late], studies[:1]) == {(3, "february")}
    assert pairs([early], studies, all_cts=True) == {(2, "february"), (2, "october")}


def test_ties_go_to_the_ct_before_the_biopsy_in_any_order_of_the_files():
    studies = [ct("after", date(2020, 1, 11)), ct("before", date(2019, 12, 22))]
    for order in (studies, studies[::-1]):
        assert pairs([biopsy(2, date(2020, 1, 1))], order) == {(2, "before")}
    same = [ct("b", date(2020, 1, 1)), ct("a", date(2020, 1, 1))]
    assert pairs([biopsy(2, date(2020, 1, 1))], same) == {(2, "a")}


def test_a_ct_that_misses_a_criterion_leaves_its_place_to_a_farther_one():
    studies = [
        ct("near", date(2020, 1, 2), phase="arterial"),
        ct("far", date(2020, 3, 1), phase="portal venous"),
    ]
    assert pairs([biopsy(2, date(2020, 1, 1))], studies) == {(2, "far")}


def test_rows_for_the_cts_of_one_biopsy_are_one_histology():
    rows = [biopsy(n, date(2020, 1, 1), accession=f"a{n}") for n in (2, 3)]
    studies = [ct(f"ct{n}", date(2020, 1, n), accession=f"a{n}") for n in (2, 3)]
    assert pairs(rows, studies) == {(2, "ct2")}
    assert pairs(rows, studies, all_cts=True) == {(2, "ct2"), (3, "ct3")}


@pytest.mark.parametrize(("day", "taken"), [(date(2020, 7, 2), True), (date(2020, 7, 3), False)])
def test_the_window_is_that_of_the_paper(day, taken):
    assert bool(pairs([biopsy(2, date(2020, 1, 1))], [ct("ct", day)])) == taken


def test_a_birth_date_of_which_only_the_year_was_kept_agrees():
    row = biopsy(2, date(2020, 1, 1), birth=date(1950, 6, 15))
    assert disagreements([row], [ct("x", None, birth=date(1950, 1, 1))]) == []
    assert len(disagreements([row], [ct("x", None, birth=date(1953, 6, 15))])) == 1


def test_a_file_is_known_by_the_numbers_and_the_day_in_its_path(tmp_path):
    numbers = ("20100512", "20100512-4", "77")
    for name in ("20100512_2021-03-04", "a/sub-77_ses-20210304", "x/20100512-4 5.3.2021", "other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sitk.WriteImage(image(hu_array()), tmp_path / f"{name}.nii.gz")
    studies = read_studies(tmp_path, numbers, ["A1"])
    assert [(study.patient, study.day) for study in studies] == [
        ("20100512", date(2021, 3, 4)),
        ("77", date(2021, 3, 4)),
        ("", None),
        ("20100512-4", date(2021, 3, 5)),
    ]


# ---------------------------------------------------------------------------- identity


NEUTRAL = ("p8/ct", "case_0017/Series 2", "A/1", "Portal venous")
TELLING = (
    *("muster/ct", "ct/Erika", "E_Muster", "M\u00fcller", "Mu\u0308ller", "MusterE", "Muster^E"),
    *("p/20210304", "2021-03-04", "4.3.2021", "ct/99887", "A7/ct", "77/ct", "ct/1.2.840.11"),
)


@pytest.mark.parametrize("place", [*NEUTRAL, *TELLING])
def test_paths_that_tell_something(place):
    study = Study("", None, name="M\u00fcller^Erika", patient="77", accession="A7")
    assert path_tells(Path(place), Histology(2), study) == (place in TELLING)


def test_a_ct_needs_the_number_of_its_patient():
    rows, studies = [biopsy(2, date(2020, 1, 1), accession="a")], [ct("x", None, accession="a")]
    assert disagreements(rows, studies) == []
    unknown = [replace(each, patient="") for each in (*rows, *studies)]
    ((line, sentence),) = disagreements(unknown[:1], unknown[1:])
    assert line == 2 and "neither the table nor the CT's header has the patient's" in sentence


def test_texts_with_a_name_a_number_or_a_date():
    study = Study("", None, name="Muster^Erika", patient="7001", accession="A7001")
    for text in ("Erika's HBV", "see 7001", "a7001", "since 3.4.2001", "20010403", "by Doe^J"):
        assert text_tells(text, Histology(2), study), text
    for text in ("HBV, HCV 1-2", "wedge biopsy 2 cm", "17001", "Musterklinik", ""):
        assert not text_tells(text, Histology(2), study), text
    coded = Study("", None, name="HCC_017", patient="HCC_017")
    assert not text_tells("HCC", Histology(2), coded)
    assert text_tells("HCC_017", Histology(2), coded)
