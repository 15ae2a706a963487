"""Sections of a report, from records with a known answer."""

import numpy as np
import pytest
import xarray as xr

from catapult_jax.report import sections
from catapult_jax.report.analysis import run_events
from catapult_jax.report.members import Settings
from tests.small_records import BATCHES, DEAD_KERNEL, DIES, DROPS, FALLING, FULL, SPIKE, TO_A_LOSS, members_with, record


def table_of(section):
    """Header and rows of the first table of a section."""
    content = next(block.content for block in section.blocks if block.kind == "table")
    return content["header"], content["rows"]


def words_of(section):
    return " ".join(block.content["words"] for block in section.blocks if block.kind == "text")


def test_tables_of_members_that_diverged_or_are_dead():
    diverged = np.array([[False] * 6, [False] * 6, [False] * 5 + [True]])
    data = record([SPIKE, DIES, FALLING], 1.5, [DROPS, DEAD_KERNEL, DROPS], diverged=diverged)

    assert table_of(sections.dead(data, FULL))[1] == [["1", "3"]]
    assert table_of(sections.diverged(data, FULL))[1] == [["2", "5", "a spike did not close within 1000 steps"]]


def test_initialisation_has_one_row_for_members_with_equal_values():
    data = xr.Dataset(coords={"seed": ("member", [5, 6, 5, 5]), "lr0": ("member", [0.5, 0.5, 0.5, 0.25])})

    assert table_of(sections.initialisation(data))[1] == [["0 and 1 more", "5", "0.5"], ["1", "6", "0.5"], ["3", "5", "0.25"]]


def test_initialisation_has_the_coordinates_that_are_present():
    axes = {"lr0": [0.5], "critical_lr0": [0.25], "lr0_over_critical": [2.0]}
    data = xr.Dataset(coords={name: ("member", values) for name, values in axes.items()})

    header, rows = table_of(sections.initialisation(data))

    assert header == ("member", "initial lr / critical lr", "initial lr", "critical lr") and rows == [["0", "2", "0.5", "0.25"]]


def test_certainty_counts_uncertain_steps_and_searches_that_reached_their_tolerance():
    data = record(np.ones(3), 1.0, [1.0, np.nan, 2.0], converged_train=np.array([[1.0, 0.0, np.nan]]))

    words = words_of(sections.certainty(data))

    assert "at 1 of 2 measured steps: the crosses" in words
    assert "lower bound" not in words  # the kernel is exact
    far = words_of(sections.certainty(record(np.ones(3), 1.0, [0.5, np.nan, 2.0])))
    assert "It is certain at all 2 measured steps" in far and "crosses" not in far
    products = data.assign(lambda_max_batch_bound=(("member", "step"), np.zeros((1, 3))))
    assert "a step that is above is so for certain" in words_of(sections.certainty(products))
    assert "converged_train: the eigenvalue search reached its tolerance at 1 of 2 measured steps." in words


def test_ends_are_means_over_members_that_finished():
    data = members_with([0, 0, 1], [0, 1, 2], loss_test=[1.0, 3.0, 8.0])
    data["stopped"][2] = False

    header, rows = table_of(sections.ends(data, TO_A_LOSS, run_events(data, TO_A_LOSS)))

    assert header == ("setting", "members that finished", "catapults", "loss_train", "loss_test")
    ((label, finished, catapults, _, loss_test),) = rows
    assert (label, finished, catapults, loss_test.split()[0]) == ("1.67 x critical lr at start", "2 of 3", "0 [0, 0]", "2")


def test_spikes_have_a_row_each():
    data = record([SPIKE, FALLING], 1.5, DROPS, agop_alignment=np.full((2, 6), 0.5))

    section = sections.spikes(data, FULL, run_events(data, FULL))

    header, ((member, kind, onset, peak, end, *_, before, after),) = table_of(section)
    assert header[-2:] == ("alignment before", "alignment after") and (before, after) == ("0.5", "0.5")
    assert (member, kind, onset, peak, end) == ("0", "catapult", "0", "2", "3")
    assert "The first one: Catapult: the loss rises from 1 at step 0 to 4 at step 2" in words_of(section)


def test_spikes_beyond_the_limit_are_counted(monkeypatch):
    monkeypatch.setattr(sections, "_MOST_EVENTS", 1)
    data = record([SPIKE, SPIKE], 1.5, DROPS)

    section = sections.spikes(data, FULL, run_events(data, FULL))

    assert len(table_of(section)[1]) == 1 and "The first 1 of 2; all are in events.jsonl." in words_of(section)


def test_spikes_of_random_batches_are_not_looked_for():
    data = record(SPIKE, 1.5, DROPS).drop_vars("loss_train")

    section = sections.spikes(data, BATCHES, run_events(data, BATCHES))

    assert "Not looked for: this needs the training loss of every step, and none that is negative." in words_of(section)


def test_counts_have_scores_above_six_standard_deviations():
    loss = np.where(np.arange(200) % 2, 1.0, 1.01)
    loss[150] = 1.1  # no spike of any factor

    _, rows = table_of(sections.counts(record(loss, 1.0, 2.0), FULL))

    assert rows == [["0", "0", "0", "0", "0", "0", "1"]]


def test_predictions_need_the_loss_after_the_step():
    data = record(SPIKE, 1.5, DROPS)
    after = data.assign(loss_batch_after=data["loss_batch"] * 2)

    assert sections.predictions(data, FULL, [[]]) == []
    first, *rest = sections.predictions(after, FULL, run_events(after, FULL))
    assert first.heading == "Exceedance as a predictor of a rise in the step"
    assert [section.heading for section in rest] == ["batch loss", "full training loss", "spikes of the full training loss"]
    assert table_of(rest[0])[1][0][:5] == ["0", "2", "0", "4", "0"]  # above at two steps; the loss of every batch rises


@pytest.mark.parametrize("series", ["loss_train", "lr", "lambda_max_batch", "critical_lr_batch", "stage", "error_test"])
def test_all_sections_of_a_single_series(series):
    data = record(SPIKE, 1.5, DROPS, error_test=np.ones((1, 6)))[[series]].drop_vars(("seed", "raises", "lr_given"))

    headings = [s.heading for s in sections.all_sections(data, Settings(), run_events(data, Settings()), {}) if s.blocks]

    has_loss = series == "loss_train"
    assert ("Number of spikes for each factor" in headings) == has_loss and headings[0] == ""
