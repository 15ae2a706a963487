"""The frozen-preconditioner rule of each optimizer against Optax itself, on quadratics with prescribed spectra."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from optax import contrib

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
from catapult_jax.optimizer_links import links_of
from catapult_jax.preconditioners import smallest_entry
from catapult_jax.tangent.weighted import weighted_tangent_kernel
from catapult_jax.testing import explicit_jacobian
from catapult_jax.training import instruments
from configs import default
from experiments.optimizers import SETTINGS, build, momentum
from tests.helpers_optimizers import (
    MORE_CASES,
    OPTIMIZER_CASES,
    PARAMS,
    checked_last_step,
    gradient_of_step,
    of_last_step,
    run_steps,
)
from tests.zoo import QUICK

ALL_CASES = OPTIMIZER_CASES | MORE_CASES
_B1, _STEPS = 0.8, 4


def average_of(name: str, link_states: dict) -> dict:
    """The average of gradients that the last step divided by P, from the states of the optimizer's own links."""
    corrected = lambda mu: jax.tree.map(lambda m: m / (1 - _B1**_STEPS), mu)
    last = gradient_of_step(_STEPS - 1)
    if "trace" in link_states and name in ("heavy ball", "nesterov"):
        trace = link_states["trace"].trace
        return jax.tree.map(lambda g, m: g + 0.9 * m, last, trace) if name == "nesterov" else trace
    if name in ("adam", "adamw", "amsgrad", "adamax", "yogi", "adabelief", "lamb"):
        return corrected(next(state.mu for state in link_states.values() if hasattr(state, "mu")))
    if name == "nadam":
        # Dozat's form: the average of one step ahead
        adam = link_states["scale_by_adam"]
        ahead = lambda m, g: _B1 * m / (1 - _B1 ** (_STEPS + 1)) + (1 - _B1) * g / (1 - _B1**_STEPS)
        return jax.tree.map(ahead, adam.mu, last)
    if name == "ademamix":
        mix = link_states["scale_by_ademamix"]
        return jax.tree.map(lambda a, b: a + 2 * b, corrected(mix.m1), mix.m2)
    return last


@pytest.mark.parametrize("name", [name for name in ALL_CASES if name != "rmsprop, momentum"])  # its average is behind P
def test_preconditioner_from_state_is_what_the_step_used(name):
    """P^(-1) times the optimizer's own average of gradients is its update."""
    optimizer = ALL_CASES[name](1.0)
    before, after, update = run_steps(optimizer)
    average = average_of(name, {link.name: link.after for link in links_of(optimizer, PARAMS, before, after)})

    preconditioner = of_last_step(optimizer)

    diagonal = preconditioner.diagonal or jax.tree.map(jnp.ones_like, PARAMS)
    expected = jax.tree.map(lambda m, p, w: -m / p - preconditioner.decay * w, average, diagonal, PARAMS)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=3e-5), expected, update)
    assert float(preconditioner.lr) == 1.0


def frozen_optimizer(name: str, transformation, diagonal, decay, lr):
    """The optimizer with a constant P: Optax's own momentum of the scaled gradient; Adam's average is ``optax.ema``."""
    scale = optax.stateless(lambda g, _: jax.tree.map(jnp.divide, g, diagonal))
    by_lr = optax.scale_by_learning_rate(lr)
    ema = lambda beta: optax.chain(optax.trace(beta), optax.scale(1 - beta))
    if name in ("adam", "adamw", "amsgrad", "adamax", "yogi", "adabelief", "lamb"):
        return optax.chain(ema(_B1), scale, optax.add_decayed_weights(decay), by_lr)
    if name == "nadam":
        return optax.chain(optax.trace(_B1, nesterov=True), optax.scale(1 - _B1), scale, by_lr)
    if name == "ademamix":
        return optax.chain(sum_of(ema(_B1), optax.chain(ema(0.95), optax.scale(2.0))), scale, by_lr)
    if name == "rmsprop, momentum":
        return optax.chain(scale, optax.trace(0.8), by_lr)
    if name in ("heavy ball", "nesterov", "sgd"):
        return transformation(lr)
    return optax.chain(scale, by_lr)


