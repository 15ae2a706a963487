"""Compare two runs of one config bit by bit: ``python -m experiments.main --reproduce RUN_DIR [--workdir=DIR]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, records
from configs import default
from experiments import config as configs


class Comparison(NamedTuple):
    """Two runs of one config."""

    same: bool  # record, last state and events are equal, bit by bit
    arrays: int  # in the record
    numbers: int  # in these arrays
    # array of the record, "events" or "state" -> first step that differs, largest relative difference (None: not defined)
    differing: dict[str, dict[str, float | None]]
    environment: dict[str, list]  # differences between the environments: name -> [then, now]


def stored_config(run_dir: Path) -> ConfigDict:
    """The config of a finished run. A field that the run does not have gets its default.

    Raises:
      ConfigError: no finished run there, a damaged file, or a field that no config has.
    """
    try:
        fields, about = (records.read_json(run_dir / name) for name in ("config.json", "run.json"))
        status, _, _ = about["status"], about["instruments"], about["data"]["sha256"]
    except records.DamagedFile as error:
        raise _damaged(error) from error
    except (OSError, KeyError, TypeError) as error:
        reason = f"{Path(error.filename).name} is missing" if isinstance(error, FileNotFoundError) else configs.one_line(error)
        raise configs.ConfigError(
            f"reproduce={str(run_dir)!r} holds no run ({reason}); allowed: the directory of a finished run"
        ) from error
    if status == "running":
        raise configs.ConfigError(f"reproduce={str(run_dir)!r} holds a run that has not ended; allowed: a finished run")
    if not (run_dir / "events.jsonl").is_file():
        raise configs.ConfigError(
            f"reproduce={str(run_dir)!r} has no events.jsonl; allowed: a finished run; the command of this one finishes it"
        )
    try:
        damage = records.damage(run_dir)
        if damage:
            raise records.DamagedFile(run_dir / str(damage[0]))
        checkpoints.newest_checksum(run_dir / "checkpoints")
        records.read_json_lines(run_dir / "events.jsonl")
    except (OSError, ValueError) as error:
        raise _damaged(error) from error
    config = default.get_config()
    defaults = configs.flat(config)
    for name, value in configs.flat(fields).items():
        if name not in defaults:
            raise configs.ConfigError(f"reproduce={str(run_dir)!r}: {configs.no_field(name)}")
        if value is not None:
            value = tuple(value) if isinstance(value, list) else value
            config.update_from_flattened_dict({name: value})
    return config


def _damaged(error: Exception) -> configs.ConfigError:
    return configs.ConfigError(f"reproduce: {error}; allowed: a run whose files are not damaged")


def compare(then: Path, now: Path) -> Comparison:
    """Compare two runs: every series of the record, the events and the last state.

    Args:
      then: directory of the first run.
      now: directory of the second run.
    """
    old, new = (records.open_record(directory).load() for directory in (then, now))
    differing: dict[str, dict[str, float | None]] = {}
    for name in sorted(set(old.variables) | set(new.variables)):
        if name not in old or name not in new or old[name].shape != new[name].shape or old[name].dtype != new[name].dtype:
            differing[name] = {"first_step": 0, "largest_relative_difference": None}
        elif difference := _difference(old[name], new[name]):
            differing[name] = difference
    last = old.sizes["step"]
    texts = {
        "events": [(directory / "events.jsonl").read_text("utf-8") for directory in (then, now)],
        "state": [checkpoints.newest_checksum(directory / "checkpoints") for directory in (then, now)],
    }
    for name, (a, b) in texts.items():
        if a != b:
            differing[name] = {"first_step": 0 if name == "events" else last, "largest_relative_difference": None}
    environment = differences(*(records.read_json(directory / "run.json")["environment"] for directory in (then, now)))
    numbers = sum(old[name].size for name in old.variables)
    return Comparison(not differing, len(old.variables), int(numbers), differing, environment)


def _difference(old, new) -> dict[str, float | None] | None:
    """First step and size of the difference between two arrays of one shape and dtype; None: the same bits."""
    a, b = old.values, new.values
    unequal = _bits(a) != _bits(b)
    if not unequal.any():
        return None
    step = int(np.nonzero(unequal)[old.dims.index("step")].min()) if "step" in old.dims else 0
    with np.errstate(all="ignore"):
        relative = np.abs(b.astype(float) - a.astype(float)) / np.maximum(np.abs(a.astype(float)), np.finfo(float).tiny)
    finite = relative[unequal & np.isfinite(relative)]
    return {"first_step": step, "largest_relative_difference": float(finite.max()) if finite.size else None}


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, list]:
    """The differences between two environments.

    Returns:
      Full name -> [then, now]; None stands for a missing value.

    >>> differences({"jax": "0.9", "python": "3.12"}, {"jax": "0.10", "python": "3.12"})
    {'jax': ['0.9', '0.10']}
    """
    old, new = configs.flat(then), configs.flat(now)
    return {name: [old.get(name), new.get(name)] for name in sorted(old | new) if old.get(name) != new.get(name)}


def _bits(values: np.ndarray) -> np.ndarray:
    """View floating-point numbers as integers, so that NaN equals itself, and 0 and -0 differ."""
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "f" else values


_COMPARISON = "reproduction.json"


def is_compared(workdir: Path) -> bool:
    """Whether the directory holds a run that was compared with its first one."""
    return (workdir / _COMPARISON).is_file()


def write(comparison: Comparison, then: Path, workdir: Path) -> None:
    """Write reproduction.json: the comparison, and the directory ``then`` of the first run."""
    records.write_json(workdir / _COMPARISON, {"of": str(then)} | comparison._asdict())


def lines(comparison: Comparison) -> list[str]:
    """The comparison as text: a line for each difference, then the result.

    >>> lines(Comparison(True, 2, 60, {}, {"jax": ["0.9", "0.10"]}))
    ['environment differs in jax: 0.9 then, 0.10 now', 'reproduced: 60 numbers in 2 arrays, the same bits']
    """
    text = [f"environment differs in {name}: {old} then, {new} now" for name, (old, new) in comparison.environment.items()]
    for name, difference in comparison.differing.items():
        size = difference["largest_relative_difference"]
        by = "" if size is None else f", by {size:.1e} relative at most"
        text.append(f"{name} differs from step {difference['first_step']} on{by}")
    if comparison.same:
        return [*text, f"reproduced: {comparison.numbers} numbers in {comparison.arrays} arrays, the same bits"]
    verb = "differs" if len(comparison.differing) == 1 else "differ"
    return [*text, f"not reproduced: {', '.join(comparison.differing)} {verb}"]
