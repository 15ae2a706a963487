"""The work-arounds for the compiler: each does what it says, and is still needed.

What XLA does is read off its compiled programs: their text, or the memory that they plan for.
"""

import functools
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from catapult_jax import CNN, FCN, batch_loss, input_jacobian, outer_product, preconditioner_from_state, top_eigenpairs
from catapult_jax.models import ViT
from catapult_jax.tangent import products
from catapult_jax.tangent.eigenpairs import no_directions
from catapult_jax.xla import after, eigh, eigvalsh, every_precision_is_highest, fresh_jaxpr, loops_are_slow, sum_of_products
from tests.zoo import build

pytestmark = pytest.mark.xla

RELEASE = tuple(int(number) for number in jax.__version__.split(".")[:2])
# The first allowed release of JAX, in its first two numbers, that does without a work-around: the sum of products, and the order of
# computations that are not calls.
DOES_WITHOUT = (0, 11)


def compiled(function, *arguments, **options):
    """The compiled program of a new function: JAX caches traces by the function."""
    return jax.jit(lambda *args: function(*args), **options).lower(*arguments).compile()


def planned(function, *arguments, **options) -> int:
    """Bytes of temporary arrays that XLA plans for."""
    return compiled(function, *arguments, **options).memory_analysis().temp_size_in_bytes


def barrier(done, tree):
    return lax.optimization_barrier((done, tree))[1]