def sum_of(first, second):
    """The sum of the updates of two transformations."""

    def update(gradient, state, params=None):
        a, state_a = first.update(gradient, state[0], params)
        b, state_b = second.update(gradient, state[1], params)
        return jax.tree.map(jnp.add, a, b), (state_a, state_b)

    return optax.GradientTransformation(lambda params: (first.init(params), second.init(params)), update)


def hessian_with(diagonal):
    """A matrix H with P^(-1/2) H P^(-1/2) of spectrum 3, 1, 0.1; sqrt(P); the top eigenvector of the scaled matrix."""
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    root = np.sqrt(np.asarray(diagonal, np.float64))
    return jnp.float32(root[:, None] * (q * np.array([3.0, 1.0, 0.1])) @ q.T * root), root, q[:, 0]


def top_component_grows(optimizer, params, w0, hessian, along, *, steps=600, weights=lambda params: params["w"]) -> bool:
    """Whether ``|along . w|`` grows when the optimizer descends ``w^T H w / 2`` from ``w0``, after a third of the steps."""

    def step(carry, _):
        params, state = carry
        gradient = jax.tree.map(lambda _: hessian @ weights(params), w0)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.abs(along @ weights(params))

    run = lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    _, size = jax.jit(run, compiler_options=QUICK)(params)
    window = steps // 12  # the component of a heavy average oscillates
    return not bool(jnp.max(size[-window:]) < jnp.max(size[steps // 3 : steps // 3 + window]))  # it may overflow


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("name", ALL_CASES)
def test_preconditioner_from_state_gives_the_threshold_of_a_quadratic(name, factor):
    """``(1/2) w^T H w`` with P^(-1/2) H P^(-1/2) of prescribed spectrum 3, 1, 0.1: the top mode, under the frozen P."""
    optimizer = ALL_CASES[name](0.1)
    params = {"w": jnp.array([0.4, -1.0, 0.7])}
    state = optimizer.init(params)
    for i in range(3):
        before, gradient = state, {"w": jnp.array([1.0, -0.5, 0.2]) * (i + 1)}
        _, state = optimizer.update(gradient, before, params)
    preconditioner = preconditioner_from_state(optimizer, params, before, state, gradient=gradient)
    hessian, root, top = hessian_with(preconditioner.diagonal["w"] if preconditioner.diagonal else jnp.ones(3))
    lr = factor * critical_lr_from_lambda(jnp.float32(3.0), preconditioner)
    frozen = frozen_optimizer(name, ALL_CASES[name], preconditioner.diagonal, preconditioner.decay, lr)

    w = {"w": jnp.float32(top / root)}
    grows = top_component_grows(frozen, w, w, hessian, jnp.float32(top * root))

    assert grows == (factor > 1)


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize(("period", "alpha"), [(1, 0.5), (3, 0.5), (3, 0.8), (4, 0.5)])
def test_preconditioner_from_state_of_lookahead_gives_the_threshold(period, alpha, factor):
    make = lambda lr: optax.lookahead(optax.sgd(lr), period, alpha)
    w = {"w": jnp.zeros(3)}
    synced = optax.LookaheadParams.init_synced(w)
    preconditioner = preconditioner_from_state(make(0.1), synced, None, make(0.1).init(synced))
    hessian, _, top = hessian_with(jnp.ones(3))
    lr = factor * critical_lr_from_lambda(jnp.float32(3.0), preconditioner)
    start = {"w": jnp.float32(top)}

    pair = optax.LookaheadParams.init_synced(start)
    grows = top_component_grows(
        make(lr), pair, start, hessian, jnp.float32(top), steps=720, weights=lambda pair: pair.fast["w"]
    )

    assert grows == (factor > 1)


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("c", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("b", [0.9, 0.5])
def test_preconditioner_from_state_of_schedule_free_gives_the_threshold(b, c, factor):
    """With a constant weight ``c``: ``z' = z - lr H y``, ``x' = (1 - c) x + c z'``, ``y' = (1 - b) z' + b x'``, in one mode."""
    optimizer = contrib.schedule_free(optax.sgd(0.1), 0.1, b1=b)
    state = optimizer.init({"w": jnp.ones(1)})
    state = state._replace(max_lr=jnp.float32(0.1), weight_sum=jnp.float32(0.01 / c))
    preconditioner = preconditioner_from_state(optimizer, {"w": jnp.ones(1)}, None, state)
    lr = factor * float(critical_lr_from_lambda(jnp.float32(3.0), preconditioner))
    x = z = y = 1.0
    size = []
    for _ in range(1500):
        z = z - lr * 3.0 * y
        x = (1 - c) * x + c * z
        y = (1 - b) * z + b * x
        size.append(abs(y))

    assert (max(size[-100:]) > max(size[500:600])) == (factor > 1)


def test_preconditioner_from_state_of_groups_gives_the_threshold():
    """Groups with two gains, lrs and P: one joint quadratic."""
    groups = {"x": optax.sgd(0.2, momentum=0.5), "y": optax.adam(0.05, b1=_B1, eps=1e-2)}
    params = {"a": jnp.ones(2), "b": jnp.array([0.3])}
    labels = {"a": "x", "b": "y"}
    optimizer = optax.partition(groups, labels)
    before = optimizer.init(params)
    gradient = {"a": jnp.array([1.0, -1.0]), "b": jnp.array([0.5])}
    _, after = optimizer.update(gradient, before, params)

    preconditioner = preconditioner_from_state(optimizer, params, before, after)

    diagonal = jnp.concatenate(jax.tree.leaves(preconditioner.diagonal))
    hessian, root, top = hessian_with(diagonal)
    assert preconditioner.gain == 1 and float(preconditioner.lr) == pytest.approx(0.2)
    P = 0.5 + 1e-2  # Adam's root of nu_hat after one step
    start = jnp.float32(top / root)
    for factor in (0.99, 1.01):
        lr = factor * float(critical_lr_from_lambda(jnp.float32(3.0), preconditioner))
        # both groups with their own momentum; the second with lr / 4, as 0.05 is to 0.2
        frozen = optax.partition(
            {
                "x": optax.sgd(lr, momentum=0.5),
                "y": optax.chain(optax.trace(_B1), optax.scale(1 - _B1), optax.scale(-lr / 4 / P)),
            },
            labels,
        )
        grows = top_component_grows(on_one_array(frozen), start, start, hessian, jnp.float32(top * root), weights=lambda w: w)
        assert grows == (factor > 1)


def on_one_array(optimizer):
    """An optimizer of ``{"a": w[:2], "b": w[2:]}`` as one of ``w``."""
    split = lambda w: {"a": w[:2], "b": w[2:]}

    def update(gradient, state, w=None):
        updates, state = optimizer.update(split(gradient), state)
        return jnp.concatenate([updates["a"], updates["b"]]), state

    return optax.GradientTransformation(lambda w: optimizer.init(split(w)), update)


WRAPPERS = {
    "chain": lambda make: optax.chain(make(0.1)),
    "injected": lambda make: optax.inject_hyperparams(make)(learning_rate=0.1),
    "named, schedule": lambda make: optax.named_chain(
        ("a", optax.inject_hyperparams(make)(learning_rate=optax.constant_schedule(0.1)))
    ),
    "schedule": lambda make: make(lambda count: 0.4 / (1 + count)),  # 0.1 at the fourth step
    "accumulated": lambda make: optax.MultiSteps(make(0.1), 1).gradient_transformation(),
    "if finite": lambda make: optax.apply_if_finite(make(0.1), 3),
    "idle clipping": lambda make: optax.chain(optax.clip_by_global_norm(1e9), make(0.1)),
    "idle clipping of entries": lambda make: optax.chain(optax.clip(1e9), optax.zero_nans(), make(0.1)),
    "no mask": lambda make: optax.masked(make(0.1), lambda params: jax.tree.map(lambda _: True, params)),
    "one group": lambda make: optax.partition({"a": make(0.1)}, "a"),
}


@pytest.mark.parametrize("name", ["sgd", "heavy ball", "adagrad", "adamw"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_preconditioner_from_state_looks_through_wrappers(name, wrapper):
    bare = checked_last_step(OPTIMIZER_CASES[name](0.1))

    wrapped = checked_last_step(WRAPPERS[wrapper](OPTIMIZER_CASES[name]))

    assert bare.checked is True and wrapped.checked is True and wrapped.kind == "rule"
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), wrapped, bare)


def test_preconditioner_from_state_of_several_mini_steps():
    """At the second call the optimizer sees the mean of two gradients."""
    optimizer = optax.MultiSteps(optax.adam(0.1, b1=_B1), 2).gradient_transformation()
    means = [jax.tree.map(lambda a, b: (a + b) / 2, gradient_of_step(i), gradient_of_step(i + 1)) for i in (0, 2)]
    adam = optax.adam(0.1, b1=_B1)
    state = adam.init(PARAMS)
    for mean in means:
        _, state = adam.update(mean, state)

    preconditioner = checked_last_step(optimizer)

    expected = preconditioner_from_state(adam, PARAMS, None, state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), preconditioner.diagonal, expected.diagonal)
    assert preconditioner.checked is True


def test_preconditioner_from_state_of_clipped_sgd_counts_the_factor():
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
    norm = float(optax.tree.norm(gradient_of_step(_STEPS - 1)))

    preconditioner = checked_last_step(optimizer)

    assert float(preconditioner.gain) == pytest.approx(0.5 / norm / 1.9, rel=1e-5) and preconditioner.checked is True


def test_preconditioner_from_state_of_clipped_updates_counts_the_factor():
    """Clipping behind Adam sees the update of Adam, not the gradient."""
    adam = optax.chain(optax.scale_by_adam(b1=_B1), optax.scale(-0.1))
    _, _, update = run_steps(adam)
    optimizer = optax.chain(optax.scale_by_adam(b1=_B1), optax.clip_by_global_norm(0.5), optax.scale(-0.1))

    preconditioner = checked_last_step(optimizer)

    expected = 0.2 / 1.8 * 0.5 / (10 * float(optax.tree.norm(update)))
    assert float(preconditioner.gain) == pytest.approx(expected, rel=1e-4)


def test_preconditioner_from_state_of_clipped_entries_is_nan():
    preconditioner = of_last_step(optax.chain(optax.clip(0.1), optax.sgd(0.1)))

    assert np.isnan(critical_lr_from_lambda(jnp.ones(()), preconditioner))


DECAYS = {
    "coupled": (optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1, momentum=0.9)), 0.3 / 1.9),
    "decoupled": (optax.chain(optax.sgd(1.0, momentum=0.9), optax.add_decayed_weights(-0.03), optax.scale(0.1)), 0.03),
    "behind the lr": (optax.chain(optax.sgd(0.1), optax.add_decayed_weights(-0.03)), 0.3),
    "schedule": (optax.chain(optax.add_decayed_weights(lambda count: 0.1 * count), optax.sgd(0.1)), 0.3),
    "mask": (optax.adamw(0.1, weight_decay=0.3, mask={"a": True, "b": False}), 0.3),
    "mask by function": (optax.adamw(0.1, weight_decay=0.3, mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p)), 0.3),
}


