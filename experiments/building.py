"""What a config is made into: data, model, reference, instruments, trainer, members."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, data, events, models, training
from catapult_jax.outer_product import input_jacobian
from catapult_jax.training import instruments
from experiments import config as configs
from experiments import optimizers, overhead, schedules
from experiments.values import CADENCES, PRESETS, RELATIVE

CHUNK = 256  # examples whose input Jacobians are taken at a time
_LARGEST = 8192  # rows of an exact kernel that is tried without being asked for: it alone takes 268 MB
_REUSE = 5  # measurements of the same examples that reuse a bound on the eigenvalues below the tracked ones
# Fields that the compiled programs depend on, beside the shapes of the data.
_IN_PROGRAM = re.compile(
    r"(model|loss|optimizer(?!\.lr)|schedule|measure|events)\b|data\.(target_encoding|train_size)$|run\.stop_loss$"
)
_READ = 3  # examples of a data set with attributes that are read for each one wanted


class Built(NamedTuple):
    """What a config is made into."""

    data: data.Data
    fallback_for: str | None  # the data set that these data stand in for
    model: Any
    members: training.Members
    reference: np.ndarray | None  # rows of the AGOP reference's input Jacobian; None: no AGOP is measured
    about_reference: dict[str, Any] | None
    plan: dict[str, Any]  # what is measured, how and how often
    trainer: training.Trainer


def build(config: ConfigDict, earlier: dict[str, Any] | None = None, loaded: tuple | None = None) -> Built:
    """The one door from a config to data, model, members, instruments and trainer.

    Args:
      config: a config that was checked.
      earlier: what run.json says of the run that is to be resumed or repeated. The data and the AGOP reference must be those of that run, and
        its cadences and methods are taken over; None: a new run.
      loaded: what :func:`load` gave for them, if it was called before.

    Raises:
      ConfigError: data or a reference that can't be had, or that are not those of the earlier run; a model that does not fit the data.
    """
    arrays, fallback_for = loaded or load(config, earlier)
    reference, about_reference = agop_reference(config, arrays) if "agop" in cadences_of(config) else (None, None)
    if earlier and earlier.get("agop_reference") != about_reference:
        raise configs.ConfigError(
            f"measure.agop_reference={config.measure.agop_reference!r} is another model than in the earlier run; allowed: the same model, or "
            "another workdir"
        )
    with fitting():
        model, members = build_model(config.model, arrays.outputs), build_members(config)
        plan = earlier["instruments"] if earlier else choose_instruments(config, model, arrays, members, reference)
        trainer = trainer_of(config, model, arrays, reference, plan)
    return Built(arrays, fallback_for, model, members, reference, about_reference, plan, trainer)


def load(config: ConfigDict, earlier: dict[str, Any] | None = None) -> tuple[data.Data, str | None]:
    """:func:`load_data`, and the check that they are the data of the earlier run.

    Raises:
      ConfigError: data that can't be had, or that are others.
    """
    arrays, fallback_for = load_data(config)
    if earlier and earlier["data"]["sha256"] != arrays.checksum:
        raise configs.ConfigError(
            f"data.name={config.data.name!r}: {arrays.source} has other data than the earlier run (SHA-256 differs); allowed: the same data, or "
            "another workdir"
        )
    return arrays, fallback_for


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """What goes wrong in here is one line on a model and data that do not fit each other, or this machine.

    Raises:
      ConfigError: it did.
    """
    try:
        yield
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    except (MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        why = configs.one_line(error)[:300] or type(error).__name__
        raise configs.ConfigError(f"the run can't be built ({why}); allowed: a model and data that fit here") from error


def load_data(config: ConfigDict) -> tuple[data.Data, str | None]:
    """The data of a run, and the name of the set that they stand in for, if they do.

    Raises:
      ConfigError: data that can't be had, or that the config does not fit.
    """
    c, fallback_for, classes = config.data, None, tuple(config.data.classes)
    sizes = {name: c[name] for name in ("train_size", "validation_size", "test_size")}
    try:
        if c.name == "synthetic":
            size = 8 * c.synthetic.dimension * (c.train_size + c.validation_size + c.test_size)  # drawn in double precision
            if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
                raise configs.ConfigError(
                    f"data.synthetic.dimension={c.synthetic.dimension}, data.train_size={c.train_size}, data.test_size={c.test_size}; "
                    f"allowed: examples of less than the {memory} bytes of this machine, not {size}"
                )
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
                if c.strict or not c.fallback or isinstance(error, data.UnknownData):
                    raise configs.ConfigError(configs.one_line(error)) from error
                arrays, fallback_for = data.read(c.fallback, image_size=c.image_size), c.name
                classes = tuple(c.fallback_classes)
                # Fallback data may be smaller than what it stands for.
                most = data.most_examples(arrays.y_train, classes)
                sizes["validation_size"] = min(sizes["validation_size"], most // 4)
                sizes["train_size"] = min(sizes["train_size"], most - sizes["validation_size"])
                sizes["test_size"] = min(sizes["test_size"], data.most_examples(arrays.y_test, classes))
                print(
                    f"{'!' * 78}\nWARNING: {c.name} could not be had; this run is on {c.fallback} instead, and says nothing about {c.name}."
                    f"\n{error}\n{'!' * 78}",
                    file=sys.stderr,
                )
        if config.model.name != "fcn":
            arrays = _as_images(arrays, config.model.name)
        prepared = data.prepare(arrays, classes=classes, **sizes, scaling=c.scaling, target_encoding=c.target_encoding)
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    except (OSError, MemoryError, OverflowError) as error:
        why = configs.one_line(error) or type(error).__name__
        raise configs.ConfigError(f"data.name={c.name!r} can't be had ({why}); allowed: data that fit here") from error
    return prepared, fallback_for


def _as_images(arrays: data.Arrays, model: str) -> data.Arrays:
    """Examples (h, w, channels) for convolutions and patches; gray images get their axis of channels."""
    shape = arrays.x_train.shape[1:]
    if len(shape) == 2:
        return arrays._replace(x_train=arrays.x_train[..., None], x_test=arrays.x_test[..., None])
    if len(shape) != 3:
        raise configs.ConfigError(
            f"model.name={model!r} with {arrays.name}, whose examples have shape {shape}; allowed: images (h, w) or (h, w, channels), or "
            "model.name='fcn'"
        )
    return arrays


def build_model(c: ConfigDict, outputs: int) -> Any:
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
    settings = {key: json.loads(config.data.to_json())[key] for key in ("classes", "scaling", "attribute")}
    try:
        theirs = {key: about["data"][key] for key in mine} | {key: about["config"]["data"][key] for key in settings}
        model = build_model(about["config"]["model"], arrays.outputs)
        size = about["data"]["train"]
    except (KeyError, TypeError, ValueError) as error:
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} does not say what it is ({configs.one_line(error)}); allowed: the model.npz of a run with "
            "run.save_model"
        ) from error
    mine |= settings
    if mine != theirs:
        key = next(key for key in mine if mine[key] != theirs[key])
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} is a model for data with {key} {theirs[key]!r}; allowed here: {mine[key]!r}"
        )
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), x[:1]))
    if jax.tree.map(np.shape, params) != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} holds other parameters than its model has; allowed: those of its model"
        )
    rows = np.asarray(jax.jit(partial(input_jacobian, model.apply, chunk_size=CHUNK))(params, x))
    if not np.isfinite(rows).all():
        raise configs.ConfigError(f"measure.agop_reference={name!r} has gradients that are not finite; allowed: finite ones")
    return rows, {
        "name": f"{about['config']['model']['name']} trained on {size} examples",
        "sha256": checksum,
        "error_test": about.get("error_test"),  # none for targets that are values
    }


def cadences_of(config: ConfigDict) -> dict[str, int]:
    """Cadence of each instrument that the config asks for; what a preset asks for, at every step."""
    m, full = config.measure, config.optimizer.batch_size in (0, config.data.train_size)
    fields = {name: m[f"{name}_every"] for name in CADENCES}
    if m.preset:
        fields = dict.fromkeys(PRESETS[m.preset], 1)
        if not m.agop_reference:
            fields.pop("agop", None)
    if full:
        fields.pop("loss_train", None)  # it is the batch loss
    if fields.get("test") and config.data.validation_size:
        fields["val"] = fields["test"]
    return {name: every for name, every in fields.items() if every}


def build_instruments(
    config: ConfigDict, model, arrays: data.Data, reference, cadences: dict[str, int], methods: dict[str, str]
) -> dict[str, instruments.Instrument]:
    """``methods``: exact or products, for ``batch_kernel`` and ``train_kernel``."""
    m, apply_fn, target_encoding = config.measure, model.apply, config.data.target_encoding
    full = config.optimizer.batch_size in (0, config.data.train_size)
    shared = dict(loss=config.loss, chunk_size=m.chunk_size or None)
    shared["k"] = 1 if m.preset == "economy" else m.top_k
    shared_products = shared | {"tol": m.tolerance, "max_products": m.max_products or None}
    most = {name: shared_products | {"k": min(shared["k"], size)} for name, size in rows_of(config, arrays).items()}

    def scores(split):
        return lambda every: instruments.loss_test(
            apply_fn, loss=config.loss, every=every, target_encoding=target_encoding, split=split
        )

    rows = rows_of(config, arrays)["lambda_max_batch"]
    growing = min(m.top_k_max, rows) if m.top_k_max else None
    make = {
        ("lambda_max_batch", "exact"): partial(instruments.lambda_max_batch, apply_fn, follow=full, **shared),
        ("lambda_max_batch", "products"): partial(
            instruments.lambda_max_batch_matrix_free, apply_fn, k_max=growing, reuse_bound=_REUSE if full else 0, **most["lambda_max_batch"]
        ),
        ("lambda_max_train", "exact"): partial(instruments.lambda_max_train, apply_fn, probe_size=m.probe_size, **shared),
        ("lambda_max_train", "products"): partial(
            instruments.lambda_max_train_matrix_free, apply_fn, probe_size=m.probe_size, reuse_bound=_REUSE, **most["lambda_max_train"]
        ),
        "loss_train": partial(instruments.loss_train, apply_fn, loss=config.loss),
        "loss_batch_after": partial(instruments.loss_batch_after, apply_fn, loss=config.loss),
        "preconditioner": partial(instruments.preconditioner_min, apply_fn, loss=config.loss),
        "test": scores("test"),
        "val": scores("val"),
        "agop": lambda every: instruments.agop_alignment(
            apply_fn, every=every, reference=jax.numpy.asarray(reference), size=m.agop_size, chunk_size=CHUNK
        ),
    }
    return {
        name: make[(name, methods[name]) if name in methods else name](every=every) for name, every in sorted(cadences.items())
    }


def rows_of(config: ConfigDict, arrays: data.Data) -> dict[str, int]:
    """Rows of the kernels: one for each output of each example."""
    n, m = len(arrays.x_train), config.measure
    return {
        "lambda_max_batch": (config.optimizer.batch_size or n) * arrays.outputs,
        "lambda_max_train": (m.probe_size or n) * arrays.outputs,
    }


def choose_instruments(config: ConfigDict, model, arrays: data.Data, members, reference) -> dict:
    """What is measured, how and how often: as the config says, or as found from the cost of each instrument in the first steps."""
    m, cadences = config.measure, cadences_of(config)
    full = config.optimizer.batch_size in (0, config.data.train_size)
    kernels = [name for name in ("lambda_max_batch", "lambda_max_train") if name in cadences]
    if m.method != "auto" and not m.preset:
        return {"cadences": cadences, "methods": dict.fromkeys(kernels, m.method or "exact")}
    rows = rows_of(config, arrays)
    automatic = m.method in ("", "auto")
    tried = {
        name: (m.method,) if not automatic else ("products",) if rows[name] > _LARGEST else ("exact", "products")
        for name in kernels
    }
    make = lambda cadences, methods: build_instruments(config, model, arrays, reference, cadences, methods)
    candidates = {name: make({name: 1}, {})[name] for name in cadences if name not in kernels}
    for name in kernels:
        candidates |= {f"{name}, {method}": make({name: 1}, {name: method})[name] for method in tried[name]}
    if m.preset and "exact" in tried.get("lambda_max_batch", ()):  # at every step it shares the step's derivatives
        candidates["lambda_max_batch, exact, apart"] = make({"lambda_max_batch": 2}, {"lambda_max_batch": "exact"})["lambda_max_batch"]
    build = lambda chosen: build_trainer(config, model, arrays, {name.split(",")[0]: i for name, i in chosen.items()})
    costs = overhead.measure(build, candidates, members)
    methods = {name: min(tried[name], key=lambda method, name=name: costs[f"{name}, {method}"]) for name in kernels}
    own = {name: costs[f"{name}, {methods[name]}" if name in methods else name] for name in cadences}
    apart = (
        {"lambda_max_batch": costs.get(f"lambda_max_batch, {methods.get('batch_kernel')}, apart", 0.0)} if "lambda_max_batch" in own else {}
    )
    apart = {name: max(cost, own[name]) for name, cost in apart.items()}
    found, always = cadences, set()
    if m.preset:
        relative = config.schedule.name in RELATIVE or config.schedule.cap or config.members.cap
        wanted = set() if full else {"lambda_max_batch", "loss_train"}
        always = (wanted | {"lambda_max_batch"} if relative else wanted) & set(own)
        longest = config.run.chunk_steps if config.run.stop_loss else None
        found = overhead.cadences(own, always, m.max_overhead, longest, apart)
    own = {name: cost if found[name] == 1 else apart.get(name, cost) for name, cost in own.items()}
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
    """The trainer of a config with these instruments."""
    m, momentum = config.measure, optimizers.momentum(config.optimizer)
    rows = rows_of(config, arrays)["lambda_max_train"]
    e = config.events
    return training.make_trainer(
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


_PROGRAMS: dict[Any, Any] | None = None  # compiled functions of the last runs of a sweep, the newest last; None: not shared
_MOST_PROGRAMS = 8  # so that a long sweep does not grow


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """In here runs that differ only in data, members and length share their compiled programs, see :func:`shared`."""
    global _PROGRAMS
    before, _PROGRAMS = _PROGRAMS, {}
    try:
        yield
    finally:
        _PROGRAMS = before


def shared(key, make: Callable[[], Any]) -> Any:
    """``make()``, or within :func:`shared_programs` what it gave for the same key."""
    if _PROGRAMS is None:
        return make()
    found = _PROGRAMS.pop(key) if key in _PROGRAMS else make()
    _PROGRAMS[key] = found
    while len(_PROGRAMS) > _MOST_PROGRAMS:
        del _PROGRAMS[next(iter(_PROGRAMS))]
    return found


def trainer_of(config: ConfigDict, model, arrays: data.Data, reference, plan: dict) -> training.Trainer:
    """The trainer of a run; ``plan``: its instruments, see :func:`choose_instruments`."""

    def make():
        chosen = build_instruments(config, model, arrays, reference, plan["cadences"], plan["methods"])
        return build_trainer(config, model, arrays, chosen)

    if _PROGRAMS is None:
        return make()
    fields = {name: value for name, value in configs.flat(config).items() if _IN_PROGRAM.match(name)}
    shapes = [(name, a.shape, str(a.dtype)) for name, a in arrays._asdict().items() if isinstance(a, np.ndarray)]
    rows = None if reference is None else hashlib.sha256(np.ascontiguousarray(reference)).hexdigest()
    key = json.dumps([fields, shapes, arrays.outputs, plan["cadences"], plan["methods"], rows], sort_keys=True, default=list)
    return shared(key, lambda: make().with_data)(arrays)


def build_members(config: ConfigDict) -> training.Members:
    """Every combination of the axes of a config's members, the last axis fastest."""
    axes = configs.member_axes(config)
    columns = dict(zip(axes, zip(*itertools.product(*axes.values()), strict=True), strict=True))
    dtypes = {"seed": np.int32, "raises": np.int32}
    arrays = {name: np.array(column, dtypes.get(name, np.float32)) for name, column in columns.items()}
    return training.Members(
        arrays["seed"], arrays.get("lr"), arrays.get("lr_relative"), arrays.get("raises"), arrays.get("cap")
    )
