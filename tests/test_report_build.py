"""The report of a record from somebody's own training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import catapult_jax
from catapult_jax import records
from catapult_jax.report import Settings, build_report
from tests.helpers_page import SCRIPT, Page, safe_page

STEPS, LR = 30, 0.5  # critical lr at the start: 0.4


def train(folder):
    """Gradient descent on a two-layer linear model, above its critical lr; its series go on record."""
    x, y = jnp.array([[1.0], [0.5]]), jnp.array([[0.1], [0.05]])
    params = {"a": jnp.array([[1.0, 1.0]]), "b": jnp.array([[1.0], [-1.0]])}
    apply = lambda params, x: x @ params["a"] @ params["b"]
    loss = lambda params: catapult_jax.batch_loss(apply(params, x), y, loss="mse")
    series = {"loss_train": [], "lr": [], "critical_lr_batch": []}

    for _ in range(STEPS):
        value, gradient = jax.value_and_grad(loss)(params)
        critical = catapult_jax.critical_lr(apply, params, (x, y), loss="mse")
        for name, number in zip(series, (value, LR, critical), strict=True):
            series[name].append(float(number))
        params = jax.tree.map(lambda p, g: p - LR * g, params, gradient)

    arrays = {name: np.array([values], np.float32) for name, values in series.items()}
    members = {"seed": np.array([0])}
    folder.mkdir()
    records.create(folder, members=members, steps=STEPS, shapes=arrays, about={"title": "mine"})
    records.write(folder, 0, arrays)
    return arrays


def test_build_report_of_a_plain_loop(tmp_path):
    series = train(tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run")

    path = build_report(record, title="my own loop", folder=tmp_path / "report")

    rows = records.read_json_lines(tmp_path / "report" / "events.jsonl")
    (event,) = catapult_jax.find_events(*(values[0] for values in series.values()))
    assert rows == [{"member": 0, "seed": 0, "factor": 1.5} | event._asdict()]
    assert event.kind == "catapult" and event.onset == 0 and event.end > event.peak
    figures = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    assert figures == {f"{name}.{suffix}" for name in ("loss", "lr_over_critical_lr") for suffix in ("png", "pdf")}
    page = Page(path.read_text())
    assert (
        "my own loop" in page.words
        and "1 member, seed 0; full batch; 30 steps." in page.words
        and "1 of 1 member has a catapult; " in page.words
    )
    assert str(event) in page.words


@pytest.mark.parametrize("name", ["loss_train", "lambda_max_train", "gradient_norm"])
def test_build_report_of_a_single_series(name, tmp_path, plain_figures):
    record = xr.Dataset({name: (("member", "step"), np.ones((2, 5)))})

    path = build_report(record, Settings(examples=10, batch_size=5), title="mine", folder=tmp_path)

    assert "10 training examples; 2 members; batch size 5; 5 steps." in Page(path.read_text()).words
    assert (tmp_path / "figures" / "loss.png").is_file() == (name == "loss_train")


def test_build_report_escapes_title_and_names(tmp_path, plain_figures):
    record = xr.Dataset({f"converged{SCRIPT}": (("member", "step"), np.ones((1, 2)))})

    page = safe_page(build_report(record, title=SCRIPT, folder=tmp_path).read_text())

    assert page.words.count(SCRIPT) == 3  # title, heading, and the name


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_build_report_refuses_an_empty_record(shape, tmp_path):
    record = xr.Dataset({"loss_train": (("member", "step"), np.ones(shape))})

    with pytest.raises(ValueError, match=r"allowed: one (member|step) or more"):
        build_report(record, title="mine", folder=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_build_report_refuses_batches_of_an_unknown_training_set(tmp_path):
    record = xr.Dataset({"loss_train": (("member", "step"), np.ones((1, 5)))})

    with pytest.raises(ValueError, match="examples=None; allowed"):
        build_report(record, Settings(batch_size=5), title="mine", folder=tmp_path)
