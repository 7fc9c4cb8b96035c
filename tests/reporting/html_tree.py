"""The page of some results as a tree, read strictly: what is opened must be closed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dynbn_lightning.reporting.comparison import Comparison, Entry
from dynbn_lightning.reporting.html import write_html

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    inside: list[Node | str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        """This node and all below it, in the order of the page."""
        yield self
        for node in self.inside:
            if isinstance(node, Node):
                yield from node

    def all(self, *tags: str) -> list[Node]:
        return [node for node in self if node.tag in tags]

    def of_class(self, name: str) -> list[Node]:
        return [node for node in self if name in node.attributes.get("class", "").split()]

    def one(self, tag: str) -> Node:
        (node,) = self.all(tag)
        return node

    def by_id(self, name: str) -> Node:
        (node,) = (node for node in self if node.attributes.get("id") == name)
        return node

    @property
    def text(self) -> str:
        parts = (node if isinstance(node, str) else node.text for node in self.inside)
        return " ".join("".join(parts).split())

    @property
    def number(self) -> str:
        """The text without what stands smaller beneath it."""
        small = ("bounds", "note")
        parts = (
            node if isinstance(node, str) else "" if node.attributes.get("class") in small else node.text
            for node in self.inside
        )
        return " ".join("".join(parts).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("page")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}: {attrs}"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        closed = self.open.pop()
        assert closed.tag == tag, f"</{tag}> closes <{closed.tag}>"

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def read_page(page: str) -> Node:
    """The tree of a whole page."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert [node.tag for node in reader.open] == ["page"], "something was left open"
    return reader.open[0]


def page_of(*folders: Path, **options: Any) -> tuple[Node, Comparison]:
    comparison = Comparison.read(list(folders), **options)
    path = write_html(comparison, folders[0] / "report.html")
    return read_page(path.read_text(encoding="utf-8")), comparison


def rows_of(table: Node) -> dict[str, list[Node]]:
    return {
        row.all("th")[0].number: row.all("td")
        for part in ("tbody", "tfoot")
        for body in table.all(part)
        for row in body.all("tr")
    }


def tables_of(tree: Node, caption: str) -> list[Node]:
    return [table for table in tree.all("table") if table.one("caption").text.startswith(caption)]


def entry_of(comparison: Comparison, method: str, stream: str = "mixed") -> Entry:
    return next(one for one in comparison.entries if (one.method, one.stream) == (method, stream))
