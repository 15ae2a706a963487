"""The values of each field: what is allowed, and what the error says."""

import doctest

import pytest

from configs import default, quickstart
from experiments import rules, values
from experiments.config import ConfigError, flat


def changed(name, value):
    config = quickstart.get_config()
    config.update_from_flattened_dict({name: value})
    return config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "steps=0; allowed: 1 or more"),
        ("members.seed", (0.5,), r"members.seed=\(0.5,\); allowed: a tuple, each whole number, 0 to 2147483647"),
        ("members.lr", (-1.0,), r"members.lr=\(-1.0,\); allowed: a tuple, each above 0"),
        ("members.lr", (), r"members.lr=\(\); allowed: a tuple, each above 0, or None"),
        ("members.lr", ("a",), "members.lr"),
        ("members.lr", (None,), "members.lr"),
        ("model.name", "mlp", "model.name='mlp'; allowed: cnn, fcn, vit, wide_resnet"),
        ("optimizer.momentum", 1.0, "optimizer.momentum=1.0; allowed: 0 or more, below 1"),
        ("optimizer.b2", 1.0, "optimizer.b2=1.0; allowed: 0 or more, below 1, or None"),
        (
            "optimizer.name",
            "lion",
            "optimizer.name='lion'; allowed: adadelta, adagrad, adam, adamw, heavy_ball, nesterov, rmsprop, sgd",
        ),
        ("optimizer.lr", float("inf"), "optimizer.lr=inf"),
        ("data.synthetic.target", "sine", "data.synthetic.target='sine'; allowed: pairs, product, squares"),
        ("sweep", ("steps",), r"sweep=\('steps',\); allowed"),
        ("claims", ("everything",), "claims=.*a tuple of"),
        ("schedule.period", 1, "schedule.period=1; allowed: 2 or more"),
        ("schedule.decay", 0.0, "schedule.decay=0.0; allowed: above 0, at most 1"),
        ("measure.preset", "cheap", "measure.preset='cheap'; allowed: economy, full, standard, or None"),
        ("measure.max_overhead", 1.0, "measure.max_overhead=1.0; allowed: above 1"),
        ("measure.method", "lanczos", "measure.method='lanczos'; allowed: auto, exact, matrix_free, or None"),
        ("measure.tolerance", 0.0, "measure.tolerance=0.0; allowed: above 0"),
        ("measure.chunk_size", -1, "measure.chunk_size=-1; allowed: 1 or more, or None"),
        ("events.factor", float("nan"), "events.factor=nan"),
        ("steps", None, "steps=None; allowed: 1 or more"),
        ("title", None, "title=None; allowed: text"),
        ("run.save_model", None, "run.save_model=None; allowed: True or False"),
        ("seed", 3000000000, "seed=3000000000; allowed: 0 to 2147483647"),
        ("data.test_size", 3000000000, "data.test_size=3000000000; allowed: whole numbers up to 2147483647"),
    ],
    ids=str,
)
def test_check_of_a_value_that_is_not_allowed(name, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        rules.check(changed(name, value))
    assert "\n" not in str(caught.value)


def test_values_of_every_number_and_choice():
    unchecked = {n for n in flat(default.get_config()) if n not in values.VALUES}
    assert unchecked == {
        "title", "published_critical_lr", "data.name", "data.dir", "data.tfds_dir", "data.download", "data.by_seed", "data.strict", "model.bias",
        "data.attribute", "measure.agop_reference", "measure.agop_second_reference", "intervention.cap_run", "run.save_model", "run.float64", "optimizer.nesterov",
    }  # fmt: skip


def test_wrong_of_every_default():
    fields = flat(default.get_config())
    assert not any(values.wrong(name, fields[name]) for name in values.VALUES)


def test_examples_in_docstrings():
    assert not doctest.testmod(values).failed
