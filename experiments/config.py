"""Configs from the command line, and the checks of their values: one line names the field, the value and what is allowed."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from catapult_jax.data import CODINGS, CODINGS_OF_LOSS, EMBEDDED, SCALINGS, TARGETS
from catapult_jax.losses import LOSSES
from catapult_jax.models import ACTIVATIONS, READOUTS
from catapult_jax.records import DamagedFile
from catapult_jax.schedules import SCHEDULES
from configs import default
from experiments import optimizers, signals
from experiments.verdicts import NEEDS, NEEDS_SOME, VERDICTS

CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Directory in which compiled programs are kept and found again; default: none, or $JAX_COMPILATION_CACHE_DIR.",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a variant after a colon; --config.FIELD=VALUE changes one of its fields."
)
FIELDS_HELP = "The fields of a config, their defaults and what they mean are in configs/default.py."


class ConfigError(Exception):
    """A config that can't be run; the message is one line."""


class RunError(Exception):
    """A run that can't go on; the message is one line."""


def program(main, parser=None) -> None:
    """Runs a program; what goes wrong is one line on stderr, and exit status 2 (config) or 1 (run).

    ``parser``: reads the command line; None: :func:`parse`, for programs that run a config.
    """
    logging.set_verbosity(logging.FATAL)  # TFDS tells of every file, and of what it raises as well
    signals.end_in_one_line()
    for stream in (sys.stdout, sys.stderr):  # a title may have letters that the terminal's encoding has not
        stream.reconfigure(errors="backslashreplace")
    try:
        app.run(main, flags_parser=parser or parse)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RunError, DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line of a program that runs a config (for ``app.run(flags_parser=...)``).

    Raises:
      ConfigError: unknown flag, unknown field, wrong type, an argument that is no flag, a config file that can't be loaded.
    """
    try:
        rest = parse_flags(argv, values)
        if "reproduce" in values and values.reproduce:
            if values.config is not None:
                raise ConfigError("reproduce and config are both given; allowed: one, since a run has its config with it")
            keep_compiled(values.compilation_cache)
            return rest
        if values.config is None:
            raise ConfigError("--config is missing; allowed: a config file, for example --config=configs/cifar_gd.py")
        if re.search(r"--xla_gpu_deterministic_ops=(?!true)", os.environ.get("XLA_FLAGS", "")):
            raise ConfigError(
                "XLA_FLAGS has --xla_gpu_deterministic_ops other than true; allowed: true, so that a config gives the same bits"
            )
        values.config.get("steps")  # a file that could not be loaded says so only when it is touched
        keep_compiled(values.compilation_cache)
    except (AttributeError, KeyError) as error:
        raise ConfigError(_unknown_field(argv) or one_line(error)) from error
    except (flags.Error, ValueError, TypeError, OSError) as error:
        raise ConfigError(one_line(error)) from error
    return rest


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses flags; ``--help`` prints them and ends the program.

    Raises:
      ConfigError: an unknown flag, an argument that is no flag, a platform that is not there.
    """
    if any(re.fullmatch(r"--?(h|help|helpshort|helpfull)", argument) for argument in argv[1:]):
        print(help_text(values))
        sys.exit(0)
    try:
        rest = values([re.sub(r"^(--?config=)(~.*)", lambda m: m[1] + os.path.expanduser(m[2]), a) for a in argv])
    except flags.Error as error:
        raise ConfigError(one_line(error)) from error
    if len(rest) > 1:
        field = rest[1].partition("=")[0]
        hint = f"--config.{rest[1]}" if field in flat(default.get_config()) else "flags, which begin with --; see --help"
        raise ConfigError(f"argument {rest[1]!r} is no flag; allowed: {hint}")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r} can't be used ({one_line(error)[:200] or 'it is not there'}); "
            "allowed: platforms of this machine, or none, so that JAX takes the best"
        ) from error
    return rest


