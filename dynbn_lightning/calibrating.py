"""Calibrating a bank: how far to trust each of its rows, and the detector, measured on held-out training images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbn_lightning.batchnorm import BNStatsBank, Calibration, fingerprint_of, routed
from dynbn_lightning.callbacks.frozen_detector import FrozenDetector
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.batches import DrawnBatch
from dynbn_lightning.datamodules.row_loaders import Batches
from dynbn_lightning.errors import DetectorError
from dynbn_lightning.models.normalization import Normalization
from dynbn_lightning.progress import progress_bar
from dynbn_lightning.tuning import (
    CleanPredictions,
    Criterion,
    UnfinishedTuning,
    check_bank_and_data,
    disagreement,
    in_evaluation_mode,
    protocol_of,
    settings_of_tuning,
    tune,
    used_by_tuning,
)

SOURCE_SHARE, IMAGE_SHARE = 0.2, 0.05
"""Where the search begins."""

NOVEL = 0.001
"""One held-out image in a thousand is above the novelty limit."""

LEARNING_RATE = 0.1


class Shares(nn.Module):
    """A table of shares in (0, 1), row 0 all 0: a sigmoid of what is common, of the row, of the layer, and of both.

    The common parts let rows that are seldom drawn learn from the others.

    Args:
        rows: K.
        layers: L.
        start: the share that all begin at.
    """

    def __init__(self, rows: int, layers: int, start: float) -> None:
        super().__init__()
        self.common = nn.Parameter(torch.tensor(math.log(start / (1 - start))))
        self.of_row, self.of_layer, self.of_both = (
            nn.Parameter(torch.zeros(shape)) for shape in ((rows, 1), (1, layers), (rows, layers))
        )

    def forward(self) -> Tensor:
        """The table, shape (K, L)."""
        shares = (self.common + self.of_row + self.of_layer + self.of_both).sigmoid()
        return torch.cat([torch.zeros_like(shares[:1]), shares[1:]])


def calibrate(
    model: nn.Module,
    bank: BNStatsBank,
    detector: nn.Module | str | Path,
    data: CorruptionDataModule,
    *,
    images: int = 12_800,
    criterion: Criterion = "consistency",
    image_moments: bool = True,
    progress: bool = True,
    path: str | Path | None = None,
) -> BNStatsBank:
    """Choose how rows are blended so that routing helps corrupted images and costs clean ones little or nothing.

    Looks at held-out training images alone, in random cells. First the detector's temperature is fitted to its own
    log-likelihood (Guo et al. 2017) and the novelty limit set. Then, for each row and layer, a share of the source
    statistics (Schneider et al. 2020) and of the image's own moments (Khurana et al. 2021) is tuned by gradients
    through the frozen network, with images routed by the detector's own posterior. A quarter of the held-out images
    is kept for the check, whose outcome is in the provenance.

    Args:
        model: the classifier, on the device to run on; as it was afterwards.
        bank: of this model, with the rows of `data`; a calibration that it has is replaced, and refined rows, which
            were tuned for that, lose their refinement.
        detector: a `DetectorModule`, its checkpoint, or any module with `rows`.
        data: what the bank was collected from, with the same seed, so that the same images are held out.
        images: how many drawn images to tune on.
        criterion: `"consistency"`, agreement with the model's own prediction for the clean image, which needs no
            labels; or `"labels"`, cross-entropy with the true class.
        image_moments: blend images' own moments too, which costs a pass over the activations.
        progress: show a progress bar.
        path: where to write the bank; where `bank` was read from will do. What is done is kept beside it until all is,
            in a file named `<stem>.calibrating.pt`: the same call goes on there if it is interrupted, and on the same
            device ends with the same bank, bit for bit.

    Returns:
        The bank with its `calibration`.

    Raises:
        BankError: if the bank is of another model or has other rows than the data, or if what is kept beside `path`
            is of another calibration.
        DataError: if the bank was collected from other data, or the data has no training images.
        DetectorError: if detector and bank have different rows, or the detector gives NaN.
        OutputError: if nothing can be written to `path`.
    """
    check_bank_and_data(model, bank, data, criterion)
    bank = bank.uncalibrated().unrefined()
    frozen = FrozenDetector(detector, bank)
    used = {**used_by_tuning(model, bank), "the detector": _identity(frozen)}
    settings = {**settings_of_tuning(data, criterion, images), "image_moments": image_moments}
    with UnfinishedTuning(path, "calibrating", used, settings) as unfinished:
        with in_evaluation_mode(model) as device:
            frozen.to(device)
            if "confidence" not in unfinished.done:
                looked_at = data.drawn_batches(max(1, images // 4), "choose", device=device)
                unfinished.keep(confidence=_detector_confidence(frozen, looked_at, data.normalization, progress))
            temperature, limit = unfinished.done["confidence"]
            predictions = CleanPredictions(model)
            source = Shares(len(bank), len(bank.layers), SOURCE_SHARE).to(device)
            own = Shares(len(bank), len(bank.layers), IMAGE_SHARE).to(device) if image_moments else None
            widths = list(bank.layers.values())
            rows = bank.statistics.map(lambda table: table.to(device))
            with routed(model, bank) as routing:

                def loss_of(batch: DrawnBatch) -> Tensor:
                    routing.clear()
                    target = batch.labels if criterion == "labels" else predictions(batch)
                    with torch.no_grad():
                        logits, _ = frozen.look(data.normalization.stored_pixels(batch.images))
                    blended = rows.blended_with_source(source(), widths)._replace(
                        image_share=None if own is None else own()
                    )
                    routing.use(blended.mixed((logits / temperature).softmax(dim=1)))
                    return disagreement(model(batch.images), target)

                tune(
                    [*source.parameters(), *(own.parameters() if own is not None else ())],
                    loss_of,
                    lambda start: data.drawn_batches(images, "choose", device=device, start=start),
                    learning_rate=LEARNING_RATE,
                    description="calibrating",
                    progress=progress,
                    unfinished=unfinished,
                    predictions=predictions,
                )
            with torch.no_grad():
                calibration = Calibration(
                    source_share=source().cpu(),
                    image_share=None if own is None else own().cpu(),
                    temperature=temperature,
                    novelty_limit=limit,
                    detector=frozen.fingerprint(),
                    provenance=protocol_of(data, criterion, images),
                )
        calibrated = replace(bank, calibration=calibration)
        outcome = check(model, calibrated, detector, data, max(1, images // 8), progress=progress)
        agreement = {name: shares["agreement"] for name, shares in outcome.items()}
        if agreement["calibrated"] < max(agreement["source"], agreement["uncalibrated"]):
            warnings.warn(
                "calibration gained nothing on the held-out images that it was checked on, where agreement with the "
                "clean prediction is "
                + ", ".join(f"{name} {share:.1%}" for name, share in agreement.items())
                + ": the bank's rows or the detector may be of little use for this model",
                stacklevel=2,
            )
        provenance = {**calibration.provenance, "check": outcome}
        calibrated = replace(calibrated, calibration=replace(calibration, provenance=provenance))
        unfinished.finish(calibrated)
    return calibrated


def _identity(detector: FrozenDetector) -> str:
    """A fingerprint of all that a detector's answers depend on."""
    return fingerprint_of([type(detector.detector).__qualname__, detector.rows, detector.fingerprint()])


