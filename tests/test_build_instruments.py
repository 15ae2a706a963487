"""The instruments of a run, from its config. Those of a preset are in test_overhead.py."""

import doctest

import pytest

from configs import quickstart
from experiments import build
from experiments.build import instruments


def config_with(**fields):
    config = quickstart.get_config("smoke")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"measure__loss_test_every": 0}, {"lambda_max_batch": 1}),
        ({"optimizer__batch_size": 4, "measure__loss_test_every": 0}, {"lambda_max_batch": 1, "loss_train": 1}),
        ({"data__validation_size": 4}, {"lambda_max_batch": 1, "loss_test": 10, "loss_val": 10}),
        ({"measure__preset": "economy"}, {"lambda_max_batch": 1}),
        (
            {"measure__preset": "full", "optimizer__batch_size": 4},
            {"lambda_max_batch": 1, "loss_train": 1, "loss_batch_after": 1, "loss_test": 1, "lambda_max_train": 1},
        ),
    ],
    ids=str,
)
def test_cadences_of_a_config(fields, expected):
    assert instruments.cadences_of(config_with(**fields)) == expected


@pytest.mark.parametrize(("method", "expected"), [(None, "exact"), ("matrix_free", "matrix_free")])
def test_choose_instruments_of_a_config_measures_no_costs(method, expected, monkeypatch):
    config = config_with(measure__method=method, measure__lambda_max_train_every=5)
    arrays, _ = build.load_data(config)
    monkeypatch.setattr(instruments.overhead, "measure", None)

    plan = build.choose_instruments(config, None, arrays, None)

    assert plan == {
        "cadences": {"lambda_max_batch": 1, "lambda_max_train": 5, "loss_test": 10},
        "methods": {"lambda_max_batch": expected, "lambda_max_train": expected},
    }


def test_build_instruments_has_the_names_and_cadences_that_are_asked_for():
    config = config_with()
    arrays, _ = build.load_data(config)
    model = build.build_model(config.model, arrays.outputs)
    cadences = {"loss_test": 3, "lambda_max_batch": 2}

    built = instruments.build_instruments(config, model, arrays, cadences, {"lambda_max_batch": "exact"})

    assert {name: instrument.every for name, instrument in built.items()} == cadences


def test_examples_in_docstrings():
    assert not doctest.testmod(instruments).failed
