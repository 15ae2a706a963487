"""The frozen-preconditioner rule of each optimizer against Optax itself, on quadratics with prescribed spectra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import (
    FCN,
    Preconditioner,
    critical_lr,
    critical_lr_from_lambda,
    preconditioner_from_state,
    top_eigenpairs,
)
from catapult_jax.eigenspace import split_weighted_loss
from catapult_jax.losses import batch_loss
from catapult_jax.preconditioners import OPTIMIZERS, smallest_entry
from catapult_jax.tangent.weighted import weighted_tangent_kernel
from catapult_jax.testing import explicit_jacobian
from catapult_jax.training import instruments
from configs import default
from experiments.optimizers import SETTINGS, build, momentum
from tests.zoo import QUICK

CASES = {
    "sgd": functools.partial(optax.sgd),
    "heavy ball": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "adagrad": functools.partial(optax.adagrad, initial_accumulator_value=0.1, eps=1e-3),
    "rmsprop": functools.partial(optax.rmsprop, decay=0.95, eps=1e-3),
    "rmsprop, eps outside": functools.partial(optax.rmsprop, decay=0.95, eps=1e-2, eps_in_sqrt=False),
    "adam": functools.partial(optax.adam, b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3),
    "adamw": functools.partial(optax.adamw, b1=0.8, b2=0.95, eps=1e-2, weight_decay=0.3),
    "adadelta": functools.partial(optax.adadelta, rho=0.95, eps=1e-2),
}
_PARAMS = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.3, -0.7]])}


def _gradient(i: int):
    key = jax.random.fold_in(jax.random.key(3), i)
    return jax.tree.map(lambda p: jax.random.normal(jax.random.fold_in(key, p.size), p.shape), _PARAMS)


def _after(optimizer, steps: int = 4):
    """States before and after the last of some steps, and the update of it."""
    after = optimizer.init(_PARAMS)
    for i in range(steps):
        before = after
        update, after = optimizer.update(_gradient(i), before, _PARAMS)
    return before, after, update


@pytest.mark.parametrize("name", CASES)
def test_preconditioner_is_what_the_step_used(name):
    """P^(-1) times the optimizer's own average of gradients is its update."""
    make = CASES[name]
    before, after, update = _after(make(1.0))
    rule = preconditioner_from_state(make, _PARAMS, after, before)
    average = {
        "heavy ball": lambda: after[0].trace,
        "nesterov": lambda: jax.tree.map(lambda g, m: g + 0.9 * m, _gradient(3), after[0].trace),
        "adam": lambda: jax.tree.map(lambda m: m / (1 - 0.8**4), after[0].mu),
        "adamw": lambda: jax.tree.map(lambda m: m / (1 - 0.8**4), after[0].mu),
    }.get(name, lambda: _gradient(3))()
    diagonal = rule.diagonal or jax.tree.map(jnp.ones_like, _PARAMS)
    expected = jax.tree.map(lambda m, p, w: -m / p - rule.decay * w, average, diagonal, _PARAMS)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-5), expected, update)


