"""The reference that the AGOP of a run is compared with. A trained one is used in test_main.py."""

import jax
import numpy as np
import pytest

from catapult_jax import checkpoints
from configs import catapults_agop, quickstart
from experiments import build
from experiments.build.reference import agop_reference
from experiments.config import ConfigError


def test_agop_reference_of_a_product_is_its_gradient():
    config = catapults_agop.get_config("rank2,smoke")
    arrays, _ = build.load_data(config)

    prepared, about = agop_reference(config, arrays)

    x = np.asarray(arrays.x_train)
    expected = np.zeros_like(x)  # of y = x_1 x_2
    expected[:, 0], expected[:, 1] = x[:, 1], x[:, 0]
    np.testing.assert_allclose(prepared.agop_reference, expected, rtol=1e-6)
    assert about == {"name": "gradient of the target", "ceiling": 1.0}


def test_agop_reference_of_each_draw_is_taken_at_its_points():
    config = catapults_agop.get_config("rank2,smoke")
    config.data.by_seed, config.members.seed = True, (3, 5)
    arrays, _ = build.load_data(config)

    prepared, _ = agop_reference(config, arrays)

    for drawn in prepared.draws:
        expected = np.zeros_like(drawn.x_train)  # of y = x_1 x_2
        expected[:, 0], expected[:, 1] = drawn.x_train[:, 1], drawn.x_train[:, 0]
        np.testing.assert_allclose(drawn.agop_reference, expected, rtol=1e-6)
    assert prepared.agop_reference is prepared.draws[0].agop_reference is not prepared.draws[1].agop_reference


@pytest.fixture
def stored(tmp_path):
    """A config, its data, and a function that stores a model for it."""
    config = quickstart.get_config("smoke")
    config.measure.agop_reference = str(tmp_path / "model.npz")
    arrays, _ = build.load_data(config)
    model = build.build_model(config.model, arrays.outputs)
    params = model.init(jax.random.key(0), arrays.x_train[:1])
    data = {"name": arrays.name, "shape": list(arrays.x_train.shape[1:]), "outputs": arrays.outputs, "train": 16}
    about = {"config": {"model": config.model.to_dict(), "data": config.data.to_dict()}, "data": data}

    def store(change=lambda leaf: leaf, **changes):
        checkpoints.save_model(tmp_path / "model.npz", jax.tree.map(change, params), about | changes)

    return config, arrays, data, store


def test_agop_reference_of_a_model_is_its_input_jacobian(stored):
    config, arrays, _, store = stored
    store()

    prepared, about = agop_reference(config, arrays)

    params, _, checksum = checkpoints.load_model(config.measure.agop_reference)
    model = build.build_model(config.model, arrays.outputs)
    output = lambda x: model.apply(params, x[None])[0, 0]
    expected = [np.ravel(jax.grad(output)(x)) for x in arrays.x_train]
    np.testing.assert_allclose(prepared.agop_reference, expected, rtol=1e-4, atol=1e-6)
    assert about == {"name": "fcn trained on 16 examples", "sha256": checksum, "error_test": None}


def test_agop_reference_that_is_not_there(stored):
    config, arrays, _, _ = stored

    with pytest.raises(
        ConfigError, match=r"agop_reference=.* is not there; allowed: the model.npz of a run with run.save_model"
    ):
        agop_reference(config, arrays)


def test_agop_reference_for_other_data(stored):
    config, arrays, data, store = stored
    store(data=data | {"name": "digits"})

    with pytest.raises(ConfigError, match="a model for data with name 'digits'; allowed here: 'natural_patches'"):
        agop_reference(config, arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaf: np.asarray(leaf)[..., :-1], "holds parameters of other shapes than its model has"),
        (lambda leaf: np.full_like(leaf, np.nan), "has gradients that are not finite; allowed: a model with finite gradients"),
    ],
    ids=["shapes", "nan"],
)
def test_agop_reference_with_parameters_that_can_not_be(stored, change, message):
    config, arrays, _, store = stored
    store(change)

    with pytest.raises(ConfigError, match=message):
        agop_reference(config, arrays)


def test_agop_reference_that_does_not_describe_its_model(stored):
    config, arrays, _, store = stored
    store(data={})

    with pytest.raises(ConfigError, match="does not describe its model"):
        agop_reference(config, arrays)


@pytest.fixture
def two(stored, tmp_path):
    """A config with two references of one recipe, its data, and the parameters of both."""
    config, arrays, _, store = stored
    store()
    about = checkpoints.load_model(tmp_path / "model.npz")[1]
    params = [checkpoints.load_model(tmp_path / "model.npz")[0]]
    model = build.build_model(config.model, arrays.outputs)
    params.append(model.init(jax.random.key(1), arrays.x_train[:1]))
    config.measure.agop_second_reference = str(tmp_path / "second.npz")
    save = lambda **changes: checkpoints.save_model(tmp_path / "second.npz", params[1], about | changes)
    save()
    return config, arrays, model, params, about, save


def explicit_alignment(model, params, x):
    """The cosine of the AGOPs of two models, from explicit float64 gradients."""
    agops = []
    for p in params:
        gradients = [np.ravel(jax.grad(lambda z: model.apply(p, z[None])[0, 0])(example)) for example in x]  # noqa: B023
        rows = np.array(gradients, np.float64)
        agops.append(rows.T @ rows)
    return (agops[0] * agops[1]).sum() / np.linalg.norm(agops[0]) / np.linalg.norm(agops[1])


def test_reference_ceiling_is_the_alignment_of_two_references(two):
    config, arrays, model, params, _, _ = two

    _, about = agop_reference(config, arrays)

    assert (
        about["ceiling"] == pytest.approx(explicit_alignment(model, params, arrays.x_train), rel=1e-4)
        and about["ceiling"] < 0.99
    )
    assert about["second_sha256"] == checkpoints.load_model(config.measure.agop_second_reference)[2] != about["sha256"]


def test_reference_ceiling_is_the_mean_over_the_draws(two):
    config, _, model, params, _, _ = two
    config.data.by_seed, config.members.seed = True, (3, 5)
    arrays, _ = build.load_data(config)

    _, about = agop_reference(config, arrays)

    of_draws = [explicit_alignment(model, params, draw.x_train) for draw in arrays.draws]
    assert about["ceiling"] == pytest.approx(np.mean(of_draws[:2]), rel=1e-4) and abs(of_draws[0] - of_draws[1]) > 1e-4


def test_reference_ceiling_of_a_model_with_itself(two):
    config, arrays, *_ = two
    config.measure.agop_second_reference = config.measure.agop_reference

    with pytest.raises(
        ConfigError, match=r"is the same model as measure.agop_reference; allowed: one trained with another seed"
    ):
        agop_reference(config, arrays)


def test_reference_ceiling_of_another_recipe(two):
    config, arrays, _, _, about, save = two
    save(config=about["config"] | {"steps": 7})

    with pytest.raises(
        ConfigError, match=r"differs from measure.agop_reference in steps; allowed: the same recipe with another"
    ):
        agop_reference(config, arrays)


def test_reference_ceiling_of_a_model_that_is_not_there(two):
    config, arrays, *_ = two
    config.measure.agop_second_reference += "x"

    with pytest.raises(ConfigError, match=r"measure.agop_second_reference='.*second.npzx' is not there; allowed"):
        agop_reference(config, arrays)
