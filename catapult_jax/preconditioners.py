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
    from jaxtyping import Array, Bool, Float, PyTree


class Preconditioner(NamedTuple):
    """A step ``w' = (1 - lr decay) w - lr P^(-1) m``, with ``m`` the gradient or a momentum average of it.

    Its critical learning rate is ``2 / (gain lambda + decay)``, ``lambda`` the top eigenvalue of the loss-weighted kernel with ``P``.
    The defaults are those of plain gradient descent.
    """

    diagonal: PyTree | None = None  # P, positive, a pytree like the parameters; None: one everywhere
    gain: float | Float[Array, ""] = 1.0  # of the momentum average on a gradient that changes sign at every step
    decay: float | Float[Array, ""] = 0.0  # decoupled weight decay, in units of an eigenvalue
    checked: bool | Bool[Array, ""] | None = None  # the update of this step is that of the rule; None: not checked


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

    **What is checked.** The state does not tell everything: several optimizers share a kind of state, a setting such as ``b2`` is not in it,
    and clipping leaves no trace. With ``before``, ``updates`` and ``gradient`` the step is made again by ``optimizer`` with these settings,
    and its update and its state are compared with those that were made. ``checked`` is then True. Where they differ it is an error, or
    inside of jit ``checked`` is False and :func:`critical_lr_from_lambda` gives NaN. Without them **nothing is checked** but the kinds of the
    links of a chain, and ``checked`` is None: a state in which a link leaves no trace that the optimizer itself does not have is an error.
    Clipping in front of a learning rate alone (``chain(clip, scale(-lr))``) looks like ``sgd``, and is then not seen.

    Args:
      optimizer: ``optax.sgd``, ``adagrad``, ``rmsprop``, ``adam``, ``adamw`` or ``adadelta``, or a ``functools.partial`` of one.
      params: parameters.
      after: state of the optimizer after the update, also inside of ``optax.chain``, ``inject_hyperparams``, ``masked`` or
        ``multi_transform``. Parameters that are masked out are taken not to move, and their ``P`` is infinite; ``masked`` alone passes their
        gradient on, so that it takes ``set_to_zero`` for them.
      before: state before the update; for ``adadelta``, and for the check.
      updates: what the whole chain made of the gradient in this step, to be added to ``params``, which are those before the step.
      gradient: gradient of the loss, as it came to the first link of the chain.
      settings: what the optimizer was made with where it is not the default (``b1=0.8``). What ``inject_hyperparams`` keeps in the state is read
        there: numbers, not truth values such as ``nesterov``. The check needs ``learning_rate`` too, that of this step or a schedule.

    Raises:
      ValueError: an optimizer, or a setting of it, that has no rule; a setting that it does not have; a state that is not of that
        optimizer, of several, or of a link of another kind (an average, say); ``sgd`` without momentum in ``masked``, since its state does
        not tell the mask; a link that leaves no trace, without ``updates``; ``updates`` that are not those of the optimizer with these
        settings; ``updates`` without ``gradient`` and ``before``.

    Source: the frozen-preconditioner rule of Cohen et al. (2022), arXiv 2207.14484; the gains are the momentum filters at ``z = -1``.

    >>> params, gradient = jnp.array([1.0, 1.0]), jnp.array([3.0, 0.5])
    >>> optimizer = optax.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0)
    >>> _, state = optimizer.update(gradient, optimizer.init(params))
    >>> preconditioner_from_state(optax.adagrad, params, state, eps=0.0).diagonal.tolist()
    [3.0, 0.5]

    Checked against the update that was made; clipping that acts would be an error:

    >>> optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(0.1))
    >>> before = optimizer.init(params)
    >>> updates, state = optimizer.update(gradient, before)
    >>> step = dict(updates=updates, gradient=gradient, learning_rate=0.1)
    >>> preconditioner_from_state(optax.sgd, params, state, before, **step).checked
    True
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
        # Another link may have settings of the same name; of sgd without momentum there is no state that tells its link.
        if _states(state.inner_state, kind) or not _states(after, kind):
            injected |= {name: value for name, value in state.hyperparams.items() if name in defaults}
    step, settings = _Step(params, before, after), defaults | settings | injected
    rule = _RULES[optimizer](step, settings)
    if updates is None and gradient is None:
        _refuse_traceless_links(optimizer, step, settings)
        return rule
    for name, value in (("updates", updates), ("gradient", gradient), ("before", before)):
        if value is None:
            raise ValueError(
                f"{name}=None; allowed: updates, gradient and before of one step together, or neither updates nor gradient"
            )
    return rule._replace(checked=_checked(optimizer, step, updates, gradient, settings))


