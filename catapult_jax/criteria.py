"""Criteria for spikes, side by side: each is a score with the threshold 1, above which theory expects a rise.

The names c1 to c10 are those of the table on docs/claims.md. Spectral criteria say what may grow over many steps, directional ones what
this step does.

>>> float(spectral_score(jnp.float32(40.0), lr=0.1))  # c1: lr lambda_max / 2
2.0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from catapult_jax.critical import critical_lr_from_lambda
from catapult_jax.directional import Directional, from_slope_and_curvature
from catapult_jax.preconditioners import PLAIN, Preconditioner
from catapult_jax.xla import eigh

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

SPIKE_SCORE = 6.0  # a higher score is a spike in the codes that spike_score names


def spectral_score(
    lambda_max: Float[Array, "*n"], *, lr: float | Float[Array, "*n"], preconditioner: Preconditioner = PLAIN
) -> Float[Array, "*n"]:
    """c1 and c2: ``lr / critical_lr``, from the top eigenvalue of the loss-weighted kernel, or of the Hessian.

    Args:
      lambda_max: with the optimizer's ``P``.
      lr: of the step.
      preconditioner: gain and decay of the optimizer.

    Returns:
      ``lr (gain lambda_max + decay) / 2``.

    Source: Lewkowycz et al. (2020), arXiv 2003.02218; with ``P`` Cohen et al. (2022), arXiv 2207.14484.
    """
    return lr / critical_lr_from_lambda(lambda_max, preconditioner)


def directional_score(step: Directional) -> Float[Array, "*n"]:
    """c3, c4, c5: ``1 / multiple``; infinite where the update is no descent direction.

    Args:
      step: of :func:`catapult_jax.directional_critical_lr` (c3; on the training set c5), or of :func:`directional_hessian` (c4).

    Returns:
      The score, of the shape of ``multiple``.

    >>> directional_score(from_slope_and_curvature(jnp.array([-1.0, 1.0]), jnp.array([4.0, 4.0]))).tolist()
    [2.0, inf]
    """
    multiple = step.multiple
    return jnp.where(jnp.isnan(multiple), jnp.nan, jnp.where(multiple > 0, 1 / jnp.where(multiple > 0, multiple, 1), jnp.inf))


def directional_kernel_score(
    weighted: Float[Array, "n n"], residual: Float[Array, " n"], *, lr: float | Float[Array, ""]
) -> Float[Array, ""]:
    """c3 of gradient descent from the kernel, without a pass of the network: ``lr r^T K^2 r / (2 r^T K r)``.

    Args:
      weighted: loss-weighted kernel ``K`` of the batch.
      residual: loss-weighted residual ``r`` of the batch, in the same coordinates.
      lr: of the step.

    Returns:
      The score.

    Source: the criterion of :func:`catapult_jax.directional_critical_lr` with ``D = -lr g``, written with the kernel.

    >>> float(directional_kernel_score(jnp.diag(jnp.array([4.0, 1.0])), jnp.array([1.0, 0.0]), lr=0.25))
    0.5
    """
    with jax.default_matmul_precision("highest"):
        image = weighted @ residual
        return lr * (image @ image) / (2 * (residual @ image))


def directional_hessian(loss_fn: Callable[[PyTree], Float[Array, ""]], params: PyTree, updates: PyTree) -> Directional:
    """c4: the slope and curvature of the loss along an update, with the Hessian in place of the Gauss-Newton matrix: one hvp.

    Args:
      loss_fn: ``params -> loss`` of the batch.
      params: before the step.
      updates: what the step adds to them. ``-lr P^(-1) g`` gives the curvature of the preconditioned Hessian along the preconditioned
        gradient (c9).

    Returns:
      :class:`catapult_jax.Directional`; ``multiple`` is infinite where the loss curves downwards along a descent direction.

    Source: arXiv 2601.16979; arXiv 2506.04805 for Adam.

    >>> step = directional_hessian(lambda w: w**2 + w**3, jnp.float32(1.0), jnp.float32(-1.0))
    >>> float(step.slope), float(step.curvature)
    (-5.0, 8.0)
    """
    gradient, image = jax.jvp(jax.grad(loss_fn), (params,), (updates,))
    return from_slope_and_curvature(_dot(gradient, updates), _dot(updates, image))


def hessian_lambda_max(
    loss_fn: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    start: Float[Array, "p k"],
    *,
    diagonal: PyTree | None = None,
    iterations: int = 6,
) -> tuple[Float[Array, ""], Float[Array, "p k"]]:
    """c2: the largest eigenvalue of ``P^(-1/2) H P^(-1/2)``, by block Lanczos with full orthogonalisation.

    The value is a lower bound. Nothing proves how near it is: give the vectors of the step before, and check a few steps with more iterations.

    Args:
      loss_fn: ``params -> loss``.
      params: the point, ``p`` numbers in all.
      start: ``k`` independent columns; the vectors of the call before, or random ones.
      diagonal: of ``P``; None: one.
      iterations: each takes ``k`` hvps, and the memory of ``2 k`` gradients.

    Returns:
      The eigenvalue, and the vectors for the next call.

    Source: Golub and Van Loan, Matrix Computations, chapter 10.

    >>> value, _ = hessian_lambda_max(lambda w: jnp.sum(jnp.arange(1.0, 7) * w**2), jnp.ones(6), jnp.ones((6, 1)) + jnp.eye(6, 1))
    >>> round(float(value), 3)
    12.0
    """
    _, unravel = ravel_pytree(params)
    root = 1.0 if diagonal is None else jax.lax.rsqrt(ravel_pytree(diagonal)[0])
    k = start.shape[1]

    def product(rows):
        hvp = lambda v: ravel_pytree(jax.jvp(jax.grad(loss_fn), (params,), (unravel(v),))[1])[0]
        return root * jax.vmap(hvp)(root * rows)

    def extend(i, state):
        basis, images, rows = state
        for j in range(k):
            basis = basis.at[i * k + j].set(_outside(basis, rows[j]))
        image = product(jax.lax.dynamic_slice(basis, (i * k, 0), rows.shape))
        return basis, jax.lax.dynamic_update_slice(images, image, (i * k, 0)), image

    with jax.default_matmul_precision("highest"):
        empty = jnp.zeros((iterations * k, len(start)), start.dtype)
        basis, images, _ = jax.lax.fori_loop(0, iterations, extend, (empty, empty, start.T))
        inner = basis @ images.T
        # A row that was dropped is zero: its eigenvalue goes below all others.
        dropped = jnp.sum(basis**2, 1) == 0
        values, rotation = eigh((inner + inner.T) / 2 - jnp.diag(dropped * (1 + 2 * jnp.linalg.norm(inner))))
        return values[-1], (rotation[:, ::-1][:, :k].T @ basis).T


_DEPENDENT = 1e-5  # a vector of which so little lies outside the basis is rounding


def _outside(basis: Float[Array, "m p"], vector: Float[Array, " p"]) -> Float[Array, " p"]:
    """Unit vector along the part of ``vector`` outside the rows of ``basis``; zero for a vector that lies in their space."""
    size = jnp.linalg.norm(vector)
    for _ in range(2):  # the second time takes away the rounding of the first
        vector = vector - (basis @ vector) @ basis
    rest = jnp.linalg.norm(vector)
    return jnp.where(rest > _DEPENDENT * size, vector / jnp.where(rest > 0, rest, 1), 0)


def batch_sharpness_score(
    weighted: Float[Array, "n n"], residual: Float[Array, " n"], batches: Int[Array, "m b"], *, lr: float | Float[Array, ""]
) -> Float[Array, ""]:
    """c6: ``lr / 2`` times the Batch Sharpness, the mean over batches of ``g_B^T G_B g_B / g_B^T g_B``.

    It is taken from the loss-weighted kernel of the training set: that of a batch is ``n / b`` times its rows and columns.

    Args:
      weighted: of all ``n`` training examples, with one output each.
      residual: loss-weighted, of all training examples.
      batches: rows of the examples in each of ``m`` batches.
      lr: of the step.

    Returns:
      The score.

    Source: arXiv 2412.20553.
    """
    factor = weighted.shape[0] / batches.shape[1]

    def one_batch(rows):
        return directional_kernel_score(factor * weighted[rows][:, rows], residual[rows], lr=lr)

    return jnp.mean(jax.vmap(one_batch)(batches))


def noise_score(
    eigenvalues: Float[Array, " n"], *, lr: float | Float[Array, ""], batch_size: int, examples: int
) -> Float[Array, ""]:
    r"""c7: the norm of the noise kernel, ``(lr / b) (1 - b / n) sum_i h_i / (2 - lr h_i)``; infinite where ``lr h_i >= 2``.

    In a linear model the second moments of the residual in the eigenbasis follow ``p_i' = (1 - lr h_i)^2 p_i + (lr^2 / b) (1 - b / n) h_i^2
    sum_j p_j``, if the squares of the residual are spread evenly over the examples. They grow if and only if the score is above 1.

    Args:
      eigenvalues: ``h_i`` of the loss-weighted kernel of the training set.
      lr: of the step.
      batch_size: ``b``.
      examples: ``n``.

    Returns:
      The score.

    Source: Agarwala and Pennington (2024), arXiv 2404.19261; the normalisation above is derived in tests/test_criteria.py.

    >>> float(noise_score(jnp.array([1.0]), lr=1.0, batch_size=1, examples=4))
    0.75
    """
    room = 2 - lr * eigenvalues
    terms = jnp.where(room > 0, eigenvalues / jnp.where(room > 0, room, 1), jnp.inf)
    return lr / batch_size * (1 - batch_size / examples) * jnp.sum(terms)


def trace_score(trace: Float[Array, "*n"], *, lr: float | Float[Array, "*n"], batch_size: int) -> Float[Array, "*n"]:
    """c7 for a small lr: ``lr tr(G) / (2 b)``.

    Args:
      trace: of the Gauss-Newton matrix on the training set, the sum of its eigenvalues.
      lr: of the step.
      batch_size: ``b``.

    Returns:
      The score.

    Source: arXiv 2404.19261, to first order in the lr, for ``b`` much smaller than the training set.
    """
    return lr * trace / (2 * batch_size)


def line_search_score(
    loss_fn: Callable[[PyTree], Float[Array, ""]], params: PyTree, updates: PyTree, *, doublings: int = 8, halvings: int = 8
) -> Float[Array, ""]:
    """c8: the inverse of the smallest multiple of the update at which the loss is as high as before the step.

    The multiple is bracketed by doubling it from ``2^-doublings``, then halved: ``2 doublings + 2 + halvings`` forward passes. It is
    the smallest one if the loss crosses its starting value once up to there.

    Args:
      loss_fn: ``params -> loss``, of this batch or another.
      params: before the step.
      updates: what the step adds to them.
      doublings: the multiple is looked for from ``2^-doublings`` to ``2^doublings``.
      halvings: each one halves the interval on a log scale.

    Returns:
      The score: 0 if the loss is below its starting value everywhere, infinite if nowhere.

    Source: arXiv 2601.16979.

    >>> float(line_search_score(lambda w: w**2, jnp.float32(1.0), jnp.float32(-1.0)).round(2))  # it is back at 1 after twice the update
    0.5
    """
    start = loss_fn(params)
    rises = lambda multiple: ~(loss_fn(jax.tree.map(lambda p, u: p + multiple * u, params, updates)) < start)
    exponents = jnp.arange(-doublings, doublings + 1.0)
    risen = jax.lax.map(lambda e: rises(2.0**e), exponents)
    first = jnp.argmax(risen)

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        is_above = rises(2.0**middle)
        return jnp.where(is_above, low, middle), jnp.where(is_above, middle, high)

    low, high = jax.lax.fori_loop(0, halvings, halve, (exponents[first] - 1, exponents[first]))
    score = jnp.where(
        risen[0], jnp.inf, 2.0 ** (-(low + high) / 2)
    )  # its middle: above 1 if and only if the loss at 1 is as high
    return jnp.where(jnp.any(risen), score, 0.0)


def heavy_ball_score(
    eigenvalues: Float[Array, " n"],
    *,
    lr: float | Float[Array, ""],
    momentum: float,
    batch_size: int | None = None,
    examples: int = 1,
) -> Float[Array, ""]:
    """c10: the largest spectral radius of the maps of the second moments of one mode under heavy ball.

    The residual in mode ``i`` follows ``z_(t+1) = (1 + beta - lr h_i) z_t - beta z_(t-1)``, plus noise of variance ``(lr h_i)^2 (1 / b)
    (1 - b / n) z_t^2``: the part of the noise of batches that the mode makes itself. The moments ``(z_t^2, z_t z_(t-1), z_(t-1)^2)``
    follow a 3 x 3 map.

    Args:
      eigenvalues: ``h_i`` of the loss-weighted kernel of the training set.
      lr: of the step.
      momentum: ``beta``.
      batch_size: ``b``; None: all examples, no noise.
      examples: ``n``.

    Returns:
      The score: above 1 the second moment of a mode grows.

    Source: our algebra; without noise the threshold is ``lr h = 2 (1 + beta)``.

    >>> bool(heavy_ball_score(jnp.array([1.0]), lr=3.79, momentum=0.9) < 1 < heavy_ball_score(jnp.array([1.0]), lr=3.81, momentum=0.9))
    True
    """
    noise = 0.0 if batch_size is None else (1 - batch_size / examples) / batch_size

    def radius(h):
        a, beta = 1 + momentum - lr * h, jnp.asarray(momentum, h.dtype)
        unit, zero = jnp.ones_like(h), jnp.zeros_like(h)
        second_moments = jnp.array(
            [[a**2 + noise * (lr * h) ** 2, -2 * a * beta, beta**2], [a, -beta, zero], [unit, zero, zero]]
        )
        return _spectral_radius(second_moments)

    return jnp.max(jax.vmap(radius)(eigenvalues))


def spike_score(values: ArrayLike, *, window: int = 128) -> Float[np.ndarray, " t"]:
    """Number of standard deviations by which a value exceeds the mean of the values before it.

    ``score_t = (x_t - mean) / std`` over the ``window`` values before ``t`` (sample standard deviation). A score above ``SPIKE_SCORE = 6``
    is a spike. The score needs neither a level nor a critical learning rate. It works on the loss of batches and on the norm of gradients.

    Args:
      values: a series, ``(t,)``, for example the loss.
      window: number of values before each value; at least 2.

    Returns:
      Scores, ``(t,)``. NaN where fewer values come before, or one of them is not finite.

    Raises:
      ValueError: the series is not one-dimensional, or the window is below 2.

    Source: OLMo-core, levanter and MaxText skip steps by this rule, with 128 values and 6 standard deviations.

    >>> spike_score([1.0, 3.0, 2.0, 8.0], window=3).tolist()
    [nan, nan, nan, 6.0]
    """
    series = np.asarray(values, float)
    if series.ndim != 1:
        raise ValueError(f"values has shape {series.shape}; allowed: one-dimensional")
    if window < 2:
        raise ValueError(f"window={window!r}; allowed: 2 or more")
    score = np.full(len(series), np.nan)
    if len(series) > window:
        with np.errstate(invalid="ignore"):
            score[window:] = spike_score_of(np.lib.stride_tricks.sliding_window_view(series, window)[:-1], series[window:])
    return score


def spike_score_of(before: Any, value: Any) -> Any:
    """:func:`spike_score` of values of which each has its own window, of NumPy or JAX, also under jit.

    Args:
      before: the values before each, ``(..., n)``, 2 or more.
      value: the values, ``(...)``.

    Returns:
      The scores, ``(...)``; NaN where a value before it is not finite.

    Source: :func:`spike_score`.

    >>> float(spike_score_of(jnp.array([1.0, 3.0, 2.0]), jnp.array(8.0)))
    6.0
    """
    xp: Any = np if isinstance(before, np.ndarray) else jnp
    before = xp.where(xp.isfinite(before), before, xp.nan)
    above, deviation = value - before.mean(-1), before.std(-1, ddof=1)
    score = above / xp.where(deviation == 0, 1.0, deviation)
    # After constant values any change has an infinite score, no change a score of zero.
    return xp.where(above == 0, 0.0, xp.where(deviation == 0, xp.copysign(xp.inf, above), score))


def _spectral_radius(matrix: Float[Array, "n n"], squarings: int = 20) -> Float[Array, ""]:
    """``|M^q|^(1/q)`` (Gelfand), on every device, with ``q = 2^squarings``, scaled by its norm at each squaring, so that nothing overflows."""

    def square(_, carry):
        power, log_norm = carry
        power = power @ power
        size = jnp.linalg.norm(power)
        safe = jnp.where(size > 0, size, 1)
        return power / safe, 2 * log_norm + jnp.log(safe)

    with jax.default_matmul_precision("highest"):
        size = jnp.linalg.norm(matrix)
        _, log_norm = jax.lax.fori_loop(0, squarings, square, (matrix / size, jnp.log(size)))
    return jnp.exp(log_norm / 2**squarings)


def _dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((jnp.vdot(x, y) for x, y in leaves), jnp.float32(0))
