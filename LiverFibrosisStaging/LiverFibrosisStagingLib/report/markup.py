"""Pieces of the pages and their drawings, which are as wide as their place."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

from .content import fraction


def content_hash(inline: str) -> str:
    """Of an inline style or script, for the Content-Security-Policy."""
    return base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode("ascii")


def at(value: float, low: float, high: float) -> str:
    """Position of a value, kept inside the axis."""
    return f"{100 * fraction(value, low, high):.2f}%"


def rect(name: str, start: float, end: float, low: float, high: float, y: int, size: int) -> str:
    """A bar from `start` to `end`, `size` pixels high; name: its CSS class."""
    left, right = fraction(start, low, high), fraction(end, low, high)
    return (
        f'<rect class="{name}" x="{100 * left:.2f}%" width="{100 * (right - left):.2f}%" '
        f'y="{y}" height="{size}"/>'
    )


def line(name: str, value: float, low: float, high: float, top: int, bottom: int) -> str:
    """An upright line at a value; name: its CSS class."""
    x = at(value, low, high)
    return f'<line class="{name}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def svg(height: int, parts: Iterable[str]) -> str:
    """A drawing as wide as its place; the number is in the text beside it."""
    return f'<svg height="{height}" aria-hidden="true">{"".join(parts)}</svg>'
