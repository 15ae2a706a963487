"""The page of the config."""

import doctest
import inspect
from pathlib import Path

from configs import default
from experiments import config_page
from experiments.config import flat
from experiments.rules import RULES

PAGE = Path(__file__).parents[1] / "docs" / "config.md"


def test_page_is_the_stored_one():
    assert PAGE.read_text() == config_page.page(), "python -m experiments.config_page > docs/config.md"


def test_page_has_every_field_once():
    cells = [line.split(" | ") for line in config_page.page().splitlines()]
    names = [line[0].strip("| `") for line in cells if len(line) == 4 and line[1].startswith("`")]
    assert sorted(names) == sorted(flat(default.get_config()))


def test_page_has_the_fields_of_every_rule():
    between = config_page.page().partition("## Rules between fields")[2]
    assert all(f"`{name}`" in between or f"`{name}=" in between for rule in RULES for name in rule.fields)


def test_prose_of_the_page_is_short():
    assert all(len(line) < 120 for line in config_page.page().splitlines() if not line.startswith("|"))


def test_meanings_of_the_default():
    meanings = config_page.meanings(inspect.getsource(default))
    assert all(meanings[name] for name in flat(default.get_config()))


def test_examples_in_docstrings():
    assert not doctest.testmod(config_page).failed
