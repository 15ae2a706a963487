"""Largest eigenvalues without a kernel, to one percent: our search, Lanczos of matfree, and eigsh of scipy; mse, random
data.

Cold: from a random start. Warm: from the eigenvectors of one step of SGD (half the critical lr) earlier. ``error`` is the
largest of the ``k`` relative errors, against eigvalsh of the exact kernel. A product takes at least four forward passes
of the batch.

Our search stops at its own bound, and eigsh at its tolerance. The Lanczos method of matfree has no stopping rule; it gets
the smallest number of products that reaches one percent. Where loops are slow (convolutions on the CPU) our search runs
outside of jit, as it asks for, and once more under jit with only the products that it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "batch": "n",
    "k": "k",
    "variant": "method",
    "start": "start",
    "products": "products",
    "seconds": "median s",
    "ratio": "/ ours, same start",
    "forward_passes": "forward passes",
    "limit": "limit",
    "compile_seconds": "compile s",
    "error": "relative error",
    "bound": "reported bound",
    "above_mib": "above MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
LARGEST, BOTH = (1,), (1, 5)  # numbers of eigenpairs
CASES = {
    "cpu": (("fcn", 128, BOTH), ("vit", 32, BOTH), ("wrn", 32, LARGEST), ("fcn", 2048, LARGEST)),
    "smoke": (("fcn", 16, BOTH), ("vit", 8, LARGEST)),
}
TOLERANCE, MOST_PRODUCTS = 0.01, 60


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model, batch, ks in CASES.get(scale, CASES["cpu"]):
        for k in ks:
            case = {"model": model, "batch": batch, "k": k}
            make = lambda case=case: child.call("benchmarks.sections.eigen:compare", case | {"scale": scale}, seconds=1800)
            yield from child.rows_or_reason(case, make)


def compare(model: str, batch: int, k: int, scale: str) -> list[dict[str, Any]]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from catapult_jax import batch_loss, loss_weighted_kernel, tangent_kernel, top_eigenpairs
    from catapult_jax.xla import loops_are_slow

    jax.config.update("jax_default_matmul_precision", "highest")  # as our search: the same arithmetic for all
    f, params, x, y = house.setup(model, scale, batch)
    slow = loops_are_slow(f, params, x)

    def weighted(params):
        return loss_weighted_kernel(tangent_kernel(f, params, x), f(params, x), y, loss="mse")

    values, vectors = jnp.linalg.eigh(jax.jit(weighted)(params))
    gradient = jax.jit(jax.grad(lambda params: batch_loss(f(params, x), y, loss="mse")))(params)
    before, params = params, jax.tree.map(lambda w, g: w - g / values[-1], params, gradient)
    truth = np.linalg.eigvalsh(np.asarray(jax.jit(weighted)(params), np.float64))[::-1][:k]
    error = lambda eigenvalues: float(np.max(np.abs(np.asarray(eigenvalues) / truth - 1)))

    def pairs(most: int | None):
        """Our search, compiled anew. ``most``: products under jit where loops are slow; None: outside of jit there."""
        limit = {} if most is None else {"max_products": most}
        search = lambda params, x, y, start: top_eigenpairs(
            f, params, (x, y), k=k, loss="mse", warm_start=start, tol=TOLERANCE, **limit
        )
        return search if slow and most is None else jax.jit(search)

    warm, calls, describers = pairs(None)(before, x, y, None).directions, {}, {}

    def ours(name: str, start: str, most: int | None):
        search, directions = pairs(most), warm if start == "warm" else None
        call = lambda: search(params, x, y, directions)

        def describe():
            result = call()
            bound, note = float(np.max(np.asarray(result.bounds) / truth)), "" if bool(result.converged) else "did not converge"
            wrong = error(result.eigenvalues)
            promise = tables.promise("at most 1 %", wrong <= TOLERANCE)
            return {"products": float(result.products), "error": wrong, "bound": bound, "note": note} | promise

        calls[name, start], describers[name, start] = call, describe

    exact = jax.jit(lambda params: jnp.linalg.eigvalsh(weighted(params)))
    calls["exact kernel, eigvalsh", "-"], describers["exact kernel, eigvalsh", "-"] = lambda: exact(params), dict
    vector = {"cold": jax.random.normal(jax.random.key(5), (batch,)), "warm": vectors[:, -k:].sum(1)}
    for start in vector:
        ours("ours", start, None)
        if slow:
            needed = int(describers["ours", start]()["products"]) + 1
            ours(f"ours under jit, max_products={needed}", start, needed)
        calls["matfree", start], describers["matfree", start] = _matfree(f, params, x, vector[start], k, error)
        for basis in (None, 2 * k + 1):  # the default of ARPACK, 20 or more, is large for this accuracy
            name = "eigsh" if basis is None else f"eigsh, ncv={basis}"
            calls[name, start], describers[name, start] = _eigsh(f, params, x, vector[start], k, error, basis)

    forward = jax.jit(f)
    calls["forward", "-"] = lambda: forward(params, x)
    measured = timing.take_turns({key: call for key, call in calls.items() if call}, rounds=timing.ROUNDS[scale])
    once, rows = measured["forward", "-"]["seconds"], []
    for (name, start), describe in describers.items():
        timing_of, reference = measured.get((name, start)), measured.get(("ours", start))
        ratio = {"ratio": timing_of["seconds"] / reference["seconds"]} if timing_of and reference else {}
        ratio |= {"forward_passes": timing_of["seconds"] / once} if timing_of else {}
        described = describe()
        ratio |= {"limit": 4 * described["products"] if "products" in described else 2} if timing_of else {}
        rows.append({"variant": name, "start": start, **(timing_of or {}), **ratio, **described})
    return rows


def _product(f, x):
    """``params -> v -> (2/b) J J^T v`` (mse, one output), linearised once."""
    import jax

    def linearised(params):
        out, push = jax.linearize(lambda p: f(p, x).reshape(-1), params)
        pull = jax.linear_transpose(push, params)
        return lambda v: push(pull(v)[0]) * (2 / len(out))

    return linearised


def _matfree(f, params, x, vector, k: int, error):
    import jax
    import numpy as np

    try:
        from matfree import decomp, eig
    except ImportError:
        return None, lambda: {"note": "not measured: pip install matfree"}

    def search(steps: int):
        return decomp.tridiag_sym(steps, custom_vjp=False)

    # The leading blocks of the tridiagonal matrix of one long run are the matrices of all shorter runs.
    steps = min(len(vector), MOST_PRODUCTS)
    tridiagonal = np.asarray(jax.jit(lambda params, x, v: search(steps)(_product(f, x)(params), v).J_small)(params, x, vector))
    errors = {j: error(np.linalg.eigvalsh(tridiagonal[:j, :j])[::-1][:k]) for j in range(k, steps + 1)}
    enough = next((j for j, e in errors.items() if e <= TOLERANCE), None)
    if enough is None:
        return None, lambda: {"products": steps, "error": errors[steps], "note": "one percent not reached"}
    solve = jax.jit(lambda params, x, v: eig.eigh_partial(search(enough))(_product(f, x)(params), v))
    return (lambda: solve(params, x, vector)), lambda: {"products": enough, "error": errors[enough]}


def _eigsh(f, params, x, vector, k: int, error, basis: int | None):
    import jax
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, eigsh

    product = jax.jit(lambda params, x, v: _product(f, x)(params)(v))
    n, products = len(vector), [0]

    def multiply(v):
        products[0] += 1
        return np.asarray(product(params, x, v.reshape(-1).astype(np.float32)))

    operator, start = LinearOperator((n, n), matvec=multiply, dtype=np.float32), np.asarray(vector)
    call = lambda: eigsh(operator, k=k, which="LA", ncv=basis, tol=TOLERANCE, v0=start, return_eigenvectors=False)

    def describe():
        products[0] = 0
        eigenvalues = np.sort(call())[::-1]
        return {"products": products[0], "error": error(eigenvalues)}

    return call, describe
