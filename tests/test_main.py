"""The program, as a user meets it: every config's smoke variant, resuming, stand-ins, the report."""

import json
import shutil

import numpy as np
import pytest

import catapult_jax
from catapult_jax import records, training
from catapult_jax.tangent_kernel import neural_tangents
from configs import cifar_gd, cifar_gd_multi, quickstart, synthetic_sgd_b1
from experiments import config as configs
from experiments import main, report


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)


def smoke(**fields):
    config = quickstart.get_config("smoke")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def about_data(tmp_path):
    return json.loads((tmp_path / "run" / "run.json").read_text())["data"]


@pytest.mark.parametrize(
    ("module", "variant"),
    [(cifar_gd, "cnn,smoke"), (cifar_gd, "ratios,smoke"), (cifar_gd_multi, "smoke"), (synthetic_sgd_b1, "smoke")],
    ids=["cnn", "ratios", "multi", "sgd"],
)
def test_smoke_on_embedded_data(module, variant, tmp_path, no_data, capsys):
    config = module.get_config(variant)
    main.run(config, tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run")
    assert record["loss_batch"].dims == ("member", "step") and record.sizes["step"] == config.steps
    assert record.attrs["data"] == about_data(tmp_path)["name"]
    assert {"seed", "rate", "lr_relative", "lr_init", "critical_lr_init", "step"} <= set(record.coords)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["kernel_check"]["relative_error"] <= 1e-5
    assert about["status"] == "complete"
    html = (tmp_path / "run" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3 and "http" not in html.split("</head>")[1].split("<pre>")[0]
    assert {p.suffix for p in (tmp_path / "run" / "figures").iterdir()} == {".png", ".pdf"}
    out = capsys.readouterr()
    assert "relative error" in out.out and "critical lr at initialisation" in out.out
    if module is not synthetic_sgd_b1:
        assert about["data"]["name"] == "natural_patches" and about["data"]["stand_in_for"] == "cifar10"
        assert "WARNING: cifar10 could not be had" in out.err
        assert "stand-in for cifar10" in html and "<h1>" in html and "on natural_patches</h1>" in html
        assert "published: 3.6" in out.out or "published: 4.5" in out.out
    else:
        assert "Exceedance as a predictor" in html
    before = html
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "events.jsonl").unlink()
    assert report.main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_text() == before
    events = records.read_json_lines(tmp_path / "run" / "events.jsonl")
    assert all({"member", "seed", "kind", "onset", "factor"} <= set(e) for e in events)


def test_smoke_on_real_cifar(tmp_path, real_data):
    main.run(cifar_gd.get_config("smoke"), tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["data"]["name"], about["data"]["stand_in_for"]) == ("cifar10", None)
    assert "on cifar10</h1>" in (tmp_path / "run" / "report.html").read_text()


def test_strict_refuses_a_stand_in_and_writes_nothing(tmp_path, no_data):
    config = cifar_gd.get_config("smoke")
    config.data.strict = True
    with pytest.raises(configs.ConfigError, match=r"data.name='cifar10' can't be had.*Ways out"):
        main.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_interrupted_and_resumed_is_the_same_record(tmp_path, monkeypatch, capsys):
    main.run(smoke(), tmp_path / "whole")

    calls, whole_trainer = [], training.trainer

    def dies(*arguments, **keywords):
        made = whole_trainer(*arguments, **keywords)

        def run(*a):
            if len(calls) == 1:
                raise KeyboardInterrupt
            calls.append(1)
            return made.run(*a)

        return made._replace(run=run)

    with monkeypatch.context() as patched:
        patched.setattr(main.training, "trainer", dies)
        with pytest.raises(KeyboardInterrupt):
            main.run(smoke(), tmp_path / "parts")
    assert catapult_jax.open_record(tmp_path / "parts").sizes["step"] == 3
    main.run(smoke(), tmp_path / "parts")
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    whole, parts = (catapult_jax.open_record(tmp_path / name) for name in ("whole", "parts"))
    for name in whole.data_vars:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)
    main.run(smoke(), tmp_path / "parts")
    assert "already complete" in capsys.readouterr().out
    lines = (tmp_path / "parts" / "events.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines
    assert len(json.loads((tmp_path / "parts" / "run.json").read_text())["resumed_with"]) == 1
    shutil.rmtree(tmp_path / "parts" / "checkpoints")
    main.run(smoke(), tmp_path / "parts")
    assert catapult_jax.open_record(tmp_path / "parts").sizes["step"] == 6


def test_a_directory_with_another_run_or_other_files_is_left_alone(tmp_path):
    main.run(smoke(), tmp_path / "run")
    before = {p: p.read_bytes() for p in sorted((tmp_path / "run").glob("*.json"))}
    with pytest.raises(configs.ConfigError, match="holds a run with steps=6, not 7"):
        main.run(smoke(steps=7), tmp_path / "run")
    assert before == {p: p.read_bytes() for p in sorted((tmp_path / "run").glob("*.json"))}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(configs.ConfigError, match="not empty and holds no run"):
        main.run(smoke(), tmp_path / "other")


@pytest.mark.parametrize(
    ("fields", "present"),
    [
        ({"loss": "softmax_cross_entropy", "data__coding": "integer"}, "loss_top"),
        ({"loss": "logistic", "data__coding": "binary", "model__bias": True}, "loss_top"),
        ({"data__name": "digits", "data__classes": (), "data__coding": "one_hot", "data__scaling": "standardize"}, "loss_top"),
        (
            {"members__lr_relative": (), "optimizer__lr": 0.5, "measure__batch_kernel_every": 2, "claims": ()},
            "critical_lr_batch",
        ),
        ({"members__lr_relative": (), "optimizer__lr": 0.5, "measure__batch_kernel_every": 0, "claims": ()}, "loss_batch"),
        (
            {"optimizer__batch_size": 4, "measure__train_kernel_every": 2, "measure__probe_size": 8, "members__seed": (0, 1)},
            "critical_lr_probe",
        ),
    ],
    ids=str,
)
def test_other_losses_codings_and_instruments(fields, present, tmp_path):
    main.run(smoke(**fields), tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run")
    assert np.isfinite(record[present].values[:, 0]).all()
    assert np.isfinite(record["lr_relative"].values).all()


def test_a_kernel_that_disagrees_with_neural_tangents_stops_the_run(tmp_path, monkeypatch):
    right = main.tangent_kernel
    monkeypatch.setattr(
        main, "tangent_kernel", lambda f, p, x, method="auto": right(f, p, x, method=method) * (1 + 0.01 * (method == "auto"))
    )
    with pytest.raises(main.RunError, match="kernel differs from neural_tangents by"):
        main.run(smoke(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_neural_tangents_the_check_is_skipped_and_says_so(tmp_path, monkeypatch, capsys):
    def missing():
        raise catapult_jax.NeuralTangentsMissing("not installed")

    monkeypatch.setattr(neural_tangents, "load", missing)
    main.run(smoke(), tmp_path / "run")
    assert "skipped: not installed" in capsys.readouterr().out


def test_a_run_that_diverges_says_so(tmp_path):
    main.run(smoke(members__lr_relative=(1e7,), steps=12), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"
    assert "frozen after a loss that was not finite" in (tmp_path / "run" / "report.html").read_text()


def test_report_of_nothing(tmp_path, capsys):
    assert report.main(["report", str(tmp_path)]) == 2
    assert "holds no record.zarr" in capsys.readouterr().err


def test_report_escapes_what_comes_from_outside(tmp_path):
    main.run(smoke(title="<script>alert(1)</script>"), tmp_path / "run")
    assert "<script>" not in (tmp_path / "run" / "report.html").read_text()
