"""Patching the BatchNorm layers of a model with a policy each, and undoing it bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from torch import nn

from dynbn_lightning.batchnorm.layers import find_batchnorm_layers, patched_class_of
from dynbn_lightning.batchnorm.patched_layers import LayerPolicy


class Patch:
    """The BatchNorm layers of a model, patched until `undo()` or the end of the `with` block.

    Only each layer's class and one plain attribute change: no parameter, buffer, hook or name, so checkpoints saved
    or loaded meanwhile are those of the unpatched model, and undoing cannot lose a bit.

    Args:
        model: any module with BatchNorm layers.
        make_policy: called with each layer's name and the layer, returns what the layer shall do.

    Raises:
        UnsupportedModelError: if the model has no BatchNorm layers or unsupported ones; nothing is patched then.
        RoutingError: if it is patched already.
    """

    def __init__(self, model: nn.Module, make_policy: Callable[[str, nn.Module], LayerPolicy]) -> None:
        layers = find_batchnorm_layers(model)
        policies = {name: make_policy(name, layer) for name, layer in layers.items()}
        self._layers: list[tuple[nn.Module, type[nn.Module]]] = []
        try:
            for name, layer in layers.items():
                patched_class = patched_class_of(layer)
                assert patched_class is not None
                self._layers.append((layer, type(layer)))
                layer.__dict__["dynbn_policy"] = policies[name]
                layer.__class__ = patched_class  # type: ignore[assignment]
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Give every layer its own class back; a second call does nothing."""
        while self._layers:
            layer, own_class = self._layers[-1]
            layer.__class__ = own_class
            layer.__dict__.pop("dynbn_policy", None)
            self._layers.pop()

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()
