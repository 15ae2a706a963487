"""The loss split over the top eigenspace of the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from catapult_jax.critical import loss_weighted_kernel
from catapult_jax.losses import curvature_columns, weighted_residual
from catapult_jax.xla import warn_of_lapack_threads

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class LossSplit(NamedTuple):
    """What :func:`split_loss` returns."""

    top: Float[Array, ""]  # part of the loss in the top-k eigenspace
    rest: Float[Array, ""]  # part outside it
    lambda_max: Float[Array, ""]  # largest eigenvalue of the loss-weighted kernel
    # Largest over smallest, on the range of the loss Hessian; infinite where the smallest is lost in rounding
    condition_number: Float[Array, ""]
    eigenvalues: Float[Array, " k"]  # of the loss-weighted kernel, in the order of the eigenvectors
    eigenvectors: Float[Array, "n k"]  # columns, aligned to the previous ones if those are given


def split_loss(
    kernel: Float[Array, "bo bo"],
    outputs: Float[Array, "b *o"],
    targets: Array,
    *,
    loss: str,
    k: int = 5,
    previous: Float[Array, "bo k"] | None = None,
) -> LossSplit:
    """Splits the loss of a batch over the top-``k`` eigenspace of the loss-weighted kernel.

    With ``U_k`` the top eigenvectors and ``r`` the loss-weighted residual of :func:`catapult_jax.losses.weighted_residual`,
    ``top = ||U_k^T r||^2 / b`` and ``rest = (||r||^2 - ||U_k^T r||^2) / b``. For ``mse`` this is ``||U_k^T (f - y)||^2 / b``,
    and ``top + rest`` is the loss; for other losses the sum is half the Newton decrement, not the loss.

    Args:
      kernel: tangent kernel ``(b*o, b*o)``, example-major, not loss-weighted.
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss wants them.
      loss: ``"mse"``, ``"softmax_cross_entropy"`` or ``"logistic"``.
      k: size of the eigenspace; at most ``b*o`` vectors exist, and a larger ``k`` takes them all.
      previous: eigenvectors of the step before. The new ones are put in the order and sign that overlap most with them, so
        that curves do not jump when two eigenvalues cross; the space itself is always that of the ``k`` largest.

    Raises:
      ValueError: ``k`` below 1, unknown loss, or shapes that don't fit.

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
    targets: Array,
    *,
    loss: str,
    k: int = 5,
    previous: Float[Array, "bo k"] | None = None,
) -> LossSplit:
    """:func:`split_loss` from a kernel that is loss-weighted already.

    Args:
      weighted: from :func:`loss_weighted_kernel`, or from :func:`weighted_tangent_kernel`, in as many directions of the outputs as
        the loss has curvature in; eigenvectors are those of the former.
      outputs, targets, loss, k, previous: as in :func:`split_loss`; for ``softmax_cross_entropy`` the latter has ``b*(o-1)`` vectors.

    Raises:
      ValueError: as :func:`split_loss`.

    Source: as :func:`split_loss`.

    >>> split = split_weighted_loss(jnp.diag(jnp.array([4.0, 1.0])), jnp.array([3.0, 1.0]), jnp.zeros(2), loss="mse", k=1)
    >>> float(split.top), float(split.rest), float(split.lambda_max)
    (4.5, 0.5, 4.0)
    """
    if k < 1:
        raise ValueError(f"k={k!r}; allowed: 1 or more")
    with jax.default_matmul_precision("highest"):
        residual, b = weighted_residual(outputs, targets, loss=loss), len(outputs)
        expected = (residual.size, min(k, len(weighted)))
        if previous is not None and jnp.shape(previous) != expected:
            raise ValueError(
                f"previous has shape {jnp.shape(previous)}; allowed: {expected}, eigenvectors of the same batch size and k"
            )
        if len(weighted) == residual.size:
            null = b if loss == "softmax_cross_entropy" else 0  # one direction of each example
            return _split(weighted, residual.reshape(-1), b, k, previous, null)
        _, Q = curvature_columns(outputs, targets, loss=loss)
        inside = lambda v: jnp.einsum("bor,bok->brk", Q, v.reshape(*residual.shape, -1)).reshape(len(weighted), -1)
        previous = None if previous is None else inside(previous)
        split = _split(weighted, inside(residual)[:, 0], b, k, previous, 0)
        vectors = jnp.einsum("bor,brk->bok", Q, split.eigenvectors.reshape(b, Q.shape[2], -1))
        return split._replace(eigenvectors=vectors.reshape(residual.size, -1))


def _split(weighted, residual, b: int, k: int, previous, null: int) -> LossSplit:
    """``null``: eigenvalues that are zero whatever the model, since the loss has no curvature there."""
    warn_of_lapack_threads()
    values, vectors = jnp.linalg.eigh(weighted)
    least, lambda_max = values[null], values[-1]
    known = least > len(values) * jnp.finfo(values.dtype).eps * lambda_max
    condition = jnp.where(known, lambda_max / jnp.where(known, least, 1), jnp.where(jnp.isnan(lambda_max), jnp.nan, jnp.inf))
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    if previous is not None:
        order, sign = _alignment(previous.T @ vectors)
        values, vectors = values[order], vectors[:, order] * sign[None]
    return LossSplit(*fraction_of(vectors, residual.astype(weighted.dtype), b), lambda_max, condition, values, vectors)


def fraction_of(
    vectors: Float[Array, "n k"], residual: Float[Array, " n"], b: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``(top, rest)``: the part of ``||residual||^2 / b`` in the space of orthonormal columns, and outside it."""
    # The part outside is projected, not subtracted, so that it keeps its digits when almost all is in the top space.
    components = vectors.T @ residual
    outside = residual - vectors @ components
    return jnp.sum(components**2) / b, jnp.sum(outside**2) / b


def _alignment(overlap: Float[Array, "k k"]):
    """Order and sign of the new vectors (columns): the largest overlap is matched first, then the largest of those left."""
    k = overlap.shape[0]

    def match(_, carry):
        left, order = carry
        row, column = jnp.unravel_index(jnp.argmax(left), left.shape)
        left = left.at[row, :].set(-1).at[:, column].set(-1)
        return left, order.at[row].set(column.astype(order.dtype))

    _, order = jax.lax.fori_loop(0, k, match, (jnp.abs(overlap), jnp.zeros(k, jnp.int32)))
    sign = jnp.where(overlap[jnp.arange(k), order] < 0, -1, 1).astype(overlap.dtype)
    return order, sign
