"""Networks on our corruptions of the CIFAR-10 test images against the same networks on the published generator's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from corruption_fidelity import NETWORKS as ALL_NETWORKS
from corruption_fidelity import (
    SEEDS,
    accuracies_fit,
    accuracy_differences,
    load_network,
    measure,
    network_table,
    read_test_images,
    top1_accuracy,
)

from dynbn_lightning.corruptions import COMMON_CORRUPTIONS, SEVERITIES

MOST_PROCESSES = 8

NETWORKS = ALL_NETWORKS if os.environ.get("DYNBN_FULL") else ALL_NETWORKS[:1]
"""`.ci/run --full` asks for all three: the deeper ones take nine minutes on two cores."""


@pytest.fixture(scope="module")
def measured(dynbn_data: Path, reference: Path) -> dict[str, Any]:
    """Every cell of the common corruptions with every network."""
    jobs = min(torch.get_num_threads(), MOST_PROCESSES)
    return measure(dynbn_data, COMMON_CORRUPTIONS, SEEDS, NETWORKS, jobs)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_are_as_accurate_as_on_the_published_corruptions(
    network: str, measured: dict[str, Any], cifar_statistics: dict[str, Any]
) -> None:
    differences = accuracy_differences(measured["accuracies"][network], cifar_statistics, network)
    assert len(differences) == len(COMMON_CORRUPTIONS) * len(SEVERITIES)
    assert accuracies_fit(differences), network_table(measured, cifar_statistics)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_the_comparison_tells_severities_and_corruptions_apart(
    network: str, measured: dict[str, Any], cifar_statistics: dict[str, Any]
) -> None:
    accuracies = measured["accuracies"][network]
    easier = {
        f"{name}/{severity}": accuracies[f"{name}/{max(severity - 1, 1)}"]
        for name in COMMON_CORRUPTIONS
        for severity in SEVERITIES
    }
    others = {
        f"{name}/{severity}": accuracies[f"{other}/{severity}"]
        for name, other in zip(COMMON_CORRUPTIONS, reversed(COMMON_CORRUPTIONS), strict=True)
        for severity in SEVERITIES
    }
    for changed in (easier, others):
        assert not accuracies_fit(accuracy_differences(changed, cifar_statistics, network))


@pytest.mark.parametrize(
    ("changed", "fits"),
    [
        ([], True),
        ([5.0, -3.0, 3.0, -4.9], True),
        ([5.1], False),
        ([-5.1], False),
        ([3.1, -3.1, 3.1], True),
        ([3.1, -3.1, 3.1, -3.1], False),
        ([0.71] * 75, False),
        ([-0.71] * 75, False),
        ([0.69] * 75, True),
    ],
)
def test_what_fits(changed: list[float], fits: bool) -> None:
    differences = changed + [0.0] * (75 - len(changed))
    assert accuracies_fit({str(cell): difference for cell, difference in enumerate(differences)}) == fits


@pytest.mark.parametrize("network", NETWORKS)
def test_clean_images_are_as_published(network: str, dynbn_data: Path, cifar_statistics: dict[str, Any]) -> None:
    accuracy = top1_accuracy(load_network(dynbn_data, network), *read_test_images(dynbn_data))
    assert accuracy == cifar_statistics["clean"][f"resnet{network}_accuracy"]
