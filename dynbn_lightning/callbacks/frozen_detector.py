"""The detector as it is used: a frozen copy whose columns are those of the bank, and whose confidence is calibrated."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..batchnorm import BNStatsBank, fingerprints
from ..errors import DetectorError, first_few
from ..modules.detector import DetectorModule


class FrozenDetector(nn.Module):
    """Weights over a bank's rows from pixels, by a copy of a detector: the user's own keeps its device and mode.

    Args:
        detector: a `DetectorModule`, its checkpoint, or any module with `rows` that maps pixels in [0, 1]
            (N, C, H, W) to logits (N, rows).
        bank: whose rows the detector must know, all of them and no others, in any order. Its calibration, if it has
            one, tells the temperature and the novelty limit.

    Raises:
        DetectorError: if there is no detector, or one that does not fit the bank.
    """

    def __init__(self, detector: nn.Module | str | Path | None, bank: BNStatsBank) -> None:
        super().__init__()
        if detector is None:
            raise DetectorError("hard and soft routing need detector=: a DetectorModule or its checkpoint")
        if isinstance(detector, (str, Path)):
            detector = load_detector(Path(detector))
        if not getattr(detector, "rows", None):
            raise DetectorError(
                f"{type(detector).__name__} does not say which rows it knows: it needs an attribute `rows`"
            )
        self.rows: tuple[str, ...] = tuple(detector.rows)  # type: ignore[arg-type]
        _check_rows(self.rows, bank.rows)
        self._columns = torch.tensor([self.rows.index(row) for row in bank.rows])
        self.detector = copy.deepcopy(detector).float().eval().requires_grad_(False)
        self.calibration = bank.calibration
        if self.calibration is not None and self.calibration.detector not in (None, self.fingerprint()):
            warnings.warn(
                "the bank was calibrated with another detector than this one, so its confidence may be off: calibrate "
                "the bank anew with `dynbn calibrate`",
                stacklevel=3,
            )

    def fingerprint(self) -> str:
        """A fingerprint of the detector's weights."""
        return fingerprints(self.detector)["float32"]

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities (N, K) over the bank's rows, float32, of pixels (N, C, H, W) in [0, 1].

        Calibrated where the bank is: logits are divided by the temperature, and an image above the novelty limit is
        given to row 0, the source statistics.

        Raises:
            DetectorError: if the detector gives logits of another shape than (N, its rows).
        """
        logits, novelty = self.look(pixels)
        if self.calibration is None:
            return logits.softmax(dim=1)
        probabilities = (logits / self.calibration.temperature).softmax(dim=1)
        if novelty is None or self.calibration.novelty_limit is None:
            return probabilities
        source = torch.zeros_like(probabilities[0])
        source[0] = 1
        # NaN stays, to be reported: a broken detector would find all images novel, or none.
        novel = (novelty > self.calibration.novelty_limit) & logits.isfinite().all(dim=1)
        return torch.where(novel.unsqueeze(1), source, probabilities)

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the detector says: logits (N, K) in the order of the bank's rows, and each image's novelty, (N,).

        Both in float32; no novelty from a detector that has no `with_novelty`. Raises as `forward` does.
        """
        # Outside autocast and in float32: the probabilities don't depend on the classifier's precision.
        with torch.autocast(pixels.device.type, enabled=False):
            logits, novelty = (
                self.detector.with_novelty(pixels)  # type: ignore[operator]
                if _has_novelty_of_its_forward(self.detector)
                else (self.detector(pixels), None)
            )
        if logits.shape != (len(pixels), len(self.rows)):
            raise DetectorError(
                f"{type(self.detector).__name__} says it knows {len(self.rows)} rows but gave logits of shape "
                f"{tuple(logits.shape)} for {len(pixels)} images: expected ({len(pixels)}, {len(self.rows)})"
            )
        return logits.float()[:, self._columns.to(logits.device)], None if novelty is None else novelty.float()


def _has_novelty_of_its_forward(detector: nn.Module) -> bool:
    """Whether the detector has a `with_novelty`, and no class between overrides `forward` alone."""
    owners = [vars(owner) for owner in type(detector).__mro__]
    first = next(owner for owner in owners if "forward" in owner or "with_novelty" in owner)  # nn.Module has a forward
    return "with_novelty" in first


def load_detector(path: Path) -> DetectorModule:
    """Read a `DetectorModule` from its checkpoint; nothing but tensors and plain values is unpickled.

    Raises:
        DetectorError: if the file is missing or no checkpoint of a `DetectorModule`.
    """
    if not path.is_file():
        raise DetectorError(f"there is no detector checkpoint at {path}: make one with `dynbn detector fit`")
    try:
        return DetectorModule.load_from_checkpoint(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # what a foreign file raises depends on where in it the reading stumbles
        cause = (str(error).strip().splitlines() or [""])[0]
        raise DetectorError(
            f"{path} is no checkpoint of a DetectorModule ({type(error).__name__}: {cause}): make one with "
            "`dynbn detector fit` or Trainer.save_checkpoint"
        ) from error


def _check_rows(known: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if len(set(known)) != len(known):
        raise DetectorError(f"the detector's rows must differ from each other, got {', '.join(known)}")
    differences = [
        f"{what}: {first_few(names)}"
        for what, names in (
            ("the bank lacks", [row for row in known if row not in wanted]),
            ("the detector doesn't know", [row for row in wanted if row not in known]),
        )
        if names
    ]
    if differences:
        raise DetectorError(
            f"detector and bank have different rows: {'; '.join(differences)}. "
            "Fit the detector and collect the bank with the same CorruptionDataModule rows."
        )
