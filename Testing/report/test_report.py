"""The report of a result: its slices, its text, its files."""

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_overview import lps_case, shown

from LiverFibrosisStagingLib import staging
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.batch import case_row
from LiverFibrosisStagingLib.imaging.input_checks import Check
from LiverFibrosisStagingLib.report import documents
from LiverFibrosisStagingLib.report.content import report_content
from LiverFibrosisStagingLib.report.page import report_page
from LiverFibrosisStagingLib.report.pictures import pictures
from LiverFibrosisStagingLib.report.slices import Slices
from LiverFibrosisStagingLib.report.viewer import FIRST_HU, MAX_SLICES, STEP_HU, viewer_slices
from LiverFibrosisStagingLib.signs.measure import Measurement

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 15e6


class Text(HTMLParser):
    """The tags of a page, its text and its scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.words, self.inside = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def content_of(result, **changed):
    card = result.forward_pass.model.card
    return report_content(
        {**result.summary(), **changed},
        result.signs,
        card.reference,
        card.training,
    )


def viewer_of(result):
    return viewer_slices(Slices.of(result.ct, result.map_on_ct, result.liver, result.spleen))


def planes(viewer, index, folder):
    """HU, map 0..1 and organs of a slice, decoded by another PNG reader."""
    path = folder / "tile.png"
    path.write_bytes(viewer.tiles[index])
    sheet = sitk.GetArrayFromImage(sitk.ReadImage(path)).astype(float)
    grey, weight, organs = np.split(sheet, 3)
    return FIRST_HU + STEP_HU * grey, weight / 255, organs


# ---------------------------------------------------------------------------- slices


@pytest.fixture(scope="module")
def body():
    """A body with a liver, a spleen and a map that rises from the left to the right."""
    case = lps_case()
    ramp = np.broadcast_to(np.linspace(0, 8, 150, dtype=np.float32), (50, 140, 150))
    weight = sitk.GetImageFromArray(np.ascontiguousarray(ramp))
    weight.CopyInformation(case["ct"])
    case["label_map"] = weight
    slices = Slices.of(**shown(case, 8.0))
    return case, slices, viewer_slices(slices)


def test_slices_show_the_values_of_the_ct_the_map_and_the_masks(body, tmp_path):
    case, slices, viewer = body
    middle = int(np.argmin(np.abs(np.array(viewer.levels) - 32)))
    hu, share, organs = planes(viewer, middle, tmp_path)
    assert hu.shape == (viewer.rows, viewer.columns)

    def pixel(x, y):
        column = round((x - slices.low[0]) / viewer.mm - 0.5)
        row = round((y - slices.low[1]) / viewer.mm - 0.5)
        return row, column

    for x, y in ((-65, 0), (85, 30), (10, -60)):
        at = pixel(x, y)
        voxel = case["ct"].TransformPhysicalPointToIndex((x, y, viewer.levels[middle]))
        assert hu[at] == pytest.approx(case["ct"][voxel], abs=STEP_HU / 2)
        assert share[at] == pytest.approx(case["label_map"][voxel] / 8, abs=0.02)
        assert organs[at] == (1 if case["liver"][voxel] else 2 if case["spleen"][voxel] else 0)
    area = np.count_nonzero(organs == 1) * viewer.mm**2
    plane = sitk.GetArrayFromImage(case["liver"])[
        case["ct"].TransformPhysicalPointToIndex((0, 0, viewer.levels[middle]))[2]
    ]
    assert area == pytest.approx(np.count_nonzero(plane) * 2.0 * 1.5, rel=0.02)


def test_slices_lie_on_the_planes_of_the_ct_around_both_organs(body):
    case, _, viewer = body
    steps = np.diff(viewer.levels)
    assert np.allclose(steps, -3.0)  # cranial first, every slice of the CT
    planes_of_ct = -40.0 + 3.0 * np.arange(50)
    assert set(viewer.levels) <= set(planes_of_ct)
    for mask in (case["liver"], case["spleen"]):
        inside = np.flatnonzero(sitk.GetArrayViewFromImage(mask).any(axis=(1, 2)))
        assert viewer.levels[-1] <= planes_of_ct[inside[0]]
        assert viewer.levels[0] >= planes_of_ct[inside[-1]]


@pytest.mark.parametrize("axes", ["RAI", "LPS", "PIR", "ASL"])
def test_slices_do_not_depend_on_the_orientation_of_the_voxels(body, axes, tmp_path):
    case, _, viewer = body
    turned = {name: sitk.DICOMOrient(image, axes) for name, image in case.items()}
    again = viewer_slices(Slices.of(**shown(turned, 8.0)))
    assert again.levels == viewer.levels
    first, second = planes(viewer, 20, tmp_path), planes(again, 20, tmp_path)
    for one, other in zip(first, second):
        assert np.mean(one != other) < 0.01


def test_many_thin_slices_of_pure_noise_stay_below_the_limit():
    # The worst case for PNG: nothing can be compressed. Fewer rows than a real CT, as large.
    noise = np.random.default_rng(1).integers(-250, 400, (300, 128, 128), dtype=np.int16)
    ct = sitk.GetImageFromArray(noise)
    ct.SetSpacing((3.2, 3.2, 0.8))
    inside = np.zeros(noise.shape, np.uint8)
    inside[20:280, 20:100, 20:70] = 1
    liver = sitk.GetImageFromArray(inside)
    liver.CopyInformation(ct)
    weight = sitk.SmoothingRecursiveGaussian(sitk.Cast(ct, sitk.sitkFloat32) + 250, 12.0)
    case = {"ct": ct, "liver": liver, "spleen": None, "label_map": weight}
    slices = Slices.of(**shown(case, float(sitk.GetArrayViewFromImage(weight).max())))
    # As fine as a CT of 512 x 512 would be sampled.
    fine = sitk.Resample(
        ct,
        [512, 512, 300],
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        ct.GetOrigin(),
        (0.8, 0.8, 0.8),
    )
    slices = replace(slices, ct=fine)
    viewer = viewer_slices(slices)
    assert len(viewer.levels) <= MAX_SLICES
    assert viewer.columns * viewer.rows * len(viewer.levels) > 6e6
    stills = sum(len(base64.b64encode(picture.rgb)) for picture in pictures(slices))
    assert len(json.dumps(viewer.data())) + stills < MAX_BYTES


# ---------------------------------------------------------------------------- content


def test_strips_and_regions_have_the_numbers_of_the_result(staged_sample):
    content = content_of(staged_sample)
    spleen = content.signs[0]
    assert spleen.value == staged_sample.signs["spleen_volume_ml"].value
    assert [row.label for row in spleen.rows] == ["F0", "F1", "F2", "F3", "F4"]
    # By hand, of a log-normal distribution with the published mean and SD of F0.
    variance = np.log1p((88.5 / 215.1) ** 2)
    middle = 215.1 / np.exp(variance / 2)
    low, high = (middle * np.exp(z * np.sqrt(variance)) for z in (-1.6449, 1.6449))
    assert spleen.rows[0].values[::2] == pytest.approx([low, middle, high], rel=1e-3)
    for row in spleen.rows:
        assert list(row.values) == sorted(row.values)
        assert spleen.low <= row.values[0] < row.values[-1] < spleen.high
    (strip,) = (each for each in content.signs if each.sign.key == "nodularity_mm10")
    score, edge = (staged_sample.signs[f"nodularity_{key}"].value for key in ("mm10", "edge_mm"))
    text = f"{score:.2f} tenths of a mm, on {edge:.0f} mm of the liver's edge"
    assert strip.sentence == f"Liver surface nodularity {text}."
    measured = staged_sample.measurements
    assert [region.mean for region in content.regions] == [m["mean"] for m in measured.values()]
    usual = staged_sample.forward_pass.model.card.reference["stages"][staged_sample.stage]
    assert list(content.regions[0].usual) == usual["liver"]


def test_the_reference_is_that_of_maps_of_the_predicted_stage(staged_sample):
    other = "F0" if staged_sample.stage != "F0" else "F4"
    content = content_of(staged_sample.explain(other))
    assert all(region.usual is None for region in content.regions)
    assert other in content.regions_note


# ---------------------------------------------------------------------------- page


def test_the_page_says_what_the_result_says(staged_sample, report_file):
    page = report_file.read_text(encoding="utf-8")
    text = Text(page).text
    summary = staged_sample.summary()
    assert f"Predicted fibrosis stage {staged_sample.stage}" in text
    for sentence in (
        *summary["signs_placed"],
        *summary["warnings"],
        summary["model"]["sha256"],
        summary["input"]["sha256"],
        summary["model"]["trained_on"],
        summary["research_use"],
    ):
        assert " ".join(sentence.split()) in text
    for placement in staged_sample.placements:
        assert f'href="{placement.source.link}"' in page
        assert placement.sign.remark in text or placement.interval is not None
    for probability in staged_sample.probabilities:
        assert f"{100 * probability:.1f} %" in text
    assert len(page) < MAX_BYTES


def test_the_page_has_no_name_and_nothing_from_outside(report_file):
    for path in (report_file, report_file.with_name("report.pdf")):
        written = path.read_bytes()
        for name in (b"Mustermann", b"Erika", str(ROOT).encode(), str(path.parent).encode()):
            assert name not in written
    page = report_file.read_text(encoding="utf-8")
    attributes = [pair for _, found in Text(page).tags for pair in found.items()]
    assert all(value.startswith("data:") for name, value in attributes if name == "src")
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy


def test_an_unsupported_stage_is_not_the_headline(staged_sample):
    reason = "Half of the weight lies elsewhere."
    result = replace(staged_sample, reasons=(reason,))
    page = report_page(content_of(result), (), viewer_of(result))
    assert re.search(r'<h1 id="headline">([^<]*)</h1>', page)[1] == "Stage not supported"
    assert 'class="result unsupported"' in page
    assert reason in Text(page).text
    supported = report_page(content_of(staged_sample), (), viewer_of(staged_sample))
    assert re.search(r'<h1 id="headline">([^<]*)</h1>', supported)[1] == staged_sample.stage


def test_regions_have_a_reference_only_where_they_were_compared(staged_sample):
    usual = {region.name: region.usual for region in content_of(staged_sample).regions}
    assert usual["Liver surface"] is not None and usual["Liver core"] is not None
    thick = dict(staged_sample.summary()["location_map"])
    thick["percentiles"] = {
        region: at
        for region, at in staged_sample.percentiles.items()
        if region not in ("liver_surface", "liver_core")  # as for another thickness
    }
    content = content_of(staged_sample, location_map=thick)
    without = {region.name for region in content.regions if region.usual is None}
    assert without == {"Liver surface", "Liver core"}


def test_a_warning_that_a_check_states_is_shown_once(staged_sample):
    check = Check("noise", "Noise", "warn", "The noise is 25 HU.", {})
    warnings = (check.sentence, "Another warning.")
    result = replace(staged_sample, checks=(check,), staging_warnings=warnings, map_warnings=())
    page = report_page(content_of(result), (), viewer_of(result))
    assert Text(page).text.count(check.sentence) == 1
    assert "Another warning." in Text(page).text


def test_a_lower_bound_that_exceeds_no_group_is_stated_once_without_percentages(staged_sample):
    cut_off = Measurement("liver_volume_ml", None, "Cut off.", at_least=20.0)
    signs = replace(staged_sample.signs, measurements=(cut_off,))
    result = replace(staged_sample, signs=signs)
    sentences = [each for each in result.summary()["signs_placed"] if "at least 20 mL" in each]
    assert len(result.placements) == 2 and len(sentences) == 1
    notes = {row.note for strip in content_of(result).signs for row in strip.rows}
    assert notes == {"not known", "central 95 %"}


def test_sources_have_their_cohort_once(staged_sample):
    text = Text(report_page(content_of(staged_sample), (), viewer_of(staged_sample))).text
    sources = {placement.source for placement in staged_sample.placements}
    assert len(sources) < len(staged_sample.placements)
    for source in sources:
        assert text.count(f"n = {source.n}; {source.cohort}; {source.technique}.") == 1


def test_text_cannot_become_markup_or_end_a_script(staged_sample):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \" ' $style ${slices}"
    check = Check("phase", evil, "warn", evil, {})
    warned = (evil, f"Further: {evil}")
    result = replace(staged_sample, reasons=(evil,), checks=(check,), staging_warnings=warned)
    viewer = viewer_of(result)
    data = {**viewer.data(), "tiles": [evil]}
    changed = type("Viewer", (), {"data": lambda self: data})()
    page = report_page(content_of(result), (), changed)
    parsed = Text(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in parsed.tags]
    assert json.loads(parsed.scripts[0])["tiles"] == [evil]
    assert parsed.text.count(" ".join(evil.split())) == 4


# ---------------------------------------------------------------------------- files


def test_pdf_pages_keep_everything_inside(staged_sample):
    pytest.importorskip("matplotlib")
    from LiverFibrosisStagingLib.report.pdf import pdf_pages

    slices = Slices.of(
        staged_sample.ct, staged_sample.map_on_ct, staged_sample.liver, staged_sample.spleen
    )
    stills = pictures(slices)
    warning = "A word of " + 120 * "x" + " and more. " + "The slices are thick. " * 9
    many = replace(staged_sample, staging_warnings=12 * (warning,), reasons=3 * (warning,))
    usual, longer = (pdf_pages(content_of(each), stills) for each in (staged_sample, many))
    assert len(usual) == 2 < len(longer)
    for figure in (*usual, *longer):
        page = figure.bbox
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        for box in boxes:
            assert page.x0 + 20 < box.x0 and box.x1 < page.x1 - 20
            assert page.y0 + 20 < box.y0 and box.y1 < page.y1 - 20
        overlaps = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if _overlap(a, b)]
        assert not overlaps


def _overlap(one, other):
    """Whether two texts share more than the edges of their boxes."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > 1 and height > 0.5 * min(one.height, other.height)


