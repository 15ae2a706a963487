"""Every rule between fields: a config that breaks it, and what the error says."""

import doctest

import pytest
from ml_collections import ConfigDict

from configs import (
    batch_size,
    catapults_agop,
    causes,
    cifar_cyclic,
    cifar_gd,
    cifar_gd_multi,
    cifar_sgd,
    default,
    mnist_adagrad,
    mnist_ntk,
    mnist_optimizers,
    optimizers_agop,
    predictors,
    quickstart,
    reference,
    synthetic_sgd_b1,
    tasks,
)
from experiments import optimizers, rules
from experiments.config import ConfigError, flat
from experiments.verdicts import NEEDS, NEEDS_SOME

_SYNTHETIC = {
    "data.name": "synthetic",
    "data.target_encoding": "value",
    "data.scaling": "none",
    "data.test_size": 8,
}
_ARMS = {"members.intervention": ("none", "remove_overshoot")}
_STOCHASTIC = {"optimizer.batch_size": 4}
_PRODUCTS = {"measure.method": "matrix_free", "measure.top_k_max": 8}
_AGOP = {"measure.agop_alignment_every": 1, "measure.agop_reference": "model.npz"}
# A setting that each claim can be tested in, beside what NEEDS and NEEDS_SOME ask for.
_SETTING = {
    "adagrad_outgrows_its_lr": {"optimizer.name": "adagrad"},
    "smallest_entry_grows": {"optimizer.name": "adagrad"},
}
_GIVEN = {
    "run.stop_loss": 0.1, "data.validation_size": 8, "members.cap": (None, 0.9), "measure.agop_alignment_every": 1,
    "members.intervention": ("none", "remove_overshoot"),
}  # fmt: skip


def config_with(fields: dict) -> ConfigDict:
    """The default with an lr, which every run needs, and with other fields."""
    config = default.get_config()
    config.update_from_flattened_dict({"optimizer.lr": 1.0} | fields)
    return config


def key(rule: rules.Rule) -> str:
    return f"{', '.join(rule.fields)}; {rule.allowed}" + (f" ({rule.of})" if rule.of else "")


def settings_rows() -> list[tuple[str, dict]]:
    """Each optimizer with each setting that it does not have."""
    settings = sorted({name for names in optimizers.SETTINGS.values() for name in names})
    return [
        (
            f"optimizer.name, optimizer.{name}; allowed for {optimizer}: {', '.join(names) or 'no settings'} ({optimizer})",
            {"optimizer.name": optimizer, f"optimizer.{name}": name == "nesterov" or 0.5},
        )
        for optimizer, names in optimizers.SETTINGS.items()
        for name in settings
        if name not in names
    ]


def claim_rows() -> list[tuple[str, dict]]:
    """Each claim with all that it needs, but for one field."""
    rows = []
    for claim in sorted({*NEEDS, *NEEDS_SOME}):
        every_step, given = NEEDS.get(claim, ()), NEEDS_SOME.get(claim, ())
        whole = {"claims": (claim,)} | dict.fromkeys(every_step, 1) | {name: _GIVEN.get(name, 1) for name in given}
        whole |= {"measure.agop_reference": "model.npz"} if "measure.agop_alignment_every" in given else {}
        whole |= _SETTING.get(claim, {})
        rules.check(config_with(whole))
        for name in every_step:
            rows.append((f"claims, {name}; allowed with the claim {claim}: 1 ({claim})", whole | {name: 2}))
        for name in given:
            absent = {name: None if name in ("members.cap", "run.stop_loss", "members.intervention") else 0}
            if name == "measure.agop_alignment_every":
                absent["measure.agop_reference"] = None
            if name == "measure.lambda_max_batch_every" and "members.cap" in given:
                absent["members.cap"] = None  # a cap without the kernel is refused by another rule, which comes first
            text = f"claims, {name}; allowed with the claim {claim}: a value other than 0 or None ({claim})"
            rows.append((text, whole | absent))
    return rows


