"""The exact kernel of every model in the zoo, against a float64 Jacobian and neural_tangents."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from catapult_jax import CNN, FCN, critical_lr, tangent_kernel, top_eigenpairs
from catapult_jax.eigenspace import split_weighted_loss
from catapult_jax.tangent import kernel as kernel_module
from catapult_jax.tangent import neural_tangents
from catapult_jax.tangent.kernel import kernel_and_pullback
from catapult_jax.tangent.weighted import weighted_kernel_and_gradient
from catapult_jax.testing import explicit_jacobian, explicit_kernel, relative_error
from tests.zoo import QUICK, ZOO, batch_of, build, widen


@pytest.mark.parametrize("name", ZOO)
def test_tangent_kernel_agrees_with_jacobian_and_neural_tangents(name):
    apply_fn, params, x = build(name)
    oracle = explicit_kernel(apply_fn, params, x)
    kernel = lambda p, x: tangent_kernel(apply_fn, p, x)
    # A few are compiled with all optimisations, the others quickly.
    single = jax.jit(kernel, compiler_options=None if name in ("fcn", "cnn", "vit, bias, three outputs") else QUICK)(params, x)
    assert single.dtype == jnp.float32
    assert relative_error(single, oracle) <= 1e-5
    with jax.enable_x64():
        params, x = widen((params, x))
        double = jax.jit(kernel, compiler_options=QUICK)(params, x)
        reference = jax.jit(lambda p, x: neural_tangents.empirical_kernel(apply_fn, p, x), compiler_options=QUICK)(params, x)
        assert double.dtype == jnp.float64
    assert relative_error(double, oracle) <= 1e-12
    assert relative_error(double, np.asarray(reference)) <= 1e-12


@pytest.mark.parametrize(
    "name", ["fcn bias, ten outputs", "conv {'feature_group_count': 2, 'strides': 2}", "attention and norms"]
)
def test_tangent_kernel_by_jacobians_agrees(name):
    apply_fn, params, x = build(name)
    kernel = jax.jit(lambda p: tangent_kernel(apply_fn, p, x, method="jacobian"), compiler_options=QUICK)(params)

    assert relative_error(kernel, explicit_kernel(apply_fn, params, x)) <= 1e-5


def test_tangent_kernel_structured_names_a_weight_in_two_orders():
    """The orders are neither the same nor transposed."""
    two_orders = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].reshape(2, 6)
    with pytest.raises(ValueError, match=re.escape("no rule for parameters ['w']; allowed")):
        tangent_kernel(two_orders, {"w": jnp.ones((6, 2))}, jnp.ones((3, 6)), method="structured")


@pytest.mark.parametrize(
    "name", ["fcn bias, ten outputs", "attention and norms", "cnn strided, average, outputs", "embedding", "tied embedding"]
)
def test_tangent_kernel_with_cotangents_and_preconditioner(name):
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
def test_kernel_and_pullback_agrees_with_jacobian(name):
    """Outputs, kernel, and the gradient of a combination of the outputs."""
    apply_fn, params, x = build(name)
    rng = np.random.default_rng(0)
    out = jax.eval_shape(apply_fn, params, x)
    o = out.size // len(x)
    basis, a = (rng.standard_normal(shape).astype(np.float32) for shape in ((o, 2), (len(x), 2)))

    def both(params):
        outputs, kernel, pullback = kernel_and_pullback(apply_fn, params, x, basis)
        return outputs, kernel, pullback(jnp.asarray(a))

    outputs, kernel, gradient = jax.jit(both, compiler_options=QUICK)(params)
    np.testing.assert_allclose(outputs, apply_fn(params, x), rtol=1e-4, atol=1e-5)
    jacobian = explicit_jacobian(apply_fn, params, x)
    combined = np.einsum("or,iop->irp", basis.astype(np.float64), jacobian.reshape(len(x), o, -1)).reshape(2 * len(x), -1)
    assert relative_error(kernel, combined @ combined.T) <= 1e-5
    assert relative_error(ravel_pytree(gradient)[0], a.reshape(-1) @ combined) <= 1e-5


@pytest.mark.parametrize("name", ["fcn bias, ten outputs", "embedding", "tied embedding", "cnn strided, average, outputs"])
def test_tangent_kernel_on_a_mesh(name):
    """Eight and four devices give what one device gives."""
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


@pytest.mark.parametrize("name", ["fcn", "cnn", "dense over axes, twice", "tied embedding"])
def test_tangent_kernel_under_jit_vmap_and_scan(name):
    apply_fn, params, x = build(name)
    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), params)
    kernel = lambda p: tangent_kernel(apply_fn, p, x)
    one_by_one = np.stack([explicit_kernel(apply_fn, jax.tree.map(lambda a, i=i: a[i], several), x) for i in range(3)])
    _, scanned = jax.jit(lambda ps: jax.lax.scan(lambda c, p: (c, kernel(p)), 0, ps))(several)
    assert relative_error(jax.jit(jax.vmap(kernel))(several), one_by_one) <= 1e-5
    assert relative_error(scanned, one_by_one) <= 1e-5
    eager = tangent_kernel(apply_fn, params, x)
    assert relative_error(eager, one_by_one[0]) <= 1e-5


def test_tangent_kernel_of_an_array_that_is_two_parameters():
    apply_fn, params, x = build("fcn")
    shared = params["hidden_1"]["kernel"]
    aliased = params | {"hidden_1": {"kernel": shared}, "unused": {"kernel": shared}}

    use = lambda p, x: apply_fn({k: p[k] for k in params}, x)

    assert relative_error(tangent_kernel(use, aliased, x), explicit_kernel(apply_fn, params, x)) <= 1e-5


def test_tangent_kernel_structured_of_a_function_under_jit():
    apply_fn, params, x = build("fcn")
    assert (
        relative_error(tangent_kernel(jax.jit(apply_fn), params, x, method="structured"), explicit_kernel(apply_fn, params, x))
        <= 1e-5
    )


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
    """Every product names the highest precision for both operands, whatever the default is."""
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
        (lambda f, p, x: tangent_kernel(f, p, x, chunk_size=0), "chunk_size=0; allowed: a whole number, 1 or more"),
        (lambda f, p, x: tangent_kernel(f, p, x, cotangents=jnp.ones((5, 2, 1))), r"shape \(5, 2, 1\); allowed: \(5, 1, r\)"),
        (lambda f, p, x: tangent_kernel(f, p, x, preconditioner={}), "preconditioner has other leaves"),
        (lambda f, p, x: tangent_kernel(f, p, x, mesh=jax.make_mesh((2,), ("i",))), "mesh has axes {'i': 2} for 5 examples"),
        (lambda f, p, x: tangent_kernel(f, p, x, method="neural_tangents", chunk_size=2), "allowed: none of them"),
    ],
)
def test_tangent_kernel_refuses_bad_arguments(call, message):
    model = FCN(depth=2, width=3)
    x = jnp.ones((5, 4))
    with pytest.raises(ValueError, match=message):
        call(model.apply, dict(model.init(jax.random.key(0), x)), x)


def _planned_bytes(function, *arguments):
    """Bytes of temporary arrays that XLA plans for."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def _conv_net(n):
    model, x = CNN(depth=4, width=32), jax.random.normal(jax.random.key(0), (n, 16, 16, 3))
    return model.apply, model.init(jax.random.key(1), x[:1]), x


