"""The tangent kernel of a batch."""

from catapult_jax.tangent_kernel.coupling import CoupledExamplesError
from catapult_jax.tangent_kernel.eigenpairs import Directions, Eigenpairs, top_eigenpairs
from catapult_jax.tangent_kernel.exact import METHODS, tangent_kernel
from catapult_jax.tangent_kernel.neural_tangents import NeuralTangentsMissing

__all__ = [
    "METHODS",
    "CoupledExamplesError",
    "Directions",
    "Eigenpairs",
    "NeuralTangentsMissing",
    "tangent_kernel",
    "top_eigenpairs",
]
