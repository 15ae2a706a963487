"""Figures: what is drawn, and which are written."""

import numpy as np
import pytest
from PIL import Image

from catapult_jax.report import analysis, figures
from catapult_jax.report.members import Settings
from tests.small_records import (
    BATCHES,
    BEFORE,
    DEAD_KERNEL,
    DIES,
    DROPS,
    FULL,
    SPIKE,
    TO_A_LOSS,
    members_with,
    record,
    sgd_record,
)


def line(axis, label):
    """The data of the line of that label."""
    (match,) = [line for line in axis.lines if line.get_label() == label]
    return np.asarray(match.get_xdata()), np.asarray(match.get_ydata())


def labels(axis):
    return axis.get_legend_handles_labels()[1]


def test_loss_figure_has_the_loss_its_parts_and_its_events():
    data = record(SPIKE, 1.5, DROPS)

    (axis,) = figures.loss_figure(data, FULL, "mine").axes

    assert labels(axis) == ["loss train", "in top-5", "outside", "catapult"] and axis.get_yscale() == "log"
    assert line(axis, "loss train")[1].tolist() == SPIKE
    np.testing.assert_allclose(line(axis, "in top-5")[1], 0.99 * np.array(SPIKE))


def test_loss_figure_marks_raises_and_deaths():
    data = record(DIES, 1.5, DEAD_KERNEL, stage=np.array([[0, 0, 1, 1, 1, 1]]))

    (axis,) = figures.loss_figure(data, FULL, "mine").axes

    assert line(axis, "lr raised")[0].tolist() == [2, 2] and line(axis, "dead from here")[0].tolist() == [3, 3]


def test_loss_figure_takes_the_given_events():
    data = record(SPIKE, 1.5, DROPS)

    (axis,) = figures.loss_figure(data, FULL, "mine", events=[[]]).axes

    assert "catapult" not in labels(axis)


def test_loss_figure_needs_the_loss_only():
    data = record(SPIKE, 1.5, DROPS)[["loss_batch"]].drop_vars(("lr_given", "lr0_over_critical", "seed", "raises"))

    (axis,) = figures.loss_figure(data, Settings(), "mine").axes

    assert labels(axis) == ["loss batch", "unknown"] and axis.get_title() == "all members"


def test_lambda_figure_crosses_the_line_where_the_lr_is_critical():
    """With weight decay lambda_max must reach 2 / lr - decay, so the critical lr is 2 / (lambda_max + decay)."""
    decay, lr, lambda_max = 0.5, 1.0, np.array([1.0, 1.5, 3.0])
    data = record(np.ones(3), lr, 2 / (lambda_max + decay)).assign(lambda_max_batch=(("member", "step"), lambda_max[None]))

    (axis,) = figures.lambda_figure(data, FULL._replace(weight_decay=decay), "mine").axes

    assert line(axis, "batch")[1].tolist() == lambda_max.tolist()
    np.testing.assert_allclose(line(axis, "critical at this lr")[1], 2 / lr - decay)


def test_lambda_figure_of_batches_has_the_training_set_too():
    data = sgd_record(BEFORE, 0.9)
    data = data.assign(lambda_max_train=data["lambda_max_batch"].where(data["step"] % 2 == 0))

    axis, *_ = figures.lambda_figure(data, BATCHES, "mine").axes

    assert line(axis, "train")[0].tolist() == [*range(0, 16, 2)]


def test_ratio_figure_has_crosses_on_uncertain_steps():
    data = record(np.ones(3), 1.0, [0.5, 1.0001, 2.0]).assign_attrs(critical_lr_margin=1e-3)

    (axis,) = figures.ratio_figure(data, FULL, "mine").axes

    crosses = [line for line in axis.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[1]]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [2.0, 1 / 1.0001, 0.5])


def test_conditioning_figure_has_two_panels():
    data = record(SPIKE, 1.5, DROPS)
    data = data.assign(lambda_max_train=data["lambda_max_batch"], condition_number_train=data["loss_train"] * 3)

    top, bottom = figures.conditioning_figure(data, FULL, "mine").axes

    np.testing.assert_allclose(top.lines[0].get_ydata(), 2 / np.array(DROPS))
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), 3 * np.array(SPIKE))


def test_against_catapults_figure_has_members_that_finished():
    data = members_with([0, 1, 3], [0, 0, 0], loss_test=[1.0, 0.8, 0.5])
    data["stopped"][1] = False

    (axis,) = figures.against_catapults_figure(data, TO_A_LOSS, "mine").axes

    assert axis.lines[0].get_xdata().tolist() == [0, 3] and axis.lines[0].get_ydata().tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("series", "names"),
    [
        (("loss_train",), {"loss"}),
        (("loss_batch", "error_test"), {"loss", "scores"}),
        (("lr", "critical_lr_batch"), {"lr_over_critical_lr"}),
        (("lambda_max_batch",), {"lambda_max"}),
        (("stage",), set()),
    ],
)
def test_write_all_leaves_out_figures_without_their_series(series, names, tmp_path, plain_figures):
    data = record(SPIKE, 1.5, DROPS, error_test=np.ones((1, 6)))[list(series)]

    files = figures.write_all(data, Settings(), "mine", tmp_path / "new" / "figures")

    assert set(files) == {path.stem for path in (tmp_path / "new" / "figures").iterdir()} == names


def test_write_all_finds_events_once(tmp_path, plain_figures, monkeypatch):
    calls = []
    monkeypatch.setattr(figures, "run_events", lambda *a: calls.append(a) or analysis.run_events(*a))
    data = members_with([0, 1], [0, 1], loss_test=[1.0, 2.0], agop_alignment=[0.1, 0.2])

    files = figures.write_all(data, TO_A_LOSS, "mine", tmp_path)

    assert len(calls) == 1 and {"loss", "agop_alignment", "against_catapults"} <= set(files)


def test_save_writes_pixels_and_a_pdf(tmp_path):
    figure = figures.loss_figure(record(SPIKE, 1.5, DROPS), FULL, "mine & $no formula")

    path = figures.save(figure, tmp_path / "loss")

    assert path == tmp_path / "loss.png" and (tmp_path / "loss.pdf").read_bytes().startswith(b"%PDF")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    blue = (np.abs(pixels.astype(int) - [31, 119, 180]).max(-1) < 30).sum()  # the colour of the loss
    assert pixels.shape[1] > pixels.shape[0] > 300 and blue > 100