def _frozen(name: str, transformation, diagonal, decay):
    """The optimizer with P held: Optax's own momentum on the scaled gradient, Adam's average spelt out by ``optax.ema``."""
    scale = optax.stateless(lambda g, _: jax.tree.map(jnp.divide, g, diagonal))
    if name in ("adam", "adamw"):
        parts = [optax.ema(0.8, debias=False), scale, optax.add_decayed_weights(decay)]
    elif name in ("heavy ball", "nesterov", "sgd"):
        return transformation
    else:
        parts = [scale]
    return lambda lr: optax.chain(*parts, optax.scale_by_learning_rate(lr))


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("name", CASES)
def test_quadratic_decays_just_below_and_grows_just_above(name, factor):
    """``(1/2) w^T H w`` with P^(-1/2) H P^(-1/2) of prescribed spectrum 3, 1, 0.1: the top mode, under the frozen P."""
    make = CASES[name]
    params = {"w": jnp.array([0.4, -1.0, 0.7])}
    state = make(0.1).init(params)
    for i in range(3):
        before = state
        _, state = make(0.1).update({"w": jnp.array([1.0, -0.5, 0.2]) * (i + 1)}, before, params)
    rule = preconditioner_from_state(make, params, state, before)
    p = rule.diagonal["w"] if rule.diagonal else jnp.ones(3)
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    root = np.sqrt(np.asarray(p))
    hessian = jnp.float32(root[:, None] * (q * np.array([3.0, 1.0, 0.1])) @ q.T * root)
    lr = factor * critical_lr_from_lambda(jnp.float32(3.0), rule)
    optimizer = _frozen(name, make, rule.diagonal, rule.decay)(lr)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update({"w": hessian @ w["w"]}, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), jnp.abs(q[:, 0] @ (root * w["w"]))  # its component along the top mode

    w = {"w": jnp.float32(q[:, 0] / root)}
    _, size = jax.jit(lambda w: jax.lax.scan(step, (w, optimizer.init(w)), length=600), compiler_options=QUICK)(w)
    assert (float(size[-1]) < float(size[200])) == (factor < 1)


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_wrapped_states_are_read_as_bare_ones(name):
    make = CASES[name]
    _, bare, _ = _after(make(0.1))
    expected = preconditioner_from_state(make, _PARAMS, bare)
    injected = _after(optax.inject_hyperparams(make)(learning_rate=0.1))[1]
    named = _after(optax.named_chain(("a", optax.inject_hyperparams(make)(learning_rate=optax.constant_schedule(0.1)))))[1]
    for state in (_after(optax.chain(make(0.1)))[1], injected, named):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6), preconditioner_from_state(make, _PARAMS, state), expected
        )
    # What is injected need not be said again.
    found = preconditioner_from_state(make.func, _PARAMS, injected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def _check(make, optimizer, steps=4, **known):
    """The rule, with a check against the last of some steps."""
    before, after, updates = _after(optimizer, steps)
    step = dict(updates=updates, gradient=_gradient(steps - 1)) | known
    return preconditioner_from_state(make, _PARAMS, after, before, **step)


@pytest.mark.parametrize("name", CASES)
def test_preconditioner_from_state_checks_the_update(name):
    make = CASES[name]
    schedule = lambda count: 0.1 / (1 + count)
    assert _check(make, make(0.1), learning_rate=0.1).checked is True
    assert _check(make, make(schedule), learning_rate=schedule).checked is True
    assert _check(make, optax.inject_hyperparams(make)(learning_rate=0.1)).checked is True
    idle = optax.chain(optax.clip_by_global_norm(1e9), make(0.1))
    assert _check(make, idle, learning_rate=0.1).checked is True
    assert preconditioner_from_state(make, _PARAMS, *_after(make(0.1))[1::-1]).checked is None


ADAM = optax.adam
MISTAKEN = {  # what is said, what was made, and what of it the message says
    "clipping": (ADAM, optax.chain(optax.clip_by_global_norm(0.05), ADAM(0.1)), r"saw 0.0\d+ times the gradient \(clipping\)"),
    "clipping by entries": (ADAM, optax.chain(optax.clip(0.3), ADAM(0.1)), "settings that were not repeated"),
    "clipping and sgd": (
        optax.sgd,
        optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(0.1)),
        r"0.0\d+ times as large \(clipping",
    ),
    "clipping in place of a link": (optax.sgd, optax.chain(optax.clip_by_global_norm(0.05), optax.scale(-0.1)), "clipping"),
    "clipping and momentum": (
        CASES["heavy ball"],
        optax.chain(optax.clip_by_global_norm(0.05), CASES["heavy ball"](0.1)),
        r"saw 0.0\d+ times the gradient",
    ),
    "clipping and adagrad": (
        optax.adagrad,
        optax.chain(optax.clip_by_global_norm(0.05), optax.adagrad(0.1)),
        r"saw 0.0\d+ times",
    ),
    "clipping and rmsprop": (
        optax.rmsprop,
        optax.chain(optax.clip_by_global_norm(0.05), optax.rmsprop(0.1)),
        r"saw 0.0\d+ times",
    ),
    "clipping and adadelta": (
        optax.adadelta,
        optax.chain(optax.clip_by_global_norm(0.05), optax.adadelta(0.1)),
        r"saw 0.0\d+ times",
    ),
    "b2": (ADAM, ADAM(0.1, b2=0.99), r"adam\(.*b2=0.999.*settings that were not repeated"),
    "eps": (ADAM, ADAM(0.1, eps=0.1), "the state agrees"),
    "nesterov": (ADAM, optax.nadam(0.1), "an optimizer with the same kind of state"),
    "lamb": (ADAM, optax.lamb(0.1), "an optimizer with the same kind of state"),
    "decay that was not said": (ADAM, optax.adamw(0.1, weight_decay=0.3), "the state agrees"),
    "decay before": (optax.sgd, optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1)), "updates are not those of sgd"),
    "learning rate": (optax.rmsprop, optax.rmsprop(0.2), "2 times as large .*another learning rate"),
    "gradients that pass a mask": (ADAM, optax.masked(ADAM(0.1), {"a": True, "b": False}), "updates are not those of adam"),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_preconditioner_from_state_refuses_an_update_of_another_rule(name):
    make, optimizer, message = MISTAKEN[name]
    with pytest.raises(ValueError, match=message) as raised:
        _check(make, optimizer, learning_rate=0.1)
    assert "allowed" in str(raised.value) and "\n" not in str(raised.value)


