"""Learning-rate schedules that see the loss and the critical learning rate of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array

SCHEDULES = ("constant", "warm_up", "decay", "cyclic", "exponential_cyclic", "staircase", "relative_to_critical")

# The spike of a raise begins when the loss is above _SPIKE times its level, and ends when it is back at _BACK times the level.
_SPIKE, _BACK = 1.5, 1.1
_PATIENCE = 5  # a raise without a spike ends after this multiple of ``settle_steps``


class ScheduleState(NamedTuple):
    """State of a schedule, for one member."""

    lr: Array  # learning rate of the step
    uncapped_lr: Array  # learning rate without cap and raise
    raise_lr: Array  # learning rate of the last raise
    critical_lr: Array  # last measured critical learning rate; NaN before the first
    lr0: Array  # learning rate at initialisation
    raises: Array  # largest number of raises of this member
    cap: Array  # largest multiple of the critical learning rate; infinite: no cap
    lr_over_critical: Array  # multiple of the critical learning rate, for relative_to_critical
    stage: Array  # number of raises so far
    start: Array  # first step of the stage
    loss_start: Array  # loss at that step
    level: Array  # smallest loss of the stage
    raised: Array  # a capped member is in a raise, whose spike has not ended
    risen: Array  # the spike of that raise has begun


class Schedule(NamedTuple):
    """A schedule: two pure functions.

    ``raises``, ``cap`` and ``lr_over_critical`` are data: members of one program may differ in them.
    """

    init: Callable  # init(lr, raises=0, cap=inf, lr_over_critical=1) -> state
    update: (
        Callable  # update(state, step, loss, critical_lr) -> state with the lr of this step; NaN: no critical lr was measured
    )


def _init(lr, raises=0, cap=jnp.inf, lr_over_critical=1.0) -> ScheduleState:
    lr = jnp.asarray(lr, jnp.float32)
    return ScheduleState(
        lr=lr,
        uncapped_lr=lr,
        raise_lr=lr,
        critical_lr=jnp.float32(jnp.nan),
        lr0=lr,
        raises=jnp.asarray(raises, jnp.int32),
        cap=jnp.asarray(cap, jnp.float32),
        lr_over_critical=jnp.asarray(lr_over_critical, jnp.float32),
        stage=jnp.int32(0),
        start=jnp.int32(0),
        loss_start=jnp.float32(jnp.inf),
        level=jnp.float32(jnp.inf),
        raised=jnp.asarray(False),
        risen=jnp.asarray(False),
    )


def _with_lr(state: ScheduleState, step, critical_lr, cap_from: int) -> ScheduleState:
    """Set the learning rate: ``raise_lr`` in a raise, else ``uncapped_lr`` under the cap.

    Without a measured critical learning rate the cap refers to the last one.
    """
    critical_lr = jnp.asarray(critical_lr, jnp.float32)
    critical_lr = jnp.where(jnp.isnan(critical_lr), state.critical_lr, critical_lr)
    has_no_cap = (jnp.asarray(step) < cap_from) | jnp.isinf(state.cap) | jnp.isnan(critical_lr)
    capped_lr = jnp.where(has_no_cap, state.uncapped_lr, jnp.minimum(state.uncapped_lr, state.cap * critical_lr))
    return state._replace(lr=jnp.where(state.raised, state.raise_lr, capped_lr), critical_lr=critical_lr)


def following(shape: optax.Schedule, *, cap_from: int = 0) -> Schedule:
    """The initial learning rate times an Optax schedule, ``lr = lr0 * shape(step)``.

    A member with a cap keeps ``lr <= cap * critical_lr``; a cap below one forbids catapults.

    Args:
      shape: :func:`triangular`, ``optax.linear_schedule(0.1, 1, 50)`` for a warm-up, ``optax.constant_schedule(1)``, ...
      cap_from: first step with the cap.

    Returns:
      A :class:`Schedule`.

    >>> schedule = following(optax.linear_schedule(0.5, 1.0, 2))
    >>> [float(schedule.update(schedule.init(2.0), step, 1.0, 1.0).lr) for step in range(4)]
    [1.0, 1.5, 2.0, 2.0]
    >>> constant = following(optax.constant_schedule(1.0))
    >>> round(float(constant.update(constant.init(0.5, cap=0.9), 0, 1.0, 0.1).lr), 3)
    0.09
    """

    def update(state: ScheduleState, step, loss, critical_lr) -> ScheduleState:
        lr = state.lr0 * jnp.asarray(shape(jnp.asarray(step)), jnp.float32)
        return _with_lr(state._replace(uncapped_lr=lr), step, critical_lr, cap_from)

    return Schedule(_init, update)


def triangular(*, low: float, period: int, decay: float = 1.0) -> optax.Schedule:
    """Triangular cycles between ``low`` and one, ``low + (1 - low) decay^t (1 - |2 (t mod period) / period - 1|)``.

    Args:
      low: value at the beginning and the end of a cycle; 0 to 1.
      period: steps in a cycle, at least 2.
      decay: factor of the height per step; above 0, at most 1. 1 gives equal cycles, a smaller one exponential cycles.

    Returns:
      An Optax schedule, ``shape(step)``, a factor of the learning rate.

    Raises:
      ValueError: an argument is out of its range.

    Source: Smith (2017), arXiv 1506.01186: ``triangular``, and ``exp_range`` with its ``gamma`` for the decay.

    >>> [float(triangular(low=0.5, period=4)(step)) for step in range(5)]
    [0.5, 0.75, 1.0, 0.75, 0.5]
    """
    _check_range("low", low, "0 to 1", 0 <= low <= 1)
    _check_range("period", period, "2 or more", period >= 2)
    _check_range("decay", decay, "above 0, at most 1", 0 < decay <= 1)

    def shape(step):
        step = jnp.asarray(step, jnp.float32)
        return low + (1 - low) * decay**step * (1 - jnp.abs(2 * (step % period) / period - 1))

    return shape


def relative_to_critical(*, cap_from: int = 0) -> Schedule:
    """A multiple of the critical learning rate of each step, ``lr = lr_over_critical * critical_lr``.

    A multiple above one induces catapults, one below one forbids them.
    If the critical learning rate is NaN or infinite, the last learning rate stays; before the first that is the initial one.

    Args:
      cap_from: first step with the cap, see :func:`following`.

    Returns:
      A :class:`Schedule`.

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
        lr = jnp.where(jnp.isfinite(critical_lr), state.lr_over_critical * critical_lr, state.uncapped_lr)
        return _with_lr(state._replace(uncapped_lr=lr), step, critical_lr, cap_from)

    return Schedule(_init, update)


