"""Arguments of the public functions, across modules.

A mistake gives one line that says what is allowed. Any container of arrays works.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from catapult_jax import (
    FCN,
    Preconditioner,
    batch_loss,
    critical_lr,
    loss_weighted_kernel,
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
    "text in x": (dict(batch=({"ids": "text"}, _Y)), r"x\['ids'\] is a str; allowed: an array, or a pytree"),
    "x without arrays": (dict(batch=({}, _Y)), "x is a dict without arrays; allowed"),
    "x of two sizes": (dict(batch=((_X, _X[:4]), _Y)), r"x\[1\] has shape \(4, 5\); allowed: 8 examples, as x\[0\] has"),
    "x of objects": (dict(batch=(np.array([{}] * 8), _Y)), "x has dtype object; allowed: numbers"),
    "a scalar x": (dict(batch=(jnp.float32(1), _Y)), r"x has shape \(\); allowed"),
    "no examples": (dict(batch=(_X[:0], _Y[:0])), r"x has shape \(0, 5\); allowed: .* b at least 1"),
    "batch statistics": (
        dict(f=lambda v, x: _model(v["params"], x), p={"params": _PARAMS, "batch_stats": {"mean": jnp.ones(3)}}),
        "params holds the collection 'batch_stats', which is no parameter; allowed: variables",
    ),
}
BLOCKS = {  # for functions that take each example alone
    "an array of this batch": (
        dict(f=lambda p, x: _model(p, x) * _Y),
        r"apply_fn returns shape \(8, 1\) for a batch of \d in place of 8",
    ),
    "one batch size": (
        dict(f=lambda p, x: _model(p, x.reshape(8, 5))),
        r"apply_fn fails \(.*\) for a batch of \d in place of 8",
    ),
}
BATCHES = {
    "a dict": (dict(batch={"image": _X, "label": _Y}), r"batch is a dict; allowed: a pair \(x, targets\)"),
    "an array": (dict(batch=_X), "batch is a .*; allowed: a pair"),
    "x alone": (dict(batch=(_X,)), "batch is a tuple of 1; allowed: a pair"),
    "three arrays": (dict(batch=[_X, _Y, _Y]), "batch is a list of 3; allowed: a pair"),
    "no targets": (dict(batch=(_X, None)), "targets is a NoneType; allowed for loss=.*: one array"),
    "targets of objects": (dict(batch=(_X, np.array([{}] * 8))), "targets has dtype object; allowed: numbers"),
    "complex targets": (dict(batch=(_X, _Y * 1j)), "targets has dtype complex64; allowed: real"),
    "too few targets": (dict(batch=(_X, _Y[:4])), r"targets has shape \(4, 1\); allowed for outputs \(8, 1\)"),
    "one class": (dict(batch=(_X, _Y[:, 0]), loss="softmax_cross_entropy"), "2 classes or more; for one output, logistic"),
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
def test_bad_arrays_are_refused_before_compilation(function, case, monkeypatch):
    changed, message = ARRAYS[case]
    monkeypatch.setattr(jax, "jit", None)

    _raises(lambda: function(**changed), message)


@pytest.mark.parametrize(
    "function",
    [_kernel, _critical, functools.partial(_top, chunk_size=2)],
    ids=["tangent_kernel", "critical_lr", "top_eigenpairs"],
)
@pytest.mark.parametrize("case", BLOCKS)
def test_functions_of_one_batch_are_refused_by_blocks_of_examples(function, case):
    changed, message = BLOCKS[case]

    _raises(lambda: function(**changed), message)


@pytest.mark.parametrize("function", [_critical, _top], ids=["critical_lr", "top_eigenpairs"])
@pytest.mark.parametrize("case", BATCHES)
def test_bad_batches_are_refused(function, case):
    changed, message = BATCHES[case]

    _raises(lambda: function(**changed), message)


@pytest.mark.parametrize("function", [_kernel, _top], ids=["tangent_kernel", "top_eigenpairs"])
@pytest.mark.parametrize("case", TREES)
def test_bad_preconditioners_are_refused(function, case):
    changed, message = TREES[case]

    _raises(lambda: function(**changed), message)


WEIGHTED = {
    "weighted_kernel_and_gradient": lambda batch: weighted_kernel_and_gradient(_model, _PARAMS, batch, loss="mse"),
    "weighted_tangent_kernel": lambda batch: weighted_tangent_kernel(_model, _PARAMS, batch, _Y, loss="mse"),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_kernels_refuse_a_batch_that_is_no_pair(name):
    _raises(lambda: WEIGHTED[name]({"x": _X}), "batch is a dict; allowed")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_top_eigenpairs_refuses_a_gradient(wrap):
    top = wrap(lambda p: _top(p=p).eigenvalues[0])

    _raises(lambda: jax.grad(top)(_PARAMS), "top_eigenpairs has no derivative in params; allowed")


def test_top_eigenpairs_allows_a_gradient_beside_it():
    total = lambda p: _top(p=jax.lax.stop_gradient(p)).eigenvalues[0] + jnp.sum(p["a"])

    np.testing.assert_array_equal(jax.grad(total)(_PARAMS)["a"], jnp.ones((5, 4)))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_tangent_kernel_in_chunks_refuses_reverse_mode(wrap):
    chunked = wrap(lambda p: _kernel(p=p, chunk_size=2).sum())

    _raises(lambda: jax.grad(chunked)(_PARAMS), r"chunk_size with a gradient \(reverse mode\); allowed: chunk_size=None")


def test_tangent_kernel_in_chunks_has_the_forward_derivative_of_the_whole():
    gradient = jax.grad(lambda p: _kernel(p=p).sum())(_PARAMS)
    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, _PARAMS)))

    _, chunked_slope = jax.jvp(lambda p: _kernel(p=p, chunk_size=2).sum(), (_PARAMS,), (_PARAMS,))

    assert float(chunked_slope) == pytest.approx(float(slope), rel=1e-4)


def test_tangent_kernel_in_chunks_allows_a_gradient_beside_it():
    beside = lambda p: (jnp.sum(p["a"]), _kernel(p=p, chunk_size=2).sum())

    (_, total), _ = jax.value_and_grad(beside, has_aux=True)(_PARAMS)

    assert float(total) == pytest.approx(float(_kernel().sum()), rel=1e-5)


# ---- parameters in other containers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Weights:
    """A container without ``__eq__``: two instances are never equal."""

    a: jax.Array
    b: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=("weight", "activation"), meta_fields=("size",))
@dataclasses.dataclass(frozen=True)
class Module:
    """A module as in Equinox: functions are leaves, other fields are static."""

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


def _lambda_max(f, params):
    """The top eigenvalue four ways, which agree: cold, warm, with a preconditioner of ones, and from the kernel."""
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
    assert _lambda_max(lambda w, x: _model({"a": w.a, "b": w.b}, x), weights) == pytest.approx(2 / float(_critical()), rel=1e-5)


def test_params_in_a_flax_nnx_module():
    module = nnx.Linear(5, 1, rngs=nnx.Rngs(0))
    linear = {"w": module.kernel[...], "b": module.bias[...]}
    expected = 2 / float(_critical(lambda p, x: x @ p["w"] + p["b"], linear))
    assert _lambda_max(lambda m, x: m(x), module) == pytest.approx(expected, rel=1e-5)


class _Dropped(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.dropout = nnx.Linear(5, 1, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def test_flax_nnx_modules_with_other_state_are_refused():
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


def test_params_in_a_module_with_functions_among_its_leaves():
    module = Module(jax.random.normal(jax.random.key(0), (5, 1)), jnp.tanh, 5)
    _raises(lambda: _top(lambda m, x: m(x), module), r"params.activation is a .*; allowed: .*equinox.partition")
    arrays, rest = _arrays_and_rest(module)
    combined = lambda p, x: jax.tree.map(lambda a, b: b if a is None else a, p, rest, is_leaf=lambda v: v is None)(x)
    expected = 2 / float(_critical(lambda w, x: jnp.tanh(x @ w), module.weight))
    assert _lambda_max(combined, arrays) == pytest.approx(expected, rel=1e-5)


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

    kernel = jax.jit(lambda p: tangent_kernel(apply_fn, p, x, **options), compiler_options=QUICK)(params)

    assert kernel.dtype == jnp.float32
    in_float32 = jax.tree.map(lambda a: a.astype(jnp.float32), (params, x))
    expected = explicit_kernel(apply_fn, *in_float32)
    assert relative_error(kernel, expected) <= (1e-5 if dtype == jnp.float32 else 0.02)  # two digits of bfloat16


@pytest.mark.parametrize("loss", ["mse", "softmax_cross_entropy", "logistic"])
def test_critical_lr_without_promotion(strict, loss):
    apply_fn, params, x, targets = _strict_problem(jnp.float32, loss)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def numbers(params):
        outputs = apply_fn(params, x)
        _, weighted, _ = weighted_kernel_and_gradient(apply_fn, params, (x, targets), loss=loss)
        whole = loss_weighted_kernel(tangent_kernel(apply_fn, params, x), outputs, targets, loss=loss)
        critical = critical_lr(apply_fn, params, (x, targets), loss=loss)
        return batch_loss(outputs, targets, loss=loss), jnp.trace(weighted), jnp.trace(whole), critical

    strictly = numbers(params)

    assert float(strictly[1]) == pytest.approx(float(strictly[2]), rel=1e-4)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(strictly, numbers(params), rtol=1e-5)


def test_tangent_kernel_takes_linen_variables_that_are_all_parameters():
    model = nn.Dense(1)
    variables = model.init(jax.random.key(0), _X)

    whole, inner = _kernel(model.apply, variables), _kernel(lambda p, x: model.apply({"params": p}, x), variables["params"])

    np.testing.assert_array_equal(whole, inner)
