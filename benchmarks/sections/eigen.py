"""Largest eigenvalues without a kernel: ours, Lanczos of matfree, and eigsh of scipy, all to one percent, mse, random data.

Cold: from a random start. Warm: from what was found one step of SGD (half the critical lr) earlier. ``error`` is the largest of the
``k`` relative errors, against eigvalsh of the exact kernel. A product takes four forward passes of the batch at least. Ours stops when its own bound says so and eigsh at its tolerance; the
Lanczos of matfree has no stopping rule, and is given the smallest number of products that reaches one percent. Where loops are
slow (convolutions on a CPU) ours is called outside of jit, as it asks to be, and once more under jit with no more products than
it needs.
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
ALONE, BOTH = (1,), (1, 5)  # eigenpairs
CASES = {
    "cpu": (("fcn", 128, BOTH), ("vit", 32, BOTH), ("wrn", 32, ALONE), ("fcn", 2048, ALONE)),
    "smoke": (("fcn", 16, BOTH), ("vit", 8, ALONE)),
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

    jax.config.update("jax_default_matmul_precision", "highest")  # as in ours: the same arithmetic for all
    f, params, x, y = house.setup(model, scale, batch)
    slow = loops_are_slow(f, params, x)

    def weighted(params):
        return loss_weighted_kernel(tangent_kernel(f, params, x), f(params, x), y, loss="mse")

    values, vectors = jnp.linalg.eigh(jax.jit(weighted)(params))
    gradient = jax.jit(jax.grad(lambda params: batch_loss(f(params, x), y, loss="mse")))(params)
    before, params = params, jax.tree.map(lambda w, g: w - g / values[-1], params, gradient)
    truth = np.linalg.eigvalsh(np.asarray(jax.jit(weighted)(params), np.float64))[::-1][:k]
    error = lambda found: float(np.max(np.abs(np.asarray(found) / truth - 1)))

    def pairs(most: int | None):
        """Ours, compiled anew. ``most``: products under jit where loops are slow; None: as its documentation has it called."""
        limit = {} if most is None else {"max_products": most}
        found = lambda params, x, y, start: top_eigenpairs(
            f, params, (x, y), k=k, loss="mse", warm_start=start, tol=TOLERANCE, **limit
        )
        return found if slow and most is None else jax.jit(found)

    warm, calls, abouts = pairs(None)(before, x, y, None).directions, {}, {}

    def ours(name: str, start: str, most: int | None):
        found, directions = pairs(most), warm if start == "warm" else None
        call = lambda: found(params, x, y, directions)

        def describe():
            result = call()
            bound, note = float(np.max(np.asarray(result.bounds) / truth)), "" if bool(result.converged) else "did not converge"
            wrong = error(result.eigenvalues)
            promise = tables.promise("at most 1 %", wrong <= TOLERANCE)
            return {"products": float(result.products), "error": wrong, "bound": bound, "note": note} | promise

        calls[name, start], abouts[name, start] = call, describe

    exact = jax.jit(lambda params: jnp.linalg.eigvalsh(weighted(params)))
    calls["exact kernel, eigvalsh", "-"], abouts["exact kernel, eigvalsh", "-"] = lambda: exact(params), dict
    vector = {"cold": jax.random.normal(jax.random.key(5), (batch,)), "warm": vectors[:, -k:].sum(1)}
    for start in vector:
        ours("ours", start, None)
        if slow:
            needed = int(abouts["ours", start]()["products"]) + 1
            ours(f"ours under jit, max_products={needed}", start, needed)
        calls["matfree", start], abouts["matfree", start] = _matfree(f, params, x, vector[start], k, error)
        for basis in (None, 2 * k + 1):  # ARPACK's own choice, 20 or more, is generous for so low an accuracy
            name = "eigsh" if basis is None else f"eigsh, ncv={basis}"
            calls[name, start], abouts[name, start] = _eigsh(f, params, x, vector[start], k, error, basis)

    forward = jax.jit(f)
    calls["forward", "-"] = lambda: forward(params, x)
    measured = timing.take_turns({key: call for key, call in calls.items() if call}, rounds=timing.ROUNDS[scale])
    once, rows = measured["forward", "-"]["seconds"], []
    for (name, start), describe in abouts.items():
        found, reference = measured.get((name, start)), measured.get(("ours", start))
        ratio = {"ratio": found["seconds"] / reference["seconds"]} if found and reference else {}
        ratio |= {"forward_passes": found["seconds"] / once} if found else {}
        described = describe()
        ratio |= {"limit": 4 * described["products"] if "products" in described else 2} if found else {}
        rows.append({"variant": name, "start": start, **(found or {}), **ratio, **described})
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

    # One long run tells what each shorter one finds: the leading blocks of its tridiagonal matrix.
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
        found = np.sort(call())[::-1]
        return {"products": products[0], "error": error(found)}

    return call, describe
