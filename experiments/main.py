"""Run one config: python -m experiments.main --config=configs/cifar_gd.py[:VARIANT] [--config.FIELD=VALUE] [--workdir=DIR].

Run a finished run again and compare the numbers: python -m experiments.main --reproduce RUN_DIR [--workdir=DIR].
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from catapult_jax import provenance, records, training
from catapult_jax.report.members import dead_members, diverged_members
from catapult_jax.report.statistics import values_text
from catapult_jax.tangent.kernel import describe_method
from experiments import (
    build,
    command_line,
    directory,
    loop,
    outputs,
    recovery,
    report,
    reproduce,
    rules,
    verdicts,
)
from experiments import config as configs
from experiments.arms import ARMS
from experiments.build.checks import check_kernel
from experiments.build.model import member_columns
from experiments.build.trainer import rows_of
from experiments.settings import settings_of

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; default: runs/CONFIG-IDENTITY.")
_REPRODUCE = flags.DEFINE_string(
    "reproduce", None, "Directory of a finished run. It is run again in --workdir (default: RUN_DIR-again) and compared."
)

_MOST_ERROR = 0.02  # largest relative error of a critical lr at initialisation, where it is matrix-free
_ROUNDING = 1e-6  # relative error of an entry of a kernel: where it is not measured, and at least


def run(config: ConfigDict, workdir: Path, like: dict[str, Any] | None = None) -> list[verdicts.Verdict]:
    """Run or resume a config in a directory, and write its report.

    Args:
      config: of the run.
      workdir: its directory.
      like: contents of run.json of a run to repeat: this run needs the same data, and takes over its cadences and methods.

    Returns:
      The verdicts of the report.

    Raises:
      ConfigError: the config can't be run, or the directory holds something else, or another process uses it.
      RunError: the run can't go on.
    """
    rules.check(config)
    config = configs.expanded(config)
    find_nans = bool(jax.config.jax_debug_nans)
    # JAX would stop at the NaN of a measurement that is not due. loop.check_nans looks for the others.
    precision = jax.enable_x64(True) if config.run.float64 else contextlib.nullcontext()
    with contextlib.ExitStack() as until_the_end, jax.debug_nans(False), precision:
        return _run(config, workdir, like, until_the_end, find_nans)


def _run(
    config: ConfigDict, workdir: Path, like: dict | None, until_the_end: contextlib.ExitStack, find_nans: bool
) -> list[verdicts.Verdict]:
    begin, as_json = time.monotonic(), json.loads(config.to_json())
    new = directory.is_new(workdir)
    earlier, damage = _earlier_run(workdir, as_json, until_the_end, new)
    loaded = build.load(config, earlier or like)
    lost = outputs.lost(workdir, earlier) if earlier else []
    if earlier and earlier["status"] != "running" and not damage and not lost:
        print("already complete")
        with directory.explain_write_errors(workdir):
            return report.build(workdir)
    built = build.build(config, earlier or like, loaded)
    with build.explain_misfit():
        state, start = built.trainer.init(built.members)
    title = report.title_of(as_json, {"data": {"name": built.data.name}})
    check = _announce(config, title, built, state, start)
    if new:
        _lock_new_directory(workdir, until_the_end)
    about = _about(built, check, earlier)
    coordinates, attributes = _coordinates(config, built.members, start), _attributes(config, title, built, check)
    restored = recovery.restore(config, workdir, built, state, coordinates, attributes, damage)
    state = state if restored is None else restored
    for name in lost:
        print(f"WARNING: {workdir / name} is missing or damaged; it is written again", file=sys.stderr)
    if earlier:
        print(f"resuming at step {int(state.step)} of {config.steps}")
        for name, (then, now) in reproduce.differences(earlier["environment"], about["resumed_with"][-1]).items():
            print(f"WARNING: environment differs in {name}: {then} then, {now} now", file=sys.stderr)
    with directory.explain_write_errors(workdir):
        records.write_json(workdir / "config.json", as_json)
        records.write_json(workdir / "run.json", about)
        state = loop.train(config, workdir, built.trainer, state, coordinates, attributes, find_nans)
        outcome, usable = _outcome(workdir, as_json, state)
        if config.run.save_model and usable[0]:
            outputs.write_model(workdir, built.model, state, built.data, {"config": as_json, "data": about["data"]})
            outcome["model_saved"] = True
        if "agop_alignment" in built.plan["cadences"]:
            outputs.write_directions(config, workdir, built, state, coordinates, usable)
        records.write_json(workdir / "run.json", about | outcome | {"seconds": about["seconds"] + time.monotonic() - begin})
        verdicts_of_run = report.build(workdir)
    if config.run.save_model and not usable[0]:
        raise configs.RunError(
            "run.save_model=True; the first member diverged or is dead, so no model.npz is written; allowed: a run whose first member "
            "ends with finite parameters and a kernel that is not zero"
        )
    return verdicts_of_run


def _earlier_run(
    workdir: Path, as_json: dict, until_the_end: contextlib.ExitStack, new: bool
) -> tuple[dict[str, Any] | None, list[records.Damage]]:
    """The contents of run.json, and the damage to the record. Locks the directory if it holds a run."""
    if new:
        directory.check_writable(workdir)
        return None, []
    directory.earlier_run(workdir, as_json)  # refuse a directory of something else before a lock file is put there
    until_the_end.enter_context(directory.lock(workdir))
    earlier = directory.earlier_run(workdir, as_json)
    return earlier, records.damage(workdir)


def _lock_new_directory(workdir: Path, until_the_end: contextlib.ExitStack) -> None:
    """Create and lock the directory, after all checks, so that a run that is refused leaves nothing."""
    until_the_end.enter_context(directory.lock(workdir))
    if not directory.is_new(workdir):
        raise configs.ConfigError(f"workdir={str(workdir)!r} now holds a run of another process; allowed: another workdir")


def _announce(config: ConfigDict, title: str, built: build.Built, state: training.State, start: training.Start) -> dict:
    """Print the facts before the first step, and check the kernel and the critical lr at initialisation.

    Returns:
      The comparison of the kernel with neural_tangents, for run.json.

    Raises:
      RunError: the kernel differs from that of neural_tangents, or the error of the critical lr is too large.
      ConfigError: a relative lr of a member whose critical lr is not finite.
    """
    members, model, x = built.members, built.model, built.data.x_train
    print(f"{title}; members: {len(members.seed)}; data: {built.data.source}")
    first = jax.tree.map(lambda a: a[0], state.members.params)
    check = check_kernel(model, first, x)
    print(f"exact kernel: {describe_method(model.apply, first, x)}")
    print(f"kernel against neural_tangents on {check['examples']} examples: {check['text']}")
    published = f" (published, for CIFAR-10: {config.published_critical_lr})" if config.published_critical_lr else ""
    error = f" (matrix-free, relative error up to {start.error.max():.1%})" if start.error.any() else ""
    print(f"critical lr at initialisation: {values_text(start.critical_lr)}{error}{published}")
    if not (start.error <= _MOST_ERROR).all():
        raise configs.RunError(
            f"the critical lr at initialisation has a relative error of up to {start.error.max():.1%}; allowed: {_MOST_ERROR:.0%}"
        )
    if not np.isfinite(start.lr).all():
        m = int(np.argmin(np.isfinite(start.lr)))
        raise configs.ConfigError(
            f"members.seed={int(members.seed[m])}, optimizer.lr_unit='critical_lr0'; the critical lr at initialisation is "
            f"{start.critical_lr[m]:.3g}, so a relative lr is undefined: the gradient of every example is zero, or not finite; "
            "allowed: another seed, model or data, or an absolute lr"
        )
    return check


def _about(built: build.Built, check: dict, earlier: dict | None) -> dict[str, Any]:
    """The contents of run.json during the run."""
    environment = provenance.environment()
    if earlier:  # keep the environment of the first steps
        return earlier | {"resumed_with": [*earlier.get("resumed_with", []), environment], "status": "running"}
    arrays = built.data
    return {
        "status": "running",
        "data": {
            "name": arrays.name, "source": arrays.source, "fallback_for": built.fallback_for, "sha256": arrays.checksum,
            "train": len(arrays.x_train), "test": len(arrays.x_test), "shape": list(arrays.x_train.shape[1:]), "outputs": arrays.outputs,
        } | ({"by_seed": True} if arrays.draws else {}),
        "agop_reference": built.about_reference,
        "kernel_check": check,
        "instruments": built.plan,
        "environment": environment,
        "seconds": 0.0,  # without parts of the run that were interrupted
    } | ({"intervention": built.about_intervention} if built.about_intervention else {})  # fmt: skip


def _coordinates(config: ConfigDict, members: training.Members, start: training.Start) -> dict[str, np.ndarray]:
    """Coordinates of the record along its members."""
    relative = start.lr / start.critical_lr if members.lr_unit == "absolute" else members.lr
    arms = member_columns(config).get("intervention")
    optional = {"raises": members.raises, "cap": members.cap}
    if arms is not None:  # in place of the cap, which is that of one of the arms
        optional = {"raises": members.raises, "intervention": np.array([ARMS.index(name) for name in arms], np.int32)}
    return {
        "seed": members.seed,
        "lr_given": members.lr,  # as in the config, in its unit
        "lr0_over_critical": np.asarray(relative, np.float32),
        "lr0": np.asarray(start.lr, np.float32),
        "critical_lr0": np.asarray(start.critical_lr, np.float32),
    } | {name: values for name, values in optional.items() if values is not None}


def _attributes(config: ConfigDict, title: str, built: build.Built, check: dict) -> dict[str, Any]:
    """Attributes of the record."""
    # By Weyl |d lambda| <= n max |d K|, and lambda_max >= max |K|. So n times the relative error of an entry bounds that of the critical lr.
    rows = rows_of(config, built.data)["lambda_max_batch"]
    return {
        "title": title,
        "data": built.data.name,
        "fallback_for": built.fallback_for or "",
        "data_sha256": built.data.checksum,
        "agop_reference_sha256": (built.about_reference or {}).get("sha256", ""),
        "interventions": list(ARMS),  # by the codes of the coordinate
        "critical_lr_margin": max(rows * (check["relative_error"] or _ROUNDING), _ROUNDING),
    }


def _outcome(workdir: Path, config: dict, state: training.State) -> tuple[dict[str, Any], np.ndarray]:
    """What run.json says at the end: status, diverged and dead members; and which members have usable parameters."""
    record, finite = records.open_record(workdir).load(), outputs.finite(state)
    settings = settings_of(config)
    lost, dead = diverged_members(record, settings), dead_members(record, settings)
    diverged = np.asarray(state.members.diverged)
    usable = finite & ~diverged
    usable[[member["member"] for member in dead]] = False
    cause = "the parameters were not finite after the last step"
    lost += [{"member": int(m), "step": int(state.step), "cause": cause} for m in np.flatnonzero(~finite & ~diverged)]
    n = len(diverged)
    status = "diverged" if len(lost) == n else "dead" if len(lost) + len(dead) >= n else "complete"
    return {"status": status, "lost": lost, "dead": dead}, usable


def default_workdir(config: ConfigDict, kind: str = "") -> Path:
    """The directory of a run without ``--workdir``: ``runs/KIND-NAME-VARIANT-IDENTITY``.

    The same command has the same directory; another config has another one.

    Args:
      config: from the flag ``--config``, whose file gives NAME and VARIANT.
      kind: comes first in the name.
    """
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = "-".join(part for part in (kind, Path(file).stem, variant.replace(",", "-")) if part)
    return Path("runs", directory.directory_name(name, configs.identity(config)))


def run_again(then: Path, workdir: Path) -> bool:
    """Run the config of a finished run in another directory, and compare.

    Args:
      then: directory of the finished run.
      workdir: of the new run.

    Returns:
      Whether the two runs are the same, bit by bit.

    Raises:
      ConfigError: no finished run there, other data, or a directory that holds something else.
      RunError: the run can't go on.
    """
    config = reproduce.stored_config(then)
    if workdir.resolve() == then.resolve():
        raise configs.ConfigError(f"workdir={str(workdir)!r} is the run itself; allowed: another directory")
    if reproduce.is_compared(workdir):
        raise configs.ConfigError(f"workdir={str(workdir)!r} holds a comparison; allowed: a new directory")
    run(config, workdir, like=records.read_json(then / "run.json"))
    with directory.explain_write_errors(workdir):
        comparison = reproduce.compare(then, workdir)
        reproduce.write(comparison, then, workdir)
    print("\n".join(reproduce.lines(comparison)))
    return comparison.same


def main(_argv: list[str]) -> int:
    """Run one config, or repeat a finished run; returns the exit status."""
    if _REPRODUCE.value:
        then = configs.home(_REPRODUCE.value, "reproduce").resolve()
        workdir = (
            configs.home(_WORKDIR.value, "workdir") if _WORKDIR.value is not None else then.with_name(f"{then.name}-again")
        )
        return 0 if run_again(then, workdir) else 1
    config = flags.FLAGS.config
    if config.sweep:
        raise configs.ConfigError(
            f"sweep={tuple(config.sweep)!r} with experiments.main; allowed: python -m experiments.sweep, or --config.sweep='()' for one run"
        )
    workdir = configs.home(_WORKDIR.value, "workdir") if _WORKDIR.value is not None else default_workdir(config)
    for line in report.verdict_lines(workdir, run(config, workdir)):
        print(line)
    print(f"report: {workdir / 'report.html'}")
    return 0


if __name__ == "__main__":
    command_line.program(main)
