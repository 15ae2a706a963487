"""Rows of results: clean for JSON, laid out as Markdown."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def promise(text: str, met: bool | None) -> dict[str, str]:
    """The two columns of a promise; ``met`` is None where nothing was measured."""
    return {"promise": text, "met": "-" if met is None else "yes" if met else "NO"}


def at_most(limit: float | None, value: float, what: str = "bare steps") -> dict[str, str]:
    return {} if limit is None else promise(f"at most {limit:g} {what}", value <= limit)


def clean(value: Any) -> Any:
    """JSON has no word for a number that is not finite: None."""
    if isinstance(value, dict):
        return {key: clean(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def markdown(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """``columns``: key of the rows -> heading."""
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[cell(row.get(key)).replace("|", "/") for key in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    half = path.with_name(f"{path.name}.tmp")
    half.write_text(text)
    os.replace(half, path)


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
