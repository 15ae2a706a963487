"""The interface of instruments: what they see, what they declare, and how a step runs those that are due."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from catapult_jax.preconditioners import PLAIN


class Moment(NamedTuple):
    """What an instrument sees of a step."""

    params: Any  # before the update
    new_params: Any  # after it
    batch: tuple  # (x, y)
    outputs: jax.Array  # of the batch, before the update
    # x_train, y_train, x_test, y_test; x_val, y_val if there are validation examples; agop_reference if there is one
    data: dict
    # Preconditioner of this step, as a pytree function: it is computed only if an instrument needs it.
    preconditioner: Partial = Partial(lambda: PLAIN)
    kernel: jax.Array | None = None  # loss-weighted, of the batch, before the update; None: not computed
    # Before the update the lr of the previous step, at step 0 the initial lr: the lr of this step may depend on the measurements. After the
    # update the lr of this step. None: not known.
    lr: jax.Array | None = None
    updates: Any = None  # what the step adds to the params; None: not known yet


class Instrument(NamedTuple):
    """One measurement and its cadence. Only these fields say what it measures and when; the label that a caller gives it has no effect."""

    series: tuple[str, ...]  # names of the series that it writes; no other instrument writes them
    every: int  # cadence in steps, 1 or more
    # now -> measurements; with a start: (now, carried) -> (measurements, carried)
    measure: Callable[..., Any]
    start: Callable[[Moment], Any] | None = (
        None  # now -> what it carries before its first measurement; None: it carries nothing
    )
    # (params, batch) -> (outputs, loss-weighted kernel, gradient): one pass for the kernel and the gradient of the step. Used if every is 1.
    # If several instruments have one, the step uses the first.
    gradient: Callable[..., tuple] | None = None
    after_update: bool = False  # True: it reads new_params or updates, and is measured after the update


def check_instruments(instruments: Mapping[str, Instrument], reserved: Iterable[str] = ()) -> None:
    """Checks that no two instruments write the same series, and none writes a reserved one.

    Args:
      instruments: by label.
      reserved: series that the step itself writes.

    Raises:
      ValueError: a cadence is below 1, or two instruments, or an instrument and the step, write one series.

    >>> instrument = Instrument(("loss_train",), 1, lambda now: {"loss_train": 0.0})
    >>> check_instruments({"a": instrument, "b": instrument})
    Traceback (most recent call last):
    ValueError: instruments 'a' and 'b' both write the series 'loss_train'; allowed: one for each series
    """
    writers = dict.fromkeys(reserved, "")
    for label, instrument in instruments.items():
        if instrument.every < 1:
            raise ValueError(f"instrument {label!r}: every={instrument.every!r}; allowed: 1 or more")
        for series in instrument.series:
            if series in writers:
                other = writers[series]
                pair = f"instrument {label!r} and the step itself write"
                if other:
                    pair = f"instruments {other!r} and {label!r} both write"
                raise ValueError(f"{pair} the series {series!r}; allowed: one for each series")
            writers[series] = label


def measure(
    instruments: dict[str, Instrument], now: Moment, carried: dict[str, Any], step, *, due: frozenset[str] | None
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Runs the instruments that are due. The series of the others are NaN, and what they carry stays.

    Args:
      instruments: by label.
      now: what they see.
      carried: by label, what each instrument carries.
      step: number of the step.
      due: labels of the instruments that are due, so that the others are not compiled; None: decide from the traced step, under ``lax.cond``.

    Returns:
      Measurements by series, and what each instrument carries on.

    Raises:
      ValueError: an instrument writes other series than its field ``series`` says.

    >>> lr = Instrument(("lr_before",), 2, lambda now: {"lr_before": now.lr})
    >>> now = Moment(None, None, (), jnp.zeros(1), {}, lr=jnp.float32(0.5))
    >>> [float(measure({"lr": lr}, now, {}, step, due=None)[0]["lr_before"]) for step in (0, 1)]
    [0.5, nan]
    """
    measured, after = {}, dict(carried)
    for name, instrument in instruments.items():
        if instrument.start is None:
            run = lambda now, nothing, instrument=instrument: (instrument.measure(now), nothing)
        else:
            run = instrument.measure
        before = carried.get(name)
        shapes = jax.eval_shape(run, now, before)[0]
        if set(shapes) != set(instrument.series):
            raise ValueError(f"instrument {name!r} writes {sorted(shapes)}; allowed: its series {sorted(instrument.series)}")
        skip = lambda _, before, shapes=shapes: (jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes), before)
        if instrument.every == 1:
            values, later = run(now, before)
        elif due is not None:
            values, later = (run if name in due else skip)(now, before)
        else:
            values, later = lax.cond(step % instrument.every == 0, run, skip, now, before)
        measured |= values
        if instrument.start is not None:
            after[name] = later
    return measured, after
