"""Runs one config: python -m experiments.main --config=configs/cifar_gd.py[:VARIANT] [--config.FIELD=VALUE] [--workdir=DIR]."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import ConfigDict
from tqdm import tqdm

from catapult_jax import checkpoints, data, events, instruments, models, records, schedules, training
from catapult_jax.tangent_kernel import NeuralTangentsMissing, tangent_kernel
from experiments import config as configs
from experiments import report

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; default: runs/CONFIG-IDENTITY.")

_CHECK_EXAMPLES, _CHECK_LIMIT = 8, 1e-3


class RunError(Exception):
    """A run that can't go on; the message is one line."""


def load_data(config: ConfigDict) -> tuple[data.Data, str | None]:
    """The data of a run, and the name of the set that they stand in for, if they do.

    Raises:
      ConfigError: data that can't be had, or that the config does not fit.
    """
    c, stand_in_for, classes = config.data, None, tuple(config.data.classes)
    try:
        if c.name == "synthetic":
            arrays = data.synthetic(
                dimension=c.synthetic.dimension, rank=c.synthetic.rank, noise=c.synthetic.noise,
                train_size=c.train_size, test_size=c.test_size, seed=c.synthetic.seed,
            )  # fmt: skip
        else:
            try:
                arrays = data.read(c.name, directory=c.dir, tfds_dir=c.tfds_dir, download=c.download)
            except data.DataUnavailable as error:
                if c.strict or not c.stand_in:
                    raise configs.ConfigError(configs.one_line(error)) from error
                arrays, stand_in_for, classes = data.read(c.stand_in), c.name, tuple(c.stand_in_classes)
                print(
                    f"{'!' * 78}\nWARNING: {c.name} could not be had; this run is on {c.stand_in} instead, and says nothing about {c.name}."
                    f"\n{error}\n{'!' * 78}",
                    file=sys.stderr,
                )
        prepared = data.prepare(
            arrays, classes=classes, train_size=c.train_size, test_size=c.test_size, scaling=c.scaling, coding=c.coding
        )
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    return prepared, stand_in_for


def build_model(config: ConfigDict, outputs: int):
    c = config.model
    shared = dict(depth=c.depth, width=c.width, outputs=outputs, activation=c.activation, gain=c.gain, bias=c.bias)
    if c.name == "cnn":
        return models.CNN(**shared, strides=tuple(c.strides), readout=c.readout)
    return models.FCN(**shared)


def build_trainer(config: ConfigDict, model, arrays: data.Data) -> training.Trainer:
    m, full = config.measure, config.optimizer.batch_size in (0, config.data.train_size)
    loss, apply_fn = config.loss, model.apply
    chosen = {}
    if m.batch_kernel_every:
        chosen["batch_kernel"] = instruments.batch_kernel(apply_fn, loss=loss, every=m.batch_kernel_every, k=m.top_k)
    if m.train_loss_every and not full:
        chosen["train_loss"] = instruments.train_loss(apply_fn, loss=loss, every=m.train_loss_every)
    if m.train_kernel_every:
        chosen["train_kernel"] = instruments.train_kernel(
            apply_fn, loss=loss, every=m.train_kernel_every, probe_size=m.probe_size
        )
    if m.loss_after_every:
        chosen["loss_after"] = instruments.loss_after(apply_fn, loss=loss, every=m.loss_after_every)
    if m.test_every:
        chosen["test"] = instruments.test_scores(apply_fn, loss=loss, every=m.test_every, coding=config.data.coding)
    s = config.schedule
    schedule = schedules.constant()
    if s.name == "staircase":
        schedule = schedules.staircase(
            raises=s.raises, raise_to=s.raise_to, settle_fraction=s.settle_fraction, settle_steps=s.settle_steps
        )
    e = config.events
    return training.trainer(
        model,
        arrays,
        loss=loss,
        optimizer=getattr(optax, config.optimizer.name),
        schedule=schedule,
        detector=events.detector(factor=e.factor, delta=e.delta, horizon=e.horizon),
        instruments=chosen,
        batch_size=config.optimizer.batch_size,
        probe_size=m.probe_size,
    )


