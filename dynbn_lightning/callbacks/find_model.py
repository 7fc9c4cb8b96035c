"""Finding the module that a bank was collected on inside a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from lightning.pytorch import LightningModule
from torch import nn

from ..batchnorm import canonical_name
from ..errors import BankError


class Measured(Protocol):
    """What was measured on a model: a `BNStatsBank` or a `QuantileBank`."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Layer name -> number of channels."""
        ...

    @property
    def skip(self) -> tuple[str, ...]:
        """Modules that are left as they are."""
        ...

    def mismatch(self, model: nn.Module) -> str | None:
        """What differs between the model it was measured on and `model`; None if nothing does."""
        ...


def find_model(pl_module: LightningModule, bank: Measured, callback: str) -> nn.Module:
    """The module inside `pl_module` that a bank was collected on.

    Args:
        pl_module: what is evaluated.
        bank: a `BNStatsBank` or a `QuantileBank`.
        callback: whose `find_model` to override, in errors.

    Raises:
        BankError: if there is none, saying what differs, or several.
        UnsupportedModelError: if `pl_module` has no BatchNorm layers.
    """
    matches: dict[str, nn.Module] = {}
    differences: dict[str, str] = {}
    modules: list[tuple[str, nn.Module]] = list(pl_module.named_modules())
    for name, module in modules:
        if any(module in match.modules() for match in matches.values()) or not _has_all(
            module, [*bank.layers, *bank.skip]
        ):
            continue
        difference = bank.mismatch(module)
        if difference is None:
            matches[name] = module
        else:
            differences[name] = difference
    if len(matches) > 1:
        raise BankError(
            f"the bank fits several modules of {type(pl_module).__name__}, all with the same weights: "
            f"{', '.join(map(repr, matches))}. Override {callback}.find_model to say which one is tested."
        )
    if not matches:
        nearest = min(differences, key=lambda name: len(differences[name]), default=None)
        why = bank.mismatch(pl_module) if nearest is None else f"in {nearest!r}, {differences[nearest]}"
        raise BankError(
            f"the bank fits no module of {type(pl_module).__name__}: {why}. "
            f"Collect a bank for this model with {type(bank).__name__}.collect or `dynbn bank build`."
        )
    return next(iter(matches.values()))


def _has_all(module: nn.Module, layers: Iterable[str]) -> bool:
    names = {canonical_name(name) for name, _ in module.named_modules()}
    return all(name in names for name in layers)
