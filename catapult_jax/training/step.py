"""One step of one member: draw a batch, take the gradient, measure, choose the lr, detect spikes, intervene, update.

:func:`step` calls one function for each; then it measures on the new weights, and keeps the old ones of a member that has ended. The
functions work on a :class:`Problem`, which is fixed, and a :class:`MemberState`.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from catapult_jax.detection import DetectorState
from catapult_jax.events import KINDS, Event
from catapult_jax.losses import batch_loss
from catapult_jax.preconditioners import Preconditioner, preconditioner_from_state
from catapult_jax.schedules import ScheduleState
from catapult_jax.training import interventions
from catapult_jax.training.measurement import Moment, measure
from catapult_jax.training.problem import MemberState, Problem
from catapult_jax.xla import every_precision_is_highest

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PyTree

# What the step itself measures; no instrument may write these series.
SERIES = ("loss_batch", "lr", "stage", "diverged", "spikes", "stopped", "overshoot", "removed_fraction")
# With all examples in every batch, a series of the batch is that of the training set as well.
_SAME_AS_BATCH = {
    "loss_train": "loss_batch",
    "lambda_max_train": "lambda_max_batch",
    "critical_lr_train": "critical_lr_batch",
    "condition_number_train": "condition_number_batch",
}


class _Gradient(NamedTuple):
    """Result of one forward and backward pass over the batch."""

    outputs: Array
    kernel: Float[Array, "n n"] | None  # loss-weighted; None: no instrument asked for it
    gradient: PyTree
    at_highest: bool  # taken at matmul precision ``highest``, as kernels are


def step(
    problem: Problem,
    number: Int[Array, ""],
    state: MemberState,
    data: dict[str, Array],
    wanted: Bool[Array, ""] | bool = True,
    *,
    due: frozenset[str] | None = None,
) -> tuple[MemberState, dict[str, Array]]:
    """One step of one member.

    Args:
      problem: what is fixed.
      number: of the step, from 0 on.
      state: of the member.
      data: ``x_train``, ``y_train``, ``x_test``, ``y_test``, and ``x_val``, ``y_val``, ``agop_reference`` where there are any.
      wanted: False for a step that only fills a chunk up to its length. Its measurements are discarded, and the state stays. Only
        ``order`` may change; the next step draws it again.
      due: labels of the instruments that run in this step; only they are compiled. None: decide at run time.

    Returns:
      The state after the step, and the measurements by series. A measurement is taken on the weights before the update unless its
      instrument says otherwise.
    """
    batch, order = draw_batch(problem, number, state, data)
    backward = take_gradient(problem, state.params, batch)
    now, measured, carried = measure_before(problem, number, state, batch, backward, data, wanted, due)
    schedule = next_lr(problem, number, state, measured)
    detector, event = detect(problem, state, schedule, measured)
    gradient, removed = intervene(problem, number, state, batch, backward, schedule.lr)
    updates, opt_state = update(problem, state, gradient, schedule.lr)
    params = optax.apply_updates(state.params, updates)
    now = now._replace(new_params=params, updates=updates, lr=schedule.lr)
    late, carried = measure_after(problem, number, now, backward, carried, wanted, due)
    measured |= late | removed
    after = state._replace(
        params=params, opt_state=opt_state, schedule=schedule, detector=detector, carried=carried, order=order
    )
    return freeze(problem, state, after, event, measured, wanted)


def draw_batch(
    problem: Problem, number: Int[Array, ""], state: MemberState, data: dict[str, Array]
) -> tuple[tuple[Array, Array], Int[Array, " n"] | None]:
    """The batch of a step, drawn without replacement.

    Args:
      problem: what is fixed.
      number: of the step.
      state: of the member.
      data: with ``x_train`` and ``y_train``.

    Returns:
      ``(x, y)``, and the order of the examples in this epoch. The order depends on seed and epoch only.
    """
    if problem.is_full_batch:
        return (data["x_train"], data["y_train"]), state.order
    per_epoch = problem.examples // problem.batch_size
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), 1), number // per_epoch)
    # `number` is not vmapped, so that `cond` stays a branch: sorting once per epoch, not at every step.
    shuffle = lambda: jax.random.permutation(key, problem.examples).astype(jnp.int32)
    order = jax.lax.cond(number % per_epoch == 0, shuffle, lambda: state.order)
    rows = jax.lax.dynamic_slice(order, ((number % per_epoch) * problem.batch_size,), (problem.batch_size,))
    return (data["x_train"][rows], data["y_train"][rows]), order


def take_gradient(problem: Problem, params: PyTree, batch: tuple[Array, Array]) -> _Gradient:
    """Gradient of the loss of the batch.

    Args:
      problem: what is fixed.
      params: weights before the update.
      batch: ``(x, y)``.

    Returns:
      Outputs, kernel and gradient. The kernel is there if an instrument with ``every=1`` computes it in the same pass; else None.
    """
    shared = [i.gradient for i in problem.instruments.values() if i.gradient and i.every == 1]
    together = bool(shared) and _is_plain(problem, params)
    with _highest(together or every_precision_is_highest()):
        take = shared[0] if together else partial(plain_gradient, problem)
        outputs, kernel, gradient = take(params, batch)
        return _Gradient(outputs, kernel, gradient, together)


def plain_gradient(problem: Problem, params: PyTree, batch: tuple[Array, Array]) -> tuple[Array, None, PyTree]:
    """Gradient of the loss of the batch, without a kernel.

    Args:
      problem: what is fixed.
      params: weights before the update.
      batch: ``(x, y)``.

    Returns:
      ``(outputs, None, gradient)``, in the form of ``Instrument.gradient``.
    """

    def loss_fn(params):
        outputs = problem.apply_fn(params, batch[0])
        return batch_loss(outputs, batch[1], loss=problem.loss), outputs

    gradient, outputs = jax.grad(loss_fn, has_aux=True)(params)
    return outputs, None, gradient


def measure_before(
    problem: Problem,
    number: Int[Array, ""],
    state: MemberState,
    batch: tuple[Array, Array],
    backward: _Gradient,
    data: dict[str, Array],
    wanted: Bool[Array, ""] | bool,
    due: frozenset[str] | None,
) -> tuple[Moment, dict[str, Array], dict[str, PyTree]]:
    """Runs the instruments that are due on the weights before the update.

    Args:
      problem: what is fixed.
      number: of the step.
      state: of the member.
      batch: ``(x, y)``.
      backward: outputs, kernel and gradient of the batch.
      data: all examples.
      wanted: False: only instruments with ``every=1`` run.
      due: labels of the instruments that are due; None: decide at run time.

    Returns:
      What the instruments see, the measurements by series, and what each instrument carries on.
    """
    # The preconditioner of this step comes from the optimizer's state after it, which does not depend on the lr. The schedule needs the
    # critical lr, so the state is computed here, and again in `update` once the lr is known. XLA merges the two calls: the compiled step
    # of a network with Adam has as many operations as with one call.
    _, after = problem.transformation.update(backward.gradient, state.opt_state, state.params)
    # Holds the two states, not the gradient, so that a measurement with a loop carries less.
    preconditioner = Partial(partial(preconditioner_from_state, problem.transformation), state.params, state.opt_state, after)
    now = Moment(state.params, state.params, batch, backward.outputs, data, preconditioner, backward.kernel, state.schedule.lr)
    early = {name: i for name, i in problem.instruments.items() if not i.after_update}
    with _highest(every_precision_is_highest()):
        measured, carried = measure(early, now, state.carried, _clock(number, wanted), due=due)
    measured = {"loss_batch": batch_loss(backward.outputs, batch[1], loss=problem.loss)} | measured
    if problem.is_full_batch:
        same = {name: measured[other] for name, other in _SAME_AS_BATCH.items() if other in measured}
        measured = same | measured
    return now, measured, carried


def measure_after(
    problem: Problem,
    number: Int[Array, ""],
    now: Moment,
    backward: _Gradient,
    carried: dict[str, PyTree],
    wanted: Bool[Array, ""] | bool,
    due: frozenset[str] | None,
) -> tuple[dict[str, Array], dict[str, PyTree]]:
    """Runs the instruments that are due on the weights after the update.

    Args:
      problem: what is fixed.
      number: of the step.
      now: what the instruments see, with the new weights.
      backward: outputs, kernel and gradient of the batch.
      carried: what each instrument carries from the measurement before.
      wanted: False: only instruments with ``every=1`` run.
      due: labels of the instruments that are due; None: decide at run time.

    Returns:
      The measurements by series, and what each instrument carries on.
    """
    late = {name: i for name, i in problem.instruments.items() if i.after_update}
    with _highest(backward.at_highest or every_precision_is_highest()):  # as for the loss before the update
        return measure(late, now, carried, _clock(number, wanted), due=due)


def next_lr(problem: Problem, number: Int[Array, ""], state: MemberState, measured: dict[str, Array]) -> ScheduleState:
    """Schedule state with the lr of this step.

    Args:
      problem: what is fixed.
      number: of the step.
      state: of the member.
      measured: the schedule sees the training loss (the loss of the batch if it is not measured) and the critical lr of the batch.

    Returns:
      The schedule state; ``lr`` is the lr of this step, with the factor of an intervention.
    """
    critical = measured.get("critical_lr_batch", jnp.float32(jnp.nan))
    schedule = problem.schedule.update(state.schedule, number, _tracked_loss(measured), critical)
    if state.arm is None:
        return schedule
    return schedule._replace(lr=schedule.lr * interventions.lr_factor(state.arm, number))


def detect(
    problem: Problem, state: MemberState, schedule: ScheduleState, measured: dict[str, Array]
) -> tuple[DetectorState, Event]:
    """Detector state after this step, and the event that ends at it.

    ``lambda_max`` is of all training examples or of a fixed probe, the split of the loss of all training examples; otherwise NaN.

    Args:
      problem: what is fixed.
      state: of the member.
      schedule: with the lr of this step.
      measured: measurements by series.

    Returns:
      The detector state, and the event; kind 0: no event ends.
    """
    unknown, split = jnp.float32(jnp.nan), "loss" if problem.is_full_batch else "loss_train"
    return problem.detector.update(
        state.detector,
        _tracked_loss(measured),
        schedule.lr,
        measured.get("critical_lr_batch", unknown),
        measured.get("lambda_max_train", measured.get("lambda_max_probe", unknown)),
        measured.get(f"{split}_top", unknown),
        measured.get(f"{split}_rest", unknown),
    )


def intervene(
    problem: Problem,
    number: Int[Array, ""],
    state: MemberState,
    batch: tuple[Array, Array],
    backward: _Gradient,
    lr: Float[Array, ""],
) -> tuple[PyTree, dict[str, Array]]:
    """Gradient of the step after the intervention of the member's arm, and the series that it writes.

    Without an arm the gradient stays, and there are no series.

    Args:
      problem: what is fixed.
      number: of the step.
      state: of the member.
      batch: ``(x, y)``.
      backward: outputs, kernel and gradient of the batch.
      lr: of this step.

    Returns:
      The gradient, and the series ``overshoot`` and ``removed_fraction``.

    Raises:
      ValueError: an arm, and no instrument that measures the exact kernel of the batch at every step.
    """
    if state.arm is None:
        return backward.gradient, {}
    modes = interventions.modes_of(backward.kernel, backward.outputs, batch[1], loss=problem.loss)
    phi = interventions.mode_factors(state.arm, modes, lr, number)
    gradient = interventions.filtered_gradient(problem.apply_fn, state.params, batch, modes, phi, loss=problem.loss)
    removed = interventions.removed(modes, phi, lr)
    return gradient, {"overshoot": removed.overshoot, "removed_fraction": removed.fraction}


def update(problem: Problem, state: MemberState, gradient: PyTree, lr: Float[Array, ""]) -> tuple[PyTree, PyTree]:
    """Updates of the parameters, and optimizer state after a step with this lr.

    Args:
      problem: what is fixed.
      state: of the member.
      gradient: of the loss of the batch.
      lr: of this step.

    Returns:
      ``(updates, opt_state)``; the updates are added to the parameters.
    """
    opt_state = state.opt_state._replace(hyperparams=state.opt_state.hyperparams | {"learning_rate": lr})
    updates, opt_state = problem.transformation.update(gradient, opt_state, state.params)
    return updates, opt_state


def freeze(
    problem: Problem,
    before: MemberState,
    after: MemberState,
    event: Event,
    measured: dict[str, Array],
    wanted: Bool[Array, ""] | bool,
) -> tuple[MemberState, dict[str, Array]]:
    """Decides whether the member diverged or stopped, and then keeps its old weights; adds the series that the step itself measures.

    Parameters, optimizer, schedule and instruments stay as before the step. Detector, ``diverged`` and ``stopped`` go on.

    Args:
      problem: what is fixed.
      before: state before the step.
      after: state after the update.
      event: that ends at this step.
      measured: measurements by series.
      wanted: False: the step only fills a chunk, and all of the state stays.

    Returns:
      The state after the step, and the measurements with the series ``SERIES``.
    """
    schedule, detector = after.schedule, after.detector
    diverged, stopped = before.diverged | ~jnp.isfinite(measured["loss_batch"]), before.stopped
    if problem.train_loss_is_known:
        diverged |= event.kind == KINDS.index("divergence")
    measured = measured | {
        "lr": schedule.lr,
        "stage": schedule.stage,
        "diverged": diverged,
        "spikes": detector.closed + detector.is_open,
    }
    if problem.stop_loss is not None:
        settled = (schedule.stage >= schedule.raises) & ~schedule.raised & ~detector.is_open
        stopped |= settled & (_tracked_loss(measured) <= problem.stop_loss)
        measured["stopped"] = stopped
    moved = ("params", "opt_state", "schedule", "carried")
    of = lambda state: {name: getattr(state, name) for name in moved}
    detector, diverged, stopped = _where(
        wanted, (detector, diverged, stopped), (before.detector, before.diverged, before.stopped)
    )
    fields = _where(~diverged & ~stopped & wanted, of(after), of(before))
    return after._replace(**fields, detector=detector, diverged=diverged, stopped=stopped), measured


def preconditioner_of(problem: Problem, gradient: PyTree, params: PyTree, opt_state: PyTree) -> Preconditioner:
    """Preconditioner of the step that the optimizer takes with this gradient.

    Args:
      problem: what is fixed.
      gradient: of the loss of the batch.
      params: weights before the step.
      opt_state: optimizer state before the step.

    Returns:
      The preconditioner.
    """
    _, after = problem.transformation.update(gradient, opt_state, params)
    return preconditioner_from_state(problem.transformation, params, opt_state, after)


def _is_plain(problem: Problem, params: PyTree) -> bool:
    """Whether the optimizer has no preconditioner. Only then does the kernel that comes with the gradient fit it."""
    # Only shapes are computed, so the parameters can take the place of the gradient.
    rule = lambda params: preconditioner_of(problem, params, params, problem.transformation.init(params))
    return jax.eval_shape(rule, params).diagonal is None


def _tracked_loss(measured: dict[str, Array]) -> Array:
    """Training loss; the loss of the batch if the training loss is not measured."""
    return measured.get("loss_train", measured["loss_batch"])


def _clock(number, wanted):
    """Number of the step; -1 if the step is not wanted, so that only instruments with ``every=1`` run."""
    return jnp.where(wanted, number, -1)


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _highest(wanted: bool):
    return jax.default_matmul_precision("highest") if wanted else nullcontext()