@pytest.mark.parametrize("name", DECAYS)
def test_preconditioner_from_state_reads_the_decay(name):
    optimizer, expected = DECAYS[name]

    preconditioner = checked_last_step(optimizer)

    assert float(preconditioner.decay) == pytest.approx(expected, rel=1e-6) and preconditioner.checked is True


def test_preconditioner_from_state_of_fixed_parameters_is_infinite():
    for fixed in ("b", "c"):
        params = PARAMS | {"c": {"d": jnp.ones(2), "e": jnp.ones(3)}}
        labels = {name: "stays" if name == fixed else "moves" for name in params}
        optimizer = optax.partition({"moves": OPTIMIZER_CASES["heavy ball"](0.1), "stays": optax.set_to_zero()}, labels)

        preconditioner = preconditioner_from_state(optimizer, params, None, optimizer.init(params))

        is_infinite = jax.tree.map(lambda leaf: bool(np.isinf(leaf).all()), preconditioner.diagonal)
        assert is_infinite == {"a": False, "b": fixed == "b", "c": {"d": fixed == "c", "e": fixed == "c"}}
        assert preconditioner.gain == 1 / 1.9


NO_RULES = {
    "lion": (lambda: optax.lion(0.1), "scale_by_lion normalises the update, so no eigenvalue makes an lr critical"),
    "muon": (lambda: contrib.muon(0.1), r"scale_by_muon normalises .* use directional_critical_lr \(1 of 2 parameters\)"),
    "sign": (lambda: optax.sign_sgd(0.1), "scale_by_sign normalises the update"),
    "own": (
        lambda: optax.chain(optax.stateless(lambda g, _: g), optax.sgd(0.1)),
        "stateless has no rule; use directional_critical_lr",
    ),
    "not of optax": (lambda: optax.chain(mine(), optax.sgd(0.1)), "mine has no rule; use directional_critical_lr"),
    "decay before P": (
        lambda: optax.chain(optax.add_decayed_weights(0.3), optax.adam(0.1)),
        "weight decay of 0.3 in front of a preconditioner has no rule",
    ),
    "lookahead, momentum": (
        lambda: optax.lookahead(optax.sgd(0.1, momentum=0.9), 3, 0.5),
        "lookahead around an optimizer with momentum or clipping has no rule",
    ),
    "clipping behind a link of its own kind": (
        lambda: optax.chain(contrib.schedule_free(optax.sgd(0.1), 0.1), optax.clip_by_global_norm(1.0)),
        "clip_by_global_norm behind a link that can't be repeated has no rule",
    ),
    "masked": (
        lambda: optax.masked(optax.adam(0.1), {"a": True, "b": False}),
        "some parameters are masked and receive the gradient as it is; mask them with set_to_zero, too",
    ),
}


