"""What calibrating and refining a bank have in common: parameters of its rows, tuned through the frozen network."""

from __future__ import annotations

import copy
import io
import json
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbn_lightning.batchnorm import BNStatsBank, fingerprint_of, fingerprints
from dynbn_lightning.batchnorm.unfinished_bank import as_in_a_file, differences
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.batches import DrawnBatch
from dynbn_lightning.datamodules.row_loaders import Batches
from dynbn_lightning.errors import BankError, DataError, did_you_mean
from dynbn_lightning.files import check_output_folder, whole_file
from dynbn_lightning.models.normalization import warn_of_other_normalization
from dynbn_lightning.progress import progress_bar

Criterion = Literal["consistency", "labels"]
"""Agreement with the network's own prediction for the clean image, or cross-entropy with the true class."""


def check_bank_and_data(model: nn.Module, bank: BNStatsBank, data: CorruptionDataModule, criterion: str) -> None:
    """Refuse a bank of another model, or data by whose split other images would be held out.

    Raises:
        BankError: if the bank is of another model, or has other rows than the data.
        DataError: if the bank was collected from other data, or the criterion is unknown.
    """
    if criterion not in get_args(Criterion):
        raise DataError(f"criterion={criterion!r}: {did_you_mean(criterion, get_args(Criterion))}")
    bank.check_model(model)
    warn_of_other_normalization(model, data.normalization)
    if bank.rows != data.rows:
        raise BankError(
            f"the bank has {len(bank)} rows, the data has {len(data.rows)} and not the same ones: give the data the "
            "corruptions, severities and row_per that the bank was collected with"
        )
    here = data.provenance()
    for what in here:
        if what in bank.provenance and bank.provenance[what] != here[what]:
            raise DataError(
                f"the bank was collected with {what} {bank.provenance[what]!r}, this data has {here[what]!r}: then "
                "other images would be held out, or they would look different"
            )


class CleanPredictions:
    """A network's log-probabilities for clean images, each image predicted once.

    Args:
        model: the network, in evaluation mode; called while nothing is routed.

    Attributes:
        made: the numbers of the images predicted at a time, and their log-probabilities.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[int, Tensor] = {}
        self.made: list[tuple[list[int], Tensor]] = []

    def recall(self, made: Sequence[tuple[list[int], Tensor]], device: torch.device) -> None:
        """Take these as predicted: made again beside other images, the last bits of some would differ."""
        self.made = [(indices, predicted.to(device)) for indices, predicted in made]
        for indices, predicted in self.made:
            self._known.update(zip(indices, predicted, strict=True))

    def __call__(self, batch: DrawnBatch) -> Tensor:
        """Log-probabilities, (N, classes)."""
        new = {index: position for position, index in enumerate(batch.indices) if index not in self._known}
        if new:
            with torch.no_grad():
                predicted = self._model(batch.clean[list(new.values())]).float().log_softmax(dim=1)
            self._known.update(zip(new, predicted, strict=True))
            self.made.append((list(new), predicted))
        return torch.stack([self._known[index] for index in batch.indices])


def disagreement(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy with classes (N,), or mean KL divergence from log-probabilities (N, classes)."""
    if target.dim() == 1:
        return F.cross_entropy(logits.float(), target)
    return F.kl_div(logits.float().log_softmax(dim=1), target, reduction="batchmean", log_target=True)


