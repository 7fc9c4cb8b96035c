"""LightningModules as people write them, around one small network, and what each of them must predict."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from callback_models import IMAGENET, make_pixels, weights_by_hand
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules.batches import corrupt_pixels


class TuplesAndNothing(LightningModule):
    """`x, y = batch`, and a step that returns nothing. `seen` is what it predicted, for the tests."""

    path = "net"
    """Where the network with the bank's layers stands."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network
        self.seen: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def remember(self, logits: Tensor) -> Tensor:
        info = getattr(getattr(self.trainer, "datamodule", None), "batch_info", None)
        first = len(self.seen)
        places = range(first, first + len(logits)) if info is None else zip(info.names, info.indices, strict=True)
        self.seen.update(zip(places, logits.detach().clone(), strict=True))
        return logits

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        self.log("loss", F.cross_entropy(self.remember(self(x)).float(), y))

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.remember(self(batch if isinstance(batch, Tensor) else batch[0]))

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return self.test_step(batch, batch_idx, dataloader_idx)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class ReturnsALoss(TuplesAndNothing):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        return F.cross_entropy(self.remember(self(x)).float(), y)


class ReturnsADict(TuplesAndNothing):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        logits = self.remember(self(x))
        return {"loss": F.cross_entropy(logits.float(), y), "logits": logits}


class DictBatches(TuplesAndNothing):
    """Of batches {"image", "label"}, which it makes itself where the data gives tuples."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return dict(zip(("image", "label"), batch, strict=True)) if isinstance(batch, (tuple, list)) else batch

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return {"loss": F.cross_entropy(self.remember(self(batch["image"])).float(), batch["label"])}


class NeverCallsForward(TuplesAndNothing):
    forward = LightningModule.forward

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        x, _ = batch
        return {"logits": self.remember(self.net(x))}


class Student(nn.Module):
    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.backbone, self.head = network[:-1], network[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class NestedTwice(TuplesAndNothing):
    path = "net.backbone"

    def __init__(self, network: nn.Module) -> None:
        super().__init__(Student(network))


class WithMetrics(TuplesAndNothing):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.accuracy = MulticlassAccuracy(5, average="micro")

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        self.accuracy(self.remember(self(x)).float(), y)
        self.log("acc", self.accuracy, add_dataloader_idx=False, on_epoch=True)


class Frozen(TuplesAndNothing):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network.requires_grad_(False))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SwapsModes(TuplesAndNothing):
    """Says itself when the network evaluates, and goes back to training after each step."""

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.net.eval()
        super().test_step(batch, batch_idx, dataloader_idx)
        self.net.train()

    def on_test_end(self):
        self.net.eval()


class CompiledInside(TuplesAndNothing):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(torch.compile(network, backend="eager"))


class OfSyncBatchNorm(TuplesAndNothing):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(nn.SyncBatchNorm.convert_sync_batchnorm(network))


class WithAnAverage(TuplesAndNothing):
    """Keeps a moving average of the network's weights, which are others."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.average = AveragedModel(network)
        with torch.no_grad():
            for parameter in self.average.parameters():
                parameter.mul_(1.01)


