"""Starting processes: what is refused, and who prepares the data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from dynbn_lightning.callbacks.sharded_models import refuse_sharded_models
from dynbn_lightning.errors import DataError, MethodError
from dynbn_lightning.processes import prepare, start_processes


def test_one_device_starts_nothing() -> None:
    process = start_processes("cpu")
    assert (process.world_size, process.is_global_zero, process.device.type) == (1, True, "cpu")


def test_other_numbers_than_torchrun_has_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(DataError, match=r"torchrun has started 4 processes, and devices=1 with num_nodes=2 asks for 2"):
        start_processes("cpu", 1, 2)


@pytest.mark.parametrize("local_rank", [0, 1])
def test_data_are_prepared_once_on_each_process(local_rank: int) -> None:
    calls: list[Any] = []
    data: Any = SimpleNamespace(prepare_data=lambda: calls.append(local_rank))
    prepare(data, local_rank)
    assert calls == [local_rank]


def test_models_in_parts_are_refused_by_the_name_of_their_strategy() -> None:
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(MethodError, match=r"TentCallback patches .* whole model, and FSDPStrategy keeps"):
        refuse_sharded_models(trainer, "TentCallback")
    for whole in (DDPStrategy(), SingleDeviceStrategy()):
        refuse_sharded_models(SimpleNamespace(strategy=whole), "TentCallback")  # type: ignore[arg-type]
