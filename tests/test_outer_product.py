"""AGOP and alignment against closed forms and explicit d x d matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import CNN, FCN, agop, agop_alignment, agop_eigenvectors, agop_pearson, input_jacobian


def explicit_cosine(a, b, *, centred=False):
    """From the d x d matrices, in float64, by numpy."""
    g, h = (np.asarray(rows, np.float64).T @ np.asarray(rows, np.float64) for rows in (a, b))
    if centred:
        g, h = g - g.mean(), h - h.mean()
    return (g * h).sum() / np.sqrt((g**2).sum() * (h**2).sum())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 40), st.integers(0, 2**16), st.floats(-6, 6))
@settings(deadline=None, max_examples=40)
def test_gram_form_is_the_explicit_form(m, r, d, seed, exponent):
    """Whichever side is smaller, whatever the scale."""
    rng = np.random.default_rng(seed)
    a = (rng.standard_normal((m, d)) * 10**exponent).astype(np.float32)
    b = (rng.standard_normal((r, d)) + rng.standard_normal()).astype(np.float32)
    assert float(agop_alignment(a, b)) == pytest.approx(explicit_cosine(a, b), abs=1e-5)
    if d > 4:  # below, the centred norm can be a small difference of large numbers
        assert float(agop_pearson(a, b)) == pytest.approx(explicit_cosine(a, b, centred=True), abs=1e-4)
    assert float(agop_alignment(a, a)) == pytest.approx(1, abs=1e-5)


def test_linear_model():
    """f = W^T x has the same Jacobian everywhere: G = W W^T."""
    w = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    g = agop(lambda p, x: x @ p, jnp.asarray(w), jnp.zeros((7, 5)))
    np.testing.assert_allclose(g, w @ w.T, rtol=1e-5)


def test_quadratic_model():
    """f = x^T Q x / 2 has the gradient Q x: G = Q C Q with C the second moment of the inputs."""
    rng = np.random.default_rng(1)
    q = rng.standard_normal((6, 6))
    q, x = (q + q.T).astype(np.float32), rng.standard_normal((50, 6)).astype(np.float32)
    g = agop(lambda p, x: 0.5 * jnp.einsum("ni,ij,nj->n", x, p, x), jnp.asarray(q), x)
    np.testing.assert_allclose(g, q @ (x.T @ x / 50) @ q, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [FCN(depth=3, width=16, outputs=3), CNN(depth=2, width=4, outputs=2)], ids=["fcn", "cnn"])
def test_jacobian_in_float64_and_chunks(model):
    x = np.random.default_rng(2).standard_normal((7, 6, 6, 2)).astype(np.float32)
    params = model.init(jax.random.key(0), x)
    rows = input_jacobian(model.apply, params, x)
    assert rows.shape == (7 * model.outputs, 72)
    with jax.enable_x64():
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
        full = jax.jacrev(lambda z: model.apply(wide, z))(x.astype(np.float64))  # (7, o, 7, 6, 6, 2)
        expected = np.stack([np.asarray(full[i, :, i]).reshape(model.outputs, -1) for i in range(7)]).reshape(rows.shape)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    for chunk in (1, 3, 7, 20):
        np.testing.assert_allclose(input_jacobian(model.apply, params, x, chunk_size=chunk), rows, rtol=1e-5, atol=1e-6)
    many = np.concatenate([x] * 5)  # more chunks than are unrolled
    np.testing.assert_allclose(
        input_jacobian(model.apply, params, many, chunk_size=1), np.concatenate([rows] * 5), rtol=1e-5, atol=1e-6
    )


@pytest.mark.xla
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order in which XLA works on the CPU")
def test_memory_of_chunks_of_convolutions():
    """Unrolled chunks come one after the other: the rows aside, the memory is that of one chunk."""
    model, x = CNN(depth=3, width=16), jnp.ones((32, 12, 12, 3))
    params = model.init(jax.random.key(0), x[:1])

    def planned(chunk_size):
        jacobian = jax.jit(lambda p, x: input_jacobian(model.apply, p, x, chunk_size=chunk_size))
        return jacobian.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert planned(4) <= 0.4 * planned(None)


def test_no_square_matrix_of_the_inputs():
    """96 x 96 x 3 inputs: d x d would be 3 GB; the largest array of the program is the Jacobian itself."""
    rows = jax.ShapeDtypeStruct((64, 96 * 96 * 3), jnp.float32)
    for f in (agop_alignment, agop_pearson):
        sizes = [v.aval.size for eqn in jax.make_jaxpr(f)(rows, rows).eqns for v in eqn.outvars]
        assert max(sizes) == 64 * 96 * 96 * 3


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_eigenvectors(shape):
    rows = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    values, vectors = agop_eigenvectors(jnp.asarray(rows), 4, k=3)
    expected = np.linalg.eigvalsh(rows.T.astype(np.float64) @ rows / 4)[::-1][:3]
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    np.testing.assert_allclose(rows.T @ (rows @ np.asarray(vectors)) / 4, np.asarray(values) * vectors, rtol=1e-3, atol=1e-4)
    assert (np.take_along_axis(np.asarray(vectors), np.abs(vectors).argmax(0)[None], 0) > 0).all()


def test_precision_and_promotion(strict):
    rows = jnp.ones((3, 4)) + jnp.eye(3, 4)
    assert agop_alignment(rows, rows).dtype == jnp.float32
    text = jax.jit(agop_alignment).lower(rows, rows).as_text()
    assert "HIGHEST" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: input_jacobian(lambda p, x: x, {}, jnp.ones((2, 3), int)), "x has dtype int32; allowed"),
        (lambda: input_jacobian(lambda p, x: x, {}, jnp.ones((0, 3))), r"x has shape \(0, 3\); allowed"),
        (lambda: input_jacobian(lambda p, x: x, {}, jnp.ones((2, 3)), chunk_size=0), "chunk_size=0; allowed"),
        (lambda: agop_alignment(jnp.ones((2, 3)), jnp.ones((2, 4))), r"reference has shape \(2, 4\); allowed"),
        (lambda: agop_eigenvectors(jnp.ones((2, 3)), 2, k=3), "k=3; allowed"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
