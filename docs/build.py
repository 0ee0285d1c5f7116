"""The documents as pages: `python docs/build.py DIRECTORY`.

Renders README.md, CONTRIBUTING.md, CHANGELOG.md and docs/**/*.md, each beside the others as it stands in the
repository. A link to a file that is not there, or to a heading that its page does not have, is an error, named by
file and line, and nothing is written.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif }}
pre {{ overflow-x: auto; padding: .75rem; background: #f4f4f2 }}
code {{ font-size: .9em }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
td, th {{ border: 1px solid #ccc; padding: .25rem .5rem; text-align: left; vertical-align: top }}
</style>
{body}
</html>
"""


@dataclass(frozen=True)
class Document:
    """One document: its path in the repository, and what stands in it."""

    path: Path
    tokens: list[Token]

    def headings(self) -> Iterator[tuple[Token, str]]:
        """Each heading with its text."""
        for token, inline in zip(self.tokens, self.tokens[1:], strict=False):
            if token.type == "heading_open":
                yield token, "".join(child.content for child in inline.children or [])

    def links(self) -> Iterator[tuple[Token, str, int]]:
        """Each link or picture that leads to another place in the repository, with its line."""
        for token in self.tokens:
            for child in token.children or []:
                target = child.attrGet("href") or child.attrGet("src")
                if target and not urlsplit(str(target)).scheme:
                    yield child, str(target), (token.map or [0])[0] + 1


def read() -> dict[Path, Document]:
    """Every document of the repository, by its path; headings have their ids."""
    paths = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    documents = {path: Document(path, MARKDOWN.parse(path.read_text("utf-8"))) for path in paths}
    for document in documents.values():
        for token, slug in slugs(document):
            token.attrSet("id", slug)
    return documents


def slugs(document: Document) -> Iterator[tuple[Token, str]]:
    """Headings with the ids that code hosts give them: lower case, no punctuation, dashes, a number for a repeat."""
    seen: dict[str, int] = {}
    for token, text in document.headings():
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        yield token, f"{slug}-{count}" if count else slug


def anchors(document: Document) -> set[str]:
    """What a link may name after its ``#``."""
    return {slug for _, slug in slugs(document)}


def broken(documents: dict[Path, Document]) -> list[str]:
    """Links that lead nowhere, as `file:line: what`."""
    faults = []
    for document in documents.values():
        for _, target, line in document.links():
            parts = urlsplit(target)
            path = (document.path.parent / unquote(parts.path)).resolve() if parts.path else document.path
            where = f"{document.path.relative_to(ROOT)}:{line}"
            if not path.exists() or not path.is_relative_to(ROOT):
                faults.append(f"{where}: {target}: there is no such file")
            elif parts.fragment and path in documents and parts.fragment not in anchors(documents[path]):
                faults.append(f"{where}: {target}: there is no such heading")
    return faults


def render(document: Document) -> str:
    """The page of a document; links between documents lead from page to page."""
    for token, target, _ in document.links():
        if token.type == "link_open":
            token.attrSet("href", re.sub(r"\.md(?=$|#)", ".html", target))
    titles = [text for _, text in document.headings()]
    body = MARKDOWN.renderer.render(document.tokens, MARKDOWN.options, {})
    return PAGE.format(title=html.escape(titles[0] if titles else document.path.stem), body=body)


def main(directory: Path) -> int:
    """Check all, then write all."""
    documents = read()
    if faults := broken(documents):
        print(*faults, sep="\n", file=sys.stderr)
        return 1
    for path, document in documents.items():
        page = directory / path.relative_to(ROOT).with_suffix(".html")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render(document), "utf-8")
    print(f"{len(documents)} pages in {directory}; begin with {directory / 'README.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
