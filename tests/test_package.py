"""The package: imports, one source of versions, and the JAX releases that are excluded."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import catapult_jax
from catapult_jax import critical_lr, xla
from catapult_jax.tangent import neural_tangents

ROOT = Path(__file__).parents[1]

_BLOCKED = (
    "ml_collections",
    "neural_tangents",
    "zarr",
    "xarray",
    "tensorflow_datasets",
    "jaxtyping",
    "sklearn",
    "matplotlib",
    "jinja2",
    "tqdm",
)


def test_core_imports_with_only_jax_numpy_flax_and_optax():
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {_BLOCKED}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import jax.numpy as jnp
import catapult_jax, catapult_jax.training, catapult_jax.data, catapult_jax.checkpoints
model = catapult_jax.FCN(depth=2, width=4)
params = model.init(__import__("jax").random.key(0), jnp.ones((2, 3)))
assert catapult_jax.tangent_kernel(model.apply, params, jnp.ones((2, 3))).shape == (2, 2)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert run.returncode == 0, run.stderr


def test_report_imports_with_its_extra_only():
    code = """
import sys
class Block:
    blocked = {blocked!r}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import catapult_jax.report, numpy, tempfile, xarray
record = xarray.Dataset({{"loss_train": (("member", "step"), numpy.ones((1, 3)))}})
print(catapult_jax.report.build_report(record, title="mine", folder=tempfile.mkdtemp()).name)
"""
    run = lambda *blocked: subprocess.run(
        [sys.executable, "-c", code.format(blocked=blocked)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )

    programs = run("bokeh", "experiments", "configs", "ml_collections", "tensorflow_datasets", "sklearn", "tqdm", "frozendict")
    without = run("jinja2")

    assert programs.stdout.strip() == "report.html", programs.stderr
    assert (
        without.returncode == 1
        and "the report needs jinja2; allowed: catapult_jax installed with its extra 'report'" in without.stderr
    )


def test_missing_neural_tangents_names_the_line_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    neural_tangents.load.cache_clear()
    with pytest.raises(catapult_jax.NeuralTangentsMissing, match=re.escape(neural_tangents.INSTALL)):
        catapult_jax.tangent_kernel(lambda w, x: x @ w, jnp.ones((2, 1)), jnp.ones((3, 2)), method="neural_tangents")
    neural_tangents.load.cache_clear()


def test_versions_have_one_source():
    """requirements.txt lists what the core and the extras of the programs ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    extras = project["project"]["optional-dependencies"]
    core = project["project"]["dependencies"]
    required = [*core, *(line for name in ("records", "report", "experiments") for line in extras[name])]
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert sorted(listed) == sorted(line for line in required if not line.startswith("catapult_jax"))
    assert sorted(re.match("[a-z]+", line)[0] for line in core) == ["flax", "jax", "numpy", "optax"]
    pin = re.search(r"neural-tangents==[\d.]+", (ROOT / "Makefile").read_text())[0]
    assert pin in neural_tangents.INSTALL and pin in (ROOT / "requirements.txt").read_text()
    packages = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in (ROOT / "catapult_jax").rglob("__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == packages


def test_a_wheel_from_the_sdist_works_without_the_checkout(tmp_path):
    """With the files of the repository that the sdist takes: a report needs its templates, too."""
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(ROOT / "catapult_jax", source / "catapult_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    python = lambda code, cwd, **more: subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, env=os.environ | more
    )
    hook = "from setuptools import build_meta; build_meta.build_{}('..')"
    code = """
import numpy, tempfile, xarray, catapult_jax
from catapult_jax.report import build_interactive, build_report
record = xarray.Dataset({"loss_train": (("member", "step"), numpy.ones((1, 3)))})
print([make(record, title="mine", folder=tempfile.mkdtemp()).name for make in (build_report, build_interactive)], catapult_jax.__file__)
"""

    sdist = python(hook.format("sdist"), source)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    unpacked = next((tmp_path / "unpacked").iterdir())
    wheel = python(hook.format("wheel"), unpacked)
    shutil.unpack_archive(next((tmp_path / "unpacked").glob("*.whl")), site, "zip")
    run = python(code, elsewhere, PYTHONPATH=str(site))

    assert sdist.returncode == wheel.returncode == 0, (sdist.stderr, wheel.stderr)
    assert run.stdout.strip() == f"['report.html', 'interactive.html'] {site / 'catapult_jax' / '__init__.py'}", run.stderr[
        -500:
    ]
    assert {path.name for path in unpacked.iterdir()} >= {"LICENSE", "CHANGELOG.md", "requirements.txt"}


def test_public_names_exist():
    assert len(catapult_jax.__all__) == len(set(catapult_jax.__all__))
    assert all(hasattr(catapult_jax, name) for name in catapult_jax.__all__)


@pytest.mark.xla
def test_the_sum_that_jax_0_10_2_gets_wrong():
    """jax issue 39103: a vmapped 3 x 3 product followed by a sum, under jit, on the CPU; fails on 0.10.2."""
    n = 32769
    points = jnp.zeros((n, 3), jnp.float32).at[:, 0].set(jnp.arange(n, dtype=jnp.float32))
    length = jax.jit(jax.vmap(lambda point: jnp.sum(jnp.square(jnp.eye(3, dtype=jnp.float32) @ point))))
    assert float(length(points)[-1]) == 32768.0**2


def test_import_warns_of_an_excluded_jax():
    code = "import jax; jax.__version__ = '0.10.2'; import catapult_jax"
    run = subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert "UserWarning: jax 0.10.2 gives wrong or very slow results" in run.stderr


def test_critical_lr_warns_of_lapack_threads_once(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    xla.warn_of_lapack_threads.cache_clear()
    with pytest.warns(UserWarning, match="set OPENBLAS_NUM_THREADS=1 before Python starts"):
        critical_lr(lambda w, x: x @ w, jnp.zeros(2), (jnp.eye(2), jnp.zeros(2)), loss="mse")
    # The second call does not warn: a warning is an error here.
    critical_lr(lambda w, x: x @ w, jnp.zeros(2), (jnp.eye(2), jnp.zeros(2)), loss="mse")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    xla.warn_of_lapack_threads.cache_clear()
    critical_lr(lambda w, x: x @ w, jnp.zeros(2), (jnp.eye(2), jnp.zeros(2)), loss="mse")


def test_tangent_kernel_under_python_without_asserts():
    """``python -O`` strips an assert of Flax that has a side effect."""
    code = """
import jax, catapult_jax as cj
model, x = cj.FCN(depth=3, width=8), jax.numpy.ones((4, 5))
print(cj.tangent_kernel(model.apply, model.init(jax.random.key(2), x), x).shape)
"""
    run = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert run.stdout.strip() == "(4, 4)", run.stderr[-300:]
