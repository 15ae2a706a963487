"""The page of claims in four parts: answers, a table, the criteria, what was chosen after trials; and a page of details for each config."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from catapult_jax.events import DEFINITION
from catapult_jax.report.statistics import counted, range_text
from experiments.catalogue import (
    EXPERIMENTS,
    QUESTIONS,
    Experiment,
    cap_dir,
    config_name,
    config_of,
    reference_dir,
)
from experiments.claim_results import Results, collect
from experiments.markdown import markdown_table, paragraph
from experiments.verdicts import CLAIMS, NOT_MEASURABLE, NOT_REPRODUCED, NOT_TESTED, OURS, PARTLY, REPRODUCED, Verdict, words_of

_DECIDED = (REPRODUCED, PARTLY, NOT_REPRODUCED)
_MOST_NAMES = 8  # settings that are named one by one


class Row(NamedTuple):
    """A claim over its settings, in words: a row of the table."""

    title: str
    source: str
    grade: str
    settings: str  # how many decided, and how
    effect: str  # of the first setting with the lowest grade
    claim: str  # its name
    deciding: tuple[str, ...]  # names of the settings that decided
    others: tuple[str, ...]  # variants of ours that decided otherwise, in words; they do not count


def grade_of(verdicts_of_settings: Sequence[str]) -> str:
    """The grade of a claim from the verdicts of its settings.

    It is that of the settings that decide, if they agree; "partly" if they do not. Without such a setting it is "not measurable" if one was run.

    >>> grade_of(["reproduced", "not measurable"]), grade_of(["reproduced", "not reproduced"]), grade_of(["not tested"])
    ('reproduced', 'partly', 'not tested')
    """
    decided = [verdict for verdict in verdicts_of_settings if verdict in _DECIDED]
    if decided:
        return decided[0] if len(set(decided)) == 1 else PARTLY
    return NOT_MEASURABLE if NOT_MEASURABLE in verdicts_of_settings else NOT_TESTED


def rows_of(outcomes: dict[str, Results | str]) -> list[Row]:
    """One row for each claim, in the order of the questions.

    Args:
      outcomes: experiment -> its results, or the reason why there are none.
    """
    return [_row(name, outcomes) for names in QUESTIONS.values() for name in names]


def _row(name: str, outcomes: dict[str, Results | str]) -> Row:
    settings = _settings(name, outcomes)
    own = [verdict for experiment, verdict in settings if not experiment.is_variant]
    counted = own or [verdict for _, verdict in settings]
    grade = grade_of([verdict.verdict for verdict in counted])
    words = (f"{OURS}: " if CLAIMS[name].source == OURS else "") + words_of(name, grade)
    count = {verdict: sum(v.verdict == verdict for v in counted) for verdict in (*_DECIDED, NOT_MEASURABLE, NOT_TESTED)}
    parts = [f"{number} {words_of(name, v)}" for v, number in count.items() if number]
    variants = {_setting(e): v for e, v in settings if e.is_variant and own}
    others = tuple(
        f"variant {s}: {words_of(name, v.verdict)}" for s, v in variants.items() if v.verdict in _DECIDED and v.verdict != grade
    )
    decided = {_setting(e): v for e, v in settings if v.verdict in _DECIDED and not e.is_variant}
    if decided:
        weakest = max(decided, key=lambda setting: _DECIDED.index(decided[setting].verdict))  # the first one of several
        effect = (f"{weakest}: " if len(decided) > 1 else "") + decided[weakest].effect
    else:
        effect = counted[0].effect if counted else "no setting"
    return Row(CLAIMS[name].title, CLAIMS[name].source, words, ", ".join(parts), effect, name, tuple(decided), others)


def _setting(experiment: Experiment) -> str:
    """The name of a setting in a sentence."""
    return experiment.name.partition(":")[2].replace(",", " ")


def _settings(name: str, outcomes: dict[str, Results | str]) -> list[tuple[Experiment, Verdict]]:
    """The settings of a claim with their verdicts; one that was not run is not tested."""
    settings = []
    for experiment in EXPERIMENTS:
        if name in experiment.claims:
            outcome = outcomes[experiment.name]
            if isinstance(outcome, str):
                verdict = Verdict(name, "", NOT_TESTED, outcome)
            else:
                verdict = next(v for v in outcome.verdicts if v.claim == name)
            settings.append((experiment, verdict))
    return settings


def write_page(page: Path, scale: str, workdir: Path) -> list[Row]:
    """Write the page, and in a folder beside it the pages of details and the results that are kept.

    Args:
      page: file to write.
      scale: smoke, quick, cpu or gpu.
      workdir: directory of all experiments.

    Returns:
      The rows of the table of claims.

    Raises:
      DamagedFile: a kept result is not as it was written.
    """
    outcomes = collect(page, scale, workdir)
    rows = rows_of(outcomes)
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for module in dict.fromkeys(e.name.partition(":")[0] for e in EXPERIMENTS):
        chosen = [e for e in EXPERIMENTS if e.name.partition(":")[0] == module]
        (folder / f"{module}.md").write_text(
            _details_page(module, chosen, outcomes, scale, workdir, page.name), encoding="utf-8"
        )
    choices = Path(__file__).with_name("choices.md").read_text("utf-8")
    seconds = sum(outcome.seconds for outcome in outcomes.values() if not isinstance(outcome, str))
    parts = [_answers(rows, scale, seconds), _table(rows, folder.name), _criteria(outcomes), choices]
    page.write_text("\n".join(parts), encoding="utf-8")
    return rows


# Part one: the answers.


def _answers(rows: list[Row], scale: str, seconds: float) -> str:
    by_name = {row.claim: row for row in rows}
    lines = [
        "# Does it hold?\n",
        paragraph(
            "Zhu, Liu, Radhakrishnan and Belkin (2024, arXiv 2306.04815) claim that the spikes of SGD are catapults, that they live in the top "
            "eigenspace of the tangent kernel, and that they improve generalisation. A student study on MNIST adds cyclic learning rates and AdaGrad. "
            "Each line sums up rows of the table below; *holds* marks claims of our own. In brackets: where it was tested, and the effect in the first "
            "setting with the lowest grade. The settings rank2, rank3 and rank4 are synthetic targets; fcn, cnn and wrn are networks on 128 images of CIFAR-10; cifar2, fmnist2 "
            "and usps are images.\n"
        ),
    ]
    lines += [f"- **{question}**{_answer([by_name[name] for name in names])}" for question, names in QUESTIONS.items()]
    lines += [
        "",
        paragraph(
            "**Why believe it?** Each row tests one published statement, or one of ours, with thresholds that were committed before the runs shown here, but for "
            "what the list at the end names: there is also what was chosen or mended after earlier runs; the runs after that have fresh seeds. "
            "A verdict needs ten seeds on synthetic tasks and five elsewhere. "
            "Controls: ordinary rises, matched windows, sham edits of a step, raises to just below the critical lr. "
            "These raises make hardly a catapult (on cifar2 about one a run), but also a lower lr later on, since the lr follows the critical lr, which each catapult raises. "
            "*Not measurable*: the runs can't decide. Contrary results stay."
        ),
        paragraph(
            f"`--scale=quick` repeats {', '.join(e.name for e in EXPERIMENTS if e.is_quick)}. "
            f"All runs shown took {seconds / 3600:.1f} hours in sum."
        ),
        f"`python -m experiments.claims --scale={scale}` writes this page from the runs, or from their results that are kept beside it; each page of details has the command of each run.\n",
    ]
    return "\n".join(lines)


_YES, _IN_PART, _NO = ("reproduced", "holds"), ("partly", "holds in part"), ("not reproduced", "does not hold")


def _answer(rows: list[Row]) -> str:
    """Yes, no or in part, by all rows that decide; then an item for each claim: what holds, holds in part, and does not."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        word = row.grade.removeprefix(f"{OURS}: ")
        names = row.deciding
        where = ", ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} settings"
        if word in (*_IN_PART, *_NO):
            where += ("; " if len(names) > 1 else ": ") + row.effect
        where = "; ".join([where, *row.others])
        groups.setdefault(word, []).append(_lower(row.title) + (f" ({where})" if names else ""))
    decided = [word for word in groups if word in (*_YES, *_IN_PART, *_NO)]
    in_short = "Yes" if set(decided) <= set(_YES) else "No" if set(decided) <= set(_NO) else "In part"
    words = (*_YES, *_IN_PART, *_NO, NOT_MEASURABLE)
    items = [f"{word.capitalize()}: {claim}." for word in words for claim in groups.get(word, [])]
    if NOT_TESTED in groups:
        items.append(f"Not tested: {counted(len(groups[NOT_TESTED]), 'row')}.")
    options = dict(width=120, initial_indent="  - ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join([f" *{in_short}.*" if decided else "", *(textwrap.fill(item, **options) for item in items)])


def _lower(title: str) -> str:
    """The title inside a sentence: only an abbreviation or a name keeps its capital.

    >>> _lower("Above critical"), _lower("SGD gains"), _lower("AdaGrad loses")
    ('above critical', 'SGD gains', 'AdaGrad loses')
    """
    word = title.partition(" ")[0]
    return title if any(letter.isupper() for letter in word[1:]) else title[0].lower() + title[1:]


# Part two: the table.


def _table(rows: list[Row], folder: str) -> str:
    header = ("claim", "published in", "grade", "settings", "effect")
    lines = []
    for row in rows:
        module = next(e.name.partition(":")[0] for e in EXPERIMENTS if row.claim in e.claims)
        link = f"[{row.title}]({folder}/{module}.md)"
        lines.append((link, row.source, row.grade, ", ".join([row.settings, *row.others]), row.effect))
    return (
        "## All claims\n\nThe grade is what all settings that decide agree on, else *partly*.\n"
        "The effect is that of the first setting with the lowest grade; others may be smaller; brackets hold the 95 % interval over seeds.\n"
        "A variant is a setting of ours that no study has: it does not count, and is named where it says otherwise.\n\n"
        + markdown_table((header, *lines))
    )


# Part three: the criteria.


def _criteria(outcomes: dict[str, Results | str]) -> str:
    lines = [
        "## Criteria\n",
        paragraph(f"**Events.** {DEFINITION}") + "\n",
        *(
            paragraph(text) + "\n"
            for text in (
                "**Intervals** are 95 % percentile bootstrap intervals of a mean over seeds. With five seeds they are too narrow: they miss the mean of a "
                "normal distribution in about 15 % of cases. So a sign test over seeds must hold, too (5 of 5, 7 of 8, 9 of 10, 15 of 20).",
                "**A fraction of a rise** can exceed one, since the loss outside the space falls during the rise.",
                "**AGOP alignment** is judged only where it is measurable: two references of one recipe must have an alignment of at least 0.5 with each "
                "other, and untrained networks less than half of that.",
                "**Grades.** *Reproduced*, *partly*, *not reproduced*: the statement below holds, a part of it, or not. *Not measurable*: the runs can't "
                "decide. *Not tested*: there are no such runs. *Ours*: no study says it; such a row *holds*, *holds in part* or *does not hold*. "
                "*Not reproduced* and *does not hold* mean that the effect is not shown; they are no proof that there is none.",
            )
        ),
    ]
    for names in QUESTIONS.values():
        for name in names:
            claim = CLAIMS[name]
            statement = next((v.statement for _, v in _settings(name, outcomes) if v.statement), "")
            words = f"Published ({claim.source}): {claim.published}. " if claim.published else "Ours. "
            tested = f"Tested as: {statement}." if statement else "Not tested yet."
            lines.append(paragraph(f"- **{claim.title}.**\n{words}{tested}"))
    return "\n".join(lines) + "\n"


# The pages of details.


def _details_page(
    module: str, experiments: list[Experiment], outcomes: dict[str, Results | str], scale: str, workdir: Path, page: str
) -> str:
    lines = [f"# {module}\n", f"Details of [the claims](../{page}); the config is `configs/{module}.py`.\n"]
    for experiment in experiments:
        lines += _details(
            experiment, outcomes[experiment.name], commands(experiment, scale, workdir), _seeds(experiment, scale, workdir)
        )
    return "\n".join(lines)


def _details(experiment: Experiment, outcome: Results | str, lines_to_run: list[str], seeds: str) -> list[str]:
    """The section of an experiment."""
    title = experiment.name + (
        " (our variant: it counts only in claims that nothing else tests)" if experiment.is_variant else ""
    )
    parts = [f"## {title}\n", "```\n" + "\n".join(lines_to_run) + "\n```\n"]
    if isinstance(outcome, str):
        return [*parts, f"Not tested: {outcome}.\n"]
    facts = f"Data: {outcome.data}; {seeds}; {outcome.seconds:.0f} s in all; commit {outcome.code}."
    if reference := outcome.reference:
        facts += f" AGOP reference: {reference['name']}"
        error = f", test error {reference['error_test']:.3g}" if reference.get("error_test") is not None else ""
        ceiling = f", alignment of a second one {reference['ceiling']:.3g}" if reference.get("ceiling") is not None else ""
        facts += f"{error}{ceiling}, SHA-256 {reference['weights']}." if "weights" in reference else "."
    parts.append(facts + "\n")
    tables = []
    for verdict in outcome.verdicts:
        parts.append(f"**{words_of(verdict.claim, verdict.verdict)}**: {CLAIMS[verdict.claim].title}.\n\n{verdict.effect}.\n")
        if verdict.details:
            parts.append(f"{verdict.details}.\n")
        if verdict.table and verdict.table not in tables:
            tables.append(verdict.table)
            parts.append(markdown_table(verdict.table))
    return [*parts, *(f"![{experiment.name}](../{figure})\n" for figure in outcome.figures)]


def _seeds(experiment: Experiment, scale: str, workdir: Path) -> str:
    """The seeds of an experiment in words."""
    config = config_of(experiment, scale, workdir)
    seeds = config.members.seed or (config.seed,)
    return f"{counted(len(seeds), 'seed')} ({range_text(seeds)})"


def commands(experiment: Experiment, scale: str, workdir: Path) -> list[str]:
    """The command lines of an experiment: what it needs first, then its runs.

    Args:
      experiment: one of :data:`EXPERIMENTS`.
      scale: smoke, quick, cpu or gpu.
      workdir: directory of all experiments.
    """
    smoke = ",smoke" if scale == "smoke" else ""
    lines = [
        f"python -m experiments.main --config=configs/reference.py:{variant}{smoke} --workdir={reference_dir(variant, workdir)}"
        for variant in experiment.references
    ]
    flags = ""
    if experiment.references:
        flags += f" --config.measure.agop_reference={reference_dir(experiment.references[0], workdir) / 'model.npz'}"
    if experiment.cap:
        module, variant = config_name(experiment, scale, experiment.cap)
        lines.append(
            f"python -m experiments.main --config=configs/{module}.py:{variant}{flags} --workdir={cap_dir(experiment, workdir)}"
        )
        flags += f" --config.intervention.cap_run={cap_dir(experiment, workdir)}"
    if len(experiment.references) > 1:
        flags += f" --config.measure.agop_second_reference={reference_dir(experiment.references[1], workdir) / 'model.npz'}"
    module, variant = config_name(experiment, scale)
    name = f"configs/{module}.py" + (f":{variant}" if variant else "")
    return [*lines, f"python -m experiments.{'sweep' if experiment.is_sweep else 'main'} --config={name}{flags}"]
