"""Top eigenpairs without the kernel, against prescribed spectra and the float64 Jacobian."""

from functools import partial

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import FCN, batch_loss, critical_lr_from_lambda, preconditioner_from_state, top_eigenpairs
from catapult_jax.tangent import Directions, eigenpairs
from catapult_jax.tangent.eigenpairs import no_directions
from tests.zoo import QUICK, SPECTRA, batch_of, inputs, linear, weighted_kernel


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", SPECTRA)
def test_top_eigenpairs_of_prescribed_spectra(strict, name, k):
    spectrum = np.array(SPECTRA[name])
    x, k = inputs(spectrum), min(k, len(spectrum))
    n = len(spectrum)
    search = lambda w: top_eigenpairs(linear, w, (x, jnp.zeros(n)), k=k, loss="mse", max_products=40)
    pairs = jax.jit(search, compiler_options=QUICK)(jnp.zeros(n))
    error = np.abs(np.asarray(pairs.eigenvalues) - spectrum[:k])
    assert bool(pairs.converged) and pairs.products <= n + k / 2
    assert (error <= np.maximum(0.01 * spectrum[:k], 1e-5)).all()
    assert (error <= np.asarray(pairs.bounds) + 1e-6 * spectrum[0]).all()
    vectors = np.asarray(pairs.vectors, np.float64)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-4)
    residual = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T * 2 / n @ vectors - vectors * np.asarray(
        pairs.eigenvalues
    )
    assert (np.linalg.norm(residual, axis=0) <= np.asarray(pairs.residuals) + 1e-5 * spectrum[0]).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.just(0.0) | st.floats(1e-3, 1), min_size=2, max_size=12).filter(any), st.integers(0, 5))
def test_top_eigenpairs_bound_for_random_spectra(values, seed):
    spectrum = np.sort(values)[::-1]
    x = inputs(spectrum, seed)
    pairs = _search(jnp.zeros((12, 12)).at[: len(x), : len(x)].set(x * np.sqrt(12 / len(x))))

    theta, bound = float(pairs.eigenvalues[0]), float(pairs.bounds[0])

    assert bool(pairs.converged) and bound <= 0.0501 * theta + 1e-30
    assert -1e-5 * spectrum[0] <= spectrum[0] - theta <= bound + 1e-6 * spectrum[0]


_search = jax.jit(lambda x: top_eigenpairs(linear, jnp.zeros(12), (x, jnp.zeros(12)), k=1, loss="mse", tol=0.05))


def test_top_eigenpairs_bound_from_one_product():
    """From directions near the first eigenvector and far from it, with a bound on the eigenvalues below that is reused."""
    products = []

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        st.lists(st.floats(0, 0.9), min_size=6, max_size=6),
        st.integers(0, 50),
        st.floats(0, 2),
        st.sampled_from([1e-6, 0.01, 0.3]),
    )
    def check(below, seed, noise, tol):
        spectrum = np.array([1.0, *np.sort(below)[::-1]])
        x = inputs(spectrum, seed)
        first = np.linalg.eigh(np.asarray(x, np.float64).T @ np.asarray(x, np.float64))[1][:, -1]
        start = first + noise * np.random.default_rng(seed).standard_normal(7)

        pairs = _reusing(x, jnp.asarray(start, jnp.float32), jnp.float32(spectrum[1]), tol=tol)

        theta, bound = float(pairs.eigenvalues[0]), float(pairs.bounds[0])
        assert float(pairs.products) >= 1 and theta <= 1 + 1e-5
        assert bool(pairs.converged) and bound <= tol * theta + 1e-5
        assert 1 - theta <= bound + 1e-5
        vector = np.asarray(pairs.directions.vectors[0], np.float64)
        pulled = np.asarray(x, np.float64).T @ np.asarray(pairs.vectors[:, 0], np.float64) * np.sqrt(2 / 7)
        np.testing.assert_allclose(vector, pulled, atol=1e-5)  # also if the space has grown
        products.append(float(pairs.products))

    check()

    assert 10 <= products.count(1.0) <= len(products) - 10  # some end after one product, others go on


