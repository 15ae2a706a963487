"""The data of a run from the fields of a config: fallback data, and the shape that a model needs."""

import sys

import numpy as np
import pytest

from configs import default
from experiments.build import load_data
from experiments.config import ConfigError
from tests.helpers_data import write_npz


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

    _, fallback_for = load_data(data_config(tmp_path, name="mnist"))

    assert fallback_for == "mnist"
    assert "WARNING: mnist" in capsys.readouterr().err


def test_load_data_takes_no_fallback_of_an_unknown_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)

    with pytest.raises(ConfigError, match=r"data.name='cifar11'; allowed: .* such as 'cifar10'"):
        load_data(data_config(tmp_path, name="cifar11"))


@pytest.mark.parametrize(
    ("model", "shape"),
    [("cnn", (6, 8, 8, 1)), ("wide_resnet", (6, 8, 8, 1)), ("vit", (6, 8, 8, 1)), ("fcn", (6, 8, 8))],
)
def test_load_data_gives_gray_images_a_channel_for_image_models(tmp_path, model, shape):
    write_npz(tmp_path, x_train=np.ones((40, 8, 8), np.uint8), x_test=np.ones((20, 8, 8), np.uint8))

    arrays, _ = load_data(data_config(tmp_path, model=model, name="toy", classes=(0, 1)))

    assert arrays.x_train.shape == shape


@pytest.mark.parametrize("model", ["cnn", "wide_resnet", "vit"])
def test_load_data_refuses_vectors_for_image_models(tmp_path, model):
    write_npz(tmp_path, x_train=np.ones((40, 64)), x_test=np.ones((20, 64)))

    message = rf"model.name='{model}' with toy, whose examples have shape \(64,\); allowed: images"
    with pytest.raises(ConfigError, match=message):
        load_data(data_config(tmp_path, model=model, name="toy", classes=(0, 1)))
