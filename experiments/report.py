"""The report of a run, rebuilt from its directory alone: python -m experiments.report RUN_DIR."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np

from catapult_jax import records
from catapult_jax.events import DEFINITION, FACTORS, SPIKE_SCORE, spike_score
from experiments import directory, figures
from experiments.command_line import FIELDS_HELP
from experiments.config import ConfigError, RunError, flat, testable
from experiments.markup import Html, element, join
from experiments.reproduce import differences
from experiments.verdicts import (
    OF_RUN,
    Verdict,
    by_setting,
    catapult_counts,
    dead_members,
    finished,
    has_events,
    last,
    lost_members,
    of_run,
    rise_predictions,
    run_events,
    spike_series,
    text_of,
    uncertain_steps,
    until_lost,
)

_CADENCES = ("batch_kernel", "train_loss", "train_kernel", "loss_after", "preconditioner", "test", "agop")

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:.5rem 0;font-size:.86rem}td,th{border:1px solid #ddd;padding:.25rem .6rem;text-align:right}
th{background:#f5f5f5}td:first-child,th:first-child,.text td{text-align:left}img{max-width:100%}
.warning{background:#fff3cd;border:1px solid #e0b400;padding:.6rem 1rem;font-weight:600}
.reproduced{color:#176b2c;font-weight:600}.not-reproduced{color:#a11;font-weight:600}.not-tested{color:#666;font-weight:600}
pre{background:#f5f5f5;padding:.8rem;overflow-x:auto;font-size:.8rem}
"""


ENDS = ("loss_train", "loss_test", "error_test", "loss_val", "error_val", "agop_alignment", "agop_pearson")


def _number(value) -> str:
    if isinstance(value, (float, np.floating)):
        return "–" if np.isnan(value) else "infinite" if np.isinf(value) else f"{value:.4g}"
    return str(value)


def table_html(header, rows, kind="") -> Html:
    lines = [element("tr", *(element("th", h) for h in header))]
    lines += [element("tr", *(element("td", _number(value)) for value in row)) for row in rows]
    return element("table", *lines, class_=kind)


def image_html(path: Path, caption: str) -> Html:
    data = base64.b64encode(path.read_bytes()).decode()
    return element(
        "figure",
        element("img", alt=path.stem, src=f"data:image/png;base64,{data}"),
        element("figcaption", caption),
    )


def verdict_html(v: Verdict) -> Html:
    word = element("span", v.verdict, class_=v.verdict.replace(" ", "-"))
    told = element("p", word, f": {v.statement}.", element("br"), element("em", f"{v.effect}."))
    return join(told, table_html(v.table[0], v.table[1:]) if v.table else "")


def warning_html(text: str) -> Html:
    return element("p", text, class_="warning")


def stand_in_html(about: dict) -> Html:
    name, wanted = about["name"], about["stand_in_for"]
    return warning_html(
        f"This is on {name}, the stand-in for {wanted}, which could not be had. It says nothing about {wanted}."
    )


def page(title: str, parts: list) -> str:
    """A whole page; of its parts, what is no :class:`Html` is escaped."""
    head = element("head", element("meta", charset="utf-8"), element("title", title), element("style", Html(_STYLE)))
    return "<!doctype html>" + element("html", head, element("body", *parts), lang="en")


def title_of(config: dict, run: dict) -> str:
    """Title with the net and the data that were used, which need not be those that the config names."""
    return f"{config['title']}: {config['model']['name'].upper()} on {run['data']['name']}"


def _alignment(record, m: int, event) -> dict[str, float]:
    """AGOP alignment before and after a spike: the last value measured at its onset, the first one at its end or later."""
    if "agop_alignment" not in record:
        return {}
    values = record["agop_alignment"].values[m]
    before, after = values[: event.onset + 1], values[event.end :] if event.end >= 0 else values[:0]
    pick = lambda found, i: float(found[np.isfinite(found)][i]) if np.isfinite(found).any() else float("nan")
    return {"alignment_before": pick(before, -1), "alignment_after": pick(after, 0)}


