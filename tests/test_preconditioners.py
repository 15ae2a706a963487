"""The frozen-preconditioner rule of each optimizer against Optax itself, on quadratics with prescribed spectra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import (
    FCN,
    Preconditioner,
    batch_loss,
    critical_lr,
    critical_lr_from_lambda,
    preconditioner_from_state,
    top_eigenpairs,
)
from catapult_jax.eigenspace import split_weighted_loss
from catapult_jax.preconditioners import OPTIMIZERS, smallest_entry
from catapult_jax.tangent.weighted import weighted_tangent_kernel
from catapult_jax.testing import explicit_jacobian
from catapult_jax.training import instruments
from configs import default
from experiments.optimizers import SETTINGS, build, momentum
from tests.helpers_optimizers import OPTIMIZER_CASES, PARAMS, gradient_of_step, run_steps
from tests.zoo import QUICK


@pytest.mark.parametrize("name", OPTIMIZER_CASES)
def test_preconditioner_from_state_is_what_the_step_used(name):
    """P^(-1) times the optimizer's own average of gradients is its update."""
    make = OPTIMIZER_CASES[name]
    before, after, update = run_steps(make(1.0))
    average = {
        "heavy ball": lambda: after[0].trace,
        "nesterov": lambda: jax.tree.map(lambda g, m: g + 0.9 * m, gradient_of_step(3), after[0].trace),
        "adam": lambda: jax.tree.map(lambda m: m / (1 - 0.8**4), after[0].mu),
        "adamw": lambda: jax.tree.map(lambda m: m / (1 - 0.8**4), after[0].mu),
    }.get(name, lambda: gradient_of_step(3))()

    preconditioner = preconditioner_from_state(make, PARAMS, after, before)

    diagonal = preconditioner.diagonal or jax.tree.map(jnp.ones_like, PARAMS)
    expected = jax.tree.map(lambda m, p, w: -m / p - preconditioner.decay * w, average, diagonal, PARAMS)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-5), expected, update)


def frozen_optimizer(name: str, transformation, diagonal, decay):
    """The optimizer with a constant P: Optax's own momentum of the scaled gradient; Adam's average is ``optax.ema``."""
    scale = optax.stateless(lambda g, _: jax.tree.map(jnp.divide, g, diagonal))
    if name in ("adam", "adamw"):
        parts = [optax.ema(0.8, debias=False), scale, optax.add_decayed_weights(decay)]
    elif name in ("heavy ball", "nesterov", "sgd"):
        return transformation
    else:
        parts = [scale]
    return lambda lr: optax.chain(*parts, optax.scale_by_learning_rate(lr))


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("name", OPTIMIZER_CASES)
def test_preconditioner_from_state_gives_the_threshold_of_a_quadratic(name, factor):
    """``(1/2) w^T H w`` with P^(-1/2) H P^(-1/2) of prescribed spectrum 3, 1, 0.1: the top mode, under the frozen P."""
    make = OPTIMIZER_CASES[name]
    params = {"w": jnp.array([0.4, -1.0, 0.7])}
    state = make(0.1).init(params)
    for i in range(3):
        before = state
        _, state = make(0.1).update({"w": jnp.array([1.0, -0.5, 0.2]) * (i + 1)}, before, params)
    preconditioner = preconditioner_from_state(make, params, state, before)
    p = preconditioner.diagonal["w"] if preconditioner.diagonal else jnp.ones(3)
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    root = np.sqrt(np.asarray(p))
    hessian = jnp.float32(root[:, None] * (q * np.array([3.0, 1.0, 0.1])) @ q.T * root)
    lr = factor * critical_lr_from_lambda(jnp.float32(3.0), preconditioner)
    optimizer = frozen_optimizer(name, make, preconditioner.diagonal, preconditioner.decay)(lr)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update({"w": hessian @ w["w"]}, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), jnp.abs(q[:, 0] @ (root * w["w"]))  # its component along the top mode

    w = {"w": jnp.float32(q[:, 0] / root)}
    _, size = jax.jit(lambda w: jax.lax.scan(step, (w, optimizer.init(w)), length=600), compiler_options=QUICK)(w)

    assert (float(size[-1]) < float(size[200])) == (factor < 1)


