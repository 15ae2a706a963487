"""How far a run is: a bar where stderr is a terminal, elsewhere a line now and then for the log."""

from __future__ import annotations

import sys
import time

import numpy as np
from tqdm import tqdm

_SECONDS, _SHARE = 30, 0.1  # between two lines: one of them


class Progress:
    """Tells of the steps of a run, of which ``first`` are done already."""

    def __init__(self, steps: int, first: int):
        self._steps, self._told, self._time = steps, first, time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=first, unit="step", file=sys.stderr) if terminal else None

    def update(self, at: int, measured: dict[str, np.ndarray]) -> None:
        """``at``: steps that are done; ``measured``: the last chunk."""
        if self._bar is not None:
            self._bar.set_postfix_str(_text(measured))
            self._bar.update(at - self._bar.n)
        elif at == self._steps or at - self._told >= _SHARE * self._steps or time.monotonic() - self._time >= _SECONDS:
            print(f"step {at} of {self._steps} ({at / self._steps:.0%}), {_text(measured)}", flush=True)
            self._told, self._time = at, time.monotonic()

    def close(self) -> None:
        """Ends the bar of a terminal."""
        if self._bar is not None:
            self._bar.close()


def _text(measured: dict[str, np.ndarray]) -> str:
    """The median over members at the last step of a chunk."""
    text = f"loss {np.median(measured['loss_batch'][:, -1]):.3g}"
    if "critical_lr_batch" in measured:
        text += f", lr/critical {np.median(measured['lr'][:, -1] / measured['critical_lr_batch'][:, -1]):.2f}"
    return f"{text}, events {measured['spikes'][:, -1].sum()}"
