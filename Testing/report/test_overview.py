"""The picture of a result, and the colours it shares with Slicer."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.location_map import LocationMap, MapOnCt
from LiverFibrosisStagingLib.report import drawing, overview, slices
from LiverFibrosisStagingLib.report.colors import BANDS, band_rgba, color_slice
from LiverFibrosisStagingLib.report.drawing import write_png
from LiverFibrosisStagingLib.report.overview import render_overview

SPACING = (2.0, 1.5, 3.0)
SIZE = (150, 140, 50)  # 300 x 210 x 150 mm
ORIGIN = (-150.0, -105.0, -40.0)


def lps_case(direction=None):
    """A soft-tissue body with a liver on the patient's right, half of it in the strongest band.

    The liver's anterior half (smaller y) is label 10, its posterior half label 1. `direction`
    turns the whole case about the patient's origin.
    """
    z, y, x = np.meshgrid(
        *(o + s * np.arange(n) for o, s, n in zip(ORIGIN[::-1], SPACING[::-1], SIZE[::-1])),
        indexing="ij",
    )
    body = (x / 140) ** 2 + (y / 95) ** 2 < 1
    liver = (((x + 65) / 45) ** 2 + (y / 50) ** 2 + ((z - 33) / 50) ** 2) < 1
    spleen = ((x - 85) / 25) ** 2 + ((y - 30) / 25) ** 2 + ((z - 33) / 40) ** 2 < 1
    hu = np.where(body, 50.0, -1000.0) + 60 * liver + 40 * spleen
    labels = np.where(liver, np.where(y < 0, 10, 1), 0)

    def image(array, dtype):
        made = sitk.GetImageFromArray(array.astype(dtype))
        made.SetSpacing(SPACING)
        made.SetOrigin(ORIGIN)
        if direction is not None:
            made.SetDirection(direction.ravel().tolist())
            made.SetOrigin((direction @ ORIGIN).tolist())
        return made

    return {
        "ct": image(hu, np.int16),
        "liver": image(liver, np.uint8),
        "spleen": image(spleen, np.uint8),
        "label_map": image(labels, np.uint8),
    }


def shown(case, maximum=10.0):
    """What a picture is made of; the map has the values of the labels."""
    labels, others = case["label_map"], {k: v for k, v in case.items() if k != "label_map"}
    location = LocationMap(sitk.Cast(labels, sitk.sitkFloat32), 1.0)
    on_ct = MapOnCt(location, labels > 0, case["ct"], (0, 0, 0), labels.GetSize(), maximum)
    return {**others, "location_map": on_ct}


def findings(**changed):
    return {
        "probabilities": np.array([0.05, 0.05, 0.1, 0.2, 0.6]),
        "stage": "F4",
        "explained": "F4",
        "scores": {"significant": 0.9, "advanced": 0.8, "cirrhosis": 0.6},
        "measurements": {
            "liver": {"mean": 1.4, "share": 0.3},
            "liver_surface": {"mean": 1.9, "share": 0.2},
            "liver_core": {"mean": 0.7, "share": 0.1},
            "spleen": {"mean": 1.1, "share": 0.05},
            "rest": {"mean": 0.8, "share": 0.65},
        },
        "warnings": (),
        "model_name": "test",
        "model_training": "nothing",
    } | changed


@pytest.fixture(scope="module")
def case():
    return lps_case()


@pytest.fixture(scope="module")
def picture(case):
    return render_overview(**shown(case), **findings())


def cell(picture, number):
    """The montage's cell `number`, as the picture's layout has it: two columns, three rows."""
    box = overview._AXIALS
    width, height = (box.width - 6) // 2, (box.height - 12) // 3
    x, y = box.x + number % 2 * (width + 6), box.y + number // 2 * (height + 6)
    return picture[y : y + height, x : x + width].astype(float) / 255


def close_to(pixels, color, tolerance=0.02):
    return np.abs(pixels - color).max(axis=-1) < tolerance


def band_over(label, hu):
    low, high = slices.WINDOW_HU
    return color_slice(np.array([label]), np.array([(hu - low) / (high - low)]))[0]


def test_bands_are_ordered_and_evenly_spaced():
    rgba = band_rgba()
    assert rgba.shape == (11, 4) and rgba.min() >= 0 and rgba.max() <= 1
    assert [band.name for band in BANDS] == [
        "",
        *(f"{low}-{low + 10} %" for low in range(0, 100, 10)),
    ]
    assert rgba[0, 3] == 0 and (np.diff(rgba[:, 3]) > 0).all()
    linear = np.where(
        rgba[1:, :3] <= 0.04045, rgba[1:, :3] / 12.92, ((rgba[1:, :3] + 0.055) / 1.055) ** 2.4
    )
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(luminance) - 16  # CIE 1976 L*
    assert (np.diff(lightness) > 3).all()
    assert np.diff(lightness).max() / np.diff(lightness).min() < 3


def test_neighbouring_bands_differ_for_dichromats():
    # Protanopia and deuteranopia, linear sRGB: Machado et al. 2009, table 1, severity 1.0.
    confusions = (
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
    )
    rgb = band_rgba()[1:, :3] ** 2.2
    for matrix in confusions:
        seen = np.clip(rgb @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        assert np.linalg.norm(np.diff(seen, axis=0), axis=1).min() > 0.04


def test_color_slice_leaves_grey_where_there_is_no_label():
    grey = np.array([[0.2, 0.8]])
    mixed = color_slice(np.array([[0, 10]]), grey)
    assert np.allclose(mixed[0, 0], 0.2)
    band = BANDS[10]
    assert np.allclose(mixed[0, 1], 0.8 + band.opacity * (np.array(band.rgb) - 0.8), atol=1e-6)


def test_bands_lie_where_the_labels_are(picture):
    for number in (2, 3):  # the liver's middle
        strong = close_to(cell(picture, number), band_over(10, 110.0))
        weak = close_to(cell(picture, number), band_over(1, 110.0))
        columns = strong.shape[1]
        assert strong.sum() > 1500 and weak.sum() > 1500
        # The patient's right is on the picture's left, anterior is up.
        assert np.nonzero(strong)[1].max() < columns / 2 and np.nonzero(weak)[1].max() < columns / 2
        assert np.nonzero(strong)[0].max() < np.nonzero(weak)[0].min()


def test_proportions_are_those_of_the_patient(picture):
    """The body is 280 x 190 mm on voxels of 2 x 1.5 mm."""
    body = cell(picture, 2).max(axis=2) > 0.4
    body[:40] = False  # the level's letters
    body[:, :30] = body[:, -30:] = False  # R and L
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    ratio = (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1)
    assert ratio == pytest.approx(280 / 190, rel=0.03)


def test_coronal_has_the_head_up(case):
    """With the liver's upper half marked, the marked half is above in the coronal."""
    labels = sitk.GetArrayFromImage(case["liver"]) * 1
    middle = int((33 - ORIGIN[2]) / SPACING[2])
    labels[middle:] *= 10
    upper = sitk.GetImageFromArray(labels)
    upper.CopyInformation(case["liver"])
    drawn = render_overview(**shown(case | {"label_map": upper}), **findings())
    box = overview._CORONAL
    coronal = drawn[box.y : box.y + box.height, box.x : box.x + box.width].astype(float) / 255
    strong = np.nonzero(close_to(coronal, band_over(10, 110.0)))
    weak = np.nonzero(close_to(coronal, band_over(1, 110.0)))
    assert len(strong[0]) > 2000 and len(weak[0]) > 2000
    assert strong[0].max() <= weak[0].min() + 1
    assert strong[1].max() < box.width / 2


