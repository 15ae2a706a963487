"""The kernel of every model in the zoo against a float64 Jacobian and neural_tangents."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from catapult_jax import CNN, FCN, critical_lr, tangent_kernel, top_eigenpairs
from catapult_jax.eigenspace import split_weighted_loss
from catapult_jax.tangent import exact, layers, neural_tangents
from catapult_jax.tangent.coupling import refuse_coupled_examples
from catapult_jax.tangent.weighted import weighted_kernel_and_gradient
from catapult_jax.testing import explicit_jacobian, explicit_kernel, relative_error
from tests.zoo import QUICK, ZOO, build


def widen(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


@pytest.mark.parametrize("name", ZOO)
def test_kernel_is_exact_and_agrees_with_neural_tangents(name):
    apply_fn, params, x = build(name)
    oracle = explicit_kernel(apply_fn, params, x)
    ours = lambda p, x: tangent_kernel(apply_fn, p, x)
    # A few are compiled as in use, the others in a hurry.
    single = jax.jit(ours, compiler_options=None if name in ("fcn", "cnn", "vit, bias, three outputs") else QUICK)(params, x)
    assert single.dtype == jnp.float32
    assert relative_error(single, oracle) <= 1e-5
    with jax.enable_x64():
        params, x = widen((params, x))
        double = jax.jit(ours, compiler_options=QUICK)(params, x)
        reference = jax.jit(lambda p, x: neural_tangents.empirical_kernel(apply_fn, p, x), compiler_options=QUICK)(params, x)
        assert double.dtype == jnp.float64
    assert relative_error(double, oracle) <= 1e-12
    assert relative_error(double, np.asarray(reference)) <= 1e-12


@pytest.mark.parametrize(
    "name", ["fcn bias, ten outputs", "conv {'feature_group_count': 2, 'strides': 2}", "attention and norms"]
)
def test_jacobian_method_agrees(name):
    apply_fn, params, x = build(name)
    assert (
        relative_error(
            jax.jit(lambda p: tangent_kernel(apply_fn, p, x, method="jacobian"), compiler_options=QUICK)(params),
            explicit_kernel(apply_fn, params, x),
        )
        <= 1e-5
    )


@pytest.mark.parametrize(
    ("name", "uncovered"),
    [
        ("fcn bias, ten outputs", 0),
        ("cnn strided, average, outputs", 0),
        ("dense over axes, twice", 0),
        ("batch folded", 0),
        ("attention and norms", 1),  # the positional parameter
        ("embedding", 0),
        ("tied embedding", 1),
        ("parameters outside a module", 2),
        ("running batch norm", 0),
    ],
)
def test_structured_covers_what_it_can_and_names_what_it_cannot(name, uncovered):
    apply_fn, params, x = build(name)
    plan = layers.plan(apply_fn, params, x)
    assert len(jax.tree.leaves(params)) - len(plan.covered | plan.norms) == uncovered
    if uncovered:
        with pytest.raises(ValueError, match=r"no rule for parameters \["):
            tangent_kernel(apply_fn, params, x, method="structured")
    else:
        jax.eval_shape(lambda p: tangent_kernel(apply_fn, p, x, method="structured"), params)


def test_of_a_transformer_only_the_positions_have_no_rule():
    apply_fn, params, x = build("vit, bias, three outputs")
    refuse_coupled_examples(apply_fn, params, x)
    with pytest.raises(ValueError, match=re.escape("no rule for parameters ['positions']; allowed")):
        tangent_kernel(apply_fn, params, x, method="structured")


@pytest.mark.parametrize("name", ["fcn bias, ten outputs", "attention and norms", "cnn strided, average, outputs", "embedding"])
def test_combinations_of_outputs_and_preconditioner(name):
    """C^T J P^-1 J^T C against the explicit Jacobian, whole and in chunks that do not divide the batch."""
    apply_fn, params, x = build(name)
    rng = np.random.default_rng(0)
    o = jax.eval_shape(apply_fn, params, x).shape[1]
    cotangents = rng.standard_normal((len(x), o, 2)).astype(np.float32)
    preconditioner = jax.tree.map(lambda p: rng.uniform(0.5, 2, p.shape).astype(np.float32), params)
    combined = explicit_jacobian(apply_fn, params, x).reshape(len(x), o, -1)
    combined = np.einsum("ior,iop->irp", cotangents.astype(np.float64), combined).reshape(2 * len(x), -1)
    weights = np.asarray(ravel_pytree(preconditioner)[0], np.float64)
    for given, oracle in ((None, combined @ combined.T), (preconditioner, combined / weights @ combined.T)):
        for chunk_size in (None, 2):
            options = dict(cotangents=cotangents, preconditioner=given, chunk_size=chunk_size)
            kernel = jax.jit(lambda p, x, options=options: tangent_kernel(apply_fn, p, x, **options), compiler_options=QUICK)
            assert relative_error(kernel(params, x), oracle) <= 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "fcn bias, ten outputs",
        "cnn strided, average, outputs",
        "dense over axes, twice",
        "attention and norms",
        "embedding",
        "parameters outside a module",
    ],
)
def test_pull_back_with_the_kernel(name):
    """The gradient of any combination of the outputs, from the derivatives that the kernel is made of."""
    apply_fn, params, x = build(name)
    rng = np.random.default_rng(0)
    out = jax.eval_shape(apply_fn, params, x)
    o = out.size // len(x)
    basis, a = (rng.standard_normal(shape).astype(np.float32) for shape in ((o, 2), (len(x), 2)))

    def both(params):
        outputs, kernel, pullback = exact.kernel_and_pullback(apply_fn, params, x, basis)
        return outputs, kernel, pullback(jnp.asarray(a))

    outputs, kernel, gradient = jax.jit(both, compiler_options=QUICK)(params)
    np.testing.assert_allclose(outputs, apply_fn(params, x), rtol=1e-4, atol=1e-5)
    jacobian = explicit_jacobian(apply_fn, params, x)
    combined = np.einsum("or,iop->irp", basis.astype(np.float64), jacobian.reshape(len(x), o, -1)).reshape(2 * len(x), -1)
    assert relative_error(kernel, combined @ combined.T) <= 1e-5
    assert relative_error(ravel_pytree(gradient)[0], a.reshape(-1) @ combined) <= 1e-5


@pytest.mark.parametrize("name", ["fcn bias, ten outputs", "embedding", "cnn strided, average, outputs"])
def test_shared_over_devices(name):
    """Eight devices (four, where the batch is smaller) give what one gives."""
    apply_fn, params, x = build(name)
    assert jax.device_count() == 8  # tests/conftest.py asks for them
    x = jnp.concatenate([x, x[:, ::-1], jnp.roll(x, 1, 1)])[:8]
    oracle = explicit_kernel(apply_fn, params, x)
    alone = np.asarray(jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x), compiler_options=QUICK)(params, x))
    for devices in (8, 4):
        mesh = jax.make_mesh((devices,), ("examples",), devices=jax.devices()[:devices])
        kernel = jax.jit(lambda p, x, mesh=mesh: tangent_kernel(apply_fn, p, x, mesh=mesh), compiler_options=QUICK)(params, x)
        assert len(kernel.sharding.device_set) == devices
        assert relative_error(kernel, alone) <= 1e-6
        assert relative_error(kernel, oracle) <= 1e-5


def test_gradients_are_held_a_slice_at_a_time(monkeypatch):
    apply_fn, params, x = build("cnn strided, average, outputs")
    monkeypatch.setattr(exact, "HELD_NUMBERS", 200)
    kernel = jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x), compiler_options=QUICK)(params, x)
    assert relative_error(kernel, explicit_kernel(apply_fn, params, x)) <= 1e-5


@pytest.mark.parametrize("name", ["fcn", "cnn", "dense over axes, twice"])
def test_same_under_jit_vmap_and_scan(name):
    apply_fn, params, x = build(name)
    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), params)
    kernel = lambda p: tangent_kernel(apply_fn, p, x)
    one_by_one = np.stack([explicit_kernel(apply_fn, jax.tree.map(lambda a, i=i: a[i], several), x) for i in range(3)])
    _, scanned = jax.jit(lambda ps: jax.lax.scan(lambda c, p: (c, kernel(p)), 0, ps))(several)
    assert relative_error(jax.jit(jax.vmap(kernel))(several), one_by_one) <= 1e-5
    assert relative_error(scanned, one_by_one) <= 1e-5
    eager = tangent_kernel(apply_fn, params, x)
    assert relative_error(eager, one_by_one[0]) <= 1e-5


def test_a_parameter_aliased_in_the_tree_is_two_parameters():
    apply_fn, params, x = build("fcn")
    shared = params["hidden_1"]["kernel"]
    aliased = params | {"hidden_1": {"kernel": shared}, "unused": {"kernel": shared}}
    use = lambda p, x: apply_fn({k: p[k] for k in params}, x)
    assert relative_error(tangent_kernel(use, aliased, x), explicit_kernel(apply_fn, params, x)) <= 1e-5


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    "shape, expected",
    [
        ({"r": 1, "p": 30, "g": 1, "m": 2, "c": 3}, "gradients"),
        ({"r": 2, "p": 30, "g": 2, "m": 2, "c": 3}, "gradients"),
        ({"r": 1, "p": 2, "g": 1, "m": 60, "c": 50}, "outer first"),
        ({"r": 2, "p": 2, "g": 2, "m": 60, "c": 90}, "outer first"),
        ({"r": 9, "p": 8, "g": 1, "m": 60, "c": 10}, "outer last"),
        ({"r": 9, "p": 8, "g": 2, "m": 60, "c": 10}, "outer last"),
        ({"r": 2, "p": 1, "g": 1, "m": 5, "c": 3}, "product of two kernels"),
    ],
    ids=str,
)
def test_orders_of_the_sum_over_places(monkeypatch, shape, expected, same):
    """The order that the shapes ask for, against per-example gradients in float64; with so little room that strips are many."""
    r, p, g, m, c = (shape[name] for name in "rpgmc")
    a, b = 5, 5 if same else 4
    keys = jax.random.split(jax.random.key(0), 4)
    left = jax.random.normal(keys[0], (a, p, g, m)), jax.random.normal(keys[1], (a, r, p, g, c))
    right = left if same else (jax.random.normal(keys[2], (b, p, g, m)), jax.random.normal(keys[3], (b, r, p, g, c)))
    taken, by_gradients, by_pairs = [], exact._by_gradients, exact._by_pairs
    monkeypatch.setattr(exact, "_by_gradients", lambda *args, **kw: taken.append("gradients") or by_gradients(*args, **kw))
    pairs = lambda *args, **kw: taken.append("outer first" if kw["outer_first"] else "outer last") or by_pairs(*args, **kw)
    monkeypatch.setattr(exact, "_by_pairs", pairs)
    gradients = lambda rows, d: np.einsum("ipgm,iopgc->iogmc", *(np.asarray(v, np.float64) for v in (rows, d)))
    oracle = np.einsum("iogmc,jrgmc->iojr", gradients(*left), gradients(*right)).reshape(a * r, b * r)
    for room in (exact.HELD_NUMBERS, 2000) if same else (exact.HELD_NUMBERS,):
        monkeypatch.setattr(exact, "HELD_NUMBERS", room)
        gram = lambda left, right: exact._weight_gram(left, left if same else right, lambda rows: rows, same=same)
        found = jax.jit(gram, compiler_options=QUICK)(left, right)
        assert relative_error(found, oracle) <= 1e-5
    assert set(taken) == {expected} - {"product of two kernels"}


_BATCH = jnp.ones((2, 6, 6, 1)), jnp.ones((2, 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda f, p, x: tangent_kernel(f, p, x),
        lambda f, p, x: tangent_kernel(f, p, x, method="jacobian"),
        lambda f, p, x: tangent_kernel(f, p, x, preconditioner=p),
        lambda f, p, x: critical_lr(f, p, (x, _BATCH[1]), loss="mse"),
        lambda f, p, x: weighted_kernel_and_gradient(f, p, (x, _BATCH[1]), loss="mse"),
        lambda f, p, x: top_eigenpairs(f, p, (x, _BATCH[1]), k=1, loss="mse", max_products=2),
        lambda f, p, x: split_weighted_loss(jnp.eye(2), _BATCH[1], 0 * _BATCH[1], loss="mse", k=1),
    ],
    ids=["layers", "jacobian", "preconditioner", "critical_lr", "with gradient", "products", "split"],
)
def test_kernel_arithmetic_is_at_highest_precision(function):
    """Every product in it, whatever the default is; each names its precision for both operands."""
    model = CNN(depth=3, width=4)
    params = model.init(jax.random.key(0), _BATCH[0])
    with jax.default_matmul_precision("default"):
        jaxpr = str(jax.make_jaxpr(lambda p, x: function(model.apply, p, x))(params, _BATCH[0]))
    precisions = re.findall(r"\bprecision=(.*)", jaxpr)
    products = len(re.findall(r"= (?:dot_general|conv_general_dilated)\[", jaxpr))
    assert len(precisions) == products > 0
    assert all(p.count("Precision.HIGHEST") == 2 for p in precisions), precisions


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, p, x: tangent_kernel(f, p, x, method="exact"), "method='exact'; allowed: auto"),
        (lambda f, p, x: tangent_kernel(f, p | {"n": jnp.arange(3)}, x), r"params\['n'\] has dtype int32"),
        (lambda f, p, x: tangent_kernel(lambda p, x: f(p, x).sum(), p, x), r"returns shape \(\) for 5 examples"),
        (lambda f, p, x: tangent_kernel(lambda p, x: (f(p, x), 1), p, x), "returns tuple"),
        (lambda f, p, x: tangent_kernel(f, p, jnp.float32(1)), r"x has shape \(\)"),
        (lambda f, p, x: neural_tangents.empirical_kernel(f, p, x, implementation=0), "implementation=0; allowed"),
        (lambda f, p, x: tangent_kernel(f, p, x, chunk_size=0), "chunk_size=0; allowed: 1 or more"),
        (lambda f, p, x: tangent_kernel(f, p, x, cotangents=jnp.ones((5, 2, 1))), r"shape \(5, 2, 1\); allowed: \(5, 1, r\)"),
        (lambda f, p, x: tangent_kernel(f, p, x, preconditioner={}), "preconditioner has other leaves"),
        (lambda f, p, x: tangent_kernel(f, p, x, mesh=jax.make_mesh((2,), ("i",))), "mesh has axes {'i': 2} for 5 examples"),
        (lambda f, p, x: tangent_kernel(f, p, x, method="neural_tangents", chunk_size=2), "allowed: none of them"),
    ],
)
def test_bad_arguments(call, message):
    model = FCN(depth=2, width=3)
    x = jnp.ones((5, 4))
    with pytest.raises(ValueError, match=message):
        call(model.apply, dict(model.init(jax.random.key(0), x)), x)


@pytest.mark.parametrize("implementation", neural_tangents.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["fcn bias, ten outputs", "cnn", "conv {'feature_group_count': 2, 'strides': 2}"])
def test_neural_tangents_implementations(implementation, name):
    """Fails loudly when JAX moves on from what the package is lent."""
    apply_fn, params, x = build(name)
    oracle = explicit_kernel(apply_fn, params, x)
    with jax.enable_x64():
        params, x = widen((params, x))
        kernel = jax.jit(lambda p, x: neural_tangents.empirical_kernel(apply_fn, p, x, implementation=implementation))(
            params, x
        )
    assert relative_error(kernel, oracle) <= 1e-9


def test_what_neural_tangents_is_lent_is_taken_away_again():
    import sys

    neural_tangents.load()
    assert not hasattr(jax.core, "Jaxpr") or jax.__version__ < "0.6"
    assert "jax.util" not in sys.modules


def test_a_replaced_promotion_and_a_callers_interceptor_go_to_the_jacobian():
    def columns_of_norm_one(x, kernel, bias, **_):
        return x, kernel / jnp.linalg.norm(kernel, axis=0), bias

    def squashed(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        return jnp.tanh(y) if context.method_name == "__call__" and isinstance(context.module, nn.Dense) else y

    def intercepted(params, x):
        with nn.intercept_methods(squashed):
            return FCN(depth=3, width=8).apply(params, x)

    x = jax.random.normal(jax.random.key(0), (4, 6))
    layer = nn.Dense(4, promote_dtype=columns_of_norm_one)
    for f, params in (
        (layer.apply, layer.init(jax.random.key(1), x)),
        (intercepted, FCN(depth=3, width=8).init(jax.random.key(1), x)),
    ):
        assert relative_error(tangent_kernel(f, params, x), explicit_kernel(f, params, x)) <= 1e-5


def test_layers_are_seen_through_a_jit_of_the_callers():
    apply_fn, params, x = build("fcn")
    assert (
        relative_error(tangent_kernel(jax.jit(apply_fn), params, x, method="structured"), explicit_kernel(apply_fn, params, x))
        <= 1e-5
    )


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"padding": "VALID"}, {"kernel_dilation": 2}, {"padding": ((1, 2), (0, 1))}, {"strides": (1, 2), "padding": 2}],
    ids=str,
)
def test_products_of_patches_by_pixels(kwargs):
    inputs = layers._conv(nn.Conv(2, (3, 3), **kwargs), 4)
    h = jax.random.normal(jax.random.key(0), (3, 1, 7, 7, 4))
    rows = np.asarray(inputs.rows(h), np.float64)
    products = inputs.products(h, h)
    assert products is not None
    assert relative_error(products, np.einsum("ipgm,jqgm->ipjq", rows, rows)) <= 1e-5


def test_a_network_whose_weights_go_by_pixels(monkeypatch):
    """A wide layer on a small image, so that the sum over pairs of pixels is the cheapest order."""
    model = CNN(depth=3, width=96)
    x = jax.random.normal(jax.random.key(0), (12, 3, 3, 8))
    params = model.init(jax.random.key(1), x)
    taken, whole = [], exact._by_pairs

    def spy(left, right, *, rows_of, products, outer_first):
        taken.append(products is not None and products(left[0], right[0]) is not None)
        return whole(left, right, rows_of=rows_of, products=products, outer_first=outer_first)

    monkeypatch.setattr(exact, "_by_pairs", spy)
    kernel = jax.jit(lambda p, x: tangent_kernel(model.apply, p, x), compiler_options=QUICK)(params, x)
    assert relative_error(kernel, explicit_kernel(model.apply, params, x)) <= 1e-5
    assert taken == [True] * 8  # two layers, four strips


def _planned(function, *arguments):
    """Bytes of temporary arrays that XLA plans for."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def _conv_net(n):
    model, x = CNN(depth=4, width=32), jax.random.normal(jax.random.key(0), (n, 16, 16, 3))
    return model.apply, model.init(jax.random.key(1), x[:1]), x


