"""The experiments behind the page of claims: configs, and the claims that each of them tests."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

ZHU = "Zhu et al. 2024"
MNIST = "MNIST study"


class Experiment(NamedTuple):
    """A config and the claims that it tests."""

    name: str  # CONFIG or CONFIG:VARIANT
    claims: dict[str, tuple[str, str]]  # name of the claim -> (its text, its source)
    figure: str = "loss"  # name of a figure, or several names joined by commas
    is_sweep: bool = False
    reference: str = ""  # variant of configs/reference.py, which is trained first; empty: none
    cpu: Mapping[str, Any] = MappingProxyType({})  # fields that differ at the scale cpu

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return self.name.replace(":", "-").replace(",", "-")


_RATIOS = "A spike needs a learning rate above the critical one of that moment, whatever it was at the start"
_EXCEEDS = "The loss of a batch rises in a step whose learning rate is above the critical one of that batch"
_SPIKES = "Spikes in the training loss of SGD are catapults, in the top eigenspace of the kernel"
_ALIGNMENT = "More catapults, higher AGOP alignment, better test performance"
_BATCHES = "Smaller batches, more catapults, higher AGOP alignment, better test performance"
_CYCLIC = "SGD with catapults (cyclic lr) has a higher test accuracy than SGD without"
_TABLE = "Test accuracy of a two-layer network on MNIST: SGD 95.38, AdaGrad 97.09, Adam 98.12 %"
_ORDER = "AdaGrad with catapults (95.91 %) has a lower test accuracy than AdaGrad without (97.09 %)"
_CONDITION = "The condition number and the norm of the NTK fall in catapult phases"
_OVER = "Over optimizers, AGOP alignment and test performance go together"
_PREDICTS = "Of every optimizer, an lr above its own critical lr predicts a rise of the loss of the batch"
_CAUSE = "Catapults are the cause of the better features (our addition: the same run with catapults forbidden)"


def _sgd(variant: str, where: str) -> Experiment:
    claims = {"sgd_spikes_are_catapults": (_SPIKES, where), "exceedance_predicts_rise": (_EXCEEDS, where)}
    return Experiment(f"cifar_sgd:{variant}", claims)


def _task(config: str, claim: str, text: str, task: str, figure: str, is_sweep: bool = False) -> Experiment:
    reference = "" if task.startswith("rank") else task.split(",")[0]
    sizes = "5,15,40" if task == "usps" else "8,24,64" if reference else "4,16,64"
    cpu = {"sweep": (f"optimizer.batch_size={sizes}",)} if is_sweep else {}
    return Experiment(f"{config}:{task}", {claim: (text, ZHU)}, figure, is_sweep, reference, cpu)


EXPERIMENTS = (
    Experiment(
        "cifar_gd:fcn", {"first_catapult": ("Above the critical learning rate a catapult comes at once, in the top eigenspace (FCN)", f"{ZHU}, Fig. 3")}
    ),
    Experiment(
        "cifar_gd:cnn", {"first_catapult": ("The same for a CNN", f"{ZHU}, Fig. 3")}, cpu={"members.seed": (0, 1, 2)}
    ),
    Experiment(
        "cifar_gd:ratios",
        {"spikes_are_catapults": (_RATIOS, ZHU)},
        "lr_over_critical_lr",
        cpu={"members.seed": (0, 1, 2), "members.lr": (0.5, 1.67)},
    ),
    Experiment("cifar_gd_multi:fcn", {"catapult_follows_raise": ("Raising the learning rate again makes another catapult (FCN)", f"{ZHU}, Fig. 4")}),
    Experiment(
        "cifar_gd_multi:cnn",
        {"catapult_follows_raise": ("The same for a CNN", f"{ZHU}, Fig. 4")},
        cpu={"members.seed": (0,)},
    ),
    Experiment("synthetic_sgd_b1:full", {"exceedance_predicts_rise": (_EXCEEDS + " (batch size one)", f"{ZHU}, Fig. 5")}, "lr_over_critical_lr"),
    _sgd("fcn", ZHU),
    _sgd("cnn", ZHU),
    _sgd("wrn", f"{ZHU} (network), our setting"),
    _sgd("vit", f"{ZHU} (network), our setting"),
    _sgd("fcn,ce", "our variant: logistic loss"),
    _sgd("fcn,momentum", "our variant: heavy ball"),
    Experiment("cifar_cyclic:fcn", {"cycles_cause_catapults": ("Cyclical learning rates cause catapults", f"{ZHU}; {MNIST}")}),
    *(
        _task("catapults_agop", "catapults_raise_alignment", _ALIGNMENT, task, "against_catapults")
        for task in ("rank2", "rank3", "rank4", "cifar2", "svhn2", "fmnist2", "usps", "celeba")
    ),
    *(
        _task("batch_size", "small_batches_help", _BATCHES, task, "summary", True)
        for task in ("rank2", "rank3", "rank4", "cifar2", "svhn2", "fmnist2", "usps", "celeba", "cifar2,ce", "rank2,momentum")
    ),
    *(_task("suppressed", "forbidding_catapults_hurts", _CAUSE, task, "agop_alignment") for task in ("rank2", "cifar2")),
    Experiment(
        "mnist_optimizers:mnist", {"catapults_help_sgd": (_CYCLIC, MNIST), "published_accuracies": (_TABLE, MNIST), "catapults_hurt_adagrad": (_ORDER, MNIST)}, "summary", True
    ),
    Experiment("mnist_optimizers:twenty", {"published_accuracies": (_TABLE + ", after twenty epochs", MNIST)}, "summary", True),
    Experiment("mnist_optimizers:held", {"catapults_help_beyond_cycles": ("SGD gains by catapults more than by the same cycles held below its critical lr", "ours")}, "scores"),
    Experiment("mnist_optimizers:fashion", {"catapults_help_sgd": (_CYCLIC + ", on Fashion-MNIST", "our variant")}, "summary", True),
    *(
        Experiment(f"mnist_ntk:{kind}", {"catapults_condition_the_kernel": (f"{_CONDITION} ({what} cycles)", MNIST)}, "conditioning")
        for kind, what in (("cyclic", "equal"), ("exponential", "exponential"))
    ),
    Experiment(
        "mnist_adagrad:full",
        {"adagrad_outgrows_its_lr": ("With AdaGrad the critical lr grows until no lr of the schedule is critical", MNIST)},
        "preconditioner,scores",
    ),
    *(
        Experiment(
            f"optimizers_agop:{task}",
            {"alignment_over_optimizers": (_OVER, ZHU)}
            | ({"exceedance_predicts_for_every_optimizer": (_PREDICTS, "ours")} if task.startswith("rank") else {}),
            "summary", True, "" if task.startswith("rank") else task,
        )
        for task in ("rank2", "rank3", "rank4", "fmnist2", "usps")
    ),
)  # fmt: skip


def config_name(experiment: Experiment, scale: str) -> tuple[str, str]:
    """Module and variant of the config of an experiment.

    >>> config_name(EXPERIMENTS[0], "smoke")
    ('cifar_gd', 'fcn,smoke')
    """
    module, _, variant = experiment.name.partition(":")
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
      scale: smoke, cpu or gpu.
      workdir: directory of all experiments.
    """
    config = load(*config_name(experiment, scale))
    if scale == "cpu":
        config.update_from_flattened_dict(dict(experiment.cpu))
    config.data.strict = scale != "smoke"  # fallback data can't test a claim about a data set
    if experiment.reference:
        config.measure.agop_reference = str(reference_dir(experiment, workdir) / "model.npz")
    return config


def reference_dir(experiment: Experiment, workdir: Path) -> Path:
    """The directory of the run that trains the AGOP reference of an experiment."""
    return workdir / f"reference-{experiment.reference}"
