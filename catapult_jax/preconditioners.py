"""Preconditioner, momentum gain and weight decay of an Optax optimizer: what its critical learning rate depends on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from catapult_jax.optax_states import (
    Layout,
    Step,
    is_masked,
    like_params,
    links,
    partition_groups,
    state_of_type,
    states_of_type,
)
from catapult_jax.update_check import check_update, refuse_traceless_links

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, PyTree


class Preconditioner(NamedTuple):
    """A step ``w' = (1 - lr decay) w - lr P^(-1) m``, with ``m`` the gradient or a momentum average of it.

    Its critical learning rate is ``2 / (gain lambda + decay)``, with ``lambda`` the top eigenvalue of the loss-weighted kernel
    with ``P``. The defaults are those of plain gradient descent.
    """

    diagonal: PyTree | None = None  # P: positive, a tree like the parameters; None: one everywhere
    gain: float | Float[Array, ""] = 1.0  # of the momentum average, for a gradient that changes sign at every step
    decay: float | Float[Array, ""] = 0.0  # decoupled weight decay, in units of an eigenvalue
    checked: bool | Bool[Array, ""] | None = None  # the update of the step is the one of the optimizer; None: not checked


PLAIN = Preconditioner()  # gradient descent, SGD


def preconditioner_from_state(
    optimizer: Callable[..., optax.GradientTransformation],
    params: PyTree,
    after: optax.OptState,
    before: optax.OptState | None = None,
    *,
    updates: PyTree | None = None,
    gradient: PyTree | None = None,
    **settings: Any,
) -> Preconditioner:
    r"""Preconditioner, momentum gain and weight decay of one step of an Optax optimizer.

    ``P`` is the one that this step used: it is read from the state after the update, which has seen the gradient.
    ``gain`` is that of the momentum average in the alternating mode, which is the first to grow.

    ==========================  =====================================  ===========================================
    optimizer                   P                                      gain
    ==========================  =====================================  ===========================================
    sgd                         1                                      1
    sgd, momentum beta          1                                      1 / (1 + beta)
    sgd, nesterov               1                                      (1 + 2 beta) / (1 + beta)
    adagrad                     sqrt(sum g^2 + eps); infinite at 0     1
    rmsprop                     sqrt(nu + eps), or sqrt(nu) + eps      1
    adam, adamw                 sqrt(nu_hat + eps_root) + eps          (1 - b1) / (1 + b1)
    adadelta                    sqrt(E[g^2] + eps) / sqrt(E[dx^2] + eps)  1
    ==========================  =====================================  ===========================================

    The bias correction of Adam's ``m`` is left out. It makes the first steps larger, by ``1 / (1 - b1^t)``.
    ``E[dx^2]`` of Adadelta is that of the state before.
    A schedule of the learning rate does not change the critical learning rate.
    Decoupled weight decay (adamw) adds to every eigenvalue.
    ``adadelta`` decays before it preconditions and has no rule for it: decay is an error, or NaN if it is a traced number in
    the state.

    **The check.** The state alone does not determine the update: several optimizers share a type of state, a setting such as
    ``b2`` is not stored, and clipping leaves no trace.
    With ``before``, ``updates`` and ``gradient`` the function repeats the step with these settings and compares update and
    state. If they agree, ``checked`` is True. If not, it raises; under jit ``checked`` is False, and
    :func:`critical_lr_from_lambda` gives NaN. Without them the function checks the types of the links of a chain **and nothing
    else**, and ``checked`` is None. A link that leaves no trace is then an error, unless the optimizer itself has it.
    ``chain(clip, scale(-lr))`` looks like ``sgd``: clipping is not detected there.

    Args:
      optimizer: ``optax.sgd``, ``adagrad``, ``rmsprop``, ``adam``, ``adamw`` or ``adadelta``, or a ``functools.partial`` of it.
      params: parameters before the step.
      after: state of the optimizer after the update, also inside ``optax.chain``, ``inject_hyperparams``, ``masked`` or
        ``multi_transform``. Parameters that are masked out count as fixed: their ``P`` is infinite. ``masked`` by itself passes
        their gradient on, so combine it with ``set_to_zero`` for them.
      before: state before the update; for ``adadelta``, and for the check.
      updates: update of the whole chain in this step, to be added to ``params``.
      gradient: gradient of the loss, as the first link of the chain receives it.
      settings: arguments of the optimizer that are not the default (``b1=0.8``). Numbers that ``inject_hyperparams`` keeps in
        the state are read there; truth values such as ``nesterov`` are not. The check needs ``learning_rate`` too, of this step
        or as a schedule.

    Returns:
      A :class:`Preconditioner`.

    Raises:
      ValueError: the optimizer or a setting has no rule; it has no setting of that name; the state belongs to another
        optimizer, to several, or has a link of another type (an average, say); ``sgd`` without momentum inside ``masked``,
        whose state does not have the mask; a link that leaves no trace, without ``updates``; ``updates`` that differ from those
        of the optimizer with these settings; ``updates`` without ``gradient`` and ``before``.

    Source: the frozen-preconditioner rule of Cohen et al. (2022), arXiv 2207.14484; the gains are the momentum filters at
    ``z = -1``.

    >>> params, gradient = jnp.array([1.0, 1.0]), jnp.array([3.0, 0.5])
    >>> optimizer = optax.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0)
    >>> _, state = optimizer.update(gradient, optimizer.init(params))
    >>> preconditioner_from_state(optax.adagrad, params, state, eps=0.0).diagonal.tolist()
    [3.0, 0.5]

    With the check; a norm of the gradient above 10 would be an error here:

    >>> optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(0.1))
    >>> before = optimizer.init(params)
    >>> updates, state = optimizer.update(gradient, before)
    >>> step = dict(updates=updates, gradient=gradient, learning_rate=0.1)
    >>> preconditioner_from_state(optax.sgd, params, state, before, **step).checked
    True
    """
    if isinstance(optimizer, functools.partial):
        positional = dict(zip(inspect.signature(optimizer.func).parameters, optimizer.args, strict=False))
        optimizer, settings = optimizer.func, positional | optimizer.keywords | settings
    rule, settings = _rule(optimizer), _with_defaults(optimizer, settings)
    _refuse_other_links(optimizer, rule.layout.state_type, after)
    settings |= _injected(after, rule.layout.state_type, settings)
    step = Step(params, before, after)
    preconditioner = rule.preconditioner(step, settings)
    if updates is None and gradient is None:
        refuse_traceless_links(optimizer, rule.layout, step, settings)
        return preconditioner
    for name, value in (("updates", updates), ("gradient", gradient), ("before", before)):
        if value is None:
            raise ValueError(
                f"{name}=None; allowed: updates, gradient and before of one step together, or neither updates nor gradient"
            )
    return preconditioner._replace(checked=check_update(optimizer, rule.layout, step, updates, gradient, settings))


def smallest_entry(diagonal: PyTree | None) -> Float[Array, ""]:
    """Smallest entry ``s_min`` of a diagonal preconditioner.

    ``J P^(-1) J^T <= J J^T / s_min``, so the critical lr with ``P`` is at least ``2 / (gain lambda_max(K_L) / s_min + decay)``.
    Without momentum and decay that is ``s_min`` times the critical lr of SGD.

    Args:
      diagonal: ``P``, a tree like the parameters; None: one everywhere.

    Returns:
      A scalar, in units of ``P``.

    Source: the bound is the monotony of ``A A^T`` in ``P^(-1)``.

    >>> float(smallest_entry({"a": jnp.array([2.0, 0.5]), "b": jnp.array(3.0)}))
    0.5
    """
    return jnp.min(jnp.stack([jnp.min(leaf) for leaf in jax.tree.leaves(diagonal)])) if diagonal is not None else jnp.ones(())


# ---- arguments and state


def _rule(optimizer: Callable) -> _Rule:
    """The row of the optimizer in ``_RULES``, or an error."""
    if optimizer not in _RULES:
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise ValueError(f"optimizer={name} has no rule; allowed: {', '.join(OPTIMIZERS)}")
    return _RULES[optimizer]


def _with_defaults(optimizer: Callable, settings: dict) -> dict:
    """All arguments of the optimizer by name."""
    defaults = {name: p.default for name, p in inspect.signature(optimizer).parameters.items()}
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise ValueError(
            f"{unknown[0]}={settings[unknown[0]]!r} is no setting of {optimizer.__name__}; allowed: {', '.join(defaults)}"
        )
    return defaults | settings


def _refuse_other_links(optimizer: Callable, state_type: type, state) -> None:
    """Refuse links of another type, and groups of ``multi_transform`` whose state does not tell how they move."""
    others = sorted({type(link).__name__ for link in links(state)} - {state_type.__name__})
    if others:
        raise ValueError(f"the state holds {others[0]}; allowed for {optimizer.__name__}: {state_type.__name__} alone")
    for partition in states_of_type(state, optax.PartitionState):
        for label, group in partition_groups(partition).items():
            # The state of set_to_zero is a bare EmptyState.
            if not links(group) and not isinstance(group.inner_state, optax.EmptyState):
                raise ValueError(
                    f"the group {label!r} does not tell how it moves; allowed: {optimizer.__name__}, or set_to_zero"
                )


def _injected(state, state_type: type, settings: dict) -> dict:
    """The settings that ``inject_hyperparams`` keeps in the state."""
    values = {}
    for wrapper in states_of_type(state, optax.InjectStatefulHyperparamsState):
        # Another link may have settings of the same name. For sgd without momentum no state tells which link is its own.
        if states_of_type(wrapper.inner_state, state_type) or not states_of_type(state, state_type):
            values |= {name: value for name, value in wrapper.hyperparams.items() if name in settings}
    return values


def _refuse_other_settings(settings: dict, optimizer: str, **allowed) -> None:
    """Refuse settings with a value that has no rule."""
    for name, value in allowed.items():
        if settings[name] is not value and settings[name] != value:
            raise ValueError(f"{name}={settings[name]!r} of {optimizer} has no rule; allowed: {value!r}")


# ---- one rule per optimizer


def _diagonal(function: Callable, step: Step, optimizer: str, *trees):
    """``function`` of the averages of a state, as a tree like the parameters."""
    return like_params(jax.tree.map(function, *trees), step.params, optimizer)


def _sgd(step: Step, settings: dict) -> Preconditioner:
    beta, traces = settings["momentum"], len(states_of_type(step.after, optax.TraceState))
    if traces != (beta is not None):
        raise ValueError(f"momentum={beta!r} of sgd with a state of {traces} momentum averages; allowed: that of the state")
    if beta is None:
        if states_of_type(step.after, (optax.MaskedState, optax.PartitionState)):
            raise ValueError("the state holds a mask that it does not tell; allowed for sgd without momentum: none")
        return Preconditioner()
    trace = state_of_type(step.after, optax.TraceState, "sgd").trace
    has_mask = any(is_masked(leaf) for leaf in jax.tree.leaves(trace, is_leaf=is_masked))
    diagonal = _diagonal(jnp.ones_like, step, "sgd", trace) if has_mask else None
    return Preconditioner(diagonal, gain=(1 + 2 * beta) / (1 + beta) if settings["nesterov"] else 1 / (1 + beta))


def _adagrad(step: Step, settings: dict) -> Preconditioner:
    total = state_of_type(step.after, optax.ScaleByRssState, "adagrad").sum_of_squares
    root = lambda t: jnp.where(t > 0, jnp.sqrt(t + settings["eps"]), jnp.inf)  # Optax does not move an entry without a gradient
    return Preconditioner(_diagonal(root, step, "adagrad", total))


def _rmsprop(step: Step, settings: dict) -> Preconditioner:
    _refuse_other_settings(settings, "rmsprop", centered=False, momentum=None, bias_correction=False)
    eps, nu = settings["eps"], state_of_type(step.after, optax.ScaleByRmsState, "rmsprop").nu
    root = (lambda v: jnp.sqrt(v + eps)) if settings["eps_in_sqrt"] else (lambda v: jnp.sqrt(v) + eps)
    return Preconditioner(_diagonal(root, step, "rmsprop", nu))


def _adam(step: Step, settings: dict) -> Preconditioner:
    _refuse_other_settings(settings, "adam", nesterov=False)
    state = state_of_type(step.after, optax.ScaleByAdamState, "adam")
    if not isinstance(state.count, Tracer) and np.asarray(state.count) < 1:
        raise ValueError("the state has count=0; allowed: the state after an update")
    correction, b1 = 1 - settings["b2"] ** state.count, settings["b1"]
    root = lambda v: jnp.sqrt(v / correction + settings["eps_root"]) + settings["eps"]
    return Preconditioner(_diagonal(root, step, "adam", state.nu), (1 - b1) / (1 + b1))


def _adamw(step: Step, settings: dict) -> Preconditioner:
    _refuse_other_settings(settings, "adamw", mask=None)
    if callable(settings["weight_decay"]):
        raise ValueError(f"weight_decay={settings['weight_decay']!r} of adamw has no rule; allowed: a number")
    return _adam(step, settings)._replace(decay=settings["weight_decay"])


def _adadelta(step: Step, settings: dict) -> Preconditioner:
    decay = settings["weight_decay"]
    if not isinstance(decay, jax.Array):
        _refuse_other_settings(settings, "adadelta", weight_decay=0.0)
    if step.before is None:
        raise ValueError("before=None; allowed for adadelta: the state before the update")
    after, before = (state_of_type(state, optax.ScaleByAdaDeltaState, "adadelta") for state in (step.after, step.before))
    eps = settings["eps"]
    ratio = lambda g, x: jnp.sqrt(g + eps) / jnp.sqrt(x + eps)
    diagonal = _diagonal(ratio, step, "adadelta", after.e_g, before.e_x)
    return Preconditioner(diagonal, decay=jnp.where(jnp.asarray(decay) == 0, 0.0, jnp.nan))


class _Rule(NamedTuple):
    """The rule of an optimizer."""

    preconditioner: Callable[[Step, dict], Preconditioner]  # of a step and all settings
    layout: Layout  # of its state


def _moving_average(setting: str) -> Callable[[dict], tuple]:
    """Weights of ``average <- a average + (1 - a) x``, with ``a`` a setting."""
    return lambda settings: (settings[setting], 1 - settings[setting])


# One row per optimizer. Add an optimizer here.
_RULES: dict[Callable, _Rule] = {
    optax.sgd: _Rule(_sgd, Layout(optax.TraceState, "trace", "trace", False, lambda settings: (settings["momentum"], 1.0))),
    optax.adagrad: _Rule(
        _adagrad, Layout(optax.ScaleByRssState, "sum_of_squares", "sum_of_squares", True, lambda settings: (1.0, 1.0))
    ),
    optax.rmsprop: _Rule(_rmsprop, Layout(optax.ScaleByRmsState, "nu", "nu", True, _moving_average("decay"))),
    optax.adam: _Rule(_adam, Layout(optax.ScaleByAdamState, "nu", "mu", False, _moving_average("b1"))),
    optax.adamw: _Rule(_adamw, Layout(optax.ScaleByAdamState, "nu", "mu", False, _moving_average("b1"))),
    optax.adadelta: _Rule(_adadelta, Layout(optax.ScaleByAdaDeltaState, "e_g", "e_g", True, _moving_average("rho"))),
}
OPTIMIZERS = tuple(optimizer.__name__ for optimizer in _RULES)
