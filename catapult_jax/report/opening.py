"""The opening of a report: the facts of a run in one line, and what was found in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from catapult_jax.events import Event
from catapult_jax.report.analysis import uncertain_steps
from catapult_jax.report.members import Settings, dead_members, diverged_members, has_events, is_stochastic, running
from catapult_jax.report.page import Section, text
from catapult_jax.report.statistics import counted, range_text, values_text

if TYPE_CHECKING:
    import xarray


def opening(
    record: xarray.Dataset,
    settings: Settings,
    events: list[list[Event]],
    *,
    network: Sequence[str] = (),
    training: Sequence[str] = (),
    status: str = "",
    before: str = "",
) -> Section:
    """The facts of a run in one line, and one sentence of what was found.

    Args:
      record: series over (member, step).
      settings: of the run.
      events: of the record.
      network: facts that the record does not hold: data and network.
      training: the same: optimizer.
      status: how the run ended.
      before: words before what was found.

    Returns:
      A section without heading.

    >>> import xarray
    >>> record = xarray.Dataset(coords={"member": [0], "step": [0, 1], "lr0": ("member", [0.5])})
    >>> opening(record, Settings(examples=8), [[]], network=["digits"]).blocks[0].content["words"]
    'digits; 8 training examples; 1 member; lr 0.5; full batch; 2 steps.'
    """
    steps = counted(record.sizes["step"], "step")
    batch = f"batch size {settings.batch_size}" if settings.batch_size else "random batches"
    batch = batch if is_stochastic(settings) else "full batch"
    parts = [
        *network,
        *([counted(settings.examples, "training example")] if settings.examples else []),
        members_text(record),
        *lr_text(record),
        *training,
        batch,
        (status or steps) + inactive_text(record, settings),
    ]
    found = finding_text(record, settings, events)
    return Section("", [text("; ".join(parts) + "."), *([text(f"{before}{found}")] if found else [])])


def members_text(record: xarray.Dataset) -> str:
    """How many members a run has, and with which seeds.

    Args:
      record: its coordinate ``seed``, where present.

    Returns:
      Text.

    >>> import xarray
    >>> members_text(xarray.Dataset(coords={"seed": ("member", [3, 4, 5, 3, 4, 5])}))
    '6 members, seeds 3 to 5'
    """
    members = counted(record.sizes["member"], "member")
    if "seed" not in record.coords:
        return members
    seeds = {int(seed) for seed in record["seed"].values}
    return f"{members}, seed{'' if len(seeds) == 1 else 's'} {range_text(seeds)}"


def lr_text(record: xarray.Dataset) -> list[str]:
    """The learning rates at the start, and their multiples of the critical one.

    Args:
      record: its coordinates ``lr0`` and ``lr0_over_critical``, where present.

    Returns:
      Facts, as many as are known.

    >>> import xarray
    >>> lr_text(xarray.Dataset(coords={"lr0": ("member", [0.5, 0.7]), "lr0_over_critical": ("member", [1.5, 1.5])}))
    ['lr 0.5, 0.7', 'lr / critical lr at the start 1.5']
    """
    names = {"lr0": "lr", "lr0_over_critical": "lr / critical lr at the start"}
    return [f"{words} {values_text(record[name].values)}" for name, words in names.items() if name in record.coords]


def _percent(fraction: float) -> str:
    """In whole percent; below 10 % with two digits.

    >>> _percent(1.0), _percent(0.0123), _percent(0.0)
    ('100', '1.2', '0')
    """
    return f"{100 * fraction:.0f}" if fraction >= 0.1 else f"{100 * fraction:.2g}"


def finding_text(record: xarray.Dataset, settings: Settings, events: list[list[Event]]) -> str:
    """What was found, in one sentence: members with a catapult, its eigenspace, steps above the critical lr.

    Args:
      record: series over (member, step).
      settings: of the run.
      events: of the record.

    Returns:
      Text; empty if nothing was looked for.

    >>> import xarray
    >>> series = {"loss_train": [[1.0, 3.0, 1.0]], "lr": [[2.0] * 3], "critical_lr_batch": [[1.0, 3.0, 3.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> finding_text(record, Settings(), [[Event("catapult", 0, 1, 2, *[0] * 11)]])
    '1 of 1 member has a catapult; 0 % of its rise is in the top eigenspace; the critical lr was exceeded at 33 % of the steps.'
    """
    total, parts = record.sizes["member"], []
    if has_events(record, settings):
        is_known = "critical_lr_batch" in record and bool(record["critical_lr_batch"].notnull().any())
        kind = "catapult" if is_known else "spike of unknown kind" if "critical_lr_batch" in record else "spike"
        number = sum(any(event.kind == "catapult" or not is_known for event in row) for row in events)
        is_open = sum(
            any(event.end < 0 and event.kind in ("catapult", "unexplained", "unknown") for event in row) for row in events
        )
        which = f"of {is_open} the last one" if total > 1 else "which" if len(events[0]) == 1 else "the last one"
        ends = f", {which} is still open at the last step" if is_open else ""
        parts.append(f"{number} of {counted(total, 'member')} {'has' if 1 in (number, total) else 'have'} a {kind}{ends}")
        inside = [event.fraction_top for row in events for event in row if event.kind == "catapult"]
        inside = np.array(inside, float)
        inside = inside[np.isfinite(inside)]
        if len(inside):
            space = f"top-{settings.top_k} eigenspace" if settings.top_k else "top eigenspace"
            fraction = float(np.clip(np.median(inside), 0, 1))  # above 1: the loss outside falls in the meantime
            parts.append(f"{100 * fraction:.0f} % of its rise is in the {space}" + (" (median)" if len(inside) > 1 else ""))
    if {"lr", "critical_lr_batch"} <= set(record):
        critical_lr = record["critical_lr_batch"].values
        steps = ~np.isnan(critical_lr) & np.array([running(record, settings, m) for m in range(total)])
        if steps.any():
            fraction = float((record["lr"].values > critical_lr)[steps].mean())
            which = "steps" if np.isnan(critical_lr[:, 1:]).sum() == 0 else "measured steps"
            uncertain = float(uncertain_steps(record)[steps].mean())
            doubt = f", and at {_percent(uncertain)} % it is not certain" if uncertain > 0.1 else ""
            parts.append(f"the critical lr was exceeded at {_percent(fraction)} % of the {which}{doubt}")
    return "; ".join(parts) + "." if parts else ""


def inactive_text(record: xarray.Dataset, settings: Settings) -> str:
    """How many members diverged or are dead, as the end of a sentence.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      Text; empty if there are none.

    >>> import xarray
    >>> inactive_text(xarray.Dataset({"diverged": (("member", "step"), [[False, True]])}), Settings())
    ', 1 diverged'
    """
    numbers = {"diverged": len(diverged_members(record, settings)), "dead": len(dead_members(record, settings))}
    return "".join(f", {number} {word}" for word, number in numbers.items() if number)
