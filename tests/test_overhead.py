"""Presets: cadences from costs, and a run that measures its costs first."""

import json

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax.training.measurement import Instrument
from configs import quickstart
from experiments import build, main
from experiments.build import overhead
from experiments.build.instruments import build_instruments
from experiments.build.trainer import build_trainer

COSTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 8), min_size=1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(COSTS, st.floats(1.01, 5))
def test_cadences_keep_within_the_overhead(costs, most):
    chosen = overhead.cadences(costs, set(), most)
    assert set(chosen) == set(costs) and min(chosen.values()) >= 1
    assert sum(costs[name] / chosen[name] for name in costs) <= max(most - 1, 0.05) + 1e-9


@given(COSTS, st.floats(1.01, 5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_cadences_of_instruments_needed_at_every_step_and_of_a_longest_cadence(costs, most):
    always = set(sorted(costs)[:1])
    chosen = overhead.cadences(costs, always, most, longest=7)
    assert all(chosen[name] == 1 for name in always) and max(chosen.values()) <= 7


@pytest.mark.long
def test_run_with_a_preset_chooses_prints_and_records_its_cadences(tmp_path, capsys, monkeypatch, plain_figures):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)
    costs = {"lambda_max_batch, exact": 0.9, "lambda_max_batch, matrix_free": 0.3, "loss_batch_after": 0.2, "loss_test": 1.5}
    costs["lambda_max_batch, exact, apart"] = 1.8
    monkeypatch.setattr(overhead, "measure", lambda build, candidates, members: {name: costs[name] for name in candidates})
    config = quickstart.get_config("smoke")
    config.schedule.name = "constant"
    config.measure.preset = "standard"
    config.claims = ("first_catapult", "exceedance_predicts_rise")
    verdicts = main.run(config, tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "run.json").read_text())["instruments"]
    assert plan["methods"] == {"lambda_max_batch": "matrix_free"}  # the cheaper one
    assert plan["cadences"] == {"lambda_max_batch": 2, "loss_batch_after": 2, "loss_test": 10}
    assert plan["expected_overhead"] == pytest.approx(1 + 0.15 + 0.1 + 0.15)
    printed = capsys.readouterr().out
    assert "lambda_max_batch (matrix_free; exact 0.90, matrix_free 0.30): 0.30, every 2 steps" in printed
    assert "expected cost of a measured step: 1.40 bare steps" in printed
    assert verdicts == []
    assert "Not tested at the cadences of this preset: first_catapult" in (tmp_path / "run" / "report.html").read_text()


def test_choose_instruments_uses_the_cost_of_a_kernel_apart_from_the_step(monkeypatch):
    costs = {"lambda_max_batch, exact": 0.9, "lambda_max_batch, exact, apart": 1.8, "lambda_max_batch, matrix_free": 2.0}
    monkeypatch.setattr(overhead, "measure", lambda build, candidates, members: {name: costs[name] for name in candidates})
    config = quickstart.get_config("smoke")
    config.measure.preset = "economy"
    arrays, _ = build.load_data(config)
    model, members = build.build_model(config.model, arrays.outputs), build.build_members(config)
    for most, every, expected in ((1.5, 10, 1.18), (1.95, 1, 1.9)):
        config.measure.max_overhead = most
        plan = build.choose_instruments(config, model, arrays, members)
        assert plan["cadences"] == {"lambda_max_batch": every} and plan["expected_overhead"] == pytest.approx(expected)


def test_measure_of_an_expensive_and_a_cheap_instrument(monkeypatch):
    monkeypatch.setattr(overhead, "_SECONDS", 0.02)
    config = quickstart.get_config("smoke")
    arrays, _ = build.load_data(config)
    model, members = build.build_model(config.model, arrays.outputs), build.build_members(config)
    make_trainer = lambda chosen: build_trainer(config, model, arrays, chosen)
    cheap = build_instruments(config, model, arrays, {"loss_batch_after": 3}, {})["loss_batch_after"]
    heavy = lambda now: {
        "sum": jax.lax.fori_loop(0, 300, lambda _, a: jnp.tanh(a @ a), jnp.ones((128, 128)) + now.outputs[0, 0])[0, 0]
    }
    costs = overhead.measure(make_trainer, {"cheap": cheap, "dear": Instrument(("sum",), 7, heavy)}, members)
    assert 0 <= costs["cheap"] < costs["dear"]  # it costs a hundred steps, more than any noise
