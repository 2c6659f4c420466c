"""A model's operating points, from its metadata to results, tables and pages."""

import csv
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from table_rows import table_rows

from LiverFibrosisStagingLib.batch.summary_page import summary_page
from LiverFibrosisStagingLib.batch.table import COLUMNS, columns_of
from LiverFibrosisStagingLib.batch.table_files import read_results, write_results
from LiverFibrosisStagingLib.model import read_card
from LiverFibrosisStagingLib.report import overview
from LiverFibrosisStagingLib.report.content import report_content
from LiverFibrosisStagingLib.report.page import _bars
from LiverFibrosisStagingLib.report.summary import point_sentence
from LiverFibrosisStagingLib.report.summary import table_rows as rows_of
from LiverFibrosisStagingLib.result import one_line
from LiverFibrosisStagingLib.stages import GROUPS, at_points, group_scores

PROBABILITIES = np.array([0.05, 0.1, 0.15, 0.25, 0.45])  # median F3, but 0.45 for cirrhosis
POSITIVE = [f"{name}_positive" for name in GROUPS]


@pytest.fixture(scope="module")
def with_points(staged_sample):
    """The staged sample with PROBABILITIES and a model with the operating points, or none."""

    def changed(**points):
        forward = staged_sample.forward_pass
        calibration = {"temperature": 1.0, "operating_points": points} if points else {}
        card = replace(forward.model.card, calibration=calibration)
        return replace(
            staged_sample,
            probabilities=PROBABILITIES,
            percentiles={},
            stage="F3",
            scores=group_scores(PROBABILITIES),
            forward_pass=replace(forward, model=SimpleNamespace(card=card)),
        )

    return changed


def test_a_score_exactly_at_the_point_is_positive():
    scores = group_scores(PROBABILITIES)
    points = {"advanced": scores["advanced"], "cirrhosis": math.nextafter(scores["cirrhosis"], 1)}
    found = at_points(scores, points)
    assert found["significant"] is None
    assert found["advanced"] == (scores["advanced"], True)
    assert found["cirrhosis"].positive is False


def test_a_cards_points_are_those_of_the_groups(single_path):
    card = read_card(single_path)
    assert card.operating_points == card.calibration["operating_points"]
    assert replace(card, calibration={}).operating_points == {}
    some = {"operating_points": {"cirrhosis": 1, "portal hypertension": 0.5}}
    assert replace(card, calibration=some).operating_points == {"cirrhosis": 1.0}


def test_a_result_can_be_positive_for_cirrhosis_at_stage_f3(with_points):
    result = with_points(significant=0.9, advanced=0.6, cirrhosis=0.41)
    summary = json.loads(json.dumps(result.summary()))
    schema = json.loads((ROOT / "Resources" / "staging.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(summary, schema)
    assert summary["stage"] == "F3"
    assert summary["operating_points"]["cirrhosis"] == {"point": 0.41, "positive": True}
    assert summary["operating_points"]["significant"] == {"point": 0.9, "positive": False}
    assert one_line(result) == (
        "F3 (probability 0.25; significant 0.85, negative at 0.90; advanced 0.70, positive at "
        "0.60; cirrhosis 0.45, positive at 0.41)"
    )
    sentence = "F4 (cirrhosis): 0.45, at or above the operating point 0.41: positive."
    assert point_sentence(summary, "cirrhosis") == sentence
    rows = {name: value for name, value, _ in rows_of(summary)}
    assert rows["Positive for cirrhosis (F4), at 0.410 or above"] == "yes"
    assert rows["Positive for significant (F2-F4), at 0.900 or above"] == "no"
    assert [columns_of(summary)[name] for name in POSITIVE] == [False, True, True]


def test_nothing_is_said_without_points(with_points):
    result = with_points()
    summary = json.loads(json.dumps(result.summary()))
    assert summary["operating_points"] == dict.fromkeys(GROUPS)
    assert one_line(result) == (
        "F3 (probability 0.25; significant 0.85; advanced 0.70; cirrhosis 0.45)"
    )
    assert not any("Positive" in name for name, *_ in rows_of(summary))
    assert [columns_of(summary)[name] for name in POSITIVE] == [None] * 3
    report = report_content(summary, result.signs, {}, {})
    assert report.points == "" and not any(bar.answer for bar in report.groups)
    assert [bar.chosen for bar in report.groups] == [True, True, False]  # as the stage


def test_numbers_that_differ_are_told_apart(with_points):
    summary = with_points(advanced=0.7004, cirrhosis=0.45).summary()
    assert point_sentence(summary, "advanced") == (
        "F3-F4 (advanced): 0.7000, below the operating point 0.7004: negative."
    )
    assert "0.45, at or above the operating point 0.45: positive" in point_sentence(
        summary, "cirrhosis"
    )
    assert point_sentence(summary, "significant") == ""


def test_the_report_marks_the_points(with_points):
    result = with_points(significant=0.9, cirrhosis=0.41)
    report = report_content(result.summary(), result.signs, {}, {})
    assert [bar.answer for bar in report.groups] == ["no", "", "yes"]
    assert [bar.chosen for bar in report.groups] == [False, True, True]
    assert "Youden" in report.points and "0.41: positive" in report.points
    rows = _bars("Groups", report.groups).split("</tr>")
    assert 'class="point" x1="90.00%"' in rows[0] and ">no<" in rows[0]
    assert "point" not in rows[1]
    assert 'class="point" x1="41.00%"' in rows[2] and ">yes<" in rows[2]


def test_the_overview_marks_the_points(with_points):
    with_, without = with_points(cirrhosis=0.41).overview(), with_points().overview()
    box = overview._PANELS[1]
    differs = (with_ != without).any(axis=2)
    assert differs[box.y : box.y + box.height, box.x : box.x + box.width].sum() > 500
    differs[box.y : box.y + box.height, box.x : box.x + box.width] = False
    assert not differs.any()


def test_a_table_of_schema_1_is_read(tmp_path):
    rows = [
        {name: value for name, value in row.items() if name not in POSITIVE} | {"schema": 1}
        for row in table_rows(8)
    ]
    write_results(tmp_path, rows, parquet=True)
    table = tmp_path / "results.csv"
    with table.open(newline="", encoding="utf-8") as file:
        old = list(csv.DictReader(file))
    with table.open("w", newline="", encoding="utf-8") as file:  # as it was written then
        columns = [column for column in COLUMNS if column not in POSITIVE]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(old)
    found = read_results(table)
    assert found == read_results(tmp_path / "results.parquet")
    assert {row["schema"] for row in found} == {1}
    assert {row[column] for row in found for column in POSITIVE} == {None}
    assert found[0]["significant"] == rows[0]["significant"]
    page = summary_page(found, tmp_path)
    assert ", yes</td>" not in page and ", no</td>" not in page


def test_the_summary_says_which_cases_are_positive(tmp_path):
    (row, *_) = table_rows(1)
    row |= {name: value for name, value in zip(GROUPS, (0.85, 0.7, 0.45))}
    row |= dict(zip(POSITIVE, (False, True, None)))
    page = summary_page([row], tmp_path)
    assert ">85.0 %, no</td>" in page and ">70.0 %, yes</td>" in page and ">45.0 %</td>" in page
