"""``watch`` in a training step: its numbers, its cadence, its events, and that it changes nothing."""

import functools
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from catapult_jax import (
    CNN,
    FCN,
    agop_alignment,
    batch_loss,
    critical_lr,
    directional_by_layer,
    directional_critical_lr,
    find_events,
    input_jacobian,
    loss_weighted_kernel,
    preconditioner_from_state,
    spike_score,
    split_loss,
    tangent_kernel,
    watch,
)
from catapult_jax.losses import SoftmaxCrossEntropy

MODEL = FCN(depth=3, width=16)
X = jax.random.normal(jax.random.key(0), (24, 5))
Y = jnp.sin(X.sum(1, keepdims=True))
PARAMS = MODEL.init(jax.random.key(1), X)
BATCHES = [(X[i : i + 6], Y[i : i + 6]) for i in range(0, 24, 6)]


def loss_of(params, batch):
    return batch_loss(MODEL.apply(params, batch[0]), batch[1], loss="mse")


def step_of(tx, watching, *, with_gradient=False, **more):
    """A training step of ``tx`` that is watched; without a watch the bare step."""

    def step(params, state, w, batch):
        loss, gradient = jax.value_and_grad(loss_of)(params, batch)
        updates, after = tx.update(gradient, state, params)
        new = optax.apply_updates(params, updates)
        if watching is None:
            return (new, after, w), loss
        given = {"gradient": gradient, "opt_state_before": state} if with_gradient else {}
        w, metrics = watching.update(
            w, params=params, batch=batch, updates=updates, opt_state=after, loss=loss, **given, **more
        )
        return (new, after, w), metrics

    return step


def run(tx, watching, steps, batches=BATCHES, **more):
    """Parameters, state of the watch, and the metrics of each step, from a jitted loop."""
    step = jax.jit(step_of(tx, watching, **more))
    carry = (PARAMS, tx.init(PARAMS), watching.init(PARAMS) if watching else 0)
    metrics = []
    for i in range(steps):
        carry, measured = step(*carry, batches[i % len(batches)])
        metrics.append(measured)
    return carry[0], carry[2], [jax.device_get(m) for m in metrics]


def of(metrics, name):
    return np.array([m[f"catapult/{name}"] for m in metrics])


# ---- the numbers


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.3, momentum=0.5), lambda: optax.adam(0.01)], ids=["momentum", "adam"])
@pytest.mark.parametrize("method", ["auto", "matrix_free"])
def test_watch_gives_the_numbers_of_the_functions(make, method):
    tx = make()
    watching = watch(MODEL.apply, loss="mse", optimizer=tx, method=method, tol=1e-4)

    _, _, metrics = run(tx, watching, 3)

    params, state = PARAMS, tx.init(PARAMS)
    for batch, m in zip(BATCHES, metrics, strict=False):
        gradient = jax.grad(loss_of)(params, batch)
        updates, after = tx.update(gradient, state, params)
        rule = preconditioner_from_state(tx, params, state, after)
        expected = float(critical_lr(MODEL.apply, params, batch, loss="mse", preconditioner=rule))
        assert m["catapult/critical_lr"] == pytest.approx(expected, rel=1e-3)
        assert m["catapult/lr_over_critical"] == pytest.approx(float(rule.lr) / expected, rel=1e-3)
        step = directional_critical_lr(MODEL.apply, params, batch, updates, loss="mse")
        assert m["catapult/directional"] == pytest.approx(float(step.multiple), rel=1e-4)
        assert m["catapult/loss"] == pytest.approx(float(loss_of(params, batch)), rel=1e-5)
        assert m["catapult/converged"] == 1 and m["catapult/lr"] == pytest.approx(float(rule.lr))
        is_exact = method == "auto" and rule.diagonal is None
        assert (m["catapult/lambda_max_bound"] == 0) == is_exact
        params, state = optax.apply_updates(params, updates), after


