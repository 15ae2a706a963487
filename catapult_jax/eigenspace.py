"""The loss split over the top eigenspace of the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from catapult_jax.losses import Loss, curvature_columns, hessian_range, weighted_residual
from catapult_jax.tangent.placement import placed_by_compiler
from catapult_jax.tangent.weighted import loss_weighted_kernel
from catapult_jax.xla import eigh, warn_of_lapack_threads

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


class LossSplit(NamedTuple):
    """The loss split over the top-``k`` eigenspace of the loss-weighted kernel, and the eigenpairs of that space."""

    top: Float[Array, ""]  # part of the loss in the top-k eigenspace
    rest: Float[Array, ""]  # part outside it
    lambda_max: Float[Array, ""]  # largest eigenvalue of the loss-weighted kernel
    condition_number: Float[
        Array, ""
    ]  # largest over smallest eigenvalue, on the range of the loss Hessian; inf: smallest is rounding
    eigenvalues: Float[Array, " k"]  # of the loss-weighted kernel, in the order of the eigenvectors
    eigenvectors: Float[Array, "n k"]  # columns, aligned with the previous ones if there are any
    modes: Float[Array, " modes"]  # part of the loss in each of the largest eigenvalues' directions, always in descending order


def split_loss(
    kernel: Float[Array, "bo bo"],
    outputs: Float[Array, "b *o"],
    targets: PyTree,
    *,
    loss: str | Loss,
    k: int = 5,
    previous: Float[Array, "bo k"] | None = None,
) -> LossSplit:
    """Split the loss of a batch over the top-``k`` eigenspace of the loss-weighted kernel.

    ``top = ||U_k^T r||^2 / b`` and ``rest = (||r||^2 - ||U_k^T r||^2) / b``, with ``U_k`` the top eigenvectors and ``r`` the
    loss-weighted residual of :func:`catapult_jax.losses.weighted_residual`.
    For ``mse``, ``r = f - y`` and ``top + rest`` is the loss.
    For other losses the sum is half the Newton decrement, not the loss.

    Args:
      kernel: tangent kernel ``(b*o, b*o)``, example-major, not loss-weighted.
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss takes them.
      loss: a name, or an object of :mod:`catapult_jax.losses`.
      k: size of the eigenspace; a ``k`` above ``b*o`` takes all eigenvectors.
      previous: eigenvectors of the previous step. The new ones take the order and signs that overlap most with them, so curves
        do not jump where two eigenvalues cross. The space is always that of the ``k`` largest eigenvalues.

    Returns:
      A :class:`LossSplit`; ``top`` and ``rest`` in units of the loss, eigenvalues in units of an inverse learning rate.

    Raises:
      ValueError: ``k`` below 1, unknown loss, or shapes that do not fit.

    Source: Zhu et al. (2024), arXiv 2306.04815, for the split; the loss-weighted form is the Gauss-Newton one.

    >>> split = split_loss(jnp.diag(jnp.array([4.0, 1.0])), jnp.array([3.0, 1.0]), jnp.zeros(2), loss="mse", k=1)
    >>> float(split.top), float(split.rest), float(split.lambda_max)  # (9/2, 1/2, 2*4/2)
    (4.5, 0.5, 4.0)
    """
    weighted = loss_weighted_kernel(kernel, outputs, targets, loss=loss)
    return split_weighted_loss(weighted, outputs, targets, loss=loss, k=k, previous=previous)


def split_weighted_loss(
    weighted: Float[Array, "br br"],
    outputs: Float[Array, "b *o"],
    targets: PyTree,
    *,
    loss: str | Loss,
    k: int = 5,
    previous: Float[Array, "bo k"] | None = None,
    modes: int = 0,
) -> LossSplit:
    """:func:`split_loss` of a kernel that is loss-weighted already.

    Args:
      weighted: from :func:`catapult_jax.loss_weighted_kernel`, ``(b*o, b*o)``, or from
        :func:`catapult_jax.tangent.weighted_tangent_kernel`, ``(b*r, b*r)`` with ``r`` the rank of the loss Hessian.
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss takes them.
      loss: a name, or an object of :mod:`catapult_jax.losses`.
      k: size of the eigenspace; a ``k`` above the size of ``weighted`` takes all eigenvectors.
      previous: eigenvectors of the previous step, as in :func:`split_loss`.
      modes: number of directions whose parts ``(u_i . r)^2 / b`` of the loss are given one by one, at most the size of ``weighted``.

    Returns:
      A :class:`LossSplit`. Its eigenvectors have ``b*o`` entries for both kinds of ``weighted``.

    Raises:
      ValueError: as :func:`split_loss`; ``modes`` out of its range.

    Source: as :func:`split_loss`.

    >>> split = split_weighted_loss(jnp.diag(jnp.array([4.0, 1.0])), jnp.array([3.0, 1.0]), jnp.zeros(2), loss="mse", k=1)
    >>> float(split.top), float(split.rest), float(split.lambda_max)
    (4.5, 0.5, 4.0)
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k={k!r}; allowed: a whole number, 1 or more")
    if not 0 <= modes <= len(weighted):
        raise ValueError(f"modes={modes!r}; allowed for a kernel of {len(weighted)} rows: 0 to {len(weighted)}")

    def split(weighted, outputs, targets, previous):
        with jax.default_matmul_precision("highest"):
            residual = weighted_residual(outputs, targets, loss=loss)
            b = len(residual)  # positions
            expected = (residual.size, min(k, len(weighted)))
            if previous is not None and jnp.shape(previous) != expected:
                raise ValueError(
                    f"previous has shape {jnp.shape(previous)}; allowed: {expected}, eigenvectors of the same batch size and k"
                )
            if len(weighted) == residual.size:
                zeros = b * (residual.shape[1] - hessian_range(residual.shape[1], loss=loss).shape[1])
                return _split(weighted, residual.reshape(-1), b, k, previous, zeros, modes)
            _, Q = curvature_columns(outputs, targets, loss=loss)
            to_rows = lambda v: jnp.einsum("bor,bok->brk", Q, v.reshape(*residual.shape, -1)).reshape(len(weighted), -1)
            previous = None if previous is None else to_rows(previous)
            result = _split(weighted, to_rows(residual)[:, 0], b, k, previous, 0, modes)
            vectors = jnp.einsum("bor,brk->bok", Q, result.eigenvectors.reshape(b, Q.shape[2], -1))
            return result._replace(eigenvectors=vectors.reshape(residual.size, -1))

    return placed_by_compiler(split, weighted, outputs, targets, previous)


