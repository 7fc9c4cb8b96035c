"""Quantiles of activations, and the monotone maps between two distributions that they describe: pure functions."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_CACHED_VALUES = 2**17
_VALUES_ON_DEVICE = 2**26  # beyond the start of an operation more values at once gain nothing, and take memory


def probabilities(count: int) -> Tensor:
    """The probabilities of `count` quantiles, (i + 1/2) / count: minimum and maximum, which are noise, left out."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def quantiles_of(values: Tensor, count: int) -> Tensor:
    """Quantiles of the last dimension at `probabilities(count)`, linear between order statistics.

    Args:
        values: (..., n), floating.
        count: Q.

    Returns:
        (..., Q), ascending, in float32 or float64.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    ordered = values.to(dtype).sort(dim=-1).values
    below, above, share = _places(count, values.shape[-1], values.device, dtype)
    return torch.lerp(ordered[..., below], ordered[..., above], share)


@lru_cache(maxsize=256)
def _places(count: int, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Which of `length` ordered values a quantile lies between, and how far; kept, or each call would wait for CUDA."""
    with torch.inference_mode(False):
        place = probabilities(count) * (length - 1)
        below = place.long()
        share = (place - below).to(dtype)
        return below.to(device), (below + 1).clamp(max=length - 1).to(device), share.to(device)


