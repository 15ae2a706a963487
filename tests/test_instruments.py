"""Instruments against the same numbers taken outside the training program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from catapult_jax import (
    CNN,
    FCN,
    Preconditioner,
    agop_alignment,
    agop_pearson,
    detector,
    input_jacobian,
    schedules,
)
from catapult_jax.testing import explicit_jacobian, explicit_kernel
from catapult_jax.training import directional_instruments, instruments, make_trainer
from tests.helpers_training import build, members, run

_MODEL = FCN(depth=2, width=8)


def moment(**fields):
    """Six training examples, the first four of them as the batch, and three test examples."""
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((9, 5)).astype(np.float32), draw.choice([-1.0, 1.0], (9, 1)).astype(np.float32)
    params = _MODEL.init(jax.random.key(0), x[:1])
    arrays = {"x_train": x[:6], "y_train": y[:6], "x_test": x[6:], "y_test": y[6:]}
    now = instruments.Moment(
        params, jax.tree.map(lambda a: 0.5 * a, params), (x[:4], y[:4]), _MODEL.apply(params, x[:4]), arrays
    )
    return now._replace(**fields)


def mse(params, x, y):
    return ((np.asarray(_MODEL.apply(params, x), np.float64) - y) ** 2).sum(1).mean()


def top_space(params, x, y, k):
    """Largest eigenvalue of the kernel, weighted for ``mse``, and the loss inside the top eigenspace, in float64."""
    values, vectors = np.linalg.eigh(2 / len(x) * explicit_kernel(_MODEL.apply, params, x))
    residual = (np.asarray(_MODEL.apply(params, x), np.float64) - y).reshape(-1)
    return values[-1], ((vectors[:, -k:].T @ residual) ** 2).sum() / len(x)


def test_lambda_max_batch_against_the_float64_kernel():
    now = moment()
    values = instruments.lambda_max_batch(_MODEL.apply, loss="mse", every=1, k=2, follow=False).measure(now)

    lambda_max, top = top_space(now.params, *now.batch, k=2)
    assert values["lambda_max_batch"] == pytest.approx(lambda_max, rel=1e-5)
    assert values["critical_lr_batch"] == pytest.approx(2 / lambda_max, rel=1e-5)
    assert values["loss_top"] == pytest.approx(top, rel=1e-4)
    assert values["loss_rest"] == pytest.approx(mse(now.params, *now.batch) - top, rel=1e-3)


@pytest.mark.parametrize(("probe_size", "name"), [(None, "train"), (3, "probe")])
def test_lambda_max_train_against_the_float64_kernel(probe_size, name):
    now = moment()
    exact = instruments.lambda_max_train(_MODEL.apply, loss="mse", every=1, probe_size=probe_size, k=2)
    free = instruments.lambda_max_train_matrix_free(
        _MODEL.apply, loss="mse", every=1, probe_size=probe_size, k=2, tol=1e-4, max_products=20
    )
    rows = [exact.measure(now), free.measure(now, free.start(now))[0]]

    x, y = now.data["x_train"][:probe_size], now.data["y_train"][:probe_size]
    lambda_max, top = top_space(now.params, x, y, k=2)
    for values in rows:
        assert values[f"lambda_max_{name}"] == pytest.approx(lambda_max, rel=1e-3)
        assert values[f"critical_lr_{name}"] == pytest.approx(2 / lambda_max, rel=1e-3)
        assert values[f"loss_{name}_top"] == pytest.approx(top, rel=1e-2)
    assert rows[0][f"lambda_max_{name}"] == pytest.approx(lambda_max, rel=1e-5)


def modes_of(params, x, y):
    """The loss in each eigenvector of the kernel, by descending eigenvalue, in float64."""
    _, vectors = np.linalg.eigh(explicit_kernel(_MODEL.apply, params, x))
    residual = (np.asarray(_MODEL.apply(params, x), np.float64) - y).reshape(-1)
    return ((vectors.T @ residual) ** 2 / len(x))[::-1]


def test_lambda_max_batch_with_modes_against_the_float64_kernel():
    now = moment()
    instrument = instruments.lambda_max_batch(_MODEL.apply, loss="mse", every=1, k=2, modes=4)

    values, _ = instrument.measure(now, instrument.start(now))

    np.testing.assert_allclose(values["loss_modes"], modes_of(now.params, *now.batch), rtol=1e-3, atol=1e-6)
    assert float(values["loss_modes"][:2].sum()) == pytest.approx(float(values["loss_top"]), rel=1e-5)
    assert float(values["loss_modes"].sum()) == pytest.approx(mse(now.params, *now.batch), rel=1e-5)


@pytest.mark.parametrize(("probe_size", "name"), [(None, "train"), (3, "probe")])
def test_lambda_max_train_with_modes_against_the_float64_kernel(probe_size, name):
    now = moment()
    instrument = instruments.lambda_max_train(_MODEL.apply, loss="mse", every=1, probe_size=probe_size, k=2, modes=3)

    values = instrument.measure(now)

    x, y = now.data["x_train"][:probe_size], now.data["y_train"][:probe_size]
    np.testing.assert_allclose(values[f"loss_{name}_modes"], modes_of(now.params, x, y)[:3], rtol=1e-3, atol=1e-6)
    assert float(values[f"loss_{name}_modes"][:2].sum()) == pytest.approx(float(values[f"loss_{name}_top"]), rel=1e-5)


def test_preconditioner_min_bounds_the_critical_lr_from_below():
    now = moment()
    diagonal = jax.tree.map(lambda a: 0.5 + jnp.abs(a), now.params)
    rule = jax.tree_util.Partial(lambda diagonal: Preconditioner(diagonal, gain=0.5, decay=0.1), diagonal)
    now = now._replace(preconditioner=rule)
    values = instruments.preconditioner_min(_MODEL.apply, loss="mse", every=1).measure(now)

    least = min(float(np.min(leaf)) for leaf in jax.tree.leaves(diagonal))
    lambda_max, _ = top_space(now.params, *now.batch, k=1)
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(diagonal)])
    jacobian = explicit_jacobian(_MODEL.apply, now.params, now.batch[0])
    preconditioned = np.linalg.eigvalsh(2 / len(now.batch[0]) * (jacobian / flat) @ jacobian.T)[-1]
    assert values["preconditioner_min"] == pytest.approx(least)
    assert values["lambda_max_plain_batch"] == pytest.approx(lambda_max, rel=1e-5)
    assert values["critical_lr_bound_batch"] == pytest.approx(2 / (0.5 * lambda_max / least + 0.1), rel=1e-5)
    assert values["critical_lr_bound_batch"] <= 2 / (0.5 * preconditioned + 0.1)


def test_weight_norm_against_numpy():
    now = moment()

    values = instruments.weight_norm(every=1).measure(now)

    weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(now.params)]).astype(np.float64)
    assert values["weight_norm"] == pytest.approx(np.linalg.norm(weights), rel=1e-6)


def test_loss_train_against_numpy():
    now = moment()
    values = instruments.loss_train(_MODEL.apply, loss="mse", every=1).measure(now)
    assert values["loss_train"] == pytest.approx(mse(now.params, now.data["x_train"], now.data["y_train"]), rel=1e-5)


def test_loss_batch_after_reads_the_new_weights():
    now = moment()
    values = instruments.loss_batch_after(_MODEL.apply, loss="mse", every=1).measure(now)
    assert values["loss_batch_after"] == pytest.approx(mse(now.new_params, *now.batch), rel=1e-5)
    assert values["loss_batch_after"] != pytest.approx(mse(now.params, *now.batch), rel=1e-2)


def test_directional_batch_against_the_losses_along_the_update():
    """In the linear model the loss is back at its start at that multiple."""
    now = moment()
    now = now._replace(updates=jax.tree.map(lambda new, old: new - old, now.new_params, now.params))
    multiple = float(
        directional_instruments.directional_batch(_MODEL.apply, loss="mse", every=1).measure(now)["directional_batch"]
    )

    outputs, moved = jax.jvp(lambda p: _MODEL.apply(p, now.batch[0]), (now.params,), (now.updates,))
    outputs, moved, targets = (np.asarray(a, np.float64) for a in (outputs, moved, now.batch[1]))
    slope, curvature = 2 * np.sum((outputs - targets) * moved), 2 * np.sum(moved**2)
    assert multiple == pytest.approx(max(0.0, -2 * slope / curvature), rel=1e-4)


def test_directional_train_predicts_the_loss_of_the_linear_model():
    now = moment()
    now = now._replace(updates=jax.tree.map(lambda new, old: new - old, now.new_params, now.params))
    values = directional_instruments.directional_train(_MODEL.apply, loss="mse", every=1).measure(now)

    x, y = now.data["x_train"], np.asarray(now.data["y_train"], np.float64)
    outputs, moved = (np.asarray(a, np.float64) for a in jax.jvp(lambda p: _MODEL.apply(p, x), (now.params,), (now.updates,)))
    assert values["loss_train_predicted"] == pytest.approx(np.mean(np.sum((outputs + moved - y) ** 2, 1)), rel=1e-4)
    assert (values["directional_train"] < 1) == (values["loss_train_predicted"] > np.mean(np.sum((outputs - y) ** 2, 1)))


@pytest.mark.parametrize(
    ("target_encoding", "loss", "targets"),
    [
        ("sign", "mse", [[1.0], [-1.0], [1.0]]),
        ("binary", "logistic", [[1.0], [0.0], [1.0]]),
        ("one_hot", "mse", [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        ("integer", "softmax_cross_entropy", [0, 0, 1]),
    ],
)
def test_loss_test_error_of_each_encoding(target_encoding, loss, targets):
    """The outputs are the inputs: two of three answers are right."""
    outputs = [[2.0, -1.0], [-1.0, 1.0], [-3.0, 1.0]] if target_encoding in ("one_hot", "integer") else [[2.0], [-1.0], [-3.0]]
    dtype = jnp.int32 if target_encoding == "integer" else jnp.float32
    now = moment(data={"x_test": jnp.array(outputs), "y_test": jnp.array(targets, dtype)})
    instrument = instruments.loss_test(lambda params, x: x, loss=loss, every=1, target_encoding=target_encoding)
    assert instrument.measure(now)["error_test"] == pytest.approx(1 / 3)

    now = moment(data={"x_test": jnp.array(outputs).at[0, 0].set(jnp.nan), "y_test": jnp.array(targets, dtype)})
    assert np.isnan(instrument.measure(now)["error_test"])


def test_agop_alignment_and_validation_against_direct_values():
    """Against the same numbers taken outside the program."""
    model = FCN(depth=2, width=32)
    arrays = build()[1]
    reference = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    arrays = arrays._replace(x_val=arrays.x_test[:3], y_val=arrays.y_test[:3], agop_reference=reference)
    chosen = {
        "agop": instruments.agop_alignment(model.apply, every=2, size=6),
        "val": instruments.loss_test(model.apply, loss="mse", every=1, target_encoding="sign", split="val"),
        "lambda_max_train": instruments.lambda_max_train(model.apply, loss="mse", every=1, probe_size=None, k=2),
    }
    trainer = make_trainer(
        model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(1.0)), detector=detector(),
        instruments=chosen, batch_size=4,
    )  # fmt: skip
    of = members((0, 1), (0.1,))
    state, _ = trainer.init(of)
    start = jax.tree.map(np.asarray, state.members.params)
    measured = trainer.run(state, 3)[1]
    for m in range(2):
        params = jax.tree.map(lambda a, m=m: a[m], start)
        rows = input_jacobian(model.apply, params, arrays.x_train[:6])
        assert measured["agop_alignment"][m, 0] == pytest.approx(float(agop_alignment(rows, reference)), rel=1e-5)
        assert measured["agop_pearson"][m, 0] == pytest.approx(float(agop_pearson(rows, reference)), rel=1e-4)
        error = (model.apply(params, arrays.x_val) > 0) != (arrays.y_val > 0)
        assert measured["error_val"][m, 0] == pytest.approx(float(error.mean()))
        expected = ((model.apply(params, arrays.x_train) - arrays.y_train) ** 2).mean()
        parts = measured["loss_train_top"][m, 0] + measured["loss_train_rest"][m, 0]
        assert parts == pytest.approx(float(expected), rel=1e-4)
    assert np.isnan(measured["agop_alignment"][:, 1]).all()


@pytest.mark.long
@pytest.mark.parametrize("model", [None, CNN(depth=2, width=4)], ids=["scanned", "stepped"])
def test_lambda_max_matrix_free_equals_the_exact_kernel(model):
    """Warm-started from step to step and batch to batch, while an SGD run changes both."""
    of = members((0, 1), (0.8,))
    exact, arrays = build(model, batch_size=4)
    _, expected = run(exact, of, 8)
    model = model or FCN(depth=2, width=32)
    shared = dict(loss="mse", k=2, tol=1e-3, max_products=4 if exact.scanned else 2)  # more would be unrolled
    chosen = {
        "lambda_max_batch": instruments.lambda_max_batch_matrix_free(model.apply, every=1, **shared),
        "loss_train": instruments.loss_train(model.apply, loss="mse", every=1),
    }
    if exact.scanned:
        chosen["lambda_max_train"] = instruments.lambda_max_train_matrix_free(
            model.apply, every=4, probe_size=None, chunk_size=3, **shared | {"max_products": 8}
        )
    trainer = make_trainer(
        model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(1.0)), detector=detector(),
        instruments=chosen, batch_size=4, matrix_free=True,
    )  # fmt: skip
    state, start = trainer.init(of)
    exact_start = exact.init(of)[1]
    np.testing.assert_allclose(start.critical_lr, exact_start.critical_lr, rtol=0.011)
    state = state._replace(members=state.members._replace(schedule=exact.init(of)[0].members.schedule))  # the same rates
    state, series = trainer.run(state, 8)
    np.testing.assert_allclose(series["loss_batch"], expected["loss_batch"], rtol=1e-5)
    is_converged = series["converged"] == 1
    assert (
        is_converged.all() if exact.scanned else is_converged[:, 1:].all()
    )  # two products are too few for a cold start of four outputs
    for name in ("lambda_max_batch", "lambda_max_train")[: 1 + exact.scanned]:
        np.testing.assert_allclose(
            np.where(is_converged, series[name], 0), np.where(is_converged, expected[name], 0), rtol=3e-3
        )
    assert (
        np.abs(series["lambda_max_batch"] - expected["lambda_max_batch"]) <= series["eigenvalue_bounds"][..., 0] + 1e-5
    ).all()
    top = [np.where(is_converged, measured["loss_top"], 0) for measured in (series, expected)]
    np.testing.assert_allclose(*top, rtol=0.1, atol=1e-3)
    np.testing.assert_allclose(series["loss_top"] + series["loss_rest"], series["loss_batch"], rtol=1e-4)


@pytest.mark.long
def test_lambda_max_batch_matrix_free_follows_critical_eigenvalues():
    """Those above 0.8 times ``2 / lr``, and the next one; in a run of the step before, counted with the exact kernel of the same run."""
    model, arrays = FCN(depth=2, width=32), build()[1]
    products = instruments.lambda_max_batch_matrix_free(model.apply, loss="mse", every=1, k=2, k_max=5, tol=1e-3)

    params = model.init(jax.random.key(0), arrays.x_train[:1])
    batch = arrays.x_train, arrays.y_train
    now = instruments.Moment(params, params, batch, model.apply(params, batch[0]), {}, lr=np.float32(1))
    exact = np.asarray(
        instruments.lambda_max_batch(model.apply, loss="mse", every=1, k=8, follow=False).measure(now)["eigenvalues"]
    )
    directions, take, counts = products.start(now), jax.jit(products.measure), []
    with pytest.raises(ValueError, match=r"Moment.lr=None; allowed with k_max=5, k=2: the learning rate"):
        products.measure(now._replace(lr=None), directions)
    for critical in (2.0 * exact[0], 0.9 * exact[2], 1.1 * exact[3], 0.5 * exact[7]):  # the lr is critical for this eigenvalue
        series, directions = take(now._replace(lr=2 / critical), directions)
        count = int(series["tracked"])
        np.testing.assert_allclose(series["eigenvalues"][:count], exact[:count], rtol=2e-3)
        assert np.isnan(series["eigenvalues"][count:]).all() and np.isnan(series["eigenvalue_bounds"][count:]).all()
        counts.append(count)
    assert counts == [
        np.clip(1 + (exact > 0.8 * c).sum(), 2, 5) for c in (2.0 * exact[0], 0.9 * exact[2], 1.1 * exact[3], 0.5 * exact[7])
    ]
    assert counts[0] == 2 and counts[1] >= 4 and counts[3] == 5
    # Three above, with a momentum's gain and a decay: (2 / lr - decay) / gain.
    between = (exact[2] * exact[3]) ** 0.5
    rule = jax.tree_util.Partial(lambda decay: Preconditioner(gain=2.0, decay=decay), 2 * exact[0] - 2.0 * between / 0.8)
    series, _ = take(now._replace(lr=1 / exact[0], preconditioner=rule), directions)
    assert int(series["tracked"]) == 4

    def measured(kernel):
        trainer = make_trainer(
            model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(0.1)),
            detector=detector(), instruments={"lambda_max_batch": kernel}, batch_size=None,
        )  # fmt: skip
        return run(trainer, members((0,), (1.0, 9.0)), 3)[1]

    exact = measured(instruments.lambda_max_batch(model.apply, loss="mse", every=1, k=8, follow=False))
    split = measured(instruments.lambda_max_batch(model.apply, loss="mse", every=1, k=1, follow=False))
    series = measured(instruments.lambda_max_batch_matrix_free(model.apply, loss="mse", every=1, k=1, k_max=5, tol=1e-5))
    before = np.concatenate([10 * exact["lr"][:, :1], exact["lr"][:, :-1]], 1)  # at the first step that of the start
    above = (exact["eigenvalues"] > 0.8 * 2 / before[..., None]).sum(-1)
    np.testing.assert_array_equal(series["tracked"], np.clip(above + 1, 1, 5))
    assert series["tracked"][:, 1].tolist() == [1, 2] and series["tracked"][1, 0] > 2
    # That of the first one; an eigenvalue to 1e-5 is a vector to the root of that.
    np.testing.assert_allclose(series["loss_top"], split["loss_top"], rtol=0.02)
