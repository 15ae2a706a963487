"""The sections of a run's report that need more than its record: run.json, its config, its verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from catapult_jax.report import sections
from catapult_jax.report.opening import opening
from catapult_jax.report.page import Block, Section, folded, items, table, text, verdict, warning
from catapult_jax.report.statistics import MIN_SEEDS, counted
from catapult_jax.report.watched import doubts
from experiments import optimizers
from experiments.reproduce import differences
from experiments.verdicts import CLAIMS, NOT_MEASURABLE, NOT_TESTED, Run, Verdict, words_of


class Report(NamedTuple):
    """What the sections of a report are made from."""

    run: Run
    about: dict[str, Any]  # run.json
    untested: list[str]  # claims that the cadences of a preset do not test
    verdicts: list[Verdict]
    figures: dict[str, tuple[Path, str]]  # name -> (png, caption)


def all_sections(report: Report) -> list[Section]:
    """All sections in their order; one without blocks is left out of the page."""
    record, settings = report.run.record, report.run.settings
    events = report.run.events(settings.factor)
    return [
        overview(report),
        sections.diverged(record, settings),
        sections.dead(record, settings),
        doubts(record, settings, events),
        claims(report),
        initialisation(report),
        sections.certainty(record),
        sections.pictures(report.figures),
        sections.ends(record, settings, events),
        reference(report),
        sections.spikes(record, settings, events),
        sections.counts(record, settings),
        *sections.predictions(record, settings, events),
        provenance(report),
        Section("Config", [folded("all fields", json.dumps(report.run.config, indent=2))]),
    ]


def fallback_text(about: dict[str, Any]) -> str:
    """What stands on each figure of a run on fallback data; empty on others. ``about``: ``data`` of run.json."""
    return f"{about['name']}, not {about['fallback_for']}" if about["fallback_for"] else ""


def fallback_warning(about: dict[str, Any]) -> list[Block]:
    """The warning that a run is on fallback data, if it is. ``about``: ``data`` of run.json."""
    name, named = about["name"], about["fallback_for"]
    words = f"This run is on {name}, the fallback data for {named}, which is not available. It says nothing about {named}."
    return [warning(words)] if named else []


def shown_verdict(word: str, about: dict[str, Any], seeds: int, min_seeds: int = MIN_SEEDS) -> str:
    """The verdict as it is shown: fallback data, or fewer seeds than the claim needs, are a demonstration.

    Args:
      word: the verdict.
      about: ``data`` of run.json.
      seeds: of the run or sweep.
      min_seeds: that the claim needs.
    """
    if word in (NOT_TESTED, NOT_MEASURABLE):
        return word
    if about["fallback_for"]:
        return "demonstration"
    return word if seeds >= min_seeds else f"demonstration ({counted(seeds, 'seed')}; the claim needs {min_seeds})"


def verdict_block(v: Verdict, about: dict[str, Any], seeds: int) -> Block:
    """A verdict with its statement, effect and table. ``about``: ``data`` of run.json."""
    return verdict(_words(v, about, seeds), v.statement, v.effect + (f"; {v.details}" if v.details else ""), v.table)


def verdict_line(v: Verdict, about: dict[str, Any], seeds: int) -> str:
    """A verdict with its claim and effect, for the terminal. ``about``: ``data`` of run.json."""
    return f"{_words(v, about, seeds)}: {v.claim}: {v.effect}"


def _words(v: Verdict, about: dict[str, Any], seeds: int) -> str:
    least = CLAIMS[v.claim].min_seeds if v.claim in CLAIMS else MIN_SEEDS
    return words_of(v.claim, shown_verdict(v.verdict, about, seeds, least))


def seeds_of(run: Run) -> int:
    """Number of seeds of a run."""
    return len(set(run.record["seed"].values.tolist()))


def overview(report: Report) -> Section:
    """The facts of the run, and what was found."""
    run, about, config = report.run, report.about["data"], report.run.config
    model, optimizer = config["model"], config["optimizer"]
    momentum = optimizers.momentum(optimizer) if optimizer["name"] == "sgd" else 0
    steps = f"{run.record.sizes['step']} of {config['steps']} steps, status: {report.about['status']}"
    section = opening(
        run.record,
        run.settings,
        run.events(run.settings.factor),
        network=[f"Data {about['name']}", f"{model['name'].upper()}, depth {model['depth']}, width {model['width']}"],
        training=[f"optimizer {optimizer['name']}" + (f" with momentum {momentum:g}" if momentum else "")],
        status=steps,
        before=f"Demonstration on {fallback_text(about)}: " if about["fallback_for"] else "",
    )
    return section._replace(blocks=[*fallback_warning(about), *section.blocks])


def claims(report: Report) -> Section:
    """Verdicts on the claims of the config."""
    words = f"Not tested at the cadences of this preset: {', '.join(report.untested)}"
    blocks = [verdict_block(v, report.about["data"], seeds_of(report.run)) for v in report.verdicts]
    return Section("Claims", [*([warning(words)] if report.untested else []), *blocks])


def initialisation(report: Report) -> Section:
    """Learning rates of the members, beside the critical ones and the published one."""
    section = sections.initialisation(report.run.record)
    if published := report.run.config["published_critical_lr"]:
        words = text(f"Published for the network of this figure on CIFAR-10: {published} (Zhu et al. 2024).")
        section = section._replace(blocks=[*section.blocks, words])
    return section


def reference(report: Report) -> Section:
    """The reference that the AGOPs are compared with."""
    about = report.about.get("agop_reference") or {}
    return Section("AGOP reference", [table(("", ""), about.items(), of_text=True)] if about else [])


def provenance(report: Report) -> Section:
    """Data, check of the kernel, environment, and changes of the environment when the run was resumed."""
    about, check = report.about, report.about["kernel_check"]
    blocks = [
        table(("", ""), about["data"].items(), of_text=True),
        text(f"Kernel against neural_tangents on {check['examples']} examples: {check['text']}."),
        folded("environment", json.dumps(about["environment"], indent=2)),
    ]
    if resumed := about.get("resumed_with"):
        changes = [differences(about["environment"], environment) for environment in resumed]
        lines = [
            f"{name}: {first} at first, {later} in sitting {i + 2}"
            for i, change in enumerate(changes)
            for name, (first, later) in change.items()
        ]
        words = "the environment differed in" if lines else "in the same environment"
        blocks += [text(f"Resumed {len(changes)} times; {words}"), *([items(lines)] if lines else [])]
    return Section("Data, kernel check, environment", blocks)
