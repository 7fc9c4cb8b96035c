"""The report as one HTML file that opens anywhere: on a phone, in the dark, offline and on paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from dynbn_lightning.errors import DynBNError
from dynbn_lightning.files import whole_file
from dynbn_lightning.reporting.comparison import Comparison
from dynbn_lightning.reporting.figures.canvas import check_matplotlib
from dynbn_lightning.reporting.html.curves import cost_charts, severity_charts
from dynbn_lightning.reporting.html.detection import detectors_of, oracle_table, reliabilities_of
from dynbn_lightning.reporting.html.example_strip import strips_of
from dynbn_lightning.reporting.html.headline import headlines_of, summary_of, title_of
from dynbn_lightning.reporting.html.heat_map import heat_maps_of
from dynbn_lightning.reporting.html.methods import methods_table
from dynbn_lightning.reporting.html.places import is_oracle, places_of
from dynbn_lightning.reporting.html.protocols import protocols_of
from dynbn_lightning.reporting.html.words import WORDS

TEMPLATES = Path(__file__).parent / "templates"


def write_html(comparison: Comparison, path: Path) -> Path:
    """Write a comparison as one HTML file, as a whole or not at all; it needs no other file, network or script.

    Charts are left out where matplotlib is not installed; tables, heat maps and examples are always there.

    Args:
        comparison: of one or more results folders.
        path: the file, replaced if it is there.

    Returns:
        The file.

    Raises:
        DataError: if the records that results name are missing or damaged.
    """
    page = render(comparison)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(comparison: Comparison) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment.get_template("page.html").render(contents_of(comparison))


def breakable(name: str) -> Markup:
    """A name that may go on in a new line after each of its parts, and nowhere else."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[/_:])", name))


def contents_of(comparison: Comparison) -> dict[str, Any]:
    """What the template shows: plain values, and charts as SVG."""
    places = places_of(comparison)
    return {
        "style": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "title": title_of(comparison),
        "summary": summary_of(comparison),
        "is_of_several": len({entry.folder for entry in comparison.entries} | set(comparison.unfinished)) > 1,
        "unfinished": {str(folder): missing for folder, missing in comparison.unfinished.items()},
        "no_charts": _why_no_charts(),
        "headlines": headlines_of(comparison),
        "methods": [methods_table(comparison, place) for place in places],
        "has_records": any(entry.records is not None for entry in comparison.entries),
        "heat_maps": heat_maps_of(comparison),
        "severity_charts": severity_charts(comparison),
        "detectors": detectors_of(comparison),
        "reliabilities": reliabilities_of(comparison),
        "oracle_tables": [table for place in places if (table := oracle_table(comparison, place)) is not None],
        "has_oracle": any(map(is_oracle, comparison.entries)),
        "cost_charts": cost_charts(comparison),
        "strips": strips_of(comparison),
        "protocols": protocols_of(comparison),
        "words": WORDS,
    }


def _why_no_charts() -> str:
    try:
        check_matplotlib()
    except DynBNError as error:
        return str(error)
    return ""
