"""The style of the figures."""

import pytest

from catapult_jax.report import style


def test_new_figure_has_the_lengths_that_were_asked_for():
    figure, axes = style.new_figure(2, 3, height=1.5, width=6.0, left=0.5, top=0.25, gaps=(0.25, 0.4))

    boxes = [axis.get_position() for axis in axes.flat]
    width, height = figure.get_size_inches()
    assert [box.height * height for box in boxes] == pytest.approx([1.5] * 6)
    assert boxes[0].x0 * width == pytest.approx(0.5) and (1 - boxes[0].y1) * height == pytest.approx(0.25)
    assert (boxes[1].x0 - boxes[0].x1) * width == pytest.approx(0.25)
    assert (boxes[0].y0 - boxes[3].y1) * height == pytest.approx(0.4)


def test_new_figure_has_the_font_size_of_print():
    _, axes = style.new_figure(height=2.0)
    axes[0, 0].set_xlabel("step")

    assert axes[0, 0].xaxis.label.get_fontsize() == 8


def test_letter_counts_panels():
    _, axes = style.new_figure(1, 3, height=2.0)
    for number, axis in zip((0, 1, None), axes[0], strict=True):
        style.letter(axis, number, "words")

    assert [axis.get_title(loc="left") for axis in axes[0]] == ["(a) words", "(b) words", "words"]


def test_add_legend_has_each_label_once_and_leaves_the_panels_as_high():
    figure, axes = style.new_figure(1, 2, height=2.0)
    for axis in axes[0]:
        axis.plot([0, 1], label="lr")
    axes[0, 0].inset_axes((0, 1, 1, 0.1)).plot([0, 1], label="catapult")

    style.add_legend(figure)

    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lr", "catapult"]
    assert axes[0, 0].get_position().height * figure.get_size_inches()[1] == pytest.approx(2.0)


def test_add_legend_has_more_rows_where_labels_are_long():
    heights = []
    for label in ("short", "a label of forty characters, more or less"):
        figure, axes = style.new_figure(height=2.0, width=style.NARROW)
        for i in range(3):
            axes[0, 0].plot([0, 1], label=f"{label} {i}")
        style.add_legend(figure)
        heights.append(figure.get_size_inches()[1])

    assert heights[0] < heights[1]


def test_palette_and_markers_tell_56_settings_apart():
    looks = {(style.PALETTE[i % len(style.PALETTE)], style.MARKERS[i % len(style.MARKERS)]) for i in range(56)}

    assert len(looks) == 56
