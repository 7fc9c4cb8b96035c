"""Made-up results folders for the tests of the page: plausible outcomes of images that were never looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dynbn_lightning.corruptions.cells import COMMON_CORRUPTIONS, SEVERITIES, Cell, cells_of
from dynbn_lightning.reporting.records import ImageRecords
from dynbn_lightning.reporting.results import block_of, write_results

CELLS = (Cell.clean(), *cells_of(COMMON_CORRUPTIONS, SEVERITIES))
ROWS = ("clean", *COMMON_CORRUPTIONS)
GAINS = {
    "source": 0.0,
    "batch_stats": 0.06,
    "tent": 0.065,
    "dynamic_bn": 0.1,
    "dynamic_bn/hard": 0.07,
    "dynamic_bn/calibrated": 0.12,
    "oracle": 0.09,
    "oracle/calibrated": 0.14,
}
PROTOCOL: dict[str, Any] = {
    "source": "cifar10",
    "model": "resnet20",
    "preset": "cifar",
    "normalization": {"mean": [0.491, 0.482, 0.447], "std": [0.202, 0.199, 0.201]},
    "severities": list(SEVERITIES),
    "image_size": [32, 32],
    "seed": 0,
    "corruptions": list(COMMON_CORRUPTIONS),
    "streams": ["mixed", "sequential"],
    "batch_sizes": [200],
    "concentration": None,
    "test_images": 200,
    "reset": "methods with state begin anew with each loader",
    "bank": {"rows": 76, "made_from": {"images": 2000, "split": "train"}},
    "hardware": "2 cores of a Xeon",
    "versions": {"dynbn_lightning": "0.1.0", "torch": "2.6.0"},
}


def made_up(
    images: int,
    gain: float = 0.0,
    *,
    cells: Sequence[Cell] = CELLS,
    rows: tuple[str, ...] = (),
    seed: int = 0,
    detected_rightly: float = 0.75,
) -> ImageRecords:
    """Records of as many images in each cell; each image is as hard for every method with the same seed."""
    hardness = torch.rand(images, generator=torch.Generator().manual_seed(seed))
    parts = []
    for cell in cells:
        generator = torch.Generator().manual_seed(1000 * seed + cell.code)
        level = 0.93 if cell.is_clean else 0.95 - (0.05 + 0.004 * (cell.code % 17)) * cell.severity * (1 - 2.5 * gain)
        noise = 0.35 * torch.rand(images, generator=generator)
        correct = 0.65 * hardness + noise < level - 0.02 * (gain > 0) * cell.is_clean
        own = torch.Generator().manual_seed(1000 * seed + cell.code + int(1e6 * gain))
        confidences = (0.4 + 0.6 * torch.rand(images, generator=own)).where(correct, 0.25 + 0.6 * torch.rand(images))
        true = next((rows.index(name) for name in (cell.name, cell.corruption) if name in rows), 0)
        right = torch.rand(images, generator=own) < detected_rightly
        wrongly = (true + torch.randint(1, 4, (images,), generator=own)) % max(len(rows), 1)
        sure = 0.3 + 0.7 * torch.rand(images, generator=own)
        parts.append(
            ImageRecords(
                indices=torch.arange(images),
                cells=torch.full((images,), cell.code, dtype=torch.uint8),
                labels=torch.randint(10, (images,), generator=generator).int(),
                predictions=torch.zeros(images, dtype=torch.int32),
                correct=correct,
                top5=correct | (torch.rand(images, generator=own) < 0.8),
                confidences=confidences,
                nll=-confidences.where(correct, 1 - confidences).log(),
                detected=(right * true + ~right * wrongly).to(torch.int16)
                if rows
                else torch.full((images,), -1, dtype=torch.int16),
                detection_confidences=sure if rows else torch.zeros(images),
                rows=rows,
            )
        )
    together = ImageRecords.together(parts)
    return replace(together, predictions=(together.labels + ~together.correct).int())


def block(folder: Path, name: str, records: ImageRecords, *, kept: bool = True, **more: Any) -> dict[str, Any]:
    """The block of a method, and its records in the folder."""
    if kept:
        records.save(folder / "images" / f"{name.replace('/', '-')}.safetensors", {"method": name})
        more["records"] = f"images/{name.replace('/', '-')}.safetensors"
    return {**block_of(records), **more}


def make_folder(
    folder: Path,
    *,
    images: int = 200,
    methods: Mapping[str, float] = GAINS,
    streams: Sequence[str] = ("mixed",),
    cells: Sequence[Cell] = CELLS,
    rows: tuple[str, ...] = ROWS,
    protocol: Mapping[str, Any] = PROTOCOL,
    missing: Sequence[str] = (),
    kept: bool = True,
    seed: int = 0,
) -> Path:
    """A results folder with these methods and what they gain, on these streams in batches of 200."""
    runs = []
    for stream in streams:
        blocks = {}
        for place, (name, gain) in enumerate(methods.items()):
            detects = name.startswith(("dynamic_bn", "oracle"))
            records = made_up(
                images,
                gain * (1 if stream == "mixed" else 1.1),
                cells=cells,
                rows=rows if detects else (),
                seed=seed,
                detected_rightly=1.0 if name.startswith("oracle") else 0.75,
            )
            blocks[name] = block(
                folder,
                f"{stream}/{name}",
                records,
                kept=kept,
                needs=["bank", "detector"] if detects else [],
                settings={"DynamicBNCallback": {"mixing": "moments", "blend": 0.2}} if detects else {},
                ms_per_image=1.5 * (1 + 0.6 * place),
                memory_mib=100.0 + 20 * place,
            )
        runs.append({"stream": stream, "batch_size": 200, "methods": blocks})
    write_results({"schema_version": 3, "protocol": dict(protocol), "missing": list(missing), "runs": runs}, folder)
    return folder
