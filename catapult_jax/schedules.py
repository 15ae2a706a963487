"""Learning-rate schedules that listen to the run: they see the loss and the critical learning rate of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array

SCHEDULES = ("constant", "staircase")


class ScheduleState(NamedTuple):
    lr: Array  # learning rate of the step
    stage: Array  # raises so far
    start: Array  # step at which the stage began
    loss_start: Array  # loss at that step
    level: Array  # smallest loss of the stage


class Schedule(NamedTuple):
    """``init(lr) -> state``; ``update(state, step, loss, critical_lr) -> state`` with the lr of this step."""

    init: Callable
    update: Callable


def _init(lr) -> ScheduleState:
    infinite = jnp.float32(jnp.inf)
    return ScheduleState(jnp.asarray(lr, jnp.float32), jnp.int32(0), jnp.int32(0), infinite, infinite)


def constant() -> Schedule:
    """The learning rate of the start, for ever.

    >>> schedule = constant()
    >>> float(schedule.update(schedule.init(0.5), 0, 1.0, 1.0).lr)
    0.5
    """
    return Schedule(_init, lambda state, step, loss, critical_lr: state)


def staircase(*, raises: int, raise_to: float, settle_fraction: float, settle_steps: int) -> Schedule:
    """Raises the learning rate, when the loss has settled, to a multiple of the critical learning rate of that moment.

    The loss has settled when its stage is at least ``settle_steps`` old and the loss is at most ``settle_fraction`` times what
    it was when the stage began, and is the smallest of the stage up to one percent: it came down, and is not in the middle
    of a spike. The new rate is ``max(lr, raise_to * critical_lr)``.

    Args:
      raises: how often; 0 or more.
      raise_to: multiple of the current critical learning rate; above 0.
      settle_fraction: above 0, at most 1.
      settle_steps: at least 1.

    Raises:
      ValueError: an argument out of its range.

    >>> schedule = staircase(raises=1, raise_to=2.0, settle_fraction=0.5, settle_steps=1)
    >>> state = schedule.init(0.1)
    >>> for step, loss in enumerate([1.0, 0.7, 0.4, 0.3]):
    ...     state = schedule.update(state, step, loss, 1.0)
    ...     print(round(float(state.lr), 3), int(state.stage))
    0.1 0
    0.1 0
    2.0 1
    2.0 1
    """
    for name, value, allowed, good in (
        ("raises", raises, "0 or more", raises >= 0),
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
        state = state._replace(loss_start=jnp.where(first, loss, state.loss_start), level=jnp.minimum(state.level, loss))
        settled = (
            (step - state.start >= settle_steps)
            & (loss <= settle_fraction * state.loss_start)
            & (loss <= 1.01 * state.level)
            & (state.stage < raises)
            & jnp.isfinite(critical_lr)
        )
        raised = ScheduleState(jnp.maximum(state.lr, raise_to * critical_lr), state.stage + 1, step, loss, loss)
        return jax.tree.map(lambda a, b: jnp.where(settled, a, b), raised, state)

    return Schedule(_init, update)
