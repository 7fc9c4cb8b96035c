"""Models by name: CIFAR ResNets, timm, torchvision and torch.hub, with published weights or a local checkpoint."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbn_lightning.errors import CheckpointError, UnsupportedModelError, did_you_mean
from dynbn_lightning.models.checkpoint import fit_names, is_published_file, load_weights, read_state_dict
from dynbn_lightning.models.cifar_resnet import CIFAR_RESNETS, CifarResNet
from dynbn_lightning.models.normalization import NORMALIZATIONS, Normalization


def load_model(
    name: str,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    normalization: str | Normalization | Sequence[Sequence[float]] | None = None,
    pretrained: bool = True,
) -> nn.Module:
    """A model by name with its weights, in eval mode, on the CPU, in float32.

    Args:
        name: one of

            - `"cifar_resnet20"` (8, 14, 20, 32, 44, 56, 110): He et al. 2016, section 4.2; the width is the
              checkpoint's;
            - `"timm:NAME"`, as in `"timm:resnet50.a1_in1k"`;
            - `"torchvision:NAME"`, as in `"torchvision:resnet50"`: the default weights of its classification models;
            - `"hub:OWNER/REPO:NAME"` or, at a tag, branch or commit, `"hub:OWNER/REPO:REF:NAME"`: **runs the code of
              that GitHub repository** (`torch.hub`).
        checkpoint: a local file of weights, loaded strictly; nothing is downloaded then, save the code for `hub:`.
            See `read_state_dict` for the layouts it may have.
        num_classes: number of logits; by default the checkpoint's (CIFAR ResNets) or the architecture's own.
        normalization: of the input, where it is not the one that is known of the model: for timm and torchvision that
            of the published weights, for CIFAR ResNets `"imagenet"`, which the public CIFAR-10 checkpoints take (a
            file that isn't one of these gets a warning). A name in `NORMALIZATIONS`, (mean, std) or a
            `Normalization`; `"none"` for pixels in [0, 1].
        pretrained: without a checkpoint, whether to load the published weights. `False` leaves the weights random.

    Returns:
        The model; its plain attribute `input_normalization` is the `Normalization` of the images it takes.

    Raises:
        UnsupportedModelError: an unknown name; the message suggests the nearest.
        CheckpointError: the checkpoint is missing, unreadable, unsafe or of another model; or there is none and the
            published weights are of another number of classes, do not exist or cannot be downloaded.
        DataError: an unknown normalisation.
    """
    given = None if normalization is None else Normalization.of(normalization)
    if num_classes is not None and num_classes < 1:
        raise UnsupportedModelError(f"num_classes must be at least 1, got {num_classes}")
    source, colon, rest = name.partition(":")
    state = None if checkpoint is None else read_state_dict(checkpoint)
    published = pretrained and state is None
    if not colon and name in CIFAR_RESNETS:
        model, known = _cifar(name, state, num_classes, published)
        if checkpoint is not None and not is_published_file(checkpoint):
            known = None
    elif colon and rest and source in _SOURCES:
        model, known = _SOURCES[source](rest, num_classes, published)
    else:
        raise UnsupportedModelError(f"unknown model {name!r}: {_hint(name)}")
    if checkpoint is not None and state is not None:
        load_weights(model, state, checkpoint)
    if given is None and known is None:
        warnings.warn(
            f"{name} does not say how its input is normalised: taken to be 'imagenet'; pass normalization= to be sure",
            stacklevel=2,
        )
    # A plain attribute, so that the names in the state dict stay what they were.
    object.__setattr__(model, "input_normalization", given or known or NORMALIZATIONS["imagenet"])
    return model.eval()


def _cifar(
    name: str, state: dict[str, Tensor] | None, num_classes: int | None, published: bool
) -> tuple[nn.Module, Normalization | None]:
    if published:
        raise CheckpointError(
            f"{name} has no weights to download: pass checkpoint=, a local file, or pretrained=False for random weights"
        )
    width = None
    if state is not None:
        state = fit_names(state, CifarResNet(8).state_dict().keys())
        first, last = state.get("conv1.weight"), state.get("linear.weight")
        width = first.shape[0] if first is not None and first.dim() == 4 else None
        if num_classes is None and last is not None and last.dim() == 2:
            num_classes = last.shape[0]
    return CIFAR_RESNETS[name](num_classes or 10, width or 16), NORMALIZATIONS["imagenet"]


def _timm(name: str, num_classes: int | None, published: bool) -> tuple[nn.Module, Normalization | None]:
    import timm

    from_hf_hub = name.startswith(("hf-hub:", "hf_hub:"))
    if not from_hf_hub and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        raise UnsupportedModelError(
            f"unknown timm model {name!r}: "
            + (f"did you mean 'timm:{near[0]}'?" if near else "timm.list_models() lists them")
        )
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}

    def build() -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=published, **options)
        return model

    model = _download(f"timm:{name}", build) if published else build()
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if published:
        _same_classes(f"timm:{name}", config.get("num_classes"), num_classes)
    return model, _config_normalization(config)


def _torchvision(name: str, num_classes: int | None, published: bool) -> tuple[nn.Module, Normalization | None]:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UnsupportedModelError(f"unknown torchvision model {name!r}: {did_you_mean(name, known)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}

    def build() -> nn.Module:
        model: nn.Module = torchvision.models.get_model(name, weights=weights if published else None, **options)
        return model

    if published:
        _same_classes(f"torchvision:{name}", len(weights.meta["categories"]), num_classes)
    model = _download(f"torchvision:{name}", build) if published else build()
    transform = weights.transforms()
    return model, Normalization(tuple(transform.mean), tuple(transform.std))


def _hub(name: str, num_classes: int | None, published: bool) -> tuple[nn.Module, Normalization | None]:
    repository, _, entry = name.rpartition(":")
    if "/" not in repository or not entry:
        raise UnsupportedModelError(f"'hub:{name}' names no model: expected 'hub:OWNER/REPO:NAME'")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}

    load: Callable[..., Any] = torch.hub.load

    def build() -> nn.Module:
        # Whoever names a repository trusts it; torch's question on the terminal would stop a run on a cluster.
        try:
            model = load(repository, entry, trust_repo=True, pretrained=published, **options)
        except TypeError as error:
            if "pretrained" not in str(error):
                raise
            if published:
                warnings.warn(
                    f"hub:{name} takes no pretrained=: called without it; check that the weights are trained ones",
                    stacklevel=4,
                )
            model = load(repository, entry, trust_repo=True, **options)
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(f"hub:{name} gave a {type(model).__name__}: expected a torch.nn.Module")
        return model

    try:
        model = _download(f"hub:{name}", build)
    except CheckpointError as error:
        if "Cannot find callable" not in str(error):
            raise
        entries: Callable[..., list[str]] = torch.hub.list
        raise UnsupportedModelError(
            f"{repository} has no model {entry!r}: {did_you_mean(entry, entries(repository, trust_repo=True))}"
        ) from error
    return model, _config_normalization(getattr(model, "pretrained_cfg", None) or {})


_SOURCES: dict[str, Callable[[str, int | None, bool], tuple[nn.Module, Normalization | None]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hub": _hub,
}


def _download(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except UnsupportedModelError:
        raise
    except Exception as error:  # each of the libraries raises its own kinds for one cause, no network
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise CheckpointError(
            f"could not load {name} ({type(error).__name__}: {reason}). Without a network, or without published "
            "weights, pass checkpoint=, a local file of weights, or pretrained=False for random ones"
        ) from error


def _same_classes(name: str, published: int | None, asked: int | None) -> None:
    if asked is not None and published is not None and asked != published:
        raise CheckpointError(
            f"the published weights of {name} have {published} classes, not {asked}: a new classifier would be random. "
            f"Pass checkpoint=, the weights of a model with {asked} classes, or leave num_classes out"
        )


def _config_normalization(config: dict[str, Any]) -> Normalization | None:
    mean, std = config.get("mean"), config.get("std")
    return None if mean is None or std is None else Normalization(tuple(mean), tuple(std))


def _hint(name: str) -> str:
    import timm
    import torchvision

    near = [
        f"{source}:{name}"
        for source, known in (("torchvision", torchvision.models.list_models()), ("timm", timm.list_models()))
        if name in known
    ]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    close = difflib.get_close_matches(name, CIFAR_RESNETS, n=1, cutoff=0.6)
    expected = f"{', '.join(CIFAR_RESNETS)}, 'timm:NAME', 'torchvision:NAME' or 'hub:OWNER/REPO:NAME'"
    return f"did you mean {close[0]!r}? Expected {expected}" if close else f"expected {expected}"
