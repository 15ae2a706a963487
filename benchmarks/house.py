"""Networks to measure, and random data of the size of CIFAR-10; the speed does not depend on the content."""

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
# Small networks of the same families, to test that the benchmarks run.
SMOKE = {
    "fcn": dict(depth=3, width=32),
    "cnn": dict(depth=3, width=8, strides=(4, 2)),
    "cnn_64": dict(depth=3, width=4, strides=(2, 1)),
    "wrn": dict(width=4, stem_stride=8),
    "vit": dict(depth=1, width=8, patch_size=16),
}


def network(name: str, scale: str, **changes: Any):
    """A Flax model; ``changes`` override its arguments."""
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
    """The step with the precision of the kernel on the CPU, where that is free.

    As in training, XLA then recognises the passes that step and kernel share.
    """
    import jax

    def named(*arguments):
        with jax.default_matmul_precision("highest" if jax.default_backend() == "cpu" else None):
            return step(*arguments)

    return named
