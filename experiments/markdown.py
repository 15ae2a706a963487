"""Tables in Markdown."""

from __future__ import annotations

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