class TransfersItself(TuplesAndNothing):
    """Mirrors its images after the transfer; counts how often."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.transfers: list[int] = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.transfers.append(dataloader_idx)
        x, y = batch
        return x.flip(3), y


class HoldsAnotherModule(TuplesAndNothing):
    """A LightningModule around another one."""

    path = "net.net"

    def __init__(self, network: nn.Module) -> None:
        super().__init__(TuplesAndNothing(network))


class AveragesTwoViews(TuplesAndNothing):
    """Calls the network twice in a step."""

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        x, _ = batch
        return {"logits": self.remember((self(x) + self(x.flip(3))) / 2)}


class DifferentiatesByItsImages(TuplesAndNothing):
    """Differentiates by its images in the step, as for saliency."""

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        x, _ = batch
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            logits = self.remember(self(x))
            (self.saliency,) = torch.autograd.grad(logits.max(dim=1).values.sum(), x)


MODULES = (
    TuplesAndNothing,
    ReturnsALoss,
    ReturnsADict,
    DictBatches,
    NeverCallsForward,
    NestedTwice,
    WithMetrics,
    Frozen,
    SwapsModes,
    CompiledInside,
    OfSyncBatchNorm,
    WithAnAverage,
    TransfersItself,
    HoldsAnotherModule,
    AveragesTwoViews,
)


class Watched:
    """A module as it is now, to be compared with what it is after a run."""

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self.state = {name: value.clone() for name, value in module.state_dict().items()}
        self.look = self._look()

    def _look(self) -> dict[str, Any]:
        look = {}
        for name, one in self.module.named_modules():
            hooks = {key: list(value) for key, value in vars(one).items() if key.endswith("_hooks")}
            attributes = None if one is self.module else sorted(vars(one))  # Lightning keeps notes in its own
            look[name] = (type(one), one.training, hooks, attributes)
        needing = [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]
        return {**look, "needing gradients": needing}

    def check(self, dtype: torch.dtype | None = None) -> None:
        """All is as it was, but for a precision that Lightning cast the module to."""
        assert self._look() == self.look
        state = self.module.state_dict()
        assert list(state) == list(self.state)
        for name, before in self.state.items():
            assert torch.equal(state[name], before.to(dtype) if dtype and before.is_floating_point() else before), name


@torch.no_grad()
def reference_logits(
    network: nn.Module,
    bank: BNStatsBank,
    pixels: Tensor,
    routing: str,
    inside: str = "",
    images: Tensor | None = None,
) -> Tensor:
    """Image by image, with its statistics written into a copy of the network as its running ones.

    Args:
        network: maps normalised images to logits.
        bank: of the network, or of a part of it.
        pixels: (N, C, H, W) uint8, which `FakeDetector` looks at.
        routing: `"soft"` or `"hard"`.
        inside: where in the network the part stands that the bank is of.
        images: what the network gets; by default the normalised pixels.
    """
    images = IMAGENET.apply(pixels.float() / 255) if images is None else images
    weights = weights_by_hand(pixels).double()
    if routing == "hard":
        weights = F.one_hot(weights.argmax(1), len(bank.rows)).double()
    logits = []
    for image, its in zip(images, weights, strict=True):
        own = copy.deepcopy(network).eval()
        part = own.get_submodule(inside)
        means, variances = bank.mean.double(), bank.var.double()
        mean = (its[:, None] * means).sum(0)
        var = (its[:, None] * (variances + (means - mean) ** 2)).sum(0)
        start = 0
        for name, width in bank.layers.items():
            layer = part.get_submodule(name)
            layer.running_mean.copy_(mean[start : start + width])
            layer.running_var.copy_(var[start : start + width])
            start += width
        logits.append(own(image.unsqueeze(0))[0])
    return torch.stack(logits)


def pixels_of_places(data) -> dict[tuple[str, int], Tensor]:
    """Every test image in every cell, (3, H, W) uint8, without loaders."""
    preset = data.provenance()["preset"]
    pixels = {}
    for cell in data.cells:
        for index in range(len(data.test_images)):
            image = data.test_images[index][0].unsqueeze(0)
            options = {"seed": data.seed, "split": "test", "preset": preset}
            pixels[cell.name, index] = corrupt_pixels(image, [Cell.parse(cell.name).code], [index], **options)[0]
    return pixels


def plain_loader(batch_size: int = 4, count: int = 13, as_dicts: bool = False) -> DataLoader:
    images = IMAGENET.apply(make_pixels(count).float() / 255)
    items = [{"image": x, "label": i % 5} if as_dicts else (x, i % 5) for i, x in enumerate(images)]
    return DataLoader(items, batch_size=batch_size)
