"""What calibration adds to a bank: how far each of its rows is to be trusted, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from torch import Tensor

from dynbn_lightning.batchnorm.statistics import Statistics
from dynbn_lightning.errors import BankError


@dataclass(frozen=True, eq=False)
class Calibration:
    """Shares that the rows of a bank are blended with, chosen on held-out training images.

    What an image is normalised with is its row, of which `source_share` is the source statistics; of the result
    `image_share` is the image's own moments. Both are averaged over rows as the rows are. Row 0 is left as it is, so
    that an image which is surely clean sees the unpatched model.

    Attributes:
        source_share: shape (K, layers), in [0, 1], row 0 all 0.
        image_share: shape (K, layers), in [0, 1], row 0 all 0; None to leave images' own moments out.
        temperature: what the detector's logits are divided by, above 0 (Guo et al. 2017, "On Calibration of Modern
            Neural Networks", section 4.2).
        novelty_limit: an image that is more unlike anything the detector has seen than this gets the source
            statistics; None for no limit. See `SpectrumPerceptron.with_novelty`.
        detector: fingerprint of the detector that it was chosen with.
        provenance: on which images, by which criterion, and what it gained there.
    """

    source_share: Tensor
    image_share: Tensor | None = None
    temperature: float = 1.0
    novelty_limit: float | None = None
    detector: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def check(self, rows: int, layers: int) -> None:
        """Raise `BankError` unless this fits a bank of so many rows and layers."""
        for name, share in (("source_share", self.source_share), ("image_share", self.image_share)):
            if share is None:
                continue
            if tuple(share.shape) != (rows, layers):
                raise BankError(
                    f"the {name} of a calibration is a table of {rows} rows and {layers} layers, got "
                    f"{tuple(share.shape)}"
                )
            if not ((share >= 0).all() and (share <= 1).all() and (share[0] == 0).all()):
                raise BankError(f"the {name} of a calibration is in [0, 1] and 0 in row 0; this one is not")
        if not (0 < self.temperature < float("inf")):
            raise BankError(f"the temperature of a calibration is above 0 and finite, got {self.temperature}")
        if self.novelty_limit is not None and isnan(self.novelty_limit):
            raise BankError("the novelty limit of a calibration is a number, or None; got nan")

    def apply(self, rows: Statistics, widths: Sequence[int]) -> Statistics:
        """The rows of a bank as they are to be used, on the device of `rows`; `widths` are the layers' channels."""
        blended = rows.blended_with_source(self.source_share.to(rows.mean), widths)
        return blended._replace(image_share=None if self.image_share is None else self.image_share.to(rows.mean))
