"""The files of banks: safetensors with a checksum, written atomically, never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynbn_lightning.errors import BankError
from dynbn_lightning.files import whole_file


class FileKind(NamedTuple):
    """What a file holds.

    Attributes:
        name: in errors.
        key: of its description in the file's metadata.
        version: that is written.
        readable: versions that are read.
        tables: that it must have, the first ones of its checksum.
        made_by: how to make one, in errors.
    """

    name: str
    key: str
    version: int
    readable: tuple[int, ...]
    tables: tuple[str, ...]
    made_by: str


BANK_FILE = FileKind(
    "bank",
    "dynbn_bank",
    2,
    (1, 2),  # 1 has means and variances alone
    ("mean", "var"),
    "BNStatsBank.save or `dynbn bank build`",
)


def write_bank_file(
    path: Path, tables: Mapping[str, Tensor], metadata: dict[str, Any], kind: FileKind = BANK_FILE
) -> None:
    """Write named tables and the metadata; an existing file is replaced as a whole or left alone."""
    # Copied: safetensors refuses tables that share memory, as slices of one tensor do.
    tables = {name: table.detach().cpu().float().clone().contiguous() for name, table in tables.items()}
    described = json.dumps({"format_version": kind.version, **metadata}, sort_keys=True)
    header = {kind.key: described, "sha256": _checksum(tables, described, kind)}
    with whole_file(path) as temporary:
        temporary.write_bytes(
            save(tables, metadata=header)
        )  # save_file would leave a temporary file of its own if killed


def read_bank_file(path: Path, kind: FileKind = BANK_FILE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tables, those of the kind among them, and the metadata.

    Raises:
        BankError: if the file is missing, not of this kind, damaged, or of a newer format.
    """
    if not path.is_file():
        raise BankError(f"there is no {kind.name} at {path}: write one with {kind.made_by}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if kind.key not in header:
                raise BankError(f"{path} is a safetensors file but no {kind.name}: it lacks the {kind.name}'s metadata")
            metadata = json.loads(header[kind.key])
            version = metadata.get("format_version")
            if version not in kind.readable:
                raise BankError(
                    f"{path} has {kind.name} format {version!r}, this version of dynbn-lightning reads "
                    f"{' and '.join(map(str, kind.readable))}: update the package or collect the {kind.name} again"
                )
            tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterable itself)
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, BankError):
            raise
        raise BankError(f"{path} is no {kind.name}, or damaged: {error}") from error
    missing = [name for name in kind.tables if name not in tables]
    if missing:
        raise BankError(f"{path} is no {kind.name}, or damaged: it lacks the table {missing[0]}")
    wrong = {name: table.dtype for name, table in tables.items() if table.dtype != torch.float32}
    if wrong:
        raise BankError(f"{path} is damaged: its tables are not float32 but {wrong}")
    if _checksum(tables, header[kind.key], kind) != header.get("sha256"):
        raise BankError(f"{path} is damaged: its checksum does not match its content")
    return tables, metadata


def _checksum(tables: Mapping[str, Tensor], described: str, kind: FileKind = BANK_FILE) -> str:
    digest = hashlib.sha256(described.encode())
    # The names of the first format's tables are not in its checksum.
    for name in (*kind.tables, *sorted(set(tables) - {*kind.tables})):
        if name not in kind.tables:
            digest.update(name.encode())
        digest.update(str(tuple(tables[name].shape)).encode())
        digest.update(tables[name].numpy().data)
    return digest.hexdigest()
