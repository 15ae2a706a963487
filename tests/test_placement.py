"""Sharded parameters and batches against one device: meshes with automatic and with explicit axes, and shard_map."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from catapult_jax import (
    agop,
    critical_lr,
    directional_by_layer,
    directional_critical_lr,
    split_loss,
    tangent_kernel,
    top_eigenpairs,
)
from catapult_jax.tangent.placement import names_shardings
from catapult_jax.testing import relative_error

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {"a": jax.random.normal(KEYS[0], (16, 64)), "b": jax.random.normal(KEYS[1], (64, 4)), "c": jnp.zeros(64)}
X, Y = jax.random.normal(KEYS[2], (32, 16)), jax.random.normal(KEYS[3], (32, 4))
PLACES = {  # specs of a, b, c
    "data": (P(), P(), P()),
    "fsdp": (P("data"), P("data"), P("data")),
    "tensor": (P(None, "model"), P("model"), P("model")),
}


def plain(params, x):
    return jnp.tanh(x @ params["a"] + params["c"]) @ params["b"]


def with_shardings(params, x):
    """The same model, for explicit axes: it gathers the weights, and says where the activations are."""
    a, b, c = (jax.sharding.reshard(params[name], P()) for name in "abc")
    hidden = jnp.einsum("bi,ij->bj", x, a, out_sharding=P("data"))
    return jnp.einsum("bj,jk->bk", jnp.tanh(hidden + c), b, out_sharding=P("data"))


def placed(place: str, kind: AxisType):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
    params = {name: put(PARAMS[name], spec) for name, spec in zip("abc", PLACES[place], strict=True)}
    return mesh, params, (put(X, P("data")), put(Y, P("data")))


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "place", "is_jitted"),
    [
        *(("auto", place, True) for place in PLACES),
        ("explicit", "tensor", True),
        ("explicit", "fsdp", False),
    ],
)
def test_directions_are_placed_as_the_parameters(kind, place, is_jitted):
    """The eigenvalues of one device, and a warm start that is no copy of the model on every device."""
    mesh, params, batch = placed(place, AxisType.Auto if kind == "auto" else AxisType.Explicit)
    model = plain if kind == "auto" else with_shardings
    expected = top_eigenpairs(plain, PARAMS, (X, Y), k=2, loss="mse", tol=1e-5).eigenvalues

    def twice(params, batch):
        cold = top_eigenpairs(model, params, batch, k=2, loss="mse", tol=1e-5)
        return cold, top_eigenpairs(model, params, batch, k=2, loss="mse", tol=1e-5, warm_start=cold.directions)

    with jax.set_mesh(mesh):
        assert names_shardings(model, params, batch[0]) == (kind == "explicit")
        both = (jax.jit(twice) if is_jitted else twice)(params, batch)

    for pairs in both:
        np.testing.assert_allclose(pairs.eigenvalues, expected, rtol=3e-6)
        for name, leaf in pairs.directions.vectors.items():
            shards = leaf.addressable_shards[0].data.size * len(jax.devices())
            copies = params[name].addressable_shards[0].data.size * len(jax.devices()) / params[name].size
            assert shards <= copies * leaf.size, (name, leaf.sharding)


@pytest.mark.long
@pytest.mark.parametrize(("place", "curvature"), [("data", "gauss_newton"), ("fsdp", "hessian"), ("tensor", "hessian")])
def test_planned_memory_of_a_device(place, curvature):
    """The vectors of a search are cut as the outputs or the parameters are. Most of the rest are weights that are gathered."""
    shapes = {"a": (512, 2048), "b": (2048, 512), "c": (2048,)}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over_devices = lambda spec: P(*("data" if axis else None for axis in spec))
    specs = {name: over_devices(spec) for name, spec in zip("abc", PLACES[place], strict=True)}
    rows = P("data") if place != "tensor" else P()
    search = lambda p, b: top_eigenpairs(plain, p, b, k=1, loss="mse", curvature=curvature, max_products=8)

    def planned(put):
        params = {name: put(shape, specs[name]) for name, shape in shapes.items()}
        batch = put((4096, 512), rows), put((4096, 512), rows)
        return jax.jit(search).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    on_one = planned(lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32))
    on_each = planned(lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)))

    assert on_each <= 0.28 * on_one  # an eighth, and what every device needs; 0.31 or more where vectors are not cut


@pytest.mark.long
@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_explicit_axes_with_a_plain_model(curvature):
    """Data parallel: the batch is cut, the parameters are on every device."""
    _, params, batch = placed("data", AxisType.Explicit)
    expected = top_eigenpairs(plain, PARAMS, (X, Y), k=1, loss="mse", tol=1e-5, curvature=curvature).eigenvalues
    update = jax.tree.map(jnp.ones_like, PARAMS)
    along = directional_critical_lr(plain, PARAMS, (X, Y), update, loss="mse", curvature=curvature)

    found = top_eigenpairs(plain, params, batch, k=1, loss="mse", tol=1e-5, curvature=curvature).eigenvalues
    step = directional_critical_lr(plain, params, batch, update, loss="mse", curvature=curvature)

    np.testing.assert_allclose(found, expected, rtol=3e-6)
    assert float(step.curvature) == pytest.approx(float(along.curvature), rel=1e-5)
    by_layer = directional_by_layer(plain, params, batch, update, loss="mse", curvature=curvature)
    assert sum(float(part.slope) for part in by_layer.values()) == pytest.approx(float(along.slope), rel=1e-5)


@pytest.mark.long
def test_explicit_axes_of_the_split_and_the_features():
    """The batch is cut, the parameters are on every device. Small outputs: no softmax is nearly certain."""
    _, params, (x, y) = placed("data", AxisType.Explicit)
    small = lambda params, x: 0.1 * plain(params, x)
    split = lambda p, x, y: split_loss(
        tangent_kernel(small, p, x), small(p, x), jnp.argmax(y, 1), loss="softmax_cross_entropy", k=2
    )

    expected, found = jax.jit(split)(PARAMS, X, Y), jax.jit(split)(params, x, y)

    for name in ("top", "rest", "lambda_max"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(agop(small, params, x, chunk_size=8), agop(small, PARAMS, X), atol=1e-6)


def test_explicit_axes_exact_kernel():
    _, params, (x, y) = placed("data", AxisType.Explicit)
    rows = jax.make_mesh((8,), ("rows",))
    on_rows = jax.device_put(X, NamedSharding(rows, P("rows")))
    everywhere = jax.device_put(PARAMS, NamedSharding(rows, P()))
    expected = np.asarray(tangent_kernel(plain, PARAMS, X))

    kernels = [tangent_kernel(plain, params, x), jax.jit(lambda p, x: tangent_kernel(plain, p, x))(params, x)]
    kernels.append(tangent_kernel(plain, everywhere, on_rows, mesh=rows))

    for kernel in kernels:
        assert relative_error(kernel, expected) <= 1e-5
    lr = critical_lr(plain, params, (x, y), loss="mse")
    assert float(lr) == pytest.approx(float(critical_lr(plain, PARAMS, (X, Y), loss="mse")), rel=1e-5)


@pytest.mark.parametrize("function", [critical_lr, top_eigenpairs])
def test_shard_map_that_checks_replication_is_refused_in_one_line(function):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    options = {"k": 1} if function is top_eigenpairs else {}
    inside = lambda x, y: jax.tree.leaves(function(plain, PARAMS, (x, y), loss="mse", **options))[0]

    with pytest.raises(
        ValueError, match=r"check_vma=True of the shard_map over data; allowed: jax\.shard_map\(\.\.\., check_vma=False\)"
    ):
        jax.shard_map(inside, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data"))(X, Y)


@pytest.mark.long
def test_shard_map_measures_the_examples_of_each_device():
    """Without jit, where JAX traces all that the thread computes."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    measure = lambda p, x, y: 2 / top_eigenpairs(plain, p, (x, y), k=1, loss="mse", tol=1e-4).eigenvalues
    mapped = jax.shard_map(measure, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P("d"), check_vma=False)
    expected = [float(critical_lr(plain, PARAMS, (X[half], Y[half]), loss="mse")) for half in (slice(16), slice(16, 32))]

    found = mapped(PARAMS, X, Y)

    np.testing.assert_allclose(found, expected, rtol=1e-4)


