"""The program as a user meets it: smoke variants of the configs, resuming, fallback data, the report."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import catapult_jax
from catapult_jax import checkpoints, records
from catapult_jax.tangent import neural_tangents
from configs import (
    batch_size,
    catapults_agop,
    causes,
    cifar_cyclic,
    cifar_gd,
    cifar_gd_multi,
    cifar_sgd,
    mnist_adagrad,
    optimizers_agop,
    quickstart,
    reference,
    synthetic_sgd_b1,
)
from experiments import build, main, report, reproduce
from experiments import config as configs
from experiments.build import checks, programs
from experiments.verdicts import OF_RUN

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)


def smoke(**fields):
    config = quickstart.get_config("smoke")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def about_data(tmp_path):
    return json.loads((tmp_path / "run" / "run.json").read_text())["data"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "variant"),
    [(cifar_gd, "cnn,smoke"), (cifar_gd_multi, "smoke"), (synthetic_sgd_b1, "smoke")],
    ids=["cnn", "multi", "sgd"],
)
def test_run_of_smoke_variants_on_embedded_data(module, variant, tmp_path, no_data, capsys):
    config = module.get_config(variant)
    main.run(config, tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run")
    assert record["loss_batch"].dims == ("member", "step") and record.sizes["step"] == config.steps
    assert record.attrs["data"] == about_data(tmp_path)["name"]
    assert {"seed", "lr_given", "lr0_over_critical", "lr0", "critical_lr0", "step"} <= set(record.coords)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["kernel_check"]["relative_error"] <= 1e-5
    assert about["status"] == "complete"
    html = (tmp_path / "run" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 4 and "http" not in html.split("</head>")[1].split("<pre>")[0]
    assert {p.suffix for p in (tmp_path / "run" / "figures").iterdir()} == {".png", ".pdf"}
    out = capsys.readouterr()
    assert "relative error" in out.out and "critical lr at initialisation" in out.out
    if module is not synthetic_sgd_b1:
        assert about["data"]["name"] == "natural_patches" and about["data"]["fallback_for"] == "cifar10"
        assert "WARNING: cifar10 is not available" in out.err
        assert "fallback data for cifar10" in html and "<h1>" in html and "on natural_patches</h1>" in html
        assert "published, for CIFAR-10: 3.6" in out.out or "published, for CIFAR-10: 4.5" in out.out
    else:
        assert "Exceedance as a predictor" in html
    before = html
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "events.jsonl").unlink()
    assert report.main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_text() == before
    events = records.read_json_lines(tmp_path / "run" / "events.jsonl")
    assert all({"member", "seed", "kind", "onset", "factor"} <= set(e) for e in events)


def test_run_on_real_cifar(tmp_path, real_data, plain_figures):
    main.run(cifar_gd.get_config("smoke"), tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["data"]["name"], about["data"]["fallback_for"]) == ("cifar10", None)
    assert "on cifar10</h1>" in (tmp_path / "run" / "report.html").read_text()


def test_run_with_strict_data_writes_nothing(tmp_path, no_data):
    config = cifar_gd.get_config("smoke")
    config.data.strict = True
    with pytest.raises(configs.ConfigError, match=r"data.name='cifar10' .*cifar10.npz"):
        main.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_interrupted_and_resumed_is_the_same_record(tmp_path, monkeypatch, capsys, plain_figures):
    config = smoke(run__checkpoint_every=3)
    main.run(config, tmp_path / "whole")

    calls, whole_trainer = [], build.trainer_of

    def dies(*arguments, **keywords):
        trainer = whole_trainer(*arguments, **keywords)

        def run(*a):
            if len(calls) == 1:
                raise KeyboardInterrupt
            calls.append(1)
            return trainer.run(*a)

        return trainer._replace(run=run)

    with monkeypatch.context() as patched:
        patched.setattr(build, "trainer_of", dies)
        with pytest.raises(KeyboardInterrupt):
            main.run(config, tmp_path / "parts")
    assert catapult_jax.open_record(tmp_path / "parts").sizes["step"] == 3
    main.run(config, tmp_path / "parts")
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    whole, parts = (catapult_jax.open_record(tmp_path / name) for name in ("whole", "parts"))
    for name in whole.data_vars:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)
    main.run(config, tmp_path / "parts")
    assert "already complete" in capsys.readouterr().out
    lines = (tmp_path / "parts" / "events.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines
    assert len(json.loads((tmp_path / "parts" / "run.json").read_text())["resumed_with"]) == 1
    shutil.rmtree(tmp_path / "parts" / "checkpoints")
    main.run(config, tmp_path / "parts")
    assert catapult_jax.open_record(tmp_path / "parts").sizes["step"] == 6


def test_run_leaves_a_directory_with_another_run_or_other_files(tmp_path, plain_figures):
    main.run(smoke(), tmp_path / "run")
    before = {p: p.read_bytes() for p in sorted((tmp_path / "run").glob("*.json"))}
    with pytest.raises(configs.ConfigError, match="holds a run with steps=6, not 7"):
        main.run(smoke(steps=7), tmp_path / "run")
    assert before == {p: p.read_bytes() for p in sorted((tmp_path / "run").glob("*.json"))}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(configs.ConfigError, match="not empty and holds no run"):
        main.run(smoke(), tmp_path / "other")


@pytest.mark.long
@pytest.mark.parametrize(
    ("fields", "present"),
    [
        ({"loss": "softmax_cross_entropy", "data__target_encoding": "integer"}, "loss_top"),
        (
            {"data__name": "digits", "data__classes": None, "data__target_encoding": "one_hot", "data__scaling": "standardize"},
            "loss_top",
        ),
        (
            {
                "members__lr": None,
                "optimizer__lr": 0.5,
                "optimizer__lr_unit": "absolute",
                "measure__lambda_max_batch_every": 2,
                "claims": (),
            },
            "critical_lr_batch",
        ),
        (
            {
                "members__lr": None,
                "optimizer__lr": 0.5,
                "optimizer__lr_unit": "absolute",
                "measure__lambda_max_batch_every": 0,
                "claims": (),
            },
            "loss_batch",
        ),
        (
            {
                "optimizer__batch_size": 4,
                "measure__lambda_max_train_every": 2,
                "measure__probe_size": 8,
                "members__seed": (0, 1),
            },
            "critical_lr_probe",
        ),
    ],
    ids=str,
)
def test_run_with_other_losses_encodings_and_instruments(fields, present, tmp_path, plain_figures):
    main.run(smoke(**fields), tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run")
    assert np.isfinite(record[present].values[:, 0]).all()
    assert np.isfinite(record["lr0_over_critical"].values).all()


def test_run_stops_at_a_kernel_that_differs_from_neural_tangents(tmp_path, monkeypatch):
    right = checks.tangent_kernel
    monkeypatch.setattr(
        checks, "tangent_kernel", lambda f, p, x, method="auto": right(f, p, x, method=method) * (1 + 0.01 * (method == "auto"))
    )
    with programs.shared_programs(), pytest.raises(configs.RunError, match="kernel differs from neural_tangents by"):
        main.run(smoke(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_without_neural_tangents_says_that_it_skips_the_check(tmp_path, monkeypatch, capsys, plain_figures):
    def missing():
        raise catapult_jax.NeuralTangentsMissing("not installed")

    monkeypatch.setattr(neural_tangents, "load", missing)
    with programs.shared_programs():
        main.run(smoke(), tmp_path / "run")
    assert "skipped: not installed" in capsys.readouterr().out


def test_run_that_diverges_says_so(tmp_path, plain_figures):
    main.run(smoke(members__lr=(1e7,), steps=12), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"
    assert "<td>the loss was not finite</td>" in (tmp_path / "run" / "report.html").read_text()


def test_report_of_nothing(tmp_path, capsys):
    assert report.main(["report", str(tmp_path)]) == 2
    assert f"error: no run in {tmp_path}" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "variant"),
    [
        *((cifar_sgd, f"{variant},smoke") for variant in ("fcn", "fcn,momentum")),
        (cifar_cyclic, "smoke"),
        (batch_size, "rank2,momentum,smoke"),
        (catapults_agop, "rank2,smoke"),
        (mnist_adagrad, "smoke"),
        (optimizers_agop, "rank2,smoke"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.removeprefix("configs."),
)
def test_run_of_the_other_smoke_variants(module, variant, tmp_path, no_data, plain_figures):
    config = module.get_config(variant)
    verdicts = main.run(config, tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run")
    assert [v.claim for v in verdicts] == [claim for claim in config.claims if claim in OF_RUN]
    assert np.isfinite(record["loss_batch"].values[:, 0]).all()
    html = (tmp_path / "run" / "report.html").read_text()
    assert ("Where training ended" in html) == (config.measure.loss_test_every > 0)
    if module is catapults_agop:
        assert record["raises"].values.tolist() == [0, 0, 1, 1] and np.isfinite(record["agop_alignment"].values[:, 0]).all()
        assert {"agop_directions.png", "against_catapults.png"} <= {p.name for p in (tmp_path / "run" / "figures").iterdir()}
        assert "gradient of the target" in html


@pytest.mark.long
def test_run_of_a_causal_test_from_its_capped_run(tmp_path, plain_figures):
    """First the arm cap, then all arms: until step 2 they are one, and from there on the capped one is the same as in the first run."""
    main.run(causes.get_config("rank2,cap,smoke"), tmp_path / "cap")
    config = causes.get_config("rank2,smoke")
    config.intervention.cap_run, config.run.stop_loss, config.claims = str(tmp_path / "cap"), None, ()

    main.run(config, tmp_path / "run")

    record = catapult_jax.open_record(tmp_path / "run").load()
    arms = dict(zip(causes.ARMS, record["loss_train"].values.reshape(7, 2, -1), strict=True))
    assert all((values[:, :3] == arms["none"][:, :3]).all() for values in arms.values())
    overshoot = dict(zip(causes.ARMS, record["overshoot"].values.reshape(7, 2, -1), strict=True))
    assert (overshoot["remove_overshoot"][:, 2:] == 0).all() and (overshoot["none"][:, 2:].sum(1) > 0).all()
    assert "remove_overshoot" in (tmp_path / "run" / "report.html").read_text()
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["intervention"]["cap_run"] == str(tmp_path / "cap")

    records.write_json(tmp_path / "run" / "run.json", about | {"status": "running"})  # as if it had been killed at the end
    shutil.rmtree(tmp_path / "cap")
    other = causes.get_config("rank2,cap,smoke")
    other.schedule.cap = 0.5
    main.run(other, tmp_path / "cap")
    with pytest.raises(
        configs.ConfigError, match=r"intervention.cap_run='.*cap' has another lr than in the earlier run .*; allowed"
    ):
        main.run(config, tmp_path / "run")


def test_run_with_a_trained_reference(tmp_path, no_data, capsys, plain_figures):
    """Train the reference, then use it: its checksum and its test error are on record."""
    task = "cifar2"  # the other tasks would run the same program on other fallback data
    config = catapults_agop.get_config(f"{task},smoke")
    with pytest.raises(configs.ConfigError, match=r"agop_reference=.*is not there; allowed: the model.npz"):
        main.run(config, tmp_path / "run")
    main.run(reference.get_config(f"{task},smoke"), tmp_path / "reference")
    config.measure.agop_reference = str(tmp_path / "reference" / "model.npz")
    main.run(config, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    checksum = hashlib.sha256((tmp_path / "reference" / "model.npz").read_bytes()).hexdigest()
    assert about["agop_reference"]["sha256"] == checksum and "ceiling" not in about["agop_reference"]
    assert about["seconds"] > 0
    record = catapult_jax.open_record(tmp_path / "run")
    assert record.attrs["agop_reference_sha256"] == checksum
    assert 0 <= about["agop_reference"]["error_test"] <= 1
    alignment = record["agop_alignment"].values
    assert ((alignment[np.isfinite(alignment)] >= 0) & (alignment[np.isfinite(alignment)] <= 1 + 1e-5)).all()
    other = catapults_agop.get_config("usps,smoke")
    other.measure.agop_reference = config.measure.agop_reference
    with pytest.raises(configs.ConfigError, match="is a model for data with name 'natural_patches'; allowed here: 'digits'"):
        main.run(other, tmp_path / "other")


def test_run_ends_when_all_members_have_stopped(tmp_path, plain_figures):
    """The record ends with a whole chunk after the last of them, and going on finds the run complete."""
    config = smoke(steps=60, run__stop_loss=1.0, run__chunk_steps=10, run__checkpoint_every=10, measure__loss_test_every=10)
    main.run(config, tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run")
    done = record["stopped"].values
    assert done[:, -1].all() and record.sizes["step"] < 60
    assert (record["loss_train"].values[done] <= 1.0).all()
    last = done.argmax(1).max() // 10  # chunk in which the last member came down
    assert record.sizes["step"] == 10 * (last + 2)
    before = (tmp_path / "run" / "report.html").read_text()
    main.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text() == before


@pytest.mark.long
def test_run_in_float64(tmp_path, plain_figures):
    """Parameters and measurements have double precision; the rest of the process keeps its own."""
    fields = {"run__float64": True, "measure__lambda_max_train_every": 1}
    main.run(smoke(**fields), tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run")
    assert record["lambda_max_train"].dtype == record["condition_number_train"].dtype == np.float64
    assert json.loads((tmp_path / "run" / "run.json").read_text())["kernel_check"]["relative_error"] < 1e-13
    assert not jax.config.jax_enable_x64

    main.run(smoke(**fields | {"run__float64": False}), tmp_path / "single")
    single = catapult_jax.open_record(tmp_path / "single")
    assert single["lambda_max_train"].dtype == np.float32
    np.testing.assert_allclose(single["lambda_max_train"][:, 0], record["lambda_max_train"][:, 0], rtol=1e-5)


def test_run_saves_the_model_of_the_end_with_its_scores(tmp_path, plain_figures):
    """The scores in the file belong to its weights, one step after the last scores on record."""
    config = smoke(run__save_model=True, measure__loss_test_every=1)
    main.run(config, tmp_path / "run")
    main.run(smoke(run__save_model=True, measure__loss_test_every=1, steps=7), tmp_path / "longer")
    params, about, _ = checkpoints.load_model(tmp_path / "run" / "model.npz")
    after = catapult_jax.open_record(tmp_path / "longer")
    assert about["loss_test"] == pytest.approx(float(after["loss_test"].values[0, 6]), rel=1e-5)
    assert about["error_test"] == pytest.approx(float(after["error_test"].values[0, 6]))
    arrays, _ = build.load_data(config)
    outputs = build.build_model(about["config"]["model"], arrays.outputs).apply(params, arrays.x_test)
    assert about["loss_test"] == pytest.approx(float(((outputs - arrays.y_test) ** 2).mean()), rel=1e-5)


def test_run_does_not_save_a_model_that_diverged(tmp_path, plain_figures):
    config = smoke(run__save_model=True, members__lr=(1e7,), steps=12)
    with pytest.raises(configs.RunError, match="the first member diverged"):
        main.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.npz").exists() and (tmp_path / "run" / "report.html").is_file()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"


def test_run_refuses_another_reference_in_the_same_directory(tmp_path, no_data, plain_figures):
    config = catapults_agop.get_config("cifar2,smoke")
    main.run(reference.get_config("cifar2,smoke"), tmp_path / "reference")
    shutil.copy(tmp_path / "reference" / "model.npz", tmp_path / "model.npz")
    params, about, _ = checkpoints.load_model(tmp_path / "model.npz")
    checkpoints.save_model(tmp_path / "other.npz", jax.tree.map(lambda leaf: 2 * leaf, params), about)
    config.measure.agop_reference = str(tmp_path / "model.npz")
    config.claims = ()
    main.run(config, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    records.write_json(tmp_path / "run" / "run.json", about | {"status": "running"})  # as if it had been killed at the end
    shutil.copy(tmp_path / "other.npz", tmp_path / "model.npz")
    with pytest.raises(configs.ConfigError, match=r"agop_reference=.* is another model than in the earlier run"):
        main.run(config, tmp_path / "run")
    shutil.copy(tmp_path / "reference" / "model.npz", tmp_path / "model.npz")
    before = catapult_jax.open_record(tmp_path / "run")
    main.run(config, tmp_path / "run")
    np.testing.assert_array_equal(
        before["loss_train"], catapult_jax.open_record(tmp_path / "run")["loss_train"][:, : before.sizes["step"]]
    )


def test_run_refuses_a_workdir_that_can_not_be_created(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "load_data", None)
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file" / "run", tmp_path / ("x" * 300), Path("/proc/run")):
        with pytest.raises(
            configs.ConfigError, match=r"workdir=.* can't be created .*; allowed: a directory that you can write to"
        ):
            main.run(smoke(), workdir)


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = "import sys; from catapult_jax import records; records.write_text(sys.argv[1], 'Gr\\u00f6\\u00dfe')"
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "text")], env=environment, check=True, timeout=60)
    assert (tmp_path / "text").read_bytes() == "Größe".encode()


def by_seed_config(task="rank2", **fields):
    config = batch_size.get_config(f"{task},smoke")
    config.data.by_seed, config.claims, config.sweep, config.run.stop_loss = True, (), (), None
    if task != "rank2":
        config.measure.agop_reference, config.measure.agop_alignment_every = None, 0
    config.members.seed, config.members.lr = (3, 5), (0.2,)
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.long
@pytest.mark.parametrize("task", ["rank2", "cifar2"])
def test_run_by_seed_is_that_of_each_seed_alone(task, tmp_path, no_data, plain_figures):
    main.run(by_seed_config(task), tmp_path / "both")
    record = catapult_jax.open_record(tmp_path / "both").load()
    for m, seed in enumerate((3, 5)):
        main.run(by_seed_config(task, **{"members.seed": None, "seed": seed}), tmp_path / str(seed))
        alone = catapult_jax.open_record(tmp_path / str(seed)).load()
        for name in alone.data_vars:  # side by side the matrix products of the members are batched, which sums in another order
            values = np.asarray(record[name].values[m], float), np.asarray(alone[name].values[0], float)
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5, err_msg=f"{name} of seed {seed}")
    assert abs(record["loss_train"].values[0, 0] - record["loss_train"].values[1, 0]) > 1e-3
    abouts = [json.loads((tmp_path / name / "run.json").read_text())["data"] for name in ("both", "3", "5")]
    assert all(about["by_seed"] for about in abouts) and len({about["sha256"] for about in abouts}) == 3


def test_run_by_seed_measures_the_alignment_at_the_points_of_each_member(tmp_path, plain_figures):
    config = by_seed_config(**{"run.checkpoint_every": 6})
    main.run(config, tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run").load()
    model = build.build_model(config.model, 1)
    for m, seed in enumerate((3, 5)):
        x = np.random.default_rng([0, seed]).standard_normal((config.data.train_size, 20)).astype(np.float32)
        params = model.init(jax.random.fold_in(jax.random.key(seed), 0), x[:1])
        rows = np.asarray(jax.vmap(jax.grad(lambda z: model.apply(params, z[None])[0, 0]))(x), float)  # noqa: B023
        target = np.zeros((len(x), 20))  # the gradient of x_1 x_2
        target[:, 0], target[:, 1] = x[:, 1], x[:, 0]
        ours, theirs = rows.T @ rows, target.T @ target
        expected = (ours * theirs).sum() / np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert record["agop_alignment"].values[m, 0] == pytest.approx(expected, rel=1e-4)


def test_run_by_seed_stopped_and_resumed_or_repeated_is_the_same_run(tmp_path, monkeypatch, capsys, plain_figures):
    config = by_seed_config(**{"run.checkpoint_every": 6})
    main.run(config, tmp_path / "whole")
    trainer_of, calls = build.trainer_of, []

    def dies(*arguments):
        trainer = trainer_of(*arguments)
        second = lambda *a: calls.append(1) or trainer.run(*a) if not calls else sys.exit(1)
        return trainer._replace(run=second)

    with monkeypatch.context() as patched:
        patched.setattr(build, "trainer_of", dies)
        with pytest.raises(SystemExit):
            main.run(config, tmp_path / "parts")
    main.run(config, tmp_path / "parts")

    assert "resuming at step 6 of 12" in capsys.readouterr().out
    assert reproduce.compare(tmp_path / "whole", tmp_path / "parts").same
    assert main.run_again(tmp_path / "whole", tmp_path / "again")


@pytest.mark.parametrize(("batch_size", "name"), [(None, "loss_modes"), (4, "loss_train_modes")], ids=["gd", "sgd"])
def test_run_with_modes_writes_the_loss_in_each(batch_size, name, tmp_path, plain_figures):
    fields = {"optimizer__batch_size": batch_size} if batch_size else {}
    main.run(smoke(measure__loss_modes=8, measure__lambda_max_train_every=2, measure__top_k=3, **fields), tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run").load()
    assert record[name].dims == ("member", "step", "mode") and record[name].sizes["mode"] == 8
    top = record[name.replace("modes", "top")].values
    assert np.isfinite(top[:, 0]).all()
    np.testing.assert_allclose(record[name].values[..., :3].sum(-1), top, rtol=1e-4)


@pytest.mark.parametrize(
    "fields", [{}, {"loss": "softmax_cross_entropy", "data__target_encoding": "integer"}], ids=["mse", "softmax"]
)
def test_run_with_more_modes_than_rows_writes_nothing(fields, tmp_path):
    config = smoke(measure__loss_modes=17, **fields)
    assert config.data.train_size == 16
    with pytest.raises(configs.ConfigError, match=r"^measure.loss_modes=17; allowed for a kernel of 16 rows: 0 to 16$"):
        main.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_run_with_two_references_has_their_alignment(tmp_path, no_data, plain_figures):
    config = catapults_agop.get_config("cifar2,smoke")
    for word in ("", ",second"):
        main.run(reference.get_config(f"cifar2{word},smoke"), tmp_path / f"reference{word}")
    config.measure.agop_reference = str(tmp_path / "reference" / "model.npz")
    config.measure.agop_second_reference = str(tmp_path / "reference,second" / "model.npz")
    main.run(config, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())["agop_reference"]
    assert 0 < about["ceiling"] < 1
    assert about["second_sha256"] == hashlib.sha256((tmp_path / "reference,second" / "model.npz").read_bytes()).hexdigest()
