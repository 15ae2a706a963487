"""Naive dense references for tests: slow, in float64, sharing no code with what they check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def explicit_jacobian(apply_fn, params, x) -> Float[np.ndarray, "bo p"]:
    """``d f / d params`` of a whole batch in float64, example-major rows."""
    with jax.enable_x64():
        wide = lambda a: np.asarray(a, np.float64) if jnp.issubdtype(jnp.asarray(a).dtype, jnp.floating) else np.asarray(a)
        params, x = jax.tree.map(wide, params), wide(x)
        jacobian = jax.jit(jax.jacrev(lambda p: apply_fn(p, x).reshape(-1)))(jax.tree.map(jnp.asarray, params))
        return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jacobian)], axis=1)


def explicit_kernel(apply_fn, params, x) -> Float[np.ndarray, "bo bo"]:
    """``J J^T`` in float64."""
    jacobian = explicit_jacobian(apply_fn, params, x)
    return jacobian @ jacobian.T


def relative_error(a, b) -> float:
    """Largest difference over the largest entry of ``b``."""
    return float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max())


def symmetric_with_spectrum(eigenvalues, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``(matrix, eigenvectors)`` with the given eigenvalues, in that order, in float64."""
    n = len(eigenvalues)
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (vectors * np.asarray(eigenvalues, np.float64)) @ vectors.T, vectors
