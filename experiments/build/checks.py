"""The comparison of the kernel with neural_tangents before a run."""

from __future__ import annotations

import jax
import numpy as np

from catapult_jax.tangent import NeuralTangentsMissing, tangent_kernel
from experiments import config as configs
from experiments.build import programs

_CHECK_EXAMPLES, _CHECK_LIMIT = 8, 1e-3


def check_kernel(model, params, x) -> dict:
    """Compares the kernel in use with neural_tangents on a few examples of the real batch.

    Raises:
      RunError: they differ by more than 1e-3 of the largest entry.
    """
    x = x[:_CHECK_EXAMPLES]
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
    error = float(difference / size if size else difference)  # the kernel of dead units is zero
    if not error <= _CHECK_LIMIT:
        raise configs.RunError(
            f"kernel differs from neural_tangents by {error:.2e} relative on {len(x)} examples; allowed: {_CHECK_LIMIT}"
        )
    return {"examples": len(x), "relative_error": error, "text": f"relative error {error:.1e}"}