def help_text(values: flags.FlagValues = flags.FLAGS) -> str:
    """What the program does, and its flags."""
    program, modules = sys.modules["__main__"], values.flags_by_module_dict()
    own = modules.get(sys.argv[0], [])
    if not any(flag.name == "only" for flag in own):  # the program of the claims has configs of its own
        own = [*modules.get(__name__, []), *modules.get("experiments.main", []), *own]
    lines = [f"  --{flag.name}: {' '.join(flag.help.split())}" for flag in own]
    return "\n".join([(program.__doc__ or "").strip(), "", "Flags:", *lines, "", FIELDS_HELP])


def keep_compiled(directory: str | None) -> None:
    """Keeps compiled programs in a directory, made when the first is, and finds them there again.

    Raises:
      ConfigError: it can't be made.
    """
    if not directory:
        return
    wanted = Path(directory).expanduser().resolve()
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):  # JAX makes it once there is something to keep
        raise ConfigError(f"compilation_cache={directory!r} can't be made in {there}; allowed: a directory to write in")
    jax.config.update("jax_compilation_cache_dir", str(wanted))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def one_line(error: BaseException) -> str:
    """The last sentence of an error that carries a traceback in its text; otherwise the error on one line."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = re.sub(r"^[\w.]*(Error|Exception): ", "", text.splitlines()[-1])
    return " ".join(text.split())


def _unknown_field(argv: Sequence[str]) -> str | None:
    """The first field on the command line that the config file does not have; the file is loaded again without overrides."""
    if not any(re.match(r"--?config\.", a) for a in argv[1:]):
        return None
    alone = [argv[0], *(a for a in argv[1:] if re.match(r"--?config=", a))]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=alone)
    values(alone)
    config = values.config
    known = flat(config)
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in known:
            return no_field(match[1])
    return None


def no_field(name: str) -> str:
    nearest = difflib.get_close_matches(name, sorted(flat(default.get_config())), 1, 0.0)[0]
    return f"config has no field {name!r}; nearest: {nearest!r}"


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """``{"data.name": ..., ...}``."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def expanded(config: ConfigDict) -> ConfigDict:
    """The config with ``~`` in its paths as the home directory."""
    paths = {name: flat(config).get(name) for name in ("data.dir", "data.tfds_dir", "measure.agop_reference")}
    homes = {name: os.path.expanduser(path) for name, path in paths.items() if isinstance(path, str) and path.startswith("~")}
    if not homes:
        return config
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(homes)
    return config


def identity(config: ConfigDict) -> str:
    """Eight hexadecimal digits that differ between configs. What other runs there are (``sweep``) does not change one."""
    fields = {name: value for name, value in config.to_dict().items() if name != "sweep"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=list).encode()).hexdigest()[:8]


def _at_least(least):
    return f"{least} or more", lambda v: v >= least


def _above(bound):
    return f"above {bound}", lambda v: v > bound


def _one_of(names):
    return ", ".join(sorted(names)), lambda v: v in names


def _each(rule):
    allowed, good = rule
    return f"a tuple, each {allowed}", lambda values: all(not isinstance(v, str) and good(v) for v in values)


def _whole(rule):
    allowed, good = rule
    return f"whole number, {allowed}", lambda v: isinstance(v, int) and good(v)


MODELS = ("fcn", "cnn", "wide_resnet", "vit")
# What each preset measures; AGOPs where there is a reference.
PRESETS = {
    "economy": ("batch_kernel", "train_loss"),
    "standard": ("batch_kernel", "train_loss", "loss_after", "test"),
    "full": ("batch_kernel", "train_loss", "loss_after", "test", "train_kernel", "agop"),
}
RELATIVE = ("staircase", "relative_to_critical")  # schedules that need the critical lr
_MOST = 2**31 - 1  # steps are counted in 32 bits
_SHARE = ("0 or more, below 1", lambda v: 0 <= v < 1)
_SEED = ("0 to 2147483647", lambda v: 0 <= v < 2**31)

