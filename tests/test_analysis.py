"""What records with a known answer say."""

import numpy as np
import pytest

from catapult_jax import find_events
from experiments import analysis, verdicts
from tests.small_records import AGOP, DEAD_KERNEL, DIES, DROPS, FALLING, FIG3, SGD, SMALL_BATCHES, SPIKE, members_with, record


def test_shares_of_other_losses_are_of_the_split_itself():
    """The parts of a loss that is no mse add up to half the Newton decrement, here ten times the loss."""
    loss = np.array([SPIKE])
    made = record(loss, 1.5, DROPS, top=loss * 3.0).assign(loss_rest=(("member", "step"), loss * 7.0))
    (event,) = analysis.run_events(made, FIG3)[0]
    assert event.fraction_top == pytest.approx(0.3)


def test_no_events_without_the_training_loss():
    """The noise of the batch loss is no spike."""
    made = record(SPIKE, 1.5, DROPS).drop_vars("loss_train")
    assert analysis.run_events(made, SGD) == [[]] and len(analysis.run_events(made, FIG3)[0]) == 1


def test_the_last_value_of_a_member_that_stopped_is_one_of_its_end():
    made = members_with([0, 0], [0, 1], loss_test=[1.0, 2.0])
    made["loss_test"][0, -1] = np.nan  # measured before its end alone
    assert np.isnan(analysis.last(made, AGOP, "loss_test")[0]) and analysis.last(made, AGOP, "loss_test")[1] == 2


def kinds(made, config):
    return [[e.kind for e in found] for found in analysis.run_events(made, config)]


def test_a_death_is_no_catapult():
    made = record([SPIKE, DIES], 1.5, [DROPS, DEAD_KERNEL])
    assert kinds(made, FIG3) == [["catapult"], ["death"]]
    assert analysis.catapult_counts(made, FIG3).tolist() == [1, 0]
    assert analysis.dead_members(made, FIG3) == [{"member": 1, "step": 3}]
    assert analysis.finished(made, FIG3).tolist() == [True, False]
    assert np.isnan(analysis.last(made, FIG3, "loss_train")[1]) and analysis.last(made, FIG3, "loss_train")[0] == 0.8


@pytest.mark.parametrize(
    ("loss", "critical", "dead_from", "kind"),
    [
        ([1, 20, 30, 30, 30, 30], [1, 1, np.inf, np.inf, np.inf, np.inf], 2, ["death"]),  # the spike never closes
        ([1, 0.9, 0.8, 0.8, 0.8, 0.8], [9, 9, np.inf, np.inf, np.inf, np.inf], 2, []),  # without a spike
        ([1, 1, 1, 1, 1, 1], [np.inf] * 6, 0, []),  # from the start
        (DIES, [1, 1, 1, np.inf, 1, 1], -1, ["catapult"]),  # a kernel of zero at one step alone
    ],
)
def test_ways_to_die(loss, critical, dead_from, kind):
    made = record(np.array([loss, SPIKE], float), 1.5, np.array([critical, DROPS], float))
    assert kinds(made, FIG3)[0] == kind
    assert analysis.dead_steps(made, FIG3).tolist() == [dead_from, -1]


@pytest.mark.parametrize(
    ("critical", "dead_from", "kind"),
    [
        ([1, 1, 1, np.inf, np.inf, np.inf], 3, "death"),
        ([1, 1, 1, np.inf, 1, 1], -1, "catapult"),  # one batch
        ([1, 1, 1, 1, 1, np.inf], -1, "catapult"),  # one batch, the last: less than an epoch
    ],
)
def test_random_batches_are_dead_after_an_epoch_without_a_kernel(critical, dead_from, kind):
    made = record(DIES, 1.5, critical)
    assert analysis.lambda_series(made, SMALL_BATCHES) is None
    assert kinds(made, SMALL_BATCHES) == [[kind]]
    assert analysis.dead_steps(made, SMALL_BATCHES).tolist() == [dead_from]


def test_lambda_max_of_an_event_is_never_that_of_two_batches():
    made = record(SPIKE, 1.5, DROPS)
    (event,) = analysis.run_events(made, SMALL_BATCHES)[0]
    assert np.isnan(event.lambda_max_before) and np.isnan(event.lambda_max_after)
    probe = made.assign(lambda_max_probe=(("member", "step"), [[5.0, 4.0, 3.0, 2.0, 1.0, 1.0]]))
    (event,) = analysis.run_events(probe, SMALL_BATCHES)[0]
    assert (event.lambda_max_before, event.end, event.lambda_max_after) == (5.0, 3, 2.0)


def test_a_weight_decay_does_not_hide_a_death_in_random_batches():
    """With it the critical lr of a kernel of zero is finite."""
    made = record(DIES, 1.5, [1, 1, 1, 4, 4, 4])
    made["lambda_max_batch"][:, 3:] = 0.0
    assert kinds(made, SMALL_BATCHES) == [["death"]]


def test_run_events_are_computed_once_for_any_number_of_members(monkeypatch):
    calls = []
    monkeypatch.setattr(analysis, "_EVENTS", {})
    monkeypatch.setattr(analysis, "find_events", lambda *a, **k: calls.append(k["factor"]) or find_events(*a, **k))
    members = 40
    made = record(np.array(SPIKE) * np.arange(1, members + 1)[:, None], 1.5, DROPS)

    for _ in range(3):
        events = analysis.run_events(made, FIG3, factor=1.2)
        verdicts.of_run("first_catapult", made, FIG3)
    assert calls == [1.2] * members and all(len(found) == 1 for found in events)

    verdicts.of_run("spikes_are_catapults", made, FIG3)
    analysis.catapult_counts(made, FIG3)
    assert calls[members:] == [FIG3["events"]["factor"]] * members  # another factor


def test_run_events_follow_a_record_that_changes():
    made = record(SPIKE, 1.5, DROPS).copy(deep=True)
    assert kinds(made, FIG3) == [["catapult"]]
    made["critical_lr_batch"][:] = 9.0
    assert kinds(made, FIG3) == [["unexplained"]]
    made["loss_train"][:] = FALLING
    assert kinds(made, FIG3) == [[]]


def test_run_events_keep_no_more_series_than_allowed(monkeypatch):
    monkeypatch.setattr(analysis, "_EVENTS", {})
    monkeypatch.setattr(analysis, "_MOST_SERIES", 2)
    made = record(np.array(SPIKE) * np.arange(1, 6)[:, None], 1.5, DROPS)
    assert kinds(made, FIG3) == [["catapult"]] * 5 and len(analysis._EVENTS) == 2
