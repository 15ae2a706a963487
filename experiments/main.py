"""Runs one config: python -m experiments.main --config=configs/cifar_gd.py[:VARIANT] [--config.FIELD=VALUE] [--workdir=DIR].

Again, to see whether the same comes out: python -m experiments.main --reproduce RUN_DIR [--workdir=DIR].
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from catapult_jax import checkpoints, provenance, records, training
from catapult_jax.tangent.exact import method_taken
from experiments import (
    analysis,
    build,
    command_line,
    directory,
    outputs,
    progress,
    recovery,
    report,
    reproduce,
    rules,
    signals,
    verdicts,
)
from experiments import config as configs
from experiments.build.checks import check_kernel
from experiments.build.trainer import rows_of

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; default: runs/CONFIG-IDENTITY.")
_REPRODUCE = flags.DEFINE_string(
    "reproduce", None, "Directory of a finished run, to be run again (into --workdir, default RUN_DIR-again) and compared."
)

_PRODUCTS_LIMIT = 0.02  # relative error allowed to a critical lr at initialisation that comes from products
_ROUNDING = 1e-6  # relative error of an entry of a kernel, where it could not be found, and the least that is assumed

_WRITE_SECONDS, _WRITE_STEPS = 10, 20_000  # the record is written at least so often


def run(config: ConfigDict, workdir: Path, like: dict | None = None) -> list[verdicts.Verdict]:
    """Runs or resumes a config in a directory, and writes its report.

    ``like``: what run.json says of a run that this one is to repeat: on the same data, with the cadences and methods that it found.

    Raises:
      ConfigError: the config can't be run, or the directory holds another one, or another process has it.
      RunError: the run can't go on.
    """
    rules.check(config)
    config = configs.expanded(config)
    find_nans = bool(jax.config.jax_debug_nans)
    # A measurement that is not due is NaN, which JAX would stop at: _find_nans looks for the others.
    with contextlib.ExitStack() as until_the_end, jax.debug_nans(False):
        return _run(config, workdir, like, until_the_end, find_nans)


def _run(
    config: ConfigDict, workdir: Path, like: dict | None, until_the_end: contextlib.ExitStack, find_nans: bool
) -> list[verdicts.Verdict]:
    begin, as_json = time.monotonic(), json.loads(config.to_json())
    new = directory.is_new(workdir)
    earlier, harm = _earlier(workdir, as_json, until_the_end, new)
    loaded = build.load(config, earlier or like)
    if earlier and earlier["status"] != "running" and not harm:
        print("already complete")
        with directory.written(workdir):
            return report.build(workdir)
    built = build.build(config, earlier or like, loaded)
    with build.fitting():
        state, start = built.trainer.init(built.members)
    title = report.title_of(as_json, {"data": {"name": built.data.name}})
    check = _announce(config, title, built, state, start)
    if new:
        _take(workdir, until_the_end)
    about = _about(built, check, earlier)
    coordinates, attributes = _coordinates(built.members, start), _attributes(config, title, built, check)
    restored = recovery.restore(config, workdir, built, state, coordinates, attributes, harm)
    state = state if restored is None else restored
    if earlier:
        print(f"resuming at step {int(state.step)} of {config.steps}")
        for name, (then, now) in reproduce.differences(earlier["environment"], about["resumed_with"][-1]).items():
            print(f"WARNING: environment differs in {name}: {then} then, {now} now", file=sys.stderr)
    with directory.written(workdir):
        records.write_json(workdir / "config.json", as_json)
        records.write_json(workdir / "run.json", about)
        state = _train(config, workdir, built.trainer, state, coordinates, attributes, find_nans)
        ended, usable = _ended(workdir, as_json, state)
        if config.run.save_model and usable[0]:
            outputs.write_model(workdir, built.model, state, built.data, {"config": as_json, "data": about["data"]})
        if "agop_alignment" in built.plan["cadences"]:
            outputs.write_directions(config, workdir, built, state, coordinates, usable)
        records.write_json(workdir / "run.json", about | ended | {"seconds": about["seconds"] + time.monotonic() - begin})
        found = report.build(workdir)
    if config.run.save_model and not usable[0]:
        raise configs.RunError(
            "run.save_model: the first member diverged or is dead, so that there is no model.npz; allowed: a run whose first member ends with finite parameters and a kernel that is not zero"
        )
    return found


def _earlier(workdir: Path, as_json: dict, until_the_end: contextlib.ExitStack, new: bool) -> tuple[dict | None, list]:
    """What run.json says of the run that is in the directory, and the damage to its record. Locks a directory that holds a run."""
    if new:
        directory.check_writable(workdir)
        return None, []
    directory.earlier_run(workdir, as_json)  # a directory of something else is not touched
    until_the_end.enter_context(directory.held(workdir))
    earlier = directory.earlier_run(workdir, as_json)
    return earlier, records.damage(workdir) if earlier else []


def _take(workdir: Path, until_the_end: contextlib.ExitStack) -> None:
    """Makes and locks a new directory, once everything that can be refused was."""
    until_the_end.enter_context(directory.held(workdir))
    if not directory.is_new(workdir):
        raise configs.ConfigError(f"workdir={str(workdir)!r} was taken by another process meanwhile; allowed: another workdir")


def _announce(config: ConfigDict, title: str, built: build.Built, state, start: training.Start) -> dict:
    """Prints what is known before the first step; returns the comparison of the kernel with neural_tangents.

    Raises:
      RunError: the kernel differs from it, or the critical lr at initialisation is not known well enough.
      ConfigError: a relative lr of a member whose critical lr is infinite or NaN.
    """
    members, model, x = built.members, built.model, built.data.x_train
    print(f"{title}; {len(members.seed)} members; data: {built.data.source}")
    first = jax.tree.map(lambda a: a[0], state.members.params)
    check = check_kernel(model, first, x)
    print(f"exact kernel: {method_taken(model.apply, first, x)}")
    print(f"kernel against neural_tangents on {check['examples']} examples: {check['text']}")
    published = f" (published: {config.published_critical_lr})" if config.published_critical_lr else ""
    within = f" (from products, to within {start.error.max():.1%})" if start.error.any() else ""
    print(f"critical lr at initialisation: {', '.join(f'{v:.3g}' for v in np.unique(start.critical_lr))}{within}{published}")
    if not (start.error <= _PRODUCTS_LIMIT).all():
        raise configs.RunError(
            f"the critical lr at initialisation is known to within {start.error.max():.1%} alone; allowed: {_PRODUCTS_LIMIT:.0%}"
        )
    if not np.isfinite(start.lr).all():
        m = int(np.argmin(np.isfinite(start.lr)))
        raise configs.ConfigError(
            f"members.seed={int(members.seed[m])}, optimizer.lr_unit='critical_lr0'; the critical lr at initialisation is "
            f"{start.critical_lr[m]:.3g}, so a relative lr is undefined: the gradient of every example is zero, or not finite; "
            "allowed: another seed, model or data, or an absolute lr"
        )
    return check


def _about(built: build.Built, check: dict, earlier: dict | None) -> dict:
    """What run.json says while the run goes on."""
    environment = provenance.environment()
    if earlier:  # what the first steps were made with stays on record
        return earlier | {"resumed_with": [*earlier.get("resumed_with", []), environment], "status": "running"}
    arrays = built.data
    return {
        "status": "running",
        "data": {
            "name": arrays.name, "source": arrays.source, "fallback_for": built.fallback_for, "sha256": arrays.checksum,
            "train": len(arrays.x_train), "test": len(arrays.x_test), "shape": list(arrays.x_train.shape[1:]), "outputs": arrays.outputs,
        },
        "agop_reference": built.about_reference,
        "kernel_check": check,
        "instruments": built.plan,
        "environment": environment,
        "seconds": 0.0,  # of the sittings that were not interrupted
    }  # fmt: skip


def _coordinates(members: training.Members, start: training.Start) -> dict[str, np.ndarray]:
    """Coordinates of the record along its members."""
    relative = start.lr / start.critical_lr if members.lr_unit == "absolute" else members.lr
    return {
        "seed": members.seed,
        "lr_given": members.lr,  # as in the config, in its unit
        "lr0_over_critical": np.asarray(relative, np.float32),
        "lr0": np.asarray(start.lr, np.float32),
        "critical_lr0": np.asarray(start.critical_lr, np.float32),
    } | {name: getattr(members, name) for name in ("raises", "cap") if getattr(members, name) is not None}


def _attributes(config: ConfigDict, title: str, built: build.Built, check: dict) -> dict[str, Any]:
    """Attributes of the record."""
    # By Weyl |d lambda| <= n max |d K|, and lambda_max >= max |K|: the error of an entry, n times, bounds that of the critical lr.
    rows = rows_of(config, built.data)["lambda_max_batch"]
    return {
        "title": title,
        "data": built.data.name,
        "fallback_for": built.fallback_for or "",
        "data_sha256": built.data.checksum,
        "agop_reference_sha256": (built.about_reference or {}).get("sha256", ""),
        "critical_lr_margin": max(rows * (check["relative_error"] or _ROUNDING), _ROUNDING),
    }


def _ended(workdir: Path, config: dict, state) -> tuple[dict[str, Any], np.ndarray]:
    """Status, diverged and dead members of a run at its end, and which members end with usable parameters."""
    record, finite = records.open_record(workdir).load(), outputs.finite(state)
    gone, dead = analysis.diverged_members(record, config), analysis.dead_members(record, config)
    diverged = np.asarray(state.members.diverged)
    usable = finite & ~diverged
    usable[[one["member"] for one in dead]] = False
    cause = "the parameters were not finite after the last step"
    gone += [{"member": int(m), "step": int(state.step), "cause": cause} for m in np.flatnonzero(~finite & ~diverged)]
    count = len(diverged)
    status = "diverged" if len(gone) == count else "dead" if len(gone) + len(dead) >= count else "complete"
    return {"status": status, "lost": gone, "dead": dead}, usable


def _train(config, workdir: Path, trainer: training.Trainer, state, coordinates, attributes, find_nans: bool):
    """Runs to the last step, or until every member has stopped; returns the last state.

    Chunks go to disk together, every few seconds and before each checkpoint: what a kill loses is made again from the checkpoint before it.
    """
    c, at = config.run, int(state.step)
    longest = min(c.chunk_steps, config.steps)
    stopped = recovery.have_stopped({name: np.asarray(getattr(state.members, name)) for name in ("diverged", "stopped")})
    over = records.steps_done(workdir) == at and records.is_over(workdir)
    told = progress.Progress(config.steps, at)
    waiting, saved, saved_time, written_time = [], at, time.monotonic(), -math.inf
    with signals.kept() as received:
        while at < config.steps and not over:
            steps = min(c.chunk_steps - at % c.chunk_steps, config.steps - at)
            state, measured = trainer.run(state, steps, longest)
            if at == 0:
                records.create(workdir, members=coordinates, steps=config.steps, shapes=measured, about=attributes)
            # All had stopped before this chunk began: so it holds every measurement of where they ended.
            over = bool(stopped.all())
            at += steps
            waiting.append(measured)
            now = time.monotonic()
            due = at - saved >= c.checkpoint_every if c.checkpoint_every else now - saved_time >= c.checkpoint_seconds
            save = due or at == config.steps or over or bool(received)
            if save or now - written_time >= _WRITE_SECONDS or len(waiting) * c.chunk_steps >= _WRITE_STEPS:
                joined = recovery.joined(waiting)
                records.write(workdir, at - joined["lr"].shape[1], joined, over=over)
                waiting, written_time = [], time.monotonic()
            if save:
                checkpoints.save(workdir / "checkpoints", at, state)
                saved, saved_time = at, time.monotonic()
            told.update(at, measured)
            if find_nans:
                _find_nans(state, measured, at - steps)
            if received:
                told.close()
                signals.stop(
                    received[0],
                    f" at step {at} of {config.steps}; record and checkpoint are written; the same command goes on from there",
                )
            stopped = recovery.have_stopped(
                {name: measured[name][:, -1] for name in ("diverged", "stopped") if name in measured}
            )
    told.close()
    return state


def _find_nans(state, measured: dict[str, np.ndarray], first: int) -> None:
    """What ``JAX_DEBUG_NANS`` asks for: the first step of a chunk whose loss is NaN, or parameters that are, for a NaN in a gradient.

    Raises:
      RunError: there is one.
    """
    nans = np.isnan(measured["loss_batch"])
    found = {
        int(m): f"the loss of member {m} is NaN at step {first + int(nans[m].argmax())}" for m in np.flatnonzero(nans.any(1))
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.members.params):
        for m in np.flatnonzero(np.isnan(np.asarray(leaf)).reshape(len(leaf), -1).any(1)):
            where = f"{jax.tree_util.keystr(path)} of member {m} is NaN"
            found.setdefault(int(m), f"{where} after step {first + measured['lr'].shape[1] - 1}")
    if found:
        raise configs.RunError(
            f"JAX_DEBUG_NANS: {found[min(found)]}; without JAX_DEBUG_NANS the run marks such members and goes on"
        )


def default_workdir(config: ConfigDict, kind: str = "") -> Path:
    """``runs/KIND-NAME-VARIANT-IDENTITY``: the same command has the same directory, a config of another run another one."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = "-".join(part for part in (kind, Path(file).stem, variant.replace(",", "-")) if part)
    return Path("runs", directory.name_of(name, configs.identity(config)))