ROWS = [
    *settings_rows(),
    *claim_rows(),
    (
        "optimizer.nesterov, optimizer.momentum; allowed with nesterov: a momentum above 0",
        {"optimizer.nesterov": True},
    ),
    (
        "optimizer.name, measure.preconditioner_min_every; "
        "allowed for sgd, heavy_ball and nesterov, which have no preconditioner: 0",
        {"measure.preconditioner_min_every": 1},
    ),
    *(
        (
            f"measure.preset, measure.{name}_every; allowed with a preset: 0, since no preset measures it",
            {"optimizer.name": "adam", "measure.preset": "full", f"measure.{name}_every": 1},
        )
        for name in ("preconditioner_min", "directional_batch", "directional_train", "weight_norm", "criteria")
    ),
    (
        "measure.criteria_every, data.target_encoding; allowed with criteria: sign, binary, value, which have one output",
        {"measure.criteria_every": 1, "data.target_encoding": "one_hot"},
    ),
    (
        "measure.top_k_max, measure.method; "
        "allowed with a top_k_max: matrix_free, since the exact kernel gives all eigenvalues at once",
        {"measure.top_k_max": 8},
    ),
    (
        "measure.top_k_max, measure.lambda_max_batch_every; allowed with a top_k_max: a cadence of 1 or more, or a preset",
        _PRODUCTS | {"measure.lambda_max_batch_every": 0},
    ),
    ("measure.top_k_max, measure.top_k; allowed: measure.top_k or more, or None", _PRODUCTS | {"measure.top_k_max": 2}),
    (
        "measure.loss_modes, measure.method, measure.preset; "
        "allowed with loss_modes: the exact kernel, exact or None, without a preset",
        {"measure.loss_modes": 3, "measure.method": "auto"},
    ),
    (
        "measure.loss_modes, optimizer.batch_size, measure.lambda_max_batch_every, measure.lambda_max_train_every; "
        "allowed with loss_modes: a cadence of lambda_max_train, or of lambda_max_batch where all examples are the batch",
        _STOCHASTIC | {"measure.loss_modes": 3},
    ),
    (
        "claims, optimizer.batch_size; allowed with the claim catapults_lower_the_norm: None, all examples",
        _STOCHASTIC | {"claims": ("catapults_lower_the_norm",)},
    ),
    (
        "claims, measure.preset, measure.method; "
        "allowed with the claim catapults_lower_the_norm: no preset, and the method exact",
        {"claims": ("catapults_lower_the_norm",), "measure.method": "matrix_free"},
    ),
    (
        "claims, optimizer.name; allowed with the claim adagrad_outgrows_its_lr: adagrad",
        {"claims": ("adagrad_outgrows_its_lr",)},
    ),
    ("optimizer.lr, members.lr; allowed: an lr in one of them, in the unit optimizer.lr_unit", {"optimizer.lr": None}),
    *(
        (f"{name}; allowed: each value once", {name: (1, 1)})
        for name in ("members.seed", "members.raises", "data.classes", "data.fallback_classes")
    ),
    ("members.intervention; allowed: each value once", {"members.intervention": ("none", "none")}),
    ("members.cap; allowed: each value once", {"members.cap": (0.5, 0.5)}),
    ("members.lr; allowed: each value once", {"members.lr": (0.5, 0.5)}),
    (
        "optimizer.batch_size, data.train_size; allowed: a batch no larger than the training set",
        {"optimizer.batch_size": 129},
    ),
    (
        "measure.probe_size, data.train_size; allowed: a probe no larger than the training set",
        {"measure.probe_size": 129},
    ),
    ("loss, data.target_encoding; allowed for mse: sign, one_hot, value (mse)", {"data.target_encoding": "binary"}),
    (
        "loss, data.target_encoding; allowed for softmax_cross_entropy: integer (softmax_cross_entropy)",
        {"loss": "softmax_cross_entropy"},
    ),
    ("loss, data.target_encoding; allowed for logistic: binary (logistic)", {"loss": "logistic"}),
    (
        "data.name, data.target_encoding; allowed: target encoding 'value' with synthetic targets, and only there",
        {"data.target_encoding": "value"},
    ),
    ("data.name, data.classes; allowed: no classes for synthetic targets", _SYNTHETIC | {"data.classes": (0,)}),
    ("data.name, data.scaling; allowed for synthetic inputs: none", _SYNTHETIC | {"data.scaling": "sqrt_d"}),
    ("data.name, data.test_size; allowed for synthetic targets: 1 or more", _SYNTHETIC | {"data.test_size": None}),
    ("data.name, model.name; allowed for synthetic inputs: fcn", _SYNTHETIC | {"model.name": "vit"}),
    ("model.name, model.depth; allowed for fcn and cnn: 2 weight layers or more", {"model.depth": 1}),
    (
        "data.synthetic.rank, data.synthetic.dimension; allowed: a rank no larger than the dimension",
        {"data.synthetic.rank": 21},
    ),
    ("data.name, data.fallback; allowed for embedded data: no fallback data", {"data.fallback": "digits"}),
    (
        "model.strides, model.depth; allowed: one for each of the {convolutions} convolutions, or None",
        {"model.name": "cnn", "model.strides": (2,)},
    ),
    ("model.name, model.strides; allowed for models other than cnn: None", {"model.strides": (2,)}),
    ("events.factor, events.delta; allowed: a factor above 1 + delta", {"events.factor": 1.05}),
    *(
        (
            f"schedule.name, measure.lambda_max_batch_every; allowed with {name}: 1 or more, "
            f"since it is relative to the critical lr of the step ({name})",
            {"schedule.name": name, "measure.lambda_max_batch_every": 0},
        )
        for name in ("staircase", "relative_to_critical")
    ),
    (
        "schedule.name, optimizer.lr_unit; allowed with relative_to_critical: critical_lr0, since the lr is then a multiple of the critical lr",
        {"schedule.name": "relative_to_critical", "optimizer.lr": 1.0},
    ),
    *(
        (
            f"{name}, measure.lambda_max_batch_every; "
            "allowed with a cap: 1 or more, since it is relative to the critical lr of the step",
            {name: cap, "measure.lambda_max_batch_every": 0},
        )
        for name, cap in (("schedule.cap", 0.5), ("members.cap", (0.5,)))
    ),
    (
        "members.intervention, members.cap; allowed with interventions: None, since schedule.cap is the cap of the arm cap",
        _ARMS | {"members.cap": (0.5,)},
    ),
    (
        "members.intervention, schedule.cap; allowed with the arm cap: a cap, and without it: None",
        _ARMS | {"schedule.cap": 0.5},
    ),
    (
        "members.intervention, intervention.cap_run; allowed with low_bulk, shuffled_cap, mean_cap: the directory of a run with the arm cap",
        {"members.intervention": ("none", "mean_cap")},
    ),
    (
        "members.intervention, optimizer.name, optimizer.momentum; "
        "allowed with interventions: sgd without momentum, whose step has one factor for each mode",
        _ARMS | {"optimizer.momentum": 0.9},
    ),
    ("members.intervention, schedule.name; allowed with interventions: constant", _ARMS | {"schedule.name": "cyclic"}),
    (
        "members.intervention, measure.lambda_max_batch_every, measure.method, measure.preset, measure.chunk_size; "
        "allowed with interventions: the exact kernel of the whole batch at every step, 1, exact, None, None",
        _ARMS | {"measure.method": "matrix_free"},
    ),
    ("schedule.name, members.raises; allowed with schedules other than staircase: no raises", {"members.raises": (1, 2)}),
    (
        "measure.agop_alignment_every, measure.agop_reference; allowed: both of them, or neither",
        {"measure.agop_alignment_every": 1},
    ),
    (
        "measure.agop_reference, data.name; "
        "allowed: closed_form for synthetic targets, elsewhere the model.npz of a run with run.save_model",
        _AGOP | {"measure.agop_reference": "closed_form"},
    ),
    (
        "measure.agop_second_reference, measure.agop_reference; allowed with a second reference: the model.npz of a first one",
        {"measure.agop_second_reference": "model.npz"},
    ),
    *(
        (
            f"run.stop_loss, run.chunk_steps, measure.{name}_every; "
            "allowed with a stop_loss: chunks as long as the cadences or longer, so that the end is measured",
            _AGOP | {"run.stop_loss": 0.1, f"measure.{name}_every": 20},
        )
        for name in ("loss_test", "agop_alignment", "lambda_max_batch", "weight_norm")
    ),
    ("data.name, data.attribute; allowed for celeba: the name of an attribute", {"data.name": "celeba"}),
    (
        "data.by_seed, data.attribute; allowed with an attribute: False, since only the first examples of such data are read",
        {"data.name": "celeba", "data.attribute": "Smiling", "data.by_seed": True},
    ),
    (
        "optimizer.batch_size, measure.lambda_max_batch_every, measure.loss_train_every; allowed with batches: 0 or 1, "
        "since the critical lr of a batch does not explain a later spike; or no training loss, so that there are no spikes",
        _STOCHASTIC | {"measure.lambda_max_batch_every": 2},
    ),
    (
        "claims, measure.probe_size; "
        "allowed with claims on the spikes of SGD: None, since they need the kernel of the whole training set",
        {"claims": ("spikes_lower_lambda_max",), "measure.lambda_max_train_every": 1, "measure.probe_size": 8},
    ),
    (
        "optimizer.batch_size, measure.loss_train_every; "
        "allowed with batches: 1, since events are spikes of the training loss; or 0, without events",
        _STOCHASTIC | {"measure.loss_train_every": 5},
    ),
    (
        "optimizer.batch_size, run.stop_loss, measure.loss_train_every; allowed with batches and a stop_loss: 1",
        _STOCHASTIC | {"measure.loss_train_every": 0, "run.stop_loss": 0.1},
    ),
]


