"""Tables in Markdown."""

import doctest

from experiments import markdown


def test_markdown_table_keeps_bars_inside_their_cells():
    lines = markdown.markdown_table([("score", "T1"), ("|g|^2", 0.5)]).splitlines()

    assert lines == ["| score | T1 |", "| --- | --- |", "| \\|g\\|^2 | 0.5 |"]


def test_examples_in_docstrings():
    assert not doctest.testmod(markdown).failed
