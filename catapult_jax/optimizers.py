"""What an Optax optimizer makes of a gradient in one step, as far as its critical learning rate depends on it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


class Preconditioning(NamedTuple):
    """A step ``w' = (1 - lr decay) w - lr P^(-1) m``, with ``m`` the gradient or a momentum average of it.

    Its critical learning rate is ``2 / (gain lambda + decay)``, ``lambda`` the top eigenvalue of the loss-weighted kernel with ``P``.
    The defaults are those of plain gradient descent.
    """

    diagonal: PyTree | None = None  # P, positive, a pytree like the parameters; None: one everywhere
    gain: float | Float[Array, ""] = 1.0  # of the momentum average on a gradient that changes sign at every step
    decay: float | Float[Array, ""] = 0.0  # decoupled weight decay, in units of an eigenvalue


PLAIN = Preconditioning()  # gradient descent, SGD


def preconditioning(
    optimizer: Callable[..., optax.GradientTransformation],
    params: PyTree,
    after: optax.OptState,
    before: optax.OptState | None = None,
    **settings: Any,
) -> Preconditioning:
    r"""The diagonal ``P``, the momentum's gain and the weight decay of one step of an Optax optimizer.

    The preconditioner is held fixed at what this very step used: it is read from the state after the update, which has seen the
    gradient. In the alternating mode, which is the first to grow, a momentum average has the gain

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

    The bias correction of Adam's ``m`` is left out: it makes the first steps larger, by ``1 / (1 - b1^t)``. ``E[dx^2]`` of Adadelta
    is that of the state before. Under a schedule of the learning rate the critical value does not change, only what it is compared
    with. Decoupled weight decay (adamw) adds to every eigenvalue; in ``adadelta``, which decays before it preconditions, it has
    no rule: an error, or NaN where it is a traced number in the state.

    Args:
      optimizer: ``optax.sgd``, ``adagrad``, ``rmsprop``, ``adam``, ``adamw`` or ``adadelta``, or a ``functools.partial`` of one.
      params: parameters.
      after: state of the optimizer after the update, also inside of ``optax.chain``, ``inject_hyperparams``, ``masked`` or
        ``multi_transform``. Parameters that are masked out are taken not to move, and their ``P`` is infinite; ``masked`` alone passes their
        gradient on, so that it takes ``set_to_zero`` for them. Links of a chain that leave no trace in the state (clipping, a
        factor, decay) are not seen: they must leave the update alone.
      before: state before the update; for ``adadelta``.
      settings: what the optimizer was made with where it is not the default (``b1=0.8``). What ``inject_hyperparams`` keeps in the state is read
        there: numbers, not truth values such as ``nesterov``.

    Raises:
      ValueError: an optimizer, or a setting of it, that has no rule; a setting that it does not have; a state that is not of that
        optimizer, of several, or of a link of another kind (an average, say); ``sgd`` without momentum in ``masked``, since its state does
        not tell the mask.

    Source: the frozen-preconditioner rule of Cohen et al. (2022), arXiv 2207.14484; the gains are the momentum filters at ``z = -1``.

    >>> params, gradient = jnp.array([1.0, 1.0]), jnp.array([3.0, 0.5])
    >>> optimizer = optax.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0)
    >>> _, state = optimizer.update(gradient, optimizer.init(params))
    >>> preconditioning(optax.adagrad, params, state, eps=0.0).diagonal.tolist()
    [3.0, 0.5]
    """
    if isinstance(optimizer, functools.partial):
        given = dict(zip(inspect.signature(optimizer.func).parameters, optimizer.args, strict=False)) | optimizer.keywords
        optimizer, settings = optimizer.func, given | settings
    if optimizer not in _RULES:
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise ValueError(f"optimizer={name} has no rule; allowed: {', '.join(rule.__name__ for rule in _RULES)}")
    defaults = {name: p.default for name, p in inspect.signature(optimizer).parameters.items()}
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise ValueError(
            f"{unknown[0]}={settings[unknown[0]]!r} is no setting of {optimizer.__name__}; allowed: {', '.join(defaults)}"
        )
    kind = _STATE_OF[optimizer]
    strange = sorted({type(state).__name__ for state in _links(after)} - {kind.__name__})
    if strange:
        raise ValueError(f"the state holds {strange[0]}; allowed for {optimizer.__name__}: {kind.__name__} alone")
    for parts in _states(after, optax.PartitionState):
        for label, part in parts.inner_states.items():  # of set_to_zero it is a bare EmptyState
            if not _links(part) and not isinstance(part.inner_state, optax.EmptyState):
                raise ValueError(
                    f"the group {label!r} does not tell how it moves; allowed: {optimizer.__name__}, or set_to_zero"
                )
    injected = {}
    for state in _states(after, optax.InjectStatefulHyperparamsState):
        if _states(state.inner_state, kind):  # another link may have settings of the same name
            injected |= {name: value for name, value in state.hyperparams.items() if name in defaults}
    return _RULES[optimizer](_Step(params, before, after), defaults | settings | injected)


class _Step(NamedTuple):
    params: Any
    before: Any
    after: Any


def smallest_entry(diagonal: PyTree | None) -> Float[Array, ""]:
    """Smallest entry ``s_min`` of a preconditioner; one for None. Since ``J P^(-1) J^T <= J J^T / s_min``, the critical lr with ``P`` is
    at least ``2 / (gain lambda_max(K_L) / s_min + decay)``; without momentum and decay that is ``s_min`` times that of SGD.

    >>> float(smallest_entry({"a": jnp.array([2.0, 0.5]), "b": jnp.array(3.0)}))
    0.5
    """
    return jnp.min(jnp.stack([jnp.min(leaf) for leaf in jax.tree.leaves(diagonal)])) if diagonal is not None else jnp.ones(())


def _states(state, kind) -> list:
    found = [leaf for leaf in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind)) if isinstance(leaf, kind)]
    return [inner for outer in found for inner in (outer, *_states(tuple(outer), kind))]


# What holds the states of links, and what a link that changes no update leaves.
_WRAPPERS = (optax.InjectStatefulHyperparamsState, optax.MaskedState, optax.PartitionState)
_TRACELESS = (optax.EmptyState, optax.ScaleByScheduleState, optax.MaskedNode)


def _links(state) -> list:
    """The states of the links of a chain, without wrappers and without those that change no update."""
    if isinstance(state, _WRAPPERS):
        inner = state.inner_states if isinstance(state, optax.PartitionState) else state.inner_state
        return _links(inner)
    if isinstance(state, dict):
        return [link for inner in state.values() for link in _links(inner)]
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        return [link for inner in state for link in _links(inner)]
    return [] if state is None or isinstance(state, _TRACELESS) else [state]


def _one(state, kind, optimizer: str):
    found = _states(state, kind)
    if len(found) != 1:
        raise ValueError(f"the state holds {len(found)} of {kind.__name__}; allowed for {optimizer}: one")
    return found[0]


def _refuse(settings: dict, optimizer: str, **allowed) -> None:
    for name, value in allowed.items():
        if settings[name] is not value and settings[name] != value:
            raise ValueError(f"{name}={settings[name]!r} of {optimizer} has no rule; allowed: {value!r}")


def _whole(tree, params):
    """The tree with infinity in place of what is masked out."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(
        structure,
        [
            jnp.full_like(p, jnp.inf) if _is_masked(leaf) else leaf
            for p, leaf in zip(leaves, jax.tree.leaves(tree, is_leaf=_is_masked), strict=True)
        ],
    )