@pytest.mark.parametrize(("text", "fields"), ROWS, ids=[text for text, _ in ROWS])
def test_check_of_a_config_that_breaks_a_rule(text, fields):
    config = config_with(fields)

    with pytest.raises(ConfigError) as caught:
        rules.check(config)

    first = next(rule for rule in rules.rules_for(config.claims) if rule.broken(flat(config)))
    assert key(first) == text
    assert str(caught.value) == rules.refusal(first, flat(config)) and "\n" not in str(caught.value)


def test_every_rule_has_a_row():
    keys = [key(rule) for rule in rules.RULES]
    assert len(set(keys)) == len(keys) and set(keys) == {text for text, _ in ROWS}


def test_check_keeps_the_default_with_an_lr():
    rules.check(config_with({}))
    rules.check(config_with(_SYNTHETIC))
    rules.check(config_with(_PRODUCTS))
    rules.check(config_with(_AGOP))
    rules.check(config_with(_STOCHASTIC))
    rules.check(config_with(_ARMS))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model.name": "cnn", "model.strides": (2,)},
            "model.strides=(2,), model.depth=5; allowed: one for each of the 4 convolutions, or None",
        ),
        (
            {"schedule.name": "relative_to_critical"},
            "schedule.name='relative_to_critical', optimizer.lr_unit='absolute'; "
            "allowed with relative_to_critical: critical_lr0, since the lr is then a multiple of the critical lr",
        ),
        ({"optimizer.b1": 0.9}, "optimizer.name='sgd', optimizer.b1=0.9; allowed for sgd: momentum, nesterov"),
        (
            {"optimizer.name": "heavy_ball", "optimizer.momentum": 0.9},
            "optimizer.name='heavy_ball', optimizer.momentum=0.9; allowed for heavy_ball: no settings",
        ),
    ],
    ids=str,
)
def test_check_names_the_fields_and_what_is_allowed(fields, message):
    with pytest.raises(ConfigError) as caught:
        rules.check(config_with(fields))
    assert str(caught.value) == message


