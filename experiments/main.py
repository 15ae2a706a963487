"""Runs one config: python -m experiments.main --config=configs/cifar_gd.py[:VARIANT] [--config.FIELD=VALUE] [--workdir=DIR]."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from catapult_jax import checkpoints, data, events, instruments, models, records, training
from catapult_jax.agop import agop_eigenvectors, input_jacobian
from catapult_jax.tangent_kernel import NeuralTangentsMissing, tangent_kernel
from catapult_jax.tangent_kernel.exact import loops_are_slow
from experiments import config as configs
from experiments import optimizers, overhead, report, schedules

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; default: runs/CONFIG-IDENTITY.")

_CHECK_EXAMPLES, _CHECK_LIMIT = 8, 1e-3
_DIRECTIONS = 3  # top eigenvectors of the AGOP that are kept
_CHUNK = 256  # examples whose input Jacobians are taken at a time
_LARGEST = 8192  # rows of an exact kernel that is tried without being asked for: it alone takes 268 MB
_PRODUCTS_LIMIT = 0.02  # relative error allowed to a critical lr at initialisation that comes from products
_READ = 3  # examples of a data set with attributes that are read for each one wanted


def load_data(config: ConfigDict) -> tuple[data.Data, str | None]:
    """The data of a run, and the name of the set that they stand in for, if they do.

    Raises:
      ConfigError: data that can't be had, or that the config does not fit.
    """
    c, stand_in_for, classes = config.data, None, tuple(config.data.classes)
    sizes = {name: c[name] for name in ("train_size", "validation_size", "test_size")}
    try:
        if c.name == "synthetic":
            arrays = data.synthetic(
                dimension=c.synthetic.dimension, rank=c.synthetic.rank, target=c.synthetic.target, noise=c.synthetic.noise,
                train_size=c.train_size + c.validation_size, test_size=c.test_size, seed=c.synthetic.seed,
            )  # fmt: skip
        else:
            try:
                # Attributes are unevenly spread: enough examples that each side of one has its share.
                limit = _READ * (c.train_size + c.validation_size + c.test_size) if c.attribute and c.test_size else 0
                arrays = data.read(
                    c.name, directory=c.dir, tfds_dir=c.tfds_dir, download=c.download,
                    attribute=c.attribute, image_size=c.image_size, limit=limit,
                )  # fmt: skip
            except data.DataUnavailable as error:
                if c.strict or not c.stand_in:
                    raise configs.ConfigError(configs.one_line(error)) from error
                arrays, stand_in_for = data.read(c.stand_in, image_size=c.image_size), c.name
                classes = tuple(c.stand_in_classes)
                # A stand-in may be smaller than what it stands for.
                most = data.most_examples(arrays.y_train, classes)
                sizes["validation_size"] = min(sizes["validation_size"], most // 4)
                sizes["train_size"] = min(sizes["train_size"], most - sizes["validation_size"])
                sizes["test_size"] = min(sizes["test_size"], data.most_examples(arrays.y_test, classes))
                print(
                    f"{'!' * 78}\nWARNING: {c.name} could not be had; this run is on {c.stand_in} instead, and says nothing about {c.name}."
                    f"\n{error}\n{'!' * 78}",
                    file=sys.stderr,
                )
        prepared = data.prepare(arrays, classes=classes, **sizes, scaling=c.scaling, coding=c.coding)
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    return prepared, stand_in_for


def build_model(c: ConfigDict, outputs: int):
    """``c``: the model's part of a config, or the same as a dictionary."""
    shared = {name: c[name] for name in ("depth", "width", "activation", "gain", "bias")} | {"outputs": outputs}
    if c["name"] == "cnn":
        return models.CNN(**shared, strides=tuple(c["strides"]), readout=c["readout"])
    if c["name"] == "wide_resnet":
        return models.WideResNet(**shared, stem_stride=c["stem_stride"])
    if c["name"] == "vit":
        return models.ViT(**shared, patch_size=c["patch_size"])
    return models.FCN(**shared)


