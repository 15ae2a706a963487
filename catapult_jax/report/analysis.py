"""What a record says of its steps: events, steps with a critical learning rate, and what these predict.

It decides nothing. For a record and its members see :mod:`catapult_jax.report.members`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from catapult_jax.detection import momentum_horizon
from catapult_jax.events import Event
from catapult_jax.metrics import Prediction, prediction, scores
from catapult_jax.report.members import (
    Settings,
    flags,
    has_events,
    is_stochastic,
    lambda_series,
    running,
    series_or_nan,
    spike_series,
    steps_of_an_epoch,
)
from catapult_jax.spikes import FACTORS, count_spikes, find_events

if TYPE_CHECKING:
    import xarray

CONFUSION = ("true_positive", "false_positive", "false_negative", "true_negative")


# Events.


def seen_steps(record: xarray.Dataset, m: int) -> np.ndarray:
    """Steps in which spikes are looked for: up to the one at which a member diverged, and those of updates.

    Args:
      record: series over (member, step). Its ``event`` is NaN at a call of :func:`catapult_jax.watch` without an update.
      m: number of the member.

    Returns:
      Their numbers, ``(steps,)``.

    >>> import xarray
    >>> series = {"loss_batch": [[1.0, 2.0, 1.0, 2.0]], "event": [[np.nan, 0.0, np.nan, 1.0]]}
    >>> seen_steps(xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()}), 0)
    array([1, 3])
    """
    diverged = flags(record, "diverged")[m]
    steps = np.arange(int(diverged.argmax()) + 1 if diverged[-1] else record.sizes["step"])
    return steps[~np.isnan(record["event"].values[m, steps])] if "event" in record else steps


def _at_steps(event: Event, steps: np.ndarray) -> Event:
    """An event in some steps, with the numbers of these steps."""
    places = {name: getattr(event, name) for name in ("onset", "peak", "end", "returned")}
    return event._replace(**{name: int(steps[place]) for name, place in places.items() if place >= 0})


def run_events(record: xarray.Dataset, settings: Settings, *, factor: float | None = None) -> list[list[Event]]:
    """Events of each member, in the loss of :func:`spike_series`; see :func:`catapult_jax.find_events`.

    With batches and no training loss there are no events, unless ``smoothing`` is given: the noise of batches is no spike.

    Args:
      record: series over (member, step). ``lr`` and ``critical_lr_batch`` tell a catapult from other spikes.
      settings: of the run.
      factor: spike factor; None: that of the settings.

    Returns:
      A list of events for each member.

    Raises:
      ValueError: ``batch_size`` without ``examples``.

    >>> import xarray
    >>> series = {"loss_train": [[1.0, 3.0, 1.0]], "lr": [[2.0] * 3], "critical_lr_batch": [[1.0] * 3]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> [[event.kind for event in events] for events in run_events(record, Settings())]
    [['catapult']]
    """
    if not has_events(record, settings):
        return [[] for _ in range(record.sizes["member"])]
    split = "loss_train" if is_stochastic(settings) and settings.smoothing is None else "loss"
    series = {"lambda_max": lambda_series(record, settings), "loss_top": f"{split}_top", "loss_rest": f"{split}_rest"}
    loss, lr = record[spike_series(record)].values, series_or_nan(record, "lr")
    critical_lr = series_or_nan(record, "critical_lr_batch")
    if "lambda_max_batch" in record:  # weight decay makes the critical lr of a kernel of zero finite
        critical_lr = np.where(record["lambda_max_batch"].values == 0, np.inf, critical_lr)
    factor = settings.factor if factor is None else factor
    options = {
        "factor": factor,
        "delta": min(settings.delta, (factor - 1) / 2),
        "horizon": settings.horizon,
        "momentum_horizon": momentum_horizon(settings.momentum),
        "dead_steps": steps_of_an_epoch(settings),
        "smoothing": None if "loss_train" in record else settings.smoothing,
    }
    events = []
    for m in range(record.sizes["member"]):
        steps = seen_steps(record, m)
        more = {key: record[name].values[m, steps] for key, name in series.items() if name is not None and name in record}
        arrays: Any = loss[m, steps], lr[m, steps], critical_lr[m, steps]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the loss changes by")  # it is the training loss
            events.append([_at_steps(event, steps) for event in find_events(*arrays, **more, **options)])
    return events


def spike_counts(record: xarray.Dataset, settings: Settings) -> list[dict[float, int]]:
    """Number of spikes of each member for each factor of a grid, in the same series as :func:`run_events`.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      For each member a count for each factor of :data:`catapult_jax.events.FACTORS`.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_train": (("member", "step"), [[1.0, 1.8, 1.0]])})
    >>> spike_counts(record, Settings())
    [{1.2: 1, 1.5: 1, 2.0: 0, 3.0: 0, 5.0: 0}]
    """
    if not has_events(record, settings):
        return [dict.fromkeys(FACTORS, 0) for _ in range(record.sizes["member"])]
    options: dict[str, Any] = {"delta": settings.delta, "horizon": settings.horizon}
    options["smoothing"] = None if "loss_train" in record else settings.smoothing
    loss = record[spike_series(record)].values
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the loss changes by")  # it is the training loss
        return [count_spikes(row[seen_steps(record, m)], **options) for m, row in enumerate(loss)]


def catapult_counts(events: list[list[Event]]) -> np.ndarray:
    """Number of catapults of each member.

    Args:
      events: as :func:`run_events` returns them.

    Returns:
      Counts, ``(member,)``.

    >>> catapult_counts([[], []])
    array([0, 0])
    """
    return np.array([sum(event.kind == "catapult" for event in row) for row in events])


def alignment_around(record: xarray.Dataset, m: int, event: Event) -> dict[str, float]:
    """AGOP alignment of member ``m`` around a spike.

    Args:
      record: series over (member, step).
      m: number of the member.
      event: the spike.

    Returns:
      ``alignment_before``: the last value measured up to its onset. ``alignment_after``: the first value measured from its end on.
      NaN: no such value. Empty if the alignment is not on record.

    >>> import xarray
    >>> alignment_around(xarray.Dataset(), 0, Event(*[0] * 15))
    {}
    """
    if "agop_alignment" not in record:
        return {}
    values = record["agop_alignment"].values[m]
    before, after = values[: event.onset + 1], values[event.end :] if event.end >= 0 else values[:0]
    pick = lambda part, i: float(part[np.isfinite(part)][i]) if np.isfinite(part).any() else float("nan")
    return {"alignment_before": pick(before, -1), "alignment_after": pick(after, 0)}


def event_rows(record: xarray.Dataset, settings: Settings, events: list[list[Event]]) -> list[dict[str, Any]]:
    """One row for each event: its member, the factor, its fields, and the AGOP alignment around it.

    Args:
      record: the record of the events.
      settings: of the run.
      events: as :func:`run_events` returns them.

    Returns:
      Rows, ready for JSON lines.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_train": (("member", "step"), [[1.0, 3.0, 1.0]])})
    >>> (row,) = event_rows(record, Settings(), run_events(record, Settings()))
    >>> row["member"], row["factor"], row["kind"], row["peak"]
    (0, 1.5, 'unknown', 1)
    """
    types = {"seed": int, "lr0_over_critical": float}
    coordinates = [name for name in types if name in record.coords]
    member = lambda m: {"member": m} | {name: types[name](record[name].values[m]) for name in coordinates}
    return [
        member(m) | {"factor": settings.factor} | event._asdict() | alignment_around(record, m, event)
        for m, row in enumerate(events)
        for event in row
    ]


# Where the lr is above its critical value, and what that predicts.


def uncertain_steps(record: xarray.Dataset) -> np.ndarray:
    """Steps at which it is not certain on which side of its critical value the lr is.

    Within the relative rounding error of the kernel, the attribute ``critical_lr_margin`` of the record, no side is certain. An eigenvalue
    from kernel-vector products is a lower bound, and its ``bound`` above it an upper one. So an lr above the critical lr is certain, and one
    below is certain only if it would be below with the upper bound, too.

    Args:
      record: series over (member, step).

    Returns:
      Booleans, ``(member, step)``.

    >>> import xarray
    >>> series = {"lr": [[1.0, 1.0, 1.0]], "critical_lr_batch": [[1.0001, 2.0, 0.5]]}
    >>> data = {name: (("member", "step"), values) for name, values in series.items()}
    >>> uncertain_steps(xarray.Dataset(data, attrs={"critical_lr_margin": 0.001})).tolist()
    [[True, False, False]]
    >>> found = {"lambda_max_batch": [[2.0, 1.0, 4.0]], "lambda_max_batch_bound": [[0.0, 9.0, 9.0]]}
    >>> data |= {name: (("member", "step"), values) for name, values in found.items()}
    >>> uncertain_steps(xarray.Dataset(data)).tolist()
    [[False, True, False]]
    """
    lr, critical_lr = series_or_nan(record, "lr"), series_or_nan(record, "critical_lr_batch")
    above = np.zeros(lr.shape)  # relative bound above the eigenvalue
    with np.errstate(divide="ignore", invalid="ignore"):
        if {"eigenvalues", "eigenvalue_bounds"} <= set(record):
            above = np.fmax(above, record["eigenvalue_bounds"].values[..., 0] / record["eigenvalues"].values[..., 0])
        if {"lambda_max_batch", "lambda_max_batch_bound"} <= set(record):
            above = np.fmax(above, record["lambda_max_batch_bound"].values / record["lambda_max_batch"].values)
        ratio = lr / critical_lr
        is_near = np.abs(ratio - 1) <= record.attrs.get("critical_lr_margin", 0.0)
        return is_near | ((ratio <= 1) & (ratio * (1 + above) > 1))


def critical_fraction(record: xarray.Dataset, settings: Settings, m: int) -> float:
    """Fraction of the steps of member ``m`` at which the lr is above its critical value.

    It is taken over the steps at which the member is running and its critical lr is on record.

    Args:
      record: with ``lr`` and ``critical_lr_batch``.
      settings: of the run.
      m: number of the member.

    Returns:
      The fraction; NaN if there are no such steps.

    >>> import xarray
    >>> series = {"lr": [[2.0, 2.0]], "critical_lr_batch": [[1.0, 3.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> critical_fraction(record, Settings(), 0)
    0.5
    """
    critical_lr = record["critical_lr_batch"].values[m]
    steps = ~np.isnan(critical_lr) & running(record, settings, m)
    return float((record["lr"].values[m] > critical_lr)[steps].mean()) if steps.any() else float("nan")


def batch_prediction(record: xarray.Dataset, settings: Settings, m: int) -> Prediction:
    """How well lr > critical lr predicts that the loss of the same batch rises in the step, for member ``m``.

    Args:
      record: with ``lr``, ``critical_lr_batch``, ``loss_batch`` and ``loss_batch_after``.
      settings: of the run.
      m: number of the member.

    Returns:
      The table over the steps at which the member is running and all four are known.

    >>> import xarray
    >>> series = {"lr": [[2.0, 2.0]], "critical_lr_batch": [[1.0, 3.0]], "loss_batch": [[1.0, 1.0]], "loss_batch_after": [[2.0, 0.5]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> table = batch_prediction(record, Settings(), 0)
    >>> table.true_positive, table.true_negative
    (1, 1)
    """
    critical_lr = record["critical_lr_batch"].values[m]
    before, after = record["loss_batch"].values[m], record["loss_batch_after"].values[m]
    steps = np.isfinite(critical_lr) & np.isfinite(before) & ~np.isnan(after)
    steps &= running(record, settings, m)  # a frozen member predicts nothing
    return prediction((record["lr"].values[m] > critical_lr)[steps], (after > before)[steps])


def rise_predictions(record: xarray.Dataset, settings: Settings, events: list[list[Event]]) -> dict[str, list[Prediction]]:
    """How well lr > critical lr predicts three outcomes of a step, for each member.

    The outcomes: the loss of that batch rises; the loss of all examples rises; the step lies between the onset and the peak of a spike.

    Args:
      record: with the series of :func:`batch_prediction`, and ``loss_train``.
      settings: of the run.
      events: of the record.

    Returns:
      For each outcome one table per member.

    >>> import xarray
    >>> series = {"lr": 2.0, "critical_lr_batch": 1.0, "loss_batch": 1.0, "loss_batch_after": 2.0, "loss_train": 1.0}
    >>> record = xarray.Dataset({name: (("member", "step"), [[value] * 3]) for name, value in series.items()})
    >>> {name: tables[0].precision for name, tables in rise_predictions(record, Settings(), [[]]).items()}
    {'batch loss': 1.0, 'full training loss': 0.0, 'spikes of the full training loss': 0.0}
    """
    tables: dict[str, list[Prediction]] = {"batch loss": [], "full training loss": [], "spikes of the full training loss": []}
    for m in range(record.sizes["member"]):
        critical_lr = record["critical_lr_batch"].values[m]
        above, is_running = record["lr"].values[m] > critical_lr, running(record, settings, m)
        loss = record["loss_train"].values[m]
        tables["batch loss"].append(batch_prediction(record, settings, m))
        steps = np.isfinite(critical_lr[:-1]) & np.isfinite(loss[:-1]) & ~np.isnan(loss[1:]) & is_running[:-1]
        tables["full training loss"].append(prediction(above[:-1][steps], (loss[1:] > loss[:-1])[steps]))
        climbing: Any = np.zeros(len(loss), bool)
        for event in events[m]:
            climbing[event.onset : event.peak] = True
        tables["spikes of the full training loss"].append(prediction(above[:-1][steps], climbing[:-1][steps]))
    return tables


def pooled(tables: list[Prediction]) -> Prediction:
    """One table with the counts of all tables.

    Args:
      tables: one for each member.

    Returns:
      The table of the sums.

    >>> pooled([scores(1, 0, 0, 1), scores(0, 1, 0, 0)]).precision
    0.5
    """
    return scores(*(sum(int(table[i]) for table in tables) for i in range(4)))