def test_check_takes_the_claims_in_their_order():
    for claims in (("first_catapult", "spikes_are_catapults"), ("spikes_are_catapults", "first_catapult")):
        with pytest.raises(ConfigError, match=f"allowed with the claim {claims[0]}: 1"):
            rules.check(config_with({"claims": claims, "measure.lambda_max_batch_every": 0}))


def test_check_takes_the_modes_of_the_kernel_of_the_training_set():
    rules.check(config_with({"measure.loss_modes": 3}))
    rules.check(config_with(_STOCHASTIC | {"measure.loss_modes": 3, "measure.lambda_max_train_every": 2}))
    with pytest.raises(ConfigError, match=r"measure.loss_modes=3, .* allowed with loss_modes: a cadence of lambda_max_train"):
        rules.check(config_with({"measure.loss_modes": 3, "measure.lambda_max_batch_every": 0}))


def test_check_leaves_the_cadences_of_claims_to_a_preset():
    fields = {"claims": ("first_catapult", "catapults_help_sgd"), "measure.lambda_max_batch_every": 0}
    rules.check(config_with(fields | {"measure.preset": "standard"}))


@pytest.mark.parametrize(
    ("module", "variants"),
    [
        (
            cifar_gd,
            ("fcn", "cnn", "ratios", "width", "cnn,gpu", "smoke", "cnn,smoke", "ratios,smoke", "width,smoke", "cnn,gpu,smoke"),
        ),
        (cifar_gd_multi, ("fcn", "cnn", "smoke", "cnn,smoke")),
        (synthetic_sgd_b1, ("full", "smoke")),
        (quickstart, ("full", "smoke")),
        (cifar_sgd, [f"{net}{word}" for net in ("fcn", "cnn", "wrn", "vit") for word in ("", ",ce", ",momentum", ",smoke")]),
        (cifar_cyclic, ("sgd", "gd", "smoke", "gd,smoke")),
        (catapults_agop, [f"{task}{word}" for task in tasks.TASKS for word in ("", ",smoke")]),
        (predictors, [f"{name}{word}" for name in predictors.OPTIMIZERS for word in ("", ",rank2", ",smoke", ",rank2,smoke")]),
        (
            causes,
            [
                f"{task}{word}"
                for task in ("rank2", "fmnist2", "usps")
                for word in ("", ",cap", ",force", ",smoke", ",cap,smoke")
            ],
        ),
        (batch_size, [f"{task}{word}" for task in tasks.TASKS for word in ("", ",momentum", ",smoke")] + ["cifar2,ce,smoke"]),
        (mnist_optimizers, ("mnist", "fashion", "capped", "smoke", "fashion,smoke", "capped,smoke")),
        (mnist_ntk, ("cyclic", "exponential", "smoke", "exponential,smoke")),
        (mnist_adagrad, ("zero", "tenth", "arms", "smoke", "tenth,smoke", "arms,smoke")),
        (optimizers_agop, [f"{task}{word}" for task in tasks.SYNTHETIC for word in ("", ",smoke")]),
        (reference, [f"{task}{word}" for task in tasks.IMAGES for word in ("", ",second", ",smoke", ",second,smoke")]),
    ],
)
def test_check_accepts_every_config(module, variants):
    for variant in variants:
        config = module.get_config(variant)
        rules.check(config)
        assert set(flat(config)) == set(flat(default.get_config()))
    with pytest.raises(ValueError, match="'none'"):
        module.get_config("none")


def test_check_of_a_field_that_the_default_does_not_have():
    config = quickstart.get_config()
    with config.unlocked():
        config.model.widht = 3
    with pytest.raises(ConfigError, match=r"no field .model\.widht.; nearest: .model\.width."):
        rules.check(config)


def test_examples_in_docstrings():
    assert not doctest.testmod(rules).failed


@pytest.mark.parametrize(
    "fields",
    [{"schedule.name": "staircase"}, {"schedule.cap": 0.9}, {"run.stop_loss": 0.1, "measure.loss_test_every": 1}],
    ids=str,
)
def test_check_leaves_the_cadences_of_a_preset_to_the_preset(fields):
    """It measures at every step what the schedule and the end of a run need, whatever the fields say."""
    config = default.get_config()
    config.optimizer.lr, config.optimizer.batch_size = 0.9, 4
    config.measure.lambda_max_batch_every = config.measure.loss_train_every = 0
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError):
        rules.check(config)
    config.measure.preset = "economy"
    rules.check(config)
