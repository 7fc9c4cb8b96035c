"""`dynbn evaluate --released`: the images of a released set, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_data import model_options, write_folder

from dynbn_lightning.cli import main
from dynbn_lightning.cli.options import RELEASED_SETS
from dynbn_lightning.datamodules import released
from dynbn_lightning.reporting import methods_of, read_results

CORRUPTED = ["--corruptions", "gaussian_noise,contrast", "--severities", "3,5", "--seed", "0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_folder(root / "images")
    layout = ["--layout", "cifar", "--output", str(root / "CIFAR-10-C")]
    assert main(["corrupt", "--source", str(root / "images"), *layout, *CORRUPTED, "--accelerator", "cpu"]) == 0
    return root


def evaluate(root: Path, output: Path, *options: str) -> int:
    network = model_options(root / "images")
    network = network[network.index("--model") :]
    where = ["--root", str(root), "--output", str(output), "--accelerator", "cpu", "--methods", "source"]
    return main(["evaluate", *network, *where, *options])


def test_the_released_images_give_what_the_same_corruption_gives(root: Path, tmp_path: Path) -> None:
    clean = ["--clean", str(root / "images" / "test")]
    assert evaluate(root, tmp_path / "released", "--released", "cifar10-c", *clean) == 0
    assert evaluate(root, tmp_path / "made", "--source", str(root / "images"), *CORRUPTED) == 0
    found = [methods_of(read_results(tmp_path / name))["source"] for name in ("released", "made")]
    assert list(found[0]["cells"]) == ["gaussian_noise/3", "gaussian_noise/5", "contrast/3", "contrast/5"]
    assert found[0]["cells"] == found[1]["cells"]
    assert len({cell["nll"] for cell in found[0]["cells"].values()}) == 4
    data = read_results(tmp_path / "released")["settings"]["data"]
    assert data["corrupted_by"].startswith("dynbn corrupt")


def test_a_subset_and_some_cells(root: Path, tmp_path: Path) -> None:
    some = ["--subset", "5", "--corruptions", "contrast", "--severities", "5"]
    assert evaluate(root, tmp_path, "--released", "cifar10-c", *some) == 0
    results = read_results(tmp_path)
    block = methods_of(results)["source"]
    assert {name: cell["images"] for name, cell in block["cells"].items()} == {"contrast/5": 5}
    assert block["clean"] is None


def test_names_on_the_command_line_are_those_of_the_readers() -> None:
    assert tuple(released.RELEASED_SETS) == RELEASED_SETS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subset", "5"], "--subset are for released sets: name one with --released"),
        (["--released", "cifar10-c", "--corruptions", "fog"], "fog"),
        (["--released", "cifar10-c-bar"], "CIFAR-10-C-Bar"),
        (["--released", "cifar10-c-bar", "--download"], "make_cifar10_c_bar.py"),
    ],
)
def test_what_is_not_there_is_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert evaluate(root, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
