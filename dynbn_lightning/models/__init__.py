"""Networks to be made robust: CIFAR ResNets, and `load_model` for timm, torchvision, torch.hub and checkpoints."""

from dynbn_lightning.models.cifar_resnet import (
    CIFAR_RESNETS,
    CifarResNet,
    cifar_resnet8,
    cifar_resnet14,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
)
from dynbn_lightning.models.load import load_model
from dynbn_lightning.models.normalization import NORMALIZATIONS, Normalization

__all__ = [
    "CIFAR_RESNETS",
    "NORMALIZATIONS",
    "CifarResNet",
    "Normalization",
    "cifar_resnet8",
    "cifar_resnet14",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "load_model",
]
