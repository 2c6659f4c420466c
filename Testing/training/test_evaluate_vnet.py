"""Evaluation of the segmentation: measures against SimpleITK and known distances; figures."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch", reason="segmentations are evaluated with MONAI")
pytest.importorskip("onnx", reason="the V-Net is exported to ONNX")

import evaluate_vnet
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from phantom_cohorts import MEDIUM, write_cohort

from LiverFibrosisStagingLib.imaging.segmentation import Segmentation, default_model_path
from vnet import data as vnet_data

SPACING = (2.0, 1.0, 1.5)  # x, y, z


def ball(centre, radius, size=(60, 90, 50)):
    """A mask of a ball, in mm."""
    axes = [step * np.arange(n) for n, step in zip(size, SPACING)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < radius**2
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.SetSpacing(SPACING)
    return mask


def test_dice_and_volumes_equal_those_of_simpleitk():
    ours, reference = ball((50, 45, 36), 20), ball((55, 45, 36), 22)
    found = evaluate_vnet.measure("one", "liver", ours, reference)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(ours, reference)
    assert found.dice == pytest.approx(overlap.GetDiceCoefficient(), rel=1e-5)
    for mask, volume in ((ours, found.volume_ml), (reference, found.true_ml)):
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.Execute(mask)
        assert volume == pytest.approx(statistics.GetPhysicalSize(1) / 1000, rel=1e-5)


def test_surface_distance_is_in_mm():
    found = evaluate_vnet.measure("one", "liver", ball((50, 45, 36), 18), ball((50, 45, 36), 24))
    assert found.hd95_mm == pytest.approx(6.0, abs=1.0)
    nothing = evaluate_vnet.measure("one", "liver", None, ball((50, 45, 36), 24))
    assert nothing.dice == 0 and nothing.volume_ml == 0 and nothing.volume_error == -1


def test_contours_are_drawn_at_the_surfaces():
    """Lines for the segmentation and dots for the reference, in the organ's colour."""
    liver, reference, spleen = (
        ball((40, 45, 36), 20),
        ball((40, 45, 36), 26),
        ball((95, 45, 36), 10),
    )
    ct = sitk.Cast(liver + 2 * spleen, sitk.sitkInt16)
    volumes = {"liver": 1.0, "spleen": 1.0}
    found = Segmentation(liver, spleen, volumes, (), {})
    drawn = evaluate_vnet.contours(ct, found, {"liver": reference})
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(float) / 255
    middle = drawn.axes[2]  # the axial section nearest to the centres of the balls

    def share(organ, x_mm, radius_mm):
        """The part of a circle around a ball's centre that has the organ's colour."""
        hits = []
        for angle in np.linspace(0, 2 * np.pi, 90, endpoint=False):
            x = (x_mm + radius_mm * np.cos(angle)) / SPACING[0]
            y = (45 + radius_mm * np.sin(angle)) / SPACING[1]
            column, row = middle.transData.transform((x, y))
            row, column = len(pixels) - round(row), round(column)
            near = pixels[row - 3 : row + 4, column - 3 : column + 4]
            hits.append(np.abs(near - to_rgb(evaluate_vnet.COLORS[organ])).max(axis=-1) < 0.2)
        return np.mean([part.any() for part in hits])

    assert share("liver", 40, 19.5) > 0.9  # a line
    assert share("liver", 40, 25.5) > 0.5  # dots
    assert share("liver", 40, 12) == 0 and share("spleen", 40, 19.5) == 0
    assert share("spleen", 95, 9.5) > 0.9


def test_the_command_evaluates_the_shipped_network(tmp_path, capsys):
    """On a phantom: table, measures and figure."""
    cohort = write_cohort(tmp_path / "cohort", [0], 11, **MEDIUM)
    case = vnet_data.read_cases(cohort)[0].name
    shipped = default_model_path("VNet.onnx")
    arguments = [str(cohort), "--model-of", f"{case}={shipped}", "-o", str(tmp_path / "out")]
    assert evaluate_vnet.main(arguments) == 0
    assert case in capsys.readouterr().out
    with (tmp_path / "out" / "segmentation.csv").open(encoding="utf-8") as stream:
        rows = {row["organ"]: row for row in csv.DictReader(stream)}
    assert float(rows["liver"]["dice"]) > 0.9 and float(rows["spleen"]["dice"]) > 0.8
    assert (tmp_path / "out" / f"contours_{case}.png").stat().st_size > 10_000
    assert "Research use" in (tmp_path / "out" / "segmentation.md").read_text(encoding="utf-8")

    unknown = [str(cohort), "--model-of", f"none={shipped}", "-o", str(tmp_path / "none")]
    assert evaluate_vnet.main(unknown) == 1
    assert "there is no case none" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