def agop_reference(config: ConfigDict, arrays: data.Data) -> tuple[np.ndarray, dict]:
    """Rows of the reference's input Jacobian on the points of the AGOP, and what the reference is.

    Raises:
      ConfigError: no such model, or one for other data.
    """
    name, x = config.measure.agop_reference, arrays.x_train[: config.measure.agop_size]
    if name == "closed_form":
        target = data.target_function(config.data.synthetic.target, config.data.synthetic.rank)
        return np.asarray(jax.vmap(jax.grad(target))(x.reshape(len(x), -1))), {"name": "gradient of the target"}
    try:
        params, about, checksum = checkpoints.load_model(name)
    except FileNotFoundError as error:
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} is not there; allowed: the model.npz of a run with run.save_model, as made by: "
            f"python -m experiments.main --config=configs/reference.py:VARIANT --workdir={Path(name).parent}"
        ) from error
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    mine = {"name": arrays.name, "shape": list(arrays.x_train.shape[1:]), "outputs": arrays.outputs}
    theirs = {key: about["data"][key] for key in mine}
    settings = {key: json.loads(config.data.to_json())[key] for key in ("classes", "scaling", "attribute")}
    mine, theirs = mine | settings, theirs | {key: about["config"]["data"][key] for key in settings}
    if mine != theirs:
        key = next(key for key in mine if mine[key] != theirs[key])
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} is a model for data with {key} {theirs[key]!r}; allowed here: {mine[key]!r}"
        )
    model = build_model(about["config"]["model"], arrays.outputs)
    rows = np.asarray(jax.jit(partial(input_jacobian, model.apply, chunk_size=_CHUNK))(params, x))
    if not np.isfinite(rows).all():
        raise configs.ConfigError(f"measure.agop_reference={name!r} has gradients that are not finite; allowed: finite ones")
    return rows, {
        "name": f"{about['config']['model']['name']} trained on {about['data']['train']} examples",
        "sha256": checksum,
        "error_test": about.get("error_test"),  # none for targets that are values
    }


def cadences_of(config: ConfigDict) -> dict[str, int]:
    """Cadence of each instrument that the config asks for; what a preset asks for, at every step."""
    m, full = config.measure, config.optimizer.batch_size in (0, config.data.train_size)
    names = ("batch_kernel", "train_loss", "train_kernel", "loss_after", "preconditioner", "test", "agop")
    fields = {name: m[f"{name}_every"] for name in names}
    if m.preset:
        fields = dict.fromkeys(configs.PRESETS[m.preset], 1)
        if not m.agop_reference:
            fields.pop("agop", None)
    if full:
        fields.pop("train_loss", None)  # it is the batch loss
    if fields.get("test") and config.data.validation_size:
        fields["val"] = fields["test"]
    return {name: every for name, every in fields.items() if every}


def build_instruments(
    config: ConfigDict, model, arrays: data.Data, reference, cadences: dict[str, int], methods: dict[str, str]
) -> dict[str, instruments.Instrument]:
    """``methods``: exact or products, for ``batch_kernel`` and ``train_kernel``."""
    m, apply_fn, coding = config.measure, model.apply, config.data.coding
    full = config.optimizer.batch_size in (0, config.data.train_size)
    shared = dict(loss=config.loss, chunk_size=m.chunk_size or None)
    shared["k"] = 1 if m.preset == "economy" else m.top_k
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), arrays.x_train[:1]))
    slow = loops_are_slow(apply_fn, params, arrays.x_train)
    shared_products = shared | {"tol": m.tolerance, "max_products": m.max_products or (1 if slow else 60)}
    most = {name: shared_products | {"k": min(shared["k"], size)} for name, size in _rows(config, arrays).items()}

    def scores(split):
        return lambda every: instruments.scores(apply_fn, loss=config.loss, every=every, coding=coding, split=split)

    make = {
        ("batch_kernel", "exact"): partial(instruments.batch_kernel, apply_fn, follow=full, **shared),
        ("batch_kernel", "products"): partial(instruments.batch_products, apply_fn, **most["batch_kernel"]),
        ("train_kernel", "exact"): partial(instruments.train_kernel, apply_fn, probe_size=m.probe_size, **shared),
        ("train_kernel", "products"): partial(
            instruments.train_products, apply_fn, probe_size=m.probe_size, **most["train_kernel"]
        ),
        "train_loss": partial(instruments.train_loss, apply_fn, loss=config.loss),
        "loss_after": partial(instruments.loss_after, apply_fn, loss=config.loss),
        "preconditioner": partial(instruments.preconditioner_bound, apply_fn, loss=config.loss),
        "test": scores("test"),
        "val": scores("val"),
        "agop": lambda every: instruments.agop(
            apply_fn, every=every, reference=jax.numpy.asarray(reference), size=m.agop_size, chunk_size=_CHUNK
        ),
    }
    return {name: make[(name, methods[name]) if name in methods else name](every=every) for name, every in cadences.items()}