def _detector_confidence(
    detector: FrozenDetector, batches: Batches[DrawnBatch], normalization: Normalization, progress: bool
) -> tuple[float, float | None]:
    """The temperature of the least cross-entropy with the true rows, and the novelty limit."""
    looks, true_rows = [], []
    with progress_bar(shown=progress) as bar, torch.no_grad():
        for batch in bar.track(batches, description="the detector's confidence"):
            looks.append(detector.look(normalization.stored_pixels(batch.images)))
            true_rows.append(batch.rows)
    logits, rows = torch.cat([look[0] for look in looks]).cpu(), torch.cat(true_rows).cpu()
    novelties = [look[1] for look in looks if look[1] is not None]
    limit = float(torch.cat(novelties).quantile(1 - NOVEL)) if novelties else None
    if not (logits.isfinite().all() and (limit is None or math.isfinite(limit))):
        raise DetectorError("the detector gave NaN or infinity for held-out training images: its weights hold some")
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / log_temperature.exp(), rows)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().exp()), limit


@torch.no_grad()
def check(
    model: nn.Module,
    bank: BNStatsBank,
    detector: nn.Module | str | Path,
    data: CorruptionDataModule,
    images: int,
    *,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """How the source, the uncalibrated and the calibrated bank fare on held-out images that nothing was chosen by.

    Args:
        model: the classifier, on the device to run on.
        bank: calibrated, of this model.
        detector: with the bank's rows.
        data: what the bank was collected from.
        images: how many drawn images to look at, of the quarter of the held-out images that is kept for this.
        progress: show a progress bar.

    Returns:
        For `"source"`, `"uncalibrated"` and `"calibrated"`: `agreement` with the model's own prediction for the clean
        image, `accuracy`, and `clean_accuracy` on the clean images among them, from 0 to 1.
    """
    with in_evaluation_mode(model) as device, progress_bar(shown=progress) as bar:
        batches = data.drawn_batches(images, "check", device=device)
        tracked = bar.track(batches, description="checking the calibration")
        return _checked(model, bank, detector, tracked, data.normalization)


def _checked(
    model: nn.Module,
    bank: BNStatsBank,
    detector: nn.Module | str | Path,
    batches: Iterable[DrawnBatch],
    normalization: Normalization,
) -> dict[str, dict[str, float]]:
    predictions = CleanPredictions(model)
    banks = {"source": None, "uncalibrated": bank.uncalibrated(), "calibrated": bank}
    detectors = {name: FrozenDetector(detector, rows) for name, rows in banks.items() if rows is not None}
    right: dict[str, list[Tensor]] = {name: [] for name in banks}
    clean = []
    for batch in batches:
        truth = torch.stack([predictions(batch).argmax(dim=1), batch.labels])
        clean.append(batch.rows == 0)
        for name, rows in banks.items():
            if rows is None:
                predicted = model(batch.images).argmax(dim=1)
            else:
                with routed(model, rows) as routing:
                    weights = detectors[name].to(batch.images.device)(normalization.stored_pixels(batch.images))
                    routing.set(weights)
                    predicted = model(batch.images).argmax(dim=1)
            right[name].append(predicted == truth)
    on_clean = torch.cat(clean)
    outcome = {}
    for name, parts in right.items():
        agreement, accuracy = torch.cat(parts, dim=1).float()
        outcome[name] = {
            "agreement": float(agreement.mean()),
            "accuracy": float(accuracy.mean()),
            "clean_accuracy": float(accuracy[on_clean].mean()),
        }
    return outcome
