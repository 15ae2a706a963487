"""A batch of outputs and targets for each loss."""

import jax
import jax.numpy as jnp

B, OUTPUTS = 4, 3
LOSS_CASES = {
    "mse": (jax.random.normal(jax.random.key(0), (B, OUTPUTS)), jax.random.normal(jax.random.key(1), (B, OUTPUTS))),
    "softmax_cross_entropy": (jax.random.normal(jax.random.key(0), (B, OUTPUTS)), jnp.array([0, 2, 1, 1])),
    "logistic": (jax.random.normal(jax.random.key(0), (B, 1)), jnp.array([0.0, 1.0, 1.0, 0.0])),
}