PROCESS = textwrap.dedent("""
    import sys
    import jax
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from catapult_jax import top_eigenpairs
    from tests.test_placement import PARAMS, X, Y, plain
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    host = lambda a: np.asarray(a)
    put = lambda a, spec: jax.make_array_from_callback(a.shape, NamedSharding(mesh, spec), lambda index: host(a)[index])
    params = {name: put(host(leaf), P("data")) for name, leaf in PARAMS.items()}
    top = jax.jit(lambda p, x, y: top_eigenpairs(plain, p, (x, y), k=1, loss="mse", tol=1e-5).eigenvalues)
    print(float(top(params, put(host(X), P("data")), put(host(Y), P("data")))[0]))
""")


def test_two_processes_give_the_eigenvalue_of_one(tmp_path):
    """Each process has four devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    expected = float(top_eigenpairs(plain, PARAMS, (X, Y), k=1, loss="mse", tol=1e-5).eigenvalues[0])

    processes = [
        subprocess.Popen([sys.executable, script, str(i), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=os.environ | {"PYTHONPATH": "."})
        for i in (0, 1)
    ]  # fmt: skip
    results = [process.communicate(timeout=240) for process in processes]

    for process, (out, error) in zip(processes, results, strict=True):
        assert process.returncode == 0, error[-2000:]
        assert float(out.split()[-1]) == pytest.approx(expected, rel=3e-6)