@pytest.mark.xla
@pytest.mark.parametrize("unrolled", [exact.UNROLLED_KERNEL_CHUNKS, 1], ids=["unrolled", "derivatives kept"])
def test_convolutions_in_chunks(monkeypatch, unrolled):
    monkeypatch.setattr(exact, "UNROLLED_KERNEL_CHUNKS", unrolled)
    apply_fn, params, x = build("cnn strided, average, outputs")
    whole = tangent_kernel(apply_fn, params, x)
    chunks = jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x, chunk_size=1), compiler_options=QUICK)(params, x)
    assert relative_error(chunks, whole) <= 1e-6


@pytest.mark.xla
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order in which XLA works on the CPU")
def test_memory_of_chunks_does_not_grow_with_the_examples():
    plans = []
    for n in (16, 32):
        apply_fn, params, x = _conv_net(n)
        plans.append(_planned(lambda p, x, f=apply_fn: tangent_kernel(f, p, x, chunk_size=8), params, x))
    whole = _planned(lambda p, x: tangent_kernel(apply_fn, p, x), params, x)
    assert plans[1] <= 1.1 * plans[0] < 0.7 * whole


@pytest.mark.xla
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order in which XLA works on the CPU")
def test_layers_take_the_same_memory_one_after_the_other(monkeypatch):
    apply_fn, params, x = _conv_net(16)
    kernel = lambda p, x: tangent_kernel(apply_fn, p, x)
    ordered = _planned(kernel, params, x)
    monkeypatch.setattr(exact, "after", lambda done, tree: tree)
    assert ordered <= 0.8 * _planned(lambda p, x: kernel(p, x), params, x)


def test_tangent_kernel_auto_says_what_it_takes(caplog):
    """In the log, and in a warning where no layer of a large model is known."""
    x = jnp.ones((2, 400))
    plain, w = lambda w, x: jnp.tanh(x @ w).sum(1), jnp.zeros((400, 300))
    with pytest.warns(UserWarning, match="takes 0 of 1 parameters layer by layer, 1 by per-example Jacobians"):
        tangent_kernel(plain, w, x)
    model = FCN(depth=2, width=300)
    with caplog.at_level("INFO", "catapult_jax"):
        tangent_kernel(model.apply, model.init(jax.random.key(0), x), x)  # a warning is an error here
    assert "takes 2 of 2 parameters layer by layer, 0 by per-example Jacobians" in caplog.text
