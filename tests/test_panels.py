"""Panels, lines and scales of the figures."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from catapult_jax.events import Event
from catapult_jax.report import panels
from catapult_jax.report.members import Settings

STEPS = xr.Dataset(coords={"step": np.arange(10)})


def event(kind, onset, peak, end):
    return Event(kind, onset, peak, end, *[0] * 11)


def test_make_panels_has_a_column_for_each_of_the_first_settings():
    data = xr.Dataset(coords={"lr_given": ("member", [0.1, 0.2, 0.3, 0.4, 0.5, 0.1])})

    figure, columns = panels.make_panels(data, Settings(), "mine", "above", "below")

    assert [members.tolist() for _, members in columns] == [[0, 5], [1], [2], [3]]
    assert figure.get_suptitle() == "mine (the first 4 of 5 settings)"
    assert [axes[0].get_title() for axes, _ in columns] == ["lr 0.1", "lr 0.2", "lr 0.3", "lr 0.4"]
    assert [axis.get_ylabel() for axis in columns[0][0]] == ["above", "below"]


@pytest.mark.parametrize(
    ("spike", "span", "label"),
    [
        (event("catapult", 2, 4, 7), (2, 7), "catapult"),
        (event("catapult", 2, 4, -1), (2, 9), "catapult, open"),
        (event("divergence", 2, 4, -1), (2, 4), "divergence"),
        (event("death", 2, 2, -1), (2, 3), "death"),  # one step at least
    ],
)
def test_mark_events_shades_from_onset_to_close(spike, span, label):
    axis = Figure().subplots()

    panels.mark_events(axis, [spike, spike], STEPS)

    patch = axis.patches[0]
    assert (patch.get_x(), patch.get_x() + patch.get_width()) == span
    assert axis.get_legend_handles_labels()[1] == [label]


def test_log_scale_needs_a_positive_value():
    empty, full = Figure().subplots(1, 2)
    panels.plot_finite(empty, STEPS, np.full(10, np.nan))
    panels.plot_finite(full, STEPS, np.full(10, 0.5))

    for axis in (empty, full):
        panels.log_scale(axis)

    assert (empty.get_yscale(), full.get_yscale()) == ("linear", "log")


def test_log_scale_has_plain_labels():
    axis = Figure().subplots()
    panels.plot_finite(axis, STEPS, 10.0 ** -np.arange(10))
    panels.log_scale(axis)

    assert axis.yaxis.get_major_formatter()(0.01) == "0.01"


def test_add_legend_has_each_label_once():
    axis = Figure().subplots()
    for _ in range(2):
        axis.plot([0, 1], label="lr")

    panels.add_legend(axis)

    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["lr"]
