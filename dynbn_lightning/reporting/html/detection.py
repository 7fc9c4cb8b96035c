"""What the detector took the images for, what became of them, and how far detecting falls short of knowing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynbn_lightning.corruptions.cells import Cell
from dynbn_lightning.reporting.comparison import Comparison, Entry, difference
from dynbn_lightning.reporting.figures import confusion_figure, reliability_figure
from dynbn_lightning.reporting.html.charts import NARROW, SQUARE, Chart, draw_chart
from dynbn_lightning.reporting.html.methods import mean_gain
from dynbn_lightning.reporting.html.places import Place, best_of, finished_source, first_places, is_oracle, mean_of
from dynbn_lightning.reporting.html.table import Row, Shown, Table, counted, gain, percent, share
from dynbn_lightning.reporting.records import NOT_DETECTED, ImageRecords
from dynbn_lightning.reporting.wording import entry_label

ORACLES = {
    "dynamic_bn/hard": "oracle",
    "dynamic_bn/soft": "oracle",
    "dynamic_bn/calibrated": "oracle/calibrated",
    "dynamic_bn/batch": "oracle/calibrated",
    "dynamic_bn/stream": "oracle/calibrated",
}
"""The method that a detecting one would be if it were told the true corruption; `dynamic_bn`'s depends on its bank."""


@dataclass(frozen=True)
class Detector:
    """What there is to say of a folder's detector.

    Attributes:
        heading: the method that used it, and its place.
        sentence: how often it was right.
        confusion: what each row's images were taken for.
        reliability: how reliable its confidence is.
        rows: how each true row was detected.
        outcomes: what became of images that were detected rightly and wrongly, a row per method.
    """

    heading: str
    sentence: str
    confusion: Chart
    reliability: Chart
    rows: Table
    outcomes: Table | None


@dataclass(frozen=True)
class Reliability:
    """How reliable the confidences in the classes are, a chart per method."""

    heading: str
    charts: list[Chart] = field(default_factory=list)


def detects(entry: Entry) -> bool:
    """Whether the records say what was detected in the images."""
    return entry.records is not None and bool(entry.records.rows) and entry.records.detection_accuracy() is not None


def detecting(entries: Sequence[Entry]) -> Entry | None:
    """The method whose detector is shown: the best one if it has one, else the first that has."""
    able = [entry for entry in entries if not is_oracle(entry) and detects(entry)]
    able.sort(key=lambda entry: entry.is_unfinished)
    best = best_of(entries)
    return best if best in able else next(iter(able), None)


def detectors_of(comparison: Comparison) -> list[Detector]:
    """The detector of each folder that has one, on its first place."""
    found = []
    for number, entries in enumerate(first_places(comparison).values()):
        entry = detecting(entries)
        if entry is not None and entry.records is not None:
            found.append(_detector(comparison, entry, entries, f"detector-{number}"))
    return found


def _detector(comparison: Comparison, entry: Entry, entries: Sequence[Entry], name: str) -> Detector:
    records = entry.records or ImageRecords.of_nothing()
    true = records.true_rows()
    known = (true != NOT_DETECTED) & (records.detected != NOT_DETECTED)
    confidences, right = records.detection_confidences[known], (records.detected == true)[known]
    sure = confidences.isfinite()
    confusion = records.confusion()
    sentence = (
        f"Of {counted(int(known.sum()), 'image')} in cells that the detector knows, "
        f"{percent(float(right.double().mean()))}\u00a0% were detected as their own row, one of {len(records.rows)}."
    )
    return Detector(
        f"{entry_label(entry)}, {entry.stream} stream, batches of {entry.batch_size}",
        sentence,
        draw_chart(
            lambda: confusion_figure(confusion, records.rows, width=SQUARE), f"{name}-confusion", "Confusion of rows"
        ),
        draw_chart(
            lambda: reliability_figure(confidences[sure].clamp(0, 1), right[sure], width=NARROW),
            f"{name}-reliability",
            "Reliability of the confidence in the detected row",
        ),
        _rows_table(records.rows, confusion),
        _outcomes_table(comparison, [one for one in entries if not is_oracle(one) and detects(one)]),
    )


def _rows_table(rows: Sequence[str], confusion: Tensor) -> Table:
    shown = []
    for number, (row, counts) in enumerate(zip(rows, confusion, strict=True)):
        total = int(counts.sum())
        if total == 0:
            continue
        wrong = counts.clone()
        wrong[number] = 0
        most = int(wrong.argmax())
        mistaken = f"{rows[most]} ({percent(int(wrong[most]) / total)} %)" if wrong[most] else "nothing else"
        shown.append(Row(row, [Shown(f"{total:,}"), Shown(percent(int(counts[number]) / total)), Shown(mistaken)]))
    headings = ["true row", "images", "detected rightly, %", "else mostly taken for"]
    return Table("How the images of each row were detected", headings, shown)


