"""The networks that are measured, and random data of the size of CIFAR-10: speed does not depend on the content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NETWORKS = {
    "fcn": ("FCN", dict(depth=5, width=1024)),
    "cnn": ("CNN", dict(depth=5, width=512, strides=(4, 2, 1, 1))),
    "cnn_64": ("CNN", dict(depth=5, width=64)),
    "wrn": ("WideResNet", dict(depth=10, width=16, stem_stride=2)),
    "vit": ("ViT", dict(depth=2, width=64, activation="gelu", patch_size=8)),
}
# The same families, small: only to see that the benchmarks run.
SMOKE = {
    "fcn": dict(depth=3, width=32),
    "cnn": dict(depth=3, width=8, strides=(4, 2)),
    "cnn_64": dict(depth=3, width=4, strides=(2, 1)),
    "wrn": dict(width=4, stem_stride=8),
    "vit": dict(depth=1, width=8, patch_size=16),
}


def network(name: str, scale: str, **changes: Any):
    """A Flax model; ``changes`` of its arguments have the last word."""
    from catapult_jax import models

    kind, arguments = NETWORKS[name]
    return getattr(models, kind)(**arguments | (SMOKE[name] if scale == "smoke" else {}) | changes)


def images(n: int, *, side: int = 32):
    import jax

    return jax.random.normal(jax.random.key(0), (n, side, side, 3))


def targets(n: int, outputs: int, loss: str):
    """Random signs; random classes for the softmax."""
    import jax
    import jax.numpy as jnp

    key = jax.random.key(1)
    if loss == "softmax_cross_entropy":
        return jax.random.randint(key, (n,), 0, outputs)
    return jnp.sign(jax.random.normal(key, (n, outputs)))


def setup(name: str, scale: str, n: int, *, outputs: int = 1, loss: str = "mse", **changes: Any):
    """``apply_fn``, parameters, inputs, targets."""
    model, x = network(name, scale, outputs=outputs, **changes), images(n)
    return model.apply, initialised(model, x), x, targets(n, outputs, loss)


def initialised(model, x, seed: int = 2):
    import jax

    return jax.jit(model.init)(jax.random.key(seed), x[:1])


def at_one_precision(step: Callable) -> Callable:
    """A step whose own passes have, on the CPU, the precision of the kernel's, which costs nothing there: so that XLA sees which are
    the same, as in training."""
    import jax

    def named(*arguments):
        with jax.default_matmul_precision("highest" if jax.default_backend() == "cpu" else None):
            return step(*arguments)

    return named
