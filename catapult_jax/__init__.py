"""Catapults of neural networks: critical learning rates, loss spikes, eigenspaces, features."""

from catapult_jax._version import __version__
from catapult_jax.criteria import spike_score
from catapult_jax.critical import critical_lr, critical_lr_from_lambda, loss_weighted_kernel
from catapult_jax.detection import Detector, detector
from catapult_jax.eigenspace import LossSplit, split_loss
from catapult_jax.events import KINDS, Event, to_python
from catapult_jax.losses import batch_loss
from catapult_jax.metrics import prediction
from catapult_jax.models import CNN, FCN, ViT, WideResNet
from catapult_jax.outer_product import agop, agop_alignment, agop_eigenvectors, agop_pearson, input_jacobian
from catapult_jax.preconditioners import Preconditioner, preconditioner_from_state
from catapult_jax.records import open_record
from catapult_jax.spikes import count_spikes, dead_from, find_events
from catapult_jax.tangent import (
    CoupledExamplesError,
    Directions,
    Eigenpairs,
    NeuralTangentsMissing,
    tangent_kernel,
    top_eigenpairs,
)

__all__ = [
    "CNN",
    "FCN",
    "KINDS",
    "CoupledExamplesError",
    "Detector",
    "Directions",
    "Eigenpairs",
    "Event",
    "LossSplit",
    "NeuralTangentsMissing",
    "Preconditioner",
    "ViT",
    "WideResNet",
    "__version__",
    "agop",
    "agop_alignment",
    "agop_eigenvectors",
    "agop_pearson",
    "batch_loss",
    "count_spikes",
    "critical_lr",
    "critical_lr_from_lambda",
    "dead_from",
    "detector",
    "find_events",
    "input_jacobian",
    "loss_weighted_kernel",
    "open_record",
    "preconditioner_from_state",
    "prediction",
    "spike_score",
    "split_loss",
    "tangent_kernel",
    "to_python",
    "top_eigenpairs",
]


def _warn_of_broken_jax() -> None:
    """JAX releases that are wrong or unusable on the CPU (jax issues 39103, 40412; quadratic scan in 0.11.1)."""
    import warnings

    import jax

    if jax.__version__ in ("0.10.2", "0.11.0", "0.11.1"):
        warnings.warn(
            f"jax {jax.__version__} gives wrong or very slow results on the CPU; allowed: see requirements.txt", stacklevel=2
        )


_warn_of_broken_jax()
del _warn_of_broken_jax
