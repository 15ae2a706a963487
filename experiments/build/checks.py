"""The comparison of the kernel with neural_tangents at the start of a run."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from catapult_jax.tangent import NeuralTangentsMissing, tangent_kernel
from experiments import config as configs
from experiments.build import programs

_EXAMPLES = 8  # of the training set
_MOST_ERROR = 1e-3  # of the largest entry of the kernel


def check_kernel(model: Any, params: Any, x: np.ndarray) -> dict[str, Any]:
    """Compare the exact kernel with that of neural_tangents on the first examples.

    Args:
      model: a Flax model.
      params: of the model.
      x: inputs, (n, ...).

    Returns:
      ``examples``, ``relative_error`` (None: neural_tangents is not installed) and ``text``.

    Raises:
      RunError: the kernels differ by more than 1e-3 of the largest entry.
    """
    x = x[:_EXAMPLES]
    kernel = programs.shared(
        ("check_kernel", model),
        lambda: jax.jit(lambda p, x, method: tangent_kernel(model.apply, p, x, method=method), static_argnames="method"),
    )
    ours = np.asarray(kernel(params, x, method="auto"))
    try:
        theirs = np.asarray(kernel(params, x, method="neural_tangents"))
    except NeuralTangentsMissing as error:
        return {"examples": len(x), "relative_error": None, "text": f"skipped: {error}"}
    difference, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
    error = float(difference / size if size else difference)  # the kernel of a dead network is zero
    if not error <= _MOST_ERROR:
        raise configs.RunError(
            f"kernel differs from neural_tangents by {error:.2e} of the largest entry on {len(x)} examples; allowed: {_MOST_ERROR}"
        )
    return {"examples": len(x), "relative_error": error, "text": f"relative error {error:.1e}"}
