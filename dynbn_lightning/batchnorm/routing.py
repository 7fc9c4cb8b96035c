"""Routing: every image of a batch normalised with its own row of a bank, in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm.bank import BNStatsBank
from dynbn_lightning.batchnorm.layers import find_batchnorm_layers
from dynbn_lightning.batchnorm.mixing import Mixing, blend_with_source, check_mixing, check_weights
from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, own_statistics, source_statistics
from dynbn_lightning.batchnorm.patching import Patch
from dynbn_lightning.batchnorm.statistics import Statistics, affine_of, blend_moments
from dynbn_lightning.batchnorm.statistics_policy import StatisticsPolicy
from dynbn_lightning.errors import RoutingError, did_you_mean

_ROW_NUMBER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


Copies = Literal["adjacent", "stacked"]


def _stack(table: Tensor, copies: int, dim: int) -> Tensor:
    return torch.cat([table] * copies, dim)


class Routing:
    """Which statistics the images of the next forward use; shared by all layers of one patched model.

    Made by `routed`. Until `set` is called, and after `clear`, the model is its unpatched self.
    """

    def __init__(self, bank: BNStatsBank, model: nn.Module, mixing: Mixing = "moments") -> None:
        check_mixing(mixing)
        layers = find_batchnorm_layers(model, bank.skip)
        # Row 0 comes from the model itself: a cast to half precision has rounded its statistics since the bank was
        # collected, and images on row 0 must see exactly what the layer's own forward sees.
        with torch.inference_mode(False), torch.no_grad():
            source = own_statistics(layers[name] for name in bank.layers)
            table = bank.statistics.map(lambda values: values.to(source.mean, copy=True))
            for values, own in zip(table, source, strict=True):
                if values is not None and own is not None:
                    values[0] = own
            if bank.calibration is not None:
                table = bank.calibration.apply(table, list(bank.layers.values()))
        self._table = table
        self._mixing = mixing
        self._rows = bank.rows
        self._statistics: Statistics | None = None
        self._weights: Tensor | None = None
        # N in the shape of an empty tensor (N, 0): torch.compile takes a number for a constant.
        self._batch: Tensor | None = None
        self._copies: Copies | None = None
        bounds = [0]
        for width in bank.layers.values():
            bounds.append(bounds[-1] + width)
        self._channels = {name: slice(bounds[i], bounds[i + 1]) for i, name in enumerate(bank.layers)}
        self._layers = {name: i for i, name in enumerate(bank.layers)}

    def set(
        self, assignment: Tensor | str, copies: Copies | None = None, *, source_weight: float | Tensor | None = None
    ) -> None:
        """Assign rows to the images of the next forward passes.

        Args:
            assignment: row numbers (N,) of a whole-number dtype, one per image; or mixture weights (N, K) floating,
                each row non-negative and summing to 1; or, shared by all images of batches of any size, the name of
                one row or weights (K,).
            copies: where layers see each image several times, folded into the batch: `"adjacent"`, an image's copies
                beside each other (time or crops, (N, T) flattened), or `"stacked"`, the whole batch again and again
                (`torch.cat([x, x.flip(-1)])`). Without it a batch of another size than N is refused.
            source_weight: blend with the source statistics: the share of row 0 in [0, 1], one number or (N,), see
                `blend_with_source`.

        A batch wholly on row 0 runs each layer's own forward, and one that shares a row one ordinary batch norm.
        Finding that out costs one host synchronisation on CUDA.

        Raises:
            RoutingError: for wrong shapes, dtypes, row numbers, names, or weights that are no mixture.
        """
        if copies is not None and copies not in get_args(Copies):
            raise RoutingError(f"copies={copies!r}: expected 'adjacent', 'stacked' or None")
        if isinstance(assignment, str):
            if assignment not in self._rows:
                raise RoutingError(f"the bank has no row {assignment!r}: {did_you_mean(assignment, self._rows)}")
            assignment = self._one_hot(torch.tensor(self._rows.index(assignment)))
        if assignment.dim() and len(assignment) == 0:
            raise RoutingError("an assignment for an empty batch: expected a row for at least one image")
        with torch.inference_mode(False), torch.no_grad():  # for forwards in any mode
            weights, statistics = self._statistics_of(assignment, source_weight)
        # Nothing was assigned if anything above raised.
        is_shared = assignment.dim() == 1 and assignment.is_floating_point()
        self._weights, self._statistics, self._copies = weights, statistics, copies
        self._batch = None if is_shared else self._table.mean.new_empty(len(assignment), 0)

    def use(self, statistics: Statistics) -> None:
        """Give the images of the next forward passes statistics of your own; gradients flow to them.

        Args:
            statistics: of N images, tables of shape (N, channels of all layers), on the model's device.

        Raises:
            RoutingError: for tables of another shape.
        """
        channels = self._table.mean.shape[1]
        if (
            statistics.mean.dim() != 2
            or any(table is not None and table.shape != statistics.mean.shape for table in statistics[1:4])
            or statistics.mean.shape[1] != channels
        ):
            raise RoutingError(
                f"statistics of your own are tables (N, {channels}), all for the same images; got "
                f"{[None if table is None else tuple(table.shape) for table in statistics]}"
            )
        self._weights, self._statistics, self._copies = None, statistics, None
        self._batch = statistics.mean.new_empty(len(statistics.mean), 0)

    def clear(self) -> None:
        """Go back to the source statistics, for batches of any size."""
        self._weights = self._statistics = self._batch = None

    @property
    def weights(self) -> Tensor | None:
        """What is assigned as mixture weights: (N, K), or (1, K) for all images; None for statistics of your own."""
        if self._weights is None or self._weights.is_floating_point():
            return self._weights
        return self._one_hot(self._weights)

    def _statistics_of(
        self, assignment: Tensor, source_weight: float | Tensor | None
    ) -> tuple[Tensor, Statistics | None]:
        if assignment.dim() == 1 and assignment.dtype in _ROW_NUMBER_DTYPES:
            shared_row = self._check_rows(assignment)
            if source_weight is None:
                return assignment, self._of_rows(assignment, shared_row)
            assignment = self._one_hot(assignment)
        weights = check_weights(assignment, len(self._rows))
        weights = weights if source_weight is None else blend_with_source(weights, source_weight)
        return weights.reshape(-1, len(self._rows)), self._of_weights(weights)

    def _one_hot(self, rows: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(rows.long(), len(self._rows)).to(self._table.mean.dtype)

    def _check_rows(self, rows: Tensor) -> int | None:
        low, high = torch.stack(rows.aminmax()).tolist()
        if low < 0 or high >= len(self._rows):
            raise RoutingError(f"row numbers from {low} to {high} for a bank of {len(self._rows)} rows")
        return int(low) if low == high else None

    def _of_rows(self, rows: Tensor, shared_row: int | None) -> Statistics | None:
        if shared_row == 0:
            return None
        if shared_row is not None:
            return self._table.map(lambda table: table[shared_row])
        rows = rows.to(self._table.mean.device, torch.int64)  # indexing with uint8 would select as with a mask
        return self._table.map(lambda table: table[rows])

    def _of_weights(self, weights: Tensor) -> Statistics | None:
        # A sum of rounded weights is off by their rounding; NaN fails both comparisons.
        off = max(1e-3, 4 * torch.finfo(weights.dtype).eps)
        is_mixture = (weights.min() >= 0) & ((weights.float().sum(-1) - 1).abs().max() < off)
        on_source = (weights[..., 0] == 1).all()
        mixture, source = torch.stack([is_mixture, on_source]).tolist()
        if not mixture:
            sums = weights.sum(-1)
            raise RoutingError(
                f"mixture weights must be at least 0 and sum to 1 for each image; these range from "
                f"{weights.min():.3g} to {weights.max():.3g} and their sums from {sums.min():.3g} to "
                f"{sums.max():.3g}: apply softmax to logits first"
            )
        if source:
            return None
        per_image = weights.to(self._table.mean.device).reshape(-1, len(self._rows))
        mixtures = self._table.mixed(per_image, self._mixing)
        return mixtures if weights.dim() == 2 else mixtures.map(lambda table: table[0])

    def forward(self, name: str, layer: PatchedLayer, x: Tensor) -> Tensor:
        """The output of the layer called `name` under the present assignment."""
        statistics = self.statistics(name, layer, x)
        return layer.own_forward(x) if statistics is None else layer.normalize_with(x, statistics)

    def statistics(self, name: str, layer: PatchedLayer, x: Tensor) -> Statistics | None:
        """What the layer called `name` is assigned for `x`; None for the source statistics.

        Raises:
            RoutingError: in training mode, or if rows are assigned to another number of images.
        """
        if layer.training:
            raise RoutingError(
                f"layer {name!r} is in training mode while it is routed: call model.eval(), or undo the patch first"
            )
        copies = 1 if self._batch is None else self._copies_in(x, self._batch.shape[0], name)
        if self._statistics is None:
            return None
        statistics = self._statistics.of_layer(self._channels[name], self._layers[name])
        if statistics.mean.dim() == 2 and copies > 1:
            statistics = statistics.map(lambda table: self._repeated(table, copies))
        return statistics

    def weights_for(self, x: Tensor) -> Tensor | None:
        """As `weights`, for the images of `x`, which may be copies of those that rows were assigned to."""
        weights = self.weights
        if weights is None or len(weights) in (1, len(x)):
            return weights
        return self._repeated(weights, len(x) // len(weights))

    def _repeated(self, table: Tensor, copies: int) -> Tensor:
        repeat = torch.Tensor.repeat_interleave if self._copies == "adjacent" else _stack
        return repeat(table, copies, 0)

    def _copies_in(self, x: Tensor, images: int, name: str) -> int:
        copies, rest = len(x) // images, len(x) % images  # torch.compile has no divmod of a batch size
        if rest or not copies or (copies > 1 and self._copies is None):
            raise RoutingError(
                f"layer {name!r} sees a batch of {len(x)} but rows were assigned to {images} images: assign one "
                "row to each image of the batch before its forward, or say with Routing.set(..., copies=) how the "
                "images are repeated"
            )
        return copies


class RoutingPolicy:
    """What a routed layer does: ask the model's routing for its statistics."""

    def __init__(self, name: str, routing: Routing) -> None:
        self.name = name
        self.routing = routing

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output under the routing's present assignment."""
        return self.routing.forward(self.name, layer, x)