def single(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_oldest_jax_needs_every_workaround():
    """When this fails, `sum_of_products` can be a plain sum, and `after` a barrier, except in `outer_product`."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    (oldest,) = re.findall(r"jax>=(\d+)\.(\d+)", " ".join(project["project"]["dependencies"]))
    assert tuple(map(int, oldest)) < DOES_WITHOUT


@pytest.mark.parametrize("done", [0.0, -3.0, jnp.nan, jnp.inf, -jnp.inf])
def test_after_changes_nothing(done):
    tree = {
        "single": jnp.array([1.5, jnp.inf]),
        "half": jnp.array([1.5], jnp.bfloat16),
        "ids": jnp.array([-1, 7]),
        "mask": jnp.array([True, False]),
        "none": jnp.zeros((0, 2)),
    }
    result = jax.jit(after)(jnp.full((2, 2), done), tree)
    for name, leaf in tree.items():
        assert result[name].dtype == leaf.dtype
        np.testing.assert_array_equal(result[name], leaf)


def test_after_keeps_shared_arrays_shared():
    """Under vmap, also in another one, what is the same for all is not held once for each."""
    shared, batched = jnp.ones(5), jnp.ones((3, 4, 2))
    result = jax.vmap(jax.vmap(lambda done: after(done, shared), out_axes=None), out_axes=None)(batched)
    np.testing.assert_array_equal(result, shared)
    with pytest.raises(ValueError, match="out_axes"):  # of plain arithmetic
        jax.vmap(lambda done: shared * done[0, 0], out_axes=None)(batched)


def test_after_orders_what_is_independent():
    """Four matrices that do not depend on each other: in order they take the memory of one. From 0.11.2 on the barrier orders them too."""

    def plan(order):
        def columns(v):
            sums = [v]
            for i in range(4):
                w = order(sums[-1], v)
                matrix = jnp.outer(w, w) + i
                sums.append(jnp.sum(matrix @ matrix, axis=0))
            return jnp.stack(sums)

        return planned(columns, single(256))

    ordered = plan(after)
    assert ordered <= 0.4 * plan(lambda done, tree: tree)
    assert (ordered <= 0.4 * plan(barrier)) == (RELEASE < DOES_WITHOUT)


def test_after_orders_calls(monkeypatch):
    """Chunks that are calls of one compiled function: here the barrier does not keep the order."""
    model, x = CNN(depth=3, width=16), jnp.ones((32, 12, 12, 3))
    params = model.init(jax.random.key(0), x[:1])
    plan = lambda: planned(lambda p, x: input_jacobian(model.apply, p, x, chunk_size=4), params, x)
    ordered = plan()
    monkeypatch.setattr(outer_product, "after", barrier)
    assert ordered <= 0.4 * plan()


def test_loops_are_slow_for_convolutions():
    """XLA brings the convolutions of a gradient into the layout that is fast (channels last), but not those inside of a loop."""
    fast = "b01f_01io->b01f"

    def step(w, x):
        conv = functools.partial(
            lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return w - jax.grad(lambda w: jnp.sum(jnp.sin(conv(conv(x, w), w))))(w)

    layouts = lambda function: set(re.findall(r"dim_labels=([^\s,]+)", compiled(function, w, x).as_text()))
    w, x = single(3, 3, 8, 8), single(4, 10, 10, 8)
    assert layouts(step) == {fast}
    assert layouts(lambda w, x: lax.fori_loop(0, 2, lambda _, w: step(w, x), w)) > {fast}


def test_loops_are_slow_by_model():
    images = jnp.ones((2, 8, 8, 3))
    for model, slow in ((CNN(depth=2, width=4), True), (FCN(depth=2, width=4), False), (ViT(depth=1, width=4, heads=1), False)):
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        assert loops_are_slow(model.apply, params, images) == slow


def measured_step_plan() -> float:
    """Planned memory of a step of Adam with the critical lr from products, in sizes of the weights."""
    model, x, y = FCN(depth=2, width=64), jnp.ones((4, 64)), jnp.ones((4, 1))
    params, optimizer = model.init(jax.random.key(0), x), optax.adam(1e-3)

    def step(params, state, directions):
        gradient = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss="mse"))(params)
        updates, state = optimizer.update(gradient, state, params)
        pairs = top_eigenpairs(
            model.apply,
            params,
            (x, y),
            k=1,
            loss="mse",
            preconditioner=lambda: preconditioner_from_state(optax.adam(0.1), params, None, state).diagonal,
            warm_start=directions,
            reuse_bound=1,
        )
        updates = jax.tree.map(lambda u: jnp.where(jnp.isnan(pairs.eigenvalues[0]), 0, u), updates)
        return optax.apply_updates(params, updates), state, pairs.directions

    arguments = (params, optimizer.init(params), no_directions(params, 1, jnp.float32))
    return planned(step, *arguments, donate_argnums=(0, 1)) / sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_computed_after_holds_no_diagonal(monkeypatch):
    """Read plainly, the diagonal is held, as large as the weights."""
    ours = measured_step_plan()
    monkeypatch.setattr(products, "computed_after", lambda make: lambda done: make())
    assert ours <= measured_step_plan() - 0.9


def test_entry_keeps_readings_apart(monkeypatch):
    """Where a square and a product wait for the same entry, XLA merges what both compute, and holds it."""
    ours, entry = measured_step_plan(), products.entry
    monkeypatch.setattr(products, "entry", lambda tree, i: entry(tree, 0))
    assert ours <= measured_step_plan() - 0.5


@pytest.mark.parametrize("shape", [(7,), (100,), (3, 5), (640, 3), (4, 0)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sum_of_products_is_the_inner_product(shape, dtype):
    a, b = (jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(2))
    result = sum_of_products(a, b)
    assert result.dtype == jnp.float32
    expected = np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)


def test_sum_of_products_holds_no_products():
    """The products of a plain sum are an array in memory; those of the parts are an eighth of it. From 0.11.2 on a plain sum has none."""
    a = single(1024, 1024)
    plain, parts = planned(lambda a, b: jnp.sum(a * b), a, a), planned(sum_of_products, a, a)
    assert (plain >= a.size * 4 and parts <= plain / 7) == (RELEASE < DOES_WITHOUT)


def test_every_precision_is_highest():
    """Two equal forward passes are one only where both name the same precision."""

    def count(precision):
        def twice(w, x):
            passed = []
            for name in (precision, "highest"):
                with jax.default_matmul_precision(name):
                    passed.append(jnp.sin(x @ w) @ w)
            return passed[0], passed[1].sum()

        return len(re.findall(r" dot\(", compiled(twice, single(64, 64), single(64, 64)).as_text()))

    assert every_precision_is_highest()
    assert count("highest") == 2
    assert count(None) == 4


def test_fresh_jaxpr_sees_new_values():
    closed_over = [1.0]
    function = lambda x: x * closed_over[0]
    factors = lambda closed: [eqn.invars[1].val for eqn in closed.jaxpr.eqns]
    cached, fresh = (lambda: factors(jax.make_jaxpr(function)(1.0))), (lambda: factors(fresh_jaxpr(function, 1.0)[0]))
    assert cached() == fresh() == [1.0]
    closed_over[0] = 2.0
    assert fresh() == [2.0]
    assert cached() == [1.0]  # JAX still caches by the function


def test_patch_extraction_is_a_convolution():
    patches = lambda x: lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME")
    assert "conv_general_dilated" in str(jax.make_jaxpr(patches)(single(1, 2, 5, 5)))


def test_vmap_of_one_member_transposes():
    """Alone, a step transposes nothing; as the only member under vmap it transposes the gradient of each matrix."""
    apply_fn, params, x = build("fcn")

    def step(params, moment):
        gradient = jax.grad(lambda p: jnp.sum(apply_fn(p, x) ** 2))(params)
        moment = jax.tree.map(lambda m, g: 0.9 * m + g * g, moment, gradient)
        return jax.tree.map(lambda p, m, g: p - g / (1 + jnp.sqrt(m)), params, moment, gradient), moment

    transposes = lambda function, *trees: len(re.findall(r" transpose\(", compiled(function, *trees).as_text()))
    member = jax.tree.map(lambda leaf: leaf[None], params)
    assert transposes(step, params, params) == 0
    assert transposes(jax.vmap(step), member, member) >= 2


@pytest.mark.parametrize(("ours", "plain"), [(eigh, jnp.linalg.eigh), (eigvalsh, jnp.linalg.eigvalsh)])
def test_eigh_of_members_is_no_batch(ours, plain):
    """Under vmap LAPACK gets one matrix at a time, and each result has the bits of its own call."""
    a = jax.random.normal(jax.random.key(0), (3, 6, 6))
    matrices = a + a.swapaxes(1, 2)
    calls = lambda function: re.findall(r"= \((\S+).*lapack_ssyevd_ffi", compiled(jax.vmap(function), matrices).as_text())
    assert all(shape.startswith("f32[3,6,6]") for shape in calls(plain)) and calls(plain)
    assert not any(shape.startswith("f32[3,") for shape in calls(ours)) and calls(ours)

    alone = [jax.jit(plain)(matrix) for matrix in matrices]
    for together, *parts in zip(*(jax.tree.leaves(r) for r in (jax.jit(jax.vmap(ours))(matrices), *alone)), strict=True):
        np.testing.assert_array_equal(together, np.stack(parts))


def test_eigh_has_derivatives():
    matrix = jnp.diag(jnp.array([1.0, 3.0]))

    largest = lambda m: eigh(m)[0][-1]

    np.testing.assert_allclose(jax.grad(largest)(matrix), [[0, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(largest))(matrix[None])[0], [[0, 0], [0, 1]], atol=1e-6)
