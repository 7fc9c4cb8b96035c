"""Figures as SVG within the page: their colours follow its theme, and their names don't clash."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from dynbn_lightning.errors import DynBNError
from dynbn_lightning.reporting.figures import canvas
from dynbn_lightning.reporting.figures.confusion import ON_BLUE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NARROW, SQUARE = 5.2, 6.4
"""Inches of charts: the first fits a phone, the second has room for a matrix."""
VARIABLES = {
    canvas.TEXT: "--text",
    canvas.FAINT: "--faint",
    canvas.GRID: "--line",
    canvas.BLACK: "--chart-black",
    canvas.ORANGE: "--chart-orange",
    canvas.SKY: "--chart-sky",
    canvas.GREEN: "--chart-green",
    canvas.BLUE: "--chart-blue",
    canvas.VERMILLION: "--chart-vermillion",
    canvas.PURPLE: "--chart-purple",
    ON_BLUE: "--on-blue",
    "#ffffff": "--page",
    "#000000": "--text",
}
"""The page's variable for each colour that figures are drawn with."""


@dataclass(frozen=True)
class Chart:
    """A chart, or why there is none.

    Attributes:
        title: what it shows.
        caption: what it was measured on.
        svg: the drawing; None if it could not be drawn.
        reason: why not.
    """

    title: str
    caption: str = ""
    svg: Markup | None = None
    reason: str = ""


def draw_chart(draw: Callable[[], Figure], name: str, title: str) -> Chart:
    """Draw a chart for the page.

    Args:
        draw: Makes the figure.
        name: One that no other chart of the page has: its ids begin with it.
        title: What it shows, if the figure can't be drawn to say so itself.

    Returns:
        The chart; without a drawing where matplotlib is not installed or the figure refuses its numbers.
    """
    try:
        canvas.check_matplotlib()
        import matplotlib

        settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"(?s).*[Gg]lyph.*"
            )  # of letters that only the reader's fonts have
            figure = draw()
            title, _, caption = figure.get_suptitle().partition("\n")
            figure.suptitle("")
            file = StringIO()
            figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.04)
    except DynBNError as error:
        return Chart(title, reason=str(error))
    return Chart(title, caption, inline_svg(file.getvalue(), name, title))


def inline_svg(drawn: str, name: str, title: str) -> Markup:
    """The SVG that matplotlib wrote, made part of a page: themed colours, ids of its own, a title, no file's frame."""
    body = drawn[drawn.index("<svg") :]
    opening, body = body[: body.index(">") + 1], body[body.index(">") + 1 :]
    box = re.search(r'viewBox="([^"]+)"', opening)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in VARIABLES.items():
        body = re.sub(re.escape(colour), f"var({variable})", body, flags=re.IGNORECASE)
    size = "" if box is None else f' viewBox="{box[1]}" style="--width: {float(box[1].split()[2]):.0f}"'
    body = re.sub(r">\s+<", "><", body)
    return Markup(
        f'<svg class="chart" role="img" aria-labelledby="{name}-title"{size}>'
        f'<title id="{name}-title">{escape(title)}</title>{body}'
    )
