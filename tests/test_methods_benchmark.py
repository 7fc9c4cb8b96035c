"""The benchmarks that compare methods: their short forms on real images, and peers that are written here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import method_peers
import pytest
import torch

from dynbn_lightning import BNStatsBank, CorruptionDataModule, DetectorModule, load_model
from dynbn_lightning.reporting import read_results

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

TENT = '''
import torch


def configure_model(model):
    return model.train()


def collect_params(model):
    return list(model.bn1.parameters()), []


class Tent:
    """Like the authors' but for what it adapts, so that its predictions must differ."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def __call__(self, images):
        logits = self.model(images)
        (-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logits.detach()
'''
NORM = """
import torch


def Norm(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    return model
"""


def test_a_peer_is_compared_image_by_image(dynbn_data: Path, tmp_path: Path) -> None:
    (tmp_path / "tent.py").write_text(TENT)
    (tmp_path / "norm.py").write_text(NORM)
    command = [sys.executable, str(BENCHMARKS / "method_peers.py"), "--tent", str(tmp_path), "--data", str(dynbn_data)]
    command += ["--corruptions", "contrast", "--output", str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["stream"], row["method"]) for row in results["rows"]] == [
        (stream, method) for stream in ("sequential", "mixed") for method in ("BN-1", "TENT")
    ]
    for row in results["rows"]:
        assert row["predictions"] == 1000, "500 images, clean and under contrast"
        assert row["method"] != "BN-1" or row["differ"] <= 5, "the same formula"
        assert row["source"] < row["ours"][0]
    mixed_tent = results["rows"][-1]
    assert mixed_tent["differ"] > 0, "this peer is another method, and that is seen"
    assert "authors' code" in finished.stdout


def test_a_peer_is_read_from_a_bare_git_directory(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "thing.py").write_text("VALUE = 7\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    assert method_peers.peer(tmp_path / ".git", "inside", "thing").VALUE == 7


@pytest.mark.slow
def test_short_form_of_the_comparison_on_real_images(dynbn_data: Path, tmp_path: Path) -> None:
    model = load_model("cifar_resnet20", next((dynbn_data / "weights").glob("resnet20-*.th")))
    images = CorruptionDataModule(
        dynbn_data / "cifar10",
        normalization=model.input_normalization,
        corruptions=("contrast", "fog"),
        severities=(1, 3, 5),
        row_per="cell",
    )
    bank = BNStatsBank.collect(model, images.row_loaders(images_per_row=100), progress=False)
    bank.save(tmp_path / "made" / "resnet20" / "seed0" / "bank.safetensors")
    torch.manual_seed(0)
    detector = DetectorModule(rows=bank.rows)
    (tmp_path / "made" / "detectors").mkdir()
    from dynbn_lightning.fitting import bare_trainer, quiet_lightning

    with quiet_lightning():
        trainer = bare_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, enable_progress_bar=False)
        trainer.fit(detector, datamodule=images)
    trainer.save_checkpoint(tmp_path / "made" / "detectors" / "seed0.ckpt", weights_only=True)

    methods = "source,batch_stats,distribution_matching,dynamic_bn/soft"
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "--data", str(dynbn_data)]
    command += ["--made", str(tmp_path / "made"), "--output", str(tmp_path / "out"), "--corruptions", "contrast"]
    command += ["--severities", "5", "--places", "mixed:200,continual:200", "--methods", methods]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = read_results(tmp_path / "out" / "resnet20" / "seed0")
    found = {(run["stream"], method): block for run in results["runs"] for method, block in run["methods"].items()}
    assert set(found) == {
        ("mixed", "source"),
        ("mixed", "dynamic_bn/soft"),
        *(
            (stream, m)
            for m in ("batch_stats", "distribution_matching")
            for stream in ("mixed", "sequential", "continual")
        ),
    }
    assert 0.88 < found["mixed", "source"]["clean"]["accuracy"] < 0.94
    sequential = {method: found["sequential", method] for method in ("batch_stats", "distribution_matching")}
    assert sequential["batch_stats"]["mean"]["accuracy"] > found["mixed", "source"]["mean"]["accuracy"] + 0.3
    assert sequential["distribution_matching"]["clean"]["accuracy"] > sequential["batch_stats"]["clean"]["accuracy"]
    assert found["continual", "batch_stats"]["cells"] == sequential["batch_stats"]["cells"], "the same batches"
    assert "| batch_stats |" in finished.stdout

    # What is there is not run again, and more can be added.
    kept = tmp_path / "out" / "resnet20" / "seed0" / "severity5-contrast" / "mixed-200" / "source" / "results.json"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(kept.parent.parent / "batch_stats")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert kept.stat().st_mtime_ns == before
    assert "resnet20: batch_stats, mixed" in again.stdout
    assert "resnet20: source" not in again.stdout
