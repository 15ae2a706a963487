"""Dense references for tests, in float64. They are slow, and share no code with the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def explicit_jacobian(apply_fn, params, x) -> Float[np.ndarray, "bo p"]:
    """Jacobian of the outputs of a batch in the parameters, ``J = d f / d params``, in float64.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: parameters.
      x: ``(b, ...)`` inputs.

    Returns:
      ``(b*o, p)``, example-major, with ``p`` the number of parameters.

    Source: the definition of a Jacobian.

    >>> explicit_jacobian(lambda w, x: x @ w, jnp.zeros(2), jnp.array([[3.0, 4.0]])).tolist()
    [[3.0, 4.0]]
    """
    with jax.enable_x64():
        wide = lambda a: np.asarray(a, np.float64) if jnp.issubdtype(jnp.asarray(a).dtype, jnp.floating) else np.asarray(a)
        params, x = jax.tree.map(wide, params), wide(x)
        jacobian = jax.jit(jax.jacrev(lambda p: apply_fn(p, x).reshape(-1)))(jax.tree.map(jnp.asarray, params))
        return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jacobian)], axis=1)


def explicit_kernel(apply_fn, params, x) -> Float[np.ndarray, "bo bo"]:
    """Tangent kernel ``K = J J^T`` in float64.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: parameters.
      x: ``(b, ...)`` inputs.

    Returns:
      ``(b*o, b*o)``, example-major.

    Source: Jacot, Gabriel, Hongler (2018), arXiv 1806.07572.

    >>> explicit_kernel(lambda w, x: x @ w, jnp.zeros(2), jnp.array([[3.0, 4.0]])).tolist()
    [[25.0]]
    """
    jacobian = explicit_jacobian(apply_fn, params, x)
    return jacobian @ jacobian.T


def relative_error(a, b) -> float:
    """Relative error in the largest entry, ``max |a - b| / max |b|``.

    Args:
      a: array to check.
      b: reference, of the same shape.

    Returns:
      A number without units.

    >>> relative_error([1.0, 2.5], np.array([1.0, 2.0]))
    0.25
    """
    return float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max())


def symmetric_with_spectrum(eigenvalues, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric matrix with the given eigenvalues and random eigenvectors, in float64.

    Args:
      eigenvalues: ``n`` numbers in any order.
      seed: of the eigenvectors.

    Returns:
      ``(matrix, eigenvectors)``, both ``(n, n)``; column ``i`` belongs to eigenvalue ``i``.

    >>> matrix, vectors = symmetric_with_spectrum([2.0, 1.0])
    >>> bool(np.allclose(matrix @ vectors, vectors * [2.0, 1.0]))
    True
    """
    n = len(eigenvalues)
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (vectors * np.asarray(eigenvalues, np.float64)) @ vectors.T, vectors
