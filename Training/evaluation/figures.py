"""Saving of the figures that `LiverFibrosisStagingLib.evaluation.figures` draws."""

from pathlib import Path

from matplotlib.figure import Figure

from common.figures import save_figure
from LiverFibrosisStagingLib.evaluation.figures import add_footer


def save(figure: Figure, folder: Path, name: str, trained_on: str) -> None:
    """Write `folder`/`name`.png and .pdf with the training data and the restriction below."""
    add_footer(figure, trained_on)
    save_figure(figure, folder, name)
