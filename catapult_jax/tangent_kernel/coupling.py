"""Refuses models in which one example's output depends on another example: they have no kernel of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

_TOLERANCE = 1e-3  # relative; float32 reassociation between batch sizes is far below it, a coupled model far above


class CoupledExamplesError(ValueError):
    """The model's output for one example depends on the other examples of the batch, or on its place among them."""


def _invented(rng: np.random.Generator, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Positive numbers of the size that keeps signals of order one, so that no root, log or relu hides a dependence."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return rng.integers(0, 2, shape).astype(dtype)
    return (rng.uniform(0.5, 1.5, shape) / np.sqrt(max(1, int(np.prod(shape[:-1]))))).astype(dtype)


def refuse_coupled_examples(apply_fn: Callable, params: PyTree, x: Array) -> None:
    """Raises if ``apply_fn(params, x)[i]`` depends on anything of ``x`` but ``x[i]``.

    Works on shapes alone, so it may be called while ``params`` and ``x`` are being traced: the function is traced once
    for two examples and once for one, and evaluated on made-up numbers. Two things are asked. Does a NaN in the second
    example reach the first one's output (every arithmetic dependence lets it through, however small)? Does a batch of two
    give what two batches of one give (it does not when batch statistics or per-position random masks are at work)?

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: arrays or shapes.
      x: ``(b, ...)`` array or shape.

    Raises:
      CoupledExamplesError: as said.
    """
    shaped = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)
    shapes = shaped(params)
    of_size = lambda b: jax.ShapeDtypeStruct((b, *jnp.shape(x)[1:]), jnp.result_type(x))
    traced = {b: jax.make_jaxpr(apply_fn)(shapes, of_size(b)) for b in (1, 2)}

    with jax.ensure_compile_time_eval(), jax.debug_nans(False):
        rng = np.random.default_rng(0)
        numbers = [_invented(rng, leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)]
        examples = rng.standard_normal((2, *jnp.shape(x)[1:]))
        is_float = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        examples = (
            examples.astype(jnp.result_type(x))
            if is_float
            else np.stack([np.zeros(jnp.shape(x)[1:]), np.ones(jnp.shape(x)[1:])]).astype(jnp.result_type(x))
        )
        other = np.stack([examples[0], np.full_like(examples[1], np.nan) if is_float else examples[0]])

        def evaluate(inputs: np.ndarray) -> np.ndarray:
            closed = traced[len(inputs)]
            rng = np.random.default_rng(1)
            consts = [_closed_over(rng, const) if isinstance(const, jax.core.Tracer) else const for const in closed.consts]
            run = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(closed.jaxpr, consts))
            (out,) = run(*map(jnp.asarray, numbers), jnp.asarray(inputs))
            return np.asarray(out, np.float64)

        together, apart = evaluate(examples), np.concatenate([evaluate(examples[:1]), evaluate(examples[1:])])
        beside_other = evaluate(other)[0]

    size = max(float(np.nanmax(np.abs(together), initial=0.0)), np.finfo(np.float32).tiny)
    same = lambda a, b: bool(np.all((np.abs(a - b) <= _TOLERANCE * size) | (np.isnan(a) & np.isnan(b))))
    if not same(together[0], beside_other):
        why = "the output of one example changes when another example of the batch changes"
    elif not same(together, apart):
        why = "a batch of two gives other outputs than two batches of one"
    else:
        return
    raise CoupledExamplesError(
        f"apply_fn couples the examples of a batch: {why}; allowed: models that treat each example alone "
        "(BatchNorm with use_running_average=True, GroupNorm, LayerNorm, no dropout)"
    )


def _closed_over(rng: np.random.Generator, tracer) -> Array:
    """A stand-in for a value that is still being traced."""
    return jnp.asarray(_invented(rng, tracer.shape, tracer.dtype))
