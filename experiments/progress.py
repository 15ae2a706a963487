"""The progress of a run: a bar on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import sys
import time

import numpy as np
from tqdm import tqdm

# A line is printed after so many seconds or this fraction of the steps, whichever comes first.
_SECONDS, _FRACTION = 30, 0.1


class Progress:
    """Shows how many steps of a run are done.

    Args:
      steps: of the whole run.
      first: steps that are done at the start.
    """

    def __init__(self, steps: int, first: int):
        self._steps, self._last_step, self._last_time = steps, first, time.monotonic()
        terminal = sys.stderr is not None and sys.stderr.isatty()  # None: closed
        self._bar = tqdm(total=steps, initial=first, unit="step", file=sys.stderr) if terminal else None

    def update(self, at: int, measured: dict[str, np.ndarray]) -> None:
        """Show a new chunk.

        Args:
          at: steps that are done.
          measured: series of the last chunk, each (members, steps).
        """
        if self._bar is not None:
            self._bar.set_postfix_str(_text(measured))
            self._bar.update(at - self._bar.n)
            return
        many_steps = at - self._last_step >= _FRACTION * self._steps
        if at == self._steps or many_steps or time.monotonic() - self._last_time >= _SECONDS:
            print(f"step {at} of {self._steps} ({at / self._steps:.0%}), {_text(measured)}", flush=True)
            self._last_step, self._last_time = at, time.monotonic()

    def close(self) -> None:
        """End the bar of a terminal."""
        if self._bar is not None:
            self._bar.close()


def _text(measured: dict[str, np.ndarray]) -> str:
    """Medians over the members that have not diverged, at the last measured step of a chunk; and the spikes of all members up to there."""
    spikes = measured["spikes"][:, -1].sum()
    going = ~measured["diverged"][:, -1]
    if not going.any():
        return f"all members diverged, spikes {spikes}"
    text = f"loss {np.median(measured['loss_batch'][going, -1]):.3g}"
    if "critical_lr_batch" in measured:
        with np.errstate(divide="ignore"):  # the critical lr of a dead network is 0
            ratios = measured["lr"][going] / measured["critical_lr_batch"][going]
        steps = np.flatnonzero(np.isfinite(ratios).any(0))  # NaN where it is not due, or the member has stopped
        text += f", lr / critical lr {np.nanmedian(ratios[:, steps[-1]]):.2f}" if len(steps) else ""
    diverged = f", {(~going).sum()} of {len(going)} members diverged" if not going.all() else ""
    return f"{text}, spikes {spikes}{diverged}"