def build(run_dir: str | Path) -> list[Verdict]:
    """Writes events.jsonl, figures and report.html from the record of a run, and returns the verdicts.

    Raises:
      FileNotFoundError: no run there.
    """
    run_dir = Path(run_dir)
    record = records.open_record(run_dir).load()
    if not record.sizes["step"]:
        raise ConfigError(f"run_dir={str(run_dir)!r} has no step on record yet; allowed: a run after its first steps")
    record = until_lost(record)
    config, run = (records.read_json(run_dir / name) for name in ("config.json", "run.json"))
    if config["measure"].get("preset"):  # the cadences that it found stand in its place
        every = {f"{name}_every": run["instruments"]["cadences"].get(name, 0) for name in _CADENCES}
        full = config["optimizer"]["batch_size"] in (0, config["data"]["train_size"])
        config["measure"] |= every | ({"train_loss_every": 1} if full else {})
        claimed, config["claims"] = config["claims"], testable(config["claims"], flat(config))
        untested = [name for name in claimed if name not in config["claims"]]
    else:
        untested = []
    title = title_of(config, run)
    events = run_events(record, config)
    members = [
        {"member": m, "seed": int(record["seed"].values[m]), "lr_relative": float(record["lr_relative"].values[m])}
        for m in range(record.sizes["member"])
    ]
    records.write_json_lines(
        run_dir / "events.jsonl",
        [
            member | {"factor": config["events"]["factor"]} | event._asdict() | _alignment(record, member["member"], event)
            for member, found in zip(members, events, strict=True)
            for event in found
        ],
    )
    verdicts = [of_run(name, record, config) for name in config["claims"] if name in OF_RUN]
    drawn = figures.write_all(record, config, title, run_dir / "figures")

    heading = lambda text: element("h2", text)
    parts = [element("h1", title)]
    if run["data"]["stand_in_for"]:
        parts.append(stand_in_html(run["data"]))
    done = record.sizes["step"]
    lost, dead = lost_members(record, config), dead_members(record, config)
    gone = "".join(f", {len(found)} {word}" for found, word in ((lost, "diverged"), (dead, "dead")) if found)
    parts.append(element("p", f"{len(members)} members, {done} of {config['steps']} steps, status: {run['status']}{gone}"))
    if lost:
        parts.append(heading("Members that diverged"))
        parts.append(element("p", "Each is frozen from its step on, and is in no figure or claim after it."))
        parts.append(table_html(("member", "step", "cause"), [tuple(row.values()) for row in lost]))
    if dead:
        parts.append(heading("Members whose network is dead"))
        parts.append(
            element("p", "From its step on the kernel of each is exactly zero: it does not learn any more, and is in no claim.")
        )
        parts.append(table_html(("member", "step"), [tuple(row.values()) for row in dead]))
    if untested:
        parts.append(warning_html(f"Not tested at the cadences of this preset: {', '.join(untested)}"))
    if verdicts:
        parts.append(heading("Claims"))
        parts += [verdict_html(v) for v in verdicts]
    parts.append(heading("Critical learning rate at initialisation"))
    # raises and cap only where the schedule has them
    axes = [axis for axis in ("seed", "raises", "cap", "lr_relative", "lr_init", "critical_lr_init") if axis in record.coords]
    rows = [(m["member"], *(record[axis].values[m["member"]].item() for axis in axes)) for m in members]
    header = {"lr_relative": "lr asked for / critical lr", "lr_init": "lr asked for", "critical_lr_init": "critical lr"}
    parts.append(table_html(("member", *(header.get(axis, axis) for axis in axes)), rows))
    if config["published_critical_lr"]:
        parts.append(
            element("p", f"Published for the network of this figure: {config['published_critical_lr']} (Zhu et al. 2024).")
        )
    if "critical_lr_batch" in record:
        uncertain, known = uncertain_steps(record), ~np.isnan(record["critical_lr_batch"].values)
        text = (
            f"Whether a step is critical is not significant within {record.attrs.get('critical_lr_margin', 0):.1e} of the critical lr "
            "(rounding of the kernel, n times the largest error of an entry), or within the bound of its eigenvalue where that is larger: "
            f"{int(uncertain.sum())} of {int(known.sum())} measured steps, crosses in the figure of the ratio."
        )
        parts.append(element("p", text))
    for name in [name for name in record if name.startswith("converged")]:
        share = record[name].values[~np.isnan(record[name].values)]
        text = f"{name}: kernel-vector products came to their tolerance at {int(share.sum())} of {share.size} measured steps."
        parts.append(element("p", text))
    for path, caption in drawn.values():
        parts.append(image_html(path, caption))
    ends = [name for name in ENDS if name in record]
    if len(ends) > 1:
        parts.append(heading("Where training ended"))
        values, ok = {name: last(record, config, name) for name in ends}, finished(record, config)
        if has_events(record, config) and "critical_lr_batch" in record:
            values = {"catapults": catapult_counts(record, config)} | values
        rows = [
            (label, f"{ok[m].sum()} of {len(m)}", *(text_of(found[m[ok[m]]]) for found in values.values()))
            for label, m in by_setting(record, config)
        ]
        parts.append(table_html(("setting", "members that finished", *values), rows))
        parts.append(element("p", "Mean over seeds with its 95 % bootstrap interval."))
    if run.get("agop_reference"):
        parts += [heading("AGOP reference"), table_html(("", ""), list(run["agop_reference"].items()), "text")]
    parts.append(heading(f"Spikes above {config['events']['factor']} times the level"))
    parts.append(element("p", DEFINITION))
    header = (
        "member",
        "kind",
        "onset",
        "peak",
        "end",
        "returned",
        "peak / level",
        "overshoot",
        "share in top space",
        "lr",
        "critical lr",
        "lambda before",
        "lambda after",
        *(("alignment before", "alignment after") if "agop_alignment" in record else ()),
    )
    rows = [
        (
            m["member"],
            e.kind,
            e.onset,
            e.peak,
            e.end if e.end >= 0 else "-" if e.kind in ("divergence", "death") else "open",
            e.returned if e.returned >= 0 else "-",
            e.peak_ratio,
            e.overshoot,
            e.share_top,
            e.lr,
            e.critical_lr,
            e.lambda_max_before,
            e.lambda_max_after,
            *_alignment(record, m["member"], e).values(),
        )
        for m, found in zip(members, events, strict=True)
        for e in found
    ]
    parts.append(table_html(header, rows[:200]) if rows else element("p", "None."))
    if len(rows) > 200:
        parts.append(element("p", f"The first 200 of {len(rows)}; all are in events.jsonl."))
    if rows:
        parts.append(element("p", f"The first one: {next(str(e) for found in events for e in found)}"))
    parts.append(heading("Number of spikes for each factor"))
    counts = {f: [len(found) for found in run_events(record, config, factor=f)] for f in FACTORS}
    loss = record[spike_series(record)].values
    scored = [int((spike_score(row) > SPIKE_SCORE).sum()) for row in loss]
    parts.append(
        table_html(
            ("member", *(f"above {f}" for f in FACTORS), f"steps with a score above {SPIKE_SCORE:g}"),
            [(m, *(counts[f][m] for f in FACTORS), scored[m]) for m in range(len(members))],
        )
    )
    parts.append(
        element(
            "p", "Score: standard deviations above the mean of the last 128 values of the loss; none in the first 128 steps."
        )
    )
    if "loss_batch_after" in record and "loss_train" in record:
        parts.append(heading("Exceedance as a predictor of a rise in the step"))
        for name, tables in rise_predictions(record, config).items():
            rows = [(m, *table) for m, table in enumerate(tables)]
            header = (
                "member",
                "above, rose",
                "above, fell",
                "below, rose",
                "below, fell",
                "precision",
                "recall",
                "F1",
                "base rate",
            )
            parts += [element("h3", name), table_html(header, rows)]
    parts.append(heading("Data, kernel check, environment"))
    parts.append(table_html(("", ""), list(run["data"].items()), "text"))
    check = run["kernel_check"]
    parts.append(element("p", f"Kernel against neural_tangents on {check['examples']} examples: {check['text']}."))
    parts.append(element("pre", json.dumps(run["environment"], indent=2)))
    if run.get("resumed_with"):
        changes = [differences(run["environment"], other) for other in run["resumed_with"]]
        changed = [
            element("li", f"{name}: {then} then, {now} in sitting {i + 2}")
            for i, change in enumerate(changes)
            for name, (then, now) in change.items()
        ]
        how = "the environment differed in" if changed else "in the same environment"
        parts.append(element("p", f"Resumed {len(changes)} times; {how}"))
        parts.append(element("ul", *changed) if changed else "")
    parts += [heading("Config"), element("pre", json.dumps(config, indent=2))]
    records.write_text(run_dir / "report.html", page(title, parts))
    return verdicts


def main(argv: list[str]) -> int:
    if set(argv[1:]) & {"-h", "--help"}:
        print(f"{__doc__.strip()}\n\nRUN_DIR: directory of a run (--workdir of experiments.main). {FIELDS_HELP}")
        return 0
    if len(argv) != 2:
        print("usage: python -m experiments.report RUN_DIR", file=sys.stderr)
        return 2
    argv = [argv[0], str(Path(argv[1]).expanduser())]
    try:
        if not Path(argv[1], "run.json").is_file():
            raise FileNotFoundError(f"no run in {argv[1]}")
        with directory.held(Path(argv[1])), directory.written(Path(argv[1])):
            verdicts = build(argv[1])
    except (FileNotFoundError, ConfigError, RunError, records.DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for v in verdicts:
        print(f"{v.verdict}: {v.claim}: {v.effect}")
    print(f"wrote {Path(argv[1]) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv))
