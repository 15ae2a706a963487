"""Sinks of a :class:`catapult_jax.Recorder`: TensorBoard, W&B, trackio and CSV. Any function ``(step, metrics)`` is a sink, too.

Each needs its own package, which is imported when the sink is made.
"""

from __future__ import annotations

import csv
import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catapult_jax.events import KINDS

Sink = Callable[[int, dict[str, float]], None]  # (step, metrics by name) -> None; a method close is called at the end
_EVENT = "catapult/event"


class TensorBoard:
    """Scalars for TensorBoard, by ``tensorboardX``."""

    def __init__(self, directory: str | Path) -> None:
        """Opens a log.

        Args:
          directory: of the log.

        Raises:
          ImportError: ``tensorboardX`` is not installed.
        """
        self._writer = _module("tensorboardX", "tensorboard").SummaryWriter(os.path.expanduser(directory))

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the log."""
        self._writer.close()


class WandB:
    """Metrics for Weights & Biases; ``WANDB_MODE=offline`` keeps them on this machine. Events are alerts."""

    def __init__(self, **options: Any) -> None:
        """Starts a run.

        Args:
          options: of ``wandb.init``.

        Raises:
          ImportError: ``wandb`` is not installed.
        """
        self._run = _module("wandb", "wandb").init(**options)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of a step."""
        self._run.log(metrics, step=step)
        if text := event_text(step, metrics):
            self._run.alert(title=text.partition(":")[0], text=text)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class Trackio:
    """Metrics for trackio. Events are alerts."""

    def __init__(self, project: str, **options: Any) -> None:
        """Starts a run.

        Args:
          project: of the run.
          options: of ``trackio.init``.

        Raises:
          ImportError: ``trackio`` is not installed.
        """
        self._trackio = _module("trackio", "trackio")
        self._trackio.init(project=project, **options)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of a step."""
        self._trackio.log(metrics, step=step)
        if text := event_text(step, metrics):
            self._trackio.alert(title=text.partition(":")[0], text=text)

    def close(self) -> None:
        """Ends the run."""
        self._trackio.finish()


class Csv:
    """A file with a line ``step,name,value`` for each metric of each step.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sink = Csv(Path(folder, "metrics.csv"))
    ...     sink(0, {"catapult/loss": 1.0})
    ...     sink(1, {"catapult/loss": 0.5})
    ...     print(Path(folder, "metrics.csv").read_text().strip())
    step,name,value
    0,catapult/loss,1.0
    1,catapult/loss,0.5
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file.

        Args:
          path: of the file; its folder is created. Lines are added to a file that is there: of a step that is written again the last counts.
        """
        self._path = Path(os.path.expanduser(path))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists() or not self._path.stat().st_size:
            self._path.write_text("step,name,value\n", "utf-8")

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows((step, name, value) for name, value in metrics.items())


def event_text(step: int, metrics: dict[str, float]) -> str:
    """A sentence on an event that ends at a step; empty without one.

    Args:
      step: of the metrics.
      metrics: of ``watch.update``.

    Returns:
      The sentence.

    >>> event_text(12, {"catapult/event": 1.0, "catapult/loss": 0.5})
    'catapult: a spike of the loss ended at step 12, with loss 0.5'
    """
    number = metrics.get(_EVENT, 0)
    kind = "none" if math.isnan(number) else KINDS[int(number)]
    return (
        ""
        if kind == "none"
        else f"{kind}: a spike of the loss ended at step {step}, with loss {metrics.get('catapult/loss'):.4g}"
    )


def _module(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this sink needs {name}: install it, or catapult_jax with its extra {extra!r}") from error
