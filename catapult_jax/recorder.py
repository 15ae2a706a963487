"""On the host: what :func:`catapult_jax.watch` measures, into a record on disk and into the loggers of others."""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from catapult_jax import records
from catapult_jax.monitor import Watch, WatchState
from catapult_jax.provenance import environment
from catapult_jax.sinks import Sink
from catapult_jax.watched_step import NAMES

if TYPE_CHECKING:
    from jaxtyping import PyTree

PREFIX = "catapult/"
_SERIES = {name: series for series, name in NAMES.items()}  # metric -> series of the record
_EACH_STEP = {
    PREFIX + name for name in ("loss", "lr", "event", "spikes", "spike_score")
}  # metrics of steps without a measurement, too
_TAKEN = ("step", "member", "run")  # names of the axes of the record
_NAME = re.compile(r"[^\\\0-\x1f]{1,150}")  # of a series, which is a folder on disk


class Recorder:
    """Takes the metrics of each step, and writes the record that :func:`catapult_jax.open_record` and the report read.

    Metrics stay on the device until ``flush_every`` steps are there, so that no step waits for the host. A kill loses what was not
    flushed. So call :meth:`flush` where you save a checkpoint of the loop. To go on from it, open the same directory; steps from there on
    are written again.

    >>> import tempfile
    >>> from catapult_jax import watch
    >>> watching = watch(lambda w, x: x @ w, loss="mse", preset="economy")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Recorder(folder, watching, steps=2) as recorder:
    ...         for step, loss in enumerate((4.0, 1.0)):
    ...             recorder.write(step, {"catapult/loss": loss, "catapult/lr": 0.1})
    ...     records.open_record(folder)["loss_batch"].values.tolist()
    [[4.0, 1.0]]
    """

    def __init__(
        self, directory: str | Path, watch: Watch, *, steps: int, sinks: Iterable[Sink] = (), flush_every: int = 100
    ) -> None:
        """Opens or creates the record.

        Args:
          directory: of the run; it is created.
          watch: whose metrics are written.
          steps: of the whole run; the record has room for so many, and can't grow. Room that is not used costs nothing.
          sinks: each is called with ``(step, metrics)`` for every step, without the metrics that are NaN; see :mod:`catapult_jax.sinks`.
          flush_every: steps between two writings.

        Raises:
          ValueError: a number below 1; a path that is no directory, or holds a record of another number of steps or of another watch.
          ImportError: the extra ``records`` is not installed.
        """
        for name, value in (("steps", steps), ("flush_every", flush_every)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name}={value!r}; allowed: a whole number, 1 or more")
        _need_zarr()
        self.directory, self.watch, self.steps = Path(os.path.expanduser(directory)), watch, int(steps)
        self._sinks, self._flush_every = tuple(sinks), flush_every
        self._waiting: list[tuple[int, Mapping[str, Any]]] = []
        self._warned: set[str] = set()
        self._own: list[str] = []  # series of the user's own metrics
        self._next: int | None = None  # step after the last one that was given; None: none was given
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"directory={str(directory)!r} is a file, or below one; allowed: a directory") from error
        self._done = records.steps_done(self.directory)
        self._names = set(map(str, records.open_record(self.directory).data_vars)) if self._done else set()
        if self._done:
            self._compare_settings()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step.

        Args:
          step: its number; steps that are left out are NaN on record.
          metrics: of ``watch.update``; other scalars may be among them. The first step has all of them; later ones may leave some out,
            which are NaN on record.

        Raises:
          ValueError: the step is not after the last one, or beyond ``steps``; a metric that is new, has the series of another one, or is no
            number.
        """
        step = int(step)
        self._check(step, metrics)
        first = 0 if self._next is None else self._next
        if not first <= step < self.steps:
            allowed = f"{first} to {self.steps - 1}" if first < self.steps else "none, all are written"
            raise ValueError(f"step={step} of a record with steps={self.steps}; allowed: {allowed}")
        if step == 0 and self._done:
            warnings.warn(
                f"the record in {self.directory} has {self._done} steps; they are written again from step 0 on. Another directory keeps them.",
                stacklevel=2,
            )
        if self._next is None and 0 < self._done < step:
            warnings.warn(
                f"steps {self._done} to {step - 1} are not on record; allowed: flush() where the loop saves its checkpoint",
                stacklevel=2,
            )
        self._names = self._names or set(map(_series_name, metrics))
        self._own = self._own or sorted(_series_name(metric) for metric in metrics if not metric.startswith(PREFIX))
        self._waiting.append((step, metrics))
        self._next = step + 1
        if len(self._waiting) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Writes what was taken so far."""
        if not self._waiting:
            return
        rows = [(step, _floats(metrics)) for step, metrics in jax.device_get(self._waiting)]
        self._warn_of_doubts(rows)
        if (done := records.steps_done(self.directory)) != self._done:
            raise ValueError(
                f"the record in {self.directory} has {done} steps, not {self._done}: another recorder writes there; allowed: a directory for each"
            )
        first = min(self._done, rows[0][0])
        series = _series(rows, first, self._names)
        if not self._done:
            self._create(series)
        records.write(self.directory, first, series, over=False)
        self._waiting = []  # not before: if the disk is full, the next flush writes these steps
        self._done = rows[-1][0] + 1
        self._to_each_sink(lambda sink: _pass_on(sink, rows))

    def _check(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Checks the names and values of a step, without waiting for the device."""
        if not metrics:
            raise ValueError(f"metrics of step {step} are empty; allowed: those of watch.update")
        of_series: dict[str, str] = {}
        for metric, value in metrics.items():
            if not isinstance(metric, str) or not _is_number(value):
                raise ValueError(f"metric {metric!r} of step {step} is {value!r:.80}; allowed: a name, and one number")
            name = _series_name(metric)
            if name in records.RESERVED or name in _TAKEN or not name.strip(".") or not _NAME.fullmatch(name):
                raise ValueError(
                    f"metric {metric!r} is no name for a series; allowed: another name than {', '.join(_TAKEN)}, of at most 150 letters"
                )
            if name in of_series:
                raise ValueError(
                    f"metrics {of_series[name]!r} and {metric!r} are both the series {name!r}; allowed: another name for one of them"
                )
            of_series[name] = metric
        if self._names and (new := sorted(set(of_series) - self._names)):
            raise ValueError(
                f"metric {of_series[new[0]]!r} of step {step} is new; allowed: those of the first step on record, NaN where one is not measured, or "
                "another directory"
            )

    def _compare_settings(self) -> None:
        """Refuses to go on with a record that another watch, or a run of another length, began."""
        try:
            there = records.read_json(self.directory / records.WATCH)
            before, steps = there["watch"], there["steps"]
        except (FileNotFoundError, KeyError) as error:
            raise ValueError(
                f"directory={str(self.directory)!r} holds a record without a whole {records.WATCH}; allowed: the directory of a Recorder, or a new one"
            ) from error
        if steps != self.steps:
            raise ValueError(
                f"steps={self.steps!r} in {self.directory}; allowed: {steps}, as in the record there, or another directory"
            )
        for name, value in self.watch.settings._asdict().items():
            if before.get(name, value) != value:
                raise ValueError(
                    f"{name}={value!r} of the watch, in {self.directory}; allowed: {before[name]!r}, as in the record there, or another directory"
                )

    def _warn_of_doubts(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Warns once where the watch finds another loss than the training step, or no critical lr: then it measures something else."""
        measured = [(step, metrics) for step, metrics in rows if _is_measured(metrics)]
        for step, metrics in measured:
            of_step, of_watch = (metrics.get(PREFIX + name, math.nan) for name in ("loss", "loss_of_watch"))
            is_lost = PREFIX + "loss_of_watch" in metrics and math.isnan(of_watch) and math.isfinite(of_step)
            if is_lost or abs(of_watch - of_step) > records.LOSS_TOLERANCE * abs(of_step):
                self._warn(
                    "loss",
                    f"step {step}: the watch finds a loss of {of_watch:.4g}, the training step gave {of_step:.4g}; give params before the update, "
                    "batch, loss, and what apply_fn closes over, as in the training step",
                )
        of_critical = [metrics.get(PREFIX + "critical_lr", 0.0) for _, metrics in measured]
        if measured and not self._done and all(map(math.isnan, of_critical)):
            self._warn(
                "critical lr",
                f"catapult/critical_lr is NaN at all measured steps ({len(measured)}): the optimizer has no rule, or updates, opt_state, "
                "opt_state_before and gradient are not those of one step of it",
            )

    def _warn(self, of: str, words: str) -> None:
        if of not in self._warned:
            self._warned.add(of)
            warnings.warn(words, stacklevel=5)

    def close(self) -> None:
        """Writes the rest, and closes the sinks."""
        self.flush()
        self._to_each_sink(lambda sink: getattr(sink, "close", lambda: None)())

    def _to_each_sink(self, do: Callable[[Sink], None]) -> None:
        """Every sink gets its turn, also after one that raises; then the error is raised."""
        with contextlib.ExitStack() as stack:
            for sink in reversed(self._sinks):
                stack.callback(do, sink)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _create(self, series: dict[str, np.ndarray]) -> None:
        about = {"steps": self.steps, "watch": self.watch.settings._asdict(), "environment": environment()}
        records.write_json(self.directory / records.WATCH, about)
        records.create(
            self.directory,
            members={"run": np.array([0])},
            steps=self.steps,
            shapes=series,
            about={"title": self.directory.name, "own_metrics": self._own},
        )


class Monitor:
    """For trainers that are not yours: a callable on the host that owns its own compiled program.

    It measures at every ``every``-th call that is no skipped one, and costs a program of its own, so the step of the trainer stays as it is.

    >>> from catapult_jax import watch
    >>> model, w = (lambda w, x: x @ w), np.zeros(2, np.float32)
    >>> ask = Monitor(watch(model, loss="mse", preset="economy"), w)
    >>> batch = np.array([[3.0, 4.0]], np.float32), np.array([1.0], np.float32)
    >>> round(ask(0, params=w, batch=batch, new_params=0.05 * np.array([6.0, 8.0], np.float32), loss=1.0)["catapult/directional"], 3)
    0.8
    """

    def __init__(self, watch: Watch, params: PyTree, recorder: Recorder | None = None) -> None:
        """Takes the watch and the first parameters.

        Args:
          watch: what is measured.
          params: parameters before the first step.
          recorder: takes the metrics of each call.
        """
        self.watch, self.recorder = watch, recorder
        self.state: WatchState = jax.jit(watch.init)(params)
        self._update = jax.jit(watch.update, static_argnames=("due",))

    def __call__(self, step: int, **given: Any) -> dict[str, float]:
        """Measures one step.

        Args:
          step: its number.
          given: as ``watch.update`` takes it, without ``due``.

        Returns:
          The metrics as Python numbers.
        """
        due = not given.get("skipped", False) and int(self.state.step) % self.watch.settings.every == 0
        self.state, metrics = self._update(self.state, **given, due=bool(due))
        if self.recorder is not None:
            self.recorder.write(step, metrics)
        return _floats(jax.device_get(metrics))


def _need_zarr() -> None:
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise ImportError("Recorder needs zarr: install catapult_jax with its extra 'records', or 'report'") from error


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _is_measured(metrics: Mapping[str, float]) -> bool:
    """Whether the watch measured at this step: more is known than what it passes on at every step."""
    return any(not math.isnan(value) for name, value in metrics.items() if name.startswith(PREFIX) and name not in _EACH_STEP)


def _pass_on(sink: Sink, rows: list[tuple[int, dict[str, float]]]) -> None:
    for step, metrics in rows:
        sink(step, {name: value for name, value in metrics.items() if not math.isnan(value)})


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return True
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    return np.shape(value) == () and kind in set("biufV")  # V: bfloat16


def _series(rows: list[tuple[int, dict[str, float]]], first: int, names: set[str]) -> dict[str, np.ndarray]:
    """Series ``(1, n)`` from step ``first`` on; NaN where a step or a metric is left out."""
    series = {name: np.full((1, rows[-1][0] + 1 - first), np.nan, np.float32) for name in sorted(names)}
    for step, metrics in rows:
        for metric, value in metrics.items():
            series[_series_name(metric)][0, step - first] = value
    return series


def _series_name(metric: str) -> str:
    """Name on record: that of the instruments where they have one. A name in a path of files has no slash."""
    name = metric.removeprefix(PREFIX)
    return _SERIES.get(name, name).replace("/", ".")
