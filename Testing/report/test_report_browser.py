"""The report in headless Chromium: viewer, keyboard, print, colour schemes, no network."""

import re

import chromium
import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.report.slices import Slices
from LiverFibrosisStagingLib.report.viewer import viewer_slices

BROWSER = chromium.find()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs Chromium (Debian's package chromium), which is not installed"
)
A4, LETTER = (8.27, 11.69), (8.5, 11.0)
# The pixels of the viewer, read from a copy, which Chromium wants to be made for reading.
READ = """
  const copy = canvas.cloneNode();
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  const data = context.getImageData(0, 0, copy.width, copy.height).data;
"""
# Mean difference of red and blue: 0 for grey, more with more of the map. Mean of green.
COLOUR, GREY = (
    f"(() => {{ {READ} let sum = 0; for (let i = 0; i < data.length; i += 4) sum += {value};"
    " return sum / (data.length / 4); })()"
    for value in ("Math.abs(data[i] - data[i + 2])", "data[i + 1]")
)
# The lowest contrast (WCAG 2.2, 1.4.3) of any text with the page's background.
CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number).slice(0, 3);
  const light = (color) => {
    const [r, g, b] = rgb(color).map((v) => v / 255).map((v) =>
      v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  let lowest = [21, ""];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    const hasText = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!hasText || element.closest(".stage")) continue;
    const text = light(getComputedStyle(element).color);
    const ratio = (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, element.textContent.slice(0, 40)];
  }
  return lowest;
})()"""


@pytest.fixture(scope="module")
def browser():
    page = chromium.Page(BROWSER)
    yield page
    page.close()


@pytest.fixture
def page(browser, report_file):
    """The report, opened anew; it must not log or request anything."""
    browser.log.clear()
    browser.requests.clear()
    open_report(browser, report_file)
    yield browser
    assert browser.log == []
    assert all(
        url.startswith(("data:image/png", f"file://{report_file}")) for url in browser.requests
    )


def open_report(browser, path, **window):
    browser.open(path, **window)
    browser.wait("!viewer.hidden && canvas.width === canvas.clientWidth")


def position(page):
    """Number of the slice that is shown, from its label."""
    return int(re.match(r"Slice (\d+) of", page.evaluate("position.textContent"))[1])


def set_slider(page, name, value):
    page.evaluate(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = {value}; "
        "s.dispatchEvent(new Event('input')); })()"
    )


def settled(page, script, condition):
    """Wait until the value of a script, such as a mean over the canvas, meets a condition."""
    page.wait(f"{script} {condition}")
    return page.evaluate(script)


def test_the_viewer_starts_on_a_slice_of_the_liver_and_shows_its_place(page):
    count = page.evaluate("JSON.parse(slices.textContent).levels.length")
    assert 1 < position(page) < count
    assert page.evaluate("slice.getAttribute('aria-valuetext')") == page.evaluate(
        "position.textContent"
    )
    assert page.evaluate("getComputedStyle(pictures).display") == "none"
    assert page.evaluate(COLOUR) > 1


def test_wheel_and_keys_change_the_slice(page):
    start = position(page)
    page.wheel("#canvas", 120)
    page.wait(f"position.textContent.startsWith('Slice {start + 1} of')")
    page.wheel("#canvas", -120)
    page.wait(f"position.textContent.startsWith('Slice {start} of')")
    page.evaluate("canvas.focus()")
    last = page.evaluate("levels = JSON.parse(slices.textContent).levels.length")
    for key, code, expected in (
        ("ArrowDown", 40, start + 1),
        ("ArrowUp", 38, start),
        ("PageDown", 34, start + 10),
        ("PageUp", 33, start),
        ("End", 35, last),
        ("ArrowDown", 40, last),
        ("Home", 36, 1),
        ("ArrowUp", 38, 1),
    ):
        page.key(key, code)
        assert position(page) == expected, key
    page.evaluate("slice.focus()")
    page.key("ArrowRight", 39)
    assert position(page) == 2


def test_sliders_change_the_picture(page):
    set_slider(page, "opacity", 50)
    full = page.evaluate(COLOUR)
    page.evaluate("contours.click()")
    lines = settled(page, COLOUR, f"!== {full}")
    assert lines < full
    set_slider(page, "threshold", 60)
    high = settled(page, COLOUR, f"< {lines}")
    assert high > 0
    set_slider(page, "opacity", 0)
    settled(page, COLOUR, "=== 0")
    middle = page.evaluate(GREY)
    set_slider(page, "level", 150)
    settled(page, GREY, f"< {middle}")
    set_slider(page, "level", -50)
    settled(page, GREY, f"> {middle}")
    assert page.evaluate("document.getElementById('level-value').textContent") == "-50 HU"
    page.evaluate("reset.click()")
    settled(page, COLOUR, "> 1")
    assert page.evaluate("[level.value, opacity.value, threshold.value, contours.checked]") == [
        "50",
        "100",
        "0",
        True,
    ]


def test_the_picture_has_the_grey_values_of_the_ct(page, staged_sample):
    page.evaluate("contours.click()")
    set_slider(page, "opacity", 0)
    settled(page, COLOUR, "=== 0")
    ct = staged_sample.ct
    slices = Slices.of(ct, staged_sample.map_on_ct, staged_sample.liver, staged_sample.spleen)
    width, rows, green = page.evaluate(
        f"(() => {{ {READ} const green = [...data].filter((_, i) => i % 4 === 1);"
        " return [copy.width, copy.height, green]; })()"
    )
    shown = np.reshape(green, (rows, width))
    viewer = viewer_slices(slices)
    scale = width / viewer.columns / viewer.mm  # canvas pixels per mm
    z = viewer.levels[position(page) - 1]
    smooth = sitk.Mean(ct, [2, 2, 0])
    differences = []
    for x in range(-90, 91, 15):
        for y in range(-60, 61, 15):
            hu = smooth[smooth.TransformPhysicalPointToIndex((x, y, z))]
            column, row = (
                round(scale * (position - low)) for position, low in zip((x, y), slices.low)
            )
            part = shown[row - 4 : row + 5, column - 4 : column + 5]
            differences.append(part.mean() - 255 * np.clip((hu + 125) / 350, 0, 1))
    assert np.median(np.abs(differences)) < 5
    assert abs(np.mean(differences)) < 5


def test_printed_pages_have_the_still_pictures_and_fit_the_paper(page):
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate("getComputedStyle(viewer).display") == "none"
    assert page.evaluate("getComputedStyle(pictures).display") == "grid"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.send("Emulation.setEmulatedMedia", media="")
    for width, height in (A4, LETTER):
        printed = page.pdf(width, height)
        boxes = re.findall(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", printed)
        assert 2 <= len(boxes) <= 4
        for box in boxes:
            assert [float(side) for side in box] == pytest.approx([72 * width, 72 * height], abs=2)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast_in_both_schemes(page, report_file, dark):
    open_report(page, report_file, dark=dark)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background))) < 60) is dark
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_is_wider_than_the_window(page, report_file, width):
    open_report(page, report_file, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_screen_readers_find_landmarks_headings_and_named_controls(page):
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = [role for role, _ in found]
    assert {"banner", "main", "contentinfo"} <= set(roles)
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    names = [name for role, name in found if role == "slider"]
    assert names == ["Slice", "Window width", "Window level", "Map opacity", "Map above"]
    regions = [name for role, name in found if role == "region"]
    assert "Signs measured on this CT" in regions and "Model" in regions
    assert all(name for role, name in found if role in ("image", "img", "button", "checkbox"))
    assert ("RootWebArea", page.evaluate("document.title")) in found


def test_without_scripts_the_page_shows_the_still_pictures(browser, report_file):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(report_file)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.evaluate("getComputedStyle(viewer).display") == "none"
    assert browser.evaluate("getComputedStyle(pictures).display") == "grid"


def test_a_damaged_slice_leaves_the_still_pictures(browser, report_file, tmp_path):
    text = report_file.read_text(encoding="utf-8")
    damaged = tmp_path / "report.html"
    damaged.write_text(re.sub(r'"iVBOR[^"]*"', '"AAAA"', text), encoding="utf-8")
    browser.open(damaged)
    browser.wait("getComputedStyle(pictures).display === 'grid'")
    assert browser.evaluate("getComputedStyle(viewer).display") == "none"


def test_the_policy_forbids_requests_and_foreign_scripts(browser, report_file, tmp_path):
    text = report_file.read_text(encoding="utf-8")
    changed = tmp_path / "report.html"
    inside = "<script>document.title = 'ran'</script><img src='http://127.0.0.1:9/x.png'></main>"
    changed.write_text(text.replace("</main>", inside), encoding="utf-8")
    browser.log.clear()
    browser.open(changed)
    browser.wait("document.getElementById('canvas').width > 300")
    assert browser.evaluate("document.title") != "ran"
    assert len([line for line in browser.log if "Content Security Policy" in line]) == 2