@partial(jax.jit, static_argnames="tol")
def _reusing(x, start, below, tol):
    warm = Directions(start[None], jnp.int32(1), jnp.float32(1), below, jnp.int32(0), jnp.int32(1))
    return top_eigenpairs(linear, jnp.zeros(7), (x, jnp.zeros(7)), k=1, loss="mse", tol=tol, reuse_bound=2, warm_start=warm)


CASES = [
    ("fcn", "mse"),
    ("fcn", "logistic"),
    ("fcn bias, ten outputs", "softmax_cross_entropy"),
    ("attention and norms", "softmax_cross_entropy"),
    ("tied embedding", "mse"),
    ("cnn strided, average, outputs", "softmax_cross_entropy"),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "loss"), CASES)
def test_top_eigenpairs_of_models_and_losses(name, loss):
    """Whole; and, for two of them, with a preconditioner in chunks that do not divide the batch."""
    apply_fn, params, batch = batch_of(name, loss)
    _compare(apply_fn, params, batch, loss, None, None, jit=not name.startswith("cnn"))
    if name in ("fcn bias, ten outputs", "cnn strided, average, outputs") and loss == "softmax_cross_entropy":
        rng = np.random.default_rng(0)
        preconditioner = jax.tree.map(lambda p: rng.uniform(0.5, 2, p.shape).astype(np.float32), params)
        # Convolutions are driven by Python.
        _compare(apply_fn, params, batch, loss, preconditioner, 2, jit=not name.startswith("cnn"))


def _compare(apply_fn, params, batch, loss, preconditioner, chunk_size, *, jit):
    kernel = weighted_kernel(apply_fn, params, batch, loss, preconditioner)
    oracle = np.linalg.eigvalsh(kernel)[::-1][:2]

    def search(p, batch):
        return top_eigenpairs(
            apply_fn, p, batch, k=2, loss=loss, preconditioner=preconditioner, chunk_size=chunk_size,
            tol=1e-3, max_products=len(kernel),
        )  # fmt: skip

    pairs = (jax.jit(search, compiler_options=QUICK) if jit else search)(params, batch)
    assert bool(pairs.converged)
    np.testing.assert_allclose(pairs.eigenvalues, oracle, rtol=2e-3)
    vectors = np.asarray(pairs.vectors, np.float64)
    residual = kernel @ vectors - vectors * np.asarray(pairs.eigenvalues)
    assert (np.linalg.norm(residual, axis=0) <= np.asarray(pairs.residuals) + 1e-4 * oracle[0]).all()


@pytest.mark.parametrize(
    ("name", "jit"),
    [("fcn", False), ("fcn", True), ("cnn strided, average, outputs", False)],
)
def test_top_eigenpairs_with_a_function_that_returns_the_preconditioner(name, jit):
    apply_fn, params, batch = batch_of(name, "mse")
    moments = jax.tree.map(lambda p: jnp.square(p) + 0.5, params)

    def search(params, moments, function):
        diagonal = lambda: jax.tree.map(jnp.cosh, moments)
        given = diagonal if function else diagonal()
        options = dict(k=1, loss="mse", max_products=4, preconditioner=given, chunk_size=2)
        return top_eigenpairs(apply_fn, params, batch, **options).eigenvalues

    searches = [partial(search, function=function) for function in (True, False)]
    if jit:
        searches = [jax.jit(f, compiler_options=QUICK) for f in searches]

    by_function, by_tree = (f(params, moments) for f in searches)

    np.testing.assert_allclose(by_function, by_tree, rtol=1e-6)


def test_top_eigenpairs_refuses_a_function_that_returns_another_structure():
    with pytest.raises(ValueError, match="preconditioner has other leaves"):
        top_eigenpairs(linear, jnp.zeros(3), (jnp.eye(3), jnp.zeros(3)), k=1, loss="mse", preconditioner=lambda: jnp.ones(2))


