"""Synthetic regression: polynomial targets of low rank on Gaussian inputs."""

from __future__ import annotations

import numpy as np

from catapult_jax.data.sources import Arrays


def synthetic(*, dimension: int, rank: int, noise: float, train_size: int, test_size: int, seed: int) -> Arrays:
    """``x ~ N(0, I_d)``, ``y = x_1 x_2 ... x_rank + noise * N(0, 1)``; test targets carry no noise.

    Raises:
      ValueError: a rank outside 1..dimension.

    >>> data = synthetic(dimension=4, rank=2, noise=0.0, train_size=3, test_size=2, seed=0)
    >>> bool((data.y_test == data.x_test[:, 0] * data.x_test[:, 1]).all())
    True
    """
    if not 1 <= rank <= dimension:
        raise ValueError(f"rank={rank!r}; allowed: 1 to dimension={dimension}")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((train_size + test_size, dimension)).astype(np.float32)
    y = x[:, :rank].prod(axis=1)
    y_train = y[:train_size] + np.float32(noise) * rng.standard_normal(train_size).astype(np.float32)
    source = f"embedded: synthetic, d={dimension}, rank={rank}, noise={noise}, seed={seed}"
    return Arrays(x[:train_size], y_train, x[train_size:], y[train_size:], "synthetic", source)
