"""The bank's file: safetensors with a checksum, written atomically, never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynbn_lightning.errors import BankError
from dynbn_lightning.files import whole_file

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1 has means and variances alone
_METADATA_KEY = "dynbn_bank"


def write_bank_file(path: Path, tables: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write named tables and the metadata; an existing file is replaced as a whole or left alone."""
    # Copied: safetensors refuses tables that share memory, as slices of one tensor do.
    tables = {name: table.detach().cpu().float().clone().contiguous() for name, table in tables.items()}
    described = json.dumps({"format_version": FORMAT_VERSION, **metadata}, sort_keys=True)
    header = {_METADATA_KEY: described, "sha256": _checksum(tables, described)}
    with whole_file(path) as temporary:
        temporary.write_bytes(
            save(tables, metadata=header)
        )  # save_file would leave a temporary file of its own if killed


def read_bank_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tables, `mean` and `var` among them, and the metadata.

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
            if version not in READABLE_VERSIONS:
                raise BankError(
                    f"{path} has bank format {version!r}, this version of dynbn-lightning reads "
                    f"{' and '.join(map(str, READABLE_VERSIONS))}: update the package or collect the bank again"
                )
            tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterable itself)
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, BankError):
            raise
        raise BankError(f"{path} is no bank, or damaged: {error}") from error
    missing = [name for name in ("mean", "var") if name not in tables]
    if missing:
        raise BankError(f"{path} is no bank, or damaged: it lacks the table {missing[0]}")
    wrong = {name: table.dtype for name, table in tables.items() if table.dtype != torch.float32}
    if wrong:
        raise BankError(f"{path} is damaged: its tables are not float32 but {wrong}")
    if _checksum(tables, header[_METADATA_KEY]) != header.get("sha256"):
        raise BankError(f"{path} is damaged: its checksum does not match its content")
    return tables, metadata


def _checksum(tables: Mapping[str, Tensor], described: str) -> str:
    digest = hashlib.sha256(described.encode())
    # The names of the first format's tables are not in its checksum.
    for name in ("mean", "var", *sorted(set(tables) - {"mean", "var"})):
        if name not in ("mean", "var"):
            digest.update(name.encode())
        digest.update(str(tuple(tables[name].shape)).encode())
        digest.update(tables[name].numpy().data)
    return digest.hexdigest()
