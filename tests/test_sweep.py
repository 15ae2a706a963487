"""Sweeps: their axes, their runs, and how they resume."""

import csv
import doctest

import pytest

from configs import batch_size, quickstart
from experiments import build, sweep, workers
from experiments.config import ConfigError


@pytest.fixture(autouse=True)
def no_data(monkeypatch, plain_figures):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)


def table(directory):
    return list(csv.DictReader((directory / "summary.csv").read_text().splitlines()))


def test_plan_makes_members_of_numbers_of_a_member_and_runs_of_the_rest():
    runs, axes = sweep.plan(
        quickstart.get_config("smoke"),
        ["seed=3,4", "optimizer.lr=1,2.5", "model.width=8,16", "model.activation=relu,tanh"],
    )
    assert axes == ["model.width", "model.activation"]
    points = [tuple(point.values()) for point, _ in runs]
    assert points == [(8, "relu"), (8, "tanh"), (16, "relu"), (16, "tanh")]
    assert [(config.model.width, config.model.activation) for _, config in runs] == points
    config = runs[3][1]
    assert (config.model.width, config.model.activation) == (16, "tanh")
    assert config.members.seed == (3, 4) and config.members.lr == (1.0, 2.5)


def test_plan_changes_the_fields_of_a_joint_axis_together():
    grid = ["model.width+optimizer.name+optimizer.initial_accumulator_value=8+sgd+None,16+adagrad+0.1", "model.depth=2,3"]

    runs, axes = sweep.plan(quickstart.get_config("smoke"), grid)

    assert axes == ["model.width", "optimizer.name", "optimizer.initial_accumulator_value", "model.depth"]
    assert [tuple(point.values()) for point, _ in runs] == [
        (8, "sgd", None, 2), (8, "sgd", None, 3), (16, "adagrad", 0.1, 2), (16, "adagrad", 0.1, 3),
    ]  # fmt: skip
    assert runs[-1][1].optimizer.initial_accumulator_value == 0.1


def test_plan_of_members_alone_is_one_run():
    runs, axes = sweep.plan(quickstart.get_config("smoke"), ["members.seed=1,2"])
    assert len(runs) == 1 and axes == [] and runs[0][1].members.seed == (1, 2)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["model.widht=8"], "no field 'model.widht'; nearest: 'model.width'"),
        (["model.width=8,8"], "each value once"),
        (["model.width+model.depth=8+2,8"], r"allowed: model.width\+model.depth=v1\+w1,v2\+w2,... with each point once"),
        (["model.width+model.depth=8+2,8+2"], "with each point once"),
        (["model.width+optimizer.momentum=8+0,8+0.0"], "with each point once"),
        (["model.width+seed=8+1"], "fields that make runs, not seed"),
        (["model.width+model.depth=8+two"], "'two' has the wrong type; allowed: a whole number"),
        (["model.width="], "allowed: FIELD=v1,v2"),
        (["model.width=8,wide"], "'wide' has the wrong type; allowed: a whole number"),
        (["model.width=8", "model.width=16"], "each field once"),
        (["seed=1", "members.seed=2"], "each field once"),
        (["model.strides=1,2"], "fields of one value"),
        (["model.width=8,0"], "model.width=0; allowed: 1 or more"),
    ],
)
def test_run_sweep_of_axes_that_are_not_allowed(grid, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        sweep.run_sweep(quickstart.get_config("smoke"), grid, tmp_path / "sweep", 1)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(("given", "grid"), [("model.width", "model.width=8,9"), ("members.lr", "optimizer.lr=1,2")])
def test_a_field_that_an_axis_replaces_is_refused(given, grid):
    with pytest.raises(
        ConfigError, match=f"{given}=7 has no effect, since the axis '{grid}' replaces it; allowed: one of them"
    ):
        sweep._refuse_on_axes(quickstart.get_config("smoke"), [grid], {given: "7"})
    sweep._refuse_on_axes(quickstart.get_config("smoke"), [grid], {"steps": "7", given: "None"})


@pytest.mark.long
def test_run_sweep_resumes_skips_and_summarises(tmp_path, monkeypatch, capsys):
    config = batch_size.get_config("rank2,smoke")
    whole, calls = workers.run, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(workers, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(config, [], tmp_path / "s", 1)
    verdicts = sweep.run_sweep(config, [], tmp_path / "s", 1)
    assert "2 runs, 1 already complete" in capsys.readouterr().out
    assert [verdict.claim for verdict in verdicts] == list(config.claims) and len(calls) == 3
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


def test_examples_in_docstrings():
    assert not doctest.testmod(sweep).failed
