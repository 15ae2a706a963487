"""What is wrong with a command line or a config is said in one line, with exit code 2, before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import (
    batch_size,
    catapults_agop,
    cifar_cyclic,
    cifar_gd,
    cifar_gd_multi,
    cifar_sgd,
    default,
    mnist_adagrad,
    mnist_ntk,
    mnist_optimizers,
    optimizers_agop,
    quickstart,
    reference,
    suppressed,
    synthetic_sgd_b1,
    tasks,
)
from experiments import config as configs

ROOT = Path(__file__).parents[1]


def command(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "experiments.main", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/quickstart.py", "--config.optimizer.lr_relativ=2"],
            "no field 'optimizer.lr_relativ'; nearest: 'optimizer.lr_relative'",
        ),
        (["--config=configs/quickstart.py", "--config.steps=many"], "config.steps=many"),
        (["--config=configs/quickstart.py:huge"], "variant 'huge'; allowed: full, smoke"),
        (["--config=configs/quickstart.py", "--config.model.depth=0"], "model.depth=0; allowed: 1 or more"),
        ([], "--config is missing"),
    ],
)
def test_command_line_errors(arguments, message, tmp_path):
    done = command(*arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_file_and_an_unknown_flag(tmp_path):
    for arguments in (["--config=configs/none.py"], ["--config=configs/quickstart.py", "--worker=1"]):
        done = command(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def changed(**fields) -> ConfigDict:
    config = quickstart.get_config()
    with config.unlocked():
        for name, value in fields.items():
            config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps=0; allowed: 1 or more"),
        ({"members__seed": (0, 0)}, "members.seed=.* each value once"),
        ({"members__seed": (0.5,)}, r"members.seed=\(0.5,\)"),
        ({"members__lr_relative": (-1.0,)}, "members.lr_relative.*above 0"),
        ({"members__lr_relative": ("a",)}, "members.lr_relative"),
        ({"model__name": "mlp"}, "model.name='mlp'; allowed: cnn, fcn, vit, wide_resnet"),
        ({"model__depth": 1}, "model.name='fcn', model.depth=1; allowed for fcn and cnn: 2"),
        ({"optimizer__momentum": 1.0}, "optimizer.momentum=1.0; allowed: 0 or more, below 1"),
        ({"members__raises": (1, 2)}, "schedule.name='constant', members.raises=.*staircase"),
        (
            {"members__cap": (0.5,), "measure__batch_kernel_every": 0, "claims": ()},
            "members.cap=.*allowed with a cap: 1 or more",
        ),
        ({"measure__agop_every": 1}, "measure.agop_every=1, measure.agop_reference=''; allowed: both or none"),
        ({"measure__agop_every": 1, "measure__agop_reference": "closed_form"}, "closed_form for synthetic targets"),
        (
            {"run__stop_loss": 0.1, "measure__test_every": 20},
            "run.chunk_steps=10, measure.test_every=20; allowed .* no shorter",
        ),
        (
            {"optimizer__batch_size": 4, "measure__train_loss_every": 0, "run__stop_loss": 0.1, "claims": ()},
            "loss to stop at: 1",
        ),
        ({"data__name": "celeba"}, "data.attribute=None; allowed for celeba"),
        ({"data__synthetic__target": "sine"}, "data.synthetic.target='sine'; allowed: pairs, product, squares"),
        ({"sweep": ("steps",)}, r"sweep=\('steps',\); allowed"),
        ({"claims": ("catapults_raise_alignment",)}, "run.stop_loss=0.0; allowed with the claim catapults_raise_alignment"),
        (
            {"claims": ("small_batches_help",), "run__stop_loss": 0.1, "run__chunk_steps": 50},
            "measure.agop_every=0; allowed with",
        ),
        ({"schedule__period": 1}, "schedule.period=1; allowed: 2 or more"),
        ({"measure__preset": "cheap"}, "measure.preset='cheap'; allowed: , economy, full, standard"),
        ({"measure__max_overhead": 1.0}, "measure.max_overhead=1.0; allowed: above 1"),
        ({"measure__method": "lanczos"}, "measure.method='lanczos'; allowed: , auto, exact, products"),
        ({"measure__top_k_max": 8}, "measure.top_k_max=8, measure.method=''; allowed with a largest k: products"),
        (
            {"measure__top_k_max": 8, "measure__method": "products", "measure__batch_kernel_every": 0, "claims": ()},
            "measure.top_k_max=8, measure.batch_kernel_every=0; allowed with a largest k: a cadence of 1",
        ),
        ({"measure__top_k_max": 2, "measure__method": "products"}, "measure.top_k_max=2, measure.top_k=5; allowed: 0, or"),
        ({"measure__tolerance": 0.0}, "measure.tolerance=0.0; allowed: above 0"),
        ({"measure__chunk_size": -1}, "measure.chunk_size=-1; allowed: 0 or more"),
        (
            {"optimizer__name": "lion"},
            "optimizer.name='lion'; allowed: adadelta, adagrad, adam, adamw, heavy_ball, nesterov, rmsprop, sgd",
        ),
        ({"optimizer__name": "adam", "optimizer__momentum": 0.9}, "optimizer.momentum=0.9; allowed for it: b1, b2, eps"),
        ({"optimizer__b1": 0.9}, "optimizer.name='sgd', optimizer.b1=0.9; allowed for it: momentum, nesterov"),
        ({"optimizer__name": "adam", "optimizer__b2": 1.0}, "optimizer.b2=1.0; allowed: 0 or more, below 1"),
        ({"optimizer__nesterov": True}, "optimizer.nesterov=True, optimizer.momentum=0.0; allowed with nesterov: a momentum"),
        (
            {"optimizer__name": "adam", "measure__preset": "full", "measure__preconditioner_every": 1},
            "measure.preset='full', measure.preconditioner_every=1; allowed with a preset: 0",
        ),
        (
            {"claims": ("adagrad_outgrows_its_lr",), "measure__preconditioner_every": 0},
            "optimizer.name='sgd'; allowed with the claim",
        ),
        (
            {"claims": ("catapults_condition_the_kernel",), "optimizer__batch_size": 4},
            "optimizer.batch_size=4; allowed with the claim catapults_condition_the_kernel: 0, all",
        ),
        (
            {"claims": ("catapults_condition_the_kernel",), "measure__method": "products"},
            "measure.method='products'; allowed with the claim catapults_condition_the_kernel: no preset",
        ),
        ({"measure__preconditioner_every": 1}, "which have no preconditioner: 0"),
        ({"schedule__decay": 0.0}, "schedule.decay=0.0; allowed: above 0, at most 1"),
        (
            {"schedule__name": "relative_to_critical", "members__lr_relative": (), "optimizer__lr": 1.0},
            "schedule.name='relative_to_critical', optimizer.lr=1.0; allowed with relative_to_critical: relative rates",
        ),
        (
            {"schedule__name": "relative_to_critical", "measure__batch_kernel_every": 0, "claims": ()},
            "relative to the critical lr of the step",
        ),
        ({"optimizer__lr": 1.0}, "optimizer.lr=1.0, members.lr_relative=.*not both"),
        ({"members__lr_relative": ()}, "one of them above 0"),
        ({"optimizer__batch_size": 129}, "optimizer.batch_size=129, data.train_size=128"),
        ({"optimizer__batch_size": 4, "measure__train_loss_every": 5}, "train_loss_every=5.*allowed with batches: 1"),
        ({"loss": "logistic"}, "loss='logistic', data.coding='sign'; allowed for this loss: binary"),
        ({"data__name": "synthetic"}, "coding 'value' with synthetic"),
        ({"data__stand_in": "digits"}, "no stand-in for embedded data"),
        ({"events__factor": 1.05}, "factor above 1"),
        ({"events__factor": float("nan")}, "events.factor=nan"),
        ({"model__strides": (2,)}, "allowed for models other than cnn: none"),
        ({"model__name": "cnn", "model__strides": (2,)}, "one for each of the 4 convolutions"),
        (
            {"schedule__name": "staircase", "measure__batch_kernel_every": 0, "claims": ()},
            "relative to the critical lr of the step",
        ),
        ({"claims": ("everything",)}, "claims=.*a tuple of"),
        ({"measure__probe_size": 1000}, "probe no larger"),
        ({"data__classes": (0, 0)}, "data.classes=.* each value once"),
        ({"measure__batch_kernel_every": 0}, "claims=.*measure.batch_kernel_every=0; allowed with the claim first_catapult: 1"),
        ({"optimizer__batch_size": 4, "measure__batch_kernel_every": 2}, "does not explain a spike later"),
        ({"seed": 3000000000}, "seed=3000000000; allowed: 0 to 2147483647"),
        ({"members__lr_relative": (None,)}, "members.lr_relative"),
        ({"optimizer__lr": float("inf")}, "optimizer.lr=inf"),
    ],
    ids=str,
)
def test_values_out_of_range_and_fields_that_contradict(fields, message):
    with pytest.raises(configs.ConfigError, match=message) as caught:
        configs.check(changed(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "variants"),
    [
        (cifar_gd, ("fcn", "cnn", "ratios", "smoke", "cnn,smoke", "ratios,smoke")),
        (cifar_gd_multi, ("fcn", "cnn", "smoke", "cnn,smoke")),
        (synthetic_sgd_b1, ("full", "smoke")),
        (quickstart, ("full", "smoke")),
        (cifar_sgd, [f"{net}{word}" for net in ("fcn", "cnn", "wrn", "vit") for word in ("", ",ce", ",momentum", ",smoke")]),
        (cifar_cyclic, ("fcn", "smoke")),
        (catapults_agop, [f"{task}{word}" for task in tasks.TASKS for word in ("", ",smoke")]),
        (suppressed, [f"{task}{word}" for task in tasks.TASKS for word in ("", ",smoke")]),
        (batch_size, [f"{task}{word}" for task in tasks.TASKS for word in ("", ",momentum", ",smoke")] + ["cifar2,ce,smoke"]),
        (mnist_optimizers, ("mnist", "fashion", "held", "twenty", "smoke", "fashion,smoke", "held,smoke", "twenty,smoke")),
        (mnist_ntk, ("cyclic", "exponential", "smoke", "exponential,smoke")),
        (mnist_adagrad, ("full", "smoke")),
        (optimizers_agop, [f"{task}{word}" for task in tasks.TASKS for word in ("", ",smoke")]),
        (reference, [f"{task}{word}" for task in tasks.IMAGES for word in ("", ",smoke")]),
    ],
)
def test_configs_of_the_house_are_valid(module, variants):
    for variant in variants:
        config = module.get_config(variant)
        configs.check(config)
        assert set(configs.flat(config)) == set(configs.flat(default.get_config()))
    with pytest.raises(ValueError, match="'none'"):
        module.get_config("none")


def test_every_number_and_choice_has_a_rule():
    unchecked = {n for n in configs.flat(default.get_config()) if n not in configs._RULES}
    assert unchecked == {
        "title", "published_critical_lr", "data.name", "data.dir", "data.tfds_dir", "data.download", "data.strict", "model.bias",
        "data.attribute", "measure.agop_reference", "run.save_model", "optimizer.nesterov",
    }  # fmt: skip


def test_a_misspelt_field_in_a_config_file_is_one_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import quickstart\ndef get_config():\n    c = quickstart.get_config()\n    c.optimizer.lr_relativ = 2.0\n    return c\n"
    )
    done = command(f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "lr_relativ" in done.stderr and not (tmp_path / "run").exists()


def test_a_field_that_the_default_does_not_have():
    config = quickstart.get_config()
    with config.unlocked():
        config.model.widht = 3
    with pytest.raises(configs.ConfigError, match=r"no field .model\.widht.; nearest: .model\.width."):
        configs.check(config)


@pytest.mark.parametrize(
    ("module", "variant", "message"),
    [
        (catapults_agop, "rank5", "allowed: one of rank2, rank3"),
        (catapults_agop, "rank2,rank3", "allowed: one of"),
        (reference, "rank2", "since synthetic targets have a closed form"),
        (batch_size, "usps,ce", "ce with a task of two classes"),
        (cifar_sgd, "fcn,vit", "allowed: one of fcn, cnn, wrn, vit"),
        (mnist_optimizers, "fashion,twenty", "variant 'fashion,twenty'; allowed with twenty: mnist, smoke"),
    ],
)
def test_variants_that_are_none(module, variant, message):
    with pytest.raises(ValueError, match=message):
        module.get_config(variant)


def test_the_causal_test_needs_both_arms():
    config = suppressed.get_config("rank2")
    for caps in ((), (0.9,), (0.0, 1.5)):
        config.members.cap = caps
        with pytest.raises(configs.ConfigError, match=r"members.cap=.*; allowed with the claim forbidding_catapults_hurts"):
            configs.check(config)


def test_members_are_the_product_of_their_axes():
    axes = configs.member_axes(catapults_agop.get_config("rank2"))
    assert list(axes) == ["lr_relative", "raises", "cap", "seed"]
    assert axes["raises"] == (0, 1, 2, 3, 4) and axes["cap"] == (0.9,)
    assert configs.member_axes(suppressed.get_config("rank2"))["cap"] == (float("inf"), 0.9)
    assert list(configs.member_axes(cifar_gd.get_config())) == ["lr_relative", "seed"]


def test_an_absolute_rate_takes_the_place_of_a_relative_one():
    config = cifar_gd.get_config()
    config.optimizer.lr, config.optimizer.lr_relative = 6.0, 0.0
    configs.check(config)
    assert configs.learning_rates(config) == ((6.0,), None)
    config.members.lr = (5.0, 6.0)
    assert configs.learning_rates(config) == ((5.0, 6.0), None)


def test_identity_tells_configs_apart():
    one, two = quickstart.get_config(), quickstart.get_config()
    assert configs.identity(one) == configs.identity(two)
    two.sweep = ("steps=60,61",)  # what other runs there are is nothing of this one
    assert configs.identity(one) == configs.identity(two)
    two.steps = 61
    assert configs.identity(one) != configs.identity(two)


def test_compiled_programs_are_kept_where_asked(tmp_path, monkeypatch):
    updated = {}
    monkeypatch.setattr(configs.jax.config, "update", updated.__setitem__)
    configs.keep_compiled(str(tmp_path / "a" / "b"))
    assert updated["jax_compilation_cache_dir"] == str(tmp_path / "a" / "b") and not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(configs.ConfigError, match=r"compilation_cache='.*file' can't be made"):
        configs.keep_compiled(str(tmp_path / "file"))


def test_claims_that_cadences_can_test():
    fields = configs.flat(changed())
    claims = ("first_catapult", "exceedance_predicts_rise")
    assert configs.testable(claims, fields | {"measure.loss_after_every": 1}) == list(claims)
    assert configs.testable(claims, fields | {"measure.loss_after_every": 5}) == ["first_catapult"]
    assert configs.testable(claims, fields | {"measure.batch_kernel_every": 2}) == []
