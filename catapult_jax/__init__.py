"""Catapults of neural networks: critical learning rates, loss spikes, eigenspaces, features.

>>> import jax.numpy as jnp
>>> linear, batch = lambda w, x: x @ w, (jnp.array([[3.0, 4.0]]), jnp.array([1.0]))
>>> round(float(critical_lr(linear, jnp.zeros(2), batch, loss="mse")), 6)  # 1 / |x|^2
0.04
"""

from catapult_jax._version import __version__
from catapult_jax.criteria import spike_score
from catapult_jax.critical import critical_lr, critical_lr_from_lambda
from catapult_jax.detection import Detector, detector
from catapult_jax.directional import Directional, directional_by_layer, directional_critical_lr
from catapult_jax.eigenspace import LossSplit, split_loss
from catapult_jax.events import KINDS, Event, to_python
from catapult_jax.losses import batch_loss
from catapult_jax.metrics import prediction
from catapult_jax.models import CNN, FCN, ViT, WideResNet
from catapult_jax.monitor import Watch, WatchState, watch
from catapult_jax.outer_product import agop, agop_alignment, agop_eigenvectors, agop_pearson, input_jacobian
from catapult_jax.preconditioners import Preconditioner, preconditioner_from_state
from catapult_jax.recorder import Monitor, Recorder
from catapult_jax.records import open_record
from catapult_jax.spikes import count_spikes, dead_from, find_events
from catapult_jax.tangent import (
    CoupledExamplesError,
    Directions,
    Eigenpairs,
    InverseMap,
    NeuralTangentsMissing,
    loss_weighted_kernel,
    tangent_kernel,
    top_eigenpairs,
)

__all__ = [
    "CNN",
    "FCN",
    "KINDS",
    "CoupledExamplesError",
    "Detector",
    "Directional",
    "Directions",
    "Eigenpairs",
    "Event",
    "InverseMap",
    "LossSplit",
    "Monitor",
    "NeuralTangentsMissing",
    "Preconditioner",
    "Recorder",
    "ViT",
    "Watch",
    "WatchState",
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
    "directional_by_layer",
    "directional_critical_lr",
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
    "watch",
]


def _warn_of_broken_jax() -> None:
    """Warn of a JAX release that is wrong or unusable on the CPU: jax issues 39103 and 40412; in 0.11.1 a quadratic scan."""
    import warnings

    import jax

    if jax.__version__ in ("0.10.2", "0.11.0", "0.11.1"):
        warnings.warn(
            f"jax {jax.__version__} gives wrong or very slow results on the CPU; allowed: see requirements.txt", stacklevel=2
        )


_warn_of_broken_jax()
del _warn_of_broken_jax