class _Step(NamedTuple):
    params: Any
    before: Any
    after: Any


def _refuse_traceless_links(optimizer: Callable, step: _Step, settings: dict) -> None:
    """The kinds of the links must be those of the optimizer itself, or its own link alone, whose learning rate is applied elsewhere."""
    found, kind = _kinds(step.after), _STATE_OF[optimizer]
    at_rate = lambda lr: _kinds(jax.eval_shape(optimizer(**settings | {"learning_rate": lr}).init, step.params))
    if found in (at_rate(0.0), at_rate(lambda count: 0.0)) or (found == [kind] and optimizer is not optax.adamw):
        return
    raise ValueError(
        f"the state holds links {', '.join(k.__name__ for k in found)}, which are not those of {optimizer.__name__} alone, and an EmptyState "
        "may be clipping or decay; allowed: updates, gradient, before and learning_rate of this step, so that its update can be checked"
    )


def _kinds(state) -> list[type]:
    """Types of the states of a chain, in the order of its links; groups that are set to zero are left out."""
    if isinstance(state, optax.PartitionState):
        groups = [group.inner_state for group in state.inner_states.values()]
        return [kind for group in groups if not isinstance(group, optax.EmptyState) for kind in _kinds(group)]
    if isinstance(state, (optax.InjectStatefulHyperparamsState, optax.MaskedState)):
        return _kinds(state.inner_state)
    if isinstance(state, dict):
        return _kinds(tuple(state.values()))
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        return [kind for link in state for kind in _kinds(link)]
    return [] if state is None or isinstance(state, optax.MaskedNode) else [type(state)]


def _checked(optimizer: Callable, step: _Step, updates, gradient, settings: dict):
    """True where the update and the state after it are those of the optimizer with these settings.

    Raises:
      ValueError: they are not, and no argument is traced; the learning rate is not known.
    """
    settings = settings | {"learning_rate": _learning_rate(step, settings)}
    for name, tree in (("updates", updates), ("gradient", gradient)):
        if [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] != [jnp.shape(leaf) for leaf in jax.tree.leaves(step.params)]:
            raise ValueError(f"{name} has other arrays than params; allowed: one for each parameter, of its shape")
    kind = _STATE_OF[optimizer]
    again, state = _again(optimizer, step, gradient, settings)
    same_state = _agree(_states(step.after, kind), _states(state, kind))
    checked = _agree(updates, again) & same_state
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((step, updates, gradient, settings))):
        return checked
    if not checked:
        raise ValueError(_why(optimizer, step, updates, gradient, settings, again, bool(same_state)))
    return True


def _learning_rate(step: _Step, settings: dict):
    lr, counts = settings["learning_rate"], _states(step.before, optax.ScaleByScheduleState)
    if lr is None or lr is inspect.Parameter.empty or (callable(lr) and len(counts) != 1):
        given = "a schedule whose count is not in the state" if callable(lr) and lr is not inspect.Parameter.empty else None
        raise ValueError(f"learning_rate={given}; allowed with updates: learning_rate=..., that of this step")
    return lr(counts[0].count) if callable(lr) else lr


def _again(optimizer: Callable, step: _Step, gradient, settings: dict) -> tuple[PyTree, optax.OptState]:
    """The update and the state that the optimizer alone makes of the gradient, from its own part of the state before."""
    kind = _STATE_OF[optimizer]
    before = _states(step.before, kind)
    if len(before) != len(_states(step.after, kind)):
        raise ValueError(f"before holds {len(before)} of {kind.__name__}; allowed: the state before this update")

    def moved(tree):
        """Without what the state masks out."""
        if not before:
            return tree
        leaves, structure = jax.tree.flatten(getattr(before[0], _TREE_OF[kind]), is_leaf=_is_masked)
        subtrees = _parts(structure, tree, optimizer.__name__)
        return structure.unflatten([leaf if _is_masked(leaf) else sub for leaf, sub in zip(leaves, subtrees, strict=True)])

    plain, is_own = optimizer(**settings), lambda node: isinstance(node, kind)
    state = jax.tree.map(lambda node: before[0] if is_own(node) else node, plain.init(moved(step.params)), is_leaf=is_own)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Optax itself needs
        updates, after = plain.update(moved(gradient), state, moved(step.params))
    return _whole(updates, step.params, optimizer.__name__, fill=0.0), after


