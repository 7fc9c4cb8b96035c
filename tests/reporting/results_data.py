"""Results folders of made-up images, as `dynbn evaluate` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dynbn_lightning.corruptions.cells import Cell, cells_of
from dynbn_lightning.metrics import outcomes_of
from dynbn_lightning.reporting import ImageRecords, block_of, write_results

CLASSES = 7
ROWS = ("clean", "fog", "snow/3")


def made_up_records(
    cells: Sequence[str], images: int, *, seed: int = 0, skill: float = 1.0, rows: tuple[str, ...] = ()
) -> ImageRecords:
    """Every image in every cell, shuffled; logits lean to the label by `skill`."""
    generator = torch.Generator().manual_seed(seed)
    labels_of_images = torch.arange(images) * 3 % CLASSES
    pairs = [(cell, index) for cell in cells for index in range(images)]
    order = torch.randperm(len(pairs), generator=generator).tolist()
    indices = [pairs[place][1] for place in order]
    codes = torch.tensor([Cell.parse(pairs[place][0]).code for place in order])
    labels = labels_of_images[indices]
    logits = torch.randn(len(pairs), CLASSES, generator=generator)
    logits[torch.arange(len(pairs)), labels] += skill
    return ImageRecords.of_batch(
        outcomes_of(logits, labels),
        indices=indices,
        cells=codes,
        labels=labels,
        rows=rows,
        detected=torch.randint(len(rows), (len(pairs),), generator=generator) if rows else None,
        detection_confidences=torch.rand(len(pairs), generator=generator) if rows else None,
    )


def write_made_up_results(
    folder: Path,
    *,
    skills: Mapping[str, float] | None = None,
    corruptions: Sequence[str] = ("fog", "snow"),
    severities: Sequence[int] = (1, 3),
    places: Sequence[tuple[str, int]] = (("mixed", 200),),
    images: int = 30,
    records: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """Write `results.json` with the records beside it; `more` goes into the protocol, or, as `missing`, beside it."""
    cells = ["clean", *(cell.name for cell in cells_of(corruptions, severities))]
    runs = []
    for stream, size in places:
        methods = {}
        skills = skills or {"source": 0.5, "dynamic_bn/soft": 1.5, "oracle": 2.5}
        for number, (method, skill) in enumerate(skills.items()):
            made = made_up_records(cells, images, seed=number + size, skill=skill)
            block = {**block_of(made), "needs": [], "ms_per_image": 1.0 + number, "memory_mib": None}
            if records:
                name = f"images/{stream}-{size}-{method.replace('/', '--')}.safetensors"
                (folder / "images").mkdir(parents=True, exist_ok=True)
                made.save(folder / name, {"method": method})
                block["records"] = name
            methods[method] = block
        runs.append({"stream": stream, "batch_size": size, "methods": methods})
    missing = more.pop("missing", [])
    protocol = {
        "model": "resnet20",
        "source": "cifar10",
        "preset": "cifar",
        "corruptions": list(corruptions),
        "severities": list(severities),
        "test_images": images,
        "seed": 0,
        "uses": "detector and bank are made from corrupted training images: not source-free",
        **more,
    }
    results = {"schema_version": 3, "protocol": protocol, "settings": {}, "runs": runs, "missing": missing}
    write_results(results, folder)
    return results
