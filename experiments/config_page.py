"""Write the page of the config: every field with its default, allowed values and meaning, and every rule.

python -m experiments.config_page > docs/config.md
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Sequence

from configs import default
from experiments.config import TYPE_NAMES, flat, types_of_fields
from experiments.rules import NUMBERS, RULES, Rule
from experiments.values import VALUES

_FIELD = re.compile(r" *c\.([\w.]+) = (.*?)(?:  # (.*))?")
_HEAD = """# Fields of a config

This page is written by `python -m experiments.config_page > docs/config.md`.
The defaults and meanings come from `configs/default.py`, the allowed values from `experiments/values.py`.
The rules come from `experiments/rules.py`.
Set a field with `--config.FIELD=VALUE`.
A field that can be `None` is not given by default.

"""
_RULES = """
## Rules between fields

A config that breaks one of these rules is refused before anything is written.
The error names the fields with their values, and ends with what is allowed.
A row with `optimizer.name=...` lists settings that this optimizer does not have.

"""


def meanings(source: str) -> dict[str, str]:
    """The comments on the fields of a config file.

    Args:
      source: text of the file. A field is a line ``c.NAME = VALUE  # COMMENT``; lines of comment may stand above it.

    Returns:
      Full names of fields and groups, in the order of the file, with their comments.

    >>> meanings("c.steps = 3  # of the run\\n# constant,\\n# or cyclic\\nc.schedule.name = 'constant'")
    {'steps': 'of the run', 'schedule.name': 'constant, or cyclic'}
    """
    comments, above = {}, []
    for line in source.splitlines():
        if line.strip().startswith("# "):
            above.append(line.strip().removeprefix("# "))
            continue
        if match := _FIELD.fullmatch(line):
            comments[match[1]] = " ".join([*above, match[3] or ""]).strip()
        above = []
    return comments


def breakable(words: str) -> str:
    """The words with places at which a browser may break a long name, so that its column of a table stays narrow.

    >>> breakable("sgd, spikes_need_few_directions")
    'sgd, spikes_<wbr>need_<wbr>few_<wbr>directions'
    """
    return re.sub(r"\w{24,}", lambda name: name[0].replace("_", "_<wbr>"), words)


def page() -> str:
    """The text of docs/config.md."""
    config, comments = default.get_config(), meanings(inspect.getsource(default))
    defaults, types = flat(config), types_of_fields(config)
    rows = []
    for name, meaning in comments.items():
        if name in defaults:
            rows.append((f"`{name}`", f"`{defaults[name]!r}`", _allowed(name, types[name]), meaning))
        elif meaning:  # a group of fields
            rows.append((f"`{name}.*`", "", "", meaning))
    rules = [_row(list(group)) for _, group in itertools.groupby(RULES, lambda rule: (rule.of, rule.allowed))]
    return _HEAD + _table(("Field", "Default", "Allowed", "Meaning"), rows) + _RULES + _table(("Fields", "Allowed"), rules)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n" for cells in lines)


def _allowed(name: str, kind: type) -> str:
    return breakable(VALUES[name].allowed if name in VALUES else TYPE_NAMES[kind])


def _row(rules: Sequence[Rule]) -> tuple[str, str]:
    """One row for several rules that differ only in a field."""
    names = dict.fromkeys(name for rule in rules for name in rule.fields)
    first = rules[0]
    words = re.sub(r"^allowed:? ", "", first.allowed).format(**{name: text for name, (text, _) in NUMBERS.items()})
    fields = [
        f"`{name}={first.of}`" if first.of and i == 0 and name != "claims" else f"`{name}`" for i, name in enumerate(names)
    ]
    return ", ".join(fields), breakable(words)


if __name__ == "__main__":
    print(page(), end="")