def _split(weighted, residual, b: int, k: int, previous, zeros: int, modes: int) -> LossSplit:
    """The split in the space of ``weighted``; ``zeros`` eigenvalues are zero for every model, as the loss has no curvature there."""
    warn_of_lapack_threads()
    values, vectors = eigh(weighted)
    lambda_min, lambda_max = values[zeros], values[-1]
    is_resolved = lambda_min > len(values) * jnp.finfo(values.dtype).eps * lambda_max
    condition = jnp.where(
        is_resolved,
        lambda_max / jnp.where(is_resolved, lambda_min, 1),
        jnp.where(jnp.isnan(lambda_max), jnp.nan, jnp.inf),
    )
    residual = residual.astype(weighted.dtype)
    parts = (vectors[:, ::-1][:, :modes].T @ residual) ** 2 / b
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    if previous is not None:
        order, sign = _alignment(previous.T @ vectors)
        values, vectors = values[order], vectors[:, order] * sign[None]
    return LossSplit(*fraction_of(vectors, residual, b), lambda_max, condition, values, vectors, parts)


def fraction_of(
    vectors: Float[Array, "n k"], residual: Float[Array, " n"], b: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Split ``||residual||^2 / b`` over a space and its complement.

    Args:
      vectors: orthonormal columns that span the space.
      residual: loss-weighted residual, flat.
      b: number of positions.

    Returns:
      ``(top, rest)``: the part in the space, and the part outside it, in units of the loss.

    Source: Pythagoras.

    >>> top, rest = fraction_of(jnp.array([[1.0], [0.0]]), jnp.array([3.0, 1.0]), 2)
    >>> float(top), float(rest)
    (4.5, 0.5)
    """
    # ``rest`` comes from a projection, not a difference: it keeps its digits when almost all of the loss is in the space.
    components = vectors.T @ residual
    outside = residual - vectors @ components
    return jnp.sum(components**2) / b, jnp.sum(outside**2) / b


def _alignment(overlap: Float[Array, "k k"]):
    """Order and sign of the new vectors (columns). Greedy: match the largest overlap, then the largest of the remaining ones."""
    k = overlap.shape[0]

    def match(_, carry):
        remaining, order = carry
        row, column = jnp.unravel_index(jnp.argmax(remaining), remaining.shape)
        remaining = remaining.at[row, :].set(-1).at[:, column].set(-1)
        return remaining, order.at[row].set(column.astype(order.dtype))

    _, order = jax.lax.fori_loop(0, k, match, (jnp.abs(overlap), jnp.zeros(k, jnp.int32)))
    sign = jnp.where(overlap[jnp.arange(k), order] < 0, -1, 1).astype(overlap.dtype)
    return order, sign
