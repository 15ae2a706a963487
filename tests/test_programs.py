"""Compiled programs that runs share."""

import doctest

import pytest

from catapult_jax import training
from configs import batch_size
from experiments import main, reproduce
from experiments.build import programs


@pytest.fixture(autouse=True)
def no_data(monkeypatch, plain_figures):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)


@pytest.mark.long
def test_trainer_of_shared_programs_has_the_bits_of_runs_alone(tmp_path, monkeypatch):
    """Other data, AGOP references, seeds and lengths are other arguments of the same programs; another width is another program."""
    config = batch_size.get_config("rank2,smoke")
    config.claims, config.sweep = (), ()
    make_trainer, built = training.make_trainer, []
    monkeypatch.setattr(training, "make_trainer", lambda *a, **k: built.append(1) or make_trainer(*a, **k))
    changes = [
        {"data.synthetic.seed": 1}, {"data.by_seed": True, "steps": config.steps + 1, "members.seed": (5, 6)}, {"model.width": 12},
    ]  # fmt: skip
    runs = []
    for fields in changes:
        run_config = config.copy_and_resolve_references()
        run_config.update_from_flattened_dict(fields)
        runs.append(run_config)
    with programs.shared_programs():
        for i, run_config in enumerate(runs):
            main.run(run_config, tmp_path / f"shared-{i}")
    assert len(built) == 2
    for i, run_config in enumerate(runs):
        main.run(run_config, tmp_path / f"alone-{i}")
        assert reproduce.compare(tmp_path / f"alone-{i}", tmp_path / f"shared-{i}").same, changes[i]
    assert len(built) == 2 + len(runs)


def test_shared_keeps_the_last_few(monkeypatch):
    calls = []
    make = lambda key: lambda: calls.append(key) or key
    with programs.shared_programs():
        for key in (0, 1, 0, *range(2, 9), 0, 1):
            assert programs.shared(key, make(key)) == key
        assert len(programs._PROGRAMS) == 8
    assert calls == [*range(9), 1] and programs.shared(0, make(0)) == 0 and calls[-1] == 0


def test_examples_in_docstrings():
    assert not doctest.testmod(programs).failed
