"""A batch worked on in parts: as many images at a time as a core's cache holds, and as many parts as there are cores.

On a CPU what costs is moving pixels to and from memory, and starting threads for every small operation. So a part
goes through all the operations of a corruption while it lies in the caches of one core. Far smaller parts would cost
more again: Python starts the operations of one core at a time. An accelerator takes far larger ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dynbn_lightning.corruptions.quantization import HIGHEST_LEVEL, floor_to_uint8

_CACHED_VALUES = 1 << 19
_ACCELERATOR_VALUES = 1 << 26
_LARGE_BLOCK = 30 << 20


class Sliceable(Protocol):
    """What goes image by image: a tensor whose first dimension is the image, or the images' `Draws`."""

    def __getitem__(self, part: slice, /) -> Sliceable:
        """Of these images only."""
        ...


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def on_pixels(images: Tensor, work: Callable[..., Tensor], *per_image: Sliceable, by_layer: bool = False) -> Tensor:
    """What `work` makes of the images, part by part.

    Args:
        images: Images (N, C, H, W) of any dtype.
        work: Takes some of the images, contiguous, and the same part of each of `per_image`, and returns as many images
            of the same shape and dtype. It may run on several threads at once, and must not change what it is given.
        per_image: Tensors or `Draws` with something for each of the N images.
        by_layer: Whether the work is mostly on layers of one channel, so that parts may have more images.

    Returns:
        New contiguous images (N, C, H, W).
    """
    made = torch.empty_like(images, memory_format=torch.contiguous_format)

    def work_on(part: slice) -> None:
        made[part] = work(images[part].contiguous(), *(each[part] for each in per_image))

    on_all_cores(work_on, parts_of(images[:, :1] if by_layer else images), images.device)
    return made


def on_levels(images: Tensor, work: Callable[..., Tensor], *per_image: Sliceable, by_layer: bool = False) -> Tensor:
    """What `work` makes of the images as levels: float32 numbers from 0 to 255.

    Args:
        images: Images (N, C, H, W), uint8 or float32 in [0, 1].
        work: Like that of `on_pixels`, with float32 levels coming in, its own to write to, and float32 or float64
            levels going out. They need not lie within 0 to 255: here they are clipped, and for uint8 images truncated.
        per_image: Tensors or `Draws` with something for each of the N images.
        by_layer: Whether the work is mostly on layers of one channel, so that parts may have more images.

    Returns:
        New contiguous images (N, C, H, W) of the dtype of `images`.
    """

    def work_on_levels(pixels: Tensor, *parts: Sliceable) -> Tensor:
        if pixels.dtype == torch.uint8:
            return floor_to_uint8(work(pixels.to(torch.float32), *parts))
        return work(pixels * HIGHEST_LEVEL, *parts).clamp_(0.0, HIGHEST_LEVEL).div_(HIGHEST_LEVEL)

    return on_pixels(images, work_on_levels, *per_image, by_layer=by_layer)


def parts_of(images: Tensor) -> list[slice]:
    """The parts, one image or more each, to work on images (N, ...) in."""
    on_cpu = images.device.type == "cpu"
    values, cores = (_CACHED_VALUES, torch.get_num_threads()) if on_cpu else (_ACCELERATOR_VALUES, 1)
    most = max(1, values // images[0].numel())
    # As many parts for every core: the last ones would leave some idle.
    count = cores * -(-len(images) // (cores * most))
    size = -(-len(images) // count)
    return [slice(first, first + size) for first in range(0, len(images), size)]


def on_all_cores(work: Callable[[_Item], _Result], items: Sequence[_Item], device: torch.device) -> list[_Result]:
    """`work` on each of the items, in torch's number of threads where the device is the CPU.

    Every thread does a whole item by itself. What torch keeps per thread goes along: no gradients are recorded,
    nothing is autocast, and inference mode is that of the caller.
    """
    on_cpu = device.type == "cpu"
    if on_cpu:
        _keep_freed_memory()
    if not on_cpu or torch.get_num_threads() == 1 or len(items) == 1:
        return [work(item) for item in items]
    inference = torch.is_inference_mode_enabled()

    def work_in_thread(item: _Item) -> _Result:
        with torch.inference_mode(inference), torch.no_grad():
            return work(item)

    return list(_workers(torch.get_num_threads(), os.getpid()).map(work_in_thread, items))


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    # The C library of Linux hands a freed block back to the system, to be zeroed before its next use, which takes
    # longer than to compute what goes there; until the first large block is freed, from which it learns. This is one.
    torch.empty(_LARGE_BLOCK, dtype=torch.uint8)


@lru_cache(maxsize=1)
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    # A forked process has the parent's pool, but not its threads: hence the process among the arguments.
    workers = ThreadPoolExecutor(threads, "dynbn-corrupt", initializer=_use_one_thread)
    # A thread that sets its number of torch threads sets the one that other threads begin with, too. That is put back
    # once all of these have begun.
    all_there = Barrier(threads)
    list(workers.map(lambda _: all_there.wait(), range(threads)))
    torch.set_num_threads(threads)
    return workers


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # Takes the number over for good; a thread that was not asked would do so later.
