"""The tangent kernel of a batch."""

from catapult_jax.tangent.coupling import CoupledExamplesError
from catapult_jax.tangent.eigenpairs import Directions, Eigenpairs, top_eigenpairs
from catapult_jax.tangent.kernel import METHODS, tangent_kernel
from catapult_jax.tangent.neural_tangents import NeuralTangentsMissing

__all__ = [
    "METHODS",
    "CoupledExamplesError",
    "Directions",
    "Eigenpairs",
    "NeuralTangentsMissing",
    "tangent_kernel",
    "top_eigenpairs",
]
