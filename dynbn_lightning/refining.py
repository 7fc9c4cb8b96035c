"""Refining rows: scales and shifts of a row's own, tuned on corrupted training images; more than statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm import BNStatsBank, Statistics, find_batchnorm_layers, own_statistics, routed
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.batches import DrawnBatch
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

LEARNING_RATE = 2e-3


class RowAffine(nn.Module):
    """Scales and shifts of all rows: the model's own, plus what is a corruption's, plus what is the row's.

    Args:
        own: the model's own, as one row.
        corruptions: the number of each row's corruption, (K,), 0 for row 0, which stays as it is.
    """

    def __init__(self, own: Statistics, corruptions: Tensor) -> None:
        super().__init__()
        self.own, self.corruptions = own, corruptions
        rows, groups, channels = len(corruptions), int(corruptions.max()) + 1, len(own.mean)
        self.of_corruption, self.of_row = (
            nn.Parameter(torch.zeros(2, count, channels, device=own.mean.device)) for count in (groups, rows)
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        """Scales and shifts, each (K, channels of all layers)."""
        assert self.own.weight is not None
        assert self.own.bias is not None
        changes = (self.of_corruption[:, self.corruptions] + self.of_row) * (self.corruptions > 0).unsqueeze(1)
        return self.own.weight + changes[0], self.own.bias + changes[1]


def refine(
    model: nn.Module,
    bank: BNStatsBank,
    data: CorruptionDataModule,
    *,
    images: int = 64_000,
    criterion: Criterion = "labels",
    progress: bool = True,
    path: str | Path | None = None,
) -> BNStatsBank:
    """Give every row scales and shifts of its own, tuned on the corrupted training images that it was measured on.

    The model is not changed: scales and shifts stand in the bank beside the statistics and are looked up with them.
    That tuning them repairs much is from Wang et al. 2021, "Tent", who do it at test time; here it is done once,
    offline, for each corruption. Images are routed by their true row, blended as the bank's calibration says.

    Args:
        model: the classifier, on the device to run on; as it was afterwards.
        bank: of this model, with the rows of `data`; calibrate it first.
        data: what the bank was collected from.
        images: how many drawn images to tune on.
        criterion: `"labels"`, cross-entropy with the true class, or `"consistency"`, agreement with the model's own
            prediction for the clean image.
        progress: show a progress bar.
        path: where to write the bank; where `bank` was read from will do. What is done is kept beside it until all is,
            in a file named `<stem>.refining.pt`: the same call goes on there if it is interrupted, and on the same
            device ends with the same bank, bit for bit.

    Returns:
        The bank with `weight` and `bias`; `provenance["refined"]` says how they were made.

    Raises:
        BankError: if the bank is of another model or has other rows than the data, or if what is kept beside `path`
            is of another refinement.
        DataError: if the bank was collected from other data, or the data has no training images.
        OutputError: if nothing can be written to `path`.
    """
    check_bank_and_data(model, bank, data, criterion)
    corruptions = [row.partition("/")[0] for row in bank.rows]
    groups = list(dict.fromkeys(corruptions))
    settings = settings_of_tuning(data, criterion, images)
    with UnfinishedTuning(path, "refining", used_by_tuning(model, bank), settings) as unfinished:
        with in_evaluation_mode(model) as device:
            layers = find_batchnorm_layers(model, bank.skip)
            own = own_statistics(layers[name] for name in bank.layers).map(lambda table: table.to(device))
            affine = RowAffine(own, torch.tensor([groups.index(name) for name in corruptions], device=device))
            rows = bank.unrefined().statistics.map(lambda table: table.to(device))
            if bank.calibration is not None:
                rows = bank.calibration.apply(rows, list(bank.layers.values()))
            predictions = CleanPredictions(model)
            with routed(model, bank.unrefined()) as routing:

                def loss_of(batch: DrawnBatch) -> Tensor:
                    routing.clear()
                    target = batch.labels if criterion == "labels" else predictions(batch)
                    weight, bias = affine()
                    routing.use(rows._replace(weight=weight, bias=bias).map(lambda table: table[batch.rows]))
                    return disagreement(model(batch.images), target)

                tune(
                    list(affine.parameters()),
                    loss_of,
                    lambda start: data.drawn_batches(images, "fit", clean=False, device=device, start=start),
                    learning_rate=LEARNING_RATE,
                    description="refining rows",
                    progress=progress,
                    unfinished=unfinished,
                    predictions=predictions,
                )
        with torch.no_grad():
            weight, bias = (table.cpu() for table in affine())
        provenance = {**bank.provenance, "refined": protocol_of(data, criterion, images)}
        refined = replace(bank, weight=weight, bias=bias, provenance=provenance)
        unfinished.finish(refined)
    return refined