@pytest.mark.xla
@pytest.mark.parametrize("unrolled", [kernel_module.UNROLLED_KERNEL_CHUNKS, 1], ids=["unrolled", "derivatives kept"])
def test_tangent_kernel_of_convolutions_in_chunks(monkeypatch, unrolled):
    monkeypatch.setattr(kernel_module, "UNROLLED_KERNEL_CHUNKS", unrolled)
    apply_fn, params, x = build("cnn strided, average, outputs")
    whole = tangent_kernel(apply_fn, params, x)

    chunks = jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x, chunk_size=1), compiler_options=QUICK)(params, x)

    assert relative_error(chunks, whole) <= 1e-6


@pytest.mark.xla
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the order in which XLA computes on the CPU")
def test_tangent_kernel_in_chunks_takes_memory_that_does_not_grow():
    plans = []
    for n in (16, 32):
        apply_fn, params, x = _conv_net(n)
        plans.append(_planned_bytes(lambda p, x, f=apply_fn: tangent_kernel(f, p, x, chunk_size=8), params, x))

    whole = _planned_bytes(lambda p, x: tangent_kernel(apply_fn, p, x), params, x)

    assert plans[1] <= 1.1 * plans[0] < 0.7 * whole


@pytest.mark.xla
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the order in which XLA computes on the CPU")
def test_tangent_kernel_reuses_memory_from_layer_to_layer(monkeypatch):
    apply_fn, params, x = _conv_net(16)
    kernel = lambda p, x: tangent_kernel(apply_fn, p, x)
    ordered = _planned_bytes(kernel, params, x)

    monkeypatch.setattr(kernel_module, "after", lambda done, tree: tree)

    assert ordered <= 0.8 * _planned_bytes(lambda p, x: kernel(p, x), params, x)


