"""The patched classes of timm's layers; imported only where timm already is, for importing timm takes seconds."""

from __future__ import annotations

from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct

from dynbn_lightning.batchnorm.patched_layers import DropAndActivate, FrozenArithmetic


class PatchedBatchNormAct2d(DropAndActivate, BatchNormAct2d):
    """Stands in for `timm.layers.BatchNormAct2d`."""


class PatchedSyncBatchNormAct(DropAndActivate, SyncBatchNormAct):
    """Stands in for `timm.layers.SyncBatchNormAct`."""


class PatchedFrozenBatchNormAct2d(DropAndActivate, FrozenArithmetic, FrozenBatchNormAct2d):
    """Stands in for `timm.layers.FrozenBatchNormAct2d`."""


TIMM_CLASSES = {
    BatchNormAct2d: PatchedBatchNormAct2d,
    SyncBatchNormAct: PatchedSyncBatchNormAct,
    FrozenBatchNormAct2d: PatchedFrozenBatchNormAct2d,
}