def staircase(*, raise_to: float, settle_fraction: float, settle_steps: int, cap_from: int = 0) -> Schedule:
    """Raise the learning rate to a multiple of the critical learning rate each time the loss has settled.

    A stage is the time between two raises. The loss has settled if

    - the stage is at least ``settle_steps`` old,
    - the loss is at most ``settle_fraction`` times the loss at the start of the stage,
    - it is the smallest loss of the stage, up to one percent. So the loss is not inside a spike.

    The new learning rate is ``max(lr, raise_to * critical_lr)``. Each member makes at most ``raises`` raises.

    A member with a cap is raised to ``raise_to * critical_lr`` exactly, above its cap.
    Its learning rate goes back under the cap after the spike that follows: the loss has been above 1.5 times the level, the
    smallest loss of the stage, and is back at 1.1 times the level. So each raise gives one catapult.
    Without a spike the raise ends at a new smallest loss after ``5 * settle_steps`` steps or more.

    Args:
      raise_to: multiple of the critical learning rate; above 0.
      settle_fraction: above 0, at most 1.
      settle_steps: at least 1.
      cap_from: first step with the cap, see :func:`following`.

    Returns:
      A :class:`Schedule`.

    Raises:
      ValueError: an argument is out of its range.

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
    _check_range("raise_to", raise_to, "above 0", raise_to > 0)
    _check_range("settle_fraction", settle_fraction, "above 0, at most 1", 0 < settle_fraction <= 1)
    _check_range("settle_steps", settle_steps, "1 or more", settle_steps >= 1)

    def update(state: ScheduleState, step, loss, critical_lr) -> ScheduleState:
        loss, critical_lr = jnp.asarray(loss, jnp.float32), jnp.asarray(critical_lr, jnp.float32)
        step = jnp.asarray(step, jnp.int32)
        state = _end_raise(state, step, loss, settle_steps)
        has_settled = (
            (step - state.start >= settle_steps)
            & (loss <= settle_fraction * state.loss_start)
            & (loss <= 1.01 * state.level)
            & (state.stage < state.raises)
            & ~state.raised
            & jnp.isfinite(critical_lr)
        )
        has_cap, raise_lr = jnp.isfinite(state.cap), raise_to * critical_lr
        next_stage = state._replace(
            uncapped_lr=jnp.where(has_cap, state.uncapped_lr, jnp.maximum(state.uncapped_lr, raise_lr)),
            raise_lr=raise_lr,
            stage=state.stage + 1,
            start=step,
            loss_start=loss,
            level=loss,
            raised=has_cap,
            risen=jnp.asarray(False),
        )
        state = jax.tree.map(lambda a, b: jnp.where(has_settled, a, b), next_stage, state)
        return _with_lr(state, step, critical_lr, cap_from)

    return Schedule(_init, update)


def _end_raise(state: ScheduleState, step, loss, settle_steps: int) -> ScheduleState:
    """Update the level with the loss of the step, and end the raise after its spike or without one."""
    state = state._replace(
        loss_start=jnp.where(step == state.start, loss, state.loss_start),
        level=jnp.where(state.risen, state.level, jnp.minimum(state.level, loss)),
    )
    risen = state.raised & (state.risen | (loss > _SPIKE * state.level))
    has_no_spike = (step - state.start >= _PATIENCE * settle_steps) & (loss <= state.level)
    ends = jnp.where(risen, loss <= _BACK * state.level, has_no_spike)
    return state._replace(risen=risen & ~ends, raised=state.raised & ~ends)


def _check_range(name: str, value: float, allowed: str, is_allowed: bool) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value!r}; allowed: {allowed}")