_RULES = {
    "steps": _at_least(1),
    "seed": _SEED,
    "members.seed": _each(_whole(_SEED)),
    "members.lr_relative": _each(_above(0)),
    "members.lr": _each(_above(0)),
    "members.raises": _each(_whole(_at_least(0))),
    "members.cap": _each(_at_least(0)),
    "data.classes": _each(_whole(_at_least(0))),
    "data.stand_in": _one_of(("", "digits", "natural_patches")),
    "data.stand_in_classes": _each(_whole(_at_least(0))),
    "data.train_size": _at_least(1),
    "data.test_size": _at_least(0),
    "data.validation_size": _at_least(0),
    "data.image_size": _at_least(0),
    "data.scaling": _one_of(SCALINGS),
    "data.coding": _one_of(CODINGS),
    "data.synthetic.dimension": _at_least(1),
    "data.synthetic.target": _one_of(TARGETS),
    "data.synthetic.rank": _at_least(1),
    "data.synthetic.noise": _at_least(0),
    "data.synthetic.seed": _at_least(0),
    "model.name": _one_of(MODELS),
    "model.depth": _at_least(1),
    "model.width": _at_least(1),
    "model.activation": _one_of(ACTIVATIONS),
    "model.gain": _above(0),
    "model.readout": _one_of(READOUTS),
    "model.strides": _each(_whole(_at_least(1))),
    "model.stem_stride": _at_least(1),
    "model.patch_size": _at_least(1),
    "loss": _one_of(LOSSES),
    "optimizer.name": _one_of(optimizers.SETTINGS),
    "optimizer.lr": _at_least(0),
    "optimizer.lr_relative": _at_least(0),
    "optimizer.batch_size": _at_least(0),
    **dict.fromkeys([f"optimizer.{name}" for name in ("momentum", "b1", "b2", "decay", "rho")], _SHARE),
    **dict.fromkeys([f"optimizer.{name}" for name in ("eps", "initial_accumulator_value", "weight_decay")], _at_least(0)),
    "schedule.name": _one_of(SCHEDULES),
    "schedule.cap": _at_least(0),
    "schedule.cap_from": _at_least(0),
    "schedule.low": ("0 to 1", lambda v: 0 <= v <= 1),
    "schedule.period": _at_least(2),
    "schedule.decay": ("above 0, at most 1", lambda v: 0 < v <= 1),
    "schedule.raises": _at_least(0),
    "schedule.raise_to": _above(0),
    "schedule.settle_fraction": ("above 0, at most 1", lambda v: 0 < v <= 1),
    "schedule.settle_steps": _at_least(1),
    "measure.preset": _one_of(("", *PRESETS)),
    "measure.max_overhead": _above(1),
    "measure.method": _one_of(("", "exact", "products", "auto")),
    "measure.tolerance": _above(0),
    "measure.max_products": _at_least(0),
    "measure.chunk_size": _at_least(0),
    "measure.batch_kernel_every": _at_least(0),
    "measure.top_k": _at_least(1),
    "measure.top_k_max": _at_least(0),
    "measure.train_loss_every": _at_least(0),
    "measure.train_kernel_every": _at_least(0),
    "measure.loss_after_every": _at_least(0),
    "measure.preconditioner_every": _at_least(0),
    "measure.test_every": _at_least(0),
    "measure.agop_every": _at_least(0),
    "measure.agop_size": _at_least(1),
    "measure.probe_size": _at_least(0),
    "events.factor": _above(1),
    "events.delta": _above(0),
    "events.horizon": _at_least(1),
    "run.chunk_steps": _at_least(1),
    "run.checkpoint_seconds": _above(0),
    "run.checkpoint_every": _at_least(0),
    "run.stop_loss": _at_least(0),
    "sweep": ('a tuple of "FIELD=v1,v2"', lambda axes: all(isinstance(a, str) and "=" in a for a in axes)),
    "claims": ("a tuple of " + ", ".join(sorted(VERDICTS)), lambda names: all(name in VERDICTS for name in names)),
}


