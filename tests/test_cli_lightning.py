"""`dynbn fit`, `validate`, `test` and `predict`: LightningCLI on tiny data, from YAML and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_data import write_folder
from documented import blocks_of
from lightning.pytorch import Trainer

from dynbn_lightning import (
    BatchStatsCallback,
    ClassifierModule,
    CorruptionDataModule,
    CorruptionReportCallback,
    load_model,
)
from dynbn_lightning.callbacks.frozen_detector import load_detector
from dynbn_lightning.cli import main
from dynbn_lightning.reporting import methods_of

DATA = {"normalization": "half", "corruptions": ["fog", "contrast"], "severities": [3], "batch_size": 4}
OWN_MODULE = """
from lightning.pytorch import LightningModule, LightningDataModule
from lightning.pytorch.callbacks import BasePredictionWriter
from dynbn_lightning.models import cifar_resnet8
import torch

class Mine(LightningModule):
    def __init__(self, width: int = 4, error: str = ""):
        super().__init__()
        self.save_hyperparameters()
        self.net = cifar_resnet8(num_classes=2, width=width)
        self.error = error

    def forward(self, images):
        return self.net(images)

    def test_step(self, batch, batch_idx):
        if self.error:
            raise {"interrupt": KeyboardInterrupt, "type": TypeError}[self.error]("stopped")
        x, y = batch
        self.log("mine", (self(x).argmax(1) == y).float().mean())

class Refusing(Mine):
    def __init__(self):
        raise TypeError("no such thing")

class Writer(BasePredictionWriter):
    def __init__(self, output: str):
        super().__init__("batch")
        self.output = output

    def write_on_batch_end(self, trainer, module, prediction, indices, batch, batch_idx, loader):
        torch.save(prediction, f"{self.output}-{batch_idx}.pt")
"""


def write_yaml(path: Path, **content: Any) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def of_class(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


TRAINER = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A YAML file for a checkpoint on a folder of images by BN-1 with a report, in the current folder."""
    monkeypatch.chdir(tmp_path)
    network = of_class("dynbn_lightning.load_model", name="cifar_resnet8", checkpoint=str(folder / "net.pt"))
    network["init_args"]["normalization"] = "half"
    callbacks = [
        of_class("dynbn_lightning.BatchStatsCallback", prior=4),
        of_class("dynbn_lightning.CorruptionReportCallback", output="report"),
    ]
    return write_yaml(
        tmp_path / "run.yaml",
        model=of_class("dynbn_lightning.ClassifierModule", model=network),
        data=of_class("dynbn_lightning.CorruptionDataModule", source=str(folder), **DATA),
        trainer={**TRAINER, "callbacks": callbacks},
        seed_everything=0,
    )


def cells_in(folder: str, batch_size: int = 4) -> dict[str, Any]:
    results = json.loads((Path(folder) / "results.json").read_text())
    return methods_of(results, "mixed", batch_size)["batch_stats/prior"]


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--print_config"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_a_test_from_yaml_gives_the_numbers_of_python(config: str, folder: Path, tmp_path: Path) -> None:
    assert main(["test", "--config", config]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "report"}, "nothing else is written"
    model = load_model("cifar_resnet8", folder / "net.pt", normalization="half")
    callbacks = [BatchStatsCallback(prior=4), CorruptionReportCallback("python")]
    trainer = Trainer(**TRAINER, callbacks=callbacks, logger=False)
    trainer.test(ClassifierModule(model), datamodule=CorruptionDataModule(folder, **DATA), verbose=False)
    of_yaml = cells_in("report")
    assert of_yaml["cells"].keys() == {"fog/3", "contrast/3"}
    assert (of_yaml["cells"], of_yaml["clean"]) == (cells_in("python")["cells"], cells_in("python")["clean"])
    assert main(["test", "--config", config]) == 0, "a second time too"


