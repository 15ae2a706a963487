"""The loss split over the top eigenspace of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from catapult_jax.critical_lr import loss_weighted_kernel, weighted_tangent_kernel
from catapult_jax.losses import hessian_range, hessian_root, output_gradient

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


class LossSplit(NamedTuple):
    """What :func:`split_loss` returns."""

    top: Float[Array, ""]  # part of the loss in the top-k eigenspace
    rest: Float[Array, ""]  # part outside it
    lambda_max: Float[Array, ""]  # largest eigenvalue of the loss-weighted kernel
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

    With ``U_k`` the top eigenvectors and ``s = S^(-1/2) grad_f l`` (pseudo-inverse) the loss-weighted residual,
    ``top = ||U_k^T s||^2 / (2 b)`` and ``rest = (||s||^2 - ||U_k^T s||^2) / (2 b)``. For ``mse`` this is ``||U_k^T (f - y)||^2 / b``,
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
    _check_k(k)
    with jax.default_matmul_precision("highest"):
        weighted = loss_weighted_kernel(kernel, outputs, targets, loss=loss)
        residual = weighted_residual(outputs, targets, loss=loss).reshape(-1)
        return _split(weighted, residual, len(outputs), k, previous)


def split_batch_loss(
    apply_fn: Callable,
    params: PyTree,
    batch: tuple[Array, Array],
    outputs: Float[Array, "b *o"],
    *,
    loss: str,
    k: int = 5,
    previous: Float[Array, "bo k"] | None = None,
    chunk_size: int | None = None,
) -> LossSplit:
    """:func:`split_loss` of a batch, with its kernel, in as many directions of the outputs as the loss has curvature in.

    Args:
      apply_fn, params, batch, outputs, chunk_size: as in :func:`weighted_tangent_kernel`.
      loss, k, previous: as in :func:`split_loss`; for ``softmax_cross_entropy`` ``b*(o-1)`` vectors exist.

    Raises:
      ValueError: as those two.

    Source: as those two.

    >>> linear, x = lambda w, x: x @ w, jnp.diag(jnp.array([2.0, 1.0]))
    >>> split = split_batch_loss(linear, jnp.array([1.5, 1.0]), (x, jnp.zeros(2)), jnp.array([3.0, 1.0]), loss="mse", k=1)
    >>> float(split.top), float(split.rest), float(split.lambda_max)
    (4.5, 0.5, 4.0)
    """
    _check_k(k)
    with jax.default_matmul_precision("highest"):
        weighted = weighted_tangent_kernel(apply_fn, params, batch, outputs, loss=loss, chunk_size=chunk_size)
        residual, b = weighted_residual(outputs, batch[1], loss=loss), len(outputs)
        if weighted.shape[0] == residual.size:
            return _split(weighted, residual.reshape(-1), b, k, previous)
        basis = jnp.asarray(hessian_range(residual.shape[1], loss=loss), residual.dtype)
        if previous is not None:
            previous = jnp.einsum("or,bok->brk", basis, previous.reshape(*residual.shape, -1)).reshape(len(weighted), -1)
        split = _split(weighted, (residual @ basis).reshape(-1), b, k, previous)
        vectors = jnp.einsum("or,brk->bok", basis, split.eigenvectors.reshape(b, basis.shape[1], -1))
        return split._replace(eigenvectors=vectors.reshape(residual.size, -1))


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k!r}; allowed: 1 or more")


def weighted_residual(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> Float[Array, "b o"]:
    """Loss-weighted residual whose square over ``b`` is the loss (``mse``), or half the Newton decrement."""
    gradient = output_gradient(outputs, targets, loss=loss)
    if loss == "mse":
        return gradient / 2  # f - y
    return jnp.einsum("ipo,io->ip", hessian_root(outputs, targets, loss=loss, inverse=True), gradient) * 0.5**0.5


def _split(weighted, residual, b: int, k: int, previous) -> LossSplit:
    values, vectors = jnp.linalg.eigh(weighted)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    lambda_max = values[0]
    if previous is not None:
        order, sign = _alignment(previous.T @ vectors)
        values, vectors = values[order], vectors[:, order] * sign
    return LossSplit(*share_of(vectors, residual.astype(weighted.dtype), b), lambda_max, values, vectors)


def share_of(vectors: Float[Array, "n k"], residual: Float[Array, " n"], b: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
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
