"""Patching the BatchNorm layers of a model with a policy each, and undoing it bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import TracebackType

from torch import nn

from dynbn_lightning.batchnorm.layers import find_batchnorm_layers, patched_class_of
from dynbn_lightning.batchnorm.patched_layers import LayerPolicy


class Patch:
    """The BatchNorm layers of a model, patched from `apply()` to `undo()`, or inside a `with` block.

    Only each layer's class and one plain attribute change: no parameter, buffer, hook or name, so checkpoints saved
    or loaded meanwhile are those of the unpatched model, and undoing cannot lose a bit. Whoever drops a patch without
    undoing it, as an interrupt between two lines may, has it undone.

    Args:
        model: any module with BatchNorm layers; nothing is changed before `apply()`.
        make_policy: called with each layer's name and the layer, returns what the layer shall do.
        skip: names of layers, or of modules that hold some, which are left as they are.

    Raises:
        UnsupportedModelError: if the model has no BatchNorm layers or unsupported ones that are not skipped.
        RoutingError: if it is patched already.
    """

    def __init__(
        self, model: nn.Module, make_policy: Callable[[str, nn.Module], LayerPolicy], skip: Collection[str] = ()
    ) -> None:
        self._patched: list[tuple[nn.Module, type[nn.Module], LayerPolicy]] = []
        self._model, self._make_policy, self._skip = model, make_policy, skip
        find_batchnorm_layers(model, skip)

    def apply(self) -> Patch:
        """Patch the layers; returns the patch. An error or interrupt half way leaves the model as it was.

        Raises:
            RoutingError: if the model was patched meanwhile.
        """
        layers = find_batchnorm_layers(self._model, self._skip)
        policies = {name: self._make_policy(name, layer) for name, layer in layers.items()}
        try:
            for name, layer in layers.items():
                patched_class = patched_class_of(layer)
                assert patched_class is not None
                self._patched.append((layer, type(layer), policies[name]))
                layer.__dict__["dynbn_policy"] = policies[name]
                layer.__class__ = patched_class  # type: ignore[assignment]
        except BaseException:
            self.undo()
            raise
        return self

    def undo(self) -> None:
        """Give every layer its own class back; a second call does nothing."""
        try:
            self._give_back()
        except BaseException:  # an interrupt: finish first
            self._give_back()
            raise

    def _give_back(self) -> None:
        while self._patched:
            layer, own_class, policy = self._patched[-1]
            if (
                layer.__dict__.get("dynbn_policy") is policy
            ):  # or else `unpatch` was faster, and another patch may be on
                layer.__class__ = own_class
                layer.__dict__.pop("dynbn_policy", None)
            self._patched.pop()

    def __enter__(self) -> Patch:
        return self.apply()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __del__(self) -> None:
        if hasattr(self, "_patched"):
            self.undo()
