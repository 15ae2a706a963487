"""Pages: what they name exists, and their code runs. The code cells of the site run when it is built: ``make docs``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import catapult_jax
from catapult_jax.training import criteria_instrument, directional_instruments, instruments
from catapult_jax.training.step import SERIES
from catapult_jax.watched_step import NAMES
from configs import quickstart
from experiments import main
from experiments.catalogue import load
from experiments.config import flat

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CODE = [page for page in PAGES if "```python" in page.read_text()]


def test_names_of_tests_on_pages_exist():
    defined = {
        name
        for path in (ROOT / "tests").glob("*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = {name: page.name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named and not set(named) - defined, {name: named[name] for name in set(named) - defined}


def test_files_on_pages_exist():
    """Paths of the repository in backquotes; those of a run, or with a placeholder in capitals, are not looked for."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for page in PAGES:
        for path in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", page.read_text()):
            assert (ROOT / path).exists() or path.startswith(("runs/", "benchmarks/results")), (page.name, path)


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.name)
def test_code_on_a_page_runs(page, tmp_path, plain_figures):
    """Its blocks one after the other, as a reader would type them in the checkout, beside the run that README makes."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    if "runs/mine" in code:
        main.run(quickstart.get_config("smoke"), tmp_path / "runs" / "mine")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_reference_lists_every_public_name():
    listed = set(re.findall(r"^   (\w+)$", (ROOT / "docs/reference.rst").read_text(), re.MULTILINE))
    assert set(catapult_jax.__all__) - {"__version__"} <= listed


def test_commands_on_pages_name_configs_variants_and_fields_that_exist():
    pages = [*PAGES, *sorted((ROOT / "docs").glob("*/*.md"))]
    lines = [
        (page, line)
        for page in pages
        for line in re.findall(r"^.*python -m experiments.*--config=configs/.*$", page.read_text(), re.M)
    ]
    assert len(lines) > 30
    for page, line in lines:
        name, variant = re.search(r"--config=configs/(\w+)\.py(?::([\w,]*\w))?", line).groups()
        if name == "NAME":
            continue
        config = load(name, variant or "")
        unknown = set(re.findall(r"--config\.([\w.]+)=", line)) - set(flat(config))
        assert not unknown, (page.name, line, unknown)


def test_page_of_series_has_every_series():
    """Those of the step, of all instruments, and of a watched loop."""
    apply_fn, given = (lambda params, x: x), {"loss": "mse", "every": 1}
    of_kernel = given | {"k": 2, "modes": 2}
    made = [
        instruments.lambda_max_batch(apply_fn, **of_kernel),
        instruments.lambda_max_batch_matrix_free(apply_fn, **given, k=2, k_max=4),
        *(instruments.lambda_max_train(apply_fn, **of_kernel, probe_size=size) for size in (None, 8)),
        *(instruments.lambda_max_train_matrix_free(apply_fn, **given, k=2, probe_size=size) for size in (None, 8)),
        instruments.preconditioner_min(apply_fn, **given),
        instruments.weight_norm(every=1),
        instruments.loss_train(apply_fn, **given),
        instruments.loss_batch_after(apply_fn, **given),
        *(instruments.loss_test(apply_fn, **given, target_encoding="sign", split=split) for split in ("test", "val")),
        instruments.agop_alignment(apply_fn, every=1, size=2),
        directional_instruments.directional_batch(apply_fn, **given),
        directional_instruments.directional_probe(apply_fn, (0, 0), **given),
        directional_instruments.directional_train(apply_fn, **given),
        criteria_instrument.criteria(apply_fn, **given, momentum=0.0),
    ]
    names = {*SERIES, *NAMES, *(name for instrument in made for name in instrument.series)}
    page = (ROOT / "docs/record.md").read_text()

    assert {name for name in names if not name.startswith("criterion_") and f"`{name}`" not in page} == set()