def _is_masked(node) -> bool:
    return isinstance(node, optax.MaskedNode)


def _map(function: Callable, step: _Step, *trees):
    return _whole(jax.tree.map(function, *trees), step.params)


def _sgd(step: _Step, settings: dict) -> Preconditioning:
    beta, traces = settings["momentum"], len(_states(step.after, optax.TraceState))
    if traces != (beta is not None):
        raise ValueError(f"momentum={beta!r} of sgd with a state of {traces} momentum averages; allowed: that of the state")
    if beta is None:
        if _states(step.after, (optax.MaskedState, optax.PartitionState)):
            raise ValueError("the state holds a mask that it does not tell; allowed for sgd without momentum: none")
        return Preconditioning()
    trace = _one(step.after, optax.TraceState, "sgd").trace
    is_masked = any(isinstance(m, optax.MaskedNode) for m in jax.tree.leaves(trace, is_leaf=_is_masked))
    diagonal = _map(jnp.ones_like, step, trace) if is_masked else None
    return Preconditioning(diagonal, gain=(1 + 2 * beta) / (1 + beta) if settings["nesterov"] else 1 / (1 + beta))


def _adagrad(step: _Step, settings: dict) -> Preconditioning:
    total = _one(step.after, optax.ScaleByRssState, "adagrad").sum_of_squares
    return Preconditioning(_map(lambda t: jnp.where(t > 0, jnp.sqrt(t + settings["eps"]), jnp.inf), step, total))


