"""The links of a built Optax optimizer: their names, settings and states, in the order in which they change the update.

A built transformation is a pair of functions. The functions that Optax makes keep their arguments in their closures, so the names and
settings of all links are known without asking the user to name the constructor again. Wrappers (chain, mask, groups, injected settings,
accumulation) are looked through. A link that Optax does not make is listed under its own name.

>>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, b1=0.8))
>>> state = optimizer.init(jnp.ones(2))
>>> [link.name for link in links_of(optimizer, jnp.ones(2), state, state)]
['clip_by_global_norm', 'scale_by_adam', 'add_decayed_weights', 'scale']
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


class Link(NamedTuple):
    """One link of an optimizer, and one step of it."""

    name: str  # of the function that makes it, as scale_by_adam
    settings: dict[str, Any]  # what that function was given
    before: Any  # its state before the step; None: not given
    after: Any  # its state after the step
    places: Any  # tree like the parameters that it sees: positions in the list of all parameters; MaskedNode where it sees none
    update: Callable | None  # its own update function; None: it has none apart from the optimizer inside it

    @property
    def on(self) -> list[int]:
        """Positions of the parameters that it sees."""
        return jax.tree.leaves(self.places)

    def leaves(self, tree: PyTree) -> list[Array]:
        """The arrays of a tree of its state, in the order of :attr:`on`.

        Raises:
          ValueError: the tree does not have one array for each parameter that the link sees.
        """
        # Flax's nnx.Optimizer keeps the arrays in other containers than the parameters, in the same order.
        leaves = jax.tree.leaves(tree)
        if len(leaves) != len(self.on):
            raise ValueError(
                f"the state of {self.name} has {len(leaves)} arrays where the parameters have {len(self.on)}; "
                "allowed: the state of this optimizer for these parameters"
            )
        return leaves


class _Place(NamedTuple):
    """Where in the optimizer the walk is."""

    before: Any
    after: Any
    params: Any  # as this part of the optimizer sees them
    places: Any  # likewise


def links_of(optimizer: optax.GradientTransformation | optax.MultiSteps, params: PyTree, before: Any, after: Any) -> list[Link]:
    """The links of a built optimizer with their states.

    Args:
      optimizer: a transformation of Optax, such as ``optax.adamw(1e-3)``, or a chain of them.
      params: parameters before the step.
      before: state before the step; None: not given.
      after: state after the step.

    Returns:
      The links, in the order of the update. Groups of ``optax.partition`` follow each other; they see different parameters.

    Raises:
      ValueError: the state is not one of this optimizer.

    >>> optimizer = optax.partition({"a": optax.sgd(0.1), "b": optax.set_to_zero()}, {"w": "a", "v": "b"})
    >>> params = {"w": jnp.ones(2), "v": jnp.ones(1)}
    >>> [(link.name, link.on) for link in links_of(optimizer, params, None, optimizer.init(params))]
    [('identity', [1]), ('scale', [1]), ('set_to_zero', [0])]
    """
    params = getattr(params, "fast", params)  # of optax.lookahead
    places = jax.tree.unflatten(jax.tree.structure(params), range(len(jax.tree.leaves(params))))
    if before is not None and jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            "before has another structure than after; allowed: the states of one optimizer before and after a step"
        )
    update = getattr(optimizer, "update", None)
    if not callable(update):
        raise ValueError(f"optimizer={optimizer!r}; allowed: a built optax.GradientTransformation, such as optax.adam(1e-3)")
    return list(_walk(update, _Place(before, after, params, places)))


def _maker(update: Callable) -> tuple[str, str, dict[str, Any]]:
    """Name and module of the function that made an update function, and the arguments that its closure keeps."""
    if isinstance(getattr(update, "__self__", None), optax.MultiSteps):
        return "MultiSteps", "optax", {"steps": update.__self__}
    name = getattr(update, "__qualname__", repr(update)).split(".<locals>")[0]
    if not inspect.isfunction(update):
        return name, "", {}
    return name, update.__module__, dict(inspect.getclosurevars(update).nonlocals)


def _walk(update: Callable, place: _Place) -> Iterator[Link]:
    """The links inside an update function."""
    name, module, settings = _maker(update)
    if not module.startswith("optax"):
        yield Link(name, {}, place.before, place.after, place.places, update)
    elif name in _WRAPPERS and _WRAPPERS[name].needs <= settings.keys():
        yield from _WRAPPERS[name].walk(settings, place)
    else:  # also a wrapper whose arguments have other names in this release of Optax
        yield Link(name, settings, place.before, place.after, place.places, update)


def _inside(place: _Place, part: Callable[[Any], Any]) -> _Place:
    """The place of a part of a state.

    Raises:
      ValueError: the state has no such part.
    """
    try:
        return place._replace(before=None if place.before is None else part(place.before), after=part(place.after))
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"the state has {type(place.after).__name__} where this optimizer has another one; allowed: the state after its update"
        ) from error


def _chain(settings: dict, place: _Place) -> Iterator[Link]:
    updates = settings["update_fns"]
    count = _inside(place, len).after
    if len(updates) != count:
        raise ValueError(f"the state has {count} links and the optimizer {len(updates)}; allowed: the state after its update")
    for i, update in enumerate(updates):
        yield from _walk(update, _inside(place, lambda state, i=i: state[i]))


def _named_chain(settings: dict, place: _Place) -> Iterator[Link]:
    for name, inner in settings["transforms"]:
        yield from _walk(inner.update, _inside(place, lambda state, name=name: state[name]))


def _extra_args(settings: dict, place: _Place) -> Iterator[Link]:
    yield from _walk(settings["tx"].update, place)


def _masked(settings: dict, place: _Place) -> Iterator[Link]:
    yield from _with_mask(settings["inner"].update, settings["mask"], place)


def _with_mask(update: Callable, mask, place: _Place) -> Iterator[Link]:
    """The links behind a mask, which is a tree of truth values, a prefix of one, or a function that gives it."""
    mask = mask(place.params) if callable(mask) else mask
    hide = lambda tree: jax.tree.map(lambda shown, part: part if shown else optax.MaskedNode(), mask, tree)
    seen = place._replace(params=hide(place.params), places=hide(place.places))
    yield from _walk(update, _inside(seen, lambda state: state.inner_state))


def _partition(settings: dict, place: _Place) -> Iterator[Link]:
    labels = settings["param_labels"]
    labels = labels(place.params) if callable(labels) else labels
    for label, inner in settings["transforms"].items():
        mask = jax.tree.map(lambda other, label=label: other == label, labels)
        yield from _with_mask(inner.update, mask, _inside(place, lambda state, label=label: state.inner_states[label]))


def _injected(settings: dict, place: _Place) -> Iterator[Link]:
    hyperparams = _inside(place, lambda state: state.hyperparams).after
    inner = settings["inner_factory"](**settings["other_hps"], **hyperparams)
    yield from _walk(inner.update, _inside(place, lambda state: state.inner_state))


def _if_finite(settings: dict, place: _Place) -> Iterator[Link]:
    yield from _walk(settings["inner"].update, _inside(place, lambda state: state.inner_state))


def _accumulated(settings: dict, place: _Place) -> Iterator[Link]:
    """The mean of the gradients so far, as a link of its own, and then the optimizer that receives it."""
    steps = settings["steps"]

    def update(gradient, state, params):
        add = lambda new, old: steps._acc_update(new, old, n_acc=state.mini_step)
        return jax.tree.map(add, gradient, state.acc_grads), state

    yield Link("MultiSteps", {"mean": getattr(steps, "_use_grad_mean", True)}, place.before, place.after, place.places, update)
    yield from _walk(steps.inner_opt.update, _inside(place, lambda state: state.inner_opt_state))


def _schedule_free(settings: dict, place: _Place) -> Iterator[Link]:
    """The optimizer inside, and then the averaging."""
    yield from _walk(settings["base_optimizer"].update, _inside(place, lambda state: state.base_optimizer_state))
    yield Link("schedule_free", settings, place.before, place.after, place.places, None)


def _lookahead(settings: dict, place: _Place) -> Iterator[Link]:
    """The fast optimizer, and then the synchronisation with the slow parameters."""
    yield from _walk(settings["fast_optimizer"].update, _inside(place, lambda state: state.fast_state))
    yield Link("lookahead", settings, place.before, place.after, place.places, None)


class _Wrapper(NamedTuple):
    """A function of Optax whose transformation holds others."""

    walk: Callable[[dict, _Place], Iterator[Link]]
    needs: set[str]  # names of its arguments that the walk reads


_WRAPPERS: dict[str, _Wrapper] = {
    "chain": _Wrapper(_chain, {"update_fns"}),
    "named_chain": _Wrapper(_named_chain, {"transforms"}),
    "with_extra_args_support": _Wrapper(_extra_args, {"tx"}),
    "masked": _Wrapper(_masked, {"inner", "mask"}),
    "partition": _Wrapper(_partition, {"param_labels", "transforms"}),
    "inject_hyperparams": _Wrapper(_injected, {"inner_factory", "other_hps"}),
    "apply_if_finite": _Wrapper(_if_finite, {"inner"}),
    "MultiSteps": _Wrapper(_accumulated, {"steps"}),
    "schedule_free": _Wrapper(_schedule_free, {"base_optimizer"}),
    "lookahead": _Wrapper(_lookahead, {"fast_optimizer"}),
}


def values_at(links: list[Link], params: PyTree, gradient: PyTree) -> list[list[Array]]:
    """What each link receives in a step, found by repeating the step link by link.

    Args:
      links: with their states before the step; each has an update of its own.
      params: parameters before the step.
      gradient: of the loss, as the first link receives it.

    Returns:
      For each link the arrays that it receives, for all parameters; one more entry: what the last link gives.

    Raises:
      ValueError: a link without an update of its own.
    """
    params_leaves = jax.tree.leaves(getattr(params, "fast", params))
    values = jax.tree.leaves(gradient)
    received = [values]
    for link in links:
        if link.update is None:
            raise ValueError(f"{link.name} has no update of its own; allowed: links that have one")
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Optax itself needs
            new, _ = link.update(_part(values, link), link.before, _part(params_leaves, link))
        values = list(values)
        for i, value in zip(link.on, jax.tree.leaves(new), strict=True):
            values[i] = value
        received.append(values)
    return received


def _part(leaves: list[Array], link: Link) -> PyTree:
    """Those of the arrays that a link sees, as the tree that it sees."""
    return jax.tree.map(lambda i: leaves[i], link.places)


def like_params(leaves: list, params: PyTree) -> PyTree:
    """The arrays as a tree like the parameters, each broadcast to the shape of its parameter.

    Args:
      leaves: one for each parameter; a scalar counts for all entries.
      params: parameters.

    Returns:
      A tree like ``params``.

    >>> like_params([jnp.float32(2.0)], {"a": jnp.zeros(2)})["a"].tolist()
    [2.0, 2.0]
    """
    shapes = [jnp.shape(p) for p in jax.tree.leaves(params)]
    wide = [jnp.broadcast_to(jnp.asarray(leaf), shape) for leaf, shape in zip(leaves, shapes, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), wide)
