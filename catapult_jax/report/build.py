"""The report of a record: its events, its figures, and one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from catapult_jax import records
from catapult_jax.report import figures
from catapult_jax.report.analysis import event_rows, run_events
from catapult_jax.report.members import Settings, until_diverged
from catapult_jax.report.page import render
from catapult_jax.report.sections import all_sections

if TYPE_CHECKING:
    import xarray


def build_report(record: xarray.Dataset, settings: Settings | None = None, *, title: str, folder: str | Path) -> Path:
    """Writes ``events.jsonl``, ``figures/`` and ``report.html`` from a record.

    A figure or section whose series are not on record is left out.

    Args:
      record: series over (member, step), named as the instruments of :mod:`catapult_jax.training.instruments`: ``loss_train`` or
        ``loss_batch``, ``lr``, ``critical_lr_batch``, ``lambda_max_batch`` and so on. :func:`catapult_jax.open_record` returns such a record.
      settings: of the run; None: the defaults.
      title: of the page; the captions of its figures begin with it.
      folder: for the files; it is created.

    Returns:
      The path of the page.

    Raises:
      ValueError: a record without members or steps, or ``batch_size`` without ``examples``.

    >>> import tempfile, xarray
    >>> series = {"loss_train": [[1.0, 3.0, 1.0]], "lr": [[2.0] * 3], "critical_lr_batch": [[1.0] * 3]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = build_report(record, title="mine", folder=folder)
    ...     sorted(path.name for path in page.parent.iterdir())
    ['events.jsonl', 'events.jsonl.sha256', 'figures', 'report.html']
    """
    settings, folder, record = settings or Settings(), Path(folder), prepared(record)
    events = run_events(record, settings)
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json_lines(folder / "events.jsonl", event_rows(record, settings, events))
    files = figures.write_all(record, settings, title, folder / "figures", events)
    page = folder / "report.html"
    records.write_text(page, render(title, all_sections(record, settings, events, files)))
    return page


def prepared(record: xarray.Dataset) -> xarray.Dataset:
    """A record in memory, without what comes after a divergence.

    Args:
      record: series over (member, step).

    Returns:
      The record.

    Raises:
      ValueError: no members or no steps.

    >>> import xarray
    >>> prepared(xarray.Dataset({"loss_train": (("member", "step"), [[1.0, 3.0]])})).sizes["step"]
    2
    """
    for axis in ("member", "step"):
        if not record.sizes.get(axis, 0):
            raise ValueError(f"record.sizes={dict(record.sizes)!r}; allowed: one {axis} or more")
    return until_diverged(record.compute())
