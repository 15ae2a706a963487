"""Average Gradient Outer Product (AGOP): the input directions that a model uses, and their alignment with a reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.tangent.checks import check_chunk_size
from catapult_jax.tangent.placement import placed_by_compiler
from catapult_jax.xla import UNROLLED_JACOBIAN_CHUNKS, after, loops_are_slow

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


def input_jacobian(
    apply_fn: Callable, params: PyTree, x: Float[Array, "n *d"], *, chunk_size: int | None = None
) -> Float[Array, "no d"]:
    """Jacobian of the outputs in the inputs, ``J_x f(x_i)``: one row per example and output, example-major.

    The functions for alignment and eigenvectors work on these rows, so they need no ``d x d`` matrix.

    Args:
      apply_fn: ``apply_fn(params, x) -> (n, ...)``; the outputs of an example must depend on that example only.
      params: parameters.
      x: ``(n, ...)`` floating-point inputs, with ``d`` entries each.
      chunk_size: examples per backward pass; None: all. It bounds the memory of the backward pass; the rows themselves take
        ``n * o * d`` numbers. For convolutions on the CPU up to 32 chunks are unrolled; more run in a loop, which takes three
        times as long there.

    Returns:
      ``(n*o, d)``, in units of output per input.

    Raises:
      ValueError: integer inputs, no examples, a chunk size below 1.

    Source: the definition of a Jacobian.

    >>> linear = lambda w, x: x @ w
    >>> input_jacobian(linear, jnp.array([[3.0], [4.0]]), jnp.ones((2, 2))).tolist()
    [[3.0, 4.0], [3.0, 4.0]]
    """
    if not hasattr(x, "shape"):
        raise ValueError(f"x is a {type(x).__name__}; allowed: one array of inputs, (n, ...)")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; allowed: floating-point inputs")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x has shape {x.shape}; allowed: (n, ...) with n above 0")
    check_chunk_size(chunk_size)

    def rows_of(params, x):
        def example_rows(example):
            jacobian = jax.jacrev(lambda z: apply_fn(params, z[None]).reshape(-1))(example)
            return jacobian.reshape(jacobian.shape[0], -1)

        with jax.default_matmul_precision("highest"):
            if chunk_size is None or chunk_size >= len(x):
                rows = jax.vmap(example_rows)(x)
            elif len(x) <= UNROLLED_JACOBIAN_CHUNKS * chunk_size and loops_are_slow(apply_fn, params, x):
                rows = _unrolled(jax.jit(jax.vmap(example_rows)), x, chunk_size)
            else:
                rows = lax.map(example_rows, x, batch_size=chunk_size)
        return rows.reshape(-1, math.prod(x.shape[1:]))

    return placed_by_compiler(rows_of, params, x)


def _unrolled(function: Callable, x: Array, size: int) -> Array:
    """``function`` of chunks of ``x``. Each chunk depends on the one before it, so that XLA holds one of them in memory at a time."""
    results = [function(x[:size])]
    for start in range(size, len(x), size):
        results.append(function(after(results[-1], x[start : start + size])))
    return jnp.concatenate(results)


def agop(apply_fn: Callable, params: PyTree, x: Float[Array, "n *d"], *, chunk_size: int | None = None) -> Float[Array, "d d"]:
    """Average Gradient Outer Product, ``G = (1/n) sum_i J_x f(x_i)^T J_x f(x_i)``, summed over outputs.

    For inputs of many dimensions use :func:`agop_alignment` and :func:`agop_eigenvectors`: they do not form ``G``.

    Args:
      apply_fn: ``apply_fn(params, x) -> (n, ...)``; the outputs of an example must depend on that example only.
      params: parameters.
      x: ``(n, ...)`` floating-point inputs, with ``d`` entries each.
      chunk_size: examples per backward pass; None: all.

    Returns:
      ``(d, d)``, in units of squared output per squared input.

    Raises:
      ValueError: as :func:`input_jacobian`.

    Source: Radhakrishnan et al. (2024), arXiv 2212.13881; Zhu et al. (2024), arXiv 2306.04815.

    >>> linear = lambda w, x: x @ w
    >>> agop(linear, jnp.array([[3.0], [4.0]]), jnp.ones((2, 2))).tolist()  # w w^T
    [[9.0, 12.0], [12.0, 16.0]]
    """
    rows = input_jacobian(apply_fn, params, x, chunk_size=chunk_size)
    with jax.default_matmul_precision("highest"):
        return rows.T @ rows / len(x)


def agop_alignment(jacobian: Float[Array, "m d"], reference: Float[Array, "r d"]) -> Float[Array, ""]:
    """Alignment of two AGOPs, the uncentred cosine ``<G_f, G_g>_F / (||G_f||_F ||G_g||_F)``, between 0 and 1.

    With ``A`` and ``B`` the rows of the two Jacobians, it equals ``||A B^T||_F^2 / (||A A^T||_F ||B B^T||_F)``.
    So a ``d x d`` matrix is formed only if ``d`` is smaller than the number of rows.

    Args:
      jacobian: ``(m, d)`` rows of the model, from :func:`input_jacobian`.
      reference: ``(r, d)`` rows of the reference, at the same points.

    Returns:
      A scalar without units; NaN if one of the AGOPs is zero.

    Raises:
      ValueError: rows of different length.

    Source: Zhu et al. (2024), arXiv 2306.04815; the Gram form is the cyclic property of the trace.

    >>> rows = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> round(float(agop_alignment(rows, rows[:1])), 4)  # <I, e e^T> / (sqrt(2) * 1)
    0.7071
    """
    return _cosine(jacobian, reference, centred=False)


def agop_pearson(jacobian: Float[Array, "m d"], reference: Float[Array, "r d"]) -> Float[Array, ""]:
    """Pearson correlation of the entries of two AGOPs: :func:`agop_alignment` after the mean entry is subtracted from each.

    The mean entry of ``G = A^T A / n`` is ``||A 1||^2 / (n d^2)``, so this needs no ``d x d`` matrix either.

    Args:
      jacobian: ``(m, d)`` rows of the model, from :func:`input_jacobian`.
      reference: ``(r, d)`` rows of the reference, at the same points.

    Returns:
      A scalar without units, between -1 and 1; NaN if all entries of an AGOP are equal.

    Raises:
      ValueError: rows of different length.

    Source: Pearson's correlation coefficient, with the Gram form of :func:`agop_alignment`.

    >>> rows = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> round(float(agop_pearson(rows, rows[:1])), 4)
    0.5774
    """
    return _cosine(jacobian, reference, centred=True)


def _cosine(a, b, *, centred: bool) -> Array:
    """The cosine of ``a^T a`` and ``b^T b``; ``centred``: after their mean entries are subtracted."""
    if jnp.ndim(a) != 2 or jnp.ndim(b) != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"reference has shape {jnp.shape(b)}; allowed for a jacobian {jnp.shape(a)}: rows of the same length")
    d = a.shape[1]
    with jax.default_matmul_precision("highest"):
        # Scaled to norm one, so that no square overflows or vanishes.
        a, b = (rows / jnp.linalg.norm(rows) for rows in (a, b))

        if d < max(len(a), len(b)):
            square_a, square_b = a.T @ a, b.T @ b
            inner = lambda p, q: jnp.sum((square_a if p is a else square_b) * (square_a if q is a else square_b))
        else:
            inner = lambda p, q: jnp.sum((p @ q.T) ** 2)
        sums = {id(rows): jnp.sum(jnp.sum(rows, axis=1) ** 2) / d for rows in (a, b)} if centred else {}

        def product(p, q):
            return inner(p, q) - (sums[id(p)] * sums[id(q)] if centred else 0)

        def variance(p):
            """Zero up to rounding where all entries are equal, and then the correlation is not defined."""
            least = 64 * float(jnp.finfo(p.dtype).eps) * inner(p, p) if centred else 0
            return jnp.where(product(p, p) > least, product(p, p), jnp.nan)

        return product(a, b) / jnp.sqrt(variance(a) * variance(b))


def agop_eigenvectors(jacobian: Float[Array, "m d"], n: int, *, k: int) -> tuple[Float[Array, " k"], Float[Array, "d k"]]:
    """Largest eigenvalues of the AGOP, in descending order, and their eigenvectors, from the rows of the Jacobian.

    ``G = V (s^2 / n) V^T``, with ``A = U s V^T`` the singular value decomposition of the rows.
    The largest entry of each eigenvector, by size, is positive.

    Args:
      jacobian: ``(m, d)`` rows, from :func:`input_jacobian`.
      n: number of examples in these rows.
      k: number of eigenvectors, at most the smaller side of ``jacobian``.

    Returns:
      ``(eigenvalues, eigenvectors)``: ``(k,)``, in units of squared output per squared input, and ``(d, k)``, one column each.

    Raises:
      ValueError: ``k`` is out of its range.

    Source: the singular value decomposition.

    >>> values, vectors = agop_eigenvectors(jnp.array([[2.0, 0.0], [0.0, 1.0]]), 1, k=1)
    >>> values.tolist(), vectors.tolist()
    ([4.0], [[1.0], [0.0]])
    """
    if n < 1:
        raise ValueError(f"n={n!r}; allowed: 1 or more, the number of examples")
    if not 1 <= k <= min(jacobian.shape):
        raise ValueError(f"k={k!r}; allowed for a jacobian {jacobian.shape}: 1 to {min(jacobian.shape)}")
    with jax.default_matmul_precision("highest"):
        _, singular, rows = jnp.linalg.svd(jacobian, full_matrices=False)
    vectors = rows[:k].T
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0)[None], axis=0)
    return singular[:k] ** 2 / n, vectors * jnp.where(largest < 0, -1, 1).astype(vectors.dtype)