class BlendedRoutingPolicy:
    """A routed layer whose images' statistics are blended with those of another policy.

    Args:
        name: the layer's.
        routing: tells each image's statistics.
        base: finds the other ones in the activations.
        base_weight: their share, in [0, 1], in the moments of the mixture.
    """

    def __init__(self, name: str, routing: Routing, base: StatisticsPolicy, base_weight: float) -> None:
        self.name, self.routing, self.base, self.base_weight = name, routing, base, base_weight

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output under the routing's present assignment."""
        statistics = self.routing.statistics(self.name, layer, x)
        mean, var = source_statistics(layer) if statistics is None else layer.moments_for(x, statistics)
        mean, var = blend_moments(mean, var, *self.base.found(layer, x), self.base_weight)
        return layer.normalize(x, mean, var, None if statistics is None else affine_of(statistics))


def patch_with_bank(model: nn.Module, bank: BNStatsBank, mixing: Mixing = "moments") -> tuple[Patch, Routing]:
    """A patch of a model for routing, between `Patch.apply()` and `undo()`; `routed` is the same as a context.

    Raises:
        BankError: if the bank was collected on another model.
        UnsupportedModelError: if the model has no BatchNorm layers or unsupported ones.
        RoutingError: if the model is patched already.
    """
    bank.check_model(model)
    routing = Routing(bank, model, mixing)
    return Patch(model, lambda name, layer: RoutingPolicy(name, routing), bank.skip), routing


@contextmanager
def routed(model: nn.Module, bank: BNStatsBank, mixing: Mixing = "moments") -> Iterator[Routing]:
    """Route the images of a model by the rows of a bank inside a `with` block.

    Args:
        model: the classifier that the bank was collected on, in evaluation mode.
        bank: its rows.
        mixing: how variances are mixed when weights over rows are given, see `mix_rows`.

    Yields:
        The routing, whose `set` assigns rows to the images of the next forward.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from dynbn_lightning.batchnorm import BNStatsBank, routed
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        >>> images = torch.rand(8, 3, 16, 16)
        >>> bank = BNStatsBank.collect(model, {"fog": [images + 1], "contrast": [images / 2]}, progress=False)
        >>> with torch.no_grad(), routed(model, bank) as routing:
        ...     routing.set(torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]))
        ...     out = model(images)
        >>> out.shape
        torch.Size([8, 4, 14, 14])
    """
    patch, routing = patch_with_bank(model, bank, mixing)
    with patch:
        yield routing
