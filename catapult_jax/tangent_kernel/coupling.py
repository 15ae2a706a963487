"""Refuses models in which one example's output depends on another example: they have no kernel of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

_TOLERANCE = 1e-3  # relative; reassociation between batch sizes is far below it, a coupled model far above


class CoupledExamplesError(ValueError):
    """The model's output for one example depends on the other examples of the batch, or on its place among them."""


# Made-up weights: of both signs, scaled by fan-in or of unit size (networks that scale in the forward pass), or all positive
# (roots, logarithms). The first kind that gives outputs of a moderate size is used.
_KINDS = ("he", "unit", "positive")


def _invented(rng: np.random.Generator, shape: tuple[int, ...], dtype, kind: str):
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape) if shape else jax.random.key(0)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return rng.integers(0, 2, shape).astype(dtype)
    fan_in = max(1, int(np.prod(shape[:-1])))
    if len(shape) < 2:  # scales, biases, running statistics
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    if kind == "positive":
        return (rng.uniform(0.5, 1.5, shape) / fan_in).astype(dtype)
    return (rng.standard_normal(shape) * (np.sqrt(2 / fan_in) if kind == "he" else 1)).astype(dtype)


def refuse_coupled_examples(apply_fn: Callable, params: PyTree, x: Array) -> None:
    """Raises if ``apply_fn(params, x)[i]`` depends on anything of ``x`` but ``x[i]``.

    Works on shapes alone, so it may be called while ``params`` and ``x`` are being traced: the function is traced once
    for two examples and once for one, and evaluated on made-up numbers; for ``model.apply`` of a Flax module, which can't change, once
    for each shape of an example. Two things are asked. Does a NaN in the second
    example reach the first one's output (every arithmetic dependence lets it through, however small)? Does a batch of two
    give what two batches of one give (it does not when batch statistics or per-position random masks are at work)?

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: arrays or shapes.
      x: ``(b, ...)`` array or shape.

    Raises:
      CoupledExamplesError: as said, or the outputs are finite on no made-up numbers, so that nothing can be told.
    """
    shaped = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)
    shapes = shaped(params)
    known = _key(apply_fn, shapes, x)
    if known is not None and known in _INDEPENDENT:
        return
    of_size = lambda b: jax.ShapeDtypeStruct((b, *jnp.shape(x)[1:]), jnp.result_type(x))
    programs = {b: _program(apply_fn, shapes, of_size(b)) for b in (1, 2)}
    dtype = programs[2][0].out_avals[0].dtype

    with jax.ensure_compile_time_eval(), jax.debug_nans(False), np.errstate(all="ignore"):
        for kind in _KINDS:
            together, apart, beside_other = _probe(programs, jax.tree.leaves(shapes), of_size(2), kind)
            if np.isfinite(together).all() and (kind == _KINDS[-1] or 1e-20 < np.abs(together).max(initial=0.0) < 1e20):
                break
        else:
            raise CoupledExamplesError(
                "apply_fn gives outputs that are not finite on made-up numbers, so it can't be told whether it couples the "
                "examples of a batch; allowed: models with finite outputs for inputs and parameters of order one"
            )
        tolerance = max(_TOLERANCE, 32 * float(jnp.finfo(dtype).eps))
    bound = tolerance * max(float(np.abs(together).max(initial=0.0)), np.finfo(np.float32).tiny)
    same = lambda a, b: bool(np.all(np.abs(a - b) <= bound))  # False where a NaN came through
    if not same(together[0], beside_other):
        why = "the output of one example changes when another example of the batch changes"
    elif not same(together, apart):
        why = "a batch of two gives other outputs than two batches of one"
    else:
        if known is not None:
            _INDEPENDENT.add(known)
        return
    raise CoupledExamplesError(
        f"apply_fn couples the examples of a batch: {why}; allowed: models that treat each example alone "
        "(BatchNorm with use_running_average=True, GroupNorm, LayerNorm, no dropout)"
    )


_INDEPENDENT: set = set()  # what was found to treat each example alone


def _key(apply_fn, shapes, x):
    """Of a Flax module, whose fields are frozen, and the shape of an example; None of any other function."""
    owner = getattr(apply_fn, "__self__", None)
    if not isinstance(owner, nn.Module):
        return None
    leaves, structure = jax.tree.flatten(shapes)
    key = (
        owner,
        apply_fn.__func__,
        structure,
        tuple((leaf.shape, leaf.dtype) for leaf in leaves),
        jnp.shape(x)[1:],
        jnp.result_type(x),
    )
    try:
        hash(key)
    except TypeError:  # a field that has no hash
        return None
    return key


def _program(apply_fn, shapes, x):
    """The function on so many examples, traced, and compiled in a hurry with what it closes over as a first argument."""
    closed = jax.make_jaxpr(apply_fn)(shapes, x)

    def run(consts, *arguments):
        return jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(closed.jaxpr, consts))(*arguments)[0]

    return closed, jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def _probe(programs: dict, leaves: list, x, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs of two examples together, of each alone, and of the first one beside a NaN."""
    rng = np.random.default_rng(0)
    numbers = [_invented(rng, leaf.shape, leaf.dtype, kind) for leaf in leaves]
    if jnp.issubdtype(x.dtype, jnp.floating):
        examples = rng.uniform(0.5, 1.5, x.shape) if kind == "positive" else rng.standard_normal(x.shape)
        examples = examples.astype(x.dtype)
        other = np.stack([examples[0], np.full_like(examples[1], np.nan)])
    else:
        examples = np.stack([np.zeros(x.shape[1:]), np.ones(x.shape[1:])]).astype(x.dtype)
        other = np.stack([examples[0], examples[0]])

    def evaluate(inputs: np.ndarray) -> np.ndarray:
        closed, run = programs[len(inputs)]
        rng = np.random.default_rng(1)
        # Values that are still being traced are replaced by made-up ones too.
        stand_in = lambda const: jnp.asarray(_invented(rng, const.shape, const.dtype, kind))
        consts = [stand_in(const) if isinstance(const, jax.core.Tracer) else const for const in closed.consts]
        return np.asarray(run(consts, *map(jnp.asarray, numbers), jnp.asarray(inputs)), np.float64)

    return evaluate(examples), np.concatenate([evaluate(examples[:1]), evaluate(examples[1:])]), evaluate(other)[0]
