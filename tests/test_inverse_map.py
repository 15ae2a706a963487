"""Preconditioners that are no diagonal: Shampoo and SOAP, written with the protocol, against a dense P."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from catapult_jax import (
    InverseMap,
    batch_loss,
    critical_lr_from_lambda,
    preconditioner_from_state,
    tangent_kernel,
    top_eigenpairs,
)
from catapult_jax.preconditioners import smallest_entry
from catapult_jax.testing import explicit_jacobian

EPS, B1, B2 = 1e-2, 0.8, 0.9


def power(matrix, exponent):
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def kronecker(arrays, u):
    """``L^(-1/4) u R^(-1/4)`` for each matrix, the inverse of Shampoo's ``P``."""
    return jax.tree.map(
        lambda pair, a: pair["left"] @ a @ pair["right"], arrays, u, is_leaf=lambda n: isinstance(n, dict) and "left" in n
    )


class Shampoo(NamedTuple):
    left: dict
    right: dict

    def inverse_preconditioner(self, before):
        arrays = jax.tree.map(lambda L, R: {"left": power(L, -0.25), "right": power(R, -0.25)}, self.left, self.right)
        return InverseMap(kronecker, arrays), 1.0


def shampoo(lr):
    def init(params):
        eye = lambda p, axis: EPS * jnp.eye(p.shape[axis])
        return Shampoo(jax.tree.map(lambda p: eye(p, 0), params), jax.tree.map(lambda p: eye(p, 1), params))

    def update(g, state, params=None):
        after = Shampoo(
            jax.tree.map(lambda L, g: L + g @ g.T, state.left, g), jax.tree.map(lambda R, g: R + g.T @ g, state.right, g)
        )
        return after.inverse_preconditioner(state)[0](g), after

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(lr))


def rotated(arrays, u):
    """``Q_L ((Q_L^T u Q_R) / root) Q_R^T`` for each matrix, the inverse of SOAP's ``P``."""
    turn = lambda a, s: s["left"] @ ((s["left"].T @ a @ s["right"]) / s["root"]) @ s["right"].T
    return jax.tree.map(lambda s, a: turn(a, s), arrays, u, is_leaf=lambda n: isinstance(n, dict) and "root" in n)


class Soap(NamedTuple):
    left: dict
    right: dict
    mu: dict
    nu: dict  # in the eigenbasis of the state before

    def inverse_preconditioner(self, before):
        basis = lambda matrix: jnp.linalg.eigh(matrix)[1]
        arrays = jax.tree.map(
            lambda L, R, v: {"left": basis(L), "right": basis(R), "root": jnp.sqrt(v) + EPS}, before.left, before.right, self.nu
        )
        return InverseMap(rotated, arrays), (1 - B1) / (1 + B1)


def soap(lr):
    def init(params):
        eye = lambda p, axis: EPS * jnp.eye(p.shape[axis])
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Soap(jax.tree.map(lambda p: eye(p, 0), params), jax.tree.map(lambda p: eye(p, 1), params), zeros, zeros)

    def update(g, state, params=None):
        basis = lambda matrix: jnp.linalg.eigh(matrix)[1]
        turned = jax.tree.map(lambda L, R, g: basis(L).T @ g @ basis(R), state.left, state.right, g)
        after = Soap(
            jax.tree.map(lambda L, g: B2 * L + (1 - B2) * g @ g.T, state.left, g),
            jax.tree.map(lambda R, g: B2 * R + (1 - B2) * g.T @ g, state.right, g),
            jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, state.mu, g),
            jax.tree.map(lambda v, t: B2 * v + (1 - B2) * t**2, state.nu, turned),
        )
        return after.inverse_preconditioner(state)[0](after.mu), after

    return optax.chain(
        optax.GradientTransformation(init, update), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(lr)
    )


X = jax.random.normal(jax.random.key(0), (6, 3))
Y = jnp.ones((6, 1))
PARAMS = {"in": jax.random.normal(jax.random.key(1), (3, 4)), "out": jax.random.normal(jax.random.key(2), (4, 1))}


