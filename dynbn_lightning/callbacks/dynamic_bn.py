"""Dynamic batch normalisation: detect each image's corruption, look its statistics up, patch, run the step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ..batchnorm import (
    MIXINGS,
    BNStatsBank,
    Mixing,
    Patch,
    Routing,
    canonical_name,
    patch_with_bank,
)
from ..errors import BankError, DataError, DetectorError, ImageError, RoutingError, did_you_mean
from ..metrics import Top1Accuracy
from ..models.normalization import Normalization
from ..modules.detector import DetectorModule
from .base import BatchNormCallback, images_of

RoutingMode = Literal["hard", "soft", "oracle"]


class DynamicBNCallback(BatchNormCallback):
    """Gives each image of a batch the BatchNorm statistics of its corruption, in one forward pass.

    After Rezaei and Norouzzadeh 2023, "Dynamic Batch Norm Statistics Update for Natural Robustness". Before each
    step the detector looks at the batch's pixels; `"hard"` routing gives each image the most probable row,
    `"soft"` the mixture of rows weighted by their probabilities, and `"oracle"` the row of its true corruption, known
    from a `CorruptionDataModule`. An image's prediction depends neither on the other images nor on the batch size.

    Logged where the truth is known: `detection/acc`, the fraction of images whose most probable row is the true one.

    Args:
        bank: the model's bank, or its file.
        detector: a `DetectorModule`, its checkpoint, or any module with `rows` that maps pixels in [0, 1]
            (N, C, H, W) to logits (N, rows); not needed for `"oracle"`.
        routing: `"hard"`, `"soft"` or `"oracle"`.
        normalization: the input normalisation, undone for the detector; by default the datamodule's, the bank's or
            the model's.
        mixing: how variances are mixed in soft routing, see `batchnorm.mix_rows`.

    Raises:
        BankError: for a bank that is damaged or, when evaluation starts, of another model.
        DetectorError: for a missing detector, or one whose rows are not the bank's.
        DataError: when evaluation starts, if model, bank and data were made for different normalisations.
        ImageError: at the first batch, if the images are not pixels in [0, 1] under the known normalisation.
        RoutingError: when evaluation starts, for oracle routing where nothing is known of the images.
    """

    def __init__(
        self,
        bank: BNStatsBank | str | Path,
        detector: nn.Module | str | Path | None = None,
        routing: RoutingMode = "soft",
        normalization: str | Normalization | Sequence[Sequence[float]] | None = None,
        mixing: Mixing = "moments",
    ) -> None:
        super().__init__()
        for name, value, known in (("routing", routing, get_args(RoutingMode)), ("mixing", mixing, MIXINGS)):
            if value not in known:
                raise RoutingError(f"{name}={value!r}: {did_you_mean(str(value), known)}")
        self.bank = bank if isinstance(bank, BNStatsBank) else BNStatsBank.load(bank)
        self.routing, self.mixing = routing, mixing
        self.normalization = None if normalization is None else Normalization.of(normalization)
        self.detector = None if routing == "oracle" else _open_detector(detector)
        self._columns = None if self.detector is None else _columns_in_bank(self.detector, self.bank)
        self._accuracy = Top1Accuracy()
        self._known: Normalization | None = None
        self._routing: Routing | None = None
        self._checked = False

    def assign(self, images: Tensor) -> Tensor:
        """Weights over the bank's rows, (N, K), of pixels in [0, 1], (N, C, H, W): the policy, to override."""
        assert self.detector is not None
        assert self._columns is not None
        # Outside autocast and in float32: the detector's probabilities don't depend on the classifier's precision.
        with torch.autocast(images.device.type, enabled=False):
            probabilities: Tensor = self.detector(images).softmax(dim=1)
        weights = probabilities.new_zeros(len(images), len(self.bank))
        return weights.index_copy(1, self._columns.to(images.device), probabilities)

    def images_of(self, batch: Any) -> Tensor:
        """The images of a batch, for batches of an unusual form to override."""
        return images_of(batch)

    def find_model(self, pl_module: LightningModule) -> nn.Module:
        """The module inside `pl_module` that the bank was collected on.

        Raises:
            BankError: if there is none, saying what differs.
            UnsupportedModelError: if `pl_module` has no BatchNorm layers.
        """
        differences = {}
        modules: list[tuple[str, nn.Module]] = list(pl_module.named_modules())
        for name, module in modules:
            if not _has_all(module, self.bank.layers):
                continue
            difference = self.bank.mismatch(module)
            if difference is None:
                return module
            differences[name] = difference
        nearest = min(differences, key=lambda name: len(differences[name]), default=None)
        raise BankError(
            f"the bank fits no module of {type(pl_module).__name__}: "
            + (self.bank.mismatch(pl_module) or "" if nearest is None else f"in {nearest!r}, {differences[nearest]}")
            + ". Collect a bank for this model with BNStatsBank.collect or `dynbn bank build`."
        )

    def patch(self, trainer: Trainer, pl_module: LightningModule) -> Patch:
        """Find the bank's model, check that model, bank and data agree, and patch."""
        model = self.find_model(pl_module)
        self._known = self._known_normalization(trainer, model)
        if self.routing == "oracle" and not hasattr(getattr(trainer, "datamodule", None), "batch_info"):
            raise RoutingError(
                "oracle routing needs to know each image's corruption, which only a CorruptionDataModule tells: pass "
                "datamodule=, or use routing='hard' or 'soft'"
            )
        if self.detector is not None:
            self.detector.to(pl_module.device)
        self._accuracy = Top1Accuracy().to(pl_module.device)
        self._checked = False
        patch, self._routing = patch_with_bank(model, self.bank, self.mixing)
        return patch

    def before_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Assign rows to the images of the batch."""
        assert self._routing is not None
        images = self.images_of(batch)
        info = getattr(getattr(trainer, "datamodule", None), "batch_info", None)
        true_rows = None if info is None else self._true_rows(info.names, images.device)
        if self.routing == "oracle":
            if true_rows is None or bool((true_rows < 0).any()):
                missing = sorted({name for name in info.names if self._row_of(name) < 0}) if info is not None else []
                raise RoutingError(f"oracle routing: the bank has no row for {', '.join(missing) or 'this batch'}")
            self._routing.set(true_rows)
            return
        weights = self.assign(self._pixels(images))
        if bool(weights.isnan().any()):
            raise DetectorError("the detector gave NaN: its weights or the images of this batch hold NaN")
        detected = weights.argmax(dim=1)
        self._routing.set(detected if self.routing == "hard" else weights)
        if true_rows is not None:
            known = true_rows >= 0
            self._accuracy.update(detected[known], true_rows[known])

    def after_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the detection accuracy, where the truth was known."""
        if self.detector is not None and hasattr(getattr(trainer, "datamodule", None), "batch_info"):
            accuracy = self._accuracy.compute()  # of all processes together, NaN where no image's row was known
            if not accuracy.isnan():
                pl_module.log("detection/acc", accuracy, sync_dist=True)

    def undo(self) -> None:
        """Give the model its own layers back; does nothing if it has them."""
        super().undo()
        self._routing = None

    def _known_normalization(self, trainer: Trainer, model: nn.Module) -> Normalization:
        recorded = self.bank.provenance.get("normalization")
        known = {
            "the callback": self.normalization,
            "the datamodule": getattr(getattr(trainer, "datamodule", None), "normalization", None),
            "the bank": None if recorded is None else _recorded_normalization(recorded),
            "the model": getattr(model, "input_normalization", None),
        }
        said = {who: value for who, value in known.items() if isinstance(value, Normalization)}
        if not said:
            raise DataError(
                "nothing says how the images are normalised, which must be undone for the detector: pass "
                "DynamicBNCallback(normalization='imagenet'), a (mean, std) pair, or 'none' for pixels in [0, 1]"
            )
        (first, value), *others = said.items()
        for other, its_value in others:
            if its_value != value:
                raise DataError(
                    f"{first} says the images are normalised by mean {value.mean} and std {value.std}, {other} by "
                    f"mean {its_value.mean} and std {its_value.std}: they must agree"
                )
        return value

    def _pixels(self, images: Tensor) -> Tensor:
        assert self._known is not None
        pixels = self._known.undo(images)
        if not self._checked:
            # Once per run: the check waits for the device.
            low, high = pixels.aminmax()
            if not (low > -0.01 and high < 1.01):
                raise ImageError(
                    f"after undoing the normalisation (mean {self._known.mean}, std {self._known.std}) the images "
                    f"range from {low:.3g} to {high:.3g}, not within [0, 1]: they were normalised in another way, "
                    "or hold NaN; pass the right normalization= to the datamodule or to DynamicBNCallback"
                )
            self._checked = True
        # Images are 8-bit when they are normalised, so rounding gives the stored pixels back from any precision.
        return (pixels * 255).round().clamp(0, 255) / 255

    def _row_of(self, cell: str) -> int:
        for row in (cell, cell.partition("/")[0]):
            if row in self.bank.rows:
                return self.bank.rows.index(row)
        return -1

    def _true_rows(self, names: Sequence[str], device: torch.device) -> Tensor:
        return torch.tensor([self._row_of(name) for name in names], device=device)


