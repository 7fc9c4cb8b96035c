"""Mixtures of rows: one mean and one variance per image from weights over the rows of a bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dynbn_lightning.errors import RoutingError

Mixing = Literal["moments", "average"]
_CACHED_VALUES = 2**17
MIXINGS: tuple[str, ...] = get_args(Mixing)


def check_mixing(mixing: str) -> None:
    """Raise `RoutingError` unless `mixing` is one of `MIXINGS`."""
    if mixing not in MIXINGS:
        raise RoutingError(f"mixing {mixing!r} is not one of {', '.join(MIXINGS)}")


def check_weights(weights: Tensor, num_rows: int) -> Tensor:
    """Return mixture weights (N, K) or (K,) if shape and dtype fit a bank of K rows, else raise `RoutingError`."""
    if weights.dim() not in (1, 2) or weights.shape[-1] != num_rows or not weights.is_floating_point():
        raise RoutingError(
            f"an assignment is row numbers (N,), or mixture weights (N, {num_rows}) of a floating dtype, a column per "
            f"row of the bank, or ({num_rows},) for all images; got {tuple(weights.shape)} of {weights.dtype}"
        )
    return weights


def mix_rows(weights: Tensor, means: Tensor, variances: Tensor, mixing: Mixing = "moments") -> tuple[Tensor, Tensor]:
    """Mean and variance of each image's mixture of rows.

    `"moments"` gives the moments of the mixture distribution: mean = sum w_k mean_k and
    var = sum w_k (var_k + (mean_k - mean)^2); summed in this form, for sum w_k mean_k^2 - mean^2 cancels in float32.
    `"average"` leaves the spread of the means out: var = sum w_k var_k. A one-hot weight copies its row exactly in
    both.

    Args:
        weights: shape (N, K), each row non-negative and summing to 1.
        means: shape (K, C).
        variances: shape (K, C), unbiased.
        mixing: how variances are mixed.

    Returns:
        Means and variances, both (N, C), in the dtype of `means`.

    Raises:
        RoutingError: if shapes don't fit or `mixing` is unknown.
    """
    check_weights(weights, len(means))
    if weights.dim() != 2:
        raise RoutingError(f"weights of shape {tuple(weights.shape)}: expected (N, {len(means)})")
    check_mixing(mixing)
    if means.shape != variances.shape:
        raise RoutingError(f"means of shape {tuple(means.shape)} but variances of shape {tuple(variances.shape)}")
    with torch.autocast(weights.device.type, enabled=False):
        columns = weights.to(means).unsqueeze(2).unbind(1)  # K of (N, 1)
        # On a CPU as many channels at a time as its cache holds; elsewhere the start of an operation costs more.
        at_once = max(1, _CACHED_VALUES // len(weights)) if means.device.type == "cpu" else means.shape[1]
        parts = [
            _mix(columns, *tables, mixing)
            for tables in zip(means.split(at_once, 1), variances.split(at_once, 1), strict=True)  # type: ignore[no-untyped-call]
        ]
    mean, var = (torch.cat(tables, 1) for tables in zip(*parts, strict=True))
    return mean, var


def mix_values(weights: Tensor, values: Tensor) -> Tensor:
    """Each image's average of the rows' values: shape (N, V) from weights (N, K) and values (K, V).

    Like the means of `mix_rows`: in the dtype of `values`, a one-hot weight copying its row exactly, and rounded alike
    whatever the batch size.
    """
    with torch.autocast(weights.device.type, enabled=False):
        return _average(weights.to(values).unsqueeze(2).unbind(1), values)


def _average(columns: Sequence[Tensor], values: Tensor) -> Tensor:
    average = values.new_zeros(len(columns[0]), values.shape[1])
    # Row by row and not as a matrix product, which may run in TF32 or bfloat16 (then a one-hot weight copies no row)
    # and whose rounding depends on the batch size; nor at once, for (N, K, C) would be gigabytes.
    for weight, row in zip(columns, values, strict=True):
        average.addcmul_(weight, row)
    return average


def _mix(columns: Sequence[Tensor], means: Tensor, variances: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    mean, var = _average(columns, means), _average(columns, variances)
    if mixing == "moments":
        for weight, row_mean in zip(columns, means, strict=True):
            var.addcmul_(weight, (row_mean - mean).square())
    return mean, var


def blend_with_source(weights: Tensor, source_weight: float | Tensor) -> Tensor:
    """Mixture weights of which a share goes to row 0, the source statistics: (1 - s) * weights + s * (row 0).

    Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation", section 3,
    blend source and target statistics with s = N / (N + n); they average the variances (`mixing="average"`).

    Args:
        weights: shape (N, K), or (K,) for one mixture.
        source_weight: the share s in [0, 1]: one number, or one for each image, shape (N,).

    Returns:
        Weights of the shape and dtype of `weights`; with s = 0 exactly these, with s = 1 exactly row 0.

    Raises:
        RoutingError: if `source_weight` is outside [0, 1] or of another shape.
    """
    share = torch.as_tensor(source_weight, dtype=weights.dtype)
    if share.dim() and share.shape != weights.shape[:-1]:
        images = f"{len(weights)} images" if weights.dim() == 2 else "an assignment that all images share"
        raise RoutingError(
            f"source_weight of shape {tuple(share.shape)} for {images}: expected one number"
            + (", or one for each image" if weights.dim() == 2 else "")
        )
    low, high = torch.stack(share.reshape(-1).aminmax()).tolist()
    if not (low >= 0 and high <= 1):
        raise RoutingError(f"source_weight from {low:.3g} to {high:.3g}: expected shares in [0, 1]")
    share = share.to(weights.device).unsqueeze(-1)
    source = torch.zeros_like(weights)
    source[..., 0] = 1
    return weights * (1 - share) + source * share
