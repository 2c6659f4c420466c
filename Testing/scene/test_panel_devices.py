"""The panel's choice of a device, and which packages count as onnxruntime."""

import pytest

pytest.importorskip(
    "PySide6.QtUiTools", reason="PySide6 cannot be imported on this machine", exc_type=ImportError
)

import slicer_host
from panel_steps import is_busy
from slicer_host import wait_until

from LiverFibrosisStagingLib.gradcam_onnx.session import DEVICES, installed_devices
from LiverFibrosisStagingLib.scene import jobs, requirements

ABSENT = [name for name in DEVICES if name not in installed_devices()]


def settle(panel):
    """Wait until the devices are known."""
    wait_until(lambda: panel._panel._devices)
    return panel.ui


@pytest.mark.skipif(len(ABSENT) < len(DEVICES) - 1, reason="a GPU is here")
def test_with_the_processor_alone_there_is_nothing_to_choose(panel):
    ui = settle(panel)
    assert not ui.deviceComboBox.visible and not ui.deviceLabel.visible


@pytest.mark.skipif(not ABSENT, reason="all devices are installed")
def test_the_chosen_device_is_used_and_remembered(host, sample, monkeypatch):
    import qt

    name = ABSENT[0]
    monkeypatch.setattr(jobs, "installed_devices", lambda: ["cpu", name])
    slicer_host.load_volume(sample["ct"])
    panel = host.open_panel()
    ui = settle(panel)
    assert ui.deviceComboBox.currentIndex == 0
    ui.deviceComboBox.setCurrentIndex(1)
    ui.deviceComboBox.activated.emit(1)
    ui.stageButton.click()
    wait_until(lambda: not is_busy(panel))
    assert f"The device {name} is not installed" in slicer_host.dialogs.pop().text

    other = host.open_panel()
    assert settle(other).deviceComboBox.currentIndex == 1
    monkeypatch.setattr(jobs, "installed_devices", lambda: ["cpu"])
    third = host.open_panel()
    settle(third).stageButton.click()  # on the processor: the device is gone
    assert is_busy(third)
    for opened in (panel, other, third):
        host.close_panel(opened)
    qt.QSettings().clear()


@pytest.mark.parametrize("package", ["onnxruntime-gpu", "onnxruntime-directml", "onnxruntime"])
@pytest.mark.parametrize(("number", "enough"), [("1.20.0", True), ("1.18.1", False)])
def test_any_onnxruntime_counts(package, number, enough, tmp_path, monkeypatch):
    def version(name):
        if name != package:
            raise requirements.PackageNotFoundError(name)
        return number

    monkeypatch.setattr(requirements, "version", version)
    (tmp_path / "requirements.txt").write_text("onnxruntime>=1.19\n")
    lacking = [] if enough else ["onnxruntime>=1.19"]
    assert requirements.missing(tmp_path / "requirements.txt") == lacking
