"""A user's script, which a test starts: `python launched_script.py FOLDER METHOD WORLD [FAILING RANK]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from callback_models import bare_trainer
from methods_on_processes import METHODS, make_tools, small_data, use_tools
from reported_modules import Silent, make_network

from dynbn_lightning import CorruptionReportCallback


class FailsOnOne(Silent):
    def __init__(self, failing: int | None) -> None:
        super().__init__(make_network())
        self.failing = failing

    def step(self, batch: Any) -> None:
        if self.failing == self.global_rank and self.steps == 2:
            raise ValueError(f"process {self.failing} stopped here")
        self(batch[0])


def evaluate_with_report(folder: Path, method: str, failing: int | None = None, **options: Any) -> None:
    use_tools(folder)
    torch.set_num_threads(1)
    module = FailsOnOne(failing)
    options = {"inference_mode": not method.startswith("tent"), **options}
    trainer = bare_trainer(*METHODS[method](module), CorruptionReportCallback(folder / "report", method), **options)
    trainer.test(module, datamodule=small_data(batch_size=3), verbose=False)


def prepare(folder: Path) -> Path:
    make_tools(folder)
    return folder


if __name__ == "__main__":
    its_folder, its_method, world, *its_failing = sys.argv[1:]
    evaluate_with_report(
        Path(its_folder),
        its_method,
        *(int(rank) for rank in its_failing),
        devices=int(world),
        strategy="ddp",
    )