@pytest.mark.parametrize(
    ("axes", "flips"),
    [
        *zip(itertools.permutations(range(3)), [(True, True, False)] * 6),
        ((2, 0, 1), (False, True, True)),
        ((0, 1, 2), (False, False, True)),
    ],
)
def test_picture_does_not_depend_on_the_arrays_orientation(case, picture, axes, flips):
    turned = {name: sitk.Flip(sitk.PermuteAxes(image, axes), flips) for name, image in case.items()}
    assert turned["ct"].GetDirection() != case["ct"].GetDirection() or axes == (0, 1, 2)
    drawn = render_overview(**shown(turned), **findings())
    assert (drawn != picture).any(axis=2).mean() < 1e-3


def test_oblique_scan_is_drawn_along_the_patients_axes():
    """A case stored on an oblique grid: the marked half is still anterior, the liver right."""
    a, b = np.radians(20), np.radians(-12)
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    oblique = lps_case(tilt @ turn)  # stored obliquely ...
    straight = lps_case()
    for name, image in oblique.items():  # ... of an anatomy that is straight
        method = sitk.sitkLinear if name == "ct" else sitk.sitkNearestNeighbor
        outside = -1000 if name == "ct" else 0
        oblique[name] = sitk.Resample(straight[name], image, sitk.Transform(), method, outside)
    drawn = render_overview(**shown(oblique), **findings())
    found = cell(drawn, 2)
    strong = np.nonzero(close_to(found, band_over(10, 110.0)))
    weak = np.nonzero(close_to(found, band_over(1, 110.0)))
    assert len(strong[0]) > 1500 and len(weak[0]) > 1500
    assert strong[1].max() < found.shape[1] / 2
    # The border between them is a horizontal line to within the blur of resampling.
    assert np.percentile(strong[0], 99) - np.percentile(weak[0], 1) < 6


