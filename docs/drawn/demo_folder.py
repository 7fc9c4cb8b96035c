"""What `dynbn demo` leaves in a folder, opened for drawing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbn_lightning import BNStatsBank, CorruptionDataModule, load_model, routed
from dynbn_lightning.callbacks import FrozenDetector
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules.batches import corrupt_pixels
from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting import read_results

FILES = {"classifier": "classifier.safetensors", "detector": "detector.ckpt", "bank": "bank.safetensors"}


@dataclass(frozen=True)
class Demo:
    """What `dynbn demo` left in a folder."""

    model: nn.Module
    detector: FrozenDetector
    bank: BNStatsBank
    data: CorruptionDataModule
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Demo:
        """Open the folder; `DataError` if `dynbn demo` did not finish there."""
        paths = {name: folder / file for name, file in FILES.items()}
        missing = [path.name for path in (*paths.values(), folder / "results.json") if not path.is_file()]
        if missing:
            raise DataError(
                f"{folder} has no {', no '.join(missing)}: run `dynbn demo --output {folder}` to its end, or pass "
                "--demo the folder that it wrote"
            )
        bank = BNStatsBank.load(paths["bank"])
        settings = bank.provenance
        if settings.get("source") != "shapes" or bank.calibration is None:
            raise DataError(f"{paths['bank']} is not the calibrated bank that `dynbn demo` makes of shapes")
        normalization = tuple(tuple(values) for values in settings["normalization"].values())
        cells = [Cell.parse(row) for row in bank.rows[1:]]
        data = CorruptionDataModule(
            "shapes",
            normalization=normalization,
            corruptions=list(dict.fromkeys(cell.corruption for cell in cells)),
            severities=settings["severities"],
            row_per="cell",
            seed=settings["seed"],
        )
        model = load_model("cifar_resnet8", paths["classifier"], normalization=normalization)
        bank.check_model(model)
        return cls(model, FrozenDetector(paths["detector"], bank), bank, data, read_results(folder))

    def have(self, cells: Sequence[str]) -> list[str]:
        """Those of these cells that the demo has."""
        found = [cell for cell in cells if cell in self.bank.rows]
        if not found:
            raise DataError(f"the demo has none of the cells {', '.join(cells)}: its bank is of {self.bank.rows}")
        return found

    def pixels(self, numbers: Sequence[int], cells: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Test images in a cell each, (N, 3, H, W) in [0, 1], as testing shows them, and their classes (N,)."""
        images, labels = zip(*(self.data.test_images[number] for number in numbers), strict=True)
        codes = [Cell.parse(cell).code for cell in cells]
        options: dict[str, Any] = {"seed": self.data.seed, "split": "test", "preset": self.data.preset}
        return corrupt_pixels(torch.stack(images), codes, numbers, **options).float() / 255, torch.tensor(labels)

    def logits(self, pixels: Tensor, assignment: Tensor | str) -> Tensor:
        """What the model says of the images, each normalised with what it is assigned, in one forward pass."""
        with routed(self.model, self.bank) as routing:
            routing.set(assignment)
            logits: Tensor = self.model(self.data.normalization.apply(pixels))
        return logits

    def layer_outputs(self, pixels: Tensor, assignment: str) -> dict[str, Tensor]:
        """What each BatchNorm layer gives, (channels, values), for images that share a row."""
        outputs: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda layer, given, output: outputs.update({name: output.transpose(0, 1).flatten(1)})

        hooks = [self.model.get_submodule(name).register_forward_hook(keep(name)) for name in self.bank.layers]
        self.logits(pixels, assignment)
        for hook in hooks:
            hook.remove()
        return outputs
