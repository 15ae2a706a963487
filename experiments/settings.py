"""What a report must know of a run, from the fields of its config."""

from __future__ import annotations

from typing import Any

from catapult_jax.report import Settings
from experiments import optimizers


def settings_of(config: dict[str, Any]) -> Settings:
    """The settings of a report.

    Args:
      config: fields of the run's config, as in config.json.

    Returns:
      Settings.
    """
    optimizer, events = config["optimizer"], config["events"]
    return Settings(
        examples=config["data"]["train_size"],
        batch_size=optimizer["batch_size"],
        lr_unit=optimizer["lr_unit"],
        momentum=optimizers.momentum(optimizer),
        weight_decay=optimizers.setting(optimizer, "weight_decay"),
        factor=events["factor"],
        delta=events["delta"],
        horizon=events["horizon"],
        stop_loss=config["run"]["stop_loss"],
        top_k=config["measure"]["top_k"],
    )
