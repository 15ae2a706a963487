"""Test the claims of the source studies: python -m experiments.claims [--scale=quick|cpu|gpu|smoke] [--only=NAME ...].

Each experiment is a config or a sweep: one setting of its claims. Complete runs are not run again, and one that was stopped goes on. The page
has one row for each claim. A setting that is not tested has the reason beside it. The results of each experiment are kept beside the page, so that
it can be written again without its runs.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import jax
from absl import flags

from catapult_jax import records
from experiments import command_line, directory, sweep
from experiments import config as configs
from experiments import main as single
from experiments.catalogue import EXPERIMENTS, Experiment, cap_config, cap_dir, config_of, is_part_of, load, reference_dir
from experiments.claim_results import keep_failures
from experiments.claims_page import write_page

_SCALES = ("smoke", "quick", "cpu", "gpu")
_SCALE = flags.DEFINE_enum(
    "scale",
    "cpu",
    _SCALES,
    "smoke: seconds for each; quick: the head rows; cpu: all but what needs a GPU, hours; gpu: all. quick and cpu "
    "share their runs.",
)
_ONLY = flags.DEFINE_multi_string(
    "only", [], "Name of an experiment or config to run; may be given several times. Default: all."
)
_CLAIMS_DIR = flags.DEFINE_string(
    "claims_dir", None, "Directory of the runs; default: runs/claims-SCALE, for quick runs/claims-cpu."
)
_PAGE = flags.DEFINE_string(
    "page",
    None,
    "Page to write, with a folder of details beside it; default: docs/claims.md (smoke and quick: claims.md in the directory of the runs).",
)


def run_experiment(experiment: Experiment, scale: str, workdir: Path) -> str | None:
    """Run what is not complete.

    Args:
      experiment: one of :data:`EXPERIMENTS`.
      scale: smoke, quick, cpu or gpu.
      workdir: directory of all experiments.

    Returns:
      The error message, or None.
    """
    try:
        for variant in experiment.references:
            reference = load("reference", variant + (",smoke" if scale == "smoke" else ""))
            reference.data.strict = scale != "smoke"
            single.run(reference, reference_dir(variant, workdir))
        if experiment.cap:
            single.run(cap_config(experiment, scale, workdir), cap_dir(experiment, workdir))
        config, run_dir = config_of(experiment, scale, workdir), workdir / experiment.folder
        if experiment.is_sweep:
            sweep.run_sweep(config, [], run_dir, 1)
        else:
            single.run(config, run_dir)
    except (configs.ConfigError, configs.RunError, records.DamagedFile) as error:
        return configs.one_line(error)
    return None


def _public(error: str) -> str:
    """An error message without the directories of this machine, and without its advice."""
    return re.sub(r"(?:/[\w.\-]+)+/", "", re.split(r" Ways out:|; allowed:", error)[0]).rstrip(".")


def main(_argv: list[str]) -> int:
    """Run the experiments that are not complete, then write the page; returns the exit status."""
    scale = _SCALE.value
    for name, instead in (("config", "only"), ("workdir", "claims_dir"), ("reproduce", "only")):
        if flags.FLAGS[name].present:
            raise configs.ConfigError(
                f"--{name} with experiments.claims; allowed: --{instead}, since each experiment has its own config"
            )
    names = [experiment.name for experiment in EXPERIMENTS]
    for name in _ONLY.value:
        if not any(name in (full, full.partition(":")[0]) for full in names):
            print(f"error: only={name!r}; allowed: {', '.join(names)}", file=sys.stderr)
            return 2
    workdir = configs.home(_CLAIMS_DIR.value or f"runs/claims-{'cpu' if scale == 'quick' else scale}", "claims_dir")
    default_page = workdir / "claims.md" if scale in ("smoke", "quick") else Path("docs", "claims.md")
    page = configs.home(_PAGE.value, "page") if _PAGE.value else default_page
    chosen = [
        e
        for e in EXPERIMENTS
        if is_part_of(e, scale) and (not _ONLY.value or e.name in _ONLY.value or e.name.partition(":")[0] in _ONLY.value)
    ]
    if page.is_dir():
        raise configs.ConfigError(f"page={str(page)!r} is a directory; allowed: a file to write")
    directory.check_writable(page.parent, "page")
    directory.check_writable(workdir, "claims_dir")
    start = time.time()
    for experiment in chosen:
        print(f"=== {experiment.name} ({time.time() - start:.0f} s since the start)")
        error = run_experiment(experiment, scale, workdir)
        if error:
            print(f"not tested: {experiment.name}: {error}", file=sys.stderr)
        with directory.explain_write_errors(page.parent):
            keep_failures(page, {experiment.name: error and _public(error)})
        jax.clear_caches()  # the next experiment has other programs
    try:
        with directory.explain_write_errors(page.parent):
            rows = write_page(page, scale, workdir)
    except records.DamagedFile as error:
        print(f"error: {error}; allowed: a result as it was written; remove it and run its experiment again", file=sys.stderr)
        return 1
    for row in rows:
        print(f"{row.grade}: {row.title}: {row.effect}")
    print(f"page: {page}; {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    command_line.program(main, command_line.parse_flags)
