"""What a step works on: what is fixed in a run, and the state of one member."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import optax

from catapult_jax.detection import Detector, DetectorState
from catapult_jax.schedules import Schedule, ScheduleState
from catapult_jax.training.interventions import Arm
from catapult_jax.training.measurement import Instrument

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int, PyTree


class Problem(NamedTuple):
    """What is fixed in a run: the same for every step and member."""

    apply_fn: Callable[[PyTree, Array], Array]  # (params, x) -> outputs
    loss: str
    # learning_rate -> transformation
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Schedule
    detector: Detector
    instruments: Mapping[str, Instrument]  # by label; a label has no effect
    examples: int  # in the training set
    batch_size: int  # equal to examples for full-batch descent
    stop_loss: float | None  # None: members do not stop

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The optimizer with its learning rate in the state, where the schedule writes it."""
        return optax.inject_hyperparams(self.optimizer)(learning_rate=0.0)

    @property
    def is_full_batch(self) -> bool:
        """Whether every step takes all training examples."""
        return self.batch_size == self.examples

    @property
    def train_loss_is_known(self) -> bool:
        """Whether the training loss is measured at every step. The loss of batches alone does not show that a member diverged."""
        return self.is_full_batch or any(
            i.every == 1 and not i.after_update and "loss_train" in i.series for i in self.instruments.values()
        )


class RunData(NamedTuple):
    """The arrays of a run by name: x_train, y_train, x_test, y_test; x_val, y_val, agop_reference where there are any."""

    shared: dict[str, Array]  # the same for every member
    by_member: dict[str, Array]  # leading axis: member

    def of(self, member: int) -> dict[str, Array]:
        """The arrays of one member."""
        return self.shared | {name: array[member] for name, array in self.by_member.items()}


class MemberState(NamedTuple):
    """What one member carries from one step to the next."""

    seed: Int[Array, ""]  # of its initialisation and its batches
    params: PyTree
    opt_state: PyTree
    schedule: ScheduleState
    detector: DetectorState
    carried: dict[str, PyTree]  # for each instrument that carries something from one measurement to the next
    order: Int[Array, " n"] | None  # of the examples in this epoch; None where all are in every batch
    diverged: Bool[Array, ""]  # True from the step at which it diverged
    # True from the first step at which its raises are made, no spike is open, and the training loss is at most ``stop_loss``
    stopped: Bool[Array, ""]
    arm: Arm | None = None  # of a causal test; None: the step is the optimizer's own
