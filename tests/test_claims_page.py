"""The page of claims, from runs on disk."""

import doctest
import json

import pytest

from catapult_jax.events import DEFINITION
from experiments import catalogue, claims, claims_page


@pytest.fixture(autouse=True)
def no_data(monkeypatch, plain_figures):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)


def test_write_page_of_a_run_a_sweep_missing_data_and_the_rest(tmp_path):
    """A run, a sweep with a reference, data that are not available, and everything else not run."""
    chosen = [e for e in catalogue.EXPERIMENTS if e.name in ("cifar_gd:fcn", "batch_size:cifar2,ce", "catapults_agop:svhn2")]
    failures = {}
    for experiment in chosen:
        scale = "cpu" if experiment.name.endswith("svhn2") else "smoke"
        why = claims.run_experiment(experiment, scale, tmp_path / "runs")
        if why:
            failures[experiment.name] = claims._public(why)
    assert list(failures) == ["catapults_agop:svhn2"] and "svhn" in failures["catapults_agop:svhn2"]
    claims_page.write_page(tmp_path / "docs" / "claims.md", "smoke", tmp_path / "runs", failures)
    page = (tmp_path / "docs" / "claims.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]  # after the header
    assert len(rows) == sum(len(e.claims) for e in catalogue.EXPERIMENTS)
    assert sum("| not run |" in row for row in rows) == len(rows) - 3
    assert "no file" not in page and str(tmp_path / "docs") not in page
    assert f"Definition of the events: {DEFINITION}" in page
    assert "(#cifar_gdfcn)" in page and "--config=configs/batch_size.py:cifar2,ce,smoke" in page
    with_other = next(e for e in chosen if e.name == "cifar_gd:fcn")._replace(cpu={"steps": 7})
    assert claims_page.results(with_other, "cpu", tmp_path / "runs") == "run with another config"
    assert (tmp_path / "docs" / "figures" / "claims" / "cifar_gd-fcn.png").is_file()
    assert (tmp_path / "docs" / "figures" / "claims" / "batch_size-cifar2-ce.png").is_file()
    assert "Data: natural_patches" in page and "SHA-256" in page
    record = json.loads((tmp_path / "runs" / "cifar_gd-fcn" / "run.json").read_text())
    assert record["data"]["fallback_for"] == "cifar10"


def test_examples_in_docstrings():
    assert not doctest.testmod(claims_page).failed
