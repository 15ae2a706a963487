"""How often ``top_eigenpairs`` converges to a wrong largest eigenvalue, and how often the error exceeds its bound.

Each step is warm-started (``k = 1``, ``tol = 0.01``) and compared with eigvalsh of the exact kernel, or with the singular
values of the inputs.

Chains: SGD and Adam on the 8x8 digits that scikit-learn ships, FCN of width 32. ``mse`` has one output, a digit below
five or not; ``softmax`` has ten.

Sequences: a linear model with prescribed spectrum and eigenvectors. In each step the eigenvectors turn by ``turn``: the
Frobenius norm of the generator of a random rotation, in units of the root of the dimension.

Promises: at most 0.1 % of the converged steps are wrong along chains, and 1 % along sequences. The error exceeds the
bound at most as often as ``failure`` says, 0.1 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, tables

COLUMNS = {
    "chain": "chain",
    "batch": "b",
    "reuse_bound": "reuse_bound",
    "steps": "steps",
    "says_so": "converged",
    "wrong": "of these wrong",
    "worst": "worst error of these",
    "above_bound": "above the bound",
    "products": "products a step",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
# loss, optimizer, lr (sgd: of the critical lr at the start), batch size, steps of each seed, seeds, reuse_bound
CHAINS = {
    "cpu": (
        ("mse", "sgd", 0.5, 4, 800, 3, 0),
        ("mse", "sgd", 0.5, 16, 800, 3, 0),
        ("mse", "sgd", 0.8, 128, 800, 2, 0),
        ("mse", "adam", 3e-3, 4, 800, 3, 0),
        ("mse", "adam", 3e-3, 16, 800, 3, 0),
        ("mse", "adam", 3e-3, 128, 800, 2, 0),
        ("softmax_cross_entropy", "sgd", 0.5, 4, 800, 3, 0),
        ("softmax_cross_entropy", "sgd", 0.5, 16, 800, 3, 0),
        ("softmax_cross_entropy", "sgd", 0.8, 128, 100, 1, 0),
        ("softmax_cross_entropy", "adam", 3e-3, 4, 800, 3, 0),
        ("softmax_cross_entropy", "adam", 3e-3, 16, 800, 3, 0),
        ("mse", "gd", 0.5, 128, 800, 1, 0),
        ("mse", "gd", 0.5, 128, 800, 1, 5),
        ("mse", "gd", 1.5, 128, 800, 1, 0),
        ("mse", "gd", 1.5, 128, 800, 1, 5),
    ),
    "smoke": (
        ("mse", "sgd", 0.5, 4, 20, 1, 0),
        ("softmax_cross_entropy", "adam", 3e-3, 4, 20, 1, 0),
        ("mse", "gd", 0.5, 16, 20, 1, 5),
    ),
}
SEQUENCES = (
    "second overtakes, 0.9 to 1.1",
    "second overtakes, 0.5 to 1.5",
    "new direction of 1.2",
    "new direction of 3",
    "all within two percent",
    "fresh Gaussian batch",
)
TURNS, SEEDS, LENGTH = (0.001, 0.05, 0.2), {"cpu": 16, "smoke": 2}, 60
TOLERANCE, ROUNDING = 0.01, 1e-5  # ROUNDING: of the exact lambda_max in float32, relative
ON_CHAINS, ON_SEQUENCES, FAILURE = 0.001, 0.01, 0.001


def run(scale: str) -> Iterator[dict[str, Any]]:
    of_chains, of_sequences = [], []
    for loss, optimizer, lr, batch, steps, seeds, reuse_bound in CHAINS.get(scale, CHAINS["cpu"]):
        arguments = dict(loss=loss, optimizer=optimizer, lr=lr, batch=batch, steps=steps, seeds=seeds, reuse_bound=reuse_bound)
        name = f"{loss}, {optimizer}, lr {lr:g}" + ("" if optimizer == "adam" else " times critical")
        case = {"chain": name, "batch": batch, "reuse_bound": reuse_bound}
        yield from _measured("chain", arguments, case, of_chains, ON_CHAINS)
    yield {"chain": "all chains"} | _row(of_chains, ON_CHAINS)
    for kind in SEQUENCES:
        for turn in TURNS if kind != SEQUENCES[-1] else (0.0,):
            arguments = {"kind": kind, "turn": turn, "seeds": SEEDS.get(scale, SEEDS["cpu"])}
            case = {"chain": f"{kind}, turn {turn:g}", "batch": 16, "reuse_bound": 0}
            yield from _measured("sequence", arguments, case, of_sequences, ON_SEQUENCES)
    yield {"chain": "all sequences"} | _row(of_sequences, ON_SEQUENCES)


def _measured(function: str, arguments, case, series: list, limit: float) -> list[dict[str, Any]]:
    def make():
        series.append(child.call(f"benchmarks.sections.certainty:{function}", arguments, seconds=1800))
        return [_row(series[-1:], limit)]

    return child.rows_or_reason(case, make)


def _row(series: list[dict[str, list]], limit: float) -> dict[str, Any]:
    """Rates of all series. A promise is broken if chance gives as many failures at that rate in fewer than 0.1 % of rows."""
    import numpy as np
    from scipy.stats import binom

    names = ("theta", "bound", "says_so", "products", "truth")
    theta, bound, says_so, products, truth = (np.concatenate([np.array(run[name]) for run in series]) for name in names)
    error, size = truth - theta, np.where(truth > 0, truth, 1)
    wrong = error[says_so] > (TOLERANCE + ROUNDING) * truth[says_so]
    above = error > bound + ROUNDING * truth
    chance = lambda failures, rate: binom.sf(failures.sum() - 1, len(failures), rate)
    met = chance(wrong, limit) > 1e-3 and chance(above, FAILURE) > 1e-3
    return {
        "steps": len(truth),
        "says_so": float(says_so.mean()),
        "wrong": float(wrong.mean()),
        "worst": float((error / size)[says_so].max(initial=0.0)),
        "above_bound": float(above.mean()),
        "products": float(products.mean()),
    } | tables.promise(f"at most {limit:.1%} wrong, {FAILURE:.1%} above", bool(met))


def chain(loss: str, optimizer: str, lr: float, batch: int, steps: int, seeds: int, reuse_bound: int) -> dict[str, list]:
    """Series over all steps of all seeds, along training."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from sklearn.datasets import load_digits

    from catapult_jax import FCN, batch_loss, critical_lr, preconditioner_from_state, top_eigenpairs
    from catapult_jax.tangent.eigenpairs import no_directions
    from catapult_jax.tangent.weighted import weighted_tangent_kernel

    digits = load_digits()
    x_all = jnp.asarray(digits.data / np.linalg.norm(digits.data, axis=1, keepdims=True) * 8, jnp.float32)
    labels = jnp.asarray(digits.target)
    y_all = labels if loss == "softmax_cross_entropy" else jnp.where(labels < 5, -1.0, 1.0)[:, None]
    model = FCN(depth=3, width=32, outputs=10 if loss == "softmax_cross_entropy" else 1)
    make = {"adam": optax.adam}.get(optimizer, optax.sgd)

    @jax.jit
    def follow(seed):
        params = model.init(jax.random.fold_in(jax.random.key(seed), 0), x_all[:1])
        first = (x_all[:batch], y_all[:batch])
        rate = lr if optimizer == "adam" else lr * critical_lr(model.apply, params, first, loss=loss)
        tx = make(rate)

        def step(carry, key):
            params, state, warm = carry
            rows = jnp.arange(batch) if optimizer == "gd" else jax.random.choice(key, len(x_all), (batch,), replace=False)
            x, y = x_all[rows], y_all[rows]
            gradient = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss=loss))(params)
            updates, state = tx.update(gradient, state, params)
            P = preconditioner_from_state(tx, params, None, state).diagonal
            pairs = top_eigenpairs(
                model.apply, params, (x, y), k=1, loss=loss, preconditioner=P, warm_start=warm, tol=TOLERANCE, reuse_bound=reuse_bound
            )  # fmt: skip
            exact = weighted_tangent_kernel(model.apply, params, (x, y), model.apply(params, x), loss=loss, preconditioner=P)
            truth = jnp.linalg.eigvalsh(exact)[-1]
            series = {"theta": pairs.eigenvalues[0], "bound": pairs.bounds[0], "says_so": pairs.converged}
            series |= {"products": pairs.products, "truth": truth}
            return (optax.apply_updates(params, updates), state, pairs.directions), series

        carry = (params, tx.init(params), no_directions(params, 1, jnp.float32))
        return jax.lax.scan(step, carry, jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), steps))[1]

    runs = [jax.device_get(follow(seed)) for seed in range(seeds)]
    return {name: np.concatenate([run[name] for run in runs]).tolist() for name in runs[0]}


