"""The page as one file: it needs nothing else, is well formed, can be read aloud, in the dark and on paper."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from html_folders import PROTOCOL, ROWS, make_folder
from html_tree import Node, read_page

from dynbn_lightning.corruptions import Cell
from dynbn_lightning.corruptions.cells import cells_of
from dynbn_lightning.reporting.comparison import Comparison
from dynbn_lightning.reporting.html import write_html
from dynbn_lightning.reporting.html.curves import severity_charts
from dynbn_lightning.reporting.results import read_results, write_results

FEW = (Cell.clean(), *cells_of(("gaussian_noise", "fog"), (1, 5)))
METHODS = {"source": 0.0, "tent": 0.06, "dynamic_bn/calibrated": 0.12, "oracle/calibrated": 0.14}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_folder(
        tmp_path_factory.mktemp("run"), images=40, methods=METHODS, cells=FEW, streams=("mixed", "continual")
    )
    return write_html(Comparison.read([folder]), folder / "new" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(page: str) -> Node:
    return read_page(page)


def test_it_needs_no_other_file(page: str, tree: Node) -> None:
    assert not tree.all("script", "link", "iframe", "object", "embed", "base")
    for node in tree:
        for name, value in node.attributes.items():
            assert not name.startswith("on"), "no handlers"
            if name in ("href", "src", "srcset", "action", "data", "xlink:href", "poster"):
                assert value.startswith(("#", "data:image/png;base64,")), (node.tag, name, value[:80])
    assert "@import" not in page
    assert set(re.findall(r"url\(\s*[\"']?(.)", page)) <= {"#"}
    assert not re.findall(r"https?://[^\s\"<]+", page)


def test_ids_are_unique_and_what_refers_to_one_finds_it(page: str, tree: Node) -> None:
    ids = [node.attributes["id"] for node in tree if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    used = {node.attributes["aria-labelledby"] for node in tree if "aria-labelledby" in node.attributes}
    used |= set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r"href=\"#([^\"]+)\"", page))
    assert used
    assert used <= set(ids)


def test_headings_are_in_order_and_tables_and_pictures_say_what_they_are(tree: Node) -> None:
    assert tree.one("html").attributes["lang"] == "en"
    assert any(meta.attributes.get("name") == "viewport" for meta in tree.all("meta"))
    levels = [int(heading.tag[1]) for heading in tree.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(tree.all("table")) >= 8
    for table in tree.all("table"):
        assert table.one("caption").text
        assert all(heading.attributes["scope"] in ("row", "col", "colgroup") for heading in table.all("th"))
        for row in table.one("tbody").all("tr"):
            assert row.all("th")[0] is row.inside[0]
    for drawing in tree.all("svg"):
        assert drawing.attributes["role"] == "img"
        assert drawing.all("title")[0].text
    assert len(tree.all("svg")) == 2 + 2 + 2 + 2, "severities, detector, predictions, costs"


def test_colours_follow_the_theme(page: str, tree: Node) -> None:
    style = tree.one("style").text
    light, dark = (re.search(rf"{start}\s*:root\s*{{(.*?)}}", style) for start in ("^", r"dark\)\s*{"))
    assert light is not None
    assert dark is not None
    defined, redefined = (set(re.findall(r"(--[\w-]+)\s*:", block[1])) for block in (light, dark))
    assert redefined <= defined
    assert {"--page", "--text", "--faint", "--line", "--gain", "--loss", "--on-blue"} <= redefined
    used = set(re.findall(r"var\((--[\w-]+)", page))
    set_elsewhere = {"--strength", "--width", "--hue"}
    assert used <= defined | set_elsewhere
    assert re.search(r"@media screen and \(prefers-color-scheme: dark\)", style), "paper stays white"
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): #(?:[0-9a-f]{6})", drawings), "a colour that no theme knows"
    assert not re.findall(r"(?:fill|stroke): (?:white|black)", drawings)


def test_paper_shows_what_is_closed_on_the_screen(tree: Node) -> None:
    style = tree.one("style").text
    assert "::details-content { content-visibility: visible" in style[style.index("@media print") :]
    assert tree.all("details")


def test_sections_stand_in_their_order(tree: Node) -> None:
    assert [heading.text for heading in tree.all("h2")] == [
        "In short",
        "Methods",
        "Gain over the source by corruption and severity",
        "Accuracy against severity",
        "The detector",
        "Detected against known corruption",
        "Reliability of the predictions",
        "Cost against accuracy",
        "Protocol",
        "Words",
    ]
    assert tree.one("h1").text == tree.one("head").one("title").text == "resnet20, tested on corrupted cifar10"
    summary = tree.of_class("summary")[0].text
    for said in ("4 methods", "mixed and continual streams in batches of 200", "40 test images", "1 and 5", "seed 0"):
        assert said in summary


def test_every_key_of_the_protocol_and_every_setting_is_there(tree: Node) -> None:
    protocol = next(section for section in tree.all("section") if section.attributes["aria-labelledby"] == "protocol")
    names = {term.text for term in protocol.all("dt")}
    assert set(PROTOCOL) | {"made_from", "images", "split", "torch", "mean", "std", "schema_version"} <= names
    assert set(METHODS) | {"DynamicBNCallback", "mixing", "blend"} <= names
    for said in ("0.491, 0.482, 0.447", "methods with state begin anew", "2.6.0", "2 cores of a Xeon", "none"):
        assert said in protocol.text


def test_charts_say_what_they_are_of_and_leave_out_what_is_unfinished(tree: Node, tmp_path: Path) -> None:
    captions = [caption.text for caption in tree.all("figcaption") if "predicted class" in caption.text]
    assert len(captions) == 2
    assert all("over all images together, clean ones too" in caption for caption in captions)
    folder = make_folder(tmp_path, images=10, methods={"source": 0.0, "tent": 0.06, "ema": 0.1}, cells=FEW)
    results = read_results(folder)
    results["runs"][0]["methods"]["tent"]["unfinished"] = True
    write_results(results, folder)
    (chart,) = severity_charts(Comparison.read([folder]))
    assert "EMA" in str(chart.svg)
    assert "TENT" not in str(chart.svg)
    assert "10 test images" in chart.caption, "as many as were counted, not the 200 of the protocol"


def test_without_matplotlib_everything_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path, images=10, methods=METHODS, cells=FEW)
    monkeypatch.setattr("dynbn_lightning.reporting.figures.canvas.find_spec", lambda name: None)
    bare = read_page(write_html(Comparison.read([folder]), tmp_path / "report.html").read_text())
    assert not bare.all("svg")
    instead = bare.of_class("instead")
    assert len(instead) == 4
    assert all('pip install "dynbn-lightning[report]"' in one.text for one in instead)
    assert len(bare.of_class("heat-map")) == 3
    assert bare.by_id("rows-1").text == "How the images of each row were detected"
    assert len(ROWS) == 16
