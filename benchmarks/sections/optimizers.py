"""Cost of a preconditioner: in a product, in a warm search of one product, and in a step of Adam with its critical lr.

mse, random data. A product is one vjp, a scaling and one jvp; its time is that of a search from a random start, over the
number of products. A warm search of one product also takes the norms of two directions, each as large as the weights.

The critical lr is that of a run with ``measure.method=matrix_free``: one eigenvalue to one percent, from the directions
of the step before. The learning rate is so small that every call does the same. A NaN critical lr stops the update. So
the update waits for the measurement, as in training, and XLA needs no copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "batch": "batch",
    "variant": "variant",
    "seconds": "median s",
    "ratio": "/ the first",
    "products": "products",
    "forward_passes": "forward passes",
    "limit": "limit",
    "compile_seconds": "compile s",
    "above_mib": "above MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
CASES = {"cpu": (("fcn", 32), ("fcn", 128), ("vit", 32)), "smoke": (("fcn", 4),)}
PRODUCT_LIMIT, STEP_LIMIT = 1.2, 3.0


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model, batch in CASES.get(scale, CASES["cpu"]):
        arguments = {"model": model, "batch": batch, "scale": scale}
        for function in ("products", "searches", "steps"):
            make = lambda a=arguments, f=function: child.call(f"benchmarks.sections.optimizers:{f}", a)
            yield from child.rows_or_reason({"model": model, "batch": batch}, make)


def products(model: str, batch: int, scale: str) -> list[dict[str, Any]]:
    """``v -> K v`` with and without a preconditioner."""
    import jax

    from catapult_jax import top_eigenpairs

    f, params, x, y, diagonal = _with_diagonal(model, batch, scale)
    search = jax.jit(lambda params, x, y, p: top_eigenpairs(f, params, (x, y), k=1, loss="mse", preconditioner=p))
    calls = {
        "product": lambda: search(params, x, y, None),
        "preconditioned product": lambda: search(params, x, y, diagonal),
    }
    return _rows(calls, (4, 4), (f, params, x), PRODUCT_LIMIT, "products", scale, each=True)


def searches(model: str, batch: int, scale: str) -> list[dict[str, Any]]:
    """A warm search of one product: ``A w``, ``A^T A w``, and the norms of ``w`` and ``A^T A w``."""
    import jax

    from catapult_jax import top_eigenpairs

    f, params, x, y, diagonal = _with_diagonal(model, batch, scale)
    options = dict(k=1, loss="mse", tol=0.5, max_products=1)

    def call_of(preconditioner):
        cold = jax.jit(lambda p: top_eigenpairs(f, p, (x, y), preconditioner=preconditioner, **options | {"max_products": 10}))
        warm = cold(params).directions
        search = jax.jit(
            lambda params, x, y, preconditioner, warm: top_eigenpairs(
                f, params, (x, y), preconditioner=preconditioner, warm_start=warm, **options
            )
        )
        return lambda: search(params, x, y, preconditioner, warm)

    calls = {"warm search": call_of(None), "preconditioned warm search": call_of(diagonal)}
    return _rows(calls, (4, 4), (f, params, x), None, "searches", scale)


def _with_diagonal(model: str, batch: int, scale: str) -> tuple:
    import jax

    f, params, x, y = house.setup(model, scale, batch)
    return f, params, x, y, jax.tree.map(lambda p: 0.5 + jax.random.uniform(jax.random.key(4), p.shape), params)


def steps(model: str, batch: int, scale: str) -> list[dict[str, Any]]:
    import jax
    import jax.numpy as jnp
    import optax

    from catapult_jax import batch_loss, critical_lr_from_lambda, preconditioner_from_state, top_eigenpairs

    f, params, x, y = house.setup(model, scale, batch)
    adam = optax.adam(1e-9)
    gradient = jax.jit(jax.grad(lambda p: batch_loss(f(p, x), y, loss="mse")))
    state = jax.jit(adam.init)(params)
    for _ in range(3):  # leave the first steps, where the preconditioner is the gradient
        _, state = jax.jit(adam.update)(gradient(params), state, params)

    def search(params, diagonal, warm, most):
        return top_eigenpairs(
            f, params, (x, y), k=1, loss="mse", tol=0.01, max_products=most, preconditioner=diagonal, warm_start=warm
        )

    def step(params, state, warm):
        updates, state = adam.update(jax.grad(lambda p: batch_loss(f(p, x), y, loss="mse"))(params), state, params)
        if warm is None:
            return optax.apply_updates(params, updates), state, None, None
        preconditioner = lambda: preconditioner_from_state(adam, params, None, state)
        pairs = search(params, lambda: preconditioner().diagonal, warm, 60)
        critical = critical_lr_from_lambda(pairs.eigenvalues[0], preconditioner())
        updates = jax.tree.map(lambda u: jnp.where(jnp.isnan(critical), 0, u), updates)
        return optax.apply_updates(params, updates), state, pairs.directions, (critical, pairs.products)

    start = preconditioner_from_state(adam, params, None, state)
    cold = jax.jit(lambda params, diagonal: search(params, diagonal, None, 60).directions)(params, start.diagonal)

    def call_of(warm):
        carry = jax.tree.map(jnp.copy, (params, state, warm))
        jitted = jax.jit(house.at_one_precision(step), donate_argnums=(0, 1, 2))

        def call():
            nonlocal carry
            *carry, measured = jitted(*carry)
            return carry[0] if measured is None else measured

        return call

    calls = {"bare step of Adam": call_of(None), "step with critical lr": call_of(cold)}
    return _rows(calls, (3, 7), (f, params, x), STEP_LIMIT, "bare steps", scale)


def _rows(
    calls: dict[str, timing.Call],
    limits: tuple,
    forward: tuple,
    limit: float | None,
    what: str,
    scale: str,
    each: bool = False,
) -> list[dict[str, Any]]:
    """Rows of two calls: seconds, forward passes of the batch, and the fewest that they need (``limits``).

    ``each``: for one product of the call.
    """
    import jax

    f, params, x = forward
    once = jax.jit(f)
    timings = timing.take_turns(calls | {"forward": lambda: once(params, x)}, rounds=timing.ROUNDS[scale])
    passes = timings.pop("forward")["seconds"]
    if each:
        for name in timings:
            count = float(calls[name]().products)
            seconds, rounds = timings[name]["seconds"], timings[name]["rounds"]
            timings[name] |= {"seconds": seconds / count, "rounds": [t / count for t in rounds]}
    (plain, first), (name, second) = timings.items()
    first, second = (
        row | {"forward_passes": row["seconds"] / passes, "limit": n} for row, n in zip(timings.values(), limits, strict=True)
    )
    ratio, last = second["seconds"] / first["seconds"], calls[name]()
    count = float(last.products if hasattr(last, "products") else last[1])
    promise = tables.at_most(limit, ratio, what)
    return [{"variant": plain, **first}, {"variant": name, **second, "ratio": ratio, "products": count} | promise]
