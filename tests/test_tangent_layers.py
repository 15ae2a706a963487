"""Which parameters the layers cover, and inner products of patches, against per-example Jacobians and rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN, tangent_kernel
from catapult_jax.tangent import layers
from catapult_jax.testing import explicit_kernel, relative_error
from tests.zoo import build


@pytest.mark.parametrize(
    ("name", "uncovered"),
    [
        ("fcn bias, ten outputs", 0),
        ("cnn strided, average, outputs", 0),
        ("dense over axes, twice", 0),
        ("batch folded", 0),
        ("attention and norms", 1),  # the positional parameter
        ("embedding", 0),
        ("tied embedding", 1),
        ("parameters outside a module", 2),
        ("running batch norm", 0),
    ],
)
def test_plan_covers(name, uncovered):
    apply_fn, params, x = build(name)
    plan = layers.plan(apply_fn, params, x)
    assert len(jax.tree.leaves(params)) - len(plan.covered | plan.norms) == uncovered
    if uncovered:
        with pytest.raises(ValueError, match=r"no rule for parameters \["):
            tangent_kernel(apply_fn, params, x, method="structured")
    else:
        jax.eval_shape(lambda p: tangent_kernel(apply_fn, p, x, method="structured"), params)


def test_plan_leaves_a_replaced_promotion_and_an_interceptor_to_the_jacobian():
    def columns_of_norm_one(x, kernel, bias, **_):
        return x, kernel / jnp.linalg.norm(kernel, axis=0), bias

    def squashed(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        return jnp.tanh(y) if context.method_name == "__call__" and isinstance(context.module, nn.Dense) else y

    def intercepted(params, x):
        with nn.intercept_methods(squashed):
            return FCN(depth=3, width=8).apply(params, x)

    x = jax.random.normal(jax.random.key(0), (4, 6))
    layer = nn.Dense(4, promote_dtype=columns_of_norm_one)
    for f, params in (
        (layer.apply, layer.init(jax.random.key(1), x)),
        (intercepted, FCN(depth=3, width=8).init(jax.random.key(1), x)),
    ):
        assert relative_error(tangent_kernel(f, params, x), explicit_kernel(f, params, x)) <= 1e-5


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"padding": "VALID"}, {"kernel_dilation": 2}, {"padding": ((1, 2), (0, 1))}, {"strides": (1, 2), "padding": 2}],
    ids=str,
)
def test_conv_products_of_patches(kwargs):
    inputs = layers._conv(nn.Conv(2, (3, 3), **kwargs), 4)
    h = jax.random.normal(jax.random.key(0), (3, 1, 7, 7, 4))
    rows = np.asarray(inputs.rows(h), np.float64)

    products = inputs.products(h, h)

    assert products is not None
    assert relative_error(products, np.einsum("ipgm,jqgm->ipjq", rows, rows)) <= 1e-5
