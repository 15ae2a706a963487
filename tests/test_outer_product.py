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
def test_agop_alignment_is_the_explicit_cosine(m, r, d, seed, exponent):
    """For any shape and scale; the Pearson variant too."""
    rng = np.random.default_rng(seed)
    a = (rng.standard_normal((m, d)) * 10**exponent).astype(np.float32)
    b = (rng.standard_normal((r, d)) + rng.standard_normal()).astype(np.float32)
    assert float(agop_alignment(a, b)) == pytest.approx(explicit_cosine(a, b), abs=1e-5)
    if d > 4:  # below, the centred norm can be a small difference of large numbers
        assert float(agop_pearson(a, b)) == pytest.approx(explicit_cosine(a, b, centred=True), abs=1e-4)
    assert float(agop_alignment(a, a)) == pytest.approx(1, abs=1e-5)


def test_agop_of_a_linear_model():
    """f = W^T x has the same Jacobian everywhere: G = W W^T."""
    w = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)

    g = agop(lambda p, x: x @ p, jnp.asarray(w), jnp.zeros((7, 5)))

    np.testing.assert_allclose(g, w @ w.T, rtol=1e-5)


def test_agop_of_a_quadratic_model():
    """f = x^T Q x / 2 has the gradient Q x: G = Q C Q with C the second moment of the inputs."""
    rng = np.random.default_rng(1)
    q = rng.standard_normal((6, 6))
    q, x = (q + q.T).astype(np.float32), rng.standard_normal((50, 6)).astype(np.float32)

    g = agop(lambda p, x: 0.5 * jnp.einsum("ni,ij,nj->n", x, p, x), jnp.asarray(q), x)

    np.testing.assert_allclose(g, q @ (x.T @ x / 50) @ q, rtol=1e-4, atol=1e-4)


MODELS = {"fcn": FCN(depth=3, width=16, outputs=3), "cnn": CNN(depth=2, width=4, outputs=2)}


def network(name):
    """``(apply_fn, params, x)`` of a small model and seven images."""
    x = np.random.default_rng(2).standard_normal((7, 6, 6, 2)).astype(np.float32)
    return MODELS[name].apply, MODELS[name].init(jax.random.key(0), x), x


@pytest.mark.parametrize("name", MODELS)
def test_input_jacobian_is_that_of_the_batch_in_float64(name):
    apply_fn, params, x = network(name)
    o = MODELS[name].outputs
    with jax.enable_x64():
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
        full = jax.jacrev(lambda z: apply_fn(wide, z))(x.astype(np.float64))  # (7, o, 7, 6, 6, 2)
        expected = np.stack([np.asarray(full[i, :, i]).reshape(o, -1) for i in range(7)]).reshape(7 * o, 72)

    rows = input_jacobian(apply_fn, params, x)

    assert rows.shape == (7 * o, 72)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 20])
@pytest.mark.parametrize("name", MODELS)
def test_input_jacobian_in_chunks_is_the_whole(name, chunk_size):
    apply_fn, params, x = network(name)

    rows = input_jacobian(apply_fn, params, x, chunk_size=chunk_size)

    np.testing.assert_allclose(rows, input_jacobian(apply_fn, params, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_input_jacobian_in_more_chunks_than_are_unrolled_is_the_whole(name):
    apply_fn, params, x = network(name)

    rows = input_jacobian(apply_fn, params, np.concatenate([x] * 5), chunk_size=1)

    expected = np.concatenate([input_jacobian(apply_fn, params, x)] * 5)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.xla
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order in which XLA works on the CPU")
def test_input_jacobian_in_chunks_of_convolutions_needs_the_memory_of_one_chunk():
    """Unrolled chunks run one after the other; the rows themselves do not count."""
    model, x = CNN(depth=3, width=16), jnp.ones((32, 12, 12, 3))
    params = model.init(jax.random.key(0), x[:1])

    def memory(chunk_size):
        jacobian = jax.jit(lambda p, x: input_jacobian(model.apply, p, x, chunk_size=chunk_size))
        return jacobian.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert memory(4) <= 0.4 * memory(None)


@pytest.mark.parametrize("function", [agop_alignment, agop_pearson])
def test_agop_alignment_forms_no_square_matrix_of_the_inputs(function):
    """For 96 x 96 x 3 inputs d x d would be 3 GB; the largest array of the program is the Jacobian itself."""
    rows = jax.ShapeDtypeStruct((64, 96 * 96 * 3), jnp.float32)

    jaxpr = jax.make_jaxpr(function)(rows, rows)

    assert max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars) == 64 * 96 * 96 * 3


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_agop_eigenvectors_are_those_of_the_explicit_matrix(shape):
    rows = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    expected = np.linalg.eigvalsh(rows.T.astype(np.float64) @ rows / 4)[::-1][:3]

    values, vectors = agop_eigenvectors(jnp.asarray(rows), 4, k=3)

    np.testing.assert_allclose(values, expected, rtol=1e-4)
    np.testing.assert_allclose(rows.T @ (rows @ np.asarray(vectors)) / 4, np.asarray(values) * vectors, rtol=1e-3, atol=1e-4)
    assert (np.take_along_axis(np.asarray(vectors), np.abs(vectors).argmax(0)[None], 0) > 0).all()


def test_agop_alignment_is_at_highest_precision_without_promotion(strict):
    rows = jnp.ones((3, 4)) + jnp.eye(3, 4)

    program = jax.jit(agop_alignment).lower(rows, rows).as_text()

    assert agop_alignment(rows, rows).dtype == jnp.float32
    assert "HIGHEST" in program


def test_input_jacobian_without_promotion(strict):
    model, x = FCN(depth=2, width=6, bias=True, outputs=2), jnp.ones((8, 5))
    params = model.init(jax.random.key(0), x)

    assert input_jacobian(model.apply, params, x).shape == (16, 5)


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
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_agop_pearson_of_an_agop_of_equal_entries_is_not_defined():
    assert np.isnan(agop_pearson(jnp.ones((2, 3)), jnp.eye(3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: input_jacobian(lambda p, x: x["a"], {}, {"a": jnp.ones((2, 3))}), "x is a dict; allowed: one array of inputs"),
        (
            lambda: input_jacobian(lambda p, x: x, {}, jnp.ones((2, 3)), chunk_size=1.5),
            "chunk_size=1.5; allowed: a whole number",
        ),
        (lambda: agop_eigenvectors(jnp.ones((2, 3)), 0, k=1), "n=0; allowed: 1 or more"),
    ],
)
def test_inputs_of_another_kind_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
