"""Pages: what they name exists, and their code runs. The code cells of the site run when it is built: ``make docs``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import catapult_jax
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
