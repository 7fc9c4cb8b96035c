"""What mkdocs does with links that lead out of `docs/`, so that they work in the repository and on the site.

In the repository a page links to `../benchmarks/RESULTS.md` or `../examples`. On the site three files of the repository
are pages themselves, under `INCLUDED`; a link to another file or folder leads to the public repository, if `repo_url`
of `mkdocs.yml` names one, and else becomes its path, as code. A link to nothing stays, for mkdocs to complain of.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

INCLUDED = {
    "results.md": "benchmarks/RESULTS.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Pages that show a file of the repository in their own text's place."""

_FENCE = r"(?:^ *(?:```|~~~).*?^ *(?:```|~~~) *$)"
_LINK = r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)"
_LINKS_AND_CODE = re.compile(rf"{_FENCE}|`[^`\n]+`|{_LINK}", flags=re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """A page's Markdown, with the file that it includes and links that work on the site."""
    root = Path(config.config_file_path).resolve().parent
    docs = Path(config.docs_dir).resolve().relative_to(root).as_posix()
    place = f"{docs}/{page.file.src_uri}"
    if page.file.src_uri in INCLUDED:
        place = INCLUDED[page.file.src_uri]
        markdown = (root / place).read_text(encoding="utf-8")
    return rewrite_links(markdown, place, page.file.src_uri, root, docs, config.repo_url)


def rewrite_links(markdown: str, place: str, page: str, root: Path, docs: str = "docs", url: str | None = None) -> str:
    """Markdown that stands in the repository at `place`, with its links as they are on the page of the site.

    Args:
        markdown: the text.
        place: where it stands, from the root of the repository: `docs/methods.md`.
        page: the page that shows it, from the documentation's folder: `methods.md`.
        root: the repository.
        docs: the documentation's folder in it.
        url: of the public repository, if there is one.
    """

    def rewritten(link: re.Match[str]) -> str:
        if link["target"] is None:  # code
            return link[0]
        path, hash_sign, anchor = link["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        leads_to = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
        shown_by = {file: name for name, file in INCLUDED.items()}
        if leads_to in shown_by:
            target = shown_by[leads_to]
        elif leads_to.startswith(f"{docs}/") and not leads_to.endswith(".py"):
            target = leads_to.removeprefix(f"{docs}/")
        elif not (root / leads_to).exists():
            return link[0]
        elif url:
            kind = "tree" if (root / leads_to).is_dir() else "blob"
            return f"{link['image']}[{link['text']}]({url.rstrip('/')}/{kind}/main/{leads_to}{hash_sign}{anchor})"
        else:
            text = link["text"].strip("`")
            return f"`{leads_to}`" if text.rstrip("/") == leads_to else f"{link['text']} (`{leads_to}`)"
        relative = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"{link['image']}[{link['text']}]({relative}{hash_sign}{anchor})"

    return _LINKS_AND_CODE.sub(rewritten, markdown)
