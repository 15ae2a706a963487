"""A product for a loss that is a function against one for the same loss by name, and a language model with a masked, smoothed loss.

``product`` is one product alone, in gradients of the same batch. ``in a search`` is the time of a search of eight products from a random
start over their number; for the function its vectors are as large as the parameters. ``plan`` is what XLA plans for a search of six products, inputs and
outputs with it, over the same for one gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "loss": "loss",
    "products": "products",
    "seconds": "median s",
    "gradient_seconds": "gradient, s",
    "product": "product",
    "ratio": "/ named",
    "in_search": "in a search",
    "plan": "plan / gradient's",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
MODELS, DECODER = {"fcn": 128, "vit": 32}, "decoder"
PRODUCTS, PLANNED_PRODUCTS, OUTPUTS = 8, 6, 10


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model in (*MODELS, DECODER):
        function = "language_model" if model == DECODER else "named_and_function"
        arguments = {"scale": scale} | ({} if model == DECODER else {"model": model})
        make = lambda f=function, a=arguments: child.call(f"benchmarks.sections.losses:{f}", a, seconds=1800)
        yield from child.rows_or_reason({"model": model}, make)


def named_and_function(model: str, scale: str) -> list[dict[str, Any]]:
    import jax.numpy as jnp
    import optax

    batch = 8 if scale == "smoke" else MODELS[model]
    f, params, x, y = house.setup(model, scale, batch, outputs=OUTPUTS, loss="softmax_cross_entropy")
    function = lambda outputs, labels: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))
    rows = _rows(f, params, (x, y), {"by name": "softmax_cross_entropy", "a function": function}, scale)
    ratio = rows[1]["product"] / rows[0]["product"]
    rows[1] |= {"ratio": ratio} | tables.promise("at most 1.2 times the named one", ratio <= 1.2)
    return [{"model": model} | row for row in rows]


def language_model(scale: str) -> list[dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from catapult_jax.losses import SoftmaxCrossEntropy

    vocabulary, layers, width, length, batch = (64, 2, 16, 16, 2) if scale == "smoke" else (8192, 10, 256, 256, 8)
    apply_fn, params = networks.decoder(vocabulary, layers, width, 4, length, jnp.bfloat16)
    tokens = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, vocabulary)
    mask = (jnp.arange(length)[None] < jnp.linspace(length // 8, length, batch)[:, None]).astype(jnp.float32)
    loss = SoftmaxCrossEntropy(weighted=True, label_smoothing=0.1)
    data = (tokens[:, :-1], (tokens[:, 1:], mask))
    (row,) = _rows(apply_fn, params, data, {"masked, smoothed": loss}, scale)
    return [{"model": DECODER} | row | tables.promise("plan at most 3 times that of a gradient", row["plan"] <= 3)]


def _rows(apply_fn, params, data, losses: dict[str, Any], scale: str) -> list[dict[str, Any]]:
    import jax

    from catapult_jax import batch_loss, top_eigenpairs

    def search(loss, products):
        return jax.jit(lambda p, b: top_eigenpairs(apply_fn, p, b, k=1, loss=loss, max_products=products, tol=1e-9))

    value = lambda p, b: batch_loss(apply_fn(p, b[0]), b[1], loss=next(iter(losses.values())))
    gradient = jax.jit(jax.grad(value))
    searches = {name: search(loss, PRODUCTS) for name, loss in losses.items()}
    calls = {name: lambda f=f: f(params, data) for name, f in searches.items()} | {"gradient": lambda: gradient(params, data)}
    products_alone = {f"product, {name}": _product(apply_fn, params, data, loss) for name, loss in losses.items()}
    timings = timing.take_turns(calls | products_alone, rounds=timing.ROUNDS[scale], memory=False)
    once, rows = timings["gradient"]["seconds"], []
    for name, loss in losses.items():
        products = float(calls[name]().products)
        row = {"loss": name, "products": products, "gradient_seconds": once, **timings[name]}
        row["product"] = timings[f"product, {name}"]["seconds"] / once
        plan = _planned(search(loss, PLANNED_PRODUCTS), params, data) / _planned(gradient, params, data)
        rows.append(row | {"in_search": row["seconds"] / products / once, "plan": plan})
    return rows


def _product(apply_fn, params, data, loss):
    """One product of the search, with the linearisation."""
    import jax
    import jax.numpy as jnp

    from catapult_jax.losses import as_loss
    from catapult_jax.tangent.operators import of_outputs, of_parameters
    from catapult_jax.tangent.products import linear_map

    loss = as_loss(loss)
    options = dict(loss=loss, preconditioner=lambda: None, chunk_size=None, loop="compiled")

    @jax.jit
    def product(params, data, v):
        if loss.has_factor:
            return of_outputs(linear_map(apply_fn, params, data, **options)).product(v)
        return of_parameters(apply_fn, params, data, curvature="gauss_newton", **options).product(v)

    outputs = jax.eval_shape(apply_fn, params, data[0])
    v = jnp.ones(outputs.size) if loss.has_factor else jax.tree.map(jnp.ones_like, params)
    return lambda: product(params, data, v)


def _planned(program, *arguments) -> float:
    """Bytes of temporary arrays, inputs and outputs."""
    plan = program.lower(*arguments).compile().memory_analysis()
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes
