"""Cost of a measured training step over the bare one (value, gradient and SGD update), random data.

``forward passes``: what a measurement adds, in forward passes of the same batch. ``limit``: what the measurement needs by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "loss": "loss",
    "batch": "batch",
    "variant": "variant",
    "seconds": "median s",
    "ratio": "/ bare step",
    "forward_passes": "forward passes",
    "limit": "limit",
    "compile_seconds": "compile s",
    "above_mib": "above MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
EXACT, SPLIT, MATRIX_FREE, AGOP = "exact critical lr", "top-5 split", "matrix-free, warm", "AGOP alignment"
AFTER = "loss after the step"
FIVE, OTHERS, SCORES = (
    "five eigenpairs, matrix-free, warm",
    "exact critical lr of as many other examples",
    "loss of as many other examples",
)
APART = "exact critical lr, a pass of its own"  # as at every other step or in chunks, without the step's derivatives
VARIANTS = ("bare step", EXACT, APART, SPLIT, MATRIX_FREE, AGOP, AFTER)
# Forward passes without sharing by XLA: 0 where the step's derivatives serve, 4 (a vjp and a jvp) for each product.
LIMITS = {EXACT: 0, APART: 2, SPLIT: 0, MATRIX_FREE: 4, AGOP: 2, AFTER: 1, FIVE: 20, OTHERS: 2, SCORES: 1}
REST, REST_BATCH = (FIVE, OTHERS, SCORES), (4, 32)  # the other instruments, at these batches
# (model, variant) -> promised most bare steps, and the batch sizes of the promise
PROMISES = {
    ("fcn", EXACT): (1.5, (1, 8, 32, 128)),
    ("fcn", SPLIT): (2.0, (128,)),
    ("cnn", EXACT): (2.0, (1, 8, 32, 128)),
    ("wrn", EXACT): (3.0, (32,)),
    ("vit", EXACT): (3.0, (32,)),
}
BATCHES = {"cpu": (1, 8, 32, 128, 512), "gpu": (1, 8, 32, 128, 512), "smoke": (4,)}
MODELS = {"cpu": ("fcn", "cnn", "wrn", "vit"), "gpu": ("fcn", "cnn", "wrn", "vit"), "smoke": ("fcn", "cnn")}
SOFTMAX_MODELS = {"cpu": ("wrn", "vit"), "gpu": ("wrn", "vit"), "smoke": ("vit",)}
SOFTMAX_BATCH = {"cpu": 32, "gpu": 32, "smoke": 4}


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model in MODELS[scale]:
        for batch in BATCHES[scale]:
            yield from _rows(model, batch, "mse", VARIANTS + (REST if batch in REST_BATCH else ()), scale)
    for model in SOFTMAX_MODELS[scale]:
        yield from _rows(model, SOFTMAX_BATCH[scale], "softmax_cross_entropy", VARIANTS[:3], scale)


def _rows(model: str, batch: int, loss: str, variants, scale: str) -> list[dict[str, Any]]:
    case = {"model": model, "batch": batch, "loss": loss}
    arguments = case | {"scale": scale}

    def make():
        measured = child.call("benchmarks.sections.step:seconds", arguments | {"variants": list(variants)})
        forward, bare = measured.pop("forward")["seconds"], measured["bare step"]["seconds"]
        for variant, timings in measured.items():
            ratio, (limit, batches) = timings["seconds"] / bare, PROMISES.get((model, variant), (None, ()))
            row = {"variant": variant, **timings, "ratio": ratio} | tables.at_most(limit if batch in batches else None, ratio)
            if variant != "bare step":
                row |= {"forward_passes": (timings["seconds"] - bare) / forward, "limit": LIMITS[variant]}
            yield row

    return child.rows_or_reason(case, make)


def seconds(model: str, batch: int, loss: str, scale: str, variants: list[str]) -> dict[str, dict]:
    return timing.take_turns(calls(model, batch, loss, scale, ["forward", *variants]), rounds=timing.ROUNDS[scale])


def calls(model: str, batch: int, loss: str, scale: str, names: list[str]) -> dict[str, timing.Call]:
    """A call of one jitted step for each variant."""
    import jax
    import jax.numpy as jnp

    from catapult_jax import agop_alignment, batch_loss, critical_lr_from_lambda, input_jacobian, top_eigenpairs
    from catapult_jax.eigenspace import split_weighted_loss
    from catapult_jax.tangent.weighted import weighted_kernel_and_gradient, weighted_tangent_kernel
    from catapult_jax.xla import loops_are_slow

    outputs = 2 if loss == "softmax_cross_entropy" else 1
    f, params, x, y = house.setup(model, scale, batch, outputs=outputs, loss=loss)

    def plain(params, x, y):
        def loss_of(params):
            out = f(params, x)
            return batch_loss(out, y, loss=loss), out

        gradient, out = jax.grad(loss_of, has_aux=True)(params)
        return out, None, gradient

    def together(params, x, y):
        return weighted_kernel_and_gradient(f, params, (x, y), loss=loss)

    def exact(params, x, y, out, weighted, _):
        return critical_lr_from_lambda(jnp.linalg.eigvalsh(weighted)[-1])

    def apart(params, x, y, out, _, __):
        return exact(params, x, y, out, weighted_tangent_kernel(f, params, (x, y), out, loss=loss), None)

    def split(params, x, y, out, weighted, _):
        return split_weighted_loss(weighted, out, y, loss=loss, k=5)

    most = 1 if loops_are_slow(f, params, x) else 60  # as in experiments.main

    def matrix_free(params, x, y, _, __, directions):
        return top_eigenpairs(f, params, (x, y), k=1, loss=loss, warm_start=directions, tol=0.01, max_products=most)

    def five(params, x, y, _, __, directions):
        return top_eigenpairs(
            f, params, (x, y), k=min(5, batch), loss=loss, warm_start=directions, tol=0.01, max_products=5 * most
        )

    def of_others(params, x, y, _, __, other):
        out = f(params, other)
        return critical_lr_from_lambda(jnp.linalg.eigvalsh(weighted_tangent_kernel(f, params, (other, y), out, loss=loss))[-1])

    def loss_of_others(params, x, y, _, __, other):
        return batch_loss(f(params, other), y, loss=loss)

    def agop(params, x, _, __, ___, reference):
        return agop_alignment(input_jacobian(f, params, x), reference)

    def directions(k=1):
        cold = jax.jit(lambda params, x, y: top_eigenpairs(f, params, (x, y), k=k, loss=loss, max_products=10 + k).directions)
        return cold(params, x, y)

    nothing = lambda: None
    variants = {
        "bare step": (plain, lambda *_: (), nothing),
        EXACT: (together, exact, nothing),
        APART: (plain, apart, nothing),
        SPLIT: (together, split, nothing),
        MATRIX_FREE: (plain, matrix_free, directions),
        AGOP: (plain, agop, lambda: jax.random.normal(jax.random.key(3), (batch * outputs, x[0].size))),
        AFTER: (plain, None, nothing),  # of the new weights
        FIVE: (plain, five, lambda: directions(min(5, batch))),
        OTHERS: (plain, of_others, lambda: x[::-1]),
        SCORES: (plain, loss_of_others, lambda: x[::-1]),
    }

    def step_with(take_gradient, measure):
        def step(params, x, y, extra):
            out, weighted, gradient = take_gradient(params, x, y)
            measured = None if measure is None else measure(params, x, y, out, weighted, extra)
            leaves = jax.tree.leaves(measured)
            # A NaN stops the update, so the update waits for the measurement.
            is_nan = jnp.isnan(leaves[0].reshape(-1)[0]) if leaves else False
            lr = jnp.where(is_nan, 0, 1e-9)  # so small that every call does the same
            new = jax.tree.map(lambda w, g: w - lr * g, params, gradient)
            measured = batch_loss(f(new, x), y, loss=loss) if measure is None else measured
            return new, batch_loss(out, y, loss=loss), measured

        return jax.jit(house.at_one_precision(step), donate_argnums=0)

    def call_of(name):
        if name == "forward":
            forward = jax.jit(f)
            return lambda: forward(params, x)
        take_gradient, measure, make_extra = variants[name]
        step, extra, weights = step_with(take_gradient, measure), make_extra(), jax.tree.map(jnp.copy, params)

        def call():  # as in training, the step overwrites the weights
            nonlocal weights
            weights, *measured = step(weights, x, y, extra)
            return weights, measured

        return call

    return {name: call_of(name) for name in names}
