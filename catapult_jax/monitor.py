"""The answer in anybody's training loop: :func:`watch` measures at every step, or at every ``every``-th, inside of a jitted step.

>>> import optax
>>> from catapult_jax import batch_loss
>>> model, tx = (lambda w, x: x @ w), optax.sgd(0.05)  # the critical lr of this batch is 0.04
>>> x, y = jnp.array([[3.0, 4.0]]), jnp.array([1.0])
>>> watching = watch(model, loss="mse", optimizer=tx, smoothing=None)

>>> @jax.jit
... def step(params, opt_state, w):
...     loss, gradient = jax.value_and_grad(lambda p: batch_loss(model(p, x), y, loss="mse"))(params)
...     updates, opt_state = tx.update(gradient, opt_state, params)
...     w, metrics = watching.update(w, params=params, batch=(x, y), updates=updates, opt_state=opt_state, loss=loss)
...     return optax.apply_updates(params, updates), opt_state, w, metrics

>>> params = jnp.zeros(2)
>>> params, opt_state, w, metrics = step(params, tx.init(params), watching.init(params))
>>> {name: round(float(metrics[f"catapult/{name}"]), 3) for name in ("critical_lr", "lr_over_critical", "directional")}
{'critical_lr': 0.04, 'lr_over_critical': 1.25, 'directional': 0.8}
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jax.tree_util import Partial

from catapult_jax import outer_product
from catapult_jax.criteria import spike_score_of
from catapult_jax.detection import Detector, DetectorState, detector_settings, detector_with, momentum_horizon
from catapult_jax.events import Event, to_python
from catapult_jax.losses import Loss, as_loss
from catapult_jax.preconditioners import Preconditioner, preconditioner_from_state
from catapult_jax.tangent.checks import check_params
from catapult_jax.tangent.coupling import couples_examples
from catapult_jax.tangent.eigenpairs import no_directions
from catapult_jax.tangent.placement import cut_like
from catapult_jax.tangent.uses import plan
from catapult_jax.training import directional_instruments, instruments
from catapult_jax.training.measurement import Instrument, Moment, measure
from catapult_jax.watched_step import (
    Given,
    check_options,
    check_outputs,
    check_step,
    joined,
    known,
    refuse_debug_nans,
    scalars,
    updates_like,
    warn_of_few_products,
)
from catapult_jax.xla import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PyTree

EXACT_ROWS = 256  # a kernel of at most so many rows is computed, layer by layer, rather than searched
WINDOW = 128  # losses before a step that its spike score compares with
EVENTS = 64  # events that the state keeps


class WatchState(NamedTuple):
    """What a watch carries from one step to the next; a pytree of arrays, to be saved with the parameters."""

    step: Int[Array, ""]  # number of updates that were watched
    detector: DetectorState
    recent: Float[Array, " n"]  # losses of the last steps; NaN: fewer steps
    events: Event  # the last events, arrays (64,)
    carried: dict[str, PyTree]  # by instrument: directions of the last search; the AGOP that features are compared with


class WatchSettings(NamedTuple):
    """What a watch was told, as values for JSON; see :func:`watch`."""

    preset: str
    method: str
    every: int
    k: int
    factor: float
    horizon: int
    smoothing: float | None
    momentum: float


class Watch(NamedTuple):
    """A pair of functions for a training step, and two for the host."""

    init: Callable[[PyTree], WatchState]  # params -> state
    # (state, *, params, batch, loss, updates, opt_state, ...) -> (state, metrics); see :func:`watch`
    update: Callable[..., tuple[WatchState, dict[str, Array]]]
    events: Callable[[WatchState], list[Event]]  # the events so far, on the host; the last one may still be open
    settings: WatchSettings  # what the watch was told


def watch(
    apply_fn: Callable[..., Float[Array, "b *o"]],
    *,
    loss: str | Loss | Callable,
    optimizer: optax.GradientTransformation | optax.MultiSteps | None = None,
    every: int = 1,
    preset: str = "standard",
    method: str = "auto",
    k: int | None = None,
    tol: float = 0.01,
    max_products: int | None = None,
    layers: bool | Callable[[str], str] = False,
    probe: PyTree | None = None,
    probe_batch: tuple[PyTree, PyTree] | None = None,
    agop_reference: Float[Array, "r d"] | None = None,
    factor: float = 1.5,
    horizon: int = 1000,
    smoothing: float | None = 0.9,
    momentum: float = 0.0,
) -> Watch:
    r"""Is this lr critical, why did the loss spike, did features improve: a pair ``init`` / ``update`` for a training step.

    ``update(state, *, params, batch, loss, updates, opt_state, ...)`` is called inside of the step, with

    - ``params``: before the update;
    - ``batch``: ``(x, targets)`` as ``apply_fn`` and the loss take them, or a list of such batches for a step that accumulates gradients;
    - ``loss``: the value of the loss of the batch;
    - ``updates``: what the step adds to ``params``; or ``new_params``, the parameters after it;
    - ``opt_state``: the optimizer's state after the update, for the critical lr;
    - ``opt_state_before``, ``gradient``: where the optimizer clips, and for Adadelta;
    - ``lr``: of the step; None: that of the optimizer;
    - ``due``: True or False where the caller knows whether this is a step to measure, from a number on the host: ``jit`` with
      ``static_argnames`` then makes two programs, and the one without measurements costs nothing. None: decided inside of the program;
    - ``skipped``: True where the step made no update, as between the updates of ``optax.MultiSteps``. Nothing is measured then, and the
      state stays; ``loss`` and ``lr`` are passed on.

    It returns the state and a flat dict of scalars, the same names at every step. NaN: not measured at this step, or not known.

    ===========================  ============================================================================================  ========
    ``catapult/...``             what                                                                                          preset
    ===========================  ============================================================================================  ========
    ``loss``, ``lr``             as given                                                                                      all
    ``loss_of_watch``            the loss as the watch finds it; if it differs from ``loss``: other params, batch or loss      all
    ``directional``              multiple of this update at which the loss of the batch stops falling; below 1 it rises,       all
                                 0: it rises at any size; NaN: the update changes nothing
    ``spike_score``              standard deviations above the last 128 losses; above 6 is a spike; NaN before step 128        all
    ``event``                    index into ``KINDS`` of an event that ends at this step; 0: none                              all
    ``spikes``                   number of events so far, an open one included                                                 all
    ``lambda_max``               top eigenvalue of the loss-weighted kernel of the batch, with the optimizer's ``P``;          standard
                                 without a ``P`` where the optimizer has no rule
    ``lambda_max_bound``         bound on its error; 0: exact                                                                  standard
    ``converged``                1: the bound is within ``tol``                                                                standard
    ``critical_lr``              of the optimizer on this batch; NaN for one without a rule, and a warning says why;           standard
                                 NaN if ``gradient`` and ``opt_state_before`` are given and the update is not the optimizer's
    ``lr_over_critical``         above 1 the lr is critical                                                                    standard
    ``loss_top``, ``loss_rest``  loss of the batch inside and outside of the top ``k`` eigenvectors; beyond ``mse`` the        full
                                 parts of half the Newton decrement, NaN where that is no measure of the loss
    ``agop_alignment``           alignment of the AGOP on the probe with ``agop_reference``                                    full
    ``agop_alignment_to_start``  where none is given: with the AGOP at ``init``, so 1 as long as the features stay             full
    ``directional/LAYER``        ``directional`` of the update of one layer alone                                              layers
    ``directional_probe``        ``directional`` on ``probe_batch``: below 1 the loss of these examples rises                  with it
    ===========================  ============================================================================================  ========

    Where ``every`` is above 1 and ``due`` is None, the measurements are inside of a loop of at most one turn, which also ``vmap`` skips
    where no member needs it. The loop holds the updates, so small batches of large networks pay for memory, and convolutions on the CPU
    are slow inside of it: give ``due`` there. The spike score and the events see every loss. Between measurements the last critical lr
    holds. The kind of an event needs a critical lr, so with ``economy`` it is ``unknown``. A negative loss has no spikes.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``; what it closes over (mutable state, keys of dropout) must be that of the step.
      loss: a name, an object of :mod:`catapult_jax.losses`, or a function ``loss(outputs, targets) -> scalar``.
      optimizer: the built transformation; needed beyond ``economy``. See :func:`catapult_jax.preconditioner_from_state`.
      every: cadence of the measurements in steps.
      preset: ``economy`` (one jvp), ``standard`` (the largest eigenvalue as well) or ``full`` (the split of the loss, the AGOP as well).
      method: of the eigenvalue: ``exact``, the whole kernel; ``matrix_free``, products that start from the directions of the last
        measurement; ``auto``: exact for optimizers without a preconditioner on batches of at most 256 outputs in all, where the kernel
        goes layer by layer; else matrix-free.
      k: eigenvectors of the split; None: 5 with ``full``, else 1.
      tol: relative bound at which the search ends.
      max_products: most products of a search, see :func:`catapult_jax.top_eigenpairs`.
      layers: True adds ``directional/LAYER``, one jvp for each layer; or a function from the path of a leaf to the name of its layer.
      probe: inputs for the AGOP, with ``full``; None: no AGOP.
      probe_batch: examples ``(x, targets)`` that stay the same, for ``directional_probe``; None: none. With the whole training set, or a part
        of it, the answer is that of the training loss.
      agop_reference: rows of the input Jacobian of a reference on the probe, ``(r, d)``; None: those of the model at ``init``, which only show how far the features moved.
      factor, horizon, smoothing: of the event detector, see :func:`catapult_jax.detector`. ``smoothing`` is for the noise of batches;
        None for full-batch descent.
      momentum: weight of the past in the optimizer's average of gradients, 0.9 for Adam; an exceedance counts for as long as it lasts.

    Returns:
      A :class:`Watch`.

    Raises:
      ValueError: a value out of its range; no optimizer where one is needed. ``update``: neither ``updates`` nor ``new_params``, no
        ``opt_state`` where the critical lr needs one, trees that don't fit.

    Source: :func:`catapult_jax.directional_critical_lr`, :func:`catapult_jax.critical_lr`, :func:`catapult_jax.detector`.

    The module's docstring has an example.

    >>> watch(lambda w, x: x @ w, loss="mse", preset="standard")
    Traceback (most recent call last):
    ValueError: optimizer=None with preset='standard'; allowed: the optimizer of the loop, whose critical lr is measured, or preset='economy'
    """
    check_options(
        loss, optimizer=optimizer, every=every, preset=preset, method=method, k=k, layers=layers, probe=probe, agop_reference=agop_reference,
        factor=factor, horizon=horizon, momentum=momentum,
    )  # fmt: skip
    every, factor, horizon, momentum = int(every), float(factor), int(horizon), float(momentum)
    smoothing = None if smoothing is None else float(smoothing)
    delta = min(0.1, (factor - 1) / 2)
    detector = detector_with(
        detector_settings(factor, delta, horizon, momentum_horizon(momentum), smoothing), tells_deaths=False
    )
    k = int(k or (5 if preset == "full" else 1))
    fixed = _Fixed(
        apply_fn, loss, optimizer, every, preset, method, k, tol, max_products, layers, probe, probe_batch, agop_reference, detector
    )  # fmt: skip
    settings = WatchSettings(preset, method, every, k, factor, horizon, smoothing, momentum)
    return Watch(partial(_init, fixed), partial(_update, fixed), partial(_events, detector), settings)


class _Fixed(NamedTuple):
    """What a watch was told; see :func:`watch`."""

    apply_fn: Callable
    loss: Any
    optimizer: optax.GradientTransformation | optax.MultiSteps | None
    every: int
    preset: str
    method: str
    k: int
    tol: float
    max_products: int | None
    layers: bool | Callable[[str], str]
    probe: Any
    probe_batch: Any
    agop_reference: Any
    detector: Detector

    @property
    def measures_lambda(self) -> bool:
        return self.preset != "economy"

    @property
    def measures_agop(self) -> bool:
        return self.preset == "full" and self.probe is not None


def _init(fixed: _Fixed, params: PyTree) -> WatchState:
    """State before the first step."""
    refuse_debug_nans()
    check_params(params)
    carried = {}
    if fixed.measures_lambda and fixed.method != "exact":
        dtype = at_least_float32(jnp.result_type(*jax.tree.leaves(params)))
        directions = no_directions(params, fixed.k, dtype)
        carried["matrix_free"] = directions._replace(vectors=cut_like(directions.vectors, params))
    if fixed.measures_agop and fixed.agop_reference is None:
        carried["agop_reference"] = outer_product.input_jacobian(fixed.apply_fn, params, fixed.probe)
    recent = jnp.full(WINDOW, jnp.nan, jnp.float32)
    state = WatchState(jnp.int32(0), fixed.detector.init(), recent, _no_events(fixed.detector), carried)
    return jax.tree.map(jnp.copy, state)  # no buffer twice, so that a step may take it as its own (donation)


def _update(
    fixed: _Fixed,
    state: WatchState,
    *,
    params: PyTree,
    batch: Any,
    loss: Float[Array, ""],
    updates: PyTree | None = None,
    new_params: PyTree | None = None,
    opt_state: PyTree | None = None,
    opt_state_before: PyTree | None = None,
    gradient: PyTree | None = None,
    lr: Float[Array, ""] | float | None = None,
    due: bool | None = None,
    skipped: Bool[Array, ""] | bool = False,
) -> tuple[WatchState, dict[str, Array]]:
    """State after a step, and its metrics; see :func:`watch`."""
    refuse_debug_nans()
    optimizer_updates, updates = updates, updates_like(params, updates, new_params)
    if fixed.measures_lambda and opt_state is None:
        raise ValueError(f"opt_state=None with preset={fixed.preset!r}; allowed: the optimizer's state after the update")
    if jnp.shape(loss) != ():
        raise ValueError(f"loss has shape {jnp.shape(loss)}; allowed: (), the loss of the batch")
    due, is_skipped = known("due", due), not isinstance(skipped, Tracer) and bool(skipped)
    batch = check_step(fixed.apply_fn, fixed.loss, params, joined(batch), state.carried)
    given = Given(params, batch, updates, optimizer_updates, new_params, opt_state, opt_state_before, gradient, lr)
    rule = _rule(fixed, given)
    # Outside of jit the values tell more: whether the update is that of the optimizer. A state without an update has no rule yet.
    kind = jax.eval_shape(lambda rule: rule(), rule) if is_skipped else jax.eval_shape(rule)
    if fixed.measures_lambda and (reason := kind.reason):
        needs = " (opt_state_before=..., gradient=...)" if "before the step" in reason else ""
        reason = reason.replace("directional_critical_lr", "catapult/directional")
        warnings.warn(f"catapult/critical_lr is NaN: {reason}{needs}", stacklevel=2)
    if lr is None:
        given = given._replace(lr=jnp.nan if is_skipped else rule().lr)
    if fixed.measures_lambda and given.lr is None:
        warnings.warn("catapult/lr is NaN: the optimizer has no lr; give lr=..., that of the loop", stacklevel=2)
    exact = fixed.method == "exact" or (fixed.method == "auto" and fixed.measures_lambda and _is_small(fixed, given, kind))
    if fixed.measures_lambda and not exact:
        check_outputs(fixed.apply_fn, params, given.batch[0], k=fixed.k)
    if fixed.measures_lambda and not exact and fixed.max_products is None:
        warn_of_few_products(fixed.apply_fn, params, given.batch[0])
    measured = partial(_measured, fixed, exact)

    shapes, _ = jax.eval_shape(measured, given, state.carried)
    values = {name: jnp.full(shape.shape, jnp.nan, shape.dtype) for name, shape in shapes.items()}
    carried = state.carried
    if is_skipped:
        due = False
    if due is None and (fixed.every > 1 or skipped is not False):
        is_due = ~jnp.asarray(skipped) & (state.step % fixed.every == 0)
        turn = lambda carry: (jnp.zeros_like(carry[0]), *measured(given, carry[2]))
        _, values, carried = lax.while_loop(lambda carry: carry[0], turn, (is_due, values, carried))
    elif due is not False:
        values, carried = measured(given, carried)
    lr = jnp.asarray(jnp.nan if given.lr is None else given.lr).astype(jnp.float32)
    return _advance(fixed.detector, state, carried, values, jnp.asarray(loss), lr, skipped)


def _events(detector: Detector, state: WatchState) -> list[Event]:
    """The events so far, by onset; the last one may still be open."""
    if not isinstance(state, WatchState):
        raise ValueError(f"state is a {type(state).__name__}; allowed: the state of the watch")
    state = jax.device_get(state)
    kept = [to_python(jax.tree.map(lambda values, i=i: values[i], state.events)) for i in range(EVENTS)]
    still_open = to_python(jax.device_get(detector.finish(jax.tree.map(jnp.asarray, state.detector))))
    return [event for event in (*sorted(kept, key=lambda event: event.onset), still_open) if event.kind != "none"]


def _measured(fixed: _Fixed, exact: bool, given: Given, carried: dict) -> tuple[dict[str, Array], dict]:
    """The measurements of a step by the names of metrics, and what the instruments carry on."""
    data = {}
    if fixed.measures_agop:
        data = {"x_train": fixed.probe, "agop_reference": carried.get("agop_reference", fixed.agop_reference)}
    outputs = fixed.apply_fn(given.params, given.batch[0]) if fixed.measures_lambda else jnp.zeros(0)
    now = Moment(given.params, None, given.batch, outputs, data, _rule(fixed, given), lr=given.lr, updates=given.updates)
    series, after = measure(_instruments(fixed, given.params, exact=exact), now, carried, jnp.int32(0), due=None)
    if fixed.measures_agop and fixed.agop_reference is None:  # no reference of a better model: only how far the features moved
        series["agop_alignment_to_start"] = series.pop("agop_alignment")
    loss = as_loss(fixed.loss)(fixed.apply_fn(given.params, given.batch[0]), given.batch[1])
    return scalars(series, given.lr, loss, split=fixed.preset == "full"), carried | after


def _instruments(fixed: _Fixed, params: PyTree, *, exact: bool) -> dict[str, Instrument]:
    """The instruments of the training engine that a preset takes."""
    apply_fn, every = fixed.apply_fn, {"loss": fixed.loss, "every": 1}
    chosen = {"directional": directional_instruments.directional_batch(apply_fn, **every)}
    if fixed.measures_lambda and exact:
        chosen["exact"] = instruments.lambda_max_batch(apply_fn, **every, k=fixed.k, follow=False)
    elif fixed.measures_lambda:
        search = {"split": fixed.preset == "full", "tol": fixed.tol, "max_products": fixed.max_products}
        chosen["matrix_free"] = instruments.lambda_max_batch_matrix_free(apply_fn, **every, k=fixed.k, **search)
    if fixed.measures_agop:
        chosen["agop"] = instruments.agop_alignment(apply_fn, every=1, size=len(jax.tree.leaves(fixed.probe)[0]))
    if fixed.probe_batch is not None:
        chosen["probe"] = directional_instruments.directional_probe(apply_fn, fixed.probe_batch, **every)
    if fixed.layers:
        name_of = fixed.layers if callable(fixed.layers) else None
        chosen["layers"] = directional_instruments.directional_layers(apply_fn, params, **every, layer=name_of)
    return chosen


def _rule(fixed: _Fixed, given: Given) -> Partial:
    """The preconditioner of the step, as a pytree function."""
    optimizer = fixed.optimizer
    if optimizer is None or given.opt_state is None:
        return Partial(Preconditioner)

    def read(params, before, after, gradient, updates, new_params):
        step = {} if before is None or gradient is None else {"updates": updates, "new_params": new_params}
        return preconditioner_from_state(optimizer, params, before, after, gradient=gradient, **step)

    states = (given.opt_state_before, given.opt_state)
    return Partial(read, given.params, *states, given.gradient, given.optimizer_updates, given.new_params)


def _is_small(fixed: _Fixed, given: Given, rule: Preconditioner) -> bool:
    """Whether the whole kernel of the batch is the cheaper way to its largest eigenvalue, with no Jacobian of an example."""
    params, x = given.params, given.batch[0]
    outputs = jax.eval_shape(fixed.apply_fn, params, x)
    if outputs.size > EXACT_ROWS or rule.diagonal is not None or not as_loss(fixed.loss).has_factor:
        return False
    if couples_examples(fixed.apply_fn, params, x):
        return False
    uses = plan(fixed.apply_fn, params, x)
    return len(uses.covered | uses.entrywise) == len(jax.tree.leaves(params))


def _advance(
    detector: Detector,
    state: WatchState,
    carried: dict,
    values: dict[str, Array],
    loss: Array,
    lr: Array,
    skipped: Bool[Array, ""] | bool,
) -> tuple[WatchState, dict[str, Array]]:
    """The state after a step with these measurements, and its metrics."""
    nan = jnp.float32(jnp.nan)
    loss = loss.astype(jnp.float32)
    after, event = detector.update(
        state.detector, loss, lr, values.get("critical_lr", nan), nan, values.get("loss_top", nan), values.get("loss_rest", nan)
    )
    # A level is a loss to be multiplied, so a negative loss has none: the detector does not see it.
    is_negative = loss < 0
    unseen = state.detector._replace(step=after.step)
    after = jax.tree.map(lambda old, new: jnp.where(is_negative, old, new), unseen, after)
    kind = jnp.where(is_negative, 0, jnp.asarray(event.kind))
    place = state.detector.closed % EVENTS
    events = jax.tree.map(lambda kept, new: kept.at[place].set(jnp.where(kind > 0, new, kept[place])), state.events, event)
    new = WatchState(state.step + 1, after, jnp.roll(state.recent, -1).at[-1].set(loss), events, carried)
    metrics = values | {
        "loss": loss,
        "lr": lr,
        "spike_score": spike_score_of(state.recent, loss),
        "event": kind.astype(jnp.float32),
    }
    if skipped is not False:
        small = lambda s: s._replace(carried=None)  # what was carried stays already
        kept = jax.tree.map(lambda old, new: jnp.where(skipped, old, new), small(state), small(new))
        new = kept._replace(carried=carried)
        of_updates = [*values, "spike_score", "event"]
        metrics |= {name: jnp.where(skipped, nan, metrics[name]) for name in of_updates}
    metrics["spikes"] = (new.detector.closed + new.detector.is_open).astype(jnp.float32)
    return new, {f"catapult/{name}": value for name, value in sorted(metrics.items())}


def _no_events(detector: Detector) -> Event:
    """Room for events: the open event of a fresh detector is none, with the right dtypes."""
    none: Any = detector.finish(detector.init())
    return jax.tree.map(lambda value: jnp.zeros((EVENTS, *jnp.shape(value)), jnp.result_type(value)), none)
