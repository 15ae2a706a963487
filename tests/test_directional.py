"""Directional critical lr, against line searches, explicit matrices in float64, and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import FCN, batch_loss, critical_lr, directional_by_layer, directional_critical_lr
from catapult_jax.directional import VERDICTS, from_slope_and_curvature
from tests.zoo import QUICK

FALLS, RISES, NO_DESCENT, NOT_FINITE = range(4)
TARGETS = {
    "mse": lambda key: jax.random.normal(key, (8, 3)),
    "softmax_cross_entropy": lambda key: jax.random.randint(key, (8,), 0, 3),
    "logistic": lambda key: jax.random.bernoulli(key, shape=(8, 1)).astype(jnp.float32),
}


def network(loss, width=24):
    outputs = 1 if loss == "logistic" else 3
    model = FCN(depth=3, width=width, outputs=outputs, activation="tanh")
    x = jax.random.normal(jax.random.key(0), (8, 6))
    return model.apply, model.init(jax.random.key(1), x), (x, TARGETS[loss](jax.random.key(2)))


def step_of(optimizer, apply_fn, params, batch, loss, steps=3):
    """Parameters after some steps, and the update of the next one."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def update(params, state):
        gradient = jax.grad(lambda p: batch_loss(apply_fn(p, batch[0]), batch[1], loss=loss))(params)
        return optimizer.update(gradient, state, params)

    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
    return params, update(params, state)[0]


@pytest.mark.parametrize("loss", TARGETS)
def test_directional_critical_lr_of_an_explicit_gauss_newton_matrix(loss):
    apply_fn, params, batch = network(loss)
    updates = jax.tree.map(lambda p: -0.1 * jnp.sin(7 * jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)

    step = directional_critical_lr(apply_fn, params, batch, updates, loss=loss)

    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)
        w, unravel = jax.flatten_util.ravel_pytree(wide(params))
        d, x = jax.flatten_util.ravel_pytree(wide(updates))[0], wide(batch[0])
        y = wide(batch[1]) if loss != "softmax_cross_entropy" else batch[1]
        f = lambda w: apply_fn(unravel(w), x)
        J = jax.jacobian(f)(w).reshape(len(x), -1, len(w))
        S = jax.vmap(jax.hessian(lambda f, y: batch_loss(f[None], y[None], loss=loss)))(f(w), y)
        G = jnp.einsum("iop,ioq,iqr->pr", J, S, J) / len(x)
        g = jax.grad(lambda w: batch_loss(f(w), y, loss=loss))(w)
        slope, curvature = float(g @ d), float(d @ G @ d)
    assert float(step.slope) == pytest.approx(slope, rel=2e-5)
    assert float(step.curvature) == pytest.approx(curvature, rel=2e-5)


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_directional_by_layer_is_the_update_of_one_layer_alone(curvature):
    """Its slope and curvature are those of an update that is zero elsewhere; layers may be named."""
    apply_fn, params, batch = network("softmax_cross_entropy")
    updates = jax.tree.map(lambda p: -0.1 * jnp.sin(7 * jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    alone = lambda name: jax.tree_util.tree_map_with_path(
        lambda path, u: u * (name in jax.tree_util.keystr(path, simple=True, separator="/")), updates
    )
    options = dict(loss="softmax_cross_entropy", curvature=curvature)

    steps = directional_by_layer(apply_fn, params, batch, updates, **options)
    last = directional_by_layer(apply_fn, params, batch, updates, **options, layer=lambda path: str("readout" in path))

    names = [f"params/{name}" for name in params["params"]]
    assert list(steps) == names and len(names) == 3 and set(last) == {"False", "True"}
    for name in names:
        expected = directional_critical_lr(apply_fn, params, batch, alone(name), **options)
        np.testing.assert_allclose(np.array(steps[name][::2]), np.array(expected[::2]), rtol=1e-5, atol=1e-7)
    whole = directional_critical_lr(apply_fn, params, batch, updates, **options)
    np.testing.assert_allclose(sum(step.slope for step in steps.values()), whole.slope, rtol=1e-5)
    np.testing.assert_allclose(last["True"].curvature, steps[names[-1]].curvature, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("sgd", optax.sgd(0.02)),
        ("momentum", optax.sgd(0.01, momentum=0.9)),
        ("adam", optax.adam(3e-3)),
        ("adagrad", optax.adagrad(0.02)),
        ("rmsprop", optax.rmsprop(2e-3)),
        ("lion", optax.lion(1e-3)),
        ("clipped", optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(3e-3))),
    ],
)
def test_directional_critical_lr_of_any_optimizer_against_a_line_search(name, optimizer):
    """In the linear model the loss crosses its starting value exactly at the multiple."""
    del name
    apply_fn, params, batch = network("mse")
    params, updates = step_of(optimizer, apply_fn, params, batch, "mse")
    step = directional_critical_lr(apply_fn, params, batch, updates, loss="mse")

    outputs, moved = jax.jvp(lambda p: apply_fn(p, batch[0]), (params,), (updates,))
    loss_at = lambda a: float(batch_loss(outputs + a * moved, batch[1], loss="mse"))
    multiple = float(step.multiple)
    assert multiple > 0
    assert loss_at(0.999 * multiple) < loss_at(0.0) < loss_at(1.001 * multiple)
    assert int(step.verdict) == (RISES if multiple < 1 else FALLS)