@pytest.mark.parametrize("name", ["adagrad", "adam"])
@pytest.mark.parametrize("wrapper", ["chain", "injected", "named"])
def test_preconditioner_from_state_reads_wrapped_states(name, wrapper):
    make = OPTIMIZER_CASES[name]
    _, bare, _ = run_steps(make(0.1))
    optimizer = {
        "chain": lambda: optax.chain(make(0.1)),
        "injected": lambda: optax.inject_hyperparams(make)(learning_rate=0.1),
        "named": lambda: optax.named_chain(("a", optax.inject_hyperparams(make)(learning_rate=optax.constant_schedule(0.1)))),
    }[wrapper]()
    _, state, _ = run_steps(optimizer)

    preconditioner = preconditioner_from_state(make, PARAMS, state)

    expected = preconditioner_from_state(make, PARAMS, bare)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), preconditioner, expected)


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_preconditioner_from_state_reads_injected_settings(name):
    """Without the settings of ``make``: the state has them."""
    make = OPTIMIZER_CASES[name]
    _, bare, _ = run_steps(make(0.1))
    _, injected, _ = run_steps(optax.inject_hyperparams(make)(learning_rate=0.1))

    preconditioner = preconditioner_from_state(make.func, PARAMS, injected)

    expected = preconditioner_from_state(make, PARAMS, bare)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), preconditioner, expected)


@pytest.mark.parametrize("name", OPTIMIZER_CASES)
def test_preconditioner_from_state_without_updates_is_not_checked(name):
    make = OPTIMIZER_CASES[name]
    before, after, _ = run_steps(make(0.1))

    assert preconditioner_from_state(make, PARAMS, after, before).checked is None


def test_preconditioner_from_state_of_masked_parameters_is_infinite():
    make = OPTIMIZER_CASES["adam"]
    _, masked, _ = run_steps(optax.masked(make(0.1), {"a": True, "b": False}))
    _, bare, _ = run_steps(make(0.1))

    preconditioner = preconditioner_from_state(make, PARAMS, masked)

    whole = preconditioner_from_state(make, PARAMS, bare)
    np.testing.assert_allclose(preconditioner.diagonal["a"], whole.diagonal["a"], rtol=1e-6)
    assert np.isinf(preconditioner.diagonal["b"]).all()


@pytest.mark.parametrize("wrapper", ["masked", "groups"])
def test_preconditioner_from_state_of_masked_momentum_is_infinite(wrapper):
    make, mask = OPTIMIZER_CASES["heavy ball"], {"a": True, "b": False}
    groups = {True: make(0.1), False: optax.set_to_zero()}
    optimizer = optax.masked(make(0.1), mask) if wrapper == "masked" else optax.multi_transform(groups, mask)
    _, state, update = run_steps(optimizer)

    preconditioner = preconditioner_from_state(make, PARAMS, state)

    assert (preconditioner.diagonal["a"] == 1).all() and np.isinf(preconditioner.diagonal["b"]).all()
    assert preconditioner.gain == 1 / 1.9
    assert update["b"].any() == (wrapper == "masked")  # masked passes the gradient on; set_to_zero does not


def test_preconditioner_from_state_of_whole_momentum_has_no_diagonal():
    _, state, _ = run_steps(OPTIMIZER_CASES["heavy ball"](0.1))

    assert preconditioner_from_state(OPTIMIZER_CASES["heavy ball"], PARAMS, state).diagonal is None


def test_preconditioner_from_state_refuses_a_group_of_plain_sgd():
    """SGD without momentum leaves no trace, so its group looks as if it had no optimizer."""
    groups, labels = {"a": optax.adam(0.1), "b": optax.sgd(0.1)}, {"a": "a", "b": "b"}
    _, state, _ = run_steps(optax.multi_transform(groups, labels))

    with pytest.raises(ValueError, match="the group 'b' does not tell how it moves; allowed: adam, or set_to_zero"):
        preconditioner_from_state(optax.adam, PARAMS, state)


def test_preconditioner_from_state_of_a_group_of_zeros_is_infinite():
    groups, labels = {"a": optax.adam(0.1), "b": optax.set_to_zero()}, {"a": "a", "b": "b"}
    _, state, _ = run_steps(optax.multi_transform(groups, labels))

    assert np.isinf(preconditioner_from_state(optax.adam, PARAMS, state).diagonal["b"]).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_preconditioner_from_state_of_the_optimizers_of_a_config(name):
    fields = default.get_config().optimizer.to_dict() | {"name": name}
    make = build(fields)
    before, after, _ = run_steps(make(0.1))

    preconditioner = preconditioner_from_state(make, PARAMS, after, before=before)

    gains = {"heavy_ball": 1 / 1.9, "nesterov": 2.8 / 1.9, "adam": 0.1 / 1.9, "adamw": 0.1 / 1.9}
    assert preconditioner.gain == pytest.approx(gains.get(name, 1))
    assert preconditioner.decay == (1e-4 if name == "adamw" else 0)
    assert momentum(fields) == (0.9 if name in gains else 0)