def run_again(then: Path, workdir: Path) -> bool:
    """Runs the config of a finished run in another directory; whether the record is the same, bit for bit.

    Raises:
      ConfigError: no finished run there, other data, or a directory that is taken.
      RunError: the run can't go on.
    """
    config = reproduce.stored_config(then)
    if workdir.resolve() == then.resolve():
        raise configs.ConfigError(f"workdir={str(workdir)!r} is the run itself; allowed: another directory")
    if (workdir / "run.json").is_file() and records.read_json(workdir / "run.json")["status"] != "running":
        raise configs.ConfigError(
            f"workdir={str(workdir)!r} holds a finished run; allowed: a new directory, so that it is run now"
        )
    run(config, workdir, like=records.read_json(then / "run.json"))
    found = reproduce.compare(then, workdir)
    reproduce.write(found, then, workdir)
    print("\n".join(reproduce.lines(found)))
    return found.same


def main(_argv: list[str]) -> int:
    """Runs one config, or repeats a finished run; returns the exit status."""
    if _REPRODUCE.value:
        then = Path(_REPRODUCE.value).expanduser().resolve()
        workdir = Path(_WORKDIR.value).expanduser() if _WORKDIR.value else then.with_name(f"{then.name}-again")
        return 0 if run_again(then, workdir) else 1
    config = flags.FLAGS.config
    workdir = Path(_WORKDIR.value).expanduser() if _WORKDIR.value else default_workdir(config)
    for verdict in run(config, workdir):
        print(f"{verdict.verdict}: {verdict.claim}: {verdict.effect}")
    print(f"report: {workdir / 'report.html'}")
    return 0


if __name__ == "__main__":
    command_line.program(main)