def test_the_command_line_overrides_files_and_later_files_earlier_ones(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = write_yaml(tmp_path / "later.yaml", data={"init_args": {"batch_size": 3, "seed": 5}})
    files = ["--config", config, "--config", later]
    line = ["--data.batch_size", "6", "--trainer.devices", "2", "--model.model.name", "cifar_resnet14"]
    line += ["--data.normalization", "[[0.5,0.5,0.5],[0.2,0.2,0.2]]", "--data.test", "shapes"]
    said = yaml.safe_load(printed_config(capsys, "test", *files, *line))
    data = said["data"]["init_args"]
    assert (data["batch_size"], data["seed"], data["severities"], data["test"]) == (6, 5, [3], "shapes")
    assert data["normalization"] == [[0.5, 0.5, 0.5], [0.2, 0.2, 0.2]]
    assert int(said["trainer"]["devices"]) == 2
    assert said["model"]["init_args"]["model"]["init_args"]["name"] == "cifar_resnet14"


def test_what_print_config_prints_loads_again(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = of_class("dynbn_lightning.datamodules.ShapesDataset", split="test", size=12)
    printed = printed_config(capsys, "test", "--config", config, "--data.source=null", f"--data.test={images}")
    (tmp_path / "printed.yaml").write_text(printed)
    assert printed_config(capsys, "test", "--config", "printed.yaml") == printed
    network = {"init_args": {"checkpoint": None, "pretrained": False, "num_classes": 10}}
    random = write_yaml(tmp_path / "random.yaml", model={"init_args": {"model": network}})
    assert main(["test", "--config", "printed.yaml", "--config", random]) == 0
    assert cells_in("report")["clean"]["images"] == 12


def test_the_yaml_of_the_documentation_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parent.parent / "docs" / "command_line.md"
    (example,) = [block.text for block in blocks_of(page) if block.file == "run.yaml"]
    (tmp_path / "page.yaml").write_text(example)
    said = yaml.safe_load(printed_config(capsys, "test", "--config", str(tmp_path / "page.yaml")))
    classes = [callback["class_path"] for callback in said["trainer"]["callbacks"]]
    assert classes == ["dynbn_lightning.DynamicBNCallback", "dynbn_lightning.CorruptionReportCallback"]
    assert said["data"]["init_args"]["test"]["class_path"] == "dynbn_lightning.datamodules.ImageNetC"
    assert said["seed_everything"] is True
    assert said["trainer"]["logger"] is False


def test_a_module_beside_the_yaml_with_a_checkpoint(config: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine_beside_yaml.py").write_text(OWN_MODULE)
    own = write_yaml(tmp_path / "own" / "own.yaml", model=of_class("mine_beside_yaml.Mine"))
    before = list(sys.path)
    assert main(["test", "--config", config, "--config", own]) == 0
    assert sys.path == before
    module = sys.modules["mine_beside_yaml"].Mine(width=8)
    trainer = Trainer(logger=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("own.ckpt")
    elsewhere = ["--config", config, "--config", own, "--trainer.callbacks.output", "of_checkpoint"]
    assert main(["test", *elsewhere, "--ckpt_path", "own.ckpt", "--model.width", "8"]) == 0
    assert cells_in("of_checkpoint")["clean"]["images"] == cells_in("report")["clean"]["images"] == 12
    nll = [cells_in(folder)["clean"]["nll"] for folder in ("of_checkpoint", "report")]
    assert nll[0] != nll[1]


def test_the_console_script_imports_from_the_current_folder(config: str, tmp_path: Path) -> None:
    (tmp_path / "mine_in_folder.py").write_text(OWN_MODULE)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "dynbn"  # what pip writes
    script.write_text("import sys\nfrom dynbn_lightning.cli import main\nsys.exit(main())\n")
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--model", "mine_in_folder.Mine"]
    command = [sys.executable, str(script), "test", "--config", config, *two]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Starting with 2 processes" in finished.stderr
    assert cells_in("report")["clean"]["images"] == 12
    assert json.loads(Path("report/results.json").read_text())["protocol"]["processes"] == 2


def test_fit_of_a_detector(config: str, folder: Path, tmp_path: Path) -> None:
    rows = ["clean", "fog", "contrast"]
    detector = write_yaml(
        tmp_path / "detector.yaml",
        model=of_class("dynbn_lightning.DetectorModule", rows=rows, hidden=8),
        data=of_class("dynbn_lightning.CorruptionDataModule", source=str(folder), **DATA),
        trainer={**TRAINER, "max_steps": 3, "logger": of_class("lightning.pytorch.loggers.CSVLogger", save_dir="logs")},
    )
    assert main(["fit", "--config", detector]) == 0
    (checkpoint,) = Path("logs").rglob("*.ckpt")
    assert load_detector(checkpoint).rows == tuple(rows)
    (kept,) = Path("logs").rglob("config.yaml")
    assert yaml.safe_load(kept.read_text())["model"]["init_args"]["hidden"] == 8
    version = ["--trainer.logger.version", "0", "--model.hidden", "4"]
    assert main(["fit", "--config", detector, *version]) == 0, "config.yaml is there already"
    assert yaml.safe_load(kept.read_text())["model"]["init_args"]["hidden"] == 4
    assert main(["fit", "--config", detector, "--trainer.logger", "false"]) == 0
    assert not Path("config.yaml").exists()
    assert main(["validate", "--config", detector, "--ckpt_path", str(checkpoint)]) == 0


def test_predict(config: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine_predicts.py").write_text(OWN_MODULE)
    writer = [of_class("mine_predicts.Writer", output="logits")]
    assert main(["predict", "--config", config, f"--trainer.callbacks={writer}", "--trainer.callbacks+=[]"]) == 0
    predicted = torch.cat([torch.load(path) for path in tmp_path.glob("logits-*.pt")])
    assert predicted.shape == (12 * 3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config FILE.yaml"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "broken.yaml"], "line 2"),
        (["--trainer.devices", "1"], "required: test.model"),
        (["RUN", "--model", "dynbn_lightning.ClassifierModul"], "has no attribute 'ClassifierModul'"),
        (["RUN", "--model", "no_such_module.Mine"], "model: no_such_module.Mine: No module named 'no_such_module'"),
        (["RUN", "--model.model", "dynbn_lightning.load_modl"], "no attribute 'load_modl'"),
        (["RUN", "--data.batch_sze", "4"], "dynbn_lightning.CorruptionDataModule: Option 'batch_sze'"),
        (["RUN", "--data.batch_size", "x"], "batch_size: expected int. Got value: x"),
        (["RUN", "--data.stream", "mixd"], "'mixed', 'sequential', 'continual', 'correlated']. Got value: mixd"),
        (["RUN", "--trainer.devces", "2"], "--trainer.devces"),
        (["RUN", "--data.corruptions", "[frog]"], "did you mean 'fog'"),
        (["RUN", "--data.source", "nowhere"], "no data folder"),
        (["RUN", "--data.normalization", "imagnet"], "did you mean 'imagenet'"),
        (["RUN", "--model.model.name", "cifar_resnet9"], "unknown model 'cifar_resnet9'"),
        (["RUN", "--model.model.checkpoint", "nowhere.pt"], "no checkpoint 'nowhere.pt'"),
        (
            ["RUN", "--trainer.callbacks", "dynbn_lightning.DynamicBNCallback", "--trainer.callbacks.bank", "no.bank"],
            "no.bank",
        ),
        (["RUN", "--trainer.strategy", "no_such_strategy"], "no_such_strategy"),
        (["RUN", "--ckpt_path", "nowhere.ckpt"], "there is no checkpoint 'nowhere.ckpt'"),
        (["RUN", "--ckpt_path", "other.ckpt"], "the checkpoint is not of the configured model"),
        (["RUN", "--trainer.callbacks.output", "run.yaml"], "is a file"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(
    arguments: list[str], message: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("model: [\n")
    torch.save({"state_dict": {"other": torch.ones(1)}, "pytorch-lightning_version": "2.6.0"}, "other.ckpt")
    given = ["--config", config, *arguments[1:]] if arguments[:1] == ["RUN"] else arguments
    assert main(["test", *given]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dynbn test: ")]
    assert message in line
    assert "Traceback" not in line
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ({"class_path": "mine_raises.Refusing"}, "no such thing"),
        (of_class("mine_raises.Mine", error="type"), "stopped"),
    ],
)
def test_errors_of_others_come_out_as_they_were_raised(
    model: dict[str, Any], error: str, config: str, tmp_path: Path
) -> None:
    (tmp_path / "mine_raises.py").write_text(OWN_MODULE)
    own = write_yaml(tmp_path / "own.yaml", model=model)
    with pytest.raises(TypeError, match=f"^{error}$"):
        main(["test", "--config", config, "--config", own])


def test_an_interrupt_ends_with_status_130(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine_stops.py").write_text(OWN_MODULE)
    own = write_yaml(tmp_path / "own.yaml", model=of_class("mine_stops.Mine", error="interrupt"))
    assert main(["test", "--config", config, "--config", own]) == 130
    assert "dynbn test: interrupted; what loggers and callbacks had written is kept" in capsys.readouterr().err


def test_help_of_the_command_lists_the_four_without_lightning() -> None:
    code = (
        "import sys; from dynbn_lightning.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("fit", "validate", "test", "predict"):
        assert f"\n    {name} " in finished.stdout


@pytest.mark.parametrize("name", ["fit", "validate", "test", "predict"])
def test_help_of_each_is_of_lightningcli(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: dynbn [options] {name}")
    for option in ("--config", "--print_config", "--trainer.devices", "--model", "--data", "--ckpt_path"):
        assert option in shown
