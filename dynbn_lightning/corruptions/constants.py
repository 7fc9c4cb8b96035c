"""Severity constants that differ from image to image, as in a batch of several severities."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from dynbn_lightning.corruptions.randomness import Draws

Constant = float | Tensor
"""A severity constant: one number for all images, or a CPU tensor (N,) with a number for each of them."""


def for_each_image(constant: Constant, images: Tensor) -> Tensor:
    """The constant as a tensor (N, 1, 1, 1), float32, beside the images (N, C, H, W)."""
    if not isinstance(constant, Tensor):
        constant = torch.tensor(constant, dtype=torch.float32)
    return constant.to(images.device, torch.float32, non_blocking=True).view(-1, 1, 1, 1).expand(len(images), 1, 1, 1)


def by_constants(corruption: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a corruption whose constants shape its work take them per image: images that share all of them go together.

    Args:
        corruption: Takes images (N, C, H, W), `Draws` if it is random, and constants, which are numbers.

    Returns:
        The same, with constants that may be tensors (N,).
    """

    @wraps(corruption)
    def with_constants(images: Tensor, *arguments: Any) -> Tensor:
        draws = [argument for argument in arguments if isinstance(argument, Draws)]
        constants = arguments[len(draws) :]
        if not any(isinstance(constant, Tensor) for constant in constants):
            return corruption(images, *arguments)
        columns = [torch.as_tensor(constant, dtype=torch.float64).expand(len(images)) for constant in constants]
        groups: dict[tuple[float, ...], list[int]] = {}
        for image, row in enumerate(torch.stack(columns, dim=1).tolist()):
            groups.setdefault(tuple(row), []).append(image)
        made = torch.empty_like(images, memory_format=torch.contiguous_format)
        for row, chosen in groups.items():
            here = torch.tensor(chosen, device=images.device)
            picked = [each.pick(chosen) for each in draws]
            made.index_copy_(0, here, corruption(images.index_select(0, here), *picked, *row))
        return made

    return with_constants
