"""Preconditioner, momentum gain and weight decay of an Optax optimizer: what its critical learning rate depends on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer

from catapult_jax.optimizer_links import Link, like_params, links_of
from catapult_jax.optimizer_rules import Effect, effects_of
from catapult_jax.tangent import InverseMap

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, PyTree


@functools.partial(
    jax.tree_util.register_dataclass, meta_fields=["reason"], data_fields=["diagonal", "gain", "decay", "lr", "checked"]
)
@dataclass(frozen=True)
class Preconditioner:
    """A step ``w' = (1 - lr decay) w - lr P^(-1) m``, with ``m`` the gradient or a momentum average of it.

    Its critical learning rate is ``2 / (gain lambda + decay)``, with ``lambda`` the top eigenvalue of the loss-weighted kernel
    with ``P``. The defaults are those of plain gradient descent.
    """

    diagonal: PyTree | None = None  # P: positive, a tree like the parameters; None: one everywhere; or an InverseMap
    gain: float | Float[Array, ""] = (
        1.0  # of the momentum average, for a gradient that changes sign at every step; NaN: no rule
    )
    decay: float | Float[Array, ""] = 0.0  # weight decay, in units of an eigenvalue; where parameters differ, the largest
    lr: float | Float[Array, ""] | None = None  # of this step, as the optimizer has it; None: it is applied elsewhere
    checked: bool | Bool[Array, ""] | None = None  # the update of the step is the one of the optimizer; None: not checked
    reason: str = ""  # why there is no rule, in one line; empty: there is one

    @property
    def kind(self) -> str:
        """``"rule"``, or ``"no rule"``: then the critical lr is NaN, and the directional critical lr still answers."""
        return "no rule" if self.reason else "rule"


PLAIN = Preconditioner()  # gradient descent, SGD


def preconditioner_from_state(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    params: PyTree,
    before: optax.OptState | None,
    after: optax.OptState,
    *,
    gradient: PyTree | None = None,
    updates: PyTree | None = None,
    new_params: PyTree | None = None,
) -> Preconditioner:
    r"""Preconditioner, momentum gain, weight decay and lr of one step of a built Optax optimizer.

    ``P`` is the one that this step used: it is read from the state after the update, which has seen the gradient. ``gain`` is that of the
    momentum average in the alternating mode, which is the first to grow. Each link of the optimizer has a rule, and the rules of a chain
    are composed:

    ============================  =============================================  =============================
    link                          P                                              gain
    ============================  =============================================  =============================
    trace (heavy ball, beta)      1                                              1 / (1 + beta)
    trace (nesterov)              1                                              (1 + 2 beta) / (1 + beta)
    ema                           1                                              (1 - beta) / (1 + beta)
    scale_by_rss (adagrad)        sqrt(sum g^2 + eps); infinite at 0             1
    scale_by_rms                  sqrt(nu + eps), or sqrt(nu) + eps              1
    scale_by_stddev               sqrt(nu - mu^2 + eps), or sqrt(...) + eps      1
    scale_by_adam, yogi           sqrt(nu_hat + eps_root) + eps                  (1 - b1) / (1 + b1)
    scale_by_adam (nesterov)      the same                                       (1 - b1) (1 + 2 b1) / (1 + b1)
    scale_by_amsgrad              sqrt(nu_max + eps_root) + eps                  (1 - b1) / (1 + b1)
    scale_by_adamax               nu                                             (1 - b1) / (1 + b1)
    scale_by_belief               sqrt(nu_hat) + eps                             as scale_by_adam
    scale_by_ademamix             sqrt(nu_hat + eps_root) + eps                  (1 - b1) / (1 + b1) + alpha (1 - b3) / (1 + b3)
    scale_by_adadelta             sqrt(E[g^2] + eps) / sqrt(E[dx^2] + eps)       1
    scale_by_factored_rms         root of the factored average of g^2            1
    clip_by_global_norm           1                                              min(1, max_norm / norm)
    clip_by_block_rms, trust      one number for each array                      1
    schedule_free                 1                                              (2 (1 - b) + c (2 b - 1)) / (2 - c)
    lookahead, k odd              1                                              2 / (1 + (2 / alpha - 1)^(1/k))
    ============================  =============================================  =============================

    The bias correction of momentum averages is left out. It makes the first steps larger, by ``1 / (1 - b1^t)``. ``E[dx^2]`` of Adadelta
    is that of the state before. ``c`` is the averaging weight of the step. Lookahead with an even period has gain 1. Decoupled weight
    decay adds to every eigenvalue; decay in front of a momentum average goes through it; decay in front of a ``P`` has no rule. Where a
    mask or groups give parameters different decays, ``decay`` is the largest, so that the critical lr is a lower bound. Where groups have
    different gains or lrs, they are part of ``diagonal``, in units of the lr of the first group.

    Where ``P`` is no diagonal (Shampoo, SOAP), the state of the link tells it: its method ``inverse_preconditioner(before)`` returns an
    :class:`catapult_jax.InverseMap` and the gain. Optax has no such optimizer.

    A link without a rule (Lion, Muon, signs: their update is normalised, so that no eigenvalue makes an lr critical; a link that is not
    Optax's) is no error: ``kind`` is ``"no rule"``, ``reason`` names the link, and the critical lr is NaN.
    Neither has a chain with two averages of the gradient (momentum and ``ema``, ``trace`` and ``adam``), nor a sum of accumulated gradients.
    :func:`catapult_jax.directional_critical_lr` answers for every optimizer.

    Args:
      optimizer: a built transformation, such as ``optax.adamw(1e-3)``. Chains, masks, groups, injected settings,
        ``optax.MultiSteps`` and ``optax.apply_if_finite`` are looked through.
      params: parameters before the step.
      before: state before the update, for ``adadelta``, clipping and the check; None: not given.
      after: state after the update.
      gradient: of the loss, as the first link receives it; for clipping and the check.
      updates: of the whole optimizer in this step. They are compared with those of the optimizer for this gradient: what a loop does
        outside of the optimizer (clipping, scaling) shows there; with Lookahead only where ``params`` is its pair. Outside of jit a
        difference gives ``kind="no rule"`` and the reason, under jit ``checked`` is False; both make the critical lr NaN.
      new_params: parameters after the step, in place of ``updates``: the same check, up to the rounding of the parameters.

    Returns:
      A :class:`Preconditioner`.

    Raises:
      ValueError: not a built transformation; the state belongs to another optimizer, or is one before any update; ``updates`` or
        ``new_params`` without ``gradient`` and ``before``, or both of them; trees of other shapes than the parameters.

    Source: the frozen-preconditioner rule of Cohen et al. (2022), arXiv 2207.14484; the gains are the momentum filters at
    ``z = -1``. Those of Nesterov's Adam, AdEMAMix, schedule-free and Lookahead are our algebra.

    >>> params, gradient = jnp.array([1.0, 1.0]), jnp.array([3.0, 0.5])
    >>> optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0))
    >>> before = optimizer.init(params)
    >>> updates, after = optimizer.update(gradient, before)
    >>> preconditioner = preconditioner_from_state(optimizer, params, before, after, gradient=gradient, updates=updates)
    >>> preconditioner.diagonal.tolist(), round(float(preconditioner.lr), 3), preconditioner.checked
    ([3.0, 0.5], 0.1, True)

    >>> lion = optax.lion(0.1)
    >>> print(preconditioner_from_state(lion, params, None, lion.init(params)).reason)
    scale_by_lion normalises the update, so no eigenvalue makes an lr critical; use directional_critical_lr
    """
    given = params
    trees = (params, before, after, gradient, updates, new_params)
    params, before, after, gradient, updates, new_params = map(_pure, trees)
    links = links_of(optimizer, params, before, after)
    if updates is not None and new_params is not None:
        raise ValueError("updates and new_params given; allowed: one of them, what the step adds or the parameters after it")
    for name, value in (("gradient", gradient), ("before", before)):
        if (updates is not None or new_params is not None) and value is None:
            raise ValueError(f"{name}=None; allowed with updates or new_params: gradient and before of the same step")
    is_pair = hasattr(params, "fast")  # of Lookahead
    _check_shapes("gradient", gradient, params.fast if is_pair else params)
    _check_shapes("updates", updates, params.fast if is_pair and not hasattr(updates, "fast") else params)
    _check_shapes("new_params", new_params, params)
    effects = effects_of(links, params, gradient if before is not None else None)
    preconditioner = _composed(links, effects, getattr(given, "fast", given))
    # The updates of Lookahead can't be made again without its slow parameters.
    needs_pair = not is_pair and any(link.name == "lookahead" for link in links)
    if (updates is None and new_params is None) or preconditioner.reason or needs_pair:
        return preconditioner
    return _with_check(preconditioner, optimizer, params, before, after, gradient, updates, new_params)


def _pure(tree):
    """The tree without the variables of ``flax.nnx``, whose kinds differ between a model and an optimizer."""
    is_variable = lambda node: isinstance(node, nnx.Variable)
    return jax.tree.map(lambda node: jax.tree.leaves(node)[0] if is_variable(node) else node, tree, is_leaf=is_variable)


def smallest_entry(diagonal: PyTree | None) -> Float[Array, ""]:
    """Smallest entry ``s_min`` of a diagonal preconditioner.

    ``J P^(-1) J^T <= J J^T / s_min``, so the critical lr with ``P`` is at least ``2 / (gain lambda_max(K_L) / s_min + decay)``.
    Without momentum and decay that is ``s_min`` times the critical lr of SGD.

    Args:
      diagonal: ``P``, a tree like the parameters; None: one everywhere.

    Returns:
      A scalar, in units of ``P``.

    Raises:
      ValueError: ``P`` is no diagonal.

    Source: the bound is the monotony of ``A A^T`` in ``P^(-1)``.

    >>> float(smallest_entry({"a": jnp.array([2.0, 0.5]), "b": jnp.array(3.0)}))
    0.5
    """
    if isinstance(diagonal, InverseMap):
        raise ValueError("diagonal is an InverseMap; allowed: a diagonal, whose entries are known")
    return jnp.min(jnp.stack([jnp.min(leaf) for leaf in jax.tree.leaves(diagonal)])) if diagonal is not None else jnp.ones(())


# ---- what the links do together


class _Scalars(NamedTuple):
    """What a sequence of links does, beside ``P``."""

    gain: Any
    decay: Any
    lr: Any  # None: no link has one
    reason: str


def _composed(links: list[Link], effects: list[Effect], params: PyTree) -> Preconditioner:
    """The rule of the whole optimizer."""
    leaves = jax.tree.leaves(params)
    sequences = [tuple(k for k, link in enumerate(links) if i in link.on) for i in range(len(leaves))]
    is_fixed = {s: any(links[k].name == "set_to_zero" for k in s) for s in sequences}
    moving = {s: _scalars([effects[k] for k in s]) for s in dict.fromkeys(sequences) if not is_fixed[s]}
    moving = _with_shared_lrs(moving, effects)
    groups = list(moving.values()) or [_Scalars(1.0, 0.0, None, "")]
    first = next((scalars for scalars in groups if not _stands_still(scalars.lr)), groups[0])
    for link, effect in zip(links, effects, strict=True):
        if effect.reason:
            count = "" if len(link.on) == len(leaves) else f" ({len(link.on)} of {len(leaves)} parameters)"
            return _no_rule(effect.reason + count, first.lr)
    for scalars in moving.values():
        if scalars.reason:
            return _no_rule(scalars.reason, scalars.lr)
    if len({scalars.lr is None for scalars in moving.values()}) > 1:
        return _no_rule("some parameters are masked and receive the gradient as it is; mask them with set_to_zero, too")
    if any(effect.inverse is not None for effect in effects):
        return _with_map(links, effects, moving, len(leaves))
    diagonals = [_product(links, effects, i, sequence) for i, sequence in enumerate(sequences)]
    gain, decay, lr = first.gain, first.decay, first.lr
    if not all(_same(first.gain, v.gain) and _same(first.decay, v.decay) and _same_lr(first.lr, v.lr) for v in moving.values()):
        lr = functools.reduce(_first_that_moves, (v.lr for v in moving.values()))
        ratio = {s: 1.0 if v.lr is None else _ratio(v.lr, lr) for s, v in moving.items()}
        weights = {s: v.gain * ratio[s] for s, v in moving.items()}
        diagonals = [
            d if is_fixed[s] else (1.0 if d is None else d) / weights[s] for d, s in zip(diagonals, sequences, strict=True)
        ]
        gain, decay = 1.0, functools.reduce(_larger, (v.decay * ratio[s] for s, v in moving.items()))
    has_diagonal = any(d is not None for d in diagonals)
    diagonal = (
        like_params([_or_ones(d, leaf) for d, leaf in zip(diagonals, leaves, strict=True)], params) if has_diagonal else None
    )
    return Preconditioner(diagonal, gain, decay, lr)


def _with_shared_lrs(moving: dict, effects: list[Effect]) -> dict:
    """Sequences with the same links for their lr have the same array for it, so that it is known to be the same when it is traced."""
    lrs = {}
    shared = lambda s: tuple(id(effects[k].scale) for k in s if effects[k].scale is not None)
    return {s: scalars._replace(lr=lrs.setdefault(shared(s), scalars.lr)) for s, scalars in moving.items()}


def _with_map(links: list[Link], effects: list[Effect], moving: dict, count: int) -> Preconditioner:
    """The rule of an optimizer whose ``P`` is a map."""
    maps = [(link, effect) for link, effect in zip(links, effects, strict=True) if effect.inverse is not None]
    link, effect = maps[0]
    if len(maps) > 1 or len(moving) > 1 or len(link.on) != count or any(other.diagonal for other in effects):
        return _no_rule(f"{link.name} with another preconditioner, or on some of the parameters, has no rule")
    (scalars,) = moving.values()
    return Preconditioner(effect.inverse, scalars.gain, scalars.decay, scalars.lr)


def _no_rule(reason: str, lr=None) -> Preconditioner:
    return Preconditioner(gain=jnp.nan, lr=lr, reason=reason)


def _scalars(effects: list[Effect]) -> _Scalars:
    """Gain, decay and lr of a sequence of links, ``scale (gain P^(-1) g + decay w)`` of gradient ``g`` and parameters ``w``."""
    gain, decay, scale = 1.0, 0.0, None
    averages = [effect.averages for effect in effects if effect.averages and not _same(effect.gain, 1.0)]
    if len(averages) > 1:  # then the first mode that grows need not change sign at every step
        return _Scalars(gain, decay, _lr_of(effects), f"{' and '.join(averages)}: two averages of the gradient have no rule")
    for effect in effects:
        if effect.around and not _same(gain, 1.0):
            return _Scalars(
                gain, decay, _lr_of(effects), f"{effect.around} around an optimizer with momentum or clipping has no rule"
            )
        if (effect.diagonal or effect.inverse is not None) and not _is_zero(decay):
            if not isinstance(decay, Tracer | jax.Array):
                return _Scalars(
                    gain, decay, _lr_of(effects), f"weight decay of {decay} in front of a preconditioner has no rule"
                )
            decay = jnp.where(decay == 0, 0.0, jnp.nan)
        gain, decay = gain * effect.gain, 0.0 if _is_zero(decay) else decay * effect.gain
        if not _is_zero(effect.decay):
            decay = decay + (effect.decay if scale is None else effect.decay / scale)
        if effect.scale is not None:
            scale = effect.scale if scale is None else scale * effect.scale
    return _Scalars(gain, decay, _lr_of(effects), "")


def _lr_of(effects: list[Effect]) -> Any:
    """The lr of a sequence of links alone; None: no link has one."""
    scales = [effect.scale for effect in effects if effect.scale is not None]
    return -functools.reduce(lambda a, b: a * b, scales) if scales else None


def _product(links: list[Link], effects: list[Effect], i: int, sequence: tuple[int, ...]) -> Any:
    """Product of the diagonals of a parameter; None: no link has one."""
    parts = [effects[k].diagonal[links[k].on.index(i)] for k in sequence if effects[k].diagonal]
    return functools.reduce(lambda a, b: a * b, parts) if parts else None


def _or_ones(diagonal, leaf) -> Array:
    dtype = jnp.result_type(leaf)
    return (
        jnp.ones((), dtype) if diagonal is None else jnp.asarray(diagonal, None if isinstance(diagonal, jax.Array) else dtype)
    )


def _is_zero(value) -> bool:
    """Whether a number is zero for certain."""
    return isinstance(value, int | float) and value == 0


def _same(a, b) -> bool:
    """Whether two numbers are equal for certain."""
    if a is b:
        return True
    return a is not None and b is not None and not isinstance(a, Tracer) and not isinstance(b, Tracer) and bool(a == b)


def _same_lr(a, b) -> bool:
    """Whether two lrs are equal for certain, and stay so. Two that are zero may come from different schedules."""
    return a is b or (_same(a, b) and not _stands_still(a))


def _ratio(lr, reference):
    """``lr / reference``; NaN where no group moves, since the ratio of two zeros is not known."""
    return 1.0 if _same_lr(lr, reference) else lr / jnp.where(reference == 0, jnp.nan, reference)


def _first_that_moves(a, b):
    """The first of two lrs that is not zero."""
    if _same_lr(a, b) or a is None:
        return a
    if isinstance(a, Tracer):
        return jnp.where(a == 0, b, a)
    return b if _stands_still(a) else a


def _stands_still(lr) -> bool:
    """Whether an lr is zero for certain."""
    return lr is not None and not isinstance(lr, Tracer) and bool(np.all(np.asarray(lr) == 0))


def _larger(a, b):
    return max(a, b) if isinstance(a, int | float) and isinstance(b, int | float) else jnp.maximum(a, b)


# ---- the check against the step


def _check_shapes(name: str, tree: PyTree | None, params: PyTree) -> None:
    if tree is not None and [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] != [
        jnp.shape(p) for p in jax.tree.leaves(params)
    ]:
        raise ValueError(f"{name} has other arrays than params; allowed: one for each parameter, of its shape")


def _with_check(preconditioner, optimizer, params, before, after, gradient, updates, new_params) -> Preconditioner:
    """The preconditioner, after a comparison of update and state with those that the optimizer gives for this gradient."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Optax itself needs
        expected, state = optimizer.update(gradient, before, params)
    if hasattr(expected, "fast") and updates is not None and not hasattr(updates, "fast"):
        expected = expected.fast
    if updates is None:  # the difference has the rounding of the parameters
        updates = jax.tree.unflatten(
            jax.tree.structure(expected), [a - b for a, b in zip(*map(jax.tree.leaves, (new_params, params)), strict=True)]
        )
    is_same = _agree(updates, expected, rounded=new_params) & _agree(after, state)
    if isinstance(is_same, Tracer):
        return replace(preconditioner, checked=is_same)
    if is_same:
        return replace(preconditioner, checked=True)
    factor = _factor(updates, expected)
    how = "not that" if factor is None or abs(factor - 1) < 1e-3 else f"{factor:.3g} times that"
    reason = (
        f"the update is {how} of the optimizer for this gradient; something outside of the optimizer changes gradient or update"
    )
    return replace(preconditioner, checked=False, gain=jnp.nan, reason=reason)


