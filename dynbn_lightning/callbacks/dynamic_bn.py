"""Dynamic batch normalisation: detect each image's corruption, look its statistics up, patch, run the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ..batchnorm import (
    MIXINGS,
    BlendedRoutingPolicy,
    BNStatsBank,
    LayerPolicy,
    Mixing,
    Patch,
    Routing,
    RoutingPolicy,
    check_share,
)
from ..datamodules.batches import BatchInfo, batch_info_of, knows_cells
from ..detection import EVIDENCES, Evidence, StreamMemory, pooled_posterior
from ..errors import (
    BankError,
    DataError,
    DetectorError,
    ImageError,
    MethodError,
    RoutingError,
    did_you_mean,
    first_few,
)
from ..metrics import Top1Accuracy
from ..models.normalization import Normalization
from ..modules.logged_values import SAME_ON_ALL
from .base import BatchNormCallback, Detection
from .batch_stats import BatchStatsCallback
from .find_model import find_model
from .frozen_detector import FrozenDetector
from .layerwise import StreamStatisticsCallback

RoutingMode = Literal["hard", "soft", "oracle"]


class DynamicBNCallback(BatchNormCallback):
    """Gives each image of a batch the BatchNorm statistics of its corruption, in one forward pass.

    After Rezaei and Norouzzadeh 2023, "Dynamic Batch Norm Statistics Update for Natural Robustness". Before each
    step the detector looks at the batch's pixels; `"hard"` routing gives each image the most probable row,
    `"soft"` the mixture of rows weighted by their probabilities, and `"oracle"` the row of its true corruption, known
    from a `CorruptionDataModule`. A bank's calibration is used if it has one, as are refined rows;
    `bank.uncalibrated()` and `bank.unrefined()` are without.

    `evidence` says which images decide on an image's row:

    - `"image"`: it alone; its prediction depends neither on the other images nor on the batch size. For any stream.
    - `"batch"`: all of its batch, which share a row. For batches of one corruption, such as a camera's of one minute.
    - `"stream"`: it and those before it, the longer ago the less (`detection.StreamMemory`); found changes are
      followed. For streams that keep to a corruption for dozens of images. The memory goes from the beginning to the
      end of a run, and is that of all processes where these deal the batches in turn.

    Logged where the truth is known: `detection/acc`, the fraction of images whose most probable row is the true one.

    Args:
        bank: the model's bank, or its file.
        detector: a `DetectorModule`, its checkpoint, or any module with `rows` that maps pixels in [0, 1]
            (N, C, H, W) to logits (N, rows); not needed for `"oracle"`.
        routing: `"hard"`, `"soft"` or `"oracle"`.
        normalization: the input normalisation, undone for the detector; by default the datamodule's, the bank's or
            the model's.
        mixing: how variances are mixed in soft routing, see `batchnorm.mix_rows`.
        evidence: `"image"`, `"batch"` or `"stream"`.
        base: another source of statistics, blended with each image's row: a `BatchStatsCallback`, `FewShotBNCallback`,
            `EMAStatsCallback` or `UnMixTNSCallback`, which is then not given to the Trainer itself.
        base_weight: the base's share in [0, 1], in the moments of the mixture of the two distributions.

    Raises:
        MethodError: for a base that has no statistics to blend, or a share outside [0, 1].
        BankError: for a bank that is damaged or, when evaluation starts, of another model.
        DetectorError: for a missing detector, or one whose rows are not the bank's.
        DataError: at the first batch, if model, bank and data were made for different normalisations.
        ImageError: at the first batch, if the images are not pixels in [0, 1] under the known normalisation.
        RoutingError: at the first batch, for oracle routing where nothing is known of the images.
    """

    def __init__(
        self,
        bank: BNStatsBank | str | Path,
        detector: nn.Module | str | Path | None = None,
        routing: RoutingMode = "soft",
        normalization: str | Normalization | Sequence[Sequence[float]] | None = None,
        mixing: Mixing = "moments",
        evidence: Evidence = "image",
        base: BatchStatsCallback | StreamStatisticsCallback | None = None,
        base_weight: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("routing", routing, get_args(RoutingMode)),
            ("mixing", mixing, MIXINGS),
            ("evidence", evidence, EVIDENCES),
        ):
            if value not in known:
                raise RoutingError(f"{name}={value!r}: {did_you_mean(str(value), known)}")
        self.bank = bank if isinstance(bank, BNStatsBank) else BNStatsBank.load(bank)
        self.routing, self.mixing, self.evidence = routing, mixing, evidence
        self.normalization = None if normalization is None else Normalization.of(normalization)
        self.detector = None if routing == "oracle" else FrozenDetector(detector, self.bank)
        if base is not None and not isinstance(base, (BatchStatsCallback, StreamStatisticsCallback)):
            raise MethodError(
                f"base={type(base).__name__}: expected a method with statistics of its own, BatchStatsCallback, "
                "FewShotBNCallback, EMAStatsCallback or UnMixTNSCallback"
            )
        if base is not None and base.skip:
            raise MethodError(
                f"the base has skip={base.skip!r}: as a base it works on the bank's layers; leave skip out"
            )
        check_share("base_weight", base_weight)
        self.base, self.base_weight = base, base_weight
        self._accuracy = Top1Accuracy()
        self._known: Normalization | None = None
        self._model_normalization: Normalization | None = None
        self._routing: Routing | None = None
        self._memory = StreamMemory()
        self._loaded_belief: Tensor | None = None

    @property
    def method(self) -> str:
        """The method's name in reports: one that is told the corruption is called an oracle."""
        if self.routing == "oracle":
            name = "oracle" if self.bank.calibration is None else "oracle/calibrated"
        else:
            variants = [self.routing] * (self.routing != "soft") + [self.evidence] * (self.evidence != "image")
            name = "/".join(["dynamic_bn", *variants])
        return name if self.base is None else f"{name}+{self.base.method}"

    def assign(self, images: Tensor) -> Tensor:
        """Weights over the bank's rows, (N, K), of pixels in [0, 1], (N, C, H, W): the policy, to override."""
        assert self.detector is not None
        weights: Tensor = self.detector(images)
        if self.evidence == "stream":
            of_round = [self._memory.update(its) for (its,) in self.exchange.rows(weights)]
            return of_round[self.exchange.rank]
        if self.evidence == "batch":
            return pooled_posterior(weights).expand_as(weights)
        return weights

    def find_model(self, pl_module: LightningModule) -> nn.Module:
        """The module inside `pl_module` that the bank was collected on.

        Raises:
            BankError: if there is none, saying what differs.
            UnsupportedModelError: if `pl_module` has no BatchNorm layers.
        """
        return find_model(pl_module, self.bank, "DynamicBNCallback")

    def prepare(self, pl_module: LightningModule) -> tuple[nn.Module, Routing]:
        """Find the bank's model, check that it is the bank's, and begin a run on it: what to patch, and the routing."""
        belief, self._loaded_belief = self._loaded_belief, None
        if belief is not None and len(belief) != len(self.bank):
            raise MethodError(
                f"the checkpoint has a memory of {len(belief)} rows, the bank has {len(self.bank)}: it is of another "
                "bank"
            )
        model = self.find_model(pl_module)
        if self.detector is not None:
            self.detector.to(pl_module.device)
        self._accuracy = Top1Accuracy().to(pl_module.device)
        self._known = None
        self._memory.belief = belief
        self._model_normalization = getattr(model, "input_normalization", None)
        self._routing = Routing(self.bank, model, self.mixing)
        return model, self._routing

    def patch(self, trainer: Trainer, pl_module: LightningModule) -> Patch:
        """The bank's model with its layers routed, and the base's statistics blended in where there is a base."""
        model, routing = self.prepare(pl_module)
        if self.base is not None:
            self.base.exchange = self.exchange
        make_base = None if self.base is None else self.base.policy_maker()

        def make_policy(name: str, layer: nn.Module) -> LayerPolicy:
            if make_base is None:
                return RoutingPolicy(name, routing)
            return BlendedRoutingPolicy(name, routing, make_base(name, layer), self.base_weight)

        return Patch(model, make_policy, self.bank.skip)

    @property
    def remembers(self) -> bool:
        """Whether the evidence or the base is that of a stream."""
        return self.evidence == "stream" or (self.base is not None and self.base.remembers)

    def memory(self) -> Any:
        """What goes into checkpoints."""
        return self.state_dict()

    def take_over(self, memory: Any) -> None:
        """Remember what another process does."""
        self._memory.belief = memory["belief"]
        if self.base is not None:
            self.base.take_over(memory["base"])

    def on_next_loader(self) -> None:
        """Tell the base."""
        if self.base is not None:
            self.base.on_next_loader()

    def before_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Assign rows to the images of the batch."""
        assert self._routing is not None
        if self.base is not None:
            self.base.before_step(trainer, pl_module, batch)
        images = self.images_of(batch)
        info = batch_info_of(trainer)
        true_rows = None if info is None else [self._row_of(name) for name in info.names]
        if self.routing == "oracle":
            self._routing.set(self._oracle_rows(true_rows, info).to(images.device))
            return
        if self._known is None:
            # At the first batch, for only then is it sure whether a datamodule provides this run's images.
            datamodule = None if info is None else trainer.datamodule  # type: ignore[attr-defined]
            self._known = self._known_normalization(datamodule)
            self._check_pixels(images)
        weights = self.assign(self._pixels(images))
        confidences, detected = weights.max(dim=1)
        self._detection = Detection(self.bank.rows, detected, confidences)
        try:
            # A row that is none where there is NaN: the routing's own check finds it, with no further wait for the
            # device.
            hard = detected.where(weights.sum(dim=1).isfinite(), -1)
            self._routing.set(hard if self.routing == "hard" else weights)
        except RoutingError as error:
            if weights.isfinite().all():
                raise
            raise DetectorError("the detector gave NaN: its weights or the images of this batch hold NaN") from error
        if true_rows is not None:
            known = [position for position, row in enumerate(true_rows) if row >= 0]
            self._accuracy.update(detected[known], torch.tensor(true_rows, device=images.device)[known])

    def after_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the detection accuracy, where the truth was known."""
        if self.detector is not None and knows_cells(trainer):
            accuracy = self._accuracy.compute()  # of all processes together, NaN where no image's row was known
            if not accuracy.isnan():
                pl_module.log("detection/acc", accuracy, **SAME_ON_ALL)

    def undo(self) -> None:
        """Give the model its own layers back; does nothing if it has them."""
        super().undo()
        self._routing = None

    @property
    def state_key(self) -> str:
        """Tells the states of callbacks on different networks apart."""
        return self._generate_state_key(model=self.bank.fingerprints.get("float32"), layers=len(self.bank.layers))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give back what an earlier run left patched; before a fit, forget that run."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._memory.clear()
            self._loaded_belief = None
        if self.base is not None:
            self.base.setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """What the stream's memory and the base remember."""
        return {
            "belief": None if self._memory.belief is None else self._memory.belief.clone(),
            "base": None if self.base is None else self.base.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next run go on from what `state_dict` gave."""
        self._loaded_belief = state_dict["belief"]
        if self.base is not None and state_dict["base"] is not None:
            self.base.load_state_dict(state_dict["base"])

    def _oracle_rows(self, true_rows: list[int] | None, info: BatchInfo | None) -> Tensor:
        if true_rows is None or info is None:
            raise RoutingError(
                "oracle routing needs to know each image's corruption, which only a CorruptionDataModule tells: pass "
                "datamodule=, or use routing='hard' or 'soft'"
            )
        missing = sorted({name for name, row in zip(info.names, true_rows, strict=True) if row < 0})
        if missing:
            raise RoutingError(f"oracle routing: the bank has no row for {first_few(missing)}")
        return torch.tensor(true_rows)

    def _known_normalization(self, datamodule: Any) -> Normalization:
        recorded = self.bank.provenance.get("normalization")
        known = {
            "the callback": self.normalization,
            "the datamodule": getattr(datamodule, "normalization", None),
            "the bank": None if recorded is None else _recorded_normalization(recorded),
            "the model": self._model_normalization,
        }
        said = {who: value for who, value in known.items() if isinstance(value, Normalization)}
        if not said:
            raise DataError(
                "nothing says how the images are normalised, which must be undone for the detector: pass "
                "DynamicBNCallback(normalization='imagenet'), a (mean, std) pair, or 'none' for pixels in [0, 1]"
            )
        (first, value), *others = said.items()
        for other, its_value in others:
            if not value.agrees_with(its_value):
                raise DataError(
                    f"{first} says the images are normalised by mean {value.mean} and std {value.std}, {other} by "
                    f"mean {its_value.mean} and std {its_value.std}: they must agree"
                )
        return value

    def _check_pixels(self, images: Tensor) -> None:
        # Once per run: it waits for the device.
        assert self._known is not None
        low, high = self._known.undo(images).aminmax()
        if not (low > -0.01 and high < 1.01):
            raise ImageError(
                f"after undoing the normalisation (mean {self._known.mean}, std {self._known.std}) the images "
                f"range from {low:.3g} to {high:.3g}, not within [0, 1]: they were normalised in another way, "
                "or hold NaN; pass the right normalization= to the datamodule or to DynamicBNCallback"
            )

    def _pixels(self, images: Tensor) -> Tensor:
        assert self._known is not None
        return self._known.stored_pixels(images)

    def _row_of(self, cell: str) -> int:
        for row in (cell, cell.partition("/")[0]):
            if row in self.bank.rows:
                return self.bank.rows.index(row)
        return -1


def _recorded_normalization(recorded: Any) -> Normalization:
    try:
        return Normalization(**recorded) if isinstance(recorded, Mapping) else Normalization.of(recorded)
    except (TypeError, ValueError) as error:
        raise BankError(f"the bank's provenance has no readable normalization: {recorded!r}") from error
