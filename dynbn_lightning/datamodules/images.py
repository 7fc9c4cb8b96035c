"""Any map-style data set as 8-bit image tensors with whole-number labels."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from ..errors import DataError, UnreadableImageError
from .image_files import OnError, file_of, read

_CACHE_BYTES = 512 * 2**20
SPREAD = 64


class PixelDataset(Dataset[tuple[Tensor, int]]):
    """The images of another data set as uint8 tensors (C, H, W), decoded once and kept while they fit in 512 MB.

    What the data set draws at random in its own transforms is therefore drawn once: leave augmentation out of it.

    Args:
        dataset: map-style, with items (image, label): a PIL image, a uint8 or [0, 1] floating tensor (C, H, W), or a
            uint8 array (H, W, C).
        image_size: if given, images of another size are resized so that their shorter side is 8/7 of it (256 for
            224) and their centre is cropped; images that have this size already are left alone.
        on_error: whether those who ask for many images leave out what can't be read (`"skip"`) or not (`"raise"`).
        kept_bytes: keep no more decoded pixels than these.

    Raises:
        UnreadableImageError: on access, for an item that can't be read, with its number and file.
        DataError: on access, for an item that is not such a pair, with its number.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        image_size: int | None = None,
        on_error: OnError = "raise",
        kept_bytes: int = _CACHE_BYTES,
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise DataError(f"{type(dataset).__name__} is not a map-style data set: it needs __getitem__ and __len__")
        if len(cast(Any, dataset)) == 0:
            raise DataError(f"{type(dataset).__name__} is empty")
        self.dataset = dataset
        self.image_size, self.on_error = image_size, on_error
        self._cache: dict[int, tuple[Tensor, int]] = {}
        self._cached_bytes, self._kept_bytes = 0, kept_bytes

    def __len__(self) -> int:
        return len(cast(Any, self.dataset))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self._cache:
            return self._cache[index]
        item = read(
            lambda: self.dataset[index], f"item {index} of {type(self.dataset).__name__}", self.path_of(index, None)
        )
        try:
            image, label, *_ = item
            pixels, number = self.resized(to_pixels(image)), int(label)
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            raise DataError(
                f"item {index} of {type(self.dataset).__name__} cannot be used as an (image, label) pair: {error}"
            ) from error
        if self._cached_bytes + pixels.numel() <= self._kept_bytes:
            self._cache[index] = (pixels, number)
            self._cached_bytes += pixels.numel()
        return pixels, number

    def read(self, index: int, code: int | None) -> tuple[Tensor, int]:
        """An image that is to be shown in the cell of this `Cell.code`, and its class; here as it is, whatever cell."""
        return self[index]

    def path_of(self, index: int, code: int | None) -> str | None:
        """The file of an image in a cell; None if it is not known."""
        return file_of(self.dataset, index)

    def can_be_read(self, index: int, code: int | None) -> bool:
        """Whether an image can be read in a cell."""
        try:
            self.read(index, code)
        except UnreadableImageError:
            return False
        return True

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first image (that can be read, where others are left out)."""
        for index in range(len(self)):
            try:
                channels, height, width = self[index][0].shape
            except UnreadableImageError:
                if self.on_error == "raise":
                    raise
            else:
                return channels, height, width
        raise DataError(f"none of the {len(self)} images of {type(self.dataset).__name__} can be read")

    @cached_property
    def labels(self) -> list[int]:
        """The class of each image, read off the data set's `targets` where it has them, else from its items.

        An image that is left out because it can't be read has -1 where only its item would tell.
        """
        targets = getattr(self.dataset, "targets", None)
        if targets is not None and len(targets) == len(self):
            return [int(target) for target in targets]
        return [self._label(index) for index in range(len(self))]

    def _label(self, index: int) -> int:
        try:
            return self[index][1]
        except UnreadableImageError:
            if self.on_error == "raise":
                raise
            return -1

    @cached_property
    def fingerprint(self) -> str:
        """A fingerprint of how many images there are, and of pixels and classes of up to 64 spread over them."""
        count = len(self)
        digest = hashlib.sha256(str(count).encode())
        for index, code in self._looked_at():
            try:
                pixels, label = self.read(index, code)
            except UnreadableImageError:
                if self.on_error == "raise":
                    raise
                digest.update(b"unreadable")
                continue
            digest.update(f"{tuple(pixels.shape)}{label}".encode())
            digest.update(pixels.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _looked_at(self) -> list[tuple[int, int | None]]:
        """The images, and the cells, that the fingerprint is of."""
        return [(index, None) for index in sorted({place * len(self) // SPREAD for place in range(SPREAD)})]

    def resized(self, pixels: Tensor) -> Tensor:
        """Pixels (C, H, W) at `image_size`."""
        size = self.image_size
        if size is None or pixels.shape[-2:] == (size, size):
            return pixels
        resized = transforms.resize(pixels, [round(size * 8 / 7)], antialias=True)
        return cast(Tensor, transforms.center_crop(resized, [size, size]))


def to_pixels(image: Any) -> Tensor:
    """A PIL image, an array or a tensor as uint8 pixels (C, H, W); ValueError or TypeError for what is none of them."""
    if isinstance(image, Image.Image):
        return cast(Tensor, transforms.pil_to_tensor(image.convert("RGB")))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3:
            raise ValueError(f"an array image needs shape (H, W, C) and dtype uint8, got {image.shape} {image.dtype}")
        return torch.from_numpy(image).permute(2, 0, 1).contiguous()
    if not isinstance(image, Tensor):
        raise TypeError(f"an image is a PIL image, a tensor or an array, got {type(image).__name__}")
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a tensor image needs shape (1 or 3, H, W), got {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"a tensor image is uint8, or floating in [0, 1]; got {image.dtype}")
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"its values go from {image.min():.3g} to {image.max():.3g}, not within [0, 1]: leave normalisation out of "
            "the data set's transform and pass normalization= to the datamodule instead"
        )
    return (image * 255).round().to(torch.uint8)
