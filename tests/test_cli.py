"""The `dynbn` command on tiny data: what it writes, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_data import DATA, model_options, write_folder
from PIL import Image

from dynbn_lightning import BNStatsBank, DetectorModule, load_model
from dynbn_lightning.cli import main
from dynbn_lightning.modules import ClassifierModule
from dynbn_lightning.reporting import accuracies, methods_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


def test_detector_bank_evaluate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path)
    cpu = ["--output", out, "--accelerator", "cpu", *DATA]
    assert main(["detector", "fit", "--source", str(folder), "--epochs", "2", *cpu]) == 0
    detector = DetectorModule.load_from_checkpoint(tmp_path / "detector.ckpt", weights_only=True)
    assert detector.rows == ("clean", "gaussian_noise", "contrast")

    assert main(["bank", "build", *model_options(folder), "--images-per-row", "30", *cpu]) == 0
    model = load_model("cifar_resnet8", folder / "net.pt")
    bank = BNStatsBank.load(tmp_path / "bank.safetensors", model)
    assert bank.rows == detector.rows
    assert bank.provenance["image_counts"] == {"gaussian_noise": 30, "contrast": 30}

    files = ["--bank", f"{out}/bank.safetensors", "--detector", f"{out}/detector.ckpt"]
    methods = ["source", "batch_stats", "dynamic_bn/hard", "dynamic_bn/soft", "oracle"]
    choice = ["--methods", ",".join(methods), "--stream", "mixed,sequential", "--batch-size", "16,5"]
    assert main(["evaluate", *model_options(folder), *files, *cpu, *choice]) == 0
    assert f"{out}/report.html" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["schema_version"] == 3
    assert [(run["stream"], run["batch_size"]) for run in results["runs"]] == [
        ("mixed", 16),
        ("sequential", 16),
        ("mixed", 5),
        ("sequential", 5),
    ]
    for run in results["runs"]:
        assert list(run["methods"]) == methods
        for block in run["methods"].values():
            assert list(block["cells"]) == ["gaussian_noise/3", "gaussian_noise/5", "contrast/3", "contrast/5"]
            assert block["mean"]["accuracy"] == pytest.approx(sum(accuracies(block).values()) / 4)
            assert 0 <= block["clean"]["accuracy"] <= 1
    large, small = methods_of(results, "mixed", 16), methods_of(results, "mixed", 5)
    for method in ("source", "dynamic_bn/hard", "dynamic_bn/soft", "oracle"):
        assert accuracies(large[method]) == pytest.approx(accuracies(small[method])), "each image by itself"
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert sum("| batch_stats |" in line and line.startswith(("| mixed |", "| sequential |")) for line in lines) == 4
    assert results["protocol"]["test_images"] == 12
    assert results["missing"] == []
    assert results["protocol"]["checkpoint"] == "net.pt"

    (tmp_path / "one").mkdir()
    single = ["--methods", "source", "--output", str(tmp_path / "one"), *DATA]
    assert main(["evaluate", *model_options(folder), *single]) == 0
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert [list(run["methods"]) for run in results["runs"]] == [["source"]]


def test_corrupt(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["corrupt", "--source", str(folder), "--accelerator", "cpu", *DATA]
    assert main([*command, "--output", str(tmp_path / "c")]) == 0
    assert "12 images in 4 cells, cifar layout; 48 images written" in " ".join(capsys.readouterr().out.split())
    images, labels = np.load(tmp_path / "c" / "contrast.npy"), np.load(tmp_path / "c" / "labels.npy")
    assert images.shape == (24, 32, 32, 3)
    assert labels.tolist() == [0] * 6 + [1] * 6 + [0] * 6 + [1] * 6  # bright, dark
    assert main([*command, "--output", str(tmp_path / "c")]) == 0
    assert "whole already" in " ".join(capsys.readouterr().out.split())

    png = ["--layout", "imagenet", "--image-format", "png", "--output", str(tmp_path / "i")]
    assert main([*command, *png]) == 0
    for index, path in enumerate(sorted((tmp_path / "i" / "contrast" / "5").rglob("*.png"))):
        assert np.array_equal(np.array(Image.open(path)), images[12 + index])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corruptions", "frog"], "did you mean 'fog'"),
        (["--severities", "1,1"], "different"),
        (["--source", "nowhere"], "no data folder"),
        (["--image-format", "png"], "for the imagenet layout"),
        (["--output", "OUTPUT/in"], "lies in the source folder"),
    ],
)
def test_corrupt_with_bad_input(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.replace("OUTPUT", str(folder)) for argument in arguments]
    assert main(["corrupt", "--source", str(folder), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (folder / "in").exists()


def test_corrupt_of_another_set_in_the_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["corrupt", "--source", str(folder), "--output", str(tmp_path), *DATA]
    assert main(command) == 0
    assert main([*command, "--seed", "1"]) == 2
    assert "seed 0 there, 1 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--methods", "sauce"], "did you mean 'source'"),
        (["evaluate", "--methods", "dynamic_bn/soft"], "needs a bank"),
        (["evaluate", "--methods", "source", "--stream", "mix"], "did you mean 'mixed'"),
        (["evaluate", "--methods", "oracle", "--bank", "nowhere.safetensors"], "no bank at nowhere.safetensors"),
        (["evaluate", "--methods", "source", "--corruptions", "frog"], "did you mean 'fog'"),
        (["evaluate", "--methods", "source", "--severities", "6"], "severity 6"),
        (["bank", "build", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["bank", "build", "--normalization", "imagnet"], "did you mean 'imagenet'"),
        (["bank", "build", "--model", "cifar_resnet21"], "did you mean 'cifar_resnet"),
        (["bank", "build", "--source", "nowhere"], "no data folder"),
        (["evaluate", "--methods", "source", "--stream", "mixed,mixed"], "different streams"),
        (["evaluate", "--methods", "source,source"], "different methods"),
        (["evaluate", "--methods", "source", "--severities", "5,5"], "different"),
        (["bank", "build", "--model", "timm:convnext_atto", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_message(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = 1 if arguments[0] == "evaluate" else 2
    command = [*arguments[:words], *model_options(folder), "--output", str(tmp_path / "out"), *arguments[words:]]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "out").exists(), "nothing is written before input is known to be good"


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "dynbn_lightning.cli"]
    finished = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("usage: dynbn")
    for name in ("demo", "detector", "bank", "calibrate", "refine", "evaluate", "figures", "corrupt"):
        assert name in finished.stdout
    refused = subprocess.run([*command, "figures", "--output", "nowhere"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "dynbn figures: figures are drawn from" in refused.stderr


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["detector"],
        ["detector", "fit"],
        ["bank"],
        ["bank", "build"],
        ["calibrate"],
        ["refine"],
        ["evaluate"],
        ["figures"],
        ["corrupt"],
    ],
)
def test_help_answers_without_importing_lightning(command: list[str]) -> None:
    code = (
        "import sys; from dynbn_lightning.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "finally: assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: dynbn" in finished.stdout


def test_a_missing_required_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--output", "x"])
    assert "--model" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--epochs 0", "--epochs -1", "--batch-size x", "--accelerator gpuu"])
def test_options_out_of_range_are_named(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["detector", "fit", "--output", str(tmp_path), *option.split()])
    assert option.split()[0] in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    command = ["evaluate", *model_options(folder), "--methods", "source", "--output", str(tmp_path / "taken" / "sub")]
    assert main(command) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def interrupted(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_ends_with_status_130(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bank", "build", *model_options(folder), "--output", str(tmp_path), *DATA]
    with monkeypatch.context() as patched:
        patched.setattr("dynbn_lightning.batchnorm.bank.collect_statistics", interrupted)
        assert main(command) == 130
    assert "interrupted; finished rows are kept, and the same command goes on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # none was finished


def test_an_interrupted_corrupt_says_how_to_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["corrupt", "--source", str(folder), "--output", str(tmp_path), *DATA]
    with monkeypatch.context() as patched:
        patched.setattr("dynbn_lightning.corrupted_set.batches.corrupt_pixels", interrupted)
        assert main(command) == 130
    assert "whole files are kept, and the same command goes on" in capsys.readouterr().err
    assert not list(tmp_path.glob("contrast*"))
    assert main(command) == 0
    assert (tmp_path / "contrast.npy").exists()


def test_an_interrupted_evaluation_is_reported_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", *model_options(folder), "--methods", "source,batch_stats"]
    command += ["--output", str(tmp_path), "--accelerator", "cpu", *DATA]
    steps = 0
    own_step = ClassifierModule.test_step

    def step(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        return interrupted() if steps == 2 + 4 + 3 else own_step(*args)  # rehearsed twice, one method done

    with monkeypatch.context() as patched:
        patched.setattr("dynbn_lightning.modules.ClassifierModule.test_step", step)
        assert main(command) == 130
    error = capsys.readouterr().err
    assert "what is finished is kept and the same command goes on; `dynbn report` shows what there is" in error
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "images", "examples"}

    assert main(["report", str(tmp_path)]) == 0
    missing = "batch_stats on the mixed stream in batches of 16"
    for name in ("report.html", "results.md", "results.tex"):
        text = (tmp_path / name).read_text().replace("\\_", "_")
        assert missing in text, name
    assert main(command) == 0
    assert missing not in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["missing"] == []

    other = tmp_path / "other"
    assert main(["evaluate", *command[1:], "--seed", "1"]) == 2
    assert "seed: 0 there, 1 here" in capsys.readouterr().err
    assert main(["evaluate", *command[1:], "--seed", "1", "--output", str(other)]) == 0
    assert main(["report", str(tmp_path), str(other)]) == 2
    assert "--output" in capsys.readouterr().err
    assert main(["report", str(tmp_path), str(other), "--output", str(tmp_path / "both")]) == 0
    assert "other: batch_stats" in (tmp_path / "both" / "results.md").read_text()
    assert main(["report", str(tmp_path), "--baseline", "alexnett"]) == 2
    assert "did you mean 'alexnet'" in capsys.readouterr().err


def test_what_is_forgotten_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model = ["--model", "cifar_resnet8", "--checkpoint", str(folder / "net.pt"), "--normalization", "none"]
    assert main(["evaluate", *model, "--detector", "detector.ckpt", "--output", str(tmp_path)]) == 2
    assert "--detector is of no use without --bank" in capsys.readouterr().err
    few = ["--corruptions", "fog", "--severities", "3", "--epochs", "1", "--network", "prototype"]
    assert main(["detector", "fit", *few, "--output", str(tmp_path), "--accelerator", "cpu"]) == 0
    assert "no --source is given: these are the embedded shapes" in {str(one.message) for one in recwarn}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("dynbn-lightning 0.")
