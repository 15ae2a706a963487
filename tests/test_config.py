"""A config as a value: its fields, members, identity, and variants."""

import doctest
import math

import pytest

from configs import batch_size, catapults_agop, cifar_gd, cifar_sgd, default, mnist_optimizers, quickstart, reference
from experiments import config as configs
from experiments import rules


@pytest.mark.parametrize(
    ("module", "variant", "message"),
    [
        (catapults_agop, "rank5", "allowed: one of rank2, rank3"),
        (catapults_agop, "rank2,rank3", "allowed: one of"),
        (reference, "rank2", "since synthetic targets have a closed form"),
        (batch_size, "usps,ce", "ce with a task of two classes"),
        (cifar_sgd, "fcn,vit", "allowed: one of fcn, cnn, wrn, vit"),
        (mnist_optimizers, "twenty", "variant 'twenty'; allowed: mnist, fashion or capped"),
    ],
)
def test_get_config_of_variants_that_are_not_allowed(module, variant, message):
    with pytest.raises(ValueError, match=message):
        module.get_config(variant)


def test_member_axes_of_configs():
    axes = configs.member_axes(catapults_agop.get_config("rank2"))
    assert list(axes) == ["lr", "raises", "cap", "seed"]
    assert axes["raises"] == (0, 1, 2, 3) and axes["cap"] == (0.9,)
    assert configs.member_axes(mnist_optimizers.get_config("capped"))["cap"] == (math.inf, 0.9)
    assert list(configs.member_axes(cifar_gd.get_config())) == ["lr", "seed"]


def test_member_axes_take_the_lr_of_the_members():
    config = cifar_gd.get_config()
    config.optimizer.lr, config.optimizer.lr_unit = 6.0, "absolute"
    rules.check(config)
    assert configs.member_axes(config)["lr"] == (6.0,)
    config.members.lr = (5.0, 6.0)
    assert configs.member_axes(config)["lr"] == (5.0, 6.0)


def test_identity_tells_configs_apart():
    first, second = quickstart.get_config(), quickstart.get_config()
    assert configs.identity(first) == configs.identity(second)
    second.sweep = ("steps=60,61",)  # the other runs of a sweep do not count
    assert configs.identity(first) == configs.identity(second)
    second.steps = 61
    assert configs.identity(first) != configs.identity(second)


def test_identity_stays_with_a_new_field_at_its_default(monkeypatch):
    before = configs.identity(quickstart.get_config())
    get_config = default.get_config

    def with_a_new_field():
        config = get_config().unlock()
        config.run.new_field = 3
        return config

    monkeypatch.setattr(default, "get_config", with_a_new_field)
    config = quickstart.get_config()
    assert config.run.new_field == 3 and configs.identity(config) == before
    config.run.new_field = 4
    assert configs.identity(config) != before


def test_testable_claims_of_cadences():
    fields = configs.flat(quickstart.get_config())
    claims = ("first_catapult", "exceedance_predicts_rise")
    assert configs.testable(claims, fields | {"measure.loss_batch_after_every": 1}) == list(claims)
    assert configs.testable(claims, fields | {"measure.loss_batch_after_every": 5}) == ["first_catapult"]
    assert configs.testable(claims, fields | {"measure.lambda_max_batch_every": 2}) == []


def test_expanded_of_paths_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = quickstart.get_config("smoke")
    config.data.dir, config.data.tfds_dir, config.measure.agop_reference = "~/data", "~", "closed_form"
    expanded = configs.expanded(config)
    assert (expanded.data.dir, expanded.data.tfds_dir) == (str(tmp_path / "data"), str(tmp_path))
    assert expanded.measure.agop_reference == "closed_form" and config.data.dir == "~/data"
    assert configs.expanded(quickstart.get_config()).data.dir is None


def test_one_line_of_an_error_that_carries_a_traceback():
    text = "failed:\nTraceback (most recent call last):\n  File x\nbuiltins.ValueError: no  such\tfile"
    assert configs.one_line(ValueError(text)) == "no such file"
    assert configs.one_line(ValueError("  first\n second ")) == "first second"


def test_examples_in_docstrings():
    assert not doctest.testmod(configs).failed
