"""The data of a run: fallback data, strictness, and shapes."""

import sys

import numpy as np
import pytest

from configs import batch_size, cifar_gd, default, quickstart
from experiments import build
from experiments.config import ConfigError
from tests.helpers_data import write_npz


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_load_data_falls_back_with_a_warning(capsys):
    arrays, fallback_for = build.load_data(cifar_gd.get_config("smoke"))

    assert (arrays.name, fallback_for) == ("natural_patches", "cifar10")
    assert "WARNING: cifar10 is not available. This run uses natural_patches instead" in capsys.readouterr().err


def test_load_data_cuts_the_sizes_of_fallback_data(capsys):
    config = cifar_gd.get_config("smoke")
    config.data.train_size = config.data.validation_size = config.data.test_size = 10**6
    whole = quickstart.get_config("smoke")
    whole.data.test_size = None

    arrays, _ = build.load_data(config)

    test_examples = len(build.load_data(whole)[0].x_test)
    assert len(arrays.x_test) == test_examples
    assert len(arrays.x_train) >= 3 * len(arrays.x_val) > 0
    whole.data.train_size = len(arrays.x_train) + len(arrays.x_val) + 2  # two more than there are: one of each class
    with pytest.raises(ConfigError, match=r"data\.train_size"):
        build.load_data(whole)


def test_load_data_with_strict_has_no_fallback():
    config = cifar_gd.get_config("smoke")
    config.data.strict = True

    with pytest.raises(ConfigError, match=r"data.name='cifar10' .*cifar10.npz") as caught:
        build.load_data(config)
    assert "\n" not in str(caught.value)


def test_load_data_of_synthetic_examples_beyond_the_memory():
    config = quickstart.get_config("smoke")
    config.data.name, config.data.synthetic.dimension = "synthetic", 2**31 - 1

    with pytest.raises(
        ConfigError, match=r"data.synthetic.dimension=2147483647, .*; allowed: examples of less than the \d+ bytes"
    ):
        build.load_data(config)


def data_config(tmp_path, **fields):
    config = default.get_config()
    config.data.dir = str(tmp_path)
    config.data.train_size, config.data.test_size, config.data.fallback = 6, 4, "digits"
    config.data.fallback_classes = (0, 1)
    config.data.update({key: value for key, value in fields.items() if key != "model"})
    config.model.name = fields.get("model", "fcn")
    return config


def test_load_data_takes_the_fallback_of_a_name_that_is_known(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)

    monkeypatch.setenv("CATAPULT_DATA_DIR", str(tmp_path))

    _, fallback_for = build.load_data(data_config(tmp_path, name="mnist", dir=None))

    assert fallback_for == "mnist"
    assert "WARNING: mnist" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["", "missing"])
def test_load_data_takes_no_fallback_where_a_folder_is_named(tmp_path, monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)

    with pytest.raises(ConfigError, match=f"data.name='mnist' is not available: no file {tmp_path / folder}/mnist.npz"):
        build.load_data(data_config(tmp_path / folder, name="mnist"))


def test_load_data_takes_no_fallback_of_an_unknown_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)

    with pytest.raises(ConfigError, match=r"data.name='cifar11'; allowed: .* such as 'cifar10'"):
        build.load_data(data_config(tmp_path, name="cifar11"))


@pytest.mark.parametrize(
    ("model", "shape"),
    [("cnn", (6, 8, 8, 1)), ("wide_resnet", (6, 8, 8, 1)), ("vit", (6, 8, 8, 1)), ("fcn", (6, 8, 8))],
)
def test_load_data_gives_gray_images_a_channel_for_image_models(tmp_path, model, shape):
    write_npz(tmp_path, x_train=np.ones((40, 8, 8), np.uint8), x_test=np.ones((20, 8, 8), np.uint8))

    arrays, _ = build.load_data(data_config(tmp_path, model=model, name="toy", classes=(0, 1)))

    assert arrays.x_train.shape == shape


@pytest.mark.parametrize("model", ["cnn", "wide_resnet", "vit"])
def test_load_data_refuses_vectors_for_image_models(tmp_path, model):
    write_npz(tmp_path, x_train=np.ones((40, 64)), x_test=np.ones((20, 64)))

    message = rf"model.name='{model}' with toy, whose examples have shape \(64,\); allowed: images"
    with pytest.raises(ConfigError, match=message):
        build.load_data(data_config(tmp_path, model=model, name="toy", classes=(0, 1)))


def test_load_data_by_seed_draws_synthetic_data_from_both_seeds():
    config = batch_size.get_config("rank2,smoke")
    config.data.by_seed, config.data.synthetic.seed, config.members.seed, config.members.lr = True, 7, (3, 5), (0.1, 0.2)
    n = config.data.train_size

    arrays, _ = build.load_data(config)

    assert len(arrays.draws) == 4 and arrays.draws[2] is arrays.draws[0] and arrays.draws[3] is arrays.draws[1]
    for drawn, seed in zip(arrays.draws, (3, 5), strict=False):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, seed])))
        x = rng.standard_normal((n + config.data.validation_size + config.data.test_size, 20))
        np.testing.assert_allclose(np.concatenate([drawn.x_train, drawn.x_val, drawn.x_test]), x, rtol=1e-6)
        np.testing.assert_allclose(drawn.y_test[:, 0], drawn.x_test[:, 0] * drawn.x_test[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(arrays.x_train, arrays.draws[0].x_train)


def test_load_data_by_seed_shares_the_test_examples_of_a_data_set(tmp_path):
    write_npz(tmp_path)
    config = data_config(tmp_path, name="toy", classes=(0, 1), by_seed=True, validation_size=4)
    config.optimizer.lr, config.members.seed = 1.0, (3, 5)

    arrays, _ = build.load_data(config)

    first, second = arrays.draws
    assert first.x_test is second.x_test and not np.array_equal(first.x_train, second.x_train)
    config.members.seed, config.seed = None, 5
    alone = build.load_data(config)[0]
    np.testing.assert_array_equal(alone.x_train, second.x_train)
    np.testing.assert_array_equal(alone.x_val, second.x_val)


def test_load_data_by_seed_refuses_to_draw_all_examples(tmp_path):
    write_npz(tmp_path)
    config = data_config(tmp_path, name="toy", classes=(0, 1), by_seed=True, train_size=20)
    config.optimizer.lr, config.members.seed = 1.0, (3, 5)

    with pytest.raises(
        ConfigError, match=r"two seeds draw the same examples of toy; allowed with data.by_seed: fewer"
    ) as caught:
        build.load_data(config)
    assert "\n" not in str(caught.value)
