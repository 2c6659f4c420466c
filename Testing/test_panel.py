"""The real panel with its real .ui, over qt_host: what a reader clicks and what then is there."""

import pytest

pytest.importorskip("PySide6.QtWidgets", reason="PySide6 cannot be imported on this machine")

import qt_host
import slicer
import slicer_host
import slicer_names


@pytest.fixture(scope="session", autouse=True)
def names():
    yield
    slicer_names.write_used()


@pytest.fixture
def panel():
    """The open panel in an empty scene; nothing may be raised where nobody looks."""
    slicer_host.start().Clear(0)
    for record in (slicer_host.dialogs, slicer_host.dialog_answers, qt_host.exceptions):
        record.clear()
    panel = slicer_host.open_panel()
    yield panel
    slicer_host.close_panel(panel)
    assert qt_host.exceptions == []


def test_empty_panel_says_what_is_missing(panel):
    assert not panel.ui.stageButton.enabled
    assert "CT" in panel.ui.stageButton.toolTip
