"""The rules between the fields of a config, one row for each rule; and the check of a whole config.

>>> from configs import quickstart
>>> config = quickstart.get_config()
>>> check(config)
>>> config.model.depth = 1
>>> check(config)
Traceback (most recent call last):
    ...
experiments.config.ConfigError: model.name='fcn', model.depth=1; allowed for fcn and cnn: 2 weight layers or more

The allowed values of each field are in :mod:`experiments.values`. The page docs/config.md shows all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from catapult_jax.data import EMBEDDED, TARGET_ENCODINGS_OF_LOSS
from configs import default
from experiments import optimizers
from experiments.arms import NEED_CAP_RUN
from experiments.config import TYPE_NAMES, ConfigError, flat, no_field
from experiments.values import RELATIVE, VALUES, wrong
from experiments.verdicts import NEEDS, NEEDS_SOME, VERDICTS

Fields = dict[str, Any]  # the fields of a config by full name


class Rule(NamedTuple):
    """A rule between fields of a config."""

    fields: tuple[str, ...]  # their values begin the error message, in this order
    allowed: str  # ends the error message; may name a key of NUMBERS in braces
    broken: Callable[[Fields], Any]  # true if a config breaks the rule
    of: str = ""  # value of the first field, if each value has a row


def _full_batch(f: Fields) -> bool:
    return f["optimizer.batch_size"] in (None, f["data.train_size"])


def _synthetic(f: Fields) -> bool:
    return f["data.name"] == "synthetic"


def _foreign_settings(optimizer: str) -> list[Rule]:
    """Refuse the settings of other optimizers."""
    allowed = ", ".join(optimizers.SETTINGS[optimizer]) or "no settings"
    others = {name for names in optimizers.SETTINGS.values() for name in names} - set(optimizers.SETTINGS[optimizer])
    return [
        Rule(
            ("optimizer.name", f"optimizer.{name}"),
            f"allowed for {optimizer}: {allowed}",
            lambda f, name=name: f["optimizer.name"] == optimizer and f[f"optimizer.{name}"],
            of=optimizer,
        )
        for name in sorted(others)
    ]


def _target_encoding_of(loss: str) -> Rule:
    target_encodings = TARGET_ENCODINGS_OF_LOSS[loss]
    return Rule(
        ("loss", "data.target_encoding"),
        f"allowed for {loss}: {', '.join(target_encodings)}",
        lambda f: f["loss"] == loss and f["data.target_encoding"] not in target_encodings,
        of=loss,
    )


def _each_once(name: str) -> Rule:
    return Rule((name,), "allowed: each value once", lambda f: len(set(f[name] or ())) < len(f[name] or ()))


def _critical_lr_for(schedule: str) -> Rule:
    return Rule(
        ("schedule.name", "measure.lambda_max_batch_every"),
        f"allowed with {schedule}: 1 or more, since it is relative to the critical lr of the step",
        lambda f: f["schedule.name"] == schedule and not f["measure.lambda_max_batch_every"] and not f["measure.preset"],
        of=schedule,
    )


def _critical_lr_for_cap(name: str) -> Rule:
    return Rule(
        (name, "measure.lambda_max_batch_every"),
        "allowed with a cap: 1 or more, since it is relative to the critical lr of the step",
        lambda f: f[name] and not f["measure.lambda_max_batch_every"] and not f["measure.preset"],
    )


def _not_in_a_preset(instrument: str) -> Rule:
    name = f"measure.{instrument}_every"
    return Rule(
        ("measure.preset", name),
        "allowed with a preset: 0, since no preset measures it",
        lambda f: f["measure.preset"] and f[name],
    )


def _end_is_measured(instrument: str) -> Rule:
    name = f"measure.{instrument}_every"
    return Rule(
        ("run.stop_loss", "run.chunk_steps", name),
        "allowed with a stop_loss: chunks as long as the cadences or longer, so that the end is measured",
        lambda f: not f["measure.preset"] and f["run.stop_loss"] and f["run.chunk_steps"] < f[name],
    )


def _needs_of(claim: str) -> list[Rule]:
    """Require the fields that a claim needs. A preset chooses its cadences later, see :func:`experiments.config.testable`."""
    applies = lambda f: claim in f["claims"] and not f["measure.preset"]
    every_step = [
        Rule(
            ("claims", name),
            f"allowed with the claim {claim}: 1",
            lambda f, name=name: applies(f) and f[name] != 1,
            of=claim,
        )
        for name in NEEDS.get(claim, ())
    ]
    given = [
        Rule(
            ("claims", name),
            f"allowed with the claim {claim}: a value other than 0 or None",
            lambda f, name=name: applies(f) and not f[name],
            of=claim,
        )
        for name in NEEDS_SOME.get(claim, ())
    ]
    return [*every_step, *given]


ONE_OUTPUT = ("sign", "binary", "value")  # target encodings with one output for each example

# Numbers in the text of a rule that depend on the config: in words, and as a function of the fields.
NUMBERS = {"convolutions": ("`model.depth` - 1", lambda f: f["model.depth"] - 1)}

# In the order of the checks. The rules of _needs_of come between these two.
_BEFORE_CLAIMS = (
    *(rule for optimizer in optimizers.SETTINGS for rule in _foreign_settings(optimizer)),
    Rule(
        ("optimizer.nesterov", "optimizer.momentum"),
        "allowed with nesterov: a momentum above 0",
        lambda f: f["optimizer.nesterov"] and not f["optimizer.momentum"],
    ),
    Rule(
        ("optimizer.name", "measure.preconditioner_min_every"),
        "allowed for sgd, heavy_ball and nesterov, which have no preconditioner: 0",
        lambda f: f["optimizer.name"] in ("sgd", *optimizers.MOMENTUM) and f["measure.preconditioner_min_every"],
    ),
    *map(_not_in_a_preset, ("preconditioner_min", "directional_batch", "directional_train", "weight_norm", "criteria")),
    Rule(
        ("measure.criteria_every", "data.target_encoding"),
        f"allowed with criteria: {', '.join(ONE_OUTPUT)}, which have one output",
        lambda f: f["measure.criteria_every"] and f["data.target_encoding"] not in ONE_OUTPUT,
    ),
    Rule(
        ("measure.top_k_max", "measure.method"),
        "allowed with a top_k_max: matrix_free, since the exact kernel gives all eigenvalues at once",
        lambda f: f["measure.top_k_max"] and f["measure.method"] != "matrix_free",
    ),
    Rule(
        ("measure.top_k_max", "measure.lambda_max_batch_every"),
        "allowed with a top_k_max: a cadence of 1 or more, or a preset",
        lambda f: f["measure.top_k_max"] and not f["measure.lambda_max_batch_every"] and not f["measure.preset"],
    ),
    Rule(
        ("measure.top_k_max", "measure.top_k"),
        "allowed: measure.top_k or more, or None",
        # The preset economy follows one eigenvalue, for any top_k.
        lambda f: 0 < (f["measure.top_k_max"] or 0) < f["measure.top_k"] and f["measure.preset"] != "economy",
    ),
    Rule(
        ("measure.loss_modes", "measure.method", "measure.preset"),
        "allowed with loss_modes: the exact kernel, exact or None, without a preset",
        lambda f: f["measure.loss_modes"] and (f["measure.method"] not in (None, "exact") or f["measure.preset"]),
    ),
    Rule(
        ("measure.loss_modes", "optimizer.batch_size", "measure.lambda_max_batch_every", "measure.lambda_max_train_every"),
        "allowed with loss_modes: a cadence of lambda_max_train, or of lambda_max_batch where all examples are the batch",
        lambda f: f["measure.loss_modes"] and not f[f"measure.lambda_max_{'batch' if _full_batch(f) else 'train'}_every"],
    ),
    Rule(
        ("claims", "optimizer.batch_size"),
        "allowed with the claim catapults_lower_the_norm: None, all examples",
        lambda f: "catapults_lower_the_norm" in f["claims"] and not _full_batch(f),
    ),
    Rule(
        ("claims", "measure.preset", "measure.method"),
        "allowed with the claim catapults_lower_the_norm: no preset, and the method exact",
        lambda f: (
            "catapults_lower_the_norm" in f["claims"] and (f["measure.preset"] or f["measure.method"] not in (None, "exact"))
        ),
    ),
    Rule(
        ("claims", "optimizer.name"),
        "allowed with the claim adagrad_outgrows_its_lr: adagrad",
        lambda f: "adagrad_outgrows_its_lr" in f["claims"] and f["optimizer.name"] != "adagrad",
    ),
    Rule(
        ("optimizer.lr", "members.lr"),
        "allowed: an lr in one of them, in the unit optimizer.lr_unit",
        lambda f: not f["optimizer.lr"] and not f["members.lr"],
    ),
    *map(_each_once, [f"members.{axis}" for axis in default.get_config().members]),
    *map(_each_once, ["data.classes", "data.fallback_classes"]),
    Rule(
        ("optimizer.batch_size", "data.train_size"),
        "allowed: a batch no larger than the training set",
        lambda f: (f["optimizer.batch_size"] or 0) > f["data.train_size"],
    ),
    Rule(
        ("measure.probe_size", "data.train_size"),
        "allowed: a probe no larger than the training set",
        lambda f: (f["measure.probe_size"] or 0) > f["data.train_size"],
    ),
    *map(_target_encoding_of, TARGET_ENCODINGS_OF_LOSS),
    Rule(
        ("data.name", "data.target_encoding"),
        "allowed: target encoding 'value' with synthetic targets, and only there",
        lambda f: _synthetic(f) != (f["data.target_encoding"] == "value"),
    ),
    Rule(
        ("data.name", "data.classes"),
        "allowed: no classes for synthetic targets",
        lambda f: _synthetic(f) and f["data.classes"],
    ),
    Rule(
        ("data.name", "data.scaling"),
        "allowed for synthetic inputs: none",
        lambda f: _synthetic(f) and f["data.scaling"] != "none",
    ),
    Rule(
        ("data.name", "data.test_size"),
        "allowed for synthetic targets: 1 or more",
        lambda f: _synthetic(f) and f["data.test_size"] is None,
    ),
    Rule(
        ("data.name", "model.name"),
        "allowed for synthetic inputs: fcn",
        lambda f: _synthetic(f) and f["model.name"] != "fcn",
    ),
    Rule(
        ("model.name", "model.depth"),
        "allowed for fcn and cnn: 2 weight layers or more",
        lambda f: f["model.name"] in ("fcn", "cnn") and f["model.depth"] < 2,
    ),
    Rule(
        ("data.synthetic.rank", "data.synthetic.dimension"),
        "allowed: a rank no larger than the dimension",
        lambda f: f["data.synthetic.rank"] > f["data.synthetic.dimension"],
    ),
    Rule(
        ("data.name", "data.fallback"),
        "allowed for embedded data: no fallback data",
        lambda f: f["data.fallback"] and f["data.name"] in EMBEDDED,
    ),
    Rule(
        ("model.strides", "model.depth"),
        "allowed: one for each of the {convolutions} convolutions, or None",
        lambda f: f["model.name"] == "cnn" and f["model.strides"] and len(f["model.strides"]) != f["model.depth"] - 1,
    ),
    Rule(
        ("model.name", "model.strides"),
        "allowed for models other than cnn: None",
        lambda f: f["model.name"] != "cnn" and f["model.strides"],
    ),
    Rule(
        ("events.factor", "events.delta"),
        "allowed: a factor above 1 + delta",
        lambda f: f["events.factor"] <= 1 + f["events.delta"],
    ),
    *map(_critical_lr_for, RELATIVE),
    Rule(
        ("schedule.name", "optimizer.lr_unit"),
        "allowed with relative_to_critical: critical_lr0, since the lr is then a multiple of the critical lr",
        lambda f: f["schedule.name"] == "relative_to_critical" and f["optimizer.lr_unit"] == "absolute",
    ),
    *map(_critical_lr_for_cap, ("schedule.cap", "members.cap")),
    Rule(
        ("members.intervention", "members.cap"),
        "allowed with interventions: None, since schedule.cap is the cap of the arm cap",
        lambda f: f["members.intervention"] and f["members.cap"],
    ),
    Rule(
        ("members.intervention", "schedule.cap"),
        "allowed with the arm cap: a cap, and without it: None",
        lambda f: f["members.intervention"] and ("cap" in f["members.intervention"]) != (f["schedule.cap"] is not None),
    ),
    Rule(
        ("members.intervention", "intervention.cap_run"),
        f"allowed with {', '.join(NEED_CAP_RUN)}: the directory of a run with the arm cap",
        lambda f: set(f["members.intervention"] or ()) & set(NEED_CAP_RUN) and f["intervention.cap_run"] is None,
    ),
    Rule(
        ("members.intervention", "optimizer.name", "optimizer.momentum"),
        "allowed with interventions: sgd without momentum, whose step has one factor for each mode",
        lambda f: f["members.intervention"] and (f["optimizer.name"] != "sgd" or f["optimizer.momentum"]),
    ),
    Rule(
        ("members.intervention", "schedule.name"),
        "allowed with interventions: constant",
        lambda f: f["members.intervention"] and f["schedule.name"] != "constant",
    ),
    Rule(
        ("members.intervention", "measure.lambda_max_batch_every", "measure.method", "measure.preset", "measure.chunk_size"),
        "allowed with interventions: the exact kernel of the whole batch at every step, 1, exact, None, None",
        lambda f: (
            f["members.intervention"]
            and (
                f["measure.lambda_max_batch_every"] != 1
                or f["measure.method"] not in (None, "exact")
                or f["measure.preset"]
                or f["measure.chunk_size"]
            )
        ),
    ),
    Rule(
        ("schedule.name", "members.raises"),
        "allowed with schedules other than staircase: no raises",
        lambda f: f["schedule.name"] != "staircase" and f["members.raises"],
    ),
    Rule(
        ("measure.agop_alignment_every", "measure.agop_reference"),
        "allowed: both of them, or neither",
        lambda f: bool(f["measure.agop_alignment_every"]) != bool(f["measure.agop_reference"]) and not f["measure.preset"],
    ),
    Rule(
        ("measure.agop_reference", "data.name"),
        "allowed: closed_form for synthetic targets, elsewhere the model.npz of a run with run.save_model",
        lambda f: f["measure.agop_reference"] == "closed_form" and not _synthetic(f),
    ),
    Rule(
        ("measure.agop_second_reference", "measure.agop_reference"),
        "allowed with a second reference: the model.npz of a first one",
        lambda f: f["measure.agop_second_reference"] and f["measure.agop_reference"] in (None, "closed_form"),
    ),
    *map(_end_is_measured, ("loss_test", "agop_alignment", "lambda_max_batch", "weight_norm")),
    Rule(
        ("data.name", "data.attribute"),
        "allowed for celeba: the name of an attribute",
        lambda f: f["data.attribute"] is None and f["data.name"] == "celeba",
    ),
    Rule(
        ("data.by_seed", "data.attribute"),
        "allowed with an attribute: False, since only the first examples of such data are read",
        lambda f: f["data.by_seed"] and f["data.attribute"] is not None,
    ),
    Rule(
        ("optimizer.batch_size", "measure.lambda_max_batch_every", "measure.loss_train_every"),
        "allowed with batches: 0 or 1, since the critical lr of a batch does not explain a later spike; "
        "or no training loss, so that there are no spikes",
        lambda f: (
            not _full_batch(f)
            and f["measure.lambda_max_batch_every"] > 1
            and f["measure.loss_train_every"]
            and not f["measure.preset"]
        ),
    ),
)

_AFTER_CLAIMS = (
    Rule(
        ("claims", "measure.probe_size"),
        "allowed with claims on the spikes of SGD: None, since they need the kernel of the whole training set",
        lambda f: (
            {"spikes_lie_in_the_top_space", "spikes_lie_there_more_than_other_rises", "spikes_lower_lambda_max"}
            & set(f["claims"])
            and f["measure.probe_size"]
        ),
    ),
    Rule(
        ("optimizer.batch_size", "measure.loss_train_every"),
        "allowed with batches: 1, since events are spikes of the training loss; or 0, without events",
        lambda f: not _full_batch(f) and f["measure.loss_train_every"] > 1 and not f["measure.preset"],
    ),
    Rule(
        ("optimizer.batch_size", "run.stop_loss", "measure.loss_train_every"),
        "allowed with batches and a stop_loss: 1",
        lambda f: not _full_batch(f) and f["run.stop_loss"] and f["measure.loss_train_every"] != 1 and not f["measure.preset"],
    ),
)


def rules_for(claims: Iterable[str]) -> tuple[Rule, ...]:
    """The rules between fields for a config with these claims.

    Args:
      claims: names of claims.

    Returns:
      Rows in the order of the checks. The needs of the claims come in the order of the claims.

    >>> [rule.fields for rule in rules_for(["first_catapult"]) if rule.of == "first_catapult"]
    [('claims', 'measure.lambda_max_batch_every')]
    """
    return (*_BEFORE_CLAIMS, *(rule for claim in claims for rule in _needs_of(claim)), *_AFTER_CLAIMS)


RULES = rules_for(VERDICTS)  # all


def refusal(rule: Rule, fields: Fields) -> str:
    """The error message for a config that breaks a rule.

    Args:
      rule: a row of :data:`RULES`.
      fields: of the config, by full name.

    Returns:
      ``field=value, field=value; allowed...``

    >>> refusal(RULES[0], flat(default.get_config()))
    "optimizer.name='sgd', optimizer.b1=None; allowed for sgd: momentum, nesterov"
    """
    numbers = {name: number(fields) for name, (_, number) in NUMBERS.items()}
    return ", ".join(f"{name}={fields[name]!r}" for name in rule.fields) + f"; {rule.allowed.format(**numbers)}"


def check(config: ConfigDict) -> None:
    """Check the value of every field, then the rules between fields.

    Args:
      config: with the fields of ``configs/default.py``.

    Raises:
      ConfigError: for the first unknown field, value that is not allowed, or rule that is broken.
    """
    fields, defaults = flat(config), flat(default.get_config())
    unknown = sorted(set(fields) - set(defaults))
    if unknown:
        raise ConfigError(no_field(unknown[0]))
    for name, value in fields.items():
        if value is None and defaults[name] is not None and name not in VALUES:
            raise ConfigError(f"{name}=None; allowed: {TYPE_NAMES[type(defaults[name])]}")
    for name in VALUES:
        if message := wrong(name, fields[name]):
            raise ConfigError(message)
    for rule in rules_for(fields["claims"]):
        if rule.broken(fields):
            raise ConfigError(refusal(rule, fields))
