"""Learning-rate schedules that listen to the run: they see the loss and the critical learning rate of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array

SCHEDULES = ("constant", "warm_up", "cyclic", "exponential_cyclic", "staircase", "relative_to_critical")

_SPIKE, _BACK = 1.5, 1.1  # a raise is over when the loss has been above the first and is back below the second, times its level
_PATIENCE = 5  # settling times that a raise is given to make its spike


class ScheduleState(NamedTuple):
    """What a schedule carries from one step to the next, for one member."""

    lr: Array  # learning rate of the step
    uncapped_lr: Array  # the same before cap and raise
    raise_lr: Array  # learning rate of the last raise
    critical_lr: Array  # last one that was measured, NaN before the first
    lr0: Array  # learning rate at the start
    raises: Array  # most raises that this member makes
    cap: Array  # multiple of the critical learning rate that is not exceeded; infinite: no cap
    lr_over_critical: Array  # multiple of the critical learning rate that relative_to_critical holds
    stage: Array  # raises so far
    start: Array  # step at which the stage began
    loss_start: Array  # loss at that step
    level: Array  # smallest loss of the stage
    raised: Array  # a raise of a capped member is in force: its spike is not over
    risen: Array  # that spike has begun


class Schedule(NamedTuple):
    """``init(lr, raises=0, cap=inf, lr_over_critical=1) -> state``; ``update(state, step, loss, critical_lr) -> state`` with the lr of this step.

    ``raises``, ``cap`` and ``lr_over_critical`` may differ from member to member of one program. A critical learning rate of NaN was not measured.
    """

    init: Callable
    update: Callable


def _init(lr, raises=0, cap=jnp.inf, lr_over_critical=1.0) -> ScheduleState:
    number, infinite, no = jnp.float32, jnp.float32(jnp.inf), jnp.asarray(False)
    lr, zero, unknown = jnp.asarray(lr, number), jnp.int32(0), number(jnp.nan)
    raises, cap, relative = jnp.asarray(raises, jnp.int32), jnp.asarray(cap, number), jnp.asarray(lr_over_critical, number)
    return ScheduleState(lr, lr, lr, unknown, lr, raises, cap, relative, zero, zero, infinite, infinite, no, no)


def _capped(state: ScheduleState, step, critical_lr, cap_from: int) -> ScheduleState:
    """Sets the learning rate: that of the raise in force, otherwise ``uncapped_lr``, at most ``cap`` times the critical lr, which is
    the last one known where none was measured."""
    critical_lr = jnp.asarray(critical_lr, jnp.float32)
    critical_lr = jnp.where(jnp.isnan(critical_lr), state.critical_lr, critical_lr)
    free = (jnp.asarray(step) < cap_from) | jnp.isinf(state.cap) | jnp.isnan(critical_lr)
    held = jnp.where(free, state.uncapped_lr, jnp.minimum(state.uncapped_lr, state.cap * critical_lr))
    return state._replace(lr=jnp.where(state.raised, state.raise_lr, held), critical_lr=critical_lr)


def following(shape: optax.Schedule, *, cap_from: int = 0) -> Schedule:
    """The learning rate of the start times ``shape(step)``, an Optax schedule: :func:`triangular`, ``optax.linear_schedule(0.1, 1, 50)`` for a
    warm-up, ``optax.constant_schedule(1)``.

    With a cap it is no more than that multiple of the critical learning rate of each step, from step ``cap_from`` on. A cap below
    one forbids catapults.

    >>> schedule = following(optax.linear_schedule(0.5, 1.0, 2))
    >>> [float(schedule.update(schedule.init(2.0), step, 1.0, 1.0).lr) for step in range(4)]
    [1.0, 1.5, 2.0, 2.0]
    >>> constant = following(optax.constant_schedule(1.0))
    >>> round(float(constant.update(constant.init(0.5, cap=0.9), 0, 1.0, 0.1).lr), 3)
    0.09
    """

    def update(state: ScheduleState, step, loss, critical_lr) -> ScheduleState:
        rate = state.lr0 * jnp.asarray(shape(jnp.asarray(step)), jnp.float32)
        return _capped(state._replace(uncapped_lr=rate), step, critical_lr, cap_from)

    return Schedule(_init, update)


def triangular(*, low: float, period: int, decay: float = 1.0) -> optax.Schedule:
    """Triangular cycles between ``low`` and one, ``low + (1 - low) decay^t (1 - |2 (t mod period) / period - 1|)``.

    Args:
      low: fraction of the peak at which a cycle begins and ends; 0 to 1.
      period: steps of a cycle, at least 2.
      decay: of the height of the cycles, in a step: above 0, at most 1; 1: all are as high; below it they are the exponential cycles.

    Raises:
      ValueError: an argument out of its range.

    Source: Smith (2017), arXiv 1506.01186: ``triangular``, and ``exp_range`` with its ``gamma`` for the decay.

    >>> [float(triangular(low=0.5, period=4)(step)) for step in range(5)]
    [0.5, 0.75, 1.0, 0.75, 0.5]
    """
    for name, value, allowed, good in (
        ("low", low, "0 to 1", 0 <= low <= 1),
        ("period", period, "2 or more", period >= 2),
        ("decay", decay, "above 0, at most 1", 0 < decay <= 1),
    ):
        if not good:
            raise ValueError(f"{name}={value!r}; allowed: {allowed}")

    def shape(step):
        step = jnp.asarray(step, jnp.float32)
        return low + (1 - low) * decay**step * (1 - jnp.abs(2 * (step % period) / period - 1))

    return shape


def relative_to_critical(*, cap_from: int = 0) -> Schedule:
    """A member's multiple of the critical learning rate of each step: above one it induces catapults, below one it forbids them.
    ``cap_from``: see :func:`following`.

    Where no critical learning rate was measured, or it is infinite, the last one stays; before the first, the rate of the start.

    >>> schedule = relative_to_critical()
    >>> state = schedule.init(0.1, lr_over_critical=0.5)
    >>> for step, critical in enumerate([jnp.nan, 4.0, jnp.nan]):
    ...     state = schedule.update(state, step, 1.0, critical)
    ...     print(round(float(state.lr), 3))
    0.1
    2.0
    2.0
    """

    def update(state: ScheduleState, step, loss, critical_lr) -> ScheduleState:
        critical_lr = jnp.asarray(critical_lr, jnp.float32)
        rate = jnp.where(jnp.isfinite(critical_lr), state.lr_over_critical * critical_lr, state.uncapped_lr)
        return _capped(state._replace(uncapped_lr=rate), step, critical_lr, cap_from)

    return Schedule(_init, update)


def staircase(*, raise_to: float, settle_fraction: float, settle_steps: int, cap_from: int = 0) -> Schedule:
    """Raises the learning rate, when the loss has settled, to a multiple of the critical learning rate of that moment.

    The loss has settled when its stage is at least ``settle_steps`` old and the loss is at most ``settle_fraction`` times what
    it was when the stage began, and is the smallest of the stage up to one percent: it came down, and is not in the middle
    of a spike. The new rate is ``max(lr, raise_to * critical_lr)``. Each member makes as many raises as it was started with.
    A capped member is raised to ``raise_to * critical_lr`` exactly, and goes back to what it had, held below its cap, once the
    spike that follows (1.5 times the level) is back at 1.1 times the level: one raise above the critical learning rate, one
    catapult. A raise that has made no spike in ``5 * settle_steps`` steps, at a new smallest loss, is over too.

    Args:
      raise_to: multiple of the current critical learning rate; above 0.
      settle_fraction: above 0, at most 1.
      settle_steps: at least 1.
      cap_from: see :func:`following`.

    Raises:
      ValueError: an argument out of its range.

    >>> schedule = staircase(raise_to=2.0, settle_fraction=0.5, settle_steps=1)
    >>> state = schedule.init(0.1, raises=1)
    >>> for step, loss in enumerate([1.0, 0.7, 0.4, 0.3]):
    ...     state = schedule.update(state, step, loss, 1.0)
    ...     print(round(float(state.lr), 3), int(state.stage))
    0.1 0
    0.1 0
    2.0 1
    2.0 1
    """
    for name, value, allowed, good in (
        ("raise_to", raise_to, "above 0", raise_to > 0),
        ("settle_fraction", settle_fraction, "above 0, at most 1", 0 < settle_fraction <= 1),
        ("settle_steps", settle_steps, "1 or more", settle_steps >= 1),
    ):
        if not good:
            raise ValueError(f"{name}={value!r}; allowed: {allowed}")

    def update(state: ScheduleState, step, loss, critical_lr) -> ScheduleState:
        loss, critical_lr = jnp.asarray(loss, jnp.float32), jnp.asarray(critical_lr, jnp.float32)
        step = jnp.asarray(step, jnp.int32)
        first = step == state.start
        state = state._replace(
            loss_start=jnp.where(first, loss, state.loss_start),
            level=jnp.where(state.risen, state.level, jnp.minimum(state.level, loss)),
        )
        risen = state.raised & (state.risen | (loss > _SPIKE * state.level))
        calm = (step - state.start >= _PATIENCE * settle_steps) & (loss <= state.level)
        over = jnp.where(risen, loss <= _BACK * state.level, calm)
        state = state._replace(risen=risen & ~over, raised=state.raised & ~over)
        settled = (
            (step - state.start >= settle_steps)
            & (loss <= settle_fraction * state.loss_start)
            & (loss <= 1.01 * state.level)
            & (state.stage < state.raises)
            & ~state.raised
            & jnp.isfinite(critical_lr)
        )
        capped, target = jnp.isfinite(state.cap), raise_to * critical_lr
        raised = state._replace(
            uncapped_lr=jnp.where(capped, state.uncapped_lr, jnp.maximum(state.uncapped_lr, target)),
            raise_lr=target,
            stage=state.stage + 1,
            start=step,
            loss_start=loss,
            level=loss,
            raised=capped,
            risen=jnp.asarray(False),
        )
        state = jax.tree.map(lambda a, b: jnp.where(settled, a, b), raised, state)
        return _capped(state, step, critical_lr, cap_from)

    return Schedule(_init, update)