def test_top_eigenpairs_loop_holds_no_preconditioner():
    """It holds the arrays that the function reads. The preconditioner is as large as the weights."""
    apply_fn, params, batch = batch_of("fcn bias, ten outputs", "mse")

    def holds_preconditioner(function: bool):
        def search(params, moments, warm):
            diagonal = lambda: jax.tree.map(jnp.cosh, moments)
            given = diagonal if function else diagonal()
            return top_eigenpairs(apply_fn, params, batch, k=1, loss="mse", preconditioner=given, warm_start=warm)

        warm = top_eigenpairs(apply_fn, params, batch, k=1, loss="mse").directions
        eqns = jax.make_jaxpr(search)(params, params, warm).jaxpr.eqns
        preconditioner = {v for eqn in eqns if eqn.primitive.name == "cosh" for v in eqn.outvars}
        loops = [eqn for eqn in eqns if eqn.primitive.name == "while"]
        assert preconditioner and loops
        return any(v in preconditioner for eqn in loops for v in eqn.invars if not isinstance(v, jax.extend.core.Literal))

    assert holds_preconditioner(False) and not holds_preconditioner(True)


@pytest.mark.parametrize("reuse_bound", [0, 3])
def test_top_eigenpairs_finds_another_eigenvalue_that_overtakes(reuse_bound):
    """A direction stays an eigenvector exactly, while another eigenvalue jumps past its own.

    A reused bound may miss that, but not for more calls than may reuse it.
    """
    zeros = jnp.zeros(3)
    options = dict(k=1, loss="mse", reuse_bound=reuse_bound)
    call = jax.jit(lambda x, warm: top_eigenpairs(linear, zeros, (x, zeros), warm_start=warm, **options))
    warm = top_eigenpairs(linear, zeros, (jnp.diag(jnp.array([3.0, 1.0, 0.5])), zeros), **options).directions

    for _ in range(reuse_bound + 1):
        pairs = call(jnp.diag(jnp.array([3.0, 6.0, 0.5])), warm)
        warm = pairs.directions

    assert float(pairs.eigenvalues[0]) == pytest.approx(24, rel=1e-3)  # (2/3) 36


@pytest.mark.long
@pytest.mark.xla
def test_top_eigenpairs_chain_on_convolutions_under_jit():
    """A fixed number of products a call."""
    search, check, params = _chain_on_convolutions(max_products=4)
    search = jax.jit(search, compiler_options=QUICK)

    chain = check(search, steps=4)

    assert all(float(pairs.products) == 1 + 0.5 + 4 + 0.5 for pairs in chain)
    _check_zero_kernel(search, params, chain[-1].directions)


@pytest.mark.xla
def test_top_eigenpairs_chain_on_convolutions_driven_by_python():
    """As many products as it takes."""
    search, check, params = _chain_on_convolutions(max_products=None)

    chain = check(search, steps=2)

    assert all(bool(pairs.converged) for pairs in chain)
    _check_zero_kernel(search, params, chain[-1].directions)


def _chain_on_convolutions(max_products):
    """A search on a convolutional network, and a function that runs it along a few steps and checks its bounds."""
    net, params, (x, y) = batch_of("cnn strided, average, outputs", "mse")
    apply_fn, params = (lambda p, x: p["scale"] * net(p["net"], x)), {"net": params, "scale": jnp.ones(())}

    def search(params, warm):
        return top_eigenpairs(apply_fn, params, (x, y), k=1, loss="mse", warm_start=warm, max_products=max_products)

    def check(search, steps):
        chain, directions, moved = [], no_directions(params, 1, jnp.float32), params
        for step in range(steps):
            moved = jax.tree.map(lambda p, s=1 + 0.01 * step: s * p, moved)
            pairs = search(moved, directions)
            directions = pairs.directions
            truth = np.linalg.eigvalsh(weighted_kernel(apply_fn, moved, (x, y), "mse"))
            assert float(pairs.eigenvalues[0]) <= truth[-1] * (1 + 1e-5) and pairs.vectors.shape == (y.size, 1)
            assert truth[-1] - float(pairs.eigenvalues[0]) <= float(pairs.bounds[0]) + 1e-5 * truth[-1]
            chain.append(pairs)
        assert abs(float(pairs.eigenvalues[0]) / truth[-1] - 1) <= 0.0101
        return chain

    return search, check, params


def _check_zero_kernel(search, params, directions):
    zero = search(jax.tree.map(jnp.zeros_like, params), directions)
    assert float(zero.eigenvalues[0]) == 0 and float(zero.bounds[0]) == 0 and bool(zero.converged)


