"""Figures as PNG and PDF."""

from pathlib import Path

from matplotlib.figure import Figure


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `folder`/`name`.png and .pdf; the PDF has no date, so that reruns give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
