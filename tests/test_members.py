"""Members of records with a known answer: settings, which are dead or diverged, where they ended."""

import numpy as np
import pytest
import xarray as xr

from catapult_jax.report import members
from catapult_jax.report.members import Settings
from tests.small_records import DEAD_KERNEL, DIES, DROPS, FULL, SPIKE, TO_A_LOSS, TWO_BATCHES, members_with, record


def test_lambda_series_is_never_that_of_two_batches():
    data = record(SPIKE, 1.5, DROPS)

    assert members.lambda_series(data, FULL) == "lambda_max_batch"
    assert members.lambda_series(data, TWO_BATCHES) is None
    assert members.lambda_series(data.assign(lambda_max_probe=data["lambda_max_batch"]), TWO_BATCHES) == "lambda_max_probe"


def test_steps_of_an_epoch_needs_the_size_of_the_training_set():
    assert members.steps_of_an_epoch(Settings(examples=10, batch_size=5)) == 2
    assert members.steps_of_an_epoch(Settings(examples=10, batch_size=10)) == members.steps_of_an_epoch(Settings()) == 1

    with pytest.raises(ValueError, match="examples=None; allowed: the size of the training set, since batch_size=5"):
        members.steps_of_an_epoch(Settings(batch_size=5))


def test_by_setting_labels_each_axis_that_varies():
    axes = {"lr_given": [1.0, 1.0, 2.0, 2.0], "raises": [0, 0, 0, 0], "cap": [np.inf, 0.9, np.inf, 0.9], "seed": [0, 1, 2, 3]}
    data = xr.Dataset(coords={name: ("member", values) for name, values in axes.items()})

    groups = members.by_setting(data, Settings(lr_unit="critical_lr0"))

    assert [(label, numbers.tolist()) for label, numbers in groups] == [
        ("1 x critical lr at start, no cap", [0]),
        ("1 x critical lr at start, cap 0.9", [1]),
        ("2 x critical lr at start, no cap", [2]),
        ("2 x critical lr at start, cap 0.9", [3]),
    ]


def test_by_setting_of_one_setting_has_all_seeds():
    data = xr.Dataset(coords={"lr_given": ("member", [0.5, 0.5]), "seed": ("member", [0, 1])})

    ((label, numbers),) = members.by_setting(data, Settings())

    assert label == "lr 0.5" and numbers.tolist() == [0, 1]


def test_by_setting_without_coordinates_has_all_members():
    ((label, numbers),) = members.by_setting(xr.Dataset({"lr": (("member", "step"), np.ones((3, 2)))}), Settings())

    assert label == "all members" and numbers.tolist() == [0, 1, 2]


def test_dead_members_are_not_finished():
    data = record([SPIKE, DIES], 1.5, [DROPS, DEAD_KERNEL])

    assert members.dead_members(data, FULL) == [{"member": 1, "step": 3}]
    assert members.finished(data, FULL).tolist() == [True, False]
    assert members.active(data, FULL)[1].tolist() == [True, True, True, False, False, False]
    last = members.last(data, FULL, "loss_train")
    assert np.isnan(last[1]) and last[0] == 0.8


@pytest.mark.parametrize(
    ("loss", "critical", "step"),
    [
        ([1, 20, 30, 30, 30, 30], [1, 1, np.inf, np.inf, np.inf, np.inf], 2),  # the spike never closes
        ([1, 0.9, 0.8, 0.8, 0.8, 0.8], [9, 9, np.inf, np.inf, np.inf, np.inf], 2),  # without a spike
        ([1, 1, 1, 1, 1, 1], [np.inf] * 6, 0),  # from the start
        (DIES, [1, 1, 1, np.inf, 1, 1], -1),  # a kernel of zero at one step only
    ],
)
def test_dead_steps_of_each_way_to_die(loss, critical, step):
    data = record(np.array([loss, SPIKE], float), 1.5, np.array([critical, DROPS], float))

    assert members.dead_steps(data, FULL).tolist() == [step, -1]


@pytest.mark.parametrize(
    ("critical", "step"),
    [
        ([1, 1, 1, np.inf, np.inf, np.inf], 3),
        ([1, 1, 1, np.inf, 1, 1], -1),  # one batch
        ([1, 1, 1, 1, 1, np.inf], -1),  # one batch, the last: less than an epoch
    ],
)
def test_dead_steps_of_random_batches_need_an_epoch_without_a_kernel(critical, step):
    assert members.dead_steps(record(DIES, 1.5, critical), TWO_BATCHES).tolist() == [step]


def test_dead_steps_of_a_member_that_diverged_are_none():
    data = record([1.0, 9.0, 9.0], 1.5, [1.0, np.inf, np.inf], diverged=np.array([[False, True, True]]))

    assert members.dead_steps(data, FULL).tolist() == [-1]


def test_diverged_members_have_a_cause():
    loss = [[1.0, np.nan, np.nan], [1.0, 9.0, 9.0], [1.0, 0.9, 0.8]]
    diverged = np.array([[False, True, True], [False, False, True], [False, False, False]])

    rows = members.diverged_members(record(loss, 1.5, 1.0, diverged=diverged), FULL._replace(horizon=7))

    assert rows == [
        {"member": 0, "step": 1, "cause": "the loss was not finite"},
        {"member": 1, "step": 2, "cause": "a spike did not close within 7 steps"},
    ]


def test_until_diverged_leaves_the_given_record():
    data = record([[1.0, 9.0, 9.0], [1.0, 0.9, 0.8]], 1.5, 1.0, diverged=np.array([[False, True, True], [False] * 3]))

    shown = members.until_diverged(data)

    assert np.isnan(shown["loss_train"].values).tolist() == [[False, False, True], [False] * 3]
    assert np.isfinite(data["loss_train"].values).all() and (shown["stage"].values == 0).all()


def test_last_of_a_member_that_stopped_is_measured_at_its_end():
    data = members_with([0, 0], [0, 1], loss_test=[1.0, 2.0])
    data["loss_test"][0, -1] = np.nan  # measured before its end only

    last = members.last(data, TO_A_LOSS, "loss_test")

    assert np.isnan(last[0]) and last[1] == 2


@pytest.mark.parametrize(("loss", "finished"), [(0.01, True), (0.0085, True), (0.0075, False)])
def test_finished_members_did_not_go_past_the_loss(loss, finished):
    data = members_with([0], [0])
    data["loss_train"][:, -1] = loss

    assert members.finished(data, TO_A_LOSS._replace(stop_loss=0.01)).tolist() == [finished]


def test_finished_members_stopped():
    data = members_with([0], [0])
    data["stopped"][:] = False

    assert members.finished(data, TO_A_LOSS).tolist() == [False]
