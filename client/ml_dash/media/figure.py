"""Figures: matplotlib's, what has its savefig, and plotly's as a page."""

from __future__ import annotations

import sys
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from ml_dash.errors import Code, error
from ml_dash.media.libraries import library


def figure_of(figure: Any) -> Any:
    """The figure, or matplotlib's current one for None. Raises ValueError where there is none."""
    if figure is None:
        pyplot = library("matplotlib.pyplot", "matplotlib")
        if not pyplot.get_fignums():
            raise error(Code.INVALID_ARGUMENT, "there is no current figure", "draw one first, or pass it")
        return pyplot.gcf()
    if not (hasattr(figure, "savefig") or _is_page(figure)):
        raise error(
            Code.UNSUPPORTED_TYPE,
            f"save_fig takes a figure of matplotlib or plotly, not {type(figure).__name__}",
            "pass the figure itself, such as ax.figure; for arrays call save_image()",
        )
    return figure


def format_of(figure: Any, to: str) -> str:
    """The format that a file's name asks for. Raises ValueError for one that this figure can't be saved in."""
    suffix = PurePosixPath(to).suffix.lower().removeprefix(".")
    formats = ["html"] if _is_page(figure) else sorted(_root(figure).canvas.get_supported_filetypes())
    if suffix not in formats:
        hint = f"end it with one of {', '.join('.' + each for each in formats)}"
        if _is_page(figure):
            hint += '; for pixels: save_blob(fig.to_image("png"), to="plot.png")'
        raise error(Code.INVALID_ARGUMENT, f"{to!r} is no name of a figure", hint)
    return suffix


def write_figure(out: BinaryIO, figure: Any, to: str, options: dict[str, Any]) -> None:
    """Draws the figure into a file; `options` are those of its own library."""
    form = format_of(figure, to)
    if form == "html" and _is_page(figure):
        out.write(figure.to_html(**options).encode())
    else:
        figure.savefig(out, format=form, **options)


def close(figure: Any) -> None:
    """Lets matplotlib's pyplot forget it; plotly keeps no list."""
    if not _is_page(figure) and (pyplot := sys.modules.get("matplotlib.pyplot")):
        pyplot.close(_root(figure))


def _is_page(figure: Any) -> bool:
    return hasattr(figure, "to_html") and hasattr(figure, "write_html")


def _root(figure: Any) -> Any:
    """The figure in what draws into one, such as seaborn's grids; a figure is its own."""
    return getattr(figure, "figure", figure)