def test_top_eigenpairs_of_two_outputs_takes_two_products():
    batch = (inputs([3.0, 2.9]), jnp.zeros(2))
    call = jax.jit(lambda d: top_eigenpairs(linear, jnp.zeros(2), batch, k=1, loss="mse", tol=1e-4, warm_start=d))

    pairs = call(no_directions(jnp.zeros(2), 1, jnp.float32))

    assert bool(pairs.converged) and float(pairs.products) == 2 + 0.5  # half for the next direction
    assert float(pairs.eigenvalues[0]) == pytest.approx(3.0, rel=1e-5) and float(pairs.bounds[0]) <= 1e-4


@pytest.mark.parametrize("k", [1, 2])
def test_top_eigenpairs_from_directions_of_zeros(k):
    """A kernel of zeros gives directions of zeros. The next search then has a random start."""
    spectrum = SPECTRA["clustered"]
    n = len(spectrum)
    call = jax.jit(lambda x, d: top_eigenpairs(linear, jnp.zeros(n), (x, jnp.zeros(n)), k=k, loss="mse", warm_start=d))
    zero = call(jnp.zeros((n, n)), call(inputs(spectrum), no_directions(jnp.zeros(n), k, jnp.float32)).directions)
    assert (np.asarray(zero.eigenvalues) == 0).all()
    pairs = call(inputs(spectrum), zero.directions)
    assert bool(pairs.converged)
    np.testing.assert_allclose(pairs.eigenvalues, np.sort(spectrum)[::-1][:k], rtol=0.0101)


def test_top_eigenpairs_of_one_output_takes_one_product():
    linear, batch = (lambda w, x: x @ w), (jnp.ones((1, 3)), jnp.zeros(1))
    call = lambda warm: top_eigenpairs(linear, jnp.zeros(3), batch, k=1, loss="mse", warm_start=warm)

    second = call(call(None).directions)

    assert float(second.products) == 1 + 1.0 and float(second.eigenvalues[0]) == pytest.approx(6)


def test_top_eigenpairs_from_a_warm_direction_takes_fewer_products():
    apply_fn, params, (x, y) = batch_of("fcn", "mse")
    options = dict(k=1, loss="mse", reuse_bound=4)
    search = jax.jit(lambda p, batch, warm: top_eigenpairs(apply_fn, p, batch, warm_start=warm, **options))
    cold = top_eigenpairs(apply_fn, params, (x, y), tol=1e-3, **options)
    again = search(params, (x, y), cold.directions)
    assert (
        float(again.products) <= 1.5 < float(cold.products)
    )  # half a product for the residual, if the next eigenvalue is near
    np.testing.assert_allclose(again.eigenvalues, cold.eigenvalues, rtol=1e-3)
    other = x + 0.5 * jax.random.normal(jax.random.key(9), x.shape)
    moved = search(jax.tree.map(lambda p: 1.1 * p, params), (other, y), cold.directions)
    (truth,) = np.linalg.eigvalsh(weighted_kernel(apply_fn, jax.tree.map(lambda p: 1.1 * p, params), (other, y), "mse"))[-1:]
    assert truth - float(moved.eigenvalues[0]) <= float(moved.bounds[0]) <= 0.0101 * truth
    zeros = cold.directions._replace(vectors=jax.tree.map(jnp.zeros_like, cold.directions.vectors))
    np.testing.assert_allclose(search(params, (x, y), zeros).eigenvalues, cold.eigenvalues, rtol=0.01)


@pytest.mark.parametrize(
    ("spectrum", "k"), [([10, 9.5, *(3 * 0.9**i for i in range(18))], 1), ([5.0], 1), (SPECTRA["clustered"], 2)]
)
def test_top_eigenpairs_chain_from_a_cold_start(spectrum, k):
    """As in a run: the first search is cold, and each search hands its directions to the next."""
    n = len(spectrum)
    batch = (inputs(spectrum), jnp.zeros(n))
    search = jax.jit(
        lambda d: top_eigenpairs(linear, jnp.zeros(n), batch, k=k, loss="mse", warm_start=d), compiler_options=QUICK
    )
    directions = no_directions(jnp.zeros(n), k, jnp.float32)
    for _ in range(4):
        pairs = search(directions)
        error = np.abs(np.asarray(pairs.eigenvalues) - spectrum[:k])
        assert bool(pairs.converged) and (error <= np.asarray(pairs.bounds) + 1e-5 * spectrum[0]).all()
        assert (error <= 0.0101 * np.array(spectrum[:k])).all()
        assert float(pairs.products) <= n + 1.5 * k
        directions = pairs.directions


