"""The linearised model on a batch: tangent kernel, loss-weighted kernel, eigenpairs."""

from catapult_jax.tangent.coupling import CoupledExamplesError
from catapult_jax.tangent.eigenpairs import Directions, Eigenpairs, top_eigenpairs
from catapult_jax.tangent.inverse_map import InverseMap
from catapult_jax.tangent.kernel import METHODS, tangent_kernel
from catapult_jax.tangent.neural_tangents import NeuralTangentsMissing
from catapult_jax.tangent.weighted import loss_weighted_kernel, weighted_kernel_and_gradient, weighted_tangent_kernel

__all__ = [
    "METHODS",
    "CoupledExamplesError",
    "Directions",
    "Eigenpairs",
    "InverseMap",
    "NeuralTangentsMissing",
    "loss_weighted_kernel",
    "tangent_kernel",
    "top_eigenpairs",
    "weighted_kernel_and_gradient",
    "weighted_tangent_kernel",
]
