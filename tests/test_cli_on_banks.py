"""The `dynbn` command on a detector and a bank: calibrating, refining, evaluating by default, drawing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_data import DATA, model_options, write_folder
from PIL import Image

from dynbn_lightning import BNStatsBank, DetectorModule, QuantileBank, load_model
from dynbn_lightning.cli import main
from dynbn_lightning.detection import NearestPrototype
from dynbn_lightning.reporting import methods_of, read_results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a detector and a bank."""
    made = tmp_path_factory.mktemp("made")
    cpu = ["--output", str(made), "--accelerator", "cpu", *DATA]
    assert main(["detector", "fit", "--source", str(folder), "--epochs", "2", *cpu]) == 0
    assert main(["bank", "build", *model_options(folder), "--images-per-row", "30", *cpu]) == 0
    return made


def files_of(made: Path) -> list[str]:
    return ["--bank", str(made / "bank.safetensors"), "--detector", str(made / "detector.ckpt")]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without line breaks."""
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.filterwarnings("ignore:calibration gained nothing")
def test_calibrate_refine_evaluate(
    folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, given = load_model("cifar_resnet8", folder / "net.pt"), BNStatsBank.load(made / "bank.safetensors")
    before = (made / "bank.safetensors").read_bytes()
    capsys.readouterr()
    cpu = ["--accelerator", "cpu", *DATA]
    calibrating = ["calibrate", *model_options(folder), *files_of(made), "--images", "128", *cpu]
    assert main([*calibrating, "--output", str(tmp_path / "calibrated")]) == 0
    shown = printed(capsys)
    assert "on held-out training images in random cells, %" in shown
    assert "calibrated; the detector's temperature is" in shown
    calibrated = BNStatsBank.load(tmp_path / "calibrated" / "bank.safetensors", model)
    assert calibrated.calibration is not None
    assert not calibrated.refined
    assert torch.equal(calibrated.mean, given.mean)
    provenance = calibrated.calibration.provenance
    assert (provenance["criterion"], provenance["images"]) == ("consistency", 128)
    assert calibrated.calibration.novelty_limit is not None
    assert set(provenance["check"]) == {"source", "uncalibrated", "calibrated"}
    assert (made / "bank.safetensors").read_bytes() == before

    bank = ["--bank", str(tmp_path / "calibrated" / "bank.safetensors")]
    refining = ["refine", *model_options(folder), *bank, "--images", "64", "--criterion", "consistency", *cpu]
    assert main([*refining, "--output", str(tmp_path / "refined")]) == 0
    assert "2 rows refined on 64 corrupted training images" in printed(capsys)
    refined = BNStatsBank.load(tmp_path / "refined" / "bank.safetensors", model)
    assert refined.refined
    assert refined.calibration is not None
    assert torch.equal(refined.calibration.source_share, calibrated.calibration.source_share)
    assert refined.provenance["refined"]["criterion"] == "consistency"

    plain = ["source", "batch_stats"]
    for name, methods in (
        ("calibrated", [*plain, "dynamic_bn/calibrated"]),
        ("refined", [*plain, "dynamic_bn/calibrated", "dynamic_bn/refined"]),
    ):
        out = tmp_path / name
        files = ["--bank", str(out / "bank.safetensors"), "--detector", str(made / "detector.ckpt")]
        assert main(["evaluate", *model_options(folder), *files, *cpu, "--output", str(out)]) == 0
        results = json.loads((out / "results.json").read_text())
        assert list(methods_of(results)) == methods
        assert results["protocol"]["calibration"]["images"] == 128
    assert methods_of(results)["dynamic_bn/refined"]["refined"] is True
    assert results["protocol"]["bank"]["refined"]["images"] == 64


def test_by_default_a_bank_that_is_not_calibrated_is_evaluated_softly(folder: Path, made: Path, tmp_path: Path) -> None:
    data = ["--corruptions", "gaussian_noise,contrast", "--severities", "3,5", "--batch-size", "32"]
    assert main(["evaluate", *model_options(folder), *files_of(made), *data, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(methods_of(results)) == ["source", "batch_stats", "dynamic_bn/soft"]


def test_a_prototype_is_gathered_in_one_epoch(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["detector", "fit", "--source", str(folder), "--output", str(tmp_path), "--accelerator", "cpu", *DATA]
    assert main([*command, "--network", "prototype"]) == 0
    assert "3 rows, accuracy" in printed(capsys)
    detector = DetectorModule.load_from_checkpoint(tmp_path / "detector.ckpt", weights_only=True)
    assert isinstance(detector.network, NearestPrototype)
    assert detector.rows == ("clean", "gaussian_noise", "contrast")
    assert detector.network.counts.sum() == 72, "each training image once, none held out"


def _check_that_quantiles_go_on_without_the_bank(command: list[str], folder: Path) -> None:
    """Where a build was interrupted in the quantiles, the bank was finished and is not collected again."""
    whole = (folder / "quantiles.safetensors").read_bytes()
    before = (folder / "bank.safetensors").stat().st_mtime_ns
    (folder / "quantiles.safetensors").rename(folder / "quantiles.unfinished.safetensors")
    assert main(command) == 0
    assert (folder / "quantiles.safetensors").read_bytes() == whole
    assert (folder / "bank.safetensors").stat().st_mtime_ns == before
    assert not (folder / "quantiles.unfinished.safetensors").exists()


def test_all_methods_on_streams_and_batch_sizes_in_one_command(
    folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--output", str(tmp_path), "--accelerator", "cpu", *DATA]
    build = ["bank", "build", *model_options(folder), "--images-per-row", "30", "--quantile-count", "8"]
    assert main([*build, *data]) == 0
    assert "8 quantiles of each channel in the same rows" in printed(capsys)
    _check_that_quantiles_go_on_without_the_bank([*build, *data], tmp_path)
    quantiles = tmp_path / "quantiles.safetensors"
    assert QuantileBank.load(quantiles).quantiles.shape[::2] == (3, 8)

    methods = ["source", "batch_stats", "few_shot", "ema", "distribution_matching", "unmix_tns", "tent", "dynamic_bn"]
    choice = ["--methods", ",".join(methods), "--stream", "mixed,sequential", "--batch-size", "1,16,200"]
    evaluate = ["evaluate", *model_options(folder), *files_of(made), *data]
    assert main([*evaluate, *choice]) == 0
    assert "unmix_tns" in printed(capsys)
    results = read_results(tmp_path)
    places = [(run["stream"], run["batch_size"]) for run in results["runs"]]
    assert places == [(stream, size) for size in (1, 16, 200) for stream in ("mixed", "sequential")]
    assert all(list(run["methods"]) == methods for run in results["runs"])
    lines = (tmp_path / "results.md").read_text().splitlines()
    (heading,) = (line for line in lines if line.startswith("| stream | batch | method | mean | severity 3 | "))
    assert heading.endswith(" needs |")
    assert sum(line.startswith(("| mixed |", "| sequential |")) for line in lines) == 6 * len(methods)

    on_top = ["--methods", "distribution_matching/dynamic_bn"]
    assert main([*evaluate, *on_top]) == 2
    assert "dynbn bank build --quantile-count" in "".join(capsys.readouterr().err.split("\n"))
    assert main([*evaluate, *on_top, "--quantiles", str(quantiles)]) == 0
    gathered = methods_of(read_results(tmp_path), "mixed", 16)  # of DATA's batch size
    assert list(gathered) == [*methods, "distribution_matching/dynamic_bn"]


def test_figures(folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(
        json.dumps(
            {
                "schema_version": 3,
                "protocol": {},
                "missing": [],
                "runs": [
                    {
                        "stream": "mixed",
                        "batch_size": 16,
                        "methods": {
                            "source": {
                                "clean": {"accuracy": 0.9},
                                "cells": {"contrast/3": {"accuracy": 0.8}, "contrast/5": {"accuracy": 0.5}},
                                "mean": {"accuracy": 0.65},
                            }
                        },
                    }
                ],
            }
        )
    )
    capsys.readouterr()
    detector = ["--detector", str(made / "detector.ckpt")]
    for arguments, names in (
        (["--results", str(tmp_path)], ["severity"]),
        (["--source", str(folder), "--images", "3", *DATA], ["spectra"]),
        (
            ["--results", str(tmp_path), "--source", str(folder), *detector, "--images", "3", *DATA],
            ["severity", "spectra", "confusion", "reliability"],
        ),
    ):
        out = tmp_path / str(len(names)) / names[0]
        assert main(["figures", "--output", str(out), "--accelerator", "cpu", *arguments]) == 0
        assert sorted(path.name for path in out.iterdir()) == sorted(f"{name}.png" for name in names)
        shown = capsys.readouterr().out.replace("\n", "")
        for path in out.iterdir():
            assert str(path) in shown
            with Image.open(path) as image:
                assert min(image.size) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "--seed", "1"], "collected with seed 0, this data has 1"),
        (["calibrate", "--corruptions", "contrast"], "the bank has 3 rows, the data has 2"),
        (["calibrate", "--row-per", "cell"], "the bank has 3 rows, the data has 5"),
        (["calibrate", "--bank", "nowhere.safetensors"], "no bank at nowhere.safetensors"),
        (["calibrate", "--detector", "nowhere.ckpt"], "no detector checkpoint at nowhere.ckpt"),
        (["calibrate", "--source", "shapes"], "collected with source"),
        (["refine", "--seed", "1"], "collected with seed 0, this data has 1"),
        (["refine", "--normalization", "half"], "collected with normalization"),
        (["refine", "--bank", "nowhere.safetensors"], "no bank at nowhere.safetensors"),
        (["evaluate", "--methods", "dynamic_bn/calibrated"], "needs a calibrated bank: calibrate it with `dynbn cal"),
        (
            ["evaluate", "--methods", "oracle/calibrated"],
            "needs a calibrated bank: calibrate it with `dynbn calibrate`",
        ),
    ],
)
def test_a_bank_and_data_that_do_not_fit_are_refused(
    arguments: list[str], message: str, folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *others = arguments
    files = files_of(made)[: 2 if command == "refine" else 4]
    out = tmp_path / "out"
    assert main([command, *model_options(folder), *files, *DATA, "--output", str(out), *others]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "figures are drawn from --results, --source, or --detector with --source"),
        (["--detector", "nowhere.ckpt"], "figures are drawn from"),
        (["--source", "SOURCE", "--detector", "nowhere.ckpt"], "no detector checkpoint at nowhere.ckpt"),
        (["--source", "SOURCE", "--detector", "DETECTOR"], "the detector's rows are not those of the data"),
        (["--source", "SOURCE", "--bank", "nowhere.safetensors"], "no bank at nowhere.safetensors"),
        (["--results", "nowhere"], "nowhere"),
        (["--source", "nowhere"], "no data folder"),
    ],
)
def test_figures_of_nothing_are_refused(
    arguments: list[str], message: str, folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"SOURCE": str(folder), "DETECTOR": str(made / "detector.ckpt")}
    arguments = [places.get(argument, argument) for argument in arguments]
    assert main(["figures", "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "missing"), [("calibrate", "--detector"), ("calibrate", "--bank"), ("refine", "--bank")]
)
def test_files_that_commands_need_are_named(
    command: str, missing: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = files_of(made)[: 2 if command == "refine" else 4]
    place = files.index(missing)
    with pytest.raises(SystemExit, match="2"):
        main([command, "--model", "cifar_resnet8", "--output", "x", *files[:place], *files[place + 2 :]])
    assert f"the following arguments are required: {missing}" in capsys.readouterr().err
