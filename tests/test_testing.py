"""The dense references themselves, against closed forms."""

import jax.numpy as jnp
import numpy as np

from catapult_jax.testing import explicit_jacobian, explicit_kernel, relative_error, symmetric_with_spectrum


def test_explicit_jacobian_of_a_product_in_float64():
    """f_o = a_o b x: d f / d a_o = b x, d f / d b = a_o x; parameters in the order of the tree."""
    apply_fn = lambda p, x: x * p["a"] * p["b"]
    params, x = {"a": jnp.array([2.0, 3.0]), "b": jnp.array(5.0)}, jnp.array([[1.0], [10.0]])

    jacobian = explicit_jacobian(apply_fn, params, x)

    assert jacobian.dtype == np.float64
    np.testing.assert_array_equal(jacobian, [[5, 0, 2], [0, 5, 3], [50, 0, 20], [0, 50, 30]])


def test_explicit_kernel_of_a_linear_model():
    x = jnp.array([[1.0, 0.0], [1.0, 2.0]])

    kernel = explicit_kernel(lambda w, x: x @ w, jnp.zeros(2), x)

    np.testing.assert_array_equal(kernel, [[1, 1], [1, 5]])


def test_relative_error_is_relative_to_the_largest_entry():
    assert relative_error(np.array([0.5, 4.0]), np.array([0.0, -4.0])) == 2.0


def test_symmetric_with_spectrum_has_the_eigenvalues():
    matrix, vectors = symmetric_with_spectrum([3.0, -1.0, 2.0], seed=1)

    np.testing.assert_allclose(np.linalg.eigvalsh(matrix), [-1, 2, 3], atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert (matrix != symmetric_with_spectrum([3.0, -1.0, 2.0], seed=2)[0]).any()
