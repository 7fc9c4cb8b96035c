"""Batch normalisation with the batch's own moments, one row of statistics, or one row per image: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dynbn_lightning.errors import RoutingError

_CACHED_VALUES = 2**18
_PARALLEL_VALUES = 2**15  # from here on torch may add up a single row with several threads


def normalize_batch(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalise activations with given statistics, as `torch.nn.functional.batch_norm` does in evaluation.

    Args:
        x: activations, shape (N, C) or (N, C, *spatial), floating.
        mean: shape (C,) for one row shared by the batch, or (N, C) for a row per image.
        var: variances, of the shape of `mean`.
        weight: scale per channel, shape (C,), or None; with a row per image also (N, C), a scale per image.
        bias: shift per channel, of the shape of `weight`, or None.
        eps: added to the variance.

    Returns:
        Normalised activations: shape, dtype and memory format of `x`. The statistics are used in float32 (float64 for
        float64 activations), whatever the dtype of `x`. Gradients flow to statistics that require them.

    Raises:
        RoutingError: if the statistics are of another number of images or channels than `x`.
    """
    dtype = _statistics_dtype(x)
    mean, var = mean.to(dtype), var.to(dtype)
    weight = None if weight is None else weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if mean.shape[-1] != x.shape[1]:
        raise RoutingError(f"statistics of {mean.shape[-1]} channels for activations of {x.shape[1]} channels")
    if mean.dim() == 2 and mean.shape[0] != x.shape[0]:
        raise RoutingError(f"statistics of {mean.shape[0]} images for activations of {x.shape[0]}")
    if _needs_gradient(mean, var):
        return _normalize_with_gradients(x, mean, var, weight, bias, eps)
    if mean.dim() == 1:
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    # The same kernel as the layer's own in both ways, so the same bits, where x * scale + shift would round
    # differently in about a third of the values.
    if _is_eager_on_cpu(x) and memory_format_of(x) != torch.contiguous_format:
        return _normalize_image_by_image(x, mean, var, weight, bias, eps)
    return _normalize_in_one_view(x, mean, var, weight, bias, eps)


