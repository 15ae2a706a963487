"""Training with instruments: init, step, chunk; one member or a vmapped ensemble of members (seed x learning rate)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from catapult_jax.critical_lr import critical_lr_from_lambda, weighted_tangent_kernel
from catapult_jax.data import Data
from catapult_jax.events import KINDS, Detector, DetectorState
from catapult_jax.instruments import Instrument, Moment, measure
from catapult_jax.losses import batch_loss
from catapult_jax.optimizers import preconditioning
from catapult_jax.schedules import Schedule, ScheduleState
from catapult_jax.tangent_kernel import top_eigenpairs
from catapult_jax.xla import loops_are_slow


class Members(NamedTuple):
    """One entry per member; exactly one of the learning rates is given, the other is None."""

    seed: np.ndarray  # (m,)
    lr: np.ndarray | None  # (m,)
    lr_relative: np.ndarray | None  # (m,) multiple of the critical lr at initialisation, on the training (or probe) examples
    raises: np.ndarray | None = None  # (m,) raises that the schedule makes; None: none
    cap: np.ndarray | None = None  # (m,) multiple of the critical lr that the schedule keeps to; infinite, or None: no cap


class MemberState(NamedTuple):
    params: Any
    opt_state: Any
    schedule: ScheduleState
    detector: DetectorState
    carried: dict[str, Any]  # by instrument: what it carries from one measurement to the next
    order: jax.Array | None  # (n,) of the examples in this epoch; None where all are in every batch
    alive: jax.Array  # False once the loss has diverged: the member is frozen from that step on
    done: jax.Array  # True once the training loss has come down to the loss to stop at: frozen as well, on those weights


class State(NamedTuple):
    """All that a run carries from one step to the next."""

    step: jax.Array
    members: MemberState  # leading axis: member


class Start(NamedTuple):
    """What is known before the first step."""

    critical_lr: np.ndarray  # (m,) at initialisation
    lr: np.ndarray  # (m,)
    error: np.ndarray  # (m,) bound on the relative error of that critical lr; 0: from the exact kernel


class Trainer(NamedTuple):
    init: Callable[[Members], tuple[State, Start]]
    # (state, members, n, longest=None) -> (state, measurements (m, n, ...)); calls that share one longest n share one program
    run: Callable[..., tuple[State, dict[str, np.ndarray]]]
    scanned: bool  # steps run inside one compiled scan, vmapped over members where there are several; otherwise one by one
    adopt: Callable[[State], State]  # takes on the state of a trainer that differs in its instruments alone
    on: Callable[[Data], Trainer]  # the same compiled programs on other data of these shapes


def trainer(
    model,
    data: Data,
    *,
    loss: str,
    optimizer: Callable[..., optax.GradientTransformation],
    schedule: Schedule,
    detector: Detector,
    instruments: dict[str, Instrument],
    batch_size: int = 0,
    probe_size: int = 0,
    stop_loss: float = 0.0,
    matrix_free: bool = False,
    chunk_size: int | None = None,
) -> Trainer:
    """Builds the functions that train a model.

    Args:
      model: Flax module, ``model.apply(params, x) -> outputs``.
      data: the arrays.
      loss: name of the loss.
      optimizer: Optax constructor with a rule, see :func:`catapult_jax.preconditioning`, or a ``functools.partial`` of one; the schedule's rate is
        handed to it at every step.
      schedule: see :mod:`catapult_jax.schedules`.
      detector: online event detector, run on the training loss. A member whose spike does not close within the detector's horizon, or
        whose loss is not finite, is lost: it is frozen, on the weights before that step. With batches the former needs the training loss
        at every step. A dead member goes on, and stays as it is.
      instruments: by name, see :mod:`catapult_jax.instruments`.
      batch_size: 0 takes all training examples in every step (gradient descent); otherwise batches are drawn without
        replacement, epoch by epoch, in an order that is a function of seed and epoch alone, drawn at the first step of the epoch and carried
        in the state, so a resumed run draws the same ones.
      probe_size: examples on which the critical learning rate at initialisation is taken; 0: all.
      stop_loss: a member is done, and frozen, at the first step at which it has made its raises, is in no spike, and its
        training loss is at most this; 0: never.
      matrix_free: the critical learning rate at initialisation from kernel-vector products (to 1 %), not from the exact kernel.
      chunk_size: examples of that kernel that are worked on at a time; None: all.

    Raises:
      ValueError: a batch larger than the training set, an optimizer without a rule.
    """
    n = len(data.x_train)
    if not 0 <= batch_size <= n:
        raise ValueError(f"batch_size={batch_size!r}; allowed: 0 (all) to {n}")
    full = batch_size in (0, n)
    apply_fn = model.apply
    names = ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val")
    arrays_of = lambda data: {name: jnp.asarray(getattr(data, name)) for name in names if getattr(data, name) is not None}
    first_input = jnp.asarray(data.x_train[:1])
    transformation = optax.inject_hyperparams(optimizer)(learning_rate=0.0)

    def rule_of(gradient, params, opt_state):
        """What the optimizer makes of this gradient; no optimizer that has a rule does it differently at another rate."""
        _, after = transformation.update(gradient, opt_state, params)
        return preconditioning(optimizer, params, after, opt_state)

    def plain_gradient(params, batch):
        def loss_fn(params):
            outputs = apply_fn(params, batch[0])
            return batch_loss(outputs, batch[1], loss=loss), outputs

        gradient, outputs = jax.grad(loss_fn, has_aux=True)(params)
        return outputs, None, gradient

    def init_member(arrays: dict, seed):
        params = model.init(jax.random.fold_in(jax.random.key(seed), 0), arrays["x_train"][:1])
        x, y = (arrays[key][: probe_size or None] for key in ("x_train", "y_train"))
        _, _, gradient = plain_gradient(params, (x, y))
        rule = rule_of(gradient, params, transformation.init(params))
        options = dict(loss=loss, preconditioner=rule.diagonal, chunk_size=chunk_size)
        if matrix_free:
            found = top_eigenpairs(apply_fn, params, (x, y), k=1, **options)
            lambda_max, bound = found.eigenvalues[0], found.bounds[0]
        else:
            with jax.default_matmul_precision("highest"):
                outputs = apply_fn(params, x)
            kernel = weighted_tangent_kernel(apply_fn, params, (x, y), outputs, **options)
            lambda_max, bound = jnp.linalg.eigvalsh(kernel)[-1], jnp.float32(0)
        return params, critical_lr_from_lambda(lambda_max, rule), jnp.where(bound > 0, bound / lambda_max, 0)

    def moment(arrays: dict, params):
        batch = (
            (arrays["x_train"], arrays["y_train"])
            if full
            else tuple(arrays[key][:batch_size] for key in ("x_train", "y_train"))
        )
        rule = Partial(rule_of, jax.tree.map(jnp.zeros_like, params), params, transformation.init(params))
        return Moment(params, params, batch, apply_fn(params, batch[0]), arrays, rule, lr=jnp.float32(0))

    jitted_init = jax.jit(init_member)
    begin = jax.jit(
        lambda arrays, params: {name: i.start(moment(arrays, params)) for name, i in instruments.items() if i.start is not None}
    )

    def init(arrays: dict, members: Members) -> tuple[State, Start]:
        # Products of what is slow in loops are driven by Python.
        init_one = init_member if matrix_free and not scanned else jitted_init
        states, critical, bounds = [], [], []
        for i, seed in enumerate(members.seed):
            params, critical_i, bound_i = init_one(arrays, int(seed))
            lr = members.lr[i] if members.lr is not None else members.lr_relative[i] * critical_i
            knobs = {"raises": members.raises, "cap": members.cap, "multiple": members.lr_relative}
            rate = schedule.init(lr, **{name: values[i] for name, values in knobs.items() if values is not None})
            yes, no = jnp.asarray(True), jnp.asarray(False)
            order = None if full else jnp.zeros(n, jnp.int32)
            states.append(MemberState(params, transformation.init(params), rate, detector.init(), {}, order, yes, no))
            critical.append(np.asarray(critical_i))
            bounds.append(np.asarray(bound_i))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        start = Start(np.array(critical), np.asarray(stacked.schedule.lr_start), np.array(bounds))
        return adopt(arrays, State(jnp.int32(0), stacked)), start

    def adopt(arrays: dict, state: State) -> State:
        """The state of a trainer of the same model and members, with what these instruments carry at their start."""
        first = jax.tree.map(lambda a: a[0], state.members.params)
        count = len(state.members.alive)
        carried = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), begin(arrays, first))
        return state._replace(members=state.members._replace(carried=carried))

    def some_rule():
        params = model.init(jax.random.key(0), first_input)
        return rule_of(params, params, transformation.init(params))

    # An instrument that takes derivatives of the batch at every step gives the gradient as well, where no preconditioner comes first.
    giving = [i.gradient for i in instruments.values() if i.gradient and i.every == 1]
    together = bool(giving) and jax.eval_shape(some_rule).diagonal is None
    take_gradient = giving[0] if together else plain_gradient
    # On the CPU every precision is the highest; named so, the forward pass of a measurement is seen to be that of the step.
    on_cpu = jax.default_backend() == "cpu"
    named = lambda highest: jax.default_matmul_precision("highest") if highest else nullcontext()

    # Batches alone do not tell it: one that happens to have a small loss is a level that none may come back to.
    tells_divergence = full or ("train_loss" in instruments and instruments["train_loss"].every == 1)

    def step_member(step, state: MemberState, seed, data: dict, wanted=True, *, due: frozenset[str] | None):
        """One step of one member, or none where it is not wanted.

        ``due``: the instruments that are due, or None: decide at run time.
        """
        if full:
            batch, order = (data["x_train"], data["y_train"]), state.order
        else:
            per_epoch = n // batch_size
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step // per_epoch)
            # The step is that of all members, so that under vmap this is still a branch: sorting at every step would cost more than it.
            draw = lambda: jax.random.permutation(key, n).astype(jnp.int32)
            order = jax.lax.cond(step % per_epoch == 0, draw, lambda: state.order)
            rows = jax.lax.dynamic_slice(order, ((step % per_epoch) * batch_size,), (batch_size,))
            batch = data["x_train"][rows], data["y_train"][rows]

        with named(together or on_cpu):
            outputs, kernel, gradient = take_gradient(state.params, batch)
        value = batch_loss(outputs, batch[1], loss=loss)
        _, updated = transformation.update(gradient, state.opt_state, state.params)
        rule = Partial(
            partial(preconditioning, optimizer), state.params, updated, state.opt_state
        )  # a loop holds the state, not the gradient
        before = Moment(state.params, state.params, batch, outputs, data, rule, kernel, state.schedule.lr)
        when = dict(step=jnp.where(wanted, step, -1), due=due)  # nothing that has a cadence is due at step -1
        early = {name: i for name, i in instruments.items() if name != "loss_after"}
        with named(on_cpu):
            measured, carried = measure(early, before, state.carried, **when)
        measured = {"loss_batch": value} | measured
        if full:
            same = {
                "loss_train": "loss_batch",
                "lambda_max_train": "lambda_max_batch",
                "critical_lr_train": "critical_lr_batch",
                "condition_number_train": "condition_number_batch",
            }
            measured |= {name: measured[other] for name, other in same.items() if other in measured and name not in measured}

        critical = measured.get("critical_lr_batch", jnp.float32(jnp.nan))
        tracked = measured.get("loss_train", value)
        rate = schedule.update(state.schedule, step, tracked, critical)
        # Of all examples, or a fixed probe of them: never of batches that differ. With the whole set as its batch, the two names are one.
        unknown, split = jnp.float32(jnp.nan), "loss" if full else "loss_train"
        spikes, closed = detector.update(
            state.detector,
            tracked,
            rate.lr,
            critical,
            measured.get("lambda_max_train", measured.get("lambda_max_probe", unknown)),
            measured.get(f"{split}_top", unknown),
            measured.get(f"{split}_rest", unknown),
        )
        opt_state = state.opt_state._replace(hyperparams=state.opt_state.hyperparams | {"learning_rate": rate.lr})
        updates, opt_state = transformation.update(gradient, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if "loss_after" in instruments:
            late = {"loss_after": instruments["loss_after"]}
            with named(together or on_cpu):  # that of the loss before
                measured |= measure(late, before._replace(new_params=params), {}, **when)[0]

        lost = ~jnp.isfinite(value)
        if tells_divergence:
            lost |= closed.kind == KINDS.index("divergence")
        alive = state.alive & ~lost
        settled = (rate.stage >= rate.raises) & ~rate.raised & ~spikes.is_open
        done = state.done | (settled & (tracked <= stop_loss)) if stop_loss else state.done
        moves = alive & ~done & wanted
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(moves, a, b), new, old)
        also = lambda new, old: jax.tree.map(lambda a, b: jnp.where(wanted, a, b), new, old)
        measured |= {"lr": rate.lr, "stage": rate.stage, "alive": alive, "spikes": spikes.closed + spikes.is_open}
        measured |= {"done": done} if stop_loss else {}
        new = MemberState(
            keep(params, state.params),
            keep(opt_state, state.opt_state),
            keep(rate, state.schedule),
            also(spikes, state.detector),
            keep(carried, state.carried),
            order,
            also(alive, state.alive),
            also(done, state.done),
        )
        return new, measured

    example = jax.eval_shape(lambda: model.init(jax.random.key(0), first_input))
    scanned = not loops_are_slow(apply_fn, example, first_input)  # convolutions on the CPU, also batched over members

    def step_members(step, members: MemberState, seeds, data: dict, wanted):
        one = partial(step_member, due=None)
        if len(seeds) > 1:
            return jax.vmap(one, in_axes=(None, 0, 0, None, None))(step, members, seeds, data, wanted)
        # Of a single member under vmap XLA transposes the gradient as it is read, which on the CPU takes as long as three steps.
        alone = jax.tree.map(lambda a: a[0], (members, seeds))
        return jax.tree.map(lambda a: a[None], one(step, *alone, data, wanted))

    @partial(jax.jit, donate_argnums=0, static_argnames="longest")
    def scan_chunk(state: State, seeds, data, steps, *, longest: int):
        """``steps`` steps; a program for the longest chunk does for a shorter one, and what is over is computed in vain."""

        def body(state, i):
            wanted = i < steps
            members, measured = step_members(state.step, state.members, seeds, data, wanted)
            return State(state.step + wanted, members), measured

        state, measured = jax.lax.scan(body, state, jnp.arange(longest))
        return state, jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), measured)

    step_once = jax.jit(step_member, donate_argnums=1, static_argnames="due")

    def loop_chunk(state: State, seeds, data, steps: int):
        count = len(seeds)
        members = [jax.tree.map(lambda a, i=i: a[i], state.members) for i in range(count)]
        measured = [[] for _ in range(count)]
        first = int(state.step)
        for step in range(first, first + steps):
            # Steps that have the same instruments due share one compiled program.
            due = frozenset(name for name, instrument in instruments.items() if step % instrument.every == 0)
            for i in range(count):
                members[i], values = step_once(jnp.int32(step), members[i], seeds[i], data, due=due)
                measured[i].append(values)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        series = [jax.tree.map(lambda *values: np.stack(values), *values) for values in jax.device_get(measured)]
        return State(jnp.int32(first + steps), stacked), jax.tree.map(lambda *values: np.stack(values), *series)

    def run(arrays: dict, state: State, members: Members, steps: int, longest: int | None = None):
        seeds = jnp.asarray(members.seed)
        if not scanned:
            return loop_chunk(state, seeds, arrays, steps)
        state, measured = scan_chunk(state, seeds, arrays, jnp.int32(steps), longest=max(steps, longest or 0))
        return state, jax.tree.map(lambda a: a[:, :steps], jax.device_get(measured))

    def on(data: Data) -> Trainer:
        arrays = arrays_of(data)
        return Trainer(partial(init, arrays), partial(run, arrays), scanned, partial(adopt, arrays), on)

    return on(data)
