"""The members of a record: their settings, which of them diverged or are dead, and where their training ended.

A record is an xarray Dataset over (member, step), as :func:`catapult_jax.open_record` returns it. The names of its series are those of
the instruments in :mod:`catapult_jax.training.instruments`. A series that is missing counts as not measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from catapult_jax.spikes import dead_from

if TYPE_CHECKING:
    import xarray

SAME_LOSS = 0.8  # a member that ends below this multiple of the loss to stop at went past it
ALL = "all members"  # the label of the one setting of a record without coordinates


class Settings(NamedTuple):
    """What must be known of a run beside its record. The defaults are those of full-batch training without momentum."""

    examples: int | None = None  # in the training set; needed together with batch_size
    batch_size: int | None = None  # examples in a batch; None: all
    lr_unit: str = "absolute"  # of the coordinate lr_given: "absolute", or "critical_lr0" for multiples of the critical lr at initialisation
    momentum: float = 0.0  # weight of the past in the average of gradients that the optimizer follows
    weight_decay: float = 0.0  # decoupled, as in AdamW
    factor: float = 1.5  # a spike opens above this multiple of its level
    delta: float = 0.1  # a spike has returned at 1 + delta times its level
    horizon: int = 1000  # steps after which a spike that has not closed is a divergence
    stop_loss: float | None = None  # training loss at which a member stops; None: it does not
    smoothing: float | None = (
        None  # weight of the past in the average of the loss of random batches, in which spikes are looked for
    )
    top_k: int | None = None  # eigenvectors in the top eigenspace, for the labels; None: not given


# Series and members of a record.


def series_or_nan(record: xarray.Dataset, name: str) -> np.ndarray:
    """The values of a series.

    Args:
      record: series over (member, step).
      name: of the series.

    Returns:
      Values, ``(member, step)``; NaN if the series is missing.

    >>> import xarray
    >>> series_or_nan(xarray.Dataset(coords={"member": [0], "step": [0, 1]}), "lr").tolist()
    [[nan, nan]]
    """
    return record[name].values if name in record else np.full((record.sizes["member"], record.sizes["step"]), np.nan)


def flags(record: xarray.Dataset, name: str) -> np.ndarray:
    """The values of a series of booleans.

    Args:
      record: series over (member, step).
      name: of the series.

    Returns:
      Values, ``(member, step)``; False if the series is missing.

    >>> import xarray
    >>> flags(xarray.Dataset(coords={"member": [0], "step": [0, 1]}), "stopped").tolist()
    [[False, False]]
    """
    return record[name].values if name in record else np.zeros((record.sizes["member"], record.sizes["step"]), bool)


def is_stochastic(settings: Settings) -> bool:
    """Whether a step sees a batch rather than all examples: ``batch_size`` says so, or ``smoothing``.

    Args:
      settings: of the run.

    Returns:
      Whether batches are smaller than the training set.

    >>> is_stochastic(Settings(examples=128, batch_size=32)), is_stochastic(Settings())
    (True, False)
    """
    return settings.smoothing is not None or settings.batch_size not in (None, settings.examples)


def steps_of_an_epoch(settings: Settings) -> int:
    """Steps in which every example is in a batch once.

    Args:
      settings: of the run.

    Returns:
      Their number; 1 if a step sees all examples.

    Raises:
      ValueError: ``batch_size`` without ``examples``.

    >>> steps_of_an_epoch(Settings(examples=128, batch_size=32)), steps_of_an_epoch(Settings())
    (4, 1)
    """
    if settings.batch_size is None or not is_stochastic(settings):
        return 1
    if settings.examples is None:
        raise ValueError(
            f"examples=None; allowed: the size of the training set, since batch_size={settings.batch_size} is given"
        )
    return settings.examples // settings.batch_size


def lambda_series(record: xarray.Dataset, settings: Settings) -> str | None:
    """The series of lambda_max whose values all belong to the same examples.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      Its name; None if there is no such series.

    >>> import xarray
    >>> record = xarray.Dataset({"lambda_max_batch": (("member", "step"), [[1.0, 2.0]])})
    >>> lambda_series(record, Settings()), lambda_series(record, Settings(examples=128, batch_size=32))
    ('lambda_max_batch', None)
    """
    candidates = ("lambda_max_train", "lambda_max_probe", *(() if is_stochastic(settings) else ("lambda_max_batch",)))
    return next((name for name in candidates if name in record), None)


def spike_series(record: xarray.Dataset) -> str:
    """The loss in which spikes are looked for: the training loss if it is on record, otherwise the batch loss.

    Args:
      record: series over (member, step).

    Returns:
      Its name.

    >>> spike_series({"loss_batch": 1.0})
    'loss_batch'
    """
    return "loss_train" if "loss_train" in record else "loss_batch"


def has_events(record: xarray.Dataset, settings: Settings) -> bool:
    """Whether spikes can be looked for. This needs the training loss of every step, or that of a batch that holds all examples.

    A level is a loss to be multiplied, so a loss that is negative somewhere has no spikes.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      Whether that loss is on record, without NaN before a finite value, and not negative. In the record of a watched loop (with ``event``)
      steps may be left out.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_batch": (("member", "step"), [[1.0, 0.5, 0.2]])})
    >>> has_events(record, Settings()), has_events(record, Settings(examples=128, batch_size=32))
    (True, False)
    """
    stochastic = is_stochastic(settings) and settings.smoothing is None
    if "loss_train" not in record and ("loss_batch" not in record or stochastic):
        return False
    loss = record[spike_series(record)].values
    is_missing = np.isnan(loss[:, :-1]) & np.isfinite(loss[:, 1:])  # such a step was not measured
    if "event" in record:  # spikes are looked for in the steps of updates that are on record
        is_missing &= ~np.isnan(record["event"].values[:, :-1])
    return not is_missing.any() and not (loss < 0).any()


def own_series(record: xarray.Dataset) -> list[str]:
    """Metrics of the user in the record of a watched loop.

    Args:
      record: series over (member, step). Its attribute ``own_metrics``, which :class:`catapult_jax.Recorder` writes, names them.

    Returns:
      Names of series with a value.

    >>> import xarray
    >>> own_series(xarray.Dataset({"accuracy": (("member", "step"), [[0.5]])}, attrs={"own_metrics": ["accuracy", "other"]}))
    ['accuracy']
    """
    names = record.attrs.get("own_metrics", ())
    return [name for name in names if name in record and bool(record[name].notnull().any())]


def by_setting(record: xarray.Dataset, settings: Settings) -> list[tuple[str, np.ndarray]]:
    """The members of each setting (learning rate, number of raises, cap, arm of a causal test), over all seeds.

    Args:
      record: its coordinates ``lr_given``, ``raises``, ``cap`` and ``intervention`` make the settings, where they are present.
      settings: of the run.

    Returns:
      ``[(label, member numbers)]``, in the order of the members.

    >>> import xarray
    >>> record = xarray.Dataset(coords={"lr_given": ("member", [0.5, 1.5, 0.5])})
    >>> [(label, members.tolist()) for label, members in by_setting(record, Settings())]
    [('lr 0.5', [0, 2]), ('lr 1.5', [1])]
    """
    absolute = settings.lr_unit == "absolute"
    labels = {
        "lr_given": "lr {:.4g}" if absolute else "{:.4g} x critical lr at start",
        "raises": "{} raises",
        "cap": "cap {:.4g}",
        "intervention": "{}",
    }
    present = [name for name in labels if name in record.coords]
    axes = [name for name in present if len(np.unique(record[name])) > 1] or present[:1]
    if not axes:
        return [(ALL, np.arange(record.sizes["member"]))]
    values = list(zip(*(record[name].values for name in axes), strict=True))
    arms = record.attrs.get("interventions")  # names of the codes

    def text(name: str, value: Any) -> str:
        if name == "intervention" and arms:
            return arms[int(value)]
        return "no cap" if name == "cap" and np.isinf(value) else labels[name].format(value)

    label = lambda setting: ", ".join(text(name, value) for name, value in zip(axes, setting, strict=True))
    return [(label(s), np.array([m for m, other in enumerate(values) if other == s])) for s in dict.fromkeys(values)]


# Members that diverged or are dead.


def dead_steps(record: xarray.Dataset, settings: Settings) -> np.ndarray:
    """Step from which on the network of each member is dead; see :func:`catapult_jax.dead_from`.

    If only kernels of random batches are on record, they must be zero to the end, for an epoch at least.
    A member that diverged is not dead.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      Steps, ``(member,)``; -1 for a member that is not dead.

    Raises:
      ValueError: ``batch_size`` without ``examples``.

    >>> import xarray
    >>> series = {"loss_batch": [[2.0, 9.0, 9.0]], "lambda_max_batch": [[1.0, 0.0, 0.0]]}
    >>> dead_steps(xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()}), Settings())
    array([1])
    """
    steps, name = np.full(record.sizes["member"], -1), lambda_series(record, settings)
    name, least = (name, 1) if name else ("lambda_max_batch", steps_of_an_epoch(settings))
    if name in record and spike_series(record) in record:
        for m in np.flatnonzero(~flags(record, "diverged")[:, -1]):
            steps[m] = dead_from(record[name].values[m], record[spike_series(record)].values[m], steps=least)
    return steps


def dead_members(record: xarray.Dataset, settings: Settings) -> list[dict[str, Any]]:
    """Members whose network is dead.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      For each its number ``member`` and the first ``step`` at which it is dead.

    >>> import xarray
    >>> series = {"loss_batch": [[2.0, 9.0, 9.0]], "lambda_max_batch": [[1.0, 0.0, 0.0]]}
    >>> dead_members(xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()}), Settings())
    [{'member': 0, 'step': 1}]
    """
    return [{"member": m, "step": int(step)} for m, step in enumerate(dead_steps(record, settings)) if step >= 0]


def dead_text(dead: list[dict[str, Any]]) -> str:
    """How many members are dead, and which.

    Args:
      dead: as :func:`dead_members` returns them.

    Returns:
      One line.

    >>> dead_text([{"member": 1, "step": 3}])
    'dead: 1 (member 1 from step 3)'
    """
    return f"dead: {len(dead)} ({', '.join('member {member} from step {step}'.format(**row) for row in dead)})"


def active(record: xarray.Dataset, settings: Settings) -> np.ndarray:
    """Steps at which a member has not diverged and is not dead.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      Booleans, ``(member, step)``.

    >>> import xarray
    >>> record = xarray.Dataset({"diverged": (("member", "step"), [[False, True, True]])})
    >>> active(record, Settings()).tolist()
    [[True, False, False]]
    """
    dead, steps = dead_steps(record, settings)[:, None], np.arange(record.sizes["step"])
    return ~flags(record, "diverged") & ~((dead >= 0) & (steps >= dead))


def running(record: xarray.Dataset, settings: Settings, m: int) -> np.ndarray:
    """Steps at which member ``m`` is active and has not stopped at the loss to stop at.

    Args:
      record: series over (member, step).
      settings: of the run.
      m: number of the member.

    Returns:
      Booleans, ``(step,)``.

    >>> import xarray
    >>> record = xarray.Dataset({"stopped": (("member", "step"), [[False, False, True]])})
    >>> running(record, Settings(), 0).tolist()
    [True, True, False]
    """
    return active(record, settings)[m] & ~flags(record, "stopped")[m]


def diverged_members(record: xarray.Dataset, settings: Settings) -> list[dict[str, Any]]:
    """Members that diverged, as the series ``diverged`` says.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      For each its number ``member``, the ``step`` from which on it is frozen, and the ``cause``.

    >>> import xarray
    >>> series = {"loss_batch": [[1.0, float("inf")]], "diverged": [[False, True]]}
    >>> diverged_members(xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()}), Settings())
    [{'member': 0, 'step': 1, 'cause': 'the loss was not finite'}]
    """
    diverged = flags(record, "diverged")
    losses = [name for name in ("loss_batch", "loss_train") if name in record]
    rows = []
    for m in np.flatnonzero(diverged[:, -1]):
        step = int(np.argmax(diverged[m]))
        is_finite = all(np.isfinite(record[name].values[m, step]) for name in losses)
        cause = f"a spike did not close within {settings.horizon} steps" if is_finite else "the loss was not finite"
        rows.append({"member": int(m), "step": step, "cause": cause})
    return rows


def until_diverged(record: xarray.Dataset) -> xarray.Dataset:
    """The record with NaN in every series of a member after the step at which it diverged: it is frozen there.

    Args:
      record: series over (member, step).

    Returns:
      A copy; the record itself if there is nothing to change.

    >>> import xarray
    >>> series = {"loss_batch": [[1.0, 9.0, 9.0]], "diverged": [[False, True, True]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> until_diverged(record)["loss_batch"].values.tolist()
    [[1.0, 9.0, nan]]
    """
    after = np.cumsum(flags(record, "diverged"), axis=1) > 1
    if not after.any():
        return record
    record = record.copy(deep=True)
    for array in record.data_vars.values():
        if array.dims[:2] == ("member", "step") and array.dtype.kind == "f":
            array.values[after] = np.nan
    return record


# Where training ended.


def last(record: xarray.Dataset, settings: Settings, name: str) -> np.ndarray:
    """The last measured value of a series, for each member.

    For a member that stopped, only values since then count.

    Args:
      record: with the series.
      settings: of the run.
      name: of the series.

    Returns:
      Values, ``(member,)``; NaN if there is no such value, or the member diverged or is dead.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_test": (("member", "step"), [[3.0, 2.0, float("nan")]])})
    >>> last(record, Settings(), "loss_test")
    array([2.])
    """
    values, is_active = record[name].values.astype(float), active(record, settings)[:, -1]
    stopped = flags(record, "stopped")
    values = np.where(stopped.any(1, keepdims=True) & ~stopped, np.nan, values)
    pick = lambda row: row[np.isfinite(row)][-1] if np.isfinite(row).any() else np.nan
    return np.array([pick(row) if ok else np.nan for row, ok in zip(values, is_active, strict=True)], float)


def finished(record: xarray.Dataset, settings: Settings) -> np.ndarray:
    """Members that came to the end of training.

    With a loss to stop at: the member stopped, and its last training loss is 0.8 to 1 times that loss. Without: it is active to the end.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      Booleans, ``(member,)``.

    >>> import xarray
    >>> finished(xarray.Dataset({"diverged": (("member", "step"), [[False], [True]])}), Settings())
    array([ True, False])
    """
    is_active = active(record, settings)[:, -1]
    if "stopped" not in record:
        return is_active
    stopped = record["stopped"].values[:, -1] & is_active
    if settings.stop_loss is None or "loss_train" not in record:
        return stopped
    return stopped & (last(record, settings, "loss_train") >= SAME_LOSS * settings.stop_loss)
