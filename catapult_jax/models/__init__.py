"""Flax models, NTK parameterisation stated per layer."""

from catapult_jax.models.cnn import CNN, READOUTS
from catapult_jax.models.fcn import FCN
from catapult_jax.models.layers import ACTIVATIONS

__all__ = ["ACTIVATIONS", "CNN", "FCN", "READOUTS"]
