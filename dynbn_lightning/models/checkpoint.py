"""Weights from a file into a model: safely, strictly, and with an error that says what to do when they do not fit."""

from __future__ import annotations

import difflib
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dynbn_lightning.errors import CheckpointError

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net")
"""Where training scripts put the weights among the optimiser's state, the epoch and so on; Lightning: `state_dict`."""

NAME_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
"""What DataParallel, torch.compile and the attribute of a LightningModule put before every name."""

_SHOWN = 4


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a checkpoint, by name, on the CPU; names as they are in the file.

    Args:
        path: a `.safetensors` file or anything that `torch.load(weights_only=True)` reads: weights alone, or beneath
            one of `WRAPPER_KEYS`.

    Raises:
        CheckpointError: no such file; not a checkpoint; a pickle of Python objects, which could run any code; no
            weights in it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder: expected a file such as model.pt or model.safetensors")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {str(path)!r}{_neighbour(path)}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _find_weights(content, path)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str | os.PathLike[str]) -> None:
    """Load the weights of a checkpoint into `model`: every weight of the model, and nothing left over.

    `NAME_PREFIXES` before the names are stripped, as far as that makes them the model's; weights outside the stripped
    prefix belong to something else that was saved with the model (a loss, an average) and are left out.

    Args:
        model: takes the weights, each cast to the dtype of its own.
        state: what `read_state_dict` gave.
        origin: the file, to name it in errors.

    Raises:
        CheckpointError: missing or unexpected weights, or weights of another shape. The model is then part loaded:
            throw it away.
    """
    state = fit_names(state, model.state_dict().keys())
    own = model.state_dict()
    # load_state_dict would raise its own, longer error for these, so look first.
    shapes = [
        (name, value.shape, own[name].shape)
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if shapes:
        raise CheckpointError(_wrong_shapes(shapes, origin))
    # strict=False reports what strict=True raises, and lets old layers fill in what their versions lacked.
    keys = model.load_state_dict(state, strict=False)
    if keys.missing_keys or keys.unexpected_keys:
        raise CheckpointError(
            f"checkpoint {origin} is not of this {type(model).__name__}: "
            + "; ".join(_counted(what, names) for what, names in _named(keys.missing_keys, keys.unexpected_keys))
            + ". Expected the weights of the same architecture: check the model's name against the file's"
        )


def fit_names(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """`state` less those prefixes of its names without which most of them are among the `expected`."""
    expected = set(expected)
    best, best_hits = dict(state), len(expected & state.keys())
    for prefix in NAME_PREFIXES:
        inner = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        if inner:
            inner = fit_names(inner, expected)
            hits = len(expected & inner.keys())
            if hits > best_hits:
                best, best_hits = inner, hits
    return best


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({_first_line(error)})") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _looks_pickled(path):
            raise _no_checkpoint(path, error) from error
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"checkpoint {path} holds more than weights ({what[1] if what else 'Python objects'}): reading that could "
            "run any code, so it is not read. Expected tensors, numbers, text, lists and dicts only. If you trust "
            "where the file comes from, save its weights alone and pass those: "
            'torch.save(torch.load(path, weights_only=False)["state_dict"], "weights.pt"), or, if it is a whole model, '
            'with .state_dict() in place of ["state_dict"]'
        ) from error
    except Exception as error:  # torch.load raises anything from EOFError to RuntimeError on other files
        raise _no_checkpoint(path, error) from error


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO or zipfile.is_zipfile(path)


def _no_checkpoint(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a PyTorch checkpoint, or is damaged ({type(error).__name__}: {_first_line(error)}). Expected a "
        "file written by torch.save, or a .safetensors file; download or copy it again if it should be one"
    )


def _find_weights(content: Any, path: Path) -> dict[str, Tensor]:
    found = content
    while isinstance(found, Mapping) and not _is_state_dict(found):
        inner = next((found[key] for key in WRAPPER_KEYS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not _is_state_dict(found):
        held = f"a dict of {_some(map(str, found))}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise CheckpointError(
            f"checkpoint {path} holds no weights but {held}: expected a dict of tensors by name, alone or under one of "
            f"{', '.join(WRAPPER_KEYS)}"
        )
    return dict(found)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(name, str) and (isinstance(value, Tensor) or name.endswith("_extra_state"))
        for name, value in content.items()
    )


def _wrong_shapes(shapes: Sequence[tuple[str, torch.Size, torch.Size]], origin: str | os.PathLike[str]) -> str:
    shown = [f"{name} is {tuple(is_)} in the file, {tuple(should)} in the model" for name, is_, should in shapes]
    message = f"checkpoint {origin} is of another shape: {_some(shown, '; ')}"
    # Only the classifier's weight and bias differ when the number of classes does.
    if len(shapes) <= 2 and len({name.rpartition(".")[0] for name, _, _ in shapes}) == 1:
        return f"{message}. It has {shapes[0][1][0]} classes: pass num_classes={shapes[0][1][0]}"
    return f"{message}. Expected the weights of the same architecture at the same width"


def _named(missing: Sequence[str], unexpected: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    return [(what, names) for what, names in (("missing", missing), ("unexpected", unexpected)) if names]


def _counted(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what} ({_some(names)})"


def _some(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    more = f"{separator}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (separator.join(names[:_SHOWN]) + more) or "nothing"


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {str(path.parent)!r} either"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f": did you mean {str(path.parent / near[0])!r}?" if near else ": check the path"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_published_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is what its name says: published weights end in the first eight digits of their SHA-256."""
    path = Path(path).expanduser()
    named = re.fullmatch(r".+-([0-9a-f]{8})", path.stem)
    return named is not None and hashlib.sha256(path.read_bytes()).hexdigest().startswith(named[1])