def _recorded_normalization(recorded: Any) -> Normalization:
    try:
        return Normalization(**recorded) if isinstance(recorded, Mapping) else Normalization.of(recorded)
    except (TypeError, ValueError) as error:
        raise BankError(f"the bank's provenance has no readable normalization: {recorded!r}") from error


def _has_all(module: nn.Module, layers: Mapping[str, int]) -> bool:
    names = {canonical_name(name) for name, _ in module.named_modules()}
    return all(name in names for name in layers)


def _open_detector(detector: nn.Module | str | Path | None) -> nn.Module:
    if detector is None:
        raise DetectorError("hard and soft routing need detector=: a DetectorModule or its checkpoint")
    if isinstance(detector, (str, Path)):
        if not Path(detector).is_file():
            raise DetectorError(f"there is no detector checkpoint at {detector}: make one with `dynbn detector fit`")
        detector = DetectorModule.load_from_checkpoint(str(detector), map_location="cpu", weights_only=True)
    if not getattr(detector, "rows", None):
        raise DetectorError(f"{type(detector).__name__} does not say which rows it knows: it needs an attribute `rows`")
    return _Frozen(detector)


class _Frozen(nn.Module):
    """A copy of a detector for inference, so that the user's own keeps its device and mode."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.rows: tuple[str, ...] = tuple(detector.rows)  # type: ignore[arg-type]
        self.detector = copy.deepcopy(detector).float().eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.detector(images)
        if logits.shape != (len(images), len(self.rows)):
            raise DetectorError(
                f"{type(self.detector).__name__} says it knows {len(self.rows)} rows but gave logits of shape "
                f"{tuple(logits.shape)} for {len(images)} images: expected ({len(images)}, {len(self.rows)})"
            )
        return logits.float()


def _columns_in_bank(detector: nn.Module, bank: BNStatsBank) -> Tensor:
    rows: tuple[str, ...] = detector.rows  # type: ignore[assignment]
    if len(set(rows)) != len(rows):
        raise DetectorError(f"the detector's rows must differ from each other, got {', '.join(rows)}")
    unknown_to_bank = [row for row in rows if row not in bank.rows]
    unknown_to_detector = [row for row in bank.rows if row not in rows]
    if unknown_to_bank or unknown_to_detector:
        raise DetectorError(
            "detector and bank have different rows: "
            + "; ".join(
                f"{what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                for what, names in (
                    ("the bank lacks", unknown_to_bank),
                    ("the detector doesn't know", unknown_to_detector),
                )
                if names
            )
            + ". Fit the detector and collect the bank with the same CorruptionDataModule rows."
        )
    return torch.tensor([bank.index(row) for row in rows])
