"""Promises of a row, and rows as a Markdown table."""

from __future__ import annotations

import math
from typing import Any


def promise(text: str, met: bool | None) -> dict[str, str]:
    """The two columns of a promise; ``met`` is None if nothing was measured."""
    return {"promise": text, "met": "-" if met is None else "yes" if met else "NO"}


def at_most(limit: float | None, value: float, what: str = "bare steps") -> dict[str, str]:
    return {} if limit is None else promise(f"at most {limit:g} {what}", value <= limit)


def cell(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def markdown(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """``columns``: key of the rows -> heading."""
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[cell(row.get(key)).replace("|", "/") for key in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
