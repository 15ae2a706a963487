"""Where numbers come from: versions, settings and code."""

import shutil
from pathlib import Path

import jax

import catapult_jax
from catapult_jax import provenance
from experiments import reproduce


def test_environment_names_what_changes_numbers(monkeypatch):
    before = provenance.environment()
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    with jax.enable_x64(True):
        changed = reproduce.differences(before, provenance.environment())
    assert changed == {"variables.JAX_DEFAULT_PRNG_IMPL": [None, "rbg"], "jax_config.enable_x64": [False, True]}
    assert all(len(digest) == 64 for digest in before["code"].values())


def test_environment_tells_edited_code_apart(tmp_path, monkeypatch):
    shutil.copytree(Path(catapult_jax.__file__).parent, tmp_path / "catapult_jax", ignore=shutil.ignore_patterns("__pycache__"))
    before = provenance.environment()["code"]["catapult_jax"]
    monkeypatch.setattr(catapult_jax, "__file__", str(tmp_path / "catapult_jax" / "__init__.py"))
    assert provenance.environment()["code"]["catapult_jax"] == before
    with (tmp_path / "catapult_jax" / "losses.py").open("a") as file:
        file.write("# edited\n")
    assert provenance.environment()["code"]["catapult_jax"] != before
