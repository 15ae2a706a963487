"""Events and predictions of records with a known answer."""

import numpy as np
import pytest

from catapult_jax.metrics import prediction
from catapult_jax.report import analysis
from catapult_jax.report.members import Settings
from tests.small_records import BATCHES, DEAD_KERNEL, DIES, DROPS, FALLING, FULL, SPIKE, TWO_BATCHES, record


def kinds(data, settings):
    return [[event.kind for event in events] for events in analysis.run_events(data, settings)]


def test_run_events_take_the_fraction_of_both_parts_of_the_split():
    """The parts of a loss other than mse add up to half the Newton decrement, here ten times the loss."""
    loss = np.array([SPIKE])
    data = record(loss, 1.5, DROPS, top=loss * 3.0).assign(loss_rest=(("member", "step"), loss * 7.0))

    (event,) = analysis.run_events(data, FULL)[0]

    assert event.fraction_top == pytest.approx(0.3)


def test_run_events_of_batches_need_the_training_loss():
    """The noise of the batch loss is no spike."""
    data = record(SPIKE, 1.5, DROPS).drop_vars("loss_train")

    assert analysis.run_events(data, BATCHES) == [[]] and len(analysis.run_events(data, FULL)[0]) == 1


def test_run_events_of_a_death_are_no_catapult():
    data = record([SPIKE, DIES], 1.5, [DROPS, DEAD_KERNEL])

    assert kinds(data, FULL) == [["catapult"], ["death"]]
    assert analysis.catapult_counts(analysis.run_events(data, FULL)).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("loss", "critical", "kind"),
    [
        ([1, 20, 30, 30, 30, 30], [1, 1, np.inf, np.inf, np.inf, np.inf], ["death"]),  # the spike never closes
        ([1, 0.9, 0.8, 0.8, 0.8, 0.8], [9, 9, np.inf, np.inf, np.inf, np.inf], []),  # without a spike
        ([1, 1, 1, 1, 1, 1], [np.inf] * 6, []),  # from the start
        (DIES, [1, 1, 1, np.inf, 1, 1], ["catapult"]),  # a kernel of zero at one step only
    ],
)
def test_run_events_of_each_way_to_die(loss, critical, kind):
    data = record(np.array([loss, SPIKE], float), 1.5, np.array([critical, DROPS], float))

    assert kinds(data, FULL)[0] == kind


@pytest.mark.parametrize(
    ("critical", "kind"),
    [
        ([1, 1, 1, np.inf, np.inf, np.inf], "death"),
        ([1, 1, 1, np.inf, 1, 1], "catapult"),  # one batch
        ([1, 1, 1, 1, 1, np.inf], "catapult"),  # one batch, the last: less than an epoch
    ],
)
def test_run_events_of_random_batches_are_deaths_after_an_epoch_without_a_kernel(critical, kind):
    assert kinds(record(DIES, 1.5, critical), TWO_BATCHES) == [[kind]]


def test_run_events_have_no_lambda_max_of_two_batches():
    data = record(SPIKE, 1.5, DROPS)
    probe = data.assign(lambda_max_probe=(("member", "step"), [[5.0, 4.0, 3.0, 2.0, 1.0, 1.0]]))

    (event,), (event_with_probe,) = (analysis.run_events(each, TWO_BATCHES)[0] for each in (data, probe))

    assert np.isnan(event.lambda_max_before) and np.isnan(event.lambda_max_after)
    sizes = event_with_probe.lambda_max_before, event_with_probe.end, event_with_probe.lambda_max_after
    assert sizes == (5.0, 3, 2.0)


def test_run_events_of_a_death_with_weight_decay():
    """With it the critical lr of a kernel of zero is finite."""
    data = record(DIES, 1.5, [1, 1, 1, 4, 4, 4])
    data["lambda_max_batch"][:, 3:] = 0.0

    assert kinds(data, TWO_BATCHES) == [["death"]]


def test_run_events_follow_a_record_that_changes():
    data = record(SPIKE, 1.5, DROPS).copy(deep=True)
    assert kinds(data, FULL) == [["catapult"]]

    data["critical_lr_batch"][:] = 9.0
    assert kinds(data, FULL) == [["unexplained"]]

    data["loss_train"][:] = FALLING
    assert kinds(data, FULL) == [[]]


def test_run_events_of_a_loss_only_are_unknown():
    data = record(SPIKE, 1.5, DROPS)[["loss_train"]]

    (event,) = analysis.run_events(data, Settings())[0]

    assert (event.kind, event.onset, event.peak) == ("unknown", 0, 2) and np.isnan([event.lr, event.critical_lr]).all()