def _holds(good, value) -> bool:
    finite = all(not isinstance(v, float) or math.isfinite(v) for v in (value if isinstance(value, tuple) else (value,)))
    try:
        return finite and bool(good(value))
    except TypeError:  # a tuple with something else than a number in it
        return False


def check(config: ConfigDict) -> None:
    """Checks every value, and that the fields do not contradict each other.

    Raises:
      ConfigError: the first thing that is wrong.
    """
    fields = flat(config)
    strange = sorted(set(fields) - set(flat(default.get_config())))
    if strange:
        raise ConfigError(no_field(strange[0]))
    for name, (allowed, good) in _RULES.items():
        value = fields[name]
        if value is not None and not _holds(good, value):
            raise ConfigError(f"{name}={value!r}; allowed: {allowed}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) > _MOST:
                raise ConfigError(f"{name}={value!r}; allowed: whole numbers up to {_MOST}")

    def refuse(condition, *names, why):
        if condition:
            raise ConfigError(", ".join(f"{name}={fields[name]!r}" for name in names) + f"; {why}")

    own = optimizers.SETTINGS[config.optimizer.name]
    for name in sorted({name for names in optimizers.SETTINGS.values() for name in names} - set(own)):
        refuse(
            config.optimizer[name],
            "optimizer.name",
            f"optimizer.{name}",
            why=f"allowed for it: {', '.join(own) or 'no settings'}",
        )
    refuse(
        config.optimizer.nesterov and not config.optimizer.momentum,
        "optimizer.nesterov",
        "optimizer.momentum",
        why="allowed with nesterov: a momentum above 0",
    )
    refuse(
        config.optimizer.name in ("sgd", *optimizers.MOMENTUM) and config.measure.preconditioner_every,
        "optimizer.name",
        "measure.preconditioner_every",
        why="allowed for sgd, heavy_ball and nesterov, which have no preconditioner: 0",
    )
    refuse(
        config.measure.preset and config.measure.preconditioner_every,
        "measure.preset",
        "measure.preconditioner_every",
        why="allowed with a preset: 0, since none measures it",
    )
    refuse(
        config.measure.top_k_max and config.measure.method != "products",
        "measure.top_k_max",
        "measure.method",
        why="allowed with a largest k: products, since the exact kernel gives all eigenvalues at once",
    )
    refuse(
        config.measure.top_k_max and not config.measure.batch_kernel_every and not config.measure.preset,
        "measure.top_k_max",
        "measure.batch_kernel_every",
        why="allowed with a largest k: a cadence of 1 or more, or a preset",
    )
    refuse(
        0 < config.measure.top_k_max < config.measure.top_k and config.measure.preset != "economy",  # which follows one
        "measure.top_k_max",
        "measure.top_k",
        why="allowed: 0, or measure.top_k and more",
    )
    full = config.optimizer.batch_size in (0, config.data.train_size)
    kernels = "catapults_condition_the_kernel" in config.claims
    refuse(
        kernels and not full,
        "claims",
        "optimizer.batch_size",
        why="allowed with the claim catapults_condition_the_kernel: 0, all examples",
    )
    refuse(
        kernels and (config.measure.preset or config.measure.method not in ("", "exact")),
        "claims",
        "measure.preset",
        "measure.method",
        why="allowed with the claim catapults_condition_the_kernel: no preset, and the method exact",
    )
    refuse(
        "adagrad_outgrows_its_lr" in config.claims and config.optimizer.name != "adagrad",
        "claims",
        "optimizer.name",
        why="allowed with the claim adagrad_outgrows_its_lr: adagrad",
    )
    relative = [n for n in ("optimizer.lr_relative", "members.lr_relative") if fields[n]]
    absolute = [n for n in ("optimizer.lr", "members.lr") if fields[n]]
    refuse(not relative + absolute, "optimizer.lr", "optimizer.lr_relative", why="allowed: one of them above 0")
    refuse(
        relative and absolute,
        *absolute,
        *relative,
        why="allowed: absolute or relative rates, not both; 0 or () takes one away",
    )
    for name in (*(f"members.{axis}" for axis in config.members), "data.classes", "data.stand_in_classes"):
        refuse(len(set(fields[name])) < len(fields[name]), name, why="allowed: each value once")
    refuse(
        config.optimizer.batch_size > config.data.train_size,
        "optimizer.batch_size",
        "data.train_size",
        why="allowed: a batch no larger than the training set",
    )
    refuse(
        config.measure.probe_size > config.data.train_size,
        "measure.probe_size",
        "data.train_size",
        why="allowed: a probe no larger than the training set",
    )
    codings = CODINGS_OF_LOSS[config.loss]
    refuse(config.data.coding not in codings, "loss", "data.coding", why=f"allowed for this loss: {', '.join(codings)}")
    synthetic = config.data.name == "synthetic"
    refuse(
        synthetic != (config.data.coding == "value"),
        "data.name",
        "data.coding",
        why="allowed: coding 'value' with synthetic targets, and only there",
    )
    refuse(synthetic and config.data.classes, "data.name", "data.classes", why="allowed: no classes for synthetic targets")
    refuse(synthetic and config.data.scaling != "none", "data.name", "data.scaling", why="allowed for synthetic inputs: none")
    refuse(
        synthetic and config.data.test_size == 0, "data.name", "data.test_size", why="allowed for synthetic targets: 1 or more"
    )
    refuse(synthetic and config.model.name != "fcn", "data.name", "model.name", why="allowed for synthetic inputs: fcn")
    refuse(
        config.model.name in ("fcn", "cnn") and config.model.depth < 2,
        "model.name",
        "model.depth",
        why="allowed for fcn and cnn: 2 weight layers or more",
    )
    refuse(
        config.data.synthetic.rank > config.data.synthetic.dimension,
        "data.synthetic.rank",
        "data.synthetic.dimension",
        why="allowed: a rank no larger than the dimension",
    )
    refuse(
        config.data.stand_in and config.data.name in EMBEDDED,
        "data.name",
        "data.stand_in",
        why="allowed: no stand-in for embedded data",
    )
    refuse(
        config.model.name == "cnn" and len(config.model.strides) not in (0, config.model.depth - 1),
        "model.strides",
        "model.depth",
        why=f"allowed: none, or one for each of the {config.model.depth - 1} convolutions",
    )
    refuse(
        config.model.name != "cnn" and config.model.strides,
        "model.name",
        "model.strides",
        why="allowed for models other than cnn: none",
    )
    refuse(
        config.events.factor <= 1 + config.events.delta,
        "events.factor",
        "events.delta",
        why="allowed: a factor above 1 + delta",
    )
    refuse(
        config.schedule.name in RELATIVE and not config.measure.batch_kernel_every,
        "schedule.name",
        "measure.batch_kernel_every",
        why=f"allowed with {config.schedule.name}: 1 or more, since it is relative to the critical lr of the step",
    )
    refuse(
        config.schedule.name == "relative_to_critical" and absolute,
        "schedule.name",
        *absolute,
        why="allowed with relative_to_critical: relative rates, the multiple that is held",
    )
    for name in ("schedule.cap", "members.cap"):
        refuse(
            fields[name] and not config.measure.batch_kernel_every,
            name,
            "measure.batch_kernel_every",
            why="allowed with a cap: 1 or more, since it is relative to the critical lr of the step",
        )
    refuse(
        config.schedule.name != "staircase" and config.members.raises,
        "schedule.name",
        "members.raises",
        why="allowed: raises with the schedule staircase",
    )
    reference = config.measure.agop_reference
    refuse(
        bool(config.measure.agop_every) != bool(reference) and not config.measure.preset,
        "measure.agop_every",
        "measure.agop_reference",
        why="allowed: both or none",
    )
    refuse(
        reference == "closed_form" and not synthetic,
        "measure.agop_reference",
        "data.name",
        why="allowed: closed_form for synthetic targets, elsewhere the model.npz of a run with run.save_model",
    )
    for name in ("test_every", "agop_every", "batch_kernel_every") if not config.measure.preset else ():
        refuse(
            config.run.stop_loss and config.run.chunk_steps < fields[f"measure.{name}"],
            "run.stop_loss",
            "run.chunk_steps",
            f"measure.{name}",
            why="allowed with a loss to stop at: chunks no shorter than the cadences, so that the end is measured",
        )
    refuse(
        config.data.attribute is None and config.data.name == "celeba",
        "data.name",
        "data.attribute",
        why="allowed for celeba: the name of an attribute",
    )
    refuse(
        not full and config.measure.batch_kernel_every > 1 and config.measure.train_loss_every,
        "optimizer.batch_size",
        "measure.batch_kernel_every",
        "measure.train_loss_every",
        why="allowed with batches: 0 or 1, since the critical lr of one batch does not explain a spike later, or no training loss and so no spikes",
    )
    for claim in config.claims if not config.measure.preset else ():  # a preset finds its cadences first: see testable
        for name in NEEDS.get(claim, ()):
            refuse(fields[name] != 1, "claims", name, why=f"allowed with the claim {claim}: 1")
        for name in NEEDS_SOME.get(claim, ()):
            refuse(not fields[name], "claims", name, why=f"allowed with the claim {claim}: a value other than 0 or none")
    caps = config.members.cap
    refuse(
        "forbidding_catapults_hurts" in config.claims and (0 not in caps or not any(0 < cap < 1 for cap in caps)),
        "claims",
        "members.cap",
        why="allowed with the claim forbidding_catapults_hurts: 0, no cap, and one below 1",
    )
    refuse(
        "sgd_spikes_are_catapults" in config.claims and config.measure.probe_size,
        "claims",
        "measure.probe_size",
        why="allowed with the claim sgd_spikes_are_catapults: 0, since its split is of the whole training loss",
    )
    refuse(
        not full and config.measure.train_loss_every > 1,
        "optimizer.batch_size",
        "measure.train_loss_every",
        why="allowed with batches: 1, since events are spikes of the training loss, or 0: no events",
    )
    refuse(
        not full and config.run.stop_loss and config.measure.train_loss_every != 1,
        "optimizer.batch_size",
        "run.stop_loss",
        "measure.train_loss_every",
        why="allowed with batches and a loss to stop at: 1",
    )


def testable(claims: Sequence[str], fields: dict[str, Any]) -> list[str]:
    """The claims whose measurements the fields ask for, at the cadence that they need."""
    every_step = lambda claim: all(fields[name] == 1 for name in NEEDS.get(claim, ()))
    some = lambda claim: all(fields[name] for name in NEEDS_SOME.get(claim, ()))
    return [claim for claim in claims if every_step(claim) and some(claim)]


def member_axes(config: ConfigDict) -> dict[str, tuple]:
    """Every axis along which the members of a run differ, slowest first; a tuple in members stands before the one value.

    Exactly one of ``lr`` and ``lr_relative`` is there; ``raises`` and ``cap`` only where the schedule has them.
    """
    absolute, relative = learning_rates(config)
    axes = {"lr": absolute} if absolute else {"lr_relative": relative}
    if config.schedule.name == "staircase":
        axes["raises"] = tuple(config.members.raises) or (config.schedule.raises,)
    caps = tuple(config.members.cap) or (config.schedule.cap,)
    if any(caps):
        axes["cap"] = tuple(float(cap) or math.inf for cap in caps)
    return axes | {"seed": tuple(config.members.seed) or (config.seed,)}


def learning_rates(config: ConfigDict) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """``(absolute, relative)`` learning rates of the members; one of them is None. A tuple in members stands before the one rate."""
    if config.members.lr or config.optimizer.lr:
        return tuple(map(float, config.members.lr)) or (config.optimizer.lr,), None
    return None, tuple(map(float, config.members.lr_relative)) or (config.optimizer.lr_relative,)