def test_top_eigenpairs_under_vmap_runs_more_products_only_where_a_member_needs_them():
    batch = (inputs(SPECTRA["spread"]), jnp.zeros(8))
    options = dict(k=1, loss="mse", reuse_bound=2)
    cold = top_eigenpairs(linear, jnp.zeros(8), batch, tol=1e-4, **options).directions
    two = jax.tree.map(lambda a: jnp.stack([a, a]), cold)
    warm = jax.vmap(lambda d: top_eigenpairs(linear, jnp.zeros(8), batch, warm_start=d, **options).products)

    outside = [eqn.primitive.name for eqn in jax.make_jaxpr(warm)(two).jaxpr.eqns]

    assert outside.count("while") == 1  # every product but the first is inside it


def test_top_eigenpairs_stops_on_nan():
    batch = (jnp.full((4, 4), jnp.nan), jnp.zeros(4))
    pairs = top_eigenpairs(linear, jnp.zeros(4), batch, k=1, loss="mse")

    assert not bool(pairs.converged) and float(pairs.products) <= 2


def test_top_eigenpairs_above_a_threshold():
    spectrum = SPECTRA["spread"]
    batch = (inputs(spectrum), jnp.zeros(8))
    search = jax.jit(
        lambda above, warm=None: top_eigenpairs(
            linear, jnp.zeros(8), batch, k=1, k_max=5, loss="mse", above=above, warm_start=warm
        )
    )
    counts = [int(search(jnp.float32(above)).tracked) for above in (20.0, 4.0, 1.5, 0.7, 0.0)]
    assert counts == [1, 3, 4, 5, 5]  # those above, and the first that is not, as far as k_max allows
    four = search(1.5)
    np.testing.assert_allclose(four.eigenvalues[:4], spectrum[:4], rtol=0.01)
    again = search(1.5, four.directions)
    assert bool(again.converged) and int(again.tracked) == 4
    np.testing.assert_allclose(again.eigenvalues[:4], spectrum[:4], rtol=0.01)
    assert float(again.products) <= 8 + 4 * 1.0  # a direction for the next call for each of the four, not of the five
    assert not np.asarray(again.directions.vectors[4]).any()


def test_top_eigenpairs_that_do_not_converge():
    batch = (inputs(SPECTRA["slow"]), jnp.zeros(40))
    pairs = top_eigenpairs(linear, jnp.zeros(40), batch, k=2, loss="mse", tol=1e-4, max_products=4)

    assert not bool(pairs.converged)
    assert (pairs.bounds > 1e-4 * pairs.eigenvalues).any()
    assert float(pairs.products) == 4 + 1  # and a direction (half a product) for each of two


def test_top_eigenpairs_under_vmap_and_scan():
    apply_fn, params, batch = batch_of("fcn", "mse")
    many = jax.tree.map(lambda p: jnp.stack([p, 1.5 * p, -p]), params)
    oracle = [
        np.linalg.eigvalsh(weighted_kernel(apply_fn, jax.tree.map(lambda p, i=i: p[i], many), batch, "mse"))[-1]
        for i in range(3)
    ]
    cold = jax.jit(jax.vmap(lambda p: top_eigenpairs(apply_fn, p, batch, k=1, loss="mse")))(many)
    np.testing.assert_allclose(cold.eigenvalues[:, 0], oracle, rtol=0.01)

    def step(directions, p):
        pairs = top_eigenpairs(apply_fn, p, batch, k=1, loss="mse", warm_start=directions)
        return pairs.directions, pairs.eigenvalues[0]

    first = jax.tree.map(lambda a: a[0], cold.directions)
    np.testing.assert_allclose(jax.jit(lambda d: jax.lax.scan(step, d, many)[1])(first), oracle, rtol=0.011)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(k=0), "k=0; allowed: 1 to 3"),
        (dict(k=4), "k=4; allowed: 1 to 3"),
        (dict(k=2, k_max=1), "k_max=1; allowed: k=2 to 3"),
        (dict(k=1, tol=0.0), "tol=0.0; allowed: above 0"),
        (dict(k=1, above="a"), "above='a'; allowed: a number, or None"),
        (dict(k=1, above=np.ones(2)), r"above has shape \(2,\); allowed: \(\), one number, or None"),
        (dict(k=1, max_products=0), "max_products=0; allowed: 1 or more"),
        (dict(k=1, failure=0.0), "failure=0.0; allowed: above 0 and below 1"),
        (dict(k=1, reuse_bound=-1), "reuse_bound=-1; allowed: 0 or more"),
        (dict(k=1, chunk_size=0), "chunk_size=0; allowed: a whole number, 1 or more"),
        (dict(k=1, preconditioner=jnp.ones(2)), "preconditioner has other leaves"),
        (dict(k=1, loss="hinge"), "loss='hinge'; allowed: mse"),
    ],
)
def test_top_eigenpairs_refuses_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(linear, jnp.zeros(3), (jnp.eye(3), jnp.zeros(3)), **{"loss": "mse"} | options)


