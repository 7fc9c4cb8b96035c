"""Whether what was measured on one model belongs to another."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from dynbn_lightning.batchnorm.fingerprint import matches_fingerprints
from dynbn_lightning.batchnorm.layers import canonical_name, find_batchnorm_layers
from dynbn_lightning.batchnorm.patched_layers import source_statistics
from dynbn_lightning.errors import first_few


def difference_from(
    model: nn.Module, layers: Mapping[str, int], skip: Collection[str], fingerprints: Mapping[str, str]
) -> str | None:
    """What differs between `model` and the one that has these layers and weights; None if nothing does.

    Args:
        model: any module with BatchNorm layers.
        layers: layer name -> channels, of the other one.
        skip: names of its modules that are left as they are.
        fingerprints: of its weights, by precision; none are not compared.

    Raises:
        UnsupportedModelError: if `model` has no BatchNorm layers or unsupported ones that are not skipped.
    """
    names = {canonical_name(name) for name, _ in model.named_modules(remove_duplicate=False)}
    absent = [name for name in skip if name not in names]
    if absent:
        return f"layers that the bank skips and the model lacks: {first_few(absent, 3)}"
    found = find_batchnorm_layers(model, skip)
    widths = {name: source_statistics(layer)[0].numel() for name, layer in found.items()}
    if widths != dict(layers):
        missing = [name for name in layers if name not in widths]
        extra = [name for name in widths if name not in layers]
        resized = [
            f"{name} ({layers[name]} channels in the bank, {widths[name]} in the model)"
            for name in widths
            if name in layers and widths[name] != layers[name]
        ]
        return "; ".join(
            f"{what}: {first_few(names, 3)}"
            for what, names in (
                ("layers of the bank that the model lacks", missing),
                ("layers of the model that the bank lacks", extra),
                ("layers of another width", resized),
            )
            if names
        )
    if fingerprints and not matches_fingerprints(model, dict(fingerprints)):
        return "the layers are alike but the weights are others (another checkpoint, or further trained)"
    return None