def sampled(x: Tensor, samples: int | None, *, per_image: bool) -> Tensor:
    """Activations to estimate quantiles from: those of each channel, or of each channel of each image.

    Args:
        x: (N, C, L).
        samples: how many for each quantile function, drawn with the same draws in every call; None for all.
        per_image: whether each image has quantiles of its own.

    Returns:
        (N, C, n) if `per_image`, else (1, C, n).
    """
    images, channels, length = x.shape
    if per_image:
        if samples is None or length <= samples:
            return x
        return x.index_select(2, _draws(1, length, samples, x.device)[0])
    if samples is not None and images * length > samples:
        if images > samples:
            x = x[:: images // samples]
        draws = _draws(len(x), length, max(1, samples // len(x)), x.device)
        x = x.gather(2, draws.unsqueeze(1).expand(-1, channels, -1))
    return x.transpose(0, 1).reshape(1, channels, -1)


@lru_cache(maxsize=256)
def _draws(images: int, length: int, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    with torch.inference_mode(False):  # kept for forwards in any mode
        return torch.randint(length, (images, count), generator=generator, device="cpu").to(device)


def map_values(x: Tensor, start: Tensor, end: Tensor, bins: int | None = None) -> Tensor:
    """Move activations by the piecewise linear maps that take the knots `start` to the knots `end`.

    With the quantiles of two distributions as knots this is the 1-D Wasserstein-optimal map between them. Beyond the
    first and the last knot it goes on with the slope between these two, so the map commutes with shifts and scalings.
    Where several knots of `start` are one value, that value goes to the mean of theirs in `end`.

    Args:
        x: (N, C, L), floating.
        start: (N, C, Q), or (1, C, Q) for all images; ascending.
        end: where they go, of the shape of `start`.
        bins: take the maps at the ends of so many equal bins of each range of knots, and straight between, which costs
            far less; None for the knots themselves.

    Returns:
        (N, C, L) in the dtype of `x`.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    start, end = start.to(dtype), _mean_of_ties(start.to(dtype), end.to(dtype))
    if bins is None:
        return _interpolate(x.to(dtype), start.expand(len(x), -1, -1), end.expand(len(x), -1, -1)).to(x.dtype)
    low, width = start[..., :1], (start[..., -1:] - start[..., :1]) / bins
    nodes = low + width * torch.arange(bins + 1, device=x.device, dtype=dtype)
    heights = _interpolate(nodes, start, end)
    per_width = torch.where(width * bins > _constant(dtype), 1 / width, 0)
    overall = (end[..., -1:] - end[..., :1]) * per_width / bins
    slopes = torch.cat([overall, heights.diff(dim=-1) * per_width, overall], -1)
    at = torch.cat([low, nodes[..., :-1], nodes[..., -1:]], -1)
    shifts = torch.cat([heights[..., :1], heights[..., :-1], heights[..., -1:]], -1) - slopes * at
    # Bin 0 is below the range, bin `bins + 1` above it.
    return _look_up(x, per_width, 1 - low * per_width, slopes.contiguous(), shifts.contiguous())


def _interpolate(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    rows, knots = start.shape[0] * start.shape[1], start.shape[2]
    values, start, end = x.reshape(rows, -1).contiguous(), start.reshape(rows, knots), end.reshape(rows, knots)
    run, rise = start.diff(dim=1), end.diff(dim=1)
    ranges = start[:, -1:] - start[:, :1]
    constant = ranges <= _constant(start.dtype)
    whole = torch.where(constant, 0, (end[:, -1:] - end[:, :1]) / ranges)
    steepest = torch.finfo(start.dtype).max
    slopes = torch.cat([whole, torch.where(run > 0, rise / run, 0).clamp(-steepest, steepest), whole], 1)
    at, height = (torch.cat([table[:, :1], table], 1) for table in (start, end))
    segment = torch.searchsorted(start.contiguous(), values)
    moved = height.gather(1, segment) + slopes.gather(1, segment) * (values - at.gather(1, segment))
    return torch.where(constant, end.mean(1, keepdim=True), moved).view(x.shape)


def _mean_of_ties(start: Tensor, end: Tensor) -> Tensor:
    first = torch.zeros_like(start[..., :1], dtype=torch.long)
    group = torch.cat([first, (start.diff(dim=-1) > 0).long()], -1).cumsum(-1)
    sums = torch.zeros_like(end).scatter_add(-1, group, end)
    counts = torch.zeros_like(end).scatter_add(-1, group, torch.ones_like(end))
    return (sums / counts.clamp(min=1)).gather(-1, group)


def _constant(dtype: torch.dtype) -> float:
    """The range up to which a channel is taken for constant: slopes over less would not be finite."""
    return torch.finfo(dtype).tiny * 2**13


def _look_up(x: Tensor, scale: Tensor, offset: Tensor, slopes: Tensor, shifts: Tensor) -> Tensor:
    """Slope * x + shift of the bin that scale * x + offset falls into, a part of the images at a time."""
    images, channels, length = x.shape
    tables, _, bins = slopes.shape
    flat_slopes, flat_shifts = slopes.view(-1), shifts.view(-1)
    first = (torch.arange(tables * channels, device=x.device, dtype=torch.int32) * bins).view(tables, channels, 1)
    at_once = max(1, (_CACHED_VALUES if x.device.type == "cpu" else _VALUES_ON_DEVICE) // (channels * length))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for begin in range(0, images, at_once):
        some = slice(begin, begin + at_once)
        one, of_these = x[some].to(slopes.dtype), some if tables > 1 else slice(None)
        place = torch.addcmul(offset[of_these], one, scale[of_these]).clamp_(0, bins - 1)
        # Clamped once more as whole numbers: NaN is none, and must not lead out of the table.
        entry = place.to(torch.int32).clamp_(0, bins - 1).add_(first[of_these]).reshape(-1)
        slope = flat_slopes.index_select(0, entry).view(one.shape)
        out[some] = flat_shifts.index_select(0, entry).view(one.shape).addcmul_(slope, one)
    return out


def shapes_of(quantiles: Tensor) -> Tensor:
    """Quantiles (..., Q) less their mean, over their standard deviation: the form of a distribution alone.

    A constant, which has no form, becomes 0.
    """
    centred = quantiles - quantiles.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    # The rounding of a mean is no deviation.
    noise = quantiles.abs().amax(-1, keepdim=True) * torch.finfo(quantiles.dtype).eps * math.sqrt(quantiles.shape[-1])
    return torch.where(deviation > noise, centred / deviation, 0)