def sequence(kind: str, turn: float, seeds: int) -> dict[str, list]:
    """Series over all steps of all seeds, along prescribed batches."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from catapult_jax import top_eigenpairs
    from catapult_jax.tangent.eigenpairs import no_directions

    b, d, rng = 16, 24, np.random.default_rng(7)
    batches = np.stack([_batches(kind, turn, b, d, rng) for _ in range(seeds)])

    def step(warm, x):
        pairs = top_eigenpairs(
            lambda w, x: x @ w, jnp.zeros(d), (x, jnp.zeros(b)), k=1, loss="mse", tol=TOLERANCE, warm_start=warm
        )
        return pairs.directions, (pairs.eigenvalues[0], pairs.bounds[0], pairs.converged, pairs.products)

    follow = jax.vmap(lambda xs: jax.lax.scan(step, no_directions(jnp.zeros(d), 1, jnp.float32), xs)[1])
    series = dict(
        zip(("theta", "bound", "says_so", "products"), jax.jit(follow)(jnp.asarray(batches, jnp.float32)), strict=True)
    )
    series["truth"] = np.linalg.svd(batches, compute_uv=False)[..., 0] ** 2 * 2 / b
    return {name: np.asarray(values).reshape(-1).tolist() for name, values in series.items()}


def _batches(kind: str, turn: float, b: int, d: int, rng):
    """``(LENGTH, b, d)`` inputs."""
    import numpy as np
    import scipy.linalg

    def rotation(n):
        A = rng.standard_normal((n, n)) * turn
        return scipy.linalg.expm((A - A.T) / np.sqrt(2 * n))

    U, V = (np.linalg.qr(rng.standard_normal((n, b)))[0] for n in (b, d))
    base = np.sort(rng.uniform(0.01, 0.6, b))[::-1]
    base[0], batches = 1.0, []
    for t in range(LENGTH):
        lam = base.copy()
        if kind == "second overtakes, 0.9 to 1.1":
            lam[1] = 0.9 + 0.2 * t / LENGTH
        if kind == "second overtakes, 0.5 to 1.5":
            lam[1] = 0.5 + t / LENGTH
        if kind.startswith("new direction"):
            lam[-1] = float(kind.split()[-1]) if t >= LENGTH // 3 else 0.0
        if kind == "all within two percent":
            lam = 1 + 0.02 * rng.random(b)
        fresh = rng.standard_normal((b, d)) * np.linspace(1, 0.2, d)
        batches.append(fresh if kind == "fresh Gaussian batch" else (U * np.sqrt(lam * b / 2)) @ V.T)
        U, V = rotation(b) @ U, rotation(d) @ V
    return np.stack(batches)
