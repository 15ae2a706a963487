"""Losses as objects: the loss of each position, and the factor of its Hessian in the outputs. See :mod:`catapult_jax.losses`."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from catapult_jax.softmax import cross_entropy, softmax, target_sums

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


class CurvatureFactor(NamedTuple):
    """A factor ``B`` of the loss Hessian of each position in its outputs, ``S = B B^T``, as two linear maps of arrays ``(n, o)``."""

    times: Callable[[Float[Array, "n o"]], Float[Array, "n o"]]  # u -> B u
    transposed: Callable[[Float[Array, "n o"]], Float[Array, "n o"]]  # w -> B^T w
    positions: int  # n


class Rows(NamedTuple):
    """Outputs and targets of the ``n`` positions of a batch."""

    outputs: Array  # (n, o)
    targets: Array  # as the loss takes them, one row for each position
    weights: Array | None  # (n,) with sum n; None: ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(abc.ABC):
    """A loss that is a weighted mean over positions. With ``weighted``, targets are pairs ``(targets, weights)``, weights ``>= 0``.

    Weights have the shape of the positions. If they are all zero, the loss is NaN.
    """

    weighted: bool = False

    def __call__(self, outputs: Float[Array, "b *o"], targets: PyTree, total: Array | float | None = None) -> Float[Array, ""]:
        """The loss of a batch, as :func:`batch_loss`. ``total``: the sum of its weights, if these are only some of its examples."""
        rows = self.rows(outputs, targets, total)
        return jnp.mean(scaled(self.values(rows), rows.weights))

    # What a loss of one kind says. Rows come from :meth:`rows`.

    @abc.abstractmethod
    def values(self, rows: Rows) -> Float[Array, " n"]:
        """``l(f_i, y_i)`` of each position."""

    def factor(self, rows: Rows) -> CurvatureFactor:
        """Factor of the Hessian of each ``l(f_i, y_i)``."""
        raise ValueError(
            f"loss={self} has no factor of its Hessian in closed form; allowed: a loss that has, or top_eigenpairs"
        )

    def root(self, rows: Rows) -> Array | float:
        """Entries by which the gradient is divided for the weighted residual; zero where the loss has no curvature."""
        raise ValueError(f"loss={self} has no weighted residual; allowed: a loss with a Hessian in closed form")

    def flat(self, outputs: Array, targets: PyTree, weights: Array | None) -> tuple[Array, PyTree]:
        """Outputs as ``(n, o)``, and targets with ``n`` rows. By default a position is an example, or what has a weight."""
        places = outputs.shape[:1] if weights is None else weights.shape
        if targets.size != outputs.size or targets.shape[:1] != outputs.shape[:1]:
            raise ValueError(f"targets has shape {targets.shape}; allowed for outputs {outputs.shape}: one number per output")
        n = math.prod(places)
        return outputs.reshape(n, -1), targets.reshape(n, -1).astype(outputs.dtype)

    @property
    def has_factor(self) -> bool:
        """Whether the Hessian has a factor in closed form, so that it has no negative eigenvalue."""
        return type(self).factor is not Loss.factor

    def columns(self, rows: Rows) -> tuple[Array, Array]:
        """:func:`curvature_columns` without weights; by default ``Q = I``."""
        n, o = rows.outputs.shape
        root = jnp.broadcast_to(jnp.asarray(self.root(rows), rows.outputs.dtype), (n, o))
        Q = jnp.broadcast_to(jnp.eye(o, dtype=rows.outputs.dtype), (n, o, o))
        return Q * root[:, :, None], Q

    def range_of(self, outputs: int) -> np.ndarray:
        """:func:`hessian_range`; by default all of it."""
        return np.eye(outputs)

    def check_values(self, outputs: Array | jax.ShapeDtypeStruct, targets: PyTree) -> None:
        """Raise a ValueError for targets with values that have no meaning, where they are known; by default negative weights."""
        del outputs
        if self.weighted and _is_known(targets[1]) and len(wrong := np.ravel(targets[1])[np.ravel(targets[1]) < 0]):
            raise ValueError(f"weights has the value {wrong[0]}; allowed for loss={self}: 0 or more")

    # The same for all kinds.

    def rows(self, outputs: Array, targets: PyTree, total: Array | float | None = None) -> Rows:
        """The positions of a batch. ``total``: sum of the weights, if this is only a part of the batch."""
        outputs, targets, weights = self._arrays(outputs, targets)
        rows, targets = self.flat(outputs, targets, weights)
        if weights is None:
            if total is None or (isinstance(total, int) and total == len(rows)):
                return Rows(rows, targets, None)
            return Rows(rows, targets, jnp.full(len(rows), len(rows) / total, rows.dtype))
        weights = weights.reshape(-1).astype(rows.dtype)
        targets = jnp.where(weights.reshape(-1, *[1] * (targets.ndim - 1)) == 0, 0, targets)  # padding may be NaN or no label
        return Rows(rows, targets, weights * (len(rows) / (jnp.sum(weights) if total is None else total)))

    def total(self, outputs: Array, targets: PyTree) -> Array | int | None:
        """Sum of the weights of all positions; ``outputs`` may be a shape."""
        if self.weighted:
            return jnp.sum(targets[1])
        return jax.eval_shape(lambda f, y: self.rows(f, y).outputs, outputs, targets).shape[0]

    def _arrays(self, outputs, targets) -> tuple[Array, Array, Array | None]:
        weights = None
        if self.weighted:
            if not isinstance(targets, (tuple, list)) or len(targets) != 2:
                raise ValueError(
                    f"targets is one {'array' if hasattr(targets, 'shape') else type(targets).__name__}; allowed for loss={self}: a pair (targets, weights)"
                )
            targets, weights = targets
        if targets is None or (not hasattr(targets, "shape") and isinstance(targets, (tuple, list, dict))):
            raise ValueError(f"targets is a {type(targets).__name__}; allowed for loss={self}: one array")
        arrays = {"outputs": outputs, "targets": targets} | ({} if weights is None else {"weights": weights})
        arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            if jnp.issubdtype(array.dtype, jnp.complexfloating):
                raise ValueError(f"{name} has dtype {array.dtype}; allowed: real floating-point numbers")
        outputs, weights = arrays["outputs"], arrays.get("weights")
        if outputs.ndim < 1:
            raise ValueError("outputs has shape (); allowed: (b,) or (b, ...)")
        if weights is not None and (weights.ndim < 1 or weights.shape != outputs.shape[: weights.ndim]):
            raise ValueError(f"weights has shape {weights.shape}; allowed for outputs {outputs.shape}: its first axes")
        return outputs, arrays["targets"], weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaredError(Loss):
    """``l = sum_o (f_o - y_o)^2``, without one half. A position is an example, or what has a weight."""

    def values(self, rows: Rows) -> Float[Array, " n"]:
        return jnp.sum((rows.outputs - rows.targets) ** 2, -1)

    def factor(self, rows: Rows) -> CurvatureFactor:
        return _diagonal(2**0.5, rows)

    def root(self, rows: Rows) -> float:
        return 2**0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Huber(Loss):
    """``l = sum_o h(f_o - y_o)``; ``h(r) = r^2 / 2`` for ``|r| <= delta``, else ``delta (|r| - delta / 2)``. Positions: as mse."""

    delta: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.delta, (int, float)) or not 0 < self.delta < math.inf:
            raise ValueError(f"delta={self.delta!r}; allowed: a number above 0")

    def values(self, rows: Rows) -> Float[Array, " n"]:
        return jnp.sum(optax.huber_loss(rows.outputs, rows.targets, delta=self.delta), -1)

    def factor(self, rows: Rows) -> CurvatureFactor:
        return _diagonal(self.root(rows), rows)

    def root(self, rows: Rows) -> Array:
        return (jnp.abs(rows.outputs - rows.targets) <= self.delta).astype(rows.outputs.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(Loss):
    """``l = log(1 + exp(f)) - y f`` with ``y`` from 0 to 1. Each output is a position. Another ``y``, such as -1, makes the answer NaN."""

    def values(self, rows: Rows) -> Float[Array, " n"]:
        return jnp.sum(optax.sigmoid_binary_cross_entropy(rows.outputs, rows.targets), -1)

    def factor(self, rows: Rows) -> CurvatureFactor:
        return _diagonal(self.root(rows), rows)

    def root(self, rows: Rows) -> Array:
        """``sqrt(p (1 - p))``; the difference ``1 - p`` would lose digits."""
        return jnp.sqrt(jax.nn.sigmoid(rows.outputs) * jax.nn.sigmoid(-rows.outputs))

    def check_values(self, outputs: Array | jax.ShapeDtypeStruct, targets: PyTree) -> None:
        super().check_values(outputs, targets)
        y, weights = targets if self.weighted else (targets, 1)
        if not all(_is_known(array) for array in (y, weights)):
            return
        y = np.ravel(y)
        if len(wrong := y[_is_no_probability(y) & (np.ravel(weights) != 0)]):
            raise ValueError(f"targets has the value {wrong[0]}; allowed for loss={self}: 0 to 1")

    def flat(self, outputs: Array, targets: Array, weights: Array | None) -> tuple[Array, Array]:
        if weights is not None and weights.size != outputs.size:
            raise ValueError(f"weights has shape {weights.shape}; allowed for outputs {outputs.shape}: one for each output")
        if targets.size != outputs.size or targets.shape[:1] != outputs.shape[:1]:
            raise ValueError(f"targets has shape {targets.shape}; allowed for outputs {outputs.shape}: one number per output")
        targets = targets.reshape(-1, 1).astype(outputs.dtype)
        return outputs.reshape(-1, 1), jnp.where(_is_no_probability(targets), jnp.nan, targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxCrossEntropy(Loss):
    """``l = sum_o q_o (log sum_o' exp(f_o') - f_o)``. All axes of the outputs but the last, of the classes, are positions.

    Targets are integers from 0, or probabilities ``q`` with the shape of the outputs. ``label_smoothing`` mixes ``q`` with ``1 / o``.
    An integer that names no class makes the answer NaN, unless its weight is zero. If the sum of ``q`` is not one, it is a weight.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.label_smoothing, (int, float)) or not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing!r}; allowed: a number, 0 or more, below 1")

    def values(self, rows: Rows) -> Float[Array, " n"]:
        return cross_entropy(rows.outputs, rows.targets, self.label_smoothing)

    def factor(self, rows: Rows) -> CurvatureFactor:
        s = jnp.sqrt(softmax(rows.outputs))  # p is its square, so that one array of the size of the outputs is held
        scale = jnp.sqrt(target_sums(rows.outputs, rows.targets, self.label_smoothing))

        def times(u):
            s_ = s.astype(u.dtype)
            return scale.astype(u.dtype) * s_ * (u - s_ * jnp.sum(s_ * u, -1, keepdims=True))

        def transposed(w):
            s_ = s.astype(w.dtype)
            return scale.astype(w.dtype) * s_ * (w - jnp.sum(s_ * (s_ * w), -1, keepdims=True))

        return CurvatureFactor(times, transposed, len(s))

    def root(self, rows: Rows) -> Array:
        return jnp.sqrt(softmax(rows.outputs) * target_sums(rows.outputs, rows.targets, self.label_smoothing))

    def columns(self, rows: Rows) -> tuple[Array, Array]:
        """``Q`` is the reflection that maps ``s = sqrt(p)`` to the axis of the most likely class, without the column of that axis."""
        s, o = jnp.sqrt(softmax(rows.outputs)), rows.outputs.shape[1]
        top = jnp.argmax(s, -1)[:, None]  # the axis without a column
        column = jnp.arange(o - 1)[None]
        # (n, o - 1): the axis of each column; the last one stands in for ``top``. No gather: with JAX 0.10.1 on the CPU
        # a gather of computed places that is then broadcast ends the process, for 3 classes from 32 positions on.
        kept = jnp.where(column == top, o - 1, column)
        s_kept = jnp.where(column == top, s[:, -1:], s[:, :-1])
        s_top = jnp.sum(jnp.where(jnp.arange(o)[None] == top, s, 0), -1, keepdims=True)
        axis = jnp.arange(o)[None, :, None]
        identity = (axis == kept[:, None, :]).astype(s.dtype)
        below = identity - s[:, :, None] * (s_kept / (1 + s_top))[:, None, :]
        Q = jnp.where(axis == top[:, :, None], -s_kept[:, None, :], below)
        scale = jnp.sqrt(target_sums(rows.outputs, rows.targets, self.label_smoothing))
        return (scale * s)[:, :, None] * Q, Q

    def range_of(self, outputs: int) -> np.ndarray:
        """``o - 1`` directions: the loss does not change if all logits change by the same number. The Helmert matrix."""
        basis = np.tril(np.ones((outputs, outputs)), 0).T[
            :, : outputs - 1
        ]  # column j weighs outputs 0 to j against output j + 1
        j = np.arange(1, outputs)
        basis[j, j - 1] = -j
        return basis / np.sqrt(j * (j + 1))

    def check_values(self, outputs: Array | jax.ShapeDtypeStruct, targets: PyTree) -> None:
        super().check_values(outputs, targets)
        y, weights = targets if self.weighted else (targets, 1)
        if not all(_is_known(array) for array in (y, weights)) or not np.issubdtype(np.asarray(y).dtype, np.integer):
            return
        y, classes = np.asarray(y), outputs.shape[-1]
        if len(wrong := y[((y < 0) | (y >= classes)) & (np.asarray(weights) != 0)]):
            raise ValueError(
                f"targets has the label {wrong[0]}; allowed for outputs {outputs.shape}: 0 to {classes - 1}; to leave positions out, give them "
                "the weight 0: SoftmaxCrossEntropy(weighted=True) with the targets (labels, weights)"
            )

    def flat(self, outputs: Array, targets: Array, weights: Array | None) -> tuple[Array, Array]:
        places = outputs.shape[:-1]
        if outputs.ndim < 2 or outputs.shape[-1] < 2:
            raise ValueError(
                f"outputs has shape {outputs.shape}; allowed for loss={self}: (b, ..., classes) with 2 classes or more; for one output, logistic"
            )
        if weights is not None and weights.shape != places:
            raise ValueError(f"weights has shape {weights.shape}; allowed for outputs {outputs.shape}: {places}")
        is_integer = jnp.issubdtype(targets.dtype, jnp.integer)
        if targets.shape != (places if is_integer else outputs.shape):
            raise ValueError(
                f"targets has shape {targets.shape}, dtype {targets.dtype}; allowed for loss={self}: integers {places}, "
                f"or probabilities {outputs.shape}"
            )
        n = math.prod(places)
        rows = outputs.reshape(n, -1)
        return rows, targets.reshape(n) if is_integer else targets.reshape(rows.shape).astype(rows.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianNLL(Loss):
    """``l = (s + (y - m)^2 exp(-s)) / 2``, outputs ``(..., 2)`` with mean ``m`` and log variance ``s``; all axes but the last are positions.

    Its Hessian in the outputs has a negative eigenvalue wherever ``y != m``, so it has no factor.
    """

    def values(self, rows: Rows) -> Float[Array, " n"]:
        mean, log_variance = rows.outputs.T
        return (log_variance + (rows.targets - mean) ** 2 * jnp.exp(-log_variance)) / 2

    def flat(self, outputs: Array, targets: Array, weights: Array | None) -> tuple[Array, Array]:
        if outputs.ndim < 2 or outputs.shape[-1] != 2:
            raise ValueError(f"outputs has shape {outputs.shape}; allowed for loss={self}: (b, ..., 2), mean and log variance")
        for name, array in (("targets", targets), ("weights", weights)):
            if array is not None and array.shape != outputs.shape[:-1]:
                raise ValueError(f"{name} has shape {array.shape}; allowed for outputs {outputs.shape}: {outputs.shape[:-1]}")
        return outputs.reshape(-1, 2), targets.reshape(-1).astype(outputs.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionLoss(Loss):
    """A function ``loss(outputs, targets) -> scalar``. It may couple positions and examples."""

    function: Callable[[Array, PyTree], Array]

    def __call__(self, outputs: Float[Array, "b *o"], targets: PyTree, total: Array | float | None = None) -> Float[Array, ""]:
        del total
        try:
            value = self.function(outputs, targets)
        except TypeError as error:
            raise ValueError(
                f"loss={self.function!r} fails as loss(outputs, targets): {error}; allowed: a function of the outputs of the model and the targets"
            ) from error
        if value is None:
            raise ValueError("loss returns None; allowed: a real scalar, such as a mean")
        if jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                f"loss returns shape {jnp.shape(value)}, dtype {jnp.result_type(value)}; allowed: a real scalar, such as a mean"
            )
        return value

    def total(self, outputs: Array, targets: PyTree) -> None:
        del outputs, targets

    def rows(self, outputs: Array, targets: PyTree, total: Array | float | None = None) -> Rows:
        raise _no_positions()

    def values(self, rows: Rows) -> Float[Array, " n"]:
        raise _no_positions()

    def __str__(self) -> str:
        return f"function {getattr(self.function, '__name__', self.function)}"


def _no_positions() -> ValueError:
    return ValueError(
        "loss is a function, which has no losses of positions; allowed: a name, or an object of catapult_jax.losses"
    )


def scaled(array: Array, weights: Array | None) -> Array:
    """Rows times their weights.

    Args:
      array: ``(n, ...)``.
      weights: ``(n,)``; None: ones.

    Returns:
      ``(n, ...)``.
    """
    return array if weights is None else array * weights.reshape(-1, *[1] * (array.ndim - 1))


def _is_known(array: Any) -> bool:
    """Whether the values of an array can be read: it is not traced, no mere shape, and all of it is on this host."""
    return not isinstance(array, (Tracer, jax.ShapeDtypeStruct)) and getattr(array, "is_fully_addressable", True)


def _is_no_probability(y: Any) -> Any:
    """Below 0 or above 1, by more than the rounding of bfloat16."""
    return abs(1.0 * y - 0.5) > 0.51


def _diagonal(root: Any, rows: Rows) -> CurvatureFactor:
    """The factor of a diagonal Hessian."""
    scale = lambda u: u * (root if isinstance(root, float) else root.astype(u.dtype))
    return CurvatureFactor(scale, scale, len(rows.outputs))
