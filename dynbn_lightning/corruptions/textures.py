"""What frost is mixed with: random crops of sheets of ice, generated ones or photographs of one's own."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dynbn_lightning.corruptions.color import to_gray
from dynbn_lightning.corruptions.frost_textures import frost_textures
from dynbn_lightning.corruptions.randomness import Draws
from dynbn_lightning.errors import CorruptionError

_SUFFIXES = (".png", ".jpg", ".jpeg")
# The sixth photograph comes with the other five, but the benchmark never draws it.
_NEVER_DRAWN = "frost6"


class Textures:
    """Sheets of ice of which crops are taken.

    Args:
        sheets: Each (3, H, W), uint8.
        seamless: Whether a sheet may be laid beside itself where an image is larger.
        source: What to call them in an error.
    """

    def __init__(self, sheets: list[Tensor], seamless: bool, source: str) -> None:
        self.sheets = sheets
        self.seamless = seamless
        self.source = source

    def crops(self, images: Tensor, draws: Draws) -> Tensor:
        """For each of the images (N, C, H, W) a random crop of a random sheet, as float32 levels of the same shape."""
        channels, height, width = images.shape[1:]
        sheets = [self._large_enough(sheet, height, width) for sheet in self.sheets]
        which = draws.integers(0, len(sheets), (1,)).squeeze(1)
        place = draws.uniform((2,))
        if images.device.type != "cpu":
            crops = _gather_crops(sheets, which, place, height, width).float()
            return crops if channels == 3 else to_gray(crops)
        cut = []
        for sheet, (down, right) in zip([sheets[number] for number in which.tolist()], place.tolist(), strict=True):
            top, left = int(down * (sheet.shape[1] - height + 1)), int(right * (sheet.shape[2] - width + 1))
            cut.append(sheet[:, top : top + height, left : left + width])
        crops = torch.stack(cut).float()
        return crops if channels == 3 else to_gray(crops)

    def _large_enough(self, sheet: Tensor, height: int, width: int) -> Tensor:
        if sheet.shape[1] >= height and sheet.shape[2] >= width:
            return sheet
        if not self.seamless:
            raise CorruptionError(
                f"a frost texture of {self.source} is {sheet.shape[2]} x {sheet.shape[1]} pixels after scaling and the "
                f"images are {width} x {height}: pass larger textures, or none for generated ones"
            )
        return sheet.repeat(1, -(-height // sheet.shape[1]), -(-width // sheet.shape[2]))


def _gather_crops(sheets: list[Tensor], which: Tensor, place: Tensor, height: int, width: int) -> Tensor:
    """The crops on a device that should not be waited for to know where they are."""
    highest, widest = (max(sheet.shape[axis] for sheet in sheets) for axis in (1, 2))
    padded = torch.stack([F.pad(sheet, (0, widest - sheet.shape[2], 0, highest - sheet.shape[1])) for sheet in sheets])
    room = [[sheet.shape[1] - height + 1, sheet.shape[2] - width + 1] for sheet in sheets]
    corner = (place * torch.tensor(room, device=place.device)[which]).long().view(-1, 2, 1, 1, 1)
    rows = corner[:, 0] + torch.arange(height, device=place.device).view(-1, 1)
    columns = corner[:, 1] + torch.arange(width, device=place.device)
    channels = torch.arange(padded.shape[1], device=place.device).view(-1, 1, 1)
    return padded[which.view(-1, 1, 1, 1), channels, rows, columns]


def load_textures(folder: str | os.PathLike[str] | None, scale: float, device: torch.device) -> Textures:
    """The textures of a folder, or generated ones if there is none, scaled down by `scale`.

    Args:
        folder: A folder of photographs (png or jpg), such as the published `frost1.png` to `frost5.jpg`.
        scale: 1 for images of about 224 pixels, 0.3 for 64, 0.2 for 32: see `Preset.texture_scale`.
        device: Where they are wanted.

    Raises:
        CorruptionError: If the folder is none, or has no photographs that can be read.
    """
    if folder is None:
        return _generated(scale, device)
    return _photographs(tuple((file, file.stat().st_mtime_ns) for file in texture_files(folder)), scale, device)


def texture_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The photographs in a folder, by name; `CorruptionError` if there are none."""
    files = [file for file in sorted(Path(folder).glob("*")) if file.suffix.lower() in _SUFFIXES]
    files = [file for file in files if file.stem != _NEVER_DRAWN]
    if not files:
        raise CorruptionError(
            f"there are no frost textures at {folder}: expected a folder with png or jpg files, such as the published "
            "frost1.png to frost5.jpg"
        )
    return files


@lru_cache(maxsize=8)
def _generated(scale: float, device: torch.device) -> Textures:
    return Textures(list(frost_textures(scale, device)), seamless=True, source="generated")


@lru_cache(maxsize=4)
def _photographs(files: tuple[tuple[Path, int], ...], scale: float, device: torch.device) -> Textures:
    sheets = []
    for file, _ in files:
        try:
            with Image.open(file) as photograph:
                levels = torch.from_numpy(np.array(photograph.convert("RGB"), dtype=np.float32)).movedim(-1, 0)
        except OSError as error:
            raise CorruptionError(f"{file} cannot be read as a frost texture: {error}") from error
        size = [max(round(side * scale), 1) for side in levels.shape[1:]]
        # Not smoothed before it is scaled down, as in the benchmark, which leaves it grainy.
        scaled = F.interpolate(levels.unsqueeze(0), size=size, mode="bilinear", align_corners=False)
        sheets.append(scaled[0].round().to(device, torch.uint8))
    return Textures(sheets, seamless=False, source=str(files[0][0].parent))
