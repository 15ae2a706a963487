"""Panels, lines and scales of the figures."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from catapult_jax.events import Event
from catapult_jax.report import panels
from catapult_jax.report.members import Settings

STEPS = xr.Dataset(coords={"member": np.arange(3), "step": np.arange(10)})


def event(kind, onset, peak, end):
    return Event(kind, onset, peak, end, *[0] * 11)


def spans(axis, kind):
    """First step, last step and row of each bar of that label in the strip above a panel."""
    (bars,) = [bars for bars in axis.child_axes[0].collections if bars.get_label() == kind]
    corners = [path.vertices for path in bars.get_paths()]
    return [(x.min(), x.max(), int(y.min())) for x, y in (vertices.T for vertices in corners)]


def mark(events, data=STEPS):
    axis = Figure().subplots()
    panels.mark_events(axis, data, events, range(len(events)), [-1] * len(events))
    return axis


def test_make_panels_has_a_panel_for_each_setting_in_rows_of_four():
    data = xr.Dataset(coords={"lr_given": ("member", [0.1, 0.2, 0.3, 0.4, 0.5, 0.1])})

    figure, columns = panels.make_panels(data, Settings(), "above", "below")

    assert [members.tolist() for _, members in columns] == [[0, 5], [1], [2], [3], [4]]
    titles = [[axis.get_title(loc="left") for axis in axes] for axes, _ in columns]
    expected = [("a", 0.1, "f"), ("b", 0.2, "g"), ("c", 0.3, "h"), ("d", 0.4, "i"), ("e", 0.5, "j")]
    assert titles == [[f"({above}) lr {lr}", f"({below})"] for above, lr, below in expected]
    assert [[axis.get_ylabel() for axis in columns[i][0]] for i in (0, 1, 4)] == [
        ["above", "below"],
        ["", ""],
        ["above", "below"],
    ]
    assert len(figure.axes) == 10 and figure.get_size_inches()[0] == 6.75


def test_make_panels_of_one_setting_is_narrow_and_has_no_letter():
    figure, [((axis,), _)] = panels.make_panels(xr.Dataset(coords={"member": [0]}), Settings(), "loss")

    assert figure.get_size_inches()[0] == 3.25 and axis.get_title(loc="left") == ""


def test_make_panels_stops_at_twelve_settings():
    data = xr.Dataset(coords={"lr_given": ("member", np.arange(13.0))})

    _, columns = panels.make_panels(data, Settings(), "loss")

    assert [members.tolist() for _, members in columns] == [[m] for m in range(12)]


@pytest.mark.parametrize(
    ("spike", "span", "label"),
    [
        (event("catapult", 2, 4, 7), (2, 7), "catapult"),
        (event("catapult", 2, 4, -1), (2, 9), "catapult, open"),
        (event("divergence", 2, 4, -1), (2, 4), "divergence"),
        (event("death", 2, 2, -1), (2, 3), "death"),  # one step at least
    ],
)
def test_mark_events_has_bars_from_onset_to_close(spike, span, label):
    axis = mark([[spike, spike]])

    assert spans(axis, label) == [(*span, 0)] * 2
    assert axis.child_axes[0].get_legend_handles_labels()[1] == [label]


def test_mark_events_has_a_row_for_each_member():
    axis = mark([[event("catapult", 0, 1, 2)], [], [event("catapult", 3, 4, 5)]])

    assert spans(axis, "catapult") == [(0, 2, 0), (3, 5, 2)]


def test_mark_events_hatches_open_spikes_and_fills_others():
    strip = mark([[event("catapult", 0, 1, 2), event("catapult", 3, 4, -1)]]).child_axes[0]

    bars_of = [bars for bars in strip.collections if not bars.get_label().startswith("_")]
    looks = {bars.get_label(): (bars.get_hatch(), len(bars.get_facecolor())) for bars in bars_of}
    assert looks == {"catapult": (None, 1), "catapult, open": ("//////", 0)}


def test_plot_members_draws_lines_of_equal_width_up_to_where_each_stopped():
    axis = Figure().subplots()
    stopped = np.arange(10) >= np.array([[4], [10]])
    data = STEPS.isel(member=[0, 1]).assign(stopped=(("member", "step"), stopped))

    panels.plot_members(axis, data, np.ones((2, 10)), [0, 1], label="loss", color="black")

    assert [len(line.get_xdata()) for line in axis.lines] == [4, 10]
    assert len({(line.get_color(), line.get_linewidth(), line.get_linestyle()) for line in axis.lines}) == 1
    assert axis.get_legend_handles_labels()[1] == ["loss"]


def test_plot_dots_without_values_draws_nothing():
    axis = Figure().subplots()

    panels.plot_dots(axis, STEPS, np.full((1, 10), np.nan), np.array([0]))

    assert not axis.lines


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


@pytest.mark.parametrize(("smallest", "minor"), [(0.01, True), (1e-6, False)])
def test_log_scale_has_minor_ticks_on_few_decades(smallest, minor):
    axis = Figure().subplots()
    axis.plot([1.0, smallest])
    panels.log_scale(axis)

    assert (len(axis.yaxis.get_minorticklocs()) > 0) == minor


def test_cut_top_needs_a_member_that_did_not_diverge():
    axis = Figure().subplots()
    axis.plot([1.0, 1e30])
    data = xr.Dataset({"diverged": (("member", "step"), [[False, True]])})
    before = axis.get_ylim()

    panels.cut_top(axis, data, np.array([[1.0, 1e30]]))

    assert axis.get_ylim() == before