def _agree(made, again):
    """All integers are equal, and all floating-point arrays are, up to rounding."""
    checked = jnp.asarray(True)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(again), strict=True):
        if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
            checked &= jnp.all(a == b)
            continue
        info = jnp.finfo(jnp.result_type(a))
        tolerance, dtype = max(1e-4, 8 * float(info.eps)), jnp.float32 if info.bits < 32 else info.dtype
        a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        checked &= jnp.linalg.norm(jnp.ravel(a - b)) <= tolerance * jnp.linalg.norm(jnp.ravel(b))
    return checked


def _why(optimizer: Callable, step: _Step, updates, gradient, settings: dict, again, same_state: bool) -> str:
    """What most likely made the update another one, in one line."""
    factor, seen = _factor(updates, again), _gradient_seen(optimizer, step, settings)
    share = _factor(*(jax.tree.map(jnp.abs, tree) for tree in (seen, gradient))) if seen is not None else None
    if factor is not None and abs(factor - 1) > 1e-3:
        likely = f"but {factor:.3g} times as large (clipping, a factor behind it, or another learning rate)"
    elif share is not None and abs(share - 1) > 0.01:
        likely = f"and its average saw {share:.3g} times the gradient (clipping)"
    elif same_state:
        likely = "but the state agrees (another link of the chain, or an optimizer with the same kind of state)"
    else:
        likely = "nor is the state (settings that were not repeated, or another optimizer)"
    numbers = ", ".join(
        f"{k}={float(v):g}" for k, v in settings.items() if isinstance(v, float) or (isinstance(v, jax.Array) and v.ndim == 0)
    )
    return (
        f"updates are not those of {optimizer.__name__}({numbers}), {likely}; allowed: an update of that optimizer alone, with its settings "
        "repeated here"
    )


def _factor(made, of) -> float | None:
    """``f`` where ``made = f * of`` to 1 %."""
    a, b = (np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]) for tree in (made, of))
    if a.shape != b.shape or not b @ b > 0:
        return None
    factor = a @ b / (b @ b)
    return float(factor) if np.linalg.norm(a - factor * b) <= 0.01 * np.linalg.norm(a) else None


def _gradient_seen(optimizer: Callable, step: _Step, settings: dict):
    """What the optimizer's average moved by, which is the gradient that came to it; of averages of squares up to signs."""
    name, is_square = _MEMORY_OF[optimizer]
    kind = _STATE_OF[optimizer]
    after, before = (_states(state, kind) for state in (step.after, step.before))
    if not after:
        return None
    old, new = {
        optax.sgd: (settings.get("momentum"), 1.0),
        optax.adagrad: (1.0, 1.0),
        optax.rmsprop: (settings.get("decay"), None),
        optax.adadelta: (settings.get("rho"), None),
    }.get(optimizer, (settings.get("b1"), None))
    new = 1 - old if new is None else new
    moved = jax.tree.map(lambda a, b: (a - old * b) / new, *(getattr(state[0], name) for state in (after, before)))
    return jax.tree.map(lambda a: jnp.sqrt(jnp.maximum(a, 0)), moved) if is_square else moved


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


