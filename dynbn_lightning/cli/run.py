"""What each command does with its options."""

from __future__ import annotations

import json
import warnings
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from dynbn_lightning.datamodules import CorruptionDataModule

# What does the work is imported when a command runs: Lightning takes seconds, and --help should answer at once.


def _datamodule(options: Namespace, normalization: Any = None) -> CorruptionDataModule:
    from dynbn_lightning.datamodules import CorruptionDataModule

    return CorruptionDataModule(
        _source(options),
        test=_released_set(options),
        root=options.root,
        normalization=normalization,
        image_size=options.image_size,
        preset=options.preset,
        frost_textures=options.frost_textures,
        corruptions=options.corruptions,
        severities=options.severities,
        row_per=options.row_per,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        seed=options.seed,
    )


def _source(options: Namespace) -> str:
    if options.source is None and getattr(options, "released", None) is None:
        warnings.warn("no --source is given: these are the embedded shapes", stacklevel=3)
    return options.source or "shapes"


def _released_set(options: Namespace) -> Any:
    from dynbn_lightning.datamodules.released import RELEASED_SETS
    from dynbn_lightning.errors import DataError

    asked_for = {name: getattr(options, name, None) or None for name in ("download", "subset", "clean")}
    if getattr(options, "released", None) is None:
        alone = [f"--{name}" for name, value in asked_for.items() if value is not None]
        if alone:
            raise DataError(f"{', '.join(alone)} are for released sets: name one with --released")
        return None
    return RELEASED_SETS[options.released](options.root, **{**asked_for, "download": options.download})


def _load(options: Namespace) -> Any:
    from dynbn_lightning.models import load_model

    return load_model(
        options.model, options.checkpoint, num_classes=options.num_classes, normalization=options.normalization
    )


def _runs_on(options: Namespace) -> dict[str, Any]:
    return {"accelerator": options.accelerator, "devices": options.devices, "num_nodes": options.num_nodes}


def _start(options: Namespace) -> Any:
    """Start the processes that are asked for; which of them this is."""
    from dynbn_lightning.fitting import quiet_lightning
    from dynbn_lightning.processes import start_processes

    with quiet_lightning():
        return start_processes(**_runs_on(options))


def detector_fit(options: Namespace, console: Console) -> None:
    """`dynbn detector fit`."""
    from lightning.pytorch import seed_everything

    from dynbn_lightning.fitting import DETECTOR_EPOCHS, fit_detector

    process = _start(options)
    seed_everything(options.seed, verbose=False)
    path = options.output / "detector.ckpt"
    epochs = options.epochs or DETECTOR_EPOCHS[options.network]
    detector = fit_detector(_datamodule(options), epochs, output=path, network=options.network, **_runs_on(options))
    if not process.is_global_zero:
        return
    accuracy = detector.trainer.callback_metrics["val/acc"]
    console.print(f"{path}: {len(detector.rows)} rows, accuracy {accuracy:.1%} on held-out training images")


def bank_build(options: Namespace, console: Console) -> None:
    """`dynbn bank build`."""
    from dynbn_lightning.batchnorm import BNStatsBank, QuantileBank
    from dynbn_lightning.batchnorm.ranks import do_on_first_rank
    from dynbn_lightning.processes import prepare

    process = _start(options)
    model = _load(options)
    data = _datamodule(options, model.input_normalization)
    prepare(data, process.local_rank)
    device = process.device
    loaders = data.row_loaders(images_per_row=options.images_per_row, device=device)
    path = options.output / "bank.safetensors"

    def finished() -> Any:
        if options.quantile_count is None or (options.output / "quantiles.safetensors").is_file():
            return None
        return _made_before(path, model, loaders, options.skip)  # before the quantiles were interrupted

    bank = do_on_first_rank(finished)
    if bank is None:
        bank = BNStatsBank.collect(model.to(device), loaders, skip=options.skip, path=path)
    if process.is_global_zero:
        console.print(f"{path}: {len(bank)} rows of {len(bank.layers)} layers, {bank.mean.shape[1]} channels")
    if options.quantile_count is not None:
        path = options.output / "quantiles.safetensors"
        QuantileBank.collect(model.to(device), loaders, count=options.quantile_count, skip=options.skip, path=path)
        if process.is_global_zero:
            console.print(f"{path}: {options.quantile_count} quantiles of each channel in the same rows")


def _made_before(path: Path, model: Any, loaders: Any, skip: list[str]) -> Any:
    """The bank in a file, if it is what collecting one with these options would make; else None."""
    from dynbn_lightning.batchnorm import BNStatsBank

    if not path.is_file():
        return None
    bank = BNStatsBank.load(path)
    same = bank.mismatch(model) is None and bank.rows == tuple(loaders) and list(bank.skip) == list(skip)
    given = json.loads(json.dumps(loaders.provenance))
    return bank if same and given == {key: bank.provenance.get(key) for key in given} else None


def _model_and_data(options: Namespace) -> tuple[Any, CorruptionDataModule]:
    from dynbn_lightning.fitting import device_of

    model = _load(options)
    data = _datamodule(options, model.input_normalization)
    data.prepare_data()
    return model.to(device_of(options.accelerator)), data


def calibrate(options: Namespace, console: Console) -> None:
    """`dynbn calibrate`."""
    from dynbn_lightning.batchnorm import BNStatsBank
    from dynbn_lightning.calibrating import calibrate
    from dynbn_lightning.reporting import calibration_table

    bank = BNStatsBank.load(options.bank)
    model, data = _model_and_data(options)
    path = options.output / "bank.safetensors"
    bank = calibrate(model, bank, options.detector, data, images=options.images, criterion=options.criterion, path=path)
    assert bank.calibration is not None
    console.print(calibration_table(bank.calibration.provenance["check"]))
    console.print(f"{path}: calibrated; the detector's temperature is {bank.calibration.temperature:.2f}")