def mine():
    """A transformation that is not made by Optax."""

    def update(gradient, state, params=None):
        return gradient, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize("name", NO_RULES)
def test_preconditioner_from_state_names_the_link_without_a_rule(name):
    make, reason = NO_RULES[name]
    optimizer = make()
    state = optimizer.init(PARAMS)

    preconditioner = preconditioner_from_state(optimizer, PARAMS, None, bump(state))

    assert preconditioner.kind == "no rule" and np.isnan(critical_lr_from_lambda(jnp.ones(()), preconditioner))
    assert re.match(reason, preconditioner.reason), preconditioner.reason
    assert jax.jit(lambda: preconditioner_from_state(optimizer, PARAMS, None, bump(state)))().reason == preconditioner.reason


def bump(state):
    """The state with counts of one, as after an update."""
    return jax.tree.map(lambda leaf: leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf, state)


@pytest.mark.parametrize("name", ["clip", "adadelta"])
def test_preconditioner_from_state_says_what_it_needs(name):
    optimizer = {"clip": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), "adadelta": optax.adadelta(0.1)}[name]

    preconditioner = preconditioner_from_state(optimizer, PARAMS, None, optimizer.init(PARAMS))

    expected = {
        "clip": "clip_by_global_norm depends on the gradient; give gradient and the state before the step",
        "adadelta": "scale_by_adadelta needs the state before the step; give it",
    }
    assert preconditioner.reason == expected[name]