def test_preconditioner_from_state_checks_inside_of_jit():
    """Inside jit a mismatch is data: the critical lr is NaN."""

    @functools.partial(jax.jit, static_argnums=0)
    def critical(optimizer):
        rule = _check(ADAM, optimizer, learning_rate=0.1)
        return rule.checked, critical_lr_from_lambda(jnp.float32(1), rule)

    good, value = critical(ADAM(0.1))
    bad, nothing = critical(optax.chain(optax.clip_by_global_norm(0.05), ADAM(0.1)))
    assert good and float(value) == pytest.approx(38, rel=1e-5)
    assert not bad and np.isnan(nothing)


def test_preconditioner_from_state_of_clipped_adam_is_not_a_silent_number():
    """Adam does not feel the scale of its gradient: its critical lr with clipping is that without, which the state does not tell."""
    for clip in (1e9, 0.05):
        _, state, _ = _after(optax.chain(optax.clip_by_global_norm(clip), ADAM(0.1)))
        with pytest.raises(
            ValueError, match=r"not those of adam alone, .* may be clipping or decay; allowed: updates, gradient, before"
        ):
            preconditioner_from_state(ADAM, _PARAMS, state)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"gradient": None, "learning_rate": 0.1}, "gradient=None; allowed: updates, gradient and before of one step together"),
        ({"updates": None, "learning_rate": 0.1}, "updates=None; allowed"),
        ({}, "learning_rate=None; allowed with updates: learning_rate=..., that of this step"),
        ({"learning_rate": lambda count: 0.1}, "learning_rate=a schedule whose count is not in the state; allowed"),
        ({"learning_rate": 0.1, "gradient": jnp.ones(5)}, "gradient has other arrays than params; allowed"),
    ],
)
def test_preconditioner_from_state_check_wants_the_whole_step(known, message):
    with pytest.raises(ValueError, match=message):
        _check(ADAM, ADAM(0.1), **known)
    with pytest.raises(ValueError, match="before=None; allowed"):
        preconditioner_from_state(ADAM, _PARAMS, _after(ADAM(0.1))[1], updates=_PARAMS, gradient=_PARAMS, learning_rate=0.1)


