"""Whether an update is that of an Optax optimizer with given settings: repeat the step and compare."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from catapult_jax.optax_states import Layout, Step, is_masked, like_params, link_types, states_of_type, subtrees

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, PyTree


def refuse_traceless_links(optimizer: Callable, layout: Layout, step: Step, settings: dict) -> None:
    """Refuse a state with a link that leaves no trace, unless the optimizer itself has that link.

    The types of the links must be those of the optimizer. The optimizer's own link alone is fine too: then its learning rate is
    applied elsewhere.

    Args:
      optimizer: such as ``optax.adam``.
      layout: of its state.
      step: one step of it.
      settings: its arguments by name.

    Raises:
      ValueError: there are other links.

    >>> layout = Layout(optax.TraceState, "trace", "trace", False, lambda settings: (0.0, 1.0))
    >>> state = optax.sgd(0.1).init(jnp.ones(2))
    >>> refuse_traceless_links(optax.sgd, layout, Step(jnp.ones(2), None, state), {})
    """
    types = link_types(step.after)
    types_with = lambda lr: link_types(jax.eval_shape(optimizer(**settings | {"learning_rate": lr}).init, step.params))
    if types in (types_with(0.0), types_with(lambda count: 0.0)):
        return
    if types == [layout.state_type] and optimizer is not optax.adamw:  # adamw's decay is a link of its own
        return
    raise ValueError(
        f"the state holds links {', '.join(kind.__name__ for kind in types)}, which are not those of {optimizer.__name__} alone, "
        "and an EmptyState may be clipping or decay; allowed: updates, gradient, before and learning_rate of this step, so that its "
        "update can be checked"
    )


def check_update(
    optimizer: Callable, layout: Layout, step: Step, updates: PyTree, gradient: PyTree, settings: dict
) -> bool | Bool[Array, ""]:
    """Whether the update and the state after it are those of the optimizer with these settings.

    Args:
      optimizer: such as ``optax.adam``.
      layout: of its state.
      step: one step of it, with the state before.
      updates: update of that step.
      gradient: gradient of that step.
      settings: arguments of the optimizer by name.

    Returns:
      True; under jit a boolean scalar.

    Raises:
      ValueError: no argument is traced and the update or the state differs; the learning rate is not given; ``updates`` or
        ``gradient`` is not like the parameters.

    >>> layout = Layout(optax.TraceState, "trace", "trace", False, lambda settings: (0.0, 1.0))
    >>> w, state = jnp.ones(2), optax.sgd(0.1).init(jnp.ones(2))
    >>> check_update(optax.sgd, layout, Step(w, state, state), -0.1 * w, w, {"learning_rate": 0.1})
    True
    """
    settings = settings | {"learning_rate": _learning_rate(step, settings)}
    for name, tree in (("updates", updates), ("gradient", gradient)):
        if [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] != [jnp.shape(leaf) for leaf in jax.tree.leaves(step.params)]:
            raise ValueError(f"{name} has other arrays than params; allowed: one for each parameter, of its shape")
    expected, state = _repeat(optimizer, layout, step, gradient, settings)
    same_state = _agree(states_of_type(step.after, layout.state_type), states_of_type(state, layout.state_type))
    checked = _agree(updates, expected) & same_state
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((step, updates, gradient, settings))):
        return checked
    if not checked:
        factor = _factor(updates, expected)
        reason = _reason(factor, _gradient_factor(layout, step, gradient, settings), bool(same_state))
        raise ValueError(
            f"updates are not those of {optimizer.__name__}({_numbers(settings)}), {reason}; allowed: an update of that optimizer alone, "
            "with its settings repeated here"
        )
    return True


def _learning_rate(step: Step, settings: dict):
    """The learning rate of the step; a schedule is evaluated at the count in the state."""
    lr, counts = settings["learning_rate"], states_of_type(step.before, optax.ScaleByScheduleState)
    if lr is None or lr is inspect.Parameter.empty or (callable(lr) and len(counts) != 1):
        value = "a schedule whose count is not in the state" if callable(lr) and lr is not inspect.Parameter.empty else None
        raise ValueError(f"learning_rate={value}; allowed with updates: learning_rate=..., that of this step")
    return lr(counts[0].count) if callable(lr) else lr


def _repeat(optimizer: Callable, layout: Layout, step: Step, gradient, settings: dict) -> tuple[Any, optax.OptState]:
    """Update and state of the optimizer alone, from its own part of the state before."""
    before = states_of_type(step.before, layout.state_type)
    if len(before) != len(states_of_type(step.after, layout.state_type)):
        raise ValueError(f"before holds {len(before)} of {layout.state_type.__name__}; allowed: the state before this update")

    def without_masked(tree):
        if not before:
            return tree
        leaves, structure = jax.tree.flatten(getattr(before[0], layout.like_params), is_leaf=is_masked)
        parts = subtrees(structure, tree, optimizer.__name__)
        return structure.unflatten([leaf if is_masked(leaf) else part for leaf, part in zip(leaves, parts, strict=True)])

    alone, is_own = optimizer(**settings), lambda node: isinstance(node, layout.state_type)
    initial = alone.init(without_masked(step.params))
    state = jax.tree.map(lambda node: before[0] if is_own(node) else node, initial, is_leaf=is_own)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Optax itself needs
        updates, after = alone.update(without_masked(gradient), state, without_masked(step.params))
    return like_params(updates, step.params, optimizer.__name__, fill=0.0), after


def _agree(tree, expected) -> Array:
    """All integers are equal, and all floating-point arrays are equal up to rounding."""
    agree = jnp.asarray(True)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
            agree &= jnp.all(a == b)
            continue
        info = jnp.finfo(jnp.result_type(a))
        tolerance, dtype = max(1e-4, 8 * float(info.eps)), jnp.float32 if info.bits < 32 else info.dtype
        a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        agree &= jnp.linalg.norm(jnp.ravel(a - b)) <= tolerance * jnp.linalg.norm(jnp.ravel(b))
    return agree


def _reason(update_factor: float | None, gradient_factor: float | None, same_state: bool) -> str:
    """The most likely reason why the update is another one."""
    if update_factor is not None and abs(update_factor - 1) > 1e-3:
        return f"but {update_factor:.3g} times as large (clipping, a factor behind it, or another learning rate)"
    if gradient_factor is not None and abs(gradient_factor - 1) > 0.01:
        return f"and its average saw {gradient_factor:.3g} times the gradient (clipping)"
    if same_state:
        return "but the state agrees (another link of the chain, or an optimizer with the same kind of state)"
    return "nor is the state (settings that were not repeated, or another optimizer)"


def _numbers(settings: dict) -> str:
    """The numbers among the settings, for a message."""
    is_number = lambda value: isinstance(value, float) or (isinstance(value, jax.Array) and value.ndim == 0)
    return ", ".join(f"{name}={float(value):g}" for name, value in settings.items() if is_number(value))


def _factor(tree, reference) -> float | None:
    """``f`` if ``tree = f * reference`` to 1 %, else None."""
    flat = lambda tree: np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
    a, b = flat(tree), flat(reference)
    if a.shape != b.shape or not b @ b > 0:
        return None
    factor = a @ b / (b @ b)
    return float(factor) if np.linalg.norm(a - factor * b) <= 0.01 * np.linalg.norm(a) else None


def _gradient_factor(layout: Layout, step: Step, gradient, settings: dict) -> float | None:
    """``f`` if the optimizer's average received ``f`` times the gradient, up to signs; None without an average, or if no ``f`` fits."""
    after, before = (states_of_type(state, layout.state_type) for state in (step.after, step.before))
    if not after:
        return None
    a, b = layout.weights(settings)
    received = jax.tree.map(lambda new, old: (new - a * old) / b, *(getattr(s[0], layout.average) for s in (after, before)))
    if layout.is_square:
        received = jax.tree.map(lambda square: jnp.sqrt(jnp.maximum(square, 0)), received)
    return _factor(jax.tree.map(jnp.abs, received), jax.tree.map(jnp.abs, gradient))
