"""A result's report as files: report.html, and report.pdf where matplotlib is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import SimpleITK as sitk

from ..errors import CancelToken, check_cancel
from .content import Report
from .page import report_page
from .pictures import pictures
from .slices import Slices
from .viewer import viewer_slices

if TYPE_CHECKING:
    from ..location_map import MapOnCt

# The page is written always, and last: its presence marks a complete report.
REPORT_FILES = ("report.pdf", "report.html")


def can_write_pdf() -> bool:
    """Whether matplotlib, which draws the PDF, is installed."""
    return find_spec("matplotlib") is not None


def write_report(
    folder: Path,
    report: Report,
    *,
    ct: sitk.Image,
    location_map: MapOnCt,
    liver: sitk.Image,
    spleen: sitk.Image | None,
    cancel: CancelToken | None = None,
) -> None:
    """Write the REPORT_FILES into an existing folder.

    ct: HU, any orientation; liver and spleen (non-zero inside) on its grid; location_map:
    in its voxels. cancel: asked before each picture and page. Raises OSError, StagingError if a
    shipped file is missing, and Cancelled.
    """
    check_cancel(cancel)
    slices = Slices.of(ct, location_map, liver, spleen)
    stills = pictures(slices, cancel)
    if can_write_pdf():
        from .pdf import write_pdf

        write_pdf(folder / REPORT_FILES[0], report, stills, cancel)
    check_cancel(cancel)
    page = report_page(report, stills, viewer_slices(slices, cancel))
    check_cancel(cancel)
    # The hashes in the page are those of its text with these line ends.
    (folder / REPORT_FILES[1]).write_text(page, encoding="utf-8", newline="\n")
