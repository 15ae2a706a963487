"""Wiring: from a model, data and settings to the functions that begin and run the training of members side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from catapult_jax.critical import critical_lr_from_lambda
from catapult_jax.data import Data
from catapult_jax.detection import Detector
from catapult_jax.schedules import Schedule
from catapult_jax.tangent import top_eigenpairs
from catapult_jax.tangent.weighted import weighted_tangent_kernel
from catapult_jax.training.chunks import State, make_chunk
from catapult_jax.training.interventions import Arm
from catapult_jax.training.measurement import Instrument, Moment, check_instruments
from catapult_jax.training.problem import MemberState, Problem, RunData
from catapult_jax.training.step import SERIES, plain_gradient, preconditioner_of
from catapult_jax.xla import loops_are_slow

# Most products for the critical lr at initialisation. It is found once, so it may take more than the default of 33, which was too few
# for RMSProp on one of ten seeds.
_FIRST_PRODUCTS = 128


class Members(NamedTuple):
    """What differs between members. One entry for each member."""

    seed: np.ndarray  # (m,)
    lr: np.ndarray  # (m,) learning rate at the start
    raises: np.ndarray | None = None  # (m,) number of raises that the schedule makes; None: no raise
    cap: np.ndarray | None = None  # (m,) largest lr of the schedule, as a multiple of the critical lr; inf or None: no cap
    # "absolute", or "critical_lr0": ``lr`` is a multiple of the critical lr at initialisation, on the training (or probe) examples
    lr_unit: str = "absolute"
    arm: Arm | None = None  # of a causal test, each field (m, ...); None: no intervention


class Start(NamedTuple):
    """What is known before the first step."""

    critical_lr: np.ndarray  # (m,) at initialisation
    lr: np.ndarray  # (m,)
    error: np.ndarray  # (m,) bound on the relative error of critical_lr; 0: from the exact kernel


class Trainer(NamedTuple):
    """The functions of one run. They share their compiled programs."""

    init: Callable[[Members], tuple[State, Start]]
    # (state, steps, longest=None) -> (state, measurements (members, steps, ...)); calls with the same longest share one program
    run: Callable[..., tuple[State, dict[str, np.ndarray]]]
    scanned: bool  # True: steps run inside one compiled scan, vmapped over the members; False: one by one
    reset_instruments: Callable[[State], State]  # same members, fresh instrument state: for a trainer with other instruments
    with_data: Callable[[Data], Trainer]  # the same compiled programs on other data of these shapes


def make_trainer(
    model,
    data: Data,
    *,
    loss: str,
    optimizer: Callable[..., optax.GradientTransformation],
    schedule: Schedule,
    detector: Detector,
    instruments: Mapping[str, Instrument],
    batch_size: int | None = None,
    probe_size: int | None = None,
    stop_loss: float | None = None,
    matrix_free: bool = False,
    chunk_size: int | None = None,
) -> Trainer:
    """Builds the functions that train a model.

    Args:
      model: Flax module, ``model.apply(params, x) -> outputs``.
      data: the arrays; with ``data.draws``, those of each member.
      loss: name of the loss.
      optimizer: Optax constructor, or a ``functools.partial`` of one, of an optimizer with a rule, see
        :func:`catapult_jax.preconditioner_from_state`. The schedule's lr is handed to it at every step.
      schedule: see :mod:`catapult_jax.schedules`.
      detector: online event detector, run on the training loss. A member diverges if its spike does not close within the horizon, or if
        its loss is not finite. It then keeps the weights before that step. With batches, a spike that does not close counts only if an
        instrument writes ``loss_train`` at every step.
      instruments: see :mod:`catapult_jax.training.instruments`. Their keys are labels without effect.
      batch_size: examples of a batch, drawn without replacement. The order of an epoch depends on seed and epoch only, and the state
        carries it, so a resumed run draws the same batches. None: all training examples in every step (gradient descent).
      probe_size: number of training examples for the critical lr at initialisation; None: all.
      stop_loss: a member stops at the first step at which it has made its raises, is in no spike, and has a training loss of at most
        ``stop_loss``. It then keeps its weights. None: never.
      matrix_free: True takes the critical lr at initialisation from kernel-vector products (to 1 %), False from the exact kernel.
      chunk_size: examples of that kernel that are processed at a time; None: all.

    Returns:
      The functions of the run.

    Raises:
      ValueError: the batch is larger than the training set, the optimizer has no rule, or two instruments write one series.
    """
    n = len(data.x_train)
    if batch_size is not None and not 1 <= batch_size <= n:
        raise ValueError(f"batch_size={batch_size!r}; allowed: 1 to {n}, or None (all)")
    check_instruments(instruments, SERIES)
    problem = Problem(model.apply, loss, optimizer, schedule, detector, instruments, n, batch_size or n, stop_loss)
    first_input = jnp.asarray(data.x_train[:1])
    example = jax.eval_shape(lambda: model.init(jax.random.key(0), first_input))
    rule = jax.eval_shape(lambda p: preconditioner_of(problem, p, p, problem.transformation.init(p)), example)
    if rule.reason:
        raise ValueError(f"optimizer={optimizer!r}: {rule.reason}; allowed: an optimizer with a rule")
    scanned = not loops_are_slow(model.apply, example, first_input)  # convolutions on the CPU, also batched over members
    init_one = partial(
        _params_and_critical_lr, problem, model, probe_size=probe_size, matrix_free=matrix_free, chunk_size=chunk_size
    )
    if scanned or not matrix_free:  # otherwise Python runs the products one by one, so no jit
        init_one = jax.jit(init_one)
    begin = jax.jit(partial(_begin, problem))
    chunk = make_chunk(problem, scanned=scanned)

    def with_data(data: Data) -> Trainer:
        arrays = _run_data(data)
        run = lambda state, steps, longest=None: chunk(state, arrays, steps, max(steps, longest or 0))
        return Trainer(
            partial(_init, problem, init_one, begin, arrays),
            run,
            scanned,
            partial(_reset_instruments, begin, arrays),
            with_data,
        )

    return with_data(data)


def _run_data(data: Data) -> RunData:
    """The arrays of a run on the device. Members have arrays of their own where these are different objects in ``data.draws``."""
    shared, by_member = {}, {}
    for name in ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val", "agop_reference"):
        array, drawn = getattr(data, name), [getattr(draw, name) for draw in data.draws]
        if any(other is not array for other in drawn):
            by_member[name] = jnp.asarray(np.stack(drawn))
        elif array is not None:
            shared[name] = jnp.asarray(array)
    return RunData(shared, by_member)


def _init(problem: Problem, init_one, begin, data: RunData, members: Members) -> tuple[State, Start]:
    """The state before the first step, and the critical lr, lr and error of each member.

    Raises:
      ValueError: data of another number of members.
    """
    for array in data.by_member.values():
        if len(array) != len(members.seed):
            raise ValueError(
                f"members.seed has {len(members.seed)} entries, the data are those of {len(array)} members; allowed: one for each"
            )
    states, critical, errors = [], [], []
    for i, seed in enumerate(members.seed):
        params, critical_i, error_i = init_one(data.of(i), np.int32(seed))
        relative = members.lr_unit == "critical_lr0"
        lr = members.lr[i] * critical_i if relative else members.lr[i]
        knobs = {"raises": members.raises, "cap": members.cap, "lr_over_critical": members.lr if relative else None}
        schedule = problem.schedule.init(lr, **{name: values[i] for name, values in knobs.items() if values is not None})
        order = None if problem.is_full_batch else jnp.zeros(problem.examples, jnp.int32)
        states.append(
            MemberState(
                seed=jnp.int32(seed),
                params=params,
                opt_state=problem.transformation.init(params),
                schedule=schedule,
                detector=problem.detector.init(),
                carried={},
                order=order,
                diverged=jnp.asarray(False),
                stopped=jnp.asarray(False),
                arm=jax.tree.map(lambda field, i=i: jnp.asarray(field[i]), members.arm),
            )
        )
        critical.append(np.asarray(critical_i))
        errors.append(np.asarray(error_i))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    start = Start(np.array(critical), np.asarray(stacked.schedule.lr0), np.array(errors))
    return _reset_instruments(begin, data, State(jnp.int32(0), stacked)), start


def _params_and_critical_lr(
    problem: Problem, model, arrays: dict, seed, *, probe_size: int | None, matrix_free: bool, chunk_size: int | None
):
    """Parameters, critical lr on the training (or probe) examples, and a bound on its relative error."""
    params = model.init(jax.random.fold_in(jax.random.key(seed), 0), arrays["x_train"][:1])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, arrays["x_train"].dtype)), params)
    batch = tuple(arrays[key][:probe_size] for key in ("x_train", "y_train"))
    _, _, gradient = plain_gradient(problem, params, batch)
    rule = preconditioner_of(problem, gradient, params, problem.transformation.init(params))
    if matrix_free:
        pairs = top_eigenpairs(
            problem.apply_fn,
            params,
            batch,
            k=1,
            loss=problem.loss,
            preconditioner=rule.diagonal,
            chunk_size=chunk_size,
            max_products=_FIRST_PRODUCTS,
        )
        lambda_max, bound = pairs.eigenvalues[0], pairs.bounds[0]
    else:
        with jax.default_matmul_precision("highest"):
            outputs = problem.apply_fn(params, batch[0])
        kernel = weighted_tangent_kernel(
            problem.apply_fn, params, batch, outputs, loss=problem.loss, preconditioner=rule.diagonal, chunk_size=chunk_size
        )
        lambda_max, bound = jnp.linalg.eigvalsh(kernel)[-1], jnp.float32(0)
    return params, critical_lr_from_lambda(lambda_max, rule), jnp.where(bound > 0, bound / lambda_max, 0)


def _begin(problem: Problem, arrays: dict, params) -> dict[str, Any]:
    """What each instrument carries before its first measurement."""
    batch = tuple(arrays[key][: problem.batch_size] for key in ("x_train", "y_train"))
    zeros = jax.tree.map(jnp.zeros_like, params)
    rule = Partial(partial(preconditioner_of, problem), zeros, params, problem.transformation.init(params))
    now = Moment(params, params, batch, problem.apply_fn(params, batch[0]), arrays, rule, lr=jnp.float32(0))
    return {label: i.start(now) for label, i in problem.instruments.items() if i.start is not None}


def _reset_instruments(begin, data: RunData, state: State) -> State:
    first = jax.tree.map(lambda a: a[0], state.members.params)
    count = len(state.members.seed)
    carried = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), begin(data.of(0), first))
    return state._replace(members=state.members._replace(carried=carried))