def _rows(config: ConfigDict, arrays: data.Data) -> dict[str, int]:
    """Rows of the kernels: one for each output of each example."""
    n, m = len(arrays.x_train), config.measure
    return {
        "batch_kernel": (config.optimizer.batch_size or n) * arrays.outputs,
        "train_kernel": (m.probe_size or n) * arrays.outputs,
    }


def choose_instruments(config: ConfigDict, model, arrays: data.Data, members, reference) -> dict:
    """What is measured, how and how often: as the config says, or as found from the cost of each instrument in the first steps."""
    m, cadences = config.measure, cadences_of(config)
    full = config.optimizer.batch_size in (0, config.data.train_size)
    kernels = [name for name in ("batch_kernel", "train_kernel") if name in cadences]
    if m.method != "auto" and not m.preset:
        return {"cadences": cadences, "methods": dict.fromkeys(kernels, m.method or "exact")}
    rows = _rows(config, arrays)
    automatic = m.method in ("", "auto")
    tried = {
        name: (m.method,) if not automatic else ("products",) if rows[name] > _LARGEST else ("exact", "products")
        for name in kernels
    }
    make = lambda cadences, methods: build_instruments(config, model, arrays, reference, cadences, methods)
    candidates = {name: make({name: 1}, {})[name] for name in cadences if name not in kernels}
    for name in kernels:
        candidates |= {f"{name}, {method}": make({name: 1}, {name: method})[name] for method in tried[name]}
    build = lambda chosen: build_trainer(config, model, arrays, {name.split(",")[0]: i for name, i in chosen.items()})
    costs = overhead.measure(build, candidates, members)
    methods = {name: min(tried[name], key=lambda method, name=name: costs[f"{name}, {method}"]) for name in kernels}
    own = {name: costs[f"{name}, {methods[name]}" if name in methods else name] for name in cadences}
    found, always = cadences, set()
    if m.preset:
        relative = config.schedule.name in configs.RELATIVE or config.schedule.cap or config.members.cap
        wanted = set() if full else {"batch_kernel", "train_loss"}
        always = (wanted | {"batch_kernel"} if relative else wanted) & set(own)
        found = overhead.cadences(own, always, m.max_overhead, config.run.chunk_steps if config.run.stop_loss else None)
    expected = 1 + sum(own[name] / found[name] for name in own)
    print("cost of each instrument over the bare step, measured in the first steps:")
    for name in own:
        how = (
            f" ({methods[name]}; " + ", ".join(f"{k} {costs[f'{name}, {k}']:.2f}" for k in tried[name]) + ")"
            if name in methods
            else ""
        )
        print(f"  {name}{how}: {own[name]:.2f}, {'every step' if found[name] == 1 else f'every {found[name]} steps'}")
    over = (
        f", above measure.max_overhead={m.max_overhead}: wanted at every step whatever it costs: {', '.join(sorted(always))}"
        if always and expected > m.max_overhead * 1.05
        else ""
    )
    print(f"  a measured step is expected to cost {expected:.2f} bare ones{over}")
    return {"cadences": found, "methods": methods, "costs": costs, "expected_overhead": expected}


def build_trainer(config: ConfigDict, model, arrays: data.Data, chosen: dict[str, instruments.Instrument]) -> training.Trainer:
    m, momentum = config.measure, optimizers.momentum(config.optimizer)
    rows = _rows(config, arrays)["train_kernel"]
    e = config.events
    return training.trainer(
        model,
        arrays,
        loss=config.loss,
        optimizer=optimizers.build(config.optimizer),
        schedule=schedules.build(config.schedule),
        detector=events.detector(
            factor=e.factor, delta=e.delta, horizon=e.horizon, momentum_horizon=events.momentum_horizon(momentum)
        ),
        instruments=chosen,
        batch_size=config.optimizer.batch_size,
        probe_size=m.probe_size,
        stop_loss=config.run.stop_loss,
        matrix_free=m.method == "products" or (m.method != "exact" and rows > _LARGEST),
        chunk_size=m.chunk_size or None,
    )