def build_members(config: ConfigDict) -> training.Members:
    absolute, relative = configs.learning_rates(config)
    seeds = tuple(config.members.seed) or (config.seed,)
    pairs = list(itertools.product(absolute or relative, seeds))
    rates = np.array([rate for rate, _ in pairs], np.float32)
    seed = np.array([seed for _, seed in pairs], np.int32)
    return training.Members(seed, rates if absolute else None, rates if relative else None)


def check_kernel(model, params, x) -> dict:
    """Compares the kernel in use with neural_tangents on a few examples of the real batch.

    Raises:
      RunError: they differ by more than 1e-3 of the largest entry.
    """
    x = x[:_CHECK_EXAMPLES]
    ours = np.asarray(jax.jit(lambda p, x: tangent_kernel(model.apply, p, x))(params, x))
    try:
        theirs = np.asarray(jax.jit(lambda p, x: tangent_kernel(model.apply, p, x, method="neural_tangents"))(params, x))
    except NeuralTangentsMissing as error:
        return {"examples": len(x), "relative_error": None, "text": f"skipped: {error}"}
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not error <= _CHECK_LIMIT:
        raise RunError(
            f"kernel differs from neural_tangents by {error:.2e} relative on {len(x)} examples; allowed: {_CHECK_LIMIT}"
        )
    return {"examples": len(x), "relative_error": error, "text": f"relative error {error:.1e}"}


def run(config: ConfigDict, workdir: Path) -> list[report.Verdict]:
    """Runs or resumes a config in a directory, and writes its report.

    Raises:
      ConfigError: the config can't be run, or the directory holds another one.
      RunError: the run can't go on.
    """
    configs.check(config)
    as_json = json.loads(config.to_json())
    stored = workdir / "config.json"
    if stored.is_file():
        old, new = (configs.flat(c) for c in (json.loads(stored.read_text()), as_json))
        changed = sorted(name for name in new if old.get(name) != new[name])
        if changed:
            name = changed[0]
            raise configs.ConfigError(
                f"workdir={str(workdir)!r} holds a run with {name}={old.get(name)!r}, not {new[name]!r}; allowed: the same config, or another workdir"
            )
    elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise configs.ConfigError(f"workdir={str(workdir)!r} is not empty and holds no run; allowed: a new directory")

    arrays, stand_in_for = load_data(config)
    earlier = json.loads((workdir / "run.json").read_text()) if (workdir / "run.json").is_file() else None
    if earlier and earlier["data"]["sha256"] != arrays.checksum:
        raise configs.ConfigError(
            f"workdir={str(workdir)!r} holds a run on other data (SHA-256 differs); allowed: another workdir"
        )
    if earlier and records.steps_done(workdir) == config.steps:
        print("already complete")
        return report.build(workdir)
    model, members = build_model(config, arrays.outputs), build_members(config)
    trainer = build_trainer(config, model, arrays)
    try:
        state, start = trainer.init(members)
    except ValueError as error:  # a model and data that do not fit
        raise configs.ConfigError(configs.one_line(error)) from error
    title = report.title_of(as_json, {"data": {"name": arrays.name}})
    print(f"{title}; {len(members.seed)} members; data: {arrays.source}")
    check = check_kernel(model, jax.tree.map(lambda a: a[0], state.members.params), arrays.x_train)
    print(f"kernel against neural_tangents on {check['examples']} examples: {check['text']}")
    published = f" (published: {config.published_critical_lr})" if config.published_critical_lr else ""
    print(f"critical lr at initialisation: {', '.join(f'{v:.3g}' for v in np.unique(start.critical_lr))}{published}")

    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise configs.ConfigError(
            f"workdir={str(workdir)!r} can't be made ({error.strerror}); allowed: a directory to write in"
        ) from error
    about = {
        "status": "running",
        "data": {
            "name": arrays.name, "source": arrays.source, "stand_in_for": stand_in_for, "sha256": arrays.checksum,
            "train": len(arrays.x_train), "test": len(arrays.x_test),
        },
        "kernel_check": check,
        "environment": records.environment(),
    }  # fmt: skip
    if earlier:  # what the first steps were made with stays on record
        about = earlier | {"resumed_with": [*earlier.get("resumed_with", []), about["environment"]], "status": "running"}
    records.write_json(stored, as_json)
    records.write_json(workdir / "run.json", about)

    restored = checkpoints.restore(workdir / "checkpoints", state)
    if restored is not None and records.steps_done(workdir) < int(restored.step):
        raise configs.ConfigError(f"workdir={str(workdir)!r} has a checkpoint but no record up to it; allowed: another workdir")
    if restored is not None:
        state = restored
        print(f"resuming at step {int(state.step)} of {config.steps}")
    relative = members.lr_relative if members.lr_relative is not None else start.lr / start.critical_lr
    coordinates = {
        "seed": members.seed,
        "rate": members.lr if members.lr is not None else members.lr_relative,  # as it was asked for
        "lr_relative": np.asarray(relative, np.float32),
        "lr_init": np.asarray(start.lr, np.float32),
        "critical_lr_init": np.asarray(start.critical_lr, np.float32),
    }
    attributes = {
        "title": title,
        "data": arrays.name,
        "stand_in_for": stand_in_for or "",
        "data_sha256": arrays.checksum,
    }
    _train(config, workdir, trainer, state, members, coordinates, attributes)
    alive = records.open_record(workdir)["alive"].values[:, -1]
    records.write_json(workdir / "run.json", about | {"status": "complete" if alive.any() else "diverged"})
    return report.build(workdir)


