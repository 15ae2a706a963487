"""One-file HTML pages: sections of blocks, rendered by one template that escapes everything."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from catapult_jax.report.style import DPI

_SHOWN_DPI = 144  # pixels of the page for an inch of a figure


class Block(NamedTuple):
    """One part of a page. The template ``page.html`` has a macro for each kind."""

    kind: str  # name of the macro
    content: Mapping[str, Any]  # what the macro shows


class Section(NamedTuple):
    """A heading with blocks under it."""

    heading: str  # empty: none
    blocks: Sequence[Block]
    level: int = 2  # of the heading: 2 for <h2>


def text(words: str) -> Block:
    """A paragraph.

    Args:
      words: its text.

    Returns:
      A block.

    >>> text("Three spikes.").content["words"]
    'Three spikes.'
    """
    return Block("text", {"words": words})


def warning(words: str) -> Block:
    """A paragraph that stands out.

    Args:
      words: its text.

    Returns:
      A block.

    >>> warning("This run is on fallback data.").kind
    'warning'
    """
    return Block("warning", {"words": words})


def preformatted(words: str) -> Block:
    """Text with its lines and spaces as they are.

    Args:
      words: the text.

    Returns:
      A block.

    >>> preformatted("a  b").kind
    'preformatted'
    """
    return Block("preformatted", {"words": words})


def folded(name: str, words: str) -> Block:
    """Text with its lines and spaces as they are, which the reader unfolds.

    Args:
      name: that is shown.
      words: the text.

    Returns:
      A block.

    >>> folded("Config", "a  b").kind
    'folded'
    """
    return Block("folded", {"name": name, "words": words})


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, of_text: bool = False) -> Block:
    """A table.

    Args:
      header: names of the columns.
      rows: cells; numbers get four digits.
      of_text: True: text in every column. False: only in the first one.

    Returns:
      A block.

    >>> table(("member", "lr"), [(0, 0.12345)]).content["rows"]
    [['0', '0.1235']]
    """
    return Block("table", {"header": header, "rows": [[number(cell) for cell in row] for row in rows], "of_text": of_text})


def image(path: Path, caption: str) -> Block:
    """A PNG with its caption. The page itself holds its bytes.

    Args:
      path: of the PNG.
      caption: text under it.

    Returns:
      A block.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "loss.png")
    ...     _ = path.write_bytes(b"pixels")
    ...     image(path, "The loss.").content["name"]
    'loss'
    """
    data = path.read_bytes()
    width = int.from_bytes(data[16:20], "big") * _SHOWN_DPI // DPI  # pixels of a PNG
    return Block("image", {"name": path.stem, "data": base64.b64encode(data).decode(), "width": width, "caption": caption})


def items(lines: Iterable[str]) -> Block:
    """A list.

    Args:
      lines: its items.

    Returns:
      A block.

    >>> items(["a", "b"]).content["lines"]
    ['a', 'b']
    """
    return Block("items", {"lines": list(lines)})


def links(targets: Mapping[str, str]) -> Block:
    """A list of links.

    Args:
      targets: words -> address.

    Returns:
      A block.

    >>> links({"run 1": "./run1/report.html"}).kind
    'links'
    """
    return Block("links", {"targets": targets})


def verdict(word: str, statement: str, effect: str, rows: Sequence[Sequence[str]] = ()) -> Block:
    """A verdict on a claim.

    Args:
      word: the verdict; what follows in brackets is no part of its class in the page.
      statement: of the claim.
      effect: sizes that the verdict rests on.
      rows: header and rows of a table; empty: none.

    Returns:
      A block.

    >>> verdict("not tested", "It holds", "no spike", (("arm",), ("sgd",))).content["header"]
    ('arm',)
    """
    content = {"word": word, "kind": word.partition(" (")[0], "statement": statement, "effect": effect}
    return Block("verdict", content | {"header": rows[0] if rows else (), "rows": rows[1:]})


def number(value: Any) -> str:
    """A cell of a table.

    Args:
      value: a number or text.

    Returns:
      Text: a float in four digits, NaN as a dash.

    >>> number(0.123456), number(float("nan")), number(float("inf")), number(3)
    ('0.1235', '–', 'infinite', '3')
    """
    if isinstance(value, (float, np.floating)):
        return "–" if np.isnan(value) else "infinite" if np.isinf(value) else f"{value:.4g}"
    return str(value)


def render(title: str, sections: Iterable[Section]) -> str:
    """A whole page. Everything in it is escaped.

    Args:
      title: of the page.
      sections: one without blocks is left out.

    Returns:
      HTML.

    >>> "<h1>a &lt; b</h1>" in render("a < b", [Section("", [text("words")])])
    True
    """
    return template("page.html").render(title=title, sections=[section for section in sections if section.blocks])


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template of this folder, which escapes everything that it is given.

    Args:
      name: of the file.

    Returns:
      The template.

    >>> template("page.html").name
    'page.html'
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