def build_members(config: ConfigDict) -> training.Members:
    axes = configs.member_axes(config)
    columns = dict(zip(axes, zip(*itertools.product(*axes.values()), strict=True), strict=True))
    dtypes = {"seed": np.int32, "raises": np.int32}
    arrays = {name: np.array(column, dtypes.get(name, np.float32)) for name, column in columns.items()}
    return training.Members(
        arrays["seed"], arrays.get("lr"), arrays.get("lr_relative"), arrays.get("raises"), arrays.get("cap")
    )


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
        raise configs.RunError(
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
    begin = time.monotonic()
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
    if earlier and earlier["status"] != "running":
        print("already complete")
        return report.build(workdir)
    model, members = build_model(config.model, arrays.outputs), build_members(config)
    reference, about_reference = agop_reference(config, arrays) if "agop" in cadences_of(config) else (None, None)
    if earlier and earlier.get("agop_reference") != about_reference:
        raise configs.ConfigError(
            f"workdir={str(workdir)!r} holds a run with another model in measure.agop_reference; allowed: another workdir"
        )
    try:
        plan = earlier["instruments"] if earlier else choose_instruments(config, model, arrays, members, reference)
        chosen = build_instruments(config, model, arrays, reference, plan["cadences"], plan["methods"])
        trainer = build_trainer(config, model, arrays, chosen)
        state, start = trainer.init(members)
    except ValueError as error:  # a model and data that do not fit
        raise configs.ConfigError(configs.one_line(error)) from error
    title = report.title_of(as_json, {"data": {"name": arrays.name}})
    print(f"{title}; {len(members.seed)} members; data: {arrays.source}")
    check = check_kernel(model, jax.tree.map(lambda a: a[0], state.members.params), arrays.x_train)
    print(f"kernel against neural_tangents on {check['examples']} examples: {check['text']}")
    published = f" (published: {config.published_critical_lr})" if config.published_critical_lr else ""
    within = f" (from products, to within {start.error.max():.1%})" if start.error.any() else ""
    print(f"critical lr at initialisation: {', '.join(f'{v:.3g}' for v in np.unique(start.critical_lr))}{within}{published}")
    if not (start.error <= _PRODUCTS_LIMIT).all():
        raise configs.RunError(
            f"the critical lr at initialisation is known to within {start.error.max():.1%} alone; allowed: {_PRODUCTS_LIMIT:.0%}"
        )

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
            "train": len(arrays.x_train), "test": len(arrays.x_test), "shape": list(arrays.x_train.shape[1:]), "outputs": arrays.outputs,
        },
        "agop_reference": about_reference,
        "kernel_check": check,
        "instruments": plan,
        "environment": records.environment(),
        "seconds": 0.0,  # of the sittings that were not interrupted
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
    } | {name: getattr(members, name) for name in ("raises", "cap") if getattr(members, name) is not None}
    attributes = {
        "title": title,
        "data": arrays.name,
        "stand_in_for": stand_in_for or "",
        "data_sha256": arrays.checksum,
        "agop_reference_sha256": (about_reference or {}).get("sha256", ""),
    }
    state = _train(config, workdir, trainer, state, members, coordinates, attributes)
    record = records.open_record(workdir)
    alive = record["alive"].values[:, -1]
    if config.run.save_model:
        _write_model(workdir, model, state, arrays, {"config": as_json, "data": about["data"]})
    if "agop" in plan["cadences"]:
        _write_directions(config, workdir, model, state, coordinates, arrays, reference)
    records.write_json(
        workdir / "run.json",
        about | {"status": "complete" if alive.any() else "diverged", "seconds": about["seconds"] + time.monotonic() - begin},
    )
    return report.build(workdir)


