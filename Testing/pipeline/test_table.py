"""A cohort's table: documented columns, and the same values in CSV and Parquet, for all readers."""

import csv
import importlib.util
import math
import re

import pytest
from conftest import ROOT
from table_rows import table_rows

from LiverFibrosisStagingLib import StagingError, StagingModel, stage_folder
from LiverFibrosisStagingLib.batch import table_files
from LiverFibrosisStagingLib.batch.table import (
    COLUMNS,
    SCHEMA,
    TABLE_SCHEMA,
    columns_of,
    columns_of_any,
)
from LiverFibrosisStagingLib.batch.table_files import (
    read_results,
    write_results,
    write_table_csv,
)
from LiverFibrosisStagingLib.stages import STAGES

PAGE = ROOT / "docs" / "results-table.md"
TYPES = {"text": str, "number": float, "integer": int, "boolean": bool}


def normal(row):
    """What a reader is to find of a row: all columns, in one line, missing values None."""
    found = {name: row.get(name) or None for name in COLUMNS}
    found |= {name: value for name, value in row.items() if value is False or value == 0}
    return {
        name: " ".join(value.split("\n")) if isinstance(value, str) else value
        for name, value in found.items()
    }


@pytest.fixture(scope="module")
def expected():
    return list(map(normal, table_rows()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("table")
    write_results(output, table_rows(), parquet=True)
    return output


def test_a_result_and_its_columns(staged_sample, single):
    summary = staged_sample.summary()
    row = {**columns_of(summary), **columns_of_any("P1", "", single)}
    assert {*row, "status", "reason"} == set(COLUMNS)
    for column in SCHEMA:
        value = row.get(column.name)
        assert value is None or type(value) is TYPES[column.kind], column
    probabilities = [row[stage] for stage in STAGES]
    assert probabilities == pytest.approx(list(staged_sample.probabilities), abs=1e-6)
    assert row["expected"] == pytest.approx(sum(k * p for k, p in enumerate(probabilities)), 1e-4)
    assert row["seconds"] == pytest.approx(sum(summary["seconds"].values()))
    assert row["spleen_volume_ml"] == pytest.approx(summary["signs"]["spleen_volume_ml"], abs=1e-6)
    assert row["lsvr"] is None and row["agreeing"] is None and row["reasons"] is None
    assert row["model_sha256"] == summary["model"]["sha256"]
    assert row["software"] == summary["software"]["LiverFibrosisStaging"]
    assert (row["case"], row["schema"]) == ("P1", TABLE_SCHEMA)
    several = {**summary, "reasons": ["One.", "Two."], "fingerprint": "f00"}
    several["ensemble"] = {"members": 5, "agreeing": 4}
    row = columns_of(several)
    assert (row["reasons"], row["fingerprint"], row["agreeing"]) == ("One. | Two.", "f00", 0.8)


def test_every_column_is_documented():
    assert len(set(COLUMNS)) == len(COLUMNS)
    for column in SCHEMA:
        assert column.kind in TYPES and column.meaning.endswith("."), column
    lines = re.findall(r"^\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    cells = [tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line))
             for line in lines]  # fmt: skip
    documented = [cell for cell in cells if cell[0] != "name"]
    assert documented == [(c.name, c.kind, c.unit, c.meaning) for c in SCHEMA]
    assert f"version of the columns, now {TABLE_SCHEMA}." in PAGE.read_text(encoding="utf-8")


def test_the_dictionary_lies_beside_the_table(folder):
    with (folder / "columns.csv").open(newline="", encoding="utf-8") as file:
        found = [tuple(row.values()) for row in csv.DictReader(file)]
    assert found == [(c.name, c.kind, c.unit, c.meaning) for c in SCHEMA]
    assert {path.name for path in folder.iterdir()} == {
        "columns.csv",
        "results.csv",
        "results.parquet",
        "summary.html",
    }


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
def test_rows_are_read_as_they_were_written(folder, expected, name):
    rows = read_results(folder / name)
    assert rows == expected
    for row in rows:
        for column in SCHEMA:
            value = row[column.name]
            assert value is None or type(value) is TYPES[column.kind], (column, value)


def test_missing_values_are_empty_cells_and_booleans_words(folder):
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 40 and tuple(lines[0]) == COLUMNS
    failed = lines[3]
    assert failed["status"] == "failed" and failed["reason"].startswith("'=1+1")
    assert {failed[name] for name in ("stage", "supported", "F0", "liver_mean_hu")} == {""}
    assert {line["supported"] for line in lines} == {"true", "false", ""}
    assert lines[0]["lsvr"] == "" and float(lines[0]["nodularity_mm10"]) == 1e-6


def guarded(rows):
    """With the ' that spreadsheets need before a formula."""
    return [{k: f"'{v}" if str(v).startswith("=") else v for k, v in row.items()} for row in rows]


def documented(package, folder, monkeypatch):
    """The variable `table` after the documentation's lines for a package."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (block,) = (block for block in blocks if f"import {package}" in block)
    monkeypatch.chdir(folder)
    names = {}
    exec(block, names)
    return names["table"]


def plain(frame):
    """Rows of a pandas table; missing values are None."""
    import pandas

    return [
        {name: None if pandas.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]


def test_pandas_reads_the_same(folder, expected, monkeypatch):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = documented("pandas", folder, monkeypatch)
    assert plain(frame) == guarded(expected)
    parquet = pandas.read_parquet(folder / "results.parquet")
    assert plain(parquet) == guarded(expected)
    # Without any option, where no case is called NA.
    simple = pandas.read_csv(folder / "results.csv")
    assert simple["F4"].dtype == float and simple["lsvr"].isna().all()
    assert simple["F4"].isna().sum() == sum(row["F4"] is None for row in expected)


def test_duckdb_reads_the_same(folder, expected, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    table = documented("duckdb", folder, monkeypatch)
    assert tuple(table.columns) == COLUMNS
    assert [dict(zip(COLUMNS, row)) for row in table.fetchall()] == guarded(expected)
    parquet = duckdb.read_parquet(str(folder / "results.parquet")).fetchall()
    assert [dict(zip(COLUMNS, row)) for row in parquet] == guarded(expected)
    # Without any option, the reader itself finds the separator, the quotes and the numbers.
    plain = duckdb.read_csv(str(folder / "results.csv"))
    at = COLUMNS.index("F4")
    assert [row[at] for row in plain.fetchall()] == [row["F4"] for row in expected]


def test_parquet_states_types_units_and_meanings(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    schema = parquet.read_schema(folder / "results.parquet")
    kinds = {"text": "string", "number": "double", "integer": "int64", "boolean": "bool"}
    for column in SCHEMA:
        field = schema.field(column.name)
        assert str(field.type) == kinds[column.kind]
        assert field.metadata[b"unit"].decode() == column.unit
        assert field.metadata[b"meaning"].decode() == column.meaning


def test_a_table_of_failures_alone(tmp_path):
    pytest.importorskip("pyarrow")
    failed = [row for row in table_rows() if row["status"] == "failed"]
    write_results(tmp_path, failed, parquet=True)
    rows = read_results(tmp_path / "results.csv")
    assert len(rows) == len(failed) and rows == read_results(tmp_path / "results.parquet")
    assert {row["stage"] for row in rows} == {None}


def test_what_is_no_number_or_no_text_is_missing_or_mended(tmp_path):
    row = {
        **table_rows(1)[0],
        "F0": math.nan,
        "F1": math.inf,
        "liver_mean_hu": math.nan,
        "chosen": "a\x00b\ud800c\r\n d",
    }
    write_results(tmp_path, [row], parquet=importlib.util.find_spec("pyarrow") is not None)
    for path in tmp_path.glob("results.*"):
        (found,) = read_results(path)
        assert found["F0"] is None and found["F1"] is None
        assert found["chosen"] == r"a b\ud800c  d"
    assert "nan" not in (tmp_path / "summary.html").read_text(encoding="utf-8")


def test_a_column_without_meaning_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="'mystery'"):
        write_table_csv(tmp_path, [{**table_rows(1)[0], "mystery": 1}])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- refusals


def test_an_older_parquet_table_is_removed(tmp_path):
    pytest.importorskip("pyarrow")
    write_results(tmp_path, table_rows(2), parquet=True)
    write_results(tmp_path, table_rows(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "columns.csv",
        "results.csv",
        "summary.html",
    ]


def test_parquet_without_pyarrow_is_refused_before_work(tmp_path, single_path, monkeypatch):
    monkeypatch.setattr(table_files, "find_spec", lambda _: None)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ct.nii").write_text("Dear radiologist")
    monkeypatch.setattr(StagingModel, "load", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(StagingError, match="package pyarrow"):
        stage_folder(tmp_path / "in", tmp_path / "out", single_path, parquet=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "results.parquet").write_bytes(b"PAR1")
    with pytest.raises(StagingError, match="package pyarrow"):
        read_results(tmp_path / "results.parquet")


def edited(tmp_path, change):
    """results.csv after a change of its text."""
    write_results(tmp_path, table_rows(2))
    path = tmp_path / "results.csv"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: "", "no rows"),
        (lambda _: "ct,liver\na,b\n", "no column case, status, schema"),
        (lambda text: text.splitlines()[0], "no rows"),
        (lambda text: text.replace("done", "finished"), "status finished"),
        (lambda text: text.replace("F0", "F0,F9", 1), "row 1 has not as many cells"),
        (lambda text: text + "a,b\n", "row 3 has not as many cells"),
        (lambda text: text.replace("true", "perhaps"), "'perhaps' for supported in row 2"),
        (lambda text: text.replace(",2,Research", ",3,Research"), "schema 3, of a newer version"),
        (lambda text: text.replace(",2,Research", ",1.5,Research"), "whole number"),
        (lambda text: text.replace(",2,Research", ",,Research"), "schema None"),
        (lambda text: text + '"', "cannot be read"),
    ],
)
def test_what_is_no_table_of_results_is_refused(tmp_path, change, words):
    path = edited(tmp_path, change)
    with pytest.raises(StagingError, match=re.escape(str(path))) as refusal:
        read_results(path)
    assert words in str(refusal.value)


@pytest.mark.parametrize("name", ["gone.csv", "gone.parquet", "folder.csv", "text.parquet"])
def test_files_that_cannot_be_read_are_refused(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "text.parquet").write_text("case,status\n")
    with pytest.raises(StagingError, match="cannot be read"):
        read_results(tmp_path / name)


def test_a_table_edited_in_a_spreadsheet_is_read(tmp_path, expected):
    path = edited(tmp_path, lambda text: "\ufeff" + text.replace("true", "TRUE"))
    text = path.read_text(encoding="utf-8").splitlines()
    path.write_text(
        "\n".join(f"{line},{own}" for line, own in zip(text, ("site", "A", ""))), encoding="utf-8"
    )
    rows = read_results(path)
    assert [row.pop("site") for row in rows] == ["A", None]
    assert rows == expected[:2]


def test_columns_that_an_older_version_did_not_have_are_missing(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("case,status,schema\nP1,done,1\n")
    (row,) = read_results(path)
    assert set(row) == set(COLUMNS) and row["F4"] is None and row["case"] == "P1"


def test_a_parquet_file_with_other_types_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"case": ["P1"], "status": ["done"], "schema": [1], "F4": [[0.5]]})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "t.parquet")
    with pytest.raises(StagingError, match=r"\[0\.5\] for F4 in row 1; a number is needed"):
        read_results(tmp_path / "t.parquet")