def test_top_eigenpairs_refuses_directions_of_another_model_or_number():
    batch = (jnp.eye(3), jnp.zeros(3))
    two = top_eigenpairs(linear, jnp.zeros(3), batch, k=2, loss="mse").directions
    with pytest.raises(ValueError, match="warm_start has 2 directions; allowed: k_max=1"):
        top_eigenpairs(linear, jnp.zeros(3), batch, k=1, loss="mse", warm_start=two)
    with pytest.raises(ValueError, match="warm_start has another structure"):
        top_eigenpairs(linear, jnp.zeros(4), (jnp.ones((3, 4)), jnp.zeros(3)), k=2, loss="mse", warm_start=two)


def test_top_eigenpairs_keeps_no_preconditioner_for_the_update():
    """The planned memory of a step of Adam with its critical lr has no array of the size of the weights more than without P."""
    model = FCN(depth=3, width=256)
    x, y = np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32), np.ones(4, np.float32)
    params = model.init(jax.random.key(0), x)
    adam, loss_fn = optax.adam(1e-3), lambda p: batch_loss(model.apply(p, x), y, loss="mse")
    state = adam.init(params)
    warm = top_eigenpairs(model.apply, params, (x, y), k=1, loss="mse").directions

    def step(params, state, warm, with_p):
        updates, state = adam.update(jax.grad(loss_fn)(params), state, params)
        diagonal = (lambda: preconditioner_from_state(adam, params, None, state).diagonal) if with_p else None
        pairs = top_eigenpairs(model.apply, params, (x, y), k=1, loss="mse", preconditioner=diagonal, warm_start=warm)
        updates = jax.tree.map(lambda u: jnp.where(jnp.isnan(pairs.eigenvalues[0]), 0, u), updates)
        return optax.apply_updates(params, updates), state, pairs.directions

    planned = [
        jax.jit(lambda *a, with_p=with_p: step(*a, with_p), donate_argnums=(0, 1, 2)).lower(params, state, warm).compile()
        for with_p in (False, True)
    ]
    without, with_p = (program.memory_analysis().temp_size_in_bytes for program in planned)

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    # 0.0005 of the weights more on JAX 0.10, 0.8 on 0.12, which computes all quotients at once.

    assert with_p < without + weights


def test_top_eigenpairs_calls_the_function_for_the_preconditioner_each_time():
    """The arrays that it closes over may change or be traced, so none is kept."""
    batch, state = (inputs(SPECTRA["spread"]), jnp.zeros(8)), {}

    def diagonal():
        return state["P"]

    def largest(scale):
        state["P"] = jnp.full(8, scale)
        return top_eigenpairs(linear, jnp.zeros(8), batch, k=1, loss="mse", preconditioner=diagonal).eigenvalues[0]

    for function in (largest, largest, jax.jit(largest), jax.jit(lambda scale: largest(scale))):
        for scale in (1.0, 4.0):
            np.testing.assert_allclose(function(scale), 10 / scale, rtol=0.01)


def test_top_eigenpairs_with_the_preconditioner_of_a_state_outside_of_jit():
    batch = (inputs(SPECTRA["spread"]), jnp.zeros(8))
    state = optax.adam(0.1).update(jnp.ones(8), optax.adam(0.1).init(jnp.zeros(8)))[1]
    diagonal = lambda: preconditioner_from_state(optax.adam(0.1), jnp.zeros(8), None, state).diagonal

    pairs = top_eigenpairs(linear, jnp.zeros(8), batch, k=1, loss="mse", preconditioner=diagonal)

    np.testing.assert_allclose(pairs.eigenvalues[0], 10, rtol=0.01)


