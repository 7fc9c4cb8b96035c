"""TENT as a callback: entropy minimisation on the scales and shifts of BatchNorm layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.optim import Adam, Optimizer

from ..batchnorm import Patch, TrainableAffinePolicy, check_count
from ..errors import MethodError
from .layerwise import OnlineCallback, check_reset

TentReset = Literal["batch", "loader", "never"]


class TentCallback(OnlineCallback[TrainableAffinePolicy]):
    """Minimises the entropy of the predictions, batch by batch, over the scales and shifts of BatchNorm layers.

    Wang et al. 2021, "Tent: Fully Test-Time Adaptation by Entropy Minimization" (ICLR), section 3: layers normalise by
    the batch's own statistics, and after each batch one step of Adam (learning rate 0.001, the authors' for CIFAR)
    lowers the mean entropy of its softmax. As in the authors' code a batch's predictions are those of before its last
    step. The model's own parameters are left alone: scales and shifts of the callback's own stand in for them. Costs a
    forward and a backward more than the plain forward.

    It needs gradients, and `forward` of the LightningModule to return logits (N, K); override `logits_of` where it
    doesn't, and `configure_optimizer` for another optimiser. State goes into the Trainer's checkpoints, and a run with
    `ckpt_path=` goes on from it. On R processes there is one step for R batches, by the mean of their gradients over
    all images, and all processes have the same model; on one there would be R steps, so the numbers differ.

    Args:
        lr: learning rate of Adam.
        steps: steps for each batch; the last one comes after its predictions.
        reset: when scales, shifts and optimiser begin anew: with each `"batch"` (episodic, which with one step is
            BN-1), each dataloader (`"loader"`; a cell of the sequential stream), or each run alone (`"never"`,
            continual).
        skip: names of layers of the LightningModule, or of modules that hold some, which are left as they are.

    Raises:
        MethodError: for settings out of range; when evaluation starts, without gradients; at the first batch, without
            logits or anything to optimise.
    """

    def __init__(self, lr: float = 1e-3, steps: int = 1, reset: TentReset = "loader", skip: Sequence[str] = ()) -> None:
        check_reset(reset, get_args(TentReset))
        super().__init__(reset, skip)
        if not 0 < lr < float("inf"):
            raise MethodError(f"lr={lr!r}: expected a learning rate above 0")
        check_count("steps", steps)
        self.lr, self.steps = lr, steps
        self._optimizer: Optimizer | None = None
        self._first_optimizer_state: dict[str, Any] = {}
        self._loaded_optimizer: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def method(self) -> str:
        """The method's name in reports."""
        return "tent"

    def configure_optimizer(self, parameters: list[Tensor]) -> Optimizer:
        """The optimiser of the scales and shifts."""
        return Adam(parameters, lr=self.lr)

    def logits_of(self, pl_module: LightningModule, batch: Any) -> Tensor:
        """The logits (N, K) that the model gives for a batch.

        Raises:
            MethodError: if its forward gives none.
        """
        if getattr(pl_module.forward, "__func__", None) is LightningModule.forward:
            raise MethodError(
                f"TentCallback needs logits (N, K) from {type(pl_module).__name__}.forward, and there is no forward: "
                "write one, or override TentCallback.logits_of"
            )
        logits = pl_module(self.images_of(batch))
        if isinstance(logits, Mapping) and "logits" in logits:
            logits = logits["logits"]
        if not (isinstance(logits, Tensor) and logits.dim() == 2 and logits.is_floating_point()):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise MethodError(
                f"TentCallback needs logits (N, K) from {type(pl_module).__name__}.forward, which gave {found}: "
                "override TentCallback.logits_of"
            )
        return logits

    def make_policy(self, name: str, layer: nn.Module) -> TrainableAffinePolicy:
        """Batch statistics with a scale and shift to optimise."""
        return TrainableAffinePolicy(layer)

    def patch(self, trainer: Trainer, pl_module: LightningModule) -> Patch:
        """Check that there are gradients, and patch."""
        # Before the check: what a checkpoint had is for this run, though it be refused.
        self._optimizer, self._resumed, self._loaded_optimizer = None, self._loaded_optimizer, None
        patch = super().patch(trainer, pl_module)
        if torch.is_inference_mode_enabled():
            raise MethodError(
                "TentCallback needs gradients, which inference mode rules out: pass Trainer(inference_mode=False)"
            )
        if self.reset == "batch" and self.steps == 1:
            rank_zero_warn(
                "TentCallback(reset='batch', steps=1) forgets each step before it is used: its predictions are those "
                "of BatchStatsCallback(); use more steps, or reset='loader' or 'never'"
            )
        return patch

    @property
    def remembers(self) -> bool:
        """Whether there is more than one batch to learn from."""
        return self.reset != "batch"

    def take_over(self, memory: Any) -> None:
        """Remember what another process does."""
        super().take_over(memory)
        self._resumed = memory["optimizer"]
        if self._optimizer is not None and self._resumed is not None:
            self._optimizer.load_state_dict(self._resumed)

    def begin_anew(self) -> None:
        """Forget what was learnt."""
        super().begin_anew()
        if self._optimizer is not None:
            self._optimizer.load_state_dict(self._first_optimizer_state)

    def forget_run(self) -> None:
        """Forget the last run."""
        super().forget_run()
        self._optimizer = self._loaded_optimizer = None

    def before_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """All steps on this batch but the last."""
        if self._optimizer is None:
            self._optimizer = self._make_optimizer(pl_module)
        if self.reset == "batch":
            self.begin_anew()
        for _ in range(self.steps - 1):
            self._adapt(trainer, pl_module, batch)

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """The last step on this batch."""
        if self.reset != "batch":  # it would be forgotten
            self._adapt(trainer, pl_module, batch)

    @property
    def parameters(self) -> list[Tensor]:
        """The scales and shifts that are optimised."""
        return [value for policy in self.policies.values() for value in policy.state.values()]

    def _make_optimizer(self, pl_module: LightningModule) -> Optimizer:
        if not self.parameters:
            raise MethodError(
                f"the BatchNorm layers of {type(pl_module).__name__} have no scale or shift, so TentCallback has "
                "nothing to optimise"
            )
        optimizer = self.configure_optimizer(self.parameters)
        self._first_optimizer_state = optimizer.state_dict()
        if self._resumed is not None:
            optimizer.load_state_dict(self._resumed)
        return optimizer

    def _adapt(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        assert self._optimizer is not None
        with torch.enable_grad():
            with trainer.precision_plugin.forward_context():
                logits = self.logits_of(pl_module, batch)
            loss = Categorical(logits=logits.float(), validate_args=False).entropy().mean()  # type: ignore[no-untyped-call]
            # To these alone: the model's own parameters keep the gradients they had.
            own = torch.autograd.grad(loss, self.parameters, allow_unused=True) if loss.requires_grad else ()
        if all(gradient is None for gradient in own):
            raise MethodError(
                f"TentCallback has nothing to optimise: the logits of {type(pl_module).__name__}.forward come without "
                "gradients for the scales and shifts of its BatchNorm layers (torch.no_grad, detach, or other layers): "
                "override TentCallback.logits_of"
            )
        gradients = self._mean_of_round(own, len(logits))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _mean_of_round(self, gradients: Sequence[Tensor | None], images: int) -> Sequence[Tensor | None]:
        """The mean over all images of the round, of gradients that are means over the images of this process."""
        if self.exchange.size == 1:
            return gradients
        share = images / sum(self.exchange.counts(images, self.parameters[0].device))
        used = [gradient for gradient in gradients if gradient is not None]
        total = self.exchange.sum(torch.cat([gradient.flatten() * share for gradient in used]))
        means = iter(torch.split(total, [gradient.numel() for gradient in used]))
        return [None if gradient is None else next(means).view_as(gradient) for gradient in gradients]

    def state_dict(self) -> dict[str, Any]:
        """Scales, shifts and the optimiser's state."""
        return {**super().state_dict(), "optimizer": None if self._optimizer is None else self._optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next run go on from what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._loaded_optimizer = state_dict["optimizer"]