def test_levels_are_the_cts_own_slices_spread_over_the_liver(case):
    scene = slices.Slices.of(**shown(case))
    own = ORIGIN[2] + SPACING[2] * np.arange(SIZE[2])
    assert len(scene.levels) == overview.LEVELS
    assert np.abs(own[:, None] - scene.levels).min(axis=0).max() < 1e-3
    assert (np.diff(scene.levels) < -10).all()
    assert scene.levels[0] > 60 and scene.levels[-1] < 6


def test_probabilities_change_their_panel_only(case, picture):
    changed = findings(
        probabilities=np.array([0.6, 0.2, 0.1, 0.05, 0.05]),
        scores={"significant": 0.2, "advanced": 0.1, "cirrhosis": 0.05},
    )
    drawn = render_overview(**shown(case), **changed)
    differs = (drawn != picture).any(axis=2)
    for box in overview._PANELS:
        assert differs[box.y : box.y + box.height, box.x : box.x + box.width].sum() > 500
    differs[: overview._AXIALS.y] = False  # the title names the probability
    for box in overview._PANELS:
        differs[box.y : box.y + box.height, box.x : box.x + box.width] = False
    assert not differs.any()


def test_bars_are_as_long_as_the_probabilities(picture):
    box = overview._PANELS[0]
    panel = picture[box.y : box.y + box.height, box.x : box.x + box.width] / 255.0
    row = panel[36 + 4 * 26 + 9]  # F4's bar
    filled = close_to(row, drawing.ACCENT).sum()
    track = filled + close_to(row, drawing.TRACK).sum()
    assert filled / track == pytest.approx(0.6, abs=0.01)


def test_an_unsupported_stage_is_grey_with_its_reasons(case, picture):
    def accent(drawn, box):
        part = drawn[box.y : box.y + box.height, box.x : box.x + box.width]
        return int(close_to(part / 255.0, drawing.ACCENT).sum())

    reason = "85 % of the location map's weight lies outside liver and spleen."
    drawn = render_overview(**shown(case), **findings(reasons=(reason,)))
    for box in overview._PANELS:
        assert accent(drawn, box) == 0 < accent(picture, box)
    letters = drawing.Box(20, 10, 70, 30)  # of the stage, where it is supported
    assert accent(drawn, letters) == 0 < accent(picture, letters)
    title = drawing.Box(0, 0, overview.WIDTH, overview._AXIALS.y)
    assert accent(drawn, title) > 200, "the reason"
    below = slice(overview._AXIALS.y, overview._PANELS[0].y)
    assert np.array_equal(drawn[below], picture[below]), "slices are the same"
    long = render_overview(**shown(case), **findings(reasons=[reason] * 9))
    changed = np.nonzero((long != drawn).any(axis=2))
    assert changed[0].max() < overview._AXIALS.y
    right = 20 + overview._TITLE_WIDTH + 5
    beside = drawing.Box(right, 0, overview.WIDTH - right, overview._AXIALS.y)
    assert accent(long, beside) == 0, "long reasons end with an ellipsis"


def test_signs_stay_in_their_panel(case, picture):
    sentence = "Spleen (228 mL) is within the range of F0 to F2, not of the predicted stage F4." * 2
    warnings = ["A warning that is as long as a line of the panel, or even longer than that."] * 3
    for given in ((), warnings):
        drawn = render_overview(**shown(case), **findings(agreement=sentence, warnings=given))
        differs = (drawn != picture).any(axis=2)
        box = overview._LOWER_PANELS[1]
        differs[box.y : box.y + box.height, box.x : box.x + box.width] = False
        assert not differs.any()


