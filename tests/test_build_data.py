"""The data of a run: fallback data, strictness, and shapes."""

import numpy as np
import pytest

from configs import cifar_gd, quickstart
from experiments import build
from experiments.config import ConfigError


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


def test_load_data_gives_gray_images_a_channel(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(40, 4, 4)), np.arange(40) % 2
    np.savez(tmp_path / "gray.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    config = quickstart.get_config("smoke")
    config.data.name, config.data.dir = "gray", str(tmp_path)
    plain = build.load_data(config)[0].x_train
    config.model.name = "cnn"

    images = build.load_data(config)[0].x_train

    assert plain.shape == (16, 4, 4) and images.shape == (16, 4, 4, 1)
    np.testing.assert_array_equal(images[..., 0], plain)


def test_load_data_of_vectors_for_a_cnn(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2
    np.savez(tmp_path / "vectors.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    config = quickstart.get_config("smoke")
    config.data.name, config.data.dir, config.model.name = "vectors", str(tmp_path), "cnn"

    with pytest.raises(ConfigError, match=r"model.name='cnn' with vectors, whose examples have shape \(5,\); allowed: images"):
        build.load_data(config)


def test_load_data_of_synthetic_examples_beyond_the_memory():
    config = quickstart.get_config("smoke")
    config.data.name, config.data.synthetic.dimension = "synthetic", 2**31 - 1

    with pytest.raises(
        ConfigError, match=r"data.synthetic.dimension=2147483647, .*; allowed: examples of less than the \d+ bytes"
    ):
        build.load_data(config)
