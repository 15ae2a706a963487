"""The experiments behind the page of claims."""

import doctest

import pytest

from experiments import catalogue, sweep, verdicts


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_config_of_every_experiment_is_allowed(scale, tmp_path):
    for experiment in catalogue.EXPERIMENTS:
        config = catalogue.config_of(experiment, scale, tmp_path)
        sweep.plan(config, [])
        assert set(experiment.claims) <= set(config.claims), experiment.name
        assert all((name in verdicts.OF_SWEEP) == experiment.is_sweep for name in experiment.claims)
    assert len({e.name for e in catalogue.EXPERIMENTS}) == len(catalogue.EXPERIMENTS)


def test_examples_in_docstrings():
    assert not doctest.testmod(catalogue).failed