def test_no_spleen(case, picture):
    measurements = {k: v for k, v in findings()["measurements"].items() if k != "spleen"}
    drawn = render_overview(**shown(case | {"spleen": None}), **findings(measurements=measurements))
    line = np.array(slices.SPLEEN_COLOR)
    assert close_to(cell(picture, 2), line, 0.1).sum() > 50
    assert close_to(drawn / 255.0, line, 0.1).sum() == 0


def test_long_and_many_warnings_stay_in_their_panel(case, picture):
    long = "The liver mask touches the first slice of the scan, so some liver may be missing. " * 9
    many = [long, "x" * 400, *(f"Warning {number}" for number in range(20))]
    box = overview._LOWER_PANELS[1]
    for warnings in ([long], many, many[1:], ["short"] * 7):
        drawn = render_overview(**shown(case), **findings(warnings=warnings))
        differs = (drawn != picture).any(axis=2)
        assert differs[box.y : box.y + box.height, box.x : box.x + box.width].any()
        differs[box.y : box.y + box.height, box.x : box.x + box.width] = False
        assert not differs.any()


def test_reasons_are_written_in_full_and_not_again_as_warnings(case):
    reason = "The HU are those of an arterial CT (HU: aorta 312, liver 54); another is needed."
    second = "91 % of the location map's weight lies outside liver and spleen."
    one = render_overview(**shown(case), **findings(reasons=(reason,)))
    two = render_overview(
        **shown(case), **findings(reasons=(reason, second), warnings=(reason, second))
    )
    top = overview._AXIALS.y
    assert np.array_equal(one[top:], two[top:])
    assert close_to(two[66:top, :400] / 255.0, np.array(drawing.ACCENT), 0.1).sum() > 50
    assert close_to(one[66:top, :400] / 255.0, np.array(drawing.ACCENT), 0.1).sum() == 0


def test_long_training_text_does_not_touch_the_research_sentence(case, picture):
    drawn = render_overview(
        **shown(case), **findings(model_training="a very long list of sources " * 50)
    )
    differs = np.nonzero((drawn != picture).any(axis=2))
    pen = drawing.Pen(np.zeros((4, 4, 3), np.float32))
    research = pen.width(overview.RESEARCH_USE, 18, bold=True)
    assert differs[0].min() >= overview._FOOTER.y
    assert differs[1].min() > overview._FOOTER.x + research + 20


def test_few_slices_and_a_tiny_liver(case):
    thin = {name: image[:, :, 22:25] for name, image in case.items()}
    assert render_overview(**shown(thin), **findings()).shape == (1000, 1600, 3)
    dot = sitk.Image(case["liver"].GetSize(), sitk.sitkUInt8)
    dot.CopyInformation(case["liver"])
    dot[40, 70, 25] = 1
    drawn = render_overview(**shown(case | {"liver": dot}), **findings())
    assert cell(drawn, 2).max(axis=2).mean() > 0.2  # the body is there


def test_picture_is_written_as_png(picture, tmp_path):
    path = tmp_path / "Übersicht 1.png"
    write_png(picture, path)
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.array_equal(read, picture)


def test_unwritable_path_is_one_sentence(picture, tmp_path):
    path = tmp_path / "missing" / "overview.png"
    with pytest.raises(StagingError, match=r"Cannot write the picture .*overview\.png: No such"):
        write_png(picture, path)


def test_needs_no_display_and_no_graphics_library():
    """In a process without DISPLAY; none of VTK's OpenGL and X11 modules are loaded."""
    code = """
import numpy as np, sys
from LiverFibrosisStagingLib.location_map import LocationMap, MapOnCt
from LiverFibrosisStagingLib.report import drawing, overview, slices
assert not any(name.startswith("vtk") for name in sys.modules), "vtk imported at file scope"
canvas = np.zeros((60, 300, 3), np.float32)
assert drawing.Pen(canvas).text("F4 cirrhosis", 5, 5, 30) > 100 and canvas.max() > 0.9
drawing.write_png(np.zeros((4, 4, 3), np.uint8), sys.argv[1])
loaded = [name for name in sys.modules if "OpenGL" in name or "RenderingUI" in name]
assert not loaded, loaded
if sys.platform == "linux":
    libraries = open("/proc/self/maps").read()
    for library in ("libGL", "libEGL", "libX11", "libXrender", "libvtkRenderingOpenGL"):
        assert library not in libraries, library
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", code, os.devnull], env=environment, check=True)
