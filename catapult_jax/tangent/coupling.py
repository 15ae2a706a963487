"""Refuses models that couple the examples of a batch: such a model has no kernel by example.

A model couples examples if the output of one depends on another one, on its place in the batch, or on the batch size.
"""

from __future__ import annotations

import concurrent.futures
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from catapult_jax.tangent.batch_axis import follow
from catapult_jax.tangent.batch_axis_rules import Lost
from catapult_jax.tangent.checks import batch_size
from catapult_jax.tangent.compare_programs import same_names, same_program, size_is_unseen
from catapult_jax.tangent.equations import inner_programs
from catapult_jax.xla import PROBED_NUMBERS, QUICK

if TYPE_CHECKING:
    from jaxtyping import PyTree

_TOLERANCE = 1e-3  # relative; another order of sums at another batch size gives far less, a coupled model far more
_ALONE = 16  # examples that are evaluated one by one, at most


class CoupledExamplesError(ValueError):
    """The output of a model for one example depends on other examples of the batch, or on its place in the batch."""


# Kinds of made-up weights: of both signs and scaled by fan-in; of both signs and unit size (for networks that scale in
# the forward pass); all positive (for roots and logarithms). The first kind that gives outputs of a moderate size is
# used.
_KINDS = ("he", "unit", "positive")

_ALLOWED = (
    "allowed: models that treat each example alone (GroupNorm, LayerNorm, no dropout). A model with BatchNorm in training mode has no "
    "kernel by example: there, top_eigenpairs without chunk_size is right. In evaluation mode it is another function: with an optimizer state from training mode its critical lr can be "
    "wrong by orders of magnitude"
)


def _made_up(rng: np.random.Generator, shape: tuple[int, ...], dtype, kind: str):
    """A weight of this kind; keys of random numbers and integers are made up too."""
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


