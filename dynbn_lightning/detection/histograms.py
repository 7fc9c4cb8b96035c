"""How often pixel values and magnitudes of detail occur in an image: what a spectrum cannot tell."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL_EDGES: tuple[int, ...] = (1, *range(16, 255, 16), 255)
"""Lower edges of the bins of levels after the first: 0 and 255 apart (clipping, salt and pepper), 16 bins between."""

DETAIL_EDGES: tuple[float, ...] = tuple(2.0 ** (0.625 * step - 2.0) - 0.25 for step in range(1, 16))
"""Lower edges of the bins of detail after the first, in levels: the first is none at all, then in equal ratios."""

MASS_FLOOR = 1.0 / 1024.0
"""Added to the shares before the logarithm: one pixel of a 32 x 32 image."""


class Bins(NamedTuple):
    """Which bin each multiple of a step is in: looked up, at a tenth of the cost of searching the edges."""

    table: Tensor
    """The bin of 0, step, 2 step and so on, int32; the last one goes for all larger values too."""
    step: float
    size: int

    @classmethod
    def between(cls, edges: tuple[float, ...], step: float = 1.0) -> Bins:
        """Bins by the lower edges of all but the first, rising; a value on an edge is in the upper bin."""
        multiples = int(edges[-1] / step) + 2
        table = torch.tensor([bisect_right(edges, number * step) for number in range(multiples)], dtype=torch.int32)
        return cls(table, step, len(edges) + 1)


LEVEL_BINS = Bins.between(LEVEL_EDGES)
DETAIL_BINS = Bins.between(DETAIL_EDGES, step=0.25)  # a quarter of a whole number: see `detail`


def log_histogram(values: Tensor, bins: Bins) -> Tensor:
    """The logarithm of the share of values in each bin.

    Logarithms, because a corruption shows as readily in a rare value that became ten times as frequent.

    Args:
        values: Shape (N, C, H, W), multiples of `bins.step`, none negative. NaN is counted in some bin.
        bins: See `Bins`; the outer ones are open.

    Returns:
        log(share + `MASS_FLOOR`), float32, shape (N, C, bins.size). The same, bit for bit, in whatever order values
        are counted.
    """
    flat = values.flatten(2)
    multiples = (flat if bins.step == 1 else flat / bins.step).int().clamp_(0, len(bins.table) - 1)
    # Sent without waiting: made on a CUDA device, it would wait for all work before it.
    table = bins.table.to(values.device, non_blocking=True)
    histograms = flat.shape[0] * flat.shape[1]
    chosen = table.index_select(0, multiples.flatten()).view(histograms, -1)
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        # All at once, each in its own stretch.
        chosen += bins.size * torch.arange(histograms, dtype=chosen.dtype).unsqueeze(1)
        counts = torch.bincount(chosen.flatten(), minlength=histograms * bins.size).float()
    else:  # `bincount` would wait for a CUDA device
        counts = torch.zeros(histograms, bins.size, dtype=torch.float32, device=values.device)
        counts.scatter_add_(1, chosen.long(), torch.ones_like(chosen, dtype=torch.float32))
    # Whole numbers: exact in whatever order they are added up.
    return torch.log(counts.view(*flat.shape[:2], bins.size) / flat.shape[2] + MASS_FLOOR)
