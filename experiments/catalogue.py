"""The experiments behind the page of claims: configs, and the claims that each of them tests; and the claims by question."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict


class Experiment(NamedTuple):
    """A config and the claims that it tests: one setting of each of them."""

    name: str  # CONFIG or CONFIG:VARIANT
    claims: tuple[str, ...]
    figures: tuple[str, ...] = ("loss",)  # of a run; a sweep has its summary
    is_sweep: bool = False
    references: tuple[str, ...] = ()  # variants of configs/reference.py that are trained first
    cap: str = ""  # variant of the same config that runs first, for intervention.cap_run
    is_variant: bool = False  # a setting of ours that no study has: shown, and not counted in a verdict
    is_quick: bool = False  # part of --scale=quick
    needs_gpu: bool = False  # only part of --scale=gpu

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return self.name.replace(":", "-").replace(",", "-")


_DIRECTIONS = ("spikes_need_few_directions", "spikes_need_fewer_directions_than_other_rises")
_TOP_SPACE = ("spikes_lie_in_the_top_space", "spikes_lie_there_more_than_other_rises")
_SPIKES = (*_TOP_SPACE, "spikes_lower_lambda_max", "spikes_have_exceedances", *_DIRECTIONS)
_RAISES = ("catapults_raise_alignment", "catapults_lower_the_test_loss", "raises_below_critical_do_little")
_BATCHES = ("small_batches_help", "small_batches_help_at_tuned_lrs")
_OPTIMIZERS = ("alignment_over_optimizers", "alignment_is_the_best_predictor")
_CAUSES = ("overshoot_is_the_cause", "overshoot_helps_at_equal_effort")
_STUDY = (
    "published_accuracies",
    "catapults_help_sgd",
    "catapults_hurt_adagrad",
    "cycles_help_tuned_sgd",
    "cycles_help_beyond_decay",
)
_SYNTHETIC = ("rank2", "rank3", "rank4")


def _references(task: str) -> tuple[str, ...]:
    return () if task in _SYNTHETIC else (task, f"{task},second")


def _task(config: str, claims: tuple[str, ...], task: str, variant: str = "") -> Experiment:
    name = f"{config}:{task}" + (f",{variant}" if variant else "")
    return Experiment(
        name,
        claims,
        is_sweep=True,
        references=_references(task),
        is_variant=bool(variant),
        is_quick=name in ("catapults_agop:rank2", "batch_size:rank2"),
    )


EXPERIMENTS = (
    Experiment("cifar_gd:fcn", ("first_catapult",), is_quick=True),
    Experiment("cifar_gd:cnn", ("first_catapult",)),
    Experiment("cifar_gd:cnn,gpu", ("first_catapult",), needs_gpu=True),
    Experiment("cifar_gd:width", ("peak_grows_with_width",), is_sweep=True),
    Experiment("cifar_gd:ratios", ("spikes_are_catapults", *_DIRECTIONS), ("lr_over_critical_lr",)),
    Experiment("cifar_gd_multi:fcn", ("catapult_follows_raise",), is_quick=True),
    Experiment("cifar_gd_multi:cnn", ("catapult_follows_raise",)),
    Experiment(
        "synthetic_sgd_b1:full", ("exceedance_predicts_rise", "spikes_have_exceedances_at_batch_one"), ("lr_over_critical_lr",), is_quick=True
    ),
    Experiment("cifar_sgd:fcn", _SPIKES, is_quick=True),
    *(Experiment(f"cifar_sgd:{network}", _SPIKES) for network in ("cnn", "wrn", "vit")),
    *(Experiment(f"cifar_sgd:{network}", _SPIKES, is_variant=True) for network in ("fcn,ce", "fcn,momentum")),
    Experiment("cifar_cyclic:sgd", ("cycles_cause_catapults",), is_quick=True),
    Experiment("cifar_cyclic:gd", ("cycles_cause_catapults",)),
    *(_task("catapults_agop", _RAISES, task) for task in (*_SYNTHETIC, "cifar2", "svhn2", "fmnist2", "usps", "celeba")),
    *(_task("batch_size", _BATCHES, task) for task in (*_SYNTHETIC, "cifar2", "svhn2", "fmnist2", "usps", "celeba")),
    _task("batch_size", _BATCHES, "cifar2", "ce"),
    _task("batch_size", (*_BATCHES, "small_batches_help_without_catapults"), "rank2", "momentum"),
    *(_task("optimizers_agop", _OPTIMIZERS, task) for task in _SYNTHETIC),
    *(
        Experiment(
            f"causes:{task}", _CAUSES, ("arms", "alignment_against_test_loss"), references=_references(task)[:1], cap=f"{task},cap", is_quick=task == "rank2"
        )
        for task in (*_SYNTHETIC, "fmnist2", "usps")
    ),
    *(Experiment(f"causes:{task},force", ("forced_overshoot_helps",), is_sweep=True) for task in _SYNTHETIC),
    *(
        Experiment(
            f"predictors:{name}{task}",
            ("directional_predicts_the_step", "spectral_predicts_the_horizon"),
            ("lr_over_critical_lr",),
            is_quick=name + task == "sgd",
        )
        for task in ("", ",rank2")
        for name in ("sgd", "heavy_ball", "nesterov", "adam", "adagrad", "rmsprop")
    ),
    Experiment("mnist_optimizers:mnist", _STUDY, is_sweep=True),
    Experiment("mnist_optimizers:capped", ("catapults_help_beyond_cycles",), ("against_critical_steps",)),
    *(Experiment(f"mnist_ntk:{kind}", ("catapults_lower_the_norm",), ("conditioning",)) for kind in ("cyclic", "exponential")),
    *(
        Experiment(f"mnist_adagrad:{start}", ("adagrad_outgrows_its_lr", "smallest_entry_grows"), ("preconditioner",))
        for start in ("zero", "tenth")
    ),
    Experiment("mnist_adagrad:arms", ("adagrad_has_fewer_critical_steps",), is_sweep=True),
)  # fmt: skip

# The claims in the order of the page, by the question that they answer.
QUESTIONS = {
    "Are the spikes of the loss catapults?": (
        "first_catapult", "spikes_are_catapults", "catapult_follows_raise", "cycles_cause_catapults", "spikes_have_exceedances",
        "exceedance_predicts_rise", "spikes_have_exceedances_at_batch_one", "peak_grows_with_width",
    ),
    "Are they in the top eigenspace of the kernel?": (*_TOP_SPACE, "spikes_lower_lambda_max", *_DIRECTIONS),
    "Do catapults improve features and test loss?": (*_RAISES, *_OPTIMIZERS),
    "Do small batches give more spikes, and a lower test loss?": (*_BATCHES, "small_batches_help_without_catapults"),
    "Is the overshoot of a few modes the cause?": (*_CAUSES, "forced_overshoot_helps"),
    "Does the direction of a step predict this step, and the spectrum of the kernel the next ones?": ("directional_predicts_the_step", "spectral_predicts_the_horizon"),
    "Does the study on MNIST hold?": (
        *_STUDY, "catapults_help_beyond_cycles", "catapults_lower_the_norm", "adagrad_outgrows_its_lr", "smallest_entry_grows",
        "adagrad_has_fewer_critical_steps",
    ),
}  # fmt: skip


def config_name(experiment: Experiment, scale: str, variant: str | None = None) -> tuple[str, str]:
    """Module and variant of the config of an experiment; ``variant`` replaces its own.

    >>> config_name(EXPERIMENTS[0], "smoke")
    ('cifar_gd', 'fcn,smoke')
    """
    module, _, own = experiment.name.partition(":")
    variant = own if variant is None else variant
    words = [variant] if variant and variant != "full" else []
    return module, ",".join([*words, "smoke"] if scale == "smoke" else words)


def load(module: str, variant: str) -> ConfigDict:
    """Load ``configs/MODULE.py``; an empty variant is the default of the config.

    >>> load("quickstart", "smoke").steps
    6
    """
    get_config = importlib.import_module(f"configs.{module}").get_config
    return get_config(variant) if variant else get_config()


def config_of(experiment: Experiment, scale: str, workdir: Path) -> ConfigDict:
    """The config of an experiment at a scale.

    Args:
      experiment: one of :data:`EXPERIMENTS`.
      scale: smoke, quick, cpu or gpu.
      workdir: directory of all experiments.
    """
    config = load(*config_name(experiment, scale))
    config.data.strict = scale != "smoke"  # fallback data can't test a claim about a data set
    if experiment.references:
        config.measure.agop_reference = str(reference_dir(experiment.references[0], workdir) / "model.npz")
    if len(experiment.references) > 1:
        config.measure.agop_second_reference = str(reference_dir(experiment.references[1], workdir) / "model.npz")
    if experiment.cap:
        config.intervention.cap_run = str(cap_dir(experiment, workdir))
    return config


def cap_config(experiment: Experiment, scale: str, workdir: Path) -> ConfigDict:
    """The config of the capped run that an experiment needs first."""
    config = load(*config_name(experiment, scale, experiment.cap))
    config.data.strict = scale != "smoke"
    if experiment.references:
        config.measure.agop_reference = str(reference_dir(experiment.references[0], workdir) / "model.npz")
    return config


def cap_dir(experiment: Experiment, workdir: Path) -> Path:
    """The directory of the capped run that an experiment needs first."""
    return workdir / f"{experiment.folder}-cap"


def reference_dir(reference: str, workdir: Path) -> Path:
    """The directory of the run that trains an AGOP reference."""
    return workdir / f"reference-{reference.replace(',', '-')}"


def is_part_of(experiment: Experiment, scale: str) -> bool:
    """Whether a scale runs an experiment."""
    return (experiment.is_quick or scale != "quick") and (scale in ("gpu", "smoke") or not experiment.needs_gpu)