def test_directional_critical_lr_of_the_network_itself_near_the_linear_regime():
    """The true smallest rising multiple of a wide network, by bisection, is within 5 % of that of its quadratic model."""
    apply_fn, params, batch = network("mse", width=1024)
    params, updates = step_of(optax.sgd(0.02), apply_fn, params, batch, "mse")
    multiple = float(directional_critical_lr(apply_fn, params, batch, updates, loss="mse").multiple)

    loss_at = jax.jit(
        lambda a: batch_loss(apply_fn(jax.tree.map(lambda p, u: p + a * u, params, updates), batch[0]), batch[1], loss="mse")
    )
    start, low, high = float(loss_at(0.0)), 0.0, 0.25 * multiple
    while float(loss_at(high)) < start:
        low, high = high, 1.25 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(loss_at(middle)) < start else (low, middle)
    assert multiple == pytest.approx(high, rel=0.05)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.floats(0.01, 3.0))
def test_directional_critical_lr_of_one_example_is_the_spectral_one(seed, lr):
    """One example with one output: Fig. 5 of the paper is a special case."""
    x = jax.random.normal(jax.random.key(seed), (1, 4))
    batch, w = (x, jnp.ones(1)), jax.random.normal(jax.random.key(seed + 1), (4,))
    linear = lambda w, x: x @ w
    gradient = jax.grad(lambda w: batch_loss(linear(w, x), batch[1], loss="mse"))(w)
    step = directional_critical_lr(linear, w, batch, -lr * gradient, loss="mse")
    assert float(step.multiple) * lr == pytest.approx(float(critical_lr(linear, w, batch, loss="mse")), rel=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1))
def test_directional_critical_lr_of_gradient_descent_is_at_least_the_spectral_one(seed):
    x = jax.random.normal(jax.random.key(seed), (5, 4))
    batch, w = (x, jax.random.normal(jax.random.key(seed + 1), (5,))), jnp.zeros(4)
    linear = lambda w, x: x @ w
    gradient = jax.grad(lambda w: batch_loss(linear(w, x), batch[1], loss="mse"))(w)
    step = directional_critical_lr(linear, w, batch, -gradient, loss="mse")
    assert float(step.multiple) >= float(critical_lr(linear, w, batch, loss="mse")) * (1 - 1e-5)


def test_directional_critical_lr_without_a_descent_direction():
    apply_fn, params, batch = network("mse")
    _, updates = step_of(optax.sgd(0.02), apply_fn, params, batch, "mse", steps=0)
    up = jax.tree.map(jnp.negative, updates)
    step = directional_critical_lr(apply_fn, params, batch, up, loss="mse")
    assert step.text == "no descent direction" and float(step.multiple) == 0


def test_directional_critical_lr_under_jit_vmap_and_scan():
    apply_fn, params, batch = network("mse")
    _, updates = step_of(optax.sgd(0.02), apply_fn, params, batch, "mse", steps=0)
    multiple = lambda a: (
        directional_critical_lr(apply_fn, params, batch, jax.tree.map(lambda u: a * u, updates), loss="mse").multiple
    )
    scales = jnp.array([0.5, 1.0, 4.0])
    expected = np.array([float(multiple(a)) for a in scales])
    np.testing.assert_allclose(expected * scales, expected[1], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(multiple))(scales), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.lax.scan(lambda c, a: (c, multiple(a)), 0, scales)[1], expected, rtol=1e-5)


def test_directional_critical_lr_of_bad_arguments():
    apply_fn, params, batch = network("mse")
    with pytest.raises(ValueError, match="updates have other leaves or shapes than params"):
        directional_critical_lr(apply_fn, params, batch, {"a": jnp.ones(3)}, loss="mse")
    with pytest.raises(ValueError, match="loss='huber'; allowed"):
        directional_critical_lr(apply_fn, params, batch, params, loss="huber")


def test_from_slope_and_curvature_of_numbers_that_are_not_finite():
    nan, inf = jnp.nan, jnp.inf
    step = from_slope_and_curvature(jnp.array([nan, -1.0, -inf, -1.0, 0.0]), jnp.array([1.0, nan, 1.0, 0.0, 0.0]))
    assert [VERDICTS[i] for i in step.verdict] == [*["not finite"] * 3, "falls", "no change"]
    assert np.isnan(step.multiple[:3]).all() and step.multiple[3] == inf and np.isnan(step.multiple[4])