def test_a_state_of_other_arrays_than_the_parameters_is_refused():
    flat = _after(optax.flatten(ADAM(0.1)))[1]
    with pytest.raises(
        ValueError, match=r"the state of adam has an array of shape \(5,\); allowed: one array for each parameter"
    ):
        preconditioner_from_state(ADAM, _PARAMS, flat)
    with pytest.raises(ValueError, match="the state of adam has another structure than params; allowed"):
        preconditioner_from_state(ADAM, {"a": _PARAMS["a"]}, _after(ADAM(0.1))[1])


@pytest.mark.parametrize("name", ["adam", "heavy ball", "adagrad"])
def test_state_of_a_flax_nnx_optimizer(name):
    """Its arrays are in other containers than the parameters."""
    make, x = CASES[name], jnp.ones((2, 3))
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make(0.1), wrt=nnx.Param)
    gradient = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
    before, params = jax.tree.map(jnp.copy, (optimizer.opt_state, nnx.state(model, nnx.Param)))
    optimizer.update(model, gradient)
    moved = jax.tree.map(jnp.subtract, nnx.state(model, nnx.Param), params)
    step = dict(updates=moved, gradient=gradient, learning_rate=0.1)
    rule = preconditioner_from_state(make, params, optimizer.opt_state, before, **step)
    assert rule.checked is True
    assert rule.diagonal is None or jax.tree.structure(rule.diagonal) == jax.tree.structure(params)


def test_a_mask_of_whole_subtrees():
    params = {"a": _PARAMS["a"], "c": {"d": jnp.ones(2), "e": jnp.ones(3)}}
    labels = {"a": "moves", "c": "stays"}
    optimizer = optax.multi_transform({"moves": ADAM(0.1), "stays": optax.set_to_zero()}, labels)
    before = optimizer.init(params)
    updates, after = optimizer.update(params, before, params)
    rule = preconditioner_from_state(ADAM, params, after, before, updates=updates, gradient=params, learning_rate=0.1)
    assert jax.tree.structure(rule.diagonal) == jax.tree.structure(params) and rule.checked is True
    assert np.isinf(rule.diagonal["c"]["d"]).all() and np.isfinite(rule.diagonal["a"]).all()


def test_what_is_masked_out_does_not_move():
    masked = _after(optax.masked(CASES["adam"](0.1), {"a": True, "b": False}))[1]
    rule = preconditioner_from_state(CASES["adam"], _PARAMS, masked)
    whole = preconditioner_from_state(CASES["adam"], _PARAMS, _after(CASES["adam"](0.1))[1])
    np.testing.assert_allclose(rule.diagonal["a"], whole.diagonal["a"], rtol=1e-6)
    assert np.isinf(rule.diagonal["b"]).all()


def test_what_a_momentum_average_does_not_hold_does_not_move():
    make, mask = CASES["heavy ball"], {"a": True, "b": False}
    parts = {True: make(0.1), False: optax.set_to_zero()}
    for optimizer in (optax.masked(make(0.1), mask), optax.multi_transform(parts, mask)):
        _, state, update = _after(optimizer)
        rule = preconditioner_from_state(make, _PARAMS, state)
        assert (rule.diagonal["a"] == 1).all() and np.isinf(rule.diagonal["b"]).all() and rule.gain == 1 / 1.9
    assert not update["b"].any()
    assert preconditioner_from_state(make, _PARAMS, _after(make(0.1))[1]).diagonal is None


