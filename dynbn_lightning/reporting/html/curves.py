"""Charts over methods: accuracy against severity, and against time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting.comparison import Comparison, Entry
from dynbn_lightning.reporting.figures import cost_figure, severity_figure
from dynbn_lightning.reporting.figures.severity import mean_by_severity
from dynbn_lightning.reporting.html.charts import NARROW, Chart, draw_chart
from dynbn_lightning.reporting.html.places import mean_of, places_of


def severity_charts(comparison: Comparison) -> list[Chart]:
    """Accuracy against severity, a chart per place and folder."""
    charts = []
    for number, place in enumerate(places_of(comparison)):
        for part, entries in enumerate(place.folders().values()):
            drawn = [entry for entry in entries if _has_means(entry)]
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
    results: dict[str, Any] = {"protocol": first.protocol, "runs": [run]}
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
            methods = {
                entry.method: (float(time), accuracy)
                for entry in entries
                if (time := entry.block.get("ms_per_image")) and (accuracy := mean_of(entry)) is not None
            }
            if methods:
                charts.append(_cost_chart(methods, entries[0], place.name, f"cost-{number}-{part}"))
    return charts


def _cost_chart(methods: dict[str, tuple[float, float]], entry: Entry, place: str, name: str) -> Chart:
    hardware = hardware_of(entry.protocol)
    caption = ", ".join(filter(None, [entry.title, place, hardware and f"measured on {hardware}"]))
    return draw_chart(
        lambda: cost_figure(methods, caption=caption, width=NARROW), name, "Mean accuracy against time per image"
    )


def hardware_of(protocol: dict[str, Any]) -> str:
    """What the results were made on, if the protocol says so."""
    said = protocol.get("hardware") or protocol.get("device") or ""
    return ", ".join(f"{key} {value}" for key, value in said.items()) if isinstance(said, dict) else str(said)
