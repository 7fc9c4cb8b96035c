"""UnMix-TNS as a callback: several components of statistics per layer, un-mixed over the stream."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..batchnorm import UnMixPolicy
from .layerwise import Reset, StreamStatisticsCallback, seed_of


class UnMixTNSCallback(StreamStatisticsCallback):
    """Each image is normalised by components of statistics that images like it have formed in this layer.

    Tomar et al. 2024, "Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal Correlation" (ICLR),
    section 3: a layer holds K components, begun around the source statistics. An image's weights over them are the
    softmax of the cosine similarity of its own channel means to theirs; every component moves towards the image by its
    weight for this image, and the equal mixture of these moved components is what the image is normalised by. After the
    batch, components move on by momentum, 1 - (1 - m)^(n / 64) for n images. Made for labels that come in runs.

    Defaults are those of the authors' code, whose variances average those of component and image, as here.

    Args:
        components: K.
        temperature: what cosine similarities are divided by.
        spread: the share of the source variance that goes into the spread of the components' first means.
        momentum: m; None for each layer's own, which is 0.1 unless the model says otherwise.
        seed: of the components' beginnings.
        reset: `"loader"` begins anew with each dataloader (a cell of the sequential stream), `"never"` with each run.
        skip: names of layers of the LightningModule, or of modules that hold some, which keep their own statistics.

    Raises:
        MethodError: for settings out of range.
    """

    def __init__(
        self,
        components: int = 16,
        temperature: float = 0.07,
        spread: float = 0.5,
        momentum: float | None = None,
        seed: int = 0,
        reset: Reset = "loader",
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__(reset, skip)
        UnMixPolicy(components, temperature, spread, momentum)  # refuses here what it would refuse at the start
        self.components, self.temperature, self.spread = components, temperature, spread
        self.momentum, self.seed = momentum, seed

    @property
    def method(self) -> str:
        """The method's name in reports."""
        return "unmix_tns"

    def make_policy(self, name: str, layer: nn.Module) -> UnMixPolicy:
        """The layer's components."""
        return UnMixPolicy(self.components, self.temperature, self.spread, self.momentum, seed_of(name, self.seed))
