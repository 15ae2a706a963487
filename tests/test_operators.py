"""Top eigenpairs for every kind of loss and curvature, against dense matrices in float64."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks import networks
from catapult_jax import critical_lr, directional_critical_lr, tangent_kernel, top_eigenpairs
from catapult_jax.losses import GaussianNLL, Huber, Logistic, SoftmaxCrossEntropy, SquaredError, as_loss
from catapult_jax.tangent.operators import of_parameters
from catapult_jax.tangent.weighted import weighted_kernel_and_gradient, weighted_tangent_kernel
from catapult_jax.testing import relative_error

VOCABULARY, LENGTH, B = 7, 5, 3


class Decoder(nn.Module):
    """A language model with tied embeddings."""

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(VOCABULARY, 8)
        h = embed(ids)
        normed = nn.RMSNorm()(h)
        h = h + nn.MultiHeadDotProductAttention(2)(normed, normed, mask=nn.make_causal_mask(ids))
        return embed.attend(nn.RMSNorm()(h))


TOKENS = jax.random.randint(jax.random.key(0), (B, LENGTH + 1), 0, VOCABULARY)
MASK = (jnp.arange(LENGTH)[None] < jnp.array([5, 3, 1])[:, None]).astype(jnp.float32)
X = jax.random.normal(jax.random.key(1), (6, 4))


def mlp(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def weights(outputs: int):
    a, b = jax.random.normal(jax.random.key(2), (4, 5)), jax.random.normal(jax.random.key(3), (5, outputs))
    return {"a": a, "b": b}


def tokens_case(loss):
    model = Decoder()
    params = model.init(jax.random.key(4), TOKENS[:, :-1])
    targets = TOKENS[:, 1:]
    return model.apply, params, (TOKENS[:, :-1], (targets, MASK) if loss.weighted else targets), loss


def decoder_case(loss):
    """The decoder of the benchmarks, small: scan, remat, positions."""
    apply_fn, params = networks.decoder(VOCABULARY, 2, 4, 2, LENGTH)
    return apply_fn, params, (TOKENS[:, :-1], (TOKENS[:, 1:], MASK)), loss


def contrastive(outputs, targets):
    """Examples repel each other: the loss couples them."""
    del targets
    similar = outputs @ outputs.T
    return jnp.mean(jax.nn.logsumexp(similar, -1)) - jnp.mean(jnp.diagonal(similar))


def plain_tokens(outputs, targets):
    labels, mask = targets
    losses = optax.softmax_cross_entropy(outputs, optax.smooth_labels(jax.nn.one_hot(labels, VOCABULARY), 0.1))
    return (losses * mask).sum() / mask.sum()


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(5)(x))))


def batch_norm():
    model = Normalised()
    variables = model.init(jax.random.key(0), X)
    state = variables["batch_stats"]
    apply_fn = lambda params, x: model.apply({"params": params, "batch_stats": state}, x, mutable=["batch_stats"])[0]
    return apply_fn, variables["params"], (X, X[:, :2]), SquaredError()


CASES = {
    "tokens": tokens_case(SoftmaxCrossEntropy()),
    "masked tokens, label smoothing": decoder_case(SoftmaxCrossEntropy(weighted=True, label_smoothing=0.1)),
    "masked tokens, a function": (
        lambda p, x: mlp(p, x).reshape(-1, LENGTH, VOCABULARY),
        weights(LENGTH * VOCABULARY),
        (X[:B], (TOKENS[:, 1:], MASK)),
        plain_tokens,
    ),
    "soft targets": (mlp, weights(3), (X, jax.nn.softmax(X[:, :3])), SoftmaxCrossEntropy()),
    "weighted examples": (mlp, weights(2), (X, (X[:, :2], jnp.arange(6.0))), SquaredError(weighted=True)),
    "images": (lambda p, x: mlp(p, x).reshape(-1, 2, 1), weights(2), (X, X[:, :2, None]), SquaredError()),
    "logistic of several labels": (mlp, weights(3), (X, (X[:, :3] > 0).astype(jnp.float32)), Logistic()),
    "huber": (mlp, weights(2), (X, X[:, :2]), Huber(delta=1.5)),
    "gaussian": (mlp, weights(2), (X, X[:, 0]), GaussianNLL()),
    "contrastive": (mlp, weights(3), (X, None), contrastive),
    "batch norm": batch_norm(),
}


def dense(apply_fn, params, batch, loss, curvature):
    """Eigenvalues of the Gauss-Newton matrix or the Hessian in float64, largest first."""
    loss = as_loss(loss)
    with jax.enable_x64():
        wide = lambda tree: jax.tree.map(
            lambda a: np.asarray(a, np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
        )
        (x, targets), (flat, unravel) = wide(batch), ravel_pytree(wide(params))
        f = lambda flat: apply_fn(unravel(flat), x)

        @jax.jit
        def matrix(flat):
            if curvature == "hessian":
                return jax.hessian(lambda flat: loss(f(flat), targets))(flat)
            outputs = f(flat)
            J = jax.jacobian(lambda flat: f(flat).reshape(-1))(flat)
            S = jax.hessian(lambda v: loss(v.reshape(outputs.shape), targets))(outputs.reshape(-1))
            return J.T @ S @ J

        return np.linalg.eigvalsh(np.asarray(matrix(flat)))[::-1]


@functools.cache
def truth_of(case, curvature="gauss_newton"):
    return dense(*CASES[case], curvature)


# The products with the Hessian do not depend on the kind of loss: a few stand for all.
SOME = ("weighted examples", "gaussian", "contrastive", "batch norm")
BOTH = [(case, "gauss_newton") for case in CASES if case != "tokens"] + [(case, "hessian") for case in SOME]


@pytest.mark.long
@pytest.mark.parametrize(("case", "curvature"), BOTH)
def test_top_eigenpairs_of_every_loss(case, curvature):
    """From a random start. From its directions, too, where the search takes another way: with and without a factor, with the Hessian."""
    apply_fn, params, batch, loss = CASES[case]
    truth = truth_of(case, curvature)

    options = dict(k=2, loss=loss, curvature=curvature, tol=1e-4, max_products=60)
    pairs = top_eigenpairs(apply_fn, params, batch, **options)
    results = [pairs]
    if case in ("masked tokens, label smoothing", "gaussian", "batch norm"):
        results.append(top_eigenpairs(apply_fn, params, batch, warm_start=pairs.directions, **options))

    for found in results:
        np.testing.assert_allclose(found.eigenvalues, truth[:2], rtol=2e-4, atol=1e-5 * truth[0])
        assert bool(found.converged) and (truth[:2] <= found.eigenvalues + found.bounds + 1e-5 * truth[0]).all()


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("batch norm", "tokens")])
def test_exact_critical_lr_of_every_loss(case):
    apply_fn, params, batch, loss = CASES[case]
    truth = 2 / truth_of(case)[0]

    assert float(critical_lr(apply_fn, params, batch, loss=loss)) == pytest.approx(truth, rel=2e-4)


@pytest.mark.parametrize(
    "case", ["soft targets", "logistic of several labels", "weighted examples", "masked tokens, label smoothing"]
)
def test_weighted_kernel_and_gradient_of_positions(case):
    apply_fn, params, batch, loss = CASES[case]
    truth = truth_of(case)
    expected = jax.grad(lambda p: loss(apply_fn(p, batch[0]), batch[1]))(params)

    outputs, weighted, gradient = weighted_kernel_and_gradient(apply_fn, params, batch, loss=loss)
    directly = weighted_tangent_kernel(apply_fn, params, batch, outputs, loss=loss)

    for kernel in (weighted, directly):
        rank = min(len(kernel), len(truth))
        np.testing.assert_allclose(np.linalg.eigvalsh(kernel)[::-1][:rank], truth[:rank], atol=1e-5 * truth[0])
    assert relative_error(ravel_pytree(gradient)[0], np.asarray(ravel_pytree(expected)[0])) <= 1e-5


@pytest.mark.parametrize("case", ["gaussian", "contrastive"])
def test_negative_curvature_is_said(case):
    """The smallest Ritz value is below zero where the Gauss-Newton matrix has a negative eigenvalue."""
    apply_fn, params, batch, loss = CASES[case]
    truth = truth_of(case)
    pairs = top_eigenpairs(apply_fn, params, batch, k=1, loss=loss)
    assert truth[-1] < 0
    assert truth[-1] * (1 + 1e-4) <= float(pairs.smallest) < 0
    assert pairs.vectors is None


def test_smallest_of_a_loss_with_a_factor_is_not_negative():
    apply_fn, params, batch, loss = CASES["tokens"]
    assert float(top_eigenpairs(apply_fn, params, batch, k=1, loss=loss).smallest) >= 0


@pytest.mark.long
@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_preconditioner_in_the_space_of_the_parameters(curvature):
    apply_fn, params, batch, loss = CASES["gaussian"]
    P = jax.tree.map(lambda p: jnp.square(p) + 0.5, params)
    scaled = jax.tree.map(lambda p, d: p * jnp.sqrt(d), params, P)  # in these coordinates the preconditioner is one
    of_scaled = lambda s, x: apply_fn(jax.tree.map(lambda s, d: s / jnp.sqrt(d), s, P), x)
    truth = dense(of_scaled, scaled, batch, loss, curvature)

    pairs = top_eigenpairs(apply_fn, params, batch, k=1, loss=loss, curvature=curvature, preconditioner=P, tol=1e-4)
    warm = top_eigenpairs(
        apply_fn, params, batch, k=1, loss=loss, curvature=curvature, preconditioner=P, tol=1e-4, warm_start=pairs.directions
    )

    np.testing.assert_allclose([pairs.eigenvalues[0], warm.eigenvalues[0]], truth[0], rtol=2e-4)
    assert float(warm.products) < float(pairs.products)


@pytest.mark.long
@pytest.mark.parametrize("loop", ["jit", "chunks", "python"])
def test_hessian_in_each_way_to_repeat_products(loop, monkeypatch):
    apply_fn, params, batch, loss = CASES["weighted examples"]
    truth = dense(apply_fn, params, batch, loss, "hessian")[0]
    if loop == "python":
        monkeypatch.setattr("catapult_jax.tangent.products.loops_are_slow", lambda *_: True)
    chunk_size = 4 if loop != "jit" else None
    top = lambda params: top_eigenpairs(
        apply_fn, params, batch, k=1, loss=loss, curvature="hessian", chunk_size=chunk_size, max_products=20, tol=1e-3
    ).eigenvalues[0]

    found = jax.jit(top)(params) if loop == "jit" else top(params)

    assert float(found) == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize(
    ("case", "curvature"),
    [*((case, "hessian") for case in SOME), ("weighted examples", "gauss_newton"), ("contrastive", "gauss_newton")],
)
def test_directional_of_losses(case, curvature):
    """Slope and curvature along an update, by differentiation in float64."""
    apply_fn, params, batch, loss = CASES[case]
    update = jax.tree.map(lambda p: 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    value = as_loss(loss)
    with jax.enable_x64():
        wide = lambda tree: jax.tree.map(
            lambda a: np.asarray(a, np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
        )
        (x, targets), p, D = wide(batch), wide(params), wide(update)
        along = lambda a: apply_fn(jax.tree.map(lambda p, d: p + a * d, p, D), x)
        f, moved = jax.jvp(along, (0.0,), (1.0,))
        linear = lambda a: value(f + a * moved, targets)
        exact = (lambda a: value(along(a), targets)) if curvature == "hessian" else linear
        slope, bend = jax.grad(exact)(0.0), jax.grad(jax.grad(exact))(0.0)

    step = directional_critical_lr(apply_fn, params, batch, update, loss=loss, curvature=curvature)

    assert float(step.slope) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)
    assert float(step.curvature) == pytest.approx(float(bend), rel=1e-4, abs=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_product_in_the_space_of_the_parameters_by_the_factor_of_the_loss(chunk_size):
    """Where the outputs are many, and the loss has weights: against ``J^T S J u`` with a dense ``S``."""
    apply_fn, params, batch, loss = CASES["masked tokens, label smoothing"]
    x, targets = batch
    flat, unravel = ravel_pytree(params)
    J = np.asarray(jax.jacobian(lambda flat: apply_fn(unravel(flat), x).reshape(-1))(flat), np.float64)
    outputs = apply_fn(params, x)
    S = np.asarray(jax.hessian(lambda f: loss(f.reshape(outputs.shape), targets))(outputs.reshape(-1)), np.float64)
    u = jax.random.normal(jax.random.key(5), flat.shape)
    options = dict(loss=loss, curvature="gauss_newton", preconditioner=lambda: None, chunk_size=chunk_size, loop="compiled")

    image = of_parameters(apply_fn, params, batch, **options).product(unravel(u))

    assert relative_error(ravel_pytree(image)[0], J.T @ (S @ (J @ np.asarray(u, np.float64)))) <= 1e-5


def shapes_of(*trees):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), trees)


@pytest.mark.long
def test_planned_memory_of_a_decoder_of_ten_million_parameters():
    """At most three times that of one gradient, with five products (JAX 0.12; 0.10 has room for six). Each one more takes as much as
    the parameters.
    """
    apply_fn, params = networks.decoder(8192, 10, 256, 4, 256, jnp.bfloat16)
    tokens = jnp.zeros((8, 256), jnp.int32)
    batch, loss = (tokens, (tokens, jnp.ones((8, 256)))), SoftmaxCrossEntropy(weighted=True, label_smoothing=0.1)
    value = lambda p, b: loss(apply_fn(p, b[0]), b[1])

    def planned(function):
        plan = jax.jit(function).lower(*shapes_of(params, batch)).compile().memory_analysis()
        return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes

    search = lambda p, b: top_eigenpairs(apply_fn, p, b, k=1, loss=loss, max_products=5).eigenvalues
    assert planned(search) <= 3 * planned(jax.value_and_grad(value))


@pytest.mark.long
def test_no_array_of_a_large_vocabulary_is_much_larger_than_the_logits():
    vocabulary, length = 50257, 64
    apply_fn, params = networks.decoder(vocabulary, 1, 32, 2, length)
    tokens = jnp.zeros((1, length), jnp.int32)
    batch, loss = (tokens, (tokens, jnp.ones((1, length)))), SoftmaxCrossEntropy(weighted=True)
    search = lambda p, b: top_eigenpairs(apply_fn, p, b, k=1, loss=loss, max_products=2).eigenvalues

    text = jax.jit(search).lower(*shapes_of(params, batch)).compile().as_text()

    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)]
    assert max(sizes) <= 3 * vocabulary * length


def test_a_function_sees_new_values_of_what_it_closes_over():
    scale = [1.0]
    loss = lambda outputs, targets: scale[0] * jnp.mean((outputs - targets) ** 2)
    top = lambda: float(top_eigenpairs(mlp, weights(2), (X, X[:, :2]), k=1, loss=loss).eigenvalues[0])
    before = top()
    scale[0] = 2.0
    assert top() == pytest.approx(2 * before, rel=1e-5)


def test_inputs_may_be_a_pytree():
    """Tokens with a mask of their own, and an image beside them."""
    model = lambda p, x: (x["image"] @ p["a"] * x["mask"][:, None]) @ p["b"]
    x = {"image": X, "mask": jnp.arange(6.0) > 1}
    joined = lambda p, x: (x[:, :4] @ p["a"] * x[:, 4:]) @ p["b"]
    plain = jnp.concatenate([X, x["mask"][:, None]], 1)

    found = tangent_kernel(model, weights(2), x), tangent_kernel(model, weights(2), x, chunk_size=4)

    for kernel in found:
        np.testing.assert_allclose(kernel, tangent_kernel(joined, weights(2), plain), rtol=1e-5)
    pairs = top_eigenpairs(model, weights(2), (x, X[:, :2]), k=1, loss="mse", tol=1e-4, chunk_size=4)
    assert float(pairs.eigenvalues[0]) == pytest.approx(float(np.linalg.eigvalsh(found[0])[-1]) / 3, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(curvature="fisher"), "curvature='fisher'; allowed: gauss_newton, hessian"),
        (
            dict(curvature="hessian", jvp="transpose"),
            "jvp='transpose' with curvature='hessian'; allowed: curvature='gauss_newton'",
        ),
        (dict(loss=contrastive, chunk_size=2), "chunk_size=2 with a loss that is a function; allowed: None"),
        (dict(loss=lambda f, y: f), r"loss returns shape \(6, 2\), dtype float32; allowed: a real scalar"),
        (dict(loss=SquaredError(weighted=True)), r"targets is one array; allowed for .*: a pair \(targets, weights\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(mlp, weights(2), (X, X[:, :2]), k=1, **{"loss": "mse"} | options)


@jax.custom_vjp
def straight_through(z):
    return jnp.sign(z)


straight_through.defvjp(lambda z: (jnp.sign(z), z), lambda z, g: (g * (jnp.abs(z) < 1),))


@pytest.mark.long
@pytest.mark.parametrize(("loop", "loss"), [("jit", "mse"), ("jit", contrastive), ("eager", "mse"), ("python", contrastive)])
def test_models_with_a_custom_vjp(loop, loss, monkeypatch):
    """The Jacobian is the one that training sees: that of the vjp."""
    model = lambda p, x: straight_through(x @ p["a"]) @ p["b"]
    params, batch = weights(2), (X, X[:, :2])
    if loop == "python":
        monkeypatch.setattr("catapult_jax.tangent.products.loops_are_slow", lambda *_: True)
    J = np.concatenate(
        [np.asarray(j, np.float64).reshape(12, -1) for j in jax.tree.leaves(jax.jacrev(lambda p: model(p, X))(params))], 1
    )
    f = model(params, X)
    S = np.asarray(jax.hessian(lambda v: as_loss(loss)(v.reshape(6, 2), batch[1]))(f.reshape(-1)), np.float64)
    truth = np.linalg.eigvalsh(J.T @ S @ J)[-1]
    top = lambda p: top_eigenpairs(model, p, batch, k=1, loss=loss, jvp="transpose", tol=1e-4, max_products=20).eigenvalues[0]

    with pytest.raises(
        ValueError, match=r"jvp='forward' with apply_fn, in which straight_through has a custom_vjp.*allowed: jvp='transpose'"
    ):
        top_eigenpairs(model, params, batch, k=1, loss=loss)

    assert float((jax.jit(top) if loop == "jit" else top)(params)) == pytest.approx(truth, rel=1e-4)
