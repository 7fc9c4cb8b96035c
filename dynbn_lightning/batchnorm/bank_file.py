"""The bank's file: safetensors with a checksum, written atomically, never unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynbn_lightning.errors import BankError
from dynbn_lightning.files import whole_file

FORMAT_VERSION = 1
_METADATA_KEY = "dynbn_bank"


def write_bank_file(path: Path, mean: Tensor, var: Tensor, metadata: dict[str, Any]) -> None:
    """Write both tables (K, channels) and the metadata; an existing file is replaced as a whole or left alone."""
    # Copied: safetensors refuses tables that share memory, as slices of one tensor do.
    tables = {name: table.detach().cpu().float().clone().contiguous() for name, table in (("mean", mean), ("var", var))}
    described = json.dumps({"format_version": FORMAT_VERSION, **metadata}, sort_keys=True)
    header = {_METADATA_KEY: described, "sha256": _checksum(tables["mean"], tables["var"], described)}
    with whole_file(path) as temporary:
        temporary.write_bytes(
            save(tables, metadata=header)
        )  # save_file would leave a temporary file of its own if killed


def read_bank_file(path: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Read both tables and the metadata.

    Raises:
        BankError: if the file is missing, no bank, damaged, or of a newer format.
    """
    if not path.is_file():
        raise BankError(f"there is no bank at {path}: write one with BNStatsBank.save or `dynbn bank build`")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if _METADATA_KEY not in header:
                raise BankError(f"{path} is a safetensors file but no bank: it lacks the bank's metadata")
            metadata = json.loads(header[_METADATA_KEY])
            version = metadata.get("format_version")
            if version != FORMAT_VERSION:
                raise BankError(
                    f"{path} has bank format {version!r}, this version of dynbn-lightning reads {FORMAT_VERSION}: "
                    "update the package or collect the bank again"
                )
            mean, var = file.get_tensor("mean"), file.get_tensor("var")
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, BankError):
            raise
        raise BankError(f"{path} is no bank, or damaged: {error}") from error
    if mean.dtype != torch.float32 or var.dtype != torch.float32:
        raise BankError(f"{path} is damaged: its tables are {mean.dtype} and {var.dtype}, not float32")
    if _checksum(mean, var, header[_METADATA_KEY]) != header.get("sha256"):
        raise BankError(f"{path} is damaged: its checksum does not match its content")
    return mean, var, metadata


def _checksum(mean: Tensor, var: Tensor, described: str) -> str:
    digest = hashlib.sha256(described.encode())
    for table in (mean, var):
        digest.update(str(tuple(table.shape)).encode())
        digest.update(table.numpy().data)
    return digest.hexdigest()
