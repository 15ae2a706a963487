"""The experiments behind the page of claims."""

import doctest

import pytest

from catapult_jax.report.figures import FIGURES
from experiments import catalogue, sweep, verdicts


@pytest.mark.parametrize("scale", ["smoke", "quick", "cpu", "gpu"])
def test_config_of_every_experiment_is_allowed(scale, tmp_path):
    for experiment in catalogue.EXPERIMENTS:
        config = catalogue.config_of(experiment, scale, tmp_path)
        sweep.plan(config, [])
        assert set(experiment.claims) <= set(config.claims), experiment.name
        assert all((name in verdicts.OF_SWEEP) == experiment.is_sweep for name in experiment.claims)
        if experiment.cap:
            sweep.plan(catalogue.cap_config(experiment, scale, tmp_path), [])
    assert len({e.name for e in catalogue.EXPERIMENTS}) == len(catalogue.EXPERIMENTS)


def test_config_of_every_experiment_has_the_seeds_of_a_verdict(tmp_path):
    """Ten for synthetic tasks, five elsewhere; no seed of a trial."""
    for experiment in catalogue.EXPERIMENTS:
        config = catalogue.config_of(experiment, "cpu", tmp_path)
        seeds = config.members.seed
        assert len(seeds) >= (10 if config.data.name == "synthetic" else 5), experiment.name
        assert min(seeds) >= 100
        assert config.data.by_seed or config.data.name in ("mnist", "celeba")


def test_figures_of_every_experiment_exist():
    assert {name for experiment in catalogue.EXPERIMENTS for name in experiment.figures} <= set(FIGURES)


def test_examples_in_docstrings():
    assert not doctest.testmod(catalogue).failed
