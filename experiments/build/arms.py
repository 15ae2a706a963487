"""The arms of a causal test, from the config of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import records
from catapult_jax.training.interventions import KINDS, Arm
from experiments import config as configs
from experiments.arms import ARMS, NEED_CAP_RUN

# What an arm does to the modes of a step, where its name is not that of the intervention.
_KIND = {"cap": "none", "shuffled_cap": "low_lr", "mean_cap": "low_lr"}


def build_arms(config: ConfigDict, names: Sequence[str], seeds: np.ndarray) -> Arm:
    """The arms of all members.

    ``shuffled_cap``, ``mean_cap`` and ``low_bulk`` take their factors from the arm ``cap`` of an earlier run with the same seed: its lr over
    the lr at the start, from the first step of the intervention to its last step. ``shuffled_cap`` has them in a random order, which is
    drawn from the seed; the others have their mean.

    Args:
      config: of the run.
      names: arm of each member.
      seeds: of each member.

    Returns:
      An arm whose fields have one entry for each member.

    Raises:
      ConfigError: intervention.cap_run is no run, or has no arm cap with one of the seeds.
    """
    start, steps, count = config.schedule.cap_from, config.steps, len(names)
    factors = np.ones((count, steps), np.float32)
    if set(names) & set(NEED_CAP_RUN):
        by_seed = _cap_factors(config)
        for m, (name, seed) in enumerate(zip(names, seeds, strict=True)):
            if name in NEED_CAP_RUN:
                if int(seed) not in by_seed:
                    raise configs.ConfigError(
                        f"intervention.cap_run={config.intervention.cap_run!r} has no arm cap with the seed {int(seed)} and steps from "
                        f"schedule.cap_from={start} on; allowed: a run that has; this one has the seeds: {', '.join(map(str, sorted(by_seed))) or 'none'}"
                    )
                of_cap = by_seed[int(seed)]
                factors[m, start:] = of_cap.mean() if name != "shuffled_cap" else _shuffled(of_cap, steps - start, int(seed))
    number = np.float32
    return Arm(
        kind=np.array([KINDS.index(_KIND.get(name, name)) for name in names], np.int32),
        start=np.full(count, start, np.int32),
        factors=factors,
        dose=np.full(count, config.intervention.dose, number),
        ratio=np.array([config.intervention.ratio if name in ("force", "sham") else 1.0 for name in names], number),
    )


def facts_of_cap_run(config: ConfigDict, arm: Arm | None) -> dict[str, str] | None:
    """The capped run that arms take their factors from, and the SHA-256 of all factors; None: no arm does.

    Args:
      config: of the run.
      arm: from :func:`build_arms`, or None.
    """
    if arm is None or not set(config.members.intervention) & set(NEED_CAP_RUN):
        return None
    digest = hashlib.sha256(np.ascontiguousarray(arm.factors).tobytes())
    return {"cap_run": config.intervention.cap_run, "sha256": digest.hexdigest()}


def _shuffled(factors: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """All factors in a random order, and random ones of them after that."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(factors), rng.choice(factors, steps)])[:steps]


def _cap_factors(config: ConfigDict) -> dict[int, np.ndarray]:
    """The lr over the lr at the start of each capped member, by its seed."""
    folder = Path(config.intervention.cap_run)
    try:
        record = records.open_record(folder).load()
    except (FileNotFoundError, records.DamagedFile) as error:
        raise configs.ConfigError(
            f"intervention.cap_run={config.intervention.cap_run!r} can't be read ({configs.one_line(error)}); allowed: a finished run with the "
            "arm cap, for example of configs/causes.py:rank2,cap"
        ) from error
    if "intervention" not in record.coords or "stopped" not in record:
        raise configs.ConfigError(
            f"intervention.cap_run={config.intervention.cap_run!r} has no interventions, or no loss to stop at; allowed: a run with the arm cap"
        )
    factors = {}
    for m in np.flatnonzero(record["intervention"].values == ARMS.index("cap")):
        stopped = record["stopped"].values[m]
        end = int(stopped.argmax()) if stopped.any() else record.sizes["step"]
        lr = record["lr"].values[m, config.schedule.cap_from : end] / record["lr0"].values[m]
        if len(lr):
            factors[int(record["seed"].values[m])] = lr
    return factors
