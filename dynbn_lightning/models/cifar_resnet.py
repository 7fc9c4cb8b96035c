"""Residual networks for 32x32 images: He et al. 2016, "Deep Residual Learning", section 4.2, option A shortcuts.

Three stages of (depth - 2) / 6 blocks at 32, 16 and 8 pixels, with 1, 2 and 4 times the base width. A shortcut that
changes size takes every second pixel and pads the new channels with zeros, half before and half after: it has no
parameters. The names of the parameters are those of the public CIFAR-10 checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, and an option A shortcut around them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, at least `in_channels`.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def shortcut(self, x: Tensor) -> Tensor:
        """The input at the size of the output: (N, in_channels, H, W) to (N, out_channels, H', W')."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """A CIFAR ResNet of 6n + 2 layers.

    Args:
        depth: number of layers, 6n + 2: 8, 14, 20, 32, 44, 56, 110, ...
        num_classes: number of logits.
        width: channels of the first stage; the second has twice, the third four times as many.

    Raises:
        ValueError: for a depth that is not 6n + 2, or a width or number of classes below 1.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, 32, 44, 56, 110, ...), not {depth}")
        if width < 1 or num_classes < 1:
            raise ValueError(f"width and num_classes must be at least 1, got width={width}, num_classes={num_classes}")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), 32x32 as a rule, to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))


def cifar_resnet8(num_classes: int = 10, width: int = 16) -> CifarResNet:
    """The smallest of the family, not in the paper: quick enough to train on a CPU in a minute."""
    return CifarResNet(8, num_classes, width)


def cifar_resnet14(num_classes: int = 10, width: int = 16) -> CifarResNet:
    """14 layers, not in the paper: for demonstrations and tests."""
    return CifarResNet(14, num_classes, width)


def cifar_resnet20(num_classes: int = 10, width: int = 16) -> CifarResNet:
    """ResNet-20, 0.27 million parameters at the default width and 10 classes."""
    return CifarResNet(20, num_classes, width)


def cifar_resnet32(num_classes: int = 10, width: int = 16) -> CifarResNet:
    """ResNet-32, 0.46 million parameters at the default width and 10 classes."""
    return CifarResNet(32, num_classes, width)


def cifar_resnet44(num_classes: int = 10, width: int = 16) -> CifarResNet:
    """ResNet-44, 0.66 million parameters at the default width and 10 classes."""
    return CifarResNet(44, num_classes, width)


def cifar_resnet56(num_classes: int = 10, width: int = 16) -> CifarResNet:
    """ResNet-56, 0.85 million parameters at the default width and 10 classes."""
    return CifarResNet(56, num_classes, width)


def cifar_resnet110(num_classes: int = 10, width: int = 16) -> CifarResNet:
    """ResNet-110, 1.7 million parameters at the default width and 10 classes."""
    return CifarResNet(110, num_classes, width)


CIFAR_RESNETS: dict[str, Callable[..., CifarResNet]] = {
    constructor.__name__: constructor
    for constructor in (
        cifar_resnet8,
        cifar_resnet14,
        cifar_resnet20,
        cifar_resnet32,
        cifar_resnet44,
        cifar_resnet56,
        cifar_resnet110,
    )
}
"""The constructors by name; each takes (num_classes=10, width=16)."""
