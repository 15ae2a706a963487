"""Reruns the claims of the source studies: python -m experiments.claims [--scale=smoke|cpu|gpu] [--only=NAME ...].

Each experiment is one config (or one sweep) with its verdicts. What is complete is not run again; what is not chosen and not there is
listed as not run. The page has one row for each claim, those that are not tested here included, with the reason.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict

from catapult_jax import records
from catapult_jax.events import DEFINITION
from catapult_jax.report.members import until_diverged
from configs import default
from experiments import command_line, sweep, verdicts
from experiments import config as configs
from experiments import main as single

_SCALES = ("smoke", "cpu", "gpu")
_SCALE = flags.DEFINE_enum(
    "scale", "cpu", _SCALES, "smoke: seconds each; cpu: two to three hours on two cores; gpu: the configs in full."
)
_ONLY = flags.DEFINE_multi_string("only", [], "Experiment or config to run; may be given several times. Default: all.")
_CLAIMS_DIR = flags.DEFINE_string("claims_dir", None, "Directory of the runs; default: runs/claims-SCALE.")
_PAGE = flags.DEFINE_string("page", None, "Page to write; default: docs/claims.md (smoke: claims.md beside the runs).")

ZHU = "Zhu et al. 2024"
MNIST = "MNIST study"


class Experiment(NamedTuple):
    """A config that the claims page needs, and the claims that it tests."""

    name: str  # CONFIG or CONFIG:VARIANT
    claims: dict[str, tuple[str, str]]  # verdict -> (what is claimed, where)
    figure: str = "loss"  # or several, joined by commas
    is_sweep: bool = False
    reference: str = ""  # variant of configs/reference.py that must be there first
    cpu: Mapping[str, Any] = MappingProxyType({})  # what is smaller than in the config at that scale

    @property
    def directory(self) -> str:
        """Name of its folder."""
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


def _task(config: str, verdict: str, text: str, task: str, figure: str, is_sweep=False) -> Experiment:
    reference = "" if task.startswith("rank") else task.split(",")[0]
    sizes = "5,15,40" if task == "usps" else "8,24,64" if reference else "4,16,64"
    cpu = {"sweep": (f"optimizer.batch_size={sizes}",)} if is_sweep else {}
    return Experiment(f"{config}:{task}", {verdict: (text, ZHU)}, figure, is_sweep, reference, cpu)


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


def _words(experiment: Experiment, scale: str) -> tuple[str, str]:
    """Config and variant of an experiment at a scale."""
    module, _, variant = experiment.name.partition(":")
    words = [variant] if variant and variant != "full" else []
    return module, ",".join([*words, "smoke"] if scale == "smoke" else words)


def _load(module: str, variant: str) -> ConfigDict:
    get_config = importlib.import_module(f"configs.{module}").get_config
    return get_config(variant) if variant else get_config()


def config_of(experiment: Experiment, scale: str, workdir: Path) -> ConfigDict:
    """The config of an experiment at a scale."""
    config = _load(*_words(experiment, scale))
    if scale == "cpu":
        config.update_from_flattened_dict(dict(experiment.cpu))
    config.data.strict = scale != "smoke"  # a claim about a data set is not checked on another one
    if experiment.reference:
        config.measure.agop_reference = str(_reference_dir(experiment, workdir) / "model.npz")
    return config


def _reference_dir(experiment: Experiment, workdir: Path) -> Path:
    return workdir / f"reference-{experiment.reference}"


def run_experiment(experiment: Experiment, scale: str, workdir: Path) -> str | None:
    """Runs what is not complete; returns why it can't be run, if it can't."""
    try:
        if experiment.reference:
            reference = _load("reference", experiment.reference + (",smoke" if scale == "smoke" else ""))
            reference.data.strict = scale != "smoke"
            single.run(reference, _reference_dir(experiment, workdir))
        config, directory = config_of(experiment, scale, workdir), workdir / experiment.directory
        if experiment.is_sweep:
            sweep.run_sweep(config, [], directory, 1)
        else:
            single.run(config, directory)
    except (configs.ConfigError, configs.RunError) as error:
        return configs.one_line(error)
    return None


def results(experiment: Experiment, scale: str, workdir: Path) -> tuple[list[verdicts.Verdict], dict] | str:
    """Verdicts of an experiment that is complete, and what they were found on; or why there are none."""
    config, directory = config_of(experiment, scale, workdir), workdir / experiment.directory
    runs = sweep.plan(config, [])[0] if experiment.is_sweep else [({}, config)]
    directories = [sweep.directory_of(directory, chosen, one) if experiment.is_sweep else directory for chosen, one in runs]
    if not all(map(sweep.is_complete, directories)):
        return "not run"
    # A run that is older than a field was made with what is now its default.
    defaults = configs.flat(json.loads(default.get_config().to_json()))
    stored = [defaults | configs.flat(records.read_json(d / "config.json")) for d in directories]
    wanted = [configs.flat(json.loads(one.to_json())) for _, one in runs]
    for fields in (*stored, *wanted):
        fields.pop("claims")  # what is asked of a record does not change it,
        fields.pop("sweep")  # nor do the other runs beside it
    if stored != wanted:
        return "run with another config"
    if experiment.is_sweep:
        rows = sweep.summary(runs, directory)
        found = sweep.find_verdicts(rows, config, experiment.claims, records.read_json(directories[0] / "run.json")["data"])
        figures = [directory / "summary.png"]
    else:
        run = verdicts.read_run(until_diverged(records.open_record(directory).load()), config.to_dict())
        found = [verdicts.of_run(name, run) for name in experiment.claims]
        figures = [directory / "figures" / f"{name}.png" for name in experiment.figure.split(",")]
    about = [records.read_json(d / "run.json") for d in directories]
    only = lambda values: ", ".join(sorted(set(values)))
    reference = about[0].get("agop_reference") or {}
    if any((run.get("agop_reference") or {}) != reference for run in about):
        return "its runs have different AGOP references"
    return found, {
        "data": only(run["data"]["name"] for run in about),
        "reference": reference,
        "seeds": len(config.members.seed) or 1,
        "seconds": sum(run["seconds"] for run in about),
        "code": only(_code(run["environment"]["commit"]) for run in about),
        "figures": figures,
    }


def _code(commit: str | None) -> str:
    head, _, rest = (commit or "unknown").partition(" ")
    return f"{head[:10]} {rest}".strip()


def _commands(experiment: Experiment, scale: str, workdir: Path) -> list[str]:
    """What to type for it: the reference, if there is one, then the run."""
    module, variant = _words(experiment, scale)
    name = f"configs/{module}.py" + (f":{variant}" if variant else "")
    changed = dict(experiment.cpu) if scale == "cpu" else {}
    grid = [f" --grid={axis}" for axis in changed.pop("sweep", ())]
    commands = []
    if experiment.reference:
        directory = _reference_dir(experiment, workdir)
        smoke = ",smoke" if scale == "smoke" else ""
        commands.append(
            f"python -m experiments.main --config=configs/reference.py:{experiment.reference}{smoke} --workdir={directory}"
        )
        changed["measure.agop_reference"] = str(directory / "model.npz")
    flags_of = "".join(f" --config.{k}={str(v).replace(' ', '')}" for k, v in changed.items())
    program = "sweep" if experiment.is_sweep else "main"
    return [*commands, f"python -m experiments.{program} --config={name}{''.join(grid)}{flags_of}"]


def _anchor(heading: str) -> str:
    """The anchor that a Markdown heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def write_page(page: Path, scale: str, workdir: Path, failures: dict[str, str]) -> list[tuple]:
    """Writes the page and copies its figures beside it; returns the rows of its table."""
    table, details, figures = [], [], page.parent / "figures" / "claims"
    for experiment in EXPERIMENTS:
        name = experiment.name
        outcome = failures[name] if name in failures else results(experiment, scale, workdir)
        if isinstance(outcome, str):
            for text, source in experiment.claims.values():
                table.append((text, source, name, "-", verdicts.NOT_TESTED, outcome, "-"))
            continue
        found, about = outcome
        targets = []
        for figure in filter(Path.is_file, about["figures"]):
            figures.mkdir(parents=True, exist_ok=True)
            targets.append(figures / f"{experiment.directory}{f'-{figure.stem}' if targets else ''}.png")
            shutil.copyfile(figure, targets[-1])
        link = ", ".join(f"[figure]({target.relative_to(page.parent)})" for target in targets) or "-"
        details.append(f"## {name}\n")
        details.append("```\n" + "\n".join(_commands(experiment, scale, workdir)) + "\n```\n")
        reference = about["reference"]
        facts = f"Data: {about['data']}; {about['seeds']} seeds; {about['seconds']:.0f} s; code {about['code']}."
        if reference:
            facts += f" AGOP reference: {reference['name']}"
            error = f", test error {reference['error_test']:.3g}" if reference.get("error_test") is not None else ""
            facts += f"{error}, SHA-256 {reference['sha256'][:16]}." if "sha256" in reference else "."
        details.append(facts + "\n")
        for verdict in found:
            text, source = experiment.claims[verdict.claim]
            table.append(
                (text, source, f"[{name}](#{_anchor(name)})", about["seeds"], verdict.verdict, short(verdict.effect), link)
            )
            details.append(f"**{verdict.verdict}**: {text} ({source}). Tested as: {verdict.statement}.\n\n{verdict.effect}.\n")
            if verdict.table and _markdown(verdict.table) not in details:
                details.append(_markdown(verdict.table))
        details += [f"![{name}]({target.relative_to(page.parent)})\n" for target in targets]
    lines = [
        "# Claims\n",
        f"Written by `python -m experiments.claims --scale={scale}`, from the runs whose commands stand below. In brackets: the 95 % percentile "
        "bootstrap interval of a mean over seeds, which with five seeds is too narrow (it misses the mean of a normal distribution in "
        "about 15 % of cases); where a verdict hangs on it, a sign test over seeds must hold too. \"Not reproduced\" means that the "
        "statement under the claim, with its thresholds, does not hold here. The statements and thresholds are ours.\n",
        f"Definition of the events: {DEFINITION}\n",
        "| claim | source | config | seeds | verdict | effect, or why not | figure |",
        "|---|---|---|---|---|---|---|",
        *("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in table),
        "",
        *details,
    ]  # fmt: skip
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines), encoding="utf-8")
    return table