@pytest.mark.parametrize("where", ["first", "last"])
def test_top_eigenpairs_of_parameters_without_entries(where):
    named = {"first": ("w", "a"), "last": ("w", "z")}[where]
    apply_fn = lambda p, x: x @ p["w"]
    params, batch = {named[0]: jnp.zeros(8), named[1]: jnp.zeros((0, 2))}, (inputs(SPECTRA["spread"]), jnp.zeros(8))
    ones = jax.tree.map(jnp.ones_like, params)
    cold = top_eigenpairs(apply_fn, params, batch, k=1, loss="mse", preconditioner=ones)

    warm = top_eigenpairs(apply_fn, params, batch, k=1, loss="mse", preconditioner=ones, warm_start=cold.directions)

    np.testing.assert_allclose([cold.eigenvalues[0], warm.eigenvalues[0]], 10, rtol=0.01)


@pytest.mark.long
def test_top_eigenpairs_with_room_for_every_eigenvalue():
    """A chain of calls on a drifting kernel with a flat spectrum, with one of eight eigenvalues tracked."""

    def errors_of_converged(k_max):
        rng, errors = np.random.default_rng(0), []
        left, right = (np.linalg.qr(rng.standard_normal((8, 8)))[0] for _ in range(2))
        search = jax.jit(
            lambda x, warm: top_eigenpairs(
                linear, jnp.zeros(8), (x, jnp.zeros(8)), k=1, k_max=k_max, loss="mse", above=1e9, warm_start=warm
            )
        )
        warm = None
        for _ in range(20):
            right = np.linalg.qr(right @ (np.eye(8) + 0.1 * rng.standard_normal((8, 8))))[0]
            spectrum = np.linspace(1.0, 0.3, 8) * (1 + 0.05 * rng.standard_normal(8))
            x = (left * np.sqrt(4 * spectrum)) @ right
            pairs = search(jnp.asarray(x, jnp.float32), warm)
            if bool(pairs.converged):
                errors.append(1 - float(pairs.eigenvalues[0]) / spectrum.max())
            warm = pairs.directions
        return np.array(errors)

    for k_max in (7, 8):
        errors = errors_of_converged(k_max)
        assert len(errors) == 20 and (errors <= 0.01).all()


@pytest.mark.parametrize("kind", ["second overtakes", "new direction", "all within two percent", "fresh batch"])
def test_top_eigenpairs_rate_of_wrong_answers_along_sequences(kind):
    """At most one in a hundred of the converged calls is wrong by more than the tolerance.

    At most one in a hundred errors exceeds its bound. Eigenvectors turn and eigenvalues cross.
    """
    b, d, steps, members = 16, 24, 40, 6
    rng = np.random.default_rng(5)
    batches = np.stack([_sequence(kind, b, d, steps, rng) for _ in range(members)])

    theta, bound, converged = (np.asarray(a) for a in _follow(jnp.asarray(batches, jnp.float32)))

    error = np.linalg.svd(batches, compute_uv=False)[..., 0] ** 2 * 2 / b - theta

    relative = error / (theta + error)

    assert converged.mean() >= 0.9
    assert (relative[converged] > 0.0101).sum() <= 0.01 * converged.sum()
    assert (error > bound + 1e-5 * theta).sum() <= 0.01 * error.size


@jax.jit
@jax.vmap
def _follow(xs):
    b, d = xs.shape[1:]

    def step(warm, x):
        pairs = top_eigenpairs(linear, jnp.zeros(d), (x, jnp.zeros(b)), k=1, loss="mse", warm_start=warm)
        return pairs.directions, (pairs.eigenvalues[0], pairs.bounds[0], pairs.converged)

    return jax.lax.scan(step, no_directions(jnp.zeros(d), 1, jnp.float32), xs)[1]


