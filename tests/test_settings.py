"""Settings of a report from a config."""

import pytest

from catapult_jax.report import Settings
from configs import quickstart
from experiments.settings import settings_of


def config_of(**fields):
    config = quickstart.get_config("smoke")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config.to_dict()


def test_settings_of_has_every_field():
    config = config_of(
        data__train_size=40, optimizer__batch_size=20, optimizer__lr_unit="absolute", events__factor=2.0, events__delta=0.2,
        events__horizon=7, run__stop_loss=0.01, measure__top_k=3,
    )  # fmt: skip

    settings = settings_of(config)

    assert settings == Settings(
        examples=40, batch_size=20, lr_unit="absolute", factor=2.0, delta=0.2, horizon=7, stop_loss=0.01, top_k=3
    )


@pytest.mark.parametrize(
    ("fields", "momentum", "weight_decay"),
    [
        ({"optimizer__name": "sgd", "optimizer__momentum": 0.5}, 0.5, 0.0),
        ({"optimizer__name": "heavy_ball"}, 0.9, 0.0),
        ({"optimizer__name": "adam"}, 0.9, 0.0),
        ({"optimizer__name": "adamw", "optimizer__b1": 0.8, "optimizer__weight_decay": 0.1}, 0.8, 0.1),
        ({"optimizer__name": "adamw"}, 0.9, 1e-4),  # the default of Optax
    ],
)
def test_settings_of_each_optimizer(fields, momentum, weight_decay):
    settings = settings_of(config_of(**fields))

    assert (settings.momentum, settings.weight_decay) == (momentum, weight_decay)
