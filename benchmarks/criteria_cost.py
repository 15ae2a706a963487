"""Cost of each criterion for spikes, in forward passes of the batch: python -m benchmarks.criteria_cost

Counted, not timed: the operations of all matrix products in the traced program, with every turn of a loop, and 9 n^3 for an
eigendecomposition, over those of one forward pass of the batch. XLA's own count takes a loop as one turn. Sizes as in configs/predictors.py;
sgd has no preconditioner, adam has one. c5 to c7 and c10 are on the training set, which is four batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import tables
from catapult_jax import batch_loss, criteria, directional_critical_lr, loss_weighted_kernel, tangent_kernel
from catapult_jax.tangent.weighted import weighted_kernel_and_gradient
from catapult_jax.training import criteria_instrument
from configs import predictors
from experiments import build

_EIGH = 9  # operations of an eigendecomposition with vectors, over n^3


def operations(function: Callable, *arguments: Any) -> float:
    """Operations of the matrix products and eigendecompositions of a function.

    >>> operations(lambda a: jax.lax.map(lambda row: a @ row, a), jnp.ones((3, 3)))  # three times 2 x 3 x 3
    54.0
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "eigh":
            total += _EIGH * math.prod(shapes[0][:-2]) * shapes[0][-1] ** 3
        elif name == "while":
            raise ValueError("a loop without a fixed number of turns; allowed: loops with one")
        inner = [_count(part) for value in equation.params.values() for part in _jaxprs(value)]
        turns = equation.params["length"] if name == "scan" else 1
        total += turns * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return float(total)


def _jaxprs(value: Any) -> list:
    """The jaxprs that a parameter of an equation holds."""
    parts = value if isinstance(value, (tuple, list)) else [value]
    parts = [getattr(part, "jaxpr", part) for part in parts]
    return [part for part in parts if hasattr(part, "eqns")]


def costs(preconditioned: bool) -> dict[str, float]:
    """Criterion -> forward passes of the batch."""
    config = predictors.get_config()
    n, b, size = config.data.train_size, config.optimizer.batch_size, config.data.image_size
    model = build.build_model(config.model, 1)
    f, loss = model.apply, config.loss
    x, y = jnp.ones((n, size, size, 3)), jnp.ones((n, 1))
    params = model.init(jax.random.key(0), x[:1])
    diagonal = jax.tree.map(jnp.ones_like, params) if preconditioned else None
    batch = x[:b], y[:b]
    start = jnp.ones((sum(leaf.size for leaf in jax.tree.leaves(params)), 1))
    loss_fn = lambda p: batch_loss(f(p, batch[0]), batch[1], loss=loss)
    kernel = lambda p, x: tangent_kernel(f, p, x, preconditioner=diagonal)
    residual = jnp.ones(n)
    batches = criteria_instrument.random_batches(jax.random.key(0), examples=n, batch_size=b, epochs=criteria_instrument.EPOCHS)

    def with_kernel(take):
        return lambda p: take(loss_weighted_kernel(kernel(p, x), f(p, x), y, loss=loss))

    def c1(p):
        if preconditioned:
            return jnp.linalg.eigvalsh(kernel(p, batch[0]))
        return jnp.linalg.eigvalsh(weighted_kernel_and_gradient(f, p, batch, loss=loss)[1])

    top = lambda p: criteria.hessian_lambda_max(loss_fn, p, start, diagonal=diagonal, iterations=criteria_instrument.HVPS)
    direct = lambda p: criteria.directional_hessian(loss_fn, p, jax.grad(loss_fn)(p))
    search = lambda p: criteria.line_search_score(loss_fn, p, p, **criteria_instrument.LINE_SEARCH)
    eigenvalues = with_kernel(jnp.linalg.eigvalsh)
    gradient = operations(jax.grad(loss_fn), params)
    counted = {
        "c1": operations(c1, params) - (0 if preconditioned else gradient),  # the kernel gives the gradient of the step as well
        "c2": operations(top, params),
        "c3": operations(lambda p: directional_critical_lr(f, p, batch, p, loss=loss), params),
        "c4": operations(lambda p: criteria.directional_hessian(loss_fn, p, p), params),
        "c5": operations(lambda p: directional_critical_lr(f, p, (x, y), p, loss=loss), params),
        "c6": operations(with_kernel(lambda k: criteria.batch_sharpness_score(k, residual, batches, lr=0.1)), params),
        "c7, norm": operations(eigenvalues, params),
        "c7, trace": operations(with_kernel(jnp.trace), params),
        "c8, batch or another one": operations(search, params),
        "c9": operations(direct, params),
        "c10": operations(eigenvalues, params)
        + operations(lambda h: criteria.heavy_ball_score(h, lr=0.1, momentum=0.9), residual),
        "gradient of the batch": gradient,
    }
    forward = operations(f, params, batch[0])
    return {name: count / forward for name, count in counted.items()}


def main() -> None:
    """Print the table."""
    plain, adam = costs(False), costs(True)
    rows = [{"name": name, "sgd": f"{plain[name]:.3g}", "adam": f"{adam[name]:.3g}"} for name in plain]
    print(tables.markdown(rows, {"name": "criterion", "sgd": "no preconditioner", "adam": "with a preconditioner"}))


if __name__ == "__main__":
    main()