@pytest.mark.long
def test_watch_splits_the_loss_and_follows_the_features():
    tx = optax.sgd(0.3)
    probe = X[:8]
    reference = jax.random.normal(jax.random.key(2), (8, 5))
    for method in ("exact", "matrix_free"):
        options = {"preset": "full", "method": method, "k": 2, "tol": 1e-5, "probe": probe}
        _, _, metrics = run(tx, watch(MODEL.apply, loss="mse", optimizer=tx, agop_reference=reference, **options), 2)
        _, _, from_start = run(tx, watch(MODEL.apply, loss="mse", optimizer=tx, **options), 2)

        x, y = BATCHES[0]
        split = split_loss(tangent_kernel(MODEL.apply, PARAMS, x), MODEL.apply(PARAMS, x), y, loss="mse", k=2)
        assert metrics[0]["catapult/loss_top"] == pytest.approx(float(split.top), rel=1e-3)
        assert metrics[0]["catapult/loss_rest"] == pytest.approx(float(split.rest), rel=1e-3)
        expected = agop_alignment(input_jacobian(MODEL.apply, PARAMS, probe), reference)
        assert metrics[0]["catapult/agop_alignment"] == pytest.approx(float(expected), rel=1e-4)
        aligned = of(from_start, "agop_alignment_to_start")
        assert aligned[0] == pytest.approx(1, abs=1e-5) and aligned[1] < aligned[0]


def test_watch_gives_no_split_that_is_no_measure_of_the_loss():
    """Half the Newton decrement of a cross-entropy has no bound where the probability of the target is next to zero."""
    logits = lambda scale: lambda w, x: scale * x @ w
    x, w, labels = jnp.eye(3), jnp.eye(3), jnp.array([0, 1, 0])  # the last one is wrong
    for scale, is_split in ((1.0, True), (60.0, False)):
        watching = watch(logits(scale), loss="softmax_cross_entropy", optimizer=TX, preset="full", method="exact", k=2)
        given = dict(params=w, batch=(x, labels), updates=-0.1 * w, opt_state=TX.init(w), loss=1.0)
        _, metrics = watching.update(watching.init(w), **given)
        assert np.isfinite(metrics["catapult/loss_top"]) == np.isfinite(metrics["catapult/loss_rest"]) == is_split


def test_watch_finds_the_loss_of_the_step():
    tx = optax.sgd(0.3)
    _, _, metrics = run(tx, watch(MODEL.apply, loss="mse", optimizer=tx, preset="economy", every=2), 3)

    np.testing.assert_allclose(of(metrics, "loss_of_watch")[::2], of(metrics, "loss")[::2], rtol=1e-5)


def test_watch_of_an_update_that_is_not_the_optimizers():
    """With the gradient given: the loop scales the update behind the optimizer."""
    tx = optax.sgd(0.3)
    watching = watch(MODEL.apply, loss="mse", optimizer=tx)
    gradient, state = jax.grad(loss_of)(PARAMS, BATCHES[0]), tx.init(PARAMS)
    updates, _ = tx.update(gradient, state)
    given = dict(params=PARAMS, batch=BATCHES[0], opt_state=state, opt_state_before=state, gradient=gradient, loss=1.0)
    critical = lambda scale: jax.jit(watching.update)(
        watching.init(PARAMS), updates=jax.tree.map(lambda u: scale * u, updates), **given
    )[1]["catapult/critical_lr"]

    assert np.isfinite(critical(1.0)) and np.isnan(critical(0.5))


def test_watch_does_not_check_the_rounded_difference_of_parameters():
    """With a small lr the parameters after the step less those before it are not quite the update."""
    tx = optax.chain(optax.clip_by_global_norm(1e9), optax.sgd(1e-6))
    watching = watch(MODEL.apply, loss="mse", optimizer=tx)
    gradient, state = jax.grad(loss_of)(PARAMS, BATCHES[0]), tx.init(PARAMS)
    new = optax.apply_updates(PARAMS, tx.update(gradient, state)[0])
    given = dict(params=PARAMS, batch=BATCHES[0], opt_state=state, opt_state_before=state, gradient=gradient, loss=1.0)

    _, metrics = watching.update(watching.init(PARAMS), new_params=new, **given)

    assert np.isfinite(metrics["catapult/critical_lr"])


def test_watch_of_layers():
    tx = optax.sgd(0.3)
    _, _, (m, *_) = run(tx, watch(MODEL.apply, loss="mse", optimizer=tx, preset="economy", layers=True), 1)

    updates = jax.tree.map(lambda g: -0.3 * g, jax.grad(loss_of)(PARAMS, BATCHES[0]))
    for name, step in directional_by_layer(MODEL.apply, PARAMS, BATCHES[0], updates, loss="mse").items():
        assert m[f"catapult/directional/{name}"] == pytest.approx(float(step.multiple), rel=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["falls", "rises"])
