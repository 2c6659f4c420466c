"""The summary of a cohort as HTML: counts, distributions, links, escaped text."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from table_rows import HOSTILE, table_rows

from LiverFibrosisStagingLib.batch.summary_page import MOST_DOTS, summary_page
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES


class Elements(HTMLParser):
    """All elements, as (tag, attributes, text inside)."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self._open = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.found.append(element)
        self._open.append(element)

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element[2] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of some of the cases; one has a report."""
    root = tmp_path_factory.mktemp("cohort")
    for name, file in (("007", "overview.png"), ("007", "report.html"), ("NA", "overview.png")):
        (root / name).mkdir(exist_ok=True)
        (root / name / file).touch()
    return root


@pytest.fixture(scope="module")
def page(folder):
    return summary_page(table_rows(), folder)


def section(page, heading):
    """The part of the page below a heading, up to the next."""
    return re.split(r"<h[23]", page.split(f"{heading}</h", 1)[1])[0]


def test_cases_are_counted_by_stage(page):
    rows = table_rows()
    done = [row for row in rows if row["status"] == "done"]
    assert f"{len(done)} of 40 cases staged</h1>" in page
    table = page.split("Cases by predicted stage", 1)[1].split("</table>")[0]
    counts = dict(re.findall(r'<th scope="row">(\w+)</th>.*?<td class="number"[^>]*>(\d+)<', table))
    for stage in STAGES:
        expected = sum(row["stage"] == stage and row["supported"] for row in done)
        assert int(counts[stage]) == expected
    assert int(counts["Failed"]) == len(rows) - len(done)
    unsupported = re.findall(r'<td class="number">(\d+)</td></tr>', table)
    assert sum(map(int, unsupported)) == sum(not row["supported"] for row in done)


def test_reasons_checks_and_warnings_are_counted(page):
    def counts(heading):
        line = r'<th scope="row">(.*?)</th><td class="number">(\d+)</td>'
        return re.findall(line, section(page, heading), re.S)

    failures = dict(counts("Failures"))
    assert failures["The CT, &quot;\u2026 slices&quot;;\nno HU."] == "5"
    assert len(failures) == 2  # the other one is hostile
    reasons = dict(counts("Stages not supported"))
    assert reasons["\u2026 % lie outside."] == "7"
    checks = dict(counts("Checks of the input"))
    assert set(checks) == {"phase: warn", "slices: warn"}
    assert len(set(checks.values())) == 1
    assert [name for name, _ in counts("Warnings")] == ["A liver of \u2026 mL."]


def test_a_sentence_that_occurs_in_one_form_keeps_its_numbers(folder):
    rows = [{**row, "warnings": "A liver of 5 mL in F3."} for row in table_rows()]
    assert "A liver of 5 mL in F3.</th>" in section(summary_page(rows, folder), "Warnings")


def test_distributions_are_those_of_the_table(page, folder):
    """Medians by numpy, dots and boxes by the number of cases."""
    drawn = section(page, "Liver, mean (HU)")
    values = {stage: [] for stage in STAGES}
    unsupported = []
    for row in table_rows():
        if row["status"] == "done":
            (values[row["stage"]] if row["supported"] else unsupported).append(row["liver_mean_hu"])
    values["Not supported"] = unsupported
    lines = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', drawn)
    assert [name for name, _ in lines] == list(values)
    for name, line in lines:
        number = re.findall(r'<td class="number">(.*?)</td>', line)
        assert number[1] == str(len(values[name]))
        assert number[0] == (f"{np.median(values[name]):.0f}" if values[name] else "")
        assert line.count("<circle") == len(values[name]) <= MOST_DOTS
    assert "Segmental volume ratio" not in page  # nowhere measured
    assert "Pickhardt et al. 2017" in section(page, "Spleen volume (mL)")
    many = section(summary_page(table_rows(400), folder), "Liver, mean (HU)")
    first = many.split("</tr>")[1]
    assert first.count('class="box"') == 1


def test_a_box_has_quartiles_and_the_cases_beyond_it(folder):
    values = [*range(100, 120), 500]
    rows = [
        {**table_rows(1)[0], "supported": True, "case": f"c{n}", "liver_mean_hu": float(value)}
        for n, value in enumerate(values)
    ]
    drawn = section(summary_page(rows, folder), "Liver, mean (HU)")
    assert re.findall(r"<title>(.*?)</title>", drawn) == ["c20: 500"]
    x, width = map(float, re.search(r'class="box" x="([\d.]+)%" width="([\d.]+)%"', drawn).groups())
    first, third = np.percentile(values, (25, 75))
    margin = 0.03 * 400
    assert x == pytest.approx(100 * (first - 100 + margin) / (400 + 2 * margin), abs=0.02)
    assert width == pytest.approx(100 * (third - first) / (400 + 2 * margin), abs=0.02)


def test_every_case_is_a_line_with_the_right_link(page):
    elements = Elements(page).found
    rows = [element for element in elements if element[0] == "tr"][-40:]
    assert [row[2].strip().split("\n")[0][:3] for row in rows][:3] == ["007", "NAF", "-1F"]
    links = [attributes["href"] for tag, attributes, _ in elements if tag == "a"]
    assert links[2:] == ["./007/report.html", "./NA/overview.png"]
    pictures = [attributes for tag, attributes, _ in elements if tag == "img"]
    assert [p["src"] for p in pictures] == ["./007/overview.png", "./NA/overview.png"]
    assert {p["loading"] for p in pictures} == {"lazy"}


@pytest.mark.parametrize("name", ["a b/c#d?e%20f", "caf\u00e9 'x'&y", 'q"onerror=alert(1)'])
def test_names_of_cases_are_links_that_lead_to_their_folder(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "overview.png").touch()
    page = summary_page([{**table_rows(1)[0], "case": name}], tmp_path)
    (picture,) = (a for tag, a, _ in Elements(page).found if tag == "img")
    assert set(picture) == {"src", "alt", "width", "height", "loading", "decoding"}
    assert unquote(picture["src"]) == f"./{name}/overview.png"
    assert not set(picture["src"]) & set("?#\"'<> ")


def test_texts_of_the_table_are_no_html(folder):
    rows = table_rows()
    for row in rows:
        for key in ("case", "reason", "reasons", "warnings", "checks", "pattern", "model"):
            row[key] = HOSTILE
        row["trained_on"] = row["software"] = HOSTILE
    page = summary_page(rows, folder)
    assert page.count("<script") == 1 and "<script>alert" not in page
    assert HOSTILE not in page
    assert {tag for tag, attributes, _ in Elements(page).found for name in attributes
            if name.startswith("on")} == set()  # fmt: skip


def test_the_page_says_what_it_may_be_used_for_and_leads_nowhere_else(page):
    assert page.count(RESEARCH_USE) == 2
    assert "Model Network, trained on: phantoms" in page
    assert not re.search(r"(?:https?:)?//\w|file:/|url\(|@import", page.replace("img-src", ""))
    for tag, attributes, _ in Elements(page).found:
        for name in ("href", "src"):
            if name in attributes:
                assert attributes[name].startswith(("./", "#", "data:,")), (tag, attributes)


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_cohort_of_one_kind(folder, status):
    rows = [row for row in table_rows() if row["status"] == status]
    page = summary_page(rows, folder)
    if status == "failed":
        assert f"0 of {len(rows)} cases staged" in page and "No sign was measured." in page
    else:
        assert f"{len(rows)} of {len(rows)} cases staged" in page


def test_a_single_case_with_one_value_of_everything(folder):
    page = summary_page([{**table_rows(1)[0], "supported": True}], folder)
    assert "1 of 1 case staged" in page and "The stages of all cases are supported." in page
    assert "nan" not in page
