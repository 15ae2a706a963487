"""Synthetic regression: polynomial targets of low rank on Gaussian inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from catapult_jax.data.sources import Arrays

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def _pairs(z, rank: int):
    products = (z[..., 0 : rank - 1 : 2] * z[..., 1:rank:2]).sum(-1)
    return (products + z[..., rank - rank % 2 :].sum(-1)) / math.sqrt((rank + 1) // 2)


# z holds the first `rank` coordinates along its last axis. Only methods and arithmetic, so that one definition serves NumPy,
# whose numbers are the same on every device, and JAX, which differentiates it.
_TARGETS = {
    "product": lambda z, rank: z.prod(-1),
    "pairs": _pairs,
    "squares": lambda z, rank: (z * z - 1).sum(-1) / math.sqrt(2 * rank),
}
TARGETS = tuple(_TARGETS)


def target_function(target: str, rank: int) -> Callable[[Float[Array, " d"]], Float[Array, ""]]:
    """The target as a function of one example; only the first ``rank`` coordinates enter.

    It is pure and differentiable by JAX: the mean outer product of its gradients is the average gradient outer product (AGOP)
    of the target itself. NumPy arrays give NumPy numbers, and leading axes are kept.

    Args:
      target: ``"product"`` ``x_1 x_2 ... x_r``; ``"pairs"`` ``x_1 x_2 + x_3 x_4 + ...``, where the last coordinate of an odd
        rank enters alone, over the root of the number of terms; ``"squares"`` ``sum_i (x_i^2 - 1) / sqrt(2 r)``. All have
        variance 1 on ``x ~ N(0, I_d)``.
      rank: number of coordinates ``r``.

    Raises:
      ValueError: unknown target, a rank below 1; when called, an example of fewer than ``rank`` coordinates.

    >>> import jax
    >>> x = jax.numpy.array([2.0, 3.0, 5.0, 7.0])
    >>> jax.grad(target_function("product", 3))(x).tolist()
    [15.0, 10.0, 6.0, 0.0]
    >>> float(target_function("squares", 2)(x))  # (3 + 8) / 2
    5.5
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r}; allowed: {', '.join(TARGETS)}")
    if rank < 1:
        raise ValueError(f"rank={rank!r}; allowed: 1 or more")

    def function(x):
        if x.shape[-1] < rank:
            raise ValueError(f"rank={rank!r}; allowed: 1 to dimension={x.shape[-1]}")
        return _TARGETS[target](x[..., :rank], rank)

    return function


def synthetic(
    *, dimension: int, rank: int, target: str = "product", noise: float, train_size: int, test_size: int, seed: int
) -> Arrays:
    """``x ~ N(0, I_d)``, ``y = target(x) + noise * N(0, 1)``; test targets carry no noise.

    Args:
      dimension: ``d``.
      rank, target: see :func:`target_function`.
      noise: standard deviation.
      train_size, test_size: number of examples.
      seed: of inputs and noise; the inputs are the same for every target, rank and noise.

    Raises:
      ValueError: unknown target, a rank outside 1..dimension.

    >>> data = synthetic(dimension=4, rank=2, noise=0.0, train_size=3, test_size=2, seed=0)
    >>> bool((data.y_test == data.x_test[:, 0] * data.x_test[:, 1]).all())
    True
    """
    function = target_function(target, rank)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((train_size + test_size, dimension)).astype(np.float32)
    y = function(x)
    y_train = y[:train_size] + np.float32(noise) * rng.standard_normal(train_size).astype(np.float32)
    source = f"embedded: synthetic, target={target}, d={dimension}, rank={rank}, noise={noise}, seed={seed}"
    return Arrays(x[:train_size], y_train, x[train_size:], y[train_size:], "synthetic", source)
