"""The benchmark of several processes: its short form finds the same numbers on two as on one."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from dynbn_lightning import BNStatsBank, CorruptionDataModule, DetectorModule, load_model
from dynbn_lightning.fitting import bare_trainer, quiet_lightning

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "scaling.py"


def test_short_form(dynbn_data: Path, tmp_path: Path) -> None:
    model = load_model("cifar_resnet20", next((dynbn_data / "weights").glob("resnet20-*.th")))
    images = CorruptionDataModule(
        dynbn_data / "cifar10", normalization="imagenet", corruptions=["contrast"], severities=[5], row_per="cell"
    )
    bank = BNStatsBank.collect(model, images.row_loaders(images_per_row=50), progress=False)
    bank.save(tmp_path / "made" / "resnet20" / "seed0" / "bank.safetensors")
    torch.manual_seed(0)
    with quiet_lightning():
        trainer = bare_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, enable_progress_bar=False)
        trainer.fit(DetectorModule(rows=bank.rows), datamodule=images)
    trainer.save_checkpoint(tmp_path / "made" / "detectors" / "seed0.ckpt", weights_only=True)

    command = [sys.executable, str(BENCHMARK), "--data", str(dynbn_data), "--made", str(tmp_path / "made")]
    command += ["--corruptions", "contrast", "--severities", "5", "--methods", "source,ema,dynamic_bn/soft"]
    command += ["--repeats", "1", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert list(found) == ["1", "2"]
    for name in ("source", "ema", "dynamic_bn/soft"):
        assert found["1"][name]["images"] == 1000, "500 images, clean and under contrast"
        assert found["1"][name]["records"] == found["2"][name]["records"]
        assert found["2"][name]["seconds"] > 0
    assert found["1"]["source"]["accuracy"] < found["1"]["dynamic_bn/soft"]["accuracy"]
    assert done.stdout.count("| yes |") == 3
