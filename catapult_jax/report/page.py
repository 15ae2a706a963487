"""One-file HTML pages: sections of blocks, rendered by one template that escapes whatever is put into it."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np


class Block(NamedTuple):
    """One part of a page. The template ``page.html`` has a macro for each kind."""

    kind: str
    content: Mapping[str, Any]


class Section(NamedTuple):
    """A heading with blocks under it."""

    heading: str  # empty: none
    blocks: Sequence[Block]
    level: int = 2


def text(words: str) -> Block:
    """A paragraph."""
    return Block("text", {"words": words})


def warning(words: str) -> Block:
    """A paragraph that can't be overlooked."""
    return Block("warning", {"words": words})


def preformatted(words: str) -> Block:
    """Text whose lines and spaces stay as they are."""
    return Block("preformatted", {"words": words})


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, of_text: bool = False) -> Block:
    """A table.

    Args:
      header: names of the columns.
      rows: cells; numbers get four digits.
      of_text: text in every column, not in the first one alone.
    """
    return Block("table", {"header": header, "rows": [[number(cell) for cell in row] for row in rows], "of_text": of_text})


def image(path: Path, caption: str) -> Block:
    """A PNG with its caption, held in the page itself."""
    return Block("image", {"name": path.stem, "data": base64.b64encode(path.read_bytes()).decode(), "caption": caption})


def items(lines: Iterable[str]) -> Block:
    """A list."""
    return Block("items", {"lines": list(lines)})


def links(targets: Mapping[str, str]) -> Block:
    """A list of links: words -> address."""
    return Block("links", {"targets": targets})


def verdict(word: str, statement: str, effect: str, rows: Sequence[Sequence[str]] = ()) -> Block:
    """A verdict on a claim; ``rows``: header and rows of its table."""
    told = {"word": word, "statement": statement, "effect": effect}
    return Block("verdict", told | {"header": rows[0] if rows else (), "rows": rows[1:]})


def number(value: Any) -> str:
    """A cell: four digits; NaN is a dash.

    >>> number(0.123456), number(float("nan")), number(float("inf")), number(3)
    ('0.1235', '–', 'infinite', '3')
    """
    if isinstance(value, (float, np.floating)):
        return "–" if np.isnan(value) else "infinite" if np.isinf(value) else f"{value:.4g}"
    return str(value)


def render(title: str, sections: Iterable[Section]) -> str:
    """The whole page.

    >>> "<h1>a &lt; b</h1>" in render("a < b", [Section("", [text("words")])])
    True
    """
    return _template().render(title=title, sections=[section for section in sections if section.blocks])


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
