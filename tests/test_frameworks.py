"""The kernel of one network written in several frameworks, and of the networks of neural_tangents itself."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import networks
from catapult_jax import tangent_kernel, top_eigenpairs
from catapult_jax.tangent import neural_tangents
from catapult_jax.testing import explicit_kernel, relative_error
from catapult_jax.xla import QUICK

_NETWORKS = {
    "fcn": (networks.fcn(3, 16, 12, 2), (5, 12)),
    "cnn": (networks.cnn(3, 6, 2, 4, 2), (5, 4, 4, 2)),
}


def _structured(apply_fn, params, x):
    """It fails where a parameter has no rule."""
    kernel = lambda p, x: tangent_kernel(apply_fn, p, x, method="structured")
    return jax.jit(kernel, compiler_options=QUICK)(params, x)


@pytest.mark.parametrize("framework", networks.FRAMEWORKS)
@pytest.mark.parametrize("network", _NETWORKS)
def test_tangent_kernel_in_each_framework(network, framework):
    layers, shape = _NETWORKS[network]
    x = jax.random.normal(jax.random.key(1), shape)
    apply_fn, params = networks.FRAMEWORKS[framework](layers)

    kernel = _structured(apply_fn, params, x)

    assert relative_error(kernel, explicit_kernel(*networks.plain(layers), x)) <= 1e-6


@pytest.mark.parametrize("framework", ["nnx", "Equinox"])
def test_top_eigenpairs_in_each_framework(framework):
    """From a random start, and from the directions of that call."""
    layers, shape = _NETWORKS["cnn"]
    x, y = jax.random.normal(jax.random.key(1), shape), jnp.zeros((5, 2))
    apply_fn, params = networks.FRAMEWORKS[framework](layers)
    largest = np.linalg.eigvalsh(explicit_kernel(*networks.plain(layers), x))[-1] * 2 / 5

    cold = top_eigenpairs(apply_fn, params, (x, y), k=1, loss="mse", tol=1e-4, max_products=11)
    warm = top_eigenpairs(apply_fn, params, (x, y), k=1, loss="mse", tol=1e-4, max_products=11, warm_start=cold.directions)

    assert cold.converged and warm.converged
    np.testing.assert_allclose([cold.eigenvalues[0], warm.eigenvalues[0]], largest, rtol=2e-4)


def test_tangent_kernel_of_scanned_blocks():
    x = jax.random.normal(jax.random.key(1), (3, 5, 8))
    unrolled = networks.transformer(3, 8, 2, scanned=False)

    kernel = _structured(*networks.transformer(3, 8, 2, scanned=True), x)

    assert relative_error(kernel, explicit_kernel(*unrolled, x)) <= 1e-5


def _stax():
    neural_tangents.load()
    return importlib.import_module("neural_tangents.stax")


def _dense(stax):
    return stax.serial(stax.Dense(16), stax.Relu(), stax.Dense(16, b_std=0.1), stax.Erf(), stax.Dense(2))


def _conv(stax):
    return stax.serial(
        stax.Conv(8, (3, 3), padding="SAME"),
        stax.Relu(),
        stax.Conv(8, (3, 3), (2, 2)),
        stax.Relu(),
        stax.Flatten(),
        stax.Dense(2),
    )


def _pooling(stax):
    return stax.serial(
        stax.Conv(8, (3, 3)),
        stax.Relu(),
        stax.AvgPool((2, 2), (2, 2)),
        stax.LayerNorm(axis=-1),
        stax.GlobalAvgPool(),
        stax.Dense(2),
    )


def _branches(stax):
    left, right = stax.serial(stax.Dense(8), stax.Relu()), stax.serial(stax.Dense(8), stax.Gelu())
    return stax.serial(stax.FanOut(2), stax.parallel(left, right), stax.FanInConcat(-1), stax.Dense(2))


def _attention(stax):
    attention = stax.GlobalSelfAttention(n_chan_out=8, n_chan_key=8, n_chan_val=8, n_heads=2)
    return stax.serial(stax.Conv(8, (3, 3)), stax.Relu(), attention, stax.Relu(), stax.Flatten(), stax.Dense(2))


def _residual(stax):
    block = stax.serial(stax.Relu(), stax.Conv(8, (3, 3), padding="SAME"), stax.Relu(), stax.Conv(8, (3, 3), padding="SAME"))
    joined = stax.serial(stax.FanOut(2), stax.parallel(block, stax.Identity()), stax.FanInSum())
    return stax.serial(stax.Conv(8, (3, 3), padding="SAME"), joined, joined, stax.GlobalAvgPool(), stax.Dense(2))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (_dense, (4, 12)),
        (_conv, (4, 6, 6, 2)),
        (_pooling, (4, 6, 6, 2)),
        (_branches, (4, 12)),
        (_attention, (4, 4, 4, 2)),
        (_residual, (4, 5, 5, 2)),
    ],
)
def test_tangent_kernel_of_stax_networks(network, shape):
    """Against neural_tangents' own Jacobian contraction."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dormant package uses deprecated names
        init, apply_fn, _ = network(_stax())
        _, params = init(jax.random.key(0), shape)
        x = jax.random.normal(jax.random.key(1), shape)
        reference = jax.jit(lambda p, x: neural_tangents.empirical_kernel(apply_fn, p, x, implementation=1))(params, x)

        kernel = _structured(apply_fn, params, x)

    assert relative_error(kernel, reference) <= 1e-5
