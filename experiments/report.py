"""The report of a run, rebuilt from its directory alone: python -m experiments.report RUN_DIR."""

from __future__ import annotations

import base64
import json
import sys
from html import escape
from pathlib import Path

import numpy as np

from catapult_jax import records
from catapult_jax.events import FACTORS
from experiments import figures
from experiments.claims import CLAIMS, Verdict, rise_predictions, run_events

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:.5rem 0;font-size:.86rem}td,th{border:1px solid #ddd;padding:.25rem .6rem;text-align:right}
th{background:#f5f5f5}td:first-child,th:first-child,.text td{text-align:left}img{max-width:100%}
.warning{background:#fff3cd;border:1px solid #e0b400;padding:.6rem 1rem;font-weight:600}
.reproduced{color:#176b2c;font-weight:600}.not-reproduced{color:#a11;font-weight:600}.not-tested{color:#666;font-weight:600}
pre{background:#f5f5f5;padding:.8rem;overflow-x:auto;font-size:.8rem}
"""


def _number(value) -> str:
    if isinstance(value, (float, np.floating)):
        return "&ndash;" if np.isnan(value) else f"{value:.4g}"
    return escape(str(value))


def _table(header, rows, kind="") -> str:
    head = "".join(f"<th>{escape(str(h))}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{_number(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f'<table class="{kind}"><tr>{head}</tr>{body}</table>'


def _image(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'


def title_of(config: dict, run: dict) -> str:
    """Title with the net and the data that were used, which need not be those that the config names."""
    return f"{config['title']}: {config['model']['name'].upper()} on {run['data']['name']}"


def build(run_dir: str | Path) -> list[Verdict]:
    """Writes events.jsonl, figures and report.html from the record of a run, and returns the verdicts.

    Raises:
      FileNotFoundError: no run there.
    """
    run_dir = Path(run_dir)
    record = records.open_record(run_dir).load()
    config, run = (json.loads((run_dir / name).read_text()) for name in ("config.json", "run.json"))
    title = title_of(config, run)
    events = run_events(record, config)
    members = [
        {"member": m, "seed": int(record["seed"].values[m]), "lr_relative": float(record["lr_relative"].values[m])}
        for m in range(record.sizes["member"])
    ]
    records.write_json_lines(
        run_dir / "events.jsonl",
        [
            member | {"factor": config["events"]["factor"]} | event._asdict()
            for member, found in zip(members, events, strict=True)
            for event in found
        ],
    )
    verdicts = [CLAIMS[name](record, config) for name in config["claims"]]
    drawn = figures.write_all(record, config, title, run_dir / "figures")

    parts = [f"<h1>{escape(title)}</h1>"]
    if run["data"]["stand_in_for"]:
        parts.append(
            f'<p class="warning">This run is on {escape(run["data"]["name"])}, the stand-in for '
            f"{escape(run['data']['stand_in_for'])}, which could not be had. It says nothing about {escape(run['data']['stand_in_for'])}.</p>"
        )
    done = record.sizes["step"]
    frozen = int((~record["alive"].values[:, -1]).sum())
    parts.append(
        f"<p>{len(members)} members, {done} of {config['steps']} steps, status: {escape(run['status'])}"
        + (f", {frozen} frozen after a loss that was not finite" if frozen else "")
        + "</p>"
    )
    if verdicts:
        parts.append("<h2>Claims</h2>")
        for v in verdicts:
            parts.append(
                f'<p><span class="{v.verdict.replace(" ", "-")}">{escape(v.verdict)}</span>: {escape(v.statement)}.<br>'
                f"<em>{escape(v.effect)}.</em></p>"
            )
    parts.append("<h2>Critical learning rate at initialisation</h2>")
    rows = [
        (
            m["member"],
            m["seed"],
            m["lr_relative"],
            float(record["lr_init"].values[m["member"]]),
            float(record["critical_lr_init"].values[m["member"]]),
        )
        for m in members
    ]
    parts.append(_table(("member", "seed", "lr / critical lr", "lr", "critical lr"), rows))
    if config["published_critical_lr"]:
        parts.append(f"<p>Published for the network of this figure: {config['published_critical_lr']} (Zhu et al. 2024).</p>")
    for path, caption in drawn.values():
        parts.append(_image(path, caption))
    parts.append(f"<h2>Spikes above {config['events']['factor']} times the level</h2>")
    header = (
        "member",
        "kind",
        "onset",
        "peak",
        "end",
        "peak / level",
        "share in top space",
        "lr",
        "critical lr",
        "lambda before",
        "lambda after",
    )
    rows = [
        (
            m["member"],
            e.kind,
            e.onset,
            e.peak,
            e.end if e.end >= 0 else "open",
            e.peak_ratio,
            e.share_top,
            e.lr,
            e.critical_lr,
            e.lambda_max_before,
            e.lambda_max_after,
        )
        for m, found in zip(members, events, strict=True)
        for e in found
    ]
    parts.append(_table(header, rows[:200]) if rows else "<p>None.</p>")
    if len(rows) > 200:
        parts.append(f"<p>The first 200 of {len(rows)}; all are in events.jsonl.</p>")
    parts.append("<h2>Number of spikes for each factor</h2>")
    counts = {f: [len(found) for found in run_events(record, config, factor=f)] for f in FACTORS}
    parts.append(
        _table(
            ("member", *(f"above {f}" for f in FACTORS)), [(m, *(counts[f][m] for f in FACTORS)) for m in range(len(members))]
        )
    )
    if "loss_batch_after" in record:
        parts.append("<h2>Exceedance as a predictor of a rise in the step</h2>")
        for name, tables in rise_predictions(record).items():
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
            parts.append(f"<h3>{escape(name)}</h3>" + _table(header, rows))
    parts.append("<h2>Data, kernel check, environment</h2>")
    parts.append(_table(("", ""), list(run["data"].items()), "text"))
    parts.append(
        f"<p>Kernel against neural_tangents on {run['kernel_check']['examples']} examples: {escape(run['kernel_check']['text'])}.</p>"
    )
    parts.append(f"<pre>{escape(json.dumps(run['environment'], indent=2))}</pre>")
    parts.append(f"<h2>Config</h2><pre>{escape(json.dumps(config, indent=2))}</pre>")
    html = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>'
    (run_dir / "report.html").write_text(html)
    return verdicts


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python -m experiments.report RUN_DIR", file=sys.stderr)
        return 2
    try:
        verdicts = build(argv[1])
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for v in verdicts:
        print(f"{v.verdict}: {v.claim}: {v.effect}")
    print(f"wrote {Path(argv[1]) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
