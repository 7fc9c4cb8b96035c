"""Figures of what was measured, as files: spectra, the detector's confusion and reliability, accuracy by severity."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.batches import corrupt_pixels
from dynbn_lightning.datamodules.released_images import is_of_released_set
from dynbn_lightning.datamodules.skipping import check_batch
from dynbn_lightning.datamodules.streams import make_loader, pairs_of
from dynbn_lightning.detection import log_amplitude_spectrum, opponent_channels
from dynbn_lightning.errors import DataError, DetectorError, first_few
from dynbn_lightning.files import check_output_folder, whole_file
from dynbn_lightning.progress import progress_bar
from dynbn_lightning.reporting.figures import confusion_figure, reliability_figure, severity_figure, spectra_figure
from dynbn_lightning.reporting.figures.canvas import check_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_figures(
    output: Path,
    *,
    results: dict[str, Any] | None = None,
    stream: str | None = None,
    detector: nn.Module | None = None,
    data: CorruptionDataModule | None = None,
    images: int = 200,
    temperature: float = 1.0,
    progress: bool = True,
) -> list[Path]:
    """Write the figures that there is input for, as PNG files; each is whole or not there.

    - `severity.png` from `results`: accuracy against severity, a line per method.
    - `spectra.png` from `data`: the mean spectrum of each corruption's brightness, over its severities.
    - `confusion.png` and `reliability.png` from `detector` and `data`: what it takes the test images for in each cell,
      and whether it is as right as it is sure.

    Args:
        output: Folder to write to; made if missing.
        results: As `reporting.read_results` gives them.
        stream: Which of the results' streams; `"mixed"` or else the first if not given.
        detector: A `DetectorModule`, or any module with `rows` that maps pixels in [0, 1] to logits (N, rows). It
            looks at images on the device that it is on; itself it is left alone.
        data: Its test images are shown in each of its cells; its rows must be the detector's.
        images: At most so many test images, the same ones in every cell, spread evenly over all there are.
        temperature: What the detector's logits are divided by, `bank.calibration.temperature` for instance.
        progress: Show a progress bar.

    Returns:
        The paths of the files, in the order of the list above.

    Raises:
        DataError: If there is nothing to draw, a detector without data, no test image, or results without the stream.
        DetectorError: If the detector's rows are not those of the data, or its logits are not of that number.
        OutputError: If the folder cannot be written to.
        DynBNError: If matplotlib is not installed.
    """
    if results is None and data is None:
        raise DataError("there is nothing to draw: pass results=, data=, or detector= with data=")
    if images < 1:
        raise DataError(f"images={images!r}: expected at least 1")
    if detector is not None:
        _check_detector(detector, data)
    check_matplotlib()
    check_output_folder(output)
    written = []
    if results is not None:
        written.append(_write(severity_figure(results, stream), output / "severity.png"))
    if data is not None:
        seen = look_at_images(data, detector, images=images, temperature=temperature, progress=progress)
        caption = _caption(data, seen.images)
        written.append(_write(spectra_figure(seen.spectra, caption=f"brightness of {caption}"), output / "spectra.png"))
        if detector is not None:
            correct = seen.detected == seen.rows
            for name, figure in (
                ("confusion", confusion_figure(seen.confusion(len(data.rows)), data.rows, caption=caption)),
                ("reliability", reliability_figure(seen.confidences, correct, caption=caption)),
            ):
                written.append(_write(figure, output / f"{name}.png"))
    return written


@dataclass(frozen=True)
class SeenImages:
    """What the figures show of test images in all cells.

    Attributes:
        images: how many images there were in each cell.
        spectra: `clean` and each corruption -> the mean log-amplitude of brightness, shape (H, W // 2 + 1), float64.
        rows: each image's true row, all cells one after another, shape (N,), int64; empty without a detector.
        detected: the row that the detector took it for, shape (N,), int64.
        confidences: the probability of that row, shape (N,), float32.
    """

    images: int
    spectra: dict[str, Tensor]
    rows: Tensor
    detected: Tensor
    confidences: Tensor

    def confusion(self, num_rows: int) -> Tensor:
        """How many images of each true row (first) were taken for each row (second), shape (num_rows, num_rows)."""
        pairs = torch.bincount(self.rows * num_rows + self.detected, minlength=num_rows**2)
        return pairs.reshape(num_rows, num_rows)


@torch.no_grad()
def look_at_images(
    data: CorruptionDataModule,
    detector: nn.Module | None = None,
    *,
    images: int = 200,
    temperature: float = 1.0,
    progress: bool = True,
) -> SeenImages:
    """Measure spectra of test images in each cell of `data`, and ask the detector, if there is one.

    Arguments and errors are those of `write_figures`; pixels are those that testing on `data` shows.
    """
    count = min(images, len(data.test_images))
    if count == 0:
        raise DataError("there are no test images to look at")
    # Folders come class by class: the first images would be of one class.
    chosen = [number * len(data.test_images) // count for number in range(count)]
    frozen = None if detector is None else copy.deepcopy(detector).float().eval()
    device = torch.device("cpu") if frozen is None else _device_of(frozen)
    spectra: dict[str, list[Tensor]] = {}
    rows, probabilities = [], []
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("looking at images", total=count * len(data.cells))
        for cell in data.cells:
            bar.update(task, description=cell.name)
            sums, looked_at = [], 0
            for pixels in _pixels_in(cell, data, chosen, device):
                sums.append(log_amplitude_spectrum(opponent_channels(pixels)[:, :1]).double().sum(dim=(0, 1)).cpu())
                if frozen is not None:
                    row = data.rows.index(cell.name if data.row_per == "cell" else cell.corruption)
                    rows.append(torch.full((len(pixels),), row))
                    probabilities.append(_probabilities(frozen, pixels, len(data.rows), temperature))
                bar.advance(task, len(pixels))
                looked_at += len(pixels)  # fewer than count where some can't be read
            spectra.setdefault(cell.corruption, []).append(torch.stack(sums).sum(dim=0) / looked_at)
    confidences, detected = torch.cat(probabilities or [torch.zeros(0, 1)]).max(dim=1)
    return SeenImages(
        images=count,
        spectra={name: torch.stack(by_severity).mean(dim=0) for name, by_severity in spectra.items()},
        rows=torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64),
        detected=detected,
        confidences=confidences,
    )


def _pixels_in(cell: Cell, data: CorruptionDataModule, indices: list[int], device: torch.device) -> Iterator[Tensor]:
    """Batches of test images in a cell, (N, C, H, W) in [0, 1], the very ones that the datamodule tests on."""
    loader = make_loader(
        data.test_images,
        [pairs_of(indices, cell.code)],
        split="test",
        form="detector",
        batch_size=data.batch_size,
        num_workers=data.num_workers,
    )
    for batch in loader:
        check_batch(batch, data.test_images)
        if is_of_released_set(data.test_images):
            yield batch.pixels.to(device).float() / 255
            continue
        pixels = corrupt_pixels(
            batch.pixels.to(device),
            batch.cells,
            batch.indices,
            seed=data.seed,
            split="test",
            preset=data.preset,
            frost_textures=data.frost_textures,
        )
        yield pixels.float() / 255


def _probabilities(detector: nn.Module, pixels: Tensor, num_rows: int, temperature: float) -> Tensor:
    logits: Tensor = detector(pixels)
    if logits.shape != (len(pixels), num_rows):
        raise DetectorError(
            f"{type(detector).__name__} says it knows {num_rows} rows but gave logits of shape {tuple(logits.shape)} "
            f"for {len(pixels)} images: expected ({len(pixels)}, {num_rows})"
        )
    return (logits.float() / temperature).softmax(dim=1).cpu()


def _check_detector(detector: nn.Module, data: CorruptionDataModule | None) -> None:
    if data is None:
        raise DataError("a detector is shown on images: pass data= too")
    rows = tuple(getattr(detector, "rows", None) or ())
    if rows != data.rows:
        raise DetectorError(
            f"the detector's rows are not those of the data: {first_few([str(row) for row in rows]) or 'none'}; "
            f"expected {first_few(data.rows)}. Use the corruptions, severities and row_per that it was fitted with."
        )


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _caption(data: CorruptionDataModule, images: int) -> str:
    severities = ", ".join(map(str, data.severities))
    shown = f"{images} test images of {data.provenance(tested=True)['source']} in each of {len(data.cells)} cells"
    return f"{shown}, severities {severities}, seed {data.seed}"


def _write(figure: Figure, path: Path) -> Path:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi="figure", format="png")
    return path
