"""Everything that writes to a folder, made to wait in the middle: run by `test_writing_to_one_folder.py` as a process.

`python paused_writers.py FOLDER` writes to `FOLDER/evaluate`, then `report`, then `corrupt`; in the middle of each it
makes `FOLDER/evaluate.paused` and waits for `FOLDER/evaluate.go`, and at its end it makes `FOLDER/evaluate.done`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import lightning as L
import torch
from test_evaluation import make_data
from torch import nn

from dynbn_lightning import ClassifierModule, CorruptionReportCallback, evaluate
from dynbn_lightning.corrupted_set import batches, write_corrupted_set
from dynbn_lightning.models import cifar_resnet8

Pause = Callable[[], None]
SECONDS = 300.0


def wait_for(path: Path) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"{path} didn't come"
        time.sleep(0.02)


def make_model(pause: Pause) -> nn.Module:
    torch.manual_seed(0)
    model = cifar_resnet8(width=4).eval()
    model.register_forward_pre_hook(lambda *_: pause())
    return model


def write_evaluation(output: Path, pause: Pause) -> None:
    data = make_data(batch_size=4)
    evaluate(make_model(pause), data, methods=["source"], output=output, progress=False, accelerator="cpu")


def write_report(output: Path, pause: Pause) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    callback = CorruptionReportCallback(output)
    trainer = L.Trainer(accelerator="cpu", devices=1, callbacks=[callback], **quiet)
    trainer.test(ClassifierModule(make_model(pause)), datamodule=make_data(batch_size=4), verbose=False)


def write_corrupted(output: Path, pause: Pause) -> None:
    corrupt_pixels = batches.corrupt_pixels

    def pausing(*args, **kwargs):
        pause()
        return corrupt_pixels(*args, **kwargs)

    with patch.object(batches, "corrupt_pixels", pausing):
        images = make_data().test_images.dataset
        write_corrupted_set(images, output, corruptions=["fog", "contrast"], severities=[5], progress=False)


WRITERS = {"evaluate": write_evaluation, "report": write_report, "corrupt": write_corrupted}


def main(folder: Path) -> None:
    for name, write in WRITERS.items():

        def pause(name: str = name) -> None:
            (folder / f"{name}.paused").touch()
            wait_for(folder / f"{name}.go")

        write(folder / name, pause)
        (folder / f"{name}.done").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
