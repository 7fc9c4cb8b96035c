"""Distribution matching as a callback: activations moved onto the training distribution, alone or with a bank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ..batchnorm import DistributionMatchingPolicy, LayerPolicy, Patch, Per, QuantileBank, RoutedMatchingPolicy, Samples
from ..errors import BankError, MethodError
from .base import BatchNormCallback, Detection
from .dynamic_bn import DynamicBNCallback
from .find_model import find_model


class DistributionMatchingCallback(BatchNormCallback):
    """Moves the activations that reach each BatchNorm layer onto their distribution in training, channel by channel.

    Fuchs, Knoll and Pernkopf 2021, "Distribution Mismatch Correction for Improved Robustness in Deep Neural Networks":
    x -> F_train^-1(F_test(x)), the 1-D Wasserstein-optimal map, which mends the shape of the distribution as well as
    its mean and variance. Where to place it and how to store F_train are our choices: quantiles (`QuantileBank`) of the
    input of each BatchNorm layer. Before or after the layer's normalisation, scale and shift is the same: the optimal
    map commutes with them. F_test is that of the batch, for batches of one corruption, or of each image by itself.

    With `base=DynamicBNCallback(...)` it is put on top of the bank: F_test is the distribution that was measured under
    the image's detected row, as far as its form goes, with the mean and variance that the routing gives (calibrated, if
    the bank is). Then no image depends on another, and what is added to the bank is the correction of shape alone.

    Args:
        quantiles: a `QuantileBank` of the model, or its file; with `base`, with quantiles of all its rows.
        base: a `DynamicBNCallback`, which is then not given to the Trainer itself.
        per: without a base, F_test of the `"batch"` or of each `"image"`.
        strength: how much of the way activations go, in [0, 1]; with a base, how much of the shape is corrected. By
            default 1 with the batch's F_test, as in the paper; 0.1 with each image's, for after all of the way every
            image has the same distribution in every channel; 1/2 with a base (these two chosen on held-out training
            images of CIFAR-10).
        samples: without a base, how many activations of each channel F_test is estimated from; `"auto"` for 2,048 of a
            batch and 128 of an image, None for all of them and the map without its table, which costs many times as
            much.

    Raises:
        MethodError: for settings out of range, or that have no meaning together.
        BankError: for quantiles that are damaged or, when evaluation starts, of another model.
    """

    def __init__(
        self,
        quantiles: QuantileBank | str | Path,
        base: DynamicBNCallback | None = None,
        per: Per = "batch",
        strength: float | None = None,
        samples: Samples = "auto",
    ) -> None:
        super().__init__()
        self.quantiles = quantiles if isinstance(quantiles, QuantileBank) else QuantileBank.load(quantiles)
        if strength is None:
            strength = 0.5 if base is not None else 0.1 if per == "image" else 1.0
        self.base, self.per, self.strength, self.samples = base, per, strength, samples
        DistributionMatchingPolicy(self.quantiles.quantiles[0], per, strength, samples)  # refuses bad settings here
        if base is None:
            return
        if not isinstance(base, DynamicBNCallback):
            raise MethodError(f"base={type(base).__name__}: distribution matching stands on a DynamicBNCallback")
        if base.base is not None or base.bank.refined:
            raise MethodError(
                "distribution matching stands on statistics of a bank's rows alone: give a DynamicBNCallback without "
                "base=, and bank.unrefined()"
            )
        self.quantiles.of_rows(base.bank.rows)

    @property
    def method(self) -> str:
        """The method's name in reports."""
        if self.base is not None:
            return f"distribution_matching/{self.base.method}"
        return "distribution_matching" if self.per == "batch" else f"distribution_matching/{self.per}"

    @property
    def detection(self) -> Detection | None:
        """What the base detected."""
        return None if self.base is None else self.base.detection

    def find_model(self, pl_module: LightningModule) -> nn.Module:
        """The module inside `pl_module` that the quantiles were measured on.

        Raises:
            BankError: if there is none, saying what differs.
        """
        return find_model(pl_module, self.quantiles, "DistributionMatchingCallback")

    def patch(self, trainer: Trainer, pl_module: LightningModule) -> Patch:
        """Find the model that was measured, and say how to patch it."""
        if self.base is None:
            model = self.find_model(pl_module)
            return Patch(model, self._matching, self.quantiles.skip)
        self.base.exchange = self.exchange
        model, routing = self.base.prepare(pl_module)
        difference = self.quantiles.mismatch(model)
        if difference is not None:
            raise BankError(f"the quantiles are of another model than the bank: {difference}")
        rows = QuantileBank(self.base.bank.rows, self.quantiles.layers, self.quantiles.of_rows(self.base.bank.rows))

        def make_policy(name: str, layer: nn.Module) -> LayerPolicy:
            return RoutedMatchingPolicy(name, routing, rows.of_layer(name).to(pl_module.device), self.strength)

        return Patch(model, make_policy, self.base.bank.skip)

    def _matching(self, name: str, layer: nn.Module) -> LayerPolicy:
        source = self.quantiles.of_layer(name)[0]
        buffer = layer.running_mean
        assert isinstance(buffer, Tensor)
        return DistributionMatchingPolicy(source.to(buffer.device), self.per, self.strength, self.samples)

    def before_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Let the base assign rows."""
        if self.base is not None:
            self.base.before_step(trainer, pl_module, batch)

    @property
    def remembers(self) -> bool:
        """Whether the base does."""
        return self.base is not None and self.base.remembers

    def memory(self) -> Any:
        """What the base remembers."""
        return None if self.base is None else self.base.memory()

    def take_over(self, memory: Any) -> None:
        """Let the base remember what another process does."""
        if self.base is not None:
            self.base.take_over(memory)

    def on_next_loader(self) -> None:
        """Tell the base."""
        if self.base is not None:
            self.base.on_next_loader()

    def after_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the base log."""
        if self.base is not None:
            self.base.after_epoch(trainer, pl_module)

    @property
    def state_key(self) -> str:
        """Tells the states of callbacks on different networks apart."""
        return self._generate_state_key(model=self.quantiles.fingerprints.get("float32"))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give back what an earlier run left patched; before a fit, forget that run."""
        super().setup(trainer, pl_module, stage)
        if self.base is not None:
            self.base.setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """What the base remembers."""
        return {} if self.base is None else self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the base's next run go on from what `state_dict` gave."""
        if self.base is not None:
            self.base.load_state_dict(state_dict)

    def undo(self) -> None:
        """Give the model its own layers back; does nothing if it has them."""
        super().undo()
        if self.base is not None:
            self.base.undo()
