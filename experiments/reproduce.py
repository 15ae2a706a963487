"""Runs a finished run again and compares: python -m experiments.main --reproduce RUN_DIR [--workdir=DIR]."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, records
from configs import default
from experiments import config as configs


class Comparison(NamedTuple):
    """Two runs of one config."""

    same: bool  # every number of the record and of the last state, bit for bit, and every event
    arrays: int  # in the record
    numbers: int
    differing: dict[
        str, dict[str, float | None]
    ]  # array, events or state -> first step at which it differs, largest relative difference
    environment: dict[str, list]  # what differs there: [then, now]


def stored_config(run_dir: Path) -> ConfigDict:
    """The config of a run, over today's defaults for fields that it did not have.

    Raises:
      ConfigError: no finished run there, or a config with fields that are no longer known.
    """
    try:
        fields, about = (records.read_json(run_dir / name) for name in ("config.json", "run.json"))
        status, _, _ = about["status"], about["instruments"], about["data"]["sha256"]
    except records.DamagedFile as error:
        raise configs.ConfigError(f"reproduce: {error}; allowed: a run whose files are as it wrote them") from error
    except (OSError, KeyError, TypeError) as error:
        raise configs.ConfigError(
            f"reproduce={str(run_dir)!r} holds no run ({configs.one_line(error)}); allowed: the directory of a finished run"
        ) from error
    if status == "running":
        raise configs.ConfigError(f"reproduce={str(run_dir)!r} holds a run that has not ended; allowed: a finished one")
    try:
        found = records.damage(run_dir)
        if found:
            raise records.DamagedFile(run_dir / str(found[0]))
        checkpoints.newest_checksum(run_dir / "checkpoints")
        records.read_json_lines(run_dir / "events.jsonl")
    except (OSError, ValueError) as error:
        raise configs.ConfigError(f"reproduce: {error}; allowed: a run whose files are as it wrote them") from error
    config = default.get_config()
    known = configs.flat(config)
    for name, value in configs.flat(fields).items():
        if name not in known:
            raise configs.ConfigError(f"reproduce={str(run_dir)!r}: {configs.no_field(name)}")
        if value is not None:
            value = tuple(value) if isinstance(value, list) else value
            config.update_from_flattened_dict({name: value})
    return config


def compare(then: Path, now: Path) -> Comparison:
    """The record, the events and the last state of a run against those of another."""
    old, new = (records.open_record(directory).load() for directory in (then, now))
    differing: dict[str, dict[str, float | None]] = {}
    for name in sorted(set(old.variables) | set(new.variables)):
        if name not in old or name not in new or old[name].shape != new[name].shape or old[name].dtype != new[name].dtype:
            differing[name] = {"first_step": 0, "largest_relative_difference": None}
            continue
        a, b = old[name].values, new[name].values
        unequal = _bits(a) != _bits(b)
        if unequal.any():
            step = int(np.nonzero(unequal)[old[name].dims.index("step")].min()) if "step" in old[name].dims else 0
            with np.errstate(all="ignore"):
                relative = np.abs(b.astype(float) - a.astype(float)) / np.maximum(np.abs(a.astype(float)), np.finfo(float).tiny)
            finite = relative[unequal & np.isfinite(relative)]
            differing[name] = {"first_step": step, "largest_relative_difference": float(finite.max()) if finite.size else None}
    last = old.sizes["step"]
    pairs = {
        "events": [(directory / "events.jsonl").read_text("utf-8") for directory in (then, now)],
        "state": [checkpoints.newest_checksum(directory / "checkpoints") for directory in (then, now)],
    }
    for name, (a, b) in pairs.items():
        if a != b:
            differing[name] = {"first_step": 0 if name == "events" else last, "largest_relative_difference": None}
    changed = differences(*(records.read_json(directory / "run.json")["environment"] for directory in (then, now)))
    numbers = sum(old[name].size for name in old.variables)
    return Comparison(not differing, len(old.variables), int(numbers), differing, changed)


def differences(then: dict, now: dict) -> dict[str, list]:
    """What differs between two environments: name -> [then, now]."""
    old, new = configs.flat(then), configs.flat(now)
    return {name: [old.get(name), new.get(name)] for name in sorted(old | new) if old.get(name) != new.get(name)}


def _bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers in place of floating-point ones, so that NaN equals itself and 0 is not -0."""
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "f" else values


def write(comparison: Comparison, then: Path, workdir: Path) -> None:
    """reproduction.json: a comparison, and the run that was repeated."""
    records.write_json(workdir / "reproduction.json", {"of": str(then)} | comparison._asdict())


def lines(comparison: Comparison) -> list[str]:
    """What a reader wants to know: what differs, in the environment and in the record, and the result."""
    found = [f"environment differs in {name}: {old} then, {new} now" for name, (old, new) in comparison.environment.items()]
    for name, about in comparison.differing.items():
        size = about["largest_relative_difference"]
        by = "" if size is None else f", by {size:.1e} relative at most"
        found.append(f"{name} differs from step {about['first_step']} on{by}")
    if comparison.same:
        return [*found, f"reproduced: {comparison.numbers} numbers in {comparison.arrays} arrays, the same bits"]
    return [
        *found,
        f"not reproduced: {', '.join(comparison.differing)} {'differs' if len(comparison.differing) == 1 else 'differ'}",
    ]
