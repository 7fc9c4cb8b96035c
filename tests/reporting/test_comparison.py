"""Several results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from results_data import made_up_records, write_made_up_results

from dynbn_lightning.errors import DataError
from dynbn_lightning.metrics import BASELINES, paired_bootstrap
from dynbn_lightning.reporting import (
    Comparison,
    Entry,
    ImageRecords,
    clean_difference,
    difference,
    read_results,
    write_results,
)
from dynbn_lightning.reporting.comparison import find_baseline, shared_cells, usual_baseline


def entry_of(comparison: Comparison, method: str, stream: str = "mixed") -> Entry:
    return next(entry for entry in comparison.entries if (entry.method, entry.stream) == (method, stream))


def right(entry: Entry, cell: str) -> list[bool]:
    """Whether each image was right in a cell, by a loop."""
    records = entry.records
    assert records is not None
    from dynbn_lightning.corruptions.cells import Cell

    rows = zip(records.indices.tolist(), records.cells.tolist(), records.correct.tolist(), strict=True)
    return [hit for _, hit in sorted((index, hit) for index, code, hit in rows if code == Cell.parse(cell).code)]


def test_entries_are_in_the_order_of_folders_and_runs(tmp_path: Path) -> None:
    places = (("mixed", 200), ("sequential", 8))
    write_made_up_results(tmp_path / "one", places=places, skills={"source": 1, "tent": 2})
    write_made_up_results(tmp_path / "two", skills={"oracle": 1})
    alone = Comparison.read([tmp_path / "one" / "results.json"])
    assert [(entry.title, entry.label) for entry in alone.entries] == [("", "source"), ("", "tent")] * 2
    both = Comparison.read([tmp_path / "two", tmp_path / "one"])
    assert [(entry.label, entry.stream, entry.batch_size) for entry in both.entries] == [
        ("two: oracle", "mixed", 200),
        ("one: source", "mixed", 200),
        ("one: tent", "mixed", 200),
        ("one: source", "sequential", 8),
        ("one: tent", "sequential", 8),
    ]
    assert both.source_of(both.entries[4]) is both.entries[3]
    assert both.source_of(both.entries[3]) is both.entries[3]
    assert both.source_of(both.entries[0]) is None
    assert both.other(both.entries[1], "tent") is both.entries[2]
    assert both.other(both.entries[1], "oracle") is None


def test_titles_are_the_shortest_ends_that_differ(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "b/other"):
        write_made_up_results(tmp_path / name, skills={"source": 1})

    def titles(*names: str) -> list[str]:
        return [entry.title for entry in Comparison.read([tmp_path / name for name in names]).entries]

    assert titles("a/run") == [""]
    assert titles("a/run", "b/other") == ["run", "other"]
    assert titles("a/run", "b/run", "b/other") == ["a/run", "b/run", "b/other"]


def test_folders_must_be_different_and_hold_results(tmp_path: Path) -> None:
    write_made_up_results(tmp_path / "one")
    with pytest.raises(DataError, match="different"):
        Comparison.read([tmp_path / "one", tmp_path / "one" / "results.json"])
    with pytest.raises(DataError, match="one or more"):
        Comparison.read([])
    with pytest.raises(DataError, match="holds no results"):
        Comparison.read([tmp_path / "two"])
    nothing = {"schema_version": 3, "protocol": {}, "runs": []}
    write_results(nothing, tmp_path / "two")
    with pytest.raises(DataError, match="there are no results"):
        Comparison.read([tmp_path / "two"])
    write_results({**nothing, "missing": ["source", "tent"]}, tmp_path / "two")
    unfinished = Comparison.read([tmp_path / "two"])
    assert unfinished.entries == ()
    assert unfinished.unfinished == {tmp_path / "two": "source, tent"}


def test_difference_is_paired_and_symmetric(tmp_path: Path) -> None:
    write_made_up_results(tmp_path)
    comparison = Comparison.read([tmp_path])
    source, soft = entry_of(comparison, "source"), entry_of(comparison, "dynamic_bn/soft")
    cells = list(soft.block["cells"])
    there, back = difference(soft, source), difference(source, soft)
    assert there is not None
    assert back is not None
    hits = {entry.method: [right(entry, cell) for cell in cells] for entry in (source, soft)}
    gains = [sum(a) / 30 - sum(b) / 30 for a, b in zip(hits[soft.method], hits[source.method], strict=True)]
    assert there.cells.difference.tolist() == pytest.approx(gains)
    assert float(there.mean.difference) == pytest.approx(sum(gains) / len(gains))
    expected = paired_bootstrap(torch.tensor(hits[soft.method]).T, torch.tensor(hits[source.method]).T)
    assert torch.equal(there.cells.lower, expected.cells.lower)
    torch.testing.assert_close(there.cells.lower, -back.cells.upper)
    torch.testing.assert_close(there.mean.upper, -back.mean.lower)
    one, other = clean_difference(soft, source), clean_difference(source, soft)
    assert one is not None
    assert other is not None
    assert float(one.difference) == pytest.approx(sum(right(soft, "clean")) / 30 - sum(right(source, "clean")) / 30)
    assert float(one.lower) == pytest.approx(-float(other.upper))
    assert float(one.lower) < float(one.difference) < float(one.upper)


def test_intervals_of_an_entry(tmp_path: Path) -> None:
    write_made_up_results(tmp_path, skills={"source": 1.0})
    (source,) = Comparison.read([tmp_path]).entries
    intervals, clean = source.intervals, source.clean_interval
    assert intervals is not None
    assert clean is not None
    for number, cell in enumerate(source.block["cells"]):
        assert float(intervals.cells.difference[number]) == pytest.approx(sum(right(source, cell)) / 30)
        assert intervals.cells.lower[number] < intervals.cells.difference[number] < intervals.cells.upper[number]
    assert float(intervals.mean.difference) == pytest.approx(source.block["mean"]["accuracy"])
    assert float(clean.difference) == pytest.approx(source.block["clean"]["accuracy"])


def test_nothing_pairs_without_records_or_of_other_images(tmp_path: Path) -> None:
    write_made_up_results(tmp_path / "kept")
    write_made_up_results(tmp_path / "lost", records=False)
    write_made_up_results(tmp_path / "fewer", images=20)
    write_made_up_results(tmp_path / "single", images=1)
    write_made_up_results(tmp_path / "cells", corruptions=["fog"])
    names = ("kept", "lost", "fewer", "single", "cells")
    comparison = Comparison.read([tmp_path / name for name in names])
    kept, lost, fewer, single, cells = (
        next(entry for entry in comparison.entries if entry.title == name and entry.method == "source")
        for name in names
    )
    assert lost.records is None
    assert (lost.intervals, lost.clean_interval) == (single.intervals, single.clean_interval) == (None, None)
    for other in (lost, fewer):
        assert difference(kept, other) is difference(other, kept) is clean_difference(kept, other) is None
    assert difference(single, single) is clean_difference(single, single) is None
    assert difference(kept, cells) is None
    assert clean_difference(kept, cells) is not None


@pytest.mark.parametrize("column", ["indices", "labels"])
def test_as_many_other_images_are_not_paired(tmp_path: Path, column: str) -> None:
    for name in ("one", "two"):
        write_made_up_results(tmp_path / name, skills={"source": 1.0})
    file = tmp_path / "two" / "images" / "mixed-200-source.safetensors"
    records, about = ImageRecords.load(file)
    changed = {**vars(records), column: getattr(records, column) + 1}
    ImageRecords(**changed).save(file, about)
    one, two = Comparison.read([tmp_path / "one", tmp_path / "two"]).entries
    assert difference(one, one) is not None
    assert difference(one, two) is None
    assert clean_difference(one, two) is None


def test_lost_records_are_named(tmp_path: Path) -> None:
    write_made_up_results(tmp_path, skills={"source": 1.0})
    (tmp_path / "images" / "mixed-200-source.safetensors").unlink()
    (source,) = Comparison.read([tmp_path]).entries
    with pytest.raises(DataError, match="mixed-200-source"):
        _ = source.records
    (tmp_path / "images").rmdir()
    (alone,) = Comparison.read([tmp_path]).entries
    assert alone.records is alone.intervals is None, "somebody copied results.json alone"


def test_the_source_of_another_folder_is_of_the_same_weights_and_images(tmp_path: Path) -> None:
    for folder, skills in (("with", {"source": 1.0}), ("without", {"tent": 1.5})):
        write_made_up_results(tmp_path / folder, skills=skills)
        results = read_results(tmp_path / folder)
        results["protocol"] |= {
            "fingerprint": "f",
            "preset": "cifar",
            "frost_textures": "generated",
            "image_size": [1, 1],
        }
        write_results(results, tmp_path / folder)
    source, tent = Comparison.read([tmp_path / "with", tmp_path / "without"]).entries
    comparison = Comparison((source, tent), {})
    assert comparison.source_of(tent) is source
    assert comparison.other(tent, "source") is None
    results["protocol"]["fingerprint"] = "another"
    write_results(results, tmp_path / "without")
    *_, tent = Comparison.read([tmp_path / "with", tmp_path / "without"]).entries
    assert Comparison((source, tent), {}).source_of(tent) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split", "validation"),
        ("limit_batches", 3),
        ("normalization", {"mean": [0.0], "std": [1.0]}),
        ("precision", "bf16-mixed"),
        ("images_fingerprint", "i"),
    ],
)
def test_no_source_is_lent_that_saw_other_images(tmp_path: Path, key: str, value: Any) -> None:
    write_made_up_results(tmp_path / "with", skills={"source": 1.0}, fingerprint="f")
    write_made_up_results(tmp_path / "without", skills={"tent": 1.5}, fingerprint="f", split="test")
    source, tent = (comparison := Comparison.read([tmp_path / "with", tmp_path / "without"])).entries
    assert comparison.source_of(tent) is source, "what neither says is no difference"
    write_made_up_results(tmp_path / "without", skills={"tent": 1.5}, fingerprint="f", **{key: value})
    source, tent = (comparison := Comparison.read([tmp_path / "with", tmp_path / "without"])).entries
    assert comparison.source_of(tent) is None
    write_made_up_results(tmp_path / "with", skills={"source": 1.0}, fingerprint="f", **{key: value})
    source, tent = (comparison := Comparison.read([tmp_path / "with", tmp_path / "without"])).entries
    assert comparison.source_of(tent) is source


@pytest.mark.parametrize("interrupted", ["source", "oracle"])
def test_what_is_unfinished_is_not_compared(tmp_path: Path, interrupted: str) -> None:
    results = write_made_up_results(tmp_path)
    results["runs"][0]["methods"][interrupted]["unfinished"] = True
    write_results(results, tmp_path)
    comparison = Comparison.read([tmp_path])
    source, oracle = entry_of(comparison, "source"), entry_of(comparison, "oracle")
    assert comparison.source_of(oracle) is (None if interrupted == "source" else source)
    assert difference(oracle, source) is clean_difference(oracle, source) is None
    assert shared_cells(oracle, source) == frozenset()


def test_an_unfinished_source_is_no_baseline(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path, places=(("mixed", 200), ("sequential", 200)))
    results["runs"][0]["methods"]["source"]["unfinished"] = True
    write_results(results, tmp_path)
    baseline = find_baseline(tmp_path)
    assert baseline.clean == results["runs"][1]["methods"]["source"]["clean"]["error"], "another stream's is finished"
    results["runs"][1]["methods"]["source"]["unfinished"] = True
    write_results(results, tmp_path)
    with pytest.raises(DataError, match="unfinished"):
        find_baseline(tmp_path)


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["cifar10"], "benz-cifar10"),
        (["CIFAR-100"], "benz-cifar100"),
        (["imagenet"], "alexnet"),
        (["cifar10", "cifar10"], "benz-cifar10"),
        (["cifar10", "imagenet"], None),
        (["shapes"], None),
        ([None], None),
    ],
)
def test_the_usual_baseline_of_the_data(sources: list[str | None], expected: str | None) -> None:
    protocols = [{} if source is None else {"source": source} for source in sources]
    assert usual_baseline(protocols) is (None if expected is None else BASELINES[expected])


def test_the_baseline_may_be_chosen(tmp_path: Path) -> None:
    write_made_up_results(tmp_path / "own")
    write_made_up_results(tmp_path / "without", skills={"tent": 1.0})
    assert Comparison.read([tmp_path / "own"]).baseline is BASELINES["benz-cifar10"]
    assert Comparison.read([tmp_path / "own"], "alexnet").baseline is BASELINES["alexnet"]
    for path in (tmp_path / "own", str(tmp_path / "own" / "results.json")):
        comparison = Comparison.read([tmp_path / "without"], path)
        baseline = comparison.baseline
        assert baseline is not None
        assert "resnet20" in baseline.name
        source = Comparison.read([tmp_path / "own"]).entries[0]
        assert baseline.errors["fog"][2] == pytest.approx(1 - sum(right(source, "fog/3")) / 30)
        assert baseline.errors["fog"][1] is None
        assert baseline.clean == pytest.approx(1 - sum(right(source, "clean")) / 30)
    with pytest.raises(DataError, match="did you mean 'alexnet'"):
        Comparison.read([tmp_path / "own"], "alexnt")
    with pytest.raises(DataError, match="no results of the source"):
        Comparison.read([tmp_path / "own"], tmp_path / "without")


def test_images_are_paired_whatever_order_they_came_in() -> None:
    records = made_up_records(["clean", "fog/1"], 12)
    backwards = records.map(lambda column: column.flip(0))
    one, other = records.correct_by_cell(["fog/1"]), backwards.correct_by_cell(["fog/1"])
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
