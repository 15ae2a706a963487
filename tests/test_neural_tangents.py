"""The kernel by neural_tangents, against ``J J^T`` in float64."""

import sys

import jax
import pytest

from catapult_jax.tangent import neural_tangents
from catapult_jax.testing import explicit_kernel, relative_error
from tests.zoo import build, widen


@pytest.mark.parametrize("implementation", neural_tangents.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["fcn bias, ten outputs", "cnn", "conv {'feature_group_count': 2, 'strides': 2}"])
def test_empirical_kernel_by_each_implementation(implementation, name):
    """It fails on a JAX where the names that the package is lent are not enough."""
    apply_fn, params, x = build(name)
    oracle = explicit_kernel(apply_fn, params, x)

    with jax.enable_x64():
        params, x = widen((params, x))
        kernel = jax.jit(lambda p, x: neural_tangents.empirical_kernel(apply_fn, p, x, implementation=implementation))(
            params, x
        )

    assert relative_error(kernel, oracle) <= 1e-9


def test_load_removes_the_names_that_it_lends():
    neural_tangents.load()

    assert not hasattr(jax.core, "Jaxpr")
    assert "jax.util" not in sys.modules