def test_watch_says_what_a_step_does_to_a_probe(sign):
    """With residuals of the other sign the update of the batch raises the loss of the probe, at any size."""
    outputs = MODEL.apply(PARAMS, X[:12])
    tx, probe = optax.sgd(0.3), (X[:12], outputs - sign * (outputs - Y[:12]))
    _, _, (m, *_) = run(tx, watch(MODEL.apply, loss="mse", optimizer=tx, preset="economy", probe_batch=probe), 1)

    D = jax.tree.map(lambda g: -0.3 * g, jax.grad(loss_of)(PARAMS, BATCHES[0]))
    slope = jax.jvp(lambda p: loss_of(p, probe), (PARAMS,), (D,))[1]
    along = jax.jvp(lambda p: MODEL.apply(p, probe[0]), (PARAMS,), (D,))[1]
    multiple = -2 * slope / (2 * jnp.sum(along**2) / 12) if slope < 0 else 0.0
    assert (slope < 0) == (sign > 0)
    assert m["catapult/directional_probe"] == pytest.approx(float(multiple), rel=1e-4)


def test_watch_of_a_list_of_batches_is_that_of_their_union():
    tx = optax.sgd(0.3)
    watching = watch(MODEL.apply, loss="mse", optimizer=tx)
    union = tuple(jnp.concatenate(part) for part in zip(*BATCHES[:2], strict=True))
    loss, gradient = jax.value_and_grad(loss_of)(PARAMS, union)
    updates, after = tx.update(gradient, tx.init(PARAMS))
    given = dict(params=PARAMS, updates=updates, opt_state=after, loss=loss)

    _, joined = watching.update(watching.init(PARAMS), batch=BATCHES[:2], **given)
    _, whole = watching.update(watching.init(PARAMS), batch=union, **given)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), joined, whole)


def test_watch_of_a_language_model():
    """Tokens, masked cross-entropy, bfloat16 arithmetic, against the dense kernel."""
    tokens = jax.random.randint(jax.random.key(0), (3, 5), 0, 7)
    mask = jnp.arange(4)[None] < jnp.array([4, 3, 2])[:, None]
    batch = tokens[:, :-1], (tokens[:, 1:], mask)
    embed = {"embed": 0.3 * jax.random.normal(jax.random.key(1), (7, 6))}

    def apply_fn(params, ids, dtype=jnp.bfloat16):
        table = params["embed"].astype(dtype)
        return (jnp.cumsum(table[ids], 1) @ table.T).astype(jnp.float32)

    loss = SoftmaxCrossEntropy(weighted=True)
    tx = optax.adam(0.1)
    gradient = jax.grad(lambda p: loss(apply_fn(p, batch[0]), batch[1]))(embed)
    updates, after = tx.update(gradient, tx.init(embed))
    watching = watch(apply_fn, loss=loss, optimizer=tx, tol=1e-3)

    _, metrics = watching.update(
        watching.init(embed), params=embed, batch=batch, updates=updates, opt_state=after, loss=jnp.float32(1)
    )

    whole = functools.partial(apply_fn, dtype=jnp.float32)
    P = preconditioner_from_state(tx, embed, None, after).diagonal
    kernel = tangent_kernel(whole, embed, batch[0], preconditioner=P)
    weighted = loss_weighted_kernel(kernel, whole(embed, batch[0]), batch[1], loss=loss)
    expected = float(jnp.linalg.eigvalsh(weighted)[-1])
    assert metrics["catapult/lambda_max"] == pytest.approx(expected, rel=0.03)  # the rounding of bfloat16
    assert metrics["catapult/directional"].dtype == jnp.float32


@pytest.mark.parametrize("preset", ["economy", "standard", "full"])
def test_watch_gives_a_state_that_can_be_donated(preset):
    tx, watching = optax.adam(0.01), watch(MODEL.apply, loss="mse", optimizer=optax.adam(0.01), preset=preset)
    step = jax.jit(step_of(tx, watching), donate_argnums=(0, 1, 2))
    carry = (*jax.tree.map(jnp.copy, (PARAMS, tx.init(PARAMS))), watching.init(PARAMS))

    for batch in BATCHES[:2]:
        carry, metrics = step(*carry, batch)

    assert np.isfinite(metrics["catapult/directional"])