def _rmsprop(step: _Step, settings: dict) -> Preconditioning:
    _refuse(settings, "rmsprop", centered=False, momentum=None, bias_correction=False)
    eps, nu = settings["eps"], _one(step.after, optax.ScaleByRmsState, "rmsprop").nu
    root = (lambda v: jnp.sqrt(v + eps)) if settings["eps_in_sqrt"] else (lambda v: jnp.sqrt(v) + eps)
    return Preconditioning(_map(root, step, nu))


def _adam(step: _Step, settings: dict) -> Preconditioning:
    _refuse(settings, "adam", nesterov=False)
    state = _one(step.after, optax.ScaleByAdamState, "adam")
    if not isinstance(state.count, jax.core.Tracer) and np.asarray(state.count) < 1:
        raise ValueError("the state has count=0; allowed: the state after an update")
    seen, b1 = 1 - settings["b2"] ** state.count, settings["b1"]
    root = lambda v: jnp.sqrt(v / seen + settings["eps_root"]) + settings["eps"]
    return Preconditioning(_map(root, step, state.nu), (1 - b1) / (1 + b1))


def _adamw(step: _Step, settings: dict) -> Preconditioning:
    _refuse(settings, "adamw", mask=None)
    if callable(settings["weight_decay"]):
        raise ValueError(f"weight_decay={settings['weight_decay']!r} of adamw has no rule; allowed: a number")
    return _adam(step, settings)._replace(decay=settings["weight_decay"])


def _adadelta(step: _Step, settings: dict) -> Preconditioning:
    decay = settings["weight_decay"]
    if not isinstance(decay, jax.Array):
        _refuse(settings, "adadelta", weight_decay=0.0)
    if step.before is None:
        raise ValueError("before=None; allowed for adadelta: the state before the update")
    after, before = (_one(state, optax.ScaleByAdaDeltaState, "adadelta") for state in (step.after, step.before))
    eps = settings["eps"]
    ratio = _map(lambda g, x: jnp.sqrt(g + eps) / jnp.sqrt(x + eps), step, after.e_g, before.e_x)
    return Preconditioning(ratio, decay=jnp.where(jnp.asarray(decay) == 0, 0.0, jnp.nan))


_RULES = {
    optax.sgd: _sgd,
    optax.adagrad: _adagrad,
    optax.rmsprop: _rmsprop,
    optax.adam: _adam,
    optax.adamw: _adamw,
    optax.adadelta: _adadelta,
}
_STATE_OF = {
    optax.sgd: optax.TraceState,
    optax.adagrad: optax.ScaleByRssState,
    optax.rmsprop: optax.ScaleByRmsState,
    optax.adam: optax.ScaleByAdamState,
    optax.adamw: optax.ScaleByAdamState,
    optax.adadelta: optax.ScaleByAdaDeltaState,
}
OPTIMIZERS = tuple(rule.__name__ for rule in _RULES)
