"""TENT, BN-1 and UnMix-TNS beside their authors' code: the same network, images, batches and order, in one run.

    git clone https://github.com/DequanWang/tent; git clone https://github.com/devavratTomar/unmixtns
    DYNBN_DATA=../shared/data python benchmarks/method_peers.py --tent tent --unmixtns unmixtns/tta_experiments \
        --output results/method_peers

The peers' files are imported from where they lie and are no part of this repository. A folder may also be a bare git
directory (`--tent repo.git`), whose newest commit is read. Streams are of ResNet-20 at severity 5, in batches of 200:
`sequential` begins anew with each cell, `mixed` has all cells shuffled. Prints top-1 accuracies, mean over the 15
corruptions, and on how many images the two predictions differ; writes DIR/results.json.

UnMix-TNS begins with random components, so each side is run with several seeds, and, on the mixed stream, once with the
same components.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from dynbn_lightning import (
    BatchStatsCallback,
    ClassifierModule,
    CorruptionDataModule,
    TentCallback,
    UnMixTNSCallback,
    load_model,
)
from dynbn_lightning.datamodules.batches import batch_info_of
from dynbn_lightning.files import whole_file
from dynbn_lightning.fitting import bare_trainer, quiet_lightning

Predictions = dict[tuple[str, int], int]
BATCH_SIZE = 200


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--tent", type=Path, help="folder with the authors' tent.py and norm.py")
    parser.add_argument("--unmixtns", type=Path, help="folder with the authors' unmixtns.py")
    parser.add_argument("--unmixtns-path", default="tta_experiments", help="where it lies in a git directory")
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet32", "resnet56"])
    parser.add_argument("--corruptions", help="names with commas between them; the benchmark's 15 if not given")
    parser.add_argument("--seeds", type=int, default=3, help="runs of UnMix-TNS")
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    if options.tent is None and options.unmixtns is None:
        parser.error("nothing to compare with: pass --tent, --unmixtns or both")
    return options


def peer(folder: Path, inside: str, name: str) -> ModuleType:
    """A peer's module, from a folder or from the newest commit of a bare git directory."""
    if (folder / f"{name}.py").is_file():
        source = (folder / f"{name}.py").read_text()
    else:
        path = f"{inside}/{name}.py" if inside else f"{name}.py"
        command = ["git", f"--git-dir={folder}", "show", f"HEAD:{path}"]
        source = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with TemporaryDirectory() as temporary:
        file = Path(temporary, f"{name}.py")
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(f"peer_{name}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


class Collect(Callback):
    """Remembers the batches of a run, and the predictions of a model that notes its logits."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Tensor, list[tuple[str, int]]]] = []
        self.predictions: Predictions = {}
        self.logits: list[Tensor] = []

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Remember the batch."""
        info = batch_info_of(trainer)
        assert info is not None
        self.batches.append((dataloader_idx, batch[0].clone(), list(zip(info.names, info.indices, strict=True))))
        self.logits.clear()

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        """Remember what was predicted."""
        # The first forward after the batch began is the step's own (TENT's adapting one has not run yet).
        classes = self.logits[0].argmax(1).tolist()
        self.predictions |= dict(zip(self.batches[-1][2], classes, strict=True))


def ours(model: nn.Module, data: CorruptionDataModule, callbacks: list[Callback]) -> Collect:
    """Run a method of this package on a stream."""
    collect = Collect()
    handle = model.register_forward_hook(lambda module, inputs, output: collect.logits.append(output.detach()))
    try:
        with quiet_lightning():
            trainer = bare_trainer(
                callbacks=[collect, *callbacks], accelerator="cpu", inference_mode=False, enable_progress_bar=False
            )
            trainer.test(ClassifierModule(model), datamodule=data, verbose=False)
    finally:
        handle.remove()
    return collect


def theirs(batches: list[Any], make: Callable[[], Callable[[Tensor], Tensor]]) -> Predictions:
    """Run an authors' model, made anew for each dataloader, on the same batches."""
    predictions: Predictions = {}
    last, model = None, None
    for loader, images, keys in batches:
        if loader != last:
            last, model = loader, make()
        assert model is not None
        predictions |= dict(zip(keys, model(images).argmax(1).tolist(), strict=True))
    return predictions


def accuracy(predictions: Predictions, labels: list[int]) -> float:
    """Mean over the corruptions, clean left out."""
    right: dict[str, list[bool]] = {}
    for (cell, index), predicted in predictions.items():
        right.setdefault(cell, []).append(predicted == labels[index])
    return statistics.mean(statistics.mean(values) for cell, values in right.items() if cell != "clean")


def main() -> int:
    options = arguments()
    (checkpoint,) = (options.data / "weights").glob(f"{options.network}-*.th")
    model = load_model(f"cifar_{options.network}", checkpoint)
    corruptions = {"corruptions": options.corruptions.split(",")} if options.corruptions else {}
    rows: list[dict[str, Any]] = []

    def authors(make: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> Callable[[], Callable[[Tensor], Tensor]]:
        return lambda: make(copy.deepcopy(model))

    pairs: list[tuple[str, int, Callable[[int], Callback], Callable[[], Callable[[Tensor], Tensor]]]] = []
    if options.tent is not None:
        tent, norm = (peer(options.tent, "", name) for name in ("tent", "norm"))

        def make_tent(network: nn.Module) -> Callable[[Tensor], Tensor]:
            network = tent.configure_model(network)
            parameters, _ = tent.collect_params(network)
            return tent.Tent(network, torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0))

        pairs.append(("BN-1", 1, lambda seed: BatchStatsCallback(), authors(lambda network: norm.Norm(network.eval()))))
        pairs.append(("TENT", 1, lambda seed: TentCallback(), authors(make_tent)))
    if options.unmixtns is not None:
        unmixtns = peer(options.unmixtns, options.unmixtns_path, "unmixtns")

        def make_unmix(network: nn.Module) -> nn.Module:
            return unmixtns.replace_bn_layers(network.eval(), K=16, bs=BATCH_SIZE, bs_max=64)

        pairs.append(
            ("UnMix-TNS", options.seeds, lambda seed: UnMixTNSCallback(seed=seed), authors(make_unmix)),
        )
    for stream in ("sequential", "mixed"):
        data = CorruptionDataModule(
            options.data / "cifar10",
            normalization=model.input_normalization,
            severities=[5],
            batch_size=BATCH_SIZE,
            stream=stream,
            **corruptions,
        )
        labels = data.test_images.labels
        source = accuracy(ours(model, data, []).predictions, labels)
        for name, seeds, callback, make in pairs:
            found: dict[str, list[float]] = {"ours": [], "theirs": []}
            differ = 0
            for seed in range(seeds):
                run = ours(model, data, [callback(seed)])
                torch.manual_seed(seed)
                with torch.enable_grad() if name == "TENT" else torch.no_grad():
                    other = theirs(run.batches, make)
                found["ours"].append(accuracy(run.predictions, labels))
                found["theirs"].append(accuracy(other, labels))
                differ += sum(other[key] != run.predictions[key] for key in other)
            row = {"stream": stream, "method": name, "source": source, **found, "differ": differ / seeds}
            rows.append({**row, "predictions": len(other)})
            print(line(rows[-1]), flush=True)
        if options.unmixtns is not None and stream == "mixed":
            network = make_unmix(copy.deepcopy(model))
            begun = UnMixTNSCallback()
            begun.load_state_dict({"layers": components_of(network)})
            run = ours(model, data, [begun])
            with torch.no_grad():
                other = theirs(run.batches, partial(copy.copy, network))
            row = {"stream": stream, "method": "UnMix-TNS, the same components", "source": source}
            row |= {"ours": [accuracy(run.predictions, labels)], "theirs": [accuracy(other, labels)]}
            differ = sum(other[key] != run.predictions[key] for key in other)
            rows.append({**row, "differ": differ, "predictions": len(other)})
            print(line(rows[-1]), flush=True)
    results = {
        "protocol": {
            "network": options.network,
            "severity": 5,
            "batch_size": BATCH_SIZE,
            "test_images": len(labels),
            "torch": torch.__version__,
            "corruptions": list(data.corruptions),
        },
        "rows": rows,
    }
    with whole_file(options.output / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    print(
        "| stream | source | method | ours | authors' code | predictions that differ |\n|---|---:|---|---:|---:|---:|"
    )
    print("\n".join(line(row) for row in rows))
    return 0


def components_of(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The components of the authors' layers, as the state of ours."""
    return {
        f"model.{name}": {"mean": layer.running_means_mat.clone(), "var": layer.running_vars_mat.clone()}
        for name, layer in network.named_modules()
        if hasattr(layer, "running_means_mat")
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""

    def figure(values: list[float]) -> str:
        mean = f"{100 * statistics.mean(values):.1f}"
        return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"

    cells = [
        row["stream"],
        f"{100 * row['source']:.1f}",
        row["method"],
        figure(row["ours"]),
        figure(row["theirs"]),
        f"{row['differ']:.0f} of {row['predictions']}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
