"""What the tests of calibrating and refining share: a tiny model, striped images, a detector with known logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dynbn_lightning import BNStatsBank, CorruptionDataModule
from dynbn_lightning.batchnorm import Calibration
from dynbn_lightning.calibrating import IMAGE_SHARE, SOURCE_SHARE
from dynbn_lightning.datamodules.batches import DrawnBatch
from dynbn_lightning.datamodules.row_loaders import Batches
from dynbn_lightning.models import Normalization

NORMALIZATION = Normalization.of("half")


def striped_images(count: int, seed: int) -> TensorDataset:
    """8-bit images of four classes, stripes across or along, wide or narrow, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    waves = torch.stack([torch.sin(torch.arange(16) * frequency) for frequency in (0.8, 2.2)])[labels // 2]
    patterns = waves[:, None, :].expand(-1, 16, -1)
    patterns = torch.where((labels % 2 == 1)[:, None, None], patterns.transpose(1, 2), patterns)
    pixels = 128 + 60 * patterns[:, None] + 20 * torch.randn(count, 3, 16, 16, generator=generator)
    return TensorDataset(pixels.clamp(0, 255).to(torch.uint8), labels)


def make_data(**options: Any) -> CorruptionDataModule:
    settings: dict[str, Any] = {
        "normalization": NORMALIZATION,
        "corruptions": ("gaussian_noise", "contrast"),
        "severities": (3, 5),
        "validation_fraction": 0.4,
        "preset": "cifar",
    }
    return CorruptionDataModule(striped_images(160, 0), test=striped_images(8, 1), **(settings | options))


def make_model(seed: int = 0) -> nn.Sequential:
    """A network fitted for a second to clean images, so that its predictions are worth keeping."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    pixels, labels = striped_images(256, 7).tensors
    images = NORMALIZATION.apply(pixels.float() / 255)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def make_bank(model: nn.Module, data: CorruptionDataModule) -> BNStatsBank:
    return BNStatsBank.collect(model, data.row_loaders(), progress=False)


def calibration_of(bank: BNStatsBank) -> Calibration:
    assert bank.calibration is not None
    return bank.calibration


def at_the_start(calibrated: BNStatsBank) -> BNStatsBank:
    """The bank with the shares that the search begins at."""
    source, own = (
        torch.full((len(calibrated), len(calibrated.layers)), share) for share in (SOURCE_SHARE, IMAGE_SHARE)
    )
    source[0] = own[0] = 0
    return replace(calibrated, calibration=replace(calibration_of(calibrated), source_share=source, image_share=own))


class StripeDetector(nn.Module):
    """Tells contrast by the spread of the pixels and noise by neighbours' differences; too sure of it by far.

    What `interrupt` raises at a call to forward, the copies that are made of this raise too.
    """

    sureness: Tensor
    rows = ("contrast", "clean", "gaussian_noise")  # in another order than the bank's

    def __init__(self, sureness: float = 60.0, interrupt: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.register_buffer("sureness", torch.tensor(sureness))
        self.__dict__["interrupt"] = interrupt  # copied by reference: functions are

    def forward(self, images: Tensor) -> Tensor:
        self.__dict__["interrupt"]()
        spread = images.flatten(1).std(1)
        rough = images.diff(dim=3).abs().mean((1, 2, 3))
        return self.sureness * torch.stack([0.15 - spread, torch.full_like(spread, 0.05), rough - 0.2], dim=1)


class NovelStripeDetector(StripeDetector):
    """Finds images the more novel the brighter they are."""

    def with_novelty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), images.mean((1, 2, 3))


def snapshot(model: nn.Module) -> Any:
    """All that a caller could see change: values, bit by bit, gradients, modes, classes and plain attributes."""
    values = {name: value.clone() for name, value in model.state_dict().items()}
    modules = {name: (type(module), module.training, sorted(vars(module))) for name, module in model.named_modules()}
    needs = {name: (value.requires_grad, value.grad is None) for name, value in model.named_parameters()}
    return values, modules, needs


def assert_untouched(model: nn.Module, before: Any) -> None:
    values, modules, needs = snapshot(model)
    assert modules == before[1]
    assert needs == before[2]
    assert values.keys() == before[0].keys()
    assert all(torch.equal(value, before[0][name]) for name, value in values.items())


def pixels_of(batch: DrawnBatch) -> Tensor:
    """The 8-bit pixels of a batch, in [0, 1], float32."""
    return (NORMALIZATION.undo(batch.images) * 255).round() / 255


def batches_drawn(data: CorruptionDataModule) -> Counter[str]:
    """From now on, how many batches of each part are made."""
    draw, counts = data.drawn_batches, Counter[str]()

    def counted(images: int, part: Any, **options: Any) -> Batches[DrawnBatch]:
        batches = draw(images, part, **options)

        def made() -> Iterator[DrawnBatch]:
            for batch in batches:
                counts[part] += 1
                yield batch

        return Batches(made, len(batches))

    data.drawn_batches = counted  # type: ignore[method-assign]
    return counts


def parts_drawn(data: CorruptionDataModule) -> list[tuple[str, bool]]:
    """From now on, which part of the images is drawn from, and whether clean ones are."""
    draw, parts = data.drawn_batches, []

    def recorded(images: int, part: Any, *, clean: bool = True, **options: Any) -> Any:
        parts.append((part, clean))
        return draw(images, part, clean=clean, **options)

    data.drawn_batches = recorded  # type: ignore[method-assign]
    return parts