def _outcomes_table(comparison: Comparison, entries: Sequence[Entry]) -> Table | None:
    rows = [row for entry in entries if (row := _outcomes_row(entry, comparison.source_of(entry))) is not None]
    headings = [
        "method",
        "detected rightly, %",
        "accuracy then, %",
        "source on these, %",
        "accuracy where wrongly, %",
        "source on these, %",
    ]
    caption = "Accuracy where the detection was right and where it was wrong"
    return Table(caption, headings, rows).without_empty_columns() if rows else None


def _outcomes_row(entry: Entry, source: Entry | None) -> Row | None:
    if entry.records is None:
        return None
    records = entry.records.unique()
    true = records.true_rows()
    known = (true != NOT_DETECTED) & (records.detected != NOT_DETECTED)
    right = records.detected == true
    its = _same_images(records, source)
    cells = [Shown(percent(float(right[known].double().mean())))]
    for where in (known & right, known & ~right):
        cells.append(_accuracy(records.correct, where))
        cells.append(Shown() if its is None else _accuracy(its, where))
    return Row(entry_label(entry), cells)


def _same_images(records: ImageRecords, source: Entry | None) -> Tensor | None:
    """Whether the source was right on the very images of these records, in their order; None if it saw others."""
    if source is None or source.records is None:
        return None
    its = source.records.unique()
    same = torch.equal(its.cells, records.cells) and torch.equal(its.indices, records.indices)
    return its.correct if same else None


def _accuracy(correct: Tensor, where: Tensor) -> Shown:
    return Shown(percent(float(correct[where].double().mean()))) if where.any() else Shown()


def oracle_table(comparison: Comparison, place: Place) -> Table | None:
    """What each detecting method loses against being told the corruption; None where no oracle was run."""
    rows = []
    for entry in place.entries:
        oracle = oracle_of(comparison, entry)
        if oracle is None or oracle.is_unfinished or entry.is_unfinished:
            continue
        paired = difference(oracle, entry)
        gap = gain(mean_gain(oracle, entry), None if paired is None else paired.mean)
        rows.append(Row(entry_label(entry), [share(mean_of(entry)), Shown(oracle.method), share(mean_of(oracle)), gap]))
    headings = ["method", "mean accuracy, %", "its oracle", "oracle's mean accuracy, %", "oracle ahead by, points"]
    return Table(f"Detected against known corruption on the {place.name}", headings, rows) if rows else None


def oracle_of(comparison: Comparison, entry: Entry) -> Entry | None:
    """What a method would be if it were told the true corruption, with the same rows of statistics; None if not run.

    No oracle has refined rows.
    """
    bank = ((entry.block.get("settings") or {}).get("DynamicBNCallback") or {}).get("bank") or {}
    if entry.block.get("refined") or bank.get("refined"):
        return None
    if entry.method != "dynamic_bn":
        return comparison.other(entry, ORACLES.get(entry.method, ""))
    calibrated = comparison.other(entry, "oracle/calibrated")
    if "calibrated" in bank:
        return calibrated if bank["calibrated"] else comparison.other(entry, "oracle")
    return calibrated or comparison.other(entry, "oracle")


def reliabilities_of(comparison: Comparison) -> list[Reliability]:
    """How reliable the confidences of the source and of the best method are, for each folder."""
    found = []
    for number, entries in enumerate(first_places(comparison).values()):
        source = finished_source(entries)
        charts = [
            _of_predictions(entry, f"reliability-{number}-{place}")
            for place, entry in enumerate((source, best_of(entries)))
            if entry is not None and entry.records is not None and len(entry.records)
        ]
        if charts:
            found.append(Reliability(entries[0].title, charts))
    return found


def _of_predictions(entry: Entry, name: str) -> Chart:
    records = entry.records or ImageRecords.of_nothing()
    sure = records.confidences.isfinite()
    clean = ", clean ones too" if (records.cells[sure] == Cell.clean().code).any() else ""
    caption = (
        f"{entry_label(entry)}; this calibration error is over all images together{clean}, that of the table of "
        "methods the mean of those of the corrupted cells"
    )
    return draw_chart(
        lambda: reliability_figure(
            records.confidences[sure].clamp(0, 1),
            records.correct[sure],
            what="predicted class",
            caption=caption,
            width=NARROW,
        ),
        name,
        f"Reliability of the confidence in the predicted class: {entry.label}",
    )