def model(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def three_steps(optimizer):
    params, after = PARAMS, optimizer.init(PARAMS)
    for _ in range(3):
        before, at = after, params
        gradient = jax.grad(lambda p: batch_loss(model(p, X), Y, loss="mse"))(params)
        updates, after = optimizer.update(gradient, before, params)
        params = optax.apply_updates(params, updates)
    return at, before, after, gradient, updates


@pytest.mark.parametrize("make", [shampoo, soap])
def test_top_eigenpairs_of_a_map_agrees_with_a_dense_preconditioner(make):
    """The dense ``P^(-1)`` has the map's images of unit vectors as its columns."""
    optimizer = make(0.01)
    params, before, after, gradient, updates = three_steps(optimizer)

    preconditioner = preconditioner_from_state(optimizer, params, before, after, gradient=gradient, updates=updates)
    pairs = top_eigenpairs(model, params, (X, Y), k=2, loss="mse", preconditioner=preconditioner.diagonal, tol=1e-5)

    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    columns = [jax.flatten_util.ravel_pytree(preconditioner.diagonal(unflatten(e)))[0] for e in jnp.eye(len(flat))]
    J, inverse = explicit_jacobian(model, params, X), np.asarray(jnp.stack(columns, 1), np.float64)
    expected = np.linalg.eigvalsh(2 / 6 * J @ inverse @ J.T)[::-1]
    np.testing.assert_allclose(pairs.eigenvalues, expected[:2], rtol=1e-3)
    assert preconditioner.kind == "rule" and preconditioner.checked is True and float(preconditioner.lr) == pytest.approx(0.01)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-5 * abs(inverse).max())


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("make", [shampoo, soap])
def test_preconditioner_from_state_of_a_map_gives_the_threshold_of_a_quadratic(make, factor):
    """``lambda w^T P w / 2`` with the frozen P: the mode decays below the threshold and grows above it."""
    optimizer = make(0.01)
    params, before, after, *_ = three_steps(optimizer)
    preconditioner = preconditioner_from_state(optimizer, params, before, after)
    lr = factor * float(critical_lr_from_lambda(jnp.float32(3.0), preconditioner))
    # along an eigenvector of P^(-1) H with eigenvalue 3 the step is w' = w - lr (3 m + decay w), with m the average of w
    beta = B1 if make is soap else 0.0
    w, m, sizes = 1.0, 0.0, []
    for _ in range(900):
        m = beta * m + (1 - beta) * 3.0 * w
        w = w - lr * (m + preconditioner.decay * w)
        sizes.append(abs(w))
    assert (sizes[-1] > sizes[300]) == (factor > 1)


def test_inverse_map_under_jit_warm_started_and_in_chunks():
    optimizer = soap(0.01)
    params, before, after, *_ = three_steps(optimizer)
    diagonal = preconditioner_from_state(optimizer, params, before, after).diagonal
    options = dict(k=1, loss="mse", tol=1e-4)
    expected = top_eigenpairs(model, params, (X, Y), preconditioner=diagonal, **options)

    @jax.jit
    def warm(params, before, after, directions):
        make = lambda: preconditioner_from_state(optimizer, params, before, after).diagonal
        return top_eigenpairs(model, params, (X, Y), preconditioner=make, warm_start=directions, chunk_size=4, **options)

    pairs = warm(params, before, after, expected.directions)

    np.testing.assert_allclose(pairs.eigenvalues, expected.eigenvalues, rtol=1e-3)


def test_inverse_map_is_refused_where_a_root_or_entries_are_needed():
    inverse = InverseMap(lambda arrays, u: u, ())
    with pytest.raises(ValueError, match="preconditioner is an InverseMap; allowed in an exact kernel: a diagonal"):
        tangent_kernel(model, PARAMS, X, preconditioner=inverse)
    with pytest.raises(ValueError, match="preconditioner is an InverseMap; allowed: curvature='gauss_newton'"):
        top_eigenpairs(model, PARAMS, (X, Y), k=1, loss="mse", preconditioner=inverse, curvature="hessian")
    with pytest.raises(ValueError, match="preconditioner has other leaves or shapes than params"):
        top_eigenpairs(model, PARAMS, (X, Y), k=1, loss="mse", preconditioner=InverseMap(lambda arrays, u: u["in"], ()))
    with pytest.raises(ValueError, match="diagonal is an InverseMap; allowed: a diagonal"):
        smallest_entry(inverse)


def test_inverse_map_beside_another_preconditioner_has_no_rule():
    optimizer = optax.chain(shampoo(0.01), optax.scale_by_rms())
    after = optimizer.init(PARAMS)

    reason = preconditioner_from_state(optimizer, PARAMS, None, after).reason

    assert reason == "shampoo with another preconditioner, or on some of the parameters, has no rule"