@pytest.fixture
def short_report(monkeypatch):
    """A report that is written at once."""

    def write(folder, *_, **__):
        (folder / "report.html").write_text("page", encoding="utf-8")

    monkeypatch.setattr(documents, "write_report", write)


def test_a_result_without_report_replaces_one_with_it(staged_sample, short_report, tmp_path):
    folder = staged_sample.save(tmp_path / "result", report=True)
    assert (folder / "report.html").exists()
    staged_sample.save(folder)
    assert not {path.name for path in folder.iterdir()} & set(documents.REPORT_FILES)


def test_without_matplotlib_there_is_only_the_page(staged_sample, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "can_write_pdf", lambda: False)
    page = staged_sample.save_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [page.name] == ["report.html"]


def test_commands_write_reports_where_they_are_asked_for(
    staged_sample, short_report, sample, single_path, tmp_path, monkeypatch
):
    stagings = []

    def staged(*_, **__):
        stagings.append(1)
        return staged_sample

    monkeypatch.setattr(staging, "stage", staged)
    monkeypatch.setattr(case_row, "stage", staged)
    options = ["--model", str(single_path), "-q"]
    assert main(["stage", "ct", *options, "-o", str(tmp_path / "one"), "--report"]) == 0
    assert (tmp_path / "one" / "report.html").exists()

    shutil.copy(sample["ct"], tmp_path / "ct.nii.gz")
    (tmp_path / "cohort.csv").write_text("case,ct\na,ct.nii.gz\n", encoding="utf-8")
    command = ["batch", str(tmp_path / "cohort.csv"), *options, "-o", str(tmp_path / "out")]
    page = tmp_path / "out" / "a" / "report.html"
    for arguments, written, count in (
        (command, False, 2),
        ([*command, "--reports"], True, 3),  # staged again, for the report
        ([*command, "--reports"], True, 3),
        (command, True, 3),
    ):
        assert main(arguments) == 0
        assert (page.exists(), len(stagings)) == (written, count)
