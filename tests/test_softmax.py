"""The cross-entropy of the softmax where one class is almost certain, and targets that leave positions out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import catapult_jax as cj
from catapult_jax.losses import SoftmaxCrossEntropy, SquaredError, batch_loss, curvature_factor, output_gradient

TARGETS = {
    "label of the largest logit": (np.array([0, 1, 2]), 0.0),
    "another label": (np.array([1, 2, 0]), 0.0),
    "smoothed label": (np.array([0, 1, 2]), 0.1),
    "probabilities": (np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]]), 0.0),
    "probabilities, smoothed": (np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]]), 0.1),
    "sums that are not one": (np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]), 0.0),
}


def logits(gap):
    """One class of each row is ahead by about ``gap``."""
    return gap * np.eye(3) + np.random.default_rng(0).standard_normal((3, 3))


def optax_gradient(y, smoothing):
    """The gradient of each row, from Optax, without its rounding errors if it is taken in float64."""
    q = np.eye(3)[y] if y.ndim == 1 else y
    return jax.grad(lambda f: optax.softmax_cross_entropy(f, jnp.asarray((1 - smoothing) * q + smoothing / 3)).sum())


@pytest.mark.parametrize("gap", [0.0, 12.0, 17.0, 25.0])
@pytest.mark.parametrize("case", TARGETS)
def test_derivatives_keep_their_digits(case, gap):
    y, smoothing = TARGETS[case]
    f, v = logits(gap), np.random.default_rng(1).standard_normal((3, 3))
    with jax.enable_x64():
        slopes, products = jax.jvp(optax_gradient(y, smoothing), (jnp.asarray(f),), (jnp.asarray(v),))
    loss = SoftmaxCrossEntropy(label_smoothing=smoothing)
    y = jnp.asarray(y, jnp.int32 if y.ndim == 1 else jnp.float32)

    found = output_gradient(jnp.asarray(f, jnp.float32), y, loss=loss)
    of_grad = lambda f: jax.grad(lambda f: 3 * batch_loss(f, y, loss=loss))(f)
    product = jax.jvp(of_grad, (jnp.asarray(f, jnp.float32),), (jnp.asarray(v, jnp.float32),))[1]
    factor = curvature_factor(jnp.asarray(f, jnp.float32), y, loss=loss)
    by_factor = factor.times(factor.transposed(jnp.asarray(v, jnp.float32)))

    # Against a label that is not smoothed, every entry keeps its digits. Else p - q cancels in exact arithmetic, too: it has the error of p.
    keeps_all = "label" in case and not smoothing
    np.testing.assert_allclose(found, slopes, rtol=1e-4, atol=0 if keeps_all else 3e-6)
    atol = 1e-4 * np.abs(products).max(1).min()
    for of_hessian in (product, by_factor):
        np.testing.assert_allclose(of_hessian, products, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("gap", [14.0, 17.0, 20.0])
def test_verdict_on_a_step_that_descends_where_the_softmax_is_confident(gap):
    """The slope has no other sign than in float64. A difference ``p_y - 1`` has the wrong one in a third of such steps."""
    rng, y = np.random.default_rng(0), np.zeros(4, int)
    shift = np.array([gap, 0.0, -1.0])
    for _ in range(20):
        f, moved = shift + rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
        p = np.exp(f - f.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        slope = (p[:, 1:] * (moved[:, 1:] - moved[:, :1])).sum() / 4
        answer = cj.directional_critical_lr(
            lambda p, x: x + p, jnp.zeros((4, 3)), (jnp.asarray(f, jnp.float32), jnp.asarray(y)), jnp.asarray(moved, jnp.float32),
            loss="softmax_cross_entropy",
        )  # fmt: skip
        assert float(answer.slope) == pytest.approx(slope, rel=1e-3)


def linear(w, x):
    return x @ w


X = jnp.asarray(np.random.default_rng(2).standard_normal((6, 4)), jnp.float32)
W = jnp.zeros((4, 3))


def answers(loss, targets):
    step = jax.grad(lambda w: batch_loss(linear(w, X), targets, loss=loss))(W)
    step = jax.tree.map(jnp.negative, step)
    return {
        "loss": batch_loss(linear(W, X), targets, loss=loss),
        "critical lr": cj.critical_lr(linear, W, (X, targets), loss=loss),
        "eigenvalue": cj.top_eigenpairs(linear, W, (X, targets), k=1, loss=loss).eigenvalues[0],
        "slope": cj.directional_critical_lr(linear, W, (X, targets), step, loss=loss).slope,
    }


@pytest.mark.parametrize("padding", [0, -1, -100, 3])
def test_a_label_without_weight_is_left_out(padding):
    weights, labels = jnp.array([1.0, 1, 1, 1, 0, 0]), jnp.array([0, 1, 2, 0, padding, padding])

    found = answers(SoftmaxCrossEntropy(weighted=True), (labels, weights))

    plain = answers(SoftmaxCrossEntropy(weighted=True), (labels.at[4:].set(1), weights))
    assert {name: float(value) for name, value in found.items()} == {name: float(value) for name, value in plain.items()}
    assert all(np.isfinite(float(value)) for value in found.values())


def test_a_target_of_nan_without_weight_is_left_out():
    targets = (jnp.ones((6, 3)).at[5].set(jnp.nan), jnp.array([1.0, 1, 1, 1, 1, 0]))

    found = answers(SquaredError(weighted=True), targets)

    assert all(np.isfinite(float(value)) for value in found.values())


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_a_label_that_names_no_class_is_an_error_or_nan_under_jit(label):
    labels = jnp.zeros(6, jnp.int32).at[2].set(label)
    calls = {
        "loss": lambda labels: batch_loss(linear(W, X), labels, loss="softmax_cross_entropy"),
        "critical lr": lambda labels: cj.critical_lr(linear, W, (X, labels), loss="softmax_cross_entropy"),
        "eigenvalue": lambda labels: cj.top_eigenpairs(linear, W, (X, labels), k=1, loss="softmax_cross_entropy").eigenvalues[
            0
        ],
        "slope": lambda labels: cj.directional_critical_lr(linear, W, (X, labels), W + 1, loss="softmax_cross_entropy").slope,
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"targets has the label {label}; allowed for outputs \(6, 3\): 0 to 2"):
            call(labels)
        assert np.isnan(jax.jit(call)(labels)), name


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32])
def test_labels_of_small_dtypes_name_many_classes(dtype):
    f = jnp.asarray(np.random.default_rng(3).standard_normal((2, 300)), jnp.float32)
    y = jnp.array([0, 100], dtype)

    found = output_gradient(f, y, loss="softmax_cross_entropy"), batch_loss(f, y, loss="softmax_cross_entropy")

    log_p = np.asarray(jax.nn.log_softmax(f))
    np.testing.assert_allclose(found[0], np.exp(log_p) - np.eye(300)[[0, 100]], atol=1e-6)  # a sum of 300 numbers
    assert float(found[1]) == pytest.approx(-log_p[[0, 1], [0, 100]].mean(), rel=1e-6)


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_one_class_is_refused(shape):
    with pytest.raises(ValueError, match="2 classes or more; for one output, logistic"):
        batch_loss(jnp.zeros(shape), jnp.zeros(6, int), loss="softmax_cross_entropy")
