"""The door from a config to a run: what it builds, and the data and the reference that it refuses."""

import doctest

import jax
import numpy as np
import pytest

from configs import catapults_agop, quickstart
from experiments import build
from experiments.build import model as build_model_module
from experiments.config import ConfigError

pytestmark = pytest.mark.usefixtures("shared_programs")


def earlier_run(built, **changes):
    """The part of run.json that build looks at."""
    about = {"data": {"sha256": built.data.checksum}, "agop_reference": built.about_reference, "instruments": built.plan}
    return about | changes


@pytest.fixture(scope="module")
def built():
    config = catapults_agop.get_config("rank2,smoke")
    return config, build.build(config)


def test_build_of_a_config(built):
    config, run = built

    assert run.data.x_train.shape == (config.data.train_size, config.data.synthetic.dimension) and run.fallback_for is None
    assert run.members.raises.tolist() == [0, 0, 1, 1] and run.members.seed.tolist() == [0, 1, 0, 1]
    assert run.data.agop_reference.shape == run.data.x_train.shape and run.about_reference == {
        "name": "gradient of the target",
        "ceiling": 1.0,
    }
    assert run.plan["cadences"] == {"lambda_max_batch": 4, "loss_test": 4, "agop_alignment": 4}
    params = run.model.init(jax.random.key(0), run.data.x_train[:1])
    assert run.model.apply(params, run.data.x_train).shape == run.data.y_train.shape


def test_build_takes_over_the_plan_of_an_earlier_run(built):
    config, run = built
    plan = {"cadences": {"lambda_max_batch": 2, "agop_alignment": 3}, "methods": {"lambda_max_batch": "exact"}}

    assert build.build(config, earlier_run(run, instruments=plan)).plan == plan


def test_build_refuses_another_reference(built):
    config, run = built

    with pytest.raises(
        ConfigError, match=r"measure\.agop_reference='closed_form' is another model than in the earlier run; allowed"
    ):
        build.build(config, earlier_run(run, agop_reference={"name": "fcn trained on 40 examples", "sha256": "0" * 64}))


def test_build_takes_a_ceiling_that_is_rounded_differently(built):
    config, run = built

    assert build.build(config, earlier_run(run, agop_reference=run.about_reference | {"ceiling": 0.999})).plan == run.plan


def test_build_refuses_other_data(built):
    config, run = built
    earlier = earlier_run(run)
    config = config.copy_and_resolve_references()
    config.data.synthetic.seed = 1

    with pytest.raises(
        ConfigError, match=r"data.name='synthetic': .* has other data than the earlier run .*; allowed: the same"
    ):
        build.build(config, earlier)


def test_load_of_the_same_data(built):
    config, run = built

    arrays, fallback_for = build.load(config, earlier_run(run))

    assert arrays.checksum == run.data.checksum and fallback_for is None


def test_build_uses_data_that_are_loaded(built, monkeypatch):
    config, run = built
    monkeypatch.setattr(build, "load_data", None)

    again = build.build(config, None, (run.data, "cifar10"))

    assert again.data.x_train is run.data.x_train and again.fallback_for == "cifar10"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("images are\n too small"), "images are too small"),
        (MemoryError(), "the run can't be built .MemoryError.; allowed: a model and data that fit the memory"),
    ],
    ids=["value", "memory"],
)
def test_explain_misfit_is_one_line(error, message):
    with pytest.raises(ConfigError, match=message) as caught, build.explain_misfit():
        raise error
    assert "\n" not in str(caught.value)


def test_build_members_is_the_product_of_the_axes():
    config = quickstart.get_config("smoke")
    config.members.seed, config.members.lr, config.members.cap = (7, 8), (0.5, 2.0), (None, 0.9)

    members = build.build_members(config)

    rows = list(zip(members.lr.tolist(), members.cap.tolist(), members.seed.tolist(), strict=True))
    cap = float(np.float32(0.9))
    assert rows == [(lr, c, seed) for lr in (0.5, 2.0) for c in (np.inf, cap) for seed in (7, 8)]
    assert members.raises is None and members.seed.dtype == np.int32


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"name": "fcn", "depth": 3}, 3),
        ({"name": "cnn", "depth": 3, "strides": (2, 1)}, 3),
        ({"name": "wide_resnet", "depth": 10}, None),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_build_model_has_the_outputs_and_layers_of_its_fields(fields, layers):
    c = quickstart.get_config().model
    c.update(fields | {"width": 4})

    model = build.build_model(c, 2)

    x = np.ones((3, 8, 8, 1), np.float32)
    params = model.init(jax.random.key(0), x)
    assert model.apply(params, x).shape == (3, 2)
    if layers:  # without bias each layer has a single array
        assert len(jax.tree.leaves(params)) == layers


def test_examples_in_docstrings():
    assert not doctest.testmod(build_model_module).failed
