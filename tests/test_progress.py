"""The progress of a run on the screen."""

import io

import numpy as np
import pytest

from experiments import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_without_a_terminal_prints_every_tenth(capsys):
    display = progress.Progress(200, 0)
    for at in range(5, 201, 5):
        display.update(
            at, {"loss_batch": np.full((2, 5), 0.25), "spikes": np.ones((2, 5), int), "diverged": np.zeros((2, 5), bool)}
        )
    display.close()
    out = capsys.readouterr().out.splitlines()
    assert (
        len(out) == 10
        and out[0] == "step 20 of 200 (10%), loss 0.25, spikes 2"
        and out[-1].startswith("step 200 of 200 (100%)")
    )


def test_progress_without_a_stream_for_errors(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", None)  # closed, as by 2>&-
    progress.Progress(1, 0).update(1, {name: np.zeros((1, 1), bool) for name in ("loss_batch", "spikes", "diverged")})

    assert capsys.readouterr().out.startswith("step 1 of 1 (100%)")


def test_progress_shows_medians_over_members(capsys):
    display = progress.Progress(2, 0)

    display.update(
        2,
        {
            "loss_batch": np.array([[9.0, 1.0], [9.0, 2.0], [9.0, 9.0]]),
            "lr": np.full((3, 2), 3.0),
            "critical_lr_batch": np.array([[9.0, 1.0], [9.0, 2.0], [9.0, 6.0]]),
            "spikes": np.array([[0, 1], [0, 0], [0, 2]]),
            "diverged": np.zeros((3, 2), bool),
        },
    )

    assert capsys.readouterr().out == "step 2 of 2 (100%), loss 2, lr / critical lr 1.50, spikes 3\n"


@pytest.mark.parametrize(
    ("critical", "text"),
    [([[1.0, np.nan], [2.0, np.nan]], ", lr / critical lr 2.25"), ([[np.nan, 1.0], [np.nan, np.nan]], ", lr / critical lr 3.00"),
     ([[np.nan, np.nan]] * 2, "")],
    ids=["not due", "a member stopped", "never"],
)  # fmt: skip
def test_progress_shows_the_last_measured_step(critical, text, capsys):
    display = progress.Progress(2, 0)

    measured = {
        "loss_batch": np.ones((2, 2)),
        "lr": np.full((2, 2), 3.0),
        "spikes": np.zeros((2, 2), int),
        "diverged": np.zeros((2, 2), bool),
    }
    display.update(2, measured | {"critical_lr_batch": np.array(critical)})

    assert capsys.readouterr().out == f"step 2 of 2 (100%), loss 1{text}, spikes 0\n"


@pytest.mark.parametrize(
    ("diverged", "text"),
    [([False, True, True], "loss 0.5, lr / critical lr 1.50, spikes 6, 2 of 3 members diverged"), ([True, True, True], "all members diverged, spikes 6")],
    ids=["two of three", "all"],
)  # fmt: skip
def test_progress_leaves_out_diverged_members(diverged, text, capsys):
    measured = {
        "loss_batch": np.array([[0.5], [np.inf], [np.nan]]),
        "lr": np.full((3, 1), 3.0),
        "critical_lr_batch": np.array([[2.0], [0.0], [0.0]]),
        "spikes": np.array([[1], [2], [3]]),
        "diverged": np.array(diverged)[:, None],
    }

    progress.Progress(1, 0).update(1, measured)

    assert capsys.readouterr().out == f"step 1 of 1 (100%), {text}\n"


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    display = progress.Progress(10, 4)

    display.update(
        10, {"loss_batch": np.full((1, 6), 0.5), "spikes": np.zeros((1, 6), int), "diverged": np.zeros((1, 6), bool)}
    )
    display.close()

    assert "10/10" in terminal.getvalue() and "loss 0.5, spikes 0" in terminal.getvalue()
    assert capsys.readouterr().out == ""
