"""The record of a watch on disk, its report, and the sinks of others."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from catapult_jax import Monitor, Recorder, open_record, records, sinks, watch
from catapult_jax.report.__main__ import main

MODEL = lambda w, x: x @ w
X, Y = jax.random.normal(jax.random.key(0), (4, 3)), jnp.ones(4)
WATCH = watch(MODEL, loss="mse", optimizer=optax.sgd(0.1), every=2, smoothing=0.5)


def metrics_of(step: int) -> dict:
    """Metrics as ``WATCH`` gives them, with a spike at step 3; the critical lr is measured at every second step."""
    nan = float("nan")
    loss = 3.0 if step == 3 else 1.0
    measured = dict.fromkeys(
        ("critical_lr", "lambda_max", "lambda_max_bound", "converged", "directional", "lr_over_critical"), nan
    )
    if step % 2 == 0:
        measured = {
            "critical_lr": 0.08,
            "lambda_max": 25.0,
            "lambda_max_bound": 0.0,
            "converged": 1.0,
            "directional": 0.5,
            "lr_over_critical": 1.25,
        }
    values = measured | {"loss": loss, "lr": 0.1, "event": 1.0 if step == 4 else 0.0, "spikes": 0.0, "spike_score": nan}
    return {f"catapult/{name}": jnp.float32(value) for name, value in values.items()}  # fmt: skip


def write(folder, steps, *, total=10, flush_every=100, **options):
    with Recorder(folder, WATCH, steps=total, flush_every=flush_every, **options) as recorder:
        for step in steps:
            recorder.write(step, metrics_of(step))


@pytest.mark.parametrize("flush_every", [1, 3, 100])
def test_recorder_writes_the_record_of_the_experiments(tmp_path, flush_every):
    write(tmp_path, range(7), flush_every=flush_every)

    record = open_record(tmp_path)

    assert record.sizes == {"member": 1, "step": 7}
    np.testing.assert_array_equal(record["loss_batch"].values[0], [1, 1, 1, 3, 1, 1, 1])
    assert np.isnan(record["critical_lr_batch"].values[0]).tolist() == [False, True] * 3 + [False]
    assert record["critical_lr_batch"].attrs["units"] == "learning rate"
    about = records.read_json(tmp_path / records.WATCH)
    assert about["watch"]["every"] == 2 and about["steps"] == 10 and "packages" in about["environment"]


def test_recorder_of_every_third_step_leaves_nan_between(tmp_path):
    write(tmp_path, range(0, 7, 3), flush_every=2)

    loss = open_record(tmp_path)["loss_batch"].values[0]

    assert np.flatnonzero(np.isfinite(loss)).tolist() == [0, 3, 6] and len(loss) == 7


def test_recorder_goes_on_from_a_checkpoint_of_the_loop(tmp_path):
    """A killed loop has a record up to its last flush, and goes on from an earlier step."""
    killed = Recorder(tmp_path / "a", WATCH, steps=10, flush_every=2)
    for step in range(7):
        killed.write(step, metrics_of(step))  # steps 0 to 5 are on disk
    assert open_record(tmp_path / "a").sizes["step"] == 6
    write(tmp_path / "a", range(4, 10))
    write(tmp_path / "b", range(10))

    resumed, whole = open_record(tmp_path / "a"), open_record(tmp_path / "b")

    for name in whole:
        np.testing.assert_array_equal(resumed[name].values, whole[name].values, err_msg=str(name))


def test_recorder_keeps_steps_that_could_not_be_written(tmp_path, monkeypatch):
    """A full disk: the loop goes on, and the next flush writes them."""
    recorder, whole = Recorder(tmp_path, WATCH, steps=10), records.write
    for step in range(3):
        recorder.write(step, metrics_of(step))
    monkeypatch.setattr(
        records, "write", lambda *args, **options: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        recorder.flush()
    monkeypatch.setattr(records, "write", whole)
    recorder.write(3, metrics_of(3))
    recorder.close()

    assert open_record(tmp_path)["loss_batch"].values.tolist() == [[1.0, 1.0, 1.0, 3.0]]


@pytest.mark.parametrize("name", ["step", "run", "..", ""])
def test_recorder_refuses_a_metric_whose_name_is_taken(tmp_path, name):
    recorder = Recorder(tmp_path, WATCH, steps=10)
    with pytest.raises(
        ValueError, match=f"metric '{name}' is no name for a series; allowed: another name than step, member, run"
    ):
        recorder.write(0, metrics_of(0) | {name: 1.0})


def test_recorder_refuses_other_runs_and_steps(tmp_path):
    write(tmp_path, range(3))

    with pytest.raises(ValueError, match=r"steps=20 in .*; allowed: 10, as in the record there"):
        Recorder(tmp_path, WATCH, steps=20)
    with pytest.raises(ValueError, match="flush_every=0; allowed: a whole number, 1 or more"):
        Recorder(tmp_path, WATCH, steps=10, flush_every=0)
    recorder = Recorder(tmp_path, WATCH, steps=10)
    recorder.write(3, metrics_of(3))
    for step in (3, 10):
        with pytest.raises(ValueError, match=f"step={step} of a record with steps=10; allowed: 4 to 9"):
            recorder.write(step, metrics_of(step))
    assert open_record(tmp_path).sizes["step"] == 3
    recorder = Recorder(tmp_path, WATCH, steps=10, flush_every=1)
    with pytest.raises(ValueError, match="metric 'mine' of step 3 is new; allowed: those of the first step on record"):
        recorder.write(3, metrics_of(3) | {"mine": 1.0})
    assert open_record(tmp_path).sizes["step"] == 3


@pytest.mark.parametrize("flush_every", [1, 2, 100])
def test_recorder_keeps_a_metric_that_is_left_out_at_some_steps(tmp_path, flush_every):
    with Recorder(tmp_path, WATCH, steps=6, flush_every=flush_every) as recorder:
        for step in range(6):
            recorder.write(step, metrics_of(step) | ({"accuracy": step / 10} if step % 3 == 0 else {}))

    np.testing.assert_allclose(open_record(tmp_path)["accuracy"].values[0], [0, np.nan, np.nan, 0.3, np.nan, np.nan])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"catapult/loss": 1.0, "loss": 2.0}, "metrics 'catapult/loss' and 'loss' are both the series 'loss_batch'"),
        ({"a/b": 1.0, "a.b": 2.0}, "metrics 'a/b' and 'a.b' are both the series 'a.b'"),
        ({"note": "bad"}, "metric 'note' of step 0 is 'bad'; allowed: a name, and one number"),
        ({"rows": np.ones(3)}, "metric 'rows' of step 0 is array"),
        ({3: 1.0}, "metric 3 of step 0 is 1.0; allowed: a name"),
        ({"eigenvalues": 1.0}, "metric 'eigenvalues' is no name for a series"),
        ({"zarr.json": 1.0}, "metric 'zarr.json' is no name for a series"),
        ({"a\\b": 1.0}, "is no name for a series"),
        ({"a" * 151: 1.0}, "is no name for a series"),
        ({}, "metrics of step 0 are empty"),
    ],
)
def test_recorder_refuses_metrics_before_anything_is_lost(tmp_path, metrics, message):
    recorder = Recorder(tmp_path, WATCH, steps=10)

    with pytest.raises(ValueError, match=message):
        recorder.write(0, metrics)

    recorder.write(0, metrics_of(0))
    recorder.close()
    assert open_record(tmp_path).sizes["step"] == 1


def test_recorder_refuses_the_record_of_another_recorder(tmp_path):
    first, second = (Recorder(tmp_path, WATCH, steps=10) for _ in range(2))
    for step in range(3):
        first.write(step, metrics_of(step))
    second.write(0, metrics_of(0))
    second.flush()

    with pytest.raises(ValueError, match="has 1 steps, not 0: another recorder writes there; allowed: a directory for each"):
        first.flush()


def test_recorder_warns_of_a_record_that_it_writes_again(tmp_path):
    write(tmp_path, range(3))

    with pytest.warns(UserWarning, match="has 3 steps; they are written again from step 0 on"):
        write(tmp_path, range(1))


def test_recorder_warns_of_steps_that_are_lost_between_a_kill_and_a_checkpoint(tmp_path):
    write(tmp_path, range(3))

    with pytest.warns(UserWarning, match=r"steps 3 to 4 are not on record; allowed: flush\(\) where the loop saves"):
        write(tmp_path, range(5, 6))


def test_recorder_refuses_the_record_of_another_watch(tmp_path):
    write(tmp_path, range(3))

    with pytest.raises(ValueError, match=r"every=3 of the watch, in .*; allowed: 2, as in the record there"):
        Recorder(tmp_path, watch(MODEL, loss="mse", optimizer=optax.sgd(0.1), every=3, smoothing=0.5), steps=10)
    (tmp_path / records.WATCH).write_text("{}")
    with pytest.raises(ValueError, match=r"holds a record without a whole watch\.json; allowed: the directory of a Recorder"):
        Recorder(tmp_path, WATCH, steps=10)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file' is a file, or below one; allowed: a directory"):
        Recorder(tmp_path / "file", WATCH, steps=10)


def test_recorder_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    write("~/mine", range(2))

    assert open_record("~/mine").sizes["step"] == 2 and (tmp_path / "mine").is_dir()


def test_recorder_warns_where_the_watch_sees_another_loss(tmp_path):
    recorder = Recorder(tmp_path, WATCH, steps=10)
    for step in range(3):
        recorder.write(step, metrics_of(step) | {"catapult/loss_of_watch": 1.01 if step < 2 else 2.0})

    with pytest.warns(UserWarning, match="step 2: the watch finds a loss of 2, the training step gave 1; give params before"):
        recorder.flush()


def test_report_of_a_negative_loss(tmp_path, plain_figures):
    with Recorder(tmp_path, WATCH, steps=3) as recorder:
        for step in range(3):
            recorder.write(step, metrics_of(step) | {"catapult/loss": 0.5 - step})

    assert (
        "Not looked for: this needs the training loss of every step, and none that is negative."
        in main([str(tmp_path)]).read_text()
    )


def test_report_of_layers(tmp_path, plain_figures):
    with Recorder(tmp_path, WATCH, steps=4) as recorder:
        for step in range(4):
            recorder.write(step, metrics_of(step) | {"catapult/directional/out": 0.5 + step, "catapult/directional/in": 9.0})

    text = main([str(tmp_path)]).read_text()

    assert "the layer with the least multiple is nearest to instability" in text and "0.5 (step 0)" in text


def test_recorder_refuses_other_metrics_at_the_first_step(tmp_path):
    with Recorder(tmp_path, WATCH, steps=4) as recorder:
        recorder.write(0, {"catapult/loss": 1.0, "catapult/lr": 0.1})

    again = Recorder(tmp_path, WATCH, steps=4)
    with pytest.raises(
        ValueError, match="metric 'catapult/directional/out' of step 1 is new; allowed: those of the first step on record"
    ):
        again.write(1, {"catapult/loss": 1.0, "catapult/lr": 0.1, "catapult/directional/out": 2.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_of_watch": np.nan}, "step 0: the watch finds a loss of nan, the training step gave 1; give params before"),
        ({"critical_lr": np.nan}, "catapult/critical_lr is NaN at all measured steps (1): the optimizer has no rule, or"),
    ],
)
def test_recorder_warns_of_what_the_watch_does_not_find(tmp_path, changes, message):
    """At two of four steps the watch measures; the other two say nothing."""
    with pytest.warns(UserWarning) as warned, Recorder(tmp_path, WATCH, steps=4, flush_every=2) as recorder:
        for step in range(4):
            metrics = metrics_of(step) | {"catapult/loss_of_watch": 1.0 if step % 2 == 0 else np.nan, "catapult/loss": 1.0}
            recorder.write(step, metrics | {f"catapult/{name}": value for name, value in changes.items()})

    assert [str(w.message)[: len(message)] for w in warned] == [message]


def test_recorder_passes_metrics_on(tmp_path):
    seen, closed = [], []

    class Sink:
        def __call__(self, step, metrics):
            seen.append((step, metrics))

        def close(self):
            closed.append(True)

    write(tmp_path, range(5), flush_every=2, sinks=[Sink(), lambda step, metrics: None])

    assert [step for step, _ in seen] == [0, 1, 2, 3, 4] and closed == [True]
    assert "catapult/critical_lr" in seen[0][1] and "catapult/critical_lr" not in seen[1][1]
    assert all(isinstance(value, float) for _, metrics in seen for value in metrics.values())


def test_a_sink_that_raises_takes_nothing_from_the_others(tmp_path):
    seen, closed = [], []

    class Sink:
        def __call__(self, step, metrics):
            seen.append(step)

        def close(self):
            closed.append(True)

    def offline(step, metrics):
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        write(tmp_path, range(5), flush_every=5, sinks=[offline, Sink()])

    assert seen == [0, 1, 2, 3, 4] and closed == [True]
    assert open_record(tmp_path).sizes["step"] == 5


def test_report_of_a_recorded_watch(tmp_path, plain_figures):
    """With the events of the batch loss, smoothed as the watch was told."""
    write(tmp_path, range(10))

    page = main([str(tmp_path)])

    text = page.read_text()
    assert "random batches; 10 steps" in text and "at 5 of 5 measured steps" in text
    (event,) = records.read_json_lines(tmp_path / "events.jsonl")
    assert event["kind"] == "catapult" and event["peak"] == 3
    figures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert figures == {"loss", "lambda_max", "lr_over_critical_lr", "directional"}


def test_report_draws_metrics_of_ones_own(tmp_path, plain_figures):
    with Recorder(tmp_path, WATCH, steps=3) as recorder:
        for step in range(3):
            recorder.write(step, metrics_of(step) | {"accuracy": 0.5 + 0.1 * step})

    main([str(tmp_path), "--interactive"])

    assert (tmp_path / "figures" / "own_metrics.png").is_file()
    assert "Metrics of your own, along training." in (tmp_path / "report.html").read_text()
    assert "accuracy" in (tmp_path / "interactive.html").read_text()


def test_report_refuses_what_is_no_record(tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    for arguments in ([], ["--none"], ["a", "b"]):
        with pytest.raises(SystemExit, match=r"usage: python -m catapult_jax\.report DIR"):
            main(arguments)
    with pytest.raises(SystemExit, match=r"error: DIR=.* holds no watch.json or no record"):
        main([str(tmp_path)])


def test_monitor_owns_its_program(tmp_path):
    recorder = Recorder(tmp_path, WATCH, steps=5)
    w = jnp.zeros(3)
    monitor = Monitor(WATCH, w, recorder)
    for step in range(3):
        gradient = jax.grad(lambda w: jnp.mean((MODEL(w, X) - Y) ** 2))(w)
        new = w - 0.1 * gradient
        metrics = monitor(
            step,
            params=w,
            batch=(X, Y),
            new_params=new,
            opt_state=optax.sgd(0.1).init(w),
            loss=jnp.mean((MODEL(w, X) - Y) ** 2),
        )
        w = new
        assert np.isfinite(metrics["catapult/critical_lr"]) == (step % 2 == 0)
    recorder.close()

    assert open_record(tmp_path)["critical_lr_batch"].values[0, 0] == pytest.approx(
        float(2 / jnp.linalg.eigvalsh(2 / 4 * X @ X.T)[-1]), rel=1e-4
    )


@pytest.mark.parametrize("first", [0, 1, 7])
def test_monitor_measures_at_every_second_call(first):
    """Whatever the numbers of the steps, and of whatever type; a call without an update does not count."""
    w = jnp.zeros(3)
    monitor = Monitor(WATCH, w)
    given = dict(params=w, batch=(X, Y), new_params=w + 0.1, opt_state=optax.sgd(0.1).init(w), loss=1.0)

    calls = [monitor(jnp.int32(first + 10 * i), **given, skipped=i in (1, 2))["catapult/critical_lr"] for i in range(7)]

    assert np.isfinite(calls).tolist() == [True, False, False, False, True, False, True]


# ---- sinks


def fake(monkeypatch, name, calls):
    """A module of that name that lists what is called."""
    module = types.ModuleType(name)
    note = lambda what: lambda *args, **kwargs: calls.append((what, args, kwargs)) or module
    for what in ("init", "log", "alert", "finish", "add_scalar", "close", "SummaryWriter"):
        setattr(module, what, note(what))
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_sinks_alert_of_events(monkeypatch, name):
    calls = []
    fake(monkeypatch, name, calls)
    sink = sinks.WandB(project="mine") if name == "wandb" else sinks.Trackio("mine")

    sink(3, {"catapult/loss": 2.0, "catapult/event": 0.0})
    sink(4, {"catapult/loss": 0.5, "catapult/event": 1.0})
    sink.close()

    assert [what for what, *_ in calls] == ["init", "log", "log", "alert", "finish"]
    assert calls[1][1:] == (({"catapult/loss": 2.0, "catapult/event": 0.0},), {"step": 3})
    assert calls[3][2] == {"title": "catapult", "text": "catapult: a spike of the loss ended at step 4, with loss 0.5"}


def test_sinks_write_scalars_for_tensorboard(tmp_path):
    sink = sinks.TensorBoard(tmp_path)
    for step in range(3):
        sink(step, {"catapult/loss": float(step)})
    sink.close()

    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert file.read_bytes().count(b"catapult/loss") == 3


@pytest.mark.parametrize(("make", "extra"), [(lambda: sinks.WandB(), "wandb"), (lambda: sinks.Trackio("mine"), "trackio")])
def test_sinks_say_what_to_install(monkeypatch, make, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ImportError, match=f"this sink needs {extra}: install it, or catapult_jax with its extra '{extra}'"):
        make()


@pytest.mark.parametrize("is_there", [False, True])
def test_csv_adds_to_a_file(tmp_path, is_there):
    if is_there:
        (tmp_path / "m.csv").touch()
    for step in range(2):
        sinks.Csv(tmp_path / "m.csv")(step, {"catapult/loss": 0.5, "catapult/critical_lr": 0.1})

    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0] == "step,name,value" and lines[1:] == [
        "0,catapult/loss,0.5", "0,catapult/critical_lr,0.1", "1,catapult/loss,0.5", "1,catapult/critical_lr,0.1",
    ]  # fmt: skip