def test_watch_says_that_the_lr_is_not_known():
    """The loop applies the lr, and the lr is critical: without it nobody can tell."""
    tx, watching = optax.identity(), watch(MODEL.apply, loss="mse", optimizer=optax.identity())
    w = watching.init(PARAMS)
    with pytest.warns(UserWarning, match="catapult/lr is NaN: the optimizer has no lr; give lr=..., that of the loop"):
        for loss in (1.0, 1.0, 9.0, 1.0, 0.5):
            w, _ = watching.update(w, params=PARAMS, batch=BATCHES[0], updates=PARAMS, opt_state=tx.init(PARAMS), loss=loss)

    (event,) = watch_events = watching.events(w)
    assert event.kind == "unknown" and str(event).endswith("the lr at the onset is not known.") and len(watch_events) == 1


def test_watch_of_a_call_without_an_update_outside_of_jit():
    tx = optax.MultiSteps(optax.adam(0.1), 2)
    watching = watch(MODEL.apply, loss="mse", optimizer=tx)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)

    _, metrics = watching.update(
        watching.init(PARAMS), params=PARAMS, batch=BATCHES[0], updates=updates, opt_state=state, loss=1.0, skipped=True
    )

    assert np.isnan(metrics["catapult/critical_lr"]) and metrics["catapult/loss"] == 1


@pytest.mark.parametrize("due", [np.False_, jnp.asarray(False)])
def test_watch_takes_a_bool_of_any_kind(due):
    tx, watching = optax.sgd(0.1), watch(MODEL.apply, loss="mse", optimizer=optax.sgd(0.1))
    given = dict(params=PARAMS, batch=BATCHES[0], updates=PARAMS, opt_state=tx.init(PARAMS), loss=1.0)

    _, metrics = watching.update(watching.init(PARAMS), **given, due=due)

    assert np.isnan(metrics["catapult/critical_lr"])
    with pytest.raises(ValueError, match="due is traced; allowed: a bool from the host, with static_argnames='due'"):
        jax.jit(lambda w, due: watching.update(w, **given, due=due))(watching.init(PARAMS), True)


def test_watch_of_a_last_batch_with_few_outputs():
    tx = optax.adam(0.1)
    watching = watch(MODEL.apply, loss="mse", optimizer=tx, preset="full")
    state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)[1]
    small = jax.tree.map(lambda a: a[:4], BATCHES[0])

    with pytest.raises(ValueError, match=r"a batch with 4 outputs in all and k=5; allowed: watch\(..., k=4\)"):
        watching.update(watching.init(PARAMS), params=PARAMS, batch=small, updates=PARAMS, opt_state=state, loss=1.0)


# ---- cadence


@pytest.mark.long
@pytest.mark.parametrize("preset", ["economy", "full"])
def test_watch_measures_every_third_step(preset):
    tx = optax.sgd(0.3)
    options = dict(loss="mse", optimizer=tx, preset=preset, method="matrix_free") | (
        dict(probe=X[:4]) if preset == "full" else {}
    )
    _, w, metrics = run(tx, watch(MODEL.apply, every=3, **options), 7)
    _, _, always = run(tx, watch(MODEL.apply, **options), 7)

    assert all(m.keys() == metrics[0].keys() for m in metrics)
    assert np.isfinite(of(metrics, "directional")).tolist() == [i % 3 == 0 for i in range(7)]
    np.testing.assert_allclose(of(metrics, "directional")[::3], of(always, "directional")[::3], rtol=1e-5)
    assert int(w.step) == 7 and np.isfinite(of(metrics, "loss")).all()


def test_watch_takes_what_is_due_from_the_host():
    tx = optax.sgd(0.3)
    watching = watch(MODEL.apply, loss="mse", optimizer=tx, every=3)
    inside = run(tx, watching, 1)[2][0]

    due, not_due = (run(tx, watching, 1, due=due)[2][0] for due in (True, False))

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), due, inside)
    assert np.isnan(not_due["catapult/critical_lr"]) and not_due["catapult/loss"] == inside["catapult/loss"]


def test_watch_that_is_not_due_is_the_bare_step():
    """No array of the size of the parameters, and no product, is added."""
    model = FCN(depth=3, width=256)
    params = model.init(jax.random.key(1), X)
    tx = optax.adam(0.01)

    def program(watching, due):
        def step(params, state, w, batch):
            loss, gradient = jax.value_and_grad(lambda p: batch_loss(model.apply(p, batch[0]), batch[1], loss="mse"))(params)
            updates, after = tx.update(gradient, state, params)
            new = optax.apply_updates(params, updates)
            if watching is None:
                return new, after, w, loss
            given = dict(params=params, batch=batch, updates=updates, opt_state=after, loss=loss, due=due)
            return new, after, *watching.update(w, **given)

        arguments = (params, tx.init(params), watching.init(params) if watching else 0, BATCHES[0])
        return jax.jit(step, donate_argnums=(0, 1, 2)).lower(*arguments).compile()

    bare, off, on = program(None, None), *(program(watch(model.apply, loss="mse", optimizer=tx), due) for due in (False, True))

    plan = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert off.as_text().count(" dot(") == bare.as_text().count(" dot(") < on.as_text().count(" dot(")
    assert plan(off) <= plan(bare) + size / 8 < plan(on)  # the scalars of the events