class UnfinishedTuning:
    """A context in which what a tuning has done is kept in a file, until the bank that it makes is written.

    On leaving with an error or an interrupt, the file holds what was done last, for a process that is killed what was
    done some 20 seconds before; where writing it takes long, it is written so seldom that this costs a twentieth of
    the time at most.

    Args:
        path: of the bank to be made; None to keep nothing.
        doing: a word for the file's name.
        used: what the tuning depends on and cannot be named but by a fingerprint, what it is -> its fingerprint.
        settings: what else it depends on, by name, in values that JSON has.

    Attributes:
        done: what was done so far, by name; that of an interrupted call from the beginning, on the CPU.

    Raises:
        OutputError: if nothing can be written there.
        BankError: if the file is damaged, or of a tuning of other things or with other settings.
    """

    SECONDS = 20.0

    def __init__(
        self, path: str | Path | None, doing: str, used: Mapping[str, str], settings: Mapping[str, Any]
    ) -> None:
        self.done: dict[str, Any] = {}
        self._path = None if path is None else Path(path)
        self._file = None if self._path is None else self._path.with_name(f"{self._path.stem}.{doing}.pt")
        self._used, self._settings = dict(used), {"tuning": doing, **settings}
        if self._path is not None and self._file is not None:
            self._settings = as_in_a_file(self._settings)
            check_output_folder(self._path.parent)
            if self._file.exists():
                self.done = self._read(self._file)
        self._written, self._next_time = self.done, time.monotonic() + self.SECONDS

    @property
    def kept(self) -> bool:
        """Whether what is done is kept in a file."""
        return self._file is not None

    def keep(self, **done: Any) -> None:
        """Note what is done: plain values and tensors that nothing changes any more."""
        self.done = {**self.done, **done}  # in one go: an interrupt finds the one or the other
        if self._file is not None and time.monotonic() >= self._next_time:
            self._write(self._file)

    def finish(self, bank: BNStatsBank) -> None:
        """Write the bank, and remove what was kept."""
        if self._path is not None and self._file is not None:
            bank.save(self._path)
            self._written = self.done
            self._file.unlink(missing_ok=True)

    def __enter__(self) -> UnfinishedTuning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None or error is None or self.done is self._written:
            return
        try:
            self._write(self._file)
        except OSError as failure:  # which would hide why the tuning stopped
            warnings.warn(f"what was done could not be kept in {self._file}: {failure}", stacklevel=2)

    def _write(self, file: Path) -> None:
        begun, done, content = time.monotonic(), self.done, io.BytesIO()
        torch.save({"dynbn_tuning": {"used": self._used, "settings": self._settings, "done": done}}, content)
        with whole_file(file) as temporary:
            temporary.write_bytes(content.getbuffer())
        self._written, ended = done, time.monotonic()
        self._next_time = ended + max(self.SECONDS, 20 * (ended - begun))

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            content = file.read_bytes()
            with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch does not look at the checksums in it
                if archive.testzip() is not None:
                    raise ValueError("a checksum does not match its content")
            described = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["dynbn_tuning"]
            used, settings, done = (dict(described[name]) for name in ("used", "settings", "done"))
        except Exception as error:  # what a foreign file raises depends on where in it the reading stumbles
            cause = (str(error).strip().splitlines() or [""])[0]
            raise BankError(
                f"{file} is damaged, or not what an interrupted tuning left ({type(error).__name__}: {cause}): remove "
                "it to begin anew, or write to another path"
            ) from error
        found = [what for what in {**self._used, **used} if used.get(what) != self._used.get(what)]
        found += differences(settings, self._settings)
        if found:
            raise BankError(
                f"{file} holds the first steps of another tuning ({'; '.join(found)}): remove it to begin anew, or "
                "write to another path"
            )
        return done


def used_by_tuning(model: nn.Module, bank: BNStatsBank) -> dict[str, str]:
    """Fingerprints of what every tuning depends on: the model, the bank's rows, and their calibration if any."""
    used = {
        "the model": json.dumps(fingerprints(model)),
        "the bank": fingerprint_of([bank.rows, list(bank.layers.items()), bank.skip], bank.mean, bank.var),
    }
    if bank.calibration is not None:
        shares = (bank.calibration.source_share, bank.calibration.image_share)
        used["the bank's calibration"] = fingerprint_of([share is None for share in shares], *shares)
    return used


def tune(
    parameters: Sequence[Tensor],
    loss_of: Callable[[DrawnBatch], Tensor],
    batches_from: Callable[[int], Batches[DrawnBatch]],
    *,
    learning_rate: float,
    description: str,
    progress: bool,
    unfinished: UnfinishedTuning,
    predictions: CleanPredictions,
) -> list[float]:
    """Minimise the loss of batches by Adam under a cosine; nothing but `parameters` gets gradients.

    Args:
        parameters: what to tune, in place.
        loss_of: the loss of a batch, a scalar.
        batches_from: given a number of batches to leave out, the others.
        learning_rate: at the beginning; 0 at the end.
        description: beside the progress bar.
        progress: show it.
        unfinished: what an interrupted call has done is not done again, and every step is kept in it.
        predictions: that `loss_of` makes, which are kept too.

    Returns:
        The loss of every batch, as it was before the step.
    """
    kept = unfinished.done.get("tuning")
    losses: list[float] = [] if kept is None else list(kept["losses"])
    batches = batches_from(len(losses))
    steps = len(losses) + len(batches)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if kept is not None:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept["parameters"], strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(copy.deepcopy(kept["optimizer"]))
        schedule.load_state_dict(kept["schedule"])
        predictions.recall(kept["predictions"], parameters[0].device)
    with progress_bar(shown=progress) as bar, torch.enable_grad():
        task = bar.add_task(description, total=steps, completed=len(losses))
        for batch in batches:
            loss = loss_of(batch)
            # Not `backward`, which would leave gradients in the user's model.
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if unfinished.kept:
                state = {
                    "parameters": [parameter.detach() for parameter in parameters],
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "losses": losses,
                }
                unfinished.keep(tuning={**copy.deepcopy(state), "predictions": list(predictions.made)})
            bar.advance(task)
    return losses


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[torch.device]:
    """The model in evaluation mode inside the block, each module as it was afterwards; gives its device."""
    modes: list[tuple[nn.Module, bool]] = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    finally:
        for module, training in modes:
            module.training = training


def settings_of_tuning(data: CorruptionDataModule, criterion: str, images: int) -> dict[str, Any]:
    """What a tuning depends on beside fingerprints, by name."""
    return {**protocol_of(data, criterion, images), "training images": len(data.train_images)}


def protocol_of(data: CorruptionDataModule, criterion: str, images: int) -> dict[str, Any]:
    """What must be said beside a choice: which images it looked at, and by which criterion."""
    return {"criterion": criterion, "images": images, **data.provenance()}
