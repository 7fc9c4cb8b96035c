"""Corruption tables in LaTeX, as papers print them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from dynbn_lightning.reporting.comparison import Comparison
from dynbn_lightning.reporting.corruption_table import Column, CorruptionTable, corruption_tables
from dynbn_lightning.reporting.tables import percent
from dynbn_lightning.reporting.wording import (
    baseline_words,
    entry_label,
    missing_words,
    place_words,
    protocols_of,
    remarks_on,
    uses_of,
)

HEADINGS = {
    "gaussian_noise": ("Noise", "Gauss."),
    "shot_noise": ("Noise", "Shot"),
    "impulse_noise": ("Noise", "Impul."),
    "defocus_blur": ("Blur", "Defoc."),
    "glass_blur": ("Blur", "Glass"),
    "motion_blur": ("Blur", "Motion"),
    "zoom_blur": ("Blur", "Zoom"),
    "snow": ("Weather", "Snow"),
    "frost": ("Weather", "Frost"),
    "fog": ("Weather", "Fog"),
    "brightness": ("Weather", "Brit."),
    "contrast": ("Digital", "Contr."),
    "elastic_transform": ("Digital", "Elas."),
    "pixelate": ("Digital", "Pixel"),
    "jpeg_compression": ("Digital", "JPEG"),
    "speckle_noise": ("Extra", "Speck."),
    "gaussian_blur": ("Extra", "G. blur"),
    "spatter": ("Extra", "Spat."),
    "saturate": ("Extra", "Satur."),
    "near_focus": ("3DCC", "Near f."),
    "far_focus": ("3DCC", "Far f."),
    "fog_3d": ("3DCC", "Fog 3D"),
    "flash": ("3DCC", "Flash"),
    "color_quant": ("3DCC", "Quant."),
    "low_light": ("3DCC", "Low l."),
    "xy_motion_blur": ("3DCC", "XY mot."),
    "z_motion_blur": ("3DCC", "Z mot."),
    "iso_noise": ("3DCC", "ISO"),
    "bit_error": ("3DCC", "Bit err."),
    "h265_abr": ("3DCC", "ABR"),
    "h265_crf": ("3DCC", "CRF"),
    "blue_noise_sample": ("C-bar", "Blue n."),
    "brownish_noise": ("C-bar", "Brown."),
    "caustic_refraction": ("C-bar", "Caust."),
    "checkerboard_cutout": ("C-bar", "Check."),
    "cocentric_sine_waves": ("C-bar", "Sine"),
    "inverse_sparkles": ("C-bar", "Inv. sp."),
    "perlin_noise": ("C-bar", "Perlin"),
    "plasma_noise": ("C-bar", "Plasma"),
    "single_frequency_greyscale": ("C-bar", "Freq."),
    "sparkles": ("C-bar", "Spark."),
    "pinch_and_twirl": ("C-bar", "Pinch"),
    "ripple": ("C-bar", "Ripple"),
    "circular_motion_blur": ("C-bar", "Circ."),
    "lines": ("C-bar", "Lines"),
    "transverse_chromatic_abberation": ("C-bar", "Chrom."),
    "clean": ("", "Clean"),
    "mean": ("", "Mean"),
    "extra mean": ("", "Extra mean"),
    "3DCC mean": ("", "3DCC mean"),
    "C-bar mean": ("", "C-bar mean"),
    "mCE": ("", "mCE"),
    "relative mCE": ("", "Rel. mCE"),
    "calibration error": ("", "ECE"),
    "NLL": ("", "NLL"),
}
"""The group and the short name of each column."""

MOST_COLUMNS = 12
"""Tables with more of them are scaled to the width of the page."""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def latex_document(comparison: Comparison) -> str:
    """The corruption tables of a comparison, for a paper to input."""
    head = [
        "% made by dynbn report",
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        *(f"% {line}" for line in missing_words(comparison)),
    ]
    tables = [latex_table(table, missing_words(comparison)) for table in corruption_tables(comparison)]
    return "\n".join(head) + "\n" + "".join(f"\n{table}" for table in tables)


def latex_table(table: CorruptionTable, remarks: Sequence[str] = ()) -> str:
    """One corruption table: errors in a first block, and in a second the corruption errors where there are any.

    Args:
        table: the numbers.
        remarks: sentences for the end of the caption.
    """
    columns = table.columns
    too_wide = len(columns) > MOST_COLUMNS
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escaped(' '.join([*_caption(table), *remarks]))}}}",
        rf"\label{{tab:{_label(table)}}}",
        r"\setlength{\tabcolsep}{3pt}",
        *([r"\resizebox{\textwidth}{!}{%"] if too_wide else []),
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        *_group_headings(columns),
        _row(["Method", *(HEADINGS[column.name][1] for column in columns)]),
        r"\midrule",
        *_rows(table, columns),
    ]
    if table.corruption_errors and table.baseline is not None:
        of_corruption = {column.name: column for column in table.corruption_errors}
        heading = escaped(f"Corruption errors (CE), % of {table.baseline.name}")
        lines += [
            r"\midrule",
            rf"\multicolumn{{{1 + len(columns)}}}{{l}}{{\emph{{{heading}}}}} \\",
            *_rows(table, [of_corruption.get(column.name) for column in columns]),
        ]
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if too_wide else ""), r"\end{table*}"]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text with the characters that LaTeX takes for commands escaped, on one line."""
    return "".join(_SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def _caption(table: CorruptionTable) -> list[str]:
    place = place_words(table.stream, table.batch_size)
    sentences = [f"Top-1 error in %, means over severities: {'; '.join([place, *protocols_of(table.entries)])}."]
    sentences += [*uses_of(table.entries), *remarks_on(table)]
    return [*sentences, baseline_words(table.baseline)] if table.baseline and table.corruption_errors else sentences


def _label(table: CorruptionTable) -> str:
    titles = sorted({entry.title for entry in table.entries})
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join([*filter(None, titles), table.stream, str(table.batch_size)]))


def _group_headings(columns: Sequence[Column]) -> list[str]:
    cells, rules, begin = [""], [], 2
    for name, its in groupby(columns, key=lambda column: HEADINGS[column.name][0]):
        count = len(list(its))
        if name:
            cells.append(rf"\multicolumn{{{count}}}{{c}}{{{name}}}")
            rules.append(rf"\cmidrule(lr){{{begin}-{begin + count - 1}}}")
        else:
            cells += [""] * count
        begin += count
    return [_row(cells), "".join(rules)] if rules else []


def _rows(table: CorruptionTable, columns: Sequence[Column | None]) -> list[str]:
    cells = [_cells(table, column) for column in columns]
    labels = [escaped(entry_label(entry)) for entry in table.entries]
    return [_row([label, *(column[row] for column in cells)]) for row, label in enumerate(labels)]


def _cells(table: CorruptionTable, column: Column | None) -> list[str]:
    if column is None:
        return [""] * len(table.entries)
    shown = _shown(column)
    best = table.best(column, shown)
    cells = [rf"\textbf{{{text}}}" if row in best else text for row, text in enumerate(shown)]
    for row, bounds in enumerate(column.bounds):
        if bounds is not None and column.values[row] is not None:
            cells[row] += rf" {{\footnotesize [{percent(bounds[0])}, {percent(bounds[1])}]}}"
    return cells


def _shown(column: Column) -> list[str]:
    return ["--" if value is None else column.text(value) for value in column.values]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
