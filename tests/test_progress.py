"""The progress of a run on the screen."""

import io

import numpy as np

from experiments import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_without_a_terminal_prints_every_tenth(capsys):
    display = progress.Progress(200, 0)
    for at in range(5, 201, 5):
        display.update(at, {"loss_batch": np.full((2, 5), 0.25), "spikes": np.ones((2, 5), int)})
    display.close()
    out = capsys.readouterr().out.splitlines()
    assert (
        len(out) == 10
        and out[0] == "step 20 of 200 (10%), loss 0.25, spikes 2"
        and out[-1].startswith("step 200 of 200 (100%)")
    )


def test_progress_shows_medians_over_members(capsys):
    display = progress.Progress(2, 0)

    display.update(
        2,
        {
            "loss_batch": np.array([[9.0, 1.0], [9.0, 2.0], [9.0, 9.0]]),
            "lr": np.full((3, 2), 3.0),
            "critical_lr_batch": np.array([[9.0, 1.0], [9.0, 2.0], [9.0, 6.0]]),
            "spikes": np.array([[0, 1], [0, 0], [0, 2]]),
        },
    )

    assert capsys.readouterr().out == "step 2 of 2 (100%), loss 2, lr / critical lr 1.50, spikes 3\n"


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    display = progress.Progress(10, 4)

    display.update(10, {"loss_batch": np.full((1, 6), 0.5), "spikes": np.zeros((1, 6), int)})
    display.close()

    assert "10/10" in terminal.getvalue() and "loss 0.5, spikes 0" in terminal.getvalue()
    assert capsys.readouterr().out == ""
