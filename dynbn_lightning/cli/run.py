"""What each command does with its options."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from dynbn_lightning.datamodules import CorruptionDataModule

# What does the work is imported when a command runs: Lightning takes seconds, and --help should answer at once.


def _datamodule(options: Namespace, normalization: Any = None) -> CorruptionDataModule:
    from dynbn_lightning.corruptions import COMMON_CORRUPTIONS
    from dynbn_lightning.datamodules import CorruptionDataModule

    return CorruptionDataModule(
        options.source,
        root=options.root,
        normalization=normalization,
        image_size=options.image_size,
        preset=options.preset,
        frost_textures=options.frost_textures,
        corruptions=COMMON_CORRUPTIONS if options.corruptions is None else options.corruptions,
        severities=options.severities,
        row_per=options.row_per,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        seed=options.seed,
    )


def _load(options: Namespace) -> Any:
    from dynbn_lightning.models import load_model

    return load_model(
        options.model, options.checkpoint, num_classes=options.num_classes, normalization=options.normalization
    )


def detector_fit(options: Namespace, console: Console) -> None:
    """`dynbn detector fit`."""
    from lightning.pytorch import seed_everything

    from dynbn_lightning.fitting import DETECTOR_EPOCHS, fit_detector

    seed_everything(options.seed, verbose=False)
    data = _datamodule(options)
    data.prepare_data()
    path = options.output / "detector.ckpt"
    epochs = options.epochs or DETECTOR_EPOCHS[options.network]
    detector = fit_detector(data, epochs, output=path, network=options.network, accelerator=options.accelerator)
    accuracy = detector.trainer.callback_metrics["val/acc"]
    console.print(f"{path}: {len(detector.rows)} rows, accuracy {accuracy:.1%} on held-out training images")


def bank_build(options: Namespace, console: Console) -> None:
    """`dynbn bank build`."""
    from dynbn_lightning.batchnorm import BNStatsBank, QuantileBank
    from dynbn_lightning.fitting import device_of

    model = _load(options)
    data = _datamodule(options, model.input_normalization)
    data.prepare_data()
    device = device_of(options.accelerator)
    loaders = data.row_loaders(images_per_row=options.images_per_row, device=device)
    path = options.output / "bank.safetensors"
    bank = BNStatsBank.collect(model.to(device), loaders, skip=options.skip, path=path)
    console.print(f"{path}: {len(bank)} rows of {len(bank.layers)} layers, {bank.mean.shape[1]} channels")
    if options.quantile_count is not None:
        path = options.output / "quantiles.safetensors"
        QuantileBank.collect(model, loaders, count=options.quantile_count, skip=options.skip).save(path)
        console.print(f"{path}: {options.quantile_count} quantiles of each channel in the same rows")


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
    bank = calibrate(model, bank, options.detector, data, images=options.images, criterion=options.criterion)
    path = options.output / "bank.safetensors"
    bank.save(path)
    assert bank.calibration is not None
    console.print(calibration_table(bank.calibration.provenance["check"]))
    console.print(f"{path}: calibrated; the detector's temperature is {bank.calibration.temperature:.2f}")


def refine(options: Namespace, console: Console) -> None:
    """`dynbn refine`."""
    from dynbn_lightning.batchnorm import BNStatsBank
    from dynbn_lightning.refining import refine

    bank = BNStatsBank.load(options.bank)
    model, data = _model_and_data(options)
    bank = refine(model, bank, data, images=options.images, criterion=options.criterion)
    path = options.output / "bank.safetensors"
    bank.save(path)
    console.print(f"{path}: {len(bank) - 1} rows refined on {options.images} corrupted training images")


def evaluate(options: Namespace, console: Console) -> None:
    """`dynbn evaluate`."""
    from dynbn_lightning.batchnorm import BNStatsBank, QuantileBank
    from dynbn_lightning.evaluation import check_batch_sizes, check_streams, evaluate
    from dynbn_lightning.files import whole_file
    from dynbn_lightning.methods import check_bank, check_methods, default_methods, needed_quantiles
    from dynbn_lightning.reporting import markdown_table, results_table, write_results

    bank = None if options.bank is None else BNStatsBank.load(options.bank)
    quantiles = None if options.quantiles is None else QuantileBank.load(options.quantiles)
    has_detector = options.detector is not None
    methods = options.methods or default_methods(bank, has_detector=has_detector)
    check_methods(methods, has_bank=bank is not None, has_detector=has_detector)
    check_streams(options.stream)
    check_batch_sizes(options.batch_sizes)
    needed_quantiles(methods, bank, quantiles)
    if bank is not None:
        check_bank(methods, bank)
    model = _load(options)
    data = _datamodule(options, model.input_normalization)
    data.prepare_data()
    results = evaluate(
        model,
        data,
        methods=methods,
        streams=options.stream,
        batch_sizes=options.batch_sizes,
        bank=bank,
        detector=options.detector,
        quantiles=quantiles,
        accelerator=options.accelerator,
    )
    results["protocol"] = {
        "model": options.model,
        "checkpoint": None if options.checkpoint is None else options.checkpoint.name,
        **{key: value for key, value in results["protocol"].items() if key != "model"},
    }
    path = write_results(results, options.output)
    with whole_file(options.output / "results.md") as temporary:
        temporary.write_text(markdown_table(results))
    console.print(results_table(results))
    console.print(f"results: {path}, and the table as {path.with_suffix('.md')}")


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
    from dynbn_lightning.corruptions import CORRUPTIONS
    from dynbn_lightning.fitting import device_of

    made = write_corrupted_set(
        options.source,
        options.output,
        root=options.root,
        corruptions=CORRUPTIONS if options.corruptions is None else options.corruptions,
        severities=options.severities,
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