def test_preconditioner_from_state_of_adagrad_is_infinite_without_a_gradient():
    optimizer = optax.adagrad(0.1, initial_accumulator_value=0.0)
    params = jnp.array([1.0, 1.0])
    _, state = optimizer.update(jnp.array([2.0, 0.0]), optimizer.init(params))

    preconditioner = preconditioner_from_state(optax.adagrad, params, state)

    np.testing.assert_allclose(preconditioner.diagonal, [2.0, np.inf], rtol=1e-6)
    linear, batch = lambda w, x: x @ w, (jnp.array([[1.0, 3.0]]), jnp.zeros(1))
    value = critical_lr(linear, params, batch, loss="mse", preconditioner=preconditioner)
    assert float(value) == pytest.approx(2.0, rel=1e-6)  # 1 / (1 / 2)


@pytest.mark.parametrize(
    ("make", "state_of", "message"),
    [
        (optax.lion, optax.lion, f"optimizer=lion has no rule; allowed: {', '.join(OPTIMIZERS)}"),
        (optax.adam, optax.sgd, "the state holds 0 of ScaleByAdamState; allowed for adam: one"),
        (optax.adam, optax.adam, "the state has count=0; allowed: the state after an update"),
        (optax.sgd, optax.adam, "the state holds ScaleByAdamState; allowed for sgd: TraceState alone"),
        (
            optax.rmsprop,
            functools.partial(optax.rmsprop, momentum=0.9),
            "the state holds TraceState; allowed for rmsprop: ScaleByRmsState alone",
        ),
        (
            functools.partial(optax.adamw, weight_decay=abs),
            optax.adamw,
            "weight_decay=<built-in function abs> of adamw has no rule",
        ),
        (functools.partial(optax.adam, nesterov=True), optax.adam, "nesterov=True of adam has no rule; allowed: False"),
        (functools.partial(optax.rmsprop, momentum=0.9), optax.rmsprop, "momentum=0.9 of rmsprop has no rule; allowed: None"),
        (functools.partial(optax.adam, beta=1), optax.adam, "beta=1 is no setting of adam; allowed: learning_rate, b1"),
        (functools.partial(optax.sgd, momentum=0.9), optax.sgd, "momentum=0.9 of sgd with a state of 0 momentum averages"),
        (functools.partial(optax.adadelta, weight_decay=0.1), optax.adadelta, "weight_decay=0.1 of adadelta has no rule"),
        (optax.adadelta, optax.adadelta, "before=None; allowed for adadelta: the state before the update"),
        (optax.adam, lambda lr: optax.chain(optax.adam(lr), optax.adam(lr)), "the state holds 2 of ScaleByAdamState"),
        (
            optax.sgd,
            lambda lr: optax.chain(optax.ema(0.9), optax.sgd(lr)),
            "the state holds EmaState; allowed for sgd: TraceState alone",
        ),
        (optax.sgd, optax.lion, "the state holds ScaleByLionState; allowed for sgd: TraceState alone"),
        (optax.adam, optax.amsgrad, "the state holds ScaleByAmsgradState; allowed for adam: ScaleByAdamState alone"),
        (
            optax.sgd,
            lambda lr: optax.masked(optax.sgd(lr), {"a": True, "b": False}),
            "the state holds a mask that it does not tell",
        ),
    ],
)
def test_preconditioner_from_state_refuses_what_has_no_rule(make, state_of, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        preconditioner_from_state(make, PARAMS, state_of(0.1).init(PARAMS))


def test_preconditioner_from_state_takes_positional_arguments_of_a_partial():
    _, state, _ = run_steps(optax.adam(0.1, 0.5))

    preconditioner = preconditioner_from_state(functools.partial(optax.adam, 0.1, 0.5), PARAMS, state)

    assert float(preconditioner.gain) == pytest.approx(1 / 3)


def test_preconditioner_from_state_of_adadelta_with_decay_in_the_state_is_nan():
    _, state, _ = run_steps(optax.inject_hyperparams(optax.adadelta)(learning_rate=0.1, weight_decay=0.1))

    preconditioner = preconditioner_from_state(optax.adadelta, PARAMS, state, state)

    assert np.isnan(critical_lr_from_lambda(jnp.ones(()), preconditioner))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_preconditioner_from_state_without_promotion(strict, name, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    optimizer = getattr(optax, name)
    before = optimizer(0.1).init(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself promotes
        updates, after = optimizer(0.1).update(params, before, params)
    step = dict(updates=updates, gradient=params, learning_rate=0.1)

    preconditioner = preconditioner_from_state(optimizer, params, after, before, **step)

    assert preconditioner.checked is True
    assert 0 < float(critical_lr_from_lambda(jnp.float32(1), preconditioner)) < np.inf


_NET = FCN(depth=2, width=8)


@given(seed=st.integers(0, 10_000), low=st.floats(-3, 0), high=st.floats(0, 3), gain=st.floats(0.05, 2), decay=st.floats(0, 1))
@settings(max_examples=12, deadline=None)
def test_smallest_entry_gives_a_bound_below_the_exact_critical_lr(seed, low, high, gain, decay):
    rng = np.random.default_rng(seed)
    x, y = jnp.float32(rng.standard_normal((4, 5))), jnp.float32(rng.standard_normal((4, 1)))
    params = _NET.init(jax.random.key(seed), x)
    diagonal = jax.tree.map(lambda p: jnp.float32(10 ** rng.uniform(low, high, p.shape)), params)
    preconditioner = Preconditioner(diagonal, gain, decay)

    moment = instruments.Moment(params, params, (x, y), _NET.apply(params, x), {}, lambda: preconditioner)
    series = instruments.preconditioner_min(_NET.apply, loss="mse", every=1).measure(moment)
    bound = float(series["critical_lr_bound_batch"])

    exact = critical_lr(_NET.apply, params, (x, y), loss="mse", preconditioner=preconditioner)
    assert bound <= float(exact) * (1 + 1e-5)
    if decay == 0:
        plain = critical_lr(_NET.apply, params, (x, y), loss="mse", preconditioner=Preconditioner(None, gain, 0.0))
        assert bound == pytest.approx(float(smallest_entry(diagonal) * plain), rel=1e-5)


@pytest.mark.parametrize("name", ["adagrad", "adam", "adamw"])
def test_preconditioner_from_state_gives_the_critical_lr_of_a_network(name):
    """Against the explicit Jacobian in float64, from the exact kernel and matrix-free."""
    model, make = FCN(depth=3, width=16), OPTIMIZER_CASES[name]
    x, y = jax.random.normal(jax.random.key(0), (6, 4)), jnp.ones((6, 1))
    params = model.init(jax.random.key(1), x)
    gradient = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss="mse"))(params)
    _, state = make(0.1).update(gradient, make(0.1).init(params), params)
    preconditioner = preconditioner_from_state(make, params, state)
    jacobian = explicit_jacobian(model.apply, params, x)
    P = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(preconditioner.diagonal)])
    lambda_max = np.linalg.eigvalsh(jacobian / P @ jacobian.T * (2 / 6))[-1]
    expected = 2 / (float(preconditioner.gain) * lambda_max + preconditioner.decay)

    exact = jax.jit(lambda p: critical_lr(model.apply, p, (x, y), loss="mse", preconditioner=preconditioner))(params)
    pairs = top_eigenpairs(model.apply, params, (x, y), k=1, loss="mse", preconditioner=preconditioner.diagonal, tol=1e-4)

    assert float(exact) == pytest.approx(expected, rel=1e-4)
    assert float(critical_lr_from_lambda(pairs.eigenvalues[0], preconditioner)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", OPTIMIZER_CASES)
def test_preconditioner_from_state_gives_the_lr_at_which_a_network_becomes_unstable(name):
    """The lr of a small network goes from below to above the critical lr of each step, with the optimizer's own moving P.

    The loss in the top eigenspace falls until about the step at which the lr becomes critical, and rises from there.
    """
    make = OPTIMIZER_CASES[name]
    if name in ("adam", "adamw"):  # P falls with the gradient down to eps; a large eps keeps rounding from deciding
        make = functools.partial(make.func, b1=0.8, b2=0.95, eps=0.3, **({"weight_decay": 1e-3} if name == "adamw" else {}))
    # A momentum average needs time to follow. Without it, or with Nesterov's, a long ramp ends in the rounding of float32.
    start, steps = (0.9, 100) if name == "nesterov" else (0.75, 120 if name in ("heavy ball", "adam", "adamw") else 60)
    multiples = np.linspace(start, 2 - start, steps, dtype=np.float32)
    model, x = FCN(depth=2, width=64, activation="tanh"), jax.random.normal(jax.random.key(0), (8, 6))
    params, y = (model.init(jax.random.key(i), x) for i in (1, 2))
    y = model.apply(y, x)
    optimizer = optax.inject_hyperparams(make)(learning_rate=0.0)

    def step(carry, multiple):
        params, state = carry
        gradient = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss="mse"))(params)
        preconditioner = preconditioner_from_state(make, params, optimizer.update(gradient, state, params)[1], state)
        out = model.apply(params, x)
        weighted = weighted_tangent_kernel(model.apply, params, (x, y), out, loss="mse", preconditioner=preconditioner.diagonal)
        split = split_weighted_loss(weighted, out, y, loss="mse", k=1)
        lr = multiple * critical_lr_from_lambda(split.lambda_max, preconditioner)
        state = state._replace(hyperparams=state.hyperparams | {"learning_rate": lr})
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), split.top

    run = jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), multiples), compiler_options=QUICK)
    _, top = run()

    top = np.pad(np.asarray(top), 2, mode="edge")
    envelope = np.lib.stride_tricks.sliding_window_view(top, 5).max(1)  # the mode oscillates
    assert multiples[envelope.argmin()] == pytest.approx(1, abs=0.035)
    assert envelope[-1] > 100 * envelope.min()
