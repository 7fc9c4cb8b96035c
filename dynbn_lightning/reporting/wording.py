"""What must be said beside any number, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynbn_lightning.metrics import Baseline
from dynbn_lightning.reporting.comparison import Comparison, Entry, data_used
from dynbn_lightning.reporting.corruption_table import CorruptionTable
from dynbn_lightning.reporting.tables import marks_of


def entry_label(entry: Entry) -> str:
    """The entry's name in a table, which says if its images are not all there yet, or its numbers another's."""
    return entry.label + marks_of(entry.block)


def protocol_words(entries: Sequence[Entry]) -> str:
    """Model, data, severities, number of images and seed of a folder's entries, as far as they are known."""
    protocol = entries[0].protocol
    images = images_words(entries)
    model, checkpoint = protocol.get("model"), protocol.get("checkpoint")
    parts = [
        " on ".join(str(its) for its in (model, protocol.get("source")) if its is not None),
        _known("weights", checkpoint),
        _known("preset", protocol.get("preset")),
        _severities(protocol.get("severities") or ()),
        images and f"{images} in each cell",
        limit_words(protocol),
        _known("seed", protocol.get("seed")),
    ]
    return ", ".join(part for part in parts if part)


def image_counts(entries: Iterable[Entry]) -> list[int]:
    """The numbers of images that the finished methods counted in their cells, clean too, each once, in order."""
    blocks = [entry.block for entry in entries if not entry.is_unfinished]
    scores = [one for block in blocks for one in (block.get("clean"), *block["cells"].values()) if one]
    return sorted({one["images"] for one in scores if one.get("images") is not None})


def images_words(entries: Sequence[Entry]) -> str:
    """How many images of which kind a folder's methods were shown in a cell; nothing where none was finished."""
    counts = image_counts(entries)
    if not counts:
        return ""
    number = " to ".join(f"{count:,}" for count in sorted({counts[0], counts[-1]}))
    split, _ = data_used(entries[0].protocol)
    kind = "held-out training image" if split == "validation" else "test image"
    return f"{number} {kind}{'' if counts[-1] == 1 else 's'}"


def limit_words(protocol: Mapping[str, Any]) -> str:
    """How many batches were shown at most; nothing where all were."""
    _, limit = data_used(protocol)
    if limit == "all":
        return ""
    number = f"{100 * limit:g} % of the" if isinstance(limit, float) else str(limit)
    processes = protocol.get("processes") or 1
    where = f" in each of {processes} processes" if processes > 1 else ""
    return f"at most {number} batch{'' if limit == 1 else 'es'}{where}"


def protocols_of(entries: Iterable[Entry]) -> list[str]:
    """The protocol of each folder that the entries are of, after its title where there are several."""
    found: dict[Path, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.folder, []).append(entry)
    words = [(its[0].title, protocol_words(its)) for its in found.values()]
    return [f"{title}: {its}" if title else its for title, its in words]


def uses_of(entries: Iterable[Entry]) -> list[str]:
    """What the methods were given beforehand that others go without, in sentences."""
    found = dict.fromkeys(str(uses) for entry in entries if (uses := entry.protocol.get("uses")))
    return [f"{uses[0].upper()}{uses[1:]}." for uses in found]


def missing_words(comparison: Comparison) -> list[str]:
    """For each folder whose run was interrupted, what is missing from it."""
    titles = {entry.folder: entry.title for entry in comparison.entries}
    several = len(titles.keys() | comparison.unfinished.keys()) > 1
    return [
        f"The run was interrupted. Missing{f' in {titles.get(folder, folder)}' if several else ''}: {pieces}."
        for folder, pieces in comparison.unfinished.items()
    ]


def remarks_on(table: CorruptionTable) -> list[str]:
    """What the columns of a table, its brackets and its bold numbers are, in sentences."""
    remarks = [
        "Calibration error (ECE) in % and negative log likelihood (NLL) in nats are means over the cells of the mean."
    ]
    first, *others = table.sets or [""]
    shown = [name for name in others if any(column.name == f"{name} mean" for column in table.columns)]
    if shown:
        remarks.insert(0, f"The mean is over the {first} corruptions; the {' and '.join(shown)} ones have their own.")
    if any(column.bounds and any(column.bounds) for column in table.columns):
        remarks.append("In brackets: 95 % percentile bootstrap intervals over the images.")
    if any(table.best(column, list(map(column.text, column.values))) for column in table.columns):
        remarks.append("The best of each column is in bold.")
    if table.has_oracle:
        remarks.append("The oracle is told each image's corruption and doesn't compete.")
    return remarks


def baseline_words(baseline: Baseline) -> str:
    """What corruption errors are."""
    return f"CE and mCE: errors in % of those of the baseline {baseline.name}."


def place_words(stream: str, batch_size: int) -> str:
    """The stream and the batch size."""
    return f"{stream} stream, {f'batches of {batch_size}' if batch_size > 1 else 'one image at a time'}"


def _known(name: str, value: Any) -> str:
    return "" if value is None else f"{name} {value}"


def _severities(severities: Sequence[int]) -> str:
    if not severities:
        return ""
    if len(severities) == 1:
        return f"severity {severities[0]}"
    if list(severities) == list(range(severities[0], severities[-1] + 1)):
        return f"severities {severities[0]} to {severities[-1]}"
    return f"severities {', '.join(map(str, severities))}"
