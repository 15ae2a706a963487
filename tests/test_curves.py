"""Figures of series along training: what is drawn, and that all seeds are drawn alike."""

import numpy as np
import pytest

from catapult_jax.report import curves
from catapult_jax.report.members import Settings
from tests.small_records import BATCHES, BEFORE, DEAD_KERNEL, DIES, DROPS, FULL, SPIKE, record, sgd_record


def lines(axis, label):
    """The data of all lines that look like the line of that label."""
    (match,) = [line for line in axis.lines if line.get_label() == label]
    look = lambda line: (line.get_color(), line.get_linestyle(), line.get_linewidth(), line.get_marker())
    return [np.asarray(line.get_xydata()).T for line in axis.lines if look(line) == look(match)]


def labels(axis):
    return axis.get_legend_handles_labels()[1]


def strip(axis):
    (inset,) = axis.child_axes
    return inset


def with_kernel(data):
    return data.assign(lambda_max_train=data["lambda_max_batch"], condition_number_train=data["loss_train"] * 3)


def test_loss_figure_has_the_loss_its_parts_and_its_events():
    data = record(SPIKE, 1.5, DROPS)

    (axis,) = curves.loss_figure(data, FULL).axes

    assert labels(axis) == ["training loss", "in the top-5 eigenspace", "outside it"] and axis.get_yscale() == "log"
    assert labels(strip(axis)) == ["catapult"]
    assert lines(axis, "training loss")[0][1].tolist() == SPIKE
    np.testing.assert_allclose(lines(axis, "in the top-5 eigenspace")[0][1], 0.99 * np.array(SPIKE))


def test_loss_figure_draws_all_seeds_alike():
    losses = [[value * (seed + 1) for value in SPIKE] for seed in range(3)]

    (axis,) = curves.loss_figure(record(losses, 1.5, DROPS), FULL).axes

    for label, factor in (("training loss", 1.0), ("in the top-5 eigenspace", 0.99)):
        np.testing.assert_allclose([values for _, values in lines(axis, label)], factor * np.array(losses))


def test_loss_figure_marks_raises_and_deaths():
    data = record(DIES, 1.5, DEAD_KERNEL, stage=np.array([[0, 0, 1, 1, 1, 1]]))

    (axis,) = curves.loss_figure(data, FULL).axes

    assert lines(strip(axis), "lr raised")[0][0].tolist() == [2]
    (dead,) = [bars for bars in strip(axis).collections if bars.get_label() == "dead from here"]
    assert np.ptp(dead.get_paths()[0].vertices[:, 0]) == 2 and dead.get_paths()[0].vertices[0, 0] == 3


def test_loss_figure_takes_the_given_events():
    (axis,) = curves.loss_figure(record(SPIKE, 1.5, DROPS), FULL, events=[[]]).axes

    assert labels(strip(axis)) == []


def test_loss_figure_needs_the_loss_only():
    data = record(SPIKE, 1.5, DROPS)[["loss_batch"]].drop_vars(("lr_given", "lr0_over_critical", "seed", "raises"))

    (axis,) = curves.loss_figure(data, Settings()).axes

    assert labels(axis) == ["training loss"] and labels(strip(axis)) == ["unknown"]
    assert axis.get_title(loc="left") == ""


def test_loss_figure_names_the_loss_of_the_batch():
    data = record(SPIKE, 1.5, DROPS).drop_vars("loss_train")

    assert curves.loss_figure(data, BATCHES).axes[0].get_ylabel() == "loss of the batch, L"


def test_lambda_figure_crosses_the_line_where_the_lr_is_critical():
    """With weight decay lambda_max must reach 2 / lr - decay, so the critical lr is 2 / (lambda_max + decay)."""
    decay, lr, lambda_max = 0.5, 1.0, np.array([1.0, 1.5, 3.0])
    data = record(np.ones(3), lr, 2 / (lambda_max + decay)).assign(lambda_max_batch=(("member", "step"), lambda_max[None]))

    (axis,) = curves.lambda_figure(data, FULL._replace(weight_decay=decay)).axes

    assert lines(axis, "of the batch")[0][1].tolist() == lambda_max.tolist()
    np.testing.assert_allclose(lines(axis, "critical at this lr")[0][1], 2 / lr - decay)