def test_watch_shares_the_forward_pass_of_the_step():
    """With ``economy`` a step has the products of the tangents beside its own, and no second forward pass."""
    tx = optax.sgd(0.3)

    def products(watching):
        arguments = (PARAMS, tx.init(PARAMS), watching.init(PARAMS) if watching else 0, BATCHES[0])
        return jax.jit(step_of(tx, watching)).lower(*arguments).compile().as_text().count(" dot(")

    shared = products(watch(MODEL.apply, loss="mse", optimizer=tx, preset="economy"))

    assert shared - products(None) <= 2 * 3 - 1  # two for each layer, one for the first


def test_watch_in_scan_is_as_in_a_loop():
    tx = optax.sgd(0.3, momentum=0.9)
    watching = watch(MODEL.apply, loss="mse", optimizer=tx, every=2)
    params, _, metrics = run(tx, watching, 4)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *BATCHES)

    step = step_of(tx, watching)
    carry = (PARAMS, tx.init(PARAMS), watching.init(PARAMS))
    (scanned, _, _), series = jax.jit(lambda c: jax.lax.scan(lambda c, b: step(*c, b), c, stacked))(carry)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), scanned, params)
    for name in ("critical_lr", "directional", "loss"):
        np.testing.assert_allclose(series[f"catapult/{name}"], of(metrics, name), rtol=1e-4)


def test_watch_of_members_under_vmap():
    tx = optax.sgd(0.3)
    watching = watch(MODEL.apply, loss="mse", optimizer=tx, every=2)
    scales = jnp.array([1.0, 0.5])
    members = jax.vmap(lambda s: jax.tree.map(lambda p: s * p, PARAMS))(scales)

    step = jax.jit(jax.vmap(step_of(tx, watching), in_axes=(0, 0, 0, None)))
    carry, metrics = step(members, jax.vmap(tx.init)(members), jax.vmap(watching.init)(members), BATCHES[0])

    for i, scale in enumerate(scales):
        params = jax.tree.map(lambda p, scale=scale: scale * p, PARAMS)
        expected = critical_lr(MODEL.apply, params, BATCHES[0], loss="mse")
        assert metrics["catapult/critical_lr"][i] == pytest.approx(float(expected), rel=1e-4)
    _, later = step(*carry, BATCHES[1])
    assert np.isnan(later["catapult/critical_lr"]).all()


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.3), lambda: optax.adam(0.01)], ids=["sgd", "adam"])
def test_watch_changes_nothing_in_the_training(make):
    bare, _, losses = run(make(), None, 6)
    for options in ({"preset": "economy"}, {"every": 3}):
        watched, _, metrics = run(make(), watch(MODEL.apply, loss="mse", optimizer=make(), **options), 6)
        jax.tree.map(np.testing.assert_array_equal, watched, bare)
        np.testing.assert_array_equal(of(metrics, "loss"), losses)


# ---- steps without an update, optimizers without a rule


def test_watch_leaves_out_steps_without_an_update():
    """``optax.MultiSteps``: at every second call the optimizer moves, and the gradient is the mean of two."""
    tx = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.3)), 2)
    watching = watch(MODEL.apply, loss="mse", optimizer=tx.gradient_transformation())

    def step(params, state, w, batch):
        loss, gradient = jax.value_and_grad(loss_of)(params, batch)
        updates, after = tx.update(gradient, state, params)
        w, metrics = watching.update(
            w, params=params, batch=batch, updates=updates, opt_state=after, opt_state_before=state, gradient=gradient,
            loss=loss, skipped=~tx.has_updated(after),
        )  # fmt: skip
        return (optax.apply_updates(params, updates), after, w), metrics

    carry, metrics = (PARAMS, tx.init(PARAMS), watching.init(PARAMS)), []
    for batch in BATCHES:
        carry, m = jax.jit(step)(*carry, batch)
        metrics.append(m)

    assert np.isfinite(of(metrics, "critical_lr")).tolist() == [False, True, False, True]
    assert np.isfinite(of(metrics, "loss")).all() and np.isnan(of(metrics, "directional")).tolist() == [
        True,
        False,
        True,
        False,
    ]
    assert np.isnan(of(metrics, "event")).tolist() == [True, False, True, False]
    assert int(carry[2].step) == 2 and int(carry[2].detector.step) == 2
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(jax.grad(loss_of)(PARAMS, batch) for batch in BATCHES[:2]))
    clipped = float(critical_lr(MODEL.apply, PARAMS, BATCHES[1], loss="mse")) * float(optax.tree.norm(mean)) / 0.1
    assert metrics[1]["catapult/critical_lr"] == pytest.approx(clipped, rel=1e-4)


