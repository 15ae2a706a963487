"""Pages: blocks and sections, and text that looks like HTML."""

import base64

import pytest
from PIL import Image

from catapult_jax.report import page
from tests.helpers_page import SCRIPT, Page, safe_page


def rendered(*blocks, heading=""):
    return Page(page.render("title", [page.Section(heading, blocks)]))


def test_render_escapes_every_part():
    blocks = [
        *(make(SCRIPT) for make in (page.text, page.warning, page.preformatted)),
        page.folded(SCRIPT, SCRIPT),
        page.table((SCRIPT,), [(SCRIPT,)]),
        page.items([SCRIPT]),
        page.links({SCRIPT: SCRIPT}),
        page.verdict("not tested", SCRIPT, SCRIPT, ((SCRIPT,), (SCRIPT,))),
    ]

    result = safe_page(page.render(SCRIPT, [page.Section(SCRIPT, blocks)]))

    title, heading, plain, cells, lists, claim = 2, 1, 5, 2, 2, 4
    assert result.words.count(SCRIPT) == title + heading + plain + cells + lists + claim
    assert result.attributes["href"] == [SCRIPT]


def test_render_leaves_out_sections_without_blocks():
    html = page.render("title", [page.Section("empty", []), page.Section("full", [page.text("words")], level=3)])

    assert "empty" not in html and "<h3>full</h3>" in html


@pytest.mark.parametrize(
    ("value", "cell"),
    [(0.123456, "0.1235"), (float("nan"), "–"), (float("-inf"), "infinite"), (3, "3"), (True, "True"), ("a", "a")],
)
def test_number(value, cell):
    assert page.number(value) == cell


def test_table_of_text_has_a_class():
    rows = [("name", 0.5)]

    assert "text" not in rendered(page.table(("", ""), rows)).attributes.get("class", [])
    assert "text" in rendered(page.table(("", ""), rows, of_text=True)).attributes["class"]


def test_image_is_in_the_page_itself(tmp_path):
    path = tmp_path / "loss.png"
    path.write_bytes(b"pixels")

    result = rendered(page.image(path, "The caption."))

    assert result.attributes["src"] == [f"data:image/png;base64,{base64.b64encode(b'pixels').decode()}"]
    assert result.attributes["alt"] == ["loss"] and "The caption." in result.words


def test_image_is_as_wide_as_its_inches(tmp_path):
    path = tmp_path / "loss.png"
    save = lambda width: Image.new("RGB", (width, 2)).save(path)

    save(650)

    assert rendered(page.image(path, "The caption.")).attributes["width"] == ["468"]  # 3.25 inches of 144 pixels


def test_folded_shows_its_name():
    result = rendered(page.folded("Config", "a\nb"))

    assert {"details", "summary", "pre"} <= result.tags and "Config" in result.words and "a\nb" in result.words


def test_verdict_of_a_demonstration_has_a_class_without_its_reason():
    result = rendered(page.verdict("demonstration (2 seeds; the claim needs 5)", "It holds", "all steps"))

    assert result.attributes["class"] == ["demonstration"] and "demonstration (2 seeds; the claim needs 5)" in result.words


def test_verdict_has_a_class_for_its_word_and_a_table_if_there_are_rows():
    without = rendered(page.verdict("not tested", "It holds", "all steps"))
    with_rows = rendered(page.verdict("reproduced", "It holds", "all steps", (("arm",), ("sgd",))))

    assert without.attributes["class"] == ["not-tested"] and "table" not in without.tags
    assert with_rows.attributes["class"] == ["reproduced"] and "table" in with_rows.tags and "sgd" in with_rows.words
