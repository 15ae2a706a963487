"""Synthetic regression: polynomial targets of low rank on Gaussian inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from catapult_jax.data.sources import Arrays


def _pairs(z, rank: int):
    """``z_1 z_2 + z_3 z_4 + ...`` over the root of the number of terms."""
    products = (z[..., 0 : rank - 1 : 2] * z[..., 1:rank:2]).sum(-1)
    return (products + z[..., rank - rank % 2 :].sum(-1)) / math.sqrt((rank + 1) // 2)


# ``z`` has the first ``rank`` coordinates along its last axis. The functions use methods and arithmetic only, so they work for
# NumPy, whose numbers are the same on every device, and for JAX, which differentiates them.
_TARGETS = {
    "product": lambda z, rank: z.prod(-1),
    "pairs": _pairs,
    "squares": lambda z, rank: (z * z - 1).sum(-1) / math.sqrt(2 * rank),
}
TARGETS = tuple(_TARGETS)


def target_function(target: str, rank: int) -> Callable[[Any], Any]:
    """The target as a function of one example; it depends on the first ``rank`` coordinates only.

    The function is pure, and JAX can differentiate it. The mean outer product of its gradients is the average gradient outer
    product (AGOP) of the target. It keeps leading axes, and gives NumPy numbers for NumPy arrays.

    - ``"product"``: ``x_1 x_2 ... x_r``.
    - ``"pairs"``: ``x_1 x_2 + x_3 x_4 + ...`` over the root of the number of terms. If ``r`` is odd, the last term is ``x_r``.
    - ``"squares"``: ``sum_i (x_i^2 - 1) / sqrt(2 r)``.

    Each has variance 1 for ``x ~ N(0, I_d)``.

    Args:
      target: ``"product"``, ``"pairs"`` or ``"squares"``.
      rank: number of coordinates ``r``.

    Returns:
      A function of ``(..., d)`` arrays that returns ``(...)``.

    Raises:
      ValueError: unknown target, a rank below 1; when called, an example with fewer than ``rank`` coordinates.

    Source: polynomials of low rank as in Zhu et al. (2024), arXiv 2306.04815; the scales are our choice.

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
    *,
    dimension: int,
    rank: int,
    target: str = "product",
    noise: float,
    train_size: int,
    test_size: int,
    seed: int | tuple[int, ...],
) -> Arrays:
    """Gaussian inputs with noisy targets, ``x ~ N(0, I_d)``, ``y = target(x) + noise * N(0, 1)``; test targets have no noise.

    Args:
      dimension: ``d``.
      rank: number of coordinates that the target depends on.
      target: name of the target, see :func:`target_function`.
      noise: standard deviation of the noise.
      train_size: number of training examples.
      test_size: number of test examples.
      seed: of inputs and noise, one number or several; the inputs are the same for every target, rank and noise.

    Returns:
      The :class:`Arrays`.

    Raises:
      ValueError: unknown target, a rank outside 1 to ``dimension``.

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
