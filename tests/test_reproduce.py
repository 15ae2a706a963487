"""Comparing two runs bit by bit. The flag --reproduce is in test_reliability.py."""

import doctest
import json
import shutil

import numpy as np
import pytest
import zarr

from catapult_jax import records
from configs import quickstart
from experiments import config as configs
from experiments import main, reproduce


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run of six steps."""
    config = quickstart.get_config("smoke")
    config.data.name, config.model.width, config.claims = "digits", 16, ()
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    main.run(config, run_dir)
    return run_dir


@pytest.fixture
def copy(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "copy")


def array(run_dir, name):
    return zarr.open_group(str(run_dir / "record.zarr"), mode="r+")[name]


@pytest.mark.long
def test_compare_of_equal_runs(run_dir, copy):
    comparison = reproduce.compare(run_dir, copy)

    record = records.open_record(run_dir)
    assert comparison.same and comparison.differing == comparison.environment == {}
    assert (comparison.arrays, comparison.numbers) == (len(record.variables), sum(v.size for v in record.variables.values()))
    assert (
        reproduce.lines(comparison)[-1]
        == f"reproduced: {comparison.numbers} numbers in {comparison.arrays} arrays, the same bits"
    )


def test_compare_names_the_first_step_and_the_largest_difference(run_dir, copy):
    series = array(copy, "loss_batch")
    series[0, 3] = series[0, 3] * np.float32(1.5)
    series[1, 5] = series[1, 5] * np.float32(1.25)

    comparison = reproduce.compare(run_dir, copy)

    assert not comparison.same and list(comparison.differing) == ["loss_batch"]
    assert comparison.differing["loss_batch"]["first_step"] == 3
    assert comparison.differing["loss_batch"]["largest_relative_difference"] == pytest.approx(0.5, rel=1e-6)
    assert reproduce.lines(comparison) == [
        "loss_batch differs from step 3 on, by 5.0e-01 relative at most",
        "not reproduced: loss_batch differs",
    ]


def test_compare_tells_zeros_of_both_signs_apart_and_nans_not(run_dir, tmp_path):
    pairs = {}
    for name, values in {"then": (np.nan, 0.0), "now": (np.nan, -0.0)}.items():
        pairs[name] = shutil.copytree(run_dir, tmp_path / name)
        array(pairs[name], "lr")[0, 1], array(pairs[name], "lr")[0, 2] = values

    comparison = reproduce.compare(pairs["then"], pairs["now"])

    assert comparison.differing["lr"]["first_step"] == 2


def test_compare_of_events_and_environment(run_dir, copy):
    (copy / "events.jsonl").write_text("")
    about = records.read_json(copy / "run.json")
    about["environment"]["commit"] = "another"
    records.write_json(copy / "run.json", about)

    comparison = reproduce.compare(run_dir, copy)

    assert set(comparison.differing) <= {"events"} and set(comparison.environment) == {"commit"}
    assert comparison.same == (not comparison.differing)
    assert reproduce.lines(comparison)[0].startswith("environment differs in commit: ")


def test_compare_of_an_array_that_is_missing(run_dir, copy, monkeypatch):
    whole = records.open_record(copy).load()
    opened = {run_dir: whole, copy: whole.drop_vars("stage")}
    monkeypatch.setattr(records, "open_record", opened.__getitem__)

    comparison = reproduce.compare(run_dir, copy)

    assert comparison.differing == {"stage": {"first_step": 0, "largest_relative_difference": None}}


def test_run_again_goes_on_where_only_the_comparison_is_missing(run_dir, copy, capsys):
    """As after a kill between the end of the run and its comparison."""
    assert main.run_again(run_dir, copy)
    assert reproduce.is_compared(copy) and "already complete" in capsys.readouterr().out
    with pytest.raises(configs.ConfigError, match="holds a comparison; allowed: a new directory"):
        main.run_again(run_dir, copy)


def test_stored_config_is_the_config_of_the_run(run_dir):
    config = reproduce.stored_config(run_dir)

    assert json.loads(config.to_json()) == records.read_json(run_dir / "config.json")


def test_stored_config_gives_defaults_to_fields_that_the_run_does_not_have(copy):
    fields = records.read_json(copy / "config.json")
    del fields["measure"]["top_k"]
    records.write_json(copy / "config.json", fields)

    assert reproduce.stored_config(copy).measure.top_k == 5


def test_stored_config_of_a_field_that_no_config_has(copy):
    fields = records.read_json(copy / "config.json")
    records.write_json(copy / "config.json", fields | {"step": 3})

    with pytest.raises(configs.ConfigError, match="no field 'step'; nearest: 'steps'"):
        reproduce.stored_config(copy)


def test_stored_config_of_a_run_that_has_not_ended(copy):
    about = records.read_json(copy / "run.json")
    records.write_json(copy / "run.json", about | {"status": "running"})

    with pytest.raises(configs.ConfigError, match="holds a run that has not ended; allowed: a finished run"):
        reproduce.stored_config(copy)


def test_stored_config_of_a_directory_without_a_run(tmp_path):
    with pytest.raises(configs.ConfigError, match=r"holds no run .*; allowed: the directory of a finished run"):
        reproduce.stored_config(tmp_path)


def test_write_names_the_first_run(run_dir, copy):
    reproduce.write(reproduce.compare(run_dir, copy), run_dir, copy)

    stored = json.loads((copy / "reproduction.json").read_text())
    assert stored["of"] == str(run_dir) and stored["same"] is True


def test_examples_in_docstrings():
    assert not doctest.testmod(reproduce).failed
