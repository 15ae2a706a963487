"""Catapults of neural networks: critical learning rates, loss spikes, eigenspaces, features."""

from catapult_jax.critical_lr import critical_lr, critical_lr_from_lambda, loss_weighted_kernel
from catapult_jax.eigenspace import LossSplit, split_loss
from catapult_jax.events import Detector, Event, count_spikes, detector, find_events, prediction
from catapult_jax.losses import batch_loss
from catapult_jax.models import CNN, FCN
from catapult_jax.tangent_kernel import CoupledExamplesError, tangent_kernel

__version__ = "0.1.0"

__all__ = [
    "CNN",
    "FCN",
    "CoupledExamplesError",
    "Detector",
    "Event",
    "LossSplit",
    "batch_loss",
    "count_spikes",
    "critical_lr",
    "critical_lr_from_lambda",
    "detector",
    "find_events",
    "loss_weighted_kernel",
    "prediction",
    "split_loss",
    "tangent_kernel",
]