def _sequence(kind, b, d, steps, rng):
    """``(steps, b, d)`` inputs of a linear model: the spectrum changes as ``kind`` says, and the eigenvectors turn."""
    U, V = (np.linalg.qr(rng.standard_normal((n, b)))[0] for n in (b, d))
    base = np.sort(rng.uniform(0.01, 0.6, b))[::-1]
    base[0] = 1.0
    turned = lambda Q: np.linalg.qr(Q + 0.05 * rng.standard_normal(Q.shape))[0]
    batches = []
    for t in range(steps):
        lam = base.copy()
        if kind == "second overtakes":
            lam[1] = 0.5 + t / steps
        if kind == "new direction":
            lam[-1] = 1.2 if t >= steps // 2 else 0.0
        if kind == "all within two percent":
            lam = 1 + 0.02 * rng.random(b)
        batches.append(
            rng.standard_normal((b, d)) * np.linspace(1, 0.2, d) if kind == "fresh batch" else (U * np.sqrt(lam * b / 2)) @ V.T
        )
        U, V = turned(U), turned(V)
    return np.stack(batches)


@pytest.mark.parametrize("exponent", [-30, -20, 0, 20, 32])
def test_top_eigenpairs_of_any_size(exponent):
    """Powers of the eigenvalues overflow or underflow here."""
    spectrum = np.array(SPECTRA["spread"]) * 10.0 ** (exponent - 1)
    batch = (
        jnp.asarray(np.asarray(inputs(SPECTRA["spread"]), np.float64) * 10.0 ** ((exponent - 1) / 2), jnp.float32),
        jnp.zeros(8),
    )
    for reuse_bound in (0, 2):
        search = lambda d, r=reuse_bound: top_eigenpairs(
            linear, jnp.zeros(8), batch, k=1, loss="mse", warm_start=d, reuse_bound=r
        )
        cold = search(None)
        warm = search(cold.directions)
        for pairs in (cold, warm):
            assert bool(pairs.converged) and 0 < float(pairs.bounds[0]) <= 0.0101 * spectrum[0]
            assert float(pairs.eigenvalues[0]) == pytest.approx(spectrum[0], rel=0.01)


def test_top_eigenpairs_outside_of_jit_is_compiled_once():
    """A new value of an array that the function closes over is seen."""
    scale = {"value": jnp.float32(1)}
    scaled = lambda w, x: scale["value"] * (x @ w)
    batch = (inputs(SPECTRA["spread"]), jnp.zeros(8))
    search = lambda: float(top_eigenpairs(scaled, jnp.zeros(8), batch, k=1, loss="mse", tol=1e-4).eigenvalues[0])
    first, misses = search(), eigenpairs._compile.cache_info().misses
    assert search() == first and eigenpairs._compile.cache_info().misses == misses
    scale["value"] = jnp.float32(2)
    assert search() == pytest.approx(4 * first, rel=1e-3) and eigenpairs._compile.cache_info().misses == misses
    scale["value"] = 3.0  # a Python number is part of the program
    assert search() == pytest.approx(9 * first, rel=1e-3)


def test_top_eigenpairs_with_debug_nans():
    batch = (inputs(SPECTRA["spread"]), jnp.zeros(8))
    options = dict(k=1, loss="mse", reuse_bound=2)
    with jax.debug_nans(True):
        cold = top_eigenpairs(linear, jnp.zeros(8), batch, **options)
        for _ in range(2):
            warm = jax.jit(lambda d: top_eigenpairs(linear, jnp.zeros(8), batch, warm_start=d, **options))(cold.directions)
            assert float(critical_lr_from_lambda(warm.eigenvalues[0])) == pytest.approx(0.2, rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_top_eigenpairs_under_strict_promotion(strict, dtype):
    x, w = inputs(SPECTRA["spread"]).astype(dtype), jnp.zeros((8, 3), dtype)
    labels = jnp.arange(8) % 3
    options = dict(k=2, k_max=3, above=1.0, loss="softmax_cross_entropy", reuse_bound=1)
    cold = top_eigenpairs(linear, w, (x, labels), **options)

    warm = top_eigenpairs(linear, w, (x, labels), warm_start=cold.directions, **options)
    # p = 1/3 everywhere: S = (1/3) (I - 1/3); two equal eigenvalues of the kernel for each of x x^T / 8 = spectrum / 2

    np.testing.assert_allclose(warm.eigenvalues[:2], [10 / 6, 10 / 6], rtol=0.02)