def _write_model(workdir: Path, model, state, arrays: data.Data, about: dict) -> None:
    """model.npz: the first member's parameters after the last step, and their test scores.

    Raises:
      RunError: that member was lost.
    """
    params = jax.device_get(jax.tree.map(lambda a: a[0], state.members.params))
    if not bool(state.members.alive[0]) or not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise configs.RunError(
            "run.save_model: the first member diverged; allowed: a run whose first member ends with finite parameters"
        )
    config = about["config"]
    scores = instruments.scores(model.apply, loss=config["loss"], every=1, coding=config["data"]["coding"])
    x_test, y_test = jax.numpy.asarray(arrays.x_test), jax.numpy.asarray(arrays.y_test)
    moment = instruments.Moment(params, params, None, None, {"x_test": x_test, "y_test": y_test})
    measured = {name: float(value) for name, value in jax.jit(scores.measure)(moment).items()}
    checkpoints.save_model(workdir / "model.npz", params, about | measured)


def _write_directions(config, workdir: Path, model, state, coordinates, arrays, reference) -> None:
    """agop.npz: top eigenvectors of the AGOP of the reference, and at the end of training of the first seed of each setting."""
    x = jax.numpy.asarray(arrays.x_train[: config.measure.agop_size])
    jacobian = jax.jit(partial(input_jacobian, model.apply, chunk_size=_CHUNK))
    names, rows = ["reference"], [jax.numpy.asarray(reference)]
    first = coordinates["seed"][0]
    axes = [axis for axis in ("rate", "raises", "cap") if len(np.unique(coordinates.get(axis, 0))) > 1]
    for m in np.flatnonzero((coordinates["seed"] == first) & np.asarray(state.members.alive)):
        names.append(", ".join(f"{axis} {coordinates[axis][m]:.3g}" for axis in axes) or "trained")
        rows.append(jacobian(jax.tree.map(lambda a, m=m: a[m], state.members.params), x))
    k = min(_DIRECTIONS, x[0].size, *(len(r) for r in rows))
    vectors = [np.asarray(agop_eigenvectors(r, len(x), k=k)[1].T) for r in rows]
    np.savez(workdir / "agop.npz", names=np.array(names), vectors=np.stack(vectors), shape=np.array(x.shape[1:]))


def _train(config, workdir: Path, trainer: training.Trainer, state, members, coordinates, attributes):
    """Runs to the last step, or until every member is done; returns the last state."""
    first, saved = int(state.step), int(state.step)
    ended = np.asarray(state.members.done | ~state.members.alive)
    longest = min(config.run.chunk_steps, config.run.checkpoint_every, config.steps)
    bar = tqdm(total=config.steps, initial=first, unit="step", disable=None, file=sys.stderr)
    while int(state.step) < config.steps:
        at = int(state.step)
        steps = min(config.run.chunk_steps, config.steps - at, config.run.checkpoint_every - (at - saved))
        state, measured = trainer.run(state, members, steps, longest)
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
        # All were done, or lost, before this chunk began: so it holds every measurement of where they ended.
        over = config.run.stop_loss > 0 and bool(ended.all())
        if at - saved >= config.run.checkpoint_every or at == config.steps or over:
            checkpoints.save(workdir / "checkpoints", at, state)
            saved = at
        ratio = measured["lr"][:, -1] / measured.get("critical_lr_batch", np.full_like(measured["lr"], np.nan))[:, -1]
        bar.set_postfix_str(
            f"loss {np.median(measured['loss_batch'][:, -1]):.3g}, lr/critical {np.median(ratio):.2f}, events {measured['spikes'][:, -1].sum()}"
        )
        bar.update(steps)
        if over:
            break
        ended = np.asarray(state.members.done | ~state.members.alive)
    bar.close()
    return state


def default_workdir(argv: list[str], config: ConfigDict, kind: str = "") -> Path:
    """``runs/KIND-NAME-VARIANT-IDENTITY``: the same command has the same directory, another config another one."""
    given = itertools.pairwise([*argv, ""])
    path = next(b if a.lstrip("-") == "config" else a.split("=", 1)[1] for a, b in given if re.match(r"--?config(=|$)", a))
    file, _, variant = path.partition(":")
    name = "-".join(part for part in (kind, Path(file).stem, variant.replace(",", "-")) if part)
    return Path("runs", f"{name}-{configs.identity(config)}")


def main(_argv: list[str]) -> int:
    config = flags.FLAGS.config
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(sys.argv, config)
    verdicts = run(config, workdir)
    for verdict in verdicts:
        print(f"{verdict.verdict}: {verdict.claim}: {verdict.effect}")
    print(f"report: {workdir / 'report.html'}")
    return 0


if __name__ == "__main__":
    configs.program(main)
