"""Inner products of patches against rows of patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from catapult_jax.tangent import layers
from catapult_jax.testing import relative_error


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"padding": "VALID"},
        {"padding": "SAME", "rhs_dilation": (2, 2)},
        {"padding": ((1, 2), (0, 1))},
        {"padding": ((2, 2), (2, 2)), "window_strides": (1, 2)},
    ],
    ids=str,
)
def test_convolution_products_of_patches(options):
    images = jax.random.normal(jax.random.key(0), (1, 7, 7, 4))
    convolve = lambda h, w: lax.conv_general_dilated(
        h, w, **{"window_strides": (1, 1)} | options, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    (eqn,) = jax.make_jaxpr(convolve)(images, jnp.ones((3, 3, 4, 2))).jaxpr.eqns
    layer = layers.RULES["conv_general_dilated"](eqn, 1)
    h = jax.random.normal(jax.random.key(1), (3, *images.shape))
    rows = np.asarray(layer.rows(h), np.float64)

    products = layer.products(h, h)

    assert products is not None
    assert relative_error(products, np.einsum("ipgm,jqgm->ipjq", rows, rows)) <= 1e-5
