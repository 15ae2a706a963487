"""What a record says: its events, which members diverged or are dead, ends and predictions. It decides nothing."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from catapult_jax.detection import momentum_horizon
from catapult_jax.events import Event
from catapult_jax.metrics import Prediction, prediction, scores
from catapult_jax.spikes import FACTORS, count_spikes, dead_from, find_events
from experiments import optimizers

if TYPE_CHECKING:
    import xarray

CONFUSION = ("true_positive", "false_positive", "false_negative", "true_negative")
SAME_LOSS = 0.8  # a member that ends below this multiple of the loss to stop at went past it


# Members and steps of a record.


def is_stochastic(config: dict[str, Any]) -> bool:
    """Whether a step sees a batch rather than all examples."""
    return config["optimizer"]["batch_size"] not in (None, config["data"]["train_size"])


def _steps_of_an_epoch(config: dict[str, Any]) -> int:
    """Steps in which every example is in a batch once."""
    return config["data"]["train_size"] // config["optimizer"]["batch_size"] if is_stochastic(config) else 1


def lambda_series(record, config: dict[str, Any]) -> str | None:
    """The series of lambda_max whose values are all of the same examples; None where there is no such series."""
    same = ("lambda_max_train", "lambda_max_probe", *(() if is_stochastic(config) else ("lambda_max_batch",)))
    return next((name for name in same if name in record), None)


def spike_series(record) -> str:
    """The loss in which spikes are looked for."""
    return "loss_train" if "loss_train" in record else "loss_batch"


def has_events(record, config: dict[str, Any]) -> bool:
    """Whether spikes can be looked for. With batches this needs the training loss on record."""
    return "loss_train" in record or not is_stochastic(config)


def by_setting(record, config: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """The members of each setting, over all its seeds.

    Returns:
      ``[(label, member numbers)]``, in the order of the config.
    """
    absolute = config["optimizer"]["lr_unit"] == "absolute"
    labels = {
        "lr_given": "lr {:.4g}" if absolute else "{:.4g} x critical lr at start",
        "raises": "{} raises",
        "cap": "cap {:.4g}",
    }
    axes = [name for name in labels if name in record.coords and len(np.unique(record[name])) > 1] or ["lr_given"]
    settings = list(zip(*(record[name].values for name in axes), strict=True))
    label = lambda setting: ", ".join(labels[name].format(value) for name, value in zip(axes, setting, strict=True))
    # In the order of the members, which is that of the config.
    return [(label(s), np.array([m for m, other in enumerate(settings) if other == s])) for s in dict.fromkeys(settings)]


# Members that diverged or are dead.


def dead_steps(record, config: dict[str, Any]) -> np.ndarray:
    """For each member the step from which on its network is dead, or -1; see :func:`catapult_jax.dead_from`.

    Where only kernels of random batches are on record, they must be zero to the end, for an epoch at least.
    A member that diverged is not dead.
    """
    found, name = np.full(record.sizes["member"], -1), lambda_series(record, config)
    name, steps = (name, 1) if name else ("lambda_max_batch", _steps_of_an_epoch(config))
    if name in record:
        for m in np.flatnonzero(~record["diverged"].values[:, -1]):
            found[m] = dead_from(record[name].values[m], record[spike_series(record)].values[m], steps=steps)
    return found


def dead_members(record, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Members whose network is dead: ``member``, ``step`` from which on."""
    return [{"member": m, "step": int(step)} for m, step in enumerate(dead_steps(record, config)) if step >= 0]


def dead_text(dead: list[dict[str, Any]]) -> str:
    """How many are dead, and which."""
    return f"dead: {len(dead)} ({', '.join('member {member} from step {step}'.format(**one) for one in dead)})"


def active(record, config: dict[str, Any]) -> np.ndarray:
    """(member, step): the member has not diverged and is not dead."""
    dead, steps = dead_steps(record, config)[:, None], np.arange(record.sizes["step"])
    return ~record["diverged"].values & ~((dead >= 0) & (steps >= dead))


def running(record, config, m: int) -> np.ndarray:
    """(step,): the member has not diverged, is not dead, and has not stopped at the loss to stop at."""
    steps = active(record, config)[m]
    return steps & ~record["stopped"].values[m] if "stopped" in record else steps


