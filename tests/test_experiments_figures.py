"""Figures of sweeps and of directions."""

import numpy as np
import pytest

from experiments import figures

ROWS = [
    {"width": width, "setting": setting, "seed": seed, "finished": True, "catapults": seed + 1, "loss_test": 1 / width}
    for width in (8, 16)
    for setting in ("lr 1", "lr 2")
    for seed in (0, 1)
]


def test_sweep_figure_has_a_panel_for_each_metric_and_a_line_for_each_setting():
    catapults, loss = figures.sweep_figure(ROWS, ("width",)).axes

    assert (catapults.get_ylabel(), loss.get_ylabel()) == ("catapults", "test loss")
    for axis, values in ((catapults, [1.5, 1.5]), (loss, [1 / 8, 1 / 16])):
        means = [container.lines[0] for container in axis.containers]
        assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in means] == [([8, 16], values)] * 2
    assert catapults.get_xscale() == "log" and catapults.get_xlabel() == "width"


def test_sweep_figure_without_events_has_the_fraction_of_critical_steps():
    rows = [{name: value for name, value in row.items() if name != "catapults"} | {"critical_steps": 0.25} for row in ROWS]

    fraction, loss = figures.sweep_figure(rows, ("width",)).axes

    assert (fraction.get_ylabel(), loss.get_ylabel()) == ("fraction of critical steps", "test loss")


def test_sweep_figure_of_words_puts_settings_side_by_side():
    rows = [row | {"width": {8: "sgd", 16: "adam"}[row["width"]]} for row in ROWS]

    axis, _ = figures.sweep_figure(rows, ("width",)).axes

    means = [container.lines[0] for container in axis.containers]
    np.testing.assert_allclose([np.array(line.get_xdata(), float) for line in means], [[-0.15, 0.85], [0.15, 1.15]])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["sgd", "adam"]
    assert {line.get_linestyle() for line in means} == {"None"}


def test_sweep_figure_leaves_out_an_axis_that_follows_from_the_others():
    rows = [row | {"method": {8: "exact", 16: "matrix_free"}[row["width"]]} for row in ROWS]

    axis, _ = figures.sweep_figure(rows, ("width", "method")).axes

    assert axis.get_xscale() == "log" and axis.get_xlabel() == "width"
    both = [row | {"method": name} for row in ROWS for name in ("exact", "matrix_free")]
    assert figures.sweep_figure(both, ("width", "method")).axes[0].get_xlabel() == "width, method"


def test_sweep_figure_leaves_out_members_that_did_not_finish():
    rows = [row | {"finished": row["width"] == 8} for row in ROWS]

    axis, _ = figures.sweep_figure(rows, ("width",)).axes

    assert [container.lines[0].get_xdata().tolist() for container in axis.containers] == [[8], [8]]


@pytest.mark.parametrize("shape", [(12,), (2, 2, 3), (3, 4, 1)])
def test_directions_figure_shows_images_where_the_inputs_are(shape, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((2, 3, 12))
    np.savez(tmp_path / "agop.npz", names=np.array(["reference", "trained"]), vectors=vectors, shape=np.array(shape))

    figure = figures.directions_figure(tmp_path / "agop.npz")

    arrays = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    scaled = vectors[1, 2] / np.abs(vectors[1, 2]).max()
    expected = (scaled.reshape(shape) + 1) / 2 if shape[-1] == 3 else scaled.reshape(shape[:2] if len(shape) == 3 else (1, -1))
    assert len(arrays) == 6 and figure.axes[3].get_ylabel() == "trained"
    np.testing.assert_allclose(arrays[-1], expected)
