"""Sweeps: axes, resuming, summary; and the program that reruns the claims."""

import csv
import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from catapult_jax import training
from catapult_jax.events import DEFINITION
from configs import batch_size, quickstart
from experiments import build, claims, main, reproduce, sweep, verdicts
from experiments.build import programs
from experiments.config import ConfigError


@pytest.fixture(autouse=True)
def no_data(monkeypatch, plain_figures):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)


def table(directory):
    return list(csv.DictReader((directory / "summary.csv").read_text().splitlines()))


def test_numbers_of_a_member_make_members_and_the_rest_makes_runs():
    runs, axes = sweep.plan(
        quickstart.get_config("smoke"),
        ["seed=3,4", "optimizer.lr=1,2.5", "model.width=8,16", "model.activation=relu,tanh"],
    )
    assert axes == ["model.width", "model.activation"]
    assert [tuple(chosen.values()) for chosen, _ in runs] == [(8, "relu"), (8, "tanh"), (16, "relu"), (16, "tanh")]
    assert [(one.model.width, one.model.activation) for _, one in runs] == [tuple(chosen.values()) for chosen, _ in runs]
    config = runs[3][1]
    assert (config.model.width, config.model.activation) == (16, "tanh")
    assert config.members.seed == (3, 4) and config.members.lr == (1.0, 2.5)
    alone, axes = sweep.plan(quickstart.get_config("smoke"), ["members.seed=1,2"])
    assert len(alone) == 1 and axes == []


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["model.widht=8"], "no field 'model.widht'; nearest: 'model.width'"),
        (["model.width=8,8"], "each value once"),
        (["model.width="], "allowed: FIELD=v1,v2"),
        (["model.width=8,wide"], "'wide' is no int"),
        (["model.width=8", "model.width=16"], "each field once"),
        (["seed=1", "members.seed=2"], "each field once"),
        (["model.strides=1,2"], "fields of one value"),
        (["model.width=8,0"], "model.width=0; allowed: 1 or more"),
    ],
)
def test_axes_that_can_not_be(grid, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        sweep.run_sweep(quickstart.get_config("smoke"), grid, tmp_path / "sweep", 1)
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_resumes_skips_and_sums_up(tmp_path, monkeypatch, capsys):
    config = batch_size.get_config("rank2,smoke")
    whole, calls = sweep.run, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(sweep, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(config, [], tmp_path / "s", 1)
    (found,) = sweep.run_sweep(config, [], tmp_path / "s", 1)
    assert "2 runs, 1 already complete" in capsys.readouterr().out
    assert found.claim == "small_batches_help" and len(calls) == 3
    rows = table(tmp_path / "s")
    assert [row["optimizer.batch_size"] for row in rows] == ["5"] * 4 + ["10"] * 4
    assert {"seed", "lr_given", "finished", "catapults", "loss_test", "loss_val", "agop_alignment", "run"} <= set(rows[0])
    html = (tmp_path / "s" / "summary.html").read_text()
    assert html.count("/report.html") == 2 and (tmp_path / "s" / "summary.png").is_file()
    sweep.run_sweep(config, [], tmp_path / "s", 1)
    assert len(calls) == 3
    # The members of a run are those of the run alone.
    alone = build.build_members(sweep.plan(config, [])[0][0][1])
    assert alone.seed.tolist() == [0, 1, 0, 1]


def test_a_run_that_fails_leaves_the_others(tmp_path, monkeypatch):
    whole = sweep.run

    def fails(config, directory):
        if config.model.width == 8:
            raise ConfigError("no")
        return whole(config, directory)

    monkeypatch.setattr(sweep, "run", fails)
    with pytest.raises(sweep.RunError, match="1 of 2 runs failed"):
        sweep.run_sweep(quickstart.get_config("smoke"), ["model.width=8,32"], tmp_path / "s", 1)
    assert [row["model.width"] for row in table(tmp_path / "s")] == ["32", "32"]
    assert "no</p>" in (tmp_path / "s" / "summary.html").read_text()


def test_two_processes_at_a_time(tmp_path):
    config = quickstart.get_config("smoke")
    config.members.lr, config.data.name, config.steps = (0.5,), "digits", 2
    assert sweep.run_sweep(config, ["model.activation=relu,tanh"], tmp_path / "s", 2) == []
    assert [row["model.activation"] for row in table(tmp_path / "s")] == ["relu", "tanh"]


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_every_experiment_of_the_claims_is_a_valid_config(scale, tmp_path):
    for experiment in claims.EXPERIMENTS:
        config = claims.config_of(experiment, scale, tmp_path)
        sweep.plan(config, [])
        assert set(experiment.claims) <= set(config.claims), experiment.name
        assert all((name in verdicts.OF_SWEEP) == experiment.is_sweep for name in experiment.claims)
    assert len({e.name for e in claims.EXPERIMENTS}) == len(claims.EXPERIMENTS)


def test_the_page_of_claims(tmp_path):
    """A run, a sweep with a reference, data that can't be had, and everything else not run."""
    chosen = [e for e in claims.EXPERIMENTS if e.name in ("cifar_gd:fcn", "batch_size:cifar2,ce", "catapults_agop:svhn2")]
    failures = {}
    for experiment in chosen:
        scale = "cpu" if experiment.name.endswith("svhn2") else "smoke"
        why = claims.run_experiment(experiment, scale, tmp_path / "runs")
        if why:
            failures[experiment.name] = claims._public(why)
    assert list(failures) == ["catapults_agop:svhn2"] and "svhn" in failures["catapults_agop:svhn2"]
    claims.write_page(tmp_path / "docs" / "claims.md", "smoke", tmp_path / "runs", failures)
    page = (tmp_path / "docs" / "claims.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == sum(len(e.claims) for e in claims.EXPERIMENTS)
    assert sum("| not run |" in row for row in rows) == len(rows) - 3
    assert "no file" not in page and str(tmp_path / "docs") not in page
    assert f"Definition of the events: {DEFINITION}" in page
    assert "(#cifar_gdfcn)" in page and "--config=configs/batch_size.py:cifar2,ce,smoke" in page
    with_other = next(e for e in chosen if e.name == "cifar_gd:fcn")._replace(cpu={"steps": 7})
    assert claims.results(with_other, "cpu", tmp_path / "runs") == "run with another config"
    assert (tmp_path / "docs" / "figures" / "claims" / "cifar_gd-fcn.png").is_file()
    assert (tmp_path / "docs" / "figures" / "claims" / "batch_size-cifar2-ce.png").is_file()
    assert "Data: natural_patches" in page and "SHA-256" in page
    record = json.loads((tmp_path / "runs" / "cifar_gd-fcn" / "run.json").read_text())
    assert record["data"]["fallback_for"] == "cifar10"


def test_a_process_that_is_killed_costs_its_own_run(tmp_path, capsys):
    """As by the system when there is no memory left: the other runs are made, and the summary is of them."""
    config = quickstart.get_config("smoke")
    config.members.lr, config.data.name, config.steps, config.run.chunk_steps = (0.5,), "digits", 2000, 1
    killed = []

    def kill():
        while not (found := multiprocessing.active_children()) or not [*(tmp_path / "s").glob("*/progress.json")]:
            time.sleep(0.05)
        killed.append(found[0].pid)
        os.kill(found[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(sweep.RunError, match="1 of 3 runs failed; the summary is of the others"):
        sweep.run_sweep(config, ["model.activation=relu,tanh,gelu"], tmp_path / "s", 2)
    thread.join()
    assert len(killed) == 1 and len(table(tmp_path / "s")) == 2
    assert "its process was killed by SIGKILL (often: no memory left); the same command goes on" in capsys.readouterr().err


def test_directory_of_many_axes_is_a_name_that_can_be(tmp_path):
    chosen = {f"optimizer.setting_{i}": 0.123456789 for i in range(20)}
    found = sweep.directory_of(tmp_path, chosen, quickstart.get_config("smoke"))
    found.mkdir()
    assert found.name.startswith("setting_0=0.123456789-setting_1=")


def test_runs_that_share_programs_have_the_bits_of_runs_alone(tmp_path, monkeypatch):
    """Other data, seeds and lengths are other arguments of the same programs; another width is another program."""
    config = batch_size.get_config("rank2,smoke")
    config.measure.agop_alignment_every, config.measure.agop_reference, config.claims, config.sweep = 0, None, (), ()
    make_trainer, built = training.make_trainer, []
    monkeypatch.setattr(training, "make_trainer", lambda *a, **k: built.append(1) or make_trainer(*a, **k))
    changes = [{}, {"data.synthetic.seed": 1}, {"steps": config.steps + 1, "members.seed": (5, 6)}, {"model.width": 12}]
    runs = []
    for fields in changes:
        one = config.copy_and_resolve_references()
        one.update_from_flattened_dict(fields)
        runs.append(one)
    with programs.shared_programs():
        for i, one in enumerate(runs):
            main.run(one, tmp_path / f"shared-{i}")
    assert len(built) == 2
    for i, one in enumerate(runs):
        main.run(one, tmp_path / f"alone-{i}")
        assert reproduce.compare(tmp_path / f"alone-{i}", tmp_path / f"shared-{i}").same, changes[i]
    assert len(built) == 2 + len(runs)


def test_shared_keeps_the_last_few(monkeypatch):
    made = []
    make = lambda key: lambda: made.append(key) or key
    with programs.shared_programs():
        for key in (0, 1, 0, *range(2, 9), 0, 1):
            assert programs.shared(key, make(key)) == key
        assert len(programs._PROGRAMS) == 8
    assert made == [*range(9), 1] and programs.shared(0, make(0)) == 0 and made[-1] == 0