def diverged_members(record, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Members that diverged: ``member``, ``step`` from which it is frozen, ``cause``."""
    diverged = record["diverged"].values
    found = []
    for m in np.flatnonzero(diverged[:, -1]):
        step = int(np.argmax(diverged[m]))
        finite = all(np.isfinite(record[name].values[m, step]) for name in ("loss_batch", "loss_train") if name in record)
        cause = f"a spike did not close within {config['events']['horizon']} steps" if finite else "the loss was not finite"
        found.append({"member": int(m), "step": step, "cause": cause})
    return found


def until_diverged(record: xarray.Dataset) -> xarray.Dataset:
    """The record with NaN for what was measured of a member after the step at which it diverged: it is frozen there."""
    after = np.cumsum(record["diverged"].values, axis=1) > 1
    if not after.any():
        return record
    record = record.copy(deep=True)
    for array in record.data_vars.values():
        if array.dims[:2] == ("member", "step") and array.dtype.kind == "f":
            array.values[after] = np.nan
    return record


# Events. A report asks for those of one member many times, for each claim and figure: they are computed once.

_EVENTS: dict[bytes, tuple[Event, ...]] = {}  # by a digest of the series
_MOST_SERIES = 4096  # a report has members x factors of them; the events of one are small


def spike_counts(record, config: dict[str, Any]) -> list[dict[float, int]]:
    """Number of spikes of each member for each factor of :data:`catapult_jax.spikes.FACTORS`; as :func:`run_events`, of the same series."""
    if not has_events(record, config):
        return [dict.fromkeys(FACTORS, 0) for _ in range(record.sizes["member"])]
    settings, loss = config["events"], record[spike_series(record)].values
    options = {"delta": settings["delta"], "horizon": settings["horizon"]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the loss changes by")  # it is the training loss
        return [count_spikes(row[_measured(record, m)], **options) for m, row in enumerate(loss)]


def _measured(record, m: int) -> slice:
    """Steps of a member up to the one at which it diverged."""
    diverged = record["diverged"].values[m]
    return slice(0, int(diverged.argmax()) + 1 if diverged[-1] else None)


def run_events(record, config: dict[str, Any], *, factor: float | None = None) -> list[list[Event]]:
    """Events of each member, in the training loss where it is on record, otherwise in the batch loss.

    With batches and no training loss there are no events: the noise of batches is no spike.

    Args:
      record: Series of shape (member, step).
      config: Fields of the run's config.
      factor: Spike factor; None: the config's.

    Returns:
      A list of events for each member.
    """
    settings = config["events"]
    if not has_events(record, config):
        return [[] for _ in range(record.sizes["member"])]
    loss, split = record[spike_series(record)], "loss_train" if is_stochastic(config) else "loss"
    pick = lambda name, m: record[name].values[m] if name in record else None
    missing, factor = np.full(record.sizes["step"], np.nan), settings["factor"] if factor is None else factor
    events = []
    for m in range(record.sizes["member"]):
        measured = _measured(record, m)
        critical = pick("critical_lr_batch", m)
        critical = missing if critical is None else critical
        if "lambda_max_batch" in record:  # with a decay the critical lr of a kernel of zero is not infinite
            critical = np.where(record["lambda_max_batch"].values[m] == 0, np.inf, critical)
        options = {
            "factor": factor,
            "delta": min(settings["delta"], (factor - 1) / 2),
            "horizon": settings["horizon"],
            "momentum_horizon": momentum_horizon(optimizers.momentum(config["optimizer"])),
            "dead_steps": _steps_of_an_epoch(config),
        }
        series = (
            loss.values[m], record["lr"].values[m], critical, pick(lambda_series(record, config), m),
            pick(f"{split}_top", m), pick(f"{split}_rest", m),
        )  # fmt: skip
        arrays = [None if values is None else np.ascontiguousarray(values[measured], np.float32) for values in series]
        events.append(_events_of_series(arrays, options))
    return events


def _events_of_series(series: list[np.ndarray | None], options: dict[str, Any]) -> list[Event]:
    """Events of these series, from the cache where it has them.

    The key is a digest of values and options, so that a record that changes gets new events.
    """
    lengths = [None if values is None else len(values) for values in series]
    digest = hashlib.blake2b(repr((options, lengths)).encode())
    for values in series:
        digest.update(b"" if values is None else values)
    key = digest.digest()
    if key not in _EVENTS:
        if len(_EVENTS) >= _MOST_SERIES:
            del _EVENTS[next(iter(_EVENTS))]  # the oldest
        loss, lr, critical, *rest = series
        named = dict(zip(("lambda_max", "loss_top", "loss_rest"), rest, strict=True))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the loss changes by")  # it is the training loss
            _EVENTS[key] = tuple(find_events(loss, lr, critical, **named, **options))
    return list(_EVENTS[key])


def catapult_counts(record, config) -> np.ndarray:
    """Catapults of each member."""
    return np.array([sum(e.kind == "catapult" for e in found) for found in run_events(record, config)])


# Where the lr is above its critical value, and what that predicts.


def uncertain_steps(record) -> np.ndarray:
    """(member, step): the lr is so near its critical value that its side is uncertain.

    The margin is the rounding of the kernel or, with kernel-vector products, the bound on the eigenvalue where that is larger.
    """
    if "critical_lr_batch" not in record:
        return np.zeros(record["lr"].shape, bool)
    margin = np.full(record["lr"].shape, record.attrs.get("critical_lr_margin", 0.0))
    if "eigenvalue_bounds" in record:
        with np.errstate(divide="ignore", invalid="ignore"):
            margin = np.fmax(margin, record["eigenvalue_bounds"].values[..., 0] / record["eigenvalues"].values[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(record["lr"].values / record["critical_lr_batch"].values - 1) <= margin


def critical_fraction(record, config, m: int) -> float:
    """Fraction of the running steps with a known critical lr at which the lr is above it; NaN without such steps."""
    critical = record["critical_lr_batch"].values[m]
    known = ~np.isnan(critical) & running(record, config, m)
    return float((record["lr"].values[m] > critical)[known].mean()) if known.any() else float("nan")


def batch_prediction(record, config, m: int) -> Prediction:
    """How well lr > critical lr predicts, for one member, that the loss of the same batch rises in the step."""
    critical = record["critical_lr_batch"].values[m]
    before, after = record["loss_batch"].values[m], record["loss_batch_after"].values[m]
    known = np.isfinite(critical) & np.isfinite(before) & ~np.isnan(after)
    known &= running(record, config, m)  # a frozen member predicts nothing
    return prediction((record["lr"].values[m] > critical)[known], (after > before)[known])


def rise_predictions(record, config) -> dict[str, list[Prediction]]:
    """How well lr > critical lr predicts three events of a step, for each member.

    The events: the loss of that batch rises; the loss of all examples rises; the step lies between the onset and the peak of a spike.

    Returns:
      For each event one table per member.
    """
    tables: dict[str, list[Prediction]] = {"batch loss": [], "full training loss": [], "spikes of the full training loss": []}
    events = run_events(record, config)
    for m in range(record.sizes["member"]):
        critical = record["critical_lr_batch"].values[m]
        above, going = record["lr"].values[m] > critical, running(record, config, m)
        full = record["loss_train"].values[m]
        tables["batch loss"].append(batch_prediction(record, config, m))
        known = np.isfinite(critical[:-1]) & np.isfinite(full[:-1]) & ~np.isnan(full[1:]) & going[:-1]
        tables["full training loss"].append(prediction(above[:-1][known], (full[1:] > full[:-1])[known]))
        climbing = np.zeros(len(full), bool)
        for event in events[m]:
            climbing[event.onset : event.peak] = True
        tables["spikes of the full training loss"].append(prediction(above[:-1][known], climbing[:-1][known]))
    return tables


def pooled(tables: list[Prediction]) -> Prediction:
    """One table with the counts of all ``tables``."""
    return scores(*(sum(t[i] for t in tables) for i in range(4)))


# Ends.


def last(record, config, name: str) -> np.ndarray:
    """The last measured value of each member.

    A member that stopped counts only with what was measured since. NaN: no such value, or the member diverged or is dead.
    """
    values, is_active = record[name].values.astype(float), active(record, config)[:, -1]
    done = record["stopped"].values if "stopped" in record else np.zeros(values.shape, bool)
    values = np.where(done.any(1, keepdims=True) & ~done, np.nan, values)
    found = [
        row[np.isfinite(row)][-1] if ok and np.isfinite(row).any() else np.nan
        for row, ok in zip(values, is_active, strict=True)
    ]
    return np.array(found, float)


def finished(record, config) -> np.ndarray:
    """(member,): the member ended between 0.8 and 1 times the loss to stop at.

    Without such a loss: it has not diverged and is not dead.
    """
    is_active = active(record, config)[:, -1]
    if "stopped" not in record:
        return is_active.copy()
    return (
        record["stopped"].values[:, -1]
        & is_active
        & (last(record, config, "loss_train") >= SAME_LOSS * config["run"]["stop_loss"])
    )
