"""The training loop. How it stops and resumes is in test_main.py and test_reliability.py."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import loop
from experiments.config import RunError


def state_with(weights):
    return SimpleNamespace(members=SimpleNamespace(params={"w": np.asarray(weights, float)}))


def measured(losses):
    losses = np.asarray(losses, float)
    return {"loss_batch": losses, "lr": np.ones_like(losses)}


def test_check_nans_of_finite_numbers_and_inf():
    loop.check_nans(state_with([[1.0], [np.inf]]), measured([[1.0, 2.0], [np.inf, 3.0]]), 10)


def test_check_nans_names_the_first_member_and_the_step_of_its_loss():
    losses = [[1.0, 1.0, 1.0], [1.0, np.nan, np.nan], [np.nan, np.nan, np.nan]]

    with pytest.raises(RunError, match="the loss of member 1 is NaN at step 11; allowed: finite numbers"):
        loop.check_nans(state_with([[1.0], [np.nan], [np.nan]]), measured(losses), 10)


def test_check_nans_of_parameters_after_a_finite_loss():
    with pytest.raises(RunError, match=r"\['w'\] of member 1 is NaN after step 12"):
        loop.check_nans(state_with([[1.0], [np.nan]]), measured(np.ones((2, 3))), 10)