def _normalize_with_gradients(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    # torch's batch norm gives no gradients to the statistics that it evaluates with.
    per_channel = (-1, x.shape[1]) + (1,) * (x.dim() - 2)
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    return (x * scale.reshape(per_channel) + shift.reshape(per_channel)).to(x.dtype)


def _normalize_image_by_image(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    # Channels last: an image's channels are no rows of memory, and bringing them there and back costs more than
    # starting a kernel for every image.
    weights, biases = _for_each_image(weight, len(x)), _for_each_image(bias, len(x))
    if _needs_gradient(x, weight, bias):
        # `split` and not `unsqueeze`, whose strides the backward pass misreads.
        rows = zip(x.split(1), mean, var, weights, biases, strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([F.batch_norm(image, m, v, w, b, training=False, eps=eps) for image, m, v, w, b in rows])
    out, unused = torch.empty_like(x), mean.new_empty(0)
    with torch.no_grad():
        for image, m, v, w, b, target in zip(x.unsqueeze(1), mean, var, weights, biases, out.unsqueeze(1), strict=True):
            torch.ops.aten.native_batch_norm.out(
                image, w, b, m, v, False, 0.0, eps, out=target, save_mean=unused, save_invstd=unused
            )
    return out


def _for_each_image(value: Tensor | None, images: int) -> Sequence[Tensor | None]:
    return value.unbind() if value is not None and value.dim() == 2 else [value] * images


def _side_by_side(value: Tensor | None, images: int) -> Tensor | None:
    if value is None:
        return None
    return value.reshape(-1) if value.dim() == 2 else value.repeat(images)


def _normalize_in_one_view(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    # One batch norm on the (1, N * C, *spatial) view.
    images, channels, *spatial = x.shape
    mean, var = (table.reshape(-1).contiguous() for table in (mean, var))
    if x.device.type == "cpu" and not x.is_contiguous(memory_format=memory_format_of(x)):
        # The CPU has another kernel, which rounds differently, for when the activations or the statistics are strided:
        # the layer's own forward takes it for the activations, this one for the statistics.
        mean, var = (torch.stack([table, table], 1)[:, 0] for table in (mean, var))
    out = F.batch_norm(
        x.contiguous().view(1, images * channels, *spatial),
        mean,
        var,
        _side_by_side(weight, images),
        _side_by_side(bias, images),
        training=False,
        eps=eps,
    ).view(x.shape)
    return out.contiguous(memory_format=memory_format_of(x))


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format that `x` is laid out in: channels last where it is so and is not also contiguous."""
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def normalize_with_batch_moments(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise activations by their own moments and return these: one fused pass, as in training mode.

    Args:
        x: activations, shape (N, C) or (N, C, *spatial), floating, with more than one value per channel.
        weight: scale per channel, shape (C,), or None.
        bias: shift per channel, shape (C,), or None.
        eps: added to the (biased) batch variance.

    Returns:
        Normalised activations, the batch mean (C,) and the unbiased batch variance (C,), the moments in float32
        (float64 for float64 activations).

    Raises:
        RoutingError: if `x` has a single value per channel, which has no variance.
    """
    _refuse_single_values(x)
    weight, bias = (None if value is None else value.to(_statistics_dtype(x)) for value in (weight, bias))
    if _moments_fit_cpu(x, weight, bias):
        count, mean, var = _moments_on_cpu(x)
        biased = (var * ((count - 1) / count)).to(_statistics_dtype(x))
        mean, var = mean.to(_statistics_dtype(x)), var.to(_statistics_dtype(x))
        return F.batch_norm(x, mean, biased, weight, bias, training=False, eps=eps), mean, var
    mean, var = (x.new_zeros(x.shape[1], dtype=_statistics_dtype(x)) for _ in range(2))
    # Momentum 1 makes the "running" statistics those of this batch: exactly, because 0 * 0 + 1 * value is.
    out = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=eps)
    return out, mean, var


def several_batch_moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """As `batch_moments`, but `RoutingError` for a single value per channel, which has no variance."""
    _refuse_single_values(x)
    return batch_moments(x)


def _refuse_single_values(x: Tensor) -> None:
    if x.numel() // x.shape[1] < 2:
        raise RoutingError(
            f"activations of shape {tuple(x.shape)} have one value per channel, so no variance: use larger batches"
        )


def batch_moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many values per channel there are, their mean and their unbiased variance.

    Args:
        x: activations, shape (N, C) or (N, C, *spatial), floating.

    Returns:
        The count, the mean (C,) and the variance (C,), both in float32 or float64; a single value per channel has the
        variance 0. Gradients flow from them where `x` requires them.
    """
    count = x.numel() // x.shape[1]
    if count == 1:
        mean = x.reshape(-1).to(_statistics_dtype(x))
        return count, mean, torch.zeros_like(mean)
    if _moments_fit_cpu(x):
        return _moments_on_cpu(x)
    if _needs_gradient(x):  # torch's batch norm gives none to the statistics it measures
        var, mean = torch.var_mean(x.to(_statistics_dtype(x)), dim=(0, *range(2, x.dim())), correction=1)
        return count, mean, var
    _, mean, var = normalize_with_batch_moments(x, None, None, eps=1e-5)
    return count, mean, var


def image_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of each image's own activations, channel by channel.

    Args:
        x: activations, shape (N, C) or (N, C, *spatial), floating.

    Returns:
        The mean and the variance, (N, C), in float32 (float64 for float64 activations); the variance of a single value
        is 0. An image's moments don't depend on the rest of the batch.
    """
    if x.dim() == 2:
        mean = x.to(_statistics_dtype(x))
        return mean, torch.zeros_like(mean)
    if _moments_fit_cpu(x):
        means, squares = _row_moments_on_cpu(x)
        return means.view(x.shape[:2]), (squares / math.prod(x.shape[2:])).view(x.shape[:2])
    var, mean = torch.var_mean(x.to(_statistics_dtype(x)), dim=tuple(range(2, x.dim())), correction=0)
    return mean, var


def _moments_on_cpu(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """As `batch_moments`, in float64, of contiguous activations."""
    count, values = x.numel() // x.shape[1], math.prod(x.shape[2:])
    means, squares = _row_moments_on_cpu(x)
    each = means.double().view(x.shape[:2])
    mean = each.mean(0)
    total = squares.double().view(x.shape[:2]).sum(0) + values * (each - mean).square().sum(0)
    return count, mean, total / (count - 1)


def _row_moments_on_cpu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and sum of squared deviations, of each channel of each image, (N * C,), of contiguous activations.

    Two passes over what a CPU's cache holds at a time, in a fraction of the time of torch's own kernel, which adds up
    one value after the other.
    """
    rows = x.view(x.shape[0] * x.shape[1], math.prod(x.shape[2:]))
    # Long rows one by one: of several, torch rounds each as one thread does, so that the last one of a batch, alone in
    # its part, would differ from itself in a larger batch.
    fitting = max(1, _CACHED_VALUES // rows.shape[1]) if rows.shape[1] < _PARALLEL_VALUES else 1
    at_once = min(len(rows), fitting)
    scratch = x.new_empty(at_once, rows.shape[1], dtype=_statistics_dtype(x))
    means, squares = scratch.new_empty(len(rows), 1), scratch.new_empty(len(rows))
    for start in range(0, len(rows), at_once):
        part, place = rows[start : start + at_once].to(scratch.dtype), slice(start, start + at_once)
        torch.mean(part, 1, keepdim=True, out=means[place])
        deviations = torch.sub(part, means[place], out=scratch[: len(part)])
        torch.sum(deviations.square_(), 1, out=squares[place])
    return means[:, 0], squares


def _moments_fit_cpu(x: Tensor, *others: Tensor | None) -> bool:
    return _is_eager_on_cpu(x) and x.dim() > 2 and x.is_contiguous() and not _needs_gradient(x, *others)


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _is_eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _needs_gradient(*values: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in values)
