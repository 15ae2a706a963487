"""The schedule of a run from the fields of its config, against its formula."""

import math

import numpy as np
import pytest

from catapult_jax.schedules import SCHEDULES
from configs import default
from experiments import schedules


def lrs(steps, critical_lr=1.0, cap=math.inf, loss=lambda step: 1.0, **fields):
    """The lrs of a schedule from lr 2, half of which is the critical lr at the start."""
    s = default.get_config().schedule
    s.update(fields)
    schedule = schedules.build(s)
    state, series = schedule.init(2.0, raises=s.raises, lr_over_critical=2.0, cap=cap), []
    for step in range(steps):
        state = schedule.update(state, step, loss(step), critical_lr)
        series.append(float(state.lr))
    return np.array(series)


T = np.arange(12)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "constant"}, np.full(12, 2.0)),
        ({"name": "warm_up", "low": 0.1, "period": 4}, 2 * np.minimum(1, 0.1 + 0.9 * T / 4)),
        ({"name": "cyclic", "low": 0.1, "period": 4}, 2 * (0.1 + 0.9 * (1 - np.abs(T % 4 / 2 - 1)))),
        (
            {"name": "exponential_cyclic", "low": 0.1, "period": 4, "decay": 0.9},
            2 * (0.1 + 0.9 * 0.9**T * (1 - np.abs(T % 4 / 2 - 1))),
        ),
        ({"name": "relative_to_critical"}, np.full(12, 2.0)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_build_of_a_schedule_follows_its_formula(fields, expected):
    np.testing.assert_allclose(lrs(12, **fields), expected, rtol=1e-6)


def test_build_of_a_cap_from_a_step():
    np.testing.assert_allclose(lrs(5, cap=0.5, cap_from=3, name="constant"), [2, 2, 2, 0.5, 0.5])


def test_build_of_a_staircase_raises_to_a_multiple_of_the_critical_lr():
    fields = {"name": "staircase", "raises": 1, "raise_to": 1.5, "settle_fraction": 0.5, "settle_steps": 3}

    series = lrs(10, critical_lr=4.0, loss=lambda step: 0.7**step, **fields)

    assert series[0] == 2.0 and series[-1] == pytest.approx(6.0) and len(set(series.tolist())) == 2
    assert (series[:3] == 2.0).all()  # not before settle_steps


def test_figure_has_an_axis_for_each_schedule():
    figure = schedules.figure()

    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [f"({letter}) {name}" for letter, name in zip("abcdef", SCHEDULES, strict=True)]
    for axis in figure.axes:
        critical, _, capped = (line.get_ydata() for line in axis.lines)
        if not axis.get_title(loc="left").endswith("staircase"):  # a raise ignores the cap
            assert (capped <= 0.7 * np.asarray(critical) * (1 + 1e-6)).all()


def test_main_without_a_path(capsys):
    assert schedules.main(["schedules"]) == 2
    assert capsys.readouterr().err == "usage: python -m experiments.schedules PATH\n"
