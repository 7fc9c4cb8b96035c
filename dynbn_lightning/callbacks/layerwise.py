"""Methods with a policy for each layer, and what such a policy remembers over a stream."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ..batchnorm import LayerPolicy, Patch, StatisticsPolicy, own_statistics
from ..errors import MethodError, did_you_mean, first_few
from .base import BatchNormCallback

Reset = Literal["loader", "never"]


class LayerPolicyWithState(LayerPolicy, Protocol):
    """What a layer does, and what it remembers meanwhile."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What is remembered, by name."""
        ...

    def remember(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state; from an empty one, anew."""
        ...


Policy = TypeVar("Policy", bound=LayerPolicyWithState)


class LayerwiseCallback(BatchNormCallback, Generic[Policy]):
    """A method that patches every BatchNorm layer with a policy of its own.

    Args:
        skip: names of layers of the LightningModule, or of modules that hold some, which keep their own statistics;
            for layers that are not supported.
    """

    def __init__(self, skip: Sequence[str] = ()) -> None:
        super().__init__()
        self.skip = tuple(skip)
        self.policies: dict[str, Policy] = {}

    @abstractmethod
    def make_policy(self, name: str, layer: nn.Module) -> Policy:
        """What the layer called `name` shall do."""

    def patch(self, trainer: Trainer, pl_module: LightningModule) -> Patch:
        """A patch of every BatchNorm layer of the module that is not skipped."""
        return Patch(pl_module, self.policy_maker(), self.skip)

    def policy_maker(self) -> Callable[[str, nn.Module], Policy]:
        """Makes the layers' policies for one run, and keeps them as `policies`."""
        self.policies = {}

        def make(name: str, layer: nn.Module) -> Policy:
            self.policies[name] = self.make_policy(name, layer)
            return self.policies[name]

        return make


class OnlineCallback(LayerwiseCallback[Policy]):
    """A method whose layers remember something of the stream.

    Its state goes into the Trainer's checkpoints (`Trainer.save_checkpoint`, after a run too), and a run with
    `ckpt_path=` goes on from it. On several processes that deal a stream's batches in turn, as those of a
    `CorruptionDataModule` do, all have one state.

    Args:
        reset: `"loader"` begins anew with each dataloader, which in the sequential stream of a `CorruptionDataModule`
            is a cell; `"never"` only with each run.
        skip: see `LayerwiseCallback`.
    """

    def __init__(self, reset: str = "loader", skip: Sequence[str] = ()) -> None:
        super().__init__(skip)
        self.reset = reset
        self._loaded: dict[str, dict[str, Tensor]] = {}

    @property
    def state_key(self) -> str:
        """Tells the states of callbacks on different layers apart."""
        return self._generate_state_key(skip=self.skip)

    def policy_maker(self) -> Callable[[str, nn.Module], Policy]:
        """Makes the layers' policies for one run, with the states that a checkpoint had for them."""
        make = super().policy_maker()
        loaded, self._loaded = self._loaded, {}

        def make_and_remember(name: str, layer: nn.Module) -> Policy:
            policy = make(name, layer)
            if isinstance(policy, StatisticsPolicy):
                policy.exchange = self.exchange
            if loaded:
                policy.remember(_state_for(name, layer, loaded))
            return policy

        return make_and_remember

    @property
    def remembers(self) -> bool:
        """True: that is what these methods are about."""
        return True

    def memory(self) -> Any:
        """What goes into checkpoints."""
        return self.state_dict()

    def take_over(self, memory: Any) -> None:
        """Remember what another process does."""
        for name, policy in self.policies.items():
            policy.remember(memory["layers"][name])

    def begin_anew(self) -> None:
        """Forget what was seen."""
        for policy in self.policies.values():
            policy.remember({})

    def on_next_loader(self) -> None:
        """Begin anew, if that is asked for."""
        if self.reset != "never":
            self.begin_anew()

    def forget_run(self) -> None:
        """Forget the last run: what it saw was seen with weights that a fit will change."""
        self.policies, self._loaded = {}, {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give back what an earlier run left patched; before a fit, forget that run."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.forget_run()

    def state_dict(self) -> dict[str, Any]:
        """What each layer remembers, on the CPU."""
        states = {name: policy.state for name, policy in self.policies.items()}
        return {"layers": {name: {key: _copy(value) for key, value in state.items()} for name, state in states.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next run go on from what `state_dict` gave."""
        self._loaded = dict(state_dict["layers"])


class StreamStatisticsCallback(OnlineCallback[StatisticsPolicy]):
    """A method that normalises by statistics which it gathers from the stream; a base for `DynamicBNCallback`.

    Args:
        reset: `"loader"` or `"never"`.
        skip: see `LayerwiseCallback`.

    Raises:
        MethodError: for another `reset`.
    """

    def __init__(self, reset: Reset = "loader", skip: Sequence[str] = ()) -> None:
        check_reset(reset, get_args(Reset))
        super().__init__(reset, skip)


def _copy(value: Tensor) -> Tensor:
    return value.detach().cpu().clone()


def _state_for(name: str, layer: nn.Module, loaded: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    if name not in loaded:
        raise MethodError(
            f"the checkpoint has state of the layers {first_few(list(loaded))}, none of {name!r}: it is of another "
            "model"
        )
    channels = len(own_statistics([layer]).mean)
    widths = {value.shape[-1] for value in loaded[name].values() if value.dim()}
    if widths - {channels}:
        raise MethodError(
            f"the checkpoint has state of {widths.pop()} channels for layer {name!r}, which has {channels}: it is of "
            "another model"
        )
    return loaded[name]


def check_reset(reset: str, known: Sequence[str]) -> None:
    """Raise `MethodError` for an unknown way to begin anew."""
    if reset not in known:
        raise MethodError(f"reset={reset!r}: {did_you_mean(str(reset), known)}")


def seed_of(name: str, seed: int) -> int:
    """A seed for the layer called `name`."""
    return zlib.crc32(f"{seed} {name}".encode())