def _train(config, workdir: Path, trainer: training.Trainer, state, members, coordinates, attributes) -> None:
    first, saved = int(state.step), int(state.step)
    bar = tqdm(total=config.steps, initial=first, unit="step", disable=None, file=sys.stderr)
    while int(state.step) < config.steps:
        at = int(state.step)
        steps = min(config.run.chunk_steps, config.steps - at, config.run.checkpoint_every - (at - saved))
        state, measured = trainer.run(state, members, steps)
        if at == 0:
            records.create(
                workdir,
                members=coordinates,
                steps=config.steps,
                shapes=measured,
                chunk=config.run.chunk_steps,
                about=attributes,
            )
        records.write(workdir, at, measured)
        at += steps
        if at - saved >= config.run.checkpoint_every or at == config.steps:
            checkpoints.save(workdir / "checkpoints", at, state)
            saved = at
        ratio = measured["lr"][:, -1] * measured.get("lambda_max_batch", np.full_like(measured["lr"], np.nan))[:, -1] / 2
        bar.set_postfix_str(
            f"loss {np.median(measured['loss_batch'][:, -1]):.3g}, lr/critical {np.median(ratio):.2f}, events {measured['spikes'][:, -1].sum()}"
        )
        bar.update(steps)
    bar.close()


def default_workdir(argv: list[str], config: ConfigDict) -> Path:
    """``runs/NAME-VARIANT-IDENTITY``: the same command has the same directory, another config another one."""
    given = itertools.pairwise([*argv, ""])
    path = next(b if a.lstrip("-") == "config" else a.split("=", 1)[1] for a, b in given if re.match(r"--?config(=|$)", a))
    file, _, variant = path.partition(":")
    name = "-".join(part for part in (Path(file).stem, variant.replace(",", "-")) if part)
    return Path("runs", f"{name}-{configs.identity(config)}")


def main(_argv: list[str]) -> int:
    config = flags.FLAGS.config
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(sys.argv, config)
    verdicts = run(config, workdir)
    for verdict in verdicts:
        print(f"{verdict.verdict}: {verdict.claim}: {verdict.effect}")
    print(f"report: {workdir / 'report.html'}")
    return 0


def cli() -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax and TFDS tell of every file at the levels below
    try:
        app.run(main, flags_parser=configs.parse)
    except configs.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli()