def _whole(tree, params, optimizer: str, fill: float = jnp.inf):
    """The tree as one like ``params``, with a number in place of what is masked out."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_masked)
    whole = []
    for leaf, part in zip(leaves, _parts(structure, params, optimizer), strict=True):
        below = jax.tree.leaves(part)
        if not _is_masked(leaf) and [jnp.shape(leaf)] != [jnp.shape(p) for p in below]:
            raise ValueError(f"the state of {optimizer} has an array of shape {jnp.shape(leaf)}; {_LIKE_PARAMS}")
        whole += [jnp.full_like(p, fill) for p in below] if _is_masked(leaf) else [leaf]
    return jax.tree.structure(params).unflatten(whole)


_LIKE_PARAMS = "allowed: one array for each parameter, of its shape (no optax.flatten around it)"


def _parts(structure, params, optimizer: str) -> list:
    """The parts of ``params`` that stand where a tree of the state has leaves. Of as many leaves in other containers, as
    ``nnx.Optimizer`` has them, each in its turn."""
    try:
        return structure.flatten_up_to(params)
    except (ValueError, TypeError) as error:
        if structure.num_leaves != len(leaves := jax.tree.leaves(params)):
            raise ValueError(f"the state of {optimizer} has another structure than params; {_LIKE_PARAMS}") from error
        return leaves


def _is_masked(node) -> bool:
    return isinstance(node, optax.MaskedNode)


def _map(function: Callable, step: _Step, optimizer: str, *trees):
    return _whole(jax.tree.map(function, *trees), step.params, optimizer)


def _sgd(step: _Step, settings: dict) -> Preconditioner:
    beta, traces = settings["momentum"], len(_states(step.after, optax.TraceState))
    if traces != (beta is not None):
        raise ValueError(f"momentum={beta!r} of sgd with a state of {traces} momentum averages; allowed: that of the state")
    if beta is None:
        if _states(step.after, (optax.MaskedState, optax.PartitionState)):
            raise ValueError("the state holds a mask that it does not tell; allowed for sgd without momentum: none")
        return Preconditioner()
    trace = _one(step.after, optax.TraceState, "sgd").trace
    is_masked = any(isinstance(m, optax.MaskedNode) for m in jax.tree.leaves(trace, is_leaf=_is_masked))
    diagonal = _map(jnp.ones_like, step, "sgd", trace) if is_masked else None
    return Preconditioner(diagonal, gain=(1 + 2 * beta) / (1 + beta) if settings["nesterov"] else 1 / (1 + beta))


def _adagrad(step: _Step, settings: dict) -> Preconditioner:
    total = _one(step.after, optax.ScaleByRssState, "adagrad").sum_of_squares
    return Preconditioner(_map(lambda t: jnp.where(t > 0, jnp.sqrt(t + settings["eps"]), jnp.inf), step, "adagrad", total))


def _rmsprop(step: _Step, settings: dict) -> Preconditioner:
    _refuse(settings, "rmsprop", centered=False, momentum=None, bias_correction=False)
    eps, nu = settings["eps"], _one(step.after, optax.ScaleByRmsState, "rmsprop").nu
    root = (lambda v: jnp.sqrt(v + eps)) if settings["eps_in_sqrt"] else (lambda v: jnp.sqrt(v) + eps)
    return Preconditioner(_map(root, step, "rmsprop", nu))


def _adam(step: _Step, settings: dict) -> Preconditioner:
    _refuse(settings, "adam", nesterov=False)
    state = _one(step.after, optax.ScaleByAdamState, "adam")
    if not isinstance(state.count, jax.core.Tracer) and np.asarray(state.count) < 1:
        raise ValueError("the state has count=0; allowed: the state after an update")
    seen, b1 = 1 - settings["b2"] ** state.count, settings["b1"]
    root = lambda v: jnp.sqrt(v / seen + settings["eps_root"]) + settings["eps"]
    return Preconditioner(_map(root, step, "adam", state.nu), (1 - b1) / (1 + b1))


def _adamw(step: _Step, settings: dict) -> Preconditioner:
    _refuse(settings, "adamw", mask=None)
    if callable(settings["weight_decay"]):
        raise ValueError(f"weight_decay={settings['weight_decay']!r} of adamw has no rule; allowed: a number")
    return _adam(step, settings)._replace(decay=settings["weight_decay"])


def _adadelta(step: _Step, settings: dict) -> Preconditioner:
    decay = settings["weight_decay"]
    if not isinstance(decay, jax.Array):
        _refuse(settings, "adadelta", weight_decay=0.0)
    if step.before is None:
        raise ValueError("before=None; allowed for adadelta: the state before the update")
    after, before = (_one(state, optax.ScaleByAdaDeltaState, "adadelta") for state in (step.after, step.before))
    eps = settings["eps"]
    ratio = _map(lambda g, x: jnp.sqrt(g + eps) / jnp.sqrt(x + eps), step, "adadelta", after.e_g, before.e_x)
    return Preconditioner(ratio, decay=jnp.where(jnp.asarray(decay) == 0, 0.0, jnp.nan))


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
# The tree of a state that is like the parameters, and of an optimizer the average that follows the gradient: is it one of squares?
_TREE_OF = {
    optax.TraceState: "trace",
    optax.ScaleByRssState: "sum_of_squares",
    optax.ScaleByRmsState: "nu",
    optax.ScaleByAdamState: "nu",
    optax.ScaleByAdaDeltaState: "e_g",
}
_MEMORY_OF = {
    optax.sgd: ("trace", False),
    optax.adagrad: ("sum_of_squares", True),
    optax.rmsprop: ("nu", True),
    optax.adam: ("mu", False),
    optax.adamw: ("mu", False),
    optax.adadelta: ("e_g", True),
}
OPTIMIZERS = tuple(rule.__name__ for rule in _RULES)
