"""Figures of where training ended, and of the arms of a causal test."""

import numpy as np
import pytest

from catapult_jax.report import outcomes
from catapult_jax.report.members import Settings
from experiments.arms import ARMS
from tests.small_records import CAUSES, TO_A_LOSS, arms_record, members_with, settings_of

OF_ARMS = settings_of(CAUSES)


def arms(**effects):
    return arms_record(**effects).assign_attrs(interventions=list(ARMS))


def test_against_catapults_figure_has_members_that_finished():
    data = members_with([0, 1, 3], [0, 0, 0], loss_test=[1.0, 0.8, 0.5])
    data["stopped"][1] = False

    (axis,) = outcomes.against_catapults_figure(data, TO_A_LOSS).axes

    assert axis.lines[0].get_xdata().tolist() == [0, 3] and axis.lines[0].get_ydata().tolist() == [1.0, 0.5]


def test_against_critical_steps_figure_has_the_fraction_of_each_member():
    data = members_with([0, 1], [0, 0], loss_test=[1.0, 0.8])
    steps = data.sizes["step"]
    data["lr"] = ("member", "step"), np.tile([[2.0], [1.0]], (1, steps))
    data["critical_lr_batch"] = ("member", "step"), np.full((2, steps), 1.5)

    (axis,) = outcomes.against_critical_steps_figure(data, TO_A_LOSS).axes

    assert axis.lines[0].get_xydata().tolist() == [[1.0, 1.0], [0.0, 0.8]]


def test_alignment_against_test_loss_figure_has_a_marker_and_a_colour_for_each_setting():
    data = members_with([0, 0, 0, 0], [0, 1, 0, 1], loss_test=[1.0, 0.8, 0.5, 0.4], agop_alignment=[0.1, 0.2, 0.3, 0.4])
    data = data.assign_coords(lr_given=("member", [1.0, 1.0, 2.0, 2.0]))
    data["stopped"][3] = False

    (axis,) = outcomes.alignment_against_test_loss_figure(data, TO_A_LOSS).axes

    first, second = axis.lines
    assert [line.get_xydata().tolist() for line in (first, second)] == [[[1.0, 0.1], [0.8, 0.2]], [[0.5, 0.3]]]
    assert first.get_color() != second.get_color() and first.get_marker() != second.get_marker()


def test_arms_figure_has_paired_differences_to_the_arm_none():
    figure = outcomes.arms_figure(arms(remove_overshoot=0.1, placebo=0.02), OF_ARMS)

    _, differences, of_alignment = figure.axes
    names = [text.get_text() for text in differences.get_yticklabels()]
    means = {
        name: float(container.lines[0].get_xdata()[0]) for name, container in zip(names, differences.containers, strict=True)
    }
    assert sorted(names) == sorted(set(ARMS) - {"none", "force", "sham"})
    assert means == pytest.approx({name: {"remove_overshoot": 0.1, "placebo": 0.02}.get(name, 0.0) for name in names})
    assert float(of_alignment.containers[names.index("placebo")].lines[0].get_xdata()[0]) == pytest.approx(-0.02)


def test_arms_figure_has_the_test_loss_at_levels_of_the_training_loss():
    figure = outcomes.arms_figure(arms(remove_overshoot=0.1), OF_ARMS)

    axis = figure.axes[0]
    ends = {line.get_label(): line.get_xydata()[-1] for line in axis.lines}
    assert set(ends) == set(outcomes.DECIDING_ARMS)
    at_last_level = np.linspace(1.0, 0.0095, 8)[-1]  # its test loss was measured one step before
    np.testing.assert_allclose(ends["none"], [at_last_level, 0.2], rtol=1e-6)
    np.testing.assert_allclose(ends["remove_overshoot"], [at_last_level, 0.3], rtol=1e-6)


def test_arms_figure_without_seeds_that_finished_has_no_differences():
    data = arms()
    data["stopped"][:] = False

    curves, differences, _ = outcomes.arms_figure(data, OF_ARMS).axes

    assert len(curves.lines) == 4 and differences.containers == []


def test_complete_seeds_finished_in_every_arm():
    data = arms()
    data["stopped"][int(np.flatnonzero(data["seed"].values == 3)[1])] = False

    keys = outcomes.complete_seeds(data, OF_ARMS)

    assert [seed for seed, *_ in keys] == [0, 1, 2, 4, 5, 6, 7]


def test_complete_seeds_without_the_arm_none():
    data = arms()

    assert outcomes.complete_seeds(data.isel(member=data["intervention"].values > 0), Settings()) == []
