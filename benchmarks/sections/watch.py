"""``catapult_jax.watch`` in a training step, in steps without it.

``economy``: measured at every step. ``standard``: the mean over ten steps of which one measures, ``(9 off + due) / 10``. ``due`` is the
step that measures, ``off`` the program that does not (``due=False``), ``inside`` a step that decides inside of the program and does not
measure. Parameters and states are donated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "batch": "batch",
    "optimizer": "optimizer",
    "variant": "what",
    "seconds": "median s",
    "ratio": "bare steps",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
CASES = (
    ("fcn", 128, "sgd"),
    ("fcn", 32, "sgd"),
    ("fcn", 128, "adam"),
    ("vit", 32, "sgd"),
    ("vit", 32, "adam"),
    ("cnn", 32, "sgd"),
    ("decoder", 8, "adam"),
)
EVERY = 10
ECONOMY, STANDARD, OFF = 1.5, 1.25, 1.02


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model, batch, optimizer in CASES:
        case = {"model": model, "batch": 4 if scale == "smoke" else batch, "optimizer": optimizer}
        make = lambda c=case: child.call("benchmarks.sections.watch:measure", c | {"scale": scale}, seconds=1800)
        yield from child.rows_or_reason(case, make)


def measure(model: str, batch: int, optimizer: str, scale: str) -> list[dict[str, Any]]:
    import optax

    from catapult_jax import watch

    f, params, x, y, loss = _problem(model, batch, scale)
    tx = {"sgd": optax.sgd(1e-9), "adam": optax.adam(1e-9)}[optimizer]
    watched = lambda **options: watch(f, loss=loss, optimizer=tx, **options)
    variants = {
        "bare": (None, None),
        "economy": (watched(preset="economy"), True),
        "due": (watched(every=EVERY), True),
        "off": (watched(every=EVERY), False),
        "inside": (watched(every=EVERY), None),
    }
    if model in ("cnn",):
        del variants["inside"]  # convolutions in a loop take minutes on the CPU
    calls = {name: _call(f, params, (x, y), loss, tx, *variant) for name, variant in variants.items()}
    times = timing.take_turns(calls, rounds=timing.ROUNDS[scale], memory=False)
    seconds = {name: row["seconds"] for name, row in times.items()}
    bare = seconds["bare"]
    seconds[f"standard, every {EVERY}"] = ((EVERY - 1) * seconds["off"] + seconds["due"]) / EVERY
    limits = {"economy": ECONOMY, f"standard, every {EVERY}": STANDARD, "off": OFF}
    case = {"model": model, "batch": batch, "optimizer": optimizer}
    return [
        case | {"variant": name, "seconds": value, "ratio": value / bare} | tables.at_most(limits.get(name), value / bare)
        for name, value in seconds.items()
    ]


def _problem(model: str, batch: int, scale: str):
    import jax
    import jax.numpy as jnp

    from benchmarks import networks

    if model != "decoder":
        return (*house.setup(model, scale, batch, loss="mse"), "mse")
    vocabulary, layers, width, heads, length = (32, 1, 16, 2, 8) if scale == "smoke" else (8192, 6, 320, 5, 256)
    f, params = networks.decoder(vocabulary, layers, width, heads, length, jnp.bfloat16)
    tokens = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, vocabulary)
    return f, params, tokens[:, :-1], tokens[:, 1:], "softmax_cross_entropy"


def _call(f, params, batch, loss, tx, watching, due):
    import jax
    import jax.numpy as jnp
    import optax

    from catapult_jax.losses import as_loss

    def step(params, state, w):
        value, gradient = jax.value_and_grad(lambda p: as_loss(loss)(f(p, batch[0]), batch[1]))(params)
        updates, after = tx.update(gradient, state, params)
        new = optax.apply_updates(params, updates)
        if watching is None:
            return new, after, w, value
        w = w._replace(step=jnp.maximum(w.step, 1) // EVERY * EVERY + 1) if due is None else w  # never due
        w, metrics = watching.update(w, params=params, batch=batch, updates=updates, opt_state=after, loss=value, due=due)
        return new, after, w, metrics

    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    carry = jax.tree.map(jnp.copy, (params, tx.init(params), watching.init(params) if watching else jnp.int32(0)))

    def call():
        nonlocal carry
        *carry, metrics = jitted(*carry)
        return metrics

    return call
