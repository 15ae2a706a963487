"""The schedule of a run, from the fields of ``config.schedule``; and a figure of all: python -m experiments.schedules PATH."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import optax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from catapult_jax import schedules
from catapult_jax.report.figures import save
from catapult_jax.report.style import BLUE, GREEN, VERMILION, add_legend, letter, new_figure
from configs import default


def build(s: ConfigDict) -> schedules.Schedule:
    """Build the schedule.

    Args:
      s: the fields of ``config.schedule``.
    """
    following = partial(schedules.following, cap_from=s.cap_from)
    return {
        "constant": lambda: following(optax.constant_schedule(1.0)),
        "warm_up": lambda: following(optax.linear_schedule(s.low, 1.0, s.period)),
        "decay": lambda: following(optax.linear_schedule(1.0, s.low, s.period, transition_begin=s.decay_from)),
        "cyclic": lambda: following(schedules.triangular(low=s.low, period=s.period)),
        "exponential_cyclic": lambda: following(schedules.triangular(low=s.low, period=s.period, decay=s.decay)),
        "staircase": lambda: schedules.staircase(
            raise_to=s.raise_to, settle_fraction=s.settle_fraction, settle_steps=s.settle_steps, cap_from=s.cap_from
        ),
        "relative_to_critical": lambda: schedules.relative_to_critical(cap_from=s.cap_from),
    }[s.name]()


def _loss(state: schedules.ScheduleState, step: int) -> float:
    """A loss that falls, with a spike of factor three in the eight steps after each raise."""
    spike = int(state.stage) > 0 and 0 < step - int(state.start) < 8
    return 0.985**step * (3 if spike else 1)


def figure() -> Figure:
    """Draw the learning rate of each schedule along an invented run, whose critical lr rises slowly."""
    steps, peak = np.arange(200), 1.0
    critical = 1.2 + 0.6 * steps / len(steps) + 0.15 * np.sin(steps / 9)
    result, axes = new_figure(2, 4, height=1.4, sharex=True, sharey=True)
    axes[1, 3].set_visible(False)
    for i, (axis, name) in enumerate(zip(axes.flat, schedules.SCHEDULES, strict=False)):
        s = default.get_config().schedule
        s.name, s.raise_to, s.settle_fraction, s.decay, s.decay_from = name, 1.3, 0.7, 0.99, 120
        schedule = build(s)
        states = [schedule.init(peak, raises=2, lr_over_critical=1.1, cap=cap) for cap in (np.inf, 0.7)]
        lrs = []
        for step in steps:
            states = [schedule.update(state, step, _loss(state, step), critical[step]) for state in states]
            lrs.append([float(state.lr) for state in states])
        free, capped = np.transpose(lrs)
        axis.plot(steps, critical, color=VERMILION, ls="--", lw=0.8, label="critical lr")
        axis.plot(steps, free, color=BLUE, lw=1, label="lr")
        axis.plot(steps, capped, color=GREEN, ls="-.", lw=1, label="lr with a cap of 0.7 times the critical lr")
        letter(axis, i, name)
    for axis in axes[1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("learning rate, η")
    add_legend(result)
    return result


def main(argv: list[str]) -> int:
    """Write the figure; returns the exit status."""
    if len(argv) != 2 or argv[1].startswith("-"):
        print("usage: python -m experiments.schedules PATH", file=sys.stderr)
        return 2
    try:
        print(save(figure(), Path(argv[1]).with_suffix("")))
    except OSError as error:
        print(
            f"error: {argv[1]!r} can't be written ({error.strerror}); allowed: a file in a folder that is there",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
