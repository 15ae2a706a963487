"""Flax models in NTK parameterisation; each states the factor of its layers."""

from catapult_jax.models.cnn import CNN, READOUTS
from catapult_jax.models.fcn import FCN
from catapult_jax.models.layers import ACTIVATIONS
from catapult_jax.models.vit import ViT
from catapult_jax.models.wide_resnet import WideResNet

__all__ = ["ACTIVATIONS", "CNN", "FCN", "READOUTS", "ViT", "WideResNet"]
