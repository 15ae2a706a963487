"""Inner products of per-example gradients of weights that are read as they are and transposed, against gradients in float64."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import tangent_kernel
from catapult_jax.tangent import layer_gram, tied_gram
from catapult_jax.testing import explicit_kernel, relative_error
from tests.zoo import QUICK

_ROWS = tied_gram.Rows(lambda h: h, None, lambda h, v: jnp.einsum("ipgm,jsqgm->ipgjsq", h, v), False)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize(
    "shape, expected",
    [
        ({"r": 1, "p": 20, "q": 9, "g": 2, "m": 2, "c": 3}, "gradients"),
        ({"r": 1, "p": 1, "q": 1, "g": 1, "m": 30, "c": 50}, "across"),
        ({"r": 3, "p": 2, "q": 1, "g": 2, "m": 60, "c": 50}, "across"),
    ],
    ids=str,
)
def test_tied_gram_orders(monkeypatch, shape, expected, is_scaled, same):
    """Each shape takes the order that is cheapest for it, also with so little memory that few examples are done at a time."""
    r, p, q, g, m, c = (shape[name] for name in "rpqgmc")
    rng, a = np.random.default_rng(0), 5
    b = a if same else 4
    side = lambda n: [
        (rng.standard_normal((n, p, g, m)), rng.standard_normal((n, r, p, g, c))),
        (rng.standard_normal((n, q, g, c)), rng.standard_normal((n, r, q, g, m))),
    ]
    left = side(a)
    right = left if same else side(b)
    scale = rng.uniform(0.5, 2, (m, g, c)) if is_scaled else np.ones((m, g, c))
    gradients = lambda straight, turned: np.einsum("ipgm,iopgc->iomgc", *straight) + np.einsum("iqgc,ioqgm->iomgc", *turned)
    J, J2 = (gradients(*of).reshape(-1, scale.size) * scale.ravel() for of in (left, right))
    taken = []
    for name in ("_by_gradients", "_across"):
        one = getattr(tied_gram, name)
        monkeypatch.setattr(tied_gram, name, lambda *args, one=one, name=name, **kw: taken.append(name) or one(*args, **kw))

    for room in (tied_gram.HELD_NUMBERS, 200):
        monkeypatch.setattr(tied_gram, "HELD_NUMBERS", room)
        monkeypatch.setattr(layer_gram, "HELD_NUMBERS", room)
        with jax.enable_x64():
            of = lambda left, right: tied_gram.tied_gram(
                left, left if same else right, [_ROWS] * 2, jnp.asarray(scale) if is_scaled else None, same=same
            )
            kernel = jax.jit(of, compiler_options=QUICK)(*jax.tree.map(jnp.asarray, (left, right)))
        assert relative_error(kernel, J @ J2.T) <= 1e-12

    assert set(taken) == {"_by_gradients" if is_scaled or expected == "gradients" else "_across"}


def _language_model(table, ids):
    return jnp.tanh(jnp.cumsum(table.at[ids].get(mode="fill", fill_value=0), 1)) @ table.T


def test_rows_of_uses_of_a_lookup_are_read_where_they_meet_a_product():
    """The kernel holds no row of a lookup, which has the size of the vocabulary. An index outside of the table takes no row."""
    table = jax.random.normal(jax.random.key(0), (300, 60))
    ids = jnp.array([[3, 299, 300], [3, 3, 0]])
    cotangents = jax.random.normal(jax.random.key(1), (2, 900, 2))
    kernel = lambda table: tangent_kernel(_language_model, table, ids, method="structured", cotangents=cotangents)
    combined = lambda table, ids: jnp.einsum("io,ior->ir", _language_model(table, ids).reshape(2, -1), cotangents)

    program = str(jax.make_jaxpr(kernel)(table))

    assert "f32[2,3,1,60]" in program and "f32[2,3,1,300]" not in program
    assert relative_error(jax.jit(kernel)(table), explicit_kernel(combined, table, ids)) <= 1e-5


def test_doctests():
    assert not doctest.testmod(tied_gram).failed