def _markdown(table: tuple[tuple[str, ...], ...]) -> str:
    header, *rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def short(effect: str) -> str:
    """The part of an effect before its first semicolon: the numbers that decide."""
    return effect.split(";")[0]


def _public(why: str) -> str:
    """What went wrong, without the directories of this machine and without the ways out."""
    return re.sub(r"(?:/[\w.\-]+)+/", "", why.split(" Ways out:")[0]).rstrip(".")


def _failures(workdir: Path) -> Path:
    return workdir / "failures.json"


def main(_argv: list[str]) -> int:
    """Runs what the page of claims needs and is not complete, then writes it; returns the exit status."""
    scale = _SCALE.value
    names = [experiment.name for experiment in EXPERIMENTS]
    for name in _ONLY.value:
        if not any(name in (known, known.partition(":")[0]) for known in names):
            print(f"error: only={name!r}; allowed: {', '.join(names)}", file=sys.stderr)
            return 2
    workdir = Path(_CLAIMS_DIR.value or Path("runs", f"claims-{scale}")).expanduser()
    page = (
        Path(_PAGE.value).expanduser()
        if _PAGE.value
        else workdir / "claims.md"
        if scale == "smoke"
        else Path("docs", "claims.md")
    )
    chosen = [e for e in EXPERIMENTS if not _ONLY.value or e.name in _ONLY.value or e.name.partition(":")[0] in _ONLY.value]
    known, start = _failures(workdir), time.time()
    failures = json.loads(known.read_text("utf-8")) if known.is_file() else {}
    for experiment in chosen:
        print(f"=== {experiment.name} ({time.time() - start:.0f} s since the start)")
        why = run_experiment(experiment, scale, workdir)
        failures.pop(experiment.name, None)
        if why:
            print(f"not tested: {experiment.name}: {why}", file=sys.stderr)
            failures[experiment.name] = _public(why)
        workdir.mkdir(parents=True, exist_ok=True)
        records.write_json(known, failures, checksum=False)
        jax.clear_caches()  # programs of one experiment are of no use to the next
    for row in write_page(page, scale, workdir, failures):
        print(f"{row[4]}: {row[2]}: {row[0]}")
    print(f"page: {page}; {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    command_line.program(main, command_line.parse_flags)
