"""Warm-started lambda_max at every step of SGD through its catapults (configs/cifar_sgd.py), against the exact one.

``spike``: the steps inside an event of ``catapult_jax.find_events`` at which the full training loss is above 1.5 times
its level. The first step of a run is cold and counts. Where loops are slow (convolutions on the CPU) it runs outside of
jit, as ``top_eigenpairs`` asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from benchmarks import child, tables

COLUMNS = {
    "model": "config",
    "seeds": "seeds",
    "steps": "steps",
    "variant": "what",
    "value": "value",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
CASES = {
    "cpu": (("fcn", 5, 200), ("fcn,ce", 5, 200), ("cnn", 1, 60), ("wrn", 2, 200), ("vit", 2, 200)),
    "smoke": (("fcn,smoke", 1, 4), ("vit,smoke", 1, 3)),
}
FACTOR, TOLERANCE = 1.5, 0.01
ROUNDING = 1e-5  # relative to lambda_max: the rounding of the exact value in float32


def run(scale: str) -> Iterator[dict[str, Any]]:
    for variant, seeds, steps in CASES.get(scale, CASES["cpu"]):
        case = {"model": variant, "seeds": seeds, "steps": steps}
        if not os.environ.get("CATAPULT_DATA_DIR"):
            yield case | {"note": "skipped: CATAPULT_DATA_DIR is not set"}
            continue
        arguments = {"variant": variant, "seeds": seeds, "steps": steps}
        make = lambda a=arguments: _summary(child.call("benchmarks.sections.along:follow", a, seconds=1800))
        yield from child.rows_or_reason(case, make)


def _summary(runs: list[dict[str, list]]) -> Iterator[dict[str, Any]]:
    every = {name: [value for run in runs for value in run[name]] for name in runs[0]}
    steps, at_spikes = len(every["products"]), [p for p, s in zip(every["products"], every["spike"], strict=True) if s]
    mean, worst = sum(every["products"]) / steps, max(every["error"])
    fraction = lambda yes: sum(yes) / steps
    yield {"variant": "products of a step, mean", "value": mean} | tables.at_most(2, mean, "on average")
    yield {"variant": "products of a step, most", "value": max(every["products"])}
    promise = tables.promise("at most 5", max(at_spikes) <= 5 if at_spikes else None)
    note = f"{len(at_spikes)} of {steps} steps are in a spike"
    yield {"variant": "products in a spike, most", "value": max(at_spikes, default=None), "note": note} | promise
    yield {"variant": "relative error, largest", "value": worst} | tables.promise("at most 1 %", worst <= TOLERANCE)
    yield {"variant": "steps with an error of at most 1 %", "value": fraction(e <= TOLERANCE for e in every["error"])}
    yield {"variant": "steps whose bound held", "value": fraction(every["held"])}
    yield {"variant": "steps that say they converged", "value": fraction(every["converged"])}
    yield {"variant": "lr above the exact critical lr", "value": fraction(every["exceedance"])}


def follow(variant: str, seeds: int, steps: int) -> list[dict[str, list]]:
    """Series over the steps, for each seed."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from catapult_jax import batch_loss, critical_lr, find_events, loss_weighted_kernel, tangent_kernel, top_eigenpairs
    from catapult_jax.xla import loops_are_slow
    from configs import cifar_sgd
    from experiments.build import build_model, load_data

    config = cifar_sgd.get_config(variant)
    config.data.strict = True  # no fallback data
    data, _ = load_data(config)
    model, loss, size = build_model(config.model, data.outputs), config.loss, config.optimizer.batch_size
    f, x_all, y_all = model.apply, jnp.asarray(data.x_train), jnp.asarray(data.y_train)

    @jax.jit
    def exact(params, x, y):
        out = f(params, x)
        weighted = loss_weighted_kernel(tangent_kernel(f, params, x), out, y, loss=loss)
        return jnp.linalg.eigvalsh(weighted)[-1], batch_loss(f(params, x_all), y_all, loss=loss)

    @jax.jit
    def update(params, x, y, lr):
        gradient = jax.grad(lambda params: batch_loss(f(params, x), y, loss=loss))(params)
        return jax.tree.map(lambda w, g: w - lr * g, params, gradient)

    def search(params, x, y, start, most):
        return top_eigenpairs(f, params, (x, y), k=1, loss=loss, warm_start=start, tol=TOLERANCE, max_products=most)

    slow = loops_are_slow(f, jax.eval_shape(model.init, jax.random.key(0), x_all[:1]), x_all[:size])
    compiled = jax.jit(search, static_argnums=4)

    def top(params, x, y, start):
        if slow and start is None:
            return search(params, x, y, None, 60)
        return compiled(params, x, y, start, 1 if slow else 60)  # as in experiments.main

    def run_of(seed):
        params = jax.jit(model.init)(jax.random.fold_in(jax.random.key(seed), 0), x_all[:1])
        lr = config.optimizer.lr * jax.jit(lambda p: critical_lr(f, p, (x_all, y_all), loss=loss))(params)
        per_epoch, start, series = len(x_all) // size, None, []
        for step in range(steps):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step // per_epoch)
            rows = jax.random.permutation(key, len(x_all))[step % per_epoch * size :][:size]
            x, y = x_all[rows], y_all[rows]
            pairs, (truth, loss_train) = top(params, x, y, start), exact(params, x, y)
            start = pairs.directions
            values = (pairs.eigenvalues[0], pairs.bounds[0], pairs.products, pairs.converged, truth, loss_train)
            series.append([float(v) for v in values])
            params = update(params, x, y, lr)
        value, bound, products, converged, truth, loss_train = np.array(series).T
        critical = 2 / truth
        spike = np.zeros(steps, bool)
        for event in find_events(loss_train, np.full(steps, float(lr)), critical, factor=FACTOR):
            window = slice(event.onset, event.returned if event.returned >= 0 else steps)
            spike[window] |= loss_train[window] > FACTOR * event.level
        return {
            "products": products.tolist(),
            "spike": spike.tolist(),
            "error": np.abs(value / truth - 1).tolist(),
            "held": (np.abs(value - truth) <= bound + ROUNDING * truth).tolist(),
            "converged": (converged > 0).tolist(),
            "exceedance": (float(lr) > critical).tolist(),
        }

    return [run_of(seed) for seed in range(seeds)]
