"""The directional critical lr against a line search on the loss, for the optimizers of Optax.

Each optimizer trains a network at the largest lr, on a grid of factors of two, at which the loss of 40 steps stays finite and ends below a
half of its start: near the edge. In each of the last ten steps the smallest multiple of the update at which the loss of the batch is as
high as before the step is looked for on the loss itself. ``error`` is the median of ``|directional / found - 1|`` over these steps.
``multiple`` is the median of those found. Optimizers whose update needs more than the gradient are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, tables

COLUMNS = {
    "optimizer": "optimizer",
    "lr": "lr",
    "steps": "steps with a descent direction",
    "multiple": "multiple",
    "error": "error",
    "hessian": "error with the Hessian",
    "promise": "promise",
    "met": "met",
    "rule": "rule for the spectral critical lr",
    "note": "note",
}
NEED_MORE = ("dpsgd", "lbfgs", "momo", "momo_adam", "sophia", "schedule_free", "noisy_sgd")  # a value, a key, another optimizer
NO_OPTIMIZERS = ("scale_by_learning_rate", "scale_by_madgrad", "scale_by_rprop")
STEPS, LAST, LIMIT = 40, 10, 0.05
WIDTH, EXAMPLES = 512, 64


def run(scale: str) -> Iterator[dict[str, Any]]:
    for name in names() if scale != "smoke" else ("sgd", "lion"):
        make = lambda n=name: [child.call("benchmarks.sections.line_search:measure", {"name": n, "scale": scale}, seconds=600)]
        yield from child.rows_or_reason({"optimizer": name}, make)


def names() -> list[str]:
    """The optimizers of ``optax`` and ``optax.contrib`` that take a learning rate."""
    import inspect

    import optax
    from optax import contrib

    found = []
    for module in (optax, contrib):
        for name, function in vars(module).items():
            if (
                not name.startswith("_")
                and inspect.isfunction(function)
                and "learning_rate" in inspect.signature(function).parameters
            ):
                found.append(name)
    return sorted(set(found) - {*NEED_MORE, *NO_OPTIMIZERS})


def measure(name: str, scale: str) -> dict[str, Any]:
    """The row of one optimizer."""
    import warnings

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from optax import contrib
    from sklearn.datasets import load_digits

    from catapult_jax import FCN, batch_loss, directional_critical_lr, preconditioner_from_state
    from catapult_jax.criteria import line_search_score

    warnings.simplefilter("ignore")
    digits = load_digits()
    x = jnp.float32(digits.data[:EXAMPLES])
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True) * 8
    y = jnp.where(jnp.asarray(digits.target[:EXAMPLES]) < 5, -1.0, 1.0)[:, None]
    model = FCN(depth=3 if scale == "smoke" else 5, width=16 if scale == "smoke" else WIDTH)
    start = model.init(jax.random.key(0), x[:1])
    loss_fn = lambda params: batch_loss(model.apply(params, x), y, loss="mse")
    make = getattr(optax, name, None) or getattr(contrib, name)

    def train(lr, steps):
        tx = make(learning_rate=lr)

        def step(carry, _):
            params, state = carry
            loss, gradient = jax.value_and_grad(loss_fn)(params)
            updates, after = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), after), (loss, params, updates)

        return jax.lax.scan(step, (start, tx.init(start)), length=steps)

    losses = jax.jit(lambda lr: train(lr, STEPS)[1][0])
    lr = next((r for r in 2.0 ** np.arange(6.0, -24, -1) if _ends_well(np.asarray(losses(r)))), None)
    if lr is None:
        return {"optimizer": name, "note": "no lr of the grid halves the loss in 40 steps"}

    @jax.jit
    def compare(params, updates):
        step = directional_critical_lr(model.apply, params, (x, y), updates, loss="mse")
        second = directional_critical_lr(model.apply, params, (x, y), updates, loss="mse", curvature="hessian")
        return step.multiple, second.multiple, 1 / line_search_score(loss_fn, params, updates, halvings=10)

    _, (_, params, updates) = jax.jit(lambda lr: train(lr, STEPS))(lr)
    last = [
        compare(*(jax.tree.map(lambda a, i=i: a[i], tree) for tree in (params, updates))) for i in range(STEPS - LAST, STEPS)
    ]
    first, second, found = np.array(last).T
    there = (first > 0) & np.isfinite(found) & (found > 0)
    error = lambda multiple: float(np.median(np.abs(multiple[there] / found[there] - 1)))
    tx = make(learning_rate=float(lr))
    reason = jax.eval_shape(lambda p: preconditioner_from_state(tx, p, tx.init(p), tx.init(p), gradient=p), start).reason
    row = {"optimizer": name, "lr": float(lr), "steps": int(there.sum()), "rule": "no" if reason else "yes"}
    if not there.any():
        return row | {"note": "no step has a descent direction"}
    row |= {"multiple": float(np.median(found[there])), "error": error(first), "hessian": error(second)}
    return row | tables.promise("error at most 5 %", row["error"] <= LIMIT)


def _ends_well(losses) -> bool:
    import numpy as np

    return bool(np.isfinite(losses).all() and losses[-5:].max() < losses[0] / 2)
