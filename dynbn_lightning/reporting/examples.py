"""Example images of a results folder: PNG files in `examples/`, named after their cell and number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dynbn_lightning.corruptions.cells import Cell
from dynbn_lightning.errors import CorruptionError, DataError
from dynbn_lightning.files import whole_file

FOLDER = "examples"
_NAME = re.compile(r"([a-z0-9_]+)-([0-9])-([0-9]+)\.png")
_PNG = b"\x89PNG\r\n\x1a\n"
_SIZE_AT = 16
"""Where in a PNG file its width and height stand, four bytes each."""


@dataclass(frozen=True)
class Example:
    """An image as it was shown to the model.

    Attributes:
        cell: the cell that it was shown in.
        index: its number in its split.
        png: the file's bytes.
    """

    cell: Cell
    index: int
    png: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = (int.from_bytes(self.png[begin : begin + 4], "big") for begin in (_SIZE_AT, _SIZE_AT + 4))
        return width, height


def example_path(folder: Path, cell: Cell, index: int) -> Path:
    """Where the example of an image in a cell is kept: `FOLDER/examples/fog-3-17.png`."""
    return folder / FOLDER / f"{cell.corruption}-{cell.severity}-{index}.png"


def write_example(folder: Path, cell: Cell, index: int, pixels: Tensor) -> Path:
    """Keep an image as an example of a results folder, as a whole or not at all.

    Args:
        folder: of the results.
        cell: that it is shown in.
        index: its number in its split.
        pixels: uint8, shape (C, H, W) with one or three channels.

    Returns:
        The file.

    Raises:
        DataError: if the pixels are none of an image.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape or pixels.dtype != torch.uint8:
        raise DataError(f"expected uint8 pixels of shape (1 or 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
    path = example_path(folder, cell, index)
    rows = pixels.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    with whole_file(path) as temporary:
        Image.fromarray(rows[..., 0] if rows.shape[2] == 1 else rows).save(temporary, format="PNG", optimize=True)
    return path


def read_examples(folder: Path) -> list[Example]:
    """The examples of a results folder, image by image in the order of cells; other files are left out."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.png")):
        example = _read(path)
        if example is not None:
            found.append(example)
    return sorted(found, key=lambda example: (example.index, example.cell.code))


def _read(path: Path) -> Example | None:
    named = _NAME.fullmatch(path.name)
    if named is None or not path.is_file():
        return None
    corruption, severity, index = named[1], int(named[2]), int(named[3])
    try:
        cell = Cell(corruption, severity)
    except CorruptionError:
        return None
    png = path.read_bytes()
    return Example(cell, index, png) if png.startswith(_PNG) and len(png) > _SIZE_AT + 8 else None
