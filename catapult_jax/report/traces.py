"""What the interactive page of a record draws: its panels, which values of a series, and the spikes to zoom to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from catapult_jax.events import Event
from catapult_jax.report.curves import DIRECTIONAL
from catapult_jax.report.members import (
    ALL,
    Settings,
    by_setting,
    flags,
    is_stochastic,
    own_series,
    series_or_nan,
    spike_series,
)
from catapult_jax.report.page import number
from catapult_jax.report.panels import extent

if TYPE_CHECKING:
    import xarray
    from numpy.typing import ArrayLike

MOST_SPIKES = 500  # in the list
MARGIN = 50  # steps on either side of the onset, peak and close of a spike that no bin takes in
_POINTS = 240_000  # of a page; and twice as many near the spikes, at most


class Panel(NamedTuple):
    """One panel, with a line for each member."""

    name: str  # of the series
    words: str  # above it
    values: np.ndarray  # (member, step); NaN: not drawn
    log: bool  # whether its y axis is logarithmic
    line_at_one: bool = False


def panels(record: xarray.Dataset, settings: Settings) -> list[Panel]:
    """The panels whose series are on record, from top to bottom.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      Panels; one without a value that its axis can show is left out.

    >>> import xarray
    >>> series = {"loss_train": [[1.0, 3.0]], "lr": [[2.0] * 2], "critical_lr_batch": [[1.0, 4.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> [(panel.words, panel.values.tolist()) for panel in panels(record, Settings())]
    [('training loss', [[1.0, 3.0]]), ('learning rate over critical lr', [[2.0, 0.5]])]
    """
    stochastic, loss = is_stochastic(settings), spike_series(record)
    split = "loss_train" if {"loss_train_top", "loss_train_rest"} <= set(record) else "loss"
    batch = " of the batch" if stochastic else ""
    space = f"top-{settings.top_k} eigenspace" if settings.top_k else "top eigenspace"
    rows = [
        (loss, "loss of the batch" if stochastic and loss == "loss_batch" else "training loss", True, False),
        *([("loss_batch", "loss of the batch", True, False)] if stochastic and loss == "loss_train" else []),
        ("lr_over_critical_lr", "learning rate over critical lr", True, True),
        ("directional_batch", DIRECTIONAL, True, True),
        ("lambda_max_batch", f"largest kernel eigenvalue{batch}", True, False),
        *([("lambda_max_train", "largest kernel eigenvalue of the training set", True, False)] if stochastic else []),
        *([("lambda_max_probe", "largest kernel eigenvalue of the probe", True, False)] if stochastic else []),
        ("fraction_top", f"fraction of the loss{batch if split == 'loss' else ''} in the {space}", False, False),
        ("agop_alignment", "AGOP alignment", False, False),
        *((name, name, False, False) for name in own_series(record)),
    ]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        top, rest = series_or_nan(record, f"{split}_top"), series_or_nan(record, f"{split}_rest")
        derived = {"lr_over_critical_lr": ratio(record), "fraction_top": top / (top + rest)}
    stopped, shown = flags(record, "stopped"), []
    for name, words, log, line_at_one in rows:
        values = derived[name] if name in derived else series_or_nan(record, name)
        drawn = np.isfinite(values) & ~stopped & ((values > 0) | (not log))
        if drawn.any():
            shown.append(Panel(name, words, np.where(drawn, values, np.nan), log, line_at_one))
    return shown


def ratio(record: xarray.Dataset) -> np.ndarray:
    """Learning rate over critical learning rate.

    Args:
      record: with ``lr`` and ``critical_lr_batch``.

    Returns:
      Values, ``(member, step)``; NaN where one of the two is not on record.

    >>> import xarray
    >>> ratio(xarray.Dataset({name: (("member", "step"), [[2.0]]) for name in ("lr", "critical_lr_batch")})).tolist()
    [[1.0]]
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return series_or_nan(record, "lr") / series_or_nan(record, "critical_lr_batch")


def most_points(lines: int) -> int:
    """How many places of a line are drawn, so that a page stays small.

    Args:
      lines: of the page.

    Returns:
      A number for :func:`thinned`.

    >>> most_points(5), most_points(100)
    (4000, 2400)
    """
    return int(np.clip(_POINTS // max(lines, 1), 400, 4000))


def thinned(values: ArrayLike, most: int, whole: ArrayLike | None = None) -> np.ndarray:
    """The places of a series that are drawn: the smallest and the largest value of each bin of steps, and both ends.

    Args:
      values: finite numbers, ``(n,)``.
      most: places of the bins together. A series that is not longer is drawn whole.
      whole: places that are drawn whatever their values are: booleans, ``(n,)``; None: none.

    Returns:
      Places in rising order.

    >>> thinned([0.0, 1.0, 5.0, 1.0, 0.0, 1.0, -3.0, 1.0, 0.0], most=4).tolist()
    [0, 2, 5, 6, 8]
    """
    values = np.asarray(values, float)
    count = len(values)
    if count <= most:
        return np.arange(count)
    size = -(-count // max(most // 2, 1))  # steps of a bin
    bins = np.pad(values, (0, -count % size), mode="edge").reshape(-1, size)  # the first of equal values counts
    starts = np.arange(len(bins)) * size
    more = [] if whole is None else np.flatnonzero(whole)
    return np.unique(np.concatenate([[0, count - 1], starts + bins.argmin(1), starts + bins.argmax(1), more]).astype(int))


def near_spikes(events: Sequence[Event], steps: int, most: int) -> np.ndarray:
    """The steps near the onset, the peak or the close of a spike, for the highest spikes first, while there is room.

    Args:
      events: of one member.
      steps: of the record.
      most: steps, about.

    Returns:
      Booleans, ``(steps,)``.

    >>> near_spikes([Event("catapult", 300, 301, 302, *[1] * 11)], 1000, 500).nonzero()[0][[0, -1]].tolist()
    [250, 352]
    """
    near = np.zeros(steps, bool)
    for event in sorted(events, key=lambda event: -np.nan_to_num(event.peak_ratio)):
        for step in (event.onset, event.peak, event.end):
            near[max(step - MARGIN, 0) : step + MARGIN + 1] |= step >= 0
        if near.sum() >= most:
            break
    return near


def labels(record: xarray.Dataset, settings: Settings) -> list[str]:
    """What each member is called.

    Args:
      record: series over (member, step), with the coordinates of its members.
      settings: of the run.

    Returns:
      One label for each member.

    >>> import xarray
    >>> labels(xarray.Dataset(coords={"lr_given": ("member", [0.5]), "seed": ("member", [3])}), Settings())
    ['member 0, seed 3, lr 0.5']
    """
    groups = by_setting(record, settings)
    of_member = {m: label for label, members in groups for m in members if label != ALL}
    seeds = record["seed"].values if "seed" in record.coords else None
    seed = lambda m: [] if seeds is None else [f"seed {seeds[m]}"]
    setting = lambda m: [of_member[m]] if m in of_member else []
    return [", ".join([f"member {m}", *seed(m), *setting(m)]) for m in range(record.sizes["member"])]


def spike_rows(events: Sequence[Sequence[Event]], names: Sequence[str], last: int) -> list[dict[str, Any]]:
    """The spikes of the list: the highest of all members, in the order of members and steps.

    Args:
      events: of each member.
      names: of the members.
      last: step of the record.

    Returns:
      For each its ``member``, ``onset`` and ``close``, the steps ``start`` to ``stop`` that show it, and ``words`` and ``sentence``.

    >>> row, = spike_rows([[Event("catapult", 10, 11, 20, 20, 1.0, 1.0, 3.0, 3.0, *[1.0] * 6)]], ["member 0"], 99)
    >>> row["words"], row["start"], row["stop"]
    ('member 0: catapult at steps 10 to 20, 3 times its level', 5, 25)
    """
    pairs = [(m, event) for m, row in enumerate(events) for event in row]
    pairs = sorted(pairs, key=lambda pair: -np.nan_to_num(pair[1].peak_ratio))[:MOST_SPIKES]
    rows = []
    for m, event in sorted(pairs, key=lambda pair: (pair[0], pair[1].onset)):
        close, is_open = extent(event, last)
        until = f"{close}, open" if is_open else f"{close}"
        height = f"{number(event.peak_ratio)} times its level" if np.isfinite(event.peak_ratio) else "the loss is not finite"
        words = f"{names[m]}: {event.kind} at steps {event.onset} to {until}, {height}"
        margin = max(5, (close - event.onset) // 2)
        places = {
            "onset": int(event.onset),
            "close": int(close),
            "start": int(event.onset) - margin,
            "stop": int(close) + margin,
        }
        rows.append({"member": m, "words": words, "sentence": f"{names[m]}. {event}", **places})
    return rows
