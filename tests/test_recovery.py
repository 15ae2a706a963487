"""Resuming a run. Damaged runs are in test_reliability.py."""

import doctest

import numpy as np

from experiments import recovery


def test_join_keeps_the_order_of_the_steps():
    series = np.arange(12).reshape(2, 6)
    chunks = [{"lr": series[:, :1]}, {"lr": series[:, 1:5]}, {"lr": series[:, 5:]}]

    np.testing.assert_array_equal(recovery.join(chunks)["lr"], series)


def test_stopped_members_of_one_mark():
    assert recovery.stopped_members({"diverged": np.array([False, True])}).tolist() == [False, True]


def test_examples_in_docstrings():
    assert not doctest.testmod(recovery).failed
