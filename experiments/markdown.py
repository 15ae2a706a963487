"""Tables and paragraphs in Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown.

    Args:
      rows: header, then rows.

    >>> print(markdown_table((("arm", "loss"), ("a", 1))))
    | arm | loss |
    | --- | --- |
    | a | 1 |
    <BLANKLINE>
    """
    header, *rest = rows
    lines = [header, ["---"] * len(header), *rest]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def paragraph(text: str) -> str:
    """A paragraph or an item of a list with one sentence a line; a longer sentence takes several lines.

    Args:
      text: in one line, or in lines with the breaks that stay.

    >>> print(paragraph("- **Title.** One sentence. Another one (Fig. 3)."))
    - **Title.** One sentence.
      Another one (Fig. 3).
    """
    indent = "  " if text.startswith("- ") else ""
    sentences = [
        sentence.strip() for line in text.split("\n") for sentence in re.split(r"(?<=[a-z0-9)%\]]\.) (?=[A-Z*])", line)
    ]
    options = dict(width=120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(
        textwrap.fill(sentence, initial_indent=indent if i else "", **options) for i, sentence in enumerate(sentences)
    )