def test_lambda_figure_of_batches_has_dots_of_all_seeds_and_the_training_set():
    data = sgd_record(BEFORE, 0.9)
    data = data.assign(lambda_max_train=data["lambda_max_batch"].where(data["step"] % 2 == 0))

    axis, *_ = curves.lambda_figure(data, BATCHES).axes

    assert lines(axis, "of the batch")[0].shape == (2, 5 * 16)
    of_training_set = lines(axis, "of the training set")
    assert len(of_training_set) == 5 and all(steps.tolist() == [*range(0, 16, 2)] for steps, _ in of_training_set)


def test_ratio_figure_marks_rises_and_uncertain_steps():
    data = record([1.0, 2.0, 1.5], 1.0, [0.5, 1.0001, 2.0]).assign_attrs(critical_lr_margin=1e-3)

    (axis,) = curves.ratio_figure(data, FULL).axes

    assert lines(axis, "not certain on which side of 1")[0][0].tolist() == [1]
    assert lines(axis, "the loss of the batch rises in the step")[0].tolist() == [[0], [2.0]]
    np.testing.assert_allclose(lines(axis, "a seed")[0][1], [2.0, 1 / 1.0001, 0.5])


def test_ratio_figure_of_batches_has_each_step_once():
    data = record(np.ones((2, 3)), 1.0, [0.5, 0.8, 2.0], loss_batch_after=np.array([[2.0, 0.5, 0.5], [0.5, 2.0, 0.5]]))

    axis, *_ = curves.ratio_figure(data, BATCHES).axes

    assert lines(axis, "the loss of the batch rises in the step")[0].tolist() == [[0, 1], [2.0, 1.25]]
    assert sorted(lines(axis, "a step")[0][0].tolist()) == [0, 1, 2, 2]


@pytest.mark.parametrize(("settings", "rises"), [(FULL, [True, True, False]), (BATCHES, [False] * 3)])
def test_batch_rises_without_the_loss_after_the_step(settings, rises):
    assert curves.batch_rises(record([1.0, 2.0, 3.0], 1.0, 1.0), settings).tolist() == [rises]


def test_conditioning_figure_has_two_panels_and_one_strip():
    data = with_kernel(record([SPIKE, SPIKE], 1.5, DROPS))

    top, bottom = curves.conditioning_figure(data, FULL).axes

    np.testing.assert_allclose([line.get_ydata() for line in top.lines], np.tile(2 / np.array(DROPS), (2, 1)))
    np.testing.assert_allclose([line.get_ydata() for line in bottom.lines], np.tile(3 * np.array(SPIKE), (2, 1)))
    assert labels(strip(top)) == ["catapult"] and bottom.child_axes == []


def test_conditioning_figure_is_not_squeezed_by_a_member_that_diverged():
    diverged = np.array([[False] * 6, [True] * 6])
    data = with_kernel(record([SPIKE, SPIKE], 1.5, DROPS, diverged=diverged))
    data["lambda_max_train"][1] *= 1e12

    top, _ = curves.conditioning_figure(data, FULL).axes

    assert top.get_ylim()[1] == pytest.approx(3 * float(data["lambda_max_train"][0].max()))


def test_preconditioner_figure_has_the_bound_and_the_smallest_entry():
    data = record(SPIKE, 1.5, DROPS, critical_lr_bound_batch=np.full((1, 6), 0.5), preconditioner_min=np.full((1, 6), 0.1))

    top, bottom = curves.preconditioner_figure(data, FULL).axes

    assert lines(top, "the bound")[0][1].tolist() == [0.5] * 6 and bottom.lines[0].get_ydata().tolist() == [0.1] * 6


def test_scores_figure_draws_all_seeds_alike():
    data = record(np.ones((3, 4)), 1.0, 1.0, error_test=np.full((3, 4), 0.25))

    for axis in curves.scores_figure(data, FULL).axes:
        assert len({(line.get_color(), line.get_linewidth()) for line in axis.lines}) == 1 and len(axis.lines) == 3


def test_alignment_figure_has_the_events():
    data = record(SPIKE, 1.5, DROPS, agop_alignment=np.full((1, 6), 0.5))

    (axis,) = curves.alignment_figure(data, FULL).axes

    assert axis.lines[0].get_ydata().tolist() == [0.5] * 6 and labels(strip(axis)) == ["catapult"]
