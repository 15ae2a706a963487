"""Refuses models in which one example's output depends on another example: they have no kernel of a batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from catapult_jax.tangent import batch_axis
from catapult_jax.xla import PROBED_NUMBERS, QUICK

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

_TOLERANCE = 1e-3  # relative; reassociation between batch sizes is far below it, a coupled model far above
_ALONE = 16  # examples that are evaluated one by one


class CoupledExamplesError(ValueError):
    """The model's output for one example depends on the other examples of the batch, or on its place among them."""


# Made-up weights: of both signs, scaled by fan-in or of unit size (networks that scale in the forward pass), or all positive
# (roots, logarithms). The first kind that gives outputs of a moderate size is used.
_KINDS = ("he", "unit", "positive")

_ALLOWED = (
    "allowed: models that treat each example alone (GroupNorm, LayerNorm, no dropout). With BatchNorm in training mode the kernel by "
    "example does not exist; in evaluation mode it is the kernel of another function, and with an optimizer state of training mode "
    "its critical lr can be off by orders of magnitude"
)


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
    """Raises if ``apply_fn(params, x)[i]`` depends on anything of ``x`` but ``x[i]``, or on ``i``, or on the batch size.

    Two steps. First a proof: the function is traced at the batch size of ``x``, and the axis of the examples is followed through
    the program, see :func:`catapult_jax.tangent.batch_axis.follow`. Where this succeeds, and the program for two examples does the
    same operations, what is left to ask is whether two examples together give what each gives alone; this is evaluated on made-up
    numbers. An operation that reduces over the examples, or contracts them, is refused.

    Where an operation has no rule, nothing is proved. The function is then evaluated on made-up numbers at the batch size of ``x`` (or
    at a smaller one, where it is too large): sixteen examples alone against all together; and, for every pair of examples, does a NaN (another
    value of an integer input) in one reach the output of the other? What passes is accepted with a warning, which
    names the operation: coupling that depends on the values, and acts on none of these, is not seen.

    It works on shapes, so it may be called while ``params`` and ``x`` are being traced. Integer examples are taken from ``x`` where
    they are there. For ``model.apply`` of a Flax module, which can't change, it is done once for each shape.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: arrays or shapes.
      x: ``(b, ...)`` array or shape.

    Raises:
      CoupledExamplesError: as said; or nothing is proved and the outputs are finite on no made-up numbers.
      ValueError: the function does not accept another batch size.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    b, key = max(len(x), 2), _key(apply_fn, shapes, x)
    if key is not None and (key, b) in _INDEPENDENT:
        return
    program = lambda size: _traced(apply_fn, shapes, x, size)
    whole, leaves = program(b), jax.tree.leaves(shapes)
    lost = batch_axis.follow(whole, len(leaves), b)
    if lost is not None and lost.mixes:
        raise CoupledExamplesError(f"apply_fn couples the examples of a batch: {lost}; {_ALLOWED}")
    if lost is None and b > 2 and not batch_axis.same_program(whole, program(2), b, 2):
        lost = batch_axis.Lost("the program depends on the batch size", mixes=False)
    if lost is None:
        if key is None or key not in _INDEPENDENT:
            _refuse_by_value({n: program(n) for n in (1, 2)}, leaves, x, proved=True)
    else:
        size = max(min(b, b * PROBED_NUMBERS // _numbers(whole.jaxpr)), 4 if b > 4 else 2)
        _refuse_by_value({1: program(1), size: program(size)}, leaves, x, proved=False)
        warnings.warn(
            f"apply_fn is not known to treat each example alone: {lost}. No coupling was seen on made-up numbers with {size} of {b} "
            "examples; coupling that depends on the values, or on more examples, would give a wrong kernel",
            stacklevel=3,
        )
    if key is not None:
        _INDEPENDENT.update({(key, b)} | ({key} if lost is None else set()))


# Flax modules that treat each example alone: by the shape of an example, and by that and the batch size.
_INDEPENDENT: set = set()


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


def _traced(apply_fn, shapes, x, size: int):
    """The function on so many examples, as a program."""
    of_size = jax.ShapeDtypeStruct((size, *jnp.shape(x)[1:]), jnp.result_type(x))
    why = None
    try:
        closed = jax.make_jaxpr(apply_fn)(shapes, of_size)
        if closed.out_avals[0].shape[:1] != (size,):
            why = f"returns shape {closed.out_avals[0].shape}"
    except Exception as error:
        if size == len(x):
            raise
        why = f"fails ({(str(error) or type(error).__name__).splitlines()[0]})"
    if why is not None:
        raise ValueError(
            f"apply_fn {why} for a batch of {size} in place of {len(x)}; allowed: functions for any batch size, which close over no array "
            "of this batch"
        )
    return closed


def _numbers(jaxpr) -> int:
    """In all arrays that the program makes."""
    inner = [
        getattr(v, "jaxpr", v) for eqn in jaxpr.eqns for v in eqn.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")
    ]
    return 1 + sum(map(_numbers, inner)) + sum(math.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars)


def _refuse_by_value(programs: dict, leaves: list, x, *, proved: bool) -> None:
    """Evaluates the programs for ``n`` examples and for one. ``proved``: each output is known to depend on its own example."""
    n = max(programs)
    runs = {size: (closed, _compiled(closed)) for size, closed in programs.items()}
    dtype = programs[n].out_avals[0].dtype
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), np.errstate(all="ignore"):
        for kind, examples in _examples(x, n):
            together = _probe(runs[n], leaves, examples, kind)
            if np.isfinite(together).all() and 1e-20 < np.abs(together).max(initial=0.0) < 1e20:
                break
        else:  # positive weights may well give zeros
            if not (proved or np.isfinite(together).all()):
                raise CoupledExamplesError(
                    "apply_fn gives outputs that are not finite on made-up numbers, so it can't be told whether it couples the "
                    "examples of a batch; allowed: models with finite outputs for inputs and parameters of order one"
                )
        rows = np.unique(np.linspace(0, n - 1, _ALONE).astype(int))
        apart = np.concatenate([_probe(runs[1], leaves, examples[i : i + 1], kind) for i in rows])
        tolerance = max(_TOLERANCE, 32 * float(jnp.finfo(dtype).eps))
        bound = tolerance * max(float(np.abs(together[np.isfinite(together)]).max(initial=0.0)), np.finfo(np.float32).tiny)

        def same(a, b):
            """Equal up to rounding. If the rest is proved, two equal infinities and two NaNs are equal too."""
            return bool(np.all((np.abs(a - b) <= bound) | (proved & ((a == b) | (np.isnan(a) & np.isnan(b))))))

        why = None
        if not same(together[rows], apart):
            why = f"a batch of {n} gives other outputs than {n} batches of one"
        elif not proved:
            for mask in _masks(n):
                beside_others = _probe(runs[n], leaves, _changed(examples, mask), kind)
                if not same(together[~mask], beside_others[~mask]):
                    why = "the output of one example changes when another example of the batch changes"
                    break
    if why is not None:
        raise CoupledExamplesError(f"apply_fn couples the examples of a batch: {why}; {_ALLOWED}")


def _compiled(closed) -> Callable:
    """The program, compiled in a hurry, with what it closes over as a first argument."""

    def run(consts, *arguments):
        return jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(closed.jaxpr, consts))(*arguments)[0]

    return jax.jit(run, compiler_options=QUICK)


def _examples(x, n: int):
    """Pairs of a kind of weights and ``n`` examples to try: integer ones from the batch itself where they are there, then made-up ones."""
    shape, dtype = (n, *jnp.shape(x)[1:]), jnp.result_type(x)
    rng = np.random.default_rng(2)
    if jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.complexfloating):
        for kind in _KINDS:
            numbers = rng.uniform(0.5, 1.5, shape) if kind == "positive" else rng.standard_normal(shape)
            yield kind, numbers.astype(dtype)
        return
    # Zeros and ones in each example, so that none is all padding; then the same number everywhere.
    mixed = rng.integers(0, 2, (n, math.prod(shape[1:])))
    mixed[:, :1] = np.arange(n)[:, None] % 2
    mixed[:, 1:2] = 1 - mixed[:, :1]
    candidates = [mixed.reshape(shape), np.ones(shape), np.zeros(shape)]
    if isinstance(x, (np.ndarray, jax.Array)) and not isinstance(x, jax.core.Tracer):
        on_one_device = x.addressable_data(0) if isinstance(x, jax.Array) else x  # a fraction of the batch, where it is sharded
        if on_one_device.shape[1:] == shape[1:]:
            candidates.insert(0, np.resize(np.asarray(on_one_device[:n]), shape))
    for candidate in candidates:
        for kind in _KINDS:
            yield kind, candidate.astype(dtype)


def _masks(n: int):
    """Sets of examples such that of any two some set holds the first and not the second."""
    for bit in range((n - 1).bit_length()):
        ones = (np.arange(n) >> bit) % 2 == 1
        yield from (ones, ~ones)


def _changed(examples: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Other values in some of the examples."""
    changed = examples.copy()
    changed[mask] = np.nan if jnp.issubdtype(examples.dtype, jnp.inexact) else np.roll(examples, 1, axis=0)[mask]
    return changed


def _probe(program: tuple, leaves: list, examples: np.ndarray, kind: str) -> np.ndarray:
    """Outputs for these examples and made-up weights."""
    closed, run = program
    rng = np.random.default_rng(0)
    numbers = [_invented(rng, leaf.shape, leaf.dtype, kind) for leaf in leaves]
    rng = np.random.default_rng(1)
    # Values that are still being traced are replaced by made-up ones too.
    stand_in = lambda const: jnp.asarray(_invented(rng, const.shape, const.dtype, kind))
    consts = [stand_in(const) if isinstance(const, jax.core.Tracer) else const for const in closed.consts]
    return np.asarray(run(consts, *map(jnp.asarray, numbers), jnp.asarray(examples)), np.float64)
