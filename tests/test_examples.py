"""The files in `examples/`, run as they stand but for devices, and for how many images there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dynbn_lightning import BNStatsBank, CorruptionDataModule, load_model
from dynbn_lightning.callbacks.frozen_detector import load_detector
from dynbn_lightning.cli import main
from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.fitting import fit_detector
from dynbn_lightning.models import cifar_resnet20
from dynbn_lightning.reporting import methods_of

EXAMPLES = Path(__file__).parent.parent / "examples"
CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
FEW_CELLS = ["--data.corruptions", "[fog,contrast]", "--data.severities", "[3]"]
CELLS = {"fog/3", "contrast/3"}


def config(name: str) -> list[str]:
    return ["--config", str(EXAMPLES / name)]


def make_run(model: nn.Module, data: CorruptionDataModule) -> None:
    """The bank and the detector in `run/` that examples name."""
    Path("run").mkdir()
    BNStatsBank.collect(model, data.row_loaders(images_per_row=4)).save("run/bank.safetensors")
    fit_detector(data, 1, output=Path("run/detector.ckpt"), accelerator="cpu", enable_progress_bar=False)


def reported(stream: str, batch_size: int) -> dict[str, Any]:
    assert Path("run/report/report.html").is_file()
    results = json.loads(Path("run/report/results.json").read_text())
    assert results["missing"] == []
    return methods_of(results, stream, batch_size)


def test_cifar10c_resnet20(cifar10_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": cifar_resnet20().state_dict()}, "resnet20-12fca82f.th")
    model = load_model("cifar_resnet20", "resnet20-12fca82f.th", normalization="imagenet")
    made_of = CorruptionDataModule("cifar10", normalization="imagenet", corruptions=["fog", "contrast"], severities=[3])
    make_run(model, made_of)
    write_corrupted_set("cifar10", "data/CIFAR-10-C", root="data", corruptions=["fog", "contrast"], severities=[3])
    few = [*CPU, "--data.num_workers", "0"]
    assert main(["test", *config("cifar10c_resnet20.yaml"), *few]) == 0
    assert main(["test", *config("cifar10c_resnet20.yaml"), *config("without_method.yaml"), *few]) == 0
    methods = reported("mixed", 200)
    assert list(methods) == ["source", "dynamic_bn"] or list(methods) == ["dynamic_bn", "source"]
    for block in methods.values():
        assert block["cells"].keys() == CELLS
        assert block["clean"]["images"] == 8


def test_imagenetc_on_several_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for class_name in ("n01440764", "n01443537"):
            folder = tmp_path / "imagenet" / split / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (28, 32, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    write_corrupted_set("imagenet/val", "data/ImageNet-C", corruptions=["fog"], severities=[3], image_size=224)
    torch.save(load_model("timm:resnet50.tv_in1k", num_classes=2, pretrained=False).state_dict(), "random.pt")
    model = load_model("timm:resnet50.tv_in1k", "random.pt", num_classes=2)
    made_of = CorruptionDataModule(
        "imagenet", image_size=224, normalization="imagenet", corruptions=["fog"], severities=[3]
    )
    make_run(model, made_of)
    random = ["--model.model.checkpoint", "random.pt", "--model.model.num_classes", "2"]
    command = [sys.executable, "-m", "dynbn_lightning.cli", "test", *config("imagenetc_timm_resnet50_8gpus.yaml")]
    two = [*CPU, "--trainer.devices", "2", "--data.batch_size", "2", "--data.num_workers", "0", *random]
    finished = subprocess.run([*command, *two], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    (block,) = reported("mixed", 2).values()
    assert {name: cell["images"] for name, cell in block["cells"].items()} == {"fog/3": 4}


def test_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = config("own_checkpoint.yaml")
    steps = ["--data.task", "classifier", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]
    assert main(["fit", *own, *CPU, *steps]) == 0
    (checkpoint,) = Path("lightning_logs").rglob("*.ckpt")
    few = [*CPU, *FEW_CELLS, "--trainer.limit_test_batches", "2"]
    assert main(["test", *own, "--ckpt_path", str(checkpoint), *few]) == 0
    (name,) = methods = reported("continual", 200)
    assert name == "batch_stats/prior"
    assert methods[name]["clean"]["images"] == 400


def test_fit_detector(cifar10_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = [*CPU, "--data.num_workers", "0", "--trainer.max_epochs", "1"]
    for _ in range(2):
        assert main(["fit", *config("fit_detector.yaml"), *few]) == 0
        assert [path.name for path in Path("run").glob("*.ckpt")] == ["detector.ckpt"]
    assert load_detector(Path("run/detector.ckpt")).rows == CorruptionDataModule("shapes").rows
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}


def test_examples_begin_with_their_command() -> None:
    files = sorted(EXAMPLES.glob("*.yaml"))
    assert len(files) == 5
    for path in files:
        head = re.match(r"(#.*\n)+", path.read_text())
        assert head is not None
        assert f"--config examples/{path.name}" in head[0]
