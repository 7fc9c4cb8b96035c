"""Sheets of pictures that show the corruptions: every one at every severity, and ours beside published ones.

    pip install -e ".[docs]"
    python docs/contact_sheets.py
    DYNBN_DATA=../shared/data python docs/contact_sheets.py

The first writes `corruptions.jpg`, of a public domain picture that comes with matplotlib (or of `--picture FILE`).
With DYNBN_DATA set it also writes `corruptions_beside_reference.jpg`: images that the published generator made, from
the `reference` folder beside the data, above ours; `--preset imagenet` takes those of 224 px.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from dynbn_lightning.corruptions import COMMON_CORRUPTIONS, CORRUPTIONS, SEVERITIES, corrupt
from dynbn_lightning.files import whole_file

PICTURE_SIDE = 224
SHOWN_SIDE = 132
# Head and shoulders of the picture that comes with matplotlib: left, top, right, lower.
HOPPER_BOX = (52, 0, 468, 416)

REFERENCE_FILES = {"cifar": "cifar_c_32_images.npz", "imagenet": "imagenet_c_2_images.npz"}
# Which of the reference's images, and how much larger than they are.
REFERENCE_IMAGES = {"cifar": (1, 13), "imagenet": (0, 1)}
ENLARGED = {"cifar": 2, "imagenet": 1}

LABEL_WIDTH, HEADING_HEIGHT = 132, 26
GAP, WIDE_GAP = 2, 8
FONT_SIZE = 14
JPEG_QUALITY = 76


def open_picture(file: Path | None) -> Tensor:
    """The centre of a picture, or of the one that comes with matplotlib, as (1, 3, 224, 224) uint8."""
    if file is None:
        from matplotlib.cbook import get_sample_data

        picture = Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))).crop(HOPPER_BOX)
    else:
        picture = Image.open(file)
    fitted = ImageOps.fit(picture.convert("RGB"), (PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).movedim(-1, 0).unsqueeze(0)


def read_reference(data: Path, preset: str) -> dict[str, Tensor]:
    """Published images: `clean` (N, 3, H, W), and by corruption (5, N, 3, H, W), uint8."""
    with np.load(data.parent / "reference" / REFERENCE_FILES[preset]) as arrays:
        chosen = list(REFERENCE_IMAGES[preset])
        return {
            name: torch.from_numpy(arrays[name][..., chosen, :, :, :]).movedim(-1, -3)
            for name in ("clean", *CORRUPTIONS)
        }


class Sheet:
    """A white sheet with tiles in rows and columns, names of the rows at its left and of the columns at its top.

    Args:
        tile: Side of a tile in pixels.
        row_gaps: Space above each row.
        column_gaps: Space before each column.
    """

    def __init__(self, tile: int, row_gaps: Sequence[int], column_gaps: Sequence[int]) -> None:
        self._tile = tile
        self._tops = [HEADING_HEIGHT + gaps + row * tile for row, gaps in enumerate(accumulate(row_gaps))]
        self._lefts = [LABEL_WIDTH + gaps + column * tile for column, gaps in enumerate(accumulate(column_gaps))]
        self.picture = Image.new("RGB", (self._lefts[-1] + tile + GAP, self._tops[-1] + tile + GAP), "white")
        self._draw = ImageDraw.Draw(self.picture)
        self._font = ImageFont.load_default(FONT_SIZE)

    def name_column(self, column: int, name: str) -> None:
        """Write a name above a column."""
        at = (self._lefts[column] + self._tile / 2, HEADING_HEIGHT / 2)
        self._draw.text(at, name, "black", self._font, anchor="mm")

    def name_row(self, row: int, name: str, part: float = 0.5, colour: str = "black") -> None:
        """Write a name beside a row, `part` of the way down."""
        at = (LABEL_WIDTH - 4, self._tops[row] + part * self._tile)
        self._draw.text(at, name, colour, self._font, anchor="rm")

    def place(self, row: int, column: int, image: Tensor) -> None:
        """Put an image (3, H, W) uint8 on its tile: enlarged as it is, or made smaller smoothly."""
        tile = Image.fromarray(image.movedim(0, -1).contiguous().numpy())
        resampling = Image.Resampling.NEAREST if tile.width <= self._tile else Image.Resampling.LANCZOS
        self.picture.paste(tile.resize((self._tile, self._tile), resampling), (self._lefts[column], self._tops[row]))


def severity_sheet(picture: Tensor) -> Image.Image:
    """One picture (1, 3, H, W) with every corruption, a row each, at every severity, a column each."""
    extra_begins = len(COMMON_CORRUPTIONS)
    row_gaps = [WIDE_GAP if row == extra_begins else GAP for row in range(len(CORRUPTIONS))]
    sheet = Sheet(SHOWN_SIDE, row_gaps, [GAP, WIDE_GAP, *[GAP] * (len(SEVERITIES) - 1)])
    for column, name in enumerate(["clean", *(f"severity {severity}" for severity in SEVERITIES)]):
        sheet.name_column(column, name)
    for row, corruption in enumerate(CORRUPTIONS):
        sheet.name_row(row, corruption)
        sheet.place(row, 0, picture[0])
        for severity in SEVERITIES:
            sheet.place(row, severity, corrupt(picture, corruption, severity, seeds=[severity])[0])
    return sheet.picture


def reference_sheet(reference: dict[str, Tensor], preset: str) -> Image.Image:
    """Each corruption of some images at every severity: what was published in one row, ours in the one below."""
    clean = reference["clean"]
    columns_of_image = 1 + len(SEVERITIES)
    column_gaps = [GAP if column % columns_of_image else WIDE_GAP for column in range(len(clean) * columns_of_image)]
    sheet = Sheet(clean.shape[-1] * ENLARGED[preset], [WIDE_GAP, GAP] * len(CORRUPTIONS), column_gaps)
    for image in range(len(clean)):
        for place, name in enumerate(["clean", *map(str, SEVERITIES)]):
            sheet.name_column(image * columns_of_image + place, name)
    for number, corruption in enumerate(CORRUPTIONS):
        published_row, our_row = 2 * number, 2 * number + 1
        sheet.name_row(published_row, corruption, 0.25)
        sheet.name_row(published_row, "published", 0.7, "gray")
        sheet.name_row(our_row, "ours", 0.5, "gray")
        for severity in SEVERITIES:
            seeds = [100 * severity + image for image in range(len(clean))]
            ours = corrupt(clean, corruption, severity, preset, seeds=seeds)
            for image in range(len(clean)):
                column = image * columns_of_image
                sheet.place(published_row, column, clean[image])
                sheet.place(published_row, column + severity, reference[corruption][severity - 1, image])
                sheet.place(our_row, column + severity, ours[image])
    return sheet.picture


def save(picture: Image.Image, file: Path) -> None:
    """Write a picture as JPEG and say so."""
    with whole_file(file) as temporary:
        picture.save(temporary, quality=JPEG_QUALITY, optimize=True)
    print(f"{file}: {picture.width} x {picture.height} px, {file.stat().st_size / 1024:.0f} KiB")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="a picture of your own for the sheet of severities")
    parser.add_argument("--preset", default="cifar", choices=list(REFERENCE_FILES), help="which published images")
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images", help="folder of the sheets")
    return parser.parse_args()


def main() -> int:
    """Write the sheets."""
    options = arguments()
    save(severity_sheet(open_picture(options.picture)), options.output / "corruptions.jpg")
    if options.data is not None:
        reference = read_reference(Path(options.data), options.preset)
        save(reference_sheet(reference, options.preset), options.output / "corruptions_beside_reference.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
