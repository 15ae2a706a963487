"""Tables and paragraphs in Markdown."""

import doctest

from experiments import markdown


def test_markdown_table_keeps_bars_inside_their_cells():
    lines = markdown.markdown_table([("score", "T1"), ("|g|^2", 0.5)]).splitlines()

    assert lines == ["| score | T1 |", "| --- | --- |", "| \\|g\\|^2 | 0.5 |"]


def test_paragraph_wraps_a_long_sentence_and_keeps_its_words():
    text = "- **What?** *Yes.*\n  Holds: " + "a long list of settings, " * 12 + "and one more."

    lines = markdown.paragraph(text).split("\n")

    assert lines[0] == "- **What?** *Yes.*" and len(lines) == 4
    assert all(len(line) <= 120 and line.startswith("  ") for line in lines[1:]) and " ".join(
        " ".join(lines).split()
    ) == " ".join(text.split())


def test_examples_in_docstrings():
    assert not doctest.testmod(markdown).failed
