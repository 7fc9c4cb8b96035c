"""A running average of the stream's statistics as a callback."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..batchnorm import RunningAveragePolicy
from .layerwise import Reset, StreamStatisticsCallback


class EMAStatsCallback(StreamStatisticsCallback):
    """Statistics follow the stream: an exponential average of the batches', begun at the source statistics.

    Before each batch, mean <- (1 - momentum) * mean + momentum * batch mean, and the same for the (unbiased) variance;
    the batch is then normalised by the average, layer after layer in one forward. That is how torch's running
    statistics move in training, gone on with at test time. Comparisons of test-time adaptation know it as EMA; some
    move the statistics in a forward of its own, in training mode, and predict in a second one. For streams that keep to
    a corruption for some dozen batches. Of single images it averages the variance within an image alone.

    Args:
        momentum: what each batch weighs, in [0, 1].
        reset: `"loader"` begins anew at the source with each dataloader (a cell of the sequential stream), `"never"`
            only with each run.
        skip: names of layers of the LightningModule, or of modules that hold some, which keep their own statistics.

    Raises:
        MethodError: for another momentum or `reset`.
    """

    def __init__(self, momentum: float = 0.1, reset: Reset = "loader", skip: Sequence[str] = ()) -> None:
        super().__init__(reset, skip)
        RunningAveragePolicy(momentum)  # refuses here what it would refuse when evaluation starts
        self.momentum = momentum

    @property
    def method(self) -> str:
        """The method's name in reports."""
        return "ema"

    def make_policy(self, name: str, layer: nn.Module) -> RunningAveragePolicy:
        """The running average."""
        return RunningAveragePolicy(self.momentum)
