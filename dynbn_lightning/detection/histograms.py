"""How often pixel values and magnitudes of detail occur in an image: what a spectrum cannot tell."""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL_EDGES: tuple[int, ...] = (1, *range(16, 255, 16), 255)
"""Lower edges of the bins of levels after the first: 0 and 255 apart (clipping, salt and pepper), 16 bins between."""

DETAIL_EDGES: tuple[float, ...] = tuple(2.0 ** (0.625 * step - 2.0) - 0.25 for step in range(1, 16))
"""Lower edges of the bins of detail after the first, in levels: the first is none at all, then in equal ratios."""

MASS_FLOOR = 1.0 / 1024.0
"""Added to the shares before the logarithm: one pixel of a 32 x 32 image."""


def log_histogram(values: Tensor, edges: tuple[float, ...]) -> Tensor:
    """The logarithm of the share of values in each bin.

    Logarithms, because a corruption shows as readily in a rare value that became ten times as frequent.

    Args:
        values: Shape (N, C, H, W).
        edges: Lower edges of all bins but the first, rising; a value on an edge is in the upper bin. There are
            len(edges) + 1 bins, and the outer ones are open.

    Returns:
        log(share + `MASS_FLOOR`), shape (N, C, bins). The same, bit for bit, in whatever order values are counted.
    """
    flat = values.flatten(2)
    # Made here and sent without waiting: made on a CUDA device, it would wait for all work before it.
    boundaries = torch.tensor(edges, dtype=flat.dtype).to(flat.device, non_blocking=True)
    bins = torch.bucketize(flat, boundaries, right=True)
    counts = torch.zeros(*flat.shape[:2], len(edges) + 1, dtype=torch.float32, device=flat.device)
    counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=torch.float32))  # whole numbers: exact in any order
    return torch.log(counts / flat.shape[2] + MASS_FLOOR)
