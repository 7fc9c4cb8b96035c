"""The methods that can be evaluated, by name, and what each of them needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Callback

from dynbn_lightning.batchnorm import BNStatsBank, QuantileBank
from dynbn_lightning.callbacks import (
    BatchStatsCallback,
    DistributionMatchingCallback,
    DynamicBNCallback,
    EMAStatsCallback,
    FewShotBNCallback,
    TentCallback,
    UnMixTNSCallback,
)
from dynbn_lightning.callbacks.dynamic_bn import RoutingMode
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.detection import Evidence
from dynbn_lightning.errors import DataError, did_you_mean, first_few

__all__ = ["METHODS", "Method", "Tools", "register_method"]


@dataclass(frozen=True)
class Tools:
    """What was made for a model beforehand, as far as it was.

    Attributes:
        bank: of BatchNorm statistics.
        detector: a `DetectorModule` or its checkpoint.
        quantiles: of activations.
    """

    bank: BNStatsBank | None = None
    detector: Any = None
    quantiles: QuantileBank | None = None

    @property
    def skip(self) -> list[str]:
        """Layers of the `ClassifierModule` around the model that every method leaves as they are."""
        return [] if self.bank is None else [f"model.{name}" for name in self.bank.skip]


@dataclass(frozen=True)
class Method:
    """A way to evaluate a model.

    Attributes:
        callbacks: makes its callbacks.
        needs: what it takes beside the model and an image, in words, for tables.
        bank: whether it looks rows up.
        detector: whether it detects them.
        calibrated: whether the bank must be calibrated.
        refined: whether the bank must have refined rows.
        quantiles: which rows of quantiles it needs: none, clean ones, or those of all rows of the bank.
        gradients: whether it needs a Trainer out of inference mode.
        by_image: whether each image's prediction depends on that image alone, so that every stream gives the same.
        carries: what it remembers from batch to batch: `"nothing"`, of its `"loader"`, or of the whole `"stream"` (as
            few-shot BN does, which tells the images it used of all loaders).
    """

    callbacks: Callable[[Tools], list[Callback]]
    needs: tuple[str, ...] = ()
    bank: bool = False
    detector: bool = False
    calibrated: bool = False
    refined: bool = False
    quantiles: Literal["none", "clean", "rows"] = "none"
    gradients: bool = False
    by_image: bool = False
    carries: Literal["nothing", "loader", "stream"] = "nothing"


BATCHES, STREAM, GRADIENTS = "batches", "a stream", "gradients"
CLEAN, CORRUPTED, CELLS = "clean training images", "corrupted training images", "each image's cell"
BEGINNINGS, CLASSES = "where a cell begins", "class labels of them"


def _dynamic(
    routing: RoutingMode, *, calibrated: bool = True, refined: bool = False, evidence: Evidence = "image"
) -> Method:
    def callbacks(tools: Tools) -> list[Callback]:
        bank = _bank(tools, calibrated=calibrated, refined=refined)
        return [DynamicBNCallback(bank, tools.detector, routing, evidence=evidence)]

    needs = [CORRUPTED, *([CELLS] if routing == "oracle" else [])]
    needs += {"image": [], "batch": [BATCHES], "stream": [STREAM]}[evidence]
    return Method(
        callbacks,
        tuple(needs),
        bank=True,
        detector=routing != "oracle",
        calibrated=calibrated,
        refined=refined,
        by_image=evidence == "image",
        carries="stream" if evidence == "stream" else "nothing",
    )


def _bank(tools: Tools, *, calibrated: bool, refined: bool) -> BNStatsBank:
    assert tools.bank is not None
    bank = tools.bank if calibrated else tools.bank.uncalibrated()
    return bank if refined else bank.unrefined()


def _quantiles(tools: Tools) -> QuantileBank:
    assert tools.quantiles is not None
    return tools.quantiles


def _bank_and_shapes(tools: Tools) -> list[Callback]:
    routed = DynamicBNCallback(_bank(tools, calibrated=True, refined=False), tools.detector)
    return [DistributionMatchingCallback(_quantiles(tools), base=routed)]


def _as_it_is(tools: Tools) -> list[Callback]:
    assert tools.bank is not None
    return [DynamicBNCallback(tools.bank, tools.detector)]


METHODS: dict[str, Method] = {
    "source": Method(lambda tools: [], by_image=True),
    "batch_stats": Method(lambda tools: [BatchStatsCallback(skip=tools.skip)], (BATCHES,)),
    "batch_stats/prior": Method(lambda tools: [BatchStatsCallback(prior=16, skip=tools.skip)], (BATCHES,)),
    "few_shot": Method(lambda tools: [FewShotBNCallback(skip=tools.skip)], (BEGINNINGS,), carries="stream"),
    "ema": Method(lambda tools: [EMAStatsCallback(skip=tools.skip)], (STREAM,), carries="loader"),
    "distribution_matching": Method(
        lambda tools: [DistributionMatchingCallback(_quantiles(tools))], (CLEAN, BATCHES), quantiles="clean"
    ),
    "distribution_matching/image": Method(
        lambda tools: [DistributionMatchingCallback(_quantiles(tools), per="image")],
        (CLEAN,),
        quantiles="clean",
        by_image=True,
    ),
    "distribution_matching/dynamic_bn": Method(
        _bank_and_shapes, (CORRUPTED,), bank=True, detector=True, quantiles="rows", by_image=True
    ),
    "unmix_tns": Method(lambda tools: [UnMixTNSCallback(skip=tools.skip)], (STREAM,), carries="loader"),
    "tent": Method(
        lambda tools: [TentCallback(skip=tools.skip)], (GRADIENTS, BATCHES, STREAM), gradients=True, carries="loader"
    ),
    "dynamic_bn": Method(_as_it_is, (CORRUPTED,), bank=True, detector=True, by_image=True),
    "dynamic_bn/hard": _dynamic("hard", calibrated=False),
    "dynamic_bn/soft": _dynamic("soft", calibrated=False),
    "dynamic_bn/calibrated": _dynamic("soft"),
    "dynamic_bn/batch": _dynamic("soft", evidence="batch"),
    "dynamic_bn/stream": _dynamic("soft", evidence="stream"),
    "dynamic_bn/refined": _dynamic("soft", refined=True),
    "oracle": _dynamic("oracle", calibrated=False),
    "oracle/calibrated": _dynamic("oracle"),
}
"""The methods by name. `dynamic_bn` is ours with the bank as it is; its variants are with rows as measured, by hard and
soft routing, with calibrated rows by the evidence of each image, of the batch, and of the stream, and with rows that
are refined too; `oracle` is the ceiling of detection. The others are their callbacks with their defaults, begun anew
with each loader of a stream."""

_OURS = frozenset(METHODS)


def register_method(name: str, method: Method) -> None:
    """Make a method of one's own known to `evaluate`, under a name; in every process that calls it.

    Args:
        name: none of the package's own, and without commas or spaces, for lists on command lines and in tables; a name
            given before is given anew.
        method: how its callbacks are made, and what they need.

    Raises:
        DataError: for a name that is taken by the package, or can't be one.
    """
    if name in _OURS:
        raise DataError(f"{name!r} is a method of this package: give yours another name")
    if not re.fullmatch(r"[^\s,]+", name):
        raise DataError(f"a method can't be called {name!r}: a name has no spaces and no commas, and isn't empty")
    METHODS[name] = method


def needs_of(name: str, tools: Tools) -> list[str]:
    """What a method needs with these tools: class labels too, if what it uses of the bank was fitted to them."""
    method, bank = METHODS[name], tools.bank
    as_it_is = name == "dynamic_bn"
    by_labels = False
    if method.bank and bank is not None:
        if bank.calibration is not None and (method.calibrated or as_it_is or method.quantiles == "rows"):
            by_labels |= bank.calibration.provenance.get("criterion") == "labels"
        if uses_refined(name, bank):
            by_labels |= bank.provenance.get("refined", {}).get("criterion") != "consistency"
    return [*method.needs, *([CLASSES] if by_labels else [])]


def uses_refined(name: str, bank: BNStatsBank | None) -> bool:
    """Whether a method uses refined rows, which are more than statistics."""
    return METHODS[name].refined or (name == "dynamic_bn" and bank is not None and bank.refined)


def default_methods(bank: BNStatsBank | None, *, has_detector: bool) -> list[str]:
    """The unpatched model, BN-1, and the best that bank and detector allow."""
    methods = ["source", "batch_stats"]
    if bank is None or not has_detector:
        return methods
    return [
        *methods,
        "dynamic_bn/soft" if bank.calibration is None else "dynamic_bn/calibrated",
        *(["dynamic_bn/refined"] if bank.calibration is not None and bank.refined else []),
    ]


def check_methods(methods: Sequence[str], *, has_bank: bool, has_detector: bool) -> None:
    """Raise `DataError` for unknown methods, and for methods that lack the bank or the detector they need."""
    if isinstance(methods, str):
        raise DataError(f"methods={methods!r}: expected names in a list, as in [{methods!r}]")
    for name in methods:
        if name not in METHODS:
            raise DataError(f"unknown method {name!r}: {did_you_mean(name, METHODS)}")
        if METHODS[name].bank and not has_bank:
            raise DataError(f"method {name!r} needs a bank: make one with BNStatsBank.collect or `dynbn bank build`")
        if METHODS[name].detector and not has_detector:
            raise DataError(f"method {name!r} needs a detector: make one with `dynbn detector fit`")
    if len(set(methods)) != len(methods) or not methods:
        raise DataError(f"expected one or more different methods, got {list(methods)}")


def check_bank(methods: Sequence[str], bank: BNStatsBank) -> None:
    """Raise `DataError` for methods that need more of the bank than it has."""
    for name in methods:
        if METHODS[name].calibrated and bank.calibration is None:
            raise DataError(f"method {name!r} needs a calibrated bank: calibrate it with `dynbn calibrate`")
        if METHODS[name].refined and not bank.refined:
            raise DataError(f"method {name!r} needs a bank with refined rows: refine them with `dynbn refine`")


def check_oracle(methods: Sequence[str], bank: BNStatsBank, cells: Sequence[Cell]) -> None:
    """Raise `DataError` if the oracle is asked for cells that the bank has no row for."""
    missing = [cell.name for cell in cells if cell.name not in bank.rows and cell.corruption not in bank.rows]
    if missing and any(name.startswith("oracle") for name in methods):
        raise DataError(f"the oracle needs a row for every cell, and the bank has none for {first_few(missing)}")


def needed_quantiles(methods: Iterable[str], bank: BNStatsBank | None, quantiles: QuantileBank | None) -> bool:
    """Whether quantiles of clean training images are still to be measured for some methods.

    Raises:
        DataError: if a method needs quantiles of a bank's rows that there are not, or they leave out other layers.
    """
    if bank is not None and quantiles is not None and set(quantiles.skip) != set(bank.skip):
        raise DataError(
            f"the quantiles leave out the layers {list(quantiles.skip)}, the bank {list(bank.skip)}: measure both with "
            "the same skip="
        )
    for name in methods:
        if METHODS[name].quantiles != "rows" or bank is None:
            continue
        missing = [row for row in bank.rows if quantiles is None or row not in quantiles.rows]
        if missing:
            raise DataError(
                f"method {name!r} needs quantiles of every row of the bank: measure them with QuantileBank.collect or "
                "`dynbn bank build --quantile-count 64`"
            )
    return quantiles is None and any(METHODS[name].quantiles == "clean" for name in methods)