def refuse_coupled_examples(apply_fn: Callable, params: PyTree, x: PyTree) -> None:
    """Refuse a model whose output ``apply_fn(params, x)[i]`` depends on anything but ``params`` and ``x[i]``.

    First, a proof is tried. The function is traced at the batch size of ``x``, and
    :func:`catapult_jax.tangent.batch_axis.follow` follows the axis of the examples through the program. An operation
    that combines examples is refused. If the proof succeeds, and the programs for other batch sizes do the same operations,
    only one question is left: can a number depend on the batch size, as a sum over ones does? If an operation could make such
    a number, the program is evaluated on made-up numbers: two examples together must give what each gives alone.

    If an operation has no rule, nothing is proved. The function is then evaluated on made-up numbers, at the batch size
    of ``x`` or, for a large program, at a smaller one. Up to sixteen examples alone must give what they give together.
    A NaN in one example (or another value, if the inputs are integers) must not change the output of any other. A model
    that passes is accepted with a warning that names the operation, because a coupling that depends on the values can
    pass.

    It needs shapes only, so ``params`` and ``x`` may be traced. Integer examples are taken from ``x`` if their values
    are available. ``model.apply`` of a Flax module is checked once for each shape, since the module can't change.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: Arrays or shapes.
      x: ``(b, ...)`` arrays or shapes.

    Raises:
      CoupledExamplesError: The model couples examples; or nothing is proved and no made-up numbers give finite outputs.
      ValueError: The function does not accept another batch size.

    >>> refuse_coupled_examples(lambda w, x: x @ w, jnp.ones(2), jnp.ones((3, 2)))
    >>> refuse_coupled_examples(lambda w, x: (x - x.mean(0)) @ w, jnp.ones(2), jnp.ones((3, 2)))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    catapult_jax.tangent.coupling.CoupledExamplesError: apply_fn couples the examples of a batch: reduce_sum combines ...
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    b, key = max(batch_size(x), 2), _cache_key(apply_fn, shapes, x)
    if key is not None and (key, b) in _INDEPENDENT:
        return
    program = lambda size: _trace(apply_fn, shapes, x, size)
    whole, leaves = program(b), jax.tree.leaves(shapes)
    lost = follow(whole, range(len(leaves), len(whole.in_avals)), b)  # None: proved
    if lost is not None and lost.mixes:
        raise CoupledExamplesError(f"apply_fn couples the examples of a batch: {lost}; {_ALLOWED}")
    other = 2 if b > 2 else 3
    if lost is None and not same_program(whole, beside := program(other), b, other):
        lost = Lost("the program depends on the batch size", mixes=False)
    if lost is None:
        inputs = range(len(leaves), len(whole.in_avals))
        is_certain = same_names(program(1), whole) and size_is_unseen(whole, beside, b, other, inputs)
        if not is_certain and (key is None or key not in _INDEPENDENT):
            _outside_of_shard_map(_refuse_by_value, {n: program(n) for n in (1, 2)}, leaves, x, proved=True)
    else:
        size = max(min(b, b * PROBED_NUMBERS // _count_numbers(whole.jaxpr)), 4 if b > 4 else 2)
        _outside_of_shard_map(_refuse_by_value, {1: program(1), size: program(size)}, leaves, x, proved=False)
        warnings.warn(
            f"apply_fn is not known to treat each example alone: {lost}. No coupling was seen on made-up numbers with {size} of {b} "
            "examples. A coupling that depends on the values, or on more examples, would give a wrong kernel",
            stacklevel=3,
        )
    if key is not None:
        _INDEPENDENT.update({(key, b)} | ({key} if lost is None else set()))


# Flax modules that treat each example alone: keys from _cache_key, where it is proved, and pairs of such a key and a
# batch size.
_INDEPENDENT: set = set()


def _cache_key(apply_fn, shapes, x):
    """Key of a method of a Flax module, whose fields are frozen, for these shapes of an example. None: no such method."""
    owner = getattr(apply_fn, "__self__", None)
    if not isinstance(owner, nn.Module):
        return None
    leaves, structure = jax.tree.flatten(shapes)
    key = (
        owner,
        apply_fn.__func__,
        structure,
        tuple((leaf.shape, leaf.dtype) for leaf in leaves),
        jax.tree.structure(x),
        tuple((leaf.shape[1:], jnp.result_type(leaf)) for leaf in jax.tree.leaves(x)),
    )
    try:
        hash(key)
    except TypeError:  # a field of the module has no hash
        return None
    return key


def _trace(apply_fn, shapes, x, size: int):
    """The program of the function on so many examples."""
    examples = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *jnp.shape(a)[1:]), jnp.result_type(a)), x)
    why = None
    try:
        closed = jax.make_jaxpr(apply_fn)(shapes, examples)
        if closed.out_avals[0].shape[:1] != (size,):
            why = f"returns shape {closed.out_avals[0].shape}"
    except Exception as error:
        if size == batch_size(x):
            raise
        why = f"fails ({(str(error) or type(error).__name__).splitlines()[0]})"
    if why is not None:
        raise ValueError(
            f"apply_fn {why} for a batch of {size} in place of {batch_size(x)}; allowed: functions for any batch size, which close over no "
            "array of the batch"
        )
    return closed


def _count_numbers(jaxpr) -> int:
    """Numbers in all arrays that a program computes, and one more for each program inside it."""
    return (
        1
        + sum(map(_count_numbers, inner_programs(jaxpr)))
        + sum(math.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars)
    )


def _outside_of_shard_map(function: Callable, *arguments, **options) -> None:
    """Call a function that computes values. In a ``shard_map`` without jit JAX traces all that its thread computes, so another one is used."""
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return function(*arguments, **options)
    wide = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]

    def with_settings():
        with jax.enable_x64(wide):
            function(*arguments, **options)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(with_settings).result()


def _refuse_by_value(programs: dict, leaves: list, x, *, proved: bool) -> None:
    """Compare the outputs for ``n`` examples with those for one. ``proved``: each output depends on its example alone."""
    n = max(programs)
    runs = {size: (closed, _compile(closed)) for size, closed in programs.items()}
    dtype = programs[n].out_avals[0].dtype
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), np.errstate(all="ignore"):
        for kind, examples in _examples(x, n):
            together = _probe(runs[n], leaves, examples, kind)
            if np.isfinite(together).all() and 1e-20 < np.abs(together).max(initial=0.0) < 1e20:
                break
        else:  # no kind gives moderate outputs; positive weights may give zeros
            if not (proved or np.isfinite(together).all()):
                raise CoupledExamplesError(
                    "apply_fn gives outputs that are not finite on made-up numbers, which can't tell whether it couples the "
                    "examples of a batch; allowed: models with finite outputs for inputs and parameters of order one"
                )
        rows = np.unique(np.linspace(0, n - 1, _ALONE).astype(int))
        apart = np.concatenate([_probe(runs[1], leaves, [a[i : i + 1] for a in examples], kind) for i in rows])
        tolerance = max(_TOLERANCE, 32 * float(jnp.finfo(dtype).eps))
        bound = tolerance * max(float(np.abs(together[np.isfinite(together)]).max(initial=0.0)), np.finfo(np.float32).tiny)

        def same(a, b):
            """Whether two outputs are equal up to rounding. After a proof, equal infinities and two NaNs count as equal."""
            return bool(np.all((np.abs(a - b) <= bound) | (proved & ((a == b) | (np.isnan(a) & np.isnan(b))))))

        why = None
        if not same(together[rows], apart):
            why = f"a batch of {n} gives other outputs than {n} batches of one"
        elif not proved:
            for mask in _masks(n):
                beside_others = _probe(runs[n], leaves, [_perturb(a, mask) for a in examples], kind)
                if not same(together[~mask], beside_others[~mask]):
                    why = "the output of one example changes when another example of the batch changes"
                    break
    if why is not None:
        raise CoupledExamplesError(f"apply_fn couples the examples of a batch: {why}; {_ALLOWED}")


def _compile(closed) -> Callable:
    """The program as a function of the arrays that it closes over and its inputs. It runs a few times: compile quickly."""

    def evaluate(consts, *arguments):
        return jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(closed.jaxpr, consts))(*arguments)[0]

    return jax.jit(evaluate, compiler_options=QUICK)


def _examples(x, n: int):
    """Pairs of a kind of weights and the arrays of ``n`` examples to try. If they are integers, those of the batch come first."""
    leaves = jax.tree.leaves(x)
    of_leaves = [None if _is_inexact(leaf) else _integer_examples(leaf, n) for leaf in leaves]
    tries = max((len(candidates) for candidates in of_leaves if candidates is not None), default=1)
    for i in range(tries):
        for kind in _KINDS:
            rng = np.random.default_rng(2)
            yield (
                kind,
                [
                    _inexact_examples(rng, leaf, n, kind)
                    if candidates is None
                    else candidates[max(i - tries, -len(candidates))]
                    for leaf, candidates in zip(leaves, of_leaves, strict=True)
                ],
            )


def _is_inexact(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _inexact_examples(rng: np.random.Generator, leaf, n: int, kind: str):
    shape = (n, *jnp.shape(leaf)[1:])
    numbers = rng.uniform(0.5, 1.5, shape) if kind == "positive" else rng.standard_normal(shape)
    return numbers.astype(jnp.result_type(leaf))


def _integer_examples(leaf, n: int) -> list:
    """Zeros and ones in each example, so that none is only padding; then the same number everywhere. Those of the batch come first."""
    shape, dtype = (n, *jnp.shape(leaf)[1:]), jnp.result_type(leaf)
    mixed = np.random.default_rng(2).integers(0, 2, (n, math.prod(shape[1:])))
    mixed[:, :1] = np.arange(n)[:, None] % 2
    mixed[:, 1:2] = 1 - mixed[:, :1]
    candidates = [mixed.reshape(shape), np.ones(shape), np.zeros(shape)]
    if isinstance(leaf, (np.ndarray, jax.Array)) and not isinstance(leaf, jax.core.Tracer):
        on_one_device = (
            leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        )  # a part of the batch, if it is sharded
        if on_one_device.shape[1:] == shape[1:]:
            candidates.insert(0, np.resize(np.asarray(on_one_device[:n]), shape))
    return [candidate.astype(dtype) for candidate in candidates]


def _masks(n: int):
    """Sets of examples: for any two examples, one of the sets has the first and not the second."""
    for bit in range((n - 1).bit_length()):
        ones = (np.arange(n) >> bit) % 2 == 1
        yield from (ones, ~ones)


def _perturb(examples: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Put other values into some of the examples."""
    changed = examples.copy()
    changed[mask] = np.nan if jnp.issubdtype(examples.dtype, jnp.inexact) else np.roll(examples, 1, axis=0)[mask]
    return changed


def _probe(program: tuple, leaves: list, examples: list, kind: str) -> np.ndarray:
    """Outputs for these examples and made-up weights."""
    closed, run = program
    rng = np.random.default_rng(0)
    numbers = [_made_up(rng, leaf.shape, leaf.dtype, kind) for leaf in leaves]
    rng = np.random.default_rng(1)
    # Arrays that are being traced have no values yet, so these are made up too.
    stand_in = lambda const: jnp.asarray(_made_up(rng, const.shape, const.dtype, kind))
    consts = [stand_in(const) if isinstance(const, jax.core.Tracer) else const for const in closed.consts]
    return np.asarray(run(consts, *map(jnp.asarray, numbers), *map(jnp.asarray, examples)), np.float64)


def couples_examples(apply_fn: Callable, params: PyTree, x: PyTree) -> bool:
    """Whether :func:`refuse_coupled_examples` refuses a model, as with BatchNorm in training mode.

    Args:
      apply_fn, params, x: as there.

    Returns:
      True or False.

    >>> couples_examples(lambda w, x: x @ w, jnp.ones(2), jnp.ones((3, 2)))
    False
    """
    try:
        refuse_coupled_examples(apply_fn, params, x)
    except CoupledExamplesError:
        return True
    return False