def _agree(tree, expected, rounded=None) -> Array:
    """All integers are equal, and all floating-point arrays are equal up to rounding, that of the arrays ``rounded`` included."""
    agree = jnp.asarray(True)
    of_rounding = jax.tree.leaves(rounded) or [None] * len(jax.tree.leaves(tree))
    for a, b, c in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), of_rounding, strict=True):
        if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
            agree &= jnp.all(a == b)
            continue
        info = jnp.finfo(jnp.result_type(a))
        tolerance, dtype = max(1e-4, 8 * float(info.eps)), jnp.float32 if info.bits < 32 else info.dtype
        a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        norm = lambda leaf, dtype=dtype: jnp.linalg.norm(jnp.ravel(jnp.asarray(leaf, dtype)))
        allowed = tolerance * norm(b) + (0 if c is None else 4 * float(jnp.finfo(jnp.result_type(c)).eps) * norm(c))
        agree &= norm(a - b) <= allowed
    return agree


def _factor(tree, reference) -> float | None:
    """``f`` if ``tree = f * reference`` to 1 %, else None."""
    flat = lambda tree: np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
    a, b = flat(tree), flat(reference)
    if not b @ b > 0:
        return None
    factor = a @ b / (b @ b)
    return float(factor) if np.linalg.norm(a - factor * b) <= 0.01 * np.linalg.norm(a) else None