OUTSIDE = {  # what a loop does beside its optimizer
    "clipped gradient": (lambda: checked_last_step(optax.sgd(0.1), factor=0.25), r"0.25 times that of the optimizer"),
    "clipped gradient, adam": (lambda: checked_last_step(optax.adam(0.1), factor=0.25), r"not that of the optimizer"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_preconditioner_from_state_reports_what_is_outside_of_the_optimizer(name):
    make, reason = OUTSIDE[name]

    preconditioner = make()
    traced = jax.jit(make)()

    assert reason in preconditioner.reason and preconditioner.checked is False
    assert not traced.checked
    for each in (preconditioner, traced):
        assert np.isnan(critical_lr_from_lambda(jnp.ones(()), each))


@pytest.mark.parametrize("name", ["adam", "heavy ball", "adagrad"])
def test_preconditioner_from_state_of_a_flax_nnx_optimizer(name):
    """Its arrays are in other containers than the parameters."""
    make, x = OPTIMIZER_CASES[name], jnp.ones((2, 3))
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make(0.1), wrt=nnx.Param)
    gradient = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
    before, params = jax.tree.map(jnp.copy, (optimizer.opt_state, nnx.state(model, nnx.Param)))
    optimizer.update(model, gradient)
    updates = jax.tree.map(jnp.subtract, nnx.state(model, nnx.Param), params)

    preconditioner = preconditioner_from_state(
        optimizer.tx, params, before, optimizer.opt_state, gradient=gradient, updates=updates
    )

    assert preconditioner.checked is True
    assert preconditioner.diagonal is None or jax.tree.structure(preconditioner.diagonal) == jax.tree.structure(params)


@pytest.mark.parametrize("name", SETTINGS)
def test_preconditioner_from_state_of_the_optimizers_of_a_config(name):
    fields = default.get_config().optimizer.to_dict() | {"name": name}

    preconditioner = of_last_step(build(fields)(0.1))

    gains = {"heavy_ball": 1 / 1.9, "nesterov": 2.8 / 1.9, "adam": 0.1 / 1.9, "adamw": 0.1 / 1.9}
    assert preconditioner.gain == pytest.approx(gains.get(name, 1))
    assert preconditioner.decay == (1e-4 if name == "adamw" else 0)
    assert momentum(fields) == (0.9 if name in gains else 0)


def test_preconditioner_from_state_of_adagrad_is_infinite_without_a_gradient():
    optimizer = optax.adagrad(0.1, initial_accumulator_value=0.0)
    params = jnp.array([1.0, 1.0])
    _, state = optimizer.update(jnp.array([2.0, 0.0]), optimizer.init(params))

    preconditioner = preconditioner_from_state(optimizer, params, None, state)

    np.testing.assert_allclose(preconditioner.diagonal, [2.0, np.inf], rtol=1e-6)
    linear, batch = lambda w, x: x @ w, (jnp.array([[1.0, 3.0]]), jnp.zeros(1))
    value = critical_lr(linear, params, batch, loss="mse", preconditioner=preconditioner)
    assert float(value) == pytest.approx(2.0, rel=1e-6)  # 1 / (1 / 2)


def test_preconditioner_from_state_of_adadelta_with_decay_in_the_state_is_nan():
    optimizer = optax.inject_hyperparams(optax.adadelta)(learning_rate=0.1, weight_decay=0.1)
    before, after, _ = run_steps(optimizer)

    preconditioner = jax.jit(lambda b, a: preconditioner_from_state(optimizer, PARAMS, b, a))(before, after)

    assert np.isnan(critical_lr_from_lambda(jnp.ones(()), preconditioner))


BAD_INPUT = {
    "constructor": (optax.adam, {}, "optimizer=<function adam .*; allowed: a built optax.GradientTransformation"),
    "state of another": (optax.adam(0.1), {"after": optax.sgd(0.1).init(PARAMS)}, "the state of scale_by_adam is EmptyState; allowed: the state of this optimizer"),
    "links missing": (optax.adam(0.1), {"after": ()}, "the state has 0 links and the optimizer 2; allowed"),
    "before any update": (optax.adam(0.1), {}, "the state of scale_by_adam has count=0; allowed: the state after an update"),
    "flattened": (optax.chain(optax.trace(0.9), optax.scale_by_rss()), {"after": (None, optax.scale_by_rss().init(jnp.ones(7)))},
                  "the state of scale_by_rss has 1 arrays where the parameters have 2; allowed"),
    "updates alone": (optax.sgd(0.1), {"updates": PARAMS}, "gradient=None; allowed with updates or new_params: gradient and before"),
    "no before": (optax.sgd(0.1), {"updates": PARAMS, "gradient": PARAMS}, "before=None; allowed with updates"),
    "other shapes": (optax.sgd(0.1), {"gradient": jnp.ones(5)}, "gradient has other arrays than params; allowed"),
    "other before": (optax.sgd(0.1), {"before": optax.adam(0.1).init(PARAMS)}, "before has another structure than after"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
def test_preconditioner_from_state_refuses_bad_input(name):
    optimizer, step, message = BAD_INPUT[name]
    step = dict(step)
    after = (
        step.pop("after")
        if "after" in step
        else optimizer(0.1).init(PARAMS)
        if name == "constructor"
        else optimizer.init(PARAMS)
    )

    with pytest.raises(ValueError, match=message) as raised:
        preconditioner_from_state(optimizer, PARAMS, step.pop("before", None), after, **step)

    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ALL_CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_preconditioner_from_state_without_promotion(strict, name, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    optimizer = ALL_CASES[name](0.1)
    before = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax itself promotes
        updates, after = optimizer.update(params, before, params)

    preconditioner = preconditioner_from_state(optimizer, params, before, after, gradient=params, updates=updates)

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
    preconditioner = preconditioner_from_state(make(0.1), params, None, state)
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
        preconditioner = preconditioner_from_state(optimizer, params, state, optimizer.update(gradient, state, params)[1])
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


_TWO_AVERAGES = {
    "sgd and ema": optax.chain(optax.sgd(0.1, momentum=0.9), optax.ema(0.9)),
    "ema twice": optax.chain(optax.ema(0.9), optax.ema(0.9), optax.sgd(0.1)),
    "trace and adam": optax.chain(optax.trace(0.5), optax.adam(0.1)),
    "trace and adamw": optax.chain(optax.trace(0.5), optax.adamw(0.1)),
}


@pytest.mark.parametrize("name", _TWO_AVERAGES)
def test_two_averages_of_the_gradient_have_no_rule(name):
    """The first mode that grows need not change sign at every step there: for two traces of 0.9 the product of gains is 3,000 times too large."""
    params = jnp.ones(2)
    state = _TWO_AVERAGES[name].init(params)
    _, state = _TWO_AVERAGES[name].update(params, state, params)

    found = preconditioner_from_state(_TWO_AVERAGES[name], params, None, state)

    assert found.kind == "no rule" and found.reason.endswith("two averages of the gradient have no rule")


def test_one_average_beside_a_link_without_momentum_has_a_rule():
    params, optimizer = jnp.ones(2), optax.chain(optax.trace(0.5), optax.adam(0.1, b1=0.0))
    _, state = optimizer.update(params, optimizer.init(params), params)

    assert preconditioner_from_state(optimizer, params, None, state).gain == 1 / 1.5


@pytest.mark.parametrize("mean", [True, False])
def test_accumulation_of_the_mean_has_a_rule_and_of_the_sum_none(mean):
    params, optimizer = jnp.ones(2), optax.MultiSteps(optax.sgd(0.1), 4, use_grad_mean=mean).gradient_transformation()

    found = preconditioner_from_state(optimizer, params, None, optimizer.init(params))

    assert found.kind == ("rule" if mean else "no rule") and ("sum of gradients" in found.reason) == (not mean)


@pytest.mark.parametrize("lrs", [(0.0, 0.1), (0.1, 0.0)])
def test_a_group_that_stands_still_takes_no_part(lrs):
    """In either order: its preconditioner is infinite, and the lr is that of the other."""
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    optimizer = optax.partition({"x": optax.sgd(lrs[0]), "y": optax.sgd(lrs[1])}, {"a": "x", "b": "y"})

    found = preconditioner_from_state(optimizer, params, None, optimizer.init(params))

    assert found.lr == 0.1
    assert [float(found.diagonal[name][0]) for name in "ab"] == ([np.inf, 1.0] if lrs[0] == 0 else [1.0, np.inf])


def test_clipping_in_a_group_without_parameters():
    params = {"a": jnp.ones(1)}
    optimizer = optax.partition({"x": optax.chain(optax.clip(1.0), optax.sgd(0.1)), "y": optax.sgd(0.1)}, {"a": "y"})
    before = optimizer.init(params)
    updates, after = optimizer.update(params, before, params)

    found = preconditioner_from_state(optimizer, params, before, after, gradient=params, updates=updates)

    assert (found.kind, found.gain, found.lr) == ("rule", 1.0, 0.1)


# ---- groups that stand still, and pairs


def groups(backbone, head):
    return optax.partition({"backbone": optax.sgd(backbone), "head": optax.sgd(head)}, {"a": "backbone", "b": "head"})


@pytest.mark.parametrize("jit", [False, True])
def test_preconditioner_from_state_of_groups_of_which_one_stands_still(jit):
    """The lr is that of the group that moves, and the other one has an infinite P."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    optimizer = groups(optax.piecewise_constant_schedule(0.0, {}), optax.constant_schedule(0.1))

    def read(params):
        before = optimizer.init(params)
        return preconditioner_from_state(optimizer, params, before, optimizer.update(params, before, params)[1])

    found = (jax.jit(read) if jit else read)(params)

    assert float(found.lr) == pytest.approx(0.1)
    np.testing.assert_allclose(1 / jnp.broadcast_to(found.diagonal["a"], 2), 0)
    np.testing.assert_allclose(jnp.broadcast_to(found.diagonal["b"], 3), 1)


@pytest.mark.parametrize("jit", [False, True])
def test_preconditioner_from_state_of_groups_that_all_stand_still_is_not_known(jit):
    """At the start of two warm-ups the ratio of the lrs is not known, so the critical lr is none."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    optimizer = groups(optax.linear_schedule(0.0, 0.1, 4), optax.linear_schedule(0.0, 1.0, 4))

    def read(params, before):
        return preconditioner_from_state(optimizer, params, before, optimizer.update(params, before, params)[1])

    read = jax.jit(read) if jit else read
    before = optimizer.init(params)
    first, later = read(params, before), read(params, optimizer.update(params, before, params)[1])

    assert np.isnan(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(first.diagonal)])).any()
    np.testing.assert_allclose(jnp.ravel(later.diagonal["a"])[0] / jnp.ravel(later.diagonal["b"])[0], 10, rtol=1e-5)


def test_preconditioner_from_state_of_one_warm_up_for_all_is_known_at_its_start():
    """A mask makes two sequences of links, which have one lr."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    optimizer = optax.adamw(optax.linear_schedule(0.0, 0.1, 4), weight_decay=0.1, mask={"a": True, "b": False})
    read = lambda after: preconditioner_from_state(optimizer, params, None, after)

    found = jax.jit(read)(optimizer.update(params, optimizer.init(params), params)[1])

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.diagonal)) and float(found.lr) == 0


@pytest.mark.parametrize("updates_are", ["pair", "fast"])
def test_preconditioner_from_state_checks_lookahead_where_params_are_the_pair(updates_are):
    optimizer = optax.lookahead(optax.sgd(0.1), 3, 0.5)
    params = optax.LookaheadParams.init_synced({"a": jnp.ones(2)})
    before, gradient = optimizer.init(params), {"a": jnp.ones(2)}
    updates, after = optimizer.update(gradient, before, params)
    given = updates if updates_are == "pair" else updates.fast
    read = lambda params, updates: preconditioner_from_state(
        optimizer, params, before, after, gradient=gradient, updates=updates
    )

    assert read(params, given).checked
    assert not read(params, jax.tree.map(lambda u: 2 * u, given)).checked
    assert read(params.fast, updates.fast).checked is None


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_preconditioner_from_state_checks_the_parameters_after_the_step(scale):
    """Their difference has the rounding of the parameters; another gradient or another state shows all the same."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.0))
    params = {"w": scale * jnp.linspace(-1.0, 1.0, 8)}
    gradients = [{"w": jnp.linspace(0.1, 2.0, 8)}, {"w": jnp.linspace(1.0, -1.0, 8)}]
    before = optimizer.init(params)
    _, before = optimizer.update(gradients[0], before, params)
    updates, after = optimizer.update(gradients[1], before, params)
    read = lambda after, gradient, params_after: preconditioner_from_state(
        optimizer, params, before, after, gradient=gradient, new_params=params_after
    )

    new_params = optax.apply_updates(params, updates)
    assert read(after, gradients[1], new_params).checked
    assert not read(after, gradients[0], new_params).checked
    assert not read(before, gradients[1], new_params).checked
    if scale == 1:
        doubled = optax.apply_updates(new_params, updates)
        assert read(after, gradients[1], doubled).reason.startswith("the update is 2 times that of the optimizer")
    with pytest.raises(ValueError, match="updates and new_params given; allowed: one of them"):
        preconditioner_from_state(
            optimizer, params, before, after, gradient=gradients[1], updates=updates, new_params=new_params
        )
