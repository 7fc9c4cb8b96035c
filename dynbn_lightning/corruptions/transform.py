"""`Corrupt`: corruptions as a transform of torchvision, v2."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dynbn_lightning.corruptions.batch import corrupt
from dynbn_lightning.corruptions.cells import CLEAN, COMMON_CORRUPTIONS, SEVERITIES, check_corruption, check_severity
from dynbn_lightning.corruptions.presets import check_preset
from dynbn_lightning.errors import CorruptionError, ImageError

_LARGEST_SEED = 2**63 - 1


def _is_plain_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, tv_tensors.TVTensor)


class Corrupt(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Corrupt images, each by one corruption at one severity: fixed, or drawn at random for every image.

    It takes what transforms of torchvision v2 take: a PIL image, a `tv_tensors.Image`, a tensor (C, H, W) or
    (N, C, H, W), or a sample or batch that has one of them in it, of which labels and boxes stay as they are. It comes
    before the normalisation of a model's input. Random numbers are torch's global ones, so that `torch.manual_seed`,
    or a worker's seed in a `DataLoader`, makes it reproducible.

    Args:
        corruption: One of the 19 `CORRUPTIONS`, or several to draw from with equal chances for each image, `"clean"`
            among them for images to leave alone. By default the 15 common ones.
        severity: 1 to 5, or several to draw from. By default all five.
        preset: `"imagenet"`, `"tiny_imagenet"`, `"cifar"` or `"auto"`; see `corrupt`.
        quantize: Whether floats are moved down to 8-bit levels; see `corrupt`.
        frost_textures: A folder of photographs of ice for `frost`; see `corrupt`.

    Raises:
        CorruptionError: If there is no such corruption, severity or preset.

    Examples:
        >>> import torch
        >>> from torchvision.transforms import v2
        >>> from dynbn_lightning.corruptions import Corrupt
        >>> transform = v2.Compose([Corrupt("fog", 3), v2.ToDtype(torch.float32, scale=True)])
        >>> images, labels = transform(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8))
        >>> images.shape, labels.tolist()
        (torch.Size([8, 3, 32, 32]), [0, 1, 2, 3, 4, 5, 6, 7])
    """

    _transformed_types = (tv_tensors.Image, Image.Image, _is_plain_tensor)

    def __init__(
        self,
        corruption: str | Sequence[str] = COMMON_CORRUPTIONS,
        severity: int | Sequence[int] = SEVERITIES,
        preset: str = "auto",
        *,
        quantize: bool = True,
        frost_textures: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.corruption = (corruption,) if isinstance(corruption, str) else tuple(corruption)
        self.severity = tuple(severity) if isinstance(severity, Sequence) else (severity,)
        if not self.corruption or not self.severity:
            raise CorruptionError("there is no corruption or no severity to choose from: pass at least one of each")
        for name in self.corruption:
            if name != CLEAN:
                check_corruption(name)
        for number in self.severity:
            check_severity(number)
        self.preset = check_preset(preset)
        self.quantize = quantize
        self.frost_textures = frost_textures

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the corruption, the severity and the seed of each image."""
        counts = {_batch_of(image).shape[0] for image in flat_inputs}
        if len(counts) > 1:
            raise ImageError(f"the sample has images in batches of {sorted(counts)}: transform them one after another")
        count = counts.pop() if counts else 0
        names = [self.corruption[number] for number in torch.randint(len(self.corruption), (count,)).tolist()]
        severities = [self.severity[number] for number in torch.randint(len(self.severity), (count,)).tolist()]
        return {
            "names": names,
            "severities": [0 if name == CLEAN else number for name, number in zip(names, severities, strict=True)],
            "seeds": torch.randint(_LARGEST_SEED, (count,)).tolist(),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Corrupt one image or batch by what was drawn for it."""
        batch = _batch_of(inpt)
        made = corrupt(
            batch,
            params["names"],
            params["severities"],
            self.preset,
            seeds=params["seeds"],
            quantize=self.quantize,
            frost_textures=self.frost_textures,
        )
        if isinstance(inpt, Image.Image):
            return F.to_pil_image(made[0])
        return (
            tv_tensors.wrap(made.view(inpt.shape), like=inpt)
            if isinstance(inpt, tv_tensors.TVTensor)
            else made.view(inpt.shape)
        )


def _batch_of(image: Any) -> Tensor:
    """An image, or a batch of them, as a tensor (N, C, H, W)."""
    tensor: Tensor = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image.as_subclass(Tensor)
    return tensor.unsqueeze(0) if tensor.ndim == 3 else tensor
