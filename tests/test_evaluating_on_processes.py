"""`evaluate` and the command line on several processes give the results of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "callbacks"))

from callback_models import FakeDetector
from methods_on_processes import make_tools, small_data
from reported_modules import CLASSES, SIZE, make_network, stored_images
from started_processes import failures, start

from dynbn_lightning import BNStatsBank, evaluate
from dynbn_lightning.reporting import method_blocks, read_results

METHODS = ("source", "batch_stats", "ema", "tent", "dynamic_bn/soft")
STREAMS = ("mixed", "sequential")
WORLDS = (2, 3)
IMAGES, BROKEN = 12, 5


def write_folder(folder: Path) -> Path:
    """Images of which one can't be read."""
    for index in range(IMAGES):
        path = folder / f"class{index % CLASSES}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if index == BROKEN:
            path.write_bytes(path.read_bytes()[:200])
    return folder


def run(folder: Path, output: str, methods: Any = METHODS, *, seed: int = 0, **options: Any) -> Any:
    network = make_network()
    bank = BNStatsBank.load(folder / "bank.safetensors", network)
    data = small_data(batch_size=2, seed=seed)
    return evaluate(
        network,
        data,
        methods=methods,
        streams=STREAMS,
        bank=bank,
        detector=FakeDetector(),
        output=folder / output,
        progress=False,
        accelerator="cpu",
        **options,
    )


def with_a_broken_image(folder: Path, **options: Any) -> Any:
    data = small_data(test=folder / "images", batch_size=2, on_error="skip", source=stored_images(20, 0))
    return evaluate(
        make_network(),
        data,
        methods=["source"],
        output=folder / "skipped",
        progress=False,
        accelerator="cpu",
        **options,
    )


def refusal(folder: Path, **options: Any) -> str:
    try:
        run(folder, "out", ["source"], seed=1, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def run_all(rank: int, world: int, folder: Path) -> None:
    options = {"devices": world, "strategy": "ddp"}
    first = run(folder, "out", METHODS[:3], **options)
    whole = run(folder, "out", **options)
    again = run(folder, "out", **options)
    skipped = with_a_broken_image(folder, **options)
    found = {"first": first, "whole": whole, "again": again, "skipped": skipped, "told": refusal(folder, **options)}
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module", params=WORLDS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("evaluated")
    make_tools(folder)
    write_folder(folder / "images")
    start(request.param, run_all, folder)
    assert failures(folder) == []
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


def numbers(results: Any) -> dict[tuple[str, str], Any]:
    return {
        (stream, method): (block["clean"], block["cells"], block.get("detection"), block.get("same_as"))
        for stream, _, method, block in method_blocks(results)
    }


def test_every_process_returns_the_results_of_one(found, tmp_path):
    folder, of_ranks = found
    make_tools(tmp_path)
    alone = numbers(run(tmp_path, "out"))
    assert set(alone) == {(stream, method) for stream in STREAMS for method in METHODS}
    for its in of_ranks:
        several = numbers(its["whole"])
        assert set(several) == set(alone)
        for piece, expected in alone.items():
            assert several[piece] == expected or piece[1] == "tent", piece
        assert its["whole"] == of_ranks[0]["whole"]
    assert read_results(folder / "out")["settings"]["processes"] == len(of_ranks)
    assert read_results(folder / "out")["missing"] == []


def test_finished_methods_are_not_run_again(found):
    _, of_ranks = found
    for its in of_ranks:
        assert its["again"]["runs"] == its["whole"]["runs"]
        for run_then, run_now in zip(its["first"]["runs"], its["whole"]["runs"], strict=True):
            assert run_then["methods"].items() <= run_now["methods"].items()


def test_images_that_cannot_be_read_are_counted_over_all_processes(found, tmp_path):
    _, of_ranks = found
    write_folder(tmp_path / "images")
    alone = with_a_broken_image(tmp_path)
    for its in of_ranks:
        assert numbers(its["skipped"]) == numbers(alone)
        (block,) = (block for *_, block in method_blocks(its["skipped"]))
        assert block["skipped"] == 5, "one image in five cells"
        assert block["clean"]["images"] == IMAGES - 1


def test_what_the_first_process_refuses_is_refused_on_all(found):
    _, of_ranks = found
    told = [its["told"] for its in of_ranks]
    assert told[0].startswith("DataError: ")
    assert all("data.seed: 0 there, 1 here" in message for message in told)


def test_the_commands_start_processes_themselves(tmp_path):
    options = ["--source", "shapes", "--corruptions", "fog", "--severities", "3", "--batch-size", "200"]
    network = ["--model", "cifar_resnet8", "--checkpoint", "model.safetensors", "--normalization", "half"]
    tools = ["--bank", "run/bank.safetensors", "--detector", "run/detector.ckpt", "--output", "run"]
    script = (
        "import torch; from safetensors.torch import save_file; from dynbn_lightning import load_model; "
        "torch.manual_seed(0); model = load_model('cifar_resnet8', pretrained=False); "
        "save_file(model.state_dict(), 'model.safetensors')"
    )
    commands = [
        [sys.executable, "-c", script],
        ["detector", "fit", *options, "--epochs", "1", "--devices", "2", "--output", "run"],
        ["bank", "build", *network, *options, "--images-per-row", "600", "--devices", "2", "--output", "run"],
        ["evaluate", *network, *options, *tools, "--methods", "source,ema,dynamic_bn/soft", "--devices", "2"],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in commands:
        if command[0] != sys.executable:
            command = [sys.executable, "-m", "dynbn_lightning.cli", *command, "--accelerator", "cpu"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report.html") == 1
    results = read_results(tmp_path / "run")
    assert results["settings"]["processes"] == 2
    assert {method for *_, method, _ in method_blocks(results)} == {"source", "ema", "dynamic_bn/soft"}
    assert all(block["clean"]["images"] == 1000 for *_, block in method_blocks(results))