def test_watch_says_why_there_is_no_critical_lr():
    tx = optax.lion(0.01)
    with pytest.warns(UserWarning, match=r"catapult/critical_lr is NaN: scale_by_lion normalises .* use catapult/directional"):
        _, _, metrics = run(tx, watch(MODEL.apply, loss="mse", optimizer=tx), 1)

    assert np.isnan(metrics[0]["catapult/critical_lr"]) and np.isfinite(metrics[0]["catapult/lambda_max"])
    assert metrics[0]["catapult/directional"] > 0 and metrics[0]["catapult/lr"] == np.float32(0.01)


# ---- events


def test_watch_gives_the_events_of_a_saved_series():
    """Gradient descent above its critical lr, spikes and all; every loss is seen, also where nothing is measured."""
    model = FCN(depth=3, width=64)
    params = model.init(jax.random.key(1), X)
    tx = optax.sgd(2.0 * critical_lr(model.apply, params, (X, Y), loss="mse"))
    watching = watch(model.apply, loss="mse", optimizer=tx, every=2, smoothing=None, preset="full")

    def step(carry, _):
        params, state, w = carry
        loss, gradient = jax.value_and_grad(lambda p: batch_loss(model.apply(p, X), Y, loss="mse"))(params)
        updates, state = tx.update(gradient, state)
        w, m = watching.update(w, params=params, batch=(X, Y), updates=updates, opt_state=state, loss=loss)
        return (optax.apply_updates(params, updates), state, w), m

    carry = (params, tx.init(params), watching.init(params))
    (_, _, w), stacked = jax.jit(lambda c: jax.lax.scan(step, c, length=60))(carry)
    metrics = [jax.tree.map(lambda values, i=i: np.asarray(values[i]), stacked) for i in range(60)]

    series = [of(metrics, name) for name in ("loss", "lr", "critical_lr")]
    parts = {name: of(metrics, name) for name in ("loss_top", "loss_rest")}
    expected = find_events(*series, **parts)

    assert any(event.kind == "catapult" for event in expected)
    same = ("kind", "onset", "peak", "end", "level", "overshoot", "lr", "critical_lr")
    for ours, theirs in zip(watching.events(w), expected, strict=True):
        for name in same:
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), nan_ok=True), name
    ended = np.flatnonzero(of(metrics, "event"))
    assert ended.tolist() == [event.end for event in expected if event.end >= 0]
    assert metrics[-1]["catapult/spikes"] == len(expected)


def test_watch_gives_the_spike_score_of_a_saved_series():
    watching = watch(MODEL.apply, loss="mse", preset="economy", every=1000)
    losses = np.random.default_rng(0).gamma(2.0, size=140).astype(np.float32)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)

    def step(w, loss):
        return watching.update(w, params=PARAMS, batch=BATCHES[0], updates=zeros, loss=loss, due=False)

    _, metrics = jax.jit(lambda w: jax.lax.scan(step, w, losses))(watching.init(PARAMS))

    np.testing.assert_allclose(metrics["catapult/spike_score"], spike_score(losses), rtol=1e-3, atol=1e-4)


def test_watch_keeps_the_last_events():
    watching = watch(MODEL.apply, loss="mse", preset="economy", smoothing=None)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    losses = jnp.tile(jnp.array([1.0, 3.0, 0.9]), 70)

    step = lambda w, loss: watching.update(w, params=PARAMS, batch=BATCHES[0], updates=zeros, loss=loss, due=False)
    w, metrics = jax.jit(lambda w: jax.lax.scan(step, w, losses))(watching.init(PARAMS))

    events = watching.events(w)
    assert len(events) == 64 and metrics["catapult/spikes"][-1] == 70
    assert [event.peak for event in events] == [3 * i + 1 for i in range(6, 70)]
    assert {event.kind for event in events} == {"unknown"}  # no critical lr is measured


