"""The mean spectrum of each corruption beside that of clean images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting.figures.canvas import SMALL_SIZE, TEXT, TEXT_SIZE, WIDTH, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

REFERENCE = "clean"
MOST_COLUMNS = 5
SHOWN_FACTORS = (2, 4, 8, 16, 32, 64)
# A few frequencies of one corruption may be off the scale, so that the others are not all pale.
SHARE_ON_SCALE = 0.995


def spectra_figure(spectra: Mapping[str, Tensor], *, caption: str = "") -> Figure:
    """Draw what each corruption adds to and takes from the amplitude of every spatial frequency.

    Clean images are shown on a scale of their own, the corruptions as their difference from clean on one common
    scale, red where they add and blue where they take away; the zero frequency is in the middle.

    Args:
        spectra: By name, `"clean"` among them, mean log-amplitudes as `detection.log_amplitude_spectrum` lays them
            out: shape (H, W // 2 + 1), the zero frequency at row H // 2 and column 0. W is taken to be even where H is.
        caption: What they were measured on.

    Returns:
        A figure with an axes per name, titled by it, and two colour bars.

    Raises:
        DataError: If `"clean"` is missing, there is no corruption, or the shapes differ or are not of rank 2.
        DynBNError: If matplotlib is not installed.
    """
    _check(spectra)
    corruptions = [name for name in spectra if name != REFERENCE]
    clean = spectra[REFERENCE].detach().cpu().double()
    differences = {name: full_spectrum(spectra[name].detach().cpu().double() - clean) for name in corruptions}
    size = torch.stack(list(differences.values())).abs()
    limit = max(float(size.flatten().sort().values[int(SHARE_ON_SCALE * (size.numel() - 1))]), math.log(1.1))

    columns = _columns(len(spectra))
    grid_rows = -(-len(spectra) // columns)
    panel = 0.9 * WIDTH / columns
    title = "Mean log-amplitude spectra: clean, and what each corruption changes"
    figure = new_figure(title, caption, height=(panel + 0.25) * grid_rows + 1.8)
    grid = figure.add_gridspec(grid_rows + 1, columns, height_ratios=[1.0] * grid_rows + [0.12 / panel])
    for place, name in enumerate([REFERENCE, *corruptions]):
        axes = figure.add_subplot(grid[place // columns, place % columns])
        if name == REFERENCE:
            of_clean = _show(axes, name, full_spectrum(clean), clean.shape, cmap="cividis")
        else:
            of_corruption = _show(axes, name, differences[name], clean.shape, cmap="RdBu_r", vmin=-limit, vmax=limit)
        leftmost, lowest = place % columns == 0, place + columns >= len(spectra)
        axes.tick_params(labelleft=leftmost, labelbottom=lowest)
        axes.set_ylabel("cycles per pixel" if leftmost else "", size=SMALL_SIZE, color=TEXT)
        axes.set_xlabel("cycles per pixel" if lowest else "", size=SMALL_SIZE, color=TEXT)

    bar = figure.colorbar(of_clean, cax=figure.add_subplot(grid[-1, 0]), orientation="horizontal")
    _label_bar(bar, "clean: log amplitude")
    extend = "both" if float(size.max()) > limit else "neither"
    bar = figure.colorbar(of_corruption, cax=figure.add_subplot(grid[-1, 1:]), orientation="horizontal", extend=extend)
    _label_bar(bar, "corruptions: amplitude as a factor of clean's")
    factors = [factor for factor in SHOWN_FACTORS if math.log(factor) <= limit]
    bar.set_ticks(
        [*(-math.log(factor) for factor in reversed(factors)), 0.0, *map(math.log, factors)],
        labels=[*(f"÷{factor}" for factor in reversed(factors)), "as clean", *(f"×{factor}" for factor in factors)],
    )
    return figure


def _columns(count: int) -> int:
    """From 4 columns on, as many as leave the fewest gaps in the last row; as many as there are, if they are fewer."""
    return min(count, min(range(MOST_COLUMNS, 3, -1), key=lambda columns: -count % columns))


def full_spectrum(half: Tensor) -> Tensor:
    """Both halves of the spectrum of real images, of which one repeats the other turned by 180 degrees.

    The highest frequency of an even size stands at both ends, so that the picture is symmetric.

    Args:
        half: Shape (H, W // 2 + 1), the zero frequency at row H // 2 and column 0.

    Returns:
        Shape (H + 1 or H, whichever is odd, 2 * (W // 2) + 1), the zero frequency in the middle.
    """
    if half.shape[0] % 2 == 0:
        half = torch.cat([half, half[:1]])
    return torch.cat([half.flip(0, 1)[:, :-1], half], dim=1)


def _check(spectra: Mapping[str, Tensor]) -> None:
    if REFERENCE not in spectra or len(spectra) < 2:
        raise DataError(
            f"expected the spectra of {REFERENCE!r} and of a corruption, got {', '.join(spectra) or 'none'}"
        )
    shapes = {name: tuple(spectrum.shape) for name, spectrum in spectra.items()}
    for name, shape in shapes.items():
        if len(shape) != 2 or 0 in shape or shape != shapes[REFERENCE]:
            raise DataError(
                f"expected mean spectra of one shape (H, W // 2 + 1), got {shape} for {name!r} and "
                f"{shapes[REFERENCE]} for {REFERENCE!r}"
            )


def _show(axes: Axes, name: str, full: Tensor, half_shape: Sequence[int], **colours: Any) -> AxesImage:
    height = half_shape[0]
    width = max(2 * (half_shape[1] - 1) + height % 2, 1)
    across, down = full.shape[1] / width / 2, full.shape[0] / height / 2
    shown = axes.imshow(full.numpy(), extent=(-across, across, down, -down), interpolation="nearest", **colours)
    axes.set_title(name, size=TEXT_SIZE, color=TEXT, pad=4)
    axes.set_xticks([-0.5, 0, 0.5], ["−½", "0", "½"])
    axes.set_yticks([-0.5, 0, 0.5], ["−½", "0", "½"])
    plain_axes(axes, framed=True)
    return shown


def _label_bar(bar: Colorbar, label: str) -> None:
    bar.set_label(label, size=TEXT_SIZE, color=TEXT)
    bar.ax.tick_params(labelsize=SMALL_SIZE, colors=TEXT)
    bar.outline.set_visible(False)