def test_tangent_kernel_auto_logs_and_warns(caplog):
    """It warns if a large weight has no rule."""
    x = jnp.ones((2, 400))
    plain, w = lambda w, x: jnp.tanh(x @ (w / jnp.linalg.norm(w, axis=0))).sum(1), jnp.ones((400, 300))
    with pytest.warns(UserWarning, match="takes 0 of 1 parameters layer by layer, 1 by per-example Jacobians"):
        tangent_kernel(plain, w, x)
    model = FCN(depth=2, width=300)

    with caplog.at_level("INFO", "catapult_jax"):
        tangent_kernel(model.apply, model.init(jax.random.key(0), x), x)  # a warning is an error here

    assert "takes 2 of 2 parameters layer by layer, 0 by per-example Jacobians" in caplog.text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn strided, average, outputs", {}),
        *(("fcn", o) for o in ({"chunk_size": 2, "preconditioner": True}, {"method": "jacobian", "mesh": 3})),
    ],
)
def test_tangent_kernel_between_two_sets(name, options):
    """A block of the kernel of both together."""
    apply_fn, params, (x, _) = batch_of(name, "mse")
    P = jax.tree.map(lambda p: jnp.square(p) + 0.5, params)
    changed = {}
    if "mesh" in options:
        changed["mesh"] = jax.make_mesh((options["mesh"],), ("rows",), devices=jax.devices()[: options["mesh"]])
    if "preconditioner" in options:
        changed["preconditioner"] = P
    n = len(x) // 3 * 3
    x, x2 = x[:n], 2 * x[: n - 1] + 1
    whole = tangent_kernel(apply_fn, params, jnp.concatenate([x, x2]), preconditioner=changed.get("preconditioner"))

    kernel = tangent_kernel(apply_fn, params, x, x2, **options | changed)

    rows = len(whole) // (2 * n - 1) * n
    assert relative_error(kernel, np.asarray(whole)[:rows, rows:]) <= 1e-5


@pytest.mark.parametrize(
    ("x2", "options", "message"),
    [
        (jnp.ones((2, 4)), {}, "x2 has examples of other shapes than x"),
        (jnp.ones((2, 3)), dict(method="neural_tangents"), "x2 with cotangents or method='neural_tangents'; allowed"),
    ],
)
def test_tangent_kernel_refuses_a_second_set(x2, options, message):
    with pytest.raises(ValueError, match=message):
        tangent_kernel(lambda w, x: x @ jnp.ones((x.shape[1], 1)) * w, jnp.ones(1), jnp.ones((2, 3)), x2, **options)
