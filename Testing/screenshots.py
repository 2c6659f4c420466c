"""Make the pictures of the documentation: the panel in its states, with the slice views, the
overview, and the report in Chromium.

    python Testing/screenshots.py [FOLDER]      (default: Resources/Screenshots)

They show the running module on the sample CT, on the stand-ins in hosts/. VTK draws the slice views
without a display, with Slicer's own colour legend; this needs EGL (on Debian: libegl1,
libgl1-mesa-dri).
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT / folder) for folder in ("Testing", "Testing/hosts", "LiverFibrosisStaging")
]

import chromium  # noqa: E402
import numpy as np  # noqa: E402
import slicer  # noqa: E402
import slicer_host  # noqa: E402
import vtk  # noqa: E402
from PySide6.QtCore import QPoint, QRect, QSize  # noqa: E402
from PySide6.QtGui import QColor, QImage, QPainter, QPixmap  # noqa: E402
from PySide6.QtWidgets import QMessageBox  # noqa: E402
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

from LiverFibrosisStagingLib import stage  # noqa: E402
from LiverFibrosisStagingLib.report.drawing import write_png  # noqa: E402

PANEL_WIDTH, LOW = 420, 580
LARGE, SMALL = (644, 640), (320, 330)
FRAME = {"Red": "#f34a33", "Yellow": "#edd54c", "Green": "#6eb04b"}  # Slicer's colours of its views
MANAGERS = ("vtkMRMLColorLegendDisplayableManager", "vtkMRMLCrosshairDisplayableManager")


class DrawnView:
    """One of the layout's slice views, drawn by VTK with its colour legend."""

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        self.name, self._size = name, size
        view = slicer.app.layoutManager()._views[name]
        self._logic, self._node = view.logic, view.node
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetSize(*size)
        self._window.SetMultiSamples(0)
        renderer = vtk.vtkRenderer()
        renderer.GetActiveCamera().ParallelProjectionOn()
        self._window.AddRenderer(renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(self._mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for manager in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self._managers = slicer.vtkMRMLDisplayableManagerGroup()
        self._managers.Initialize(factory, renderer)
        self._managers.SetMRMLDisplayableNode(self._node)
        renderer.AddViewProp(actor)

    def fit(self) -> None:
        """Show the whole CT in this view's size."""
        self._logic.ResizeSliceNode(*self._size)
        self._logic.FitSliceToBackground()

    def image(self) -> QImage:
        """The view as it is now."""
        self._logic.ResizeSliceNode(*self._size)
        self._mapper.SetInputConnection(self._logic.GetImageDataConnection())
        self._window.Render()
        grabbed = vtk.vtkWindowToImageFilter()
        grabbed.SetInput(self._window)
        grabbed.ReadFrontBufferOff()
        grabbed.Update()
        data = grabbed.GetOutput()
        width, height, _ = data.GetDimensions()
        pixels = vtk_to_numpy(data.GetPointData().GetScalars()).reshape(height, width, 3)[::-1]
        pixels = np.ascontiguousarray(pixels)
        image = QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888)
        return image.copy()


class Studio:
    """The open panel, the views beside it, and the folder for the pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        slicer_host.open_module()
        self.panel = slicer_host.open_panel()
        self.ui = self.panel.ui
        sizes = {"Red": LARGE, "Yellow": SMALL, "Green": SMALL}
        self.views = [DrawnView(name, size) for name, size in sizes.items()]

    def load(self) -> Any:
        """Load the sample and choose it; returns its volume node."""
        volume, segmentation = slicer_host.import_module().loadSample()
        self.ui.inputVolumeSelector.setCurrentNode(volume)
        self.ui.segmentationSelector.setCurrentNode(segmentation)
        for view in self.views:
            view.fit()
        return volume

    def stage(self, until: Callable[[], bool] | None = None) -> None:
        """Click Stage and wait for the end, or for something earlier."""
        self.ui.stageButton.click()
        slicer_host.wait_until(until or self.idle, 120)

    def idle(self) -> bool:
        """Whether the panel waits for the user."""
        return not self.ui.progressWidget.visible

    def draw_panel(self, height: int = 0) -> QImage:
        """The panel alone, at the height that it needs or at a greater one."""
        parent = self.panel.parent._object
        slicer.app.processEvents()
        needed = parent.layout().totalHeightForWidth(PANEL_WIDTH)
        parent.resize(PANEL_WIDTH, max(height, needed))
        slicer.app.processEvents()
        return parent.grab().toImage()

    def draw_all(self) -> QImage:
        """Panel and views, laid out as in Slicer."""
        panel = self.draw_panel()
        width, height = LARGE[0] + 4, max(panel.height(), LARGE[1] + SMALL[1] + 12)
        picture = QImage(panel.width() + width + 4, height, QImage.Format.Format_RGB888)
        picture.fill(panel.pixelColor(2, 2))
        painter = QPainter(picture)
        painter.drawImage(0, 0, panel)
        left, top = panel.width(), 12
        places = (QPoint(left, top), QPoint(left, top + LARGE[1] + 8))
        places += (QPoint(left + SMALL[0] + 4, top + LARGE[1] + 8),)
        for view, place in zip(self.views, places):
            image = view.image()
            painter.fillRect(QRect(place, QSize(image.width(), 4)), QColor(FRAME[view.name]))
            painter.drawImage(place + QPoint(0, 4), image)
        painter.end()
        return picture

    def draw_dialog(self) -> QImage:
        """The last dialog as Slicer shows it, its details closed."""
        dialog = slicer_host.dialogs.pop()
        box = QMessageBox(QMessageBox.Icon.Critical, "Slicer error", dialog.text)
        box.setDetailedText(dialog.details)
        box.show()
        slicer.app.processEvents()
        image = box.grab().toImage()
        box.close()
        return image

    def save(self, image: QImage, name: str) -> None:
        """Write a picture as a small PNG."""
        path = self.folder / f"{name}.png"
        if not image.convertToFormat(QImage.Format.Format_RGB888).save(str(path), "PNG", 0):
            raise OSError(f"{path} could not be written")
        print(f"{path.name}: {image.width()} x {image.height()}, {path.stat().st_size // 1000} kB")


def side_by_side(*images: QImage) -> QImage:
    """Pictures in one row, on white."""
    gap = 16
    width = sum(image.width() for image in images) + gap * (len(images) - 1)
    picture = QImage(width, max(image.height() for image in images), QImage.Format.Format_RGB888)
    picture.fill(QColor("white"))
    painter, left = QPainter(picture), 0
    for image in images:
        painter.drawPixmap(left, 0, QPixmap.fromImage(image))
        left += image.width() + gap
    painter.end()
    return picture


def remove_contrast(volume: Any) -> None:
    """Make the sample look unenhanced, which the checks notice."""
    voxels = slicer.util.arrayFromVolume(volume)
    voxels[voxels > 70] -= 70
    slicer.util.arrayFromVolumeModified(volume)


def draw_result(folder: Path) -> None:
    """The sample's overview, and the upper part of its report, as Chromium shows it."""
    sample = ROOT / "LiverFibrosisStaging" / "Resources" / "SampleData"
    result = stage(sample / "phantom_F4_ct.nii.gz", sample / "phantom_F4.seg.nrrd")
    write_png(result.overview(), folder / "overview.png")
    browser = chromium.Page(chromium.find())
    with tempfile.TemporaryDirectory() as temporary:
        browser.open(result.save_report(temporary), width=1120)
        browser.wait("!viewer.hidden && canvas.width === canvas.clientWidth")
        (folder / "report.png").write_bytes(browser.screenshot(height=1030))
    browser.close()


def main(folder: Path) -> None:
    """Make all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_result(folder)
    slicer_host.start()
    studio = Studio(folder)
    ui = studio.ui
    empty = studio.draw_panel(LOW)

    studio.load()
    ready = studio.draw_panel(LOW)
    studio.stage(until=lambda: ui.progressBar.value >= 550)
    running = studio.draw_panel(LOW)
    slicer_host.wait_until(studio.idle)
    studio.save(side_by_side(empty, ready, running), "panel-stage")

    ui.jumpButton.click()
    studio.save(studio.draw_all(), "panel-result")

    other = 4 if ui.explainedComboBox.currentIndex != 4 else 0
    ui.explainedComboBox.setCurrentIndex(other)
    ui.explainedComboBox.activated.emit(other)
    slicer_host.wait_until(studio.idle)
    ui.smoothCheckBox.click()
    slicer_host.wait_until(studio.idle)
    ui.thresholdSlider.value = 40.0
    ui.opacitySlider.value = 80.0
    ui.jumpButton.click()
    studio.save(studio.draw_all(), "panel-explore")

    slicer.mrmlScene.Clear(0)
    remove_contrast(studio.load())
    studio.stage()
    slicer_host.dialogs.clear()
    ui.anyPhaseCheckBox.click()
    studio.stage()
    studio.save(studio.draw_panel(), "panel-warnings")

    segmentation = ui.segmentationSelector.currentNode().GetSegmentation()
    segmentation.RemoveSegment(segmentation.GetNthSegmentID(0))
    studio.stage()
    studio.save(studio.draw_dialog(), "panel-error")
    slicer_host.close_panel(studio.panel)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "Resources" / "Screenshots")
