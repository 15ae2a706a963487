"""Which models are refused: those whose output for one example depends on other examples or on its place."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN, CoupledExamplesError, critical_lr, tangent_kernel
from catapult_jax.tangent import METHODS, coupling
from catapult_jax.tangent.coupling import refuse_coupled_examples
from catapult_jax.testing import explicit_jacobian, relative_error

_X = jax.random.normal(jax.random.key(0), (8, 6))


_W = {"w": jax.random.normal(jax.random.key(1), (6, 4))}


def _with(change):
    return lambda p, x: change(x @ p["w"])


INDEPENDENT = {
    "fft of each": lambda h: jax.vmap(lambda r: jnp.fft.fft(r).real)(h),
    "sorted in itself": lambda h: jnp.take_along_axis(h, jnp.argsort(h, 1), 1),
    "examples one after the other": lambda h: jax.lax.map(jnp.tanh, h),
    "state over places": lambda h: jax.lax.scan(lambda c, r: (c + r, c * r), jnp.zeros(len(h)), h.T)[1].T,
    "while": lambda h: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, h))[1],
    "cond": lambda h: jax.lax.cond(jnp.sum(jnp.ones(3)) > 1, jnp.sin, jnp.cos, h),
    "attention in itself": lambda h: jnp.einsum("bij,bj->bi", jax.nn.softmax(h[:, :, None] * h[:, None]), h),
    "folded and back": lambda h: jnp.tanh(h.reshape(-1, 2)).reshape(len(h), 2, 2).transpose(1, 0, 2).sum(0),
    "tiled token": lambda h: jnp.concatenate([jnp.tile(jnp.arange(2.0)[None], (len(h), 1)), h], 1),
    "pooled": lambda h: nn.max_pool(h[:, :, None], (2,), strides=(2,))[:, :, 0],
    "resized": lambda h: jax.image.resize(h, (len(h), 8), "bilinear"),
    "singular values": lambda h: jnp.linalg.svd(h[:, :2, None] * h[:, None, 2:], compute_uv=False),
    "running maximum": lambda h: jax.lax.cummax(h, 1),
    "mean beside the outputs": lambda h: (h.mean(0), jnp.tanh(h))[1],
    "a column is set": lambda h: h.at[:, 0].set(1.0).at[:, 1].add(h[:, 2]),
    "an entry of each is set": lambda h: jax.vmap(lambda r: r.at[jnp.argmax(r)].set(0.0))(h),
    "recurrent": lambda h: jax.lax.scan(
        lambda c, r: (jnp.tanh(c @ jnp.ones((3, 3)) + r[:, None]),) * 2, jnp.zeros((len(h), 3)), h.T
    )[0],
    "checkpointed": lambda h: jax.checkpoint(jnp.tanh)(h),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_refuse_coupled_examples_accepts_independent_ones(name):
    """Without a warning, which would be an error here: each is proved."""
    refuse_coupled_examples(_with(INDEPENDENT[name]), _W, _X)


def _ghost(h):
    groups = h.reshape(len(h) // 4, 4, -1) if len(h) % 4 == 0 else h[None]
    return (groups - groups.mean(1, keepdims=True)).reshape(h.shape) if len(h) % 4 == 0 else h


COUPLED = {
    "mean": lambda h: h - h.mean(0),
    "softmax over the batch": lambda h: h * jax.nn.softmax(h[:, :1], axis=0),
    "cumsum": lambda h: jnp.cumsum(h, 0),
    "reversed": lambda h: h[::-1],
    "dropout": lambda h: nn.Dropout(0.5, deterministic=False).apply({}, h, rngs={"dropout": jax.random.key(0)}),
    "attention from three on": lambda h: jax.nn.softmax(h @ h.T) @ h if len(h) > 2 else h,
    "rolled by two": lambda h: h + jnp.roll(h, 2, 0),
    "pairs i and i + 2": lambda h: h * h[(jnp.arange(len(h)) + 2) % len(h)],
    "every fourth": lambda h: h + h[::4].sum(0) * (len(h) > 4),
    "groups of four": _ghost,
    "sorted over the batch": lambda h: jnp.sort(h, 0),
    "largest example": lambda h: h - h[jnp.argmax(h[:, 0])] * (len(h) > 1),
    "a threshold that no test value reaches": lambda h: jnp.where(h.mean() > 1e6, 2 * h, h),
    "a branch that no test value takes": lambda h: jax.lax.cond(h.max() > 1e6, lambda h: 2 * h, lambda h: h, h),
    "divided by the batch size": lambda h: h / len(h),
    "power of the batch size": lambda h: h ** len(h),
    "from eight examples on": lambda h: 2 * h if len(h) > 7 else h,
    "some rows are set": lambda h: h.at[4:].set(1.0),
    "rows are set by a table": lambda h: h.at[:, 0].set(jnp.arange(1.0, 1 + len(h))),
    "entries of the neighbour are set": lambda h: h.at[jnp.arange(len(h)), jnp.argmax(h[::-1], 1)].set(0.0),
    "place": lambda h: h * jnp.arange(1, 1 + len(h))[:, None],
    "places from five on": lambda h: h * (jnp.arange(len(h)) >= 5)[:, None],
    "state over the examples": lambda h: jax.lax.scan(lambda c, r: (c + r, c + r), jnp.zeros(4), h)[1],
    "neighbours one after the other": lambda h: jax.lax.map(lambda r: r @ h.T @ h, h),
    "convolution over the batch": lambda h: jnp.stack([jnp.convolve(c, jnp.ones(3))[: len(h)] for c in h.T], 1),
    "row by row of another": lambda h: jnp.take_along_axis(h[::-1], jnp.argsort(h, 1), 1),
}


@pytest.mark.parametrize("name", COUPLED)
def test_refuse_coupled_examples_of_each_kind(name):
    with pytest.raises(CoupledExamplesError):
        tangent_kernel(_with(COUPLED[name]), _W, _X)


def test_refuse_coupled_examples_of_integers():
    ids = jax.random.randint(jax.random.key(0), (8, 3), 0, 6)
    for change in (lambda i: i + jnp.roll(i, 2, 0) // 3, lambda i: i * (i.sum() > 1000), lambda i: jnp.sort(i, 0)):
        with pytest.raises(CoupledExamplesError):
            tangent_kernel(lambda p, x, f=change: p["w"][f(x) % 6].sum(1), _W, ids)


def test_refuse_coupled_examples_names_operation_and_line():
    with pytest.raises(
        CoupledExamplesError, match=r"reduce_sum combines the examples of the batch \(.*test_coupling.py:\d+.*\)"
    ):
        refuse_coupled_examples(_with(COUPLED["mean"]), _W, _X)


UNDECIDED = {
    "products of pairs": lambda h: jnp.diag(h @ h.T)[:, None],
    "sorted and back": lambda h: (lambda o: h[o][jnp.argsort(o)])(jnp.argsort(h[:, 0])),
    "in two halves": lambda h: jnp.concatenate([jnp.tanh(h[: len(h) // 2]), jnp.tanh(h[len(h) // 2 :])]),
    "loops that end together": lambda h: jax.vmap(
        lambda r: jax.lax.while_loop(lambda c: (c**2).sum() > 0.1, lambda c: c / 2, r)
    )(h),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_refuse_coupled_examples_warns_of_what_is_undecided(name):
    with pytest.warns(UserWarning, match="is not known to treat each example alone: .* with 8 of 8 examples"):
        refuse_coupled_examples(_with(UNDECIDED[name]), _W, _X)


def test_refuse_coupled_examples_evaluates_few_examples_of_a_large_program(monkeypatch):
    monkeypatch.setattr(coupling, "PROBED_NUMBERS", 2**10)
    with pytest.warns(UserWarning, match="with 4 of 64 examples"):
        refuse_coupled_examples(_with(UNDECIDED["products of pairs"]), _W, jnp.ones((64, 6)))


class _Mean(nn.Module):
    """Token ids with a padding, and the mean over the others."""

    padding: int = 0

    @nn.compact
    def __call__(self, ids):
        keep = (ids != self.padding)[..., None]
        return nn.Dense(1)((nn.Embed(20, 6)(ids) * keep).sum(1) / keep.sum(1))


class _Attention(nn.Module):
    @nn.compact
    def __call__(self, ids):
        h = nn.Embed(20, 6)(ids)
        scores = jnp.where((ids != 0)[:, None, :], jnp.einsum("bik,bjk->bij", h, h), -jnp.inf)
        return nn.Dense(1)(jnp.einsum("bij,bjk->bik", jax.nn.softmax(scores), h)[:, 0])


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("model", [_Mean(), _Mean(padding=1), _Attention()], ids=["mean", "padding 1", "attention"])
def test_refuse_coupled_examples_accepts_padding_masks(model, jitted):
    """An example of padding alone has no finite output; there is none in the batch."""
    ids, y = jnp.array([[3, 4, 0, 0], [5, 0, 0, 0], [7, 8, 9, 0], [1, 2, 3, 4]]), jnp.ones((4, 1))
    params = model.init(jax.random.key(0), ids)
    jacobian = explicit_jacobian(model.apply, params, ids)
    lr = lambda p, ids: critical_lr(model.apply, p, (ids, y), loss="mse")

    expected = 4 / np.linalg.eigvalsh(jacobian @ jacobian.T)[-1]

    assert float((jax.jit(lr) if jitted else lr)(params, ids)) == pytest.approx(expected, rel=1e-4)


def test_refuse_coupled_examples_of_a_model_for_one_batch_size():
    y = jnp.ones((8, 4))
    for change in (lambda h: h * y, lambda h: h.reshape(8, 4)):
        with pytest.raises(
            ValueError, match=r"^apply_fn (fails|returns shape) .* for a batch of \d in place of 8; allowed: .*any batch size"
        ):
            tangent_kernel(_with(change), _W, _X)


class _BatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))))


@pytest.mark.parametrize("method", METHODS)
def test_refuse_coupled_examples_of_batch_norm_in_training_mode(method):
    x = jax.random.normal(jax.random.key(0), (5, 6))
    variables = _BatchNorm().init(jax.random.key(0), x)

    def apply_fn(params, x):
        return _BatchNorm().apply({"params": params, "batch_stats": variables["batch_stats"]}, x, mutable=["batch_stats"])[0]

    with pytest.raises(CoupledExamplesError, match="BatchNorm"):
        jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x, method=method))(variables["params"], x)


def test_refuse_coupled_examples_evaluates_a_flax_module_once_per_shape(monkeypatch):
    probed, counts, probe = [], [], coupling._probe
    monkeypatch.setattr(coupling, "_probe", lambda *args: probed.append(1) or probe(*args))
    x, y = jnp.ones((3, 2, 7)), jnp.ones((3, 2, 11))
    for n, (model, inputs) in enumerate([(_Recurrent(), x), (_Recurrent(), x[:2]), (_Recurrent(), y)]):
        params = model.init(jax.random.key(n), inputs)
        jax.eval_shape(lambda p, f=model.apply, x=inputs: tangent_kernel(f, p, x), params)
        counts.append(len(probed))
    assert 0 < counts[0] == counts[1] < counts[2]
    centred = _Centred()
    variables = centred.init(jax.random.key(0), x)
    for _ in range(2):  # a refusal is not cached
        with pytest.raises(CoupledExamplesError):
            tangent_kernel(centred.apply, variables, x)


class _Recurrent(nn.Module):
    """A loop, in which a number may depend on the batch size."""

    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.SimpleCell(3))(x)[:, -1]


class _Centred(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(3)(x)
        return h - h.mean(0)


def test_refuse_coupled_examples_with_traced_values_closed_over():
    x = jnp.ones((4, 3))
    f = lambda scale, w: tangent_kernel(lambda w, x: (x * scale) @ w, w, x)

    assert relative_error(jax.jit(f)(jnp.float32(2), jnp.ones((3, 1))), 12 * np.ones((4, 4))) <= 1e-6


@pytest.mark.parametrize(
    "couple",
    [lambda x: jnp.log(x), lambda x: jnp.sqrt(x), lambda x: 1 / (x - x)],
    ids=["log", "root", "never finite"],
)
def test_refuse_coupled_examples_behind_functions_with_infinite_values(couple):
    centred = lambda p, x: (lambda h: h - h.mean(0))(couple(x) @ p)
    with pytest.raises(CoupledExamplesError):
        tangent_kernel(centred, jnp.ones((6, 4)), jnp.ones((5, 6)))
    if couple(jnp.float32(1)) < jnp.inf:
        tangent_kernel(lambda p, x: couple(x) @ p, jnp.ones((6, 4)), jnp.ones((5, 6)))


def test_refuse_coupled_examples_accepts_deep_and_half_precision_models():
    x = jnp.ones((2, 64))
    for model, dtype in ((FCN(depth=20, width=64), jnp.float32), (nn.Sequential([nn.Dense(64)] * 5), jnp.float16)):
        params = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), model.init(jax.random.key(0), x))
        jax.eval_shape(lambda p, x, f=model.apply: tangent_kernel(f, p, x), params, x.astype(dtype))


def test_refuse_coupled_examples_with_a_traced_key_closed_over():
    def kernel(key, w, x):
        noise = jax.random.normal(key, (3,))
        return tangent_kernel(lambda w, x: (x + noise + jax.random.normal(key, (3,))) @ w, w, x)

    assert jax.jit(kernel)(jax.random.key(0), jnp.ones((3, 1)), jnp.ones((4, 3))).shape == (4, 4)