def refine(options: Namespace, console: Console) -> None:
    """`dynbn refine`."""
    from dynbn_lightning.batchnorm import BNStatsBank
    from dynbn_lightning.refining import refine

    bank = BNStatsBank.load(options.bank)
    model, data = _model_and_data(options)
    path = options.output / "bank.safetensors"
    bank = refine(model, bank, data, images=options.images, criterion=options.criterion, path=path)
    console.print(f"{path}: {len(bank) - 1} rows refined on {options.images} corrupted training images")


def evaluate(options: Namespace, console: Console) -> None:
    """`dynbn evaluate`."""
    from dynbn_lightning.batchnorm import BNStatsBank, QuantileBank
    from dynbn_lightning.errors import DataError
    from dynbn_lightning.evaluation import check_batch_sizes, check_streams, evaluate
    from dynbn_lightning.methods import check_bank, check_methods, default_methods, needed_quantiles
    from dynbn_lightning.reporting import results_table

    bank = None if options.bank is None else BNStatsBank.load(options.bank)
    quantiles = None if options.quantiles is None else QuantileBank.load(options.quantiles)
    has_detector = options.detector is not None
    if has_detector and bank is None:
        raise DataError("--detector is of no use without --bank: make one with `dynbn bank build`")
    methods = options.methods or default_methods(bank, has_detector=has_detector)
    check_methods(methods, has_bank=bank is not None, has_detector=has_detector)
    check_streams(options.stream)
    check_batch_sizes(options.batch_sizes)
    needed_quantiles(methods, bank, quantiles)
    if bank is not None:
        check_bank(methods, bank)
    process = _start(options)
    model = _load(options)
    data = _datamodule(options, model.input_normalization)
    results = evaluate(
        model,
        data,
        methods=methods,
        streams=options.stream,
        batch_sizes=options.batch_sizes,
        bank=bank,
        detector=options.detector,
        quantiles=quantiles,
        output=options.output,
        about={
            "model": options.model,
            "checkpoint": None if options.checkpoint is None else options.checkpoint.name,
        },
        **_runs_on(options),
    )
    if not process.is_global_zero:
        return
    console.print(results_table(results))
    _write_report([options.output], options.output, None, console)


def report(options: Namespace, console: Console) -> None:
    """`dynbn report`."""
    from dynbn_lightning.errors import DataError

    output = options.output
    if output is None:
        if len(options.folders) > 1:
            raise DataError("several folders become one report in a folder of its own: pass --output DIR")
        output = options.folders[0] if options.folders[0].is_dir() else options.folders[0].parent
    _write_report(options.folders, output, options.baseline, console)


def _write_report(folders: list[Path], output: Path, baseline: str | None, console: Console) -> None:
    from dynbn_lightning.reporting import write_report

    paths = write_report(folders, output, baseline=baseline)
    console.print(f"{paths[-1]}, and in the same folder {', '.join(path.name for path in paths[:-1])}", soft_wrap=True)


def figures(options: Namespace, console: Console) -> None:
    """`dynbn figures`."""
    from dynbn_lightning.batchnorm import BNStatsBank
    from dynbn_lightning.callbacks.frozen_detector import load_detector
    from dynbn_lightning.errors import DataError
    from dynbn_lightning.figures import write_figures
    from dynbn_lightning.fitting import device_of
    from dynbn_lightning.reporting import read_results

    if options.source is None and (options.results is None or options.detector is not None):
        raise DataError("figures are drawn from --results, --source, or --detector with --source")
    results = None if options.results is None else read_results(options.results)
    detector = data = None
    if options.detector is not None:
        detector = load_detector(options.detector).to(device_of(options.accelerator))
    if options.source is not None:
        data = _datamodule(options)
        data.prepare_data()
    calibration = None if options.bank is None else BNStatsBank.load(options.bank).calibration
    for path in write_figures(
        options.output,
        results=results,
        stream=options.stream,
        detector=detector,
        data=data,
        images=options.images,
        temperature=1.0 if calibration is None else calibration.temperature,
    ):
        console.print(str(path))


def corrupt(options: Namespace, console: Console) -> None:
    """`dynbn corrupt`."""
    from dynbn_lightning.corrupted_set import write_corrupted_set
    from dynbn_lightning.corruptions import CORRUPTIONS, SEVERITIES
    from dynbn_lightning.fitting import device_of

    made = write_corrupted_set(
        _source(options),
        options.output,
        root=options.root,
        corruptions=CORRUPTIONS if options.corruptions is None else options.corruptions,
        severities=SEVERITIES if options.severities is None else options.severities,
        preset=options.preset,
        layout=options.layout,
        image_format=options.image_format,
        frost_textures=options.frost_textures,
        image_size=options.image_size,
        seed=options.seed,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=device_of(options.accelerator),
    )
    done = f"{made.written} images written" if made.written else "it was whole already, nothing to do"
    console.print(f"{made.folder}: {made.images} images in {len(made.cells)} cells, {made.layout} layout; {done}")


def demo(options: Namespace, console: Console) -> None:
    """`dynbn demo`."""
    from dynbn_lightning.demo import demo

    demo(options.output, accelerator=options.accelerator, seed=options.seed, short=options.short, console=console)
