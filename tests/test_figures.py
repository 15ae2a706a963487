"""Figures: which are written, with which captions, into which files."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from catapult_jax.report import analysis, curves, figures
from catapult_jax.report.members import Settings
from experiments.arms import ARMS
from tests.small_records import CAUSES, DROPS, FULL, SPIKE, TO_A_LOSS, arms_record, members_with, record, settings_of


@pytest.mark.parametrize(
    ("series", "names"),
    [
        (("loss_train",), {"loss"}),
        (("loss_batch", "error_test"), {"loss", "scores"}),
        (("lr", "critical_lr_batch"), {"lr_over_critical_lr"}),
        (("lr", "critical_lr_batch", "error_test"), {"lr_over_critical_lr", "against_critical_steps"}),
        (("lr", "critical_lr_batch", "error_test", "loss_train"), {"lr_over_critical_lr", "loss"}),
        (("agop_alignment", "loss_test"), {"agop_alignment", "alignment_against_test_loss"}),
        (("lambda_max_batch",), {"lambda_max"}),
        (("stage",), set()),
    ],
)
def test_write_all_leaves_out_figures_without_their_series(series, names, tmp_path, plain_figures):
    data = record(SPIKE, 1.5, DROPS, **dict.fromkeys(("error_test", "loss_test", "agop_alignment"), np.ones((1, 6))))[
        list(series)
    ]

    files = figures.write_all(data, Settings(), "mine", tmp_path / "new" / "figures")

    assert set(files) == {path.stem for path in (tmp_path / "new" / "figures").iterdir()} == names


def test_write_all_finds_events_once(tmp_path, plain_figures, monkeypatch):
    calls = []
    monkeypatch.setattr(figures, "run_events", lambda *a: calls.append(a) or analysis.run_events(*a))
    data = members_with([0, 1], [0, 1], loss_test=[1.0, 2.0], agop_alignment=[0.1, 0.2])

    files = figures.write_all(data, TO_A_LOSS, "mine", tmp_path)

    assert len(calls) == 1 and {"loss", "agop_alignment", "against_catapults"} <= set(files)


def test_write_all_has_captions_with_the_title_and_n(tmp_path, plain_figures):
    data = record([SPIKE, SPIKE], 1.5, DROPS, error_test=np.ones((2, 6)))

    files = figures.write_all(data, FULL, "mine", tmp_path)

    assert files and all(caption.startswith("mine. ") for _, caption in files.values())
    assert all(caption.endswith("n = 2 members: 1 setting, 2 seeds.") for _, caption in files.values())


def test_write_all_says_how_many_members_finished(tmp_path, plain_figures):
    data = members_with([0, 1], [0, 1], loss_test=[1.0, 2.0], agop_alignment=[0.1, 0.2])
    data["stopped"][1] = False

    files = figures.write_all(data, TO_A_LOSS, "mine", tmp_path)

    for name in ("against_catapults", "alignment_against_test_loss"):
        assert files[name][1].endswith("n = 1 member that finished, of 2; 1 setting.")
    assert "95 % bootstrap interval over seeds" in files["against_catapults"][1]


@pytest.mark.parametrize(("finish", "words"), [(True, "n = 8 seeds that"), (False, "of 8. Panel (a) shows all members.")])
def test_write_all_says_how_many_seeds_finished_in_every_arm(finish, words, tmp_path, plain_figures):
    data = arms_record().assign_attrs(interventions=list(ARMS))
    data["stopped"][:] &= finish

    files = figures.write_all(data, settings_of(CAUSES), "mine", tmp_path)

    assert words in files["arms"][1]


def test_sizes_says_that_some_settings_are_not_drawn():
    data = record(np.ones((13, 2)), 1.0, 1.0).assign_coords(lr_given=("member", np.arange(13.0)))

    assert figures.sizes(data, FULL) == "n = 13 members: 13 settings, 13 seeds. The first 12 settings are drawn."


def test_save_writes_pixels_and_a_pdf(tmp_path):
    figure = curves.loss_figure(record(SPIKE, 1.5, DROPS), FULL)

    path = figures.save(figure, tmp_path / "loss")

    pdf = (tmp_path / "loss.pdf").read_bytes()
    assert path == tmp_path / "loss.png" and pdf.startswith(b"%PDF") and b"FontFile2" in pdf  # a TrueType font
    pixels = np.asarray(Image.open(path).convert("RGB"))
    blue = (np.abs(pixels.astype(int) - [0, 114, 178]).max(-1) < 30).sum()  # the colour of the loss
    assert pixels.shape[1] == 3.25 * 200 and pixels.shape[0] > 300 and blue > 100


_DRAW = """
import sys
from pathlib import Path
from catapult_jax.report import curves, figures
from tests.small_records import DROPS, FULL, SPIKE, record
figures.save(curves.loss_figure(record(SPIKE[:3], 1.5, DROPS[:3]), FULL), Path(sys.argv[1]))
"""


def test_save_writes_the_same_bytes_in_another_process(tmp_path):
    figures.save(curves.loss_figure(record(SPIKE[:3], 1.5, DROPS[:3]), FULL), tmp_path / "one")

    subprocess.run([sys.executable, "-c", _DRAW, tmp_path / "two"], check=True, timeout=300)

    for suffix in ("pdf", "png"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
