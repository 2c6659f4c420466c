"""The summary of a cohort in headless Chromium: sorting, filter, keyboard, widths, no network."""

import re

import chromium
import numpy as np
import pytest
from table_rows import table_rows
from test_report_browser import CONTRAST

from LiverFibrosisStagingLib.batch.table_files import write_results
from LiverFibrosisStagingLib.report.drawing import write_png

BROWSER = chromium.find()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs Chromium (Debian's package chromium), which is not installed"
)
NAMES = "[...document.querySelectorAll('#cases tbody tr:not([hidden]) th')].map(e => e.textContent)"


@pytest.fixture(scope="module")
def browser():
    page = chromium.Page(BROWSER)
    yield page
    page.close()


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """A summary with pictures, in a folder whose name needs quoting."""
    root = tmp_path_factory.mktemp("a cohort #1")
    rows = table_rows()
    for row in rows:
        if row["status"] == "done":
            (root / row["case"]).mkdir()
            write_png(np.full((10, 16, 3), 90, np.uint8), root / row["case"] / "overview.png")
    write_results(root, rows)
    return root / "summary.html"


@pytest.fixture
def page(browser, summary):
    """The page, opened anew; it must not log anything, or request anything but its pictures."""
    browser.log.clear()
    browser.requests.clear()
    browser.open(summary)
    yield browser
    assert browser.log == []
    place = summary.parent.as_uri()[:80]
    assert all(url.startswith(("data:", place)) for url in browser.requests), browser.requests


def column(name):
    """Values of a column of the table, in the order of results.csv."""
    return {row["case"]: row.get(name) for row in table_rows()}


def headings(page):
    return page.evaluate("[...document.querySelectorAll('#cases thead th')].map(e => e.innerText)")


def press(page, name):
    """Sort by a column, with the keyboard; returns the cases and the column's state."""
    at = [heading.strip() for heading in headings(page)].index(name)
    page.evaluate(f"document.querySelectorAll('#cases thead button')[{at}].focus()")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r",
              windowsVirtualKeyCode=13)  # fmt: skip
    page.send("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter",
              windowsVirtualKeyCode=13)  # fmt: skip
    states = page.evaluate(
        "[...document.querySelectorAll('#cases thead th')].map(e => e.getAttribute('aria-sort'))"
    )
    assert [state for k, state in enumerate(states) if k != at] == [None] * (len(states) - 1)
    return page.evaluate(NAMES), states[at]


@pytest.mark.parametrize(
    ("heading", "name"),
    [("Liver, mL", "liver_volume_ml"), ("Nodularity", "nodularity_mm10"), ("F4", "cirrhosis")],
)
def test_numbers_are_sorted_in_both_directions_with_missing_ones_last(page, heading, name):
    values = column(name)
    for state, sign in (("ascending", 1), ("descending", -1)):
        names, found = press(page, heading)
        assert found == state and sorted(names) == sorted(values)
        numbers = [values[case] for case in names]
        known = [number for number in numbers if number is not None]
        assert numbers == known + [None] * (len(numbers) - len(known))
        assert known == sorted(known, key=lambda number: sign * number)


def test_stages_and_names_are_sorted(page):
    stages = column("stage")
    names, _ = press(page, "Stage")
    found = [stages[case] for case in names]
    assert found == sorted(found, key=lambda stage: (stage is None, stage))
    names, _ = press(page, "Case")
    numbers = [int(name[4:]) for name in names if name.startswith("case")]
    assert numbers == sorted(numbers)
    names, _ = press(page, "Case")
    assert [int(name[4:]) for name in names if name.startswith("case")] == numbers[::-1]


def test_the_filter_finds_all_words_in_any_order(page):
    def find(text):
        page.evaluate(
            f"(() => {{ filter.value = {text!r}; filter.dispatchEvent(new Event('input')); }})()"
        )
        return page.evaluate(NAMES), page.evaluate("found.textContent")

    failed = [row["case"] for row in table_rows() if row["status"] == "failed"]
    assert find("FAILED")[0] == failed
    assert find("hu the failed case0010") == (["case0010"], "1 of 40")
    assert find("nothing like it") == ([], "0 of 40")
    assert len(find("")[0]) == 40
    assert page.evaluate("found.getAttribute('role')") == "status"


def test_pictures_are_shown_when_they_are_scrolled_into_view(page):
    page.wait(
        "(() => { const i = document.querySelector('#cases img'); i.scrollIntoView(); "
        "return i.complete && i.naturalWidth === 16; })()"
    )


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast_in_both_schemes(page, summary, dark):
    page.open(summary, dark=dark)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background))) < 60) is dark
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_is_wider_than_the_window(page, summary, width):
    page.open(summary, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints_without_pictures(page):
    page.send("Emulation.setEmulatedMedia", media="print")
    shown = page.evaluate("getComputedStyle(document.querySelector('#cases img')).display")
    page.send("Emulation.setEmulatedMedia", media="")
    assert shown == "none"
    assert page.pdf(8.27, 11.69).startswith(b"%PDF")


def test_screen_readers_find_headings_and_named_controls(page):
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    assert {"banner", "main", "contentinfo"} <= {role for role, _ in found}
    assert ("searchbox", "Filter") in found and ("region", "Table of the cases") in found
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert all(name for role, name in found if role in ("button", "link", "searchbox"))


def test_without_scripts_all_cases_are_shown(browser, summary):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(summary)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert len(browser.evaluate(NAMES)) == 40
    assert browser.evaluate("document.getElementById('finding').hidden") is True
    assert browser.evaluate("document.querySelectorAll('#cases button').length") == 0