def test_run_events_with_momentum_look_at_the_steps_before():
    data = record([1.0, *SPIKE], 1.5, [1.0, *[9.0] * 6])
    data["loss_train"][:, 0] = 1.1  # the onset is at step 1

    assert kinds(data, FULL) == [["unexplained"]]
    assert kinds(data, FULL._replace(momentum=0.5)) == [["catapult"]]


def test_run_events_need_the_loss_of_every_step():
    """A loss that is measured at every second step is not one that diverges at the first."""
    data = record([1.0, np.nan, 0.9, np.nan, 0.8, np.nan], 1.5, DROPS)

    assert kinds(data, FULL) == [[]]
    assert kinds(record([1.0, np.nan, np.nan], 1.5, 1.0), FULL) == [["divergence"]]


def test_run_events_end_where_a_member_diverged():
    loss = [1.0, 3.0, 1.0, 3.0, 1.0]
    data = record(loss, 1.5, 1.0, diverged=np.array([[False, False, True, True, True]]))

    assert kinds(data, FULL) == [["catapult"]]


def test_spike_counts_are_the_number_of_events():
    data = record([SPIKE, FALLING], 1.5, DROPS)

    counts = analysis.spike_counts(data, FULL)

    for factor in counts[0]:
        assert [row[factor] for row in counts] == [len(row) for row in analysis.run_events(data, FULL, factor=factor)]
    assert counts[0][1.5] == 1 and counts[1][1.5] == 0


def test_event_rows_have_member_factor_and_alignment():
    data = record([FALLING, SPIKE], 1.5, DROPS, agop_alignment=np.array([[0.5] * 6, [0.1, 0.2, np.nan, np.nan, 0.5, 0.6]]))

    (row,) = analysis.event_rows(data, FULL, analysis.run_events(data, FULL))

    assert (row["member"], row["seed"], row["factor"], row["kind"]) == (1, 1, FULL.factor, "catapult")
    assert (row["onset"], row["end"], row["alignment_before"], row["alignment_after"]) == (0, 3, 0.1, 0.5)


def test_uncertain_steps_are_below_the_critical_lr_by_less_than_the_bound_of_the_eigenvalue():
    """An eigenvalue of products is a lower bound: a step above the critical lr (the last one) is above it for certain."""
    data = record(np.ones(3), 1.0, [1.05, 1.2, 0.96], eigenvalues=np.full((1, 3), 2.0))
    data = data.assign(
        eigenvalues=(("member", "step", "eigenvalue"), np.full((1, 3, 1), 2.0)),
        eigenvalue_bounds=(("member", "step", "eigenvalue"), np.full((1, 3, 1), 0.2)),  # 10 %
    )

    assert analysis.uncertain_steps(data).tolist() == [[True, False, False]]
    data["eigenvalue_bounds"][:] = np.inf
    assert analysis.uncertain_steps(data).tolist() == [[True, True, False]]


def test_critical_fraction_leaves_out_steps_after_the_stop_and_without_critical_lr():
    stopped = np.array([[False, False, False, False, True]])
    data = record(np.ones(5), 1.0, [0.5, 2.0, np.nan, 0.5, 0.5], stopped=stopped)

    assert analysis.critical_fraction(data, FULL, 0) == pytest.approx(2 / 3)
    assert np.isnan(analysis.critical_fraction(data.assign(critical_lr_batch=np.nan * data["lr"]), FULL, 0))


def test_rise_predictions_of_each_outcome():
    loss = np.array([1.0, 2.0, 4.0, 1.5, 0.9, 0.8])
    critical = np.array([0.5, 0.5, 2.0, 2.0, 0.5, 2.0])
    after = np.array([2.0, 0.5, 0.5, 0.5, 2.0, 0.5])
    data = record(loss, 1.0, critical, loss_batch_after=after[None])

    tables = analysis.rise_predictions(data, FULL, analysis.run_events(data, FULL))

    above = critical < 1
    assert tables["batch loss"] == [prediction(above, after > loss)]
    assert tables["full training loss"] == [prediction(above[:-1], np.diff(loss) > 0)]
    climbing = [True, True, False, False, False]  # onset 0, peak 2
    assert tables["spikes of the full training loss"] == [prediction(above[:-1], climbing)]
    assert analysis.pooled(tables["batch loss"] * 2).true_positive == 2 * tables["batch loss"][0].true_positive