def test_a_group_that_does_not_tell_how_it_moves_is_refused():
    """SGD without momentum leaves no trace; set_to_zero is told from it."""
    labels = {"a": "a", "b": "b"}
    moved = _after(optax.multi_transform({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, labels))[1]
    with pytest.raises(ValueError, match="the group 'b' does not tell how it moves; allowed: adam, or set_to_zero"):
        preconditioner_from_state(optax.adam, _PARAMS, moved)
    held = _after(optax.multi_transform({"a": optax.adam(0.1), "b": optax.set_to_zero()}, labels))[1]
    assert np.isinf(preconditioner_from_state(optax.adam, _PARAMS, held).diagonal["b"]).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_optimizers_of_a_config_are_those_of_their_names(name):
    fields = default.get_config().optimizer.to_dict() | {"name": name}
    made = build(fields)
    before, after, _ = _after(made(0.1))
    rule = preconditioner_from_state(made, _PARAMS, after, before=before)
    expected = {"heavy_ball": 1 / 1.9, "nesterov": 2.8 / 1.9, "adam": 0.1 / 1.9, "adamw": 0.1 / 1.9}
    assert rule.gain == pytest.approx(expected.get(name, 1)) and rule.decay == (1e-4 if name == "adamw" else 0)
    assert momentum(fields) == (0.9 if name in expected else 0)


def test_settings_of_another_link_are_not_read():
    decay = optax.inject_hyperparams(optax.add_decayed_weights)(weight_decay=0.0)
    make = functools.partial(optax.adamw, weight_decay=0.2)
    assert _check(make, optax.chain(decay, make(0.1)), learning_rate=0.1).decay == 0.2


def test_adagrad_does_not_move_what_has_had_no_gradient():
    optimizer = optax.adagrad(0.1, initial_accumulator_value=0.0)
    params = jnp.array([1.0, 1.0])
    _, state = optimizer.update(jnp.array([2.0, 0.0]), optimizer.init(params))
    rule = preconditioner_from_state(optax.adagrad, params, state)
    np.testing.assert_allclose(rule.diagonal, [2.0, np.inf], rtol=1e-6)
    linear = lambda w, x: x @ w
    value = critical_lr(linear, params, (jnp.array([[1.0, 3.0]]), jnp.zeros(1)), loss="mse", preconditioner=rule)
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
def test_what_has_no_rule(make, state_of, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        preconditioner_from_state(make, _PARAMS, state_of(0.1).init(_PARAMS))


def test_positional_arguments_of_a_partial_are_settings():
    _, state, _ = _after(optax.adam(0.1, 0.5))
    assert float(preconditioner_from_state(functools.partial(optax.adam, 0.1, 0.5), _PARAMS, state).gain) == pytest.approx(
        1 / 3
    )


def test_decay_that_can_not_be_seen_is_not_known():
    _, state, _ = _after(optax.inject_hyperparams(optax.adadelta)(learning_rate=0.1, weight_decay=0.1))
    rule = preconditioner_from_state(optax.adadelta, _PARAMS, state, state)
    assert np.isnan(critical_lr_from_lambda(jnp.ones(()), rule))


_NET = FCN(depth=2, width=8)


@given(seed=st.integers(0, 10_000), low=st.floats(-3, 0), high=st.floats(0, 3), gain=st.floats(0.05, 2), decay=st.floats(0, 1))
@settings(max_examples=12, deadline=None)
def test_the_bound_from_the_smallest_entry_is_never_above_the_exact_value(seed, low, high, gain, decay):
    rng = np.random.default_rng(seed)
    x, y = jnp.float32(rng.standard_normal((4, 5))), jnp.float32(rng.standard_normal((4, 1)))
    params = _NET.init(jax.random.key(seed), x)
    rule = Preconditioner(jax.tree.map(lambda p: jnp.float32(10 ** rng.uniform(low, high, p.shape)), params), gain, decay)
    exact = critical_lr(_NET.apply, params, (x, y), loss="mse", preconditioner=rule)
    now = instruments.Moment(params, params, (x, y), _NET.apply(params, x), {}, lambda: rule)
    found = instruments.preconditioner_min(_NET.apply, loss="mse", every=1).measure(now)
    assert float(found["critical_lr_bound_batch"]) <= float(exact) * (1 + 1e-5)
    plain = critical_lr(_NET.apply, params, (x, y), loss="mse", preconditioner=Preconditioner(None, gain, 0.0))
    if decay == 0:
        assert float(found["critical_lr_bound_batch"]) == pytest.approx(float(smallest_entry(rule.diagonal) * plain), rel=1e-5)


@pytest.mark.parametrize("name", ["adagrad", "adam", "adamw"])
def test_critical_lr_of_a_network(name):
    """Against the explicit Jacobian in float64; matrix-free too."""
    model = FCN(depth=3, width=16)
    x, y = jax.random.normal(jax.random.key(0), (6, 4)), jnp.ones((6, 1))
    params = model.init(jax.random.key(1), x)
    gradient = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss="mse"))(params)
    _, state = CASES[name](0.1).update(gradient, CASES[name](0.1).init(params), params)
    rule = preconditioner_from_state(CASES[name], params, state)
    jacobian = explicit_jacobian(model.apply, params, x)
    diagonal = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(rule.diagonal)])
    top = np.linalg.eigvalsh(jacobian / diagonal @ jacobian.T * (2 / 6))[-1]
    expected = 2 / (float(rule.gain) * top + rule.decay)
    exact = jax.jit(lambda p: critical_lr(model.apply, p, (x, y), loss="mse", preconditioner=rule))(params)
    assert float(exact) == pytest.approx(expected, rel=1e-4)
    pairs = top_eigenpairs(model.apply, params, (x, y), k=1, loss="mse", preconditioner=rule.diagonal, tol=1e-4)
    assert float(critical_lr_from_lambda(pairs.eigenvalues[0], rule)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_a_network_becomes_unstable_where_it_should(name):
    """A small network whose lr goes from below to above the critical lr of each step, with the optimizer's own moving P: the loss
    in the top eigenspace falls until about the step at which the lr becomes critical, and rises from there."""
    make = CASES[name]
    if name in (
        "adam",
        "adamw",
    ):  # P follows the gradient to its smallest, but for eps: a larger one, so that rounding does not decide
        make = functools.partial(make.func, b1=0.8, b2=0.95, eps=0.3, **({"weight_decay": 1e-3} if name == "adamw" else {}))
    # A momentum average takes time to follow; without one, or with Nesterov's, a long ramp ends in the rounding of float32.
    start, steps = (0.9, 100) if name == "nesterov" else (0.75, 120 if name in ("heavy ball", "adam", "adamw") else 60)
    multiples = np.linspace(start, 2 - start, steps, dtype=np.float32)
    model, x = FCN(depth=2, width=64, activation="tanh"), jax.random.normal(jax.random.key(0), (8, 6))
    params, y = (model.init(jax.random.key(i), x) for i in (1, 2))
    y = model.apply(y, x)
    optimizer = optax.inject_hyperparams(make)(learning_rate=0.0)

    def step(carry, multiple):
        params, state = carry
        gradient = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss="mse"))(params)
        rule = preconditioner_from_state(make, params, optimizer.update(gradient, state, params)[1], state)
        out = model.apply(params, x)
        weighted = weighted_tangent_kernel(model.apply, params, (x, y), out, loss="mse", preconditioner=rule.diagonal)
        split = split_weighted_loss(weighted, out, y, loss="mse", k=1)
        lr = multiple * critical_lr_from_lambda(split.lambda_max, rule)
        state = state._replace(hyperparams=state.hyperparams | {"learning_rate": lr})
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), split.top

    run = jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), multiples), compiler_options=QUICK)
    _, top = run()
    top = np.pad(np.asarray(top), 2, mode="edge")
    envelope = np.lib.stride_tricks.sliding_window_view(top, 5).max(1)  # the mode oscillates
    assert multiples[envelope.argmin()] == pytest.approx(1, abs=0.035)
    assert envelope[-1] > 100 * envelope.min()