def test_watch_finds_no_spikes_in_negative_losses():
    watching = watch(MODEL.apply, loss="mse", preset="economy", smoothing=None)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    losses = jnp.concatenate([jnp.array([1.0, 3.0, 0.9]), jnp.linspace(0.5, -1.0, 20)])

    step = lambda w, loss: watching.update(w, params=PARAMS, batch=BATCHES[0], updates=zeros, loss=loss, due=False)
    w, metrics = jax.jit(lambda w: jax.lax.scan(step, w, losses))(watching.init(PARAMS))

    assert [event.peak for event in watching.events(w)] == [1]
    assert metrics["catapult/spikes"][-1] == 1 and int(w.detector.step) == len(losses)


def test_watch_refuses_debug_nans():
    """A metric that is not measured is NaN."""
    watching = watch(lambda w, x: x @ w, loss="mse", preset="economy")
    with jax.debug_nans(True), pytest.raises(ValueError, match="jax_debug_nans=True; allowed with a watch: False"):
        watching.init(jnp.ones(2))


def test_watch_of_convolutions_on_the_cpu_says_how_far_it_searches():
    model, x = CNN(depth=2, width=4), jnp.ones((2, 8, 8, 3))
    params, tx = model.init(jax.random.key(0), x), optax.adam(0.1)
    watching = watch(model.apply, loss="mse", optimizer=tx)
    updates, state = tx.update(params, tx.init(params), params)

    with pytest.warns(UserWarning, match=r"catapult/lambda_max: with convolutions on the CPU a search has 2 products"):
        jax.eval_shape(
            lambda: watching.update(
                watching.init(params), params=params, batch=(x, jnp.ones((2, 1))), updates=updates, opt_state=state, loss=1.0
            )
        )


def test_watch_is_a_static_argument():
    watching = watch(MODEL.apply, loss="mse", preset="economy")
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)

    @functools.partial(jax.jit, static_argnums=0)
    def step(watching, w):
        return watching.update(w, params=PARAMS, batch=BATCHES[0], updates=zeros, loss=1.0)

    _, metrics = step(watching, watching.init(PARAMS))

    assert metrics["catapult/loss"] == 1 and hash(watching) == hash(watching)
    assert np.isnan(metrics["catapult/directional"])  # an update of zeros changes nothing


# ---- arguments

TX = optax.sgd(0.1)
Wrapped = namedtuple("Wrapped", "tx")
BAD = {
    "number as optimizer": (
        dict(optimizer=0.1),
        "optimizer is a float; allowed: an optax.GradientTransformation or optax.MultiSteps",
    ),
    "wrapped optimizer": (dict(optimizer=Wrapped(TX)), "optimizer is a Wrapped; allowed: its .tx, an optax"),
    "every": (dict(every=0), "every=0; allowed: a whole number, 1 or more"),
    "preset": (dict(preset="all"), "preset='all'; allowed: economy, standard, full"),
    "method": (dict(method="fast"), "method='fast'; allowed: auto, matrix_free, exact"),
    "optimizer": (dict(optimizer=None), "optimizer=None with preset='standard'; allowed: the optimizer of the loop"),
    "loss": (dict(loss="l1"), "loss='l1'; allowed"),
    "factor": (dict(factor=1.0), "factor=1.0|delta=0.0; allowed"),
    "smoothing": (dict(smoothing=2.0), "smoothing=2.0; allowed"),
    "k": (dict(k=0), "k=0; allowed: a whole number, 1 or more"),
    "horizon": (dict(horizon=2.5), "horizon=2.5; allowed: a whole number"),
    "momentum": (dict(momentum=1.0), "momentum=1.0; allowed: 0 or more, below 1"),
    "layers": (dict(layers="all"), "layers='all'; allowed: True, False, or a function"),
    "probe": (dict(probe=X), "probe with preset='standard'; allowed: preset='full'"),
    "reference": (dict(preset="full", agop_reference=X), "agop_reference without probe; allowed"),
    "split": (dict(preset="full", loss=lambda f, y: jnp.mean((f - y) ** 2)), "with preset='full'; allowed: 'standard'"),
}


