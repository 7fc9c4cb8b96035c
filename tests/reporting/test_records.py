"""Records of images against plain loops over them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from results_data import ROWS, made_up_records
from safetensors.torch import load_file, save_file

from dynbn_lightning.corruptions.cells import Cell
from dynbn_lightning.errors import DataError
from dynbn_lightning.metrics import outcomes_of
from dynbn_lightning.reporting import ImageRecords
from dynbn_lightning.reporting.records import NOT_DETECTED

CELLS = ["clean", "snow/3", "fog/1", "fog/3"]
COLUMNS = [name for name in ImageRecords.__dataclass_fields__ if name != "rows"]


def same(one: ImageRecords, other: ImageRecords) -> bool:
    columns = [(getattr(one, name), getattr(other, name)) for name in COLUMNS]
    return one.rows == other.rows and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in columns)


def test_a_batch_keeps_what_became_of_each_image() -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 1.0, 5.0]], dtype=torch.float64, requires_grad=True)
    labels, cells = torch.tensor([0, 1]), torch.tensor([0, Cell("fog", 3).code])
    records = ImageRecords.of_batch(outcomes_of(logits, labels), indices=[7, 3], cells=cells, labels=labels)
    assert len(records) == 2
    assert records.rows == ()
    assert records.predictions.tolist() == [0, 2]
    assert records.correct.tolist() == [True, False]
    assert records.indices.tolist() == [7, 3]
    assert records.cells.tolist() == cells.tolist()
    assert records.detected.tolist() == [NOT_DETECTED] * 2
    assert records.detection_confidences.tolist() == [0, 0]
    probability = logits[1].double().softmax(0)[1]
    assert records.nll[1].item() == pytest.approx(-probability.log().item(), rel=1e-6)
    assert not records.nll.requires_grad
    assert [getattr(records, name).dtype for name in ("indices", "cells", "correct", "detected")] == [
        *(torch.int64, torch.uint8, torch.bool, torch.int16)
    ]


def test_together_is_one_after_another() -> None:
    whole = made_up_records(CELLS, 9, rows=ROWS)
    parts = [whole.map(lambda column, at=at: column[at : at + 10]) for at in range(0, len(whole), 10)]
    assert same(ImageRecords.together(parts), whole)
    assert len(ImageRecords.together([])) == len(ImageRecords.of_nothing()) == 0
    undetected = made_up_records(CELLS, 9)
    mixed = ImageRecords.together([undetected, whole])
    assert mixed.rows == ROWS
    assert mixed.detected.tolist() == [NOT_DETECTED] * len(undetected) + whole.detected.tolist()
    with pytest.raises(DataError, match="rows differ"):
        ImageRecords.together([whole, made_up_records(CELLS, 9, rows=("clean", "fog"))])


def test_unique_keeps_the_first_record_of_each_image_in_each_cell() -> None:
    whole = made_up_records(CELLS, 9, rows=ROWS)
    again = made_up_records(CELLS, 9, seed=5, rows=ROWS)
    unique = ImageRecords.together([whole, again.map(lambda column: column[:17])]).unique()
    seen: dict[tuple[int, int], int] = {}
    for place, (code, index) in enumerate(zip(whole.cells.tolist(), whole.indices.tolist(), strict=True)):
        seen.setdefault((code, index), place)
    assert same(unique, whole.map(lambda column: column[[seen[key] for key in sorted(seen)]]))
    assert len(unique) == 9 * len(CELLS)
    assert same(unique.unique(), unique)
    assert len(ImageRecords.of_nothing().unique()) == 0


def test_scores_are_those_of_a_loop() -> None:
    records = made_up_records(CELLS, 23)
    scores = records.scores()
    assert list(scores) == ["clean", "snow/3", "fog/1", "fog/3"]
    for name, its in scores.items():
        places = [place for place, code in enumerate(records.cells.tolist()) if code == Cell.parse(name).code]
        assert its.images == len(places) == 23
        assert its.accuracy == pytest.approx(sum(bool(records.correct[place]) for place in places) / 23)
        assert its.top5_accuracy == pytest.approx(sum(bool(records.top5[place]) for place in places) / 23)
        assert its.nll == pytest.approx(sum(float(records.nll[place]) for place in places) / 23, abs=1e-5)


def test_correct_by_cell_is_in_order_of_images() -> None:
    records = made_up_records(CELLS, 9)
    right = {
        (code, index): bool(hit)
        for code, index, hit in zip(
            records.cells.tolist(), records.indices.tolist(), records.correct.tolist(), strict=True
        )
    }
    cells = ["fog/3", "clean", "snow/3"]
    table = records.correct_by_cell(cells)
    assert table is not None
    assert table.tolist() == [[right[Cell.parse(cell).code, index] for cell in cells] for index in range(9)]
    labels = dict(zip(records.indices.tolist(), records.labels.tolist(), strict=True))
    assert records.images_of("fog/1").tolist() == [[index, labels[index]] for index in range(9)]


def test_nothing_pairs_if_the_cells_were_shown_other_images_or_one_twice() -> None:
    records = made_up_records(CELLS, 9)
    lacking = records.map(lambda column: column[1:])
    cell = Cell.from_code(int(records.cells[0])).name
    others = [name for name in CELLS if name != cell]
    assert lacking.correct_by_cell(CELLS) is None
    assert lacking.correct_by_cell(others) is not None
    assert records.correct_by_cell([]) is None
    twice = ImageRecords.together([records, records])
    assert twice.correct_by_cell(CELLS) is None
    assert twice.correct_by_cell(["clean"]) is None
    assert twice.unique().correct_by_cell(CELLS) is not None


def test_detection_is_counted_against_the_row_of_the_cell() -> None:
    records = made_up_records([*CELLS, "frost/2"], 40, rows=ROWS)
    nothing_seen = records.detected.clone()
    nothing_seen[:5] = NOT_DETECTED
    records = ImageRecords(**{**vars(records), "detected": nothing_seen})
    true_row = {"clean": 0, "fog/1": 1, "fog/3": 1, "snow/3": 2, "frost/2": NOT_DETECTED}
    counts = [[0] * 3 for _ in range(3)]
    for place in range(len(records)):
        true = true_row[Cell.from_code(int(records.cells[place])).name]
        assert int(records.true_rows()[place]) == true
        if NOT_DETECTED not in (true, int(records.detected[place])):
            counts[true][int(records.detected[place])] += 1
    assert records.confusion().tolist() == counts
    assert sum(map(sum, counts)) < len(records) - 40, "some of the first images are not of frost"
    diagonal = sum(counts[row][row] for row in range(3))
    assert records.detection_accuracy() == pytest.approx(diagonal / sum(map(sum, counts)))
    assert made_up_records(CELLS, 4).detection_accuracy() is None
    assert made_up_records(["frost/2"], 4, rows=ROWS).detection_accuracy() is None


def test_round_trip(tmp_path: Path) -> None:
    about = {"method": "dynamic_bn/soft", "seed": 3, "state": [1, None]}
    for records in (made_up_records(CELLS, 9, rows=ROWS), ImageRecords.of_nothing()):
        records.save(tmp_path / "new" / "it.safetensors", about)
        loaded, kept = ImageRecords.load(tmp_path / "new" / "it.safetensors")
        assert same(loaded, records)
        assert kept == about
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["it.safetensors"]


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    with pytest.raises(DataError, match="no records of images"):
        ImageRecords.load(path)
    made_up_records(CELLS, 9).save(path, {})
    whole = path.read_bytes()
    columns, (key, described) = load_file(path), _metadata(path)
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            ImageRecords.load(path)
    others = [
        (columns, {}),
        (columns, {key: "no json"}),
        (columns, {key: "[]"}),
        (columns, {key: described.replace('"format_version": 1', '"format_version": 2')}),
        ({name: column for name, column in columns.items() if name != "nll"}, {key: described}),
        ({**columns, "nll": columns["nll"].double()}, {key: described}),
        ({**columns, "nll": columns["nll"][1:].clone()}, {key: described}),
    ]
    for tensors, metadata in others:
        save_file(tensors, path, metadata)
        with pytest.raises(DataError, match="damaged"):
            ImageRecords.load(path)
    save_file(columns, path, {key: described})
    assert len(ImageRecords.load(path)[0]) == 9 * len(CELLS)


def _metadata(path: Path) -> tuple[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return next(iter(file.metadata().items()))
