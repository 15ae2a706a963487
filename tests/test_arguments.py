"""Mistakes that users make end in one line that says what is allowed; what is no mistake is taken."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from catapult_jax import (
    FCN,
    Preconditioner,
    batch_loss,
    critical_lr,
    critical_lr_from_lambda,
    input_jacobian,
    loss_weighted_kernel,
    preconditioner_from_state,
    split_loss,
    tangent_kernel,
    top_eigenpairs,
)
from catapult_jax.tangent.weighted import weighted_kernel_and_gradient, weighted_tangent_kernel
from catapult_jax.testing import explicit_kernel, relative_error
from tests.zoo import QUICK

_PARAMS = {"a": jax.random.normal(jax.random.key(1), (5, 4)), "b": jax.random.normal(jax.random.key(2), (4, 1))}
_X = jax.random.normal(jax.random.key(0), (8, 5))
_Y = _X[:, :1]


def _model(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


def _top(f=_model, p=None, batch=(_X, _Y), loss="mse", **options):
    return top_eigenpairs(f, _PARAMS if p is None else p, batch, k=1, loss=loss, **options)


def _critical(f=_model, p=None, batch=(_X, _Y), loss="mse", **options):
    return critical_lr(f, _PARAMS if p is None else p, batch, loss=loss, **options)


def _kernel(f=_model, p=None, batch=(_X, _Y), **options):
    return tangent_kernel(f, _PARAMS if p is None else p, batch[0], **options)


def _raises(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "allowed" in str(raised.value) and "\n" not in str(raised.value)


ARRAYS = {
    "complex outputs": (
        dict(f=lambda p, x: _model(p, x) * 1j),
        "apply_fn returns dtype complex64; allowed: real floating-point",
    ),
    "complex parameters": (
        dict(p={"a": _PARAMS["a"] * 1j, "b": _PARAMS["b"]}),
        r"params\['a'\] has dtype complex64; allowed: real floating-point",
    ),
    "integer outputs": (dict(f=lambda p, x: jnp.argmax(x @ p["a"], 1)), "apply_fn returns dtype int32; allowed"),
    "no outputs": (dict(f=lambda p, x: _model(p, x)[:, :0]), r"apply_fn returns shape \(8, 0\); allowed"),
    "several outputs": (dict(f=lambda p, x: (_model(p, x), x)), "apply_fn returns tuple; allowed: one array"),
    "a dict of outputs": (dict(f=lambda p, x: {"logits": _model(p, x)}), "apply_fn returns dict; allowed: one array"),
    "no parameters": (dict(p={}), "params has no arrays; allowed"),
    "None alone": (dict(p={"a": None}), "params has no arrays; allowed"),
    "a function among the parameters": (
        dict(p=_PARAMS | {"activation": jnp.tanh}),
        r"params\['activation'\] is a .*; allowed: .*equinox.partition\(model, equinox.is_inexact_array\)",
    ),
    "objects among the parameters": (dict(p=_PARAMS | {"n": np.array([{}])}), r"params\['n'\] has dtype object; allowed"),
    "integers among the parameters": (dict(p=_PARAMS | {"n": jnp.arange(3)}), r"params\['n'\] has dtype int32; allowed"),
    "x as a dict": (dict(batch=({"ids": _X}, _Y)), "x is a dict; allowed: one array"),
    "x as a list": (dict(batch=([_X, _X], _Y)), "x is a list; allowed: one array"),
    "x of objects": (dict(batch=(np.array([{}] * 8), _Y)), "x has dtype object; allowed: numbers"),
    "a scalar x": (dict(batch=(jnp.float32(1), _Y)), r"x has shape \(\); allowed"),
    "no examples": (dict(batch=(_X[:0], _Y[:0])), r"x has shape \(0, 5\); allowed: .* b at least 1"),
    "an array of this batch": (
        dict(f=lambda p, x: _model(p, x) * _Y),
        r"apply_fn returns shape \(8, 1\) for a batch of \d in place of 8",
    ),
    "one batch size": (
        dict(f=lambda p, x: _model(p, x.reshape(8, 5))),
        r"apply_fn fails \(.*\) for a batch of \d in place of 8",
    ),
    "batch statistics": (
        dict(f=lambda v, x: _model(v["params"], x), p={"params": _PARAMS, "batch_stats": {"mean": jnp.ones(3)}}),
        "params holds the collection 'batch_stats', which is no parameter; allowed: variables",
    ),
}
BATCHES = {
    "a dict": (dict(batch={"image": _X, "label": _Y}), r"batch is a dict; allowed: a pair \(x, targets\)"),
    "an array": (dict(batch=_X), "batch is a .*; allowed: a pair"),
    "x alone": (dict(batch=(_X,)), "batch is a tuple of 1; allowed: a pair"),
    "three arrays": (dict(batch=[_X, _Y, _Y]), "batch is a list of 3; allowed: a pair"),
    "no targets": (dict(batch=(_X, None)), "targets is a NoneType; allowed: one array"),
    "targets of objects": (dict(batch=(_X, np.array([{}] * 8))), "targets has dtype object; allowed: numbers"),
    "complex targets": (dict(batch=(_X, _Y * 1j)), "targets has dtype complex64; allowed: real"),
    "too few targets": (dict(batch=(_X, _Y[:4])), r"targets has shape \(4, 1\); allowed for outputs \(8, 1\)"),
    "targets of another kind": (
        dict(batch=(_X, _Y[:, 0]), loss="softmax_cross_entropy"),
        r"dtype float32; allowed .* integers \(b,\)",
    ),
    "an unknown loss": (dict(loss="l1"), "loss='l1'; allowed: mse"),
}
TREES = {
    "preconditioner of another container": (
        dict(p=freeze(_PARAMS), preconditioner=jax.tree.map(jnp.ones_like, _PARAMS)),
        r"preconditioner has other leaves .*\(dict in place of FrozenDict\); allowed",
    ),
    "preconditioner of other shapes": (
        dict(preconditioner={"a": jnp.ones((5, 4)), "b": jnp.ones(4)}),
        r"\(\['b'\] has shape \(4,\) for \(4, 1\)\); allowed",
    ),
    "preconditioner of fewer leaves": (dict(preconditioner={"a": jnp.ones((5, 4))}), "another structure"),
}


@pytest.mark.parametrize("function", [_kernel, _critical, _top], ids=["tangent_kernel", "critical_lr", "top_eigenpairs"])
@pytest.mark.parametrize("case", ARRAYS)
def test_arguments_that_are_refused(function, case, monkeypatch):
    """Before anything is compiled."""
    changed, message = ARRAYS[case]
    monkeypatch.setattr(jax, "jit", None)
    _raises(lambda: function(**changed), message)


@pytest.mark.parametrize("function", [_critical, _top], ids=["critical_lr", "top_eigenpairs"])
@pytest.mark.parametrize("case", BATCHES)
def test_batches_that_are_refused(function, case):
    changed, message = BATCHES[case]
    _raises(lambda: function(**changed), message)


@pytest.mark.parametrize("function", [_kernel, _top], ids=["tangent_kernel", "top_eigenpairs"])
@pytest.mark.parametrize("case", TREES)
def test_preconditioners_that_are_refused(function, case):
    changed, message = TREES[case]
    _raises(lambda: function(**changed), message)


def test_other_functions_refuse_their_batches():
    for function in (
        lambda batch: weighted_kernel_and_gradient(_model, _PARAMS, batch, loss="mse"),
        lambda batch: weighted_tangent_kernel(_model, _PARAMS, batch, _Y, loss="mse"),
    ):
        _raises(lambda f=function: f({"x": _X}), "batch is a dict; allowed")


@pytest.mark.parametrize("name", ["outputs", "targets"])
def test_batch_loss_refuses_complex_numbers(name):
    arrays = {"outputs": _Y, "targets": _Y}
    _raises(lambda: batch_loss(**arrays | {name: _Y * 1j}, loss="mse"), f"{name} has dtype complex64; allowed: real")


def test_split_loss_refuses_eigenvectors_of_another_batch():
    for previous in (jnp.eye(8)[:, :3], jnp.eye(4)[:, :2]):
        split = lambda v=previous: split_loss(jnp.eye(4), jnp.ones(4), jnp.zeros(4), loss="mse", k=3, previous=v)
        _raises(split, r"previous has shape .*; allowed: \(4, 3\), eigenvectors of the same batch size and k")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradients_that_do_not_exist(wrap):
    _raises(
        lambda: jax.grad(wrap(lambda p: _top(p=p).eigenvalues[0]))(_PARAMS),
        "top_eigenpairs has no derivative in params; allowed",
    )
    chunked = wrap(lambda p: _kernel(p=p, chunk_size=2).sum())
    _raises(lambda: jax.grad(chunked)(_PARAMS), r"chunk_size with a gradient \(reverse mode\); allowed: chunk_size=None")


def test_derivatives_that_do_exist():
    """Of the whole kernel in both modes; of one in chunks forward, and beside a gradient where it is only looked at."""
    total = lambda p, **options: _kernel(p=p, **options).sum()
    gradient = jax.grad(total)(_PARAMS)
    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, _PARAMS)))
    chunked = functools.partial(total, chunk_size=2)
    assert float(jax.jvp(chunked, (_PARAMS,), (_PARAMS,))[1]) == pytest.approx(float(slope), rel=1e-4)
    beside = lambda p: (jnp.sum(p["a"]), chunked(p))
    assert float(jax.value_and_grad(beside, has_aux=True)(_PARAMS)[0][1]) == pytest.approx(float(total(_PARAMS)), rel=1e-5)
    held = lambda p: _top(p=jax.lax.stop_gradient(p)).eigenvalues[0] + jnp.sum(p["a"])
    np.testing.assert_array_equal(jax.grad(held)(_PARAMS)["a"], jnp.ones((5, 4)))


# ---- parameters in other containers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Weights:
    """Without ``__eq__``: two of them are never equal."""

    a: jax.Array
    b: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=("weight", "activation"), meta_fields=("size",))
@dataclasses.dataclass(frozen=True)
class Module:
    """As Equinox has them: functions are leaves, other fields are static."""

    weight: jax.Array
    activation: object
    size: int

    def __call__(self, x):
        return self.activation(x @ self.weight)


def _arrays_and_rest(module):
    is_array = lambda leaf: isinstance(leaf, (jax.Array, np.ndarray))
    arrays = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, module)
    rest = jax.tree.map(lambda leaf: None if is_array(leaf) else leaf, module)
    return arrays, rest


def _all_ways(f, params):
    """The top eigenvalue, cold, warm, with a preconditioner of ones, and from the kernel; they agree."""
    cold = _top(f, params)
    ones = jax.tree.map(jnp.ones_like, params)
    top = [
        cold.eigenvalues[0],
        _top(f, params, warm_start=cold.directions).eigenvalues[0],
        _top(f, params, preconditioner=ones).eigenvalues[0],
        2 / _critical(f, params, preconditioner=Preconditioner(ones)),
    ]
    np.testing.assert_allclose(top, top[-1], rtol=0.01)
    return float(top[-1])


def test_params_without_an_equality():
    weights = Weights(**_PARAMS)
    assert _all_ways(lambda w, x: _model({"a": w.a, "b": w.b}, x), weights) == pytest.approx(2 / float(_critical()), rel=1e-5)


def test_params_as_a_flax_nnx_module():
    module = nnx.Linear(5, 1, rngs=nnx.Rngs(0))
    linear = {"w": module.kernel[...], "b": module.bias[...]}
    expected = 2 / float(_critical(lambda p, x: x @ p["w"] + p["b"], linear))
    assert _all_ways(lambda m, x: m(x), module) == pytest.approx(expected, rel=1e-5)
    graph, params = nnx.split(module, nnx.Param)
    assert _all_ways(lambda p, x: nnx.merge(graph, p)(x), params) == pytest.approx(expected, rel=1e-5)


class _Dropped(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.dropout = nnx.Linear(5, 1, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def test_flax_nnx_modules_that_are_refused():
    dropped = _Dropped(nnx.Rngs(0))
    graph, params, rest = nnx.split(dropped, nnx.Param, ...)
    for function in (_kernel, _critical, _top):
        _raises(
            lambda f=function: f(lambda p, x: nnx.merge(graph, p, rest)(x), params),
            r"apply_fn changes the state of a Flax NNX module .*; allowed: .*model.eval\(\)",
        )
    _raises(lambda: _kernel(lambda m, x: m(x), dropped), r"has dtype .*; allowed: .*nnx.split\(model, nnx.Param, ...\)")
    normed = nnx.BatchNorm(5, use_running_average=True, rngs=nnx.Rngs(0))
    for tree in (normed, nnx.state(normed)):
        _raises(
            lambda t=tree: _kernel(lambda m, x: x, t), r"params holds a BatchStat, which is no parameter; allowed: nnx.Param"
        )


def test_params_as_a_module_with_functions_among_its_leaves():
    module = Module(jax.random.normal(jax.random.key(0), (5, 1)), jnp.tanh, 5)
    _raises(lambda: _top(lambda m, x: m(x), module), r"params.activation is a .*; allowed: .*equinox.partition")
    arrays, rest = _arrays_and_rest(module)
    combined = lambda p, x: jax.tree.map(lambda a, b: b if a is None else a, p, rest, is_leaf=lambda v: v is None)(x)
    expected = 2 / float(_critical(lambda w, x: jnp.tanh(x @ w), module.weight))
    assert _all_ways(combined, arrays) == pytest.approx(expected, rel=1e-5)


# ---- no implicit promotion of dtypes and ranks


def _strict_problem(dtype, loss):
    outputs = {"mse": 2, "softmax_cross_entropy": 3, "logistic": 1}[loss]
    model = FCN(depth=2, width=6, bias=True, outputs=outputs)
    x = _X.astype(dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(jax.random.key(0), _X))
    targets = {
        "mse": jnp.ones((8, 2), dtype),
        "softmax_cross_entropy": jnp.arange(8) % 3,
        "logistic": (jnp.arange(8) % 2).astype(dtype),
    }[loss]
    return model.apply, params, x, targets


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"method": "jacobian"}, {"chunk_size": 3}, {"preconditioner": True}], ids=str)
def test_tangent_kernel_without_promotion(strict, dtype, options):
    apply_fn, params, x, _ = _strict_problem(dtype, "mse")
    if "preconditioner" in options:
        options = {"preconditioner": jax.tree.map(jnp.ones_like, params)}
    found = jax.jit(lambda p: tangent_kernel(apply_fn, p, x, **options), compiler_options=QUICK)(params)
    assert found.dtype == jnp.float32
    as_single = jax.tree.map(lambda a: a.astype(jnp.float32), (params, x))
    expected = explicit_kernel(apply_fn, *as_single)
    assert relative_error(found, expected) <= (1e-5 if dtype == jnp.float32 else 0.02)  # two digits of bfloat16


@pytest.mark.parametrize("loss", ["mse", "softmax_cross_entropy", "logistic"])
def test_critical_lr_without_promotion(strict, loss):
    apply_fn, params, x, targets = _strict_problem(jnp.float32, loss)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def all_of_them(params):
        outputs = apply_fn(params, x)
        _, weighted, _ = weighted_kernel_and_gradient(apply_fn, params, (x, targets), loss=loss)
        whole = loss_weighted_kernel(tangent_kernel(apply_fn, params, x), outputs, targets, loss=loss)
        critical = critical_lr(apply_fn, params, (x, targets), loss=loss)
        return batch_loss(outputs, targets, loss=loss), jnp.trace(weighted), jnp.trace(whole), critical

    strictly = all_of_them(params)
    assert float(strictly[1]) == pytest.approx(float(strictly[2]), rel=1e-4)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(strictly, all_of_them(params), rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adam", "adamw", "adadelta"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_preconditioner_from_state_without_promotion(strict, name, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), _PARAMS)
    optimizer = getattr(optax, name)
    before = optimizer(0.1).init(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself promotes
        updates, after = optimizer(0.1).update(params, before, params)
    rule = preconditioner_from_state(optimizer, params, after, before, updates=updates, gradient=params, learning_rate=0.1)
    assert rule.checked is True
    assert 0 < float(critical_lr_from_lambda(jnp.float32(1), rule)) < np.inf


def test_input_jacobian_without_promotion(strict):
    apply_fn, params, x, _ = _strict_problem(jnp.float32, "mse")
    assert input_jacobian(apply_fn, params, x).shape == (16, 5)


def test_variables_of_linen_are_taken_where_all_are_parameters():
    model = nn.Dense(1)
    variables = model.init(jax.random.key(0), _X)
    whole, inner = _kernel(model.apply, variables), _kernel(lambda p, x: model.apply({"params": p}, x), variables["params"])
    np.testing.assert_array_equal(whole, inner)