@pytest.mark.parametrize("name", BAD)
def test_watch_refuses_bad_settings(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        watch(MODEL.apply, **{"loss": "mse", "optimizer": TX} | options)


GIVEN = dict(params=PARAMS, batch=BATCHES[0], loss=1.0, updates=PARAMS, opt_state=TX.init(PARAMS))
BAD_STEPS = {
    "no update": (dict(updates=None), "neither updates nor new_params given; allowed: one of them"),
    "two updates": (dict(new_params=PARAMS), "updates and new_params given; allowed: one of them"),
    "no state": (
        dict(opt_state=None),
        "opt_state=None with preset='standard'; allowed: the optimizer's state after the update",
    ),
    "arrays missing": (dict(updates=[jnp.ones(2)]), "updates has 1 arrays; allowed: one for each of the"),
    "shapes": (dict(updates=jax.tree.map(lambda p: p[None], PARAMS)), r"updates has an array of shape \(1, .*; allowed: "),
    "list": (dict(batch=[X, Y, X]), r"batch is a list of 3 that are no pairs; allowed: a tuple \(x, targets\)"),
    "loss": (dict(loss=jnp.ones(1)), r"loss has shape \(1,\); allowed: \(\)"),
    "dict": (dict(batch={"x": X, "y": Y}), r"batch is a dict; allowed: a pair \(x, targets\)"),
    "targets": (dict(batch=(X, Y[:3])), "targets has shape .*; allowed for outputs"),
    "another tree": (
        dict(params=list(PARAMS.values())),
        "params is a list of another structure; allowed: a tree like that of init",
    ),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_watch_refuses_a_step_that_lacks_something(name):
    step, message = BAD_STEPS[name]
    watching = watch(MODEL.apply, loss="mse", optimizer=TX)
    with pytest.raises(ValueError, match=message):
        watching.update(watching.init(PARAMS), **GIVEN | step)


def test_watch_refuses_outputs_that_are_no_array():
    watching = watch(lambda params, x: (MODEL.apply(params, x), x), loss="mse", optimizer=TX)
    with pytest.raises(ValueError, match=r"apply_fn returns tuple; allowed: one array of shape \(b, ...\)"):
        watching.update(watching.init(PARAMS), **GIVEN)


def test_events_refuse_what_is_no_state():
    with pytest.raises(ValueError, match="state is a int; allowed: the state of the watch"):
        watch(MODEL.apply, loss="mse", preset="economy").events(3)


# ---- placement


@pytest.mark.long
def test_watch_on_a_mesh_gives_the_numbers_of_one_device():
    """FSDP with explicit axes; the directions are cut as the parameters, from the first step on."""
    mesh = jax.make_mesh((4,), ("data",))
    place = lambda tree: jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("data"))), tree)
    params = {"in": jax.random.normal(jax.random.key(0), (8, 16)), "out": jax.random.normal(jax.random.key(1), (16, 1)) / 4}
    batch = jax.random.normal(jax.random.key(2), (8, 8)), jnp.ones((8, 1))
    tx = optax.sgd(0.1, momentum=0.9)

    def run_on(params, batch, gathered):
        model = lambda p, x: jnp.tanh(x @ gathered(p["in"])) @ gathered(p["out"])
        watching = watch(model, loss="mse", optimizer=tx, method="matrix_free", tol=1e-4)

        @jax.jit
        def step(params, state, w):
            loss, gradient = jax.value_and_grad(lambda p: batch_loss(model(p, batch[0]), batch[1], loss="mse"))(params)
            updates, state = tx.update(gradient, state, params)
            w, metrics = watching.update(w, params=params, batch=batch, updates=updates, opt_state=state, loss=loss)
            return optax.apply_updates(params, updates), state, w, metrics

        w = watching.init(params)
        first = w.carried["matrix_free"].vectors
        params, state, w, _ = step(params, tx.init(params), w)
        return first, w, step(params, state, w)[-1]

    *_, expected = run_on(params, batch, lambda leaf: leaf)
    with jax.set_mesh(mesh):
        first, w, metrics = run_on(place(params), place(batch), lambda leaf: jax.sharding.reshard(leaf, PartitionSpec()))

    for vectors in (first, w.carried["matrix_free"].vectors):
        assert vectors["in"].sharding.spec == PartitionSpec(None, "data", None) or vectors["in"].sharding.spec == PartitionSpec(
            None, "data"
        )
    del metrics["catapult/lambda_max_bound"]  # of the size of rounding
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-4, err_msg=name)
