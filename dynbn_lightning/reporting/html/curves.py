"""Charts over methods: accuracy against severity, and against time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting.comparison import Comparison, Entry, data_used
from dynbn_lightning.reporting.figures import cost_figure, severity_figure
from dynbn_lightning.reporting.figures.severity import mean_by_severity
from dynbn_lightning.reporting.html.charts import NARROW, Chart, draw_chart
from dynbn_lightning.reporting.html.places import mean_of, places_of
from dynbn_lightning.reporting.wording import image_counts


def severity_charts(comparison: Comparison) -> list[Chart]:
    """Accuracy against severity, a chart per place and folder."""
    charts = []
    for number, place in enumerate(places_of(comparison)):
        for part, entries in enumerate(place.folders().values()):
            drawn = [entry for entry in entries if _has_means(entry) and not entry.is_unfinished]
            if drawn:
                charts.append(_severity_chart(drawn, f"severity-{number}-{part}"))
    return charts


def _severity_chart(entries: Sequence[Entry], name: str) -> Chart:
    first = entries[0]
    run = {
        "stream": first.stream,
        "batch_size": first.batch_size,
        "methods": {entry.method: entry.block for entry in entries},
    }
    protocol = {key: value for key, value in first.protocol.items() if key != "test_images"}
    counts = image_counts(entries)
    if len(counts) == 1 and data_used(first.protocol)[0] == "test":
        protocol["test_images"] = counts[0]
    results: dict[str, Any] = {"protocol": protocol, "runs": [run]}
    return draw_chart(lambda: severity_figure(results, width=NARROW), name, "Top-1 accuracy against severity")


def _has_means(entry: Entry) -> bool:
    try:
        return bool(mean_by_severity(entry.method, entry.block))
    except DataError:
        return False


def cost_charts(comparison: Comparison) -> list[Chart]:
    """Mean accuracy against milliseconds per image, a chart per place and folder that has times."""
    charts = []
    for number, place in enumerate(places_of(comparison)):
        for part, entries in enumerate(place.folders().values()):
            drawn = [
                entry
                for entry in entries
                if entry.block.get("ms_per_image") and mean_of(entry) is not None and not entry.is_unfinished
            ]
            if drawn:
                charts.append(_cost_chart(drawn, place.name, f"cost-{number}-{part}"))
    return charts


def _cost_chart(entries: Sequence[Entry], place: str, name: str) -> Chart:
    methods = {entry.method: (float(entry.block["ms_per_image"]), mean_of(entry) or 0.0) for entry in entries}
    caption = ", ".join(filter(None, [entries[0].title, place, measured_on(entries)]))
    return draw_chart(
        lambda: cost_figure(methods, caption=caption, width=NARROW), name, "Mean accuracy against time per image"
    )


def measured_on(entries: Sequence[Entry]) -> str:
    """What the times of these methods were measured on, in words; nothing where that isn't known."""
    found = dict.fromkeys(entry.block.get("hardware") or hardware_of(entry.protocol) for entry in entries)
    machines = [str(hardware) for hardware in found if hardware]
    if len(found) > 1:
        return f"measured on different machines: {'; '.join([*machines, *(['unknown'] if '' in found else [])])}"
    return f"measured on {machines[0]}" if machines else ""


def hardware_of(protocol: dict[str, Any]) -> str:
    """What the results were made on, if the protocol says so."""
    said = protocol.get("hardware") or protocol.get("device") or ""
    return ", ".join(f"{key} {value}" for key, value in said.items()) if isinstance(said, dict) else str(said)
